//! DDL applied to a session's layer, as the server would have applied it.
//!
//! What is not understood is [`CatalogError::NotApplied`]. Where the exact effect cannot be told from the text (the
//! name of a constraint that is dropped), what stays in the layer is the stricter of both.

mod alter;
mod code;
mod object;
pub(super) mod parts;
mod query;
mod table;

use std::sync::Arc;

use pg_raw_parse::list::NodeList;
use pg_raw_parse::raw::{AlterTableType, CoercionContext, ConstrType, FunctionParameterMode, ObjectType};
use pg_raw_parse::raw::{TableLikeOption, VariableSetKind};
use pg_raw_parse::{ConstValue, Node, nodes};

use super::code::{Cascade, UserCast, UserFunction, UserOperator};
use super::rows::{array_entry, is_security_invoker};
use super::types::{TypeEntry, TypeKind};
use super::{
    AttNum, Catalog, CatalogError, CatalogView, Column, Oid, Overlay, Persistence, Relation, RelationKind,
    SearchPath, infer,
};
use parts::*;
use row_masking::ColumnType;

/// Where made-up OIDs begin; a server counts up from 16384 and is not expected there.
const FIRST_SYNTHETIC_OID: Oid = 0x8000_0000;
/// The temporary schema of a session that had none yet. The server's real name comes with the next read-back.
const NEW_TEMP_SCHEMA: &str = "pg_temp_0";
/// Longest identifier, in bytes.
const IDENTIFIER_BYTES_MAX: usize = 63;

type Applied<T> = Result<T, CatalogError>;

pub(super) fn apply(
    catalog: &Catalog,
    overlay: &mut Overlay,
    path: &SearchPath,
    node: Node<'_>,
) -> Applied<()> {
    Change {
        catalog,
        overlay,
        path,
    }
    .statement(node)
}

pub(super) fn path_after(node: Node<'_>, path: &SearchPath) -> SearchPath {
    let names = match node {
        Node::VariableSetStmt(set)
            if set.kind == VariableSetKind::VAR_SET_VALUE && set.name() == Some("search_path") =>
        {
            let values = set.args().iter().map(|value| match value {
                Node::A_Const(constant) => constant.val().and_then(|v| v.string_value().map(str::to_owned)),
                _ => None,
            });
            values.collect::<Option<Vec<String>>>()
        }
        Node::SelectStmt(select) => match (select.from_clause().is_empty(), select.target_list().first()) {
            (true, Some(target)) => match target.val() {
                Node::FuncCall(call) if words(call.funcname()).last().is_some_and(|n| n == "set_config") => {
                    let literal = |place| match call.args().get(place) {
                        Some(Node::A_Const(constant)) => {
                            constant.val().and_then(|v| v.string_value().map(str::to_owned))
                        }
                        _ => None,
                    };
                    match (literal(0).as_deref(), literal(1)) {
                        (Some("search_path"), Some(value)) => Some(split_path(&value)),
                        _ => None,
                    }
                }
                _ => None,
            },
            _ => None,
        },
        _ => None,
    };
    names.map_or_else(|| path.clone(), SearchPath)
}

/// The identifiers of a `search_path` value.
fn split_path(value: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut name = String::new();
    let mut quoted = false;
    let mut characters = value.chars().peekable();
    while let Some(c) = characters.next() {
        match c {
            '"' if quoted && characters.peek() == Some(&'"') => {
                characters.next();
                name.push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => names.push(std::mem::take(&mut name)),
            c if !quoted && c.is_whitespace() => {}
            c if quoted => name.push(c),
            c => name.push(c.to_ascii_lowercase()),
        }
    }
    names.push(name);
    names.retain(|name| !name.is_empty());
    names
}

/// One statement being applied.
struct Change<'c> {
    catalog: &'c Catalog,
    overlay: &'c mut Overlay,
    path: &'c SearchPath,
}

/// A column as a CREATE or ALTER TABLE says it, with what else it makes.
struct NewColumn {
    column: Column,
    /// It is (part of) the primary key.
    primary: bool,
    /// A sequence to make.
    sequence: Sequence,
    /// Sequences its default calls.
    calls: Vec<Oid>,
    /// Relations it references, with what happens here when they change.
    references: Vec<(Oid, Cascade)>,
    /// GENERATED ALWAYS AS: the columns it names, known only when all columns are.
    generated_names: Option<Vec<String>>,
}

/// The sequence that comes with a column.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Sequence {
    No,
    /// serial: the default calls it.
    Called,
    /// GENERATED … AS IDENTITY: no default is stored. Its name where one is written (pg_dump does).
    Identity(Option<(Option<String>, String)>),
}

impl Change<'_> {
    fn statement(&mut self, node: Node<'_>) -> Applied<()> {
        match node {
            Node::CreateStmt(create) => self.create_table(create),
            Node::ViewStmt(view) => self.create_view(view),
            Node::CreateTableAsStmt(create) => {
                let kind = if create.objtype == ObjectType::OBJECT_MATVIEW {
                    RelationKind::MaterializedView
                } else {
                    RelationKind::Table
                };
                let into = create
                    .into()
                    .ok_or_else(|| not_applied("CREATE TABLE AS without a name"))?;
                self.create_as(into, create.query(), kind, create.if_not_exists)
            }
            Node::SelectStmt(select) => self.select_into(select),
            Node::AlterTableStmt(alter) => self.alter_table(alter),
            Node::RenameStmt(rename) => self.rename(rename),
            Node::AlterObjectSchemaStmt(alter) => self.set_schema(alter),
            Node::DropStmt(drop) => self.drop_objects(drop),
            Node::CompositeTypeStmt(composite) => self.create_composite(composite),
            Node::CreateEnumStmt(create) => {
                self.create_type(&strings(create.type_name()), TypeKind::Enum, 'E')
            }
            Node::CreateDomainStmt(create) => self.create_domain(create),
            Node::AlterDomainStmt(alter) => self.alter_domain(alter),
            Node::CreateRangeStmt(create) => self.create_range(create),
            Node::CreateSeqStmt(create) => {
                let Some(at) = create.sequence() else {
                    return Err(not_applied("a sequence without a name"));
                };
                let Some((schema, persistence)) = self.home_of(at, create.if_not_exists)? else {
                    return Ok(());
                };
                let oid = self.create_sequence(schema, name_of(at), persistence)?;
                self.own_sequence(oid, create.options())
            }
            Node::AlterSeqStmt(alter) => {
                let Some(relation) = alter.sequence().and_then(|at| self.find(at)) else {
                    return Err(not_applied("the sequence is not there"));
                };
                self.own_sequence(relation.oid, alter.options())
            }
            Node::CreateSchemaStmt(create) => self.create_schema(create),
            Node::CreateFunctionStmt(create) => self.create_function(create),
            Node::DefineStmt(define) => self.define(define),
            Node::CreateCastStmt(create) => self.create_cast(create),
            Node::CreateTrigStmt(trigger) => self.create_trigger(trigger),
            Node::RuleStmt(rule) => {
                let name = rule.rulename().unwrap_or_default().to_owned();
                let relation = self.existing(rule.relation())?;
                self.edit(relation, |relation| {
                    if !relation.rules.contains(&name) {
                        relation.rules.push(name);
                    }
                });
                Ok(())
            }
            Node::CreateExtensionStmt(create) if create.extname() == Some("plpgsql") => Ok(()),
            Node::CreateExtensionStmt(create) => Err(not_applied(&format!(
                "CREATE EXTENSION {}: what it makes is not in this text",
                create.extname().unwrap_or_default()
            ))),
            other if changes_nothing(other) => Ok(()),
            other => Err(not_applied(&format!(
                "a statement of the kind {}",
                kind_of(other)
            ))),
        }
    }

    // Looking things up.

    fn view(&self) -> CatalogView<'_> {
        CatalogView {
            catalog: self.catalog,
            overlay: self.overlay,
            path: self.path,
        }
    }
    fn find(&self, at: &nodes::RangeVar) -> Option<&Relation> {
        self.view().resolve_relation(at.schemaname(), at.relname()?)
    }
    fn existing(&self, at: Option<&nodes::RangeVar>) -> Applied<Oid> {
        let at = at.ok_or_else(|| not_applied("a relation without a name"))?;
        let found = self.find(at).map(|relation| relation.oid);
        found.ok_or_else(|| not_applied(&format!("relation `{}` is not there", written(at))))
    }
    fn relation(&self, oid: Oid) -> Applied<Arc<Relation>> {
        let known = match self.overlay.relations.get(&oid) {
            Some(changed) => changed.clone(),
            None => self.catalog.relations.get(&oid).cloned(),
        };
        known.ok_or_else(|| not_applied("a relation that another one rests on is not there"))
    }
    /// All relations as they are now.
    fn relations(&self) -> Vec<Arc<Relation>> {
        let below = self
            .catalog
            .relations
            .iter()
            .filter(|(oid, _)| !self.overlay.relations.contains_key(oid));
        let changed = self.overlay.relations.values().flatten();
        changed
            .chain(below.map(|(_, relation)| relation))
            .cloned()
            .collect()
    }
    fn children(&self, parent: Oid) -> Vec<Oid> {
        let mut family = self.relations();
        family.retain(|relation| relation.parents.contains(&parent));
        family.iter().map(|relation| relation.oid).collect()
    }

    // Changing things.

    fn new_oid(&mut self) -> Oid {
        let oid = self
            .overlay
            .next_oid
            .max(self.catalog.next_oid)
            .max(FIRST_SYNTHETIC_OID);
        self.overlay.next_oid = oid.saturating_add(1);
        oid
    }
    fn put(&mut self, relation: Relation) {
        self.overlay
            .relations
            .insert(relation.oid, Some(Arc::new(relation)));
    }
    fn edit(&mut self, oid: Oid, change: impl FnOnce(&mut Relation)) {
        if let Ok(relation) = self.relation(oid) {
            let mut relation = relation.as_ref().clone();
            change(&mut relation);
            self.put(relation);
        }
    }
    /// Where a new relation goes; `None` where it is there already and IF NOT EXISTS says that this is fine.
    fn home_of(
        &mut self,
        at: &nodes::RangeVar,
        if_not_exists: bool,
    ) -> Applied<Option<(String, Persistence)>> {
        let temporary = u8::try_from(at.relpersistence) == Ok(b't')
            || at.schemaname() == Some("pg_temp")
            || at
                .schemaname()
                .is_some_and(|schema| Some(schema) == self.overlay.temp_schema.as_deref());
        let schema = if temporary {
            self.overlay
                .temp_schema
                .get_or_insert_with(|| NEW_TEMP_SCHEMA.to_owned())
                .clone()
        } else {
            self.home(at.schemaname())?
        };
        if self.view().relation_in(&schema, name_of(at)).is_some() {
            return if if_not_exists {
                Ok(None)
            } else {
                Err(already(&written(at)))
            };
        }
        let persistence = match u8::try_from(at.relpersistence) {
            _ if temporary => Persistence::Temporary,
            Ok(b'u') => Persistence::Unlogged,
            _ => Persistence::Permanent,
        };
        Ok(Some((schema, persistence)))
    }
    /// The schema in which a new object is made.
    fn home(&self, schema: Option<&str>) -> Applied<String> {
        let there = |name: &str| {
            !self.overlay.dropped_schemas.contains(name)
                && (self.catalog.schemas.contains(name) || self.overlay.schemas.contains(name))
        };
        match schema {
            Some(schema) if there(schema) => Ok(schema.to_owned()),
            Some(schema) => Err(not_applied(&format!("schema `{schema}` is not there"))),
            None => {
                // pg_catalog and the temporary schema are where the server looks, not where it makes things.
                let own = self.overlay.temp_schema.as_deref();
                let mut candidates = self.path.0.iter().filter(|name| {
                    name.as_str() != "pg_catalog" && Some(name.as_str()) != own && there(name)
                });
                candidates
                    .next()
                    .cloned()
                    .ok_or_else(|| not_applied("no schema of the search path is there"))
            }
        }
    }
    fn named_home(&self, names: &[String]) -> Applied<(String, String)> {
        match names {
            [name] => Ok((self.home(None)?, name.clone())),
            [schema, name] => Ok((self.home(Some(schema))?, name.clone())),
            _ => Err(not_applied("a name of more than two parts")),
        }
    }
    fn create_type(&mut self, names: &[String], kind: TypeKind, category: char) -> Applied<()> {
        let (schema, name) = self.named_home(names)?;
        if self.view().types().named(&schema, &name).is_some() {
            return Err(already(&name));
        }
        let oid = self.new_oid();
        self.add_type(oid, schema, name, kind, category, 0);
        Ok(())
    }
    /// Adds a type and the array over it.
    fn add_type(
        &mut self,
        oid: Oid,
        schema: String,
        name: String,
        kind: TypeKind,
        category: char,
        collation: Oid,
    ) {
        let array = self.new_oid();
        let array_name = self.array_name(&schema, &name);
        self.overlay
            .types
            .insert(array_entry(array, &schema, array_name, oid, collation));
        self.overlay.types.insert(TypeEntry {
            oid,
            schema,
            name,
            kind,
            category,
            preferred: false,
            collation,
        });
    }
    /// `_name`, cut to the length of an identifier. Where that is taken: before 16 with more underscores, then with a
    /// number behind.
    fn array_name(&self, schema: &str, name: &str) -> String {
        let taken = |array: &str| self.view().types().named(schema, array).is_some();
        if self.catalog.server_major >= 16 {
            let numbered = |number: u32| {
                let label = if number == 0 {
                    String::new()
                } else {
                    format!("_{number}")
                };
                format!("_{}{label}", cut(name, IDENTIFIER_BYTES_MAX - 1 - label.len()))
            };
            return (0..u32::MAX)
                .map(numbered)
                .find(|array| !taken(array))
                .unwrap_or_default();
        }
        let mut array = name.to_owned();
        loop {
            array = cut(&format!("_{array}"), IDENTIFIER_BYTES_MAX).to_owned();
            if !taken(&array) || array.starts_with("________") {
                return array;
            }
        }
    }
    fn remove_type(&mut self, oid: Oid) {
        if let Some(array) = self.view().types().array_of(oid) {
            self.overlay.types.hide(array);
        }
        self.overlay.types.hide(oid);
    }
    /// Gives a relation, its row type and the array over that another name or schema.
    fn move_relation(&mut self, oid: Oid, schema: &str, name: &str) -> Applied<()> {
        if self
            .view()
            .relation_in(schema, name)
            .is_some_and(|found| found.oid != oid)
        {
            return Err(already(name));
        }
        let row_type = self.relation(oid)?.row_type;
        self.edit(oid, |relation| {
            relation.schema = schema.to_owned();
            relation.name = name.to_owned();
        });
        self.move_type(row_type, schema, name);
        Ok(())
    }
    fn move_type(&mut self, oid: Oid, schema: &str, name: &str) {
        let layers = self.view().types();
        let Some(mut entry) = layers.get(oid).cloned() else {
            return;
        };
        let array = layers.array_of(oid).and_then(|array| layers.get(array)).cloned();
        entry.schema = schema.to_owned();
        entry.name = name.to_owned();
        self.overlay.types.insert(entry);
        if let Some(mut array) = array {
            array.schema = schema.to_owned();
            array.name = self.array_name(schema, name);
            self.overlay.types.insert(array);
        }
        self.spell_again(oid);
    }
    /// Columns of a type (or of arrays over it) that has another name now.
    fn spell_again(&mut self, oid: Oid) {
        let array = self.view().types().array_of(oid);
        let concerned = |column: &Column| {
            let of = &column.column_type;
            [of.oid, of.base_oid]
                .iter()
                .any(|it| *it == oid || Some(*it) == array)
        };
        for relation in self
            .relations()
            .into_iter()
            .filter(|r| r.columns.iter().any(concerned))
        {
            let mut relation = relation.as_ref().clone();
            let layers = self.view().types();
            for column in relation.columns.iter_mut().filter(|column| concerned(column)) {
                let of = &mut column.column_type;
                if let Some(spelled) = layers.column_type(of.oid, of.modifier, None, None) {
                    of.sql = spelled.sql;
                }
            }
            self.put(relation);
        }
    }

    // Types of columns.

    fn column_type(
        &self,
        name: Option<&nodes::TypeName>,
        collation: Option<&nodes::CollateClause>,
    ) -> Applied<ColumnType> {
        let name = name.ok_or_else(|| not_applied("a column without a type"))?;
        let resolved = resolve_type_name(self.view(), name)?;
        let Some(collation) = collation else {
            return Ok(resolved);
        };
        let names = words(collation.collname());
        let (schema, collation) = match names.as_slice() {
            [name] => ("pg_catalog", name),
            [schema, name] => (schema.as_str(), name),
            _ => return Err(not_applied("a collation of more than two parts")),
        };
        if names.len() == 1 && !is_built_in_collation(collation) {
            return Err(not_applied(&format!(
                "collation `{collation}`: write it with its schema"
            )));
        }
        let own = Some((schema, collation.as_str())).filter(|own| *own != ("pg_catalog", "default"));
        let layers = self.view().types();
        let retyped = layers.column_type(resolved.oid, resolved.modifier, own, None);
        let retyped = retyped.ok_or_else(|| not_applied("a type with a modifier and a collation"))?;
        Ok(ColumnType {
            collation: retyped.collation,
            ..resolved
        })
    }
}

/// Statements that define nothing the catalog keeps.
fn changes_nothing(node: Node<'_>) -> bool {
    matches!(
        node,
        Node::None
            | Node::InsertStmt(_)
            | Node::UpdateStmt(_)
            | Node::DeleteStmt(_)
            | Node::MergeStmt(_)
            | Node::CopyStmt(_)
            | Node::TruncateStmt(_)
            | Node::LockStmt(_)
            | Node::TransactionStmt(_)
            | Node::VariableSetStmt(_)
            | Node::VariableShowStmt(_)
            | Node::ConstraintsSetStmt(_)
            | Node::PrepareStmt(_)
            | Node::DeallocateStmt(_)
            | Node::DeclareCursorStmt(_)
            | Node::FetchStmt(_)
            | Node::ClosePortalStmt(_)
            | Node::ListenStmt(_)
            | Node::UnlistenStmt(_)
            | Node::NotifyStmt(_)
            | Node::VacuumStmt(_)
            | Node::CheckPointStmt(_)
            | Node::ReindexStmt(_)
            | Node::ClusterStmt(_)
            | Node::RefreshMatViewStmt(_)
            | Node::CommentStmt(_)
            | Node::SecLabelStmt(_)
            | Node::GrantStmt(_)
            | Node::GrantRoleStmt(_)
            | Node::AlterDefaultPrivilegesStmt(_)
            | Node::CreateRoleStmt(_)
            | Node::AlterRoleStmt(_)
            | Node::AlterRoleSetStmt(_)
            | Node::DropRoleStmt(_)
            | Node::AlterOwnerStmt(_)
            | Node::IndexStmt(_)
            | Node::CreateStatsStmt(_)
            | Node::AlterStatsStmt(_)
            | Node::CreatePolicyStmt(_)
            | Node::AlterPolicyStmt(_)
            | Node::AlterEnumStmt(_)
            | Node::AlterFunctionStmt(_)
            | Node::AlterOperatorStmt(_)
            | Node::AlterDatabaseStmt(_)
            | Node::AlterDatabaseSetStmt(_)
            | Node::CreatePublicationStmt(_)
            | Node::AlterPublicationStmt(_)
            | Node::CreateOpClassStmt(_)
            | Node::CreateOpFamilyStmt(_)
            | Node::AlterOpFamilyStmt(_)
            | Node::AlterTSDictionaryStmt(_)
            | Node::AlterTSConfigurationStmt(_)
            | Node::AlterCollationStmt(_)
            | Node::CreatePLangStmt(_)
            | Node::CreateEventTrigStmt(_)
            | Node::AlterEventTrigStmt(_)
    )
}
