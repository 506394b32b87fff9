//! One walk over the client's tree, before anything is changed: which calls need a guard, which stars can be written
//! out, which names result columns have.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use pg_raw_parse::nodes::{
    A_Expr, A_Expr_Kind, DeleteStmt, InsertStmt, MergeStmt, ResTarget, ReturningClause, SelectStmt,
    SetOperation, UpdateStmt, WithClause,
};
use pg_raw_parse::walk::{Recurse, walk, walk_manual};
use pg_raw_parse::{Node, nodes};

use super::Job;
use super::colname::{self, ColumnName};
use super::names::deparse_alone;
use crate::facts::{CallSyntax, FunctionClass, RangeRole, RefTarget};
use crate::plan::CannotGovern;

/// Deeper trees are refused; `parse` has refused them before.
const DEPTH_MAX: usize = 10_000;

/// How a call on hidden rows is prevented.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Guard {
    /// Runs only where these ranges' filters hold.
    Filter(BTreeSet<usize>),
    /// Over group keys: held above the grouping.
    Grouped,
    /// LIKE with a pattern that reads no column: the pattern is made harmless.
    Pattern,
}

/// One item that `*` stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum StarItem {
    /// A relation, by its index in the facts.
    Range(usize),
    /// Another FROM item, by its alias.
    Named(String),
}

/// What the walk found.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// By the place of a target without AS: its column's name.
    pub(super) names: HashMap<i32, ColumnName>,
    /// By call.
    pub(super) guards: BTreeMap<(u8, i32), Guard>,
    /// Ranges that need an optimization barrier, because a guard cannot be written.
    pub(super) barrier: BTreeSet<usize>,
    /// By the place of a star that is a whole target: what it stands for, where that can be written.
    pub(super) stars: HashMap<i32, Option<Vec<StarItem>>>,
    /// Whole rows that keep their type without a cast.
    pub(super) bare_rows: HashSet<i32>,
    /// The statement locks rows.
    pub(super) locks_rows: bool,
    /// A NATURAL join.
    pub(super) natural: bool,
    /// Names in USING.
    pub(super) using: BTreeSet<String>,
    /// Ranges that an alias of a join hides.
    pub(super) hidden: BTreeSet<usize>,
    /// Ranges inside sub-selects and CTEs.
    pub(super) nested: BTreeSet<usize>,
}

/// The kinds of calls as a key.
pub(super) fn key(syntax: CallSyntax, location: i32) -> (u8, i32) {
    (
        match syntax {
            CallSyntax::Function => 0,
            CallSyntax::Operator => 1,
            CallSyntax::Cast => 2,
        },
        location,
    )
}

/// What a call may do where it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Area {
    /// Runs after the filter whatever the planner does, or is guarded already.
    Free,
    /// May be run before the filter.
    Open,
    /// The same, over the keys of a grouped query.
    Grouped,
    /// Held above the grouping already: only copies of keys are still guarded as the keys are.
    Held,
    /// The same, where a CASE would take away what the server needs (FULL JOIN must be hashable): a barrier instead.
    Bare,
}

pub(super) struct Scanner<'a> {
    job: &'a Job<'a>,
    out: Scan,
    levels: Vec<Vec<usize>>,
    depth: usize,
    select_depth: usize,
    derived_read: bool,
    /// Guarded calls of this query's grouping keys, by their text.
    key_calls: Option<BTreeMap<String, Guard>>,
    /// The same while the keys are looked at.
    collecting: Option<BTreeMap<String, Guard>>,
}

impl<'a> Scanner<'a> {
    pub(super) fn run(job: &'a Job<'a>, node: Node<'_>) -> Result<Scan, CannotGovern> {
        let mut scanner = Self {
            job,
            out: Scan::default(),
            levels: Vec::new(),
            depth: 0,
            select_depth: 0,
            derived_read: false,
            key_calls: None,
            collecting: None,
        };
        scanner.statement(node, true)?;
        // A non-quiet call reads something that a sub-select made: it could sink into it, so nothing may.
        let nested: Vec<usize> = scanner
            .out
            .nested
            .iter()
            .chain(&scanner.out.hidden)
            .copied()
            .collect();
        if scanner.derived_read {
            scanner
                .out
                .barrier
                .extend(nested.into_iter().filter(|range| job.filtered_source(*range)));
        }
        Ok(scanner.out)
    }

    fn statement(&mut self, node: Node<'_>, outer: bool) -> Result<(), CannotGovern> {
        match node {
            Node::SelectStmt(select) => self.select(select, outer),
            Node::InsertStmt(insert) => self.insert(insert),
            Node::UpdateStmt(update) => self.update(update),
            Node::DeleteStmt(delete) => self.delete(delete),
            Node::MergeStmt(merge) => self.merge(merge),
            Node::ExplainStmt(explain) => self.statement(explain.query(), outer),
            Node::PrepareStmt(prepare) => self.statement(prepare.query(), outer),
            Node::DeclareCursorStmt(declare) => self.statement(declare.query(), outer),
            Node::CreateTableAsStmt(create) => self.statement(create.query(), outer),
            // Whoever queries the view adds predicates: nothing in it is outermost.
            Node::ViewStmt(view) => self.statement(view.query(), false),
            Node::CopyStmt(copy) => match copy.query() {
                Node::None => Ok(()),
                query => self.statement(query, outer),
            },
            _ => Err(CannotGovern::NotBuilt(
                "this kind of statement on a governed table".to_owned(),
            )),
        }
    }

    fn deeper(&mut self) -> Result<(), CannotGovern> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(CannotGovern::Impossible(
                "the statement is nested too deep".to_owned(),
            ));
        }
        Ok(())
    }

    fn with(&mut self, with: Option<&WithClause>) -> Result<(), CannotGovern> {
        let Some(with) = with else { return Ok(()) };
        self.select_depth += 1;
        for cte in with.ctes() {
            self.statement(cte.ctequery(), false)?;
        }
        self.select_depth -= 1;
        Ok(())
    }

    fn select(&mut self, select: &SelectStmt, outer: bool) -> Result<(), CannotGovern> {
        self.deeper()?;
        self.with(select.with_clause())?;
        if !select.locking_clause().is_empty() {
            self.out.locks_rows = true;
        }
        if select.op != SetOperation::SETOP_NONE {
            for side in [select.larg(), select.rarg()].into_iter().flatten() {
                self.select(side, outer)?;
            }
            for sort in select.sort_clause() {
                self.expression(sort.node(), Area::Free)?;
            }
            self.depth -= 1;
            return Ok(());
        }
        self.levels.push(Vec::new());
        let collecting = self.collecting.take();
        let mut items = Some(Vec::new());
        for item in select.from_clause() {
            self.item(item, false, &mut items)?;
        }
        let grouped = !select.group_clause().is_empty()
            || !matches!(select.having_clause(), Node::None)
            || select
                .target_list()
                .iter()
                .any(|target| self.holds_aggregate(target.val()));
        let output = match (outer, grouped) {
            (true, _) => Area::Free,
            (false, true) => Area::Grouped,
            (false, false) => Area::Open,
        };
        let outside = self.key_calls.take();
        let keys = key_targets(self.job, select);
        if output == Area::Grouped {
            self.keys(select, &keys, items.as_deref())?;
        } else {
            for item in select.group_clause() {
                self.expression(item, Area::Free)?;
            }
        }
        for (place, target) in select.target_list().iter().enumerate() {
            if output != Area::Grouped || !keys.contains(&place) {
                self.target(target, items.as_deref(), output)?;
            }
        }
        for row in select.values_lists() {
            self.expression(row, output)?;
        }
        self.expression(select.where_clause(), Area::Open)?;
        self.expression(select.having_clause(), Area::Grouped)?;
        for item in select.distinct_clause() {
            self.expression(item, output)?;
        }
        for item in select.window_clause() {
            self.expression(item, Area::Free)?;
        }
        for sort in select.sort_clause() {
            self.expression(sort.node(), output)?;
        }
        self.expression(select.limit_count(), Area::Free)?;
        self.expression(select.limit_offset(), Area::Free)?;
        self.key_calls = outside;
        self.collecting = collecting;
        self.levels.pop();
        self.depth -= 1;
        Ok(())
    }

    /// The grouping keys of an inner query. A guard in one must stand alike in each copy of it, or the copies would
    /// not be the key any more: which calls were guarded is kept for the rest of the query.
    fn keys(
        &mut self,
        select: &SelectStmt,
        targets: &BTreeSet<usize>,
        items: Option<&[StarItem]>,
    ) -> Result<(), CannotGovern> {
        self.collecting = Some(BTreeMap::new());
        for item in select.group_clause() {
            self.expression(item, Area::Open)?;
        }
        for (place, target) in select.target_list().iter().enumerate() {
            if targets.contains(&place) {
                self.target(target, items, Area::Open)?;
            }
        }
        self.key_calls = self.collecting.take();
        Ok(())
    }

    fn target(
        &mut self,
        target: &ResTarget,
        items: Option<&[StarItem]>,
        area: Area,
    ) -> Result<(), CannotGovern> {
        if target.name().is_none() {
            self.out.names.insert(target.location, colname::of_target(target));
        }
        if let Node::ColumnRef(reference) = target.val()
            && let Some(RefTarget::Star { ranges }) = self.job.target(reference.location)
        {
            let items = if reference.fields().len() > 1 {
                match ranges.as_slice() {
                    [range] => Some(vec![StarItem::Range(*range)]),
                    _ => None,
                }
            } else {
                items.map(<[StarItem]>::to_vec)
            };
            self.out.stars.insert(reference.location, items);
        }
        self.expression(target.val(), area)
    }

    fn item(
        &mut self,
        node: Node<'_>,
        hidden: bool,
        items: &mut Option<Vec<StarItem>>,
    ) -> Result<(), CannotGovern> {
        self.deeper()?;
        let item = match node {
            Node::RangeVar(range) => match self.job.range_at(range.location) {
                Some(index) => {
                    if let Some(level) = self.levels.last_mut() {
                        level.push(index);
                    }
                    if hidden {
                        self.out.hidden.insert(index);
                    }
                    if self.select_depth > 0 || self.levels.len() > 1 {
                        self.out.nested.insert(index);
                    }
                    Some(StarItem::Range(index))
                }
                None => {
                    let alias = range
                        .alias()
                        .and_then(|alias| alias.aliasname())
                        .or(range.relname());
                    alias.map(|alias| StarItem::Named(alias.to_owned()))
                }
            },
            Node::RangeTableSample(sample) => {
                self.expressions(sample.args(), Area::Free)?;
                self.expression(sample.repeatable(), Area::Free)?;
                self.item(sample.relation(), hidden, items)?;
                self.depth -= 1;
                return Ok(());
            }
            Node::RangeSubselect(sub) => {
                self.select_depth += 1;
                if let Node::SelectStmt(select) = sub.subquery() {
                    self.select(select, false)?;
                }
                self.select_depth -= 1;
                sub.alias()
                    .and_then(|alias| alias.aliasname())
                    .map(|alias| StarItem::Named(alias.to_owned()))
            }
            Node::JoinExpr(join) => {
                let aliased = join.alias().and_then(|alias| alias.aliasname());
                let mut below = Some(Vec::new());
                self.item(join.larg(), hidden || aliased.is_some(), &mut below)?;
                self.item(join.rarg(), hidden || aliased.is_some(), &mut below)?;
                let full = join.jointype == nodes::JoinType::JOIN_FULL;
                self.expression(join.quals(), if full { Area::Bare } else { Area::Open })?;
                if join.is_natural || !join.using_clause().is_empty() {
                    self.out.natural |= join.is_natural;
                    self.out.using.extend(
                        join.using_clause()
                            .iter()
                            .filter_map(|name| name.sval().map(str::to_owned)),
                    );
                    below = None;
                }
                match (aliased, items.as_mut(), below) {
                    (Some(alias), Some(items), _) => items.push(StarItem::Named(alias.to_owned())),
                    (None, Some(items), Some(below)) => items.extend(below),
                    _ => *items = None,
                }
                self.depth -= 1;
                return Ok(());
            }
            Node::RangeFunction(function) => {
                self.expressions(function.functions(), Area::Free)?;
                function
                    .alias()
                    .and_then(|alias| alias.aliasname())
                    .map(|alias| StarItem::Named(alias.to_owned()))
            }
            Node::RangeTableFunc(table) => {
                self.children(node, Area::Free)?;
                table
                    .alias()
                    .and_then(|alias| alias.aliasname())
                    .map(|alias| StarItem::Named(alias.to_owned()))
            }
            Node::JsonTable(table) => {
                self.children(node, Area::Free)?;
                table
                    .alias()
                    .and_then(|alias| alias.aliasname())
                    .map(|alias| StarItem::Named(alias.to_owned()))
            }
            _ => return Err(CannotGovern::NotBuilt("this kind of FROM item".to_owned())),
        };
        match (item, items.as_mut()) {
            (Some(item), Some(items)) => items.push(item),
            _ => *items = None,
        }
        self.depth -= 1;
        Ok(())
    }

    fn expressions(&mut self, list: &pg_raw_parse::list::NodeList, area: Area) -> Result<(), CannotGovern> {
        for node in list {
            self.expression(node, area)?;
        }
        Ok(())
    }

    fn children(&mut self, node: Node<'_>, area: Area) -> Result<(), CannotGovern> {
        let mut result = Ok(());
        walk_manual::<()>(node, |child| {
            if result.is_ok() {
                result = self.expression(child, area);
            }
            Recurse::no()
        });
        result
    }

    fn expression(&mut self, node: Node<'_>, area: Area) -> Result<(), CannotGovern> {
        if matches!(
            node,
            Node::None | Node::A_Const(_) | Node::ParamRef(_) | Node::ColumnRef(_) | Node::String(_)
        ) {
            return Ok(());
        }
        self.deeper()?;
        let mut below = area;
        match node {
            Node::SelectStmt(select) => {
                self.select(select, false)?;
                self.depth -= 1;
                return Ok(());
            }
            Node::TypeCast(cast) => {
                self.bare_row(cast.arg());
                below = self.call(node, CallSyntax::Cast, cast.location, area);
            }
            Node::A_Indirection(indirection) => self.bare_row(indirection.arg()),
            Node::NullTest(test) => self.bare_row(test.arg()),
            Node::FuncCall(call) => {
                if self.job.is_aggregate(call.location) && call.over().is_none() {
                    below = Area::Free;
                } else {
                    below = self.call(node, CallSyntax::Function, call.location, area);
                }
            }
            Node::A_Expr(expr) => below = self.operator(node, expr, area),
            Node::SubLink(link)
                if !matches!(link.testexpr(), Node::None)
                // The operator of `x op ANY (SELECT …)` cannot be wrapped alone.
                && area != Area::Free
                    && !self.job.is_quiet(CallSyntax::Operator, link.location)
                    && !self.job.calls_at(CallSyntax::Operator, link.location).is_empty() =>
            {
                self.block(node);
            }
            Node::XmlExpr(_)
            | Node::XmlSerialize(_)
            | Node::JsonParseExpr(_)
            | Node::JsonScalarExpr(_)
            | Node::JsonSerializeExpr(_)
            | Node::JsonFuncExpr(_)
            | Node::JsonObjectConstructor(_)
            | Node::JsonArrayConstructor(_)
            | Node::JsonIsPredicate(_)
                if area != Area::Free =>
            {
                self.block(node);
            }
            _ => {}
        }
        self.children(node, below)?;
        self.depth -= 1;
        Ok(())
    }

    fn bare_row(&mut self, node: Node<'_>) {
        if let Node::ColumnRef(reference) = node {
            self.out.bare_rows.insert(reference.location);
        }
    }

    /// No guard can be written for this node: the rows it reads get a barrier.
    fn block(&mut self, node: Node<'_>) {
        let reads = self.reads(node);
        self.derived_read |= reads.derived;
        self.out.barrier.extend(reads.filtered);
    }

    fn operator(&mut self, node: Node<'_>, expr: &A_Expr, area: Area) -> Area {
        let like = matches!(expr.kind, A_Expr_Kind::AEXPR_LIKE | A_Expr_Kind::AEXPR_ILIKE);
        if area == Area::Open
            && like
            && !reads_anything(expr.rexpr())
            && !self.reads(expr.lexpr()).filtered.is_empty()
            && self.quiet_below(expr.lexpr())
        {
            self.guard(node, key(CallSyntax::Operator, expr.location), Guard::Pattern);
            return Area::Free;
        }
        self.call(node, CallSyntax::Operator, expr.location, area)
    }

    /// Guards a call where it must be, and says what holds for its arguments.
    fn call(&mut self, node: Node<'_>, syntax: CallSyntax, location: i32, area: Area) -> Area {
        if matches!(area, Area::Grouped | Area::Held)
            && let Some(guard) = self.key_guard(node)
        {
            self.out.guards.insert(key(syntax, location), guard);
            return Area::Free;
        }
        if matches!(area, Area::Free | Area::Held) || self.job.is_quiet(syntax, location) {
            return area;
        }
        let reads = self.reads(node);
        let mut filtered = reads.filtered;
        if filtered.is_empty() && !reads.derived {
            if !self.job.is_volatile(location) {
                return area;
            }
            if let Some(level) = self.levels.last() {
                filtered.extend(level.iter().copied().filter(|range| self.job.filtered(*range)));
            }
        }
        if reads.derived {
            self.derived_read = true;
        }
        if filtered.is_empty() {
            return area;
        }
        if area == Area::Bare {
            self.out.barrier.extend(filtered);
            return Area::Free;
        }
        if area == Area::Grouped {
            if !self.holds_aggregate(node) {
                self.out.guards.insert(key(syntax, location), Guard::Grouped);
            }
            return Area::Held;
        }
        self.guard(node, key(syntax, location), Guard::Filter(filtered));
        Area::Free
    }

    fn guard(&mut self, node: Node<'_>, key: (u8, i32), guard: Guard) {
        if let Some(calls) = &mut self.collecting
            && let Some(text) = deparse_alone(node)
        {
            calls.insert(text, guard.clone());
        }
        self.out.guards.insert(key, guard);
    }

    /// The guard of a grouping key's call that this is a copy of.
    fn key_guard(&self, node: Node<'_>) -> Option<Guard> {
        let calls = self.key_calls.as_ref().filter(|calls| !calls.is_empty())?;
        calls.get(&deparse_alone(node)?).cloned()
    }

    fn quiet_below(&self, node: Node<'_>) -> bool {
        let mut quiet = true;
        walk(node, |node| {
            quiet &= match node {
                Node::FuncCall(call) => self.job.is_quiet(CallSyntax::Function, call.location),
                Node::A_Expr(expr) => self.job.is_quiet(CallSyntax::Operator, expr.location),
                Node::TypeCast(cast) => self.job.is_quiet(CallSyntax::Cast, cast.location),
                Node::SubLink(_) => false,
                _ => true,
            };
        });
        quiet
    }

    /// What an expression reads of the queries it stands in; the ranges of sub-selects inside of it are their own.
    fn reads(&self, node: Node<'_>) -> Reads {
        let mut reads = Reads::default();
        if matches!(node, Node::None) {
            return reads;
        }
        walk(node, |node| {
            let Node::ColumnRef(reference) = node else {
                return;
            };
            match self.job.target(reference.location) {
                Some(RefTarget::Column { range, .. } | RefTarget::WholeRow { range }) => {
                    self.read_range(&mut reads, *range);
                }
                Some(RefTarget::Star { ranges }) => {
                    for range in ranges {
                        self.read_range(&mut reads, *range);
                    }
                }
                Some(RefTarget::Excluded) => {}
                Some(RefTarget::Derived) | None => reads.derived = true,
            }
        });
        reads
    }

    fn read_range(&self, reads: &mut Reads, range: usize) {
        if self.job.filtered(range) && self.levels.iter().any(|level| level.contains(&range)) {
            reads.filtered.insert(range);
        }
    }

    fn holds_aggregate(&self, node: Node<'_>) -> bool {
        let mut found = false;
        let mut look = |node: Node<'_>| match node {
            Node::FuncCall(call) if call.over().is_none() && self.job.is_aggregate(call.location) => {
                found = true;
                false
            }
            Node::SubLink(_) => false,
            _ => true,
        };
        if matches!(node, Node::None) || !look(node) {
            return found;
        }
        walk_manual::<()>(node, |child| Recurse::recurse_if(look(child)));
        found
    }

    fn returning(
        &mut self,
        returning: Option<&ReturningClause>,
        items: Option<&[StarItem]>,
    ) -> Result<(), CannotGovern> {
        let Some(returning) = returning else { return Ok(()) };
        for node in returning.exprs() {
            if let Node::ResTarget(target) = node {
                self.target(target, items, Area::Free)?;
            }
        }
        Ok(())
    }

    fn level_with(&mut self, target: Option<&nodes::RangeVar>) -> Option<Vec<StarItem>> {
        let index = target.and_then(|range| self.job.range_at(range.location));
        self.levels.push(index.into_iter().collect());
        Some(index.into_iter().map(StarItem::Range).collect())
    }

    fn insert(&mut self, insert: &InsertStmt) -> Result<(), CannotGovern> {
        self.deeper()?;
        self.with(insert.with_clause())?;
        if let Node::SelectStmt(select) = insert.select_stmt() {
            self.select(select, true)?;
        }
        let items = self.level_with(insert.relation());
        if let Some(conflict) = insert.on_conflict_clause() {
            for target in conflict.target_list() {
                self.expression(target.val(), Area::Free)?;
            }
            self.expression(conflict.where_clause(), Area::Open)?;
        }
        self.returning(insert.returning_clause(), items.as_deref())?;
        self.levels.pop();
        self.depth -= 1;
        Ok(())
    }

    fn update(&mut self, update: &UpdateStmt) -> Result<(), CannotGovern> {
        self.deeper()?;
        self.with(update.with_clause())?;
        let mut items = self.level_with(update.relation());
        for item in update.from_clause() {
            self.item(item, false, &mut items)?;
        }
        for target in update.target_list() {
            self.expression(target.val(), Area::Free)?;
        }
        self.expression(update.where_clause(), Area::Open)?;
        self.returning(update.returning_clause(), items.as_deref())?;
        self.levels.pop();
        self.depth -= 1;
        Ok(())
    }

    fn delete(&mut self, delete: &DeleteStmt) -> Result<(), CannotGovern> {
        self.deeper()?;
        self.with(delete.with_clause())?;
        let mut items = self.level_with(delete.relation());
        for item in delete.using_clause() {
            self.item(item, false, &mut items)?;
        }
        self.expression(delete.where_clause(), Area::Open)?;
        self.returning(delete.returning_clause(), items.as_deref())?;
        self.levels.pop();
        self.depth -= 1;
        Ok(())
    }

    fn merge(&mut self, merge: &MergeStmt) -> Result<(), CannotGovern> {
        self.deeper()?;
        self.with(merge.with_clause())?;
        let mut items = self.level_with(merge.relation());
        self.item(merge.source_relation(), false, &mut items)?;
        self.expression(merge.join_condition(), Area::Open)?;
        for when in merge.merge_when_clauses() {
            // In written order, the filter first.
            self.expression(when.condition(), Area::Open)?;
            for node in when.target_list() {
                if let Node::ResTarget(target) = node {
                    self.expression(target.val(), Area::Free)?;
                }
            }
            self.expressions(when.values(), Area::Free)?;
        }
        self.returning(merge.returning_clause(), items.as_deref())?;
        self.levels.pop();
        self.depth -= 1;
        Ok(())
    }
}

/// The targets that GROUP BY names by their place or alias.
fn key_targets(job: &Job<'_>, select: &SelectStmt) -> BTreeSet<usize> {
    let mut places = BTreeSet::new();
    let mut look = |node: Node<'_>| match node {
        Node::A_Const(constant) => {
            if let Some(pg_raw_parse::ConstValue::Integer(place)) = constant.val() {
                places.extend(usize::try_from(place).ok().and_then(|place| place.checked_sub(1)));
            }
        }
        Node::ColumnRef(reference)
            if matches!(job.target(reference.location), Some(RefTarget::Derived) | None) =>
        {
            let name = reference.fields().first().and_then(Node::as_str);
            let mut targets = select.target_list().iter();
            places.extend(targets.position(|target| target.name().is_some() && target.name() == name));
        }
        _ => {}
    };
    for item in select.group_clause() {
        match item {
            Node::GroupingSet(_) => walk(item, &mut look),
            _ => look(item),
        }
    }
    places
}

#[derive(Debug, Default)]
struct Reads {
    filtered: BTreeSet<usize>,
    derived: bool,
}

fn reads_anything(node: Node<'_>) -> bool {
    let mut found = matches!(node, Node::None);
    if !found {
        walk(node, |node| {
            found |= matches!(node, Node::ColumnRef(_) | Node::SubLink(_))
        });
    }
    found
}

/// For [`Job::is_volatile`].
pub(super) fn changes_or_varies(class: FunctionClass, name: &str) -> bool {
    class != FunctionClass::Open
        || matches!(
            name.rsplit('.').next(),
            Some("random" | "random_normal" | "clock_timestamp" | "timeofday")
        )
}

/// Whether a role is a target that is changed in place.
pub(super) fn is_target(role: RangeRole) -> bool {
    match role {
        RangeRole::InsertTarget
        | RangeRole::UpdateTarget
        | RangeRole::DeleteTarget
        | RangeRole::MergeTarget => true,
        RangeRole::Source | RangeRole::CopyToSource | RangeRole::CopyFromTarget => false,
    }
}
