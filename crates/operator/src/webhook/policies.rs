//! `/policies`: refuses a policy that would not count, and says what may surprise.

use access_policy::{Manifest, compile};
use crd_types::DatabaseAccessPolicy;
use serde_json::Value;

use super::Webhook;
use super::metrics::{Outcome, Reviewed};
use super::review::{Cause, Refused, Request};

/// How many pods are named in a warning.
const PODS_NAMED_MAX: usize = 5;

impl Webhook {
    /// Answers a review of a policy.
    pub(crate) fn policy(&self, request: &Request<'_>) -> Value {
        let count = |outcome| self.metrics.review(Reviewed::Policy, outcome);
        if request.operation() == "DELETE" {
            count(Outcome::Allowed);
            return request.allowed(&self.deletion(request));
        }
        let Some(object) = request.object() else {
            count(Outcome::Allowed);
            return request.allowed(&[]);
        };
        if unchanged(request) {
            count(Outcome::Allowed);
            return request.allowed(&[]);
        }
        let (problems, warnings) = review(object);
        if problems.is_empty() {
            count(Outcome::Allowed);
            return request.allowed(&warnings);
        }
        count(Outcome::Refused);
        request.refused(&refused("policy", problems), &warnings)
    }

    /// Nothing is refused on deletion: that would block a namespace from ending. But pods may lose their only policy.
    fn deletion(&self, request: &Request<'_>) -> Vec<String> {
        let policy = request
            .old_object()
            .and_then(|old| serde_json::from_value::<DatabaseAccessPolicy>(old.clone()).ok());
        let Some(policy) = policy else {
            return Vec::new();
        };
        let pods = self
            .view
            .injected_pods(request.namespace(), &policy.spec.pod_selector);
        if pods.is_empty() {
            return Vec::new();
        }
        let named: Vec<&str> = pods.iter().take(PODS_NAMED_MAX).map(String::as_str).collect();
        let more = pods.len().saturating_sub(PODS_NAMED_MAX);
        let more = if more > 0 {
            format!(" and {more} more")
        } else {
            String::new()
        };
        vec![format!(
            "{} running pods use this policy: {}{more}. Their connections to {} are refused where no other policy governs it",
            pods.len(),
            named.join(", "),
            policy.spec.database.host
        )]
    }
}

/// Whether only metadata changes: labels, finalizers. What is stored already can always be let go.
pub(crate) fn unchanged(request: &Request<'_>) -> bool {
    let spec = |object: Option<&Value>| object.and_then(|object| object.get("spec")).cloned();
    request.operation() == "UPDATE" && spec(request.object()) == spec(request.old_object())
}

/// One refusal of all problems.
pub(crate) fn refused(what: &str, problems: Vec<Cause>) -> Refused {
    let sentences: Vec<String> = problems
        .iter()
        .map(|problem| format!("{}: {}", problem.field, problem.message))
        .collect();
    Refused {
        code: 422,
        reason: "Invalid".to_owned(),
        message: format!("the {what} is not accepted: {}", sentences.join("; ")),
        causes: problems,
    }
}

/// Without what the API server keeps of its own: managed fields, owners, finalizers, status. It knows them, a policy
/// file does not.
fn as_written(object: &Value) -> Value {
    let mut written = object.clone();
    if let Some(fields) = written.as_object_mut() {
        fields.remove("status");
        if let Some(metadata) = fields.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.retain(|key, _| matches!(key.as_str(), "name" | "namespace"));
        }
    }
    written
}

fn review(object: &Value) -> (Vec<Cause>, Vec<String>) {
    let name = object
        .pointer("/metadata/name")
        .and_then(Value::as_str)
        .unwrap_or("policy");
    let manifest = Manifest {
        name: name.to_owned(),
        text: as_written(object).to_string(),
    };
    let problems = match compile(&[manifest]) {
        Ok(_) => Vec::new(),
        Err(problems) => problems
            .into_iter()
            .map(|problem| Cause {
                reason: "FieldValueInvalid".to_owned(),
                field: problem.field,
                message: problem.message,
            })
            .collect(),
    };
    (problems, Vec::new())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_the_api_server_adds_is_not_the_authors_mistake() {
        let mut object = json!({
            "apiVersion": "weir.dev/v1alpha1", "kind": "DatabaseAccessPolicy",
            "metadata": {
                "name": "orders", "namespace": "shop", "uid": "1", "resourceVersion": "1", "generation": 1,
                "creationTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["a/b"],
                "managedFields": [{"manager": "kubectl", "operation": "Apply", "fieldsV1": {"f:spec": {}}}],
                "ownerReferences": [{"apiVersion": "v1", "kind": "ConfigMap", "name": "x", "uid": "2"}],
            },
            "spec": {"podSelector": {}, "database": {"engine": "PostgreSQL", "host": "db"}},
            "status": {"matchedPods": 1},
        });
        assert_eq!(
            review(&object).0.len(),
            0,
            "{:?}",
            review(&object).0.first().map(|cause| &cause.message)
        );
        // What is the author's still is.
        object["specs"] = json!({});
        assert_eq!(review(&object).0.len(), 1);
    }
}
