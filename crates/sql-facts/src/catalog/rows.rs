//! The statement that reads a server's catalog, and the layers built from its rows.
//!
//! One text serves both layers (`load.sql`): it differs in which relations are in scope and in whether only changed
//! types, functions and schemas are asked for.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, OnceLock};

use serde::de::{Deserializer, Visitor};
use serde::{Deserialize, de};

use super::code::{Cascade, CodeTable, UserCast, UserFunction, UserOperator};
use super::types::{TypeEntry, TypeKind, TypeLayers, TypeTable};
use super::{
    AttNum, Catalog, CatalogError, Column, Oid, Overlay, Persistence, Relation, RelationKind, SearchPath,
};

const LOAD: &str = include_str!("load.sql");

/// All that does not live in some session's temporary schema.
const SHARED_SCOPE: &str = "SELECT c.oid AS relation FROM pg_catalog.pg_class AS c \
WHERE c.relpersistence OPERATOR(pg_catalog.<>) 't'";

/// The session's temporary relations, and those with a catalog row written by its open transaction.
///
/// `age(xmin) <= 0` is true of rows whose writer is not older than the transaction's own id: its own rows, those of
/// its subtransactions, and perhaps rows that others committed since, which are as true. Without an id of its own
/// nothing was written, and no row that can be seen is that young.
const SESSION_SCOPE: &str = "SELECT c.oid AS relation FROM pg_catalog.pg_class AS c
  WHERE c.relnamespace OPERATOR(pg_catalog.=) pg_catalog.pg_my_temp_schema() OR {young c}
  UNION SELECT a.attrelid FROM pg_catalog.pg_attribute AS a WHERE {young a}
  UNION SELECT f.adrelid FROM pg_catalog.pg_attrdef AS f WHERE {young f}
  UNION SELECT i.indrelid FROM pg_catalog.pg_index AS i WHERE {young i}
  UNION SELECT h.inhrelid FROM pg_catalog.pg_inherits AS h WHERE {young h}
  UNION SELECT g.tgrelid FROM pg_catalog.pg_trigger AS g WHERE {young g}
  UNION SELECT r.ev_class FROM pg_catalog.pg_rewrite AS r WHERE {young r}
  UNION SELECT k.confrelid FROM pg_catalog.pg_constraint AS k WHERE {young k}
  UNION SELECT d.objid FROM pg_catalog.pg_depend AS d
    WHERE d.classid OPERATOR(pg_catalog.=) 1259::pg_catalog.oid AND {young d}
  UNION SELECT r.ev_class FROM pg_catalog.pg_rewrite AS r
    JOIN pg_catalog.pg_depend AS d ON d.classid OPERATOR(pg_catalog.=) 2618::pg_catalog.oid
      AND d.objid OPERATOR(pg_catalog.=) r.oid AND d.refclassid OPERATOR(pg_catalog.=) 1259::pg_catalog.oid
    JOIN pg_catalog.pg_class AS c ON c.oid OPERATOR(pg_catalog.=) d.refobjid
    LEFT JOIN pg_catalog.pg_attribute AS a ON a.attrelid OPERATOR(pg_catalog.=) c.oid AND {young a}
    WHERE {young c} OR a.attrelid IS NOT NULL";

/// All relations there are, so that the layer knows which ones the transaction dropped.
const ALIVE: &str = "UNION ALL
SELECT 'alive', COALESCE(pg_catalog.json_agg(c.oid)::pg_catalog.text, 'null')
FROM pg_catalog.pg_class AS c
WHERE c.relpersistence OPERATOR(pg_catalog.<>) 't' AND c.oid OPERATOR(pg_catalog.>=) 16384::pg_catalog.oid";

pub(super) fn catalog_sql() -> &'static str {
    static SQL: OnceLock<String> = OnceLock::new();
    SQL.get_or_init(|| {
        let mut sql = String::with_capacity(LOAD.len());
        for line in LOAD.lines() {
            match line.trim() {
                "/*scope*/" => sql.push_str(SHARED_SCOPE),
                note if note.starts_with("/*changed ") => continue,
                _ => sql.push_str(line),
            }
            sql.push('\n');
        }
        sql
    })
}

pub(super) fn overlay_sql() -> &'static str {
    static SQL: OnceLock<String> = OnceLock::new();
    SQL.get_or_init(|| {
        let mut sql = String::with_capacity(LOAD.len());
        for line in LOAD.lines() {
            let changed = line
                .trim()
                .strip_prefix("/*changed ")
                .and_then(|rest| rest.strip_suffix("*/"));
            match (line.trim(), changed.and_then(|rest| rest.split_once(' '))) {
                ("/*scope*/", _) => sql.push_str(&spell_young(SESSION_SCOPE)),
                (_, Some(("0", table))) => sql.push_str(&format!("  AND {}", young(table))),
                (_, Some((schema, table))) => sql.push_str(&format!(
                    "  AND ({schema} OPERATOR(pg_catalog.=) pg_catalog.pg_my_temp_schema() OR {})",
                    young(table)
                )),
                _ => sql.push_str(line),
            }
            sql.push('\n');
        }
        sql.push_str(ALIVE);
        sql
    })
}

fn young(table: &str) -> String {
    format!("pg_catalog.age({table}.xmin) OPERATOR(pg_catalog.<=) 0")
}

fn spell_young(scope: &str) -> String {
    let mut parts = scope.split("{young ");
    let mut spelled = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (table, rest) = part.split_once('}').unwrap_or((part, ""));
        spelled.push_str(&young(table));
        spelled.push_str(rest);
    }
    spelled
}

/// Builds the shared layer.
pub(super) fn catalog<'r>(
    server_major: u16,
    version: u64,
    rows: impl IntoIterator<Item = (&'r str, &'r str)>,
) -> Result<Catalog, CatalogError> {
    let read = Read::new(rows)?;
    let built = read.build(TypeLayers {
        upper: None,
        lower: &TypeTable::default(),
    })?;
    let mut names: BTreeMap<String, BTreeMap<String, Oid>> = BTreeMap::new();
    for relation in built.relations.values() {
        names
            .entry(relation.schema.clone())
            .or_default()
            .insert(relation.name.clone(), relation.oid);
    }
    Ok(Catalog {
        server_major,
        version,
        relations: Arc::new(
            built
                .relations
                .into_iter()
                .map(|(oid, r)| (oid, Arc::new(r)))
                .collect(),
        ),
        names: Arc::new(names),
        schemas: Arc::new(built.schemas),
        types: Arc::new(built.types),
        code: Arc::new(built.code),
        next_oid: 0,
    })
}

/// Builds the session's layer over the shared one.
pub(super) fn overlay<'r>(
    catalog: &Catalog,
    rows: impl IntoIterator<Item = (&'r str, &'r str)>,
) -> Result<Overlay, CatalogError> {
    let read = Read::new(rows)?;
    let temp_schema = read.temp_schema.clone();
    let alive = read.alive.clone();
    let built = read.build(TypeLayers {
        upper: None,
        lower: &catalog.types,
    })?;
    let mut relations: BTreeMap<Oid, Option<Arc<Relation>>> = built
        .relations
        .into_iter()
        .map(|(oid, relation)| (oid, Some(Arc::new(relation))))
        .collect();
    for oid in catalog.relations.keys() {
        if *oid >= super::FIRST_USER_OID && !alive.contains(oid) {
            relations.insert(*oid, None);
        }
    }
    let schemas = built
        .schemas
        .into_iter()
        .filter(|name| Some(name) != temp_schema.as_ref())
        .collect();
    Ok(Overlay {
        relations,
        temp_schema,
        types: built.types,
        code: built.code,
        schemas,
        next_oid: catalog.next_oid,
        ..Overlay::default()
    })
}

/// An OID; JSON functions of the server write it as a string.
#[derive(Debug, Clone, Copy)]
struct Id(Oid);

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OfStringOrNumber;
        impl Visitor<'_> for OfStringOrNumber {
            type Value = Id;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object id")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Id, E> {
                text.parse().map(Id).map_err(E::custom)
            }
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Id, E> {
                Oid::try_from(number).map(Id).map_err(E::custom)
            }
        }
        deserializer.deserialize_any(OfStringOrNumber)
    }
}

/// `oid, schema, name, typtype, typcategory, preferred, array oid, array name, what it is made of, modifier,
/// collation, user code, not null, checks, checks use user code`
#[derive(Deserialize)]
struct TypeRow(
    Id,
    String,
    String,
    char,
    char,
    bool,
    Option<Id>,
    Option<String>,
    Option<Id>,
    i32,
    Id,
    Option<bool>,
    bool,
    Option<Vec<String>>,
    bool,
);

/// `oid, schema, name, kind, persistence, row type, its array, its array's name, options, table of an index or TOAST
/// table, columns, last column number`
#[derive(Deserialize)]
struct RelationRow(
    Id,
    String,
    String,
    char,
    char,
    Id,
    Option<Id>,
    Option<String>,
    Option<Vec<String>>,
    Option<Id>,
    Option<Vec<ColumnRow>>,
    AttNum,
);

/// `number, name, type, modifier, not null, has default, generated, schema of collation, collation, type as written,
/// identity`
#[derive(Deserialize)]
struct ColumnRow(
    AttNum,
    String,
    Id,
    i32,
    bool,
    bool,
    bool,
    Option<String>,
    Option<String>,
    Option<String>,
    String,
);

/// `oid, schema, name, kind, arguments, defaults, variadic, argument types`
#[derive(Deserialize)]
struct FunctionRow(Id, String, String, char, usize, usize, bool, Vec<Id>);

/// The rows of one answer, sorted by kind.
#[derive(Default)]
struct Read {
    path: SearchPath,
    temp_schema: Option<String>,
    schemas: BTreeSet<String>,
    types: Vec<TypeRow>,
    relations: Vec<RelationRow>,
    views: HashMap<Oid, Option<String>>,
    primary: HashMap<Oid, Vec<AttNum>>,
    parents: HashMap<Oid, Vec<Oid>>,
    triggers: HashMap<Oid, Vec<(String, bool)>>,
    rules: HashMap<Oid, Vec<String>>,
    owned: HashMap<Oid, (Oid, AttNum)>,
    used: HashMap<Oid, Vec<(Oid, AttNum)>>,
    defaults: HashMap<(Oid, AttNum), Vec<String>>,
    generated: HashMap<(Oid, AttNum), Vec<AttNum>>,
    cascades: HashMap<Oid, Vec<Cascade>>,
    code: CodeTable,
    alive: BTreeSet<Oid>,
}

struct Built {
    relations: HashMap<Oid, Relation>,
    schemas: BTreeSet<String>,
    types: TypeTable,
    code: CodeTable,
}

impl Read {
    fn new<'r>(rows: impl IntoIterator<Item = (&'r str, &'r str)>) -> Result<Self, CatalogError> {
        let mut read = Self::default();
        for (kind, row) in rows {
            read.row(kind, row).map_err(|message| CatalogError::BadRow {
                kind: kind.to_owned(),
                message,
            })?;
        }
        if read.path.0.is_empty() {
            return Err(bad("session", "no such row".to_owned()));
        }
        Ok(read)
    }

    fn row(&mut self, kind: &str, row: &str) -> Result<(), String> {
        fn json<'j, T: Deserialize<'j>>(row: &'j str) -> Result<T, String> {
            serde_json::from_str(row).map_err(|e| e.to_string())
        }
        match kind {
            "session" => {
                let (path, temp_schema): (Vec<String>, Option<String>) = json(row)?;
                self.path = SearchPath(path);
                // What the server printed here without a schema was not of a temporary one.
                if temp_schema.is_none() {
                    self.path.0.push(String::new());
                }
                self.temp_schema = temp_schema;
            }
            "schema" => {
                self.schemas.insert(json(row)?);
            }
            "type" => self.types.push(json(row)?),
            "relation" => self.relations.push(json(row)?),
            "view" => {
                let (view, definition): (Id, Option<String>) = json(row)?;
                self.views.insert(view.0, definition);
            }
            "primary" => {
                let (relation, columns): (Id, Vec<AttNum>) = json(row)?;
                self.primary.insert(relation.0, columns);
            }
            "parent" => {
                let (child, parents): (Id, Vec<Id>) = json(row)?;
                self.parents
                    .insert(child.0, parents.into_iter().map(|parent| parent.0).collect());
            }
            "trigger" => {
                let (relation, name, before): (Id, String, bool) = json(row)?;
                self.triggers.entry(relation.0).or_default().push((name, before));
            }
            "rule" => {
                let (relation, name): (Id, String) = json(row)?;
                self.rules.entry(relation.0).or_default().push(name);
            }
            "owned" => {
                let (sequence, relation, column): (Id, Id, AttNum) = json(row)?;
                self.owned.insert(sequence.0, (relation.0, column));
            }
            "used" => {
                let (sequence, relation, column): (Id, Id, AttNum) = json(row)?;
                self.used
                    .entry(sequence.0)
                    .or_default()
                    .push((relation.0, column));
            }
            "default" => {
                let (relation, column, schema, name): (Id, AttNum, String, String) = json(row)?;
                self.defaults
                    .entry((relation.0, column))
                    .or_default()
                    .push(format!("{schema}.{name}"));
            }
            "generated" => {
                let (relation, column, sources): (Id, AttNum, Vec<AttNum>) = json(row)?;
                self.generated.insert((relation.0, column), sources);
            }
            "cascade" => {
                let (referenced, relation, on_delete, on_update): (Id, Id, bool, bool) = json(row)?;
                let cascade = Cascade {
                    relation: relation.0,
                    on_delete,
                    on_update,
                };
                self.cascades.entry(referenced.0).or_default().push(cascade);
            }
            "function" => self.code.add_function(function(json(row)?)),
            "operator" => {
                let (oid, schema, name, left, right, _function): (Id, String, String, Id, Id, Id) =
                    json(row)?;
                let operator = UserOperator {
                    oid: oid.0,
                    schema,
                    name,
                    left: left.0,
                    right: right.0,
                };
                self.code.add_operator(operator);
            }
            "cast" => {
                let (source, target, function, context): (Id, Id, Id, char) = json(row)?;
                self.code.add_cast(UserCast {
                    source: source.0,
                    target: target.0,
                    function: function.0,
                    implicit: context == 'i',
                });
            }
            "alive" => {
                let oids: Option<Vec<Id>> = json(row)?;
                self.alive = oids.unwrap_or_default().into_iter().map(|oid| oid.0).collect();
            }
            _ => return Err("unknown kind".to_owned()),
        }
        Ok(())
    }

    fn build(mut self, below: TypeLayers<'_>) -> Result<Built, CatalogError> {
        let mut types = TypeTable::default();
        for row in std::mem::take(&mut self.types) {
            add_type(&mut types, row)?;
        }
        for row in &self.relations {
            add_row_type(&mut types, row);
        }
        let mut relations = HashMap::with_capacity(self.relations.len());
        let layers = TypeLayers {
            upper: Some(&types),
            lower: below.lower,
        };
        for row in std::mem::take(&mut self.relations) {
            let relation = self.relation(row, layers)?;
            relations.insert(relation.oid, relation);
        }
        Ok(Built {
            relations,
            schemas: self.schemas,
            types,
            code: self.code,
        })
    }

    fn relation(&mut self, row: RelationRow, types: TypeLayers<'_>) -> Result<Relation, CatalogError> {
        let RelationRow(
            Id(oid),
            schema,
            name,
            kind,
            persistence,
            Id(row_type),
            _,
            _,
            options,
            table,
            columns,
            last_number,
        ) = row;
        let kind = match kind {
            'r' => RelationKind::Table,
            'p' => RelationKind::PartitionedTable,
            'v' => RelationKind::View,
            'm' => RelationKind::MaterializedView,
            'f' => RelationKind::ForeignTable,
            'S' => RelationKind::Sequence,
            'c' => RelationKind::CompositeType,
            't' => RelationKind::Toast,
            'i' | 'I' => RelationKind::Index,
            other => {
                return Err(bad(
                    "relation",
                    format!("`{name}` is of the unknown kind `{other}`"),
                ));
            }
        };
        let persistence = match persistence {
            'p' => Persistence::Permanent,
            'u' => Persistence::Unlogged,
            't' => Persistence::Temporary,
            other => {
                return Err(bad(
                    "relation",
                    format!("`{name}` is of the unknown persistence `{other}`"),
                ));
            }
        };
        let columns = columns
            .unwrap_or_default()
            .into_iter()
            .map(|column| {
                self.column(oid, column, types)
                    .map_err(|e| bad("relation", format!("`{name}`: {e}")))
            })
            .collect::<Result<Vec<_>, _>>()?;
        let triggers = self.triggers.remove(&oid).unwrap_or_default();
        let definition = self.views.remove(&oid).flatten();
        Ok(Relation {
            oid,
            schema,
            name,
            kind,
            persistence,
            columns,
            primary_key: self.primary.remove(&oid).unwrap_or_default(),
            parents: self.parents.remove(&oid).unwrap_or_default(),
            definition_path: if definition.is_some() {
                self.path.clone()
            } else {
                SearchPath::default()
            },
            definition,
            security_invoker: options
                .unwrap_or_default()
                .iter()
                .any(|option| is_security_invoker(option)),
            before_row_triggers: triggers.iter().any(|(_, before)| *before),
            triggers: triggers.into_iter().map(|(name, _)| name).collect(),
            owned_by: self.owned.remove(&oid).or(table.map(|table| (table.0, 0))),
            row_type,
            used_by: self.used.remove(&oid).unwrap_or_default(),
            cascades: self.cascades.remove(&oid).unwrap_or_default(),
            rules: self.rules.remove(&oid).unwrap_or_default(),
            last_number,
        })
    }

    fn column(&mut self, relation: Oid, row: ColumnRow, types: TypeLayers<'_>) -> Result<Column, String> {
        let ColumnRow(
            number,
            name,
            Id(oid),
            modifier,
            not_null,
            has_default,
            generated,
            schema,
            collation,
            written,
            identity,
        ) = row;
        let collation = schema.as_deref().zip(collation.as_deref());
        let column_type = types
            .column_type(oid, modifier, collation, written.as_deref())
            .ok_or_else(|| format!("the type {oid} of column `{name}` is not known"))?;
        let generated_from = if generated {
            Some(self.generated.remove(&(relation, number)).unwrap_or_default())
        } else {
            None
        };
        Ok(Column {
            number,
            name,
            column_type,
            not_null,
            has_default: has_default || !identity.is_empty(),
            generated_from,
            default_code: self.defaults.remove(&(relation, number)).unwrap_or_default(),
        })
    }
}

fn bad(kind: &str, message: String) -> CatalogError {
    CatalogError::BadRow {
        kind: kind.to_owned(),
        message,
    }
}

fn add_type(types: &mut TypeTable, row: TypeRow) -> Result<(), CatalogError> {
    let TypeRow(
        Id(oid),
        schema,
        name,
        kind,
        category,
        preferred,
        array,
        array_name,
        part,
        modifier,
        Id(collation),
        user_code,
        not_null,
        checks,
        checks_user_code,
    ) = row;
    let user_code = user_code.unwrap_or(false);
    let part = part.map_or(0, |part| part.0);
    let kind = match kind {
        'b' => TypeKind::Base { user_code },
        'd' => TypeKind::Domain {
            base: part,
            modifier,
            not_null,
            checks: checks.unwrap_or_default(),
            user_code: checks_user_code,
        },
        'e' => TypeKind::Enum,
        'c' => TypeKind::Composite { relation: part },
        'r' => TypeKind::Range {
            subtype: part,
            user_code,
        },
        'm' => TypeKind::Multirange { range: part },
        'p' => TypeKind::Pseudo,
        other => return Err(bad("type", format!("`{name}` is of the unknown kind `{other}`"))),
    };
    if let (Some(array), Some(array_name)) = (array, array_name) {
        types.insert(array_entry(array.0, &schema, array_name, oid, collation));
    }
    types.insert(TypeEntry {
        oid,
        schema,
        name,
        kind,
        category,
        preferred,
        collation,
    });
    Ok(())
}

fn add_row_type(types: &mut TypeTable, row: &RelationRow) {
    let RelationRow(Id(relation), schema, name, _, _, Id(row_type), array, array_name, ..) = row;
    if *row_type == 0 {
        return;
    }
    types.insert(TypeEntry {
        oid: *row_type,
        schema: schema.clone(),
        name: name.clone(),
        kind: TypeKind::Composite { relation: *relation },
        category: 'C',
        preferred: false,
        collation: 0,
    });
    if let (Some(array), Some(array_name)) = (array, array_name) {
        types.insert(array_entry(array.0, schema, array_name.clone(), *row_type, 0));
    }
}

pub(super) fn array_entry(oid: Oid, schema: &str, name: String, element: Oid, collation: Oid) -> TypeEntry {
    TypeEntry {
        oid,
        schema: schema.to_owned(),
        name,
        kind: TypeKind::Array { element },
        category: 'A',
        preferred: false,
        collation,
    }
}

fn function(row: FunctionRow) -> UserFunction {
    let FunctionRow(Id(oid), schema, name, kind, arguments, defaults, variadic, types) = row;
    let fewest = arguments
        .saturating_sub(defaults)
        .saturating_sub(usize::from(variadic));
    UserFunction {
        oid,
        schema,
        name,
        kind,
        arguments_min: fewest,
        arguments_max: (!variadic).then_some(arguments),
        arguments: types.into_iter().map(|oid| oid.0).collect(),
    }
}

/// `security_invoker=true`, as `pg_class.reloptions` holds it: the value as it was written.
pub(super) fn is_security_invoker(option: &str) -> bool {
    let Some((name, value)) = option.split_once('=') else {
        return false;
    };
    // A boolean may be cut short: t, tr, tru; on; y, ye; 1.
    let value = value.to_ascii_lowercase();
    let is_short_for = |word: &str| !value.is_empty() && word.starts_with(&value);
    name == "security_invoker"
        && (is_short_for("true") || is_short_for("yes") || value == "on" || value == "1")
}
