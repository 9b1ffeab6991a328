{{- define "wardrop.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "wardrop.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else if contains (include "wardrop.name" .) .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "wardrop.name" .) | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "wardrop.selectorLabels" -}}
app.kubernetes.io/name: {{ include "wardrop.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "wardrop.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{ include "wardrop.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/component: {{ .Values.mode }}
{{- end -}}

{{- define "wardrop.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "wardrop.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* Selectors of the cluster that the door follows. */}}
{{- define "wardrop.selectors" -}}
{{- if eq .Values.mode "serve" -}}
{{- .Values.serve.fleet.kubernetes | default list | toJson -}}
{{- else if eq .Values.mode "picker" -}}
{{- .Values.picker.file.kubernetes | default list | toJson -}}
{{- else -}}
[]
{{- end -}}
{{- end -}}

{{/* Rights by namespace: {NAMESPACE: {GROUP/RESOURCE: true}}, exactly what discovery lists and watches. */}}
{{- define "wardrop.rights" -}}
{{- $root := . -}}
{{- $rights := dict -}}
{{- range $selector := include "wardrop.selectors" . | fromJsonArray -}}
{{- $name := $selector.inference_pool | default $selector.service | default "" -}}
{{- $namespace := $selector.namespace | default $root.Release.Namespace -}}
{{- if contains "/" $name -}}{{- $namespace = first (splitList "/" $name) -}}{{- end -}}
{{- $found := get $rights $namespace | default dict -}}
{{- if $selector.service -}}
{{- $_ := set $found "discovery.k8s.io/endpointslices" true -}}
{{- else -}}
{{- $_ := set $found "/pods" true -}}
{{- if $selector.inference_pool -}}
{{- $_ := set $found "inference.networking.k8s.io/inferencepools" true -}}
{{- end -}}
{{- end -}}
{{- $_ := set $rights $namespace $found -}}
{{- end -}}
{{- if eq .Values.mode "dynamo" -}}
{{- $ready := ternary "/pods" "discovery.k8s.io/endpointslices" (eq .Values.dynamo.discoveryMode "container") -}}
{{- $namespace := .Values.dynamo.namespace | default .Release.Namespace -}}
{{- $_ := set $rights $namespace (dict $ready true "nvidia.com/dynamoworkermetadatas" true) -}}
{{- end -}}
{{- $rights | toJson -}}
{{- end -}}

{{/* Settings that the chart fixes, over those of the user. */}}
{{- define "wardrop.config" -}}
{{- $own := dict "http" (dict "host" "0.0.0.0" "port" 8000) -}}
{{- if eq .Values.mode "serve" -}}
{{- $_ := set $own "fleet" (dict "file" "/etc/wardrop/fleet/fleet.yaml" "drain_timeout_s" .Values.drainTimeoutSeconds) -}}
{{- else -}}
{{- $dynamo := dict "upstreams" .Values.dynamo.upstreams "discovery" "kubernetes" "kubernetes_namespace" (.Values.dynamo.namespace | default .Release.Namespace) "bootstrap" .Values.dynamo.bootstrap "drain_timeout_s" .Values.drainTimeoutSeconds -}}
{{- $_ := set $own "dynamo" $dynamo -}}
{{- end -}}
{{- mustMergeOverwrite (dict) .Values.config $own | toYaml -}}
{{- end -}}

{{- define "wardrop.pickerFile" -}}
{{- $own := dict "listen" "0.0.0.0:9002" "health_listen" "0.0.0.0:9003" "http_listen" "0.0.0.0:9090" "drain_timeout_s" .Values.drainTimeoutSeconds -}}
{{- if .Values.picker.tlsSecretName -}}
{{- $_ := set $own "tls" (dict "certificate" "/etc/wardrop/tls/tls.crt" "key" "/etc/wardrop/tls/tls.key") -}}
{{- end -}}
{{- mustMergeOverwrite (dict) .Values.picker.file $own | toYaml -}}
{{- end -}}
