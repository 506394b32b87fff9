//! FROM lists: what each source offers.

use std::collections::HashSet;
use std::rc::Rc;

use super::expr::{derived, equals};
use super::{Resolved, Resolver};
use crate::catalog::{Operand, RelationKind, TypeKind};
use crate::facts::{Action, Clause, FunctionOrigin, RangeRole, Transformation, Unreadable};
use crate::form::{Alias, Expr, ExprKind, FunctionCall, Join, JoinKind, Location, Source, TableFunction};
use crate::postgres::condition::Condition;
use crate::postgres::function_columns::{ResultColumns, result_columns};
use crate::postgres::lineage::Lineage;
use crate::postgres::scope::{CteScope, CteState, Entry, Env, Field, Level};

/// What a source adds to the namespace. The last entry stands for the source itself.
pub(super) struct Offered {
    pub(super) entries: Vec<Entry>,
    /// Conditions of inner joins in it.
    pub(super) condition: Condition,
}

impl<'v> Resolver<'v> {
    /// All sources of a FROM list, from left to right.
    pub(super) fn sources<'q>(
        &mut self,
        sources: &'q [Source],
        env: Env<'_, 'q>,
        mut entries: Vec<Entry>,
        clause: Clause,
    ) -> Resolved<Offered> {
        let mut conditions = Vec::new();
        for source in sources {
            let offered = self.source(source, env, &[&entries], false, clause)?;
            conditions.push(offered.condition);
            entries.extend(offered.entries);
        }
        Ok(Offered {
            entries,
            condition: Condition::all_of(conditions),
        })
    }

    /// One source. `left` is what LATERAL may see of the sources before it.
    pub(super) fn source<'q>(
        &mut self,
        source: &'q Source,
        env: Env<'_, 'q>,
        left: &[&[Entry]],
        nullable: bool,
        clause: Clause,
    ) -> Resolved<Offered> {
        self.deeper(|resolver| match source {
            Source::Relation { .. } => resolver.relation_source(source, env, left, nullable),
            Source::Query {
                query,
                lateral,
                alias,
            } => {
                let level = Level {
                    parts: left,
                    parent: env.level,
                };
                let inner = if *lateral {
                    Env {
                        level: Some(&level),
                        ..env
                    }
                } else {
                    env
                };
                let output = resolver.query(query, inner, Clause::InnerOutput, false)?;
                let mut entry = Entry::new(alias.as_ref().map(|alias| alias.name.clone()));
                entry.fields = output.fields;
                rename(&mut entry, alias.as_ref());
                entry.named = alias.is_some();
                Ok(Offered {
                    entries: vec![entry],
                    condition: Condition::default(),
                })
            }
            Source::Functions {
                functions,
                ordinality,
                alias,
            } => {
                let level = Level {
                    parts: left,
                    parent: env.level,
                };
                let inner = Env {
                    level: Some(&level),
                    ..env
                };
                let entry = resolver.functions(functions, *ordinality, alias.as_ref(), inner)?;
                Ok(Offered {
                    entries: vec![entry],
                    condition: Condition::default(),
                })
            }
            Source::Constructed {
                name,
                grammar,
                location,
                args,
                columns,
                types,
                alias,
            } => {
                let level = Level {
                    parts: left,
                    parent: env.level,
                };
                let inner = Env {
                    level: Some(&level),
                    ..env
                };
                let entry = resolver.constructed(name, *grammar, *location, args, columns, inner)?;
                for target in types {
                    resolver.note_type(target);
                }
                let mut entry = entry;
                if let Some(alias) = alias {
                    entry.name = Some(alias.name.clone());
                }
                rename(&mut entry, alias.as_ref());
                Ok(Offered {
                    entries: vec![entry],
                    condition: Condition::default(),
                })
            }
            Source::Join(join) => resolver.join(join, env, left, nullable, clause),
        })
    }

    fn relation_source<'q>(
        &mut self,
        source: &'q Source,
        env: Env<'_, 'q>,
        left: &[&[Entry]],
        nullable: bool,
    ) -> Resolved<Offered> {
        let Source::Relation { relation, sample } = source else {
            return Err(Unreadable::NotBuilt("a source that is no relation".to_owned()));
        };
        if relation.name.schema.is_none()
            && let Some(fields) = self.cte(&relation.name.name, env)?
        {
            let name = relation
                .alias
                .as_ref()
                .map_or(&relation.name.name, |alias| &alias.name);
            let mut entry = Entry::new(Some(name.clone()));
            entry.fields = fields;
            rename(&mut entry, relation.alias.as_ref());
            return Ok(Offered {
                entries: vec![entry],
                condition: Condition::default(),
            });
        }
        if let Some(known) = self.act(Action::Select, relation)
            && matches!(known.kind, RelationKind::Index | RelationKind::CompositeType)
        {
            return Err(Unreadable::UnknownName(format!(
                "\"{}\" holds no rows",
                known.name
            )));
        }
        let entry = self.range(relation, RangeRole::Source, nullable);
        if let Some(sample) = sample {
            self.note_function(sample.location, &sample.method, &[Operand::Unsure], None);
            let level = Level {
                parts: left,
                parent: env.level,
            };
            let inner = Env {
                level: Some(&level),
                ..env
            };
            for argument in &sample.args {
                let value = self.expr(argument, inner, Clause::Where)?;
                self.decides(&value.lineage, Transformation::Filter);
            }
        }
        Ok(Offered {
            entries: vec![entry],
            condition: Condition::default(),
        })
    }

    /// The columns of a CTE in reach under that name.
    fn cte<'q>(&mut self, name: &str, env: Env<'_, 'q>) -> Resolved<Option<Vec<Field>>> {
        let mut scope = env.ctes;
        while let Some(here) = scope {
            let position = here.ctes.borrow().iter().position(|(known, _)| known == name);
            if let Some(position) = position {
                return self.cte_at(here, position).map(Some);
            }
            scope = here.parent;
        }
        Ok(None)
    }

    fn cte_at<'q>(&mut self, scope: &CteScope<'_, 'q>, position: usize) -> Resolved<Vec<Field>> {
        let pending = match scope.ctes.borrow().get(position) {
            Some((_, CteState::Done(fields) | CteState::Running(Some(fields)))) => return Ok(fields.clone()),
            Some((_, CteState::Pending(cte))) => *cte,
            Some((name, CteState::Running(None))) => {
                return Err(Unreadable::NotBuilt(format!(
                    "WITH query \"{name}\" that names itself outside the last branch of its UNION"
                )));
            }
            None => return Ok(Vec::new()),
        };
        self.pending_cte(scope, position, pending)
    }

    /// A chain of joins leans to the left: it is followed without recursion.
    #[inline(never)]
    fn join<'q>(
        &mut self,
        join: &'q Join,
        env: Env<'_, 'q>,
        left: &[&[Entry]],
        nullable: bool,
        clause: Clause,
    ) -> Resolved<Offered> {
        let mut chain = Vec::new();
        let mut current = join;
        let mut nullable = nullable;
        loop {
            chain.push((current, nullable));
            nullable |= matches!(current.kind, JoinKind::Right | JoinKind::Full);
            match &current.left {
                Source::Join(inner) => current = inner,
                _ => break,
            }
        }
        let mut offered = self.source(&current.left, env, left, nullable, clause)?;
        for (join, nullable) in chain.into_iter().rev() {
            offered = self.join_to(offered, join, env, left, nullable, clause)?;
        }
        Ok(offered)
    }

    fn join_to<'q>(
        &mut self,
        left_side: Offered,
        join: &'q Join,
        env: Env<'_, 'q>,
        left: &[&[Entry]],
        nullable: bool,
        clause: Clause,
    ) -> Resolved<Offered> {
        let right_nullable = nullable || matches!(join.kind, JoinKind::Left | JoinKind::Full);
        let mut seen: Vec<&[Entry]> = left.to_vec();
        seen.push(&left_side.entries);
        let right_side = self.source(&join.right, env, &seen, right_nullable, clause)?;

        let mut condition = Condition::all_of([left_side.condition, right_side.condition]);
        if let Some(on) = &join.on {
            let level = Level {
                parts: &[&left_side.entries, &right_side.entries],
                parent: env.level,
            };
            let value = self.expr(
                on,
                Env {
                    level: Some(&level),
                    ..env
                },
                Clause::JoinOn,
            )?;
            self.decides(&value.lineage, Transformation::Join);
            if join.kind == JoinKind::Inner {
                condition = Condition::all_of([condition, value.condition]);
            }
        }

        let mut entries = left_side.entries;
        let left_own = own_entry(&mut entries)?;
        let mut right_entries = right_side.entries;
        let right_own = own_entry(&mut right_entries)?;
        entries.extend(right_entries);
        let JoinColumns { mut entry, merged } = self.join_columns(join, left_own, right_own)?;
        match &join.alias {
            // An alias hides everything inside.
            Some(alias) => {
                entries.clear();
                entry.name = Some(alias.name.clone());
                entry.rename(&alias.columns);
            }
            None => {
                for inner in &mut entries {
                    inner.bare = false;
                }
                entry.named = false;
            }
        }
        if let Some(name) = &join.using_alias {
            let mut using = Entry::new(Some(name.clone()));
            using.fields = merged;
            using.bare = false;
            using.covers.clone_from(&entry.covers);
            entries.push(using);
        }
        entries.push(entry);
        Ok(Offered { entries, condition })
    }

    fn join_columns(&mut self, join: &Join, left: Entry, right: Entry) -> Resolved<JoinColumns> {
        let mut names = join.using.clone();
        if join.natural {
            for side in [&left, &right] {
                if let Some(reason) = &side.unknown {
                    return Err(Unreadable::UnknownName(reason.clone()));
                }
            }
            let of_right: HashSet<&str> = right.fields.iter().map(|field| field.name.as_str()).collect();
            let common = left.fields.iter().map(|field| &field.name);
            names = common
                .filter(|name| of_right.contains(name.as_str()))
                .cloned()
                .collect();
        }
        let mut merged = Vec::new();
        for name in &names {
            let left_field = self.using_field(&left, name)?;
            let right_field = self.using_field(&right, name)?;
            self.note_operator(-1, &equals(), (Some(left_field.kind), right_field.kind), None);
            for field in [&left_field, &right_field] {
                self.decides(&field.lineage, Transformation::Join);
                if let Some((range, column)) = field.origin {
                    self.read_column(range, column);
                }
            }
            merged.push(match join.kind {
                JoinKind::Inner | JoinKind::Left => left_field,
                JoinKind::Right => right_field,
                JoinKind::Full => {
                    let mut lineage = Lineage::default();
                    lineage.add(&left_field.lineage, Transformation::Transformation);
                    lineage.add(&right_field.lineage, Transformation::Transformation);
                    Field {
                        name: name.clone(),
                        lineage: Rc::new(lineage),
                        row: None,
                        kind: Operand::Unsure,
                        origin: None,
                    }
                }
            });
        }
        let mut entry = Entry::new(None);
        entry.target = left.target || right.target;
        for side in [&left, &right] {
            if let Some(open) = &side.open {
                let mut together = entry
                    .open
                    .take()
                    .map(|open| open.as_ref().clone())
                    .unwrap_or_default();
                together.add(open, Transformation::Identity);
                entry.open = Some(Rc::new(together));
                entry.unknown = entry.unknown.take().or_else(|| side.unknown.clone());
            }
        }
        entry.covers = left.covers;
        entry.covers.extend(right.covers);
        entry.fields = left.fields;
        entry.fields.extend(right.fields);
        if join.natural || !names.is_empty() {
            self.needs_all_columns(&entry.covers);
            entry.fields.retain(|field| !names.contains(&field.name));
            entry.fields.splice(0..0, merged.iter().cloned());
        }
        Ok(JoinColumns { entry, merged })
    }

    fn using_field(&self, side: &Entry, name: &str) -> Resolved<Field> {
        let mut fields = side.fields.iter().filter(|field| field.name == name);
        match (fields.next(), fields.next(), &side.open) {
            (Some(field), None, _) => Ok(field.clone()),
            (Some(_), Some(_), _) => Err(Unreadable::UnknownName(format!(
                "common column name \"{name}\" appears more than once"
            ))),
            (None, _, Some(open)) => Ok(Field {
                name: name.to_owned(),
                lineage: Rc::clone(open),
                row: None,
                kind: Operand::Unsure,
                origin: None,
            }),
            (None, _, None) => Err(Unreadable::UnknownName(format!(
                "column \"{name}\" specified in USING clause does not exist"
            ))),
        }
    }

    fn constructed<'q>(
        &mut self,
        name: &str,
        grammar: u16,
        location: Location,
        args: &'q [Expr],
        columns: &[String],
        env: Env<'_, 'q>,
    ) -> Resolved<Entry> {
        if self.view.catalog.server_major < grammar {
            return Err(Unreadable::NotBuilt(format!(
                "{name} before PostgreSQL {grammar}"
            )));
        }
        self.note_grammar(location, name, false);
        let mut lineage = Lineage::default();
        for argument in args {
            let value = self.expr(argument, env, Clause::Where)?;
            lineage.add(&value.lineage, Transformation::Transformation);
        }
        let lineage = Rc::new(lineage);
        let mut entry = Entry::new(Some(name.to_owned()));
        entry.fields = columns.iter().map(|column| computed(column, &lineage)).collect();
        Ok(entry)
    }

    #[inline(never)]
    fn functions<'q>(
        &mut self,
        functions: &'q [TableFunction],
        ordinality: bool,
        alias: Option<&Alias>,
        env: Env<'_, 'q>,
    ) -> Resolved<Entry> {
        let single = functions.len() == 1;
        let mut name = None;
        let mut entry = Entry::new(None);
        for function in functions {
            let value = self.expr(&function.call, env, Clause::Where)?;
            let lineage = Rc::new(value.lineage.through(Transformation::Transformation));
            let own_name = function.call.output_name();
            for (_, target) in &function.columns {
                self.note_type(target);
            }
            if function.columns.is_empty() {
                let scalar_name = alias.filter(|_| single).map_or(&own_name, |alias| &alias.name);
                self.function_fields(&function.call, scalar_name, &own_name, &lineage, &mut entry);
            } else {
                entry.fields.extend(
                    function
                        .columns
                        .iter()
                        .map(|(column, _)| computed(column, &lineage)),
                );
            }
            name.get_or_insert(own_name);
        }
        if ordinality {
            entry
                .fields
                .push(computed("ordinality", &Rc::new(Lineage::default())));
        }
        entry.name = alias.map(|alias| alias.name.clone()).or(name);
        if let Some(alias) = alias {
            // A short list of known columns may be followed by unknown ones; names given here are certain.
            if entry.open.is_some() && alias.columns.len() > entry.fields.len() {
                let open = entry.open.clone().unwrap_or_default();
                for column in alias.columns.iter().skip(entry.fields.len()) {
                    entry.fields.push(computed(column, &open));
                }
            }
            entry.rename(&alias.columns);
        }
        Ok(entry)
    }

    /// The columns of one function in FROM.
    fn function_fields(
        &mut self,
        call: &Expr,
        scalar_name: &str,
        own_name: &str,
        lineage: &Rc<Lineage>,
        entry: &mut Entry,
    ) {
        let unknown = |entry: &mut Entry| {
            let mut together = entry
                .open
                .take()
                .map(|open| open.as_ref().clone())
                .unwrap_or_default();
            together.add(lineage, Transformation::Identity);
            entry.open = Some(Rc::new(together));
            entry.unknown = Some(format!("the columns of function {own_name} are not known"));
        };
        let ExprKind::Call(function) = &call.kind else {
            // `current_date` and casts: one value.
            entry.fields.push(computed(scalar_name, lineage));
            return;
        };
        match self.calls_built_in(function) {
            true if own_name == "unnest" && function.args.len() > 1 => {
                entry
                    .fields
                    .extend(function.args.iter().map(|_| computed("unnest", lineage)));
            }
            true if own_name == "unnest" => {
                if !self.array_of_scalars(self.last_arguments.first()) {
                    unknown(entry);
                }
                entry.fields.push(computed(scalar_name, lineage));
            }
            true => match result_columns(own_name, self.view.catalog.server_major) {
                ResultColumns::One => entry.fields.push(computed(scalar_name, lineage)),
                ResultColumns::Several(columns) => {
                    entry
                        .fields
                        .extend(columns.iter().map(|column| computed(column, lineage)));
                }
                ResultColumns::Unknown => unknown(entry),
            },
            false => unknown(entry),
        }
    }

    /// Whether a call can only mean a built-in function. A user's cast of an argument does not change what it returns.
    pub(super) fn calls_built_in(&self, call: &FunctionCall) -> bool {
        let name = &call.name.name;
        let of_user = !self.view.catalog.code.functions(name).is_empty()
            || !self.view.overlay.code.functions(name).is_empty();
        let reaches_built_in = matches!(call.name.schema.as_deref(), None | Some("pg_catalog"));
        let count = if call.star { 0 } else { call.args.len() };
        let known = self.view.function(Some("pg_catalog"), name, count).origin != FunctionOrigin::Unknown;
        reaches_built_in && known && (!of_user || call.name.schema.is_some())
    }

    /// The elements of an array of that type are certainly no rows.
    fn array_of_scalars(&self, array: Option<&Operand>) -> bool {
        let Some(Operand::Typed(oid)) = array else {
            return false;
        };
        let Some(TypeKind::Array { element }) = self.view.type_entry(*oid).map(|entry| &entry.kind) else {
            return false;
        };
        let element = self.view.type_entry(*element).map(|entry| &entry.kind);
        matches!(
            element,
            Some(TypeKind::Base { .. } | TypeKind::Enum | TypeKind::Range { .. })
        )
    }

    /// A star over these entries: their fields, and the mentioned relations under them.
    pub(super) fn star<'e>(
        &mut self,
        entries: impl Iterator<Item = &'e Entry>,
    ) -> Resolved<(Vec<Field>, Vec<usize>)> {
        let mut fields = Vec::new();
        let mut ranges = Vec::new();
        for entry in entries {
            if let Some(reason) = &entry.unknown {
                return Err(Unreadable::UnknownName(reason.clone()));
            }
            for field in &entry.fields {
                if let Some((range, column)) = field.origin.filter(|_| !entry.excluded) {
                    self.read_column(range, column);
                }
                fields.push(derived(field));
            }
            if let Some(relation) = entry.defined {
                self.act_by_oid(crate::facts::Action::Select, relation, Some(0));
            }
            ranges.extend(entry.covers.iter().copied());
        }
        self.needs_all_columns(&ranges);
        Ok((fields, ranges))
    }
}

/// The entry that stands for a side of a join: its columns move into the join's own. A mention of a relation stays
/// in reach by its name; a join inside has none.
fn own_entry(entries: &mut Vec<Entry>) -> Resolved<Entry> {
    match entries.last() {
        Some(last) if last.named => Ok(last.clone()),
        Some(_) | None => entries
            .pop()
            .ok_or_else(|| Unreadable::NotBuilt("a join of nothing".to_owned())),
    }
}

struct JoinColumns {
    entry: Entry,
    merged: Vec<Field>,
}

fn computed(name: &str, lineage: &Rc<Lineage>) -> Field {
    Field {
        name: name.to_owned(),
        lineage: Rc::clone(lineage),
        row: None,
        kind: Operand::Unsure,
        origin: None,
    }
}

fn rename(entry: &mut Entry, alias: Option<&Alias>) {
    if let Some(alias) = alias {
        entry.rename(&alias.columns);
    }
}
