{{- /* The folder that routers follow, where policies.mode is folder. */ -}}
{{- define "sparsity.policyFolder" -}}
{{- with .Values.policies.git }}
{{- if .repository }}{{ printf "/git/current/%s" (trimAll "/" .path) | trimSuffix "/" }}{{ else }}/etc/sparsity/policies{{ end }}
{{- end }}
{{- end }}

{{- /* Its volumes, and what it is mounted as. */ -}}
{{- define "sparsity.policyVolumes" -}}
{{- if eq .Values.policies.mode "folder" }}
{{- if .Values.policies.git.repository }}
- {name: git, emptyDir: {}}
{{- if hasPrefix "ssh://" .Values.policies.git.repository }}
- {name: git-login, secret: {secretName: {{ .Values.policies.git.secretName }}, defaultMode: 0440}}
{{- end }}
{{- else }}
- {name: policies, configMap: {name: {{ default (printf "%s-policies" (include "sparsity.fullname" .)) .Values.policies.configMap }}}}
{{- end }}
{{- end }}
{{- end }}

{{- define "sparsity.policyMounts" -}}
{{- if eq .Values.policies.mode "folder" }}
{{- if .Values.policies.git.repository }}
- {name: git, mountPath: /git, readOnly: true}
{{- else }}
- {name: policies, mountPath: /etc/sparsity/policies, readOnly: true}
{{- end }}
{{- end }}
{{- end }}

{{- /* The port that a repository is reached at: (string URL). */ -}}
{{- define "sparsity.gitPort" -}}
{{- include "sparsity.port" (list (include "sparsity.urlHosts" .) (ternary "22" "443" (hasPrefix "ssh://" .))) -}}
{{- end }}

{{- /* Follows the repository beside the router, from before it starts: (list root values), values of the router. */ -}}
{{- define "sparsity.gitSync" -}}
{{- $root := index . 0 -}}{{- $values := index . 1 -}}
{{- with $root.Values.policies.git }}
{{- if .repository }}
{{- $ssh := hasPrefix "ssh://" .repository }}
- name: git-sync
  image: {{ include "sparsity.publicImage" (list $root .image "registry.k8s.io" "git-sync/git-sync:v4.4.2") }}
  imagePullPolicy: {{ $values.image.pullPolicy }}
  # A container beside the program, and started before it.
  restartPolicy: Always
  args:
  - --repo={{ .repository }}
  - --ref={{ .ref }}
  - --depth=1
  - --root=/git
  - --link=current
  - --period={{ int .periodSeconds }}s
  # Routers keep what they have while the repository is away.
  - --max-failures=-1
  - --http-bind={{ include "sparsity.listen" (list $root 7003) }}
  {{- if $ssh }}
  - --ssh-key-file=/etc/sparsity/git/identity
  - --ssh-known-hosts-file=/etc/sparsity/git/known_hosts
  {{- end }}
  env:
  - {name: HOME, value: /tmp}
  {{- if and .secretName (not $ssh) }}
  {{- include "sparsity.secretVariable" (list "GITSYNC_USERNAME" .secretName "username") | trim | nindent 2 }}
  {{- include "sparsity.secretVariable" (list "GITSYNC_PASSWORD" .secretName "password") | trim | nindent 2 }}
  {{- end }}
  ports:
  - {name: git-sync, containerPort: 7003}
  # Passes once the files are there.
  startupProbe:
    httpGet: {path: /, port: git-sync}
    periodSeconds: 2
    failureThreshold: 150
  securityContext:
    {{- $own := deepCopy ($values.securityContext | default dict) }}
    {{- /* ssh wants a user that the image knows. */}}
    {{- if $ssh }}{{ $_ := set $own "runAsUser" 65533 }}{{ end }}
    {{- toYaml $own | nindent 4 }}
  resources:
    {{- toYaml .resources | nindent 4 }}
  volumeMounts:
  - {name: git, mountPath: /git}
  - {name: tmp, mountPath: /tmp}
  {{- if $ssh }}
  - {name: git-login, mountPath: /etc/sparsity/git, readOnly: true}
  {{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- /* What cannot be: fails by path, renders nothing. */ -}}
{{- define "sparsity.policiesValidate" -}}
{{- $policies := .Values.policies -}}
{{- $folder := eq $policies.mode "folder" -}}
{{- if and $policies.documents $policies.configMap -}}
{{- fail "policies.configMap: goes without policies.documents" -}}
{{- end -}}
{{- range $domain, $policy := $policies.documents -}}
{{- if ne $domain (default "" $policy.domain) -}}
{{- fail (printf "policies.documents.%s.domain: must be %s, not %s" $domain $domain (default "empty" $policy.domain)) -}}
{{- end -}}
{{- end -}}
{{- if and $folder (not (or $policies.documents $policies.configMap $policies.git.repository)) -}}
{{- fail "policies.mode: folder needs policies.documents, policies.configMap or policies.git.repository" -}}
{{- end -}}
{{- with $policies.git -}}
{{- if and .repository (not $folder) -}}
{{- fail "policies.git.repository: needs policies.mode folder; in the store's place" -}}
{{- end -}}
{{- if and .repository (or $policies.documents $policies.configMap) -}}
{{- fail "policies.git.repository: goes without policies.documents and policies.configMap" -}}
{{- end -}}
{{- if and .secretName (not .repository) -}}
{{- fail "policies.git.secretName: is of policies.git.repository" -}}
{{- end -}}
{{- if regexMatch "^https://[^/]*@" .repository -}}
{{- fail "policies.git.repository: holds credentials; name their Secret in policies.git.secretName" -}}
{{- end -}}
{{- if and (hasPrefix "ssh://" .repository) (not .secretName) -}}
{{- fail "policies.git.secretName: ssh needs a Secret with identity and known_hosts" -}}
{{- end -}}
{{- if has ".." (splitList "/" .path) -}}
{{- fail "policies.git.path: leaves the repository by .." -}}
{{- end -}}
{{- end -}}
{{- end }}
