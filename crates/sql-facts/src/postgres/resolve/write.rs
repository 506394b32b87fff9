//! INSERT, UPDATE, DELETE, MERGE.

use std::rc::Rc;

use super::expr::Value;
use super::{RawOutput, Resolved, Resolver};
use crate::catalog::Relation;
use crate::facts::{Action, Clause, ColumnId, RangeRole, SessionEffect, Transformation, Unreadable};
use crate::form::{
    Assignment, Conflict, Expr, MatchKind, Query, Returning, Source, Step, TargetColumn, When, WhenAction,
    Write, WriteKind,
};
use crate::postgres::condition::Condition;
use crate::postgres::lineage::Lineage;
use crate::postgres::scope::{Entry, Env, Field, Level};

impl<'v> Resolver<'v> {
    /// A data-modifying statement; gives what RETURNING gives.
    pub(super) fn write<'q>(
        &mut self,
        write: &'q Write,
        env: Env<'_, 'q>,
        top: bool,
    ) -> Resolved<Vec<Field>> {
        self.writes_data = true;
        let fields = match &write.kind {
            WriteKind::Insert {
                columns,
                source,
                conflict,
            } => self.insert(write, columns, source.as_deref(), conflict.as_ref(), env, top)?,
            WriteKind::Update { set, from, filter } => {
                self.update(write, set, from, filter.as_ref(), env, top)?
            }
            WriteKind::Delete { using, filter } => self.delete(write, using, filter.as_ref(), env, top)?,
            WriteKind::Merge { source, on, whens } => self.merge(write, source, on, whens, env, top)?,
        };
        Ok(fields)
    }

    /// The target's action, and its entry.
    fn target(&mut self, write: &Write, action: Action, role: RangeRole) -> (Option<&'v Relation>, Entry) {
        let relation = self.act(action, &write.target);
        // Its trigger sets the session's settings.
        if write.target.name.name == "pg_settings"
            && relation.is_none_or(|relation| relation.schema == "pg_catalog")
        {
            self.effects.push(SessionEffect::UnknownSetting);
        }
        let mut entry = self.range(&write.target, role, false);
        entry.target = true;
        (relation, entry)
    }

    fn insert<'q>(
        &mut self,
        write: &'q Write,
        columns: &'q [TargetColumn],
        source: Option<&'q Query>,
        conflict: Option<&'q Conflict>,
        env: Env<'_, 'q>,
        top: bool,
    ) -> Resolved<Vec<Field>> {
        let (relation, mut entry) = self.target(write, Action::Insert, RangeRole::InsertTarget);
        entry.target = false;
        let values = match source {
            Some(source) => self.query(source, env, Clause::InsertValues, false)?.fields,
            None => Vec::new(),
        };
        let mut assigned: Vec<(ColumnId, Rc<Lineage>)> = Vec::new();
        for column in columns {
            self.target_steps(column, env)?;
        }
        if let Some(relation) = relation {
            let mut numbers = Vec::new();
            if columns.is_empty() {
                if values.len() > relation.columns.len() {
                    return Err(Unreadable::UnknownName(
                        "INSERT has more expressions than target columns".to_owned(),
                    ));
                }
                numbers.extend(
                    relation
                        .columns
                        .iter()
                        .take(values.len())
                        .map(|column| column.number),
                );
            } else {
                for column in columns {
                    numbers.push(self.target_column(relation, column)?.column);
                }
            }
            for (index, number) in numbers.iter().enumerate() {
                let column = ColumnId {
                    relation: relation.oid,
                    column: *number,
                };
                let lineage = values
                    .get(index)
                    .map(|field| Rc::clone(&field.lineage))
                    .unwrap_or_default();
                self.act_by_oid(Action::Insert, relation.oid, Some(*number));
                self.assign(relation, column, Rc::clone(&lineage));
                assigned.push((column, lineage));
            }
        }
        if let Some(conflict) = conflict {
            self.conflict(write, relation, &entry, &assigned, conflict, env)?;
        }
        self.returning(write.returning.as_ref(), vec![entry], env, top)
    }

    fn conflict<'q>(
        &mut self,
        write: &'q Write,
        relation: Option<&'v Relation>,
        target: &Entry,
        assigned: &[(ColumnId, Rc<Lineage>)],
        conflict: &'q Conflict,
        env: Env<'_, 'q>,
    ) -> Resolved<()> {
        let only_target = [target.clone()];
        let parts: [&[Entry]; 1] = [&only_target];
        let level = Level {
            parts: &parts,
            parent: env.level,
        };
        let inner = Env {
            level: Some(&level),
            ..env
        };
        for expr in conflict.infer.iter().chain(&conflict.infer_filter) {
            self.expr(expr, inner, Clause::Where)?;
        }
        let Some((set, filter)) = &conflict.update else {
            return Ok(());
        };
        let mut excluded = Entry {
            name: Some("excluded".to_owned()),
            relation: None,
            range: None,
            ..target.clone()
        };
        excluded.covers.clear();
        excluded.excluded = true;
        excluded.system_columns = false;
        for (field, column) in excluded
            .fields
            .iter_mut()
            .zip(relation.iter().flat_map(|known| &known.columns))
        {
            let lineage = assigned
                .iter()
                .find(|(id, _)| id.column == column.number)
                .map(|(_, lineage)| lineage);
            field.lineage = lineage.cloned().unwrap_or_default();
            field.origin = None;
        }
        // `excluded` is found by its own name only where a bare column name would be ambiguous otherwise.
        let with_excluded = [target.clone(), excluded];
        let parts: [&[Entry]; 1] = [&with_excluded];
        let level = Level {
            parts: &parts,
            parent: env.level,
        };
        let inner = Env {
            level: Some(&level),
            ..env
        };
        self.act(Action::Update, &write.target);
        self.assignments(relation, Action::Update, set, inner)?;
        if let Some(filter) = filter {
            let filter = self.expr(filter, inner, Clause::Where)?;
            self.decides(&filter.lineage, Transformation::Filter);
        }
        Ok(())
    }

    fn update<'q>(
        &mut self,
        write: &'q Write,
        set: &'q [Assignment],
        from: &'q [Source],
        filter: Option<&'q Expr>,
        env: Env<'_, 'q>,
        top: bool,
    ) -> Resolved<Vec<Field>> {
        let (relation, entry) = self.target(write, Action::Update, RangeRole::UpdateTarget);
        let offered = self.sources(from, env, vec![entry], Clause::InnerOutput)?;
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
        self.condition(relation, Action::Update, offered.condition, filter, inner)?;
        self.assignments(relation, Action::Update, set, inner)?;
        self.returning(write.returning.as_ref(), entries, env, top)
    }

    fn delete<'q>(
        &mut self,
        write: &'q Write,
        using: &'q [Source],
        filter: Option<&'q Expr>,
        env: Env<'_, 'q>,
        top: bool,
    ) -> Resolved<Vec<Field>> {
        let (relation, entry) = self.target(write, Action::Delete, RangeRole::DeleteTarget);
        let offered = self.sources(using, env, vec![entry], Clause::InnerOutput)?;
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
        self.condition(relation, Action::Delete, offered.condition, filter, inner)?;
        self.returning(write.returning.as_ref(), entries, env, top)
    }

    /// WHERE of an UPDATE or DELETE.
    fn condition<'q>(
        &mut self,
        relation: Option<&'v Relation>,
        action: Action,
        joins: Condition,
        filter: Option<&'q Expr>,
        env: Env<'_, 'q>,
    ) -> Resolved<()> {
        let mut effective = joins.restricts;
        if let Some(filter) = filter {
            let filter = self.expr(filter, env, Clause::Where)?;
            self.decides(&filter.lineage, Transformation::Filter);
            effective |= filter.condition.restricts;
        }
        if let Some(relation) = relation {
            self.effective_where.push((relation.oid, action, effective));
        }
        Ok(())
    }

    fn merge<'q>(
        &mut self,
        write: &'q Write,
        source: &'q Source,
        on: &'q Expr,
        whens: &'q [When],
        env: Env<'_, 'q>,
        top: bool,
    ) -> Resolved<Vec<Field>> {
        let relation = self.relation(&write.target);
        let mut target = self.range(&write.target, RangeRole::MergeTarget, false);
        target.target = true;
        let source = self.source(source, env, &[], false, Clause::InnerOutput)?.entries;
        let only_target = [target];
        let both: [&[Entry]; 2] = [&only_target, &source];
        let level = Level {
            parts: &both,
            parent: env.level,
        };
        let inner = Env {
            level: Some(&level),
            ..env
        };
        let on = self.expr(on, inner, Clause::JoinOn)?;
        self.decides(&on.lineage, Transformation::Join);
        for when in whens {
            let parts: &[&[Entry]] = match when.matched {
                MatchKind::Matched => &both,
                MatchKind::NotMatchedBySource => &[&only_target],
                MatchKind::NotMatchedByTarget => &[&source],
            };
            let level = Level {
                parts,
                parent: env.level,
            };
            let inner = Env {
                level: Some(&level),
                ..env
            };
            // ON picks the rows that match; BY SOURCE takes all that do not.
            let mut effective = match when.matched {
                MatchKind::Matched => on.condition.restricts,
                MatchKind::NotMatchedBySource | MatchKind::NotMatchedByTarget => false,
            };
            if let Some(condition) = &when.condition {
                let condition = self.expr(condition, inner, Clause::MergeWhen)?;
                self.decides(&condition.lineage, Transformation::Filter);
                effective |= condition.condition.restricts;
            }
            let action = match &when.action {
                WhenAction::Delete => Some(Action::Delete),
                WhenAction::Update(_) => Some(Action::Update),
                WhenAction::Insert(..) | WhenAction::Nothing => None,
            };
            if let (Some(relation), Some(action)) = (relation, action) {
                self.effective_where.push((relation.oid, action, effective));
            }
            self.when(write, relation, &when.action, inner)?;
        }
        let entries = only_target.into_iter().chain(source).collect();
        self.returning(write.returning.as_ref(), entries, env, top)
    }

    fn when<'q>(
        &mut self,
        write: &'q Write,
        relation: Option<&'v Relation>,
        action: &'q WhenAction,
        env: Env<'_, 'q>,
    ) -> Resolved<()> {
        match action {
            WhenAction::Nothing => {}
            WhenAction::Delete => {
                self.act(Action::Delete, &write.target);
            }
            WhenAction::Update(set) => {
                self.act(Action::Update, &write.target);
                self.assignments(relation, Action::Update, set, env)?;
            }
            WhenAction::Insert(columns, values) => {
                self.act(Action::Insert, &write.target);
                let mut lineages = Vec::with_capacity(values.len());
                for value in values {
                    lineages.push(Rc::new(self.expr(value, env, Clause::InsertValues)?.lineage));
                }
                for column in columns {
                    self.target_steps(column, env)?;
                }
                if let Some(relation) = relation {
                    let mut ids = Vec::new();
                    if columns.is_empty() {
                        let numbers = relation
                            .columns
                            .iter()
                            .take(lineages.len())
                            .map(|column| column.number);
                        ids.extend(numbers.map(|number| ColumnId {
                            relation: relation.oid,
                            column: number,
                        }));
                    }
                    for column in columns {
                        ids.push(self.target_column(relation, column)?);
                    }
                    for (id, lineage) in ids.into_iter().zip(lineages) {
                        self.act_by_oid(Action::Insert, relation.oid, Some(id.column));
                        self.assign(relation, id, lineage);
                    }
                }
            }
        }
        Ok(())
    }

    /// SET.
    fn assignments<'q>(
        &mut self,
        relation: Option<&'v Relation>,
        action: Action,
        set: &'q [Assignment],
        env: Env<'_, 'q>,
    ) -> Resolved<()> {
        for assignment in set {
            let value = self.expr(&assignment.value, env, Clause::Set)?;
            for (index, column) in assignment.columns.iter().enumerate() {
                self.target_steps(column, env)?;
                let Some(relation) = relation else {
                    continue;
                };
                let id = self.target_column(relation, column)?;
                self.act_by_oid(action, relation.oid, Some(id.column));
                let lineage = if assignment.several {
                    part_of(&value, index)
                } else {
                    value.lineage.clone()
                };
                self.assign(relation, id, Rc::new(lineage));
            }
        }
        Ok(())
    }

    fn assign(&mut self, relation: &Relation, column: ColumnId, lineage: Rc<Lineage>) {
        let name = relation
            .column_by_number(column.column)
            .map(|column| column.name.clone())
            .unwrap_or_default();
        self.outputs.push(RawOutput {
            name,
            target: Some(column),
            lineage,
        });
    }

    fn target_column(&self, relation: &Relation, column: &TargetColumn) -> Resolved<ColumnId> {
        match relation.column(&column.name) {
            Some(known) => Ok(ColumnId {
                relation: relation.oid,
                column: known.number,
            }),
            None => Err(Unreadable::UnknownName(format!(
                "column \"{}\" of relation \"{}\" does not exist",
                column.name, relation.name
            ))),
        }
    }

    /// Subscripts of an assigned column are expressions of their own.
    fn target_steps<'q>(&mut self, column: &'q TargetColumn, env: Env<'_, 'q>) -> Resolved<()> {
        for step in &column.steps {
            match step {
                Step::Field(_) => {}
                Step::All => return Err(Unreadable::NotBuilt("* in an assigned column".to_owned())),
                Step::Index(bounds) => {
                    for bound in bounds {
                        self.expr(bound, env, Clause::Set)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn returning<'q>(
        &mut self,
        returning: Option<&'q Returning>,
        mut entries: Vec<Entry>,
        env: Env<'_, 'q>,
        _top: bool,
    ) -> Resolved<Vec<Field>> {
        let Some(returning) = returning else {
            return Ok(Vec::new());
        };
        // PostgreSQL 18 names the row before and after the change.
        let versions = [("old", &returning.old), ("new", &returning.new)];
        let known = self.view.catalog.server_major >= 18;
        for (usual, given) in versions {
            let name = match given {
                Some(name) => name.as_str(),
                None if known => usual,
                None => continue,
            };
            if let Some(target) = entries.first()
                && !entries.iter().any(|entry| entry.name.as_deref() == Some(name))
            {
                let version = Entry {
                    name: Some(name.to_owned()),
                    relation: None,
                    bare: false,
                    ..target.clone()
                };
                entries.push(version);
            }
        }
        let parts: [&[Entry]; 1] = [&entries];
        let level = Level {
            parts: &parts,
            parent: env.level,
        };
        let inner = Env {
            level: Some(&level),
            ..env
        };
        let mut reads_target = false;
        self.items(&returning.items, inner, Clause::Returning, &mut reads_target)
    }
}

/// What one of several assigned columns gets.
fn part_of(value: &Value, index: usize) -> Lineage {
    match value.row.as_ref().map(|row| row.get(index)) {
        Some(Some(field)) => field.lineage.as_ref().clone(),
        Some(None) | None => value.lineage.clone(),
    }
}
