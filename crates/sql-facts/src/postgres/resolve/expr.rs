//! Expressions.

use std::rc::Rc;

use super::{Found, Resolved, Resolver};
use crate::catalog::Operand;
use crate::facts::{
    Action, CallSyntax, Clause, FunctionOrigin, RefTarget, SessionEffect, Transformation, Unreadable,
};
use crate::form::{
    Constant, Expr, ExprKind, FunctionCall, Location, Name, OperatorCall, OperatorShape, SortKey, Step,
    SubqueryKind, Truth, Window,
};
use crate::postgres::condition::Condition;
use crate::postgres::lineage::Lineage;
use crate::postgres::scope::{Entry, Env, Field};

/// What is known of an expression.
#[derive(Debug, Clone)]
pub(super) struct Value {
    pub(super) lineage: Lineage,
    /// Its fields, where it is a row of known shape.
    pub(super) row: Option<Rc<Vec<Field>>>,
    /// It reads the row that is updated or deleted.
    pub(super) reads_target: bool,
    pub(super) condition: Condition,
    /// Its type, as far as it is certain.
    pub(super) kind: Operand,
}

impl Default for Value {
    fn default() -> Self {
        Self {
            lineage: Lineage::default(),
            row: None,
            reads_target: false,
            condition: Condition::default(),
            kind: Operand::Unsure,
        }
    }
}

impl Value {
    /// Without origins, of that type.
    fn of_kind(kind: Operand) -> Self {
        Self {
            kind,
            ..Self::default()
        }
    }

    /// Adds what another value contributes.
    fn take(&mut self, other: &Self, how: Transformation) {
        self.lineage.add(&other.lineage, how);
        self.reads_target |= other.reads_target;
    }

    pub(super) fn field(&self, name: String) -> Field {
        Field {
            name,
            lineage: Rc::new(self.lineage.clone()),
            row: self.row.clone(),
            // A literal without a type is text one level further out.
            kind: match self.kind {
                Operand::Untyped | Operand::Unsure => Operand::Unsure,
                Operand::Typed(oid) => Operand::Typed(oid),
            },
            origin: None,
        }
    }
}

impl<'v> Resolver<'v> {
    /// Any expression. Kept small, because deep expressions come through here at every level.
    pub(super) fn expr<'q>(&mut self, expr: &'q Expr, env: Env<'_, 'q>, clause: Clause) -> Resolved<Value> {
        self.deeper(|resolver| resolver.expr_here(expr, env, clause))
    }

    fn expr_here<'q>(&mut self, expr: &'q Expr, env: Env<'_, 'q>, clause: Clause) -> Resolved<Value> {
        match &expr.kind {
            ExprKind::Constant(constant) => Ok(Value::of_kind(constant_kind(constant))),
            ExprKind::Parameter(number) => Ok(Value::of_kind(self.parameter(*number))),
            ExprKind::Session(_) | ExprKind::Default => Ok(Value::default()),
            ExprKind::Column { parts, star } => self.column(expr.location, parts, *star, env, clause),
            ExprKind::Operator(call) => self.operator(expr.location, call, env, clause),
            ExprKind::Call(call) => self.call(expr.location, call, env, clause),
            ExprKind::And(parts) => self.connected(parts, true, env, clause),
            ExprKind::Or(parts) => self.connected(parts, false, env, clause),
            ExprKind::Cast { .. } => self.cast(expr, env, clause),
            _ => self.rarer(expr, env, clause),
        }
    }

    #[inline(never)]
    fn cast<'q>(&mut self, expr: &'q Expr, env: Env<'_, 'q>, clause: Clause) -> Resolved<Value> {
        let ExprKind::Cast { value: inner, target } = &expr.kind else {
            return Ok(Value::default());
        };
        let inner = self.expr(inner, env, clause)?;
        let kind = self.note_cast(target, expr.location, inner.kind);
        let mut value = Value {
            condition: inner.condition,
            kind,
            ..Value::default()
        };
        value.take(&inner, Transformation::Transformation);
        Ok(value)
    }

    #[inline(never)]
    fn connected<'q>(
        &mut self,
        parts: &'q [Expr],
        all: bool,
        env: Env<'_, 'q>,
        clause: Clause,
    ) -> Resolved<Value> {
        let mut value = Value::of_kind(BOOLEAN);
        let mut conditions = Vec::with_capacity(parts.len());
        for part in parts {
            let part = self.expr(part, env, clause)?;
            value.take(&part, Transformation::Transformation);
            conditions.push(part.condition);
        }
        value.condition = if all {
            Condition::all_of(conditions)
        } else {
            Condition::any_of(conditions)
        };
        Ok(value)
    }

    #[inline(never)]
    fn rarer<'q>(&mut self, expr: &'q Expr, env: Env<'_, 'q>, clause: Clause) -> Resolved<Value> {
        match &expr.kind {
            ExprKind::Constant(_)
            | ExprKind::Parameter(_)
            | ExprKind::Session(_)
            | ExprKind::Default
            | ExprKind::Column { .. }
            | ExprKind::Operator(_)
            | ExprKind::Call(_)
            | ExprKind::And(_)
            | ExprKind::Or(_)
            | ExprKind::Cast { .. } => self.expr_here(expr, env, clause),
            ExprKind::Not(inner) => {
                let mut value = self.expr(inner, env, clause)?.computed();
                value.condition = value.condition.negated();
                Ok(value)
            }
            ExprKind::Wrapped(inner) => {
                let inner = self.expr(inner, env, clause)?;
                let mut value = inner.clone().computed();
                value.condition = inner.condition;
                value.row = inner.row;
                Ok(value)
            }
            ExprKind::NullTest {
                value: inner,
                negated,
            } => {
                let inner = self.expr(inner, env, clause)?;
                let mut value = Value::of_kind(BOOLEAN);
                value.take(&inner, Transformation::Transformation);
                // IS NULL picks rows out; IS NOT NULL is what a whole table answers with yes.
                let restricts = inner.reads_target;
                value.condition = Condition {
                    restricts: restricts && !negated,
                    negation_restricts: restricts && *negated,
                    boolean: true,
                };
                Ok(value)
            }
            ExprKind::TruthTest { value: inner, test } => {
                let inner = self.expr(inner, env, clause)?;
                let mut value = Value::of_kind(BOOLEAN);
                value.take(&inner, Transformation::Transformation);
                let asked = if inner.condition.boolean {
                    inner.condition
                } else {
                    Condition::comparison(inner.reads_target)
                };
                value.condition = match test {
                    Truth::True | Truth::NotFalse => asked,
                    Truth::False | Truth::NotTrue => asked.negated(),
                    Truth::Unknown | Truth::NotUnknown => Condition {
                        boolean: true,
                        ..Condition::default()
                    },
                };
                Ok(value)
            }
            ExprKind::Case {
                subject,
                whens,
                otherwise,
            } => self.case(
                expr.location,
                subject.as_deref(),
                whens,
                otherwise.as_deref(),
                env,
                clause,
            ),
            ExprKind::Choice { values, .. } => {
                let mut value = Value::default();
                let mut kinds = Vec::with_capacity(values.len());
                for (index, part) in values.iter().enumerate() {
                    let part = self.expr(part, env, clause)?;
                    value.take(&part, Transformation::Transformation);
                    if index + 1 < values.len() {
                        value.lineage.add(&part.lineage, Transformation::Conditional);
                    }
                    kinds.push(part.kind);
                }
                value.kind = common_kind(kinds);
                Ok(value)
            }
            ExprKind::Subquery {
                kind,
                tested,
                operator,
                query,
            } => {
                let tested = match tested {
                    Some(tested) => Some(self.expr(tested, env, clause)?),
                    None => None,
                };
                let output = self.query(query, env, Clause::InnerOutput, false)?;
                if let Some(operator) = operator {
                    let left = tested.as_ref().map_or(Operand::Unsure, |tested| tested.kind);
                    let right = output.only_kind();
                    self.note_operator(expr.location, operator, (Some(left), right), None);
                }
                let mut value = Value::default();
                match kind {
                    SubqueryKind::Exists => {
                        value.condition = Condition::comparison(output.condition.restricts);
                        value.kind = BOOLEAN;
                    }
                    SubqueryKind::Scalar => {
                        if let [field] = output.fields.as_slice() {
                            value.lineage.add(&field.lineage, Transformation::Transformation);
                            value.row.clone_from(&field.row);
                            value.kind = field.kind;
                        } else {
                            // Several columns: the source of `(a, b) = (SELECT …)`, or a row to compare with.
                            for field in &output.fields {
                                value.lineage.add(&field.lineage, Transformation::Transformation);
                            }
                            value.row = Some(Rc::new(output.fields));
                        }
                        value.condition.restricts = output.condition.restricts;
                    }
                    SubqueryKind::Array => {
                        for field in &output.fields {
                            value.lineage.add(&field.lineage, Transformation::Aggregation);
                        }
                    }
                    SubqueryKind::Any | SubqueryKind::All => {
                        for field in &output.fields {
                            value.lineage.add(&field.lineage, Transformation::Transformation);
                        }
                        let restricts = tested.as_ref().is_some_and(|tested| tested.reads_target)
                            && (output.has_source || !output.reads_target);
                        value.condition = Condition::comparison(restricts);
                        value.kind = BOOLEAN;
                    }
                }
                if let Some(tested) = &tested {
                    value.take(tested, Transformation::Transformation);
                }
                // A sub-query without FROM passes the outer row on; one with FROM brings rows of its own.
                value.reads_target |= output.reads_target && !output.has_source;
                Ok(value)
            }
            ExprKind::Row(values) => {
                let mut value = Value::default();
                let mut fields = Vec::with_capacity(values.len());
                for (index, part) in values.iter().enumerate() {
                    let part = self.expr(part, env, clause)?;
                    value.take(&part, Transformation::Transformation);
                    fields.push(part.field(format!("f{}", index + 1)));
                }
                value.row = Some(Rc::new(fields));
                Ok(value)
            }
            ExprKind::Array(values) => {
                let mut value = Value::default();
                let mut kinds = Vec::with_capacity(values.len());
                for part in values {
                    let part = self.expr(part, env, clause)?;
                    value.take(&part, Transformation::Transformation);
                    kinds.push(part.kind);
                }
                kinds.dedup();
                if let [element] = kinds.as_slice() {
                    value.kind = self.view.array_over(*element);
                }
                Ok(value)
            }
            ExprKind::Grouping(values) => {
                let mut value = Value::default();
                for part in values {
                    let part = self.expr(part, env, clause)?;
                    value.take(&part, Transformation::GroupBy);
                }
                Ok(value)
            }
            ExprKind::CurrentOf => Ok(Value {
                condition: Condition::comparison(true),
                reads_target: true,
                ..Value::of_kind(BOOLEAN)
            }),
            ExprKind::Steps { base, steps } => self.steps(base, steps, env, clause),
        }
    }

    fn case<'q>(
        &mut self,
        location: Location,
        subject: Option<&'q Expr>,
        whens: &'q [(Expr, Expr)],
        otherwise: Option<&'q Expr>,
        env: Env<'_, 'q>,
        clause: Clause,
    ) -> Resolved<Value> {
        let mut value = Value::default();
        let mut compared = None;
        let mut kinds = Vec::with_capacity(whens.len() + 1);
        if let Some(subject) = subject {
            let subject = self.expr(subject, env, clause)?;
            value.take(&subject, Transformation::Conditional);
            compared = Some(subject.kind);
        }
        for (condition, result) in whens {
            let condition = self.expr(condition, env, clause)?;
            value.take(&condition, Transformation::Conditional);
            if let Some(subject) = compared {
                self.note_operator(location, &equals(), (Some(subject), condition.kind), None);
            }
            let result = self.expr(result, env, clause)?;
            value.take(&result, Transformation::Transformation);
            kinds.push(result.kind);
        }
        if let Some(otherwise) = otherwise {
            let otherwise = self.expr(otherwise, env, clause)?;
            value.take(&otherwise, Transformation::Transformation);
            kinds.push(otherwise.kind);
        }
        value.kind = common_kind(kinds);
        Ok(value)
    }

    #[inline(never)]
    fn operator<'q>(
        &mut self,
        location: Location,
        call: &'q OperatorCall,
        env: Env<'_, 'q>,
        clause: Clause,
    ) -> Resolved<Value> {
        let operands = if call.left.is_some() { 2 } else { 1 };
        let mut right_kinds = Vec::with_capacity(call.right.len());
        let left = match &call.left {
            Some(left) => self.expr(left, env, clause)?,
            None => Value::default(),
        };
        let mut value = Value::default();
        value.take(&left, Transformation::Transformation);
        let mut comparisons = Vec::with_capacity(call.right.len());
        for right in &call.right {
            let known_null = matches!(right.kind, ExprKind::Constant(Constant::Null));
            let constant = constant_boolean(right);
            let right = self.expr(right, env, clause)?;
            value.take(&right, Transformation::Transformation);
            right_kinds.push(right.kind);
            let restricts = left.reads_target != right.reads_target;
            comparisons.push(match (call.shape, constant) {
                // `x IS DISTINCT FROM NULL` is `x IS NOT NULL`.
                (OperatorShape::Distinct, _) if known_null => Condition::comparison(restricts).only_negated(),
                (OperatorShape::NotDistinct, _) if known_null => {
                    Condition::comparison(restricts).only_negated().negated()
                }
                (_, Some(true)) if left.condition.boolean && is_equals(call) => left.condition,
                (_, Some(false)) if left.condition.boolean && is_equals(call) => left.condition.negated(),
                _ => Condition::comparison(restricts),
            });
        }
        // The operator of ANY and ALL compares with the array's elements.
        right_kinds.dedup();
        let right_kind = match (call.shape, right_kinds.as_slice()) {
            (OperatorShape::AnyOf | OperatorShape::AllOf, [array]) => self.view.element_of(*array),
            (_, [one]) => *one,
            (_, _) => Operand::Unsure,
        };
        let left_kind = call.left.is_some().then_some(left.kind);
        value.kind = match call.shape {
            OperatorShape::Plain => Operand::Unsure,
            OperatorShape::NullIf => left.kind,
            OperatorShape::AnyOf
            | OperatorShape::AllOf
            | OperatorShape::Distinct
            | OperatorShape::NotDistinct
            | OperatorShape::In
            | OperatorShape::NotIn
            | OperatorShape::Between
            | OperatorShape::NotBetween => BOOLEAN,
        };
        for name in &call.names {
            let literal = match call.right.as_slice() {
                [one] if call.shape == OperatorShape::Plain => constant_text(one),
                _ => None,
            };
            let result = self.note_operator(location, name, (left_kind, right_kind), literal);
            if call.shape == OperatorShape::Plain {
                value.kind = result;
            }
        }
        value.condition = match (call.shape, comparisons.as_slice()) {
            (OperatorShape::In, _) => Condition::any_of(comparisons),
            (OperatorShape::Between, _) => Condition::all_of(comparisons),
            (OperatorShape::NotIn, _) => Condition::all_of(comparisons),
            (OperatorShape::NotBetween, _) => Condition::any_of(comparisons),
            (_, [one]) if operands == 2 => *one,
            (_, _) => Condition::default(),
        };
        Ok(value)
    }

    #[inline(never)]
    fn call<'q>(
        &mut self,
        location: Location,
        call: &'q FunctionCall,
        env: Env<'_, 'q>,
        clause: Clause,
    ) -> Resolved<Value> {
        let mut arguments = Vec::with_capacity(call.args.len());
        for argument in &call.args {
            arguments.push(self.expr(argument, env, clause)?);
        }
        let (aggregate, kind) = self.function(location, call, &arguments);
        let how = if aggregate {
            Transformation::Aggregation
        } else {
            Transformation::Transformation
        };
        let mut value = Value::default();
        for argument in &arguments {
            value.take(argument, how);
        }
        for key in &call.order {
            // WITHIN GROUP (ORDER BY x) aggregates x itself.
            let key = self.sort_key(location, key, env, clause)?;
            value.take(&key, Transformation::Aggregation);
        }
        if let Some(filter) = &call.filter {
            let filter = self.expr(filter, env, clause)?;
            self.decides(&filter.lineage, Transformation::Filter);
        }
        if let Some(window) = &call.over {
            let over = self.window(location, window, env, clause)?;
            value.lineage.add(&over, Transformation::Window);
        }
        let outside = arguments.iter().any(|argument| !argument.reads_target);
        value.condition = Condition::comparison(value.reads_target && outside);
        value.condition.boolean = false;
        value.kind = kind;
        self.last_arguments = arguments.iter().map(|argument| argument.kind).collect();
        Ok(value)
    }

    /// Notes the call itself; tells whether it is an aggregate, and the type of its result.
    fn function(&mut self, location: Location, call: &FunctionCall, arguments: &[Value]) -> (bool, Operand) {
        if call
            .grammar
            .is_some_and(|major| self.view.catalog.server_major >= major)
        {
            self.note_grammar(location, &call.name.name, call.aggregate);
            return (call.aggregate, Operand::Unsure);
        }
        let mut kinds: Vec<Operand> = arguments.iter().map(|argument| argument.kind).collect();
        if call.aggregate {
            kinds.extend(call.order.iter().map(|_| Operand::Unsure));
        }
        // `column(row)` is a column of the row, if no function has that name.
        if let ([argument], None, false) = (arguments, &call.name.schema, call.star)
            && let Some(row) = &argument.row
            && row.iter().any(|field| field.name == call.name.name)
            && self.view.function(None, &call.name.name, 1).origin == FunctionOrigin::Unknown
        {
            return (false, Operand::Unsure);
        }
        let literal = call.args.first().and_then(constant_text);
        let facts = self.note_function(location, &call.name, &kinds, literal);
        self.settings(call);
        self.sequences(call);
        let kind = self
            .view
            .function_result(call.name.schema.as_deref(), &call.name.name, &kinds);
        (facts.aggregate || call.aggregate, kind)
    }

    /// What `set_config` does to the session. It is certain only where the call is sure to run, which the statement
    /// decides ([`Resolver::settle_settings`]).
    fn settings(&mut self, call: &FunctionCall) {
        if call.name.name != "set_config" || !matches!(call.name.schema.as_deref(), None | Some("pg_catalog"))
        {
            return;
        }
        let effect = match call.args.as_slice() {
            [name, value, local] => {
                match (constant_text(name), constant_text(value), constant_boolean(local)) {
                    (Some(name), Some(value), Some(local)) => SessionEffect::Setting {
                        name: name.to_ascii_lowercase(),
                        values: Some(vec![value.to_owned()]),
                        local,
                    },
                    _ => SessionEffect::UnknownSetting,
                }
            }
            _ => SessionEffect::UnknownSetting,
        };
        self.effects.push(effect);
    }

    /// `nextval('s')` and its kin act on the sequence, or on the table that owns it.
    fn sequences(&mut self, call: &FunctionCall) {
        if !matches!(call.name.schema.as_deref(), None | Some("pg_catalog")) {
            return;
        }
        let action = match call.name.name.as_str() {
            "nextval" | "setval" => Action::Insert,
            "currval" | "pg_sequence_last_value" => Action::Select,
            _ => return,
        };
        let written = call.args.first().and_then(constant_text);
        let parts = written.and_then(split_name);
        let found = match parts.as_deref() {
            Some([name]) => self.view.resolve_relation(None, name),
            Some([schema, name]) => self.view.resolve_relation(Some(schema), name),
            Some(_) | None => None,
        };
        match found {
            Some(sequence) => match sequence.owned_by {
                Some((table, column)) => self.act_by_oid(action, table, Some(column)),
                None => self.act_by_oid(action, sequence.oid, None),
            },
            None => {
                let name = written.unwrap_or("a sequence named at run time").to_owned();
                self.actions.push(crate::facts::TableAction {
                    action,
                    relation: None,
                    name,
                    columns: Default::default(),
                });
            }
        }
    }

    pub(super) fn sort_key<'q>(
        &mut self,
        location: Location,
        key: &'q SortKey,
        env: Env<'_, 'q>,
        clause: Clause,
    ) -> Resolved<Value> {
        if let Some(operator) = &key.using {
            let location = if key.expr.location >= 0 {
                key.expr.location
            } else {
                location
            };
            let value = self.expr(&key.expr, env, clause)?;
            self.note_operator(location, operator, (Some(value.kind), value.kind), None);
            return Ok(value);
        }
        self.expr(&key.expr, env, clause)
    }

    /// What a window is made of.
    pub(super) fn window<'q>(
        &mut self,
        location: Location,
        window: &'q Window,
        env: Env<'_, 'q>,
        clause: Clause,
    ) -> Resolved<Lineage> {
        let mut lineage = Lineage::default();
        for part in &window.partition {
            lineage.add(&self.expr(part, env, clause)?.lineage, Transformation::Window);
        }
        for key in &window.order {
            lineage.add(
                &self.sort_key(location, key, env, clause)?.lineage,
                Transformation::Window,
            );
        }
        for bound in &window.bounds {
            lineage.add(&self.expr(bound, env, clause)?.lineage, Transformation::Window);
        }
        let bare = window.partition.is_empty() && window.order.is_empty() && window.bounds.is_empty();
        for name in window.base.iter().chain(window.name.iter().filter(|_| bare)) {
            if let Some(known) = env.windows.and_then(|windows| windows.get(name)) {
                lineage.add(known, Transformation::Window);
            }
        }
        Ok(lineage)
    }

    /// A column reference in an expression; `t.*` there is the whole row.
    #[inline(never)]
    fn column(
        &mut self,
        location: Location,
        parts: &[String],
        star: bool,
        env: Env<'_, '_>,
        clause: Clause,
    ) -> Resolved<Value> {
        if star {
            let entry = match parts {
                [] => return Err(Unreadable::NotBuilt("* in an expression".to_owned())),
                [name] => self.find_entry(None, name, env.level)?,
                [.., schema, name] => self.find_entry(Some(schema), name, env.level)?,
            };
            let Some(entry) = entry else {
                return Err(super::missing_entry(parts.last().map_or("", String::as_str)));
            };
            return self.whole_row(location, entry, clause, parts.len() + 1);
        }
        let mut beyond = Vec::new();
        let found = self.find(parts, env, &mut beyond)?;
        let mut value = self.found(location, found, clause, parts.len())?;
        for entry in beyond {
            if let Some(open) = &entry.open {
                value.lineage.add(open, Transformation::Transformation);
            }
        }
        Ok(value)
    }

    fn found(
        &mut self,
        location: Location,
        found: Found<'_>,
        clause: Clause,
        parts: usize,
    ) -> Resolved<Value> {
        match found {
            Found::Column { entry, field } => {
                let target = match (field.origin, entry.excluded) {
                    (_, true) => RefTarget::Excluded,
                    (Some((range, column)), false) => {
                        self.read_column(range, column);
                        RefTarget::Column { range, column }
                    }
                    (None, false) => RefTarget::Derived,
                };
                if let Some(relation) = entry.defined {
                    for source in field.lineage.sources() {
                        self.act_by_oid(Action::Select, relation, Some(source.column.column));
                    }
                }
                self.used(location, target, clause, parts);
                Ok(Value {
                    lineage: field.lineage.as_ref().clone(),
                    row: field.row.clone(),
                    reads_target: entry.target,
                    condition: Condition::comparison(entry.target).of_column(),
                    kind: field.kind,
                })
            }
            Found::System { entry, column } => {
                let mut value = Value {
                    reads_target: entry.target,
                    ..Value::default()
                };
                match entry.range {
                    Some(range) => {
                        self.read_column(range, column);
                        self.used(location, RefTarget::Column { range, column }, clause, parts);
                        if let Some(mention) = self.ranges.get(range) {
                            let id = crate::facts::ColumnId {
                                relation: mention.relation,
                                column,
                            };
                            value.lineage = Lineage::column(id);
                        }
                    }
                    None => self.used(location, RefTarget::Derived, clause, parts),
                }
                Ok(value)
            }
            Found::Row(entry) => self.whole_row(location, entry, clause, parts),
            Found::Open { entry } => {
                self.used(location, RefTarget::Derived, clause, parts);
                let mut value = Value {
                    reads_target: entry.target,
                    ..Value::default()
                };
                if let Some(open) = &entry.open {
                    value.lineage.add(open, Transformation::Transformation);
                }
                Ok(value)
            }
            Found::Function { entry, name } => {
                let facts = self.view.function(None, name, 1);
                if facts.origin == FunctionOrigin::Unknown {
                    return Err(Unreadable::UnknownName(format!(
                        "column \"{name}\" does not exist"
                    )));
                }
                self.note_call(location, name.to_owned(), CallSyntax::Function, facts);
                Ok(self.whole_row(location, entry, clause, parts)?.computed())
            }
        }
    }

    /// The row of an entry as one value.
    pub(super) fn whole_row(
        &mut self,
        location: Location,
        entry: &Entry,
        clause: Clause,
        parts: usize,
    ) -> Resolved<Value> {
        let mut value = Value {
            reads_target: entry.target,
            ..Value::default()
        };
        match (entry.range, entry.excluded) {
            (Some(range), false) => {
                self.read_column(range, 0);
                self.used(location, RefTarget::WholeRow { range }, clause, parts);
                if let Some(mention) = self.ranges.get(range) {
                    let id = crate::facts::ColumnId {
                        relation: mention.relation,
                        column: 0,
                    };
                    value.lineage = Lineage::column(id);
                }
            }
            (_, excluded) => {
                let target = if excluded {
                    RefTarget::Excluded
                } else {
                    RefTarget::Derived
                };
                self.used(location, target, clause, parts);
                self.needs_all_columns(&entry.covers);
                if let Some(relation) = entry.defined {
                    self.act_by_oid(Action::Select, relation, Some(0));
                }
                for range in &entry.covers {
                    self.read_column(*range, 0);
                }
                for field in &entry.fields {
                    value.lineage.add(&field.lineage, Transformation::Transformation);
                }
                if let Some(open) = &entry.open {
                    value.lineage.add(open, Transformation::Transformation);
                }
            }
        }
        if entry.open.is_none() {
            value.row = Some(Rc::new(fields_of(entry)));
        }
        Ok(value)
    }

    /// `(base).field`, `(base)[1]`, and chains of them.
    fn steps<'q>(
        &mut self,
        base: &'q Expr,
        steps: &'q [Step],
        env: Env<'_, 'q>,
        clause: Clause,
    ) -> Resolved<Value> {
        let mut steps = steps;
        let mut value = match self.column_of_row(base, steps, env, clause)? {
            Some(value) => {
                steps = steps.get(1..).unwrap_or_default();
                value
            }
            None => self.expr(base, env, clause)?,
        };
        for step in steps {
            value = self.step(base.location, value, step, env, clause)?;
        }
        Ok(value)
    }

    /// `(t).c` where `t` is the row of a relation reads only that column.
    fn column_of_row<'q>(
        &mut self,
        base: &'q Expr,
        steps: &'q [Step],
        env: Env<'_, 'q>,
        clause: Clause,
    ) -> Resolved<Option<Value>> {
        let (ExprKind::Column { parts, star: false }, Some(Step::Field(name))) = (&base.kind, steps.first())
        else {
            return Ok(None);
        };
        let mut beyond = Vec::new();
        let Found::Row(entry) = self.find(parts, env, &mut beyond)? else {
            return Ok(None);
        };
        let Some(range) = entry.range.filter(|_| !entry.excluded) else {
            return Ok(None);
        };
        self.needs_all_columns(&[range]);
        self.used(base.location, RefTarget::WholeRow { range }, clause, parts.len());
        // The mention of the row is noted above; the column itself stands nowhere in the text.
        self.found(-1, super::in_entry(entry, name), clause, 1).map(Some)
    }

    fn step<'q>(
        &mut self,
        location: Location,
        base: Value,
        step: &'q Step,
        env: Env<'_, 'q>,
        clause: Clause,
    ) -> Resolved<Value> {
        let mut value = Value::default();
        match step {
            Step::Field(name) => {
                let known = base
                    .row
                    .as_ref()
                    .map(|row| row.iter().find(|field| field.name == *name));
                match known {
                    Some(Some(field)) => {
                        value.lineage = field.lineage.as_ref().clone();
                        value.row.clone_from(&field.row);
                        value.kind = field.kind;
                        value.reads_target = base.reads_target;
                    }
                    Some(None) => {
                        let facts = self.view.function(None, name, 1);
                        if facts.origin == FunctionOrigin::Unknown {
                            return Err(Unreadable::UnknownName(format!(
                                "column \"{name}\" does not exist"
                            )));
                        }
                        self.note_call(location, name.clone(), CallSyntax::Function, facts);
                        value.take(&base, Transformation::Transformation);
                    }
                    None => value.take(&base, Transformation::Transformation),
                }
            }
            Step::All => value.take(&base, Transformation::Transformation),
            Step::Index(bounds) => {
                value.take(&base, Transformation::Transformation);
                for bound in bounds {
                    let bound = self.expr(bound, env, clause)?;
                    value.take(&bound, Transformation::Conditional);
                }
            }
        }
        Ok(value)
    }

    /// The fields of a value of which a star takes all; reads are noted.
    pub(super) fn fields_of_value(&self, value: &Value) -> Resolved<Vec<Field>> {
        match &value.row {
            Some(row) => Ok(row.iter().map(derived).collect()),
            None => Err(Unreadable::NotBuilt(
                "all fields of a value whose type is not known".to_owned(),
            )),
        }
    }
}

impl Value {
    /// The same, as the result of a computation.
    fn computed(self) -> Self {
        Self {
            lineage: self.lineage.through(Transformation::Transformation),
            row: None,
            reads_target: self.reads_target,
            condition: self.condition,
            kind: self.kind,
        }
    }
}

impl Condition {
    /// A bare column: it can be a condition itself, but is no comparison.
    fn of_column(self) -> Self {
        Self {
            boolean: false,
            ..self
        }
    }

    /// Only its negation restricts.
    fn only_negated(self) -> Self {
        Self {
            restricts: false,
            ..self
        }
    }
}

/// The fields of an entry, as a row offers them.
pub(super) fn fields_of(entry: &Entry) -> Vec<Field> {
    entry.fields.iter().map(derived).collect()
}

/// The same field one level further out, where it is no longer the relation's own column.
pub(super) fn derived(field: &Field) -> Field {
    Field {
        origin: None,
        ..field.clone()
    }
}

/// bool
const BOOLEAN: Operand = Operand::Typed(16);

/// The type that alternatives have in common; literals without a type follow the others.
fn common_kind(mut kinds: Vec<Operand>) -> Operand {
    kinds.retain(|kind| *kind != Operand::Untyped);
    kinds.dedup();
    match kinds.as_slice() {
        [one] => *one,
        _ => Operand::Unsure,
    }
}

fn constant_kind(constant: &Constant) -> Operand {
    match constant {
        Constant::Null | Constant::Text(_) => Operand::Untyped,
        Constant::Boolean(_) => BOOLEAN,
        Constant::Integer(_) => Operand::Typed(23),
        Constant::Other => Operand::Unsure,
    }
}

pub(super) fn equals() -> Name {
    Name {
        catalog: None,
        schema: None,
        name: "=".to_owned(),
    }
}

fn is_equals(call: &OperatorCall) -> bool {
    call.shape == OperatorShape::NotDistinct
        || (call.shape == OperatorShape::Plain && call.names.first().is_some_and(|name| name.name == "="))
}

/// The value of a boolean literal, `false` and `'f'::bool` alike.
pub(super) fn constant_boolean(expr: &Expr) -> Option<bool> {
    match &expr.kind {
        ExprKind::Constant(Constant::Boolean(value)) => Some(*value),
        ExprKind::Cast { value, target } if target.name.name == "bool" && !target.array => {
            match &value.kind {
                ExprKind::Constant(Constant::Text(text)) => match text.as_str() {
                    "t" | "true" | "on" | "yes" | "y" | "1" => Some(true),
                    "f" | "false" | "off" | "no" | "n" | "0" => Some(false),
                    _ => None,
                },
                ExprKind::Constant(Constant::Boolean(value)) => Some(*value),
                _ => None,
            }
        }
        ExprKind::Wrapped(value) => constant_boolean(value),
        _ => None,
    }
}

/// The text of a string literal, with or without a cast.
pub(super) fn constant_text(expr: &Expr) -> Option<&str> {
    match &expr.kind {
        ExprKind::Constant(Constant::Text(text)) => Some(text),
        ExprKind::Cast { value, target } if !target.array => match &value.kind {
            ExprKind::Constant(Constant::Text(text)) => Some(text),
            _ => None,
        },
        ExprKind::Wrapped(value) => constant_text(value),
        _ => None,
    }
}

/// The parts of a name written in a string, as `regclass` reads it.
fn split_name(text: &str) -> Option<Vec<String>> {
    let mut parts = Vec::new();
    let mut part = String::new();
    let mut characters = text.trim().chars().peekable();
    loop {
        match characters.next() {
            None => break,
            Some('.') => parts.push(std::mem::take(&mut part)),
            Some('"') => loop {
                match characters.next()? {
                    '"' if characters.peek() == Some(&'"') => {
                        characters.next();
                        part.push('"');
                    }
                    '"' => break,
                    other => part.push(other),
                }
            },
            Some(other) => part.extend(other.to_lowercase()),
        }
    }
    parts.push(part);
    Some(parts)
}
