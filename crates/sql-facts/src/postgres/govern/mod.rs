//! `govern`: the text that is sent instead of the client's, so that masked values and hidden rows never exist for it.
//!
//! ```text
//!  client's tree ─► scan (guards, stars, names) ─┐
//!  facts, plan ────► sites, pieces of SQL ───────┴► rewrite a copy ─► print ─► parse again, prove equal, map places
//! ```
//!
//! A governed relation in FROM becomes a sub-select that holds masks and filters; a governed target of a write keeps
//! its place and gets them in place. Nodes are found by their place in the text, which the facts give too. Whatever
//! mention of a governed relation is left at the end is an error.

mod brackets;
mod colname;
mod group;
mod names;
mod proof;
mod rewrite;
mod scan;
mod sites;
mod workshop;
mod writes;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use pg_raw_parse::Node;

use self::rewrite::Rewriter;
use self::scan::Scanner;
use self::sites::Sites;
use super::ParsedStatement;
use crate::catalog::{CatalogView, Relation};
use crate::facts::{
    Call, CallSyntax, ColumnUse, RangeRole, RangeUse, RefTarget, StatementFacts, StatementKind,
};
use crate::plan::{CannotGovern, Governed, Plan, RelationPlan};

/// The text to send instead, printed from the tree (governing note).
///
/// # Errors
/// [`CannotGovern`], with the reason for the refusal.
pub fn govern(
    statement: &ParsedStatement,
    facts: &StatementFacts,
    plan: &Plan,
    view: CatalogView<'_>,
) -> Result<Governed, CannotGovern> {
    let job = Job::new(statement, facts, plan, view)?;
    if job.governed().next().is_none() {
        return Ok(unchanged(statement));
    }
    let node = statement.node();
    refuse_what_cannot_be(&job, node)?;
    let scan = Scanner::run(&job, node)?;
    let sites = Sites::plan(&job, node, scan)?;
    let (tree, outcome) = Rewriter::run(&job, sites, node)?;
    let text = brackets::print(&tree, &statement.text)?;
    let positions = proof::prove(&tree, &text, &outcome.windows)?;
    // EXPLAIN answers with lines of its own, whatever the statement in it would.
    let explains = matches!(facts.kind, StatementKind::Explain { .. });
    Ok(Governed {
        text,
        positions,
        strip: if explains { Vec::new() } else { outcome.strip },
        wire_masks: if explains {
            BTreeMap::new()
        } else {
            outcome.wire_masks
        },
        check_rule: outcome.check_rule,
        count_as: outcome.count_as.filter(|_| !explains),
    })
}

fn unchanged(statement: &ParsedStatement) -> Governed {
    Governed {
        text: statement.sql().to_owned(),
        positions: vec![(0, statement.span.start)],
        strip: Vec::new(),
        wire_masks: BTreeMap::new(),
        check_rule: None,
        count_as: None,
    }
}

/// EXPLAIN of a filtered table shows counts of hidden rows; a few statements cannot be governed at all.
fn refuse_what_cannot_be(job: &Job<'_>, node: Node<'_>) -> Result<(), CannotGovern> {
    if let StatementKind::Explain { analyze: true } = job.facts.kind
        && job.governed().any(|(index, _)| job.filtered(index))
    {
        return Err(CannotGovern::Impossible(
            "EXPLAIN ANALYZE counts rows that a row filter hides; use EXPLAIN without ANALYZE".to_owned(),
        ));
    }
    if let Node::CopyStmt(copy) = node {
        copy_options(copy)?;
    }
    match node {
        Node::SelectStmt(_)
        | Node::InsertStmt(_)
        | Node::UpdateStmt(_)
        | Node::DeleteStmt(_)
        | Node::MergeStmt(_)
        | Node::CopyStmt(_)
        | Node::ExplainStmt(_)
        | Node::PrepareStmt(_)
        | Node::DeclareCursorStmt(_)
        | Node::CreateTableAsStmt(_)
        | Node::ViewStmt(_) => Ok(()),
        _ => Err(CannotGovern::NotBuilt(
            "this kind of statement on a governed table".to_owned(),
        )),
    }
}

/// The printer takes the value of an option of COPY for what it usually is, without looking: a text that is none is a
/// pointer to nowhere. The grammar takes anything; the server would refuse these too.
fn copy_options(copy: &pg_raw_parse::nodes::CopyStmt) -> Result<(), CannotGovern> {
    let name = |text: &str| {
        text.chars()
            .all(|letter| letter.is_ascii_alphanumeric() || letter == '_')
    };
    for option in copy.options() {
        let fits = match (option.defname().unwrap_or_default(), option.arg()) {
            ("format" | "delimiter" | "null" | "quote" | "escape" | "encoding", Node::String(text)) => {
                text.sval().is_some()
            }
            ("format" | "delimiter" | "null" | "quote" | "escape" | "encoding", _) => false,
            ("freeze" | "header", Node::None | Node::Integer(_) | Node::Boolean(_)) => true,
            // Printed as it is.
            ("freeze" | "header", Node::String(text)) => text.sval().is_some_and(name),
            ("freeze" | "header", _) => false,
            ("force_quote" | "force_not_null" | "force_null", Node::A_Star(_)) => true,
            ("force_quote" | "force_not_null" | "force_null", Node::NodeList(names)) => strings(names),
            ("force_quote" | "force_not_null" | "force_null", _) => false,
            (_, Node::NodeList(words)) => strings(words),
            (_, Node::None | Node::String(_) | Node::Integer(_) | Node::Float(_) | Node::A_Star(_)) => true,
            (_, _) => false,
        };
        if !fits {
            return Err(CannotGovern::Impossible(format!(
                "COPY's option {} has no value of its kind; correct the option",
                option.defname().unwrap_or_default()
            )));
        }
    }
    Ok(())
}

fn strings(nodes: &pg_raw_parse::list::NodeList) -> bool {
    nodes.iter().all(|node| matches!(node, Node::String(_)))
}

/// What everything here looks things up in.
struct Job<'a> {
    statement: &'a ParsedStatement,
    facts: &'a StatementFacts,
    plan: &'a Plan,
    view: CatalogView<'a>,
    ranges: HashMap<i32, usize>,
    uses: HashMap<i32, usize>,
    calls: HashMap<(u8, i32), Vec<usize>>,
}

impl<'a> Job<'a> {
    fn new(
        statement: &'a ParsedStatement,
        facts: &'a StatementFacts,
        plan: &'a Plan,
        view: CatalogView<'a>,
    ) -> Result<Self, CannotGovern> {
        let mut ranges = HashMap::new();
        for (index, range) in facts.ranges.iter().enumerate() {
            if ranges.insert(range.location, index).is_some() {
                return Err(CannotGovern::Impossible(
                    "two tables stand in the same place".to_owned(),
                ));
            }
        }
        let mut calls: HashMap<(u8, i32), Vec<usize>> = HashMap::new();
        for (index, call) in facts.calls.iter().enumerate() {
            calls
                .entry(scan::key(call.syntax, call.location))
                .or_default()
                .push(index);
        }
        let uses = facts
            .column_uses
            .iter()
            .enumerate()
            .map(|(index, used)| (used.location, index))
            .collect();
        Ok(Self {
            statement,
            facts,
            plan,
            view,
            ranges,
            uses,
            calls,
        })
    }

    fn range(&self, index: usize) -> Option<&'a RangeUse> {
        self.facts.ranges.get(index)
    }

    fn range_at(&self, location: i32) -> Option<usize> {
        self.ranges.get(&location).copied()
    }

    fn relation(&self, index: usize) -> Result<&'a Relation, CannotGovern> {
        let oid = self.range(index).map(|range| range.relation).unwrap_or_default();
        self.view
            .relation(oid)
            .ok_or_else(|| CannotGovern::Impossible(format!("the catalog has no relation with OID {oid}")))
    }

    /// The plan of a range's relation, where it says anything.
    fn plan_of(&self, index: usize) -> Option<&'a RelationPlan> {
        let plan = self.plan.relations.get(&self.range(index)?.relation)?;
        (!plan.masks.is_empty() || !plan.filters.is_empty()).then_some(plan)
    }

    /// Every mention of a governed relation.
    fn governed(&self) -> impl Iterator<Item = (usize, &'a RelationPlan)> + '_ {
        (0..self.facts.ranges.len()).filter_map(|index| Some((index, self.plan_of(index)?)))
    }

    fn filtered(&self, index: usize) -> bool {
        self.plan_of(index).is_some_and(|plan| !plan.filters.is_empty())
    }

    fn filtered_source(&self, index: usize) -> bool {
        self.filtered(index)
            && self
                .range(index)
                .is_some_and(|range| range.role == RangeRole::Source)
    }

    fn used_at(&self, location: i32) -> Option<&'a ColumnUse> {
        self.facts.column_uses.get(*self.uses.get(&location)?)
    }

    fn target(&self, location: i32) -> Option<&'a RefTarget> {
        self.used_at(location).map(|used| &used.target)
    }

    fn calls_at(&self, syntax: CallSyntax, location: i32) -> Vec<&'a Call> {
        let found = self.calls.get(&scan::key(syntax, location));
        found
            .into_iter()
            .flatten()
            .filter_map(|index| self.facts.calls.get(*index))
            .collect()
    }

    /// A call that the facts do not name is not quiet.
    fn is_quiet(&self, syntax: CallSyntax, location: i32) -> bool {
        let calls = self.calls_at(syntax, location);
        !calls.is_empty() && calls.iter().all(|call| call.quiet)
    }

    fn is_aggregate(&self, location: i32) -> bool {
        self.calls_at(CallSyntax::Function, location)
            .iter()
            .any(|call| call.aggregate)
    }

    fn is_volatile(&self, location: i32) -> bool {
        self.facts
            .calls
            .iter()
            .any(|call| call.location == location && scan::changes_or_varies(call.class, &call.name))
    }

    /// All indices of governed ranges that have not been dealt with.
    fn left_over(&self, handled: &BTreeSet<usize>) -> Option<&'a RangeUse> {
        let left = self
            .governed()
            .map(|(index, _)| index)
            .find(|index| !handled.contains(index))?;
        self.range(left)
    }
}

/// One of our own texts as governed texts are printed, for whoever looks for a piece of it in one.
///
/// # Errors
/// [`CannotGovern`] where it does not parse or print.
pub fn print(text: &str) -> Result<String, CannotGovern> {
    let trouble = |what: &str| CannotGovern::Impossible(format!("a piece of SQL cannot be printed: {what}"));
    let parsed = pg_raw_parse::parse(text).map_err(|error| trouble(&error.to_string()))?;
    let mut statements = parsed.iter();
    match (statements.next(), statements.next()) {
        (Some(statement), None) => brackets::print(statement, text),
        _ => Err(trouble("it is not one statement")),
    }
}

/// A row filter's condition as `govern` writes it, over columns with that qualifier.
///
/// # Errors
/// [`CannotGovern`] where the predicate cannot be used on that relation.
pub fn print_filter(
    relation: &Relation,
    filter: &crate::plan::RowFilter,
    qualifier: Option<&str>,
) -> Result<String, CannotGovern> {
    names::predicate(relation, filter, qualifier)
}
