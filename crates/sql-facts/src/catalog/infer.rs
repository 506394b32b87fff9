//! The columns of a view or of CREATE TABLE AS, from its query: names and sources as `read` finds them, types from
//! the sources, and for expressions from what is certain about them. A type that is not certain is not guessed.

use pg_raw_parse::raw::{A_Expr_Kind, SQLValueFunctionOp, SubLinkType};
use pg_raw_parse::{ConstValue, Node, nodes};
use row_masking::ColumnType;

use super::apply::parts::resolve_type_name;
use super::code::Operand;
use super::types::TypeKind;
use super::{CatalogError, CatalogView, Oid};
use crate::facts::{RefTarget, StatementFacts, Transformation};

const BOOL: Oid = 16;
const INT8: Oid = 20;
const INT4: Oid = 23;
const TEXT: Oid = 25;
const NAME: Oid = 19;
const NUMERIC: Oid = 1700;
const RECORD: Oid = 2249;

/// (name, type) of each column of a query; a type that is not certain is `None`.
pub(super) fn query_columns(
    view: CatalogView<'_>,
    query: &str,
) -> Result<Vec<(String, Option<ColumnType>)>, CatalogError> {
    let unreadable =
        |e: crate::facts::Unreadable| CatalogError::NotApplied(format!("its query is not read: {e}"));
    let parsed = crate::postgres::parse(query).map_err(unreadable)?;
    let [statement] = parsed.statements.as_slice() else {
        return Err(CatalogError::NotApplied(
            "a query of several statements".to_owned(),
        ));
    };
    let facts = crate::postgres::read(statement, view).map_err(unreadable)?;
    let scope = Scope { view, facts: &facts };
    let targets = match statement.node() {
        Node::SelectStmt(select) => targets(select),
        _ => Vec::new(),
    };
    // What stands before the first star goes in step with the output from its start, what stands behind the last
    // one from its end.
    let outputs = facts.output.len();
    let first_star = targets.iter().position(is_star).unwrap_or(targets.len());
    let last_star = targets.iter().rposition(is_star);
    let target_at = |place: usize| {
        if place < first_star || last_star.is_none() {
            return targets
                .get(place)
                .copied()
                .filter(|_| last_star.is_some() || targets.len() == outputs);
        }
        let from_end = outputs.checked_sub(place)?;
        let at = targets.len().checked_sub(from_end)?;
        targets.get(at).copied().filter(|_| Some(at) > last_star)
    };
    let mut columns = Vec::with_capacity(outputs);
    for (place, output) in facts.output.iter().enumerate() {
        let of_source = scope.of_sources(place);
        let column_type = match target_at(place) {
            Some(target) => scope.expression(target, 0).or(of_source),
            None => of_source,
        };
        columns.push((output.name.clone(), column_type));
    }
    Ok(columns)
}

/// The expressions of a select list, or of the first row of VALUES.
fn targets(select: &nodes::SelectStmt) -> Vec<Node<'_>> {
    let mut select = select;
    // The left arm of a set operation names the columns; its types count where the right one agrees.
    let mut set_operation = false;
    while let Some(left) = select.larg() {
        select = left;
        set_operation = true;
    }
    if set_operation {
        return Vec::new();
    }
    if let Some(Node::NodeList(row)) = select.values_lists().first() {
        return if select.values_lists().len() == 1 {
            row.iter().collect()
        } else {
            Vec::new()
        };
    }
    select.target_list().iter().map(|target| target.val()).collect()
}

fn is_star(node: &Node<'_>) -> bool {
    match node {
        Node::ColumnRef(reference) => reference
            .fields()
            .iter()
            .any(|field| matches!(field, Node::A_Star(_))),
        Node::A_Indirection(of) => of
            .indirection()
            .iter()
            .any(|step| matches!(step, Node::A_Star(_))),
        _ => false,
    }
}

struct Scope<'s> {
    view: CatalogView<'s>,
    facts: &'s StatementFacts,
}

impl Scope<'_> {
    /// A column that is one source as it is has the type of it.
    fn of_sources(&self, place: usize) -> Option<ColumnType> {
        let output = self.facts.output.get(place)?;
        let mut direct = output.sources.iter().filter(|source| {
            matches!(
                source.transformation,
                Transformation::Identity | Transformation::Transformation | Transformation::Aggregation
            )
        });
        let source = direct.next()?;
        if source.transformation != Transformation::Identity || direct.next().is_some() {
            return None;
        }
        let relation = self.view.relation(source.column.relation)?;
        relation
            .column_by_number(source.column.column)
            .map(|column| column.column_type.clone())
    }

    fn plain(&self, oid: Oid) -> Option<ColumnType> {
        self.view.type_by_oid(oid)
    }

    /// The type of an expression, where it is certain.
    fn expression(&self, node: Node<'_>, depth: usize) -> Option<ColumnType> {
        // Deeper than anyone writes by hand; what is deeper has no certain type here.
        if depth > 200 {
            return None;
        }
        let deeper = depth + 1;
        match node {
            Node::ColumnRef(reference) => self.column(reference),
            Node::TypeCast(cast) => resolve_type_name(self.view, cast.type_name()?).ok(),
            Node::CollateClause(collate) => self.expression(collate.arg(), deeper),
            Node::A_Const(constant) => match constant.val() {
                _ if constant.isnull => self.plain(TEXT),
                Some(ConstValue::Integer(_)) => self.plain(INT4),
                Some(ConstValue::Float(text)) => self.plain(if text.parse::<i64>().is_ok() {
                    INT8
                } else {
                    NUMERIC
                }),
                Some(ConstValue::Boolean(_)) => self.plain(BOOL),
                Some(ConstValue::String(_)) => self.plain(TEXT),
                // Bit strings, and what the parser may come to know.
                Some(_) | None => None,
            },
            Node::BoolExpr(_) | Node::NullTest(_) | Node::BooleanTest(_) => self.plain(BOOL),
            Node::SQLValueFunction(function) => self.plain(value_function(function.op)?),
            Node::CaseExpr(case) => {
                let mut results: Vec<Node<'_>> = case
                    .args()
                    .iter()
                    .filter_map(|when| match when {
                        Node::CaseWhen(when) => Some(when.result()),
                        _ => None,
                    })
                    .collect();
                results.push(case.defresult());
                self.common(&results, deeper)
            }
            Node::CoalesceExpr(coalesce) => self.common(&coalesce.args().iter().collect::<Vec<_>>(), deeper),
            Node::MinMaxExpr(greatest) => self.common(&greatest.args().iter().collect::<Vec<_>>(), deeper),
            Node::SubLink(link) => match link.sub_link_type {
                SubLinkType::EXISTS_SUBLINK | SubLinkType::ANY_SUBLINK | SubLinkType::ALL_SUBLINK => {
                    self.plain(BOOL)
                }
                SubLinkType::EXPR_SUBLINK | SubLinkType::ARRAY_SUBLINK => {
                    let Node::SelectStmt(select) = link.subselect() else {
                        return None;
                    };
                    let targets = targets(select);
                    let [only] = targets.as_slice() else { return None };
                    if is_star(only) {
                        return None;
                    }
                    let inner = self.expression(*only, deeper)?;
                    if link.sub_link_type == SubLinkType::EXPR_SUBLINK {
                        Some(inner)
                    } else {
                        self.plain(self.view.types().array_of(inner.oid)?)
                    }
                }
                _ => None,
            },
            Node::A_Expr(operation) => self.operation(operation, deeper),
            Node::FuncCall(call) => self.call(call, deeper),
            _ => None,
        }
    }

    fn column(&self, reference: &nodes::ColumnRef) -> Option<ColumnType> {
        let mut uses = self
            .facts
            .column_uses
            .iter()
            .filter(|used| used.location == reference.location);
        match &uses.next()?.target {
            RefTarget::Column { range, column } => {
                let relation = self.view.relation(self.facts.ranges.get(*range)?.relation)?;
                relation
                    .column_by_number(*column)
                    .map(|column| column.column_type.clone())
            }
            RefTarget::WholeRow { range } => {
                let relation = self.view.relation(self.facts.ranges.get(*range)?.relation)?;
                self.plain(relation.row_type)
            }
            RefTarget::Star { .. } | RefTarget::Derived | RefTarget::Excluded => None,
        }
    }

    /// The type of CASE, COALESCE and GREATEST: certain where all that is not a bare literal is of one type.
    fn common(&self, parts: &[Node<'_>], depth: usize) -> Option<ColumnType> {
        let mut common: Option<ColumnType> = None;
        let mut literal = false;
        for part in parts {
            // CASE without ELSE ends in a NULL.
            if matches!(part, Node::None) || is_untyped(*part) {
                literal = true;
                continue;
            }
            let found = self.expression(*part, depth)?;
            common = Some(match common {
                None => found,
                Some(known) if known == found => known,
                // One type with differing modifiers has none.
                Some(known) if known.oid == found.oid => self.plain(known.oid)?,
                Some(_) => return None,
            });
        }
        match common {
            // A literal has no modifier, and takes one away.
            Some(known) if literal && known.modifier != -1 && known.oid == known.base_oid => {
                self.plain(known.oid)
            }
            Some(known) => Some(known),
            None => self.plain(TEXT),
        }
    }

    fn operand(&self, node: Node<'_>, depth: usize) -> Operand {
        if is_untyped(node) {
            return Operand::Untyped;
        }
        self.expression(node, depth)
            .map_or(Operand::Unsure, |found| Operand::Typed(found.oid))
    }

    fn operation(&self, operation: &nodes::A_Expr, depth: usize) -> Option<ColumnType> {
        match operation.kind {
            A_Expr_Kind::AEXPR_OP => {}
            A_Expr_Kind::AEXPR_NULLIF => return self.expression(operation.lexpr(), depth),
            _ => return self.plain(BOOL),
        }
        let names: Vec<&str> = operation.name().iter().filter_map(Node::as_str).collect();
        let (schema, name) = match names.as_slice() {
            [name] => (None, *name),
            [schema, name] => (Some(*schema), *name),
            _ => return None,
        };
        let left = match operation.lexpr() {
            Node::None => None,
            node => Some(self.operand(node, depth)),
        };
        let right = self.operand(operation.rexpr(), depth);
        if self.view.operator_with(schema, name, left, right).origin != crate::facts::FunctionOrigin::BuiltIn
        {
            return None;
        }
        // A string beside a literal: the server prefers text to the array operators of that name.
        if let ("||", Some(left)) = (name, left) {
            let string = |operand: Operand| match operand {
                Operand::Untyped => Some(true),
                Operand::Typed(oid) => self.view.type_entry(oid).map(|entry| entry.category == 'S'),
                Operand::Unsure => None,
            };
            if string(left)? && string(right)? {
                return self.plain(TEXT);
            }
        }
        let builtins = self.view.builtins()?;
        let results = builtins
            .operators(self.view.types(), name, left, right)
            .map(|c| c.function.result);
        self.one_result(results)
    }

    fn call(&self, call: &nodes::FuncCall, depth: usize) -> Option<ColumnType> {
        let names: Vec<&str> = call.funcname().iter().filter_map(Node::as_str).collect();
        let (schema, name) = match names.as_slice() {
            [name] => (None, *name),
            [schema, name] => (Some(*schema), *name),
            _ => return None,
        };
        let arguments: Vec<Operand> = call
            .args()
            .iter()
            .map(|argument| self.operand(argument, depth))
            .collect();
        let facts = self.view.function_with(schema, name, &arguments);
        if facts.origin != crate::facts::FunctionOrigin::BuiltIn {
            return None;
        }
        let builtins = self.view.builtins()?;
        let types = self.view.types();
        let results = builtins
            .functions(types, name, &arguments)
            .map(|c| c.function.result);
        if let Some(found) = self.one_result(results) {
            return Some(found);
        }
        // max and min of an enum, array_agg and their kin: by the type of the one argument.
        match (name, arguments.as_slice()) {
            ("array_agg", [Operand::Typed(element)]) => self.plain(types.array_of(*element)?),
            ("unnest", [Operand::Typed(array)]) => match types.get(*array)?.kind {
                TypeKind::Array { element } => self.plain(element),
                _ => None,
            },
            _ => None,
        }
    }

    /// The one type that all candidates give; polymorphic ones give none.
    fn one_result(&self, mut results: impl Iterator<Item = Oid>) -> Option<ColumnType> {
        let first = results.next()?;
        if results.any(|result| result != first) || first == RECORD {
            return None;
        }
        let entry = self.view.type_entry(first)?;
        if entry.kind == TypeKind::Pseudo {
            None
        } else {
            self.plain(first)
        }
    }
}

/// A bare string or NULL, which takes the type of its surroundings.
fn is_untyped(node: Node<'_>) -> bool {
    match node {
        Node::A_Const(constant) => constant.isnull || matches!(constant.val(), Some(ConstValue::String(_))),
        _ => false,
    }
}

fn value_function(op: SQLValueFunctionOp::Type) -> Option<Oid> {
    Some(match op {
        SQLValueFunctionOp::SVFOP_CURRENT_DATE => 1082,
        SQLValueFunctionOp::SVFOP_CURRENT_TIME => 1266,
        SQLValueFunctionOp::SVFOP_CURRENT_TIMESTAMP => 1184,
        SQLValueFunctionOp::SVFOP_LOCALTIME => 1083,
        SQLValueFunctionOp::SVFOP_LOCALTIMESTAMP => 1114,
        SQLValueFunctionOp::SVFOP_CURRENT_ROLE
        | SQLValueFunctionOp::SVFOP_CURRENT_USER
        | SQLValueFunctionOp::SVFOP_USER
        | SQLValueFunctionOp::SVFOP_SESSION_USER
        | SQLValueFunctionOp::SVFOP_CURRENT_CATALOG
        | SQLValueFunctionOp::SVFOP_CURRENT_SCHEMA => NAME,
        // With a precision.
        _ => return None,
    })
}
