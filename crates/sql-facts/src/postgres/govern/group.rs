//! GROUP BY of a primary key lets a query use the table's other columns; behind a derived table it does not. They are
//! added to GROUP BY, which changes nothing: the key is unique.

use std::collections::BTreeSet;

use pg_raw_parse::nodes::{ColumnRef, SelectStmt};
use pg_raw_parse::walk::{Recurse, walk_manual};
use pg_raw_parse::{ConstValue, Node};

use super::Job;
use crate::catalog::AttNum;
use crate::facts::{RangeRole, RefTarget};
use crate::plan::CannotGovern;

/// What must be added to GROUP BY.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    /// A copy of the reference at that place.
    Reference(i32),
    /// A column of a range that only a star names.
    Column(usize, AttNum),
}

/// What must be added to this query's GROUP BY.
pub(super) fn missing_keys(job: &Job<'_>, select: &SelectStmt) -> Result<Vec<Key>, CannotGovern> {
    let mut keys: BTreeSet<(usize, AttNum)> = BTreeSet::new();
    if select.group_clause().is_empty() {
        return Ok(Vec::new());
    }
    for item in select.group_clause() {
        match item {
            Node::GroupingSet(_) => return Ok(Vec::new()),
            item => keys.extend(column_behind(job, select, item)),
        }
    }
    let mut ranges = Vec::new();
    for item in select.from_clause() {
        ranges_of(job, item, &mut ranges, 0);
    }
    let mut missing = Vec::new();
    for index in ranges {
        let Some(plan) = job.plan_of(index) else {
            continue;
        };
        let relation = job.relation(index)?;
        let whole_key = !relation.primary_key.is_empty()
            && relation
                .primary_key
                .iter()
                .all(|column| keys.contains(&(index, *column)));
        if !whole_key {
            continue;
        }
        let mut used = Used::default();
        for target in select.target_list() {
            collect(job, target.val(), index, &mut used);
        }
        collect(job, select.having_clause(), index, &mut used);
        for sort in select.sort_clause() {
            collect(job, sort.node(), index, &mut used);
        }
        for item in select.distinct_clause() {
            collect(job, item, index, &mut used);
        }
        let all = used.star || used.row.is_some();
        let mut added = Vec::new();
        for column in &relation.columns {
            let place = used.columns.iter().find(|(_, number)| *number == column.number);
            if keys.contains(&(index, column.number)) || !(all || place.is_some()) {
                continue;
            }
            if !has_equality(column.column_type.base_oid) {
                return Err(CannotGovern::NotBuilt(
                    "a column without equality beside GROUP BY of the key".to_owned(),
                ));
            }
            match place {
                Some((place, _)) => added.push(Key::Reference(*place)),
                None if used.star => added.push(Key::Column(index, column.number)),
                None => {}
            }
        }
        added.extend(used.row.map(Key::Reference));
        if !added.is_empty()
            && relation
                .primary_key
                .iter()
                .any(|column| plan.masks.contains_key(column))
        {
            return Err(CannotGovern::Impossible(format!(
                "GROUP BY of the masked key of {} does not determine its other columns",
                relation.name
            )));
        }
        missing.extend(added);
    }
    Ok(missing)
}

/// What a grouped query uses of a range outside of aggregates.
#[derive(Debug, Default)]
struct Used {
    /// (place, column)
    columns: Vec<(i32, AttNum)>,
    /// Place of its whole row.
    row: Option<i32>,
    /// A star covers it.
    star: bool,
}

/// The reference at that place, in the parts of the query that [`missing_keys`] looks at.
pub(super) fn find(select: &SelectStmt, location: i32) -> Option<&ColumnRef> {
    let sorts = select.sort_clause().iter().map(|sort| sort.node());
    let targets = select.target_list().iter().map(|target| target.val());
    let mut places = targets
        .chain(std::iter::once(select.having_clause()))
        .chain(sorts)
        .chain(select.distinct_clause().iter());
    places.find_map(|node| find_in(node, location))
}

fn find_in(node: Node<'_>, location: i32) -> Option<&ColumnRef> {
    let hit = |node| match node {
        Node::ColumnRef(reference) if reference.location == location => Some(reference),
        _ => None,
    };
    if matches!(node, Node::None) {
        return None;
    }
    hit(node).or_else(|| {
        walk_manual(node, |child| match hit(child) {
            Some(reference) => std::ops::ControlFlow::Break(reference),
            None => Recurse::yes(),
        })
    })
}

/// `json`, `xml` and the geometric types without a sortable or hashable equality.
pub(super) fn has_equality(type_oid: u32) -> bool {
    !matches!(type_oid, 114 | 142 | 600 | 601 | 602 | 603 | 604 | 628 | 718)
}

fn column_behind(job: &Job<'_>, select: &SelectStmt, item: Node<'_>) -> Option<(usize, AttNum)> {
    let reference = match item {
        Node::ColumnRef(reference) => reference,
        Node::A_Const(constant) => {
            let Some(ConstValue::Integer(place)) = constant.val() else {
                return None;
            };
            let place = usize::try_from(place).ok()?.checked_sub(1)?;
            match select.target_list().get(place)?.val() {
                Node::ColumnRef(reference) => reference,
                _ => return None,
            }
        }
        _ => return None,
    };
    match job.target(reference.location)? {
        RefTarget::Column { range, column } => Some((*range, *column)),
        RefTarget::Derived => {
            let name = reference.fields().first().and_then(Node::as_str)?;
            let target = select
                .target_list()
                .iter()
                .find(|target| target.name() == Some(name))?;
            match target.val() {
                Node::ColumnRef(inner) => match job.target(inner.location)? {
                    RefTarget::Column { range, column } => Some((*range, *column)),
                    _ => None,
                },
                _ => None,
            }
        }
        RefTarget::WholeRow { .. } | RefTarget::Star { .. } | RefTarget::Excluded => None,
    }
}

fn ranges_of(job: &Job<'_>, item: Node<'_>, ranges: &mut Vec<usize>, depth: usize) {
    if depth > 10_000 {
        return;
    }
    match item {
        Node::RangeVar(range) => {
            ranges.extend(job.range_at(range.location).filter(|index| {
                job.range(*index)
                    .is_some_and(|range| range.role == RangeRole::Source)
            }));
        }
        Node::RangeTableSample(sample) => ranges_of(job, sample.relation(), ranges, depth + 1),
        Node::JoinExpr(join) => {
            ranges_of(job, join.larg(), ranges, depth + 1);
            ranges_of(job, join.rarg(), ranges, depth + 1);
        }
        _ => {}
    }
}

fn collect(job: &Job<'_>, node: Node<'_>, index: usize, used: &mut Used) {
    let mut look = |node: Node<'_>| -> bool {
        match node {
            Node::ColumnRef(reference) => {
                match job.target(reference.location) {
                    Some(RefTarget::Column { range, column }) if *range == index => {
                        used.columns.push((reference.location, *column));
                    }
                    Some(RefTarget::WholeRow { range }) if *range == index => {
                        used.row = Some(reference.location)
                    }
                    Some(RefTarget::Star { ranges }) if ranges.contains(&index) => used.star = true,
                    _ => {}
                }
                false
            }
            Node::FuncCall(call) => call.over().is_some() || !job.is_aggregate(call.location),
            _ => true,
        }
    };
    if matches!(node, Node::None) || !look(node) {
        return;
    }
    walk_manual::<()>(node, |child| Recurse::recurse_if(look(child)));
}
