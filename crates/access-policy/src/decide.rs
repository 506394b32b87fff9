//! `decide`: one statement against one bound policy. The only place that makes a [`Permit`].

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::sync::Arc;

use sql_facts::facts::{Action, Call, CallSyntax, FunctionClass, TableAction};
use sql_facts::{
    AttNum, CannotGovern, CatalogView, Governed, Oid, ParsedStatement, Plan, StatementFacts, StatementKind,
    Unreadable,
};

use crate::bind::BoundPolicy;
use crate::judge::{Counted, Judge, Judgement, may_reach_server, may_touch_server};
use crate::policy::{PolicyMode, ReceiptMode, Subject};
use crate::refusals::{Why, built_in};

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
    /// Where in the text (characters, from 1) a syntax error stands: told to the client as the server would tell it.
    pub position: Option<NonZeroU32>,
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
    forbidden_origins: BTreeSet<(Oid, AttNum)>,
    masks: BTreeMap<(Oid, AttNum), &'static str>,
    receipt_mode: ReceiptMode,
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
    /// Columns that are masked for this subject: their numbers must not stand in a RowDescription, but for the cells
    /// that [`Governed::wire_masks`] names.
    pub fn forbidden_origins(&self) -> &BTreeSet<(Oid, AttNum)> {
        &self.forbidden_origins
    }
    /// The mask on each column that is masked for this subject, by name, for receipts and explanations.
    pub fn masks(&self) -> &BTreeMap<(Oid, AttNum), &'static str> {
        &self.masks
    }
    /// How it is recorded.
    pub fn receipt_mode(&self) -> ReceiptMode {
        self.receipt_mode
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

impl<'a> DecisionContext<'a> {
    fn judge(&self, counted: Counted) -> Judge<'a> {
        Judge {
            policy: self.policy,
            subject: self.subject,
            view: self.view,
            counted,
        }
    }

    fn has_audit(&self) -> bool {
        self.policy
            .policies
            .iter()
            .any(|policy| policy.mode == PolicyMode::Audit)
    }

    fn permit(&self, send: SendAs, facts: Option<Arc<StatementFacts>>, verdict: Verdict) -> Permit {
        let judge = self.judge(Counted::Enforcing);
        Permit {
            send,
            facts,
            verdict,
            limits: judge.limits(),
            forbidden_origins: judge.forbidden_origins(),
            masks: judge.mask_names(),
            receipt_mode: self.policy.receipt_mode,
        }
    }
}

/// Decides one statement of a text that parses.
pub fn decide(statement: &ParsedStatement, context: DecisionContext<'_>) -> Decision {
    match sql_facts::read(statement, context.view) {
        Ok(facts) => decide_read(statement, Arc::new(facts), context),
        Err(reason) => unread(&reason, may_reach_server(&sql_facts::reach(statement)), context),
    }
}

/// The same, where the facts were read already.
pub fn decide_read(
    statement: &ParsedStatement,
    facts: Arc<StatementFacts>,
    context: DecisionContext<'_>,
) -> Decision {
    let judgement = match judge(&facts, context) {
        Ok(judgement) => judgement,
        Err(refusal) => return Decision::Refuse(refusal),
    };
    let send = if judgement.plan.relations.is_empty() {
        SendAs::AsWritten
    } else {
        match govern(statement, &facts, &judgement, context) {
            Ok(governed) => SendAs::Governed(governed),
            Err(refusal) => return Decision::Refuse(refusal),
        }
    };
    Decision::Permit(context.permit(send, Some(facts), judgement.verdict))
}

/// Decides a text that does not parse, or a statement that cannot be read.
pub fn decide_unreadable(text: &str, reason: &Unreadable, context: DecisionContext<'_>) -> Decision {
    unread(reason, may_touch_server(text), context)
}

fn unread(reason: &Unreadable, may_touch_server: bool, context: DecisionContext<'_>) -> Decision {
    let enforcing = context.judge(Counted::Enforcing);
    let refusal = unreadable(reason);
    if context.policy.policies.is_empty() {
        return Decision::Refuse(
            Why::NoPolicy.refuse(built_in("no-policy"), "no policy governs this database"),
        );
    }
    let verdict = if context.has_audit() && context.judge(Counted::All).protects() {
        Verdict::WouldRefuse(refusal.clone())
    } else {
        Verdict::Permit(built_in("unreadable"))
    };
    let free =
        !enforcing.protects() && !enforcing.guards() && (!may_touch_server || enforcing.allows_server());
    if enforcing.is_empty() || free {
        Decision::Permit(context.permit(SendAs::AsWritten, None, verdict))
    } else {
        Decision::Refuse(refusal)
    }
}

fn unreadable(reason: &Unreadable) -> Refusal {
    let rule = built_in("unreadable");
    match reason {
        Unreadable::Syntax { message, position: 0 } => Why::Syntax.refuse(rule, message.clone()),
        Unreadable::Syntax { message, position } => Refusal {
            position: u32::try_from(*position).ok().and_then(NonZeroU32::new),
            ..Why::Syntax.refuse(rule, message.clone())
        },
        Unreadable::TooComplex(_) => Why::TooComplex.refuse(rule, reason.to_string()),
        Unreadable::UnknownName(message) => Refusal {
            sqlstate: unknown_name_state(message),
            ..Why::UnknownName.refuse(rule, message.clone())
        },
        Unreadable::NotBuilt(_) => Why::NotRead.refuse(rule, reason.to_string()),
    }
}

/// The SQLSTATE that the server gives for such a name, so that programs that look for it find it.
fn unknown_name_state(message: &str) -> &'static str {
    let begins = |words: &[&str]| words.iter().any(|word| message.starts_with(word));
    if message.ends_with("is ambiguous") {
        "42702"
    } else if begins(&["missing FROM-clause", "relation"]) {
        "42P01"
    } else if begins(&["column", "common column"]) {
        "42703"
    } else if begins(&["function", "operator", "procedure", "aggregate"]) {
        "42883"
    } else if begins(&["type"]) {
        "42704"
    } else if begins(&["schema"]) {
        "3F000"
    } else if begins(&["position"]) {
        "42P10"
    } else {
        "42601"
    }
}

/// Decides a FunctionCall message: like a call of that function in a SELECT that reads nothing else. What its
/// arguments name is not known here.
pub fn decide_function_call(function: Oid, context: DecisionContext<'_>) -> Decision {
    let code = context.view.function_by_oid(function);
    let known = context.view.catalog.code.function_by_oid(function);
    let known = known.or_else(|| context.view.overlay.code.function_by_oid(function));
    let name = match known {
        Some(known) => format!("{}.{}", known.schema, known.name),
        None => format!("function {function}"),
    };
    let action = match code.class {
        FunctionClass::ReadsRows => Some(Action::Select),
        FunctionClass::Writes => Some(Action::Update),
        FunctionClass::Open
        | FunctionClass::Settings
        | FunctionClass::Server
        | FunctionClass::RunsSql
        | FunctionClass::Unlisted => None,
    };
    let actions = action.into_iter().flat_map(|action| {
        code.relations.iter().map(move |relation| TableAction {
            action,
            relation: Some(*relation),
            name: format!("relation {relation}"),
            columns: BTreeSet::from([0]),
        })
    });
    let facts = StatementFacts {
        kind: StatementKind::Select,
        inner: None,
        span: 0..0,
        actions: actions.collect(),
        output: Vec::new(),
        indirect: BTreeSet::new(),
        calls: vec![Call {
            location: -1,
            name,
            syntax: CallSyntax::Function,
            origin: code.origin,
            class: code.class,
            quiet: code.quiet,
            aggregate: code.aggregate,
        }],
        effective_where: Vec::new(),
        writes_data: matches!(code.class, FunctionClass::Writes),
        hidden_writes: false,
        creates_temporary: false,
        only_adds: false,
        effects: Vec::new(),
        server_files: code.server_files,
        server_programs: false,
        parameters: 0,
        ranges: Vec::new(),
        column_uses: Vec::new(),
        normalized: String::new(),
    };
    let settings = code.class == FunctionClass::Settings && context.judge(Counted::Enforcing).protects();
    if settings {
        let reason = "a function that changes settings is called without its text";
        return Decision::Refuse(Why::Setting.refuse(built_in("settings"), reason));
    }
    match judge(&facts, context) {
        Ok(judgement) => Decision::Permit(context.permit(SendAs::AsWritten, None, judgement.verdict)),
        Err(refusal) => Decision::Refuse(refusal),
    }
}

/// A statement that may run, with what is recorded of it.
pub(crate) struct Passed {
    pub(crate) plan: Plan,
    pub(crate) verdict: Verdict,
}

/// Judges the facts alone: by the enforcing policies, and beside them what the Audit policies would have done.
pub(crate) fn judge(facts: &StatementFacts, context: DecisionContext<'_>) -> Result<Passed, Refusal> {
    let enforcing = context.judge(Counted::Enforcing);
    let decided = if enforcing.is_empty() && !context.policy.policies.is_empty() {
        Judgement {
            rule: built_in("audit"),
            plan: Plan::default(),
        }
    } else {
        enforcing.judge(facts)?
    };
    let would = if context.has_audit() {
        context.judge(Counted::All).judge(facts).err()
    } else {
        None
    };
    Ok(Passed {
        plan: decided.plan,
        verdict: would.map_or(Verdict::Permit(decided.rule), Verdict::WouldRefuse),
    })
}

fn govern(
    statement: &ParsedStatement,
    facts: &StatementFacts,
    judgement: &Passed,
    context: DecisionContext<'_>,
) -> Result<Governed, Refusal> {
    let plan = &judgement.plan;
    let governed = sql_facts::govern(statement, facts, plan, context.view).map_err(|reason| {
        let rule = protecting_rule(plan, context);
        let why = match reason {
            CannotGovern::NotBuilt(_) | CannotGovern::Impossible(_) => Why::CannotGovern,
            CannotGovern::CopiesMasked(_) => Why::CopiesMasked,
            CannotGovern::WireMaskUsed(_) => Why::WireMaskUsed,
        };
        why.refuse(rule, reason.to_string())
    })?;
    crate::recheck::recheck(&governed, facts, plan, context.view)
        .map_err(|reason| Why::RecheckFailed.refuse(protecting_rule(plan, context), reason))?;
    Ok(governed)
}

/// A rule to name: one that masks or filters something the statement mentions.
fn protecting_rule(plan: &Plan, context: DecisionContext<'_>) -> RuleRef {
    let enforcing = context.judge(Counted::Enforcing);
    let mut rules = plan.relations.keys().filter_map(|oid| enforcing.protecting(*oid));
    rules.next().unwrap_or_else(|| built_in("masks"))
}
