{{- /* The models that routers front, the default one first, as JSON under `models`: `model` alone, or those of `models`. Each is what the
  templates of one model take, once its `root` is set: `key` in `models`, which the only one has none of; `id`, for names of what is its own, and the
  `volume` that it lies in; `path` of its values, and the `values` over what `model` gives all; its `name`, and `known` to callers and workers; `tokenizer` and
  `workers` that run elsewhere, with their paths; names of its `pools`; and the `folder` that it is mounted at. */ -}}
{{- define "sparsity.models" -}}
{{- $pools := include "sparsity.pools" . | fromJson -}}
{{- $model := .Values.model -}}{{- $router := .Values.router -}}
{{- $first := list -}}{{- $others := list -}}
{{- range $key, $own := .Values.models -}}
{{- $values := mustMergeOverwrite (deepCopy $model) (deepCopy $own) -}}
{{- $name := default $key $own.name -}}
{{- $known := concat (list $key $name (base $name)) (default list $own.aliases) -}}
{{- range $own.aliases }}{{ $known = append $known (base .) }}{{ end -}}
{{- $theirs := list -}}
{{- range $pool, $_ := $pools }}{{ if eq $key (default "" .model) }}{{ $theirs = append $theirs $pool }}{{ end }}{{ end -}}
{{- $path := printf "models.%s" $key -}}
{{- $found := dict "key" $key "id" (printf "model-%s" $key) "volume" (printf "model-%s" $key) "path" $path "values" $values "name" $name "known" (uniq $known)
  "tokenizer" (mustMergeOverwrite (deepCopy $router.tokenizer) (deepCopy (default dict $own.tokenizer))) "tokenizerPath" (printf "%s.tokenizer" $path)
  "workers" (default list $own.workers) "workersPath" (printf "%s.workers" $path) "pools" $theirs "folder" (printf "/models/%s" $key) -}}
{{- if $own.default }}{{ $first = append $first $found }}{{ else }}{{ $others = append $others $found }}{{ end -}}
{{- else -}}
{{- $first = list (dict "key" "" "id" "model" "volume" "model" "path" "model" "values" $model "name" $model.name "known" list
  "tokenizer" $router.tokenizer "tokenizerPath" "router.tokenizer" "workers" $router.workers "workersPath" "router.workers"
  "pools" (keys $pools | sortAlpha) "folder" "/models") -}}
{{- end -}}
{{- dict "models" (concat $first $others) | toJson -}}
{{- end }}

{{- /* Where a pool's workers are found: (list root pool). */ -}}
{{- define "sparsity.poolAddress" -}}
{{- $root := index . 0 -}}
{{- $name := printf "%s-worker-%s" (include "sparsity.fullname" $root) (index . 1) -}}
{{- if eq $root.Values.router.discovery "kubernetes" -}}
k8s:///{{ $root.Release.Namespace }}/{{ $name }}:7001
{{- else -}}
dns:///{{ $name }}.{{ $root.Release.Namespace }}.svc.{{ $root.Values.clusterDomain }}:7001
{{- end -}}
{{- end }}

{{- /* What routers read by --models; nothing where `model` is the only one. */ -}}
{{- define "sparsity.modelsFile" -}}
{{- $entries := list -}}
{{- range (include "sparsity.models" . | fromJson).models -}}
{{- $places := list -}}
{{- range .pools }}{{ $places = append $places (include "sparsity.poolAddress" (list $ .)) }}{{ end -}}
{{- $entry := dict "name" .name "folder" .folder "workers" (concat $places .workers) -}}
{{- with .values.aliases }}{{ $_ := set $entry "aliases" . }}{{ end -}}
{{- with .values.bands }}{{ $_ := set $entry "bands" . }}{{ end -}}
{{- $entries = append $entries $entry -}}
{{- end -}}
{{- if .Values.models }}{{ toYaml (dict "models" $entries) }}{{ end -}}
{{- end }}

{{- /* Its ConfigMap, of another name for other contents: routers read it at start. */ -}}
{{- define "sparsity.modelsConfigMap" -}}
{{- printf "%s-models-%s" (include "sparsity.fullname" .) (include "sparsity.modelsFile" . | sha256sum | trunc 10) -}}
{{- end }}

{{- /* What several models, or their pools, cannot be: fails by path, renders nothing. */ -}}
{{- define "sparsity.modelsValidate" -}}
{{- $names := keys .Values.models | sortAlpha | join ", " -}}
{{- range $pool, $own := include "sparsity.pools" . | fromJson -}}
{{- $path := printf "workers.%s" $pool -}}
{{- if not $.Values.models -}}
{{- if $own.model }}{{ fail (printf "%s.model: is one of `models`, of which there are none; every pool serves `model`" $path) }}{{ end -}}
{{- else if not $own.model -}}
{{- fail (printf "%s.model: say which of models the pool serves (%s), or switch it off by %s.enabled: false" $path $names $path) -}}
{{- else if not (hasKey $.Values.models $own.model) -}}
{{- fail (printf "%s.model: %s is none of models (%s)" $path $own.model $names) -}}
{{- else -}}
{{- $folder := printf "/models/%s/" $own.model -}}
{{- range $own.profiles -}}
{{- if and (hasPrefix "/models/" .) (not (hasPrefix $folder .)) -}}
{{- fail (printf "%s.profiles: %s does not lie in %s, where the pool's model is" $path . $folder) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if not .Values.models -}}
{{- $called := include "sparsity.called" (merge (dict "root" .) (first (include "sparsity.models" . | fromJson).models)) -}}
{{- if has $called .Values.model.aliases }}{{ fail (printf "model.aliases: %s is the model's name already" $called) }}{{ end -}}
{{- else -}}
{{- range $field := list "name" "aliases" "existingClaim" "subPath" "builtin" "source" "sha256" "cache.size" "cache.existingClaim" "download.secretName"
  "download.endpoint" "download.region" "download.include" "download.image" -}}
{{- $given := $.Values.model }}{{ range splitList "." $field }}{{ $given = get $given . }}{{ end -}}
{{- if $given }}{{ fail (printf "model.%s: goes without models, each of which has its own: models.NAME.%s" $field $field) }}{{ end -}}
{{- end -}}
{{- range $field := list "image" "existingClaim" "subPath" -}}
{{- if get $.Values.router.tokenizer $field }}{{ fail (printf "router.tokenizer.%s: goes without models, each of which has its own: models.NAME.tokenizer" $field) }}{{ end -}}
{{- end -}}
{{- if .Values.router.workers }}{{ fail "router.workers: goes without models, each of which has its own: models.NAME.workers" }}{{ end -}}
{{- $default := list -}}{{- $known := dict -}}{{- $places := dict -}}{{- $folders := dict -}}
{{- range (include "sparsity.models" . | fromJson).models -}}
{{- $model := . -}}
{{- if .values.default }}{{ $default = append $default .key }}{{ end -}}
{{- if not (or .pools .workers) -}}
{{- fail (printf "%s: no pool that is enabled has `model: %s`, and %s names none that runs elsewhere" .path .key .workersPath) -}}
{{- end -}}
{{- $pools := include "sparsity.pools" $ | fromJson -}}
{{- range .pools -}}
{{- if and (eq (index $pools .).autoscaling.kind "adapter") (not (regexMatch "^[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$" $model.name)) -}}
{{- fail (printf "%s.name: %s cannot be asked for by workers.%s.autoscaling.kind adapter, as a label's value; make it an alias" $model.path $model.name .) -}}
{{- end -}}
{{- end -}}
{{- $from := include "sparsity.model" (merge (dict "root" $) .) | fromJson -}}
{{- $folder := printf "%s/%s" $from.claim $from.folder -}}
{{- if and (eq $from.kind "download") $from.claim -}}
{{- if hasKey $folders $folder }}{{ fail (printf "%s.source: is downloaded into the cache of models.%s already; make the one an alias of the other, or give each its cache" .path (get $folders $folder)) }}{{ end -}}
{{- $_ := set $folders $folder .key -}}
{{- end -}}
{{- if has .name .values.aliases }}{{ fail (printf "%s.aliases: %s is the model's name already" .path .name) }}{{ end -}}
{{- range $risk, $bands := .values.bands -}}
{{- $last := dict -}}
{{- range $place, $band := $bands -}}
{{- $task := default "" $band.task -}}
{{- if not (ternary (gt (int $band.from_tokens) (int (get $last $task))) (eq (int $band.from_tokens) 0) (hasKey $last $task)) -}}
{{- fail (printf "%s.bands.%s.%d.from_tokens: bands begin at 0, and each after the one before it; those of a task by themselves" $model.path $risk $place) -}}
{{- end -}}
{{- $_ := set $last $task $band.from_tokens -}}
{{- end -}}
{{- if not (hasKey $last "") }}{{ fail (printf "%s.bands.%s: need bands without a task, for requests of any other" $model.path $risk) }}{{ end -}}
{{- end -}}
{{- range .known -}}
{{- if hasKey $known . }}{{ fail (printf "%s: %s is a name, an alias or the key of models.%s too, or the last part of one" $model.path . (get $known .)) }}{{ end -}}
{{- $_ := set $known . $model.key -}}
{{- end -}}
{{- range .workers -}}
{{- if hasKey $places . }}{{ fail (printf "%s: %s is one of models.%s.workers" $model.workersPath . (get $places .)) }}{{ end -}}
{{- $_ := set $places . $model.key -}}
{{- end -}}
{{- end -}}
{{- if gt (len $default) 1 }}{{ fail (printf "models.%s.default: one model at most answers requests that name none; models.%s does" (last $default) (first $default)) }}{{ end -}}
{{- if and (not $default) (gt (len .Values.models) 1) -}}
{{- fail (printf "models: say which answers requests that name none, by default: true of one (%s)" $names) -}}
{{- end -}}
{{- end -}}
{{- end }}
