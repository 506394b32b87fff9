//! Admission: what the API server asks before it stores a pod, a policy or a sink.
//!
//! ```text
//!  API server ──HTTPS──► server ──► /pods      pods: pod-injection
//!                                   /policies  policies: access-policy
//!                                   /sinks     sinks
//! ```
//!
//! Reviews are read and answered as raw JSON: what a newer API server adds is not lost. Nothing is written anywhere, so
//! a dry run is a run. Bad input gets a sentence and never a 500.

pub(crate) mod metrics;
mod pods;
mod policies;
mod review;
mod server;
mod sinks;

use std::sync::Arc;

use crd_types::{DatabaseAccessPolicy, LabelSelector};

pub use metrics::Metrics;
pub use server::{router, serve};

/// What admission has to know of the cluster.
pub trait View: Send + Sync {
    /// Whether everything has been read once. Until then nothing can be decided.
    fn ready(&self) -> bool;
    /// A label of a namespace.
    fn namespace_label(&self, namespace: &str, label: &str) -> Option<String>;
    /// All policies of a namespace, those that are not accepted too.
    fn policies_of(&self, namespace: &str) -> Vec<Arc<DatabaseAccessPolicy>>;
    /// The same as they were written, as JSON.
    fn manifests_of(&self, namespace: &str) -> Vec<serde_json::Value>;
    /// Names of running pods with a sidecar that a selector selects.
    fn injected_pods(&self, namespace: &str, selector: &LabelSelector) -> Vec<String>;
    /// The roots that pods trust, PEM.
    fn trust_bundle(&self) -> String;
}

/// Answers reviews.
#[derive(Clone)]
pub struct Webhook {
    /// The cluster, as it is known here.
    pub view: Arc<dyn View>,
    /// What is injected.
    pub settings: Arc<pod_injection::Settings>,
    /// Weir's own namespace: sinks there may speak of other namespaces.
    pub namespace: Arc<str>,
    /// What is counted.
    pub metrics: Metrics,
}

impl std::fmt::Debug for Webhook {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Webhook").finish_non_exhaustive()
    }
}
