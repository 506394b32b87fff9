//! Queries, sources and data-modifying statements.

use pg_raw_parse::Node;
use pg_raw_parse::list::{CastNodeList, NodeList};
use pg_raw_parse::nodes;
use pg_raw_parse::raw::ReturningOptionKind;
use pg_raw_parse::raw::{CmdType, GroupingSetKind, JoinType, MergeMatchKind, OnConflictAction, SetOperation};

use super::{Lower, Lowered, alias, cast_words, name_of, refuse, words};
use crate::facts::Unreadable;
use crate::form::{
    Assignment, Body, Conflict, Cte, Cycle, Distinct, Expr, GroupItem, Item, Join, JoinKind, MatchKind,
    Query, Returning, Sample, Select, SetOperator, Source, TableFunction, TargetColumn, When, WhenAction,
    With, Write, WriteKind,
};
use crate::postgres::parse::DEPTH_MAX;

impl Lower {
    /// A SELECT, VALUES or data-modifying statement.
    pub(super) fn query(&mut self, node: Node<'_>) -> Lowered<Query> {
        self.deeper(|lower| match node {
            Node::SelectStmt(select) => lower.select_statement(select),
            Node::InsertStmt(insert) => lower.insert(insert),
            Node::UpdateStmt(update) => lower.update(update),
            Node::DeleteStmt(delete) => lower.delete(delete),
            Node::MergeStmt(merge) => lower.merge(merge),
            other => Err(refuse(other, "a query")),
        })
    }

    /// The INTO clause is the caller's to read.
    fn select_statement(&mut self, node: &nodes::SelectStmt) -> Lowered<Query> {
        let with = node.with_clause().map(|with| self.with(with)).transpose()?;
        let body = if node.op != SetOperation::SETOP_NONE {
            self.set_operation(node)?
        } else if !node.values_lists().is_empty() {
            let mut rows = Vec::new();
            for row in node.values_lists() {
                match row {
                    Node::NodeList(row) => rows.push(self.exprs(row)?),
                    other => return Err(refuse(other, "VALUES")),
                }
            }
            Body::Values(rows)
        } else {
            Body::Select(Box::new(self.select(node)?))
        };
        let order = self.sort(node.sort_clause())?;
        let mut limit = Vec::new();
        limit.extend(self.optional(node.limit_offset())?);
        limit.extend(self.optional(node.limit_count())?);
        let mut locking = Vec::new();
        for clause in node.locking_clause() {
            let mut names = Vec::new();
            for relation in clause.locked_rels() {
                match relation {
                    Node::RangeVar(range) => names.push(range.relname().unwrap_or_default().to_owned()),
                    other => return Err(refuse(other, "FOR UPDATE OF")),
                }
            }
            locking.push(names);
        }
        Ok(Query {
            with,
            body,
            order,
            limit,
            locking,
        })
    }

    /// A chain of set operations leans to the left: it is followed without recursion.
    fn set_operation(&mut self, node: &nodes::SelectStmt) -> Lowered<Body> {
        let mut branches = Vec::new();
        let mut current = node;
        loop {
            let operator = match current.op {
                SetOperation::SETOP_UNION => SetOperator::Union,
                SetOperation::SETOP_INTERSECT => SetOperator::Intersect,
                SetOperation::SETOP_EXCEPT => SetOperator::Except,
                _ => return Err(refuse(Node::SelectStmt(current), "a set operation")),
            };
            let (Some(left), Some(right)) = (current.larg(), current.rarg()) else {
                return Err(refuse(Node::SelectStmt(current), "a set operation"));
            };
            if branches.len() >= DEPTH_MAX {
                return Err(Unreadable::TooComplex(format!(
                    "more than {DEPTH_MAX} set operations in a chain"
                )));
            }
            branches.push((operator, self.query(Node::SelectStmt(right))?));
            let bare = left.op != SetOperation::SETOP_NONE
                && left.with_clause().is_none()
                && left.sort_clause().is_empty()
                && matches!(left.limit_count(), Node::None)
                && matches!(left.limit_offset(), Node::None)
                && left.locking_clause().is_empty();
            if bare {
                current = left;
            } else {
                branches.push((SetOperator::First, self.query(Node::SelectStmt(left))?));
                break;
            }
        }
        branches.reverse();
        Ok(Body::SetOperation(branches))
    }

    fn select(&mut self, node: &nodes::SelectStmt) -> Lowered<Select> {
        if let Some(into) = node.into_clause() {
            // INTO stands in the leftmost SELECT; anywhere else the server refuses it.
            self.into = Some(self.created_by_into(into)?);
        }
        let distinct = match node.distinct_clause().len() {
            0 => Distinct::No,
            // DISTINCT alone is a list that holds nothing.
            1 if matches!(node.distinct_clause().get(0), Some(Node::None)) => Distinct::Rows,
            _ => Distinct::On(self.exprs(node.distinct_clause())?),
        };
        let items = self.items(node.target_list())?;
        let from = self.sources(node.from_clause())?;
        let filter = self.optional(node.where_clause())?;
        let group = self.group_items(node.group_clause())?;
        let having = self.optional(node.having_clause())?;
        let mut windows = Vec::new();
        for window in node.window_clause() {
            match window {
                Node::WindowDef(window) => windows.push(self.window(window)?),
                other => return Err(refuse(other, "WINDOW")),
            }
        }
        Ok(Select {
            distinct,
            items,
            from,
            filter,
            group,
            having,
            windows,
        })
    }

    fn items(&mut self, list: &CastNodeList<nodes::ResTarget>) -> Lowered<Vec<Item>> {
        let mut items = Vec::new();
        for target in list {
            items.push(self.item(target)?);
        }
        Ok(items)
    }

    fn item(&mut self, target: &nodes::ResTarget) -> Lowered<Item> {
        if !target.indirection().is_empty() {
            return Err(Unreadable::NotBuilt("an output name with subscripts".to_owned()));
        }
        Ok(Item {
            name: target.name().map(str::to_owned),
            expr: self.expr(target.val())?,
        })
    }

    fn group_items(&mut self, list: &NodeList) -> Lowered<Vec<GroupItem>> {
        self.deeper(|lower| {
            let mut items = Vec::new();
            for node in list {
                items.push(match node {
                    Node::GroupingSet(set) => match set.kind {
                        GroupingSetKind::GROUPING_SET_EMPTY
                        | GroupingSetKind::GROUPING_SET_SIMPLE
                        | GroupingSetKind::GROUPING_SET_ROLLUP
                        | GroupingSetKind::GROUPING_SET_CUBE
                        | GroupingSetKind::GROUPING_SET_SETS => {
                            GroupItem::Sets(lower.group_items(set.content())?)
                        }
                        _ => return Err(refuse(node, "GROUP BY")),
                    },
                    other => GroupItem::Expr(lower.expr(other)?),
                });
            }
            Ok(items)
        })
    }

    fn with(&mut self, node: &nodes::WithClause) -> Lowered<With> {
        let mut ctes = Vec::new();
        for cte in node.ctes() {
            ctes.push(self.cte(cte)?);
        }
        Ok(With {
            recursive: node.recursive,
            ctes,
        })
    }

    fn cte(&mut self, node: &nodes::CommonTableExpr) -> Lowered<Cte> {
        let query = self.query(node.ctequery())?;
        let search = node.search_clause().map(|search| {
            (
                words(search.search_col_list()),
                search.search_seq_column().unwrap_or_default().to_owned(),
            )
        });
        let cycle = match node.cycle_clause() {
            None => None,
            Some(cycle) => {
                let mut values = Vec::new();
                values.extend(self.optional(cycle.cycle_mark_value())?);
                values.extend(self.optional(cycle.cycle_mark_default())?);
                Some(Cycle {
                    columns: words(cycle.cycle_col_list()),
                    mark: cycle.cycle_mark_column().unwrap_or_default().to_owned(),
                    values,
                    path: cycle.cycle_path_column().unwrap_or_default().to_owned(),
                })
            }
        };
        Ok(Cte {
            name: node.ctename().unwrap_or_default().to_owned(),
            columns: words(node.aliascolnames()),
            query,
            search,
            cycle,
        })
    }

    pub(super) fn sources(&mut self, list: &NodeList) -> Lowered<Vec<Source>> {
        let mut sources = Vec::with_capacity(list.len());
        for node in list {
            sources.push(self.source(node)?);
        }
        Ok(sources)
    }

    fn source(&mut self, node: Node<'_>) -> Lowered<Source> {
        self.deeper(|lower| match node {
            Node::RangeVar(range) => Ok(Source::Relation {
                relation: lower.relation(range),
                sample: None,
            }),
            Node::RangeSubselect(inner) => Ok(Source::Query {
                query: Box::new(lower.query(inner.subquery())?),
                lateral: inner.lateral,
                alias: alias(inner.alias()),
            }),
            Node::JoinExpr(join) => lower.join(join),
            Node::RangeFunction(function) => lower.functions(function),
            Node::RangeTableSample(sample) => lower.sample(sample),
            Node::RangeTableFunc(xml) => lower.xml_table(xml),
            Node::JsonTable(json) => lower.json_table(json),
            other => Err(refuse(other, "FROM")),
        })
    }

    /// A chain of joins leans to the left: it is followed without recursion.
    #[inline(never)]
    fn join(&mut self, node: &nodes::JoinExpr) -> Lowered<Source> {
        let mut chain = vec![node];
        let mut leftmost = node.larg();
        while let Node::JoinExpr(inner) = leftmost {
            if chain.len() >= DEPTH_MAX {
                return Err(Unreadable::TooComplex(format!(
                    "more than {DEPTH_MAX} joins in a chain"
                )));
            }
            chain.push(inner);
            leftmost = inner.larg();
        }
        let mut source = self.source(leftmost)?;
        for join in chain.into_iter().rev() {
            source = self.join_to(source, join)?;
        }
        Ok(source)
    }

    fn join_to(&mut self, left: Source, node: &nodes::JoinExpr) -> Lowered<Source> {
        let kind = match node.jointype {
            JoinType::JOIN_INNER => JoinKind::Inner,
            JoinType::JOIN_LEFT => JoinKind::Left,
            JoinType::JOIN_FULL => JoinKind::Full,
            JoinType::JOIN_RIGHT => JoinKind::Right,
            _ => return Err(refuse(Node::JoinExpr(node), "FROM")),
        };
        let right = self.source(node.rarg())?;
        let on = self.optional(node.quals())?;
        Ok(Source::Join(Box::new(Join {
            kind,
            left,
            right,
            natural: node.is_natural,
            using: cast_words(node.using_clause()),
            using_alias: node
                .join_using_alias()
                .and_then(|alias| alias.aliasname())
                .map(str::to_owned),
            on,
            alias: alias(node.alias()),
        })))
    }

    #[inline(never)]
    fn functions(&mut self, node: &nodes::RangeFunction) -> Lowered<Source> {
        let mut functions = Vec::new();
        for entry in node.functions() {
            // Each entry is the call and its column definitions, if any.
            let Node::NodeList(pair) = entry else {
                return Err(refuse(entry, "a function in FROM"));
            };
            let Some(call) = pair.get(0) else {
                return Err(refuse(entry, "a function in FROM"));
            };
            let mut columns = Vec::new();
            match pair.get(1) {
                None | Some(Node::None) => {}
                Some(Node::NodeList(list)) => {
                    for column in list {
                        match column {
                            Node::ColumnDef(column) => {
                                let name = column.colname().unwrap_or_default().to_owned();
                                columns.push((name, self.type_name(column.type_name())?));
                            }
                            other => return Err(refuse(other, "a function's column list")),
                        }
                    }
                }
                Some(other) => return Err(refuse(other, "a function's column list")),
            }
            functions.push(TableFunction {
                call: self.expr(call)?,
                columns,
            });
        }
        let outer = self.definitions(node.coldeflist())?;
        if let (Some(function), false) = (functions.first_mut(), outer.is_empty()) {
            function.columns = outer;
        }
        Ok(Source::Functions {
            functions,
            ordinality: node.ordinality,
            alias: alias(node.alias()),
        })
    }

    #[inline(never)]
    fn sample(&mut self, node: &nodes::RangeTableSample) -> Lowered<Source> {
        let method = name_of(node.method(), "TABLESAMPLE")?;
        let mut args = self.exprs(node.args())?;
        args.extend(self.optional(node.repeatable())?);
        match node.relation() {
            Node::RangeVar(range) => Ok(Source::Relation {
                relation: self.relation(range),
                sample: Some(Sample {
                    method,
                    args,
                    location: node.location,
                }),
            }),
            other => Err(refuse(other, "TABLESAMPLE")),
        }
    }

    #[inline(never)]
    fn xml_table(&mut self, node: &nodes::RangeTableFunc) -> Lowered<Source> {
        let mut args = vec![self.expr(node.docexpr())?, self.expr(node.rowexpr())?];
        for namespace in node.namespaces() {
            match namespace {
                Node::ResTarget(target) if target.indirection().is_empty() => {
                    args.push(self.expr(target.val())?)
                }
                other => return Err(refuse(other, "XMLNAMESPACES")),
            }
        }
        let mut columns = Vec::new();
        let mut types = Vec::new();
        for column in node.columns() {
            columns.push(column.colname().unwrap_or_default().to_owned());
            if !column.for_ordinality {
                types.push(self.type_name(column.type_name())?);
            }
            args.extend(self.optional(column.colexpr())?);
            args.extend(self.optional(column.coldefexpr())?);
        }
        Ok(Source::Constructed {
            name: "xmltable",
            grammar: 10,
            location: node.location,
            args,
            columns,
            types,
            alias: alias(node.alias()),
        })
    }

    #[inline(never)]
    fn json_table(&mut self, node: &nodes::JsonTable) -> Lowered<Source> {
        let mut args = self.json_value(node.context_item())?;
        if let Some(path) = node.pathspec() {
            args.extend(self.optional(path.string())?);
        }
        for argument in node.passing() {
            match argument {
                Node::JsonArgument(argument) => args.extend(self.json_value(argument.val())?),
                other => return Err(refuse(other, "PASSING")),
            }
        }
        if let Some(behavior) = node.on_error() {
            args.extend(self.optional(behavior.expr())?);
        }
        let mut columns = Vec::new();
        let mut types = Vec::new();
        for column in node.columns() {
            self.json_column(column, &mut args, &mut columns, &mut types)?;
        }
        Ok(Source::Constructed {
            name: "json_table",
            grammar: 17,
            location: node.location,
            args,
            columns,
            types,
            alias: alias(node.alias()),
        })
    }

    fn json_column(
        &mut self,
        node: &nodes::JsonTableColumn,
        args: &mut Vec<Expr>,
        columns: &mut Vec<String>,
        types: &mut Vec<crate::form::TypeRef>,
    ) -> Lowered<()> {
        self.deeper(|lower| {
            if node.columns().is_empty() {
                columns.push(node.name().unwrap_or_default().to_owned());
            }
            if node.type_name().is_some() {
                types.push(lower.type_name(node.type_name())?);
            }
            if let Some(path) = node.pathspec() {
                args.extend(lower.optional(path.string())?);
            }
            for behavior in [node.on_empty(), node.on_error()].into_iter().flatten() {
                args.extend(lower.optional(behavior.expr())?);
            }
            for inner in node.columns() {
                match inner {
                    Node::JsonTableColumn(inner) => lower.json_column(inner, args, columns, types)?,
                    other => return Err(refuse(other, "NESTED PATH")),
                }
            }
            Ok(())
        })
    }

    fn insert(&mut self, node: &nodes::InsertStmt) -> Lowered<Query> {
        let with = node.with_clause().map(|with| self.with(with)).transpose()?;
        let target = self.target(node.relation())?;
        let columns = self.target_columns(node.cols())?;
        let source = match node.select_stmt() {
            Node::None => None,
            select => Some(Box::new(self.query(select)?)),
        };
        let conflict = match node.on_conflict_clause() {
            None => None,
            Some(conflict) => Some(self.conflict(conflict)?),
        };
        let returning = self.returning(node.returning_clause())?;
        Ok(written(
            with,
            Write {
                target,
                kind: WriteKind::Insert {
                    columns,
                    source,
                    conflict,
                },
                returning,
            },
        ))
    }

    fn conflict(&mut self, node: &nodes::OnConflictClause) -> Lowered<Conflict> {
        let mut infer = Vec::new();
        let mut infer_filter = None;
        if let Some(clause) = node.infer() {
            for element in clause.index_elems() {
                match element {
                    Node::IndexElem(element) => infer.push(self.index_element(element)?),
                    other => return Err(refuse(other, "ON CONFLICT")),
                }
            }
            infer_filter = self.optional(clause.where_clause())?;
        }
        let update = match node.action {
            OnConflictAction::ONCONFLICT_NOTHING => None,
            OnConflictAction::ONCONFLICT_UPDATE => Some((
                self.assignments(node.target_list())?,
                self.optional(node.where_clause())?,
            )),
            _ => return Err(refuse(Node::OnConflictClause(node), "INSERT")),
        };
        Ok(Conflict {
            infer,
            infer_filter,
            update,
        })
    }

    /// A column or expression of an index. Operator classes and collations are named, not run by name.
    pub(super) fn index_element(&mut self, node: &nodes::IndexElem) -> Lowered<Expr> {
        match node.name() {
            Some(name) => Ok(super::expr(
                -1,
                crate::form::ExprKind::Column {
                    parts: vec![name.to_owned()],
                    star: false,
                },
            )),
            None => self.expr(node.expr()),
        }
    }

    fn update(&mut self, node: &nodes::UpdateStmt) -> Lowered<Query> {
        let with = node.with_clause().map(|with| self.with(with)).transpose()?;
        let target = self.target(node.relation())?;
        let set = self.assignments(node.target_list())?;
        let from = self.sources(node.from_clause())?;
        let filter = self.optional(node.where_clause())?;
        let returning = self.returning(node.returning_clause())?;
        Ok(written(
            with,
            Write {
                target,
                kind: WriteKind::Update { set, from, filter },
                returning,
            },
        ))
    }

    fn delete(&mut self, node: &nodes::DeleteStmt) -> Lowered<Query> {
        let with = node.with_clause().map(|with| self.with(with)).transpose()?;
        let target = self.target(node.relation())?;
        let using = self.sources(node.using_clause())?;
        let filter = self.optional(node.where_clause())?;
        let returning = self.returning(node.returning_clause())?;
        Ok(written(
            with,
            Write {
                target,
                kind: WriteKind::Delete { using, filter },
                returning,
            },
        ))
    }

    fn merge(&mut self, node: &nodes::MergeStmt) -> Lowered<Query> {
        let with = node.with_clause().map(|with| self.with(with)).transpose()?;
        let target = self.target(node.relation())?;
        let source = self.source(node.source_relation())?;
        let on = self.expr(node.join_condition())?;
        let mut whens = Vec::new();
        for when in node.merge_when_clauses() {
            whens.push(self.when(when)?);
        }
        let returning = self.returning(node.returning_clause())?;
        Ok(written(
            with,
            Write {
                target,
                kind: WriteKind::Merge { source, on, whens },
                returning,
            },
        ))
    }

    fn when(&mut self, node: &nodes::MergeWhenClause) -> Lowered<When> {
        let matched = match node.match_kind {
            MergeMatchKind::MERGE_WHEN_MATCHED => MatchKind::Matched,
            MergeMatchKind::MERGE_WHEN_NOT_MATCHED_BY_SOURCE => MatchKind::NotMatchedBySource,
            MergeMatchKind::MERGE_WHEN_NOT_MATCHED_BY_TARGET => MatchKind::NotMatchedByTarget,
            _ => return Err(refuse(Node::MergeWhenClause(node), "MERGE")),
        };
        let condition = self.optional(node.condition())?;
        let action = match node.command_type {
            CmdType::CMD_NOTHING => WhenAction::Nothing,
            CmdType::CMD_DELETE => WhenAction::Delete,
            CmdType::CMD_UPDATE => {
                let mut targets = Vec::new();
                for target in node.target_list() {
                    match target {
                        Node::ResTarget(target) => targets.push(target),
                        other => return Err(refuse(other, "MERGE SET")),
                    }
                }
                WhenAction::Update(self.assignments_of(targets.into_iter())?)
            }
            CmdType::CMD_INSERT => WhenAction::Insert(
                self.target_columns(node.target_list())?,
                self.exprs(node.values())?,
            ),
            _ => return Err(refuse(Node::MergeWhenClause(node), "MERGE")),
        };
        Ok(When {
            matched,
            condition,
            action,
        })
    }

    fn target(&mut self, range: Option<&nodes::RangeVar>) -> Lowered<crate::form::RelationRef> {
        match range {
            Some(range) => Ok(self.relation(range)),
            None => Err(Unreadable::NotBuilt("a write without a target".to_owned())),
        }
    }

    fn target_columns(&mut self, list: &NodeList) -> Lowered<Vec<TargetColumn>> {
        let mut columns = Vec::new();
        for node in list {
            match node {
                Node::ResTarget(target) => columns.push(self.target_column(target)?),
                other => return Err(refuse(other, "a column list")),
            }
        }
        Ok(columns)
    }

    fn target_column(&mut self, target: &nodes::ResTarget) -> Lowered<TargetColumn> {
        Ok(TargetColumn {
            name: target.name().unwrap_or_default().to_owned(),
            steps: self.steps(target.indirection())?,
        })
    }

    fn assignments(&mut self, list: &CastNodeList<nodes::ResTarget>) -> Lowered<Vec<Assignment>> {
        self.assignments_of(list.iter())
    }

    /// `(a, b) = source` comes as one entry a column, all with the same source; the first one carries it here.
    fn assignments_of<'n>(
        &mut self,
        targets: impl Iterator<Item = &'n nodes::ResTarget>,
    ) -> Lowered<Vec<Assignment>> {
        let mut assignments: Vec<Assignment> = Vec::new();
        for target in targets {
            let column = self.target_column(target)?;
            match target.val() {
                Node::MultiAssignRef(multiple) if multiple.colno > 1 => match assignments.last_mut() {
                    Some(last) if last.several => last.columns.push(column),
                    _ => return Err(refuse(target.val(), "SET")),
                },
                Node::MultiAssignRef(multiple) => {
                    let value = self.expr(multiple.source())?;
                    assignments.push(Assignment {
                        columns: vec![column],
                        value,
                        several: true,
                    });
                }
                value => {
                    let value = self.expr(value)?;
                    assignments.push(Assignment {
                        columns: vec![column],
                        value,
                        several: false,
                    });
                }
            }
        }
        Ok(assignments)
    }

    fn returning(&mut self, node: Option<&nodes::ReturningClause>) -> Lowered<Option<Returning>> {
        let Some(node) = node else {
            return Ok(None);
        };
        let mut returning = Returning {
            old: None,
            new: None,
            items: Vec::new(),
        };
        for option in node.options() {
            let name = option.value().map(str::to_owned);
            match option.option {
                ReturningOptionKind::RETURNING_OPTION_OLD => returning.old = name,
                ReturningOptionKind::RETURNING_OPTION_NEW => returning.new = name,
                _ => return Err(refuse(Node::ReturningOption(option), "RETURNING")),
            }
        }
        for target in node.exprs() {
            match target {
                Node::ResTarget(target) => returning.items.push(self.item(target)?),
                other => return Err(refuse(other, "RETURNING")),
            }
        }
        Ok(Some(returning))
    }
}

fn written(with: Option<With>, write: Write) -> Query {
    Query {
        with,
        body: Body::Write(Box::new(write)),
        order: Vec::new(),
        limit: Vec::new(),
        locking: Vec::new(),
    }
}
