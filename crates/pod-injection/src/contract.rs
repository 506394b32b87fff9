//! What an injected pod looks like to the sidecar, to the backstop policies and to whoever reads pods.

use serde::{Deserialize, Serialize};

/// Pod annotation, `"true"` or `"false"`; on a namespace the label of the same name, `enabled` or `required`.
pub const INJECT: &str = "weir.dev/inject";
/// Pod annotation that the webhook writes: JSON list of [`Captured`].
pub const CAPTURED: &str = "weir.dev/captured";
/// Pod annotation that the webhook writes: JSON of [`Injected`].
pub const INJECTED: &str = "weir.dev/injected";
/// Pod label that the webhook writes, value `"true"`: so that injected pods can be selected.
pub const INJECTED_LABEL: &str = "weir.dev/injected";

/// The chart's MutatingWebhookConfiguration for pods.
pub const PODS_WEBHOOKS: &str = "weir-pods";
/// The chart's ValidatingWebhookConfiguration for policies and sinks.
pub const POLICIES_WEBHOOKS: &str = "weir-policies";

/// Name of the sidecar's container.
pub const CONTAINER: &str = "weir-sidecar";
/// Every volume of the sidecar begins so: `weir-token`, `weir-identity`, `weir-spool`, `weir-ca`, `weir-secret-NAME`.
pub const VOLUME_PREFIX: &str = "weir-";
/// The one volume that the application's containers mount too (read-only): the capture CA's certificate.
pub const CA_VOLUME: &str = "weir-ca";
/// Where the application's containers see it: `/var/run/weir/ca.crt`.
pub const CA_MOUNT: &str = "/var/run/weir";

/// Environment of the sidecar: `host:port` of the operator's gRPC port.
pub const ENV_OPERATOR: &str = "WEIR_OPERATOR";
/// The roots that the pod trusts at its start, PEM.
pub const ENV_TRUST_BUNDLE: &str = "WEIR_TRUST_BUNDLE";
/// JSON list of [`Captured`].
pub const ENV_CAPTURED: &str = "WEIR_CAPTURED";
/// From the downward API.
pub const ENV_POD_NAME: &str = "WEIR_POD_NAME";
/// From the downward API.
pub const ENV_POD_NAMESPACE: &str = "WEIR_POD_NAMESPACE";
/// From the downward API.
pub const ENV_POD_UID: &str = "WEIR_POD_UID";
/// From the downward API; the admin pages are bound to it.
pub const ENV_POD_IP: &str = "WEIR_POD_IP";
/// Port of the admin pages.
pub const ENV_ADMIN_PORT: &str = "WEIR_ADMIN_PORT";
/// Pod-bound token, audience `weir.dev/identity`.
pub const ENV_TOKEN_FILE: &str = "WEIR_TOKEN_FILE";
/// Folder in memory: key and certificate of the pod.
pub const ENV_IDENTITY_DIR: &str = "WEIR_IDENTITY_DIR";
/// Folder on disk: receipts, and the last good snapshot.
pub const ENV_SPOOL_DIR: &str = "WEIR_SPOOL_DIR";
/// Cap of that folder: 80 % of the volume's size limit, bytes.
pub const ENV_SPOOL_BYTES_MAX: &str = "WEIR_SPOOL_BYTES_MAX";
/// Folder of Secrets, `NAME/KEY`.
pub const ENV_SECRETS_DIR: &str = "WEIR_SECRETS_DIR";
/// Folder where the sidecar writes `ca.crt` for the application.
pub const ENV_CA_DIR: &str = "WEIR_CA_DIR";

/// Mount of the token volume.
pub const TOKEN_DIR: &str = "/var/run/weir/token";
/// The token's file within it.
pub const TOKEN_FILE: &str = "token";
/// Audience of the token.
pub const TOKEN_AUDIENCE: &str = "weir.dev/identity";
/// Mount of the memory volume.
pub const IDENTITY_DIR: &str = "/var/run/weir/identity";
/// Mount of the spool volume.
pub const SPOOL_DIR: &str = "/var/lib/weir/spool";
/// Parent of the mounts of Secrets.
pub const SECRETS_DIR: &str = "/var/run/weir/secrets";
/// Mount of the CA volume in the sidecar.
pub const CA_DIR: &str = "/var/run/weir/ca";
/// Port of the admin pages, named `weir-admin`.
pub const ADMIN_PORT: u16 = 15090;

/// One governed endpoint, captured when the pod was made.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Captured {
    /// Host as policies name it, in canonical form.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Where the sidecar listens for it: `127.0.0.2:5432`.
    pub listen: String,
    /// Every name that leads there (hostAliases); empty for capture mode Env.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
    /// Secrets of the policies for this endpoint that were mounted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<String>,
}

/// What was injected, for upgrades and for reinvocation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Injected {
    /// Version of the operator that did it.
    pub version: String,
    /// Image of the sidecar.
    pub image: String,
}
