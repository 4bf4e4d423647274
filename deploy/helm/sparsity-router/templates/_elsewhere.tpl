{{- /* Whether a model has servers of stock SGLang, which serve dense: a word, or nothing. Takes the model. */ -}}
{{- define "sparsity.stock" -}}
{{- range .workers }}{{ if hasPrefix "sglang+" . }}yes{{ end }}{{ end -}}
{{- end }}

{{- /* Addresses of workers that the chart does not run, as a JSON list under `workers`. */ -}}
{{- define "sparsity.elsewhere" -}}
{{- $places := list -}}
{{- range (include "sparsity.models" . | fromJson).models }}{{ $places = concat $places .workers }}{{ end -}}
{{- dict "workers" $places | toJson -}}
{{- end }}

{{- /* Their ports, as a JSON list under `ports`. */ -}}
{{- define "sparsity.elsewherePorts" -}}
{{- $ports := list -}}
{{- range (include "sparsity.elsewhere" . | fromJson).workers }}{{ $ports = append $ports (int (include "sparsity.port" (list . ""))) }}{{ end -}}
{{- dict "ports" (uniq $ports) | toJson -}}
{{- end }}

{{- /* Namespaces whose EndpointSlices routers read, as a JSON list under `namespaces`. */ -}}
{{- define "sparsity.readNamespaces" -}}
{{- $namespaces := list .Release.Namespace -}}
{{- range (include "sparsity.elsewhere" . | fromJson).workers -}}
{{- if contains "k8s:///" . }}{{ $namespaces = append $namespaces (index (splitList "/" .) 3) }}{{ end -}}
{{- end -}}
{{- dict "namespaces" (uniq $namespaces) | toJson -}}
{{- end }}

{{- /* What cannot be of a model's: fails by path, renders nothing. */ -}}
{{- define "sparsity.elsewhereValidate" -}}
{{- $model := . -}}
{{- range .workers -}}
{{- if and (contains "k8s:///" .) (ne $model.root.Values.router.discovery "kubernetes") -}}
{{- fail (printf "%s: %s needs router.discovery kubernetes, which may read EndpointSlices" $model.workersPath .) -}}
{{- end -}}
{{- if and (hasPrefix "sglang+" .) (not $model.name) (not $model.values.builtin) -}}
{{- fail "model.name: say what the servers of router.workers call the model (--served-model-name); routers use none of another" -}}
{{- end -}}
{{- end -}}
{{- end }}
