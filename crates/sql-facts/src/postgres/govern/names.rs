//! Filter predicates, printed so that nothing in them depends on the session: columns qualified by the table's alias,
//! operators, functions and types by their schema, and whatever looks an operator up by its bare name lowered to a
//! form that can be qualified. A closed list: what is not here is refused.

use pg_raw_parse::nodes::{
    A_Expr, A_Expr_Kind, BoolExprType, BoolTestType, FuncCall, NullTestType, TypeName,
};
use pg_raw_parse::{ConstValue, Node, deparse};

use super::workshop::ident;
use crate::catalog::{Column, Relation};
use crate::plan::{CannotGovern, RowFilter};

/// Deeper predicates are refused.
const DEPTH_MAX: usize = 200;

/// The filter's condition in brackets, over columns qualified by that name (unqualified without one).
pub(super) fn predicate(
    relation: &Relation,
    filter: &RowFilter,
    qualifier: Option<&str>,
) -> Result<String, CannotGovern> {
    predicate_over(relation, filter, qualifier, &|_| None)
}

/// The same, with other expressions in place of some columns.
pub(super) fn predicate_over(
    relation: &Relation,
    filter: &RowFilter,
    qualifier: Option<&str>,
    instead: &dyn Fn(&Column) -> Option<String>,
) -> Result<String, CannotGovern> {
    let printer = Printer {
        relation,
        qualifier,
        rule: &filter.rule,
        instead,
    };
    let parsed = pg_raw_parse::parse(&format!("SELECT ({}\n)", filter.predicate))
        .map_err(|error| printer.refuse(&format!("does not parse: {error}")))?;
    let mut statements = parsed.stmts();
    let (Some(Node::SelectStmt(select)), None) = (statements.next(), statements.next()) else {
        return Err(printer.refuse("is not one condition"));
    };
    let mut targets = select.target_list().iter();
    let (Some(target), None) = (targets.next(), targets.next()) else {
        return Err(printer.refuse("is not one condition"));
    };
    let alone = select.from_clause().is_empty()
        && matches!(select.where_clause(), Node::None)
        && select.sort_clause().is_empty()
        && select.larg().is_none()
        && target.name().is_none();
    if !alone {
        return Err(printer.refuse("is not one condition"));
    }
    printer.print(target.val(), 0)
}

struct Printer<'a> {
    relation: &'a Relation,
    qualifier: Option<&'a str>,
    rule: &'a str,
    instead: &'a dyn Fn(&Column) -> Option<String>,
}

impl Printer<'_> {
    fn refuse(&self, what: &str) -> CannotGovern {
        CannotGovern::Impossible(format!("row filter {}: its predicate {what}", self.rule))
    }

    fn not_built(&self, what: &str) -> CannotGovern {
        CannotGovern::NotBuilt(format!("{what} in the predicate of row filter {}", self.rule))
    }

    /// Every operator's result stands in brackets, so no precedence is left to chance.
    fn print(&self, node: Node<'_>, depth: usize) -> Result<String, CannotGovern> {
        if depth > DEPTH_MAX {
            return Err(self.refuse("is nested too deep"));
        }
        let deeper = depth + 1;
        match node {
            Node::ColumnRef(reference) => {
                let names: Vec<&str> = reference.fields().iter().filter_map(Node::as_str).collect();
                if names.len() != reference.fields().len() {
                    return Err(self.refuse("uses a whole row"));
                }
                let name = match names.as_slice() {
                    [name] => name,
                    [table, name] if *table == self.relation.name => name,
                    _ => return Err(self.refuse("names a column of another table")),
                };
                let Some(column) = self.relation.column(name) else {
                    return Err(
                        self.refuse(&format!("names the column {name}, which the table does not have"))
                    );
                };
                if let Some(other) = (self.instead)(column) {
                    return Ok(other);
                }
                Ok(match self.qualifier {
                    Some(qualifier) => format!("{}.{}", ident(qualifier), ident(name)),
                    None => ident(name),
                })
            }
            Node::A_Const(constant) if constant.isnull => Ok("NULL".to_owned()),
            Node::A_Const(constant) => match constant.val() {
                Some(ConstValue::Integer(value)) => Ok(format!("({value})")),
                Some(ConstValue::Float(value)) => Ok(format!("({value})")),
                Some(ConstValue::Boolean(value)) => Ok(if value { "true" } else { "false" }.to_owned()),
                Some(ConstValue::String(value)) => Ok(literal(value)),
                Some(ConstValue::BitString(_) | ConstValue::Unrecognized(_)) | None => {
                    Err(self.not_built("a bit string"))
                }
                Some(_) => Err(self.not_built("this constant")),
            },
            Node::TypeCast(cast) => {
                let Some(name) = cast.type_name() else {
                    return Err(self.refuse("casts to no type"));
                };
                Ok(format!(
                    "CAST({} AS {})",
                    self.print(cast.arg(), deeper)?,
                    self.type_name(name)?
                ))
            }
            Node::A_Expr(expr) => self.operator(expr, deeper),
            Node::BoolExpr(expr) => {
                let parts: Result<Vec<String>, _> =
                    expr.args().iter().map(|part| self.print(part, deeper)).collect();
                let parts = parts?;
                Ok(match expr.boolop {
                    BoolExprType::AND_EXPR => format!("({})", parts.join(" AND ")),
                    BoolExprType::OR_EXPR => format!("({})", parts.join(" OR ")),
                    _ => format!("(NOT ({}))", parts.join("")),
                })
            }
            Node::NullTest(test) => {
                let what = if test.nulltesttype == NullTestType::IS_NULL {
                    "IS NULL"
                } else {
                    "IS NOT NULL"
                };
                Ok(format!("({} {what})", self.print(test.arg(), deeper)?))
            }
            Node::BooleanTest(test) => {
                let what = match test.booltesttype {
                    BoolTestType::IS_TRUE => "IS TRUE",
                    BoolTestType::IS_NOT_TRUE => "IS NOT TRUE",
                    BoolTestType::IS_FALSE => "IS FALSE",
                    BoolTestType::IS_NOT_FALSE => "IS NOT FALSE",
                    BoolTestType::IS_UNKNOWN => "IS UNKNOWN",
                    _ => "IS NOT UNKNOWN",
                };
                Ok(format!("({} {what})", self.print(test.arg(), deeper)?))
            }
            Node::FuncCall(call) => self.call(call, deeper),
            Node::CoalesceExpr(expr) => Ok(format!("COALESCE({})", self.list(expr.args().iter(), deeper)?)),
            Node::A_ArrayExpr(array) => Ok(format!("ARRAY[{}]", self.list(array.elements().iter(), deeper)?)),
            Node::CaseExpr(case) => {
                let mut sql = "CASE".to_owned();
                for when in case.args() {
                    let Node::CaseWhen(when) = when else {
                        return Err(self.refuse("holds an unknown CASE"));
                    };
                    let mut test = self.print(when.expr(), deeper)?;
                    if !matches!(case.arg(), Node::None) {
                        test = format!(
                            "({} OPERATOR(pg_catalog.=) {test})",
                            self.print(case.arg(), deeper)?
                        );
                    }
                    sql.push_str(&format!(
                        " WHEN {test} THEN {}",
                        self.print(when.result(), deeper)?
                    ));
                }
                if !matches!(case.defresult(), Node::None) {
                    sql.push_str(&format!(" ELSE {}", self.print(case.defresult(), deeper)?));
                }
                sql.push_str(" END");
                Ok(sql)
            }
            Node::SQLValueFunction(_) => {
                // CURRENT_DATE, CURRENT_USER and their kin are keywords: nothing to qualify.
                deparse_alone(node).ok_or_else(|| self.not_built("this keyword"))
            }
            Node::SubLink(_) => Err(self.not_built("a sub-query")),
            _ => Err(self.not_built("this construct")),
        }
    }

    fn list<'n>(&self, nodes: impl Iterator<Item = Node<'n>>, depth: usize) -> Result<String, CannotGovern> {
        let parts: Result<Vec<String>, _> = nodes.map(|node| self.print(node, depth)).collect();
        Ok(parts?.join(", "))
    }

    fn operator(&self, expr: &A_Expr, depth: usize) -> Result<String, CannotGovern> {
        let left = match expr.lexpr() {
            Node::None => String::new(),
            node => self.print(node, depth)?,
        };
        let name: Vec<&str> = expr.name().iter().filter_map(Node::as_str).collect();
        let qualified = match name.as_slice() {
            [name] | ["pg_catalog", name] => format!("OPERATOR(pg_catalog.{name})"),
            _ => return Err(self.refuse("uses an operator outside pg_catalog")),
        };
        let right = |printer: &Self| printer.print(expr.rexpr(), depth);
        let items = |printer: &Self| -> Result<Vec<String>, CannotGovern> {
            match expr.rexpr() {
                Node::NodeList(list) => list.iter().map(|node| printer.print(node, depth)).collect(),
                _ => Err(printer.refuse("has an operator without its operands")),
            }
        };
        match expr.kind {
            A_Expr_Kind::AEXPR_OP
            | A_Expr_Kind::AEXPR_LIKE
            | A_Expr_Kind::AEXPR_ILIKE
            | A_Expr_Kind::AEXPR_SIMILAR => Ok(format!("({left} {qualified} {})", right(self)?)),
            A_Expr_Kind::AEXPR_OP_ANY => Ok(format!("({left} {qualified} ANY ({}))", right(self)?)),
            A_Expr_Kind::AEXPR_OP_ALL => Ok(format!("({left} {qualified} ALL ({}))", right(self)?)),
            A_Expr_Kind::AEXPR_IN => {
                let word = if name.first() == Some(&"=") { "ANY" } else { "ALL" };
                Ok(format!(
                    "({left} {qualified} {word} (ARRAY[{}]))",
                    items(self)?.join(", ")
                ))
            }
            A_Expr_Kind::AEXPR_BETWEEN | A_Expr_Kind::AEXPR_NOT_BETWEEN => {
                let items = items(self)?;
                let [low, high] = items.as_slice() else {
                    return Err(self.refuse("has a BETWEEN without bounds"));
                };
                let not = if expr.kind == A_Expr_Kind::AEXPR_NOT_BETWEEN {
                    "NOT "
                } else {
                    ""
                };
                Ok(format!(
                    "({not}(({left} OPERATOR(pg_catalog.>=) {low}) AND ({left} OPERATOR(pg_catalog.<=) {high})))"
                ))
            }
            A_Expr_Kind::AEXPR_DISTINCT | A_Expr_Kind::AEXPR_NOT_DISTINCT => {
                let right = right(self)?;
                let not = if expr.kind == A_Expr_Kind::AEXPR_DISTINCT {
                    "NOT "
                } else {
                    ""
                };
                Ok(format!(
                    "({not}COALESCE(({left} OPERATOR(pg_catalog.=) {right}), (({left} IS NULL) AND ({right} IS NULL))))"
                ))
            }
            A_Expr_Kind::AEXPR_NULLIF => {
                let right = right(self)?;
                Ok(format!(
                    "CASE WHEN ({left} OPERATOR(pg_catalog.=) {right}) THEN NULL ELSE {left} END"
                ))
            }
            _ => Err(self.not_built("this operator")),
        }
    }

    fn call(&self, call: &FuncCall, depth: usize) -> Result<String, CannotGovern> {
        let plain = call.agg_order().is_empty()
            && matches!(call.agg_filter(), Node::None)
            && call.over().is_none()
            && !call.agg_star
            && !call.agg_distinct
            && !call.agg_within_group
            && !call.func_variadic
            && !call
                .args()
                .iter()
                .any(|argument| matches!(argument, Node::NamedArgExpr(_)));
        if !plain {
            return Err(self.not_built("an aggregate or named argument"));
        }
        let names: Vec<&str> = call.funcname().iter().filter_map(Node::as_str).collect();
        let name = match names.as_slice() {
            [name] => format!("pg_catalog.{}", ident(name)),
            [schema, name] => format!("{}.{}", ident(schema), ident(name)),
            _ => return Err(self.refuse("calls a function without a name")),
        };
        Ok(format!("{name}({})", self.list(call.args().iter(), depth)?))
    }

    fn type_name(&self, name: &TypeName) -> Result<String, CannotGovern> {
        let names: Vec<&str> = name.names().iter().filter_map(|part| part.sval()).collect();
        let mut sql = match names.as_slice() {
            [name] => format!("pg_catalog.{}", ident(name)),
            [schema, name] => format!("{}.{}", ident(schema), ident(name)),
            _ => return Err(self.refuse("casts to a type without a name")),
        };
        if !name.typmods().is_empty() {
            if names.last() == Some(&"interval") {
                return Err(self.not_built("an interval with fields"));
            }
            let mut modifiers = Vec::new();
            for modifier in name.typmods() {
                match modifier {
                    Node::A_Const(constant) => match constant.val() {
                        Some(ConstValue::Integer(value)) => modifiers.push(value.to_string()),
                        _ => return Err(self.not_built("this type")),
                    },
                    _ => return Err(self.not_built("this type")),
                }
            }
            sql.push_str(&format!("({})", modifiers.join(", ")));
        }
        for _ in name.array_bounds() {
            sql.push_str("[]");
        }
        Ok(sql)
    }
}

/// A string literal that reads the same in every session.
pub(super) fn literal(value: &str) -> String {
    let quoted = value.replace('\'', "''");
    if quoted.contains('\\') {
        format!("E'{}'", quoted.replace('\\', "\\\\"))
    } else {
        format!("'{quoted}'")
    }
}

/// An expression's own text.
pub(super) fn deparse_alone(node: Node<'_>) -> Option<String> {
    let tree = pg_raw_parse::make::owned(|mem| {
        let value = mem.make_unique(node);
        let target = mem.make_res_target(None, mem.empty(), value);
        let mut select = mem.make_node::<pg_raw_parse::nodes::SelectStmt>();
        select.as_mut().set_target_list(mem.make_list(&[target]));
        mem.make_raw_stmt(select.uncast())
    });
    let printed = deparse(&*tree).ok()?;
    printed.as_str().strip_prefix("SELECT ").map(str::to_owned)
}
