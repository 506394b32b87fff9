//! `/policies`: refuses a policy that would not count, and says what may surprise.

use access_policy::{FieldProblem, review};
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
        let others = self.view.manifests_of(request.namespace());
        let review = review(object, &others.iter().collect::<Vec<_>>());
        if review.problems.is_empty() {
            count(Outcome::Allowed);
            return request.allowed(&review.warnings);
        }
        count(Outcome::Refused);
        let what = named("policy", object);
        request.refused(&refused(&what, &review.problems), &review.warnings)
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

/// Server-side apply of many files tells neither file nor object: the refusal itself has to.
pub(crate) fn named(what: &str, object: &Value) -> String {
    match object.pointer("/metadata/name").and_then(Value::as_str) {
        Some(name) => format!("{what} {name}"),
        None => what.to_owned(),
    }
}

/// One refusal of all problems.
pub(crate) fn refused(what: &str, problems: &[FieldProblem]) -> Refused {
    let sentences: Vec<String> = problems.iter().map(ToString::to_string).collect();
    let causes = problems.iter().map(|problem| Cause {
        reason: "FieldValueInvalid".to_owned(),
        field: problem.field.clone(),
        message: problem.sentence(),
    });
    Refused {
        code: 422,
        reason: "Invalid".to_owned(),
        message: format!("the {what} is not accepted: {}", sentences.join("; ")),
        causes: causes.collect(),
    }
}
