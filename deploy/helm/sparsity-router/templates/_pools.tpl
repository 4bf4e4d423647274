{{- /* Whether a pool's workers are on their nodes' network: a word, or nothing. */ -}}
{{- define "sparsity.onNodes" -}}
{{- range include "sparsity.pools" . | fromJson }}{{ if dig "hostNetwork" false (.podSpec | default dict) }}yes{{ end }}{{ end -}}
{{- end }}

{{- /* What pools must say, each with the value's path. Renders nothing. */ -}}
{{- define "sparsity.poolsValidate" -}}
{{- range $name, $own := .Values.workers -}}
{{- $path := printf "workers.%s" $name -}}
{{- if kindIs "map" $own -}}
{{- if hasKey $own "profile" -}}
{{- fail (printf "%s.profile: is a list now, %s.profiles, one for each sparse tier of %s.tiers; see UPGRADE.md" $path $path $path) -}}
{{- end -}}
{{- if and (not $own.tiers) (ne false $own.enabled) -}}
{{- $example := ternary $name "dense" (has $name (list "dense" "moderate" "aggressive")) -}}
{{- fail (printf "%s.tiers: say which tiers the pool serves, such as [%s]; where no pool serves all, also workers.shared.enabled: false; see UPGRADE.md" $path $example) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $name, $pool := include "sparsity.pools" . | fromJson -}}
{{- $path := printf "workers.%s" $name -}}
{{- $sparse := without $pool.tiers "dense" -}}
{{- $engine := dig "engine" "sglang" $pool.options -}}
{{- $echo := eq "echo" $engine -}}
{{- if ne $echo (not (empty (include "sparsity.echo" $))) -}}
{{- fail (printf "%s.options.engine: is %s; routers and workers echo together, by router.options.engine and the pools' options.engine" $path $engine) -}}
{{- end -}}
{{- $nodes := int $pool.nodes -}}{{- $ranks := int (dig "tensor-parallel" 1 $pool.options) -}}
{{- if and $echo (gt $nodes 1) -}}
{{- fail (printf "%s.nodes: must be 1 beside options.engine echo, which is one process" $path) -}}
{{- end -}}
{{- if mod $ranks $nodes -}}
{{- fail (printf "%s.nodes: %d nodes cannot share the %d ranks of %s.options.tensor-parallel, as many on each" $path $nodes $ranks $path) -}}
{{- end -}}
{{- $group := include "sparsity.group" (list $ $name) -}}
{{- if and (gt $nodes 1) (gt (len $group) 48) -}}
{{- fail (printf "%s.nodes: pods of %s would have names longer than 63 characters with what stands behind it; give a shorter fullnameOverride" $path $group) -}}
{{- end -}}
{{- if and $echo $pool.profiles -}}
{{- fail (printf "%s.profiles: must be [] beside options.engine echo, which attends nothing" $path) -}}
{{- end -}}
{{- if and (not $echo) (ne (len $pool.profiles) (len $sparse)) -}}
{{- fail (printf "%s.profiles: are %d for %d sparse tiers of %s.tiers; each needs one" $path (len $pool.profiles) (len $sparse) $path) -}}
{{- end -}}
{{- end -}}
{{- end }}

{{- /* Whether what is in doubt is served, which goes dense, by a model's pools. Renders nothing. */ -}}
{{- define "sparsity.denseValidate" -}}
{{- $pools := include "sparsity.pools" .root | fromJson -}}
{{- $dense := dict -}}
{{- range .pools }}{{ $pool := index $pools . }}{{ if has "dense" $pool.tiers }}{{ $_ := set $dense . $pool }}{{ end }}{{ end -}}
{{- /* Servers of stock SGLang hold the place that pools of ours otherwise must. */ -}}
{{- $stock := include "sparsity.stock" . -}}
{{- if not (or $dense $stock) -}}
{{- fail (printf "%s: no pool that is enabled serves dense, and %s names no stock SGLang; what is in doubt goes dense" (ternary .path "workers" (ne .key "")) .workersPath) -}}
{{- end -}}
{{- range $name, $pool := ternary dict $dense (not (empty $stock)) -}}
{{- $path := printf "workers.%s" $name -}}
{{- $fewest := int (include "sparsity.fewest" $pool) -}}
{{- $others := 0 -}}{{- $staying := 0 -}}
{{- range $other, $values := omit $dense $name -}}
{{- $there := int (include "sparsity.fewest" $values) -}}
{{- $others = add $others $there -}}
{{- $going := get (dict "surge" 0 "replace" (int $values.rolloutStep) "recreate" $there) $values.rollout -}}
{{- $staying = add $staying (max 0 (sub $there $going)) -}}
{{- end -}}
{{- if and (lt $fewest 1) (lt (int $others) 1) -}}
{{- $field := ternary "replicas" "autoscaling.minReplicas" (eq $pool.autoscaling.kind "none") -}}
{{- fail (printf "%s.%s: must be at least 1; no other pool with a worker serves dense, where what is in doubt goes" $path $field) -}}
{{- end -}}
{{- $step := int $pool.rolloutStep -}}
{{- if and (eq $pool.rollout "replace") (le $fewest $step) (lt (int $staying) 1) -}}
{{- fail (printf "%s.rollout: replace leaves no dense worker while the model loads; give %d replicas, or surge, or recreate, which accepts that" $path (add $step 1)) -}}
{{- end -}}
{{- end -}}
{{- end }}
