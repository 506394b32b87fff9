{{/* Namespaces in which nothing is injected: Weir's own pods must start without Weir, and the cluster's own too. */}}
{{- define "weir.exemptNamespaces" -}}
[kube-system, {{ .Release.Namespace }}]
{{- end }}

{{- define "weir.notExempt" -}}
- {key: kubernetes.io/metadata.name, operator: NotIn, values: {{ include "weir.exemptNamespaces" . }}}
{{- end }}

{{- define "weir.admissionService" -}}
service: {namespace: {{ .root.Release.Namespace }}, name: weir-operator, port: 443, path: {{ .path }}}
{{- end }}

{{/* Metadata of a policy and its binding. */}}
{{- define "weir.admissionMeta" -}}
name: {{ .name }}
labels: {{- include "weir.labels" (dict "root" .root "component" "admission") | nindent 2 }}
{{- end }}
