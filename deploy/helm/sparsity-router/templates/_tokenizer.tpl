{{- /* Where routers have a model's tokenizer from, as a word: image, claim, download, or model, which is the workers' volume. */ -}}
{{- define "sparsity.tokenizer" -}}
{{- $own := .tokenizer -}}
{{- $model := include "sparsity.model" . | fromJson -}}
{{- if $own.image }}image
{{- else if $own.existingClaim }}claim
{{- else if has $model.scheme (list "hf" "s3") }}download
{{- else }}model
{{- end -}}
{{- end }}

{{- /* The claim that routers have it from, or nothing. */ -}}
{{- define "sparsity.routerClaim" -}}
{{- $from := include "sparsity.tokenizer" . -}}
{{- if eq $from "claim" }}{{ .tokenizer.existingClaim }}{{ else if eq $from "model" }}{{ (include "sparsity.model" . | fromJson).claim }}{{ end -}}
{{- end }}

{{- define "sparsity.routerModelPath" -}}
{{- if ne "model" (include "sparsity.tokenizer" .) }}{{ .folder }}{{ else }}{{ include "sparsity.modelPath" . }}{{ end }}
{{- end }}

{{- define "sparsity.routerModelVolume" -}}
{{- $from := include "sparsity.tokenizer" . -}}
{{- if has $from (list "image" "download") }}
- {name: {{ .volume }}, emptyDir: {}}
{{- else if eq $from "claim" }}
- name: {{ .volume }}
  persistentVolumeClaim: {claimName: {{ .tokenizer.existingClaim }}, readOnly: true}
{{- else }}
{{- include "sparsity.modelVolume" . }}
{{- end }}
{{- end }}

{{- define "sparsity.routerModelMount" -}}
{{- $own := .tokenizer -}}
{{- if ne "model" (include "sparsity.tokenizer" .) }}
- name: {{ .volume }}
  mountPath: {{ .folder }}
  readOnly: true
  {{- if and $own.existingClaim $own.subPath }}
  subPath: {{ $own.subPath }}
  {{- end }}
{{- else }}
{{- include "sparsity.modelMount" . }}
{{- end }}
{{- end }}

{{- /* (list model values image) */ -}}
{{- define "sparsity.routerModelInit" -}}
{{- $one := index . 0 -}}{{- $own := $one.tokenizer -}}
{{- $from := include "sparsity.tokenizer" $one -}}
{{- if eq $from "image" }}
- name: tokenizer{{ trimPrefix "model" $one.id }}
  image: {{ $own.image }}
  imagePullPolicy: {{ (index . 1).image.pullPolicy }}
  command: [cp, -rL, {{ printf "%s/." (trimSuffix "/" $own.path) }}, {{ $one.folder }}/]
  securityContext:
    {{- toYaml (index . 1).securityContext | nindent 4 }}
  resources:
    requests: {cpu: 50m, memory: 32Mi}
    limits: {memory: 128Mi}
  volumeMounts:
  - {name: {{ $one.volume }}, mountPath: {{ $one.folder }}}
{{- else if eq $from "download" }}
{{- include "sparsity.download" (dict "model" $one "values" (index . 1) "image" (index . 2) "target" $one.folder
  "files" (list "tokenizer.json" "config.json" "tokenizer_config.json" "chat_template.jinja" "generation_config.json")) }}
{{- else if eq $from "model" }}
{{- include "sparsity.modelInit" . }}
{{- end }}
{{- end }}
