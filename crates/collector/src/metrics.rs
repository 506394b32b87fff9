//! The collector's metrics.

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Why a request was not taken.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(crate) enum Reason {
    BadGroup,
    Fork,
    SeenMore,
    Log,
    Index,
    Busy,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ReasonLabel {
    pub(crate) reason: Reason,
}

#[derive(Debug, Default, Clone)]
pub(crate) struct Metrics {
    pub(crate) groups: Counter,
    pub(crate) events: Counter,
    pub(crate) refused: Family<ReasonLabel, Counter>,
    pub(crate) log_size: Gauge,
    pub(crate) index_failed: Gauge,
}

impl Metrics {
    pub(crate) fn register(&self) -> Registry {
        let mut registry = Registry::with_prefix("weir_collector");
        registry.register("groups", "Signed groups acknowledged", self.groups.clone());
        registry.register("events", "Events acknowledged", self.events.clone());
        registry.register("refused", "Requests not taken", self.refused.clone());
        registry.register("log_entries", "Entries of the log", self.log_size.clone());
        registry.register(
            "index_failed",
            "1 while the index cannot follow the log",
            self.index_failed.clone(),
        );
        registry
    }
}
