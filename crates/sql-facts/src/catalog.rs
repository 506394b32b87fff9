//! What the database has: relations, columns, types, functions, operators. Two layers: a [`Catalog`] shared by all
//! sessions of a database, and an [`Overlay`] per session with its temporary relations and what its open
//! transaction created or changed. Everything is looked up through a [`CatalogView`] of both.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use row_masking::ColumnType;
use serde::{Deserialize, Serialize};

/// A PostgreSQL object id.
pub type Oid = u32;
/// A column's number within its relation (`pg_attribute.attnum`); system columns are negative, 0 is the whole row.
pub type AttNum = i16;

/// `pg_class.relkind`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum RelationKind {
    /// `r`
    Table,
    /// `p`
    PartitionedTable,
    /// `v`
    View,
    /// `m`
    MaterializedView,
    /// `f`
    ForeignTable,
    /// `S`
    Sequence,
    /// `c`
    CompositeType,
    /// `t`
    Toast,
    /// `i` and `I`
    Index,
}

/// `pg_class.relpersistence`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Persistence {
    /// `p`
    Permanent,
    /// `u`
    Unlogged,
    /// `t`
    Temporary,
}

/// One column of a relation, in catalog order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// `attnum`
    pub number: AttNum,
    /// `attname`
    pub name: String,
    /// Type, modifier, collation and how to write them, schema-qualified.
    pub column_type: ColumnType,
    /// `attnotnull`
    pub not_null: bool,
    /// A default expression exists.
    pub has_default: bool,
    /// Generated (stored or virtual); then the columns it is computed from.
    pub generated_from: Option<Vec<AttNum>>,
}

/// One relation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Relation {
    /// `pg_class.oid`
    pub oid: Oid,
    /// Schema name (`pg_temp_N` for temporary ones).
    pub schema: String,
    /// `relname`
    pub name: String,
    /// What it is.
    pub kind: RelationKind,
    /// How long it lives.
    pub persistence: Persistence,
    /// Live columns (dropped ones left out), by number.
    pub columns: Vec<Column>,
    /// Columns of the primary key, empty when there is none.
    pub primary_key: Vec<AttNum>,
    /// Inheritance or partition parents.
    pub parents: Vec<Oid>,
    /// `pg_get_viewdef` of a view or materialized view.
    pub definition: Option<String>,
    /// A view with `security_invoker`.
    pub security_invoker: bool,
    /// Has a BEFORE row trigger for INSERT or UPDATE (a filter's check is then blind where it cannot see its result).
    pub before_row_triggers: bool,
    /// Names of all triggers that are not internal.
    pub triggers: Vec<String>,
    /// A sequence that a column owns: (relation, column).
    pub owned_by: Option<(Oid, AttNum)>,
}

impl Relation {
    /// The column of that name.
    pub fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.name == name)
    }
    /// The column of that number.
    pub fn column_by_number(&self, number: AttNum) -> Option<&Column> {
        self.columns.iter().find(|column| column.number == number)
    }
}

/// The schemas that an unqualified name is looked up in, in order, as the server resolves them: temporary schema
/// first if it exists, `pg_catalog` where the server puts it, `"$user"` replaced, missing schemas left out.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct SearchPath(pub Vec<String>);

/// What is known of a database, shared by its sessions. Cheap to clone (all parts are shared).
#[derive(Debug, Clone, Default)]
pub struct Catalog {
    /// Server major version, for example 15.
    pub server_major: u16,
    /// Counts up with every refresh; part of every decision's key.
    pub version: u64,
    /// By OID.
    pub relations: Arc<HashMap<Oid, Arc<Relation>>>,
    /// By schema, then name.
    pub names: Arc<BTreeMap<String, BTreeMap<String, Oid>>>,
}

/// What differs for one session.
#[derive(Debug, Clone, Default)]
pub struct Overlay {
    /// Created or changed relations (`Some`), dropped ones (`None`).
    pub relations: BTreeMap<Oid, Option<Arc<Relation>>>,
    /// The session's temporary schema, `pg_temp_N`, once it has one.
    pub temp_schema: Option<String>,
}

/// Both layers, as one session sees them now.
#[derive(Debug, Clone, Copy)]
pub struct CatalogView<'a> {
    /// The shared layer.
    pub catalog: &'a Catalog,
    /// The session's own layer.
    pub overlay: &'a Overlay,
    /// Where unqualified names are looked up.
    pub path: &'a SearchPath,
}

/// What is known of the code behind a name: the strictest of all that could be meant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CodeFacts {
    /// Whose it is.
    pub origin: crate::facts::FunctionOrigin,
    /// What it does.
    pub class: crate::facts::FunctionClass,
    /// On the closed list of quiet code (governing note, section 3).
    pub quiet: bool,
    /// Some overload is an aggregate or a window function.
    pub aggregate: bool,
    /// For `ReadsRows` and `Writes` of fixed system relations (`lo_get`: `pg_largeobject`): their OIDs.
    pub relations: Vec<Oid>,
}

/// How a system relation may be read where something is protected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SystemRelation {
    /// Open without a rule.
    Open,
    /// Open, but these columns read NULL without a rule (`pg_stat_activity.query`, `pg_attribute.attmissingval`).
    OpenExcept(Vec<AttNum>),
    /// Needs a rule (`pg_stats`, `pg_authid`, and whatever is not listed).
    NeedsRule,
}

impl<'a> CatalogView<'a> {
    /// The relation of that OID, as this session sees it.
    pub fn relation(&self, _oid: Oid) -> Option<&'a Relation> {
        None
    }
    /// The relation that a name means: an unqualified one is looked up along the search path.
    pub fn resolve_relation(&self, _schema: Option<&str>, _name: &str) -> Option<&'a Relation> {
        None
    }
    /// The function behind a name called with that many arguments.
    pub fn function(&self, _schema: Option<&str>, _name: &str, _arguments: usize) -> CodeFacts {
        unlisted()
    }
    /// The operator of that name; `operands` is 1 or 2.
    pub fn operator(&self, _schema: Option<&str>, _name: &str, _operands: usize) -> CodeFacts {
        unlisted()
    }
    /// The code that a cast to that type may run (its input function, its cast functions, a domain's checks).
    pub fn cast(&self, _target: &str) -> CodeFacts {
        unlisted()
    }
    /// The type that a (possibly qualified) name means.
    pub fn resolve_type(&self, _schema: Option<&str>, _name: &str, _modifiers: &[i32]) -> Option<ColumnType> {
        None
    }
    /// What the closed list says of a relation in `pg_catalog` or `information_schema`; `None` for any other.
    pub fn system_relation(&self, _oid: Oid) -> Option<SystemRelation> {
        None
    }
}

fn unlisted() -> CodeFacts {
    CodeFacts {
        origin: crate::facts::FunctionOrigin::Unknown,
        class: crate::facts::FunctionClass::Unlisted,
        quiet: false,
        aggregate: false,
        relations: Vec::new(),
    }
}

impl Catalog {
    /// The generated built-ins of a server major, and nothing else. `None` where that major is not reviewed yet.
    pub fn builtins(_server_major: u16) -> Option<Self> {
        None
    }
    /// One statement that reads everything [`Catalog::from_rows`] needs. Its rows are (kind, JSON); all names in it
    /// are schema-qualified, so it reads the same whatever the session's search_path is.
    pub fn load_sql() -> &'static str {
        ""
    }
    /// Builds the shared layer from the rows of [`Catalog::load_sql`].
    ///
    /// # Errors
    /// [`CatalogError`] where a row is not understood or the major is not reviewed.
    pub fn from_rows<'r>(
        _server_major: u16,
        _version: u64,
        _rows: impl IntoIterator<Item = (&'r str, &'r str)>,
    ) -> Result<Self, CatalogError> {
        Err(CatalogError::UnknownMajor(_server_major))
    }
    /// Applies one DDL statement (for `weir explain --schema`, and for DDL earlier in the same text).
    ///
    /// # Errors
    /// [`CatalogError::NotApplied`] where the statement is not understood.
    pub fn apply(
        &mut self,
        _ddl: &crate::postgres::ParsedStatement,
        _path: &SearchPath,
    ) -> Result<(), CatalogError> {
        Err(CatalogError::NotApplied("not built".to_owned()))
    }
}

/// Why there is no catalog.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CatalogError {
    /// No reviewed lists of built-ins for that major.
    #[error("PostgreSQL {0} is not supported yet: its built-in functions have not been reviewed")]
    UnknownMajor(u16),
    /// A row of the catalog query is not understood.
    #[error("cannot read the catalog row {kind}: {message}")]
    BadRow {
        /// First column.
        kind: String,
        /// What is wrong.
        message: String,
    },
    /// A DDL statement that `apply` does not understand.
    #[error("cannot apply this definition: {0}")]
    NotApplied(String),
}
impl Overlay {
    /// One statement that reads everything [`Overlay::from_rows`] needs, on the session's own connection.
    pub fn load_sql() -> &'static str {
        "SELECT NULL::pg_catalog.text, NULL::pg_catalog.text WHERE false"
    }
    /// Nothing is different for this session.
    pub fn is_empty(&self) -> bool {
        self.relations.is_empty()
    }
    /// Builds the session's layer over that catalog from the rows of [`Overlay::load_sql`].
    ///
    /// # Errors
    /// [`CatalogError::BadRow`] where a row is not understood.
    pub fn from_rows<'r>(
        _catalog: &Catalog,
        rows: impl IntoIterator<Item = (&'r str, &'r str)>,
    ) -> Result<Self, CatalogError> {
        match rows.into_iter().next() {
            None => Ok(Self::default()),
            Some((kind, _)) => Err(CatalogError::BadRow {
                kind: kind.to_owned(),
                message: "not built".to_owned(),
            }),
        }
    }
    /// Applies one DDL statement.
    ///
    /// # Errors
    /// [`CatalogError::NotApplied`] where the statement is not understood.
    pub fn apply(
        &mut self,
        _catalog: &Catalog,
        _ddl: &crate::postgres::ParsedStatement,
        _path: &SearchPath,
    ) -> Result<(), CatalogError> {
        Err(CatalogError::NotApplied("not built".to_owned()))
    }
}
