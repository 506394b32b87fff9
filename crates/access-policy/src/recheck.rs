//! The governed text is read again, and what it does with protected columns is compared with the plan. This does not
//! trust `govern`: each place where a masked column stands must be inside the very expression of its mask, or be one
//! of the few other things a governed text does with it.

use std::collections::{BTreeMap, BTreeSet};

use sql_facts::facts::{Action, Clause, ColumnUse, RangeRole, RefTarget, Transformation};
use sql_facts::plan::ColumnMask;
use sql_facts::{
    AttNum, CatalogView, Governed, Oid, Plan, Relation, RelationPlan, StatementFacts, StatementKind,
};

use crate::names;

/// Reads the governed text again and looks for anything the plan does not explain.
///
/// # Errors
/// What was found; the statement is then refused.
pub(crate) fn recheck(
    governed: &Governed,
    facts: &StatementFacts,
    plan: &Plan,
    view: CatalogView<'_>,
) -> Result<(), String> {
    let parsed = sql_facts::parse(&governed.text)
        .map_err(|error| format!("the governed text does not parse: {error}"))?;
    let [statement] = parsed.statements.as_slice() else {
        return Err("the governed text is not one statement".to_owned());
    };
    let again = sql_facts::read(statement, view)
        .map_err(|error| format!("the governed text cannot be read: {error}"))?;
    compare(governed, facts, &again, plan, view)
}

/// The comparison itself, on facts alone.
pub(crate) fn compare(
    governed: &Governed,
    facts: &StatementFacts,
    again: &StatementFacts,
    plan: &Plan,
    view: CatalogView<'_>,
) -> Result<(), String> {
    let mut check = Check {
        governed,
        again,
        plan,
        view,
        printed: BTreeMap::new(),
    };
    check.same_relations(facts)?;
    for used in &again.column_uses {
        check.column_use(used)?;
    }
    check.ranges()?;
    check.filters()?;
    check.wire_masks()
}

struct Check<'a> {
    governed: &'a Governed,
    again: &'a StatementFacts,
    plan: &'a Plan,
    view: CatalogView<'a>,
    /// Expressions that were printed already.
    printed: BTreeMap<String, String>,
}

impl<'a> Check<'a> {
    fn planned(&self, oid: Oid) -> Option<(&'a Relation, &'a RelationPlan)> {
        Some((self.view.relation(oid)?, self.plan.relations.get(&oid)?))
    }

    fn range_plan(&self, range: usize) -> Option<(&'a Relation, &'a RelationPlan)> {
        self.planned(self.again.ranges.get(range)?.relation)
    }

    /// It touches what the client's text touched, in no more ways.
    fn same_relations(&self, facts: &StatementFacts) -> Result<(), String> {
        let done = |facts: &StatementFacts| -> BTreeSet<(Action, Oid)> {
            let actions = facts.actions.iter();
            actions
                .filter_map(|action| Some((action.action, action.relation?)))
                .collect()
        };
        let mut before = done(facts);
        // Masks and filters read what is written to; types of masks are casts, which read nothing.
        for (action, relation) in before.clone() {
            if action != Action::Select && self.plan.relations.contains_key(&relation) {
                before.insert((Action::Select, relation));
            }
        }
        match done(self.again).into_iter().find(|one| !before.contains(one)) {
            Some((action, relation)) => Err(format!(
                "the governed text does {action:?} on relation {relation}, the client's does not"
            )),
            None => Ok(()),
        }
    }

    /// One reference to a column.
    fn column_use(&mut self, used: &ColumnUse) -> Result<(), String> {
        let (range, column) = match &used.target {
            RefTarget::Column { range, column } => (*range, *column),
            RefTarget::WholeRow { range } => {
                return match self.range_plan(*range) {
                    Some((relation, plan)) if !plan.masks.is_empty() => Err(format!(
                        "a whole row of {} stands in the governed text",
                        relation.name
                    )),
                    _ => Ok(()),
                };
            }
            RefTarget::Star { ranges } => {
                let governed = ranges.iter().find_map(|range| self.range_plan(*range));
                return match governed {
                    Some((relation, _)) => Err(format!(
                        "a star over {} stands in the governed text",
                        relation.name
                    )),
                    None => Ok(()),
                };
            }
            RefTarget::Derived | RefTarget::Excluded => return Ok(()),
        };
        let Some((relation, plan)) = self.range_plan(range) else {
            return Ok(());
        };
        match plan.masks.get(&column) {
            Some(ColumnMask::Sql(mask)) => {
                let written = self.written(used)?;
                let expression = self.print(&mask.expression(&written))?;
                let found = relation
                    .column_by_number(column)
                    .ok_or_else(|| format!("{} has no column {column}", relation.name))?;
                let in_place = self.print(&mask.expression_in_place(&written, &found.column_type))?;
                let explained = self.stands_in(used, &expression)
                    || self.stands_in(used, &in_place)
                    || self.in_filter(used, relation, plan, &written)?
                    || self.keeps_stored(used, &written, &in_place)
                    || self.in_row_check(used, &written);
                if explained {
                    return Ok(());
                }
                Err(format!(
                    "{}.{} stands outside of its mask in the governed text",
                    relation.name, found.name
                ))
            }
            // Where it goes is followed by lineage: see `wire_masks`.
            Some(ColumnMask::Wire(_)) | None => Ok(()),
        }
    }

    /// The reference as the text has it.
    fn written(&self, used: &ColumnUse) -> Result<String, String> {
        let rest = usize::try_from(used.location)
            .ok()
            .and_then(|at| self.governed.text.get(at..));
        let rest = rest.ok_or("a reference has no place in the governed text")?;
        let mut end = 0;
        for part in 0..used.parts {
            if part > 0 {
                end += 1;
            }
            let from = rest.get(end..).unwrap_or_default();
            end += if from.starts_with('"') {
                let mut length = 1;
                loop {
                    let next = from.get(length..).and_then(|tail| tail.find('"'));
                    length += next.ok_or("a name does not end")? + 1;
                    if !from.get(length..).is_some_and(|tail| tail.starts_with('"')) {
                        break;
                    }
                    length += 1;
                }
                length
            } else {
                let word = |letter: char| letter.is_alphanumeric() || letter == '_' || letter == '$';
                from.find(|letter| !word(letter)).unwrap_or(from.len())
            };
        }
        rest.get(..end)
            .map(str::to_owned)
            .ok_or_else(|| "a reference is cut".to_owned())
    }

    /// An expression as governed texts are printed.
    fn print(&mut self, expression: &str) -> Result<String, String> {
        if let Some(known) = self.printed.get(expression) {
            return Ok(known.clone());
        }
        let text = format!("SELECT {expression}");
        let printed = sql_facts::print(&text).map_err(|error| error.to_string())?;
        let printed = printed.strip_prefix("SELECT ").unwrap_or(&printed).to_owned();
        self.printed.insert(expression.to_owned(), printed.clone());
        Ok(printed)
    }

    /// The reference is part of an occurrence of that text.
    fn stands_in(&self, used: &ColumnUse, piece: &str) -> bool {
        let Ok(at) = usize::try_from(used.location) else {
            return false;
        };
        if piece.is_empty() {
            return false;
        }
        // An occurrence that holds the place starts at most its own length before it.
        let mut from = at.saturating_sub(piece.len());
        while !self.governed.text.is_char_boundary(from) {
            from += 1;
        }
        let window = self.governed.text.get(from..).unwrap_or_default();
        window
            .match_indices(piece)
            .map(|(start, _)| from + start)
            .take_while(|start| *start <= at)
            .any(|start| at < start + piece.len())
    }

    fn before_and_after(&self, used: &ColumnUse, written: &str) -> (&str, &str) {
        let at = usize::try_from(used.location).unwrap_or(0);
        let before = self.governed.text.get(..at).unwrap_or_default();
        let after = self.governed.text.get(at + written.len()..).unwrap_or_default();
        (before, after)
    }

    /// Filters see the stored values.
    fn in_filter(
        &mut self,
        used: &ColumnUse,
        relation: &Relation,
        plan: &RelationPlan,
        written: &str,
    ) -> Result<bool, String> {
        let qualifier = qualifier(written)?;
        for filter in &plan.filters {
            let predicate = sql_facts::print_filter(relation, filter, qualifier.as_deref())
                .map_err(|error| error.to_string())?;
            let predicate = self.print(&predicate)?;
            if self.stands_in(used, &predicate) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// `SET c = CASE WHEN (new = mask) … OR (new IS NULL AND mask IS NULL) THEN c ELSE new END`: what is stored stays.
    fn keeps_stored(&self, used: &ColumnUse, written: &str, mask: &str) -> bool {
        let (before, after) = self.before_and_after(used, written);
        used.clause == Clause::Set
            && before.ends_with(&format!("{mask} IS NULL) THEN "))
            && after.starts_with(" ELSE ")
    }

    /// `left(coalesce(c::text, ''), 0)`: depends on the row and repeats nothing of it.
    fn in_row_check(&self, used: &ColumnUse, written: &str) -> bool {
        let (before, after) = self.before_and_after(used, written);
        before.ends_with("('WEIR-CHECK' OPERATOR(pg_catalog.||) pg_catalog.\"left\"(COALESCE(")
            && after.starts_with("::pg_catalog.text, ''), 0))::")
    }

    /// No mention of a governed relation is read in a way that no reference shows.
    fn ranges(&self) -> Result<(), String> {
        for (index, range) in self.again.ranges.iter().enumerate() {
            let Some((relation, plan)) = self.planned(range.relation) else {
                continue;
            };
            if plan.masks.is_empty() {
                continue;
            }
            let reads = match range.role {
                RangeRole::Source | RangeRole::CopyToSource => true,
                RangeRole::InsertTarget
                | RangeRole::UpdateTarget
                | RangeRole::DeleteTarget
                | RangeRole::MergeTarget
                | RangeRole::CopyFromTarget => false,
            };
            if range.role == RangeRole::CopyToSource || (reads && range.needs_all_columns) {
                return Err(format!("all of {} is read in the governed text", relation.name));
            }
            let referenced: BTreeSet<AttNum> = self
                .again
                .column_uses
                .iter()
                .filter_map(|used| match &used.target {
                    RefTarget::Column { range, column } if *range == index => Some(*column),
                    _ => None,
                })
                .collect();
            let unseen = range
                .used_columns
                .iter()
                .find(|column| reads && plan.masks.contains_key(column) && !referenced.contains(column));
            if let Some(column) = unseen {
                return Err(format!(
                    "column {column} of {} is read without a reference",
                    relation.name
                ));
            }
        }
        Ok(())
    }

    /// Each mention of a filtered relation has its filters. Where it is read they are the whole WHERE of the
    /// sub-select around it.
    fn filters(&mut self) -> Result<(), String> {
        let mut needed: BTreeMap<String, (usize, String)> = BTreeMap::new();
        // A mention that is resolved more than once (in a recursive query) is one place in the text.
        let ranges: BTreeMap<i32, _> = self
            .again
            .ranges
            .iter()
            .map(|range| (range.location, range))
            .collect();
        for range in ranges.into_values() {
            let Some((relation, plan)) = self.planned(range.relation) else {
                continue;
            };
            let Some(first) = plan.filters.first() else {
                continue;
            };
            let copied = range.role == RangeRole::CopyFromTarget;
            let qualifier = (!copied).then_some(range.reference_name.as_str());
            let mut predicates = Vec::new();
            for filter in &plan.filters {
                let predicate = sql_facts::print_filter(relation, filter, qualifier);
                predicates.push(predicate.map_err(|error| error.to_string())?);
            }
            let source = matches!(range.role, RangeRole::Source | RangeRole::CopyToSource);
            if source {
                let all = self.print(&format!("1 WHERE {}", predicates.join(" AND ")))?;
                let all = all.strip_prefix("1 ").unwrap_or(&all);
                needed
                    .entry(format!("{all})"))
                    .or_insert_with(|| (0, first.rule.clone()))
                    .0 += 1;
            } else {
                for (predicate, filter) in predicates.iter().zip(&plan.filters) {
                    let predicate = self.print(predicate)?;
                    needed
                        .entry(predicate)
                        .or_insert_with(|| (0, filter.rule.clone()))
                        .0 += 1;
                }
            }
        }
        for (predicate, (times, rule)) in needed {
            let mut found = self.governed.text.matches(predicate.as_str()).count();
            if let Some(all) = predicate
                .strip_prefix("WHERE ")
                .and_then(|all| all.strip_suffix(')'))
            {
                // Where an outer condition must not sink into the sub-select.
                found += self
                    .governed
                    .text
                    .matches(format!("WHERE {all} OFFSET 0)").as_str())
                    .count();
            }
            if found < times {
                return Err(format!("the governed text misses the row filter {rule}"));
            }
        }
        Ok(())
    }

    /// Columns whose mask is made on the wire go to the result as they are, in the cells that are masked there, and
    /// nowhere else.
    fn wire_masks(&self) -> Result<(), String> {
        let wired: BTreeSet<(Oid, AttNum)> = self
            .plan
            .relations
            .iter()
            .flat_map(|(oid, plan)| {
                let masks = plan.masks.iter();
                masks.filter_map(|(column, mask)| {
                    matches!(mask, ColumnMask::Wire(_)).then_some((*oid, *column))
                })
            })
            .collect();
        if wired.is_empty() {
            return Ok(());
        }
        let is_wired = |column: &sql_facts::facts::ColumnId| {
            wired.contains(&(column.relation, column.column))
                || (column.column == 0 && wired.iter().any(|(oid, _)| *oid == column.relation))
        };
        if self.again.indirect.iter().any(|source| is_wired(&source.column)) {
            return Err("a column whose token is made on the wire decides which rows come out".to_owned());
        }
        let mut place = 0;
        for output in &self.again.output {
            let raw = output
                .sources
                .iter()
                .filter(|source| is_wired(&source.column))
                .count();
            if output.target.is_some() {
                if raw > 0 {
                    return Err("a column whose token is made on the wire is stored".to_owned());
                }
                continue;
            }
            let plain = output
                .sources
                .iter()
                .all(|source| source.transformation == Transformation::Identity && source.column.column != 0);
            if raw > 0
                && !(plain && raw == output.sources.len() && self.governed.wire_masks.contains_key(&place))
            {
                return Err(format!(
                    "result column {} would leave without its token",
                    output.name
                ));
            }
            place += 1;
        }
        let stored = matches!(
            self.again.kind,
            StatementKind::CreateTableAs
                | StatementKind::CreateView
                | StatementKind::CopyTo(_)
                | StatementKind::Declare { hold: true, .. }
        );
        let any = self
            .again
            .output
            .iter()
            .flat_map(|output| &output.sources)
            .any(|source| is_wired(&source.column));
        if any && stored {
            return Err("a column whose token is made on the wire would be stored".to_owned());
        }
        Ok(())
    }
}

/// The part before the last dot, without quotes.
fn qualifier(written: &str) -> Result<Option<String>, String> {
    let mut parts = names::identifiers(written)?;
    parts.pop();
    Ok(parts.pop())
}
