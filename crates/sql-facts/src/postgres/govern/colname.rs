//! The name PostgreSQL gives to a result column without AS (`FigureColname` in `parse_target.c`). Where an expression
//! is replaced, the name is written out so that it stays.

use pg_raw_parse::Node;
use pg_raw_parse::nodes::{A_Expr_Kind, ResTarget, SelectStmt, SubLinkType};

/// What is known of a column's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ColumnName {
    /// This name.
    Known(String),
    /// A star, or a name given by a keyword that no rewriting changes.
    Fixed,
}

/// The name of a target of a select list or RETURNING.
pub(super) fn of_target(target: &ResTarget) -> ColumnName {
    match target.name() {
        Some(name) => ColumnName::Known(name.to_owned()),
        None => of_expression(target.val()),
    }
}

/// The name of an expression.
pub(super) fn of_expression(node: Node<'_>) -> ColumnName {
    if let Node::ColumnRef(reference) = node
        && reference
            .fields()
            .iter()
            .any(|field| matches!(field, Node::A_Star(_)))
    {
        return ColumnName::Fixed;
    }
    match figure(node) {
        Some((name, _)) => name,
        None => ColumnName::Known("?column?".to_owned()),
    }
}

fn strong(name: &str) -> Option<(ColumnName, bool)> {
    Some((ColumnName::Known(name.to_owned()), true))
}

/// The name, and whether it is stronger than a type's.
fn figure(node: Node<'_>) -> Option<(ColumnName, bool)> {
    match node {
        Node::ColumnRef(reference) => reference
            .fields()
            .iter()
            .filter_map(Node::as_str)
            .next_back()
            .and_then(strong),
        Node::A_Indirection(indirection) => indirection
            .indirection()
            .iter()
            .filter_map(Node::as_str)
            .next_back()
            .and_then(strong)
            .or_else(|| figure(indirection.arg())),
        Node::FuncCall(call) => call
            .funcname()
            .iter()
            .filter_map(Node::as_str)
            .next_back()
            .and_then(strong),
        Node::A_Expr(expr) if expr.kind == A_Expr_Kind::AEXPR_NULLIF => strong("nullif"),
        Node::TypeCast(cast) => match figure(cast.arg()) {
            Some((name, true)) => Some((name, true)),
            other => cast
                .type_name()
                .and_then(|name| name.names().iter().filter_map(|part| part.sval()).next_back())
                .map(|name| (ColumnName::Known(name.to_owned()), false))
                .or(other),
        },
        Node::CollateClause(collate) => figure(collate.arg()),
        Node::SubLink(link) => match link.sub_link_type {
            SubLinkType::EXISTS_SUBLINK => strong("exists"),
            SubLinkType::ARRAY_SUBLINK => strong("array"),
            SubLinkType::EXPR_SUBLINK => match link.subselect() {
                Node::SelectStmt(select) => Some((first_of(select), true)),
                _ => None,
            },
            _ => None,
        },
        Node::CaseExpr(case) => match figure(case.defresult()) {
            Some((name, true)) => Some((name, true)),
            _ => Some((ColumnName::Known("case".to_owned()), false)),
        },
        Node::A_ArrayExpr(_) => strong("array"),
        Node::RowExpr(_) => strong("row"),
        Node::CoalesceExpr(_) => strong("coalesce"),
        Node::A_Expr(_)
        | Node::A_Const(_)
        | Node::ParamRef(_)
        | Node::BoolExpr(_)
        | Node::NullTest(_)
        | Node::BooleanTest(_)
        | Node::None => None,
        // GREATEST, GROUPING, CURRENT_DATE, XML and JSON constructors: named by their keyword.
        _ => Some((ColumnName::Fixed, true)),
    }
}

fn first_of(select: &SelectStmt) -> ColumnName {
    if let Some(left) = select.larg() {
        return first_of(left);
    }
    match select.target_list().iter().next() {
        Some(target) => of_target(target),
        None => ColumnName::Fixed,
    }
}
