//! `crd-types`: the custom resources as Kubernetes sees them. Front verb: [`crds_yaml`], which prints `crds/`.
//!
//! ```text
//!  DatabaseAccessPolicy (types here) ──crds_yaml──► crds/databaseaccesspolicies.weir.dev.yaml
//!              └────────── access-policy::compile reads manifests against the same schema
//! ```
//!
//! The schema offers only fields that work. It knows shapes and the bounds Kubernetes can check; what a field means is
//! `access-policy`'s business. No client, no I/O.

mod older;
pub mod policy;
mod schema;
pub mod sink;
pub mod words;

pub use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector, Time};
pub use older::lacks;
pub use policy::{DatabaseAccessPolicy, DatabaseAccessPolicySpec, DatabaseAccessPolicyStatus};
pub use schema::{crds_yaml, sink_schema, spec_schema};
pub use sink::{LineageSink, LineageSinkSpec};

/// The API group of every resource.
pub const GROUP: &str = "weir.dev";
/// The served version.
pub const VERSION: &str = "v1alpha1";
