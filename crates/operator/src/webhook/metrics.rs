//! What admission counts.

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

/// How a review ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(missing_docs)] // reason: they say themselves
pub(crate) enum Outcome {
    Allowed,
    Injected,
    Untouched,
    Refused,
    NotReady,
}

/// What was reviewed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(missing_docs)] // reason: they say themselves
pub(crate) enum Reviewed {
    Pod,
    Policy,
    Sink,
}

/// Labels of a review.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct OfReview {
    /// What was reviewed.
    pub(crate) kind: Reviewed,
    /// How it ended.
    pub(crate) outcome: Outcome,
}

/// Label `reason`, one of [`pod_injection::Reason`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct OfReason {
    /// Which.
    pub(crate) reason: String,
}

/// Counters of admission.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    reviews: Family<OfReview, Counter>,
    refusals: Family<OfReason, Counter>,
}

impl Metrics {
    /// Adds the counters.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("weir_operator");
        for reason in pod_injection::Reason::ALL {
            self.reason(reason);
        }
        registry.register(
            "admission_reviews",
            "Admission reviews answered",
            self.reviews.clone(),
        );
        registry.register(
            "admission_pod_refusals",
            "Reasons for which pods were refused",
            self.refusals.clone(),
        );
    }

    pub(crate) fn review(&self, kind: Reviewed, outcome: Outcome) {
        self.reviews.get_or_create(&OfReview { kind, outcome }).inc();
    }

    pub(crate) fn refused(&self, reason: pod_injection::Reason) {
        self.reason(reason).inc();
    }

    fn reason(&self, reason: pod_injection::Reason) -> Counter {
        let reason = reason.to_string();
        self.refusals.get_or_create(&OfReason { reason }).clone()
    }
}
