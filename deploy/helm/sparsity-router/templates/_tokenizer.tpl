{{- /* Where the router's tokenizer comes from: an image, a claim of its own, or, as the model, the worker's. */ -}}
{{- define "sparsity.routerModelPath" -}}
{{- $own := .Values.router.tokenizer -}}
{{- if or $own.image $own.existingClaim }}/models{{ else }}{{ include "sparsity.modelPath" . }}{{ end }}
{{- end }}

{{- define "sparsity.routerModelVolume" -}}
{{- $own := .Values.router.tokenizer -}}
{{- if $own.image }}
- {name: model, emptyDir: {}}
{{- else if $own.existingClaim }}
- name: model
  persistentVolumeClaim: {claimName: {{ $own.existingClaim }}, readOnly: true}
{{- else }}
{{- include "sparsity.modelVolume" . }}
{{- end }}
{{- end }}

{{- define "sparsity.routerModelMount" -}}
{{- $own := .Values.router.tokenizer -}}
{{- if or $own.image $own.existingClaim }}
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

{{- /* (list root values) */ -}}
{{- define "sparsity.routerModelInit" -}}
{{- $root := index . 0 -}}{{- $own := $root.Values.router.tokenizer -}}
{{- if $own.image }}
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
{{- else if not $own.existingClaim }}
{{- include "sparsity.modelInit" . }}
{{- end }}
{{- end }}
