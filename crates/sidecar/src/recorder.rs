//! What a session records, in the words of the event schema.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::sync::Arc;

use access_policy::{ReceiptMode, Refusal, RefusalCode, RuleRef};
use receipts::{
    Action, ActionStart, Body, Deny, Intent, Outcome, OutcomeStatus, OutputColumn, Place, RelationAction,
    RelationUse, Rule, SessionClose, SessionId, SessionOpen, Source, StatementLink, TEXT_BYTES_MAX,
    Transformation, Verdict, What, Who,
};
use session_state::{Description, Judged, Record};
use sql_facts::facts;

use crate::spool::{Entry as SpoolEntry, Mark, OpenStatement, Spool, SpoolRefusal};

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

/// Where records go.
pub trait Recorder {
    /// Why nothing new may run, if records cannot be kept now.
    fn refusal(&self) -> Option<Refusal>;
    /// Records; need not be waited for.
    ///
    /// # Errors
    /// Why a statement that begins cannot be recorded, in words for the client: it must not be sent.
    fn record(&self, record: Record) -> Result<(), String>;
    /// Records, and says when it is as durable as the policy asks.
    ///
    /// # Errors
    /// Why it is not, in words for the client.
    fn intent(&self, record: Record) -> impl Future<Output = Result<(), String>>;
}

/// One session's way into the spool.
#[derive(Debug)]
pub struct SessionRecorder {
    spool: Arc<Spool>,
    session: SessionId,
    identity: Identity,
    mode: Cell<ReceiptMode>,
    /// Statements that began and have not ended.
    open: RefCell<HashMap<u64, OpenStatement>>,
    statements: Cell<u64>,
}

impl SessionRecorder {
    /// Records `session.open`.
    pub fn begin(spool: Arc<Spool>, session: SessionId, identity: Identity, mode: ReceiptMode) -> Self {
        let recorder = Self {
            spool,
            session,
            identity,
            mode: Cell::new(mode),
            open: RefCell::new(HashMap::new()),
            statements: Cell::new(0),
        };
        recorder.event(
            Body::SessionOpen(SessionOpen {
                who: Arc::clone(&recorder.identity.who),
                place: Arc::clone(&recorder.identity.place),
            }),
            None,
        );
        recorder
    }

    /// Records `session.close`. `reason` is one of `client`, `server`, `drain`, `refused`, `error`.
    pub fn end(&self, reason: &str) {
        let statements = self.statements.get();
        self.event(
            Body::SessionClose(SessionClose {
                reason: reason.to_owned(),
                statements,
            }),
            None,
        );
    }

    /// The policy's receipt mode may change while the session runs.
    pub fn set_mode(&self, mode: ReceiptMode) {
        self.mode.set(mode);
    }

    fn event(&self, body: Body, open: Option<OpenStatement>) {
        let (time_us, mono_us) = self.spool.now();
        let entry = SpoolEntry {
            time_us,
            mono_us,
            session: Some(self.session),
            body,
        };
        self.spool.record(entry, open, self.mode.get());
    }
}

impl Recorder for SessionRecorder {
    fn refusal(&self) -> Option<Refusal> {
        self.spool
            .admits(self.mode.get())
            .err()
            .map(|error| refusal(&error))
    }

    fn record(&self, record: Record) -> Result<(), String> {
        let (Record::Open { sequence, .. }
        | Record::Intent { sequence, .. }
        | Record::Outcome { sequence, .. }
        | Record::Denied { sequence, .. }) = record;
        self.statements.set(self.statements.get().max(sequence));
        match entry(&record, &self.identity) {
            Entry::OpenMark { statement } => {
                let (time_us, _) = self.spool.now();
                let mark = Mark {
                    session: self.session,
                    statement,
                    key: None,
                    time_us,
                };
                let open = self
                    .spool
                    .open_mark(mark, self.mode.get())
                    .map_err(|error| error.to_string())?;
                self.open.borrow_mut().insert(sequence, open);
            }
            Entry::Event(body) => {
                let open = self.open.borrow_mut().remove(&sequence);
                self.event(body, open);
            }
        }
        Ok(())
    }

    async fn intent(&self, record: Record) -> Result<(), String> {
        let (Record::Open { sequence, .. }
        | Record::Intent { sequence, .. }
        | Record::Outcome { sequence, .. }
        | Record::Denied { sequence, .. }) = record;
        self.statements.set(self.statements.get().max(sequence));
        let Entry::Event(body) = entry(&record, &self.identity) else {
            return self.record(record);
        };
        let (time_us, mono_us) = self.spool.now();
        let entry = SpoolEntry {
            time_us,
            mono_us,
            session: Some(self.session),
            body,
        };
        let pending = self
            .spool
            .intent(entry, self.mode.get())
            .map_err(|error| error.to_string())?;
        let open = pending.wait().await.map_err(|error| error.to_string())?;
        self.open.borrow_mut().insert(sequence, open);
        Ok(())
    }
}

/// A statement that cannot be recorded, in words for the client.
fn refusal(error: &SpoolRefusal) -> Refusal {
    Refusal {
        position: None,
        code: RefusalCode(error.code()),
        sqlstate: error.sqlstate(),
        rule: RuleRef {
            policy: "weir".to_owned(),
            rule: "receipts.mode".to_owned(),
        },
        reason: error.to_string(),
        hint:
            "no statement runs without its receipt; make room under the spool folder, or reach the collector"
                .to_owned(),
    }
}

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
        Record::Intent {
            sequence,
            statement,
            rows_of,
        } => Entry::Event(Body::Intent(Intent {
            start: start(*sequence, statement, rows_of, identity),
        })),
        Record::Outcome {
            sequence,
            statement,
            rows_of,
            outcome,
        } => Entry::Event(Body::Action(Action {
            start: start(*sequence, statement, rows_of, identity),
            outcome: outcome_of(outcome, statement.writes() || rows_of.writes()),
        })),
        Record::Denied {
            sequence,
            normalized,
            description,
            refusal,
        } => Entry::Event(Body::Deny(Deny {
            start: ActionStart {
                statement: StatementLink(*sequence),
                who: Arc::clone(&identity.who),
                place: Arc::clone(&identity.place),
                what: Arc::new(what_refused(normalized, description.as_deref())),
                rule: Arc::new(rule_refused(refusal, Verdict::Refuse)),
            },
            sqlstate: refusal.sqlstate.to_owned(),
        })),
    }
}

fn start(sequence: u64, statement: &Arc<Judged>, rows_of: &Arc<Judged>, identity: &Identity) -> ActionStart {
    ActionStart {
        statement: StatementLink(sequence),
        who: Arc::clone(&identity.who),
        place: Arc::clone(&identity.place),
        what: what_of(statement, rows_of),
        rule: Arc::new(rule(statement)),
    }
}

/// EXECUTE and FETCH under their own names, with the relations and columns of what they run.
fn what_of(statement: &Arc<Judged>, rows_of: &Arc<Judged>) -> Arc<What> {
    if Arc::ptr_eq(statement, rows_of) {
        return what(statement);
    }
    let own = what(statement);
    let mut what = What::clone(&what(rows_of));
    what.command.clone_from(&own.command);
    what.text.clone_from(&own.text);
    what.text_cut = own.text_cut;
    Arc::new(what)
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

fn what_refused(normalized: &str, description: Option<&Description>) -> What {
    let (text, text_cut) = cut(normalized);
    let relations = description
        .map(|description| description.actions.as_slice())
        .unwrap_or_default();
    let left_out = if relations.len() > LIST_MAX {
        vec!["relations".to_owned()]
    } else {
        Vec::new()
    };
    What {
        command: description
            .map(|description| description.kind.clone())
            .unwrap_or_default(),
        text,
        text_cut,
        relations: relations
            .iter()
            .take(if left_out.is_empty() { LIST_MAX } else { 0 })
            .map(|(action, name, columns)| RelationUse {
                name: name.clone(),
                action: relation_action(*action),
                columns: columns.iter().take(LIST_MAX).cloned().collect(),
            })
            .collect(),
        unreadable: normalized.is_empty(),
        left_out,
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

fn outcome_of(outcome: &session_state::Outcome, writes: bool) -> Outcome {
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
        rows_affected: writes.then_some(outcome.rows_affected),
        bytes: outcome.bytes_returned,
        sqlstate: outcome.sqlstate.clone(),
        duration_us: outcome.duration_us,
        first_row_us: None,
        transaction: None,
    }
}
