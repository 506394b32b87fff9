//! What a session records, in the words of the event schema.

use std::any::Any;
use std::sync::Arc;

use access_policy::{Refusal, RuleRef};
use receipts::{
    Action, ActionStart, Body, Deny, Intent, Outcome, OutcomeStatus, OutputColumn, Place, RelationAction,
    RelationUse, Rule, Source, StatementLink, TEXT_BYTES_MAX, Transformation, Verdict, What, Who,
};
use session_state::{Description, Judged, Record};
use sql_facts::facts;

/// Who and where: the same for a whole session.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Who.
    pub who: Arc<Who>,
    /// Where.
    pub place: Arc<Place>,
}

/// Most entries of a list in an event.
const LIST_MAX: usize = 512;

/// What the spool shall do with a record.
#[derive(Debug)]
pub enum Entry {
    /// A read begins: an open mark.
    OpenMark {
        /// Statement within the session.
        statement: StatementLink,
    },
    /// An event; for `db.intent` the bytes behind it wait until it is durable.
    Event(Body),
}

/// The entry for a record.
pub fn entry(record: &Record, identity: &Identity) -> Entry {
    match record {
        Record::Open { sequence, .. } => Entry::OpenMark {
            statement: StatementLink(*sequence),
        },
        Record::Intent { sequence, statement } => Entry::Event(Body::Intent(Intent {
            start: start(*sequence, statement, identity),
        })),
        Record::Outcome {
            sequence,
            statement,
            outcome,
        } => Entry::Event(Body::Action(Action {
            start: start(*sequence, statement, identity),
            outcome: outcome_of(outcome, statement),
        })),
        Record::Denied {
            sequence,
            normalized,
            refusal,
        } => Entry::Event(Body::Deny(Deny {
            start: ActionStart {
                statement: StatementLink(*sequence),
                who: Arc::clone(&identity.who),
                place: Arc::clone(&identity.place),
                what: Arc::new(what_refused(normalized)),
                rule: Arc::new(rule_refused(refusal, Verdict::Refuse)),
            },
            sqlstate: refusal.sqlstate.to_owned(),
        })),
    }
}

fn start(sequence: u64, statement: &Judged, identity: &Identity) -> ActionStart {
    ActionStart {
        statement: StatementLink(sequence),
        who: Arc::clone(&identity.who),
        place: Arc::clone(&identity.place),
        what: what(statement),
        rule: Arc::new(rule(statement)),
    }
}

/// Made once for each decision and shared by all its executions.
fn what(statement: &Judged) -> Arc<What> {
    let kept = statement
        .recorded_as
        .get_or_init(|| Arc::new(describe(&statement.description, statement)) as Arc<dyn Any + Send + Sync>);
    // The recorder is the only one who sets it, so the cast cannot fail; if it did, it is made again.
    Arc::clone(kept)
        .downcast::<What>()
        .unwrap_or_else(|_| Arc::new(describe(&statement.description, statement)))
}

fn describe(description: &Description, statement: &Judged) -> What {
    let (text, text_cut) = cut(&description.normalized);
    let mut left_out = Vec::new();
    let mut limit = |name: &str, length: usize| {
        if length > LIST_MAX {
            left_out.push(name.to_owned());
            0
        } else {
            length
        }
    };
    let relations = limit("relations", description.actions.len());
    let filters = limit("filters", description.filters.len());
    let functions = limit("functions", description.functions.len());
    let output = limit("output", description.output.len());
    What {
        command: description.kind.clone(),
        text,
        text_cut,
        key: None,
        relations: description
            .actions
            .iter()
            .take(relations)
            .map(|(action, name, columns)| RelationUse {
                name: name.clone(),
                action: relation_action(*action),
                columns: columns.iter().take(LIST_MAX).cloned().collect(),
            })
            .collect(),
        filters: description.filters.iter().take(filters).map(source).collect(),
        row_filters: Vec::new(),
        functions: description.functions.iter().take(functions).cloned().collect(),
        output: description
            .output
            .iter()
            .take(output)
            .map(|column| OutputColumn {
                name: column.name.clone(),
                target: column.target.clone(),
                sources: column.sources.iter().take(LIST_MAX).map(source).collect(),
                mask: column.mask.clone(),
            })
            .collect(),
        unreadable: statement.permit.facts().is_none() && statement.statement.is_none(),
        left_out,
    }
}

fn what_refused(normalized: &str) -> What {
    let (text, text_cut) = cut(normalized);
    What {
        text,
        text_cut,
        unreadable: normalized.is_empty(),
        ..What::default()
    }
}

fn cut(text: &str) -> (String, bool) {
    if text.len() <= TEXT_BYTES_MAX {
        return (text.to_owned(), false);
    }
    let end = (0..=TEXT_BYTES_MAX)
        .rev()
        .find(|end| text.is_char_boundary(*end))
        .unwrap_or(0);
    (text.get(..end).unwrap_or_default().to_owned(), true)
}

fn source((column, transformation): &(String, facts::Transformation)) -> Source {
    Source {
        column: column.clone(),
        transformation: match transformation {
            facts::Transformation::Identity => Transformation::Identity,
            facts::Transformation::Transformation => Transformation::Transformation,
            facts::Transformation::Aggregation => Transformation::Aggregation,
            facts::Transformation::Join => Transformation::Join,
            facts::Transformation::GroupBy => Transformation::GroupBy,
            facts::Transformation::Filter => Transformation::Filter,
            facts::Transformation::Sort => Transformation::Sort,
            facts::Transformation::Window => Transformation::Window,
            facts::Transformation::Conditional => Transformation::Conditional,
        },
    }
}

fn relation_action(action: facts::Action) -> RelationAction {
    match action {
        facts::Action::Select => RelationAction::Select,
        facts::Action::Insert => RelationAction::Insert,
        facts::Action::Update => RelationAction::Update,
        facts::Action::Delete => RelationAction::Delete,
        facts::Action::Truncate => RelationAction::Truncate,
        facts::Action::Ddl => RelationAction::Ddl,
        facts::Action::Call => RelationAction::Call,
        facts::Action::Admin => RelationAction::Admin,
    }
}

fn rule(statement: &Judged) -> Rule {
    match statement.permit.verdict() {
        access_policy::Verdict::Permit(RuleRef { policy, rule }) => Rule {
            policy: policy.clone(),
            rule: rule.clone(),
            code: None,
            verdict: Verdict::Permit,
            reason: None,
        },
        access_policy::Verdict::WouldRefuse(refusal) => rule_refused(refusal, Verdict::Audit),
    }
}

fn rule_refused(refusal: &Refusal, verdict: Verdict) -> Rule {
    Rule {
        policy: refusal.rule.policy.clone(),
        rule: refusal.rule.rule.clone(),
        code: Some(refusal.code_text()),
        verdict,
        reason: Some(refusal.reason.clone()),
    }
}

fn outcome_of(outcome: &session_state::Outcome, statement: &Judged) -> Outcome {
    let status = if outcome.stopped.is_some() {
        OutcomeStatus::Stopped
    } else if outcome.sqlstate.is_some() {
        OutcomeStatus::Error
    } else if outcome.unknown {
        OutcomeStatus::Lost
    } else if outcome.suspended {
        OutcomeStatus::Partial
    } else {
        OutcomeStatus::Ok
    };
    Outcome {
        status,
        rows_returned: outcome.rows_returned,
        rows_affected: statement.writes().then_some(outcome.rows_affected),
        bytes: outcome.bytes_returned,
        sqlstate: outcome.sqlstate.clone(),
        duration_us: outcome.duration_us,
        first_row_us: None,
        transaction: None,
    }
}
