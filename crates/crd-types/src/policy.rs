//! `DatabaseAccessPolicy`: who may do what with which data of one database.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::words;

/// Says who may do what with one database, what they see of it, and how it is recorded. All policies that name the
/// same database apply together.
#[derive(CustomResource, Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[kube(
    group = "weir.dev",
    version = "v1alpha1",
    kind = "DatabaseAccessPolicy",
    plural = "databaseaccesspolicies",
    shortname = "dap",
    category = "weir",
    namespaced,
    status = "DatabaseAccessPolicyStatus",
    printcolumn = r#"{"name":"Ready","type":"string","jsonPath":".status.conditions[?(@.type=='Ready')].status"}"#,
    printcolumn = r#"{"name":"Reason","type":"string","jsonPath":".status.conditions[?(@.type=='Ready')].reason"}"#,
    printcolumn = r#"{"name":"Mode","type":"string","jsonPath":".spec.mode"}"#,
    printcolumn = r#"{"name":"Matched","type":"integer","jsonPath":".status.matchedPods"}"#,
    printcolumn = r#"{"name":"Enforced","type":"integer","jsonPath":".status.enforcedPods"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#,
    printcolumn = r#"{"name":"Host","type":"string","jsonPath":".spec.database.host","priority":1}"#,
    printcolumn = r#"{"name":"Message","type":"string","jsonPath":".status.conditions[?(@.type=='Ready')].message","priority":1}"#
)]
#[serde(rename_all = "camelCase")]
pub struct DatabaseAccessPolicySpec {
    /// Enforce refuses, masks and filters. Audit decides and records what it would have done, and changes nothing.
    #[serde(default)]
    pub mode: Mode,
    /// The pods of this namespace that the policy is for, by their labels. `{}` means every pod. Not judged where no
    /// operator runs.
    pub pod_selector: LabelSelector,
    /// The database, and how to reach it.
    pub database: Database,
    /// What happens to an action that no rule in `access` speaks of. Deny wins where policies differ.
    #[serde(default)]
    pub default_action: Effect,
    /// Labels for columns, so that masks can name a label in place of every column.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["label"], "maxItems" = 256))]
    pub classifications: Vec<Classification>,
    /// Who may do what. A matching Deny of any policy wins, else a matching Allow of any, else `defaultAction`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"], "maxItems" = 256))]
    pub access: Vec<AccessRule>,
    /// Columns whose values are replaced before anything can read them. Of several masks on one column the strictest
    /// counts: Null, Constant, Hash, DateTrunc, Email, Partial.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"], "maxItems" = 256))]
    pub masks: Vec<MaskRule>,
    /// Rows that may be read and written. All filters on a table hold together.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"], "maxItems" = 256))]
    pub row_filters: Vec<RowFilterRule>,
    /// Limits on what one statement or transaction may do. The tightest of all policies counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guardrails: Option<Guardrails>,
    /// How what happened is recorded.
    #[serde(default)]
    pub receipts: Receipts,
}

/// `spec.mode`.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
#[schemars(inline)]
pub enum Mode {
    /// Refuse, mask, filter.
    #[default]
    Enforce,
    /// Decide and record, change nothing.
    Audit,
}

/// Allow or Deny, where left out means Deny.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
#[schemars(inline)]
pub enum Effect {
    /// It may happen.
    Allow,
    /// It is refused.
    #[default]
    Deny,
}

/// `spec.database`.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline, extend("x-kubernetes-validations" = [
    json!({"rule": "!has(self.credentials) || self.credentials.transport == 'Plaintext' || \
                    !has(self.tls) || self.tls.mode == 'VerifyFull' || \
                    (self.credentials.transport == 'AnyTLS' && self.tls.mode != 'Disable')",
           "fieldPath": ".credentials", "message": words::TRANSPORT}),
    json!({"rule": "!has(self.clientTLS) || self.clientTLS.mode != 'Serve' || has(self.credentials) || \
                    (has(self.tls) && self.tls.mode == 'Disable')",
           "fieldPath": ".clientTLS", "message": words::SERVE_NEEDS_CREDENTIALS}),
    json!({"rule": "(has(self.capture) && self.capture.mode == 'Env') || \
                    !(isIP(self.host) || self.host.startsWith('[') || self.host == 'localhost')",
           "fieldPath": ".host", "message": words::ADDRESS_NEEDS_ENV}),
    json!({"rule": "(has(self.capture) && self.capture.mode == 'Env') || !has(self.otherEndpoints) || \
                    !self.otherEndpoints.exists(other, \
                    isIP(other.host) || other.host.startsWith('[') || other.host == 'localhost')",
           "fieldPath": ".otherEndpoints", "message": words::ADDRESS_NEEDS_ENV}),
    json!({"rule": "!has(self.otherEndpoints) || !self.otherEndpoints.exists(other, \
                    other.host == self.host && other.port == self.port)",
           "fieldPath": ".otherEndpoints", "message": words::NAMED_TWICE})
]))]
pub struct Database {
    /// What kind of server it is. It cannot change: another kind of server is another policy.
    #[schemars(extend("x-kubernetes-validations" = [json!({"rule": "self == oldSelf", "message": words::ENGINE_FIXED})]))]
    pub engine: Engine,
    /// Host name or address, as the application names it: no scheme, no port, no path.
    #[schemars(length(min = 1, max = 253), extend("x-kubernetes-validations" = host_rules()))]
    pub host: String,
    /// TCP port of the server.
    #[serde(default = "postgresql_port")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
    /// More names of the same database, such as a read replica. Policies that share an endpoint are one database.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["host", "port"]))]
    pub other_endpoints: Vec<OtherEndpoint>,
    /// The only database of that server that may be used. Left out, every database of the server may be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub name: Option<String>,
    /// TLS towards the server.
    #[serde(default)]
    pub tls: Tls,
    /// The login that the sidecar uses for the server, so that the application needs none. Left out, the application's
    /// own login passes through.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<Credentials>,
    /// TLS towards the application, within the pod.
    #[serde(default, rename = "clientTLS")]
    pub client_tls: ClientTls,
    /// How the application's connections come to the sidecar. Not judged where no operator runs.
    #[serde(default)]
    pub capture: Capture,
    /// Which of the host's addresses will do: Any, or ReadWrite for the one that takes writes (a primary behind a
    /// headless name). `otherEndpoints` are not held to it.
    #[serde(default)]
    pub target_session: TargetSession,
}

/// `spec.database.clientTLS`.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline, extend("x-kubernetes-validations" = [
    json!({"rule": "!has(self.certificateSecretRef) || self.mode == 'Serve'",
           "fieldPath": ".certificateSecretRef", "message": words::CERTIFICATE_NEEDS_SERVE})
]))]
pub struct ClientTls {
    /// Plain: the application's request for TLS is answered with no, as a server without TLS does. Serve: with yes; an
    /// application that verifies must trust `/var/run/weir/ca.crt`, or the given certificate's authority. Serve needs
    /// `credentials`, or `tls.mode: Disable`.
    #[serde(default)]
    pub mode: ClientTlsMode,
    /// The Secret with `tls.crt` and `tls.key` that is shown to the application. Left out, Weir issues one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_secret_ref: Option<SecretRef>,
}

/// `spec.database.clientTLS.mode`.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
#[schemars(inline)]
pub enum ClientTlsMode {
    /// No TLS within the pod.
    #[default]
    Plain,
    /// TLS for those who ask for it.
    Serve,
}

/// `spec.database.capture`.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline, extend("x-kubernetes-validations" = [
    json!({"rule": "!has(self.env) || self.mode == 'Env'", "fieldPath": ".env", "message": words::ENV_NEEDS_MODE})
]))]
pub struct Capture {
    /// Alias: within the pod the host's name leads to the sidecar (hostAliases). Env: the variables in `env` are
    /// rewritten, for hosts that are addresses.
    #[serde(default)]
    pub mode: CaptureMode,
    /// For Env, and needed there: the variables of the application's containers that hold host, port or URL as literal
    /// values.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<CaptureEnv>,
}

/// `spec.database.capture.mode`.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
#[schemars(inline)]
pub enum CaptureMode {
    /// By name.
    #[default]
    Alias,
    /// By variables.
    Env,
}

/// `spec.database.capture.env`.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub struct CaptureEnv {
    /// Variables that hold the host, such as `PGHOST`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub host_variables: Vec<String>,
    /// Variables that hold the port, such as `PGPORT`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub port_variables: Vec<String>,
    /// Variables that hold a URL or a libpq connection string, such as `DATABASE_URL`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub url_variables: Vec<String>,
}

/// `spec.database.targetSession`.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
#[schemars(inline)]
pub enum TargetSession {
    /// The first address that answers.
    #[default]
    Any,
    /// The one that takes writes.
    ReadWrite,
}

/// What became of the policy: the operator writes it, from what the sidecars say.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DatabaseAccessPolicyStatus {
    /// The generation that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Accepted, Enforced, Degraded and their sum, Ready.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// Running pods that the policy selects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub matched_pods: Option<i32>,
    /// Those of them whose sidecar acknowledged this generation and captures its endpoints.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enforced_pods: Option<i32>,
    /// Selected pods that run without a sidecar (the first 20 names).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub uninjected_pods: Vec<String>,
    /// How many those are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uninjected_pods_count: Option<i32>,
    /// Pods whose sidecar was made before this policy named a host, port or Secret (the first 20 names).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub restart_needed_pods: Vec<String>,
    /// How many those are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart_needed_pods_count: Option<i32>,
    /// Tables and columns that the database does not have, as sidecars report them (the first 20).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unresolved: Vec<UnresolvedName>,
}

/// A name of a policy that its database does not have.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub struct UnresolvedName {
    /// Where the policy says it: `spec.masks[0].columns[1]`.
    pub field: String,
    /// The name.
    pub name: String,
    /// The database that does not have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database: Option<String>,
}

fn host_rules() -> serde_json::Value {
    json!([
        {"rule": "!self.contains('/')", "message": words::HOST_NO_URL},
        {"rule": "self.startsWith('[') || isIP(self) || !self.contains(':')", "message": words::HOST_NO_PORT}
    ])
}

fn postgresql_port() -> u16 {
    5432
}

/// `spec.database.engine`.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
#[schemars(inline)]
pub enum Engine {
    /// PostgreSQL and servers that are PostgreSQL.
    PostgreSQL,
}

/// Another name of the same database.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub struct OtherEndpoint {
    /// Host name or address, as the application names it: no scheme, no port, no path.
    #[schemars(length(min = 1, max = 253), extend("x-kubernetes-validations" = host_rules()))]
    pub host: String,
    /// TCP port of the server.
    #[serde(default = "postgresql_port")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
}

/// `spec.database.tls`.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline, extend("x-kubernetes-validations" = [
    json!({"rule": "!has(self.caSecretRef) || self.mode in ['VerifyCA', 'VerifyFull']",
           "fieldPath": ".caSecretRef", "message": words::CA_NEEDS_VERIFY})
]))]
pub struct Tls {
    /// Disable: no TLS. Require: TLS, the certificate is not checked. VerifyCA: the certificate must come from the
    /// given authority. VerifyFull: it must also be for the host.
    #[serde(default)]
    pub mode: TlsMode,
    /// Where the authority's certificate (PEM) is, for VerifyCA and VerifyFull. Left out, the system's authorities
    /// count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_secret_ref: Option<SecretKeyRef>,
}

/// `spec.database.tls.mode`.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
#[schemars(inline)]
pub enum TlsMode {
    /// No TLS.
    Disable,
    /// TLS, certificate not checked.
    Require,
    /// Certificate from the given authority.
    VerifyCA,
    /// And for that host.
    #[default]
    VerifyFull,
}

/// A key of a Secret in the policy's namespace.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub struct SecretKeyRef {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Key in its data.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

/// A Secret in the policy's namespace.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub struct SecretRef {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// `spec.database.credentials`.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub struct Credentials {
    /// The Secret with the keys `username` and `password`.
    pub secret_ref: SecretRef,
    /// Over what the password may be sent. VerifiedTLS: only where `tls.mode` is VerifyFull. AnyTLS: over any TLS.
    /// Plaintext: even without.
    #[serde(default)]
    pub transport: Transport,
}

/// `spec.database.credentials.transport`.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
#[schemars(inline)]
pub enum Transport {
    /// Only to a server whose certificate was verified.
    #[default]
    VerifiedTLS,
    /// Over any TLS.
    AnyTLS,
    /// Even without TLS.
    Plaintext,
}

/// One label and its columns.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub struct Classification {
    /// Label, for example `pii.email`.
    #[schemars(length(min = 1, max = 63))]
    pub label: String,
    /// Columns, written as in SQL: `public.customers.email`, `ward."Person"."E Mail"`.
    #[schemars(length(min = 1, max = 1024))]
    pub columns: Vec<String>,
}

/// Who a rule speaks of: exactly one of the fields.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline, extend("x-kubernetes-validations" = [
    json!({"rule": "[has(self.serviceAccount), has(self.user), has(self.group), has(self.agent)].filter(one, one).size() <= 1",
           "message": words::ONE_SUBJECT})
]))]
pub struct SubjectRef {
    /// A Kubernetes service account of the policy's namespace. A subject has exactly one of the four fields.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub service_account: Option<String>,
    /// A person, by name. A subject has exactly one of the four fields.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub user: Option<String>,
    /// A group of persons. A subject has exactly one of the four fields.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub group: Option<String>,
    /// An AI agent. A subject has exactly one of the four fields.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub agent: Option<String>,
}

/// One rule of `spec.access`.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline, extend("x-kubernetes-validations" = [
    json!({"rule": "!has(self.columns) || self.columns.size() == 0 || \
                    self.actions.all(action, action in ['Select', 'Insert', 'Update'])",
           "fieldPath": ".columns", "message": words::COLUMNS_NARROW})
]))]
pub struct AccessRule {
    /// Name of the rule, as refusals and receipts quote it.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// Allow or Deny. A Deny wins over every Allow.
    #[serde(default = "allow")]
    #[schemars(extend("default" = "Allow"))]
    pub effect: Effect,
    /// Whom it speaks of. Left out: everybody.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub subjects: Vec<SubjectRef>,
    /// What may be done, or not: Select (COPY TO too), Insert (COPY FROM too), Update, Delete, Truncate, DDL, Call
    /// (procedures, DO), Admin (roles, maintenance, settings of the server).
    #[schemars(length(min = 1, max = 8), extend("x-kubernetes-list-type" = "set"))]
    pub actions: Vec<Action>,
    /// Relations it speaks of, written as in SQL: `public.orders`; `public.*` is every relation of the schema. Left
    /// out: every relation, and actions on none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1024))]
    pub tables: Vec<String>,
    /// Narrows the rule to columns of its tables, written in full: `public.customers.name`. Only for Select, Insert
    /// and Update. A table of the rule without a column here is meant whole.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1024))]
    pub columns: Vec<String>,
}

fn allow() -> Effect {
    Effect::Allow
}

/// What can be done.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, JsonSchema)]
#[schemars(inline)]
pub enum Action {
    /// Reads rows.
    Select,
    /// Adds rows.
    Insert,
    /// Changes rows.
    Update,
    /// Removes rows.
    Delete,
    /// TRUNCATE.
    Truncate,
    /// Changes definitions.
    #[serde(rename = "DDL")]
    Ddl,
    /// Procedures, DO.
    Call,
    /// Roles, maintenance, settings of the server.
    Admin,
}

/// One rule of `spec.masks`.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub struct MaskRule {
    /// Name of the rule, as receipts quote it.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// Columns, written as in SQL: `public.customers.email`. A rule needs these or `columnLabels`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1024))]
    pub columns: Vec<String>,
    /// Labels of `classifications` of any policy of this database; `pii.*` is every label that begins with `pii.`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub column_labels: Vec<String>,
    /// What is shown in place of the value.
    pub mask: Mask,
    /// Who sees the column without this mask (other masks on it stay).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub except_subjects: Vec<SubjectRef>,
}

/// What is shown in place of a value: `type`, and the fields of that type.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline, extend("x-kubernetes-validations" = [
    json!({"rule": "!has(self.value) || self.type == 'Constant'",
           "fieldPath": ".value", "message": words::VALUE_OF_CONSTANT}),
    json!({"rule": "!has(self.keepFirst) || self.type == 'Partial'",
           "fieldPath": ".keepFirst", "message": words::KEEP_OF_PARTIAL}),
    json!({"rule": "!has(self.keepLast) || self.type == 'Partial'",
           "fieldPath": ".keepLast", "message": words::KEEP_OF_PARTIAL}),
    json!({"rule": "!has(self.unit) || self.type == 'DateTrunc'",
           "fieldPath": ".unit", "message": words::UNIT_OF_DATE_TRUNC}),
    json!({"rule": "!has(self.keySecretRef) || self.type == 'Hash'",
           "fieldPath": ".keySecretRef", "message": words::KEY_OF_HASH})
]))]
pub struct Mask {
    /// Null: NULL (in YAML it needs quotes: "Null"). Constant: what `value` says. Partial: stars, but for `keepFirst`
    /// and `keepLast` characters. Email: first letter and domain. DateTrunc: the first moment of `unit`. Hash: a token
    /// made with the key in `keySecretRef`, the same for the same value.
    #[serde(rename = "type")]
    pub kind: MaskType,
    /// For Constant, and needed there: the value shown, as text. NULL stays NULL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub value: Option<String>,
    /// For Partial: characters shown at the start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 1000))]
    pub keep_first: Option<u32>,
    /// For Partial: characters shown at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 1000))]
    pub keep_last: Option<u32>,
    /// For DateTrunc, and needed there: Year, Month or Day.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "DateUnit")]
    pub unit: Option<DateUnit>,
    /// For Hash, and needed there: the key, 16 bytes or more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_secret_ref: Option<SecretKeyRef>,
}

/// `mask.type`.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
#[schemars(inline)]
pub enum MaskType {
    /// NULL.
    Null,
    /// The same value for all.
    Constant,
    /// Stars, but for some characters.
    Partial,
    /// First letter and domain.
    Email,
    /// Start of a year, month or day.
    DateTrunc,
    /// A keyed token.
    Hash,
}

/// `mask.unit`.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
#[schemars(inline)]
pub enum DateUnit {
    /// First of January.
    Year,
    /// First of the month.
    Month,
    /// Midnight.
    Day,
}

/// One rule of `spec.rowFilters`.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub struct RowFilterRule {
    /// Name of the rule, as refusals and receipts quote it.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// Tables, written as in SQL: `public.orders`; `public.*` is every table of the schema.
    #[schemars(length(min = 1, max = 1024))]
    pub tables: Vec<String>,
    /// A condition in SQL over the table's own columns. `:claims.NAME` stands for a value of who asks; where it is
    /// absent the statement is refused.
    #[schemars(length(min = 1, max = 8192))]
    pub predicate: String,
    /// Who is not held by this filter.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub except_subjects: Vec<SubjectRef>,
}

/// `spec.guardrails`.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub struct Guardrails {
    /// Statements that need a WHERE that compares a column of the target with something else than the same row. It
    /// catches accidents.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 2), extend("x-kubernetes-list-type" = "set"))]
    pub require_where: Vec<WhereAction>,
    /// Most rows that the UPDATE, DELETE, MERGE and INSERT … ON CONFLICT DO UPDATE of one transaction may change.
    /// Above it nothing is committed. TRUNCATE, and CALL or DO, are refused while it is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000_000_000_u64))]
    pub max_affected_rows: Option<u64>,
    /// Most rows that one statement may return, COPY lines too. Then it is stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000_000_u64))]
    pub max_returned_rows: Option<u64>,
    /// Seconds a statement may take. No SET lifts it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 86400))]
    pub statement_timeout_seconds: Option<u32>,
    /// Which functions may be called, beside those that are open to all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub functions: Option<Functions>,
    /// Channels that LISTEN may name; `jobs_*` is every channel that begins with `jobs_`. Left out: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub channels: Option<Vec<String>>,
    /// Whether files and programs of the server may be used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_access: Option<ServerAccess>,
}

/// A member of `requireWhere`.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, JsonSchema)]
#[schemars(inline)]
pub enum WhereAction {
    /// UPDATE.
    Update,
    /// DELETE.
    Delete,
}

/// `spec.guardrails.functions`.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub struct Functions {
    /// Functions of the database's own that may be called, with or without their schema; `*` at the end is a prefix.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1024))]
    pub allow: Vec<String>,
    /// Functions, built-in ones too, that may not be called.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1024))]
    pub deny: Vec<String>,
    /// Code whose body cannot be seen: functions, operators, casts, aggregates, DO, CALL, functions in column
    /// defaults. Left out: Deny, where anything is protected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Effect")]
    pub user_defined: Option<Effect>,
}

/// `spec.guardrails.serverAccess`.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub struct ServerAccess {
    /// COPY with a file, LOAD, `pg_read_file`, `lo_import` and their kin. Left out: Deny.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Effect")]
    pub files: Option<Effect>,
    /// COPY … PROGRAM. Left out: Deny.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Effect")]
    pub programs: Option<Effect>,
}

/// `spec.receipts`.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub struct Receipts {
    /// BestEffort: records may be lost under pressure, and each loss is a signed gap. Durable: on disk before a write
    /// goes out. Strict: acknowledged by the collector before a write goes out.
    #[serde(default)]
    pub mode: ReceiptMode,
}

/// `spec.receipts.mode`.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
#[schemars(inline)]
pub enum ReceiptMode {
    /// Losses are counted and signed.
    BestEffort,
    /// On disk first.
    #[default]
    Durable,
    /// At the collector first.
    Strict,
}
