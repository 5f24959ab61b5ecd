{{- /* The name of everything. */ -}}
{{- define "socklb.name" -}}
socklb
{{- end }}

{{- define "socklb.serviceAccountName" -}}
{{- .Values.serviceAccount.name | default (include "socklb.name" .) -}}
{{- end }}

{{- define "socklb.selectorLabels" -}}
app.kubernetes.io/name: {{ include "socklb.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "socklb.labels" -}}
{{ include "socklb.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name (.Chart.Version | replace "+" "_") }}
{{- end }}

{{- define "socklb.image" -}}
{{- with .Values.image -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}{{ with .digest }}@{{ . }}{{ end }}
{{- end -}}
{{- end }}

{{- /*
The capabilities of the agent, all of them.
NET_ADMIN: to attach to a cgroup, to end sockets.
SYS_ADMIN: to enter the network namespaces of pods, to mount cgroup2. SYS_PTRACE: to find them in /proc.
Without SYS_ADMIN, which stands for them: BPF, for maps and programs; PERFMON, without which the verifier
allows less arithmetic on pointers than the programs do. They are not asked for beside it: nodes in
containers of Docker before version 23 have neither, and a pod that asks for them does not start there.
*/ -}}
{{- define "socklb.capabilities" -}}
- NET_ADMIN
{{- if .Values.podSockets }}
- SYS_ADMIN
- SYS_PTRACE
{{- else }}
- BPF
- PERFMON
{{- end }}
{{- end }}

{{- /* Whether the host's processes must be seen: to enter their namespaces, or to find the node's cgroup. */ -}}
{{- define "socklb.hostPID" -}}
{{- or .Values.podSockets (not .Values.cgroup) -}}
{{- end }}

{{- /* Beside a kube-proxy its ports are taken, and a probe would ask the wrong one. */ -}}
{{- define "socklb.healthzBindAddress" -}}
{{- if and .Values.serviceProxyName (eq .Values.healthzBindAddress "0.0.0.0:10256") -}}
0.0.0.0:10356
{{- else -}}
{{ .Values.healthzBindAddress }}
{{- end -}}
{{- end }}

{{- define "socklb.metricsBindAddress" -}}
{{- if and .Values.serviceProxyName (eq .Values.metricsBindAddress "127.0.0.1:10249") -}}
127.0.0.1:10349
{{- else -}}
{{ .Values.metricsBindAddress }}
{{- end -}}
{{- end }}

{{- /* The port of IP:PORT. */ -}}
{{- define "socklb.port" -}}
{{- regexFind "[0-9]+$" . -}}
{{- end }}

{{- /* The IP of IP:PORT, unless it stands for all addresses: then a probe asks at the node's own. */ -}}
{{- define "socklb.probeHost" -}}
{{- $ip := regexReplaceAll ":[0-9]+$" . "" | trimPrefix "[" | trimSuffix "]" -}}
{{- if not (has $ip (list "0.0.0.0" "::")) -}}
{{ $ip }}
{{- end -}}
{{- end }}

{{- /* What a container of the agent has around it: environment, rights and file systems of the node. */ -}}
{{- define "socklb.surroundings" -}}
env:
  - name: NODE_NAME
    valueFrom:
      fieldRef:
        fieldPath: spec.nodeName
  # In the environment, so that lbctl in this container finds the maps too.
  - name: SOCKLB_BPFFS
    value: {{ .Values.bpffs }}
  {{- with .Values.kubernetes.host }}
  # Not the Service `kubernetes`, which works only once the agent does.
  - name: KUBERNETES_SERVICE_HOST
    value: {{ . | quote }}
  - name: KUBERNETES_SERVICE_PORT
    value: {{ int $.Values.kubernetes.port | quote }}
  {{- end }}
{{- with .Values.resources }}
resources:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  # Root, but only with these capabilities.
  runAsUser: 0
  runAsGroup: 0
  privileged: false
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
    add:
      {{- include "socklb.capabilities" . | nindent 6 }}
  {{- with .Values.seccompProfile }}
  seccompProfile:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.appArmorProfile }}
  appArmorProfile:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.seLinuxOptions }}
  seLinuxOptions:
    {{- toYaml . | nindent 4 }}
  {{- end }}
terminationMessagePolicy: FallbackToLogsOnError
# Both at the places they have on the node, over what the runtime has there: a container's own view
# of cgroups begins at its own. Writable: pins are made in the one, and in the other the cgroup of a
# probe that shows whether the programs are in force.
volumeMounts:
  - name: bpffs
    mountPath: {{ .Values.bpffs }}
  - name: cgroup
    mountPath: /sys/fs/cgroup
{{- end }}
