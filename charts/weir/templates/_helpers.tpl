{{/* Names are fixed: see values.yaml. */}}
{{- define "weir.labels" -}}
app.kubernetes.io/name: weir
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
app.kubernetes.io/part-of: weir
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "weir.selector" -}}
app.kubernetes.io/name: weir
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "weir.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}{{ .repository }}@{{ .digest }}{{- else -}}{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}{{- end -}}
{{- end -}}
{{- end }}

{{- define "weir.sidecarImage" -}}
{{- .Values.injection.image | default (include "weir.image" .) -}}
{{- end }}

{{/* host:port of the operator's gRPC port, as pods reach it. */}}
{{- define "weir.operatorAddress" -}}
weir-operator.{{ .Release.Namespace }}.svc:9444
{{- end }}

{{- define "weir.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "weir.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* The API server's token, mounted by hand: the pod says itself what it holds, and nobody else's default changes it. */}}
{{- define "weir.apiTokenVolume" -}}
- name: api-token
  projected:
    sources:
    - serviceAccountToken: {path: token, expirationSeconds: 3607}
    - configMap:
        name: kube-root-ca.crt
        items: [{key: ca.crt, path: ca.crt}]
    - downwardAPI:
        items: [{path: namespace, fieldRef: {fieldPath: metadata.namespace}}]
{{- end }}

{{- define "weir.apiTokenMount" -}}
- {name: api-token, mountPath: /var/run/secrets/kubernetes.io/serviceaccount, readOnly: true}
{{- end }}

{{- define "weir.podEnvironment" -}}
- {name: WEIR_POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
- {name: WEIR_POD_NAMESPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
- {name: WEIR_POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
- {name: WEIR_POD_UID, valueFrom: {fieldRef: {fieldPath: metadata.uid}}}
{{- end }}

{{- define "weir.pullSecrets" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
{{- range . }}
- {name: {{ . }}}
{{- end }}
{{- end }}
{{- end }}

{{/* The operator's settings file. Its pods start anew when this text changes. */}}
{{- define "weir.settings" -}}
namespace: {{ .Release.Namespace }}
trustDomain: {{ .Values.trustDomain }}
snapshotValidSeconds: {{ int64 .Values.operator.snapshotValidSeconds }}
collector:
  url: https://weir-collector.{{ .Release.Namespace }}.svc:9445
  serviceAccount: weir-collector
injection:
  image: {{ include "weir.sidecarImage" . }}
  imagePullPolicy: {{ .Values.injection.imagePullPolicy }}
  uid: {{ int64 .Values.injection.uid }}
  operator: {{ include "weir.operatorAddress" . }}
  resources:
    {{- range $name, $amount := .Values.injection.resources }}
    {{ $name }}: {{ $amount | toString | quote }}
    {{- end }}
  networkProxies: {{- toYaml .Values.injection.networkProxies | nindent 2 }}
  spoolSize: {{ .Values.injection.spoolSize | toString | quote }}
  clusterDomain: {{ .Values.clusterDomain }}
ports:
  webhook: 9443
  grpc: 9444
  admin: 8081
{{- end }}

{{/* Pod spec of a check: one run of a subcommand of weir-operator. Arguments: root, name, account ("" for none), args. */}}
{{- define "weir.checkPod" -}}
restartPolicy: Never
{{- if .account }}
serviceAccountName: {{ .account }}
{{- end }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- include "weir.pullSecrets" .root }}
securityContext: {{- include "weir.podSecurity" .root | nindent 2 }}
{{- with .root.Values.operator.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.operator.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
containers:
- name: check
  image: {{ include "weir.image" .root }}
  imagePullPolicy: {{ .root.Values.image.pullPolicy }}
  command: [/usr/local/bin/weir-operator]
  args: {{- toYaml .args | nindent 2 }}
  env:
  {{- include "weir.podEnvironment" .root | nindent 2 }}
  resources:
    requests: {cpu: 10m, memory: 32Mi}
    limits: {memory: 128Mi}
  securityContext: {{- include "weir.containerSecurity" .root | nindent 4 }}
  terminationMessagePolicy: FallbackToLogsOnError
  {{- if .account }}
  volumeMounts:
  {{- include "weir.apiTokenMount" .root | nindent 2 }}
  {{- end }}
{{- if .account }}
volumes:
{{- include "weir.apiTokenVolume" .root | nindent 0 }}
{{- end }}
{{- end }}

{{- define "weir.metricsPeers" -}}
{{- if .Values.networkPolicy.metricsFrom }}
{{- toYaml .Values.networkPolicy.metricsFrom }}
# helm test
- podSelector: {matchLabels: {app.kubernetes.io/name: weir, app.kubernetes.io/component: test}}
{{- else -}}
- namespaceSelector: {}
{{- end }}
{{- end }}
