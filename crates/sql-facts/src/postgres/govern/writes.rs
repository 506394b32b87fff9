//! Targets of writes keep their place: the filter is added to the same level's WHERE, masked references are replaced
//! in place, written rows are checked against the filter, and a masked value written back keeps what is stored.

use std::collections::{BTreeSet, HashMap, HashSet};

use pg_raw_parse::make::{MemoryToken, Unique};
use pg_raw_parse::nodes::{
    self, BoolExprType, CmdType, MergeMatchKind, ReturningClause, SelectStmt, SetOperation,
};
use pg_raw_parse::transform::{Assignable, Transform as _, TransformClosure};
use pg_raw_parse::walk::walk;
use pg_raw_parse::{ConstValue, Node, NodeMut};

use row_masking::TypeClass;

use super::Job;
use super::rewrite::Rewriter;
use super::sites::{Sites, condition};
use super::workshop::{Piece, Pieces, ident};
use crate::catalog::{AttNum, Column, Persistence, Relation, RelationKind};
use crate::facts::{Action, Clause, RangeRole, RefTarget, StatementKind, Transformation};
use crate::plan::{CannotGovern, ColumnMask, RelationPlan};

/// The name that a client's value has in our pieces until it is put in.
const VALUE: &str = "weir_value";
/// Cursor option WITH HOLD (`CURSOR_OPT_HOLD`).
const CURSOR_HOLD: i32 = 0x0020;

/// What is done around and inside of writes.
#[derive(Default)]
pub(super) struct Writes {
    pub(super) strip: Vec<usize>,
    pub(super) check_rule: Option<String>,
    pub(super) count_as: Option<String>,
    /// By range: a target that raises where the written row does not meet the filter.
    checks: HashMap<usize, Piece>,
    /// By range: the same as a condition of COPY FROM.
    copy_checks: HashMap<usize, Piece>,
    /// By WHEN clause of the one MERGE: a value that raises, the column that carries it, the columns it is made of.
    merge_checks: HashMap<usize, (Piece, AttNum, Vec<AttNum>)>,
    /// By (range, column): the value kept where a mask is written back.
    write_backs: HashMap<(usize, AttNum), Piece>,
    /// The range that the statement itself writes, if it is checked.
    top: Option<usize>,
    /// Ranges whose check is part of a returned column.
    folded: BTreeSet<usize>,
    counted: Option<Piece>,
    costs_off: Option<Piece>,
}

impl Writes {
    pub(super) fn plan(job: &Job<'_>, sites: &mut Sites, node: Node<'_>) -> Result<Self, CannotGovern> {
        let mut writes = Self::default();
        refuse_copies(job)?;
        if matches!(job.facts.kind, StatementKind::Explain { .. })
            && job.governed().any(|(index, _)| job.filtered(index))
        {
            writes.costs_off = Some(sites.shop.select("EXPLAIN (COSTS OFF) SELECT 1", 0));
        }
        let top = top_statement(node);
        for (index, plan) in job.governed() {
            let Some(range) = job.range(index) else { continue };
            let relation = job.relation(index)?;
            match range.role {
                RangeRole::Source | RangeRole::CopyToSource | RangeRole::DeleteTarget => {
                    if range.role == RangeRole::DeleteTarget {
                        refuse_opaque(relation)?;
                    }
                }
                RangeRole::CopyFromTarget => writes.copy_check(job, sites, index, relation, plan)?,
                RangeRole::InsertTarget | RangeRole::UpdateTarget | RangeRole::MergeTarget => {
                    refuse_opaque(relation)?;
                    writes.write_backs(
                        sites,
                        index,
                        relation,
                        plan,
                        &range.reference_name,
                        range.location,
                    )?;
                    if !plan.filters.is_empty() && needs_check(job, index, relation, plan, node)? {
                        if range.role == RangeRole::MergeTarget && job.view.catalog.server_major < 17 {
                            writes.merge_checks(job, sites, index, plan, top)?;
                            continue;
                        }
                        writes.check(job, sites, index, plan, top)?;
                    }
                }
            }
        }
        Ok(writes)
    }

    fn check(
        &mut self,
        job: &Job<'_>,
        sites: &mut Sites,
        index: usize,
        plan: &RelationPlan,
        top: Node<'_>,
    ) -> Result<(), CannotGovern> {
        let (Some(range), relation) = (job.range(index), job.relation(index)?) else {
            return Ok(());
        };
        let at_top = target_of(top).and_then(|range| job.range_at(range.location)) == Some(index);
        let sql = format!(
            "SELECT {} AS weir_k",
            check(
                relation,
                plan,
                Some(&range.reference_name),
                "1",
                "pg_catalog.int4"
            )?
        );
        let piece = sites.shop.select(&sql, range.location);
        self.checks.insert(index, piece);
        self.check_rule = plan.filters.first().map(|filter| filter.rule.clone());
        if !at_top {
            return self.fold_check(job, sites, index, plan);
        }
        self.top = Some(index);
        let (returns, tag) = match top {
            Node::InsertStmt(insert) => (insert.returning_clause().is_some(), "INSERT"),
            Node::UpdateStmt(update) => (update.returning_clause().is_some(), "UPDATE"),
            Node::MergeStmt(merge) => (merge.returning_clause().is_some(), "MERGE"),
            _ => return Ok(()),
        };
        if returns {
            self.strip.push(
                job.facts
                    .output
                    .iter()
                    .filter(|column| column.target.is_none())
                    .count(),
            );
        } else {
            self.count_as = Some(tag.to_owned());
            self.counted = Some(
                sites
                    .shop
                    .select("SELECT pg_catalog.count(weir_k) FROM weir_w", range.location),
            );
        }
        Ok(())
    }

    /// A write below the top that returns something: one of the columns that it returns carries the check, so that
    /// nobody sees another column.
    fn fold_check(
        &mut self,
        job: &Job<'_>,
        sites: &mut Sites,
        index: usize,
        plan: &RelationPlan,
    ) -> Result<(), CannotGovern> {
        let (Some(range), relation) = (job.range(index), job.relation(index)?) else {
            return Ok(());
        };
        let returned = plain_returned(job.statement.node());
        let carrier = job.facts.column_uses.iter().find_map(|used| match used.target {
            RefTarget::Column { range, column }
                if range == index
                    && used.clause == Clause::Returning
                    && returned.contains(&used.location)
                    && !plan.masks.contains_key(&column) =>
            {
                Some((used.location, relation.column_by_number(column)?))
            }
            _ => None,
        });
        let Some((location, column)) = carrier else {
            return Ok(());
        };
        let name = format!("{}.{}", ident(&range.reference_name), ident(&column.name));
        let raises = check(
            relation,
            plan,
            Some(&range.reference_name),
            "NULL",
            "pg_catalog.int4",
        )?;
        let filter = condition(relation, plan, Some(&range.reference_name))?;
        let sql = format!(
            "CASE WHEN ({filter}) IS TRUE THEN {name} ELSE CAST(CAST({raises} AS pg_catalog.text) AS {}) END",
            column.column_type.sql
        );
        let piece = sites.shop.expression(&sql, location);
        sites
            .references
            .insert(location, super::sites::RefEdit::Expression(piece));
        self.folded.insert(index);
        Ok(())
    }

    /// MERGE has no RETURNING before 17: the values that are assigned are checked themselves.
    fn merge_checks(
        &mut self,
        job: &Job<'_>,
        sites: &mut Sites,
        index: usize,
        plan: &RelationPlan,
        top: Node<'_>,
    ) -> Result<(), CannotGovern> {
        let (Some(range), relation, Node::MergeStmt(merge)) = (job.range(index), job.relation(index)?, top)
        else {
            return Err(CannotGovern::NotBuilt(
                "a MERGE below the top of a statement".to_owned(),
            ));
        };
        if relation.before_row_triggers {
            return Err(CannotGovern::Impossible(format!(
                "MERGE into {}: its row filter cannot be checked behind a BEFORE trigger; use INSERT or UPDATE",
                relation.name
            )));
        }
        let columns = filter_columns(relation, plan)?;
        for (place, when) in merge.merge_when_clauses().iter().enumerate() {
            let inserts = when.command_type == CmdType::CMD_INSERT;
            if !inserts && when.command_type != CmdType::CMD_UPDATE {
                continue;
            }
            let values: Vec<AttNum> = values_of(when, relation)
                .into_iter()
                .filter(|(column, _)| columns.contains(&column.number))
                .map(|(column, value)| match value {
                    Node::SetToDefault(_) | Node::MultiAssignRef(_) => Err(unchecked(relation)),
                    value if is_volatile(job, value) => Err(unchecked(relation)),
                    _ => Ok(column.number),
                })
                .collect::<Result<_, _>>()?;
            let Some(carrier) = values.first().copied() else {
                if inserts {
                    return Err(unchecked(relation));
                }
                continue;
            };
            if inserts && columns.iter().any(|column| !values.contains(column)) {
                return Err(unchecked(relation));
            }
            let instead = |column: &Column| {
                values
                    .contains(&column.number)
                    .then(|| format!("CAST({VALUE}_{} AS {})", column.number, column.column_type.sql))
            };
            let mut parts = Vec::new();
            for filter in &plan.filters {
                let qualifier = Some(range.reference_name.as_str());
                parts.push(super::names::predicate_over(
                    relation, filter, qualifier, &instead,
                )?);
            }
            let kind = relation
                .column_by_number(carrier)
                .map_or("pg_catalog.text", |column| &column.column_type.sql);
            let sql = format!(
                "CASE WHEN ({condition}) IS TRUE THEN {VALUE}_{carrier} ELSE CAST(CAST(CAST(('WEIR-CHECK' \
                 OPERATOR(pg_catalog.||) pg_catalog.\"left\"(COALESCE(CAST({VALUE}_{carrier} AS pg_catalog.text), \
                 ''), 0)) AS pg_catalog.int4) AS pg_catalog.text) AS {kind}) END",
                condition = parts.join(" AND "),
            );
            let piece = sites.shop.expression(&sql, range.location);
            self.merge_checks.insert(place, (piece, carrier, values));
        }
        self.check_rule = plan.filters.first().map(|filter| filter.rule.clone());
        Ok(())
    }

    fn copy_check(
        &mut self,
        job: &Job<'_>,
        sites: &mut Sites,
        index: usize,
        relation: &Relation,
        plan: &RelationPlan,
    ) -> Result<(), CannotGovern> {
        let Some(range) = job.range(index) else {
            return Ok(());
        };
        if plan.filters.is_empty() {
            return Ok(());
        }
        if relation.before_row_triggers {
            return Err(CannotGovern::Impossible(format!(
                "COPY into {}: its row filter cannot be checked behind a BEFORE trigger; use INSERT",
                relation.name
            )));
        }
        let columns = filter_columns(relation, plan)?;
        if relation
            .columns
            .iter()
            .any(|column| columns.contains(&column.number) && column.generated_from.is_some())
        {
            return Err(CannotGovern::Impossible(format!(
                "COPY into {}: its row filter reads a generated column; use INSERT",
                relation.name
            )));
        }
        let sql = check(relation, plan, None, "true", "pg_catalog.bool")?;
        let piece = sites.shop.expression(&sql, range.location);
        self.copy_checks.insert(index, piece);
        self.check_rule = plan.filters.first().map(|filter| filter.rule.clone());
        Ok(())
    }

    fn write_backs(
        &mut self,
        sites: &mut Sites,
        index: usize,
        relation: &Relation,
        plan: &RelationPlan,
        qualifier: &str,
        place: i32,
    ) -> Result<(), CannotGovern> {
        for (number, mask) in &plan.masks {
            let (Some(column), ColumnMask::Sql(mask)) = (relation.column_by_number(*number), mask) else {
                continue;
            };
            if !super::group::has_equality(column.column_type.base_oid) {
                continue;
            }
            let name = format!("{}.{}", ident(qualifier), ident(&column.name));
            let mask = mask.expression_in_place(&name, &column.column_type);
            let sql = format!(
                "CASE WHEN (CAST({VALUE} AS {kind}) OPERATOR(pg_catalog.=) ({mask})) IS TRUE \
                 OR (({VALUE} IS NULL) AND (({mask}) IS NULL)) THEN {name} ELSE {VALUE} END",
                kind = type_without_modifier(column),
            );
            let piece = sites.shop.expression(&sql, place);
            self.write_backs.insert((index, *number), piece);
        }
        Ok(())
    }

    /// Changes to the statement around the one that is governed.
    pub(super) fn before<'mem>(
        &self,
        rewriter: &mut Rewriter<'_, 'mem>,
        copy: &mut Unique<'mem, Node<'mem>>,
    ) -> Result<(), CannotGovern> {
        let (Some(piece), NodeMut::ExplainStmt(mut explain)) = (self.costs_off, copy.as_mut()) else {
            return Ok(());
        };
        let Some(Node::ExplainStmt(model)) = rewriter.pieces.node(piece) else {
            return Err(CannotGovern::Impossible("EXPLAIN cannot be written".to_owned()));
        };
        let mem = rewriter.mem;
        let options: Vec<_> = explain
            .options()
            .iter()
            .filter(|option| option.defname() != Some("costs"))
            .chain(model.options())
            .map(|option| mem.make_unique(option))
            .collect();
        explain.set_options(mem.make_list(&options));
        Ok(())
    }

    /// A write without RETURNING becomes a CTE whose checks are counted.
    pub(super) fn after<'mem>(
        &self,
        mem: MemoryToken<'mem>,
        pieces: &Pieces,
        mut copy: Unique<'mem, Node<'mem>>,
    ) -> Result<Unique<'mem, Node<'mem>>, CannotGovern> {
        let Some(piece) = self.counted else {
            return Ok(copy);
        };
        match copy.as_mut() {
            NodeMut::ExplainStmt(mut explain) => {
                let inner = mem.make_unique(explain.query());
                explain.set_query(counted(mem, pieces, piece, inner)?);
            }
            NodeMut::PrepareStmt(mut prepare) => {
                let inner = mem.make_unique(prepare.query());
                prepare.set_query(counted(mem, pieces, piece, inner)?);
            }
            _ => return counted(mem, pieces, piece, copy),
        }
        Ok(copy)
    }
}

fn counted<'mem>(
    mem: MemoryToken<'mem>,
    pieces: &Pieces,
    piece: Piece,
    mut write: Unique<'mem, Node<'mem>>,
) -> Result<Unique<'mem, Node<'mem>>, CannotGovern> {
    let none = mem.make_unique(None::<&nodes::WithClause>);
    // The client's CTEs move to the top: one that modifies data may only stand there.
    let with = match write.as_mut() {
        NodeMut::InsertStmt(mut insert) => {
            let with = insert.with_clause().map(|with| mem.make_unique(with));
            insert.set_with_clause(none);
            with
        }
        NodeMut::UpdateStmt(mut update) => {
            let with = update.with_clause().map(|with| mem.make_unique(with));
            update.set_with_clause(none);
            with
        }
        NodeMut::MergeStmt(mut merge) => {
            let with = merge.with_clause().map(|with| mem.make_unique(with));
            merge.set_with_clause(none);
            with
        }
        _ => {
            return Err(CannotGovern::NotBuilt(
                "this write on a filtered table".to_owned(),
            ));
        }
    };
    let mut with = with.unwrap_or_else(|| mem.make_with_clause(mem.cast_empty(), false));
    let cte = mem.make_common_table_expr("weir_w", mem.empty(), write);
    with.as_mut().ctes_mut().push(mem, cte);
    let mut select = mem.make_unique(pieces.select(piece)?);
    select.as_mut().set_with_clause(with.as_option());
    Ok(select.uncast())
}

fn unchecked(relation: &Relation) -> CannotGovern {
    CannotGovern::NotBuilt(format!(
        "MERGE into {} that does not give each column of its row filter a plain value, before PostgreSQL 17",
        relation.name
    ))
}

/// A value that is not the same when it is computed twice.
fn is_volatile(job: &Job<'_>, value: Node<'_>) -> bool {
    let mut found = false;
    walk(value, |node| {
        found |= match node {
            Node::FuncCall(call) => job.is_volatile(call.location),
            Node::SubLink(_) => true,
            _ => false,
        };
    });
    found
}

/// What a WHEN clause assigns.
fn values_of<'n>(when: &'n nodes::MergeWhenClause, relation: &'n Relation) -> Vec<(&'n Column, Node<'n>)> {
    let targets: Vec<&nodes::ResTarget> = when
        .target_list()
        .iter()
        .filter_map(|node| match node {
            Node::ResTarget(target) => Some(target),
            _ => None,
        })
        .collect();
    let named = |target: &nodes::ResTarget| target.name().and_then(|name| relation.column(name));
    if when.command_type == CmdType::CMD_UPDATE {
        return targets
            .into_iter()
            .filter_map(|target| Some((named(target)?, target.val())))
            .collect();
    }
    let columns: Vec<&Column> = if targets.is_empty() {
        relation.columns.iter().collect()
    } else {
        targets.into_iter().filter_map(named).collect()
    };
    columns.into_iter().zip(when.values()).collect()
}

/// Puts values into a piece, by the names they have there.
fn fill<'mem>(
    mem: MemoryToken<'mem>,
    piece: Node<'_>,
    values: &[(String, Node<'_>)],
) -> Unique<'mem, Node<'mem>> {
    let mut copy = mem.make_unique(piece);
    let mut closure = TransformClosure::new(|node: Assignable<'mem, '_>| match &*node {
        NodeMut::ColumnRef(reference) if reference.fields().len() == 1 => {
            let name = reference.fields().first().and_then(Node::as_str);
            match values.iter().find(|(known, _)| Some(known.as_str()) == name) {
                Some((_, value)) => {
                    node.replace(mem.make_unique(*value));
                    None
                }
                None => Some(node),
            }
        }
        _ => Some(node),
    });
    closure.transform_node(Assignable::new(&mut copy));
    copy
}

/// Adds the check to RETURNING.
fn add_check<'mem>(
    rewriter: &mut Rewriter<'_, 'mem>,
    index: usize,
    old: Option<&ReturningClause>,
) -> Option<Unique<'mem, &'mem ReturningClause>> {
    let piece = *rewriter.writes.checks.get(&index)?;
    if old.is_some() && rewriter.writes.folded.contains(&index) {
        return None;
    }
    let target = rewriter
        .pieces
        .select(piece)
        .map(|select| select.target_list().first());
    let target = rewriter.attempt(target)??;
    let mem = rewriter.mem;
    let target = mem.make_unique(target).uncast();
    match old {
        Some(old) => {
            if rewriter.writes.top != Some(index) {
                rewriter.attempt::<()>(Err(CannotGovern::NotBuilt(
                    "RETURNING of a checked write below the top of a statement".to_owned(),
                )));
                return None;
            }
            let mut copy = mem.make_unique(old);
            copy.as_mut().exprs_mut().push(mem, target);
            Some(copy)
        }
        None => {
            let mut clause = mem.make_node::<ReturningClause>();
            clause.as_mut().set_exprs(mem.make_list(&[target]));
            Some(clause)
        }
    }
}

pub(super) fn insert<'mem>(rewriter: &mut Rewriter<'_, 'mem>, node: &mut nodes::InsertStmtMut<'mem, '_>) {
    let Some(index) = begin(rewriter, node.relation()) else {
        return;
    };
    if let Some(returning) = add_check(rewriter, index, node.returning_clause()) {
        node.set_returning_clause(returning.as_option());
    }
    let conflict_where = node.on_conflict_clause().map(|conflict| conflict.where_clause());
    let updates = node
        .on_conflict_clause()
        .is_some_and(|conflict| !conflict.target_list().is_empty());
    if updates && let Some(client) = conflict_where {
        let both = filter_and(rewriter, index, client);
        let assigned = node
            .on_conflict_clause()
            .map(|conflict| assignments(rewriter, index, conflict.target_list().iter()))
            .unwrap_or_default();
        if let Some(mut conflict) = node.on_conflict_clause_mut() {
            if let Some(both) = both {
                conflict.set_where_clause(both);
            }
            put_assignments(conflict.target_list_mut(), assigned);
        }
    }
}

pub(super) fn update<'mem>(rewriter: &mut Rewriter<'_, 'mem>, node: &mut nodes::UpdateStmtMut<'mem, '_>) {
    let Some(index) = begin(rewriter, node.relation()) else {
        return;
    };
    if let Some(returning) = add_check(rewriter, index, node.returning_clause()) {
        node.set_returning_clause(returning.as_option());
    }
    if let Some(both) = filter_and(rewriter, index, node.where_clause()) {
        node.set_where_clause(both);
    }
    spread(rewriter.mem, node);
    let assigned = assignments(rewriter, index, node.target_list().iter());
    put_assignments(node.target_list_mut(), assigned);
}

/// `SET (a, b) = (1, 2)` as `SET a = 1, b = 2`: each column is then looked at by itself.
fn spread<'mem>(mem: MemoryToken<'mem>, node: &mut nodes::UpdateStmtMut<'mem, '_>) {
    for mut target in node.target_list_mut() {
        let Node::MultiAssignRef(part) = target.val() else {
            continue;
        };
        let Node::RowExpr(row) = part.source() else {
            continue;
        };
        let place = usize::try_from(part.colno)
            .ok()
            .and_then(|place| place.checked_sub(1));
        let width = usize::try_from(part.ncolumns).ok();
        if width != Some(row.args().len()) {
            continue;
        }
        if let Some(value) = place.and_then(|place| row.args().get(place)) {
            let value = mem.make_unique(value);
            target.set_val(value);
        }
    }
}

pub(super) fn delete<'mem>(rewriter: &mut Rewriter<'_, 'mem>, node: &mut nodes::DeleteStmtMut<'mem, '_>) {
    let Some(index) = begin(rewriter, node.relation()) else {
        return;
    };
    if let Some(both) = filter_and(rewriter, index, node.where_clause()) {
        node.set_where_clause(both);
    }
}

pub(super) fn merge<'mem>(rewriter: &mut Rewriter<'_, 'mem>, node: &mut nodes::MergeStmtMut<'mem, '_>) {
    let Some(index) = begin(rewriter, node.relation()) else {
        return;
    };
    if let Some(returning) = add_check(rewriter, index, node.returning_clause()) {
        node.set_returning_clause(returning.as_option());
    }
    if let Some(both) = filter_and(rewriter, index, node.join_condition()) {
        node.set_join_condition(both);
    }
    let mut changed = Vec::new();
    for (place, when) in node.merge_when_clauses().iter().enumerate() {
        let mut copy = rewriter.mem.make_unique(when);
        if when.match_kind == MergeMatchKind::MERGE_WHEN_NOT_MATCHED_BY_SOURCE
            && let Some(both) = filter_and(rewriter, index, when.condition())
        {
            copy.as_mut().set_condition(both);
        }
        if when.command_type == CmdType::CMD_UPDATE {
            let targets = when.target_list().iter().filter_map(|node| match node {
                Node::ResTarget(target) => Some(target),
                _ => None,
            });
            let assigned = assignments(rewriter, index, targets);
            for (place, value) in assigned {
                if let Some(NodeMut::ResTarget(mut target)) =
                    copy.as_mut().target_list_mut().into_iter().nth(place)
                {
                    target.set_val(value);
                }
            }
        }
        put_merge_check(rewriter, place, when, index, &mut copy);
        changed.push(copy);
    }
    node.set_merge_when_clauses(rewriter.mem.make_list(&changed));
}

/// Puts the value that raises where its column is assigned.
fn put_merge_check<'mem>(
    rewriter: &mut Rewriter<'_, 'mem>,
    place: usize,
    when: &nodes::MergeWhenClause,
    index: usize,
    copy: &mut Unique<'mem, &'mem nodes::MergeWhenClause>,
) {
    let Some((piece, carrier, columns)) = rewriter.writes.merge_checks.get(&place) else {
        return;
    };
    let Ok(relation) = rewriter.job.relation(index) else {
        return;
    };
    let assigned = values_of(when, relation);
    let values: Vec<(String, Node<'_>)> = assigned
        .iter()
        .filter(|(column, _)| columns.contains(&column.number))
        .map(|(column, value)| (format!("{VALUE}_{}", column.number), *value))
        .collect();
    let expression = rewriter.pieces.expression(*piece);
    let Some(expression) = rewriter.attempt(expression) else {
        return;
    };
    let checked = fill(rewriter.mem, expression, &values);
    let Some(at) = assigned.iter().position(|(column, _)| column.number == *carrier) else {
        return;
    };
    if when.command_type == CmdType::CMD_UPDATE {
        let name = relation
            .column_by_number(*carrier)
            .map(|column| column.name.as_str());
        let mut checked = Some(checked);
        for node in copy.as_mut().target_list_mut() {
            if let NodeMut::ResTarget(mut target) = node
                && target.name() == name
                && let Some(checked) = checked.take()
            {
                target.set_val(checked);
            }
        }
    } else {
        copy.as_mut().values_mut().set(at, checked);
    }
}

pub(super) fn copy<'mem>(rewriter: &mut Rewriter<'_, 'mem>, node: &mut nodes::CopyStmtMut<'mem, '_>) {
    let Some(index) = node
        .relation()
        .and_then(|range| rewriter.job.range_at(range.location))
    else {
        return;
    };
    if rewriter.job.plan_of(index).is_none() {
        return;
    }
    rewriter.handled.insert(index);
    let mem = rewriter.mem;
    if node.is_from {
        if let Some(piece) = rewriter.writes.copy_checks.get(&index) {
            let check = rewriter.pieces.expression(*piece);
            if let Some(check) = rewriter.attempt(check) {
                let both = and(mem, check, node.where_clause());
                node.set_where_clause(both);
            }
        }
    } else if let Some(piece) = rewriter.sites.sources.get(&index) {
        let select = rewriter.pieces.select(*piece);
        if let Some(select) = rewriter.attempt(select) {
            node.set_query(mem.make_unique(select).uncast());
            node.set_relation(mem.make_unique(None::<&nodes::RangeVar>));
            node.set_attlist(mem.empty());
        }
    }
}

/// The governed range of a write's target, which is dealt with from here on.
fn begin(rewriter: &mut Rewriter<'_, '_>, target: Option<&nodes::RangeVar>) -> Option<usize> {
    let index = rewriter.job.range_at(target?.location)?;
    rewriter.job.plan_of(index)?;
    rewriter.handled.insert(index);
    Some(index)
}

/// `filter AND client's condition`; `None` where there is no filter, or where a cursor chooses the row.
fn filter_and<'mem>(
    rewriter: &mut Rewriter<'_, 'mem>,
    index: usize,
    client: Node<'_>,
) -> Option<Unique<'mem, Node<'mem>>> {
    if matches!(client, Node::CurrentOfExpr(_)) {
        return None;
    }
    let piece = *rewriter.sites.conditions.get(&index)?;
    let filter = rewriter.pieces.expression(piece);
    let filter = rewriter.attempt(filter)?;
    Some(and(rewriter.mem, filter, client))
}

/// As the grammar builds `first AND second`: an AND on the left side takes the right one in.
fn and<'mem>(mem: MemoryToken<'mem>, first: Node<'_>, second: Node<'_>) -> Unique<'mem, Node<'mem>> {
    if matches!(second, Node::None) {
        return mem.make_unique(first);
    }
    let mut parts = match first {
        Node::BoolExpr(expr) if expr.boolop == BoolExprType::AND_EXPR => {
            expr.args().iter().map(|part| mem.make_unique(part)).collect()
        }
        _ => vec![mem.make_unique(first)],
    };
    parts.push(mem.make_unique(second));
    mem.make_bool_expr(BoolExprType::AND_EXPR, mem.make_list(&parts))
        .uncast()
}

/// New values for assignments of masked columns, by their place in the list.
fn assignments<'mem, 'n>(
    rewriter: &mut Rewriter<'_, 'mem>,
    index: usize,
    targets: impl Iterator<Item = &'n nodes::ResTarget>,
) -> Vec<(usize, Unique<'mem, Node<'mem>>)> {
    let mut values = Vec::new();
    let (Some(plan), Ok(relation)) = (rewriter.job.plan_of(index), rewriter.job.relation(index)) else {
        return values;
    };
    for (place, target) in targets.enumerate() {
        let Some(column) = target.name().and_then(|name| relation.column(name)) else {
            continue;
        };
        let name = format!("{}.{}", relation.name, column.name);
        match plan.masks.get(&column.number) {
            None => {}
            Some(ColumnMask::Wire(_)) => {
                rewriter.error.get_or_insert(CannotGovern::WireMaskUsed(name));
            }
            Some(ColumnMask::Sql(_)) => match kept(rewriter, index, column, target) {
                Ok(Some(value)) => values.push((place, value)),
                Ok(None) => {}
                Err(error) => {
                    rewriter.error.get_or_insert(error);
                }
            },
        }
    }
    values
}

fn put_assignments<'mem>(
    list: pg_raw_parse::list_mut::NodeListMut<'mem, '_, pg_raw_parse::list::CastNodeList<nodes::ResTarget>>,
    mut values: Vec<(usize, Unique<'mem, Node<'mem>>)>,
) {
    for (place, mut target) in list.into_iter().enumerate() {
        if let Some(found) = values.iter().position(|(wanted, _)| *wanted == place) {
            let (_, value) = values.swap_remove(found);
            target.set_val(value);
        }
    }
}

/// The value to store: what is there, where the client writes back the mask that it was shown.
fn kept<'mem>(
    rewriter: &Rewriter<'_, 'mem>,
    index: usize,
    column: &Column,
    target: &nodes::ResTarget,
) -> Result<Option<Unique<'mem, Node<'mem>>>, CannotGovern> {
    let what = |text: &str| CannotGovern::NotBuilt(format!("{text} the masked column {}", column.name));
    if !target.indirection().is_empty() {
        return Err(what("setting a part of"));
    }
    match target.val() {
        Node::SetToDefault(_) => return Ok(None),
        Node::MultiAssignRef(_) => return Err(what("setting in a list")),
        _ => {}
    }
    let mut computed = false;
    walk(target.val(), |node| {
        computed |= matches!(node, Node::FuncCall(_) | Node::SubLink(_))
    });
    if computed {
        // No client computes the mask that it was shown.
        return Ok(None);
    }
    let Some(piece) = rewriter.writes.write_backs.get(&(index, column.number)) else {
        return Err(what("setting"));
    };
    let mem = rewriter.mem;
    let piece = rewriter.pieces.expression(*piece)?;
    Ok(Some(fill(mem, piece, &[(VALUE.to_owned(), target.val())])))
}

/// A type without its modifier, so that a parameter keeps its type and too long values still fail.
fn type_without_modifier(column: &Column) -> String {
    let sql = &column.column_type.sql;
    if column.column_type.class == TypeClass::Bpchar {
        // The printer has no form for the qualified `bpchar` without a length.
        return "pg_catalog.text".to_owned();
    }
    if column.column_type.modifier == -1 {
        return sql.clone();
    }
    match (sql.rfind('('), sql.rfind(')')) {
        (Some(open), Some(close)) if open < close => {
            let (head, rest) = sql.split_at(open);
            let (_, tail) = rest.split_at(close - open);
            format!("{head}{}", tail.strip_prefix(')').unwrap_or(tail))
        }
        _ => sql.clone(),
    }
}

/// An expression that raises 22P02 quoting `WEIR-CHECK` where the row does not meet the filter. The raising branch
/// reads a column, or the planner would run it; it repeats none of its value, and never becomes NULL.
fn check(
    relation: &Relation,
    plan: &RelationPlan,
    qualifier: Option<&str>,
    good: &str,
    kind: &str,
) -> Result<String, CannotGovern> {
    let filter = condition(relation, plan, qualifier)?;
    let columns = filter_columns(relation, plan)?;
    let witness = relation
        .columns
        .iter()
        .find(|column| columns.contains(&column.number))
        .or_else(|| {
            relation
                .columns
                .iter()
                .find(|column| column.generated_from.is_none())
        })
        .ok_or_else(|| CannotGovern::Impossible(format!("{} has no column to check", relation.name)))?;
    let name = match qualifier {
        Some(qualifier) => format!("{}.{}", ident(qualifier), ident(&witness.name)),
        None => ident(&witness.name),
    };
    Ok(format!(
        "CASE WHEN ({filter}) IS TRUE THEN {good} ELSE CAST(('WEIR-CHECK' OPERATOR(pg_catalog.||) \
         pg_catalog.\"left\"(COALESCE(CAST({name} AS pg_catalog.text), ''), 0)) AS {kind}) END"
    ))
}

/// The columns that a relation's filters read.
fn filter_columns(relation: &Relation, plan: &RelationPlan) -> Result<BTreeSet<AttNum>, CannotGovern> {
    let mut columns = BTreeSet::new();
    for filter in &plan.filters {
        let sql = format!("SELECT ({}\n)", filter.predicate);
        let parsed = pg_raw_parse::parse(&sql)
            .map_err(|error| CannotGovern::Impossible(format!("row filter {}: {error}", filter.rule)))?;
        for statement in parsed.stmts() {
            walk(statement, |node| {
                if let Node::ColumnRef(reference) = node
                    && let Some(name) = reference.fields().iter().filter_map(Node::as_str).next_back()
                    && let Some(column) = relation.column(name)
                {
                    columns.insert(column.number);
                    columns.extend(column.generated_from.iter().flatten());
                }
            });
        }
    }
    Ok(columns)
}

/// Whether a row can leave the filter by this write.
fn needs_check(
    job: &Job<'_>,
    index: usize,
    relation: &Relation,
    plan: &RelationPlan,
    node: Node<'_>,
) -> Result<bool, CannotGovern> {
    let Some(range) = job.range(index) else {
        return Ok(true);
    };
    let _ = node;
    if range.role == RangeRole::InsertTarget || relation.before_row_triggers {
        return Ok(true);
    }
    let columns = filter_columns(relation, plan)?;
    Ok(job.facts.actions.iter().any(|action| {
        action.relation == Some(relation.oid)
            && match action.action {
                Action::Insert => true,
                Action::Update => action
                    .columns
                    .iter()
                    .any(|column| *column == 0 || columns.contains(column)),
                Action::Select
                | Action::Delete
                | Action::Truncate
                | Action::Ddl
                | Action::Call
                | Action::Admin => false,
            }
    }))
}

fn refuse_opaque(relation: &Relation) -> Result<(), CannotGovern> {
    if relation.kind == RelationKind::View && !relation.triggers.is_empty() {
        return Err(CannotGovern::Impossible(format!(
            "{} is a view with triggers: what a write to it does cannot be seen",
            relation.name
        )));
    }
    Ok(())
}

/// A masked value may not be stored in a table where another column would show it.
fn refuse_copies(job: &Job<'_>) -> Result<(), CannotGovern> {
    for output in &job.facts.output {
        let Some(target) = output.target else { continue };
        let temporary = job
            .view
            .relation(target.relation)
            .is_some_and(|relation| relation.persistence == Persistence::Temporary);
        if temporary {
            continue;
        }
        for source in &output.sources {
            let direct = match source.transformation {
                Transformation::Identity | Transformation::Transformation | Transformation::Aggregation => {
                    true
                }
                Transformation::Join
                | Transformation::GroupBy
                | Transformation::Filter
                | Transformation::Sort
                | Transformation::Window
                | Transformation::Conditional => false,
            };
            let masked = job
                .plan
                .relations
                .get(&source.column.relation)
                .is_some_and(|plan| plan.masks.contains_key(&source.column.column));
            // A column may be written back to itself as it was shown, not changed.
            let kept = source.column == target && source.transformation == Transformation::Identity;
            if direct && masked && !kept {
                let name = job
                    .view
                    .relation(source.column.relation)
                    .map(|relation| {
                        let column = relation.column_by_number(source.column.column);
                        format!(
                            "{}.{}",
                            relation.name,
                            column.map_or("?", |column| column.name.as_str())
                        )
                    })
                    .unwrap_or_default();
                return Err(CannotGovern::CopiesMasked(name));
            }
        }
    }
    Ok(())
}

/// The statement whose rows the client gets.
fn top_statement(node: Node<'_>) -> Node<'_> {
    match node {
        Node::ExplainStmt(explain) => top_statement(explain.query()),
        Node::PrepareStmt(prepare) => prepare.query(),
        Node::DeclareCursorStmt(declare) if declare.options & CURSOR_HOLD == 0 => declare.query(),
        _ => node,
    }
}

fn target_of(node: Node<'_>) -> Option<&nodes::RangeVar> {
    match node {
        Node::InsertStmt(insert) => insert.relation(),
        Node::UpdateStmt(update) => update.relation(),
        Node::DeleteStmt(delete) => delete.relation(),
        Node::MergeStmt(merge) => merge.relation(),
        _ => None,
    }
}

/// The references that are returned as they are by any write of the statement.
fn plain_returned(node: Node<'_>) -> HashSet<i32> {
    let mut found = HashSet::new();
    let node = match top_statement(node) {
        Node::CreateTableAsStmt(create) => create.query(),
        Node::DeclareCursorStmt(declare) => declare.query(),
        Node::CopyStmt(copy) => copy.query(),
        node => node,
    };
    let can_be_walked = matches!(
        node,
        Node::SelectStmt(_)
            | Node::InsertStmt(_)
            | Node::UpdateStmt(_)
            | Node::DeleteStmt(_)
            | Node::MergeStmt(_)
    );
    if !can_be_walked {
        return found;
    }
    walk(node, |node| {
        if let Node::ReturningClause(clause) = node {
            for item in clause.exprs() {
                if let Node::ResTarget(target) = item
                    && let Node::ColumnRef(reference) = target.val()
                {
                    found.insert(reference.location);
                }
            }
        }
    });
    found
}

/// The references that are result columns as they are: only there a wire mask can be made.
pub(super) fn plain_outputs(node: Node<'_>) -> HashSet<i32> {
    let plain = |target: &nodes::ResTarget| match target.val() {
        Node::ColumnRef(reference) => Some(reference.location),
        _ => None,
    };
    let returned = |clause: Option<&ReturningClause>| {
        clause
            .into_iter()
            .flat_map(|clause| clause.exprs())
            .filter_map(|node| match node {
                Node::ResTarget(target) => plain(target),
                _ => None,
            })
            .collect()
    };
    match top_statement(node) {
        Node::SelectStmt(select) if is_plain(select) => {
            select.target_list().iter().filter_map(plain).collect()
        }
        Node::InsertStmt(insert) => returned(insert.returning_clause()),
        Node::UpdateStmt(update) => returned(update.returning_clause()),
        Node::DeleteStmt(delete) => returned(delete.returning_clause()),
        Node::MergeStmt(merge) => returned(merge.returning_clause()),
        _ => HashSet::new(),
    }
}

fn is_plain(select: &SelectStmt) -> bool {
    select.op == SetOperation::SETOP_NONE
        && select.distinct_clause().is_empty()
        && select.into_clause().is_none()
}

/// Result columns that the outermost ORDER BY, GROUP BY or DISTINCT names by position or alias.
pub(super) fn outputs_sorted_by(job: &Job<'_>, node: Node<'_>) -> BTreeSet<usize> {
    let mut found = BTreeSet::new();
    let Node::SelectStmt(select) = top_statement(node) else {
        return found;
    };
    let sorts = select.sort_clause().iter().map(|sort| sort.node());
    for item in sorts.chain(select.group_clause().iter()) {
        match item {
            Node::A_Const(constant) => {
                if let Some(ConstValue::Integer(place)) = constant.val() {
                    found.extend(usize::try_from(place).ok().and_then(|place| place.checked_sub(1)));
                }
            }
            Node::ColumnRef(reference) => {
                let derived = matches!(job.target(reference.location), Some(RefTarget::Derived) | None);
                let name = reference.fields().iter().filter_map(Node::as_str).next_back();
                if derived {
                    let outputs = job
                        .facts
                        .output
                        .iter()
                        .filter(|column| column.target.is_none())
                        .enumerate();
                    found.extend(
                        outputs
                            .filter(|(_, output)| Some(output.name.as_str()) == name)
                            .map(|(index, _)| index),
                    );
                }
            }
            _ => {}
        }
    }
    found
}
