//! Queries: WITH, SELECT, VALUES, set operations.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use super::expr::derived;
use super::{Found, Resolved, Resolver, find_at_level};
use crate::catalog::Operand;
use crate::facts::{Clause, RefTarget, Transformation, Unreadable};
use crate::form::{
    Body, Constant, Cte, Distinct, Expr, ExprKind, GroupItem, Item, Query, Select, SetOperator, SortKey,
    Step, With,
};
use crate::postgres::condition::Condition;
use crate::postgres::lineage::{Lineage, close_recursion};
use crate::postgres::scope::{CteScope, CteState, Entry, Env, Field, Level};

/// What a query gives to whoever asked for it.
#[derive(Debug, Default)]
pub(super) struct Output {
    pub(super) fields: Vec<Field>,
    /// Its own WHERE and inner joins.
    pub(super) condition: Condition,
    /// It reads rows of its own.
    pub(super) has_source: bool,
    /// Its outputs read the row that the statement around it updates or deletes.
    pub(super) reads_target: bool,
}

impl Output {
    /// Type of the only column.
    pub(super) fn only_kind(&self) -> Operand {
        match self.fields.as_slice() {
            [field] => field.kind,
            _ => Operand::Unsure,
        }
    }
}

impl<'v> Resolver<'v> {
    /// Any query. `clause` is what its select list counts as; `top` says that it is the statement itself.
    pub(super) fn query<'q>(
        &mut self,
        query: &'q Query,
        env: Env<'_, 'q>,
        clause: Clause,
        top: bool,
    ) -> Resolved<Output> {
        self.deeper(|resolver| match &query.with {
            None => resolver.query_body(query, env, clause, top, None),
            Some(with) => {
                let scope = resolver.with(with, env)?;
                resolver.query_body(
                    query,
                    Env {
                        ctes: Some(&scope),
                        ..env
                    },
                    clause,
                    top,
                    None,
                )
            }
        })
    }

    /// Reads the CTEs of a WITH, each one in the scope it has.
    fn with<'a, 'q>(&mut self, with: &'q With, env: Env<'a, 'q>) -> Resolved<CteScope<'a, 'q>> {
        let scope = CteScope {
            ctes: RefCell::new(Vec::new()),
            parent: env.ctes,
            level: env.level,
        };
        if with.recursive {
            let pending = with
                .ctes
                .iter()
                .map(|cte| (cte.name.clone(), CteState::Pending(cte)));
            scope.ctes.borrow_mut().extend(pending);
            for position in 0..with.ctes.len() {
                let pending = match scope.ctes.borrow().get(position) {
                    Some((_, CteState::Pending(cte))) => Some(*cte),
                    _ => None,
                };
                if let Some(cte) = pending {
                    self.pending_cte(&scope, position, cte)?;
                }
            }
        } else {
            for cte in &with.ctes {
                let inner = Env {
                    level: env.level,
                    ctes: Some(&scope),
                    windows: None,
                };
                let output = self.query_of_cte(cte, inner, None)?;
                scope
                    .ctes
                    .borrow_mut()
                    .push((cte.name.clone(), CteState::Done(output)));
            }
        }
        Ok(scope)
    }

    /// A CTE under WITH RECURSIVE: it may name itself and the others.
    pub(super) fn pending_cte<'q>(
        &mut self,
        scope: &CteScope<'_, 'q>,
        position: usize,
        cte: &'q Cte,
    ) -> Resolved<Vec<Field>> {
        let number = self.recursive_ctes;
        self.recursive_ctes += 1;
        if let Some((_, state)) = scope.ctes.borrow_mut().get_mut(position) {
            *state = CteState::Running(None);
        }
        let inner = Env {
            level: scope.level,
            ctes: Some(scope),
            windows: None,
        };
        let own = OwnName {
            number,
            position,
            cte,
        };
        let fields = self.deeper(|resolver| resolver.query_of_cte(cte, inner, Some(own)))?;
        let lineages: Vec<Lineage> = fields
            .iter()
            .map(|field| field.lineage.as_ref().clone())
            .collect();
        let closed = close_recursion(number, &lineages);
        let fields: Vec<Field> = fields
            .into_iter()
            .zip(&closed)
            .map(|(field, lineage)| Field {
                lineage: Rc::new(lineage.clone()),
                ..field
            })
            .collect();
        self.solved.insert(number, closed);
        if let Some((_, state)) = scope.ctes.borrow_mut().get_mut(position) {
            *state = CteState::Done(fields.clone());
        }
        Ok(fields)
    }

    fn query_of_cte<'q>(
        &mut self,
        cte: &'q Cte,
        env: Env<'_, 'q>,
        own: Option<OwnName<'_>>,
    ) -> Resolved<Vec<Field>> {
        let query = &cte.query;
        let output = match &query.with {
            None => self.query_body(query, env, Clause::InnerOutput, false, own)?,
            Some(with) => {
                let inner = self.with(with, env)?;
                self.query_body(
                    query,
                    Env {
                        ctes: Some(&inner),
                        ..env
                    },
                    Clause::InnerOutput,
                    false,
                    own,
                )?
            }
        };
        let mut fields = output.fields;
        for (field, name) in fields.iter_mut().zip(&cte.columns) {
            field.name.clone_from(name);
        }
        let together = |columns: &[String], fields: &[Field]| {
            let mut lineage = Lineage::default();
            for field in fields.iter().filter(|field| columns.contains(&field.name)) {
                lineage.add(&field.lineage, Transformation::Transformation);
            }
            Rc::new(lineage)
        };
        if let Some((columns, sequence)) = &cte.search {
            let lineage = together(columns, &fields);
            fields.push(Field {
                name: sequence.clone(),
                lineage,
                row: None,
                kind: Operand::Unsure,
                origin: None,
            });
        }
        if let Some(cycle) = &cte.cycle {
            for value in &cycle.values {
                self.expr(value, env, Clause::InnerOutput)?;
            }
            let lineage = together(&cycle.columns, &fields);
            let mark = Rc::new(lineage.through(Transformation::Conditional));
            fields.push(Field {
                name: cycle.mark.clone(),
                lineage: mark,
                row: None,
                kind: Operand::Unsure,
                origin: None,
            });
            fields.push(Field {
                name: cycle.path.clone(),
                lineage,
                row: None,
                kind: Operand::Unsure,
                origin: None,
            });
        }
        Ok(fields)
    }

    fn query_body<'q>(
        &mut self,
        query: &'q Query,
        env: Env<'_, 'q>,
        clause: Clause,
        top: bool,
        own: Option<OwnName<'_>>,
    ) -> Resolved<Output> {
        let env = Env { windows: None, ..env };
        match &query.body {
            Body::Select(select) => self.select(query, select, env, clause),
            Body::Values(rows) => self.values(query, rows, env, clause),
            Body::SetOperation(branches) => self.set_operation(query, branches, env, clause, own),
            Body::Write(write) => {
                self.hidden_writes |= !top;
                let fields = self.write(write, env, top)?;
                Ok(Output {
                    fields,
                    has_source: true,
                    ..Output::default()
                })
            }
        }
    }

    fn select<'q>(
        &mut self,
        query: &'q Query,
        select: &'q Select,
        env: Env<'_, 'q>,
        clause: Clause,
    ) -> Resolved<Output> {
        let offered = self.sources(&select.from, env, Vec::new(), clause)?;
        let entries = offered.entries;
        let parts: [&[Entry]; 1] = [&entries];
        let level = Level {
            parts: &parts,
            parent: env.level,
        };
        let inner = Env {
            level: Some(&level),
            ..env
        };

        let mut conditions = vec![offered.condition];
        if let Some(filter) = &select.filter {
            let filter = self.expr(filter, inner, Clause::Where)?;
            self.decides(&filter.lineage, Transformation::Filter);
            conditions.push(filter.condition);
        }
        let mut windows = HashMap::new();
        for window in &select.windows {
            let known = Env {
                windows: Some(&windows),
                ..inner
            };
            let lineage = self.window(-1, window, known, clause)?;
            if let Some(name) = &window.name {
                windows.insert(name.clone(), lineage);
            }
        }
        let inner = Env {
            windows: Some(&windows),
            ..inner
        };
        let mut output = Output {
            condition: Condition::all_of(conditions),
            has_source: !select.from.is_empty(),
            ..Output::default()
        };
        output.fields = self.items(&select.items, inner, clause, &mut output.reads_target)?;
        for item in &select.group {
            self.group_item(item, &output.fields, inner, &level, clause)?;
        }
        if let Some(having) = &select.having {
            let having = self.expr(having, inner, Clause::Having)?;
            self.decides(&having.lineage, Transformation::Filter);
        }
        if let Distinct::On(keys) = &select.distinct {
            for key in keys {
                let lineage = self.output_or_expr(key, &output.fields, inner, clause)?;
                self.decides(&lineage, Transformation::GroupBy);
            }
        }
        self.order(&query.order, &output.fields, inner, clause)?;
        self.limit(&query.limit, env, clause)?;
        for name in query.locking.iter().flatten() {
            self.find_entry(None, name, Some(&level))?.ok_or_else(|| {
                Unreadable::UnknownName(format!(
                    "relation \"{name}\" in FOR UPDATE clause not found in FROM clause"
                ))
            })?;
        }
        Ok(output)
    }

    /// A select or RETURNING list.
    pub(super) fn items<'q>(
        &mut self,
        items: &'q [Item],
        env: Env<'_, 'q>,
        clause: Clause,
        reads_target: &mut bool,
    ) -> Resolved<Vec<Field>> {
        let mut fields = Vec::with_capacity(items.len());
        for item in items {
            match &item.expr.kind {
                ExprKind::Column { parts, star: true } => {
                    fields.extend(self.expand_star(item.expr.location, parts, env, clause, reads_target)?);
                }
                ExprKind::Steps { base, steps } if matches!(steps.last(), Some(Step::All)) => {
                    fields.extend(self.all_fields(base, steps, env, clause)?);
                }
                _ => {
                    let value = self.expr(&item.expr, env, clause)?;
                    *reads_target |= value.reads_target;
                    let name = item.name.clone().unwrap_or_else(|| item.expr.output_name());
                    fields.push(value.field(name));
                }
            }
        }
        Ok(fields)
    }

    /// `*` or `t.*` in a list.
    fn expand_star(
        &mut self,
        location: i32,
        parts: &[String],
        env: Env<'_, '_>,
        clause: Clause,
        reads_target: &mut bool,
    ) -> Resolved<Vec<Field>> {
        let (expanded, ranges) = match parts {
            [] => {
                let entries = env.level.iter().flat_map(|level| level.entries());
                self.star(entries.filter(|entry| entry.bare))?
            }
            [.., name] => {
                let schema = parts.len().checked_sub(2).and_then(|index| parts.get(index));
                let entry = self.find_entry(schema.map(String::as_str), name, env.level)?;
                let entry = entry.ok_or_else(|| super::missing_entry(name))?;
                *reads_target |= entry.target;
                self.star(std::iter::once(entry))?
            }
        };
        self.used(location, RefTarget::Star { ranges }, clause, parts.len() + 1);
        Ok(expanded)
    }

    /// `(row).*` in a list.
    fn all_fields<'q>(
        &mut self,
        base: &'q Expr,
        steps: &'q [Step],
        env: Env<'_, 'q>,
        clause: Clause,
    ) -> Resolved<Vec<Field>> {
        if steps.len() > 1 {
            return Err(Unreadable::NotBuilt("all fields of a field".to_owned()));
        }
        // A function's own columns are known where it is a built-in one.
        if let ExprKind::Call(call) = &base.kind {
            let value = self.expr(base, env, clause)?;
            let major = self.view.catalog.server_major;
            let columns = crate::postgres::function_columns::result_columns(&call.name.name, major);
            return match (self.calls_built_in(call), columns) {
                (true, crate::postgres::function_columns::ResultColumns::Several(columns)) => {
                    let lineage = Rc::new(value.lineage.through(Transformation::Transformation));
                    let field = |name: &&str| Field {
                        name: (*name).to_owned(),
                        lineage: Rc::clone(&lineage),
                        row: None,
                        kind: Operand::Unsure,
                        origin: None,
                    };
                    Ok(columns.iter().map(field).collect())
                }
                _ => self.fields_of_value(&value),
            };
        }
        let value = self.expr(base, env, clause)?;
        self.fields_of_value(&value)
    }

    fn group_item<'q>(
        &mut self,
        item: &'q GroupItem,
        outputs: &[Field],
        env: Env<'_, 'q>,
        level: &Level<'_>,
        clause: Clause,
    ) -> Resolved<()> {
        match item {
            GroupItem::Sets(items) => self.deeper(|resolver| {
                for item in items {
                    resolver.group_item(item, outputs, env, level, clause)?;
                }
                Ok(())
            }),
            GroupItem::Expr(expr) => {
                // Columns of FROM come before output names here.
                let of_input = match &expr.kind {
                    ExprKind::Column { parts, star: false } => match parts.as_slice() {
                        [name] => matches!(find_at_level(level, name)?, Some(Found::Column { .. })),
                        _ => true,
                    },
                    ExprKind::Row(parts) => {
                        for part in parts {
                            let lineage = self.expr(part, env, clause)?.lineage;
                            self.decides(&lineage, Transformation::GroupBy);
                        }
                        return Ok(());
                    }
                    _ => false,
                };
                let lineage = if of_input {
                    self.expr(expr, env, clause)?.lineage
                } else {
                    self.output_or_expr(expr, outputs, env, clause)?
                };
                self.decides(&lineage, Transformation::GroupBy);
                Ok(())
            }
        }
    }

    /// An entry of ORDER BY or DISTINCT ON: a position, an output name, or an expression over FROM.
    fn output_or_expr<'q>(
        &mut self,
        expr: &'q Expr,
        outputs: &[Field],
        env: Env<'_, 'q>,
        clause: Clause,
    ) -> Resolved<Lineage> {
        match &expr.kind {
            ExprKind::Constant(Constant::Integer(position)) => {
                let index = usize::try_from(*position)
                    .ok()
                    .and_then(|position| position.checked_sub(1));
                match index.and_then(|index| outputs.get(index)) {
                    Some(field) => Ok(field.lineage.as_ref().clone()),
                    None => Err(Unreadable::UnknownName(format!(
                        "position {position} is not in select list"
                    ))),
                }
            }
            ExprKind::Column { parts, star: false } => {
                let mut lineage = Lineage::default();
                let mut found = false;
                if let [name] = parts.as_slice() {
                    // Where several outputs have that name they must be equal; the server checks that.
                    for field in outputs.iter().filter(|field| field.name == *name) {
                        found = true;
                        lineage.add(&field.lineage, Transformation::Identity);
                    }
                }
                if found {
                    self.used(expr.location, RefTarget::Derived, clause, parts.len());
                    return Ok(lineage);
                }
                Ok(self.expr(expr, env, clause)?.lineage)
            }
            _ => Ok(self.expr(expr, env, clause)?.lineage),
        }
    }

    fn order<'q>(
        &mut self,
        keys: &'q [SortKey],
        outputs: &[Field],
        env: Env<'_, 'q>,
        clause: Clause,
    ) -> Resolved<()> {
        for key in keys {
            if let Some(operator) = &key.using {
                let unsure = (Some(Operand::Unsure), Operand::Unsure);
                self.note_operator(key.expr.location, operator, unsure, None);
            }
            let lineage = self.output_or_expr(&key.expr, outputs, env, clause)?;
            self.decides(&lineage, Transformation::Sort);
        }
        Ok(())
    }

    /// LIMIT and OFFSET see no column of this level.
    fn limit<'q>(&mut self, limits: &'q [Expr], env: Env<'_, 'q>, clause: Clause) -> Resolved<()> {
        for limit in limits {
            let value = self.expr(limit, env, clause)?;
            self.decides(&value.lineage, Transformation::Filter);
        }
        Ok(())
    }

    fn values<'q>(
        &mut self,
        query: &'q Query,
        rows: &'q [Vec<Expr>],
        env: Env<'_, 'q>,
        clause: Clause,
    ) -> Resolved<Output> {
        let mut output = Output::default();
        let mut lineages: Vec<Lineage> = Vec::new();
        for row in rows {
            let mut values = Vec::with_capacity(row.len());
            for expr in row {
                if let ExprKind::Column { parts, star: true } = &expr.kind {
                    let expanded =
                        self.expand_star(expr.location, parts, env, clause, &mut output.reads_target)?;
                    values.extend(expanded.into_iter().map(|field| field.lineage));
                } else {
                    let value = self.expr(expr, env, clause)?;
                    output.reads_target |= value.reads_target;
                    values.push(Rc::new(value.lineage));
                }
            }
            lineages.resize(lineages.len().max(values.len()), Lineage::default());
            for (lineage, value) in lineages.iter_mut().zip(&values) {
                lineage.add(value, Transformation::Identity);
            }
        }
        output.fields = lineages
            .into_iter()
            .enumerate()
            .map(|(index, lineage)| Field {
                name: format!("column{}", index + 1),
                lineage: Rc::new(lineage),
                row: None,
                kind: Operand::Unsure,
                origin: None,
            })
            .collect();
        self.tail(query, &output.fields, env, clause)?;
        Ok(output)
    }

    fn set_operation<'q>(
        &mut self,
        query: &'q Query,
        branches: &'q [(SetOperator, Query)],
        env: Env<'_, 'q>,
        clause: Clause,
        own: Option<OwnName<'_>>,
    ) -> Resolved<Output> {
        let branch_clause = if clause == Clause::InsertValues {
            clause
        } else {
            Clause::InnerOutput
        };
        let mut together = Output::default();
        for (index, (operator, branch)) in branches.iter().enumerate() {
            if let (Some(own), true) = (&own, index > 0 && index + 1 == branches.len()) {
                own.publish(env, &together.fields);
            }
            let output = self.query(branch, env, branch_clause, false)?;
            together.has_source |= output.has_source;
            together.reads_target |= output.reads_target;
            if *operator == SetOperator::First {
                together.fields = output.fields.iter().map(derived).collect();
                continue;
            }
            for (field, other) in together.fields.iter_mut().zip(&output.fields) {
                if field.kind != other.kind {
                    field.kind = Operand::Unsure;
                }
                match operator {
                    SetOperator::First | SetOperator::Union | SetOperator::Intersect => {
                        let mut lineage = field.lineage.as_ref().clone();
                        lineage.add(&other.lineage, Transformation::Identity);
                        field.lineage = Rc::new(lineage);
                    }
                    SetOperator::Except => self.decides(&other.lineage, Transformation::Filter),
                }
            }
        }
        self.tail(query, &together.fields, env, clause)?;
        Ok(together)
    }

    /// ORDER BY and LIMIT of VALUES and set operations: only output columns are in scope.
    fn tail<'q>(
        &mut self,
        query: &'q Query,
        outputs: &[Field],
        env: Env<'_, 'q>,
        clause: Clause,
    ) -> Resolved<()> {
        let mut entry = Entry::new(None);
        entry.fields = outputs.to_vec();
        let entries = [entry];
        let parts: [&[Entry]; 1] = [&entries];
        let level = Level {
            parts: &parts,
            parent: env.level,
        };
        self.order(
            &query.order,
            outputs,
            Env {
                level: Some(&level),
                ..env
            },
            clause,
        )?;
        self.limit(&query.limit, env, clause)
    }
}

/// A recursive CTE whose query is being read: what its name means in its last branch.
#[derive(Clone, Copy)]
struct OwnName<'c> {
    number: usize,
    position: usize,
    cte: &'c Cte,
}

impl OwnName<'_> {
    /// Makes the columns of the first branches what the CTE's own name stands for.
    fn publish(&self, env: Env<'_, '_>, fields: &[Field]) {
        let mut published: Vec<Field> = fields
            .iter()
            .enumerate()
            .map(|(index, field)| Field {
                name: self.cte.columns.get(index).unwrap_or(&field.name).clone(),
                lineage: Rc::new(Lineage::recursive(self.number, index)),
                row: field.row.clone(),
                kind: field.kind,
                origin: None,
            })
            .collect();
        // SEARCH and CYCLE add columns, which the last branch may already use.
        let added = self.cte.search.iter().map(|(_, sequence)| sequence);
        let added = added.chain(self.cte.cycle.iter().flat_map(|cycle| [&cycle.mark, &cycle.path]));
        for (index, name) in added.enumerate() {
            published.push(Field {
                name: name.clone(),
                lineage: Rc::new(Lineage::recursive(self.number, fields.len() + index)),
                row: None,
                kind: Operand::Unsure,
                origin: None,
            });
        }
        // The CTE's own scope is the nearest one that has it running at that position.
        let mut scope = env.ctes;
        while let Some(here) = scope {
            let mut ctes = here.ctes.borrow_mut();
            if let Some((_, state @ CteState::Running(None))) = ctes.get_mut(self.position) {
                *state = CteState::Running(Some(published));
                return;
            }
            drop(ctes);
            scope = here.parent;
        }
    }
}
