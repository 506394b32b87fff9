//! What the database has: relations, columns, types, functions, operators. Two layers: a [`Catalog`] shared by all
//! sessions of a database, and an [`Overlay`] per session with its temporary relations and what its open
//! transaction created or changed. Everything is looked up through a [`CatalogView`] of both.

mod apply;
mod builtins;
mod code;
mod infer;
mod names;
mod rows;
mod types;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use row_masking::ColumnType;
use serde::{Deserialize, Serialize};

pub use code::{Cascade, CodeTable, Operand, UserCast, UserFunction, UserOperator};
pub use names::{quote_identifier, quote_qualified};
use types::TypeLayers;
pub use types::{FIRST_USER_OID, TypeEntry, TypeKind, TypeTable};

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
    /// Functions in its default that are not built in, `schema.name`.
    pub default_code: Vec<String>,
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
    /// A sequence that a column owns: (relation, column). An index or TOAST table: (its table, 0).
    pub owned_by: Option<(Oid, AttNum)>,
    /// Its row type, 0 where it has none.
    pub row_type: Oid,
    /// A sequence: the columns whose default calls it.
    pub used_by: Vec<(Oid, AttNum)>,
    /// Relations whose rows change when rows of this one are deleted or get another key.
    pub cascades: Vec<Cascade>,
    /// Names of its rules, but for the one that makes a view.
    pub rules: Vec<String>,
    /// Where the unqualified names of `definition` are looked up.
    pub definition_path: SearchPath,
    /// The highest number that a column ever had here, dropped ones too.
    pub last_number: AttNum,
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
/// first if it exists, `pg_catalog` where the server puts it, `"$user"` replaced, missing schemas left out: what
/// `current_schemas(true)` says. Where it lists no temporary schema, the session's own is looked into first, unless an
/// empty name says that it is not (the paths of view definitions); where it lists no `pg_catalog`, that comes next.
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
    /// Names of the schemas, temporary ones left out.
    pub schemas: Arc<BTreeSet<String>>,
    /// All types.
    pub types: Arc<TypeTable>,
    /// Functions, operators and casts that are not built in.
    pub code: Arc<CodeTable>,
    /// The OID that [`Catalog::apply`] gives next; 0 = the first one.
    pub next_oid: Oid,
}

/// What differs for one session: its temporary relations, and all that its open transaction created or changed.
#[derive(Debug, Clone, Default)]
pub struct Overlay {
    /// Created or changed relations (`Some`), dropped ones (`None`).
    pub relations: BTreeMap<Oid, Option<Arc<Relation>>>,
    /// The session's temporary schema, `pg_temp_N`, once it has one.
    pub temp_schema: Option<String>,
    /// Created or changed types.
    pub types: TypeTable,
    /// Created or changed functions, operators and casts.
    pub code: CodeTable,
    /// Schemas that the open transaction created.
    pub schemas: BTreeSet<String>,
    /// Schemas that it dropped.
    pub dropped_schemas: BTreeSet<String>,
    /// The OID that [`Overlay::apply`] gives next; 0 = the first one.
    pub next_oid: Oid,
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
    /// Some overload reads or writes files of the server.
    pub server_files: bool,
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

pub(crate) fn unlisted() -> CodeFacts {
    CodeFacts {
        origin: crate::facts::FunctionOrigin::Unknown,
        class: crate::facts::FunctionClass::Unlisted,
        quiet: false,
        aggregate: false,
        server_files: false,
        relations: Vec::new(),
    }
}

impl<'a> CatalogView<'a> {
    /// The relation of that OID, as this session sees it.
    pub fn relation(&self, oid: Oid) -> Option<&'a Relation> {
        match self.overlay.relations.get(&oid) {
            Some(changed) => changed.as_deref(),
            None => self.catalog.relations.get(&oid).map(Arc::as_ref),
        }
    }
    /// The relation that a name means: an unqualified one is looked up along the search path.
    pub fn resolve_relation(&self, schema: Option<&str>, name: &str) -> Option<&'a Relation> {
        match schema {
            Some(schema) => self.relation_in(self.own_schema(schema)?, name),
            None => self.schemas().find_map(|schema| self.relation_in(schema, name)),
        }
    }
    /// The type that a (possibly qualified) name means. `[]` at its end asks for the array over it. `modifiers` are
    /// those the grammar gives: `varchar(20)` has \[20\], `interval day to second(3)` has \[mask, 3\].
    ///
    /// A user type with modifiers has no answer: only its own code could say what they mean.
    pub fn resolve_type(&self, schema: Option<&str>, name: &str, modifiers: &[i32]) -> Option<ColumnType> {
        let (name, is_array) = match name.strip_suffix("[]") {
            Some(element) => (element, true),
            None => (name, false),
        };
        let entry = self.resolve_type_entry(schema, name)?;
        let modifier = if modifiers.is_empty() {
            -1
        } else {
            let target = match entry.kind {
                TypeKind::Array { element } => element,
                _ => entry.oid,
            };
            types::modifier_from(target, modifiers)?
        };
        let layers = self.types();
        let oid = if is_array {
            layers.array_of(entry.oid)?
        } else {
            entry.oid
        };
        layers.column_type(oid, modifier, types::default_collation(entry), None)
    }
    /// The type that a (possibly qualified) name means, without modifiers.
    pub fn resolve_type_entry(&self, schema: Option<&str>, name: &str) -> Option<&'a TypeEntry> {
        let layers = self.types();
        match schema {
            Some(schema) => layers.named(self.own_schema(schema)?, name),
            None => self.schemas().find_map(|schema| layers.named(schema, name)),
        }
    }
    /// The type of that OID.
    pub fn type_entry(&self, oid: Oid) -> Option<&'a TypeEntry> {
        self.types().get(oid)
    }
    /// A type without modifier, as columns have it; an OID that FunctionCall, Parse or RowDescription names.
    pub fn type_by_oid(&self, oid: Oid) -> Option<ColumnType> {
        let layers = self.types();
        let entry = layers.get(oid)?;
        layers.column_type(oid, -1, types::default_collation(entry), None)
    }
    /// What the closed list says of a relation in `pg_catalog` or `information_schema`; `None` for any other.
    pub fn system_relation(&self, oid: Oid) -> Option<SystemRelation> {
        let relation = self.relation(oid)?;
        if !matches!(relation.schema.as_str(), "pg_catalog" | "information_schema") {
            return None;
        }
        // What an extension put there is not the server's, whatever its name.
        let listed = builtins::of_major(self.catalog.server_major).filter(|_| oid < FIRST_USER_OID);
        Some(listed.map_or(SystemRelation::NeedsRule, |builtins| builtins.access(relation)))
    }
    /// The schema that is meant: `pg_temp` is the session's own temporary schema.
    fn own_schema<'s>(&self, schema: &'s str) -> Option<&'s str>
    where
        'a: 's,
    {
        if schema == "pg_temp" {
            self.overlay.temp_schema.as_deref()
        } else {
            Some(schema)
        }
    }
    pub(crate) fn types(&self) -> TypeLayers<'a> {
        let upper = &self.overlay.types;
        TypeLayers {
            upper: (!upper.is_empty()).then_some(upper),
            lower: &self.catalog.types,
        }
    }
    fn relation_in(&self, schema: &str, name: &str) -> Option<&'a Relation> {
        let changed = self.overlay.relations.values().flatten();
        if let Some(found) = changed.into_iter().find(|r| r.name == name && r.schema == schema) {
            return Some(found);
        }
        let oid = *self.catalog.names.get(schema)?.get(name)?;
        // Dropped, renamed or moved by this session: not under this name any more.
        if self.overlay.relations.contains_key(&oid) {
            return None;
        }
        self.catalog.relations.get(&oid).map(Arc::as_ref)
    }
    /// The schemas that unqualified names are looked up in.
    fn schemas(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        let (overlay, path) = (self.overlay, self.path);
        let temp = overlay.temp_schema.as_deref();
        // A path read before the temporary schema existed does not list it, and it is looked into first all the same.
        let temp_is_placed = path
            .0
            .iter()
            .any(|schema| schema.is_empty() || schema == "pg_temp" || Some(schema.as_str()) == temp);
        let catalog_is_placed = path.0.iter().any(|schema| schema == "pg_catalog");
        let implied_temp = if temp_is_placed { None } else { temp };
        let implied_catalog = (!catalog_is_placed).then_some("pg_catalog");
        let listed = path.0.iter().filter_map(move |schema| {
            if schema == "pg_temp" {
                overlay.temp_schema.as_deref()
            } else {
                Some(schema.as_str())
            }
        });
        implied_temp.into_iter().chain(implied_catalog).chain(listed)
    }
}

impl Catalog {
    /// The generated built-ins of a server major, and nothing else. `None` where that major is not reviewed yet.
    pub fn builtins(server_major: u16) -> Option<Self> {
        static BUILT: Mutex<BTreeMap<u16, Catalog>> = Mutex::new(BTreeMap::new());
        let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = built.get(&server_major) {
            return Some(known.clone());
        }
        let catalog = rows::catalog(server_major, 0, builtins::catalog_rows(server_major)?).ok()?;
        built.insert(server_major, catalog.clone());
        Some(catalog)
    }
    /// One statement that reads everything [`Catalog::from_rows`] needs. Its rows are (kind, JSON); all names in it
    /// are schema-qualified, so it reads the same whatever the session's search_path is.
    pub fn load_sql() -> &'static str {
        rows::catalog_sql()
    }
    /// Builds the shared layer from the rows of [`Catalog::load_sql`].
    ///
    /// # Errors
    /// [`CatalogError`] where a row is not understood or the major is not reviewed.
    pub fn from_rows<'r>(
        server_major: u16,
        version: u64,
        rows: impl IntoIterator<Item = (&'r str, &'r str)>,
    ) -> Result<Self, CatalogError> {
        if builtins::of_major(server_major).is_none() {
            return Err(CatalogError::UnknownMajor(server_major));
        }
        rows::catalog(server_major, version, rows)
    }
    /// Applies one statement of a schema script (for `weir explain --schema`). One that defines nothing changes
    /// nothing. Temporary relations belong to a session: apply the script to an [`Overlay`] if it makes any.
    ///
    /// Needs a thread with a large stack, as parsing does.
    ///
    /// # Errors
    /// [`CatalogError::NotApplied`] where the statement is not understood; nothing is changed then.
    pub fn apply(
        &mut self,
        ddl: &crate::postgres::ParsedStatement,
        path: &SearchPath,
    ) -> Result<(), CatalogError> {
        let mut overlay = Overlay {
            next_oid: self.next_oid,
            ..Overlay::default()
        };
        overlay.apply(self, ddl, path)?;
        if overlay.temp_schema.is_some() {
            return Err(CatalogError::NotApplied(
                "temporary relations belong to a session".to_owned(),
            ));
        }
        self.absorb(overlay);
        Ok(())
    }
    /// Where unqualified names are looked up after that statement: `SET search_path`, or
    /// `SELECT pg_catalog.set_config('search_path', …)` with a literal, as `pg_dump` writes it.
    pub fn path_after(ddl: &crate::postgres::ParsedStatement, path: &SearchPath) -> SearchPath {
        apply::path_after(ddl.node(), path)
    }
    fn absorb(&mut self, overlay: Overlay) {
        self.version += 1;
        self.next_oid = overlay.next_oid;
        let relations = Arc::make_mut(&mut self.relations);
        let names = Arc::make_mut(&mut self.names);
        let changed: Vec<Oid> = overlay.relations.keys().copied().collect();
        for oid in &changed {
            if let Some(old) = relations.remove(oid)
                && let Some(of_schema) = names.get_mut(&old.schema)
                && of_schema.get(&old.name) == Some(oid)
            {
                of_schema.remove(&old.name);
            }
        }
        for relation in overlay.relations.into_values().flatten() {
            names
                .entry(relation.schema.clone())
                .or_default()
                .insert(relation.name.clone(), relation.oid);
            relations.insert(relation.oid, relation);
        }
        Arc::make_mut(&mut self.types).absorb(overlay.types);
        Arc::make_mut(&mut self.code).absorb(overlay.code);
        let schemas = Arc::make_mut(&mut self.schemas);
        for dropped in &overlay.dropped_schemas {
            schemas.remove(dropped);
        }
        schemas.extend(overlay.schemas);
    }
}

impl Overlay {
    /// One statement that reads everything [`Overlay::from_rows`] needs, on the session's own connection: its
    /// temporary relations, and what its open transaction created, changed or dropped.
    pub fn load_sql() -> &'static str {
        rows::overlay_sql()
    }
    /// Builds the session's layer over that catalog from the rows of [`Overlay::load_sql`].
    ///
    /// # Errors
    /// [`CatalogError::BadRow`] where a row is not understood.
    pub fn from_rows<'r>(
        catalog: &Catalog,
        rows: impl IntoIterator<Item = (&'r str, &'r str)>,
    ) -> Result<Self, CatalogError> {
        rows::overlay(catalog, rows)
    }
    /// Nothing is different for this session.
    pub fn is_empty(&self) -> bool {
        self.relations.is_empty()
            && self.types.is_empty()
            && self.code.is_empty()
            && self.schemas.is_empty()
            && self.temp_schema.is_none()
    }
    /// Applies one statement, as if this session had run it in its open transaction.
    ///
    /// Needs a thread with a large stack, as parsing does.
    ///
    /// # Errors
    /// [`CatalogError::NotApplied`] where the statement is not understood; nothing is changed then.
    pub fn apply(
        &mut self,
        catalog: &Catalog,
        ddl: &crate::postgres::ParsedStatement,
        path: &SearchPath,
    ) -> Result<(), CatalogError> {
        let mut changed = self.clone();
        // The library panics on nodes it did not expect. `changed` is then thrown away, whatever is in it.
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            apply::apply(catalog, &mut changed, path, ddl.node())
        }))
        .unwrap_or_else(|_| {
            Err(CatalogError::NotApplied(
                "a tree that its own library cannot walk".to_owned(),
            ))
        })?;
        *self = changed;
        Ok(())
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

#[cfg(test)]
mod tests;
