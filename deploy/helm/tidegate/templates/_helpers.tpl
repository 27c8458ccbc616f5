{{- define "tidegate.name" -}}
{{ .Release.Name | trunc 48 | trimSuffix "-" }}
{{- end }}

{{- define "tidegate.labels" -}}
app.kubernetes.io/name: tidegate
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- /* The labels of the pods of one component: (dict "root" . "component" "server"). */}}
{{- define "tidegate.selector" -}}
app.kubernetes.io/name: tidegate
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- /* What the restricted pod security standard asks for. */}}
{{- define "tidegate.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "tidegate.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "tidegate.checkStore" -}}
{{- if and (not .Values.valkey.enabled) (not .Values.store.url) (not .Values.store.existingSecret) -}}
{{- fail "streams need a store that all servers share: set store.url or store.existingSecret, or valkey.enabled=true" -}}
{{- end -}}
{{- if and .Values.valkey.enabled (or .Values.store.url .Values.store.existingSecret) -}}
{{- fail "two stores are named: set valkey.enabled=false to use store.url or store.existingSecret" -}}
{{- end -}}
{{- end }}
