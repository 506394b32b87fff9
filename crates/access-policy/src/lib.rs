//! `access-policy`: manifests → policy → what is enforced → a decision about one statement.
//!
//! ```text
//!  YAML texts ──compile──► PolicySet ──for_database──► DatabasePolicy ──bind(Catalog)──► BoundPolicy
//!                                                                                          │
//!  ParsedStatement + CatalogView + Subject ───────────────decide───────────────────────────┴─► Permit | Refusal
//! ```
//!
//! Pure. `decide` makes the [`sql_facts::Plan`], calls `govern`, reads the governed text again, and alone makes a
//! [`Permit`]. It does not know sockets, sessions or receipts.

mod decide;
mod manifest;
mod policy;

pub use decide::{
    Decision, DecisionContext, Permit, Refusal, RefusalCode, RuleRef, SendAs, StatementLimits, Verdict,
    decide, decide_function_call, decide_unreadable,
};
pub use manifest::{Manifest, Problem, compile};
pub use policy::{
    BoundPolicy, DatabasePolicy, Endpoint, Guardrails, PolicyMode, PolicySet, ReceiptMode, Subject,
    Unresolved, bind,
};
