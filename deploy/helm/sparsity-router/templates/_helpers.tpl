{{- define "sparsity.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "sparsity.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else if contains (include "sparsity.name" .) .Release.Name }}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "sparsity.name" .) | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- /* Takes (list root component). */ -}}
{{- define "sparsity.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "sparsity.name" $root }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- define "sparsity.labels" -}}
{{- $root := index . 0 -}}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version }}
{{ include "sparsity.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
{{- with $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "sparsity.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "sparsity.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- /* The router's or a tier's values over the defaults, as JSON: (list root path), path such as router or workers.dense. */ -}}
{{- define "sparsity.component" -}}
{{- $root := index . 0 -}}
{{- $own := $root.Values -}}
{{- range splitList "." (index . 1) }}{{ $own = index $own . }}{{ end -}}
{{- $merged := mustMergeOverwrite (deepCopy $root.Values.defaults) (deepCopy $own) -}}
{{- toJson $merged -}}
{{- end }}

{{- /* (list root values path program): program is the image's name, sparsity-router or sparsity-worker. */ -}}
{{- define "sparsity.image" -}}
{{- $root := index . 0 -}}{{- $image := (index . 1).image -}}
{{- if eq $image.tag "latest" }}{{ fail (printf "%s.image.tag: latest names no version; give one, or a digest" (index . 2)) }}{{ end -}}
{{- $repository := default (index . 3) $image.repository -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $repository $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $repository (default $root.Chart.AppVersion $image.tag) -}}
{{- end -}}
{{- end }}

{{- /* A number as its digits: YAML numbers arrive as floats. */ -}}
{{- define "sparsity.number" -}}
{{- if eq (float64 .) (float64 (int64 .)) }}{{ int64 . }}{{ else }}{{ . }}{{ end -}}
{{- end }}

{{- /* Options as list items: (list options path reserved). */ -}}
{{- define "sparsity.options" -}}
{{- $path := index . 1 -}}{{- $reserved := index . 2 -}}
{{- range $name, $value := index . 0 }}
{{- if has $name $reserved }}{{ fail (printf "%s.options.%s: the chart sets it; see values.yaml for the value to give" $path $name) }}{{ end }}
{{- if kindIs "bool" $value }}
{{- if $value }}
- --{{ $name }}
{{- end }}
{{- else }}
- --{{ $name }}
- {{ if kindIs "string" $value }}{{ $value | quote }}{{ else }}{{ include "sparsity.number" $value | quote }}{{ end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "sparsity.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "sparsity.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- /* Probes of the plaintext health port: (list values). */ -}}
{{- define "sparsity.probes" -}}
startupProbe:
  # The port opens once a worker has proved itself and a router has policies; no restart brings a router its workers.
  grpc: {port: 7002, service: liveness}
  periodSeconds: 5
  failureThreshold: {{ max 1 (div (int (index . 0).startupSeconds) 5) }}
readinessProbe:
  grpc: {port: 7002, service: readiness}
  periodSeconds: 5
  failureThreshold: 2
livenessProbe:
  grpc: {port: 7002, service: liveness}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
lifecycle:
  preStop:
    # Until nobody sends new calls here any more.
    sleep: {seconds: 5}
{{- end }}

{{- /* What every container has in its environment: (list root). */ -}}
{{- define "sparsity.environment" -}}
{{- $root := index . 0 -}}
- name: POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: HOME
  value: /tmp
- name: SPARSITY_LOG_FORMAT
  value: {{ $root.Values.logging.format }}
{{- with $root.Values.tracing }}
{{- if .endpoint }}
- name: OTEL_EXPORTER_OTLP_ENDPOINT
  value: {{ .endpoint | quote }}
- name: OTEL_EXPORTER_OTLP_PROTOCOL
  value: {{ .protocol }}
- name: OTEL_TRACES_SAMPLER
  value: {{ .sampler }}
- name: OTEL_TRACES_SAMPLER_ARG
  value: {{ .ratio | quote }}
- name: OTEL_RESOURCE_ATTRIBUTES
  value: k8s.namespace.name={{ $root.Release.Namespace }},k8s.pod.name=$(POD_NAME)
{{- end }}
{{- end }}
{{- end }}

{{- /* What the command line needs to call the router: (list root). */ -}}
{{- define "sparsity.callerEnvironment" -}}
{{- $root := index . 0 -}}
- name: HOME
  value: /tmp
- name: SPARSITY_ROUTER
  value: {{ include "sparsity.fullname" $root }}.{{ $root.Release.Namespace }}.svc.{{ $root.Values.clusterDomain }}:7000
{{- if $root.Values.operatorKey.secretName }}
- name: SPARSITY_KEY
  valueFrom:
    secretKeyRef:
      name: {{ $root.Values.operatorKey.secretName }}
      key: {{ $root.Values.operatorKey.secretKey }}
{{- end }}
{{- if $root.Values.tls.router.secretName }}
- name: SPARSITY_TLS_CA
  value: /etc/sparsity/tls/ca.crt
{{- if $root.Values.tls.router.clientAuth }}
- name: SPARSITY_TLS_CERT
  value: /etc/sparsity/tls/tls.crt
- name: SPARSITY_TLS_KEY
  value: /etc/sparsity/tls/tls.key
{{- end }}
{{- end }}
{{- end }}

{{- define "sparsity.leaseSecret" -}}
{{- default (printf "%s-leases" (include "sparsity.fullname" .)) .Values.leases.secretName }}
{{- end }}

{{- /* Where the model lies in the pod. */ -}}
{{- define "sparsity.modelPath" -}}
{{- if .Values.model.builtin }}/models/SmolLM2-135M-Instruct{{ else }}/models{{ end }}
{{- end }}

{{- define "sparsity.modelVolume" -}}
- name: model
  {{- if .Values.model.builtin }}
  emptyDir: {}
  {{- else }}
  persistentVolumeClaim:
    claimName: {{ .Values.model.existingClaim }}
    readOnly: true
  {{- end }}
{{- end }}

{{- define "sparsity.modelMount" -}}
- name: model
  mountPath: /models
  readOnly: true
  {{- with .Values.model.subPath }}
  subPath: {{ . }}
  {{- end }}
{{- end }}

{{- /* Copies the worker image's model for all containers: (list root). */ -}}
{{- define "sparsity.modelInit" -}}
{{- $root := index . 0 -}}
{{- if $root.Values.model.builtin }}
{{- $dense := include "sparsity.component" (list $root "workers.dense") | fromJson }}
initContainers:
- name: model
  image: {{ include "sparsity.image" (list $root $dense "workers.dense" "sparsity-worker") }}
  imagePullPolicy: {{ $dense.image.pullPolicy }}
  command: [cp, -r, /opt/sparsity/models/SmolLM2-135M-Instruct, /models/]
  securityContext:
    {{- include "sparsity.containerSecurity" . | nindent 4 }}
  resources:
    requests: {cpu: 100m, memory: 64Mi}
    limits: {memory: 512Mi}
  volumeMounts:
  - name: model
    mountPath: /models
{{- end }}
{{- end }}

{{- /* Where pods go: (list root values component). */ -}}
{{- define "sparsity.scheduling" -}}
{{- $root := index . 0 -}}{{- $values := index . 1 -}}
{{- with $values.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
topologySpreadConstraints:
{{- if $values.topologySpreadConstraints }}
{{ toYaml $values.topologySpreadConstraints }}
{{- else }}
- maxSkew: 1
  topologyKey: kubernetes.io/hostname
  whenUnsatisfiable: ScheduleAnyway
  labelSelector:
    matchLabels:
      {{- include "sparsity.selector" (list $root (index . 2)) | nindent 6 }}
{{- end }}
{{- end }}

{{- /* What scales a component, and what protects it: (list root values component query), query of the keda triggers. */ -}}
{{- define "sparsity.scaling" -}}
{{- $root := index . 0 -}}{{- $values := index . 1 -}}{{- $component := index . 2 -}}
{{- $name := printf "%s-%s" (include "sparsity.fullname" $root) $component -}}
{{- $scaling := $values.autoscaling -}}
{{- if $values.podDisruptionBudget.enabled }}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ $name }}
  labels:
    {{- include "sparsity.labels" (list $root $component) | nindent 4 }}
spec:
  maxUnavailable: {{ $values.podDisruptionBudget.maxUnavailable }}
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels:
      {{- include "sparsity.selector" (list $root $component) | nindent 6 }}
{{- end }}
{{- if eq $scaling.kind "hpa" }}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  name: {{ $name }}
  labels:
    {{- include "sparsity.labels" (list $root $component) | nindent 4 }}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: {{ $name }}}
  minReplicas: {{ $scaling.minReplicas }}
  maxReplicas: {{ $scaling.maxReplicas }}
  metrics:
  - type: Resource
    resource:
      name: cpu
      target: {type: Utilization, averageUtilization: {{ $scaling.targetCPU }}}
  behavior:
    scaleDown:
      stabilizationWindowSeconds: {{ $scaling.cooldownSeconds }}
{{- else if eq $scaling.kind "keda" }}
---
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata:
  name: {{ $name }}
  labels:
    {{- include "sparsity.labels" (list $root $component) | nindent 4 }}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: {{ $name }}}
  minReplicaCount: {{ $scaling.minReplicas }}
  maxReplicaCount: {{ $scaling.maxReplicas }}
  cooldownPeriod: {{ $scaling.cooldownSeconds }}
  triggers:
  {{- range index . 3 }}
  - type: prometheus
    metricType: {{ .type }}
    metadata:
      serverAddress: {{ $root.Values.monitoring.prometheusUrl | quote }}
      query: {{ .query | quote }}
      threshold: {{ .threshold | quote }}
  {{- end }}
{{- end }}
{{- end }}

{{- /* Egress that routers and workers share. */ -}}
{{- define "sparsity.egress" -}}
- to:
  - namespaceSelector: {}
    podSelector:
      matchLabels: {k8s-app: kube-dns}
  ports:
  - {port: 53, protocol: UDP}
  - {port: 53, protocol: TCP}
{{- if .Values.tracing.endpoint }}
- ports:
  - {port: {{ default "4317" (regexFind "[0-9]+$" (trimSuffix "/" .Values.tracing.endpoint)) }}, protocol: TCP}
{{- end }}
{{- with .Values.networkPolicy.extraEgress }}
{{ toYaml . }}
{{- end }}
{{- end }}
