//! `LineageSink`: where the record of what happened is told on.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::policy::{Action, SecretKeyRef};
use crate::words;

/// Tells the outside what was read and written. A sink in the namespace of Weir itself gets the events of all
/// namespaces, one in any other namespace only those of its own.
#[derive(CustomResource, Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[kube(
    group = "weir.dev",
    version = "v1alpha1",
    kind = "LineageSink",
    plural = "lineagesinks",
    shortname = "lsink",
    category = "weir",
    namespaced,
    status = "LineageSinkStatus",
    printcolumn = r#"{"name":"Ready","type":"string","jsonPath":".status.conditions[?(@.type=='Ready')].status"}"#,
    printcolumn = r#"{"name":"Reason","type":"string","jsonPath":".status.conditions[?(@.type=='Ready')].reason"}"#,
    printcolumn = r#"{"name":"Delivered","type":"integer","jsonPath":".status.delivered"}"#,
    printcolumn = r#"{"name":"Lag","type":"integer","jsonPath":".status.lag"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#,
    printcolumn = r#"{"name":"Message","type":"string","jsonPath":".status.conditions[?(@.type=='Ready')].message","priority":1}"#
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    json!({"rule": "!(has(self.openLineage) && has(self.stdout))", "message": words::ONE_SINK}),
    json!({"rule": "has(self.openLineage) == has(oldSelf.openLineage) && has(self.stdout) == has(oldSelf.stdout)",
           "message": words::SINK_KIND_FIXED})
]))]
pub struct LineageSinkSpec {
    /// Run events with column lineage, posted to an OpenLineage endpoint (Marquez, DataHub, OpenMetadata …). A sink has
    /// exactly one of `openLineage` and `stdout`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open_lineage: Option<OpenLineage>,
    /// One JSON line an event on the collector's standard output, for the cluster's log pipeline: `stdout: {}`. A sink
    /// has exactly one of `openLineage` and `stdout`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdout: Option<Stdout>,
    /// Which events. Left out: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<SinkFilter>,
}

/// `spec.openLineage`.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub struct OpenLineage {
    /// Where run events are posted to, such as `https://marquez.data.svc:5000/api/v1/lineage`. Addresses of loopback
    /// and link-local networks are refused.
    #[schemars(length(min = 1, max = 2048), extend("x-kubernetes-validations" = [
        json!({"rule": "isURL(self) && url(self).getScheme() in ['http', 'https'] && url(self).getHostname() != ''",
               "message": words::SINK_URL}),
        json!({"rule": "!self.matches('^[a-z]+://([^/@]*@)?(localhost|127[.][0-9.]+|169[.]254[.][0-9.]+|0[.]0[.]0[.]0|\\\\[(::1?|fe[89ab][^\\\\]]*)\\\\])([:/?#]|$)')",
               "message": words::SINK_ADDRESS})
    ]))]
    pub url: String,
    /// A key of a Secret in the sink's namespace, sent as `Authorization: Bearer …`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_secret_ref: Option<SecretKeyRef>,
    /// Namespace of the jobs in OpenLineage's sense. Left out: `kubernetes://` and the pod's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub job_namespace: Option<String>,
    /// Seconds that one request may take.
    #[serde(default = "timeout_seconds")]
    #[schemars(range(min = 1, max = 60))]
    pub timeout_seconds: u32,
}

fn timeout_seconds() -> u32 {
    10
}

/// `spec.stdout`: no settings.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub struct Stdout {}

/// `spec.filter`: what an event must be to be told. All fields that are given must hold.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub struct SinkFilter {
    /// Namespaces of the pods. Only for a sink in the namespace of Weir itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub namespaces: Vec<String>,
    /// Relations that were touched: `public.orders`; `public.*` is every relation of the schema.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1024))]
    pub tables: Vec<String>,
    /// What was done to them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub actions: Vec<Action>,
    /// What was decided: Permit, Refuse, Audit.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 3))]
    pub verdicts: Vec<SinkVerdict>,
}

/// `spec.filter.verdicts`.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
#[schemars(inline)]
pub enum SinkVerdict {
    /// It ran.
    Permit,
    /// It did not run.
    Refuse,
    /// It ran, and would have been refused.
    Audit,
}

/// What became of the sink: the operator writes it, from what the collector says.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LineageSinkStatus {
    /// The generation that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// Events that the sink acknowledged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delivered: Option<i64>,
    /// Attempts that failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<i64>,
    /// Entries of the log that it has not been asked to take yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lag: Option<i64>,
    /// What the last failed attempt said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}
