//! DDL applied to a session's layer, as the server would have applied it.
//!
//! What is not understood is [`CatalogError::NotApplied`]. Where the exact effect cannot be told from the text (the
//! name of a constraint that is dropped), what stays in the layer is the stricter of both.

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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sequence {
    No,
    /// serial: the default calls it.
    Called,
    /// GENERATED … AS IDENTITY: no default is stored.
    Identity,
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
            Node::SelectStmt(select) => match select.into_clause() {
                Some(_) => Err(not_applied("SELECT INTO: write CREATE TABLE AS")),
                None => Ok(()),
            },
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
    /// `_name`, with more underscores where that is taken, cut to the length of an identifier.
    fn array_name(&self, schema: &str, name: &str) -> String {
        let mut array = name.to_owned();
        loop {
            array = cut(&format!("_{array}"), IDENTIFIER_BYTES_MAX).to_owned();
            let taken = self.view().types().named(schema, &array).is_some();
            if !taken || array.starts_with("________") {
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

    // CREATE TABLE.

    fn create_table(&mut self, create: &nodes::CreateStmt) -> Applied<()> {
        let at = create
            .relation()
            .ok_or_else(|| not_applied("a table without a name"))?;
        let Some((schema, persistence)) = self.home_of(at, create.if_not_exists)? else {
            return Ok(());
        };
        if create.of_typename().is_some() {
            return Err(not_applied("CREATE TABLE OF"));
        }
        let name = name_of(at).to_owned();
        let mut new: Vec<NewColumn> = Vec::new();
        let mut parents = Vec::new();
        for parent in create.inh_relations() {
            let Node::RangeVar(parent) = parent else {
                return Err(not_applied("a parent that is no relation"));
            };
            let parent = self.existing(Some(parent))?;
            parents.push(parent);
            for column in &self.relation(parent)?.columns {
                match new.iter_mut().find(|known| known.column.name == column.name) {
                    Some(known) => known.column.not_null |= column.not_null,
                    None => new.push(self.inherited(parent, column)?),
                }
            }
        }
        let inherited = new.len();
        let mut primary: Vec<String> = Vec::new();
        let mut references = Vec::new();
        for element in create.table_elts() {
            match element {
                Node::ColumnDef(def) => {
                    let column = self.new_column(def)?;
                    let place = new
                        .iter()
                        .take(inherited)
                        .position(|known| known.column.name == column.column.name);
                    match place.and_then(|place| new.get_mut(place)) {
                        Some(known) => merge(known, column),
                        None => new.push(column),
                    }
                }
                Node::TableLikeClause(like) => {
                    let source = self.existing(like.relation())?;
                    let (columns, keys) = self.like(source, like.options)?;
                    primary.extend(keys);
                    new.extend(columns);
                }
                Node::Constraint(constraint) => {
                    self.table_constraint(constraint, &mut new, &mut primary, &mut references)?;
                }
                other => return Err(not_applied(&format!("{} in CREATE TABLE", kind_of(other)))),
            }
        }
        // The grammar of a partition puts constraints and options of columns here as well.
        for constraint in create.constraints() {
            self.table_constraint(constraint, &mut new, &mut primary, &mut references)?;
        }
        for (column, number) in new.iter_mut().zip(1..) {
            column.column.number = number;
            if column.primary {
                primary.push(column.column.name.clone());
            }
        }
        let kind = if create.partspec().is_some() {
            RelationKind::PartitionedTable
        } else {
            RelationKind::Table
        };
        // The key of a partitioned table is the key of each partition.
        if create.partbound().is_some() && primary.is_empty() {
            for parent in &parents {
                let parent = self.relation(*parent)?;
                primary.extend(
                    parent
                        .primary_key
                        .iter()
                        .filter_map(|key| parent.column_by_number(*key))
                        .map(|c| c.name.clone()),
                );
            }
        }
        self.finish_table(schema, name, persistence, kind, new, primary, parents, references)
    }

    #[allow(
        clippy::too_many_arguments,
        reason = "the parts of one CREATE TABLE, put together in one place"
    )]
    fn finish_table(
        &mut self,
        schema: String,
        name: String,
        persistence: Persistence,
        kind: RelationKind,
        mut new: Vec<NewColumn>,
        primary: Vec<String>,
        parents: Vec<Oid>,
        mut references: Vec<(Oid, Cascade)>,
    ) -> Applied<()> {
        let oid = self.new_oid();
        let names: Vec<(String, AttNum)> = new
            .iter()
            .map(|c| (c.column.name.clone(), c.column.number))
            .collect();
        let number = |name: &str| {
            names
                .iter()
                .find(|(known, _)| known == name)
                .map(|(_, number)| *number)
        };
        for column in &mut new {
            if let Some(sources) = column.generated_names.take() {
                let mut numbers: Vec<AttNum> = sources.iter().filter_map(|source| number(source)).collect();
                numbers.sort_unstable();
                numbers.dedup();
                column.column.generated_from = Some(numbers);
            }
        }
        let primary_key = primary
            .iter()
            .map(|name| number(name))
            .collect::<Option<Vec<AttNum>>>();
        let primary_key =
            primary_key.ok_or_else(|| not_applied("a primary key over a column that is not there"))?;
        for column in &mut new {
            column.column.not_null |= primary_key.contains(&column.column.number);
            references.append(&mut column.references);
        }
        let row_type = self.new_oid();
        self.add_type(
            row_type,
            schema.clone(),
            name.clone(),
            TypeKind::Composite { relation: oid },
            'C',
            0,
        );
        let last_number = names.last().map_or(0, |(_, number)| *number);
        let sequences: Vec<(String, AttNum, Sequence)> = new
            .iter()
            .map(|c| (c.column.name.clone(), c.column.number, c.sequence))
            .collect();
        let calls: Vec<(Oid, AttNum)> = new
            .iter()
            .flat_map(|c| c.calls.iter().map(move |oid| (*oid, c.column.number)))
            .collect();
        self.put(Relation {
            oid,
            schema: schema.clone(),
            name: name.clone(),
            kind,
            persistence,
            columns: new.into_iter().map(|column| column.column).collect(),
            primary_key,
            parents,
            row_type,
            last_number,
            ..nothing(oid)
        });
        for (column, number, sequence) in sequences {
            self.make_sequence(oid, &column, number, sequence)?;
        }
        self.note_uses(oid, calls);
        for (referenced, cascade) in references {
            // A relation that references itself is known only now.
            let referenced = if referenced == 0 { oid } else { referenced };
            self.edit(referenced, |relation| {
                relation.cascades.push(Cascade {
                    relation: oid,
                    ..cascade
                })
            });
        }
        Ok(())
    }

    fn note_uses(&mut self, relation: Oid, calls: Vec<(Oid, AttNum)>) {
        for (sequence, column) in calls {
            self.edit(sequence, |sequence| {
                if !sequence.used_by.contains(&(relation, column)) {
                    sequence.used_by.push((relation, column));
                }
            });
        }
    }

    fn inherited(&self, parent: Oid, column: &Column) -> Applied<NewColumn> {
        let generated_names = match &column.generated_from {
            Some(sources) => Some(self.names_of(parent, sources)?),
            None => None,
        };
        Ok(NewColumn {
            column: column.clone(),
            primary: false,
            sequence: Sequence::No,
            calls: self.calls_of(parent, column.number),
            references: Vec::new(),
            generated_names,
        })
    }
    fn names_of(&self, relation: Oid, numbers: &[AttNum]) -> Applied<Vec<String>> {
        let relation = self.relation(relation)?;
        Ok(numbers
            .iter()
            .filter_map(|number| relation.column_by_number(*number))
            .map(|c| c.name.clone())
            .collect())
    }
    /// The sequences that a column's default calls.
    fn calls_of(&self, relation: Oid, column: AttNum) -> Vec<Oid> {
        let mut sequences = self.relations();
        sequences.retain(|sequence| sequence.used_by.contains(&(relation, column)));
        sequences.iter().map(|sequence| sequence.oid).collect()
    }

    fn like(&self, source: Oid, options: u32) -> Applied<(Vec<NewColumn>, Vec<String>)> {
        let includes = |option: u32| options & option != 0;
        let relation = self.relation(source)?;
        let mut columns = Vec::new();
        for column in &relation.columns {
            let mut new = self.inherited(source, column)?;
            let calls = std::mem::take(&mut new.calls);
            // A sequence that the column owns and no default calls is that of an identity column.
            let identity = column.has_default
                && self.relations().iter().any(|sequence| {
                    sequence.owned_by == Some((source, column.number)) && sequence.used_by.is_empty()
                });
            if column.generated_from.is_some() {
                if !includes(TableLikeOption::CREATE_TABLE_LIKE_GENERATED) {
                    new.generated_names = None;
                    new.column.generated_from = None;
                    new.column.has_default = false;
                    new.column.default_code.clear();
                }
            } else if identity {
                new.column.has_default = includes(TableLikeOption::CREATE_TABLE_LIKE_IDENTITY);
                if new.column.has_default {
                    new.sequence = Sequence::Identity;
                }
            } else if includes(TableLikeOption::CREATE_TABLE_LIKE_DEFAULTS) {
                new.calls = calls;
            } else {
                new.column.has_default = false;
                new.column.default_code.clear();
            }
            columns.push(new);
        }
        let keys = if includes(TableLikeOption::CREATE_TABLE_LIKE_INDEXES) {
            self.names_of(source, &relation.primary_key)?
        } else {
            Vec::new()
        };
        Ok((columns, keys))
    }

    fn new_column(&self, def: &nodes::ColumnDef) -> Applied<NewColumn> {
        let name = def.colname().unwrap_or_default().to_owned();
        let mut new = NewColumn {
            column: Column {
                number: 0,
                name,
                column_type: placeholder(),
                not_null: def.is_not_null,
                has_default: false,
                generated_from: None,
                default_code: Vec::new(),
            },
            primary: false,
            sequence: Sequence::No,
            calls: Vec::new(),
            references: Vec::new(),
            generated_names: None,
        };
        // Without a type these are options of a column that the parent has.
        if let Some(type_name) = def.type_name() {
            match serial(type_name) {
                Some(oid) => {
                    let plain = self.view().type_by_oid(oid);
                    new.column.column_type = plain.ok_or_else(|| not_applied("a serial column"))?;
                    new.column.not_null = true;
                    new.column.has_default = true;
                    new.sequence = Sequence::Called;
                }
                None => new.column.column_type = self.column_type(Some(type_name), def.coll_clause())?,
            }
        }
        self.default(&mut new, def.raw_default())?;
        for constraint in def.constraints() {
            let Node::Constraint(constraint) = constraint else {
                return Err(not_applied(&format!("{} on a column", kind_of(constraint))));
            };
            self.column_constraint(&mut new, constraint)?;
        }
        Ok(new)
    }

    fn column_constraint(&self, new: &mut NewColumn, constraint: &nodes::Constraint) -> Applied<()> {
        match constraint.contype {
            ConstrType::CONSTR_NOTNULL => new.column.not_null = true,
            ConstrType::CONSTR_DEFAULT => self.default(new, constraint.raw_expr())?,
            ConstrType::CONSTR_IDENTITY => {
                new.column.not_null = true;
                new.column.has_default = true;
                new.sequence = Sequence::Identity;
            }
            ConstrType::CONSTR_GENERATED => {
                self.default(new, constraint.raw_expr())?;
                new.column.has_default = true;
                new.generated_names = Some(columns_named(constraint.raw_expr()));
            }
            ConstrType::CONSTR_PRIMARY => {
                new.primary = true;
                new.column.not_null = true;
            }
            ConstrType::CONSTR_FOREIGN => new.references.push(self.reference(constraint)?),
            ConstrType::CONSTR_NULL
            | ConstrType::CONSTR_CHECK
            | ConstrType::CONSTR_UNIQUE
            | ConstrType::CONSTR_EXCLUSION
            | ConstrType::CONSTR_ATTR_DEFERRABLE
            | ConstrType::CONSTR_ATTR_NOT_DEFERRABLE
            | ConstrType::CONSTR_ATTR_DEFERRED
            | ConstrType::CONSTR_ATTR_IMMEDIATE
            | ConstrType::CONSTR_ATTR_ENFORCED
            | ConstrType::CONSTR_ATTR_NOT_ENFORCED => {}
            other => return Err(not_applied(&format!("a constraint of the kind {other}"))),
        }
        Ok(())
    }

    /// What a default expression calls. `DEFAULT NULL` is no default.
    fn default(&self, new: &mut NewColumn, expression: Node<'_>) -> Applied<()> {
        match expression {
            Node::None => return Ok(()),
            Node::A_Const(constant) if constant.isnull => {
                new.column.has_default = false;
                return Ok(());
            }
            _ => new.column.has_default = true,
        }
        let view = self.view();
        let mut code = Vec::new();
        let mut calls = Vec::new();
        pg_raw_parse::walk::walk(expression, |node| {
            if let Node::FuncCall(call) = node {
                let names = words(call.funcname());
                let (schema, name) = match names.as_slice() {
                    [name] => (None, name.as_str()),
                    [schema, name] => (Some(schema.as_str()), name.as_str()),
                    _ => return,
                };
                for function in view.user_functions(schema, name, call.args().len()) {
                    code.push(format!("{}.{}", function.schema, function.name));
                }
                // nextval('s') and nextval('s'::regclass).
                if let ("nextval", Some(argument)) = (name, call.args().first())
                    && let Some(sequence) = regclass_literal(argument)
                {
                    let found = match split_name(sequence).as_slice() {
                        [name] => view.resolve_relation(None, name),
                        [schema, name] => view.resolve_relation(Some(schema), name),
                        _ => None,
                    };
                    calls.extend(found.map(|relation| relation.oid));
                }
            }
        });
        new.column.default_code.extend(code);
        new.calls.extend(calls);
        Ok(())
    }

    fn table_constraint(
        &self,
        constraint: &nodes::Constraint,
        new: &mut [NewColumn],
        primary: &mut Vec<String>,
        references: &mut Vec<(Oid, Cascade)>,
    ) -> Applied<()> {
        match constraint.contype {
            ConstrType::CONSTR_PRIMARY => primary.extend(words(constraint.keys())),
            ConstrType::CONSTR_FOREIGN => references.push(self.reference(constraint)?),
            ConstrType::CONSTR_NOTNULL => {
                for key in words(constraint.keys()) {
                    if let Some(known) = new.iter_mut().find(|known| known.column.name == key) {
                        known.column.not_null = true;
                    }
                }
            }
            ConstrType::CONSTR_CHECK
            | ConstrType::CONSTR_UNIQUE
            | ConstrType::CONSTR_EXCLUSION
            | ConstrType::CONSTR_ATTR_DEFERRABLE
            | ConstrType::CONSTR_ATTR_NOT_DEFERRABLE
            | ConstrType::CONSTR_ATTR_DEFERRED
            | ConstrType::CONSTR_ATTR_IMMEDIATE => {}
            other => return Err(not_applied(&format!("a table constraint of the kind {other}"))),
        }
        Ok(())
    }

    /// The referenced relation (0 = the one being made), and what its changes do here.
    fn reference(&self, constraint: &nodes::Constraint) -> Applied<(Oid, Cascade)> {
        let at = constraint
            .pktable()
            .ok_or_else(|| not_applied("a foreign key without a table"))?;
        let changes = |action| matches!(u8::try_from(action), Ok(b'c' | b'n' | b'd'));
        let cascade = Cascade {
            relation: 0,
            on_delete: changes(constraint.fk_del_action),
            on_update: changes(constraint.fk_upd_action),
        };
        Ok((self.find(at).map_or(0, |relation| relation.oid), cascade))
    }

    // Sequences.

    /// `table_column_seq`, shortened and numbered as the server does it.
    fn sequence_name(&self, schema: &str, table: &str, column: &str) -> String {
        let view = self.view();
        let mut label = "seq".to_owned();
        let mut number = 0;
        loop {
            let overhead = label.len() + 2;
            let (mut first, mut second) = (table.len(), column.len());
            while first + second + overhead > IDENTIFIER_BYTES_MAX {
                if first > second { first -= 1 } else { second -= 1 }
            }
            let name = format!("{}_{}_{label}", cut(table, first), cut(column, second));
            if view.relation_in(schema, &name).is_none() {
                return name;
            }
            number += 1;
            label = format!("seq{number}");
        }
    }

    /// Makes the sequence that comes with a column.
    fn make_sequence(&mut self, oid: Oid, column: &str, number: AttNum, kind: Sequence) -> Applied<()> {
        if kind == Sequence::No {
            return Ok(());
        }
        let relation = self.relation(oid)?;
        let name = self.sequence_name(&relation.schema, &relation.name, column);
        let made = self.create_sequence(relation.schema.clone(), &name, relation.persistence)?;
        self.edit(made, |sequence| {
            sequence.owned_by = Some((oid, number));
            if kind == Sequence::Called {
                sequence.used_by = vec![(oid, number)];
            }
        });
        Ok(())
    }

    fn create_sequence(&mut self, schema: String, name: &str, persistence: Persistence) -> Applied<Oid> {
        if self.view().relation_in(&schema, name).is_some() {
            return Err(already(name));
        }
        let oid = self.new_oid();
        let mut columns = Vec::new();
        for ((name, type_oid), number) in [("last_value", 20), ("log_cnt", 20), ("is_called", 16)]
            .into_iter()
            .zip(1..)
        {
            let column_type = self.view().type_by_oid(type_oid);
            columns.push(Column {
                number,
                name: name.to_owned(),
                column_type: column_type.ok_or_else(|| not_applied("the built-in types are not there"))?,
                not_null: true,
                has_default: false,
                generated_from: None,
                default_code: Vec::new(),
            });
        }
        self.put(Relation {
            schema,
            name: name.to_owned(),
            kind: RelationKind::Sequence,
            persistence,
            columns,
            last_number: 3,
            ..nothing(oid)
        });
        Ok(oid)
    }

    fn own_sequence(&mut self, sequence: Oid, options: &NodeList) -> Applied<()> {
        for option in options {
            let Node::DefElem(option) = option else { continue };
            if option.defname() != Some("owned_by") {
                continue;
            }
            let Node::NodeList(names) = option.arg() else {
                return Err(not_applied("OWNED BY without a name"));
            };
            let names = words(names);
            let (table, column) = match names.as_slice() {
                [none] if none == "none" => {
                    self.edit(sequence, |relation| relation.owned_by = None);
                    continue;
                }
                [table, column] => (self.view().resolve_relation(None, table), column),
                [schema, table, column] => (self.view().resolve_relation(Some(schema), table), column),
                _ => (None, &String::new()),
            };
            let owner = table.and_then(|table| Some((table.oid, table.column(column)?.number)));
            let owner = owner.ok_or_else(|| not_applied("OWNED BY a column that is not there"))?;
            self.edit(sequence, |relation| relation.owned_by = Some(owner));
        }
        Ok(())
    }

    // Views, and tables made of queries.

    fn create_view(&mut self, view: &nodes::ViewStmt) -> Applied<()> {
        let at = view.view().ok_or_else(|| not_applied("a view without a name"))?;
        let old = if view.replace { self.find_in_home(at) } else { None };
        let (schema, persistence) = match &old {
            Some(old) => (old.schema.clone(), old.persistence),
            None => match self.home_of(at, false)? {
                Some(home) => home,
                None => return Ok(()),
            },
        };
        let columns = self.query_columns(view.query(), &words(view.aliases()))?;
        let options = view.options().iter().filter_map(|option| match option {
            Node::DefElem(option) => Some(format!(
                "{}={}",
                option.defname().unwrap_or_default(),
                option_value(option.arg())
            )),
            _ => None,
        });
        let security_invoker = options.into_iter().any(|option| is_security_invoker(&option));
        let definition = deparsed(view.query())?;
        self.finish_query_relation(
            old,
            schema,
            name_of(at),
            RelationKind::View,
            persistence,
            columns,
            |relation| {
                relation.security_invoker = security_invoker;
                relation.definition = Some(definition);
            },
        )
    }

    /// The relation that CREATE OR REPLACE would replace: only in the schema in which it would be made.
    fn find_in_home(&self, at: &nodes::RangeVar) -> Option<Arc<Relation>> {
        let temporary = u8::try_from(at.relpersistence) == Ok(b't') || at.schemaname() == Some("pg_temp");
        let schema = if temporary {
            self.overlay.temp_schema.clone()?
        } else {
            self.home(at.schemaname()).ok()?
        };
        let oid = self.view().relation_in(&schema, at.relname()?)?.oid;
        self.relation(oid).ok()
    }

    fn create_as(
        &mut self,
        into: &nodes::IntoClause,
        query: Node<'_>,
        kind: RelationKind,
        if_not_exists: bool,
    ) -> Applied<()> {
        let at = into.rel().ok_or_else(|| not_applied("a table without a name"))?;
        let Some((schema, persistence)) = self.home_of(at, if_not_exists)? else {
            return Ok(());
        };
        let columns = self.query_columns(query, &words(into.col_names()))?;
        let definition = if kind == RelationKind::MaterializedView {
            Some(deparsed(query)?)
        } else {
            None
        };
        self.finish_query_relation(
            None,
            schema,
            name_of(at),
            kind,
            persistence,
            columns,
            |relation| {
                relation.definition = definition;
            },
        )
    }

    #[allow(
        clippy::too_many_arguments,
        reason = "the parts of one CREATE VIEW, put together in one place"
    )]
    fn finish_query_relation(
        &mut self,
        old: Option<Arc<Relation>>,
        schema: String,
        name: &str,
        kind: RelationKind,
        persistence: Persistence,
        columns: Vec<Column>,
        more: impl FnOnce(&mut Relation),
    ) -> Applied<()> {
        let mut relation = match old {
            Some(old) if old.kind == kind => old.as_ref().clone(),
            Some(_) => return Err(already(name)),
            None => {
                let oid = self.new_oid();
                let row_type = self.new_oid();
                let kind_of_row = TypeKind::Composite { relation: oid };
                self.add_type(row_type, schema.clone(), name.to_owned(), kind_of_row, 'C', 0);
                Relation {
                    schema,
                    name: name.to_owned(),
                    kind,
                    persistence,
                    row_type,
                    ..nothing(oid)
                }
            }
        };
        relation.last_number = columns.last().map_or(0, |column| column.number);
        relation.columns = columns;
        more(&mut relation);
        if relation.definition.is_some() {
            relation.definition_path = self.path.clone();
            if self.overlay.temp_schema.is_none() {
                relation.definition_path.0.push(String::new());
            }
        }
        self.put(relation);
        Ok(())
    }

    fn query_columns(&self, query: Node<'_>, names: &[String]) -> Applied<Vec<Column>> {
        let found = infer::query_columns(self.view(), &deparsed(query)?)?;
        let mut columns = Vec::with_capacity(found.len());
        for ((place, (name, column_type)), number) in found.into_iter().enumerate().zip(1..) {
            let name = names.get(place).cloned().unwrap_or(name);
            let column_type = column_type
                .ok_or_else(|| not_applied(&format!("the type of its column `{name}` is not known")))?;
            columns.push(Column {
                number,
                name,
                column_type,
                not_null: false,
                has_default: false,
                generated_from: None,
                default_code: Vec::new(),
            });
        }
        Ok(columns)
    }

    // ALTER TABLE.

    fn alter_table(&mut self, alter: &nodes::AlterTableStmt) -> Applied<()> {
        let Some(at) = alter.relation() else {
            return Err(not_applied("ALTER TABLE without a name"));
        };
        let Some(relation) = self.find(at) else {
            // Indexes made by this text are not kept; nothing of theirs matters here.
            return if alter.missing_ok || alter.objtype == ObjectType::OBJECT_INDEX {
                Ok(())
            } else {
                Err(not_applied(&format!("relation `{}` is not there", written(at))))
            };
        };
        let (oid, only) = (relation.oid, !at.inh);
        for command in alter.cmds() {
            let Node::AlterTableCmd(command) = command else {
                return Err(not_applied(&format!("{} in ALTER TABLE", kind_of(command))));
            };
            self.alter(oid, command, only)?;
        }
        Ok(())
    }

    fn alter(&mut self, oid: Oid, command: &nodes::AlterTableCmd, only: bool) -> Applied<()> {
        let name = command.name().unwrap_or_default();
        match command.subtype {
            AlterTableType::AT_AddColumn => {
                let Node::ColumnDef(def) = command.def() else {
                    return Err(not_applied("ADD COLUMN"));
                };
                self.add_column(oid, def, command.missing_ok, false)
            }
            AlterTableType::AT_DropColumn => self.drop_column(oid, name, command.missing_ok),
            AlterTableType::AT_ColumnDefault => self.set_default(oid, name, command.def()),
            AlterTableType::AT_DropNotNull => self.each(oid, only, name, |column| column.not_null = false),
            AlterTableType::AT_SetNotNull => self.each(oid, only, name, |column| column.not_null = true),
            AlterTableType::AT_DropExpression => self.each(oid, only, name, |column| {
                column.generated_from = None;
                column.has_default = false;
                column.default_code.clear();
            }),
            AlterTableType::AT_SetExpression => {
                let sources = columns_named(command.def());
                let relation = self.relation(oid)?;
                let mut numbers: Vec<AttNum> = sources
                    .iter()
                    .filter_map(|name| relation.column(name))
                    .map(|c| c.number)
                    .collect();
                numbers.sort_unstable();
                numbers.dedup();
                self.edit_column(oid, name, |column| column.generated_from = Some(numbers))
            }
            AlterTableType::AT_AlterColumnType => {
                let Node::ColumnDef(def) = command.def() else {
                    return Err(not_applied("ALTER COLUMN TYPE"));
                };
                let column_type = self.column_type(def.type_name(), def.coll_clause())?;
                self.each(oid, only, name, |column| column.column_type = column_type.clone())
            }
            AlterTableType::AT_AddConstraint => {
                let Node::Constraint(constraint) = command.def() else {
                    return Err(not_applied("ADD CONSTRAINT"));
                };
                self.add_constraint(oid, constraint)
            }
            AlterTableType::AT_DropConstraint => {
                let relation = self.relation(oid)?;
                // Names of constraints are not kept: the one the server would have given is known.
                if name == default_key_name(&relation.name) {
                    self.edit(oid, |relation| relation.primary_key.clear());
                }
                Ok(())
            }
            AlterTableType::AT_AddIdentity => {
                let number = self.column_number(oid, name)?;
                self.edit_column(oid, name, |column| {
                    column.has_default = true;
                    column.not_null = true;
                })?;
                self.make_sequence(oid, name, number, Sequence::Identity)
            }
            AlterTableType::AT_DropIdentity => {
                let number = self.column_number(oid, name)?;
                self.drop_owned_sequences(oid, Some(number));
                self.edit_column(oid, name, |column| column.has_default = false)
            }
            AlterTableType::AT_AddInherit | AlterTableType::AT_DropInherit => {
                let Node::RangeVar(parent) = command.def() else {
                    return Err(not_applied("INHERIT"));
                };
                let parent = self.existing(Some(parent))?;
                let add = command.subtype == AlterTableType::AT_AddInherit;
                self.edit(oid, |relation| {
                    relation.parents.retain(|known| *known != parent);
                    if add {
                        relation.parents.push(parent);
                    }
                });
                Ok(())
            }
            AlterTableType::AT_AttachPartition | AlterTableType::AT_DetachPartition => {
                let Node::PartitionCmd(partition) = command.def() else {
                    return Err(not_applied("PARTITION"));
                };
                let child = self.existing(partition.name())?;
                let add = command.subtype == AlterTableType::AT_AttachPartition;
                let key = self.relation(oid)?;
                let key = self.names_of(oid, &key.primary_key)?;
                self.edit(child, |relation| {
                    relation.parents.retain(|known| *known != oid);
                    if add {
                        relation.parents.push(oid);
                        let own: Option<Vec<AttNum>> = key
                            .iter()
                            .map(|name| relation.column(name).map(|c| c.number))
                            .collect();
                        if relation.primary_key.is_empty() {
                            relation.primary_key = own.unwrap_or_default();
                        }
                    }
                });
                Ok(())
            }
            AlterTableType::AT_SetRelOptions | AlterTableType::AT_ResetRelOptions => {
                let set = command.subtype == AlterTableType::AT_SetRelOptions;
                if let Node::NodeList(options) = command.def() {
                    for option in options {
                        let Node::DefElem(option) = option else { continue };
                        if option.defname() == Some("security_invoker") {
                            let on = is_security_invoker(&format!(
                                "security_invoker={}",
                                option_value(option.arg())
                            ));
                            self.edit(oid, |relation| relation.security_invoker = set && on);
                        }
                    }
                }
                Ok(())
            }
            AlterTableType::AT_SetLogged => {
                self.edit(oid, |relation| relation.persistence = Persistence::Permanent);
                Ok(())
            }
            AlterTableType::AT_SetUnLogged => {
                self.edit(oid, |relation| relation.persistence = Persistence::Unlogged);
                Ok(())
            }
            AlterTableType::AT_SetStatistics
            | AlterTableType::AT_SetOptions
            | AlterTableType::AT_ResetOptions
            | AlterTableType::AT_SetStorage
            | AlterTableType::AT_SetCompression
            | AlterTableType::AT_AlterConstraint
            | AlterTableType::AT_ValidateConstraint
            | AlterTableType::AT_ChangeOwner
            | AlterTableType::AT_ClusterOn
            | AlterTableType::AT_DropCluster
            | AlterTableType::AT_SetAccessMethod
            | AlterTableType::AT_SetTableSpace
            | AlterTableType::AT_EnableTrig
            | AlterTableType::AT_EnableAlwaysTrig
            | AlterTableType::AT_EnableReplicaTrig
            | AlterTableType::AT_DisableTrig
            | AlterTableType::AT_EnableTrigAll
            | AlterTableType::AT_DisableTrigAll
            | AlterTableType::AT_EnableTrigUser
            | AlterTableType::AT_DisableTrigUser
            | AlterTableType::AT_EnableRule
            | AlterTableType::AT_EnableAlwaysRule
            | AlterTableType::AT_EnableReplicaRule
            | AlterTableType::AT_DisableRule
            | AlterTableType::AT_ReplicaIdentity
            | AlterTableType::AT_EnableRowSecurity
            | AlterTableType::AT_DisableRowSecurity
            | AlterTableType::AT_ForceRowSecurity
            | AlterTableType::AT_NoForceRowSecurity
            | AlterTableType::AT_SetIdentity => Ok(()),
            other => Err(not_applied(&format!("ALTER TABLE of the kind {other}"))),
        }
    }

    fn column_number(&self, oid: Oid, name: &str) -> Applied<AttNum> {
        let number = self.relation(oid)?.column(name).map(|column| column.number);
        number.ok_or_else(|| not_applied(&format!("column `{name}` is not there")))
    }
    fn edit_column(&mut self, oid: Oid, name: &str, change: impl FnOnce(&mut Column)) -> Applied<()> {
        self.column_number(oid, name)?;
        self.edit(oid, |relation| {
            if let Some(column) = relation.columns.iter_mut().find(|column| column.name == name) {
                change(column);
            }
        });
        Ok(())
    }
    /// Changes a column here and in all that inherit it.
    fn each(&mut self, oid: Oid, only: bool, name: &str, change: impl Fn(&mut Column)) -> Applied<()> {
        self.edit_column(oid, name, &change)?;
        if !only {
            for child in self.descendants(oid) {
                self.edit_column(child, name, &change)?;
            }
        }
        Ok(())
    }
    /// Children, their children, and so on; each once.
    fn descendants(&self, oid: Oid) -> Vec<Oid> {
        let mut found = Vec::new();
        let mut next = vec![oid];
        while let Some(parent) = next.pop() {
            for child in self.children(parent) {
                if child != oid && !found.contains(&child) {
                    found.push(child);
                    next.push(child);
                }
            }
        }
        found
    }

    fn add_column(
        &mut self,
        oid: Oid,
        def: &nodes::ColumnDef,
        if_not_exists: bool,
        child: bool,
    ) -> Applied<()> {
        let mut new = self.new_column(def)?;
        let relation = self.relation(oid)?;
        if relation.column(&new.column.name).is_some() {
            // A child that has the column already keeps it.
            return if if_not_exists || child {
                Ok(())
            } else {
                Err(already(&new.column.name))
            };
        }
        let number = relation
            .last_number
            .checked_add(1)
            .ok_or_else(|| not_applied("too many columns"))?;
        new.column.number = number;
        if let Some(sources) = new.generated_names.take() {
            let mut numbers: Vec<AttNum> = sources
                .iter()
                .filter_map(|name| relation.column(name))
                .map(|c| c.number)
                .collect();
            numbers.sort_unstable();
            numbers.dedup();
            new.column.generated_from = Some(numbers);
        }
        let (sequence, primary, name) = (
            if child { Sequence::No } else { new.sequence },
            new.primary && !child,
            new.column.name.clone(),
        );
        self.edit(oid, |relation| {
            relation.columns.push(new.column);
            relation.last_number = number;
            if primary {
                relation.primary_key = vec![number];
            }
        });
        self.make_sequence(oid, &name, number, sequence)?;
        self.note_uses(
            oid,
            new.calls.iter().map(|sequence| (*sequence, number)).collect(),
        );
        for (referenced, cascade) in new.references {
            let referenced = if referenced == 0 { oid } else { referenced };
            self.edit(referenced, |relation| {
                relation.cascades.push(Cascade {
                    relation: oid,
                    ..cascade
                })
            });
        }
        for child in self.children(oid) {
            self.add_column(child, def, if_not_exists, true)?;
        }
        Ok(())
    }

    fn drop_column(&mut self, oid: Oid, name: &str, if_exists: bool) -> Applied<()> {
        let number = match self.column_number(oid, name) {
            Ok(number) => number,
            Err(_) if if_exists => return Ok(()),
            Err(error) => return Err(error),
        };
        self.drop_owned_sequences(oid, Some(number));
        self.forget_uses(oid, Some(number));
        self.edit(oid, |relation| {
            relation.columns.retain(|column| column.number != number);
            // CASCADE takes generated columns along.
            relation.columns.retain(|c| {
                c.generated_from
                    .as_ref()
                    .is_none_or(|from| !from.contains(&number))
            });
            if relation.primary_key.contains(&number) {
                relation.primary_key.clear();
            }
        });
        for child in self.children(oid) {
            self.drop_column(child, name, true)?;
        }
        Ok(())
    }

    fn set_default(&mut self, oid: Oid, name: &str, expression: Node<'_>) -> Applied<()> {
        let number = self.column_number(oid, name)?;
        let column = self
            .relation(oid)?
            .column(name)
            .cloned()
            .ok_or_else(|| not_applied("the column is not there"))?;
        let mut new = NewColumn {
            column: Column {
                has_default: false,
                default_code: Vec::new(),
                ..column
            },
            primary: false,
            sequence: Sequence::No,
            calls: Vec::new(),
            references: Vec::new(),
            generated_names: None,
        };
        self.default(&mut new, expression)?;
        self.forget_uses(oid, Some(number));
        let (has_default, code) = (new.column.has_default, new.column.default_code);
        self.each(oid, false, name, |column| {
            column.has_default = has_default;
            column.default_code = code.clone();
        })?;
        self.note_uses(
            oid,
            new.calls.iter().map(|sequence| (*sequence, number)).collect(),
        );
        Ok(())
    }

    fn add_constraint(&mut self, oid: Oid, constraint: &nodes::Constraint) -> Applied<()> {
        match constraint.contype {
            ConstrType::CONSTR_PRIMARY => {
                if constraint.indexname().is_some() {
                    return Err(not_applied("a primary key made of an index"));
                }
                let relation = self.relation(oid)?;
                let keys: Option<Vec<AttNum>> = words(constraint.keys())
                    .iter()
                    .map(|key| relation.column(key).map(|c| c.number))
                    .collect();
                let keys =
                    keys.ok_or_else(|| not_applied("a primary key over a column that is not there"))?;
                let names = words(constraint.keys());
                for member in std::iter::once(oid).chain(self.descendants(oid)) {
                    self.edit(member, |relation| {
                        for column in &mut relation.columns {
                            column.not_null |= names.contains(&column.name);
                        }
                    });
                }
                self.edit(oid, |relation| relation.primary_key = keys);
                // Partitions get the key too; children by inheritance do not.
                if relation.kind == RelationKind::PartitionedTable {
                    for child in self.descendants(oid) {
                        self.edit(child, |relation| {
                            let own: Option<Vec<AttNum>> = names
                                .iter()
                                .map(|name| relation.column(name).map(|c| c.number))
                                .collect();
                            relation.primary_key = own.unwrap_or_default();
                        });
                    }
                }
                Ok(())
            }
            ConstrType::CONSTR_FOREIGN => {
                let (referenced, cascade) = self.reference(constraint)?;
                if referenced == 0 {
                    return Err(not_applied("a foreign key to a table that is not there"));
                }
                self.edit(referenced, |relation| {
                    relation.cascades.push(Cascade {
                        relation: oid,
                        ..cascade
                    })
                });
                Ok(())
            }
            ConstrType::CONSTR_NOTNULL => {
                for key in words(constraint.keys()) {
                    self.each(oid, false, &key, |column| column.not_null = true)?;
                }
                Ok(())
            }
            ConstrType::CONSTR_CHECK | ConstrType::CONSTR_UNIQUE | ConstrType::CONSTR_EXCLUSION => Ok(()),
            other => Err(not_applied(&format!("a constraint of the kind {other}"))),
        }
    }

    // RENAME, SET SCHEMA, DROP.

    fn rename(&mut self, rename: &nodes::RenameStmt) -> Applied<()> {
        let new = rename.newname().unwrap_or_default();
        match rename.rename_type {
            ObjectType::OBJECT_TABLE
            | ObjectType::OBJECT_VIEW
            | ObjectType::OBJECT_MATVIEW
            | ObjectType::OBJECT_SEQUENCE
            | ObjectType::OBJECT_FOREIGN_TABLE
            | ObjectType::OBJECT_INDEX => match self.existing(rename.relation()) {
                Ok(oid) => {
                    let schema = self.relation(oid)?.schema.clone();
                    self.move_relation(oid, &schema, new)
                }
                Err(_) if rename.missing_ok || rename.rename_type == ObjectType::OBJECT_INDEX => Ok(()),
                Err(error) => Err(error),
            },
            ObjectType::OBJECT_COLUMN | ObjectType::OBJECT_ATTRIBUTE => {
                let oid = match self.existing(rename.relation()) {
                    Ok(oid) => oid,
                    Err(_) if rename.missing_ok => return Ok(()),
                    Err(error) => return Err(error),
                };
                let old = rename.subname().unwrap_or_default();
                if self.relation(oid)?.column(new).is_some() {
                    return Err(already(new));
                }
                self.each(oid, false, old, |column| column.name = new.to_owned())
            }
            ObjectType::OBJECT_TYPE | ObjectType::OBJECT_DOMAIN => {
                let oid = self.type_named(&object_names(rename.object()))?;
                let entry = self.view().type_entry(oid).cloned();
                match entry.map(|entry| (entry.schema, entry.kind)) {
                    Some((schema, TypeKind::Composite { relation })) => {
                        self.move_relation(relation, &schema, new)
                    }
                    Some((schema, _)) => {
                        self.move_type(oid, &schema, new);
                        Ok(())
                    }
                    None => Err(not_applied("the type is not there")),
                }
            }
            ObjectType::OBJECT_SCHEMA => {
                let old = rename.subname().unwrap_or_default().to_owned();
                self.home(Some(&old))?;
                self.overlay.schemas.remove(&old);
                self.overlay.dropped_schemas.insert(old.clone());
                self.overlay.dropped_schemas.remove(new);
                self.overlay.schemas.insert(new.to_owned());
                for relation in self
                    .relations()
                    .into_iter()
                    .filter(|relation| relation.schema == old)
                {
                    self.move_relation(relation.oid, new, &relation.name)?;
                }
                for entry in self.types_of_schema(&old) {
                    self.overlay.types.insert(TypeEntry {
                        schema: new.to_owned(),
                        ..entry
                    });
                }
                Ok(())
            }
            ObjectType::OBJECT_TRIGGER => {
                let oid = self.existing(rename.relation())?;
                let old = rename.subname().unwrap_or_default();
                self.edit(oid, |relation| {
                    relation
                        .triggers
                        .iter_mut()
                        .filter(|name| *name == old)
                        .for_each(|name| *name = new.to_owned());
                });
                Ok(())
            }
            ObjectType::OBJECT_RULE => {
                let oid = self.existing(rename.relation())?;
                let old = rename.subname().unwrap_or_default();
                self.edit(oid, |relation| {
                    relation
                        .rules
                        .iter_mut()
                        .filter(|name| *name == old)
                        .for_each(|name| *name = new.to_owned());
                });
                Ok(())
            }
            // A key renamed to the name the server would give is then taken for it; nothing else is named by it.
            ObjectType::OBJECT_TABCONSTRAINT
            | ObjectType::OBJECT_DOMCONSTRAINT
            | ObjectType::OBJECT_POLICY
            | ObjectType::OBJECT_ROLE
            | ObjectType::OBJECT_STATISTIC_EXT => Ok(()),
            ObjectType::OBJECT_FUNCTION
            | ObjectType::OBJECT_PROCEDURE
            | ObjectType::OBJECT_ROUTINE
            | ObjectType::OBJECT_AGGREGATE => {
                let old = object_names(rename.object());
                self.copy_functions(&old, |function| function.name = new.to_owned())
            }
            other => Err(not_applied(&format!("RENAME of the kind {other}"))),
        }
    }

    fn set_schema(&mut self, alter: &nodes::AlterObjectSchemaStmt) -> Applied<()> {
        let new = self.home(alter.newschema())?;
        match alter.object_type {
            ObjectType::OBJECT_TABLE
            | ObjectType::OBJECT_VIEW
            | ObjectType::OBJECT_MATVIEW
            | ObjectType::OBJECT_SEQUENCE
            | ObjectType::OBJECT_FOREIGN_TABLE => {
                let oid = match self.existing(alter.relation()) {
                    Ok(oid) => oid,
                    Err(_) if alter.missing_ok => return Ok(()),
                    Err(error) => return Err(error),
                };
                let name = self.relation(oid)?.name.clone();
                self.move_relation(oid, &new, &name)?;
                let owned = self.relations().into_iter();
                for owned in owned
                    .filter(|r| r.owned_by.is_some_and(|(owner, _)| owner == oid))
                    .collect::<Vec<_>>()
                {
                    self.move_relation(owned.oid, &new, &owned.name)?;
                }
                Ok(())
            }
            ObjectType::OBJECT_TYPE | ObjectType::OBJECT_DOMAIN => {
                let oid = self.type_named(&object_names(alter.object()))?;
                match self
                    .view()
                    .type_entry(oid)
                    .map(|entry| (entry.name.clone(), entry.kind.clone()))
                {
                    Some((name, TypeKind::Composite { relation })) => {
                        self.move_relation(relation, &new, &name)
                    }
                    Some((name, _)) => {
                        self.move_type(oid, &new, &name);
                        Ok(())
                    }
                    None => Err(not_applied("the type is not there")),
                }
            }
            ObjectType::OBJECT_FUNCTION
            | ObjectType::OBJECT_PROCEDURE
            | ObjectType::OBJECT_ROUTINE
            | ObjectType::OBJECT_AGGREGATE => {
                let old = object_names(alter.object());
                self.copy_functions(&old, |function| function.schema = new.clone())
            }
            other => Err(not_applied(&format!("SET SCHEMA of the kind {other}"))),
        }
    }

    /// The functions of that name are known under another name or schema as well: which overload was meant is not
    /// looked at, and the old name stays closed.
    fn copy_functions(&mut self, names: &[String], change: impl Fn(&mut UserFunction)) -> Applied<()> {
        let (schema, name) = match names {
            [name] => (None, name),
            [schema, name] => (Some(schema), name),
            _ => return Err(not_applied("a function's name of more than two parts")),
        };
        let all = self
            .overlay
            .code
            .functions(name)
            .iter()
            .chain(self.catalog.code.functions(name));
        let named: Vec<UserFunction> = all
            .filter(|f| schema.is_none_or(|s| *s == f.schema))
            .cloned()
            .collect();
        for mut function in named {
            function.oid = self.new_oid();
            change(&mut function);
            self.overlay.code.add_function(function);
        }
        Ok(())
    }

    fn type_named(&self, names: &[String]) -> Applied<Oid> {
        let view = self.view();
        let entry = match names {
            [name] => view.resolve_type_entry(None, name),
            [schema, name] => view.resolve_type_entry(Some(schema), name),
            _ => None,
        };
        entry
            .map(|entry| entry.oid)
            .ok_or_else(|| not_applied(&format!("type `{}` is not there", names.join("."))))
    }

    fn types_of_schema(&self, schema: &str) -> Vec<TypeEntry> {
        let below = self
            .catalog
            .types
            .iter()
            .filter(|e| self.view().type_entry(e.oid).is_some_and(|now| now == *e));
        self.overlay
            .types
            .iter()
            .chain(below)
            .filter(|entry| entry.schema == schema)
            .cloned()
            .collect()
    }

    fn drop_objects(&mut self, drop: &nodes::DropStmt) -> Applied<()> {
        for object in drop.objects() {
            let names = object_names(object);
            let (schema, name) = match names.as_slice() {
                [name] => (None, name.as_str()),
                [schema, name] => (Some(schema.as_str()), name.as_str()),
                [_, schema, name] => (Some(schema.as_str()), name.as_str()),
                _ => (None, ""),
            };
            match drop.remove_type {
                ObjectType::OBJECT_TABLE
                | ObjectType::OBJECT_VIEW
                | ObjectType::OBJECT_MATVIEW
                | ObjectType::OBJECT_SEQUENCE
                | ObjectType::OBJECT_FOREIGN_TABLE => {
                    let found = self
                        .view()
                        .resolve_relation(schema, name)
                        .map(|relation| relation.oid);
                    match found {
                        Some(oid) => self.drop_relation(oid)?,
                        None if drop.missing_ok => {}
                        None => {
                            return Err(not_applied(&format!(
                                "relation `{}` is not there",
                                names.join(".")
                            )));
                        }
                    }
                }
                ObjectType::OBJECT_TYPE | ObjectType::OBJECT_DOMAIN => match self.type_named(&names) {
                    Ok(oid) => {
                        let kind = self.view().type_entry(oid).map(|entry| entry.kind.clone());
                        if let Some(TypeKind::Composite { relation }) = kind {
                            self.drop_relation(relation)?;
                        }
                        self.remove_type(oid);
                    }
                    Err(_) if drop.missing_ok => {}
                    Err(error) => return Err(error),
                },
                ObjectType::OBJECT_SCHEMA => {
                    if self.home(Some(name)).is_err() {
                        if drop.missing_ok {
                            continue;
                        }
                        return Err(not_applied(&format!("schema `{name}` is not there")));
                    }
                    self.overlay.schemas.remove(name);
                    self.overlay.dropped_schemas.insert(name.to_owned());
                    for relation in self
                        .relations()
                        .into_iter()
                        .filter(|relation| relation.schema == name)
                    {
                        self.drop_relation(relation.oid)?;
                    }
                    for entry in self.types_of_schema(name) {
                        self.overlay.types.hide(entry.oid);
                    }
                }
                ObjectType::OBJECT_TRIGGER | ObjectType::OBJECT_RULE => {
                    // The table's name, then the trigger's. Whether another BEFORE trigger is left is not known.
                    let (table, object) = match names.as_slice() {
                        [table, object] => (self.view().resolve_relation(None, table), object),
                        [schema, table, object] => {
                            (self.view().resolve_relation(Some(schema), table), object)
                        }
                        _ => return Err(not_applied("DROP TRIGGER without a table")),
                    };
                    if let Some(oid) = table.map(|table| table.oid) {
                        let is_trigger = drop.remove_type == ObjectType::OBJECT_TRIGGER;
                        self.edit(oid, |relation| {
                            if is_trigger {
                                relation.triggers.retain(|name| name != object);
                                relation.before_row_triggers &= !relation.triggers.is_empty();
                            } else {
                                relation.rules.retain(|name| name != object);
                            }
                        });
                    }
                }
                // What is dropped of these stays known, and closed.
                ObjectType::OBJECT_FUNCTION
                | ObjectType::OBJECT_PROCEDURE
                | ObjectType::OBJECT_ROUTINE
                | ObjectType::OBJECT_AGGREGATE
                | ObjectType::OBJECT_OPERATOR
                | ObjectType::OBJECT_CAST
                | ObjectType::OBJECT_EXTENSION
                | ObjectType::OBJECT_INDEX
                | ObjectType::OBJECT_POLICY
                | ObjectType::OBJECT_COLLATION
                | ObjectType::OBJECT_CONVERSION
                | ObjectType::OBJECT_STATISTIC_EXT
                | ObjectType::OBJECT_EVENT_TRIGGER
                | ObjectType::OBJECT_PUBLICATION
                | ObjectType::OBJECT_OPCLASS
                | ObjectType::OBJECT_OPFAMILY
                | ObjectType::OBJECT_LANGUAGE
                | ObjectType::OBJECT_TSCONFIGURATION
                | ObjectType::OBJECT_TSDICTIONARY
                | ObjectType::OBJECT_TSPARSER
                | ObjectType::OBJECT_TSTEMPLATE => {}
                other => return Err(not_applied(&format!("DROP of the kind {other}"))),
            }
        }
        Ok(())
    }

    fn drop_relation(&mut self, oid: Oid) -> Applied<()> {
        // Gone already, with what it belonged to.
        let Ok(relation) = self.relation(oid) else {
            return Ok(());
        };
        // Partitions go with their table; children by inheritance only with CASCADE, without which the server refuses.
        for child in self.children(oid) {
            self.drop_relation(child)?;
        }
        self.drop_owned_sequences(oid, None);
        self.forget_uses(oid, None);
        for referenced in self
            .relations()
            .into_iter()
            .filter(|r| r.cascades.iter().any(|c| c.relation == oid))
        {
            self.edit(referenced.oid, |relation| {
                relation.cascades.retain(|c| c.relation != oid)
            });
        }
        if relation.row_type != 0 {
            self.remove_type(relation.row_type);
        }
        self.overlay.relations.insert(oid, None);
        Ok(())
    }

    fn drop_owned_sequences(&mut self, oid: Oid, column: Option<AttNum>) {
        let owned = |relation: &Relation| {
            relation
                .owned_by
                .is_some_and(|(owner, number)| owner == oid && column.is_none_or(|c| c == number))
        };
        for sequence in self.relations().into_iter().filter(|relation| owned(relation)) {
            self.overlay.relations.insert(sequence.oid, None);
        }
    }
    fn forget_uses(&mut self, oid: Oid, column: Option<AttNum>) {
        let used = |use_: &(Oid, AttNum)| use_.0 == oid && column.is_none_or(|column| column == use_.1);
        for sequence in self
            .relations()
            .into_iter()
            .filter(|relation| relation.used_by.iter().any(used))
        {
            self.edit(sequence.oid, |sequence| {
                sequence.used_by.retain(|use_| !used(use_))
            });
        }
    }

    // Types, functions, triggers, schemas.

    fn create_composite(&mut self, composite: &nodes::CompositeTypeStmt) -> Applied<()> {
        let at = composite
            .typevar()
            .ok_or_else(|| not_applied("a type without a name"))?;
        let Some((schema, _)) = self.home_of(at, false)? else {
            return Ok(());
        };
        let mut columns = Vec::new();
        for (def, number) in composite.coldeflist().iter().zip(1..) {
            let mut column = self.new_column(def)?.column;
            column.number = number;
            columns.push(column);
        }
        let (oid, row_type) = (self.new_oid(), self.new_oid());
        let name = name_of(at).to_owned();
        self.add_type(
            row_type,
            schema.clone(),
            name.clone(),
            TypeKind::Composite { relation: oid },
            'C',
            0,
        );
        let last_number = columns.last().map_or(0, |column| column.number);
        self.put(Relation {
            schema,
            name,
            kind: RelationKind::CompositeType,
            columns,
            row_type,
            last_number,
            ..nothing(oid)
        });
        Ok(())
    }

    fn create_domain(&mut self, create: &nodes::CreateDomainStmt) -> Applied<()> {
        let base = self.column_type(create.type_name(), create.coll_clause())?;
        let (schema, name) = self.named_home(&strings(create.domainname()))?;
        if self.view().types().named(&schema, &name).is_some() {
            return Err(already(&name));
        }
        let mut not_null = false;
        let mut checks = Vec::new();
        let mut user_code = false;
        for constraint in create.constraints() {
            match constraint.contype {
                ConstrType::CONSTR_NOTNULL => not_null = true,
                ConstrType::CONSTR_CHECK => {
                    let (check, calls_user_code) = self.check(constraint.raw_expr())?;
                    checks.push(check);
                    user_code |= calls_user_code;
                }
                _ => {}
            }
        }
        let (category, mut collation) = self
            .view()
            .type_entry(base.oid)
            .map_or(('U', 0), |entry| (entry.category, entry.collation));
        match base.collation.as_deref() {
            None => {}
            Some("pg_catalog.\"C\"") => collation = 950,
            Some(other) => return Err(not_applied(&format!("a domain with the collation {other}"))),
        }
        let kind = TypeKind::Domain {
            base: base.oid,
            modifier: base.modifier,
            not_null,
            checks,
            user_code,
        };
        let oid = self.new_oid();
        self.add_type(oid, schema, name, kind, category, collation);
        Ok(())
    }

    /// A CHECK as the server prints it, and whether it calls code that is not built in.
    fn check(&self, expression: Node<'_>) -> Applied<(String, bool)> {
        let view = self.view();
        let mut user_code = false;
        pg_raw_parse::walk::walk(expression, |node| {
            let (names, arguments, operator) = match node {
                Node::FuncCall(call) => (words(call.funcname()), call.args().len(), false),
                Node::A_Expr(expr) => (
                    words(expr.name()),
                    if matches!(expr.lexpr(), Node::None) { 1 } else { 2 },
                    true,
                ),
                _ => return,
            };
            let (schema, name) = match names.as_slice() {
                [name] => (None, name.as_str()),
                [schema, name] => (Some(schema.as_str()), name.as_str()),
                _ => return,
            };
            let facts = if operator {
                view.operator(schema, name, arguments)
            } else {
                view.function(schema, name, arguments)
            };
            user_code |= facts.origin == crate::facts::FunctionOrigin::UserDefined;
        });
        let text = deparsed_expression(expression)?;
        Ok((format!("CHECK ({text})"), user_code))
    }

    fn alter_domain(&mut self, alter: &nodes::AlterDomainStmt) -> Applied<()> {
        let oid = self.type_named(&words(alter.type_name()))?;
        let Node::Constraint(constraint) = alter.def() else {
            // SET DEFAULT, SET NOT NULL, DROP CONSTRAINT…: a check that goes stays known.
            return Ok(());
        };
        if constraint.contype != ConstrType::CONSTR_CHECK {
            return Ok(());
        }
        let (check, calls_user_code) = self.check(constraint.raw_expr())?;
        let Some(mut entry) = self.view().type_entry(oid).cloned() else {
            return Ok(());
        };
        if let TypeKind::Domain {
            checks, user_code, ..
        } = &mut entry.kind
        {
            checks.push(check);
            *user_code |= calls_user_code;
        }
        self.overlay.types.insert(entry);
        Ok(())
    }

    fn create_range(&mut self, create: &nodes::CreateRangeStmt) -> Applied<()> {
        let mut subtype = None;
        let mut user_code = false;
        for option in create.params() {
            match (option.defname(), option.arg()) {
                (Some("subtype"), Node::TypeName(name)) => {
                    subtype = Some(resolve_type_name(self.view(), name)?.oid)
                }
                (Some("canonical"), _) => user_code = true,
                (Some("multirange_type_name"), _) => {
                    return Err(not_applied("a range with a named multirange"));
                }
                _ => {}
            }
        }
        let subtype = subtype.ok_or_else(|| not_applied("a range without a subtype"))?;
        let names = strings(create.type_name());
        self.create_type(&names, TypeKind::Range { subtype, user_code }, 'R')?;
        let range = self.type_named(&names)?;
        let (schema, name) = self.named_home(&names)?;
        if self.catalog.server_major >= 14 {
            let multirange = multirange_name(&name);
            self.create_type(
                &[schema.clone(), multirange.clone()],
                TypeKind::Multirange { range },
                'R',
            )?;
            self.add_function(schema.clone(), multirange, 'f', 0, None, Vec::new());
        }
        // Constructors.
        self.add_function(schema, name, 'f', 2, Some(3), Vec::new());
        Ok(())
    }

    fn add_function(
        &mut self,
        schema: String,
        name: String,
        kind: char,
        arguments_min: usize,
        arguments_max: Option<usize>,
        arguments: Vec<Oid>,
    ) {
        let oid = self.new_oid();
        self.overlay.code.add_function(UserFunction {
            oid,
            schema,
            name,
            kind,
            arguments_min,
            arguments_max,
            arguments,
        });
    }

    fn create_function(&mut self, create: &nodes::CreateFunctionStmt) -> Applied<()> {
        let (schema, name) = self.named_home(&words(create.funcname()))?;
        let kind = if create.is_procedure { 'p' } else { 'f' };
        self.add_parameters(schema, name, kind, create.parameters().iter())
    }

    fn add_parameters<'n>(
        &mut self,
        schema: String,
        name: String,
        kind: char,
        parameters: impl Iterator<Item = &'n nodes::FunctionParameter>,
    ) -> Applied<()> {
        let (mut all, mut with_default, mut variadic) = (0_usize, 0_usize, false);
        let mut arguments = Vec::new();
        for parameter in parameters {
            match parameter.mode {
                FunctionParameterMode::FUNC_PARAM_TABLE => continue,
                // A procedure is called with its OUT arguments written.
                FunctionParameterMode::FUNC_PARAM_OUT if kind != 'p' => continue,
                FunctionParameterMode::FUNC_PARAM_VARIADIC => variadic = true,
                _ => {}
            }
            all += 1;
            with_default += usize::from(!matches!(parameter.defexpr(), Node::None));
            // A type that is not known here hides nothing: the number of arguments is what counts.
            let resolved = parameter
                .arg_type()
                .and_then(|name| resolve_type_name(self.view(), name).ok());
            arguments.push(resolved.map_or(0, |resolved| resolved.oid));
        }
        let fewest = all
            .saturating_sub(with_default)
            .saturating_sub(usize::from(variadic));
        self.add_function(schema, name, kind, fewest, (!variadic).then_some(all), arguments);
        Ok(())
    }

    fn define(&mut self, define: &nodes::DefineStmt) -> Applied<()> {
        let names = strings(define.defnames());
        match define.kind {
            ObjectType::OBJECT_OPERATOR => {
                let (schema, name) = self.named_home(&names)?;
                let side = |wanted: &str| -> Option<&nodes::TypeName> {
                    define
                        .definition()
                        .iter()
                        .find(|o| o.defname() == Some(wanted))
                        .and_then(|o| match o.arg() {
                            Node::TypeName(name) => Some(name),
                            _ => None,
                        })
                };
                let of = |name: Option<&nodes::TypeName>| match name {
                    None => Ok(0),
                    Some(name) => resolve_type_name(self.view(), name).map(|resolved| resolved.oid),
                };
                let (left, right) = (of(side("leftarg"))?, of(side("rightarg"))?);
                let oid = self.new_oid();
                self.overlay.code.add_operator(UserOperator {
                    oid,
                    schema,
                    name,
                    left,
                    right,
                });
                Ok(())
            }
            ObjectType::OBJECT_AGGREGATE => {
                let (schema, name) = self.named_home(&names)?;
                // (list of arguments, number of direct ones); the old style has its argument in the definition.
                let arguments = match define.args().first() {
                    Some(Node::NodeList(list)) => list,
                    _ => {
                        self.add_function(schema, name, 'a', 0, None, Vec::new());
                        return Ok(());
                    }
                };
                let parameters = arguments.iter().filter_map(|node| match node {
                    Node::FunctionParameter(parameter) => Some(parameter),
                    _ => None,
                });
                self.add_parameters(schema, name, 'a', parameters)
            }
            ObjectType::OBJECT_TYPE => {
                let known = self.type_named(&names);
                if known.is_ok() {
                    // The shell type of before gets its functions.
                    return Ok(());
                }
                self.create_type(&names, TypeKind::Base { user_code: true }, 'U')
            }
            ObjectType::OBJECT_COLLATION
            | ObjectType::OBJECT_TSCONFIGURATION
            | ObjectType::OBJECT_TSDICTIONARY
            | ObjectType::OBJECT_TSPARSER
            | ObjectType::OBJECT_TSTEMPLATE => Ok(()),
            other => Err(not_applied(&format!("CREATE of the kind {other}"))),
        }
    }

    fn create_cast(&mut self, create: &nodes::CreateCastStmt) -> Applied<()> {
        let of = |name: Option<&nodes::TypeName>| match name {
            Some(name) => resolve_type_name(self.view(), name).map(|resolved| resolved.oid),
            None => Err(not_applied("a cast without a type")),
        };
        let (source, target) = (of(create.sourcetype())?, of(create.targettype())?);
        // Which function it is does not matter; one that is built in is taken for a user's.
        let function = if create.func().is_some() {
            self.new_oid()
        } else {
            0
        };
        let implicit = create.context == CoercionContext::COERCION_IMPLICIT;
        self.overlay.code.add_cast(UserCast {
            source,
            target,
            function,
            implicit,
        });
        Ok(())
    }

    fn create_trigger(&mut self, trigger: &nodes::CreateTrigStmt) -> Applied<()> {
        const BEFORE: i16 = 1 << 1;
        const INSERT_OR_UPDATE: i16 = (1 << 2) | (1 << 4);
        let oid = self.existing(trigger.relation())?;
        let name = trigger.trigname().unwrap_or_default().to_owned();
        let before = trigger.row && trigger.timing == BEFORE && trigger.events & INSERT_OR_UPDATE != 0;
        // A row trigger of a partitioned table is made on each partition too.
        let mut family = vec![oid];
        if trigger.row && self.relation(oid)?.kind == RelationKind::PartitionedTable {
            family.extend(self.descendants(oid));
        }
        for member in family {
            let name = name.clone();
            self.edit(member, |relation| {
                relation.before_row_triggers |= before;
                if !relation.triggers.contains(&name) {
                    relation.triggers.push(name);
                }
            });
        }
        Ok(())
    }

    fn create_schema(&mut self, create: &nodes::CreateSchemaStmt) -> Applied<()> {
        let Some(name) = create.schemaname() else {
            return Err(not_applied(
                "CREATE SCHEMA AUTHORIZATION: write the schema's name",
            ));
        };
        if self.home(Some(name)).is_ok() {
            return if create.if_not_exists {
                Ok(())
            } else {
                Err(already(name))
            };
        }
        self.overlay.schemas.insert(name.to_owned());
        self.overlay.dropped_schemas.remove(name);
        // Its elements are made as if the new schema were first in the path.
        let mut path = self.path.clone();
        path.0.insert(0, name.to_owned());
        for element in create.schema_elts() {
            Change {
                catalog: self.catalog,
                overlay: self.overlay,
                path: &path,
            }
            .statement(element)?;
        }
        Ok(())
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

/// A relation without anything.
fn nothing(oid: Oid) -> Relation {
    Relation {
        oid,
        schema: String::new(),
        name: String::new(),
        kind: RelationKind::Table,
        persistence: Persistence::Permanent,
        columns: Vec::new(),
        primary_key: Vec::new(),
        parents: Vec::new(),
        definition: None,
        security_invoker: false,
        before_row_triggers: false,
        triggers: Vec::new(),
        owned_by: None,
        row_type: 0,
        used_by: Vec::new(),
        cascades: Vec::new(),
        rules: Vec::new(),
        definition_path: SearchPath::default(),
        last_number: 0,
    }
}

/// What stands for the type of a column whose type the parent gives.
fn placeholder() -> ColumnType {
    ColumnType {
        oid: 0,
        base_oid: 0,
        modifier: -1,
        sql: String::new(),
        class: row_masking::TypeClass::Other,
        collation: None,
    }
}

/// A column written again in a child: the parent's type stays.
fn merge(known: &mut NewColumn, written: NewColumn) {
    known.column.not_null |= written.column.not_null;
    known.primary |= written.primary;
    known.references.extend(written.references);
    if written.column.has_default {
        known.column.has_default = true;
        known.column.default_code = written.column.default_code;
        known.calls = written.calls;
    }
    if written.generated_names.is_some() {
        known.generated_names = written.generated_names;
    }
    if written.sequence != Sequence::No {
        known.sequence = written.sequence;
    }
}

pub(super) fn resolve_type_name(view: CatalogView<'_>, name: &nodes::TypeName) -> Applied<ColumnType> {
    if name.pct_type || name.setof {
        return Err(not_applied("%TYPE or SETOF"));
    }
    let names: Vec<&str> = name.names().iter().filter_map(|part| part.sval()).collect();
    let mut modifiers = Vec::new();
    for modifier in name.typmods() {
        match modifier {
            Node::A_Const(constant) => match constant.val() {
                Some(ConstValue::Integer(value)) => modifiers.push(value),
                _ => return Err(not_applied("a type modifier that is no number")),
            },
            _ => return Err(not_applied("a type modifier that is no number")),
        }
    }
    let (schema, name_alone) = match names.as_slice() {
        [name] => (None, *name),
        [schema, name] => (Some(*schema), *name),
        _ => return Err(not_applied("a type's name of more than two parts")),
    };
    let array = if name.array_bounds().is_empty() { "" } else { "[]" };
    let found = view.resolve_type(schema, &format!("{name_alone}{array}"), &modifiers);
    found.ok_or_else(|| not_applied(&format!("type `{}` is not known", names.join("."))))
}

/// The type behind `serial` and its kin, which are words of CREATE TABLE and no types.
fn serial(name: &nodes::TypeName) -> Option<Oid> {
    let names = name.names();
    let only = names.first().and_then(|part| part.sval());
    match (names.len(), only?) {
        (1, "serial" | "serial4") => Some(23),
        (1, "bigserial" | "serial8") => Some(20),
        (1, "smallserial" | "serial2") => Some(21),
        _ => None,
    }
}

/// Collations that every server has, or that `initdb` takes from its machine.
fn is_built_in_collation(name: &str) -> bool {
    matches!(
        name,
        "default"
            | "C"
            | "POSIX"
            | "ucs_basic"
            | "unicode"
            | "pg_c_utf8"
            | "pg_unicode_fast"
            | "C.UTF-8"
            | "C.utf8"
    ) || name.ends_with("-x-icu")
}

/// The name that a primary key gets where none is written.
fn default_key_name(table: &str) -> String {
    format!("{}_pkey", cut(table, IDENTIFIER_BYTES_MAX - "_pkey".len()))
}

/// The name of the multirange over a range type.
fn multirange_name(range: &str) -> String {
    match range.find("range") {
        Some(place) => {
            let (before, after) = range.split_at(place);
            format!("{before}multi{after}")
        }
        None => format!(
            "{}_multirange",
            cut(range, IDENTIFIER_BYTES_MAX - "_multirange".len())
        ),
    }
}

/// At most that many bytes, whole characters only.
fn cut(text: &str, bytes: usize) -> &str {
    let mut end = bytes.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

/// The column names that an expression mentions.
fn columns_named(expression: Node<'_>) -> Vec<String> {
    let mut names = Vec::new();
    pg_raw_parse::walk::walk(expression, |node| {
        if let Node::ColumnRef(reference) = node {
            names.extend(words(reference.fields()).pop());
        }
    });
    names
}

/// `'s'` or `'s'::regclass`.
fn regclass_literal(node: Node<'_>) -> Option<&str> {
    match node {
        Node::A_Const(constant) => match constant.val()? {
            ConstValue::String(text) => Some(text),
            _ => None,
        },
        Node::TypeCast(cast) => match cast.arg() {
            inner @ Node::A_Const(_) => regclass_literal(inner),
            _ => None,
        },
        _ => None,
    }
}

/// The parts of a (perhaps quoted) qualified name within a string.
fn split_name(text: &str) -> Vec<String> {
    let mut parts = Vec::new();
    let mut part = String::new();
    let mut quoted = false;
    let mut characters = text.chars().peekable();
    while let Some(c) = characters.next() {
        match c {
            '"' if quoted && characters.peek() == Some(&'"') => {
                characters.next();
                part.push('"');
            }
            '"' => quoted = !quoted,
            '.' if !quoted => parts.push(std::mem::take(&mut part)),
            c if quoted => part.push(c),
            c => part.push(c.to_ascii_lowercase()),
        }
    }
    parts.push(part);
    parts
}

fn option_value(node: Node<'_>) -> String {
    match node {
        // Without a value an option is on.
        Node::None => "true".to_owned(),
        Node::String(string) => string.sval().unwrap_or_default().to_owned(),
        Node::Boolean(boolean) => boolean.boolval.to_string(),
        Node::Integer(integer) => integer.ival.to_string(),
        Node::TypeName(name) => name
            .names()
            .iter()
            .filter_map(|part| part.sval())
            .collect::<Vec<_>>()
            .join("."),
        _ => String::new(),
    }
}

/// The name of a dropped, renamed or moved object: a list of strings, a string, a type, or a function with arguments.
fn object_names(node: Node<'_>) -> Vec<String> {
    match node {
        Node::NodeList(list) => words(list),
        Node::String(string) => vec![string.sval().unwrap_or_default().to_owned()],
        Node::TypeName(name) => name
            .names()
            .iter()
            .filter_map(|part| part.sval())
            .map(str::to_owned)
            .collect(),
        Node::ObjectWithArgs(object) => words(object.objname()),
        _ => Vec::new(),
    }
}

fn words(list: &NodeList) -> Vec<String> {
    let word = |node| match node {
        Node::String(string) => string.sval().map(str::to_owned),
        _ => None,
    };
    list.iter().filter_map(word).collect()
}

fn strings(list: &pg_raw_parse::list::CastNodeList<nodes::String>) -> Vec<String> {
    list.iter()
        .filter_map(|string| string.sval())
        .map(str::to_owned)
        .collect()
}

fn name_of(at: &nodes::RangeVar) -> &str {
    at.relname().unwrap_or_default()
}

fn written(at: &nodes::RangeVar) -> String {
    match at.schemaname() {
        Some(schema) => format!("{schema}.{}", name_of(at)),
        None => name_of(at).to_owned(),
    }
}

fn deparsed(node: Node<'_>) -> Applied<String> {
    let printed = pg_raw_parse::deparse(node).map_err(|e| not_applied(&format!("cannot be printed: {e}")))?;
    Ok(printed.as_str().to_owned())
}

/// An expression printed alone.
fn deparsed_expression(node: Node<'_>) -> Applied<String> {
    let select = pg_raw_parse::make::owned(|mem| {
        let mut select = mem.make_node::<nodes::SelectStmt>();
        let target = mem.make_res_target(None, mem.empty(), mem.make_unique(node));
        select.as_mut().set_target_list(mem.make_list(&[target]));
        select
    });
    let printed = deparsed(Node::SelectStmt(&select))?;
    printed
        .strip_prefix("SELECT ")
        .map(str::to_owned)
        .ok_or_else(|| not_applied("an expression that cannot be printed"))
}

fn not_applied(what: &str) -> CatalogError {
    CatalogError::NotApplied(what.to_owned())
}

fn already(name: &str) -> CatalogError {
    not_applied(&format!("`{name}` is there already"))
}

/// The kind of a node for messages, without what it holds: the first word of its debug output, which has no bound.
fn kind_of(node: Node<'_>) -> String {
    struct FirstWord(String);
    impl std::fmt::Write for FirstWord {
        fn write_str(&mut self, text: &str) -> std::fmt::Result {
            let word = text.split(['(', ' ', '{']).next().unwrap_or_default();
            self.0.push_str(word);
            if word.len() == text.len() && self.0.len() < 64 {
                Ok(())
            } else {
                Err(std::fmt::Error)
            }
        }
    }
    let mut word = FirstWord(String::new());
    // An error only says that enough was written.
    let _ = std::fmt::Write::write_fmt(&mut word, format_args!("{node:?}"));
    word.0
}
