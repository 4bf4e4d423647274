{{- /* The pod of a worker, as a template's metadata and spec: (list model pool values rank). The rank is empty of a pool on single nodes;
of a group it is "0" of the leader, and what LeaderWorkerSet's variable says of those that compute for it, which serve nobody. */ -}}
{{- define "sparsity.workerPod" -}}
{{- $model := index . 0 -}}{{- $root := $model.root -}}{{- $worker := index . 2 -}}{{- $rank := index . 3 -}}
{{- $path := printf "workers.%s" (index . 1) -}}{{- $component := printf "worker-%s" (index . 1) -}}
{{- $reserved := list "worker-id" "tiers" "model" "served-model-name" "listen" "profile" "lease-key-file" "require-lease" "access" "metrics-listen" "health-listen" "drain-seconds" "tls-cert" "tls-key" "tls-client-ca" "nodes" "node-rank" "nodes-address" -}}
{{- /* The router's image has what an echo needs. */ -}}
{{- $image := include "sparsity.image" (list $root $worker $path (ternary "sparsity-router" "sparsity-worker" (not (empty (include "sparsity.echo" $root))))) -}}
{{- $serves := has $rank (list "" "0") -}}
{{- $leases := and $serves $root.Values.leases.enabled -}}
{{- $access := ternary $root.Values.access.secretName "" $serves -}}
{{- $tls := ternary $root.Values.tls.workers.secretName "" $serves -}}
metadata:
  labels:
    {{- include "sparsity.labels" (list $root $component $worker.podLabels) | nindent 4 }}
  {{- with $worker.podAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  serviceAccountName: {{ include "sparsity.serviceAccount" $root }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  {{- with $root.Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  terminationGracePeriodSeconds: {{ add (int $worker.drainSeconds) 20 }}
  securityContext:
    {{- toYaml $worker.podSecurityContext | nindent 4 }}
  {{- with $worker.podSpec }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
  {{- include "sparsity.scheduling" (list $root $worker $component) | trim | nindent 2 }}
  {{- with include "sparsity.initContainers" (list (include "sparsity.modelInit" (list $model $worker $image)) $worker) | trim }}
  {{- . | nindent 2 }}
  {{- end }}
  containers:
  - name: worker
    image: {{ $image }}
    imagePullPolicy: {{ $worker.image.pullPolicy }}
    command: [python, -m, sparsity_worker]
    args:
    - --worker-id
    - $(POD_NAME)
    - --tiers
    - {{ join "," $worker.tiers }}
    - --model
    - {{ include "sparsity.modelPath" $model }}
    {{- with $model.name }}
    - --served-model-name
    - {{ . | quote }}
    {{- end }}
    {{- range $worker.profiles }}
    - --profile
    - {{ . }}
    {{- end }}
    {{- if $serves }}
    - --listen
    - {{ include "sparsity.listen" (list $root 7001) | quote }}
    {{- end }}
    - --health-listen
    - {{ include "sparsity.listen" (list $root 7002) | quote }}
    - --metrics-listen
    - {{ include "sparsity.listen" (list $root 9464) | quote }}
    - --drain-seconds
    - {{ include "sparsity.number" $worker.drainSeconds | quote }}
    {{- if $leases }}
    - --lease-key-file
    - /etc/sparsity/leases/{{ $root.Values.leases.secretKey }}
    - --require-lease
    {{- end }}
    {{- if $access }}
    - --access
    - /etc/sparsity/access/{{ $root.Values.access.secretKey }}
    {{- end }}
    {{- if $tls }}
    - --tls-cert
    - /etc/sparsity/tls/tls.crt
    - --tls-key
    - /etc/sparsity/tls/tls.key
    - --tls-client-ca
    - /etc/sparsity/tls/ca.crt
    {{- end }}
    {{- with $rank }}
    - --nodes
    - {{ int $worker.nodes | quote }}
    - --node-rank
    - {{ . | quote }}
    - --nodes-address
    - $(LWS_LEADER_ADDRESS):7003
    {{- end }}
    {{- with include "sparsity.options" (list $worker.options $path $reserved) | trim }}
    {{- . | nindent 4 }}
    {{- end }}
    env:
    {{- include "sparsity.environment" (list $root) | nindent 4 }}
    {{- with $worker.extraEnv }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
    {{- with $worker.envFrom }}
    envFrom:
    {{- toYaml . | nindent 4 }}
    {{- end }}
    ports:
    {{- if $serves }}
    - {name: grpc, containerPort: 7001}
    {{- end }}
    - {name: health, containerPort: 7002}
    - {name: metrics, containerPort: 9464}
    {{- include "sparsity.probes" (list $worker) | nindent 4 }}
    resources:
      {{- toYaml $worker.resources | nindent 6 }}
    securityContext:
      {{- toYaml $worker.securityContext | nindent 6 }}
    volumeMounts:
    {{- include "sparsity.modelMount" $model | nindent 4 }}
    - {name: tmp, mountPath: /tmp}
    {{- if $worker.shmSize }}
    - {name: shm, mountPath: /dev/shm}
    {{- end }}
    {{- if $leases }}
    - {name: leases, mountPath: /etc/sparsity/leases, readOnly: true}
    {{- end }}
    {{- if $access }}
    - {name: access, mountPath: /etc/sparsity/access, readOnly: true}
    {{- end }}
    {{- if $tls }}
    - {name: tls, mountPath: /etc/sparsity/tls, readOnly: true}
    {{- end }}
    {{- with $worker.extraVolumeMounts }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with $worker.sidecars }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
  volumes:
  {{- include "sparsity.modelVolume" $model | nindent 2 }}
  - {name: tmp, emptyDir: {}}
  {{- if $worker.shmSize }}
  - {name: shm, emptyDir: {medium: Memory, sizeLimit: {{ $worker.shmSize }}}}
  {{- end }}
  {{- if $leases }}
  - {name: leases, secret: {secretName: {{ include "sparsity.leaseSecret" $root }}}}
  {{- end }}
  {{- if $access }}
  - {name: access, secret: {secretName: {{ $access }}}}
  {{- end }}
  {{- if $tls }}
  - {name: tls, secret: {secretName: {{ $tls }}}}
  {{- end }}
  {{- if not (include "sparsity.model" $model | fromJson).claim }}
  {{- with include "sparsity.downloadVolume" $model | trim }}
  {{- . | nindent 2 }}
  {{- end }}
  {{- end }}
  {{- with $worker.extraVolumes }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}
