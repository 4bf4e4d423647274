{{- /* host:port entries of a URL, joined by commas: (string url). */ -}}
{{- define "sparsity.urlHosts" -}}
{{- regexReplaceAll "^[a-z+]+://([^/?#]*).*$" . "${1}" -}}
{{- end }}

{{- /* The port of a host:port entry, or what it is without one: (list entry default). An IPv6 address stands in brackets. */ -}}
{{- define "sparsity.port" -}}
{{- default (index . 1) (regexFind ":[0-9]+$" (index . 0) | trimPrefix ":") -}}
{{- end }}

{{- /* Whether a host:port entry is one: a word, or nothing. */ -}}
{{- define "sparsity.isHost" -}}
{{- if regexMatch "^([A-Za-z0-9_.-]+|\\[[0-9A-Fa-f:.]+\\])(:[0-9]{1,5})?$" . }}yes{{ end -}}
{{- end }}

{{- /* Ports that routers may reach the store on, as a JSON list under `ports`. */ -}}
{{- define "sparsity.redisPorts" -}}
{{- $url := .Values.redis.url -}}
{{- $ports := .Values.networkPolicy.redisPorts -}}
{{- if $url -}}
{{- $sentinel := contains "+sentinel" (first (splitList "://" $url)) -}}
{{- if and $sentinel (not $ports) }}{{ $ports = list 6379 }}{{ end -}}
{{- range splitList "," (include "sparsity.urlHosts" $url) -}}
{{- $ports = append $ports (int (include "sparsity.port" (list . (ternary 26379 6379 $sentinel)))) -}}
{{- end -}}
{{- else if not $ports -}}
{{- $ports = list 6379 -}}
{{- end -}}
{{- $whole := list }}{{ range $ports }}{{ $whole = append $whole (int .) }}{{ end -}}
{{- dict "ports" (uniq $whole) | toJson -}}
{{- end }}

{{- /* Whether there is a policy store: a word, or nothing. */ -}}
{{- define "sparsity.hasStore" -}}
{{- with .Values.redis }}{{ if or .url .secretName .embedded.enabled }}yes{{ end }}{{ end -}}
{{- end }}

{{- /* A variable out of a Secret's key, where both are named: (list variable secret key). */ -}}
{{- define "sparsity.secretVariable" -}}
{{- if and (index . 1) (index . 2) }}
- name: {{ index . 0 }}
  valueFrom:
    secretKeyRef:
      name: {{ index . 1 }}
      key: {{ index . 2 }}
{{- end }}
{{- end }}

{{- /* What a router needs to reach the store, as environment. */ -}}
{{- define "sparsity.redisEnvironment" -}}
{{- if include "sparsity.hasStore" . }}
- name: SPARSITY_REDIS_URL
  {{- if .Values.redis.secretName }}
  valueFrom:
    secretKeyRef:
      name: {{ .Values.redis.secretName }}
      key: {{ .Values.redis.secretKey }}
  {{- else if .Values.redis.embedded.enabled }}
  value: redis://{{ include "sparsity.fullname" . }}-valkey.{{ .Release.Namespace }}.svc.{{ .Values.clusterDomain }}:6379/0
  {{- else }}
  value: {{ .Values.redis.url | quote }}
  {{- end }}
{{- end }}
{{- range $prefix, $login := dict "SPARSITY_REDIS" .Values.redis.auth "SPARSITY_REDIS_SENTINEL" .Values.redis.sentinelAuth }}
{{- include "sparsity.secretVariable" (list (printf "%s_USERNAME" $prefix) $login.secretName $login.usernameKey) }}
{{- include "sparsity.secretVariable" (list (printf "%s_PASSWORD" $prefix) $login.secretName $login.passwordKey) }}
{{- end }}
{{- with .Values.redis.tls }}
{{- if .secretName }}
{{- range $variable, $key := dict "CA" .caKey "CERT" .certKey "KEY" .keyKey }}
{{- if $key }}
- name: SPARSITY_REDIS_{{ $variable }}
  value: /etc/sparsity/redis/{{ $key }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- /* What cannot be: fails by path, renders nothing. */ -}}
{{- define "sparsity.redisValidate" -}}
{{- $redis := .Values.redis -}}
{{- $stores := 0 -}}
{{- range list $redis.url $redis.secretName $redis.embedded.enabled }}{{ if . }}{{ $stores = add $stores 1 }}{{ end }}{{ end -}}
{{- if and (ne (int $stores) 1) (or (int $stores) (ne .Values.policies.mode "folder")) -}}
{{- fail "redis: give one of redis.secretName (a Secret with the URL), redis.url, and redis.embedded.enabled=true for a trial; or none with policies.mode=folder" -}}
{{- end -}}
{{- if contains "@" $redis.url -}}
{{- fail "redis.url: holds credentials; name their Secret in redis.auth, or put the URL into one and name it in redis.secretName" -}}
{{- end -}}
{{- if regexMatch "[?&](ssl|password|sentinel_password)=" $redis.url -}}
{{- fail "redis.url: passwords belong into Secrets (redis.auth, redis.sentinelAuth), and TLS is asked for by rediss://" -}}
{{- end -}}
{{- $hosts := include "sparsity.urlHosts" $redis.url -}}
{{- if and $redis.url (contains "," $hosts) (not (contains "+" (first (splitList "://" $redis.url)))) -}}
{{- fail "redis.url: several hosts are Sentinels' (redis+sentinel://) or a Cluster's (redis+cluster://)" -}}
{{- end -}}
{{- range splitList "," $hosts -}}
{{- if and $redis.url (not (include "sparsity.isHost" .)) -}}
{{- fail (printf "redis.url: %q is no host:port; an IPv6 address stands in brackets" .) -}}
{{- end -}}
{{- if gt (int (include "sparsity.port" (list . 1))) 65535 -}}
{{- fail (printf "redis.url: %q has no port up to 65535" .) -}}
{{- end -}}
{{- end -}}
{{- if and $redis.embedded.enabled (or $redis.auth.secretName $redis.sentinelAuth.secretName $redis.tls.secretName) -}}
{{- fail "redis.embedded: takes neither auth nor tls; it is for trials" -}}
{{- end -}}
{{- if and $redis.tls.secretName $redis.url (not (hasPrefix "rediss" $redis.url)) -}}
{{- fail "redis.tls: redis.url is plain text; begin it with rediss://, rediss+sentinel:// or rediss+cluster://" -}}
{{- end -}}
{{- if and $redis.sentinelAuth.secretName $redis.url (not (contains "+sentinel://" $redis.url)) -}}
{{- fail "redis.sentinelAuth: redis.url names no Sentinels" -}}
{{- end -}}
{{- if and (or $redis.auth.secretName $redis.sentinelAuth.secretName $redis.tls.secretName) (not (int $stores)) -}}
{{- fail "redis: auth and tls are of a store; give redis.url" -}}
{{- end -}}
{{- if and $redis.tls.secretName (not (or $redis.tls.caKey $redis.tls.certKey)) -}}
{{- fail "redis.tls: name the keys of redis.tls.secretName: caKey, or certKey and keyKey" -}}
{{- end -}}
{{- if ne (empty $redis.tls.certKey) (empty $redis.tls.keyKey) -}}
{{- fail "redis.tls: give certKey and keyKey together" -}}
{{- end -}}
{{- end }}
