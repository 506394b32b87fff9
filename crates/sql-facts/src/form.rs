//! The small relational form that every dialect is lowered into: queries, sources, expressions, writes. Names are as
//! written; nothing is resolved here. Resolution, lineage and effects are written once, on this form.

use crate::facts::{Action, RangeRole, SessionEffect, StatementKind};

/// Byte offset of a node in the text, -1 where the parser keeps none.
pub(crate) type Location = i32;

/// A name of up to three parts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Name {
    /// Database, if written.
    pub(crate) catalog: Option<String>,
    /// Schema, if written.
    pub(crate) schema: Option<String>,
    /// The name itself.
    pub(crate) name: String,
}

impl Name {
    /// As the client wrote it, without quotes.
    pub(crate) fn written(&self) -> String {
        match &self.schema {
            Some(schema) => format!("{schema}.{}", self.name),
            None => self.name.clone(),
        }
    }
}

/// A type as written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TypeRef {
    /// Its name.
    pub(crate) name: Name,
    /// An array of it.
    pub(crate) array: bool,
    /// A length, precision or other modifier is written.
    pub(crate) modified: bool,
    /// `t.c%TYPE`: the name is a column, not a type.
    pub(crate) of_column: bool,
    /// Where.
    pub(crate) location: Location,
}

/// `AS name (columns)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Alias {
    pub(crate) name: String,
    pub(crate) columns: Vec<String>,
}

/// A mention of a relation.
#[derive(Debug, Clone)]
pub(crate) struct RelationRef {
    pub(crate) name: Name,
    pub(crate) alias: Option<Alias>,
    pub(crate) location: Location,
    /// TEMPORARY, or in `pg_temp`.
    pub(crate) temporary: bool,
}

#[derive(Debug)]
pub(crate) struct Expr {
    pub(crate) location: Location,
    pub(crate) kind: ExprKind,
}

#[derive(Debug)]
pub(crate) enum Constant {
    Null,
    Boolean(bool),
    Integer(i32),
    Text(String),
    /// Numbers past int4 and bit strings.
    Other,
}

#[derive(Debug)]
pub(crate) enum ExprKind {
    Constant(Constant),
    /// `$n`
    Parameter(u16),
    /// A name with dots; `star` where it ends in `*`.
    Column {
        parts: Vec<String>,
        star: bool,
    },
    /// `(base).field[1].*`
    Steps {
        base: Box<Expr>,
        steps: Vec<Step>,
    },
    Call(Box<FunctionCall>),
    Operator(Box<OperatorCall>),
    Cast {
        value: Box<Expr>,
        target: TypeRef,
    },
    And(Vec<Expr>),
    Or(Vec<Expr>),
    Not(Box<Expr>),
    Case {
        subject: Option<Box<Expr>>,
        whens: Vec<(Expr, Expr)>,
        otherwise: Option<Box<Expr>>,
    },
    /// COALESCE, GREATEST, LEAST.
    Choice {
        name: &'static str,
        values: Vec<Expr>,
    },
    Subquery {
        kind: SubqueryKind,
        tested: Option<Box<Expr>>,
        operator: Option<Name>,
        query: Box<Query>,
    },
    Row(Vec<Expr>),
    Array(Vec<Expr>),
    NullTest {
        value: Box<Expr>,
        negated: bool,
    },
    TruthTest {
        value: Box<Expr>,
        test: Truth,
    },
    /// COLLATE, VARIADIC, `name => value`: the value as it is.
    Wrapped(Box<Expr>),
    /// CURRENT_DATE and the like.
    Session(&'static str),
    Grouping(Vec<Expr>),
    /// DEFAULT in VALUES and SET.
    Default,
    /// WHERE CURRENT OF.
    CurrentOf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Truth {
    True,
    NotTrue,
    False,
    NotFalse,
    Unknown,
    NotUnknown,
}

#[derive(Debug)]
pub(crate) enum Step {
    Field(String),
    All,
    Index(Vec<Expr>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SubqueryKind {
    Exists,
    Scalar,
    Array,
    /// `x op ANY (…)` and `x IN (…)`.
    Any,
    All,
}

/// A function, aggregate or window function, or a construct of the grammar that works like one.
#[derive(Debug)]
pub(crate) struct FunctionCall {
    pub(crate) name: Name,
    pub(crate) args: Vec<Expr>,
    /// `f(*)`
    pub(crate) star: bool,
    pub(crate) order: Vec<SortKey>,
    pub(crate) filter: Option<Expr>,
    /// Ordered-set or JSON aggregate: certainly an aggregate.
    pub(crate) aggregate: bool,
    pub(crate) over: Option<Window>,
    /// A construct of the grammar (XMLELEMENT, JSON_VALUE) and the first server major that has it; older ones look
    /// the name up as a function.
    pub(crate) grammar: Option<u16>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OperatorShape {
    /// `a op b`, `op a`
    Plain,
    /// `a op ANY (array)`
    AnyOf,
    /// `a op ALL (array)`
    AllOf,
    /// `a IS DISTINCT FROM b`
    Distinct,
    /// `a IS NOT DISTINCT FROM b`
    NotDistinct,
    /// NULLIF(a, b)
    NullIf,
    /// `a IN (…)`
    In,
    /// `a NOT IN (…)`
    NotIn,
    /// `a BETWEEN b AND c`, also SYMMETRIC
    Between,
    /// `a NOT BETWEEN b AND c`
    NotBetween,
}

#[derive(Debug)]
pub(crate) struct OperatorCall {
    /// Operators that it stands for (BETWEEN stands for two).
    pub(crate) names: Vec<Name>,
    pub(crate) shape: OperatorShape,
    /// `None` for a prefix operator.
    pub(crate) left: Option<Expr>,
    /// One, or the list of IN, or the two bounds of BETWEEN.
    pub(crate) right: Vec<Expr>,
}

#[derive(Debug)]
pub(crate) struct SortKey {
    pub(crate) expr: Expr,
    /// `USING operator`
    pub(crate) using: Option<Name>,
}

#[derive(Debug)]
pub(crate) struct Window {
    /// Name it defines, or that `OVER name` uses.
    pub(crate) name: Option<String>,
    /// Window it builds on.
    pub(crate) base: Option<String>,
    pub(crate) partition: Vec<Expr>,
    pub(crate) order: Vec<SortKey>,
    pub(crate) bounds: Vec<Expr>,
}

#[derive(Debug)]
pub(crate) struct Query {
    pub(crate) with: Option<With>,
    pub(crate) body: Body,
    pub(crate) order: Vec<SortKey>,
    /// LIMIT and OFFSET.
    pub(crate) limit: Vec<Expr>,
    /// Relations named in FOR UPDATE OF … and the like; an empty list means all.
    pub(crate) locking: Vec<Vec<String>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SetOperator {
    /// First branch.
    First,
    Union,
    Intersect,
    Except,
}

#[derive(Debug)]
pub(crate) enum Body {
    Select(Box<Select>),
    Values(Vec<Vec<Expr>>),
    /// From left to right.
    SetOperation(Vec<(SetOperator, Query)>),
    /// A data-modifying statement, at the top or in a CTE.
    Write(Box<Write>),
}

#[derive(Debug)]
pub(crate) struct With {
    pub(crate) recursive: bool,
    pub(crate) ctes: Vec<Cte>,
}

#[derive(Debug)]
pub(crate) struct Cte {
    pub(crate) name: String,
    pub(crate) columns: Vec<String>,
    pub(crate) query: Query,
    /// SEARCH: the columns it reads, the column it adds.
    pub(crate) search: Option<(Vec<String>, String)>,
    pub(crate) cycle: Option<Cycle>,
}

#[derive(Debug)]
pub(crate) struct Cycle {
    pub(crate) columns: Vec<String>,
    pub(crate) mark: String,
    pub(crate) values: Vec<Expr>,
    pub(crate) path: String,
}

#[derive(Debug)]
pub(crate) struct Select {
    pub(crate) distinct: Distinct,
    pub(crate) items: Vec<Item>,
    pub(crate) from: Vec<Source>,
    pub(crate) filter: Option<Expr>,
    pub(crate) group: Vec<GroupItem>,
    pub(crate) having: Option<Expr>,
    pub(crate) windows: Vec<Window>,
}

#[derive(Debug)]
pub(crate) enum Distinct {
    No,
    Rows,
    On(Vec<Expr>),
}

/// One entry of a select or RETURNING list.
#[derive(Debug)]
pub(crate) struct Item {
    pub(crate) name: Option<String>,
    pub(crate) expr: Expr,
}

#[derive(Debug)]
pub(crate) enum GroupItem {
    Expr(Expr),
    /// GROUPING SETS, ROLLUP, CUBE, and `()`.
    Sets(Vec<GroupItem>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum JoinKind {
    Inner,
    Left,
    Right,
    Full,
}

#[derive(Debug)]
pub(crate) enum Source {
    Relation {
        relation: RelationRef,
        sample: Option<Sample>,
    },
    Query {
        query: Box<Query>,
        lateral: bool,
        alias: Option<Alias>,
    },
    Functions {
        functions: Vec<TableFunction>,
        ordinality: bool,
        alias: Option<Alias>,
    },
    /// XMLTABLE, JSON_TABLE: what it computes from, and the columns it makes.
    Constructed {
        name: &'static str,
        grammar: u16,
        location: Location,
        args: Vec<Expr>,
        columns: Vec<String>,
        types: Vec<TypeRef>,
        alias: Option<Alias>,
    },
    Join(Box<Join>),
}

#[derive(Debug)]
pub(crate) struct Sample {
    pub(crate) method: Name,
    pub(crate) args: Vec<Expr>,
    pub(crate) location: Location,
}

#[derive(Debug)]
pub(crate) struct TableFunction {
    pub(crate) call: Expr,
    /// Columns given after AS.
    pub(crate) columns: Vec<(String, TypeRef)>,
}

#[derive(Debug)]
pub(crate) struct Join {
    pub(crate) kind: JoinKind,
    pub(crate) left: Source,
    pub(crate) right: Source,
    pub(crate) natural: bool,
    pub(crate) using: Vec<String>,
    pub(crate) using_alias: Option<String>,
    pub(crate) on: Option<Expr>,
    pub(crate) alias: Option<Alias>,
}

#[derive(Debug)]
pub(crate) struct Write {
    pub(crate) target: RelationRef,
    pub(crate) kind: WriteKind,
    pub(crate) returning: Option<Returning>,
}

#[derive(Debug)]
pub(crate) struct Returning {
    /// Names of the old and the new row.
    pub(crate) old: Option<String>,
    pub(crate) new: Option<String>,
    pub(crate) items: Vec<Item>,
}

#[derive(Debug)]
pub(crate) enum WriteKind {
    Insert {
        columns: Vec<TargetColumn>,
        source: Option<Box<Query>>,
        conflict: Option<Conflict>,
    },
    Update {
        set: Vec<Assignment>,
        from: Vec<Source>,
        filter: Option<Expr>,
    },
    Delete {
        using: Vec<Source>,
        filter: Option<Expr>,
    },
    Merge {
        source: Source,
        on: Expr,
        whens: Vec<When>,
    },
}

#[derive(Debug)]
pub(crate) struct TargetColumn {
    pub(crate) name: String,
    /// Subfields and subscripts of the column.
    pub(crate) steps: Vec<Step>,
}

/// `a = x`, or `(a, b) = …`.
#[derive(Debug)]
pub(crate) struct Assignment {
    pub(crate) columns: Vec<TargetColumn>,
    pub(crate) value: Expr,
    /// Written with a list on the left.
    pub(crate) several: bool,
}

#[derive(Debug)]
pub(crate) struct Conflict {
    /// Index expressions that choose the index, and their WHERE.
    pub(crate) infer: Vec<Expr>,
    pub(crate) infer_filter: Option<Expr>,
    /// DO UPDATE: SET and WHERE.
    pub(crate) update: Option<(Vec<Assignment>, Option<Expr>)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MatchKind {
    Matched,
    NotMatchedBySource,
    NotMatchedByTarget,
}

#[derive(Debug)]
pub(crate) struct When {
    pub(crate) matched: MatchKind,
    pub(crate) condition: Option<Expr>,
    pub(crate) action: WhenAction,
}

#[derive(Debug)]
pub(crate) enum WhenAction {
    Nothing,
    Delete,
    Update(Vec<Assignment>),
    /// Columns and values; no values = DEFAULT VALUES.
    Insert(Vec<TargetColumn>, Vec<Expr>),
}

/// A relation that a statement names outside a query.
#[derive(Debug)]
pub(crate) struct Mention {
    pub(crate) action: Action,
    pub(crate) relation: RelationRef,
    /// Columns named; empty where none are.
    pub(crate) columns: Vec<String>,
    /// No column list was written, but all of them are meant (COPY t TO).
    pub(crate) all_columns: bool,
    pub(crate) role: Option<RangeRole>,
}

/// Expressions of a definition, over the columns of one relation.
#[derive(Debug)]
pub(crate) struct Scoped {
    pub(crate) relation: RelationRef,
    pub(crate) exprs: Vec<Expr>,
    /// `OLD` and `NEW` of rules and triggers are in scope.
    pub(crate) old_and_new: bool,
    /// The relation is made by this statement: any name may be a column of it.
    pub(crate) created: bool,
}

/// A query that is stored to run later, with names that only its place gives it.
#[derive(Debug)]
pub(crate) enum StoredBody {
    /// Of a function: names of parameters stand beside columns.
    Function(Query),
    /// An expression of a function.
    FunctionValue(Expr),
    /// Of a rule on that relation: OLD and NEW are in scope.
    Rule(RelationRef, Query),
}

/// A whole statement.
#[derive(Debug)]
pub(crate) struct Statement {
    pub(crate) kind: StatementKind,
    pub(crate) inner: Option<Box<StatementKind>>,
    /// The query or write whose facts these are.
    pub(crate) query: Option<Query>,
    /// The query's rows do not go to the client (CREATE TABLE AS, CREATE VIEW).
    pub(crate) stored: bool,
    pub(crate) mentions: Vec<Mention>,
    pub(crate) scoped: Vec<Scoped>,
    /// Expressions in no relation's scope (arguments of EXECUTE and CALL).
    pub(crate) loose: Vec<Expr>,
    /// Bodies of functions and rules.
    pub(crate) bodies: Vec<StoredBody>,
    /// Code that cannot be seen runs (DO).
    pub(crate) opaque: Option<&'static str>,
    /// It makes a temporary relation.
    pub(crate) temporary: bool,
    /// A definition that neither changes nor renames what is there.
    pub(crate) only_adds: bool,
    /// It changes rows, though it is no data-modifying query (COPY FROM, TRUNCATE).
    pub(crate) writes_data: bool,
    pub(crate) types: Vec<TypeRef>,
    pub(crate) effects: Vec<SessionEffect>,
    pub(crate) server_files: bool,
    pub(crate) server_programs: bool,
    /// Column names the client sees where no query tells them (SHOW).
    pub(crate) columns: Vec<String>,
}

impl Statement {
    /// A statement of that kind that touches nothing yet.
    pub(crate) fn new(kind: StatementKind) -> Self {
        Self {
            kind,
            inner: None,
            query: None,
            stored: false,
            mentions: Vec::new(),
            scoped: Vec::new(),
            loose: Vec::new(),
            bodies: Vec::new(),
            opaque: None,
            temporary: false,
            only_adds: false,
            writes_data: false,
            types: Vec::new(),
            effects: Vec::new(),
            server_files: false,
            server_programs: false,
            columns: Vec::new(),
        }
    }
}

impl Expr {
    /// The name that an output column gets from its expression, as PostgreSQL finds it; `strong` names win over
    /// names of types.
    pub(crate) fn output_name(&self) -> String {
        let mut expr = self;
        let mut weak: Option<&str> = None;
        loop {
            let found = match &expr.kind {
                ExprKind::Column { parts, .. } => parts.last().map(String::as_str),
                ExprKind::Steps { base, steps } => {
                    let field = steps.iter().rev().find_map(|step| match step {
                        Step::Field(field) => Some(field.as_str()),
                        Step::All | Step::Index(_) => None,
                    });
                    if field.is_none() {
                        expr = base;
                        continue;
                    }
                    field
                }
                ExprKind::Call(call) => Some(call.name.name.as_str()),
                ExprKind::Operator(call) if call.shape == OperatorShape::NullIf => Some("nullif"),
                ExprKind::Cast { value, target } => {
                    weak = weak.or(Some(target.name.name.as_str()));
                    expr = value;
                    continue;
                }
                ExprKind::Wrapped(value) => {
                    expr = value;
                    continue;
                }
                ExprKind::Case { otherwise, .. } => {
                    weak = weak.or(Some("case"));
                    match otherwise {
                        Some(otherwise) => {
                            expr = otherwise;
                            continue;
                        }
                        None => None,
                    }
                }
                ExprKind::Choice { name, .. } | ExprKind::Session(name) => Some(*name),
                ExprKind::Subquery {
                    kind: SubqueryKind::Exists,
                    ..
                } => Some("exists"),
                ExprKind::Subquery {
                    kind: SubqueryKind::Array,
                    ..
                }
                | ExprKind::Array(_) => Some("array"),
                ExprKind::Subquery {
                    kind: SubqueryKind::Scalar,
                    query,
                    ..
                } => match query.first_item() {
                    Some(Item { name: Some(name), .. }) => Some(name.as_str()),
                    Some(Item {
                        name: None,
                        expr: inner,
                    }) => return inner.output_name(),
                    None => Some("column1"),
                },
                ExprKind::Row(_) => Some("row"),
                ExprKind::Grouping(_) => Some("grouping"),
                ExprKind::Constant(_)
                | ExprKind::Parameter(_)
                | ExprKind::Operator(_)
                | ExprKind::And(_)
                | ExprKind::Or(_)
                | ExprKind::Not(_)
                | ExprKind::Subquery {
                    kind: SubqueryKind::Any | SubqueryKind::All,
                    ..
                }
                | ExprKind::NullTest { .. }
                | ExprKind::TruthTest { .. }
                | ExprKind::Default
                | ExprKind::CurrentOf => None,
            };
            return found.or(weak).unwrap_or("?column?").to_owned();
        }
    }
}

impl Query {
    /// First entry of the (leftmost) select list; `None` for VALUES.
    pub(crate) fn first_item(&self) -> Option<&Item> {
        let mut query = self;
        loop {
            match &query.body {
                Body::Select(select) => return select.items.first(),
                Body::Values(_) => return None,
                Body::SetOperation(branches) => query = &branches.first()?.1,
                Body::Write(write) => return write.returning.as_ref()?.items.first(),
            }
        }
    }
}
