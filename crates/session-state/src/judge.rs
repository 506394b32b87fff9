//! Judging texts, once: parse, decide, describe, and remember the result under everything it rested on.

use std::any::Any;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use access_policy::{Decision, DecisionContext, Permit, Refusal, SendAs};
use lru::LruCache;
use sql_facts::facts::{Action, FunctionClass, FunctionOrigin};
use sql_facts::{
    CatalogView, ParsedStatement, StatementFacts, StatementKey, StatementKind, Unreadable, statement_key,
};

use crate::describe::{Description, describe};
use crate::result::ResultPlan;

/// Texts longer than this are not remembered.
const CACHED_TEXT_MAX: usize = 16 * 1024;
/// How many decisions a thread remembers.
const CACHED_DECISIONS: usize = 4096;

/// One statement of a text, judged.
#[derive(Debug)]
pub struct Judged {
    /// The statement, for judging it again under another state.
    pub statement: Option<ParsedStatement>,
    /// The proof that it was judged.
    pub permit: Permit,
    /// How its rows are treated.
    pub result: ResultPlan,
    /// Rows that it changes are not all in its command tag: data-modifying WITH, cascading keys, triggers.
    pub changes_beside_tag: bool,
    /// Names for receipts.
    pub description: Description,
    /// Whatever the recorder makes of it once and keeps for later executions.
    pub recorded_as: OnceLock<Arc<dyn Any + Send + Sync>>,
    /// The server has described the text that is sent, and the wire check found nothing.
    pub checked: AtomicBool,
}

impl Judged {
    /// What it is, where it could be read.
    pub fn kind(&self) -> Option<&StatementKind> {
        self.permit.facts().map(|facts| &facts.kind)
    }
    /// Whether the decision holds for every text of the same shape: nothing in it was decided by a literal's value.
    /// Texts that are printed anew hold their literals, so only what goes as it is written can be shared.
    fn holds_for_shape(&self) -> bool {
        let Some(facts) = self.permit.facts() else {
            return false;
        };
        matches!(self.permit.send(), SendAs::AsWritten)
            && matches!(
                facts.kind,
                StatementKind::Select | StatementKind::Insert | StatementKind::Update | StatementKind::Delete
            )
            && facts.effects.is_empty()
            && facts
                .calls
                .iter()
                .all(|call| call.origin == FunctionOrigin::BuiltIn && call.class == FunctionClass::Open)
    }
    /// Whether it changes data or definitions, so that its intent is recorded before it is sent. What cannot be read
    /// may.
    pub fn writes(&self) -> bool {
        match self.permit.facts() {
            None => true,
            Some(facts) => {
                facts.writes_data
                    || matches!(
                        facts.kind,
                        StatementKind::Insert
                            | StatementKind::Update
                            | StatementKind::Delete
                            | StatementKind::Merge
                            | StatementKind::Truncate
                            | StatementKind::CopyFrom(_)
                            | StatementKind::CreateTableAs
                            | StatementKind::CreateView
                            | StatementKind::Ddl(_)
                            | StatementKind::Call
                            | StatementKind::Admin(_)
                            | StatementKind::TwoPhase
                    )
            }
        }
    }
}

/// What a decision rests on, besides the text.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Basis {
    /// Policy generation.
    pub policy: u64,
    /// Catalog version.
    pub catalog: u64,
    /// Number of the session's overlay: unique in the process, 0 for an empty one.
    pub overlay: u64,
    /// Search path.
    pub path: Arc<sql_facts::SearchPath>,
    /// Subject, as a number the sidecar gives to equal subjects.
    pub subject: u64,
}

/// Remembers decisions. One per thread, no lock.
#[derive(Debug)]
pub struct Judge {
    cache: LruCache<(Box<str>, Basis), Arc<Judged>>,
    /// Decisions to send a text as it is written, for all texts of that key.
    shapes: LruCache<(StatementKey, Basis), Arc<Judged>>,
    /// Shapes (texts without literals) whose result was described and found clean.
    checked: LruCache<(Box<str>, Basis), ()>,
}

impl Default for Judge {
    fn default() -> Self {
        Self {
            cache: LruCache::new(NonZeroUsize::new(CACHED_DECISIONS).unwrap_or(NonZeroUsize::MIN)),
            shapes: LruCache::new(NonZeroUsize::new(CACHED_DECISIONS).unwrap_or(NonZeroUsize::MIN)),
            checked: LruCache::new(NonZeroUsize::new(CACHED_DECISIONS).unwrap_or(NonZeroUsize::MIN)),
        }
    }
}

impl Judge {
    /// A remembered decision for a text of one statement.
    pub fn remembered(&mut self, text: &str, basis: &Basis) -> Option<Arc<Judged>> {
        if text.len() > CACHED_TEXT_MAX {
            return None;
        }
        // The key owns its text; a borrowed look-up would need a second map. 16 KiB at most.
        if let Some(judged) = self.cache.get(&(Box::from(text), basis.clone())) {
            return Some(Arc::clone(judged));
        }
        let key = statement_key(text)?;
        self.shapes.get(&(key, basis.clone())).cloned()
    }
    /// Whether the result of that shape was described before under the same basis.
    pub(crate) fn was_checked(&mut self, judged: &Judged, basis: &Basis) -> bool {
        if judged.checked.load(Ordering::Relaxed) {
            self.remember_checked(judged, basis);
            return true;
        }
        let shape = judged.description.normalized.as_str();
        !shape.is_empty() && self.checked.get(&(Box::from(shape), basis.clone())).is_some()
    }
    /// The result of that shape was described and found clean.
    pub(crate) fn remember_checked(&mut self, judged: &Judged, basis: &Basis) {
        let shape = judged.description.normalized.as_str();
        if !shape.is_empty() && shape.len() <= CACHED_TEXT_MAX {
            self.checked.put((Box::from(shape), basis.clone()), ());
        }
    }
    /// Remembers a permit for a text of one statement.
    pub fn remember(&mut self, text: &str, basis: &Basis, judged: &Arc<Judged>) {
        if text.len() > CACHED_TEXT_MAX {
            return;
        }
        if let Some(key) = statement_key(text).filter(|_| judged.holds_for_shape()) {
            self.shapes.put((key, basis.clone()), Arc::clone(judged));
        } else {
            self.cache
                .put((Box::from(text), basis.clone()), Arc::clone(judged));
        }
    }
}

fn changes_beside_tag(facts: &StatementFacts, view: CatalogView<'_>) -> bool {
    facts.hidden_writes
        || facts
            .actions
            .iter()
            .filter(|action| matches!(action.action, Action::Insert | Action::Update | Action::Delete))
            .filter_map(|action| view.relation(action.relation?))
            .any(|relation| !relation.triggers.is_empty() || !relation.cascades.is_empty())
}

/// Judges one statement.
pub(crate) fn judge_statement(
    statement: &ParsedStatement,
    context: DecisionContext<'_>,
) -> Result<Arc<Judged>, Refusal> {
    match access_policy::decide(statement, context) {
        Decision::Permit(permit) => {
            let description = describe(&permit, context.view);
            let result = ResultPlan::from_permit(&permit);
            Ok(Arc::new(Judged {
                changes_beside_tag: permit
                    .facts()
                    .is_some_and(|facts| changes_beside_tag(facts, context.view)),
                statement: Some(statement.clone()),
                permit,
                result,
                description,
                recorded_as: OnceLock::new(),
                checked: AtomicBool::new(false),
            }))
        }
        Decision::Refuse(refusal) => Err(refusal),
    }
}

/// Judges a text that does not parse.
pub(crate) fn judge_unreadable(
    text: &str,
    reason: &Unreadable,
    context: DecisionContext<'_>,
) -> Result<Arc<Judged>, Refusal> {
    match access_policy::decide_unreadable(text, reason, context) {
        Decision::Permit(permit) => {
            let result = ResultPlan::from_permit(&permit);
            Ok(Arc::new(Judged {
                changes_beside_tag: false,
                statement: None,
                permit,
                result,
                description: Description::unreadable(),
                recorded_as: OnceLock::new(),
                checked: AtomicBool::new(false),
            }))
        }
        Decision::Refuse(refusal) => Err(refusal),
    }
}

/// A FunctionCall that was permitted.
pub(crate) fn judged_call(permit: Permit) -> Arc<Judged> {
    let result = ResultPlan::from_permit(&permit);
    let description = Description {
        kind: "FUNCTION CALL".to_owned(),
        ..Description::default()
    };
    Arc::new(Judged {
        changes_beside_tag: false,
        statement: None,
        permit,
        result,
        description,
        recorded_as: OnceLock::new(),
        checked: AtomicBool::new(false),
    })
}
