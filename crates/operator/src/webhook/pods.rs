//! `/pods`: puts the sidecar in.

use std::time::Duration;

use pod_injection::{Context, NamespaceOptIn, Reason, contract, inject};
use serde_json::{Value, json};

use super::Webhook;
use super::metrics::{Outcome, Reviewed};
use super::review::{Cause, Refused, Request};

/// A policy and its first pod are often applied in one breath, and a watch is a moment behind. The API server waits for
/// five seconds.
const POLICY_WAIT: Duration = Duration::from_secs(1);
const POLICY_LOOK: Duration = Duration::from_millis(50);

impl Webhook {
    /// Answers a review of a pod. Waits a moment where only the policy is missing.
    pub(crate) async fn pod(&self, request: &Request<'_>) -> Value {
        let deadline = tokio::time::Instant::now() + POLICY_WAIT;
        loop {
            let outcome = self.judge(request);
            let early = match &outcome {
                Some(pod_injection::Outcome::Refused(refusals)) => {
                    refusals.iter().all(|refusal| refusal.reason == Reason::NoPolicy)
                }
                None => true,
                Some(pod_injection::Outcome::Untouched | pod_injection::Outcome::Patch { .. }) => false,
            };
            if !early || tokio::time::Instant::now() >= deadline {
                return self.answer(request, outcome);
            }
            tokio::time::sleep(POLICY_LOOK).await;
        }
    }

    /// None until the cluster has been read.
    fn judge(&self, request: &Request<'_>) -> Option<pod_injection::Outcome> {
        if !self.view.ready() {
            return None;
        }
        let namespace = request.namespace();
        let label = self.view.namespace_label(namespace, contract::INJECT);
        let context = Context {
            namespace,
            opt_in: NamespaceOptIn::from_label(label.as_deref()),
            policies: &self.view.policies_of(namespace),
            settings: &self.settings,
            trust_bundle: &self.view.trust_bundle(),
            version: env!("CARGO_PKG_VERSION"),
        };
        Some(inject(request.object().unwrap_or(&Value::Null), &context))
    }

    fn answer(&self, request: &Request<'_>, outcome: Option<pod_injection::Outcome>) -> Value {
        let count = |outcome| self.metrics.review(Reviewed::Pod, outcome);
        match outcome {
            None => {
                count(Outcome::NotReady);
                request.refused(&Refused::not_ready(), &[])
            }
            Some(pod_injection::Outcome::Untouched) => {
                count(Outcome::Untouched);
                request.allowed(&[])
            }
            Some(pod_injection::Outcome::Patch { operations, warnings }) => {
                count(Outcome::Injected);
                request.patched(&operations, &warnings)
            }
            Some(pod_injection::Outcome::Refused(refusals)) => {
                count(Outcome::Refused);
                for refusal in &refusals {
                    self.metrics.refused(refusal.reason);
                }
                let sentences: Vec<String> = refusals
                    .iter()
                    .map(|refusal| format!("{}; {}", refusal.message, refusal.mend))
                    .collect();
                let causes = refusals
                    .iter()
                    .map(|refusal| Cause {
                        reason: refusal.reason.to_string(),
                        field: String::new(),
                        message: format!("{}; {}", refusal.message, refusal.mend),
                    })
                    .collect();
                let reason = refusals.first().map(|refusal| refusal.reason.to_string());
                tracing::info!(
                    namespace = request.namespace(),
                    reasons = %json!(refusals.iter().map(|it| it.reason.to_string()).collect::<Vec<_>>()),
                    "a pod was refused"
                );
                let refused = Refused {
                    code: 403,
                    reason: reason.unwrap_or_default(),
                    message: sentences.join(". "),
                    causes,
                };
                request.refused(&refused, &[])
            }
        }
    }
}
