//! Expressions.

use pg_raw_parse::list::CastNodeList;
use pg_raw_parse::nodes;
use pg_raw_parse::raw::{
    A_Expr_Kind, BoolExprType, BoolTestType, JsonExprOp, MinMaxOp, NullTestType, SQLValueFunctionOp,
    SubLinkType, XmlExprOp,
};
use pg_raw_parse::{ConstValue, Node};

use super::{Lower, Lowered, expr, kind_of, name_of, refuse, words};
use crate::facts::Unreadable;
use crate::form::{
    Constant, Expr, ExprKind, FunctionCall, Name, OperatorCall, OperatorShape, SortKey, SubqueryKind, Truth,
    TypeRef, Window,
};

impl Lower {
    /// Any expression. Kept small, because deep expressions come through here at every level.
    pub(super) fn expr(&mut self, node: Node<'_>) -> Lowered<Expr> {
        self.deeper(|lower| lower.expr_here(node))
    }

    fn expr_here(&mut self, node: Node<'_>) -> Lowered<Expr> {
        match node {
            Node::ColumnRef(column) => column_ref(column),
            Node::ParamRef(parameter) => self.parameter(parameter),
            Node::A_Const(constant) => Ok(expr(constant.location, constant_of(constant))),
            Node::A_Expr(operator) => self.operator(operator),
            Node::BoolExpr(boolean) => self.boolean(boolean),
            Node::FuncCall(call) => self.call(call),
            Node::TypeCast(cast) => self.cast(cast),
            Node::SubLink(link) => self.sub_link(link),
            Node::CaseExpr(case) => self.case(case),
            Node::NullTest(test) => self.null_test(test),
            Node::BooleanTest(test) => self.truth_test(test),
            other => self.rarer(other),
        }
    }

    #[inline(never)]
    fn rarer(&mut self, node: Node<'_>) -> Lowered<Expr> {
        match node {
            Node::CoalesceExpr(coalesce) => {
                let values = self.exprs(coalesce.args())?;
                Ok(expr(
                    coalesce.location,
                    ExprKind::Choice {
                        name: "coalesce",
                        values,
                    },
                ))
            }
            Node::MinMaxExpr(choice) => {
                let name = match choice.op {
                    MinMaxOp::IS_GREATEST => "greatest",
                    MinMaxOp::IS_LEAST => "least",
                    _ => return Err(refuse(node, "an expression")),
                };
                let values = self.exprs(choice.args())?;
                Ok(expr(choice.location, ExprKind::Choice { name, values }))
            }
            Node::CollateClause(collate) => {
                // The collation's own name runs no code.
                let value = self.expr(collate.arg())?;
                Ok(expr(collate.location, ExprKind::Wrapped(Box::new(value))))
            }
            Node::A_Indirection(indirection) => {
                let base = Box::new(self.expr(indirection.arg())?);
                let steps = self.steps(indirection.indirection())?;
                Ok(expr(base.location, ExprKind::Steps { base, steps }))
            }
            Node::A_ArrayExpr(array) => {
                let values = self.exprs(array.elements())?;
                Ok(expr(array.location, ExprKind::Array(values)))
            }
            Node::RowExpr(row) => {
                let values = self.exprs(row.args())?;
                Ok(expr(row.location, ExprKind::Row(values)))
            }
            Node::SQLValueFunction(value) => {
                session_value(value).ok_or_else(|| refuse(node, "an expression"))
            }
            Node::GroupingFunc(grouping) => {
                let values = self.exprs(grouping.args())?;
                Ok(expr(grouping.location, ExprKind::Grouping(values)))
            }
            Node::NamedArgExpr(named) => {
                let value = self.expr(named.arg())?;
                Ok(expr(named.location, ExprKind::Wrapped(Box::new(value))))
            }
            Node::SetToDefault(default) => Ok(expr(default.location, ExprKind::Default)),
            Node::CurrentOfExpr(_) => Ok(expr(-1, ExprKind::CurrentOf)),
            other => self.constructed(other),
        }
    }

    /// XML and JSON constructs of the grammar, as calls by name.
    #[inline(never)]
    fn constructed(&mut self, node: Node<'_>) -> Lowered<Expr> {
        match node {
            Node::XmlExpr(xml) => {
                let name = match xml.op {
                    XmlExprOp::IS_XMLCONCAT => "xmlconcat",
                    XmlExprOp::IS_XMLELEMENT => "xmlelement",
                    XmlExprOp::IS_XMLFOREST => "xmlforest",
                    XmlExprOp::IS_XMLPARSE => "xmlparse",
                    XmlExprOp::IS_XMLPI => "xmlpi",
                    XmlExprOp::IS_XMLROOT => "xmlroot",
                    XmlExprOp::IS_DOCUMENT => "?column?",
                    _ => return Err(refuse(node, "an expression")),
                };
                let mut args = Vec::new();
                for named in xml.named_args() {
                    match named {
                        Node::ResTarget(target) if target.indirection().is_empty() => {
                            args.push(self.expr(target.val())?)
                        }
                        other => return Err(refuse(other, "the attributes of an XML expression")),
                    }
                }
                args.extend(self.exprs(xml.args())?);
                Ok(grammar_call(xml.location, name, args, 9))
            }
            Node::XmlSerialize(xml) => {
                let args = vec![self.expr(xml.expr())?];
                let target = self.type_name(xml.type_name())?;
                let call = grammar_call(xml.location, "xmlserialize", args, 9);
                Ok(expr(
                    xml.location,
                    ExprKind::Cast {
                        value: Box::new(call),
                        target,
                    },
                ))
            }
            Node::JsonParseExpr(json) => {
                let args = self.json_value(json.expr())?;
                self.json_output(grammar_call(json.location, "json", args, 17), json.output())
            }
            Node::JsonScalarExpr(json) => {
                let args = vec![self.expr(json.expr())?];
                self.json_output(
                    grammar_call(json.location, "json_scalar", args, 17),
                    json.output(),
                )
            }
            Node::JsonSerializeExpr(json) => {
                let args = self.json_value(json.expr())?;
                self.json_output(
                    grammar_call(json.location, "json_serialize", args, 17),
                    json.output(),
                )
            }
            Node::JsonObjectConstructor(json) => {
                let mut args = Vec::new();
                for pair in json.exprs() {
                    args.push(self.expr(pair.key())?);
                    args.extend(self.json_value(pair.value())?);
                }
                self.json_output(
                    grammar_call(json.location, "json_object", args, 16),
                    json.output(),
                )
            }
            Node::JsonArrayConstructor(json) => {
                let mut args = Vec::new();
                for value in json.exprs() {
                    args.extend(self.json_value(Some(value))?);
                }
                self.json_output(grammar_call(json.location, "json_array", args, 16), json.output())
            }
            Node::JsonArrayQueryConstructor(json) => {
                let query = Box::new(self.query(json.query())?);
                let kind = ExprKind::Subquery {
                    kind: SubqueryKind::Array,
                    tested: None,
                    operator: None,
                    query,
                };
                let args = vec![expr(json.location, kind)];
                self.json_output(grammar_call(json.location, "json_array", args, 16), json.output())
            }
            Node::JsonObjectAgg(json) => {
                let mut args = Vec::new();
                if let Some(pair) = json.arg() {
                    args.push(self.expr(pair.key())?);
                    args.extend(self.json_value(pair.value())?);
                }
                self.json_aggregate("json_objectagg", args, json.constructor())
            }
            Node::JsonArrayAgg(json) => {
                let args = self.json_value(json.arg())?;
                self.json_aggregate("json_arrayagg", args, json.constructor())
            }
            Node::JsonFuncExpr(json) => {
                let name = match json.op {
                    JsonExprOp::JSON_EXISTS_OP => "json_exists",
                    JsonExprOp::JSON_QUERY_OP => "json_query",
                    JsonExprOp::JSON_VALUE_OP => "json_value",
                    _ => return Err(refuse(node, "an expression")),
                };
                let mut args = self.json_value(json.context_item())?;
                args.push(self.expr(json.pathspec())?);
                for argument in json.passing() {
                    match argument {
                        Node::JsonArgument(argument) => args.extend(self.json_value(argument.val())?),
                        other => return Err(refuse(other, "PASSING")),
                    }
                }
                for behavior in [json.on_empty(), json.on_error()].into_iter().flatten() {
                    args.extend(self.optional(behavior.expr())?);
                }
                self.json_output(grammar_call(json.location, name, args, 17), json.output())
            }
            Node::JsonIsPredicate(json) => {
                let args = vec![self.expr(json.expr())?];
                Ok(grammar_call(json.location, "?column?", args, 16))
            }
            Node::MergeSupportFunc(merge) => Ok(grammar_call(merge.location, "merge_action", Vec::new(), 17)),
            other => Err(refuse(other, "an expression")),
        }
    }

    pub(super) fn json_value(&mut self, value: Option<&nodes::JsonValueExpr>) -> Lowered<Vec<Expr>> {
        let mut values = Vec::new();
        if let Some(value) = value {
            values.extend(self.optional(value.raw_expr())?);
            values.extend(self.optional(value.formatted_expr())?);
        }
        Ok(values)
    }

    fn json_output(&mut self, call: Expr, output: Option<&nodes::JsonOutput>) -> Lowered<Expr> {
        match output.filter(|output| output.type_name().is_some()) {
            Some(output) => {
                let target = self.type_name(output.type_name())?;
                Ok(expr(
                    call.location,
                    ExprKind::Cast {
                        value: Box::new(call),
                        target,
                    },
                ))
            }
            None => Ok(call),
        }
    }

    fn json_aggregate(
        &mut self,
        name: &str,
        args: Vec<Expr>,
        constructor: Option<&nodes::JsonAggConstructor>,
    ) -> Lowered<Expr> {
        let Some(constructor) = constructor else {
            return Err(Unreadable::NotBuilt(format!("{name} without its parts")));
        };
        let order = self.sort_nodes(constructor.agg_order())?;
        let filter = self.optional(constructor.agg_filter())?;
        let over = constructor.over().map(|window| self.window(window)).transpose()?;
        let call = FunctionCall {
            name: Name {
                catalog: None,
                schema: None,
                name: name.to_owned(),
            },
            args,
            star: false,
            order,
            filter,
            aggregate: true,
            over,
            grammar: Some(16),
        };
        self.json_output(
            expr(constructor.location, ExprKind::Call(Box::new(call))),
            constructor.output(),
        )
    }

    fn parameter(&mut self, parameter: &nodes::ParamRef) -> Lowered<Expr> {
        let number = u16::try_from(parameter.number)
            .map_err(|_| Unreadable::TooComplex(format!("parameter ${}", parameter.number)))?;
        self.parameters = self.parameters.max(number);
        Ok(expr(parameter.location, ExprKind::Parameter(number)))
    }

    #[inline(never)]
    fn operator(&mut self, node: &nodes::A_Expr) -> Lowered<Expr> {
        let written = name_of(node.name(), "an operator");
        let (names, shape) = match node.kind {
            A_Expr_Kind::AEXPR_OP
            | A_Expr_Kind::AEXPR_LIKE
            | A_Expr_Kind::AEXPR_ILIKE
            | A_Expr_Kind::AEXPR_SIMILAR => (vec![written?], OperatorShape::Plain),
            A_Expr_Kind::AEXPR_OP_ANY => (vec![written?], OperatorShape::AnyOf),
            A_Expr_Kind::AEXPR_OP_ALL => (vec![written?], OperatorShape::AllOf),
            A_Expr_Kind::AEXPR_DISTINCT => (vec![written?], OperatorShape::Distinct),
            A_Expr_Kind::AEXPR_NOT_DISTINCT => (vec![written?], OperatorShape::NotDistinct),
            A_Expr_Kind::AEXPR_NULLIF => (vec![written?], OperatorShape::NullIf),
            A_Expr_Kind::AEXPR_IN => {
                let name = written?;
                let shape = if name.name == "=" {
                    OperatorShape::In
                } else {
                    OperatorShape::NotIn
                };
                (vec![name], shape)
            }
            A_Expr_Kind::AEXPR_BETWEEN | A_Expr_Kind::AEXPR_BETWEEN_SYM => {
                (vec![plain(">="), plain("<=")], OperatorShape::Between)
            }
            A_Expr_Kind::AEXPR_NOT_BETWEEN | A_Expr_Kind::AEXPR_NOT_BETWEEN_SYM => {
                (vec![plain("<"), plain(">")], OperatorShape::NotBetween)
            }
            _ => return Err(refuse(Node::A_Expr(node), "an expression of that kind")),
        };
        let left = self.optional(node.lexpr())?;
        let right = match node.rexpr() {
            Node::NodeList(list) => self.exprs(list)?,
            other => vec![self.expr(other)?],
        };
        Ok(expr(
            node.location,
            ExprKind::Operator(Box::new(OperatorCall {
                names,
                shape,
                left,
                right,
            })),
        ))
    }

    fn boolean(&mut self, node: &nodes::BoolExpr) -> Lowered<Expr> {
        let mut parts = self.exprs(node.args())?;
        let kind = match node.boolop {
            BoolExprType::AND_EXPR => ExprKind::And(parts),
            BoolExprType::OR_EXPR => ExprKind::Or(parts),
            BoolExprType::NOT_EXPR => match (parts.pop(), parts.is_empty()) {
                (Some(part), true) => ExprKind::Not(Box::new(part)),
                _ => return Err(refuse(Node::BoolExpr(node), "NOT")),
            },
            _ => return Err(refuse(Node::BoolExpr(node), "an expression")),
        };
        Ok(expr(node.location, kind))
    }

    fn cast(&mut self, node: &nodes::TypeCast) -> Lowered<Expr> {
        let value = Box::new(self.expr(node.arg())?);
        let target = self.type_name(node.type_name())?;
        let location = if node.location >= 0 {
            node.location
        } else {
            target.location
        };
        Ok(expr(location, ExprKind::Cast { value, target }))
    }

    #[inline(never)]
    pub(super) fn call(&mut self, node: &nodes::FuncCall) -> Lowered<Expr> {
        let name = name_of(node.funcname(), "a function name")?;
        let args = self.exprs(node.args())?;
        let order = self.sort(node.agg_order())?;
        let filter = self.optional(node.agg_filter())?;
        let over = node.over().map(|window| self.window(window)).transpose()?;
        // VARIADIC, DISTINCT and the way the call is written change nothing here.
        let call = FunctionCall {
            name,
            args,
            star: node.agg_star,
            order,
            filter,
            aggregate: node.agg_within_group,
            over,
            grammar: None,
        };
        Ok(expr(node.location, ExprKind::Call(Box::new(call))))
    }

    #[inline(never)]
    fn sub_link(&mut self, node: &nodes::SubLink) -> Lowered<Expr> {
        let kind = match node.sub_link_type {
            SubLinkType::EXISTS_SUBLINK => SubqueryKind::Exists,
            SubLinkType::ALL_SUBLINK => SubqueryKind::All,
            SubLinkType::ANY_SUBLINK => SubqueryKind::Any,
            SubLinkType::EXPR_SUBLINK => SubqueryKind::Scalar,
            SubLinkType::ARRAY_SUBLINK => SubqueryKind::Array,
            _ => return Err(refuse(Node::SubLink(node), "an expression")),
        };
        let tested = self.optional(node.testexpr())?.map(Box::new);
        let operator = match (&tested, node.oper_name().is_empty()) {
            (Some(_), true) => Some(plain("=")),
            (Some(_), false) => Some(name_of(node.oper_name(), "an operator")?),
            (None, _) => None,
        };
        let query = Box::new(self.query(node.subselect())?);
        Ok(expr(
            node.location,
            ExprKind::Subquery {
                kind,
                tested,
                operator,
                query,
            },
        ))
    }

    #[inline(never)]
    fn case(&mut self, node: &nodes::CaseExpr) -> Lowered<Expr> {
        let subject = self.optional(node.arg())?.map(Box::new);
        let mut whens = Vec::new();
        for when in node.args() {
            match when {
                Node::CaseWhen(when) => {
                    let condition = self.expr(when.expr())?;
                    whens.push((condition, self.expr(when.result())?));
                }
                other => return Err(refuse(other, "CASE")),
            }
        }
        let otherwise = self.optional(node.defresult())?.map(Box::new);
        Ok(expr(
            node.location,
            ExprKind::Case {
                subject,
                whens,
                otherwise,
            },
        ))
    }

    fn null_test(&mut self, node: &nodes::NullTest) -> Lowered<Expr> {
        let negated = match node.nulltesttype {
            NullTestType::IS_NULL => false,
            NullTestType::IS_NOT_NULL => true,
            _ => return Err(refuse(Node::NullTest(node), "an expression")),
        };
        let value = Box::new(self.expr(node.arg())?);
        Ok(expr(node.location, ExprKind::NullTest { value, negated }))
    }

    fn truth_test(&mut self, node: &nodes::BooleanTest) -> Lowered<Expr> {
        let test = match node.booltesttype {
            BoolTestType::IS_TRUE => Truth::True,
            BoolTestType::IS_NOT_TRUE => Truth::NotTrue,
            BoolTestType::IS_FALSE => Truth::False,
            BoolTestType::IS_NOT_FALSE => Truth::NotFalse,
            BoolTestType::IS_UNKNOWN => Truth::Unknown,
            BoolTestType::IS_NOT_UNKNOWN => Truth::NotUnknown,
            _ => return Err(refuse(Node::BooleanTest(node), "an expression")),
        };
        let value = Box::new(self.expr(node.arg())?);
        Ok(expr(node.location, ExprKind::TruthTest { value, test }))
    }

    pub(super) fn sort(&mut self, list: &CastNodeList<nodes::SortBy>) -> Lowered<Vec<SortKey>> {
        let mut keys = Vec::new();
        for key in list {
            keys.push(self.sort_key(key)?);
        }
        Ok(keys)
    }

    fn sort_nodes(&mut self, list: &pg_raw_parse::list::NodeList) -> Lowered<Vec<SortKey>> {
        let mut keys = Vec::new();
        for node in list {
            match node {
                Node::SortBy(key) => keys.push(self.sort_key(key)?),
                other => return Err(refuse(other, "ORDER BY")),
            }
        }
        Ok(keys)
    }

    fn sort_key(&mut self, key: &nodes::SortBy) -> Lowered<SortKey> {
        let using = match key.use_op().is_empty() {
            true => None,
            false => Some(name_of(key.use_op(), "ORDER BY USING")?),
        };
        Ok(SortKey {
            expr: self.expr(key.node())?,
            using,
        })
    }

    pub(super) fn window(&mut self, node: &nodes::WindowDef) -> Lowered<Window> {
        let partition = self.exprs(node.partition_clause())?;
        let order = self.sort(node.order_clause())?;
        let mut bounds = Vec::new();
        bounds.extend(self.optional(node.start_offset())?);
        bounds.extend(self.optional(node.end_offset())?);
        Ok(Window {
            name: node.name().map(str::to_owned),
            base: node.refname().map(str::to_owned),
            partition,
            order,
            bounds,
        })
    }

    /// Columns of a type list after AS.
    pub(super) fn definitions(
        &mut self,
        list: &CastNodeList<nodes::ColumnDef>,
    ) -> Lowered<Vec<(String, TypeRef)>> {
        let mut columns = Vec::new();
        for column in list {
            let name = column.colname().unwrap_or_default().to_owned();
            columns.push((name, self.type_name(column.type_name())?));
        }
        Ok(columns)
    }
}

fn plain(name: &str) -> Name {
    Name {
        catalog: None,
        schema: None,
        name: name.to_owned(),
    }
}

/// A construct that the grammar itself knows, with the first server major that has it.
pub(super) fn grammar_call(location: i32, name: &str, args: Vec<Expr>, major: u16) -> Expr {
    let call = FunctionCall {
        name: plain(name),
        args,
        star: false,
        order: Vec::new(),
        filter: None,
        aggregate: false,
        over: None,
        grammar: Some(major),
    };
    expr(location, ExprKind::Call(Box::new(call)))
}

fn column_ref(node: &nodes::ColumnRef) -> Lowered<Expr> {
    let mut parts = words(node.fields());
    let star = matches!(node.fields().iter().next_back(), Some(Node::A_Star(_)));
    if parts.len() + usize::from(star) != node.fields().len() {
        return Err(Unreadable::NotBuilt("a column name with a star in it".to_owned()));
    }
    parts.shrink_to_fit();
    Ok(expr(node.location, ExprKind::Column { parts, star }))
}

fn constant_of(node: &nodes::A_Const) -> ExprKind {
    if node.isnull {
        return ExprKind::Constant(Constant::Null);
    }
    ExprKind::Constant(match node.val() {
        Some(ConstValue::Integer(value)) => Constant::Integer(value),
        Some(ConstValue::Boolean(value)) => Constant::Boolean(value),
        Some(ConstValue::String(value)) => Constant::Text(value.to_owned()),
        Some(ConstValue::Float(_) | ConstValue::BitString(_)) => Constant::Other,
        Some(_) | None => Constant::Other,
    })
}

fn session_value(node: &nodes::SQLValueFunction) -> Option<Expr> {
    let name = match node.op {
        SQLValueFunctionOp::SVFOP_CURRENT_DATE => "current_date",
        SQLValueFunctionOp::SVFOP_CURRENT_TIME | SQLValueFunctionOp::SVFOP_CURRENT_TIME_N => "current_time",
        SQLValueFunctionOp::SVFOP_CURRENT_TIMESTAMP | SQLValueFunctionOp::SVFOP_CURRENT_TIMESTAMP_N => {
            "current_timestamp"
        }
        SQLValueFunctionOp::SVFOP_LOCALTIME | SQLValueFunctionOp::SVFOP_LOCALTIME_N => "localtime",
        SQLValueFunctionOp::SVFOP_LOCALTIMESTAMP | SQLValueFunctionOp::SVFOP_LOCALTIMESTAMP_N => {
            "localtimestamp"
        }
        SQLValueFunctionOp::SVFOP_CURRENT_ROLE => "current_role",
        SQLValueFunctionOp::SVFOP_CURRENT_USER => "current_user",
        SQLValueFunctionOp::SVFOP_USER => "user",
        SQLValueFunctionOp::SVFOP_SESSION_USER => "session_user",
        SQLValueFunctionOp::SVFOP_CURRENT_CATALOG => "current_catalog",
        SQLValueFunctionOp::SVFOP_CURRENT_SCHEMA => "current_schema",
        _ => return None,
    };
    Some(expr(node.location, ExprKind::Session(name)))
}

/// Text of a constant as SET and similar statements take it.
pub(super) fn setting_text(node: Node<'_>) -> Lowered<String> {
    match node {
        Node::A_Const(constant) => match constant.val() {
            Some(ConstValue::Integer(value)) => Ok(value.to_string()),
            Some(ConstValue::Boolean(value)) => Ok(value.to_string()),
            Some(ConstValue::String(value) | ConstValue::Float(value) | ConstValue::BitString(value)) => {
                Ok(value.to_owned())
            }
            Some(_) | None => Err(Unreadable::NotBuilt("a setting's value of that kind".to_owned())),
        },
        Node::TypeCast(cast) => setting_text(cast.arg()),
        Node::ColumnRef(column) => match words(column.fields()).as_slice() {
            [word] => Ok(word.clone()),
            _ => Err(Unreadable::NotBuilt(
                "a setting's value of several parts".to_owned(),
            )),
        },
        other => Err(Unreadable::NotBuilt(format!(
            "{} as a setting's value",
            kind_of(other)
        ))),
    }
}
