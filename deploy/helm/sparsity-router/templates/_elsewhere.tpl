{{- /* Whether servers of stock SGLang are named, which serve dense: a word, or nothing. */ -}}
{{- define "sparsity.stock" -}}
{{- range .Values.router.workers }}{{ if hasPrefix "sglang+" . }}yes{{ end }}{{ end -}}
{{- end }}

{{- /* Ports of workers that the chart does not run, as a JSON list under `ports`. */ -}}
{{- define "sparsity.elsewherePorts" -}}
{{- $ports := list -}}
{{- range .Values.router.workers }}{{ $ports = append $ports (int (include "sparsity.port" (list . ""))) }}{{ end -}}
{{- dict "ports" (uniq $ports) | toJson -}}
{{- end }}

{{- /* Namespaces whose EndpointSlices routers read, as a JSON list under `namespaces`. */ -}}
{{- define "sparsity.readNamespaces" -}}
{{- $namespaces := list .Release.Namespace -}}
{{- range .Values.router.workers -}}
{{- if contains "k8s:///" . }}{{ $namespaces = append $namespaces (index (splitList "/" .) 3) }}{{ end -}}
{{- end -}}
{{- dict "namespaces" (uniq $namespaces) | toJson -}}
{{- end }}

{{- /* What cannot be: fails by path, renders nothing. */ -}}
{{- define "sparsity.elsewhereValidate" -}}
{{- range $place := .Values.router.workers -}}
{{- if and (contains "k8s:///" $place) (ne $.Values.router.discovery "kubernetes") -}}
{{- fail (printf "router.workers: %s needs router.discovery kubernetes, which may read EndpointSlices" $place) -}}
{{- end -}}
{{- if and (hasPrefix "sglang+" $place) (not $.Values.model.name) (not $.Values.model.builtin) -}}
{{- fail "model.name: say what the servers of router.workers call the model (--served-model-name); routers use none of another" -}}
{{- end -}}
{{- end -}}
{{- end }}
