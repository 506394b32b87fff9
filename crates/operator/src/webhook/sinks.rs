//! `/sinks`: refuses what the schema cannot: fields it does not know, addresses of the collector's own, and what only
//! Weir's own namespace may say.

use access_policy::review_sink;
use serde_json::Value;

use super::Webhook;
use super::metrics::{Outcome, Reviewed};
use super::policies::{named, refused, unchanged};
use super::review::Request;

impl Webhook {
    /// Answers a review of a sink.
    pub(crate) fn sink(&self, request: &Request<'_>) -> Value {
        let count = |outcome| self.metrics.review(Reviewed::Sink, outcome);
        let (Some(object), false) = (request.object(), unchanged(request)) else {
            count(Outcome::Allowed);
            return request.allowed(&[]);
        };
        let review = review_sink(object, &self.namespace);
        if review.problems.is_empty() {
            count(Outcome::Allowed);
            return request.allowed(&review.warnings);
        }
        count(Outcome::Refused);
        let what = named("sink", object);
        request.refused(&refused(&what, &review.problems), &review.warnings)
    }
}
