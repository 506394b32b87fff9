//! Changes a copy of the client's tree, in three walks: names and references, then guards around calls, then the
//! names of result columns that would have changed.

use std::collections::{BTreeMap, BTreeSet};

use pg_raw_parse::make::{MemoryToken, Unique, try_owned};
use pg_raw_parse::nodes::{self, RawStmt};
use pg_raw_parse::transform::{self, Assignable, Transform};
use pg_raw_parse::{Node, NodeMut, Owned};
use row_masking::WireMask;

use super::Job;
use super::colname::{self, ColumnName};
use super::group::{self, Key};
use super::scan;
use super::sites::{RefEdit, Sites, schema_of};
use super::workshop::{Pieces, Windows};
use super::writes;
use crate::catalog::AttNum;
use crate::facts::{CallSyntax, FunctionOrigin};
use crate::plan::CannotGovern;

/// What the rewriting decided beside the text.
pub(super) struct Outcome {
    pub(super) windows: Windows,
    pub(super) strip: Vec<usize>,
    pub(super) wire_masks: BTreeMap<usize, WireMask>,
    pub(super) check_rule: Option<String>,
    pub(super) count_as: Option<String>,
}

/// The first walk.
pub(super) struct Rewriter<'a, 'mem> {
    pub(super) job: &'a Job<'a>,
    pub(super) sites: &'a Sites,
    pub(super) pieces: &'a Pieces,
    pub(super) writes: &'a writes::Writes,
    pub(super) mem: MemoryToken<'mem>,
    pub(super) handled: BTreeSet<usize>,
    pub(super) error: Option<CannotGovern>,
    depth: usize,
}

impl Rewriter<'_, '_> {
    /// The governed copy of the statement.
    pub(super) fn run(
        job: &Job<'_>,
        mut sites: Sites,
        node: Node<'_>,
    ) -> Result<(Owned<RawStmt>, Outcome), CannotGovern> {
        let writes = writes::Writes::plan(job, &mut sites, node)?;
        let shop = std::mem::replace(&mut sites.shop, super::workshop::Workshop::new(0));
        let pieces = shop.open()?;
        let tree = try_owned(|mem| {
            let mut copy = mem.make_unique(node);
            let mut rewriter = Rewriter {
                job,
                sites: &sites,
                pieces: &pieces,
                writes: &writes,
                mem,
                handled: BTreeSet::new(),
                error: None,
                depth: 0,
            };
            writes.before(&mut rewriter, &mut copy)?;
            rewriter.transform_node(Assignable::new(&mut copy));
            if let Some(error) = rewriter.error {
                return Err(error);
            }
            let handled = rewriter.handled;
            let mut guards = Guards {
                sites: &sites,
                pieces: &pieces,
                mem,
                error: None,
                nested: 0,
            };
            guards.transform_node(Assignable::new(&mut copy));
            if let Some(error) = guards.error {
                return Err(error);
            }
            Names { sites: &sites, mem }.transform_node(Assignable::new(&mut copy));
            if let Some(left) = job.left_over(&handled) {
                return Err(CannotGovern::NotBuilt(format!(
                    "this use of {}",
                    left.reference_name
                )));
            }
            let copy = writes.after(mem, &pieces, copy)?;
            Ok(mem.make_raw_stmt(copy))
        })?;
        let outcome = Outcome {
            windows: pieces.windows,
            strip: writes.strip,
            wire_masks: sites.wire_masks,
            check_rule: writes.check_rule,
            count_as: writes.count_as,
        };
        Ok((tree, outcome))
    }
}

impl<'mem> Rewriter<'_, 'mem> {
    /// Keeps the first error.
    pub(super) fn attempt<T>(&mut self, result: Result<T, CannotGovern>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                self.error.get_or_insert(error);
                None
            }
        }
    }

    /// The derived table that stands for a range.
    /// With the client's ONLY: without it the children's rows would be read, too.
    fn derived(&mut self, index: usize, only: bool) -> Option<Unique<'mem, Node<'mem>>> {
        let piece = *self.sites.sources.get(&index)?;
        let select = self.pieces.select(piece);
        let select = self.attempt(select)?;
        let item = select.from_clause().first()?;
        self.handled.insert(index);
        let mut item = self.mem.make_unique(item);
        if only
            && let NodeMut::RangeSubselect(mut sub) = item.as_mut()
            && let NodeMut::SelectStmt(mut select) = sub.subquery_mut()
        {
            for inner in select.from_clause_mut() {
                if let NodeMut::RangeVar(mut range) = inner {
                    range.set_inh(false);
                }
            }
        }
        Some(item)
    }

    /// The sample is taken before the filter: it goes inside.
    fn sampled(&mut self, sample: &nodes::RangeTableSample) -> Option<Unique<'mem, Node<'mem>>> {
        let Node::RangeVar(range) = sample.relation() else {
            return None;
        };
        let index = self.job.range_at(range.location)?;
        let mut derived = self.derived(index, !range.inh)?;
        let mut copy = self.mem.make_unique(sample);
        if let NodeMut::RangeSubselect(mut sub) = derived.as_mut()
            && let NodeMut::SelectStmt(mut select) = sub.subquery_mut()
        {
            let inner = select
                .from_clause()
                .first()
                .map(|item| self.mem.make_unique(item));
            if let Some(inner) = inner {
                copy.as_mut().set_relation(inner);
                select.set_from_clause(self.mem.make_list(&[copy.uncast()]));
                return Some(derived);
            }
        }
        self.error
            .get_or_insert(CannotGovern::NotBuilt("TABLESAMPLE here".to_owned()));
        None
    }

    /// A reference to a column of a derived table.
    fn column_of(&self, index: usize, column: AttNum) -> Option<Unique<'mem, &'mem nodes::ColumnRef>> {
        let range = self.job.range(index)?;
        let relation = self.job.relation(index).ok()?;
        let place = relation.columns.iter().position(|known| known.number == column)?;
        let name = match range.column_aliases.get(place) {
            Some(alias) => alias,
            None => &relation.columns.get(place)?.name,
        };
        let alias = self.sites.aliases.get(&index).unwrap_or(&range.reference_name);
        Some(self.mem.make_column_ref(self.strings(&[alias, name])))
    }

    fn strings(&self, names: &[&str]) -> Unique<'mem, &'mem pg_raw_parse::list::NodeList> {
        let names: Vec<Unique<'mem, Node<'mem>>> = names
            .iter()
            .map(|name| self.mem.make_string(Some(name)).uncast())
            .collect();
        self.mem.make_list(&names)
    }

    fn edit_reference(&mut self, node: Assignable<'mem, '_>, location: i32, edit: &RefEdit) {
        match edit {
            RefEdit::Expression(piece) => {
                if let NodeMut::ColumnRef(reference) = &*node
                    && reference.fields().len() > 1
                    && matches!(
                        reference.fields().first().and_then(Node::as_str),
                        Some("old" | "new")
                    )
                {
                    let refused = Err(CannotGovern::NotBuilt("old and new rows in RETURNING".to_owned()));
                    self.attempt::<()>(refused);
                    return;
                }
                let expression = self.pieces.expression(*piece);
                if let Some(expression) = self.attempt(expression) {
                    node.replace(self.mem.make_unique(expression));
                }
            }
            RefEdit::Fields(names, complete) => {
                if let NodeMut::ColumnRef(mut reference) = node.into_inner() {
                    let mut fields: Vec<Unique<'mem, Node<'mem>>> = names
                        .iter()
                        .map(|name| self.mem.make_string(Some(name)).uncast())
                        .collect();
                    if !complete {
                        let Some(last) = reference.fields().iter().next_back() else {
                            return;
                        };
                        fields.push(self.mem.make_unique(last));
                    }
                    reference.set_fields(self.mem.make_list(&fields));
                    debug_assert_eq!(reference.location, location);
                }
            }
        }
    }

    fn is_built_in(&self, syntax: CallSyntax, location: i32) -> bool {
        let calls = self.job.calls_at(syntax, location);
        !calls.is_empty() && calls.iter().all(|call| call.origin == FunctionOrigin::BuiltIn)
    }
}

impl<'mem> Transform<'mem> for Rewriter<'_, 'mem> {
    fn transform_node<'mutref>(&mut self, node: Assignable<'mem, 'mutref>) {
        if self.error.is_some() {
            return;
        }
        self.depth += 1;
        if self.depth > 20_000 {
            self.error = Some(CannotGovern::Impossible(
                "the statement is nested too deep".to_owned(),
            ));
            return;
        }
        match &*node {
            NodeMut::RangeVar(range) => {
                if let Some(index) = self.job.range_at(range.location)
                    && let Some(derived) = self.derived(index, !range.inh)
                {
                    node.replace(derived);
                    self.depth -= 1;
                    return;
                }
            }
            NodeMut::RangeTableSample(sample) => {
                if let Some(derived) = self.sampled(sample) {
                    node.replace(derived);
                    self.depth -= 1;
                    return;
                }
            }
            NodeMut::ColumnRef(reference) => {
                let location = reference.location;
                let sites = self.sites;
                if let Some(edit) = sites.references.get(&location) {
                    self.edit_reference(node, location, edit);
                    self.depth -= 1;
                    return;
                }
            }
            _ => {}
        }
        transform::transform_node(node.into_inner(), self);
        self.depth -= 1;
    }

    fn transform_select_stmt<'mutref>(&mut self, mut node: nodes::SelectStmtMut<'mem, 'mutref>) {
        let missing = group::missing_keys(self.job, &node);
        for key in self.attempt(missing).unwrap_or_default() {
            let reference = match key {
                Key::Reference(location) => {
                    group::find(&node, location).map(|reference| self.mem.make_unique(reference))
                }
                Key::Column(index, column) => self.column_of(index, column),
            };
            if let Some(reference) = reference {
                node.group_clause_mut().push(self.mem, reference.uncast());
            }
        }
        if node
            .target_list()
            .iter()
            .any(|target| star_piece(self.sites, target).is_some())
        {
            let mut targets = Vec::new();
            for target in node.target_list() {
                match star_piece(self.sites, target) {
                    Some(piece) => {
                        let select = self.pieces.select(piece);
                        if let Some(select) = self.attempt(select) {
                            targets.extend(
                                select
                                    .target_list()
                                    .iter()
                                    .map(|target| self.mem.make_unique(target)),
                            );
                        }
                    }
                    None => targets.push(self.mem.make_unique(target)),
                }
            }
            node.set_target_list(self.mem.make_list(&targets));
        }
        transform::transform_select_stmt(node, self);
    }

    fn transform_returning_clause<'mutref>(&mut self, mut node: nodes::ReturningClauseMut<'mem, 'mutref>) {
        if !node.options().is_empty() {
            let refused = Err(CannotGovern::NotBuilt("RETURNING WITH (OLD AS …)".to_owned()));
            self.attempt::<()>(refused);
        }
        let mut changed = false;
        let mut targets: Vec<Unique<'mem, Node<'mem>>> = Vec::new();
        for item in node.exprs() {
            let piece = match item {
                Node::ResTarget(target) => star_piece(self.sites, target),
                _ => None,
            };
            match piece {
                Some(piece) => {
                    changed = true;
                    let select = self.pieces.select(piece);
                    if let Some(select) = self.attempt(select) {
                        targets.extend(
                            select
                                .target_list()
                                .iter()
                                .map(|target| self.mem.make_unique(target).uncast()),
                        );
                    }
                }
                None => targets.push(self.mem.make_unique(item)),
            }
        }
        if changed {
            node.set_exprs(self.mem.make_list(&targets));
        }
        transform::transform_returning_clause(node, self);
    }

    fn transform_insert_stmt<'mutref>(&mut self, mut node: nodes::InsertStmtMut<'mem, 'mutref>) {
        writes::insert(self, &mut node);
        transform::transform_insert_stmt(node, self);
    }

    fn transform_update_stmt<'mutref>(&mut self, mut node: nodes::UpdateStmtMut<'mem, 'mutref>) {
        writes::update(self, &mut node);
        transform::transform_update_stmt(node, self);
    }

    fn transform_delete_stmt<'mutref>(&mut self, mut node: nodes::DeleteStmtMut<'mem, 'mutref>) {
        writes::delete(self, &mut node);
        transform::transform_delete_stmt(node, self);
    }

    fn transform_merge_stmt<'mutref>(&mut self, mut node: nodes::MergeStmtMut<'mem, 'mutref>) {
        writes::merge(self, &mut node);
        transform::transform_merge_stmt(node, self);
    }

    fn transform_copy_stmt<'mutref>(&mut self, mut node: nodes::CopyStmtMut<'mem, 'mutref>) {
        writes::copy(self, &mut node);
        transform::transform_copy_stmt(node, self);
    }

    /// `ON CONFLICT (expression)` names an index: it must stay as the index has it.
    fn transform_infer_clause<'mutref>(&mut self, _node: nodes::InferClauseMut<'mem, 'mutref>) {}

    /// `FOR UPDATE OF t` names aliases, not relations.
    fn transform_locking_clause<'mutref>(&mut self, mut node: nodes::LockingClauseMut<'mem, 'mutref>) {
        let sites = self.sites;
        let job = self.job;
        for item in node.locked_rels_mut() {
            if let NodeMut::RangeVar(mut range) = item {
                let renamed = sites.aliases.iter().find(|(index, _)| {
                    job.range(**index)
                        .is_some_and(|used| Some(used.reference_name.as_str()) == range.relname())
                });
                if let Some((_, alias)) = renamed {
                    range.set_relname(Some(self.mem.copy_string(alias)));
                }
            }
        }
    }

    fn transform_range_var<'mutref>(&mut self, mut node: nodes::RangeVarMut<'mem, 'mutref>) {
        if let Some(index) = self.job.range_at(node.location) {
            let relation = self.job.relation(index);
            if let Some(relation) = self.attempt(relation) {
                node.set_schemaname(Some(self.mem.copy_string(schema_of(relation))));
            }
        }
    }

    fn transform_func_call<'mutref>(&mut self, mut node: nodes::FuncCallMut<'mem, 'mutref>) {
        if node.funcname().len() == 1 && self.is_built_in(CallSyntax::Function, node.location) {
            let name = node
                .funcname()
                .first()
                .and_then(Node::as_str)
                .unwrap_or_default()
                .to_owned();
            node.set_funcname(self.strings(&["pg_catalog", &name]));
        }
        transform::transform_func_call(node, self);
    }

    fn transform_a_expr<'mutref>(&mut self, mut node: nodes::A_ExprMut<'mem, 'mutref>) {
        use pg_raw_parse::nodes::A_Expr_Kind;
        let by_name = matches!(
            node.kind,
            A_Expr_Kind::AEXPR_OP | A_Expr_Kind::AEXPR_OP_ANY | A_Expr_Kind::AEXPR_OP_ALL
        );
        if by_name && node.name().len() == 1 && self.is_built_in(CallSyntax::Operator, node.location) {
            let name = node
                .name()
                .first()
                .and_then(Node::as_str)
                .unwrap_or_default()
                .to_owned();
            node.set_name(self.strings(&["pg_catalog", &name]));
        }
        transform::transform_a_expr(node, self);
    }

    fn transform_type_name<'mutref>(&mut self, mut node: nodes::TypeNameMut<'mem, 'mutref>) {
        let first = node
            .names()
            .first()
            .and_then(|name| name.sval())
            .unwrap_or_default()
            .to_owned();
        // The printer has no form for the qualified `bpchar` without a length.
        if node.names().len() == 1
            && first != "bpchar"
            && let Some(found) = self.job.view.resolve_type_entry(None, &first)
        {
            let temporary = self.job.view.overlay.temp_schema.as_deref() == Some(found.schema.as_str());
            let schema = if temporary { "pg_temp" } else { &found.schema };
            let names = [
                self.mem.make_string(Some(schema)),
                self.mem.make_string(Some(&first)),
            ];
            node.set_names(self.mem.make_list(&names));
        }
    }

    fn transform_sub_link<'mutref>(&mut self, mut node: nodes::SubLinkMut<'mem, 'mutref>) {
        if node.oper_name().len() == 1 && self.is_built_in(CallSyntax::Operator, node.location) {
            let name = node
                .oper_name()
                .first()
                .and_then(Node::as_str)
                .unwrap_or_default()
                .to_owned();
            node.set_oper_name(self.strings(&["pg_catalog", &name]));
        }
        transform::transform_sub_link(node, self);
    }
}

fn star_piece(sites: &Sites, target: &nodes::ResTarget) -> Option<super::workshop::Piece> {
    match target.val() {
        Node::ColumnRef(reference) => sites.stars.get(&reference.location).copied(),
        _ => None,
    }
}

/// The second walk: calls that must not see hidden rows are held by a CASE.
struct Guards<'a, 'mem> {
    sites: &'a Sites,
    pieces: &'a Pieces,
    mem: MemoryToken<'mem>,
    error: Option<CannotGovern>,
    /// Guards around this place: each copies what it holds.
    nested: usize,
}

/// More guards inside of each other are refused.
const GUARDS_MAX: usize = 100;

impl<'mem> Transform<'mem> for Guards<'_, 'mem> {
    fn transform_node<'mutref>(&mut self, node: Assignable<'mem, 'mutref>) {
        let key = match &*node {
            NodeMut::FuncCall(call) => scan::key(CallSyntax::Function, call.location),
            NodeMut::A_Expr(expr) => scan::key(CallSyntax::Operator, expr.location),
            NodeMut::TypeCast(cast) => scan::key(CallSyntax::Cast, cast.location),
            _ => return transform::transform_node(node.into_inner(), self),
        };
        let Some((piece, pattern)) = self.sites.guards.get(&key).copied() else {
            return transform::transform_node(node.into_inner(), self);
        };
        if self.nested >= GUARDS_MAX {
            self.error.get_or_insert(CannotGovern::Impossible(
                "calls that must not see hidden rows are nested too deep".to_owned(),
            ));
            return;
        }
        let case = match self.pieces.expression(piece) {
            Ok(Node::CaseExpr(case)) => case,
            Ok(_) | Err(_) => {
                self.error
                    .get_or_insert(CannotGovern::Impossible("a guard cannot be written".to_owned()));
                return;
            }
        };
        let mut case = self.mem.make_unique(case);
        if pattern {
            if let NodeMut::A_Expr(mut expr) = node.into_inner() {
                let pattern = expr.rexpr();
                let (tested, kept) = (self.mem.make_unique(pattern), self.mem.make_unique(pattern));
                for when in case.as_mut().args_mut() {
                    if let NodeMut::CaseWhen(mut when) = when
                        && let NodeMut::A_Expr(mut test) = when.expr_mut()
                    {
                        test.set_lexpr(tested);
                        break;
                    }
                }
                case.as_mut().set_defresult(kept);
                expr.set_rexpr(case.uncast());
                let left = expr.lexpr_mut();
                transform::transform_node(left, self);
            }
            return;
        }
        let held = match &*node {
            NodeMut::FuncCall(call) => self.mem.make_unique(&**call).uncast(),
            NodeMut::A_Expr(expr) => self.mem.make_unique(&**expr).uncast(),
            NodeMut::TypeCast(cast) => self.mem.make_unique(&**cast).uncast(),
            _ => return,
        };
        let mut held = Some(held);
        for when in case.as_mut().args_mut() {
            if let NodeMut::CaseWhen(mut when) = when
                && let Some(held) = held.take()
            {
                when.set_result(held);
            }
        }
        // Sub-selects inside of what is held have guards of their own.
        self.nested += 1;
        transform::transform_node(NodeMut::from(case.as_mut()), &mut Inside(self, key));
        self.nested -= 1;
        node.replace(case.uncast());
    }
}

/// Below a guarded call: the call itself is passed by.
struct Inside<'g, 'a, 'mem>(&'g mut Guards<'a, 'mem>, (u8, i32));

impl<'mem> Transform<'mem> for Inside<'_, '_, 'mem> {
    fn transform_node<'mutref>(&mut self, node: Assignable<'mem, 'mutref>) {
        let key = match &*node {
            NodeMut::FuncCall(call) => Some(scan::key(CallSyntax::Function, call.location)),
            NodeMut::A_Expr(expr) => Some(scan::key(CallSyntax::Operator, expr.location)),
            NodeMut::TypeCast(cast) => Some(scan::key(CallSyntax::Cast, cast.location)),
            _ => None,
        };
        if key == Some(self.1) {
            transform::transform_node(node.into_inner(), self.0);
        } else {
            transform::transform_node(node.into_inner(), self);
        }
    }
}

/// The third walk: a column keeps the name that the client's own text gave it.
struct Names<'a, 'mem> {
    sites: &'a Sites,
    mem: MemoryToken<'mem>,
}

impl<'mem> Transform<'mem> for Names<'_, 'mem> {
    fn transform_res_target<'mutref>(&mut self, mut node: nodes::ResTargetMut<'mem, 'mutref>) {
        if node.name().is_none()
            && let Some(ColumnName::Known(name)) = self.sites.scan.names.get(&node.location)
            && colname::of_target(&node) != ColumnName::Known(name.clone())
        {
            node.set_name(Some(self.mem.copy_string(name)));
        }
        transform::transform_res_target(node, self);
    }
}
