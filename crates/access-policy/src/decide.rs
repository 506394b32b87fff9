//! `decide`: one statement against one bound policy. The only place that makes a [`Permit`].

use std::sync::Arc;

use sql_facts::{CatalogView, Governed, ParsedStatement, StatementFacts, Unreadable};

use crate::bind::BoundPolicy;
use crate::policy::Subject;

/// The policy and rule that decided.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RuleRef {
    /// `namespace/name` or `name` of the policy; `weir` for what holds without a policy.
    pub policy: String,
    /// Rule name (`access[].name`, mask name, `guardrails.requireWhere`, `defaultAction`).
    pub rule: String,
}

/// Codes of refusals, `WEIR-nnn`, each with a page under `docs/refusals/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RefusalCode(pub u16);

/// Why a statement does not run. `Display` is what the client reads.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: refused by rule {rule}: {reason}", code = self.code_text(), rule = self.rule.rule)]
pub struct Refusal {
    /// Number of the code.
    pub code: RefusalCode,
    /// SQLSTATE: 42501 for policy, 54000/54001 for limits, 42601 for syntax …
    pub sqlstate: &'static str,
    /// Who decided.
    pub rule: RuleRef,
    /// One sentence; never a value from the database.
    pub reason: String,
    /// The mend.
    pub hint: String,
}

impl Refusal {
    /// `WEIR-042`.
    pub fn code_text(&self) -> String {
        format!("WEIR-{:03}", self.code.0)
    }
}

/// What goes to the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SendAs {
    /// The client's own text.
    AsWritten,
    /// The governed text.
    Governed(Governed),
}

/// Limits that the session enforces while the statement runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StatementLimits {
    /// Rows delivered, with the rule that says so.
    pub returned_rows_max: Option<(u64, RuleRef)>,
    /// Rows changed in the transaction.
    pub affected_rows_max: Option<(u64, RuleRef)>,
    /// Seconds.
    pub timeout_seconds: Option<(u32, RuleRef)>,
}

/// How the decision is recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Allowed by this rule.
    Permit(RuleRef),
    /// Audit mode: it would have been refused.
    WouldRefuse(Refusal),
}

/// Proof that a statement was judged. The database side accepts nothing else. Only `decide` makes one.
#[derive(Debug)]
pub struct Permit {
    send: SendAs,
    /// `None`: unreadable text that an Audit policy, or a database without protection, lets pass.
    facts: Option<Arc<StatementFacts>>,
    verdict: Verdict,
    limits: StatementLimits,
}

impl Permit {
    /// What to send.
    pub fn send(&self) -> &SendAs {
        &self.send
    }
    /// What was read.
    pub fn facts(&self) -> Option<&Arc<StatementFacts>> {
        self.facts.as_ref()
    }
    /// For the receipt.
    pub fn verdict(&self) -> &Verdict {
        &self.verdict
    }
    /// For the session.
    pub fn limits(&self) -> &StatementLimits {
        &self.limits
    }
}

/// A decision.
#[derive(Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "made once a statement and taken apart at once"
)]
pub enum Decision {
    /// Send it.
    Permit(Permit),
    /// Do not.
    Refuse(Refusal),
}

/// What a decision rests on besides the text.
#[derive(Debug, Clone, Copy)]
pub struct DecisionContext<'a> {
    /// Policy.
    pub policy: &'a BoundPolicy,
    /// Who.
    pub subject: &'a Subject,
    /// Catalog, overlay and search path as the statement will meet them.
    pub view: CatalogView<'a>,
}

/// Decides one statement. `unreadable` texts never get here when the whole text does not parse: see
/// [`decide_unparsed`](crate::decide) for those.
pub fn decide(_statement: &ParsedStatement, _context: DecisionContext<'_>) -> Decision {
    Decision::Refuse(Refusal {
        code: RefusalCode(1),
        sqlstate: "42501",
        rule: RuleRef {
            policy: "weir".to_owned(),
            rule: "not-built".to_owned(),
        },
        reason: "deciding is not built yet".to_owned(),
        hint: String::new(),
    })
}

#[allow(dead_code, reason = "replaced when deciding is built")]
fn unreadable(_reason: &Unreadable) {}

/// Decides a text that does not parse. Where something is protected it is refused with the parser's own words.
pub fn decide_unreadable(_text: &str, _reason: &Unreadable, _context: DecisionContext<'_>) -> Decision {
    Decision::Refuse(not_built())
}

/// Decides a FunctionCall of the function with that OID.
pub fn decide_function_call(_oid: u32, _context: DecisionContext<'_>) -> Decision {
    Decision::Refuse(not_built())
}

impl Permit {
    /// (relation, attribute) pairs that must not appear raw in a description of this statement's result.
    pub fn forbidden_origins(&self) -> &std::collections::BTreeSet<(u32, i16)> {
        static NONE: std::collections::BTreeSet<(u32, i16)> = std::collections::BTreeSet::new();
        &NONE
    }
}

fn not_built() -> Refusal {
    Refusal {
        code: RefusalCode(1),
        sqlstate: "42501",
        rule: RuleRef {
            policy: "weir".to_owned(),
            rule: "not-built".to_owned(),
        },
        reason: "deciding is not built yet".to_owned(),
        hint: String::new(),
    }
}
