//! `pod-injection`: a pod and the policies that select it → the patch that puts the sidecar in front, or a refusal
//! with its reason. Front verb: [`inject`].
//!
//! ```text
//!  pod (raw JSON) ─┐
//!  policies        ├─inject──► Untouched | Patch(operations, warnings) | Refused(reason, message, mend)
//!  Settings        ┘
//! ```
//!
//! Pure. It works on raw JSON, because a typed pod forgets fields that are newer than it. What the sidecar finds in its
//! container is said in [`contract`], which the sidecar's own options repeat.

mod capture;
mod checks;
pub mod contract;
mod edit;
mod environment;
mod quantity;
mod refusal;
mod selector;
mod settings;
mod sidecar;

use std::sync::Arc;

use access_policy::Endpoint;
use crd_types::DatabaseAccessPolicy;
use crd_types::policy::{CaptureMode, ClientTlsMode};
use serde_json::{Value, json};

use crate::capture::Plan;
use crate::edit::Editor;
pub use crate::refusal::{Reason, Refusal};
pub use crate::selector::selects;
pub use crate::settings::{Resources, Settings};

/// What a namespace says by its label `weir.dev/inject`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NamespaceOptIn {
    /// No label: each pod decides.
    Absent,
    /// Every pod is opted in that does not say `"false"`.
    Enabled,
    /// Every pod is opted in.
    Required,
    /// A value that means nothing. Who wrote it wanted something, so it is refused and not passed over.
    Unknown(String),
}

impl NamespaceOptIn {
    /// Reads the label's value.
    #[must_use]
    pub fn from_label(label: Option<&str>) -> Self {
        match label {
            None => Self::Absent,
            Some("enabled") => Self::Enabled,
            Some("required") => Self::Required,
            Some(other) => Self::Unknown(other.to_owned()),
        }
    }
}

/// All that decides beside the pod itself.
#[derive(Debug, Clone)]
pub struct Context<'a> {
    /// The namespace the pod is made in.
    pub namespace: &'a str,
    /// What that namespace says.
    pub opt_in: NamespaceOptIn,
    /// All policies of that namespace.
    pub policies: &'a [Arc<DatabaseAccessPolicy>],
    /// What the operator's owner decided.
    pub settings: &'a Settings,
    /// The roots that a pod trusts at its start, PEM.
    pub trust_bundle: &'a str,
    /// Version of the operator.
    pub version: &'a str,
}

/// What becomes of a pod.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// It did not opt in.
    Untouched,
    /// It gets a sidecar.
    Patch {
        /// JSON patch (RFC 6902). Empty where the pod is as it should be already.
        operations: Vec<Value>,
        /// What its author should know.
        warnings: Vec<String>,
    },
    /// It cannot be injected: every reason there is, at least one.
    Refused(Vec<Refusal>),
}

/// Decides about one pod that is about to be made.
#[must_use]
pub fn inject(pod: &Value, context: &Context<'_>) -> Outcome {
    match opts_in(pod, &context.opt_in) {
        Ok(true) => {}
        Ok(false) => return Outcome::Untouched,
        Err(refusal) => return Outcome::Refused(vec![refusal]),
    }
    if let Err(refusal) = checks::shape(pod) {
        return Outcome::Refused(vec![refusal]);
    }
    let selected: Vec<&DatabaseAccessPolicy> = context
        .policies
        .iter()
        .map(AsRef::as_ref)
        .filter(|policy| selects(&policy.spec.pod_selector, pod.pointer("/metadata/labels")))
        .collect();
    let mut refusals = Vec::new();
    if selected.is_empty() {
        refusals.push(no_policy(pod, context));
    }
    let plan = Plan::make(&selected, context, &mut refusals);
    let mut warnings = Vec::new();
    checks::pod(pod, &plan, context.settings, &mut refusals, &mut warnings);
    let mut editor = Editor::new(pod);
    environment::rewrite(&mut editor, &selected, &plan, context.settings, &mut refusals);
    if !refusals.is_empty() {
        refusals.dedup();
        return Outcome::Refused(refusals);
    }
    sidecar::put(&mut editor, &plan, context);
    Outcome::Patch {
        operations: editor.into_operations(),
        warnings,
    }
}

/// The endpoints a policy names, each once, in the order it names them; what is no host is left out (the policy is not
/// accepted then).
#[must_use]
pub fn endpoints(policy: &DatabaseAccessPolicy) -> Vec<Endpoint> {
    let database = &policy.spec.database;
    let others = database
        .other_endpoints
        .iter()
        .map(|other| (&other.host, other.port));
    let mut found: Vec<Endpoint> = Vec::new();
    for (host, port) in std::iter::once((&database.host, database.port)).chain(others) {
        if let Ok(endpoint) = Endpoint::new(host, port)
            && !found.contains(&endpoint)
        {
            found.push(endpoint);
        }
    }
    found
}

/// The Secrets a policy names, each once.
#[must_use]
pub fn secrets(policy: &DatabaseAccessPolicy) -> Vec<String> {
    let database = &policy.spec.database;
    let mut names: Vec<String> = database
        .credentials
        .iter()
        .map(|credentials| credentials.secret_ref.name.clone())
        .chain(database.tls.ca_secret_ref.iter().map(|key| key.name.clone()))
        .chain(
            database
                .client_tls
                .certificate_secret_ref
                .iter()
                .map(|it| it.name.clone()),
        )
        .chain(
            policy
                .spec
                .masks
                .iter()
                .filter_map(|rule| rule.mask.key_secret_ref.as_ref())
                .map(|key| key.name.clone()),
        )
        .collect();
    names.sort();
    names.dedup();
    names
}

fn opts_in(pod: &Value, namespace: &NamespaceOptIn) -> Result<bool, Refusal> {
    if let NamespaceOptIn::Unknown(value) = namespace {
        return Err(Refusal::new(
            Reason::WrongNamespaceLabel,
            format!("the namespace's label {} is `{value}`", contract::INJECT),
            "label the namespace `enabled` or `required`, or remove the label",
        ));
    }
    let annotation = pod
        .pointer("/metadata/annotations")
        .and_then(|annotations| annotations.get(contract::INJECT));
    match (annotation.map(Value::as_str), namespace) {
        (None, NamespaceOptIn::Absent) => Ok(false),
        (None, _) | (Some(Some("true")), _) => Ok(true),
        (Some(Some("false")), NamespaceOptIn::Required) => Err(Refusal::new(
            Reason::InjectionRequired,
            format!(
                "the annotation {} is \"false\", and the namespace requires injection",
                contract::INJECT
            ),
            "remove the annotation, or make the pod in another namespace",
        )),
        (Some(Some("false")), _) => Ok(false),
        (Some(value), _) => Err(Refusal::new(
            Reason::WrongAnnotation,
            format!(
                "the annotation {} is `{}`",
                contract::INJECT,
                value.unwrap_or("not a string")
            ),
            "write \"true\" or \"false\"",
        )),
    }
}

fn no_policy(pod: &Value, context: &Context<'_>) -> Refusal {
    let labels = pod
        .pointer("/metadata/labels")
        .and_then(Value::as_object)
        .map(|labels| {
            let pairs: Vec<String> = labels
                .iter()
                .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
                .collect();
            pairs.join(",")
        })
        .filter(|labels| !labels.is_empty())
        .unwrap_or_else(|| "none".to_owned());
    let names: Vec<&str> = context
        .policies
        .iter()
        .filter_map(|policy| policy.metadata.name.as_deref())
        .take(10)
        .collect();
    let there = if names.is_empty() {
        "the namespace has none".to_owned()
    } else {
        format!("the namespace has {}", names.join(", "))
    };
    Refusal::new(
        Reason::NoPolicy,
        format!("no DatabaseAccessPolicy selects this pod (labels: {labels}; {there})"),
        format!(
            "apply a policy whose podSelector matches, or annotate the pod {}: \"false\"",
            contract::INJECT
        ),
    )
}

/// Whether a policy wants the capture CA shown to the application.
fn needs_ca(policy: &DatabaseAccessPolicy) -> bool {
    let tls = &policy.spec.database.client_tls;
    match tls.mode {
        ClientTlsMode::Plain => false,
        ClientTlsMode::Serve => tls.certificate_secret_ref.is_none(),
    }
}

/// Whether a policy captures by name.
fn aliases(policy: &DatabaseAccessPolicy) -> bool {
    match policy.spec.database.capture.mode {
        CaptureMode::Alias => true,
        CaptureMode::Env => false,
    }
}

/// What the pod's own annotation says was captured: an earlier pass wrote it, or somebody's hand, so it decides nothing
/// but which of the pod's entries are ours to replace.
fn captured_before(pod: &Value) -> Vec<contract::Captured> {
    pod.pointer("/metadata/annotations")
        .and_then(|annotations| annotations.get(contract::CAPTURED))
        .and_then(Value::as_str)
        .and_then(|text| serde_json::from_str(text).ok())
        .unwrap_or_default()
}

/// Our entries of `spec.hostAliases`, one a host.
fn host_aliases(captured: &[contract::Captured]) -> Vec<Value> {
    let mut entries: Vec<Value> = Vec::new();
    for endpoint in captured {
        let Some((address, _)) = endpoint.listen.rsplit_once(':') else {
            continue;
        };
        let entry = json!({"ip": address, "hostnames": endpoint.names});
        if !endpoint.names.is_empty() && !entries.contains(&entry) {
            entries.push(entry);
        }
    }
    entries
}
