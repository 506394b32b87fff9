//! Metrics. Labels come from closed enums, and from the policies' own names of rules; their number has a bound.
//! `docs/metrics.md` lists them all: a test compares.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use access_policy::{RefusalCode, RuleRef};
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::fatal::{EndKind, Fatal};
use crate::spool::SpoolStatus;

/// Policies come and go while a sidecar runs: beyond that many (policy, rule, verdict) all others are counted as one.
const RULES_MAX: usize = 500;
/// Labels of what is beyond.
const OTHER: &str = "other";

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

/// Labels of a decision.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RuleLabel {
    /// `namespace/name`, or `weir`.
    pub policy: String,
    /// Its rule, as receipts name it.
    pub rule: String,
    /// What was decided.
    pub verdict: Verdict,
}

/// Label of refusals.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CodeLabel {
    /// `WEIR-nnn`.
    pub code: String,
}

/// Counts something that is open; also what ends by a panic is counted off.
#[derive(Debug)]
pub struct Open(Gauge);

impl Open {
    /// One more.
    pub fn count(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// All metrics of the sidecar.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// Client connections taken.
    pub connections: Counter,
    /// Client connections open now.
    pub open: Gauge,
    /// How they ended.
    pub ends: Family<EndLabel, Counter>,
    /// Sessions that logged in.
    pub sessions: Counter,
    /// Sessions that are logged in now.
    pub open_sessions: Gauge,
    /// Statements.
    pub statements: Family<VerdictLabel, Counter>,
    /// Decisions by policy and rule.
    verdicts: Family<RuleLabel, Counter>,
    /// How many of these there are.
    rules: Arc<AtomicUsize>,
    /// Refusals of statements and of sessions.
    refusals: Family<CodeLabel, Counter>,
    /// Cells of masked columns that were shown under their mask.
    pub masked_cells: Counter,
    /// What a statement spends in Weir.
    added_seconds: Histogram,
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
    receipts_waiting: Gauge<u64, AtomicU64>,
    receipts_waiting_seconds: Gauge<f64, AtomicU64>,
    receipts_lost: Counter,
    spool_bytes: Gauge<u64, AtomicU64>,
    spool_limit_bytes: Gauge<u64, AtomicU64>,
    /// When the pod's certificate ends; 0 where there is none.
    pub certificate_end: Gauge,
    /// Connections of the pod that went around the sidecar.
    pub bypasses: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            connections: Counter::default(),
            open: Gauge::default(),
            ends: Family::default(),
            sessions: Counter::default(),
            open_sessions: Gauge::default(),
            statements: Family::default(),
            verdicts: Family::default(),
            rules: Arc::default(),
            refusals: Family::default(),
            masked_cells: Counter::default(),
            // 10 µs to 0.65 s: a statement usually costs tens of microseconds, one whose intent is synced milliseconds.
            added_seconds: Histogram::new(exponential_buckets(0.000_01, 2.0, 17)),
            cancels: Counter::default(),
            catalog_reads: Counter::default(),
            catalog_failures: Counter::default(),
            policy_generation: Gauge::default(),
            policy_load_failed: Gauge::default(),
            unresolved_names: Gauge::default(),
            receipts_waiting: Gauge::default(),
            receipts_waiting_seconds: Gauge::default(),
            receipts_lost: Counter::default(),
            spool_bytes: Gauge::default(),
            spool_limit_bytes: Gauge::default(),
            certificate_end: Gauge::default(),
            bypasses: Counter::default(),
        }
    }
}

impl Metrics {
    /// Counts a statement, by what became of it and by the rule that decided.
    pub fn decided(&self, verdict: Verdict, rule: &RuleRef) {
        self.statements.get_or_create(&VerdictLabel { verdict }).inc();
        let mut label = RuleLabel {
            policy: rule.policy.clone(),
            rule: rule.rule.clone(),
            verdict,
        };
        if let Some(counter) = self.verdicts.get(&label) {
            counter.inc();
            return;
        }
        // Two threads may count the same new one: the bound is reached a little early then.
        if self.rules.fetch_add(1, Ordering::Relaxed) >= RULES_MAX {
            label.policy = OTHER.to_owned();
            label.rule = OTHER.to_owned();
        }
        self.verdicts.get_or_create(&label).inc();
    }

    /// Counts a refusal by its code.
    pub fn refused(&self, code: RefusalCode) {
        let code = format!("WEIR-{:03}", code.0);
        self.refusals.get_or_create(&CodeLabel { code }).inc();
    }

    /// Counts the end of a session, or of a login, that has a code.
    pub fn refused_session(&self, fatal: &Fatal) {
        if let Some(code) = fatal.code() {
            self.refused(code);
        }
    }

    /// What one statement spent in Weir.
    pub fn added(&self, time: Duration) {
        self.added_seconds.observe(time.as_secs_f64());
    }

    /// Shows the spool's state.
    pub fn show_spool(&self, spool: &SpoolStatus) {
        self.receipts_waiting.set(spool.waiting);
        self.receipts_waiting_seconds
            .set(spool.oldest_waiting.map_or(0.0, |age| age.as_secs_f64()));
        let lost = spool.dropped.saturating_sub(self.receipts_lost.get());
        self.receipts_lost.inc_by(lost);
        self.spool_bytes.set(spool.bytes);
        self.spool_limit_bytes.set(spool.bytes_max);
    }

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
        weir.register(
            "open_sessions",
            "Sessions that are logged in now",
            self.open_sessions.clone(),
        );
        weir.register("statements", "Statements by verdict", self.statements.clone());
        weir.register(
            "verdicts",
            "Statements by the policy and rule that decided",
            self.verdicts.clone(),
        );
        weir.register(
            "refusals",
            "Refused or stopped statements and refused sessions, by code",
            self.refusals.clone(),
        );
        weir.register(
            "masked_cells",
            "Cells of masked columns that were answered under their mask",
            self.masked_cells.clone(),
        );
        weir.register(
            "added_seconds",
            "What a statement spent in Weir and not in the database",
            self.added_seconds.clone(),
        );
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
            "1 while the policies given do not load",
            self.policy_load_failed.clone(),
        );
        weir.register(
            "unresolved_names",
            "Names of policies that the database does not have",
            self.unresolved_names.clone(),
        );
        weir.register(
            "receipts_waiting",
            "Receipts that the collector has not confirmed",
            self.receipts_waiting.clone(),
        );
        weir.register(
            "receipts_waiting_age_seconds",
            "Age of the oldest receipt that the collector has not confirmed",
            self.receipts_waiting_seconds.clone(),
        );
        weir.register(
            "receipts_lost",
            "Receipts that could not be kept; each loss leaves a signed gap",
            self.receipts_lost.clone(),
        );
        weir.register(
            "spool_bytes",
            "Bytes of the spool's segments",
            self.spool_bytes.clone(),
        );
        weir.register(
            "spool_limit_bytes",
            "Most bytes the spool may hold",
            self.spool_limit_bytes.clone(),
        );
        weir.register(
            "certificate_not_after_seconds",
            "When the pod's certificate ends, Unix seconds; 0 without one",
            self.certificate_end.clone(),
        );
        weir.register(
            "bypass_connections",
            "Connections of the pod to a governed database that went around the sidecar",
            self.bypasses.clone(),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(metrics: &Metrics) -> String {
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        text
    }

    fn rule(policy: &str, rule: &str) -> RuleRef {
        RuleRef {
            policy: policy.to_owned(),
            rule: rule.to_owned(),
        }
    }

    #[test]
    fn all_are_documented() {
        let metrics = Metrics::default();
        metrics.decided(Verdict::Permit, &rule("shop/orders", "read"));
        metrics.refused(RefusalCode(5));
        let reason = EndKind::Client;
        metrics.ends.get_or_create(&EndLabel { reason }).inc();
        let page = page(&metrics);
        assert!(
            page.contains("weir_sidecar_refusals_total{code=\"WEIR-005\"} 1"),
            "{page}"
        );
        test_support::metrics_page::compare("weir-sidecar", &page).unwrap();
    }

    #[test]
    fn rules_of_policies_that_come_and_go_are_bounded() {
        let metrics = Metrics::default();
        for index in 0..3 * RULES_MAX {
            metrics.decided(Verdict::Refuse, &rule(&format!("shop/p{index}"), "r"));
        }
        // One of the first is still counted as itself.
        metrics.decided(Verdict::Refuse, &rule("shop/p0", "r"));
        let page = page(&metrics);
        let series: Vec<&str> = page
            .lines()
            .filter(|line| line.starts_with("weir_sidecar_verdicts_total"))
            .collect();
        assert_eq!(series.len(), RULES_MAX + 1);
        let count = |policy: &str| {
            let start = format!("weir_sidecar_verdicts_total{{policy=\"{policy}\"");
            series
                .iter()
                .find(|line| line.starts_with(&start))
                .map(|line| line.rsplit(' ').next().unwrap())
        };
        assert_eq!(count("shop/p0"), Some("2"));
        assert_eq!(count("other"), Some("1000"));
        assert!(page.contains("weir_sidecar_statements_total{verdict=\"Refuse\"} 1501"));
    }

    #[test]
    fn a_refused_session_counts_by_the_code_in_its_message() {
        let fatal = |message: &str| Fatal::new(EndKind::Refused, "28000", message);
        assert_eq!(fatal("WEIR-092: no policy").code(), Some(RefusalCode(92)));
        assert_eq!(fatal("no such").code(), None);
        assert_eq!(fatal("WEIR-x: no such").code(), None);
    }
}
