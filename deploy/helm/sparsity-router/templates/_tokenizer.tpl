{{- /* Where the router's tokenizer comes from, as a word: image, claim, download, or model, which is the workers' volume. */ -}}
{{- define "sparsity.tokenizer" -}}
{{- $own := .Values.router.tokenizer -}}
{{- $model := include "sparsity.model" . | fromJson -}}
{{- if $own.image }}image
{{- else if $own.existingClaim }}claim
{{- else if has $model.scheme (list "hf" "s3") }}download
{{- else }}model
{{- end -}}
{{- end }}

{{- define "sparsity.routerModelPath" -}}
{{- if ne "model" (include "sparsity.tokenizer" .) }}/models{{ else }}{{ include "sparsity.modelPath" . }}{{ end }}
{{- end }}

{{- define "sparsity.routerModelVolume" -}}
{{- $from := include "sparsity.tokenizer" . -}}
{{- if has $from (list "image" "download") }}
- {name: model, emptyDir: {}}
{{- else if eq $from "claim" }}
- name: model
  persistentVolumeClaim: {claimName: {{ .Values.router.tokenizer.existingClaim }}, readOnly: true}
{{- else }}
{{- include "sparsity.modelVolume" . }}
{{- end }}
{{- end }}

{{- define "sparsity.routerModelMount" -}}
{{- $own := .Values.router.tokenizer -}}
{{- if ne "model" (include "sparsity.tokenizer" .) }}
- name: model
  mountPath: /models
  readOnly: true
  {{- if and $own.existingClaim $own.subPath }}
  subPath: {{ $own.subPath }}
  {{- end }}
{{- else }}
{{- include "sparsity.modelMount" . }}
{{- end }}
{{- end }}

{{- /* (list root values image) */ -}}
{{- define "sparsity.routerModelInit" -}}
{{- $root := index . 0 -}}{{- $own := $root.Values.router.tokenizer -}}
{{- $from := include "sparsity.tokenizer" $root -}}
{{- if eq $from "image" }}
- name: tokenizer
  image: {{ $own.image }}
  imagePullPolicy: {{ (index . 1).image.pullPolicy }}
  command: [cp, -rL, {{ printf "%s/." (trimSuffix "/" $own.path) }}, /models/]
  securityContext:
    {{- toYaml (index . 1).securityContext | nindent 4 }}
  resources:
    requests: {cpu: 50m, memory: 32Mi}
    limits: {memory: 128Mi}
  volumeMounts:
  - {name: model, mountPath: /models}
{{- else if eq $from "download" }}
{{- include "sparsity.download" (dict "root" $root "values" (index . 1) "image" (index . 2) "target" "/models"
  "files" (list "tokenizer.json" "config.json" "tokenizer_config.json" "chat_template.jinja")) }}
{{- else if eq $from "model" }}
{{- include "sparsity.modelInit" . }}
{{- end }}
{{- end }}
