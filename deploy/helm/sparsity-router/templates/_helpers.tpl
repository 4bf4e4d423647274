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

{{- /* Takes (list root component), and behind them labels of the object's own, which go before the common ones. */ -}}
{{- define "sparsity.labels" -}}
{{- $root := index . 0 -}}
{{- /* Each key once: Flux refuses what says one twice. */ -}}
{{- $more := dict -}}
{{- range concat (list $root.Values.commonLabels) (slice . 2) }}{{ range $key, $value := . }}{{ $_ := set $more $key $value }}{{ end }}{{ end -}}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version }}
{{ include "sparsity.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
{{- with $more }}
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

{{- /* The router's or a pool's values over the defaults, as JSON: (list root path), path such as router or workers.shared. */ -}}
{{- define "sparsity.component" -}}
{{- $root := index . 0 -}}
{{- $own := $root.Values -}}
{{- range splitList "." (index . 1) }}{{ $own = index $own . }}{{ end -}}
{{- $bare := dict "enabled" true "nodes" 1 "tiers" list "profiles" list "options" dict -}}
{{- $merged := mustMergeOverwrite $bare (deepCopy $root.Values.defaults) (deepCopy $own) -}}
{{- /* An empty one takes the default off. */ -}}
{{- range list "nodeSelector" "affinity" "podSecurityContext" "securityContext" }}{{ if hasKey $own . }}{{ $_ := set $merged . (index $own .) }}{{ end }}{{ end -}}
{{- toJson $merged -}}
{{- end }}

{{- /* The pools that are enabled, by name and with the defaults, as JSON. */ -}}
{{- define "sparsity.pools" -}}
{{- $pools := dict -}}
{{- range $name, $own := .Values.workers -}}
{{- if kindIs "map" $own -}}
{{- $pool := include "sparsity.component" (list $ (printf "workers.%s" $name)) | fromJson -}}
{{- if $pool.enabled }}{{ $_ := set $pools $name $pool }}{{ end -}}
{{- end -}}
{{- end -}}
{{- toJson $pools -}}
{{- end }}

{{- /* The name of a pool's groups of nodes, which the set's own Service has too, and its pods' names begin with: (list root pool). */ -}}
{{- define "sparsity.group" -}}
{{- printf "%s-nodes-%s" (include "sparsity.fullname" (index . 0)) (index . 1) -}}
{{- end }}

{{- /* Replicas of a component that are always there: (values). */ -}}
{{- define "sparsity.fewest" -}}
{{- int (ternary .replicas .autoscaling.minReplicas (eq .autoscaling.kind "none")) -}}
{{- end }}

{{- /* Seconds until a router serves: it waits for its workers. */ -}}
{{- define "sparsity.routerStart" -}}
{{- $slowest := int (include "sparsity.component" (list . "router") | fromJson).startupSeconds -}}
{{- range include "sparsity.pools" . | fromJson }}{{ $slowest = max $slowest (int .startupSeconds) }}{{ end -}}
{{- $download := 0 -}}
{{- range (include "sparsity.models" . | fromJson).models }}{{ $download = max $download (int (include "sparsity.modelSeconds" (set . "root" $))) }}{{ end -}}
{{- add 300 $slowest $download -}}
{{- end }}

{{- /* The prefix of images: (list root image), image the values of one, or of all of them. */ -}}
{{- define "sparsity.registry" -}}
{{- default (dig "imageRegistry" "" ((index . 0).Values.global | default dict)) (index . 1).registry | trimSuffix "/" -}}
{{- end }}

{{- /* An image of somebody else's: (list root own registry name), own where one is named whole, registry its own one. */ -}}
{{- define "sparsity.publicImage" -}}
{{- $root := index . 0 -}}
{{- default (printf "%s/%s" (default (index . 2) (include "sparsity.registry" (list $root $root.Values.defaults.image))) (index . 3)) (index . 1) -}}
{{- end }}

{{- /* Fails where an image of somebody else's names no version: (list path image). */ -}}
{{- define "sparsity.versioned" -}}
{{- if regexMatch "(:latest$|(^|/)[^:@/]+$)" (index . 1) -}}
{{- fail (printf "%s: names no version; give a tag other than latest, or a digest" (index . 0)) -}}
{{- end -}}
{{- end }}

{{- /* (list root values path program): program is the image's name, sparsity-router or sparsity-worker. */ -}}
{{- define "sparsity.image" -}}
{{- $root := index . 0 -}}{{- $image := (index . 1).image -}}
{{- if eq $image.tag "latest" }}{{ fail (printf "%s.image.tag: latest names no version; give one, or a digest" (index . 2)) }}{{ end -}}
{{- $registry := include "sparsity.registry" (list $root $image) -}}
{{- /* Where a release has its images, unless values name another place, or an image by its whole name. */ -}}
{{- if not (or $registry $image.repository) }}{{ $registry = index $root.Chart.Annotations "sparsity-router/registry" }}{{ end -}}
{{- $repository := join "/" (compact (list $registry (default (index . 3) $image.repository))) -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $repository $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $repository (default $root.Chart.AppVersion $image.tag) -}}
{{- end -}}
{{- end }}

{{- /* What a program listens on: (list root port). */ -}}
{{- define "sparsity.listen" -}}
{{- $host := (index . 0).Values.listenHost -}}
{{- if contains ":" $host }}[{{ $host }}]{{ else }}{{ $host }}{{ end }}:{{ index . 1 }}
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
- --{{ ternary "" "no-" $value }}{{ $name }}
{{- else }}
- --{{ $name }}
- {{ if kindIs "string" $value }}{{ $value | quote }}{{ else }}{{ include "sparsity.number" $value | quote }}{{ end }}
{{- end }}
{{- end }}
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

{{- /* The pod of a job over policy documents: root, router, name, configMap, command and args; `calls` where it calls the router. What
  does not, runs before anything of the release is there, such as a Secret that its certificates fill. */ -}}
{{- define "sparsity.policyPod" -}}
template:
  metadata:
    labels:
      {{- include "sparsity.labels" (list .root "policies") | nindent 6 }}
  spec:
    restartPolicy: Never
    {{- /* Before an install there is none that the release makes. */}}
    {{- if or .calls (not .root.Values.serviceAccount.create) }}
    serviceAccountName: {{ include "sparsity.serviceAccount" .root }}
    {{- end }}
    automountServiceAccountToken: false
    enableServiceLinks: false
    {{- with include "sparsity.besideRouters" .router | trim }}
    {{- . | nindent 4 }}
    {{- end }}
    {{- with .root.Values.imagePullSecrets }}
    imagePullSecrets:
      {{- toYaml . | nindent 6 }}
    {{- end }}
    securityContext:
      {{- toYaml .router.podSecurityContext | nindent 6 }}
    containers:
    - name: {{ .name }}
      image: {{ include "sparsity.image" (list .root .router "router" "sparsity-router") }}
      imagePullPolicy: {{ .router.image.pullPolicy }}
      command:
      {{- toYaml .command | nindent 6 }}
      {{- with .args }}
      args:
      {{- toYaml . | nindent 6 }}
      {{- end }}
      env:
      {{- if .calls }}
      {{- include "sparsity.callerEnvironment" (list .root) | nindent 6 }}
      {{- else }}
      - {name: HOME, value: /tmp}
      {{- end }}
      resources:
        requests: {cpu: 100m, memory: 256Mi}
        limits: {memory: 512Mi}
      securityContext:
        {{- toYaml .router.securityContext | nindent 8 }}
      volumeMounts:
      - {name: policies, mountPath: /etc/sparsity/policies, readOnly: true}
      - {name: tmp, mountPath: /tmp}
      {{- if and .calls .root.Values.tls.router.secretName }}
      - {name: tls, mountPath: /etc/sparsity/tls, readOnly: true}
      {{- end }}
    volumes:
    - {name: policies, configMap: {name: {{ default .configMap .root.Values.policies.configMap }}}}
    - {name: tmp, emptyDir: {}}
    {{- if and .calls .root.Values.tls.router.secretName }}
    - {name: tls, secret: {secretName: {{ .root.Values.tls.router.secretName }}}}
    {{- end }}
{{- end }}

{{- define "sparsity.leaseSecret" -}}
{{- default (printf "%s-leases" (include "sparsity.fullname" .)) .Values.leases.secretName }}
{{- end }}

{{- /* What says which nodes a pod may go to: (values). */ -}}
{{- define "sparsity.placement" -}}
{{- with .priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- /* What jobs, `helm test` and Valkey have of the routers' pods: who places them and where, and how they find hosts: (values). */ -}}
{{- define "sparsity.besideRouters" -}}
{{- with pick (.podSpec | default dict) "schedulerName" "hostAliases" "dnsPolicy" "dnsConfig" }}
{{- toYaml . }}
{{- end }}
{{- include "sparsity.placement" . }}
{{- end }}

{{- /* Where pods go: (list root values component). */ -}}
{{- define "sparsity.scheduling" -}}
{{- $root := index . 0 -}}{{- $values := index . 1 -}}
{{- with $values.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- with $values.resourceClaims }}
resourceClaims:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- include "sparsity.placement" $values }}
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
  # Of one revision: what an upgrade replaces does not stand in the way.
  matchLabelKeys: [{{ ternary "leaderworkerset.sigs.k8s.io/template-revision-hash" "pod-template-hash" (gt (int $values.nodes) 1) }}]
{{- end }}
{{- end }}

{{- /* Containers before the program: (list own values), own as text. */ -}}
{{- define "sparsity.initContainers" -}}
{{- $own := index . 0 | trim -}}{{- $more := (index . 1).initContainers -}}
{{- if or $own $more }}
initContainers:
{{- with $own }}
{{ . }}
{{- end }}
{{- with $more }}
{{ toYaml . }}
{{- end }}
{{- end }}
{{- end }}

{{- /* What scales a component, and what protects it: (list root values component query model), query of the keda triggers, and the
  name of the model that it is of, where there are several. */ -}}
{{- define "sparsity.scaling" -}}
{{- $root := index . 0 -}}{{- $values := index . 1 -}}{{- $component := index . 2 -}}
{{- $name := printf "%s-%s" (include "sparsity.fullname" $root) $component -}}
{{- $scaling := $values.autoscaling -}}
{{- $target := printf "{apiVersion: apps/v1, kind: Deployment, name: %s}" $name -}}
{{- if gt (int $values.nodes) 1 -}}
{{- $target = printf "{apiVersion: leaderworkerset.x-k8s.io/v1, kind: LeaderWorkerSet, name: %s}" (include "sparsity.group" (list $root (trimPrefix "worker-" $component))) -}}
{{- end -}}
{{- if $values.podDisruptionBudget.enabled }}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ $name }}
  labels:
    {{- include "sparsity.labels" (list $root $component) | nindent 4 }}
spec:
  {{- $disrupted := $values.podDisruptionBudget.maxUnavailable }}
  maxUnavailable: {{ if kindIs "string" $disrupted }}{{ $disrupted }}{{ else }}{{ int $disrupted }}{{ end }}
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels:
      {{- include "sparsity.selector" (list $root $component) | nindent 6 }}
{{- end }}
{{- if has $scaling.kind (list "hpa" "adapter") }}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  name: {{ $name }}
  labels:
    {{- include "sparsity.labels" (list $root $component) | nindent 4 }}
spec:
  scaleTargetRef: {{ $target }}
  minReplicas: {{ int $scaling.minReplicas }}
  maxReplicas: {{ int $scaling.maxReplicas }}
  metrics:
  {{- if eq $scaling.kind "hpa" }}
  - type: Resource
    resource:
      name: cpu
      target: {type: Utilization, averageUtilization: {{ int $scaling.targetCPU }}}
  {{- else }}
  - type: External
    external:
      metric:
        name: sparsity_router_waiting
        selector:
          {{- $labels := list }}
          {{- with $root.Values.monitoring.releaseLabel }}{{ $labels = append $labels (printf "%s: %s" . $root.Release.Name) }}{{ end }}
          {{- with index . 4 }}{{ $labels = append $labels (printf "gen_ai_request_model: %q" .) }}{{ end }}
          {{- with $labels }}
          matchLabels: {{ "{" }}{{ join ", " . }}{{ "}" }}
          {{- end }}
          matchExpressions:
          - {key: sparsity_tier, operator: In, values: [{{ join ", " $values.tiers }}]}
      target: {type: AverageValue, averageValue: {{ include "sparsity.number" $scaling.targetWaiting | quote }}}
  - type: Pods
    pods:
      metric: {name: sparsity_worker_kv_use}
      target: {type: AverageValue, averageValue: {{ include "sparsity.number" $scaling.targetKvUse | quote }}}
  {{- end }}
  behavior:
    scaleDown:
      stabilizationWindowSeconds: {{ int $scaling.cooldownSeconds }}
{{- else if eq $scaling.kind "keda" }}
---
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata:
  name: {{ $name }}
  labels:
    {{- include "sparsity.labels" (list $root $component) | nindent 4 }}
spec:
  scaleTargetRef: {{ $target }}
  minReplicaCount: {{ int $scaling.minReplicas }}
  maxReplicaCount: {{ int $scaling.maxReplicas }}
  {{- if not (int $scaling.minReplicas) }}
  # On the way to zero replicas; to fewer, the behaviour below.
  cooldownPeriod: {{ int $scaling.cooldownSeconds }}
  {{- end }}
  advanced:
    horizontalPodAutoscalerConfig:
      behavior:
        scaleDown:
          stabilizationWindowSeconds: {{ int $scaling.cooldownSeconds }}
  triggers:
  {{- range index . 3 }}
  - type: prometheus
    metricType: {{ .type }}
    metadata:
      serverAddress: {{ $root.Values.monitoring.prometheusUrl | quote }}
      query: >-
        {{- .query | nindent 8 }}
      threshold: {{ include "sparsity.number" .threshold | quote }}
  {{- end }}
{{- end }}
{{- end }}

{{- /* How an upgrade replaces pods: (values). */ -}}
{{- define "sparsity.rollingUpdate" -}}
{{- $step := int .rolloutStep -}}
{{- if eq .rollout "surge" }}{maxUnavailable: 0, maxSurge: {{ $step }}}{{ else }}{maxUnavailable: {{ $step }}, maxSurge: 0}{{ end }}
{{- end }}

{{- /* Egress that routers and workers share. */ -}}
{{- define "sparsity.egress" -}}
- ports:
  {{- range .Values.networkPolicy.dns.ports }}
  - {port: {{ int . }}, protocol: UDP}
  - {port: {{ int . }}, protocol: TCP}
  {{- end }}
  {{- with .Values.networkPolicy.dns.peers }}
  to:
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with .Values.tracing.endpoint }}
- ports:
  - {port: {{ include "sparsity.port" (list (include "sparsity.urlHosts" .) "443") }}, protocol: TCP}
{{- end }}
{{- with .Values.networkPolicy.extraEgress }}
{{ toYaml . }}
{{- end }}
{{- end }}
