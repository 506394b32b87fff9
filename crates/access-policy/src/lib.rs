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

mod bind;
mod decide;
mod judge;
mod manifest;
pub mod names;
pub mod policy;
mod predicate;
mod recheck;
mod refusals;
mod review;
mod secret;
mod yaml;

#[cfg(test)]
mod tests;

pub use bind::{BoundPolicy, Guardrails, Unresolved, bind};
pub use decide::{
    Decision, DecisionContext, Permit, Refusal, RefusalCode, RuleRef, SendAs, StatementLimits, Verdict,
    decide, decide_function_call, decide_read, decide_unreadable,
};
pub use manifest::{Manifest, Problem, check_files, compile};
pub use policy::{DatabasePolicy, Endpoint, PolicyMode, PolicySet, ReceiptMode, Subject};
pub use predicate::Predicate;
pub use review::{FieldProblem, Review, review, review_sink};
pub use secret::{NoSecrets, SecretBytes, SecretKey, SecretSource};

/// `unknown field "mask"; did you mean "masks"?`: the words for a field that is not there, for whoever reads other
/// manifests than policies.
#[must_use]
pub fn unknown_field<'k>(name: &str, known: impl Iterator<Item = &'k str>) -> String {
    yaml::unknown("field", name, known)
}
