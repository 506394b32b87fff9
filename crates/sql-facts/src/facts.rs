//! What a statement does, in terms of the catalog. One [`StatementFacts`] per statement of a text.

use std::collections::BTreeSet;
use std::ops::Range;

use serde::Serialize;

use crate::catalog::{AttNum, Oid};

/// A column of a relation that exists; attribute 0 means the whole row, negative numbers are system columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct ColumnId {
    /// Relation.
    pub relation: Oid,
    /// Attribute number.
    pub column: AttNum,
}

/// What a statement is. Every PostgreSQL statement has one; what is not listed is [`Unreadable`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub enum StatementKind {
    /// SELECT, VALUES, TABLE (also with data-modifying CTEs: see `actions`).
    Select,
    /// SELECT INTO, CREATE TABLE AS, CREATE MATERIALIZED VIEW.
    CreateTableAs,
    /// INSERT.
    Insert,
    /// UPDATE.
    Update,
    /// DELETE.
    Delete,
    /// MERGE.
    Merge,
    /// TRUNCATE.
    Truncate,
    /// COPY … TO.
    CopyTo(CopyTarget),
    /// COPY … FROM.
    CopyFrom(CopyTarget),
    /// EXPLAIN of the statement whose facts these are.
    Explain {
        /// It is executed.
        analyze: bool,
    },
    /// CREATE VIEW.
    CreateView,
    /// Other DDL, with the command's name as in a command tag (`ALTER TABLE`).
    Ddl(String),
    /// DO or CALL.
    Call,
    /// Roles, maintenance, replication, server settings.
    Admin(String),
    /// BEGIN, START TRANSACTION.
    Begin,
    /// COMMIT, END (`chain` where AND CHAIN is given).
    Commit {
        /// AND CHAIN.
        chain: bool,
    },
    /// ROLLBACK, ABORT.
    Rollback {
        /// AND CHAIN.
        chain: bool,
    },
    /// PREPARE TRANSACTION, COMMIT PREPARED, ROLLBACK PREPARED.
    TwoPhase,
    /// SAVEPOINT name.
    Savepoint(String),
    /// RELEASE name.
    Release(String),
    /// ROLLBACK TO name.
    RollbackTo(String),
    /// SET, RESET of a session setting.
    Set,
    /// SHOW.
    Show,
    /// SET CONSTRAINTS, SET TRANSACTION and the like, which change only the transaction.
    TransactionSetting,
    /// PREPARE name AS the statement whose facts these are.
    Prepare(String),
    /// EXECUTE name.
    Execute(String),
    /// DEALLOCATE name, or all.
    Deallocate(Option<String>),
    /// DECLARE name CURSOR FOR the statement whose facts these are.
    Declare {
        /// Cursor name.
        name: String,
        /// WITH HOLD.
        hold: bool,
    },
    /// FETCH or MOVE.
    Fetch {
        /// Cursor name.
        name: String,
        /// MOVE returns no rows.
        moves_only: bool,
    },
    /// CLOSE name, or all.
    CloseCursor(Option<String>),
    /// LISTEN channel.
    Listen(String),
    /// UNLISTEN channel, or all.
    Unlisten(Option<String>),
    /// NOTIFY channel.
    Notify(String),
    /// DISCARD.
    Discard(DiscardTarget),
    /// LOCK TABLE.
    Lock,
}

impl StatementKind {
    /// Its name, as PostgreSQL's command tags spell it; COPY with its direction.
    pub fn name(&self) -> &str {
        match self {
            Self::Select => "SELECT",
            Self::CreateTableAs => "CREATE TABLE AS",
            Self::Insert => "INSERT",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
            Self::Merge => "MERGE",
            Self::Truncate => "TRUNCATE TABLE",
            Self::CopyTo(_) => "COPY TO",
            Self::CopyFrom(_) => "COPY FROM",
            Self::Explain { .. } => "EXPLAIN",
            Self::CreateView => "CREATE VIEW",
            Self::Ddl(tag) | Self::Admin(tag) => tag,
            Self::Call => "CALL",
            Self::Begin => "BEGIN",
            Self::Commit { .. } => "COMMIT",
            Self::Rollback { .. } => "ROLLBACK",
            Self::RollbackTo(_) => "ROLLBACK TO",
            Self::TwoPhase => "PREPARE TRANSACTION",
            Self::Savepoint(_) => "SAVEPOINT",
            Self::Release(_) => "RELEASE",
            Self::Set | Self::TransactionSetting => "SET",
            Self::Show => "SHOW",
            Self::Prepare(_) => "PREPARE",
            Self::Execute(_) => "EXECUTE",
            Self::Deallocate(_) => "DEALLOCATE",
            Self::Declare { .. } => "DECLARE CURSOR",
            Self::Fetch {
                moves_only: false, ..
            } => "FETCH",
            Self::Fetch { moves_only: true, .. } => "MOVE",
            Self::CloseCursor(_) => "CLOSE CURSOR",
            Self::Listen(_) => "LISTEN",
            Self::Unlisten(_) => "UNLISTEN",
            Self::Notify(_) => "NOTIFY",
            Self::Discard(_) => "DISCARD",
            Self::Lock => "LOCK TABLE",
        }
    }
}

/// Where COPY reads from or writes to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub enum CopyTarget {
    /// STDIN or STDOUT.
    Client,
    /// A file of the server.
    File,
    /// A program of the server.
    Program,
}

/// DISCARD's argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub enum DiscardTarget {
    /// ALL
    All,
    /// PLANS
    Plans,
    /// SEQUENCES
    Sequences,
    /// TEMP
    Temp,
}

/// What a policy's `actions` speak of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub enum Action {
    /// Reads rows (COPY TO too).
    Select,
    /// Adds rows (COPY FROM too).
    Insert,
    /// Changes rows.
    Update,
    /// Removes rows.
    Delete,
    /// TRUNCATE.
    Truncate,
    /// Changes definitions.
    Ddl,
    /// Procedures, DO.
    Call,
    /// Roles, maintenance, replication, settings of the server.
    Admin,
}

/// One thing done to one relation. A name the catalog does not have is kept as written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TableAction {
    /// What.
    pub action: Action,
    /// The relation, if the catalog has it.
    pub relation: Option<Oid>,
    /// Its name: `schema.name` if resolved, else as written.
    pub name: String,
    /// Columns it touches: read for Select, set for Insert and Update; 0 for the whole row.
    pub columns: BTreeSet<AttNum>,
}

/// How an output column derives from a source (OpenLineage `transformations`, ColumnLineageDatasetFacet 1-2-0).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Transformation {
    /// Direct: as it is.
    Identity,
    /// Direct: computed from it.
    Transformation,
    /// Direct: aggregated.
    Aggregation,
    /// Indirect: join condition.
    Join,
    /// Indirect: grouping.
    GroupBy,
    /// Indirect: WHERE, HAVING, FILTER.
    Filter,
    /// Indirect: ORDER BY.
    Sort,
    /// Indirect: window definition.
    Window,
    /// Indirect: decides between values (CASE WHEN, COALESCE).
    Conditional,
}

/// A source of an output column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Source {
    /// Which column.
    pub column: ColumnId,
    /// How.
    pub transformation: Transformation,
}

/// One column of the result, or one assigned column of a write (`target` set).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OutputColumn {
    /// Its name as the client sees it.
    pub name: String,
    /// For a write: the column assigned.
    pub target: Option<ColumnId>,
    /// Where it comes from.
    pub sources: BTreeSet<Source>,
}

/// How a call's function was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, serde::Deserialize)]
pub enum FunctionOrigin {
    /// Only `pg_catalog` has that name: the built-in one.
    BuiltIn,
    /// User code of that name can be reached.
    UserDefined,
    /// Nobody has that name.
    Unknown,
}

/// What a built-in does, from the reviewed closed lists of each server major. The strictest of all overloads of
/// that name and number of arguments counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, serde::Deserialize)]
pub enum FunctionClass {
    /// Computes from its arguments, or reads what every session may know.
    Open,
    /// Reads or sets session settings (`set_config`).
    Settings,
    /// Reads rows of a relation not named in FROM (`lo_get`, `table_to_xml`).
    ReadsRows,
    /// Writes rows or sequences (`nextval`, `setval`, `lo_put`).
    Writes,
    /// Touches the server: files, other sessions, replication (`pg_read_file`, `pg_terminate_backend`).
    Server,
    /// Runs SQL text it is given (`query_to_xml`, `ts_stat`).
    RunsSql,
    /// Not in the lists: refused where something is protected.
    Unlisted,
}

/// How code is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub enum CallSyntax {
    /// `f(x)`
    Function,
    /// `a + b`
    Operator,
    /// `x::t`
    Cast,
}

/// One call in the text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Call {
    /// Byte offset of the node in the text (libpg_query's `location`).
    pub location: i32,
    /// Function, operator or type name, with schema if written.
    pub name: String,
    /// How it is reached.
    pub syntax: CallSyntax,
    /// Whose it is.
    pub origin: FunctionOrigin,
    /// What it does.
    pub class: FunctionClass,
    /// It raises, prints and changes nothing for any value (governing note, section 3).
    pub quiet: bool,
    /// It is an aggregate or window function.
    pub aggregate: bool,
}

/// What the statement changes in the session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum SessionEffect {
    /// SET name (LOCAL) = value(s); `None` = DEFAULT or RESET.
    Setting {
        /// Lower-case name.
        name: String,
        /// New values as text; `None` goes back to the start-up value.
        values: Option<Vec<String>>,
        /// SET LOCAL: until the transaction ends.
        local: bool,
    },
    /// RESET ALL.
    ResetAll,
    /// A setting is changed in a way that cannot be foretold (`set_config` with a computed value): read it back.
    UnknownSetting,
    /// Relations are created, changed or dropped: read the overlay back after it.
    CatalogChange,
}

/// How a FROM item or target is used, for `govern`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub enum RangeRole {
    /// Read: FROM, USING, JOIN, sub-select.
    Source,
    /// Target of INSERT.
    InsertTarget,
    /// Target of UPDATE.
    UpdateTarget,
    /// Target of DELETE.
    DeleteTarget,
    /// Target of MERGE.
    MergeTarget,
    /// `COPY relation TO`.
    CopyToSource,
    /// `COPY relation FROM`.
    CopyFromTarget,
}

/// One mention of a relation (a `RangeVar` that is not a CTE), found by its location in the text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RangeUse {
    /// `RangeVar.location`.
    pub location: i32,
    /// Which relation.
    pub relation: Oid,
    /// The name references use: alias, else the relation's name.
    pub reference_name: String,
    /// An alias was written.
    pub aliased: bool,
    /// Column aliases, `t(a, b)`.
    pub column_aliases: Vec<String>,
    /// How it is used.
    pub role: RangeRole,
    /// Stands on the nullable side of an outer join.
    pub nullable: bool,
    /// Attribute numbers that the statement names of it; if `needs_all_columns`, more may be needed.
    pub used_columns: BTreeSet<AttNum>,
    /// Some star, whole row, NATURAL or USING reaches it: export all columns in catalog order.
    pub needs_all_columns: bool,
}

/// What a `ColumnRef` stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum RefTarget {
    /// A column of the range with that index in [`StatementFacts::ranges`].
    Column {
        /// Index into `ranges`.
        range: usize,
        /// Attribute number; negative = system column.
        column: AttNum,
    },
    /// A whole row of that range.
    WholeRow {
        /// Index into `ranges`.
        range: usize,
    },
    /// `*` or `t.*`: the (range, column) pairs it expands to; other FROM items (sub-selects) are left out.
    Star {
        /// Indices of the ranges it covers.
        ranges: Vec<usize>,
    },
    /// Something of a sub-select, CTE, function or join alias; or an output name in ORDER BY and GROUP BY.
    Derived,
    /// `excluded.c` of ON CONFLICT: the client's own data.
    Excluded,
}

/// The clause an expression stands in, for the guard rule of the governing note, section 3.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub enum Clause {
    /// Select list, GROUP BY, ORDER BY, DISTINCT ON, window or aggregate argument, LIMIT of the outermost query.
    OutermostOutput,
    /// The same of an inner query.
    InnerOutput,
    /// WHERE.
    Where,
    /// JOIN … ON.
    JoinOn,
    /// HAVING.
    Having,
    /// SET of an UPDATE, ON CONFLICT or MERGE.
    Set,
    /// RETURNING.
    Returning,
    /// VALUES or select list of an INSERT.
    InsertValues,
    /// WHEN … AND condition of a MERGE.
    MergeWhen,
}

/// One column reference, found by its location in the text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ColumnUse {
    /// `ColumnRef.location`.
    pub location: i32,
    /// What it stands for.
    pub target: RefTarget,
    /// Where it stands.
    pub clause: Clause,
    /// How it is written: number of parts (`email` 1, `o.email` 2, `public.o.email` 3).
    pub parts: usize,
}

/// Everything `read` found out about one statement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StatementFacts {
    /// What it is. For EXPLAIN, PREPARE and DECLARE the rest describes the inner statement, whose own kind is `inner`.
    pub kind: StatementKind,
    /// Kind of the inner statement of EXPLAIN, PREPARE, DECLARE, COPY (query).
    pub inner: Option<Box<StatementKind>>,
    /// Bytes of the statement in the text.
    pub span: Range<usize>,
    /// What it does to which relations, once for each (action, relation).
    pub actions: Vec<TableAction>,
    /// The result's columns; for writes also the assigned ones (`target`).
    pub output: Vec<OutputColumn>,
    /// Columns that decide which rows or values come out, without being in them.
    pub indirect: BTreeSet<Source>,
    /// Calls of functions, operators and casts.
    pub calls: Vec<Call>,
    /// For UPDATE and DELETE, also inside CTEs and for each of them in a MERGE: (location of the target, has an effective condition).
    pub effective_where: Vec<(Oid, Action, bool)>,
    /// Changes rows somewhere (a data-modifying CTE below the top too).
    pub writes_data: bool,
    /// A data-modifying CTE stands below the top, so that the command tag does not count its rows.
    pub hidden_writes: bool,
    /// It makes a temporary relation, which only this session sees.
    pub creates_temporary: bool,
    /// A definition that neither changes nor renames what is there: ADD COLUMN, CREATE INDEX, COMMENT, CREATE TABLE
    /// (also LIKE). What its expressions read is in `actions` as Select.
    pub only_adds: bool,
    /// What it changes in the session.
    pub effects: Vec<SessionEffect>,
    /// Files or programs of the server that it touches (COPY, LOAD).
    pub server_files: bool,
    /// Programs of the server that it runs.
    pub server_programs: bool,
    /// Highest `$n`.
    pub parameters: u16,
    /// For `govern`.
    pub ranges: Vec<RangeUse>,
    /// For `govern`.
    pub column_uses: Vec<ColumnUse>,
    /// The text with its literals replaced by `$n` (for receipts and metrics).
    pub normalized: String,
}

/// Why a text has no facts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize)]
pub enum Unreadable {
    /// The grammar refuses it: forward nothing, the server would refuse it too.
    #[error("syntax error: {message}")]
    Syntax {
        /// The parser's message.
        message: String,
        /// Position in characters, from 1, as PostgreSQL counts; 0 = unknown.
        position: usize,
    },
    /// Nested too deep or too large to read.
    #[error("statement is too complex to be read: {0}")]
    TooComplex(String),
    /// A relation, column or other name that the catalog does not have.
    #[error("{0}")]
    UnknownName(String),
    /// A construct that is not built yet.
    #[error("not read yet: {0}")]
    NotBuilt(String),
}
