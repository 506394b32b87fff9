//! Policies as they are enforced.

use std::collections::{BTreeMap, BTreeSet};

use sql_facts::{Catalog, Oid};

/// A host and port in canonical form (lower case, no final dot).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    /// Host name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

/// Everything that `compile` made of a directory.
#[derive(Debug, Clone, Default)]
pub struct PolicySet {}

impl PolicySet {
    /// All policies that name this endpoint, together; refuses everything where none does.
    pub fn for_database(&self, _endpoint: &Endpoint) -> DatabasePolicy {
        DatabasePolicy {}
    }
    /// The databases named.
    pub fn endpoints(&self) -> BTreeSet<Endpoint> {
        BTreeSet::new()
    }
}

/// All policies of one database, before names are looked up.
#[derive(Debug, Clone)]
pub struct DatabasePolicy {}

/// `spec.mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PolicyMode {
    /// Refuse, mask, filter.
    Enforce,
    /// Decide and record, change nothing.
    Audit,
}

/// `spec.receipts.mode`, loosest first: the strictest of several counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ReceiptMode {
    /// Records may be lost under pressure; each loss is counted and signed as a gap.
    BestEffort,
    /// On disk before a write goes out.
    Durable,
    /// Acknowledged by the collector before a write goes out.
    Strict,
}

/// The tightest of the guardrails in force.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Guardrails {
    /// UPDATE needs an effective WHERE.
    pub require_where_update: bool,
    /// DELETE needs an effective WHERE.
    pub require_where_delete: bool,
    /// Rows changed in one transaction.
    pub max_affected_rows: Option<u64>,
    /// Rows delivered by one statement.
    pub max_returned_rows: Option<u64>,
    /// Seconds from the message to its last answer.
    pub statement_timeout_seconds: Option<u32>,
}

/// Who asks, as far as policies tell subjects apart.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Subject {
    /// Kubernetes service account, or `--as serviceAccount=`.
    pub service_account: Option<String>,
    /// Person.
    pub user: Option<String>,
    /// Groups of the person.
    pub groups: BTreeSet<String>,
    /// AI agent.
    pub agent: Option<String>,
    /// Values for `:claims.x` in row filters.
    pub claims: BTreeMap<String, String>,
}

/// A policy with its names bound to a catalog: columns are (OID, attribute number), kept even when a later catalog
/// no longer has the name.
#[derive(Debug, Clone)]
pub struct BoundPolicy {
    /// Counts up whenever policy or binding changes; part of every decision's key.
    pub generation: u64,
    /// Any mask, row filter, Deny rule or `defaultAction: Deny` is in force (an Audit policy's too).
    pub protected: bool,
    /// Every policy in force is in Audit mode.
    pub audit_only: bool,
    /// Tightest guardrails of the enforcing policies.
    pub guardrails: Guardrails,
    /// Strictest receipt mode.
    pub receipt_mode: ReceiptMode,
    /// Relations with a mask or filter for anybody (wire check, catalog close-down).
    pub governed_relations: BTreeSet<Oid>,
}

/// A name that a policy uses and the database does not have. What it names is closed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unresolved {
    /// Policy.
    pub policy: String,
    /// Path of the field.
    pub field: String,
    /// The name.
    pub name: String,
    /// It resolved before (renamed or dropped): its relation stays closed by OID.
    pub was_bound: bool,
}

/// Looks the policy's names up. `previous` keeps what was bound before, so that renaming never unprotects.
pub fn bind(
    _policy: &DatabasePolicy,
    _catalog: &Catalog,
    _previous: Option<&BoundPolicy>,
) -> (BoundPolicy, Vec<Unresolved>) {
    (
        BoundPolicy {
            generation: 0,
            protected: true,
            audit_only: false,
            guardrails: Guardrails::default(),
            receipt_mode: ReceiptMode::Durable,
            governed_relations: BTreeSet::new(),
        },
        Vec::new(),
    )
}
