//! What will stand in the place of each governed mention, as pieces of SQL.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write as _;

use pg_raw_parse::Node;
use row_masking::WireMask;

use super::Job;
use super::scan::{Guard, Scan, StarItem, is_target};
use super::workshop::{Piece, Workshop, ident};
use crate::catalog::{AttNum, Column, Persistence, Relation};
use crate::facts::{RangeRole, RangeUse, RefTarget, Transformation};
use crate::plan::{CannotGovern, ColumnMask, RelationPlan};

/// The alias of the real table inside of its replacement.
pub(super) const INNER: &str = "w";

/// How a reference is changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum RefEdit {
    /// Other names; the last one is kept when `None` stands for a star.
    Fields(Vec<String>, bool),
    /// Another expression.
    Expression(Piece),
}

/// Everything that was decided before the copy is changed.
pub(super) struct Sites {
    pub(super) scan: Scan,
    pub(super) shop: Workshop,
    /// By range: the derived table.
    pub(super) sources: HashMap<usize, Piece>,
    /// By range: the condition that a target's rows must meet.
    pub(super) conditions: HashMap<usize, Piece>,
    /// By place of a column reference.
    pub(super) references: HashMap<i32, RefEdit>,
    /// By place of a star: the targets that stand for it.
    pub(super) stars: HashMap<i32, Piece>,
    /// By call: the CASE that holds it.
    pub(super) guards: HashMap<(u8, i32), (Piece, bool)>,
    /// By range: another alias.
    pub(super) aliases: HashMap<usize, String>,
    /// Result columns masked on the wire.
    pub(super) wire_masks: BTreeMap<usize, WireMask>,
}

impl Sites {
    pub(super) fn plan(job: &Job<'_>, node: Node<'_>, scan: Scan) -> Result<Self, CannotGovern> {
        let mut sites = Self {
            scan,
            shop: Workshop::new(job.statement.text.len()),
            sources: HashMap::new(),
            conditions: HashMap::new(),
            references: HashMap::new(),
            stars: HashMap::new(),
            guards: HashMap::new(),
            aliases: HashMap::new(),
            wire_masks: BTreeMap::new(),
        };
        sites.wire_masks = wire_masks(job, node, &sites.scan)?;
        for (index, _) in job.governed() {
            if let Some(alias) = fresh_alias(job, index) {
                sites.aliases.insert(index, alias);
            }
        }
        let extras = sites.extras(job)?;
        for (index, plan) in job.governed() {
            let Some(range) = job.range(index) else { continue };
            match range.role {
                RangeRole::Source => {
                    let sql = sites.derived(job, index, range, plan, extras.get(&index))?;
                    let piece = sites.shop.select(&sql, range.location);
                    sites.sources.insert(index, piece);
                }
                RangeRole::CopyToSource => {
                    let sql = copied(job, index, plan)?;
                    let piece = sites.shop.select(&sql, range.location);
                    sites.sources.insert(index, piece);
                }
                RangeRole::InsertTarget
                | RangeRole::UpdateTarget
                | RangeRole::DeleteTarget
                | RangeRole::MergeTarget
                | RangeRole::CopyFromTarget => {
                    if !plan.filters.is_empty() {
                        let sql = condition(job.relation(index)?, plan, qualifier(range).as_deref())?;
                        let piece = sites.shop.expression(&sql, range.location);
                        sites.conditions.insert(index, piece);
                    }
                }
            }
        }
        sites.references(job, &extras)?;
        sites.written_stars(job, &extras)?;
        sites.write_guards(job, &extras)?;
        Ok(sites)
    }

    fn alias<'r>(&'r self, index: usize, range: &'r RangeUse) -> &'r str {
        self.aliases
            .get(&index)
            .map_or(range.reference_name.as_str(), String::as_str)
    }

    /// Columns that a replacement shows beside the table's own: the filter's flag, system columns.
    fn extras(&mut self, job: &Job<'_>) -> Result<BTreeMap<usize, Extras>, CannotGovern> {
        let mut extras: BTreeMap<usize, Extras> = BTreeMap::new();
        for (index, _) in job.governed() {
            let Some(range) = job.range(index) else { continue };
            if range.role != RangeRole::Source {
                continue;
            }
            let mut system: BTreeSet<AttNum> = range
                .used_columns
                .iter()
                .copied()
                .filter(|column| *column < 0)
                .collect();
            for used in &job.facts.column_uses {
                if let RefTarget::Column { range, column } = used.target
                    && range == index
                    && column < 0
                {
                    system.insert(column);
                }
            }
            if !system.is_empty() {
                if !self.can_hold_extras(job, index) {
                    return Err(CannotGovern::NotBuilt(
                        "a system column beside a star or whole row".to_owned(),
                    ));
                }
                extras.entry(index).or_default().system = system;
            }
        }
        let mut wanted: BTreeSet<usize> = BTreeSet::new();
        for guard in self.scan.guards.values() {
            if let Guard::Filter(ranges) = guard {
                wanted.extend(ranges);
            }
        }
        for index in wanted {
            if !job.filtered_source(index) {
                continue;
            }
            if self.scan.hidden.contains(&index) || !self.can_hold_extras(job, index) {
                self.scan.barrier.insert(index);
            } else {
                extras.entry(index).or_default().flag = true;
            }
        }
        for index in &self.scan.barrier {
            if let Some(extra) = extras.get_mut(index) {
                extra.flag = false;
            }
        }
        if self.scan.locks_rows && !self.scan.barrier.is_empty() {
            return Err(CannotGovern::NotBuilt(
                "row locks together with a function that must not see the rows a filter hides".to_owned(),
            ));
        }
        Ok(extras)
    }

    /// Whether more columns may be shown without anybody seeing them.
    fn can_hold_extras(&self, job: &Job<'_>, index: usize) -> bool {
        job.facts.column_uses.iter().all(|used| match &used.target {
            RefTarget::Star { ranges } => {
                !ranges.contains(&index)
                    || matches!(self.scan.stars.get(&used.location), Some(Some(items)) if items.contains(&StarItem::Range(index)))
            }
            RefTarget::Column { .. } | RefTarget::WholeRow { .. } | RefTarget::Derived | RefTarget::Excluded => {
                true
            }
        })
    }

    /// `SELECT 1 FROM (SELECT … FROM s.t AS w WHERE …) AS alias`
    fn derived(
        &self,
        job: &Job<'_>,
        index: usize,
        range: &RangeUse,
        plan: &RelationPlan,
        extras: Option<&Extras>,
    ) -> Result<String, CannotGovern> {
        let relation = job.relation(index)?;
        // Names that an alias gives to columns go by position.
        let all =
            range.needs_all_columns || !range.column_aliases.is_empty() || self.scan.hidden.contains(&index);
        let mut list: Vec<String> = Vec::new();
        for column in &relation.columns {
            if all || range.used_columns.contains(&column.number) {
                list.push(shown(column, plan, INNER));
            }
        }
        if let Some(extras) = extras {
            for number in &extras.system {
                let name = system_column(*number)?;
                list.push(format!(
                    "{INNER}.{} AS {}",
                    ident(name),
                    ident(&system_name(index, *number))
                ));
            }
            if extras.flag {
                let filter = condition(relation, plan, Some(INNER))?;
                list.push(format!("({filter}) IS TRUE AS {}", ident(&flag_name(index))));
            }
        }
        let mut sql = format!(
            "SELECT 1 FROM (SELECT {} FROM {} AS {INNER}",
            list.join(", "),
            table(relation)
        );
        if !plan.filters.is_empty() {
            let _ = write!(sql, " WHERE {}", condition(relation, plan, Some(INNER))?);
            if self.scan.barrier.contains(&index) {
                sql.push_str(" OFFSET 0");
            }
        }
        let _ = write!(sql, ") AS {}", ident(self.alias(index, range)));
        if !range.column_aliases.is_empty() {
            let names: Vec<String> = range.column_aliases.iter().map(|name| ident(name)).collect();
            let _ = write!(sql, "({})", names.join(", "));
        }
        Ok(sql)
    }

    fn references(&mut self, job: &Job<'_>, extras: &BTreeMap<usize, Extras>) -> Result<(), CannotGovern> {
        for used in &job.facts.column_uses {
            match &used.target {
                RefTarget::Column { range: index, column } => {
                    let (Some(plan), Some(range)) = (job.plan_of(*index), job.range(*index)) else {
                        continue;
                    };
                    if range.role == RangeRole::Source {
                        let alias = self.alias(*index, range).to_owned();
                        if *column < 0 && extras.contains_key(index) {
                            let edit = RefEdit::Fields(vec![alias, system_name(*index, *column)], true);
                            self.references.insert(used.location, edit);
                        } else if used.parts > 2 || (used.parts == 2 && self.aliases.contains_key(index)) {
                            self.references
                                .insert(used.location, RefEdit::Fields(vec![alias], false));
                        }
                    } else if is_target(range.role)
                        && let Some(ColumnMask::Sql(mask)) = plan.masks.get(column)
                    {
                        let relation = job.relation(*index)?;
                        let Some(column) = relation.column_by_number(*column) else {
                            continue;
                        };
                        let name = format!("{}.{}", ident(&range.reference_name), ident(&column.name));
                        let mut sql = masked(&mask.template, &name);
                        if column.column_type.collation.is_some() {
                            // In a sub-select the collation is implicit, as the column's own.
                            sql = format!("(SELECT {sql})");
                        }
                        let piece = self.shop.expression(&sql, used.location);
                        self.references.insert(used.location, RefEdit::Expression(piece));
                    }
                }
                RefTarget::WholeRow { range: index } => {
                    self.whole_row(
                        job,
                        *index,
                        used.location,
                        extras.get(index).is_some_and(Extras::any),
                    )?;
                }
                RefTarget::Star { ranges } => {
                    if let [index] = ranges.as_slice()
                        && let Some(range) = job.range(*index)
                        && job.plan_of(*index).is_some()
                        && range.role == RangeRole::Source
                        && (used.parts > 2 || (used.parts == 2 && self.aliases.contains_key(index)))
                    {
                        let alias = self.alias(*index, range).to_owned();
                        self.references
                            .insert(used.location, RefEdit::Fields(vec![alias], false));
                    }
                }
                RefTarget::Derived | RefTarget::Excluded => {}
            }
        }
        Ok(())
    }

    fn whole_row(
        &mut self,
        job: &Job<'_>,
        index: usize,
        location: i32,
        spelled: bool,
    ) -> Result<(), CannotGovern> {
        let (Some(plan), Some(range)) = (job.plan_of(index), job.range(index)) else {
            return Ok(());
        };
        let relation = job.relation(index)?;
        let alias = self.alias(index, range).to_owned();
        if plan
            .masks
            .values()
            .any(|mask| matches!(mask, ColumnMask::Wire(_)))
        {
            return Err(wire_used(relation, plan));
        }
        if is_target(range.role) {
            if plan.masks.is_empty() {
                return Ok(());
            }
            let values: Vec<String> = relation
                .columns
                .iter()
                .map(|column| value(column, plan, &range.reference_name))
                .collect();
            let sql = format!("ROW({})::{}", values.join(", "), table(relation));
            let piece = self.shop.expression(&sql, location);
            self.references.insert(location, RefEdit::Expression(piece));
            return Ok(());
        }
        if self.scan.bare_rows.contains(&location) && !spelled {
            if self.aliases.contains_key(&index) {
                self.references
                    .insert(location, RefEdit::Fields(vec![alias], true));
            }
            return Ok(());
        }
        if let Some(domain) = relation.columns.iter().find(|column| {
            plan.masks.contains_key(&column.number) && column.column_type.oid != column.column_type.base_oid
        }) {
            return Err(CannotGovern::Impossible(format!(
                "the whole row of {} cannot be used: the domain of its masked column {} may refuse the mask",
                relation.name, domain.name
            )));
        }
        let row = ident(&alias);
        let cast = if spelled {
            let names = relation.columns.iter().enumerate().map(|(place, column)| {
                format!(
                    "{row}.{}",
                    ident(range.column_aliases.get(place).unwrap_or(&column.name))
                )
            });
            format!(
                "ROW({})::{}",
                names.collect::<Vec<_>>().join(", "),
                table(relation)
            )
        } else {
            format!("{row}::{}", table(relation))
        };
        let sql = if range.nullable {
            format!("CASE WHEN {row} IS DISTINCT FROM NULL THEN {cast} END")
        } else {
            cast
        };
        let piece = self.shop.expression(&sql, location);
        self.references.insert(location, RefEdit::Expression(piece));
        Ok(())
    }

    /// Stars over replacements that show more than the table's columns, and over targets with masks.
    fn written_stars(&mut self, job: &Job<'_>, extras: &BTreeMap<usize, Extras>) -> Result<(), CannotGovern> {
        for used in &job.facts.column_uses {
            let RefTarget::Star { ranges } = &used.target else {
                continue;
            };
            let must = ranges.iter().any(|index| {
                extras.get(index).is_some_and(Extras::any)
                    || job.plan_of(*index).is_some_and(|plan| !plan.masks.is_empty())
                        && job.range(*index).is_some_and(|range| is_target(range.role))
            });
            if !must {
                continue;
            }
            let Some(Some(items)) = self.scan.stars.get(&used.location).cloned() else {
                return Err(CannotGovern::NotBuilt("a star here".to_owned()));
            };
            let mut list = Vec::new();
            for item in &items {
                match item {
                    StarItem::Named(alias) => list.push(format!("{}.*", ident(alias))),
                    StarItem::Range(index) => {
                        let Some(range) = job.range(*index) else { continue };
                        let Some(plan) = job.plan_of(*index) else {
                            list.push(format!("{}.*", ident(&range.reference_name)));
                            continue;
                        };
                        let relation = job.relation(*index)?;
                        let alias = ident(self.alias(*index, range));
                        for (place, column) in relation.columns.iter().enumerate() {
                            if is_target(range.role) {
                                list.push(shown(column, plan, &range.reference_name));
                            } else {
                                let name = range.column_aliases.get(place).unwrap_or(&column.name);
                                list.push(format!("{alias}.{}", ident(name)));
                            }
                        }
                    }
                }
            }
            let piece = self
                .shop
                .select(&format!("SELECT {}", list.join(", ")), used.location);
            self.stars.insert(used.location, piece);
        }
        Ok(())
    }

    fn write_guards(&mut self, job: &Job<'_>, extras: &BTreeMap<usize, Extras>) -> Result<(), CannotGovern> {
        for (key, guard) in &self.scan.guards {
            let (sql, pattern) = match guard {
                Guard::Pattern => (
                    // The pattern's end is looked at before LIKE sees it; E'' reads the same in every session.
                    "CASE WHEN NULL OPERATOR(pg_catalog.~) E'(^|[^\\\\\\\\])(\\\\\\\\\\\\\\\\)*\\\\\\\\$' THEN NULL ELSE NULL END"
                        .to_owned(),
                    true,
                ),
                Guard::Grouped => ("CASE WHEN pg_catalog.count(*) OPERATOR(pg_catalog.>=) 0 THEN NULL END".to_owned(), false),
                Guard::Filter(ranges) => {
                    let mut conditions = Vec::new();
                    for index in ranges {
                        let (Some(range), Some(plan)) = (job.range(*index), job.plan_of(*index)) else { continue };
                        if is_target(range.role) {
                            let filter = condition(job.relation(*index)?, plan, Some(&range.reference_name))?;
                            conditions.push(format!("({filter}) IS TRUE"));
                        } else if extras.get(index).is_some_and(|extra| extra.flag) {
                            let alias = ident(self.aliases.get(index).unwrap_or(&range.reference_name));
                            conditions.push(format!("{alias}.{} IS NOT FALSE", ident(&flag_name(*index))));
                        }
                    }
                    if conditions.is_empty() {
                        continue;
                    }
                    (format!("CASE WHEN {} THEN NULL END", conditions.join(" AND ")), false)
                }
            };
            let piece = self.shop.expression(&sql, key.1);
            self.guards.insert(*key, (piece, pattern));
        }
        Ok(())
    }
}

/// What a replacement shows beside the table's columns.
#[derive(Debug, Default, Clone)]
pub(super) struct Extras {
    flag: bool,
    system: BTreeSet<AttNum>,
}

impl Extras {
    fn any(&self) -> bool {
        self.flag || !self.system.is_empty()
    }
}

fn flag_name(index: usize) -> String {
    format!("weir_{index}_ok")
}

fn system_name(index: usize, column: AttNum) -> String {
    format!("weir_{index}_s{}", column.unsigned_abs())
}

/// The system columns of PostgreSQL, by number.
fn system_column(number: AttNum) -> Result<&'static str, CannotGovern> {
    match number {
        -1 => Ok("ctid"),
        -2 => Ok("xmin"),
        -3 => Ok("cmin"),
        -4 => Ok("xmax"),
        -5 => Ok("cmax"),
        -6 => Ok("tableoid"),
        _ => Err(CannotGovern::Impossible(format!(
            "unknown system column {number}"
        ))),
    }
}

/// Two tables of the same name without aliases are legal; a derived table and a table, or two of them, are not.
fn fresh_alias(job: &Job<'_>, index: usize) -> Option<String> {
    let range = job.range(index)?;
    if range.aliased || range.role != RangeRole::Source {
        return None;
    }
    let clash = job.facts.ranges.iter().any(|other| {
        other.relation != range.relation && !other.aliased && other.reference_name == range.reference_name
    });
    clash.then(|| format!("weir_{index}_{}", range.reference_name))
}

/// How a target's columns are qualified: by its alias or name, but in COPY by nothing.
fn qualifier(range: &RangeUse) -> Option<String> {
    (range.role != RangeRole::CopyFromTarget).then(|| range.reference_name.clone())
}

/// A table's full name.
pub(super) fn table(relation: &Relation) -> String {
    format!("{}.{}", ident(schema_of(relation)), ident(&relation.name))
}

pub(super) fn schema_of(relation: &Relation) -> &str {
    match relation.persistence {
        Persistence::Temporary => "pg_temp",
        Persistence::Permanent | Persistence::Unlogged => &relation.schema,
    }
}

/// The mask's expression over that column.
pub(super) fn masked(template: &str, column: &str) -> String {
    template.replace("{}", column)
}

/// A column as the client shall see it, without a name.
pub(super) fn value(column: &Column, plan: &RelationPlan, qualifier: &str) -> String {
    let name = format!("{}.{}", ident(qualifier), ident(&column.name));
    match plan.masks.get(&column.number) {
        Some(ColumnMask::Sql(mask)) => masked(&mask.template, &name),
        Some(ColumnMask::Wire(_)) | None => name,
    }
}

/// The same as a target of a select list.
fn shown(column: &Column, plan: &RelationPlan, qualifier: &str) -> String {
    let value = value(column, plan, qualifier);
    match plan.masks.get(&column.number) {
        Some(ColumnMask::Sql(_)) => format!("{value} AS {}", ident(&column.name)),
        Some(ColumnMask::Wire(_)) | None => value,
    }
}

/// All filters of a relation as one condition over columns qualified by that name.
pub(super) fn condition(
    relation: &Relation,
    plan: &RelationPlan,
    qualifier: Option<&str>,
) -> Result<String, CannotGovern> {
    let mut parts = Vec::new();
    for filter in &plan.filters {
        parts.push(super::names::predicate(relation, filter, qualifier)?);
    }
    Ok(parts.join(" AND "))
}

/// `COPY t TO` as a query: only the parent's own rows, no generated columns.
fn copied(job: &Job<'_>, index: usize, plan: &RelationPlan) -> Result<String, CannotGovern> {
    use crate::catalog::RelationKind;
    let relation = job.relation(index)?;
    if relation.kind != RelationKind::Table {
        return Err(CannotGovern::Impossible(format!(
            "cannot copy from {}: it is not a table; use COPY (SELECT …) TO",
            relation.name
        )));
    }
    let Node::CopyStmt(copy) = job.statement.node() else {
        return Err(CannotGovern::NotBuilt("this COPY".to_owned()));
    };
    let mut list = Vec::new();
    if copy.attlist().is_empty() {
        list.extend(
            relation
                .columns
                .iter()
                .filter(|column| column.generated_from.is_none()),
        );
    } else {
        for name in copy.attlist().iter().filter_map(Node::as_str) {
            let column = relation
                .column(name)
                .filter(|column| column.generated_from.is_none());
            list.push(
                column.ok_or_else(|| CannotGovern::Impossible(format!("cannot copy the column {name}")))?,
            );
        }
    }
    // Tokens are made in rows of a result; COPY has none.
    if list
        .iter()
        .any(|column| matches!(plan.masks.get(&column.number), Some(ColumnMask::Wire(_))))
    {
        return Err(wire_used(relation, plan));
    }
    let list: Vec<String> = list
        .into_iter()
        .map(|column| shown(column, plan, INNER))
        .collect();
    let mut sql = format!(
        "SELECT {} FROM ONLY {} AS {INNER}",
        list.join(", "),
        table(relation)
    );
    if !plan.filters.is_empty() {
        let _ = write!(sql, " WHERE {}", condition(relation, plan, Some(INNER))?);
    }
    Ok(sql)
}

fn wire_used(relation: &Relation, plan: &RelationPlan) -> CannotGovern {
    let name = plan
        .masks
        .iter()
        .find(|(_, mask)| matches!(mask, ColumnMask::Wire(_)))
        .and_then(|(number, _)| relation.column_by_number(*number))
        .map_or("?", |column| column.name.as_str());
    CannotGovern::WireMaskUsed(format!("{}.{name}", relation.name))
}

/// Which result columns carry a token that is made on the wire; any other use of such a column is refused.
fn wire_masks(job: &Job<'_>, node: Node<'_>, scan: &Scan) -> Result<BTreeMap<usize, WireMask>, CannotGovern> {
    let mut masks = BTreeMap::new();
    let wired: Vec<(usize, &RelationPlan)> = job
        .governed()
        .filter(|(_, plan)| {
            plan.masks
                .values()
                .any(|mask| matches!(mask, ColumnMask::Wire(_)))
        })
        .collect();
    if wired.is_empty() {
        return Ok(masks);
    }
    let plain = super::writes::plain_outputs(node);
    for used in &job.facts.column_uses {
        let ranges: Vec<(usize, Option<AttNum>)> = match &used.target {
            RefTarget::Column { range, column } => vec![(*range, Some(*column))],
            RefTarget::WholeRow { range } => vec![(*range, None)],
            RefTarget::Star { ranges } => ranges.iter().map(|range| (*range, None)).collect(),
            RefTarget::Derived | RefTarget::Excluded => Vec::new(),
        };
        for (index, column) in ranges {
            let Some((_, plan)) = wired.iter().find(|(wired, _)| *wired == index) else {
                continue;
            };
            let touched = match column {
                Some(column) => matches!(plan.masks.get(&column), Some(ColumnMask::Wire(_))),
                None => true,
            };
            if touched && !plain.contains(&used.location) {
                return Err(wire_used(job.relation(index)?, plan));
            }
        }
    }
    // A join by name or a sort by position could read the raw column without naming it.
    let sorted = super::writes::outputs_sorted_by(job, node);
    for (index, column) in job
        .facts
        .output
        .iter()
        .filter(|column| column.target.is_none())
        .enumerate()
    {
        if sorted.contains(&index)
            && wire_of(job, column).is_some()
            && let Some((range, plan)) = wired.first()
        {
            return Err(wire_used(job.relation(*range)?, plan));
        }
    }
    for (index, plan) in &wired {
        let (relation, range) = (job.relation(*index)?, job.range(*index));
        let named = relation.columns.iter().any(|column| {
            matches!(plan.masks.get(&column.number), Some(ColumnMask::Wire(_)))
                && scan.using.contains(&column.name)
        });
        let renamed = range.is_some_and(|range| !range.column_aliases.is_empty()) && !scan.using.is_empty();
        if scan.natural || named || renamed {
            return Err(wire_used(relation, plan));
        }
    }
    let outputs = job.facts.output.iter().filter(|column| column.target.is_none());
    for (index, column) in outputs.enumerate() {
        if let Some(mask) = wire_of(job, column) {
            masks.insert(index, mask);
        }
    }
    Ok(masks)
}

fn wire_of(job: &Job<'_>, output: &crate::facts::OutputColumn) -> Option<WireMask> {
    let mut sources = output.sources.iter();
    let (source, None) = (sources.next()?, sources.next()) else {
        return None;
    };
    if source.transformation != Transformation::Identity {
        return None;
    }
    match job
        .plan
        .relations
        .get(&source.column.relation)?
        .masks
        .get(&source.column.column)?
    {
        ColumnMask::Wire(mask) => Some(mask.clone()),
        ColumnMask::Sql(_) => None,
    }
}
