//! What `govern` shall do, and what it did.

use std::collections::BTreeMap;

use row_masking::{SqlMask, WireMask};

use crate::catalog::{AttNum, Oid};

/// How one column is protected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ColumnMask {
    /// Replaced by an expression where the table is read.
    Sql(SqlMask),
    /// Delivered raw by the server and masked on the wire; only where it reaches the result as it is.
    Wire(WireMask),
}

/// One row filter, with its claims already inlined as typed literals.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RowFilter {
    /// Name of the rule, for refusals.
    pub rule: String,
    /// Predicate in SQL over the table's own, unqualified columns.
    pub predicate: String,
}

/// What happens to one relation for this subject.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RelationPlan {
    /// Masked columns.
    pub masks: BTreeMap<AttNum, ColumnMask>,
    /// All hold (AND).
    pub filters: Vec<RowFilter>,
}

/// What happens to the relations a statement mentions. A relation that is not in here is not governed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// By relation.
    pub relations: BTreeMap<Oid, RelationPlan>,
}

/// The text that is sent instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Governed {
    /// SQL.
    pub text: String,
    /// (byte offset in `text`, byte offset in the client's text), ascending: the client's place of what stands there.
    pub positions: Vec<(usize, usize)>,
    /// Result columns (from 0) that were added and must be taken out of every row and description.
    pub strip: Vec<usize>,
    /// Result columns that are masked on the wire.
    pub wire_masks: BTreeMap<usize, WireMask>,
    /// The text writes a row that a filter must accept, and raises 22P02 quoting `WEIR-CHECK` if it does not: the rule.
    pub check_rule: Option<String>,
    /// The client's INSERT (UPDATE, MERGE) was wrapped in a SELECT that counts: answer this command's tag with the
    /// count. For PREPARE this holds for its EXECUTE.
    pub count_as: Option<String>,
}

/// Why there is no governed text. The statement is refused with this reason.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CannotGovern {
    /// The construct is not built yet.
    #[error("not governed yet: {0}")]
    NotBuilt(String),
    /// A masked column would be stored where it is less protected.
    #[error("would copy the masked column {0} elsewhere")]
    CopiesMasked(String),
    /// A column whose mask is made on the wire is used otherwise than as a plain result column.
    #[error("the token of {0} is made on the wire: the column can only be selected as it is")]
    WireMaskUsed(String),
    /// The construct cannot be served on a governed table.
    #[error("{0}")]
    Impossible(String),
}
