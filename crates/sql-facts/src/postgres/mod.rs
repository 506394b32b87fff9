//! PostgreSQL: parsed by libpg_query, lowered, resolved, governed.

mod condition;
mod function_columns;
mod govern;
mod key;
mod lexer;
mod lineage;
mod lower;
mod parse;
mod reach;
mod resolve;
mod scope;

pub use govern::{govern, print, print_filter};
pub use key::{StatementKey, statement_key};
pub use parse::{DEPTH_MAX, TEXT_MAX_BYTES, parse};
pub use reach::{Reach, reach};

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use crate::catalog::{CatalogView, Oid};
use crate::facts::{StatementFacts, Unreadable};

/// A text that the grammar accepts, with its trees. Shared between reading and governing, never parsed twice.
#[derive(Debug, Clone)]
pub struct Parsed {
    /// One for each statement; empty for white space and comments alone.
    pub statements: Vec<ParsedStatement>,
}

/// One statement of a [`Parsed`] text.
#[derive(Clone)]
pub struct ParsedStatement {
    /// The whole text.
    pub text: Arc<str>,
    /// Bytes of this statement in it.
    pub span: Range<usize>,
    /// The C tree of the whole text (owned apart from the parser's warnings, so that threads may share it).
    pub(crate) tree: Arc<pg_raw_parse::Owned<pg_raw_parse::StmtList>>,
    /// Which statement of the tree.
    pub(crate) index: usize,
}

impl ParsedStatement {
    /// The statement's own tree.
    pub(crate) fn node(&self) -> pg_raw_parse::Node<'_> {
        self.tree
            .get(self.index)
            .map_or(pg_raw_parse::Node::None, pg_raw_parse::nodes::RawStmt::stmt)
    }

    /// The statement's own text.
    pub fn sql(&self) -> &str {
        self.text.get(self.span.clone()).unwrap_or_default()
    }
}

/// Without the tree: printing one recurses without a bound.
impl fmt::Debug for ParsedStatement {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("ParsedStatement")
            .field("span", &self.span)
            .field("index", &self.index)
            .finish_non_exhaustive()
    }
}

/// What the statement means against that catalog.
///
/// # Errors
/// [`Unreadable`], with a reason; never a guess.
pub fn read(statement: &ParsedStatement, view: CatalogView<'_>) -> Result<StatementFacts, Unreadable> {
    read_with_types(statement, &[], view)
}

/// The same, where the client's Parse gave its parameters types (OIDs, 0 = none): they choose among operators and
/// functions of one name.
///
/// # Errors
/// [`Unreadable`], with a reason; never a guess.
pub fn read_with_types(
    statement: &ParsedStatement,
    parameter_types: &[Oid],
    view: CatalogView<'_>,
) -> Result<StatementFacts, Unreadable> {
    // The library's accessors panic on nodes they did not expect (a list of another kind, a string that is no
    // UTF-8). Such a statement is not read; nothing of ours is left half changed, because all of it is local.
    let lowered = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| lower::lower(statement.node())))
        .unwrap_or_else(|_| {
            Err(Unreadable::NotBuilt(
                "a tree that its own library cannot walk".to_owned(),
            ))
        });
    let (lowered, parameters) = lowered?;
    let mut facts = resolve::resolve(&lowered, parameters, parameter_types, view)?;
    facts.span = statement.span.clone();
    // A text that the lexer cannot follow is described by its kind alone, so that no literal is kept.
    facts.normalized =
        lexer::without_literals(statement.sql()).unwrap_or_else(|| format!("{:?}", facts.kind));
    Ok(facts)
}

#[cfg(test)]
mod mutation_tests;
#[cfg(test)]
mod oracle_tests;
#[cfg(test)]
mod tests;
