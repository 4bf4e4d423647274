{{- /* Where a model of `sparsity.models`, which all below take, comes from, as JSON: `kind` is builtin, claim, hostPath or download; `claim` is the claim that pods mount, the
  cache of a download, or empty where each pod downloads for itself; `folder` is the model's place in it. */ -}}
{{- define "sparsity.model" -}}
{{- $model := .values -}}
{{- $found := dict "kind" "claim" "scheme" "" "rest" "" "claim" $model.existingClaim "folder" $model.subPath -}}
{{- if $model.builtin -}}
{{- $_ := set $found "kind" "builtin" -}}
{{- else if $model.source -}}
{{- $scheme := first (splitList "://" $model.source) -}}
{{- $rest := trimPrefix (printf "%s://" $scheme) $model.source -}}
{{- if eq $scheme "pvc" -}}
{{- $parts := splitn "/" 2 $rest -}}
{{- $found = merge (dict "claim" $parts._0 "folder" (default "" $parts._1 | trimAll "/")) $found -}}
{{- else if eq $scheme "hostPath" -}}
{{- $found = merge (dict "kind" "hostPath" "folder" $rest) $found -}}
{{- else -}}
{{- /* What is asked for names the folder, so that another revision lies beside the one that pods still read. */ -}}
{{- $asked := dict "source" $model.source "include" $model.download.include "exclude" $model.download.exclude "sha256" $model.sha256 -}}
{{- $folder := printf "%s-%s" (base (first (splitList "@" $rest)) | replace ":" "-" | trunc 60) (toJson $asked | sha256sum | trunc 10) -}}
{{- $made := ternary (printf "%s-%s" (include "sparsity.fullname" .root) .id) "" (not (empty $model.cache.size)) -}}
{{- $claim := default $made $model.cache.existingClaim -}}
{{- $found = dict "kind" "download" "scheme" $scheme "rest" $rest "claim" $claim "folder" $folder -}}
{{- end -}}
{{- end -}}
{{- toJson $found -}}
{{- end }}

{{- /* Whether no model runs, and workers answer with the prompt: a word, or nothing. */ -}}
{{- define "sparsity.echo" -}}
{{- if eq "echo" (dig "engine" "sglang" (.Values.router.options | default dict)) }}yes{{ end }}
{{- end }}

{{- /* Seconds that a download may take, before anything can be loaded. */ -}}
{{- define "sparsity.modelSeconds" -}}
{{- $model := include "sparsity.model" . | fromJson -}}
{{- ternary (int .values.download.seconds) 0 (eq $model.kind "download") -}}
{{- end }}

{{- /* Where the model lies in the pod: of several, in a folder that is called as it is in `models`. */ -}}
{{- define "sparsity.modelPath" -}}
{{- if or .key (not .values.builtin) }}{{ .folder }}
{{- else if include "sparsity.echo" .root }}/models/echo
{{- else }}/models/SmolLM2-135M-Instruct
{{- end }}
{{- end }}

{{- /* What callers and workers call it. */ -}}
{{- define "sparsity.called" -}}
{{- .name | default (base (include "sparsity.modelPath" .)) -}}
{{- end }}

{{- define "sparsity.modelVolume" -}}
{{- $model := include "sparsity.model" . | fromJson -}}
- name: {{ .volume }}
  {{- if eq $model.kind "hostPath" }}
  hostPath: {path: {{ $model.folder | quote }}, type: Directory}
  {{- else if $model.claim }}
  persistentVolumeClaim:
    claimName: {{ $model.claim }}
    readOnly: true
  {{- else }}
  emptyDir: {}
  {{- end }}
{{- end }}

{{- define "sparsity.modelMount" -}}
{{- $model := include "sparsity.model" . | fromJson -}}
- name: {{ .volume }}
  mountPath: {{ .folder }}
  readOnly: true
  {{- if and $model.claim $model.folder }}
  subPath: {{ $model.folder }}
  {{- end }}
{{- end }}

{{- /* What brings the model before a pod's program: (list model values image), image and values of the component. */ -}}
{{- define "sparsity.modelInit" -}}
{{- $one := index . 0 -}}{{- $values := index . 1 -}}{{- $root := $one.root -}}
{{- $model := include "sparsity.model" $one | fromJson }}
{{- if and (eq $model.kind "builtin") (include "sparsity.echo" $root) }}
{{- $router := include "sparsity.component" (list $root "router") | fromJson }}
- name: {{ $one.id }}
  image: {{ include "sparsity.image" (list $root $router "router" "sparsity-router") }}
  imagePullPolicy: {{ $router.image.pullPolicy }}
  # A tokenizer of bytes.
  command: [python, -m, sparsity_worker.echo.model, {{ include "sparsity.modelPath" $one }}]
  securityContext:
    {{- toYaml $values.securityContext | nindent 4 }}
  resources:
    requests: {cpu: 100m, memory: 64Mi}
    limits: {memory: 512Mi}
  volumeMounts:
  - {name: {{ $one.volume }}, mountPath: {{ $one.folder }}}
{{- else if eq $model.kind "builtin" }}
{{- $name := first $one.pools }}
{{- $pool := index (include "sparsity.pools" $root | fromJson) $name }}
- name: {{ $one.id }}
  image: {{ include "sparsity.image" (list $root $pool (printf "workers.%s" $name) "sparsity-worker") }}
  imagePullPolicy: {{ $pool.image.pullPolicy }}
  command: [cp, -r, /opt/sparsity/models/SmolLM2-135M-Instruct{{ if $one.key }}/.{{ end }}, {{ $one.folder }}/]
  securityContext:
    {{- toYaml $values.securityContext | nindent 4 }}
  resources:
    requests: {cpu: 100m, memory: 64Mi}
    limits: {memory: 512Mi}
  volumeMounts:
  - {name: {{ $one.volume }}, mountPath: {{ $one.folder }}}
{{- else if and (eq $model.kind "download") $model.claim }}
- name: {{ $one.id }}
  image: {{ index . 2 }}
  imagePullPolicy: {{ $values.image.pullPolicy }}
  command: [sh, -c]
  args:
  - |
    until [ -e "/cache/{{ $model.folder }}/.complete" ]; do
      echo "model: waiting for its download"
      sleep 10
    done
  securityContext:
    {{- toYaml $values.securityContext | nindent 4 }}
  resources:
    requests: {cpu: 10m, memory: 16Mi}
    limits: {memory: 64Mi}
  volumeMounts:
  - {name: {{ $one.volume }}, mountPath: /cache, readOnly: true}
{{- else if eq $model.kind "download" }}
{{- include "sparsity.download" (dict "model" $one "values" $values "image" (index . 2) "target" $one.folder) }}
{{- end }}
{{- end }}

{{- /* Downloads the model: model, values and image of the component, target (a folder on the model's volume, which is mounted at
  `mount`), and `files` where it is to be no more than these. */ -}}
{{- define "sparsity.download" -}}
{{- $root := .model.root }}
{{- $model := include "sparsity.model" .model | fromJson }}
{{- $download := .model.values.download }}
{{- $include := default $download.include .files }}
{{- $exclude := ternary list $download.exclude (hasKey . "files") }}
{{- $sums := list }}
{{- range $file, $sum := .model.values.sha256 }}
{{- if or (not $.files) (has $file (default list $.files)) }}{{ $sums = append $sums (printf "%s  %s" $sum $file) }}{{ end }}
{{- end }}
{{- $repository := splitn "@" 2 $model.rest }}
{{- $image := default .image $download.image }}
{{- if eq $model.scheme "s3" }}{{ $image = include "sparsity.publicImage" (list $root $download.image "docker.io" "rclone/rclone:1.71.2") }}{{ end }}
{{- if eq $model.scheme "oci" }}{{ $image = include "sparsity.publicImage" (list $root $download.image "ghcr.io" "oras-project/oras:v1.3.0") }}{{ end }}
- name: {{ .model.id }}
  image: {{ $image }}
  imagePullPolicy: {{ .values.image.pullPolicy }}
  command:
  - sh
  - -euc
  - |
    {{- $root.Files.Get "files/model-download.sh" | trim | nindent 4 }}
  - model-download
  args:
  {{- if eq $model.scheme "hf" }}
  {{- toYaml (list "python" "-m" "huggingface_hub.cli.hf" "download" $repository._0 "--revision" $repository._1 "--local-dir" .target) | nindent 2 }}
  {{- range $include }}
  - --include={{ . }}
  {{- end }}
  {{- range $exclude }}
  - --exclude={{ . }}
  {{- end }}
  {{- else if eq $model.scheme "s3" }}
  {{- toYaml (list "rclone" "copy" (printf ":s3:%s" $model.rest) .target "--stats=15s" "--stats-one-line" "--stats-log-level=NOTICE") | nindent 2 }}
  {{- range $exclude }}
  - --filter=- {{ . }}
  {{- end }}
  {{- range $include }}
  - --filter=+ {{ if $.files }}/{{ end }}{{ . }}
  {{- end }}
  {{- if $include }}
  - --filter=- *
  {{- end }}
  {{- else }}
  {{- toYaml (list "oras" "pull" $model.rest "--output" .target "--no-tty") | nindent 2 }}
  {{- if $download.secretName }}
  - --registry-config=/etc/sparsity/model/.dockerconfigjson
  {{- end }}
  {{- end }}
  env:
  - {name: HOME, value: /tmp}
  - {name: SOURCE, value: {{ .model.values.source | quote }}}
  - {name: TARGET, value: {{ .target }}}
  {{- with $sums }}
  - name: SHA256
    value: |-
      {{- range . }}
      {{ . }}
      {{- end }}
  {{- end }}
  {{- if eq $model.scheme "hf" }}
  - name: VERIFY
    value: >-
      python -m huggingface_hub.cli.hf cache verify {{ $repository._0 }}
      --revision {{ $repository._1 }} --local-dir {{ .target }}
  - {name: HF_HUB_DISABLE_TELEMETRY, value: "1"}
  - {name: HF_HUB_DISABLE_UPDATE_CHECK, value: "1"}
  {{- with $download.endpoint }}
  - {name: HF_ENDPOINT, value: {{ . | quote }}}
  {{- end }}
  {{- with include "sparsity.secretVariable" (list "HF_TOKEN" $download.secretName $download.secretKey) | trim }}
  {{- . | nindent 2 }}
  {{- end }}
  {{- else if eq $model.scheme "s3" }}
  - {name: RCLONE_S3_ENV_AUTH, value: "true"}
  - {name: RCLONE_S3_PROVIDER, value: {{ ternary "Other" "AWS" (not (empty $download.endpoint)) }}}
  {{- with $download.endpoint }}
  - {name: RCLONE_S3_ENDPOINT, value: {{ . | quote }}}
  {{- end }}
  {{- with $download.region }}
  - {name: RCLONE_S3_REGION, value: {{ . | quote }}}
  {{- end }}
  {{- end }}
  {{- if and (eq $model.scheme "s3") $download.secretName }}
  envFrom:
  - secretRef: {name: {{ $download.secretName }}}
  {{- end }}
  securityContext:
    {{- toYaml .values.securityContext | nindent 4 }}
  resources:
    {{- toYaml $download.resources | nindent 4 }}
  volumeMounts:
  - {name: {{ .model.volume }}, mountPath: {{ default .target .mount }}}
  - {name: tmp, mountPath: /tmp}
  {{- if and (eq $model.scheme "oci") $download.secretName }}
  - {name: registry-login, mountPath: /etc/sparsity/model, readOnly: true}
  {{- end }}
{{- end }}

{{- /* The login of a registry, for pods that download from one. */ -}}
{{- define "sparsity.downloadVolume" -}}
{{- if and (hasPrefix "oci://" .values.source) .values.download.secretName }}
- {name: registry-login, secret: {secretName: {{ .values.download.secretName }}}}
{{- end }}
{{- end }}

{{- /* What pods that download need of the network. */ -}}
{{- define "sparsity.downloadEgress" -}}
{{- $ports := list }}
{{- range .root.Values.networkPolicy.modelPorts }}{{ $ports = append $ports (printf "%d" (int .)) }}{{ end }}
{{- $model := include "sparsity.model" . | fromJson }}
{{- $endpoint := .values.download.endpoint }}
{{- $host := ternary (first (splitList "/" $model.rest)) (include "sparsity.urlHosts" $endpoint) (eq $model.scheme "oci") }}
{{- $ports = append $ports (include "sparsity.port" (list $host (ternary "80" "443" (hasPrefix "http://" $endpoint)))) -}}
- ports:
  {{- range uniq $ports }}
  - {port: {{ . }}, protocol: TCP}
  {{- end }}
{{- end }}

{{- /* What cannot be: fails by path, renders nothing. */ -}}
{{- define "sparsity.modelValidate" -}}
{{- $model := .values -}}{{- $path := .path -}}
{{- if hasKey $model "adapters" -}}
{{- fail (printf "%s.adapters: workers serve no LoRA adapters; merge them into a model of its own" $path) -}}
{{- end -}}
{{- if and $model.builtin $model.existingClaim -}}
{{- fail (printf "%s.builtin: goes without %s.existingClaim" $path $path) -}}
{{- end -}}
{{- if and $model.source (or $model.builtin $model.existingClaim $model.subPath) -}}
{{- fail (printf "%s.source: goes without %s.existingClaim, %s.subPath and %s.builtin" $path $path $path $path) -}}
{{- end -}}
{{- $tokenizer := .tokenizer -}}
{{- if and (not .pools) (include "sparsity.stock" .) (or $model.builtin $model.cache.size $model.cache.existingClaim) -}}
{{- fail (printf "%s: builtin and cache are of pools, of which none is enabled; name the router's tokenizer, or a %s.source to take it from" $path $path) -}}
{{- end -}}
{{- $alone := and (not .pools) (or $tokenizer.image $tokenizer.existingClaim) -}}
{{- if not (or $model.builtin $model.existingClaim $model.source $alone) -}}
{{- fail (printf "%s.existingClaim: name a claim with a Hugging Face folder, say where the model comes from in %s.source, or set %s.builtin=true for the small model of a trial" $path $path $path) -}}
{{- end -}}
{{- if $model.source -}}
{{- $patterns := dict
  "hf" (list "^hf://[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*@[A-Za-z0-9][A-Za-z0-9._/-]*$" "must be hf://ORG/NAME@REVISION")
  "s3" (list "^s3://[a-z0-9][a-z0-9.-]+(/[A-Za-z0-9._=-]+)+/?$" "must be s3://BUCKET/FOLDER")
  "oci" (list "^oci://[a-z0-9.-]+(:[0-9]+)?(/[a-z0-9._-]+)+(:[A-Za-z0-9._-]+|@sha256:[0-9a-f]{64})$" "must be oci://REGISTRY/NAME:TAG, or @sha256:DIGEST")
  "pvc" (list "^pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?(/[A-Za-z0-9._-]+)*/?$" "must be pvc://CLAIM/FOLDER")
  "hostPath" (list "^hostPath://(/[A-Za-z0-9._-]+)+/?$" "must be hostPath:///FOLDER") -}}
{{- $pattern := get $patterns (first (splitList "://" $model.source)) -}}
{{- if not (regexMatch (first $pattern) $model.source) -}}
{{- fail (printf "%s.source: %s" $path (last $pattern)) -}}
{{- end -}}
{{- if contains "/../" (printf "%s/" $model.source) -}}
{{- fail (printf "%s.source: leaves its folder by .." $path) -}}
{{- end -}}
{{- if regexMatch "^(hf://.*@(main|master)|oci://.*:latest)$" $model.source -}}
{{- fail (printf "%s.source: %s names no version; give %s" $path (regexFind "[^@:]+$" $model.source) (ternary "a commit, or a tag" "another tag, or a digest" (hasPrefix "hf" $model.source))) -}}
{{- end -}}
{{- end -}}
{{- $found := include "sparsity.model" . | fromJson -}}
{{- $download := $model.download -}}
{{- if ne $found.kind "download" -}}
{{- range $field, $given := dict "cache.size" $model.cache.size "cache.existingClaim" $model.cache.existingClaim "sha256" $model.sha256
  "download.secretName" $download.secretName "download.image" $download.image "download.endpoint" $download.endpoint
  "download.region" $download.region "download.include" $download.include -}}
{{- if $given }}{{ fail (printf "%s.%s: is of a %s.source that is downloaded: hf://, s3:// or oci://" $path $field $path) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- if and $model.cache.size $model.cache.existingClaim -}}
{{- fail (printf "%s.cache: give existingClaim, or size of one to make" $path) -}}
{{- end -}}
{{- if eq $found.scheme "oci" -}}
{{- if or $download.include $download.endpoint $download.region -}}
{{- fail (printf "%s.download: include, endpoint and region are of hf:// and s3://; an artifact comes whole from its registry" $path) -}}
{{- end -}}
{{- if not (or $found.claim $tokenizer.image $tokenizer.existingClaim) -}}
{{- fail (printf "%s: give image or existingClaim, or %s.cache; without them each router would pull the whole artifact" .tokenizerPath $path) -}}
{{- end -}}
{{- end -}}
{{- if and $download.endpoint (not (include "sparsity.isHost" (include "sparsity.urlHosts" $download.endpoint))) -}}
{{- fail (printf "%s.download.endpoint: has no host:port; credentials go into %s.download.secretName, an IPv6 address into brackets" $path $path) -}}
{{- end -}}
{{- if and (eq $found.scheme "hf") $download.region -}}
{{- fail (printf "%s.download.region: is of s3://" $path) -}}
{{- end -}}
{{- include "sparsity.versioned" (list (printf "%s.download.image" $path) $download.image) -}}
{{- if and $tokenizer.image $tokenizer.existingClaim -}}
{{- fail (printf "%s: give image or existingClaim, not both" .tokenizerPath) -}}
{{- end -}}
{{- if and $tokenizer.subPath (not $tokenizer.existingClaim) -}}
{{- fail (printf "%s.subPath: is of %s.existingClaim; an image has %s.path" .tokenizerPath .tokenizerPath .tokenizerPath) -}}
{{- end -}}
{{- include "sparsity.versioned" (list (printf "%s.image" .tokenizerPath) $tokenizer.image) -}}
{{- end }}

{{- /* The job that downloads the model into its claim. */ -}}
{{- define "sparsity.modelJob" -}}
{{- $model := include "sparsity.model" . | fromJson }}
{{- $root := .root }}
{{- $router := include "sparsity.component" (list $root "router") | fromJson }}
# Each goes on where the last one ended.
backoffLimit: 20
activeDeadlineSeconds: {{ int .values.download.seconds }}
podFailurePolicy:
  rules:
  # What was downloaded is not what it should be: again it would be the same.
  - action: FailJob
    onExitCodes: {containerName: {{ .id }}, operator: In, values: [3]}
template:
  metadata:
    labels:
      {{- include "sparsity.labels" (list $root .id) | nindent 6 }}
  spec:
    restartPolicy: Never
    serviceAccountName: {{ include "sparsity.serviceAccount" $root }}
    automountServiceAccountToken: false
    enableServiceLinks: false
    {{- with include "sparsity.besideRouters" $router | trim }}
    {{- . | nindent 4 }}
    {{- end }}
    {{- with $root.Values.imagePullSecrets }}
    imagePullSecrets:
      {{- toYaml . | nindent 6 }}
    {{- end }}
    securityContext:
      {{- toYaml $router.podSecurityContext | nindent 6 }}
    containers:
    {{- include "sparsity.download" (dict "model" . "values" $router "mount" "/cache" "target" (printf "/cache/%s" $model.folder)
      "image" (include "sparsity.image" (list $root $router "router" "sparsity-router"))) | trim | nindent 4 }}
    volumes:
    - {name: {{ .volume }}, persistentVolumeClaim: {claimName: {{ $model.claim }}}}
    - {name: tmp, emptyDir: {}}
    {{- with include "sparsity.downloadVolume" . | trim }}
    {{- . | nindent 4 }}
    {{- end }}
{{- end }}
