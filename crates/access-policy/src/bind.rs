//! `bind`: names → (OID, attribute number). Not built yet: everything is protected and refused.

use std::collections::BTreeSet;

use sql_facts::{Catalog, Oid};

use crate::policy::{DatabasePolicy, ReceiptMode};

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
    policy: &DatabasePolicy,
    _catalog: &Catalog,
    previous: Option<&BoundPolicy>,
) -> (BoundPolicy, Vec<Unresolved>) {
    let bound = BoundPolicy {
        generation: previous.map_or(1, |previous| previous.generation + 1),
        protected: true,
        audit_only: false,
        guardrails: Guardrails::default(),
        receipt_mode: policy.receipt_mode(),
        governed_relations: BTreeSet::new(),
    };
    (bound, Vec::new())
}
