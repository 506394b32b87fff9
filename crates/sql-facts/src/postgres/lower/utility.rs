//! Statements that are neither queries nor definitions.

use pg_raw_parse::Node;
use pg_raw_parse::list::NodeList;
use pg_raw_parse::nodes;
use pg_raw_parse::raw::{CURSOR_OPT_HOLD, DiscardMode, TransactionStmtKind, VariableSetKind};

use super::expr::setting_text;
use super::{Lower, Lowered, refuse, words};
use crate::facts::{Action, CopyTarget, DiscardTarget, RangeRole, SessionEffect, StatementKind, Unreadable};
use crate::form::{Alias, Body, Mention, Name, Query, RelationRef, Scoped, Statement, WriteKind};

/// `ShareUpdateExclusiveLock` and stronger need a right to write; ROW SHARE is the strongest that does not.
const ROW_SHARE_LOCK: i32 = 2;

impl Lower {
    pub(super) fn statement(&mut self, node: Node<'_>) -> Lowered<Statement> {
        self.deeper(|lower| lower.statement_here(node))
    }

    fn statement_here(&mut self, node: Node<'_>) -> Lowered<Statement> {
        match node {
            Node::SelectStmt(_)
            | Node::InsertStmt(_)
            | Node::UpdateStmt(_)
            | Node::DeleteStmt(_)
            | Node::MergeStmt(_) => self.query_statement(node),
            Node::CreateTableAsStmt(create) => self.create_table_as(create),
            Node::ViewStmt(view) => self.create_view(view),
            Node::CopyStmt(copy) => self.copy(copy),
            Node::ExplainStmt(explain) => self.explain(explain),
            Node::PrepareStmt(prepare) => self.prepare(prepare),
            Node::ExecuteStmt(execute) => self.execute(execute),
            Node::DeallocateStmt(deallocate) => {
                let name = (!deallocate.isall).then(|| text(deallocate.name()));
                Ok(Statement::new(StatementKind::Deallocate(name)))
            }
            Node::DeclareCursorStmt(declare) => self.declare(declare),
            Node::FetchStmt(fetch) => Ok(Statement::new(StatementKind::Fetch {
                name: text(fetch.portalname()),
                moves_only: fetch.ismove,
            })),
            Node::ClosePortalStmt(close) => Ok(Statement::new(StatementKind::CloseCursor(
                close.portalname().map(str::to_owned),
            ))),
            Node::TransactionStmt(transaction) => transaction_statement(transaction),
            Node::VariableSetStmt(set) => set_statement(set),
            Node::VariableShowStmt(show) => Ok(show_statement(show)),
            Node::DiscardStmt(discard) => discard_statement(discard),
            Node::ConstraintsSetStmt(_) => Ok(Statement::new(StatementKind::TransactionSetting)),
            Node::ListenStmt(listen) => Ok(Statement::new(StatementKind::Listen(text(
                listen.conditionname(),
            )))),
            Node::UnlistenStmt(unlisten) => Ok(Statement::new(StatementKind::Unlisten(
                unlisten.conditionname().map(str::to_owned),
            ))),
            Node::NotifyStmt(notify) => Ok(Statement::new(StatementKind::Notify(text(
                notify.conditionname(),
            )))),
            Node::TruncateStmt(truncate) => {
                let mut statement = Statement::new(StatementKind::Truncate);
                statement.mentions = self.mentions(truncate.relations(), Action::Truncate)?;
                statement.writes_data = true;
                Ok(statement)
            }
            Node::LockStmt(lock) => {
                let mut statement = Statement::new(StatementKind::Lock);
                statement.mentions = self.mentions(lock.relations(), Action::Select)?;
                if lock.mode > ROW_SHARE_LOCK {
                    statement
                        .mentions
                        .extend(self.mentions(lock.relations(), Action::Update)?);
                }
                Ok(statement)
            }
            Node::DoStmt(_) => {
                let mut statement = Statement::new(StatementKind::Call);
                statement.opaque = Some("DO");
                Ok(statement)
            }
            Node::CallStmt(call) => {
                let mut statement = Statement::new(StatementKind::Call);
                let Some(function) = call.funccall() else {
                    return Err(refuse(node, "a statement"));
                };
                statement.loose.push(self.call(function)?);
                Ok(statement)
            }
            other => self.definition(other),
        }
    }

    /// A query as a whole statement; SELECT INTO makes a table.
    pub(super) fn query_statement(&mut self, node: Node<'_>) -> Lowered<Statement> {
        let query = self.query(node)?;
        let mut statement = Statement::new(kind_of_query(&query));
        statement.query = Some(query);
        if let Some(created) = self.into.take() {
            statement.kind = StatementKind::CreateTableAs;
            stored(&mut statement, created);
        }
        Ok(statement)
    }

    pub(super) fn created_by_into(&mut self, into: &nodes::IntoClause) -> Lowered<RelationRef> {
        let Some(range) = into.rel() else {
            return Err(refuse(Node::IntoClause(into), "INTO"));
        };
        let mut relation = self.relation(range);
        let columns = words(into.col_names());
        if !columns.is_empty() {
            relation.alias = Some(Alias {
                name: relation.name.name.clone(),
                columns,
            });
        }
        Ok(relation)
    }

    fn create_table_as(&mut self, node: &nodes::CreateTableAsStmt) -> Lowered<Statement> {
        let mut statement = match node.query() {
            // Its query is in the session's table of prepared statements.
            Node::ExecuteStmt(execute) => {
                let mut inner = self.execute(execute)?;
                inner.inner = Some(Box::new(inner.kind));
                inner.kind = StatementKind::CreateTableAs;
                inner
            }
            query => self.query_statement(query)?,
        };
        statement.kind = StatementKind::CreateTableAs;
        let Some(into) = node.into() else {
            return Err(refuse(Node::CreateTableAsStmt(node), "a statement"));
        };
        let created = self.created_by_into(into)?;
        stored(&mut statement, created);
        Ok(statement)
    }

    fn create_view(&mut self, node: &nodes::ViewStmt) -> Lowered<Statement> {
        let mut statement = self.query_statement(node.query())?;
        statement.kind = StatementKind::CreateView;
        let Some(view) = node.view() else {
            return Err(refuse(Node::ViewStmt(node), "a statement"));
        };
        let mut created = self.relation(view);
        let columns = words(node.aliases());
        if !columns.is_empty() {
            created.alias = Some(Alias {
                name: created.name.name.clone(),
                columns,
            });
        }
        stored(&mut statement, created);
        Ok(statement)
    }

    fn copy(&mut self, node: &nodes::CopyStmt) -> Lowered<Statement> {
        let target = match (node.filename(), node.is_program) {
            (None, false) => CopyTarget::Client,
            (Some(_), false) => CopyTarget::File,
            (_, true) => CopyTarget::Program,
        };
        let kind = if node.is_from {
            StatementKind::CopyFrom(target.clone())
        } else {
            StatementKind::CopyTo(target.clone())
        };
        let mut statement = Statement::new(kind);
        match node.query() {
            Node::None => {}
            query => {
                let inner = self.query_statement(query)?;
                statement.inner = Some(Box::new(inner.kind));
                statement.query = inner.query;
            }
        }
        statement.server_files = target == CopyTarget::File;
        statement.server_programs = target == CopyTarget::Program;
        statement.writes_data = node.is_from;
        // Options are words, numbers and lists of column names.
        if let Some(range) = node.relation() {
            let relation = self.relation(range);
            let columns = words(node.attlist());
            if let Some(filter) = self.optional(node.where_clause())? {
                let relation = relation.clone();
                statement.scoped.push(Scoped {
                    relation,
                    exprs: vec![filter],
                    old_and_new: false,
                    created: false,
                });
            }
            let (action, role) = if node.is_from {
                (Action::Insert, RangeRole::CopyFromTarget)
            } else {
                (Action::Select, RangeRole::CopyToSource)
            };
            let all_columns = columns.is_empty();
            statement.mentions.push(Mention {
                action,
                relation,
                columns,
                all_columns,
                role: Some(role),
            });
        }
        Ok(statement)
    }

    fn explain(&mut self, node: &nodes::ExplainStmt) -> Lowered<Statement> {
        let mut analyze = false;
        for option in node.options() {
            if option.defname() == Some("analyze") {
                // The last one counts; anything but a plain "off" is taken as on.
                analyze = match option.arg() {
                    Node::None => true,
                    value => !is_off(value),
                };
            }
        }
        let mut statement = self.statement(node.query())?;
        statement.inner = Some(Box::new(statement.kind));
        statement.kind = StatementKind::Explain { analyze };
        if !analyze {
            // Nothing is executed.
            statement.effects.clear();
        }
        Ok(statement)
    }

    fn prepare(&mut self, node: &nodes::PrepareStmt) -> Lowered<Statement> {
        let mut statement = self.query_statement(node.query())?;
        statement.inner = Some(Box::new(statement.kind));
        statement.kind = StatementKind::Prepare(text(node.name()));
        for argument in node.argtypes() {
            statement.types.push(self.type_name(Some(argument))?);
        }
        Ok(statement)
    }

    fn execute(&mut self, node: &nodes::ExecuteStmt) -> Lowered<Statement> {
        let mut statement = Statement::new(StatementKind::Execute(text(node.name())));
        statement.loose = self.exprs(node.params())?;
        Ok(statement)
    }

    fn declare(&mut self, node: &nodes::DeclareCursorStmt) -> Lowered<Statement> {
        let mut statement = self.query_statement(node.query())?;
        statement.inner = Some(Box::new(statement.kind));
        let hold = i64::from(node.options) & i64::from(CURSOR_OPT_HOLD) != 0;
        statement.kind = StatementKind::Declare {
            name: text(node.portalname()),
            hold,
        };
        Ok(statement)
    }

    pub(super) fn mentions(&mut self, list: &NodeList, action: Action) -> Lowered<Vec<Mention>> {
        let mut mentions = Vec::new();
        for node in list {
            match node {
                Node::RangeVar(range) => mentions.push(mention(action, self.relation(range))),
                other => return Err(refuse(other, "a list of relations")),
            }
        }
        Ok(mentions)
    }
}

/// A relation that something is done to as a whole.
pub(super) fn mention(action: Action, relation: RelationRef) -> Mention {
    Mention {
        action,
        relation,
        columns: Vec::new(),
        all_columns: false,
        role: None,
    }
}

/// The query's rows become a relation.
fn stored(statement: &mut Statement, created: RelationRef) {
    statement.stored = true;
    statement.temporary = created.temporary;
    statement.columns = created
        .alias
        .as_ref()
        .map(|alias| alias.columns.clone())
        .unwrap_or_default();
    statement.mentions.push(mention(Action::Ddl, created));
    statement.effects.push(SessionEffect::CatalogChange);
}

pub(super) fn text(value: Option<&str>) -> String {
    value.unwrap_or_default().to_owned()
}

pub(super) fn kind_of_query(query: &Query) -> StatementKind {
    match &query.body {
        Body::Select(_) | Body::Values(_) | Body::SetOperation(_) => StatementKind::Select,
        Body::Write(write) => match &write.kind {
            WriteKind::Insert { .. } => StatementKind::Insert,
            WriteKind::Update { .. } => StatementKind::Update,
            WriteKind::Delete { .. } => StatementKind::Delete,
            WriteKind::Merge { .. } => StatementKind::Merge,
        },
    }
}

fn is_off(node: Node<'_>) -> bool {
    match node {
        Node::String(word) => matches!(
            word.sval().unwrap_or_default().to_ascii_lowercase().as_str(),
            "off" | "false" | "0" | "no"
        ),
        Node::Integer(number) => number.ival == 0,
        Node::Boolean(value) => !value.boolval,
        _ => false,
    }
}

fn transaction_statement(node: &nodes::TransactionStmt) -> Lowered<Statement> {
    let savepoint = || text(node.savepoint_name());
    Ok(Statement::new(match node.kind {
        TransactionStmtKind::TRANS_STMT_BEGIN | TransactionStmtKind::TRANS_STMT_START => StatementKind::Begin,
        TransactionStmtKind::TRANS_STMT_COMMIT => StatementKind::Commit { chain: node.chain },
        TransactionStmtKind::TRANS_STMT_ROLLBACK => StatementKind::Rollback { chain: node.chain },
        TransactionStmtKind::TRANS_STMT_SAVEPOINT => StatementKind::Savepoint(savepoint()),
        TransactionStmtKind::TRANS_STMT_RELEASE => StatementKind::Release(savepoint()),
        TransactionStmtKind::TRANS_STMT_ROLLBACK_TO => StatementKind::RollbackTo(savepoint()),
        TransactionStmtKind::TRANS_STMT_PREPARE
        | TransactionStmtKind::TRANS_STMT_COMMIT_PREPARED
        | TransactionStmtKind::TRANS_STMT_ROLLBACK_PREPARED => StatementKind::TwoPhase,
        _ => return Err(refuse(Node::TransactionStmt(node), "a statement")),
    }))
}

/// SET and RESET.
pub(super) fn set_statement(node: &nodes::VariableSetStmt) -> Lowered<Statement> {
    let mut statement = Statement::new(StatementKind::Set);
    let name = text(node.name()).to_ascii_lowercase();
    let local = node.is_local;
    match node.kind {
        VariableSetKind::VAR_SET_VALUE => {
            let mut values = Vec::new();
            for argument in node.args() {
                values.push(setting_text(argument)?);
            }
            statement.effects.push(SessionEffect::Setting {
                name,
                values: Some(values),
                local,
            });
        }
        VariableSetKind::VAR_SET_DEFAULT => {
            statement.effects.push(SessionEffect::Setting {
                name,
                values: None,
                local,
            });
        }
        VariableSetKind::VAR_RESET => {
            statement.effects.push(SessionEffect::Setting {
                name,
                values: None,
                local: false,
            });
        }
        VariableSetKind::VAR_RESET_ALL => statement.effects.push(SessionEffect::ResetAll),
        VariableSetKind::VAR_SET_CURRENT => statement.effects.push(SessionEffect::UnknownSetting),
        VariableSetKind::VAR_SET_MULTI => match node.name() {
            Some("TRANSACTION" | "TRANSACTION SNAPSHOT") => {
                statement.kind = StatementKind::TransactionSetting
            }
            Some("SESSION CHARACTERISTICS") => {
                for argument in node.args() {
                    match argument {
                        Node::DefElem(option) => statement.effects.push(SessionEffect::Setting {
                            name: format!("default_{}", text(option.defname())),
                            values: Some(vec![setting_text(option.arg())?]),
                            local: false,
                        }),
                        other => return Err(refuse(other, "SET SESSION CHARACTERISTICS")),
                    }
                }
            }
            Some(other) => return Err(Unreadable::NotBuilt(format!("SET {other}"))),
            None => return Err(refuse(Node::VariableSetStmt(node), "a statement")),
        },
        _ => return Err(refuse(Node::VariableSetStmt(node), "a statement")),
    }
    Ok(statement)
}

fn show_statement(node: &nodes::VariableShowStmt) -> Statement {
    let mut statement = Statement::new(StatementKind::Show);
    statement.columns = match node.name() {
        Some("all") => ["name", "setting", "description"].map(str::to_owned).to_vec(),
        Some(name) => vec![name.to_owned()],
        None => Vec::new(),
    };
    statement
}

fn discard_statement(node: &nodes::DiscardStmt) -> Lowered<Statement> {
    let (target, effects) = match node.target {
        DiscardMode::DISCARD_ALL => (
            DiscardTarget::All,
            vec![SessionEffect::ResetAll, SessionEffect::CatalogChange],
        ),
        DiscardMode::DISCARD_PLANS => (DiscardTarget::Plans, Vec::new()),
        DiscardMode::DISCARD_SEQUENCES => (DiscardTarget::Sequences, Vec::new()),
        DiscardMode::DISCARD_TEMP => (DiscardTarget::Temp, vec![SessionEffect::CatalogChange]),
        _ => return Err(refuse(Node::DiscardStmt(node), "a statement")),
    };
    let mut statement = Statement::new(StatementKind::Discard(target));
    statement.effects = effects;
    Ok(statement)
}

/// A relation by the parts of its name.
pub(super) fn relation_of(name: Name) -> RelationRef {
    let temporary = name.schema.as_deref() == Some("pg_temp");
    RelationRef {
        name,
        alias: None,
        location: -1,
        temporary,
    }
}
