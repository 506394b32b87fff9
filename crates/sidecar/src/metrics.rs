//! Metrics. Labels come from closed enums only.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::fatal::EndKind;

/// How a connection ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct EndLabel {
    /// Why.
    pub reason: EndKind,
}

/// What became of a statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Verdict {
    /// Sent.
    Permit,
    /// Sent, though it would have been refused (Audit).
    Audit,
    /// Not sent.
    Refuse,
}

/// Label of statements.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct VerdictLabel {
    /// What became of it.
    pub verdict: Verdict,
}

/// All metrics of the sidecar.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    /// Client connections taken.
    pub connections: Counter,
    /// Client connections open now.
    pub open: Gauge,
    /// How they ended.
    pub ends: Family<EndLabel, Counter>,
    /// Sessions that logged in.
    pub sessions: Counter,
    /// Statements.
    pub statements: Family<VerdictLabel, Counter>,
    /// Cancel requests of clients, and of our own.
    pub cancels: Counter,
    /// Times the catalog was read.
    pub catalog_reads: Counter,
    /// Times it could not be read.
    pub catalog_failures: Counter,
    /// Generation of the policies in force.
    pub policy_generation: Gauge<u64, AtomicU64>,
    /// 1 while the last attempt to load policies failed.
    pub policy_load_failed: Gauge<u64, AtomicU64>,
    /// Names of policies that no database has.
    pub unresolved_names: Gauge<u64, AtomicU64>,
}

impl Metrics {
    /// Registers all of them.
    pub fn register(&self, registry: &mut Registry) {
        let weir = registry.sub_registry_with_prefix("weir_sidecar");
        weir.register(
            "connections",
            "Client connections taken",
            self.connections.clone(),
        );
        weir.register(
            "open_connections",
            "Client connections open now",
            self.open.clone(),
        );
        weir.register(
            "connection_ends",
            "How client connections ended",
            self.ends.clone(),
        );
        weir.register("sessions", "Sessions that logged in", self.sessions.clone());
        weir.register("statements", "Statements by verdict", self.statements.clone());
        weir.register(
            "cancels",
            "Cancel requests sent to the database",
            self.cancels.clone(),
        );
        weir.register(
            "catalog_reads",
            "Times a catalog was read",
            self.catalog_reads.clone(),
        );
        weir.register(
            "catalog_failures",
            "Times a catalog could not be read",
            self.catalog_failures.clone(),
        );
        weir.register(
            "policy_generation",
            "Generation of the policies in force",
            self.policy_generation.clone(),
        );
        weir.register(
            "policy_load_failed",
            "1 while the policies on disk do not load",
            self.policy_load_failed.clone(),
        );
        weir.register(
            "unresolved_names",
            "Names of policies that the database does not have",
            self.unresolved_names.clone(),
        );
    }
}
