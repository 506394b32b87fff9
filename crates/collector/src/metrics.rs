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
    /// The pod is gone.
    Gone,
    /// The chain is another pod's.
    OtherPod,
    /// More than one pod may send.
    TooMuch,
}

/// Kinds of sinks.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(crate) enum SinkKind {
    OpenLineage,
    Stdout,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct KindLabel {
    pub(crate) kind: SinkKind,
}

/// `namespace/name`; their number is bounded.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct SinkLabel {
    pub(crate) sink: String,
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
    pub(crate) operator_connected: Gauge,
    pub(crate) certificate_end: Gauge,
    pub(crate) chains_lost: Counter,
    pub(crate) sink_delivered: Family<KindLabel, Counter>,
    pub(crate) sink_lag: Family<SinkLabel, Gauge>,
}

impl Metrics {
    pub(crate) fn register(&self) -> Registry {
        // From 0 on: the first failure is then an increase, which alerts look for.
        for reason in [Reason::Log, Reason::Index] {
            let _ = self.refused.get_or_create(&ReasonLabel { reason });
        }
        let mut whole = Registry::default();
        let sinks = whole.sub_registry_with_prefix("weir_sink");
        sinks.register(
            "delivered",
            "Events that sinks acknowledged",
            self.sink_delivered.clone(),
        );
        sinks.register(
            "lag",
            "Entries of the log that the sink has not been asked to take",
            self.sink_lag.clone(),
        );
        let registry = whole.sub_registry_with_prefix("weir_collector");
        registry.register(
            "operator_connected",
            "1 while the operator is connected",
            self.operator_connected.clone(),
        );
        registry.register(
            "certificate_not_after_seconds",
            "When the collector's certificate ends, Unix seconds; 0 without one",
            self.certificate_end.clone(),
        );
        registry.register(
            "chains_lost",
            "Chains of gone pods that had no end",
            self.chains_lost.clone(),
        );
        registry.register("groups", "Signed groups acknowledged", self.groups.clone());
        registry.register("events", "Events acknowledged", self.events.clone());
        registry.register("refused", "Requests not taken", self.refused.clone());
        registry.register("log_entries", "Entries of the log", self.log_size.clone());
        registry.register(
            "index_failed",
            "1 while the index cannot follow the log",
            self.index_failed.clone(),
        );
        whole
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_documented() {
        let metrics = Metrics::default();
        let kind = SinkKind::Stdout;
        metrics.sink_delivered.get_or_create(&KindLabel { kind }).inc();
        let sink = "shop/audit".to_owned();
        metrics.sink_lag.get_or_create(&SinkLabel { sink }).set(1);
        let reason = Reason::Busy;
        metrics.refused.get_or_create(&ReasonLabel { reason }).inc();
        let mut page = String::new();
        prometheus_client::encoding::text::encode(&mut page, &metrics.register()).unwrap();
        test_support::metrics_page::compare("weir-collector", &page).unwrap();
    }
}
