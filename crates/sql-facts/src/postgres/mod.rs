//! PostgreSQL: parsed by libpg_query, lowered, resolved, governed.

use std::ops::Range;
use std::sync::Arc;

use crate::catalog::CatalogView;
use crate::facts::{StatementFacts, Unreadable};
use crate::plan::{CannotGovern, Governed, Plan};

/// A text that the grammar accepts, with its trees. Shared between reading and governing, never parsed twice.
#[derive(Debug, Clone)]
pub struct Parsed {
    /// One for each statement; empty for white space and comments alone.
    pub statements: Vec<ParsedStatement>,
}

/// One statement of a [`Parsed`] text.
#[derive(Debug, Clone)]
pub struct ParsedStatement {
    /// The whole text.
    pub text: Arc<str>,
    /// Bytes of this statement in it.
    pub span: Range<usize>,
    /// The C tree of the whole text.
    pub(crate) tree: Arc<pg_raw_parse::ParseResult>,
    /// Which statement of the tree.
    pub(crate) index: usize,
}

/// Parses a text. Needs a thread with a large stack (64 MiB): the grammar recurses.
///
/// # Errors
/// [`Unreadable::Syntax`] where PostgreSQL's own grammar refuses, [`Unreadable::TooComplex`] past our limits.
pub fn parse(_text: &str) -> Result<Parsed, Unreadable> {
    Err(Unreadable::NotBuilt("parse".to_owned()))
}

/// What the statement means against that catalog.
///
/// # Errors
/// [`Unreadable`], with a reason; never a guess.
pub fn read(_statement: &ParsedStatement, _view: CatalogView<'_>) -> Result<StatementFacts, Unreadable> {
    Err(Unreadable::NotBuilt("read".to_owned()))
}

/// The text to send instead, printed from the tree (governing note).
///
/// # Errors
/// [`CannotGovern`], with the reason for the refusal.
pub fn govern(
    _statement: &ParsedStatement,
    _facts: &StatementFacts,
    _plan: &Plan,
    _view: CatalogView<'_>,
) -> Result<Governed, CannotGovern> {
    Err(CannotGovern::NotBuilt("govern".to_owned()))
}
