//! Names of the relational form → objects of the catalog, by PostgreSQL's own rules; and everything that
//! [`StatementFacts`](crate::facts::StatementFacts) says, noted on the way.

mod expr;
mod query;
mod source;
mod statement;
mod write;

use std::collections::BTreeSet;
use std::rc::Rc;

use super::lineage::{Lineage, Solved, settle};
use super::parse::DEPTH_MAX;
use super::scope::{Entry, Env, Field, Level};
use crate::catalog::{AttNum, CatalogView, CodeFacts, Oid, Operand, RelationKind, unlisted};
use crate::facts::{
    Action, Call, CallSyntax, Clause, ColumnId, ColumnUse, FunctionClass, FunctionOrigin, OutputColumn,
    RangeRole, RangeUse, RefTarget, SessionEffect, StatementFacts, TableAction, Transformation, Unreadable,
};
use crate::form::{Location, Name, RelationRef, Statement, TypeRef};

type Resolved<T> = Result<T, Unreadable>;

/// Resolves a lowered statement. `span` and `normalized` are left for the caller.
///
/// `types` are those that the client gave its parameters, 0 = none.
pub(crate) fn resolve(
    statement: &Statement,
    parameters: u16,
    types: &[Oid],
    view: CatalogView<'_>,
) -> Resolved<StatementFacts> {
    let mut resolver = Resolver::new(view);
    let given = |oid: &Oid| {
        if *oid == 0 {
            Operand::Untyped
        } else {
            Operand::Typed(*oid)
        }
    };
    resolver.parameters = types.iter().map(given).collect();
    resolver.statement(statement)?;
    Ok(resolver.finish(statement, parameters))
}

struct Resolver<'v> {
    view: CatalogView<'v>,
    depth: usize,
    /// Types of parameters, as far as the client gave them.
    parameters: Vec<Operand>,
    /// Types of the arguments of the call that was read last.
    last_arguments: Vec<Operand>,
    actions: Vec<TableAction>,
    outputs: Vec<RawOutput>,
    indirect: Lineage,
    solved: Solved,
    recursive_ctes: usize,
    calls: Vec<Call>,
    effective_where: Vec<(Oid, Action, bool)>,
    writes_data: bool,
    hidden_writes: bool,
    server_files: bool,
    effects: Vec<SessionEffect>,
    ranges: Vec<RangeUse>,
    uses: Vec<ColumnUse>,
}

struct RawOutput {
    name: String,
    target: Option<ColumnId>,
    lineage: Rc<Lineage>,
}

/// Where a name was found.
enum Found<'a> {
    /// A column of an entry.
    Column { entry: &'a Entry, field: &'a Field },
    /// A system column of an entry's relation.
    System { entry: &'a Entry, column: AttNum },
    /// An entry's row.
    Row(&'a Entry),
    /// A column that an entry may have: its columns are not all known.
    Open { entry: &'a Entry },
    /// `row.function`
    Function { entry: &'a Entry, name: &'a str },
}

impl<'v> Resolver<'v> {
    fn new(view: CatalogView<'v>) -> Self {
        Self {
            view,
            depth: 0,
            parameters: Vec::new(),
            last_arguments: Vec::new(),
            actions: Vec::new(),
            outputs: Vec::new(),
            indirect: Lineage::default(),
            solved: Solved::new(),
            recursive_ctes: 0,
            calls: Vec::new(),
            effective_where: Vec::new(),
            writes_data: false,
            hidden_writes: false,
            server_files: false,
            effects: Vec::new(),
            ranges: Vec::new(),
            uses: Vec::new(),
        }
    }

    fn finish(self, statement: &Statement, parameters: u16) -> StatementFacts {
        let output = self
            .outputs
            .iter()
            .map(|output| OutputColumn {
                name: output.name.clone(),
                target: output.target,
                sources: settle(&output.lineage, &self.solved).sources(),
            })
            .collect();
        StatementFacts {
            kind: statement.kind.clone(),
            inner: statement.inner.clone(),
            span: 0..0,
            actions: self.actions,
            output,
            indirect: settle(&self.indirect, &self.solved).sources(),
            calls: self.calls,
            effective_where: self.effective_where,
            writes_data: self.writes_data,
            hidden_writes: self.hidden_writes,
            creates_temporary: statement.temporary,
            only_adds: statement.only_adds,
            effects: self.effects,
            server_files: statement.server_files || self.server_files,
            server_programs: statement.server_programs,
            parameters,
            ranges: self.ranges,
            column_uses: self.uses,
            normalized: String::new(),
        }
    }

    fn deeper<T>(&mut self, inner: impl FnOnce(&mut Self) -> Resolved<T>) -> Resolved<T> {
        if self.depth >= DEPTH_MAX {
            return Err(Unreadable::TooComplex(format!("nested deeper than {DEPTH_MAX}")));
        }
        self.depth += 1;
        let result = inner(self);
        self.depth -= 1;
        result
    }

    /// The type of `$number`; the server finds one for a parameter that has none.
    fn parameter(&self, number: u16) -> Operand {
        let index = usize::from(number).checked_sub(1);
        index
            .and_then(|index| self.parameters.get(index))
            .copied()
            .unwrap_or(Operand::Untyped)
    }

    /// The relation that a mention means, and its action.
    fn relation(&mut self, relation: &RelationRef) -> Option<&'v crate::catalog::Relation> {
        self.view
            .resolve_relation(relation.name.schema.as_deref(), &relation.name.name)
    }

    /// Notes that something is done to a relation.
    fn act(&mut self, action: Action, relation: &RelationRef) -> Option<&'v crate::catalog::Relation> {
        let found = self.relation(relation);
        match found {
            Some(known) => self.act_on(
                action,
                known.oid,
                format!("{}.{}", known.schema, known.name),
                None,
            ),
            None => {
                let name = relation.name.written();
                let there = self
                    .actions
                    .iter()
                    .any(|act| act.action == action && act.relation.is_none() && act.name == name);
                if !there {
                    self.actions.push(TableAction {
                        action,
                        relation: None,
                        name,
                        columns: BTreeSet::new(),
                    });
                }
            }
        }
        found
    }

    fn act_on(&mut self, action: Action, relation: Oid, name: String, column: Option<AttNum>) {
        let known = self
            .actions
            .iter_mut()
            .find(|act| act.action == action && act.relation == Some(relation));
        match known {
            Some(known) => known.columns.extend(column),
            None => self.actions.push(TableAction {
                action,
                relation: Some(relation),
                name,
                columns: column.into_iter().collect(),
            }),
        }
    }

    fn act_by_oid(&mut self, action: Action, relation: Oid, column: Option<AttNum>) {
        let name = match self.view.relation(relation) {
            Some(known) => format!("{}.{}", known.schema, known.name),
            None => format!("relation {relation}"),
        };
        self.act_on(action, relation, name, column);
    }

    /// Notes a mention of a relation; gives the entry that its FROM item or target is.
    fn range(&mut self, relation: &RelationRef, role: RangeRole, nullable: bool) -> Entry {
        let alias = relation.alias.as_ref();
        let reference_name = alias.map_or(&relation.name.name, |alias| &alias.name).clone();
        let mut entry = Entry::new(Some(reference_name.clone()));
        if alias.is_none() {
            entry.relation = Some((relation.name.schema.clone(), relation.name.name.clone()));
        }
        let column_aliases = alias.map(|alias| alias.columns.clone()).unwrap_or_default();
        match self.relation(relation) {
            Some(known) => {
                let range = self.ranges.len();
                self.ranges.push(RangeUse {
                    location: relation.location,
                    relation: known.oid,
                    reference_name,
                    aliased: alias.is_some(),
                    column_aliases: column_aliases.clone(),
                    role,
                    nullable,
                    used_columns: BTreeSet::new(),
                    needs_all_columns: false,
                });
                entry.range = Some(range);
                entry.covers = vec![range];
                entry.system_columns =
                    !matches!(known.kind, RelationKind::View | RelationKind::CompositeType);
                entry.fields = known
                    .columns
                    .iter()
                    .map(|column| Field {
                        name: column.name.clone(),
                        lineage: Rc::new(Lineage::column(ColumnId {
                            relation: known.oid,
                            column: column.number,
                        })),
                        row: None,
                        kind: Operand::Typed(column.column_type.oid),
                        origin: Some((range, column.number)),
                    })
                    .collect();
            }
            None => {
                entry.open = Some(Rc::new(Lineage::default()));
                entry.unknown = Some(format!("relation {} does not exist", relation.name.written()));
                entry.system_columns = true;
            }
        }
        entry.rename(&column_aliases);
        entry
    }

    /// Notes that a column of a mentioned relation is read.
    fn read_column(&mut self, range: usize, column: AttNum) {
        let Some(mention) = self.ranges.get_mut(range) else {
            return;
        };
        let relation = mention.relation;
        if column == 0 {
            mention.needs_all_columns = true;
        } else {
            mention.used_columns.insert(column);
        }
        self.act_by_oid(Action::Select, relation, Some(column));
    }

    fn needs_all_columns(&mut self, ranges: &[usize]) {
        for range in ranges {
            if let Some(mention) = self.ranges.get_mut(*range) {
                mention.needs_all_columns = true;
            }
        }
    }

    fn used(&mut self, location: Location, target: RefTarget, clause: Clause, parts: usize) {
        if location >= 0 {
            self.uses.push(ColumnUse {
                location,
                target,
                clause,
                parts,
            });
        }
    }

    /// Notes that everything in `lineage` decides what comes out, in that way.
    fn decides(&mut self, lineage: &Lineage, how: Transformation) {
        self.indirect.add(lineage, how);
    }

    fn note_call(&mut self, location: Location, name: String, syntax: CallSyntax, facts: CodeFacts) {
        let action = match facts.class {
            FunctionClass::ReadsRows => Some(Action::Select),
            FunctionClass::Writes => Some(Action::Update),
            FunctionClass::Open
            | FunctionClass::Settings
            | FunctionClass::Server
            | FunctionClass::RunsSql
            | FunctionClass::Unlisted => None,
        };
        if let Some(action) = action {
            for relation in &facts.relations {
                self.act_by_oid(action, *relation, Some(0));
            }
        }
        self.server_files |= facts.server_files;
        self.calls.push(Call {
            location,
            name,
            syntax,
            origin: facts.origin,
            class: facts.class,
            quiet: facts.quiet,
            aggregate: facts.aggregate,
        });
    }

    /// A function; `literal` is its first argument where that is a literal.
    fn note_function(
        &mut self,
        location: Location,
        name: &Name,
        arguments: &[Operand],
        literal: Option<&str>,
    ) -> CodeFacts {
        let mut facts = self
            .view
            .function_with(name.schema.as_deref(), &name.name, arguments);
        if let (FunctionOrigin::BuiltIn, false, Some(literal), Some(value)) =
            (facts.origin, facts.quiet, literal, arguments.get(1))
        {
            facts.quiet = self.view.quiet_with_literal(&name.name, literal, *value);
        }
        self.note_call(location, name.written(), CallSyntax::Function, facts.clone());
        facts
    }

    /// A construct of the grammar: no user code can take its name.
    fn note_grammar(&mut self, location: Location, name: &str, aggregate: bool) {
        let facts = CodeFacts {
            origin: FunctionOrigin::BuiltIn,
            class: FunctionClass::Open,
            aggregate,
            ..unlisted()
        };
        self.note_call(location, name.to_owned(), CallSyntax::Function, facts);
    }

    /// An operator; `left` is `None` for a prefix operator, `literal` its right side where that is a literal. Gives
    /// the type of its result.
    fn note_operator(
        &mut self,
        location: Location,
        name: &Name,
        (left, right): (Option<Operand>, Operand),
        literal: Option<&str>,
    ) -> Operand {
        let mut facts = self
            .view
            .operator_with(name.schema.as_deref(), &name.name, left, right);
        if let (FunctionOrigin::BuiltIn, false, Some(literal), Some(value)) =
            (facts.origin, facts.quiet, literal, left)
        {
            facts.quiet = self.view.quiet_with_literal(&name.name, literal, value);
        }
        self.note_call(location, name.written(), CallSyntax::Operator, facts);
        self.view
            .operator_result(name.schema.as_deref(), &name.name, left, right)
    }

    /// A cast; its code is found by the type's name. Gives the type, if it is known.
    fn note_cast(&mut self, target: &TypeRef, location: Location, value: Operand) -> Operand {
        let mut name = target.name.name.clone();
        if target.array {
            name.push_str("[]");
        }
        // `t.c%TYPE` has the type of that column, which is not looked for.
        let known = (!target.of_column)
            .then(|| self.view.resolve_type(target.name.schema.as_deref(), &name, &[]))
            .flatten();
        let (facts, kind) = match known {
            Some(known) => {
                // Any modifier may make a cast raise, whatever its number.
                let modifier = if target.modified { 1 } else { -1 };
                (
                    self.view.cast_between(value, known.oid, modifier),
                    Operand::Typed(known.oid),
                )
            }
            None => (unlisted(), Operand::Unsure),
        };
        let written = target.name.written();
        let name = if target.array {
            format!("{written}[]")
        } else {
            written
        };
        self.note_call(location, name, CallSyntax::Cast, facts);
        kind
    }

    /// A type that is named where no value is cast (column definitions).
    fn note_type(&mut self, target: &TypeRef) -> Operand {
        self.note_cast(target, target.location, Operand::Unsure)
    }

    /// Where a name of one to four parts leads, from the innermost level outwards. `beyond` collects what entries
    /// with unknown columns on the way may have contributed.
    fn find<'a>(
        &self,
        parts: &'a [String],
        env: Env<'a, '_>,
        beyond: &mut Vec<&'a Entry>,
    ) -> Resolved<Found<'a>> {
        match parts {
            [name] => self.find_bare(name, env, beyond),
            [relation, column] => match self.find_entry(None, relation, env.level)? {
                Some(entry) => Ok(in_entry(entry, column)),
                None => Err(missing_entry(relation)),
            },
            [schema, relation, column] | [_, schema, relation, column] => {
                match self.find_entry(Some(schema), relation, env.level)? {
                    Some(entry) => Ok(in_entry(entry, column)),
                    None => Err(missing_entry(relation)),
                }
            }
            _ => Err(Unreadable::NotBuilt(format!(
                "a column name of {} parts",
                parts.len()
            ))),
        }
    }

    fn find_bare<'a>(
        &self,
        name: &'a str,
        env: Env<'a, '_>,
        beyond: &mut Vec<&'a Entry>,
    ) -> Resolved<Found<'a>> {
        let mut level = env.level;
        while let Some(here) = level {
            if let Some(found) = find_at_level(here, name)? {
                return Ok(found);
            }
            beyond.extend(here.entries().filter(|entry| entry.bare && entry.open.is_some()));
            level = here.parent;
        }
        if let Some(entry) = self.find_entry(None, name, env.level)? {
            return Ok(Found::Row(entry));
        }
        match beyond.first() {
            Some(entry) => Ok(Found::Open { entry }),
            None => Err(Unreadable::UnknownName(format!(
                "column \"{name}\" does not exist"
            ))),
        }
    }

    /// The entry that a qualified name's first part means.
    fn find_entry<'a>(
        &self,
        schema: Option<&str>,
        name: &str,
        mut level: Option<&'a Level<'a>>,
    ) -> Resolved<Option<&'a Entry>> {
        // With a schema, the name means one relation, whatever schema its mention wrote.
        let wanted = schema.map(|schema| {
            self.view
                .resolve_relation(Some(schema), name)
                .map(|known| known.oid)
        });
        while let Some(here) = level {
            let mut found = None;
            for entry in here
                .entries()
                .filter(|entry| entry.named && entry.name.as_deref() == Some(name))
            {
                let fits = match (&wanted, &entry.relation) {
                    (None, _) => true,
                    (Some(_), None) => false,
                    (Some(Some(oid)), Some(_)) => entry
                        .range
                        .and_then(|range| self.ranges.get(range))
                        .is_some_and(|range| range.relation == *oid),
                    (Some(None), Some((written, _))) => written.as_deref() == schema,
                };
                if !fits {
                    continue;
                }
                if found.is_some() {
                    return Err(Unreadable::UnknownName(format!(
                        "table reference \"{name}\" is ambiguous"
                    )));
                }
                found = Some(entry);
            }
            if found.is_some() {
                return Ok(found);
            }
            level = here.parent;
        }
        Ok(None)
    }
}

fn find_at_level<'a>(level: &'a Level<'a>, name: &str) -> Resolved<Option<Found<'a>>> {
    let mut found = None;
    for entry in level.entries().filter(|entry| entry.bare) {
        for field in entry.fields.iter().filter(|field| field.name == name) {
            if found.is_some() {
                return Err(Unreadable::UnknownName(format!(
                    "column reference \"{name}\" is ambiguous"
                )));
            }
            found = Some(Found::Column { entry, field });
        }
    }
    if found.is_none()
        && let Some(column) = system_column(name)
    {
        for entry in level.entries().filter(|entry| entry.bare && entry.system_columns) {
            if found.is_some() {
                return Err(Unreadable::UnknownName(format!(
                    "column reference \"{name}\" is ambiguous"
                )));
            }
            found = Some(Found::System { entry, column });
        }
    }
    Ok(found)
}

/// A column of that entry by name.
fn in_entry<'a>(entry: &'a Entry, column: &'a str) -> Found<'a> {
    if let Some(field) = entry.fields.iter().find(|field| field.name == column) {
        return Found::Column { entry, field };
    }
    match system_column(column).filter(|_| entry.system_columns) {
        Some(column) => Found::System { entry, column },
        None if entry.open.is_some() => Found::Open { entry },
        None => Found::Function { entry, name: column },
    }
}

fn missing_entry(name: &str) -> Unreadable {
    Unreadable::UnknownName(format!("missing FROM-clause entry for table \"{name}\""))
}

/// Numbers of the columns that every table has.
fn system_column(name: &str) -> Option<AttNum> {
    match name {
        "ctid" => Some(-1),
        "xmin" => Some(-2),
        "cmin" => Some(-3),
        "xmax" => Some(-4),
        "cmax" => Some(-5),
        "tableoid" => Some(-6),
        _ => None,
    }
}
