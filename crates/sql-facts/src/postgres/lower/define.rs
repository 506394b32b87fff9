//! Definitions (DDL) and administration: which relations they name, and what their expressions read.

use pg_raw_parse::Node;
use pg_raw_parse::list::NodeList;
use pg_raw_parse::nodes;
use pg_raw_parse::raw::{AlterTableType, ConstrType, GrantTargetType, ObjectType, RoleStmtType};

use super::utility::{mention, relation_of, set_statement, text};
use super::{Lower, Lowered, name_of_parts, refuse, words};
use crate::facts::{Action, SessionEffect, StatementKind, Unreadable};
use crate::form::{Expr, ExprKind, Mention, Scoped, Statement, StoredBody};

impl Lower {
    pub(super) fn definition(&mut self, node: Node<'_>) -> Lowered<Statement> {
        match node {
            Node::CreateStmt(create) => self.create_table(create),
            Node::AlterTableStmt(alter) => self.alter_table(alter),
            Node::IndexStmt(index) => self.create_index(index),
            Node::CreateStatsStmt(statistics) => self.create_statistics(statistics),
            Node::CreatePolicyStmt(policy) => {
                let mut statement = ddl("CREATE POLICY");
                let exprs = [policy.qual(), policy.with_check()];
                self.on_table(&mut statement, policy.table(), exprs, false)?;
                Ok(statement)
            }
            Node::AlterPolicyStmt(policy) => {
                let mut statement = ddl("ALTER POLICY");
                let exprs = [policy.qual(), policy.with_check()];
                self.on_table(&mut statement, policy.table(), exprs, false)?;
                Ok(statement)
            }
            Node::CreateTrigStmt(trigger) => self.create_trigger(trigger),
            Node::RuleStmt(rule) => self.create_rule(rule),
            Node::CreateFunctionStmt(function) => self.create_function(function),
            Node::CreateDomainStmt(domain) => self.create_domain(domain),
            Node::AlterDomainStmt(domain) => self.alter_domain(domain),
            Node::CreateSeqStmt(sequence) => {
                let mut statement = ddl("CREATE SEQUENCE");
                self.sequence_options(&mut statement, sequence.options())?;
                self.named(&mut statement, sequence.sequence());
                statement.temporary = statement
                    .mentions
                    .last()
                    .is_some_and(|made| made.relation.temporary);
                Ok(statement)
            }
            Node::AlterSeqStmt(sequence) => {
                let mut statement = ddl("ALTER SEQUENCE");
                self.sequence_options(&mut statement, sequence.options())?;
                self.named(&mut statement, sequence.sequence());
                Ok(statement)
            }
            Node::DropStmt(drop) => self.drop_objects(drop),
            Node::RenameStmt(rename) => {
                let mut statement = ddl(&format!("ALTER {}", object_word(rename.rename_type)?));
                // ALTER TABLE … RENAME COLUMN has the tag of its table.
                if matches!(
                    rename.rename_type,
                    ObjectType::OBJECT_COLUMN | ObjectType::OBJECT_ATTRIBUTE
                ) {
                    statement = ddl(&format!("ALTER {}", object_word(rename.relation_type)?));
                }
                self.named(&mut statement, rename.relation());
                if rename.rename_type == ObjectType::OBJECT_COLUMN {
                    with_columns(&mut statement, [text(rename.subname())]);
                }
                self.named_object(&mut statement, rename.rename_type, rename.object(), Action::Ddl)?;
                Ok(statement)
            }
            Node::AlterObjectSchemaStmt(alter) => {
                let mut statement = ddl(&format!("ALTER {}", object_word(alter.object_type)?));
                self.named(&mut statement, alter.relation());
                self.named_object(&mut statement, alter.object_type, alter.object(), Action::Ddl)?;
                Ok(statement)
            }
            Node::AlterOwnerStmt(alter) => {
                let mut statement = ddl(&format!("ALTER {}", object_word(alter.object_type)?));
                self.named(&mut statement, alter.relation());
                self.named_object(&mut statement, alter.object_type, alter.object(), Action::Ddl)?;
                Ok(statement)
            }
            Node::AlterObjectDependsStmt(alter) => {
                let mut statement = ddl(&format!("ALTER {}", object_word(alter.object_type)?));
                self.named(&mut statement, alter.relation());
                self.named_object(&mut statement, alter.object_type, alter.object(), Action::Ddl)?;
                Ok(statement)
            }
            Node::CommentStmt(comment) => {
                let mut statement = ddl("COMMENT");
                statement.only_adds = true;
                self.named_object(&mut statement, comment.objtype, comment.object(), Action::Ddl)?;
                Ok(statement)
            }
            Node::SecLabelStmt(label) => {
                let mut statement = ddl("SECURITY LABEL");
                self.named_object(&mut statement, label.objtype, label.object(), Action::Ddl)?;
                Ok(statement)
            }
            Node::GrantStmt(grant) => self.grant(grant),
            Node::RefreshMatViewStmt(refresh) => {
                let mut statement = ddl("REFRESH MATERIALIZED VIEW");
                self.named(&mut statement, refresh.relation());
                Ok(statement)
            }
            Node::CreateSchemaStmt(schema) => self.create_schema(schema),
            Node::CompositeTypeStmt(composite) => {
                let mut statement = ddl("CREATE TYPE");
                statement.only_adds = true;
                for column in composite.coldeflist() {
                    statement.types.push(self.type_name(column.type_name())?);
                }
                self.named(&mut statement, composite.typevar());
                Ok(statement)
            }
            other => self.rarer_definition(other),
        }
    }

    /// Definitions that name no relation, and administration.
    #[inline(never)]
    fn rarer_definition(&mut self, node: Node<'_>) -> Lowered<Statement> {
        Ok(match node {
            Node::CreateEnumStmt(_) | Node::CreateRangeStmt(_) => ddl("CREATE TYPE"),
            Node::AlterEnumStmt(_) | Node::AlterTypeStmt(_) => ddl("ALTER TYPE"),
            Node::DefineStmt(define) => ddl(&format!("CREATE {}", object_word(define.kind)?)),
            Node::AlterFunctionStmt(alter) => ddl(&format!("ALTER {}", object_word(alter.objtype)?)),
            Node::CreateCastStmt(_) => ddl("CREATE CAST"),
            Node::CreateTransformStmt(_) => ddl("CREATE TRANSFORM"),
            Node::CreateConversionStmt(_) => ddl("CREATE CONVERSION"),
            Node::CreateOpClassStmt(_) => ddl("CREATE OPERATOR CLASS"),
            Node::CreateOpFamilyStmt(_) => ddl("CREATE OPERATOR FAMILY"),
            Node::AlterOpFamilyStmt(_) => ddl("ALTER OPERATOR FAMILY"),
            Node::AlterOperatorStmt(_) => ddl("ALTER OPERATOR"),
            Node::AlterCollationStmt(_) => ddl("ALTER COLLATION"),
            Node::AlterStatsStmt(_) => ddl("ALTER STATISTICS"),
            Node::AlterTSDictionaryStmt(_) => ddl("ALTER TEXT SEARCH DICTIONARY"),
            Node::AlterTSConfigurationStmt(_) => ddl("ALTER TEXT SEARCH CONFIGURATION"),
            Node::AlterDefaultPrivilegesStmt(_) => ddl("ALTER DEFAULT PRIVILEGES"),
            Node::CreateAmStmt(_) => ddl("CREATE ACCESS METHOD"),
            Node::CreateEventTrigStmt(_) => ddl("CREATE EVENT TRIGGER"),
            Node::AlterEventTrigStmt(_) => ddl("ALTER EVENT TRIGGER"),
            Node::CreatePLangStmt(_) => ddl("CREATE LANGUAGE"),
            Node::CreateFdwStmt(_) => ddl("CREATE FOREIGN DATA WRAPPER"),
            Node::AlterFdwStmt(_) => ddl("ALTER FOREIGN DATA WRAPPER"),
            Node::CreateForeignServerStmt(_) => ddl("CREATE SERVER"),
            Node::AlterForeignServerStmt(_) => ddl("ALTER SERVER"),
            Node::CreateUserMappingStmt(_) => ddl("CREATE USER MAPPING"),
            Node::AlterUserMappingStmt(_) => ddl("ALTER USER MAPPING"),
            Node::DropUserMappingStmt(_) => ddl("DROP USER MAPPING"),
            Node::ImportForeignSchemaStmt(_) => ddl("IMPORT FOREIGN SCHEMA"),
            Node::DropOwnedStmt(_) => admin("DROP OWNED"),
            Node::ReassignOwnedStmt(_) => admin("REASSIGN OWNED"),
            Node::CreateRoleStmt(role) => admin(match role.stmt_type {
                RoleStmtType::ROLESTMT_USER | RoleStmtType::ROLESTMT_ROLE | RoleStmtType::ROLESTMT_GROUP => {
                    "CREATE ROLE"
                }
                _ => return Err(refuse(node, "a statement")),
            }),
            Node::AlterRoleStmt(_) | Node::AlterRoleSetStmt(_) => admin("ALTER ROLE"),
            Node::DropRoleStmt(_) => admin("DROP ROLE"),
            Node::GrantRoleStmt(grant) => admin(if grant.is_grant {
                "GRANT ROLE"
            } else {
                "REVOKE ROLE"
            }),
            Node::AlterSystemStmt(_) => admin("ALTER SYSTEM"),
            Node::CheckPointStmt(_) => admin("CHECKPOINT"),
            Node::CreatedbStmt(_) => admin("CREATE DATABASE"),
            Node::AlterDatabaseStmt(_)
            | Node::AlterDatabaseSetStmt(_)
            | Node::AlterDatabaseRefreshCollStmt(_) => admin("ALTER DATABASE"),
            Node::DropdbStmt(_) => admin("DROP DATABASE"),
            Node::CreateTableSpaceStmt(_) => {
                let mut statement = admin("CREATE TABLESPACE");
                statement.server_files = true;
                statement
            }
            Node::DropTableSpaceStmt(_) => admin("DROP TABLESPACE"),
            Node::AlterTableSpaceOptionsStmt(_) => admin("ALTER TABLESPACE"),
            Node::AlterTableMoveAllStmt(_) => admin("ALTER TABLE ALL IN TABLESPACE"),
            Node::CreateSubscriptionStmt(_) => admin("CREATE SUBSCRIPTION"),
            Node::AlterSubscriptionStmt(_) => admin("ALTER SUBSCRIPTION"),
            Node::DropSubscriptionStmt(_) => admin("DROP SUBSCRIPTION"),
            Node::CreateExtensionStmt(_) => changes(admin("CREATE EXTENSION")),
            Node::AlterExtensionStmt(_) => changes(admin("ALTER EXTENSION")),
            Node::AlterExtensionContentsStmt(alter) => {
                let mut statement = changes(admin("ALTER EXTENSION"));
                self.named_object(&mut statement, alter.objtype, alter.object(), Action::Admin)?;
                statement
            }
            Node::LoadStmt(_) => {
                let mut statement = admin("LOAD");
                statement.server_files = true;
                statement
            }
            Node::VacuumStmt(vacuum) => {
                let mut statement = admin(if vacuum.is_vacuumcmd { "VACUUM" } else { "ANALYZE" });
                for target in vacuum.rels() {
                    if let Some(range) = target.relation() {
                        let relation = self.relation(range);
                        let columns = words(target.va_cols());
                        statement.mentions.push(Mention {
                            columns,
                            ..mention(Action::Admin, relation)
                        });
                    }
                }
                statement
            }
            Node::ClusterStmt(cluster) => {
                let mut statement = admin("CLUSTER");
                if let Some(range) = cluster.relation() {
                    statement
                        .mentions
                        .push(mention(Action::Admin, self.relation(range)));
                }
                statement
            }
            Node::ReindexStmt(reindex) => {
                let mut statement = admin("REINDEX");
                if let Some(range) = reindex.relation() {
                    statement
                        .mentions
                        .push(mention(Action::Admin, self.relation(range)));
                }
                statement
            }
            Node::CreatePublicationStmt(publication) => {
                let mut statement = admin("CREATE PUBLICATION");
                self.publication(&mut statement, publication.pubobjects())?;
                statement
            }
            Node::AlterPublicationStmt(publication) => {
                let mut statement = admin("ALTER PUBLICATION");
                self.publication(&mut statement, publication.pubobjects())?;
                statement
            }
            other => return Err(refuse(other, "a statement")),
        })
    }

    /// Notes a relation that a definition names.
    fn named(&mut self, statement: &mut Statement, range: Option<&nodes::RangeVar>) {
        if let Some(range) = range {
            statement
                .mentions
                .push(mention(Action::Ddl, self.relation(range)));
        }
    }

    /// A definition on one relation, with expressions over its columns.
    fn on_table<'n>(
        &mut self,
        statement: &mut Statement,
        range: Option<&nodes::RangeVar>,
        exprs: impl IntoIterator<Item = Node<'n>>,
        old_and_new: bool,
    ) -> Lowered<()> {
        let Some(range) = range else {
            return Err(Unreadable::NotBuilt("a definition on no relation".to_owned()));
        };
        let relation = self.relation(range);
        let mut lowered = Vec::new();
        for expr in exprs {
            lowered.extend(self.optional(expr)?);
        }
        statement.mentions.push(mention(Action::Ddl, relation.clone()));
        statement.scoped.push(Scoped {
            relation,
            exprs: lowered,
            old_and_new,
            created: false,
        });
        Ok(())
    }

    fn create_table(&mut self, node: &nodes::CreateStmt) -> Lowered<Statement> {
        let mut statement = ddl("CREATE TABLE");
        statement.only_adds = true;
        let Some(range) = node.relation() else {
            return Err(refuse(Node::CreateStmt(node), "a statement"));
        };
        let relation = self.relation(range);
        statement.temporary = relation.temporary;
        let mut exprs = Vec::new();
        for element in node.table_elts() {
            match element {
                Node::ColumnDef(column) => self.column(&mut statement, column, &mut exprs)?,
                Node::TableLikeClause(like) => {
                    // It copies definitions, no rows.
                    self.named(&mut statement, like.relation());
                }
                Node::Constraint(constraint) => self.constraint(&mut statement, constraint, &mut exprs)?,
                other => return Err(refuse(other, "CREATE TABLE")),
            }
        }
        for constraint in node.constraints() {
            self.constraint(&mut statement, constraint, &mut exprs)?;
        }
        for constraint in node.nnconstraints() {
            match constraint {
                Node::Constraint(constraint) => self.constraint(&mut statement, constraint, &mut exprs)?,
                other => return Err(refuse(other, "CREATE TABLE")),
            }
        }
        let parents = self.mentions(node.inh_relations(), Action::Ddl)?;
        // A partition or child takes part in every read of its parent.
        statement.only_adds &= parents.is_empty();
        statement.mentions.extend(parents);
        if let Some(bound) = node.partbound() {
            self.bound(&mut statement, bound)?;
        }
        if let Some(partition) = node.partspec() {
            for element in partition.part_params() {
                exprs.extend(self.optional(element.expr())?);
            }
        }
        if node.of_typename().is_some() {
            statement.types.push(self.type_name(node.of_typename())?);
        }
        statement.mentions.push(mention(Action::Ddl, relation.clone()));
        statement.scoped.push(Scoped {
            relation,
            exprs,
            old_and_new: false,
            created: true,
        });
        Ok(statement)
    }

    fn column(
        &mut self,
        statement: &mut Statement,
        node: &nodes::ColumnDef,
        exprs: &mut Vec<Expr>,
    ) -> Lowered<()> {
        if node.type_name().is_some() {
            statement.types.push(self.type_name(node.type_name())?);
        }
        exprs.extend(self.optional(node.raw_default())?);
        exprs.extend(self.optional(node.cooked_default())?);
        for constraint in node.constraints() {
            match constraint {
                Node::Constraint(constraint) => self.constraint(statement, constraint, exprs)?,
                other => return Err(refuse(other, "a column definition")),
            }
        }
        Ok(())
    }

    fn constraint(
        &mut self,
        statement: &mut Statement,
        node: &nodes::Constraint,
        exprs: &mut Vec<Expr>,
    ) -> Lowered<()> {
        exprs.extend(self.optional(node.raw_expr())?);
        exprs.extend(self.optional(node.where_clause())?);
        if node.contype == ConstrType::CONSTR_IDENTITY {
            self.sequence_options(statement, node.options())?;
        }
        for exclusion in node.exclusions() {
            // A pair: what is compared, and the operator.
            match exclusion {
                Node::NodeList(pair) => match pair.get(0) {
                    Some(Node::IndexElem(element)) => exprs.push(self.index_element(element)?),
                    Some(other) => return Err(refuse(other, "EXCLUDE")),
                    None => return Err(refuse(exclusion, "EXCLUDE")),
                },
                other => return Err(refuse(other, "EXCLUDE")),
            }
        }
        for key in words(node.keys()) {
            exprs.push(column_named(key));
        }
        if node.pktable().is_some() {
            self.named(statement, node.pktable());
            with_columns(statement, words(node.pk_attrs()));
        }
        for key in words(node.fk_attrs()) {
            exprs.push(column_named(key));
        }
        Ok(())
    }

    fn bound(&mut self, statement: &mut Statement, node: &nodes::PartitionBoundSpec) -> Lowered<()> {
        for list in [node.listdatums(), node.lowerdatums(), node.upperdatums()] {
            for datum in list {
                match datum {
                    Node::PartitionRangeDatum(datum) => statement.loose.extend(self.optional(datum.value())?),
                    // MINVALUE and MAXVALUE come as bare column names.
                    Node::ColumnRef(_) => {}
                    other => statement.loose.push(self.expr(other)?),
                }
            }
        }
        Ok(())
    }

    fn alter_table(&mut self, node: &nodes::AlterTableStmt) -> Lowered<Statement> {
        let mut statement = ddl(&format!("ALTER {}", object_word(node.objtype)?));
        let Some(range) = node.relation() else {
            return Err(refuse(Node::AlterTableStmt(node), "a statement"));
        };
        let relation = self.relation(range);
        let mut exprs = Vec::new();
        let mut columns = Vec::new();
        statement.only_adds = true;
        for command in node.cmds() {
            let Node::AlterTableCmd(command) = command else {
                return Err(refuse(command, "ALTER TABLE"));
            };
            statement.only_adds &= command.subtype == AlterTableType::AT_AddColumn;
            if names_a_column(command.subtype) {
                columns.extend(command.name().map(str::to_owned));
            }
            self.alter_command(&mut statement, command, &mut exprs)?;
        }
        statement.mentions.push(Mention {
            columns,
            ..mention(Action::Ddl, relation.clone())
        });
        // What ADD COLUMN adds may be named by a constraint beside it.
        let created = statement.only_adds;
        statement.scoped.push(Scoped {
            relation,
            exprs,
            old_and_new: false,
            created,
        });
        Ok(statement)
    }

    fn alter_command(
        &mut self,
        statement: &mut Statement,
        command: &nodes::AlterTableCmd,
        exprs: &mut Vec<Expr>,
    ) -> Lowered<()> {
        match command.def() {
            Node::None => Ok(()),
            Node::ColumnDef(column) => self.column(statement, column, exprs),
            Node::Constraint(constraint) => self.constraint(statement, constraint, exprs),
            Node::PartitionCmd(partition) => {
                self.named(statement, partition.name());
                match partition.bound() {
                    Some(bound) => self.bound(statement, bound),
                    None => Ok(()),
                }
            }
            Node::RangeVar(range) => {
                self.named(statement, Some(range));
                Ok(())
            }
            Node::TypeName(name) => {
                statement.types.push(self.type_name(Some(name))?);
                Ok(())
            }
            // Options of storage, statistics and sequences: words and numbers.
            Node::NodeList(options) => self.sequence_options(statement, options),
            Node::Integer(_)
            | Node::String(_)
            | Node::ReplicaIdentityStmt(_)
            | Node::ATAlterConstraint(_)
            | Node::RoleSpec(_)
            | Node::DefElem(_) => Ok(()),
            expr if matches!(
                command.subtype,
                AlterTableType::AT_ColumnDefault | AlterTableType::AT_SetExpression
            ) =>
            {
                exprs.push(self.expr(expr)?);
                Ok(())
            }
            other => Err(refuse(other, "ALTER TABLE")),
        }
    }

    fn create_index(&mut self, node: &nodes::IndexStmt) -> Lowered<Statement> {
        let mut statement = ddl("CREATE INDEX");
        statement.only_adds = true;
        let mut exprs = Vec::new();
        for element in node.index_params() {
            exprs.push(self.index_element(element)?);
        }
        for element in node.index_including_params() {
            match element {
                Node::IndexElem(element) => exprs.push(self.index_element(element)?),
                other => return Err(refuse(other, "INCLUDE")),
            }
        }
        exprs.extend(self.optional(node.where_clause())?);
        self.on_table(&mut statement, node.relation(), [], false)?;
        if let Some(scoped) = statement.scoped.last_mut() {
            scoped.exprs = exprs;
        }
        Ok(statement)
    }

    fn create_statistics(&mut self, node: &nodes::CreateStatsStmt) -> Lowered<Statement> {
        let mut statement = ddl("CREATE STATISTICS");
        let mut exprs = Vec::new();
        for element in node.exprs() {
            match element {
                Node::StatsElem(element) => match element.name() {
                    Some(name) => exprs.push(column_named(name.to_owned())),
                    None => exprs.push(self.expr(element.expr())?),
                },
                other => return Err(refuse(other, "CREATE STATISTICS")),
            }
        }
        // The server takes one plain relation here.
        for range in node.relations() {
            self.on_table(&mut statement, Some(range), [], false)?;
        }
        if let Some(scoped) = statement.scoped.last_mut() {
            scoped.exprs = exprs;
        }
        Ok(statement)
    }

    fn create_trigger(&mut self, node: &nodes::CreateTrigStmt) -> Lowered<Statement> {
        let mut statement = ddl("CREATE TRIGGER");
        self.on_table(&mut statement, node.relation(), [node.when_clause()], true)?;
        with_columns(&mut statement, words(node.columns()));
        self.named(&mut statement, node.constrrel());
        Ok(statement)
    }

    fn create_rule(&mut self, node: &nodes::RuleStmt) -> Lowered<Statement> {
        let mut statement = ddl("CREATE RULE");
        self.on_table(&mut statement, node.relation(), [node.where_clause()], true)?;
        let Some(range) = node.relation() else {
            return Ok(statement);
        };
        for action in node.actions() {
            match action {
                Node::NotifyStmt(_) => {}
                query => {
                    let relation = self.relation(range);
                    statement
                        .bodies
                        .push(StoredBody::Rule(relation, self.query(query)?));
                }
            }
        }
        Ok(statement)
    }

    fn create_function(&mut self, node: &nodes::CreateFunctionStmt) -> Lowered<Statement> {
        let mut statement = ddl(if node.is_procedure {
            "CREATE PROCEDURE"
        } else {
            "CREATE FUNCTION"
        });
        for parameter in node.parameters() {
            statement.types.push(self.type_name(parameter.arg_type())?);
            statement.loose.extend(self.optional(parameter.defexpr())?);
        }
        if node.return_type().is_some() {
            statement.types.push(self.type_name(node.return_type())?);
        }
        for option in node.options() {
            match (option.defname(), option.arg()) {
                // A library of the server's.
                (Some("language"), Node::String(language)) if language.sval() == Some("c") => {
                    statement.server_files = true;
                }
                // Settings that hold while it runs.
                (Some("set"), Node::VariableSetStmt(set)) => {
                    set_statement(set)?;
                }
                (_, _) => {}
            }
        }
        self.function_body(&mut statement, node.sql_body())?;
        Ok(statement)
    }

    fn function_body(&mut self, statement: &mut Statement, body: Node<'_>) -> Lowered<()> {
        self.deeper(|lower| match body {
            Node::None => Ok(()),
            Node::NodeList(list) => {
                for part in list {
                    lower.function_body(statement, part)?;
                }
                Ok(())
            }
            Node::ReturnStmt(result) => {
                let value = lower.expr(result.returnval())?;
                statement.bodies.push(StoredBody::FunctionValue(value));
                Ok(())
            }
            query => {
                let query = lower.query(query)?;
                statement.bodies.push(StoredBody::Function(query));
                Ok(())
            }
        })
    }

    fn create_domain(&mut self, node: &nodes::CreateDomainStmt) -> Lowered<Statement> {
        let mut statement = ddl("CREATE DOMAIN");
        statement.types.push(self.type_name(node.type_name())?);
        let mut exprs = Vec::new();
        for constraint in node.constraints() {
            self.constraint(&mut statement, constraint, &mut exprs)?;
        }
        statement
            .bodies
            .extend(exprs.into_iter().map(StoredBody::FunctionValue));
        Ok(statement)
    }

    fn alter_domain(&mut self, node: &nodes::AlterDomainStmt) -> Lowered<Statement> {
        let mut statement = ddl("ALTER DOMAIN");
        let mut exprs = Vec::new();
        match node.def() {
            Node::None => {}
            Node::Constraint(constraint) => self.constraint(&mut statement, constraint, &mut exprs)?,
            expr => exprs.push(self.expr(expr)?),
        }
        // VALUE stands for what is checked.
        statement
            .bodies
            .extend(exprs.into_iter().map(StoredBody::FunctionValue));
        Ok(statement)
    }

    /// OWNED BY names a table's column; the other options are numbers and words.
    fn sequence_options(&mut self, statement: &mut Statement, options: &NodeList) -> Lowered<()> {
        for option in options {
            match option {
                Node::DefElem(option) if option.defname() == Some("owned_by") => {
                    let Node::NodeList(name) = option.arg() else {
                        return Err(refuse(option.arg(), "OWNED BY"));
                    };
                    let mut parts = words(name);
                    let column = parts.pop();
                    if !parts.is_empty() {
                        let relation = relation_of(name_of_parts(parts, "OWNED BY")?);
                        let columns = column.into_iter().collect();
                        statement.mentions.push(Mention {
                            columns,
                            ..mention(Action::Ddl, relation)
                        });
                    }
                }
                Node::DefElem(_) | Node::String(_) => {}
                other => return Err(refuse(other, "options")),
            }
        }
        Ok(())
    }

    fn create_schema(&mut self, node: &nodes::CreateSchemaStmt) -> Lowered<Statement> {
        let mut statement = ddl("CREATE SCHEMA");
        if !node.schema_elts().is_empty() {
            // Its elements resolve names in a schema that does not exist yet.
            return Err(Unreadable::NotBuilt("objects inside CREATE SCHEMA".to_owned()));
        }
        statement.only_adds = true;
        Ok(statement)
    }

    fn drop_objects(&mut self, node: &nodes::DropStmt) -> Lowered<Statement> {
        let mut statement = ddl(&format!("DROP {}", object_word(node.remove_type)?));
        for object in node.objects() {
            self.named_object(&mut statement, node.remove_type, object, Action::Ddl)?;
        }
        Ok(statement)
    }

    fn grant(&mut self, node: &nodes::GrantStmt) -> Lowered<Statement> {
        let mut statement = ddl(if node.is_grant { "GRANT" } else { "REVOKE" });
        let on_tables = node.targtype == GrantTargetType::ACL_TARGET_OBJECT
            && matches!(
                node.objtype,
                ObjectType::OBJECT_TABLE | ObjectType::OBJECT_SEQUENCE
            );
        if on_tables {
            for range in node.objects() {
                self.named(&mut statement, Some(range));
            }
        }
        Ok(statement)
    }

    fn publication(&mut self, statement: &mut Statement, objects: &NodeList) -> Lowered<()> {
        for object in objects {
            let Node::PublicationObjSpec(object) = object else {
                return Err(refuse(object, "a publication"));
            };
            if let Some(table) = object.pubtable() {
                self.on_table(statement, table.relation(), [table.where_clause()], false)?;
                with_columns(statement, words(table.columns()));
            }
        }
        Ok(())
    }

    /// An object named by the parts of its name: noted if it is a relation, or belongs to one.
    fn named_object(
        &mut self,
        statement: &mut Statement,
        kind: ObjectType::Type,
        object: Node<'_>,
        action: Action,
    ) -> Lowered<()> {
        let mut parts = match object {
            Node::NodeList(list) => words(list),
            Node::String(name) => vec![name.sval().unwrap_or_default().to_owned()],
            Node::None
            | Node::TypeName(_)
            | Node::ObjectWithArgs(_)
            | Node::Integer(_)
            | Node::Float(_)
            | Node::RoleSpec(_) => return Ok(()),
            other => return Err(refuse(other, "the name of an object")),
        };
        let mut columns = Vec::new();
        match kind {
            ObjectType::OBJECT_TABLE
            | ObjectType::OBJECT_VIEW
            | ObjectType::OBJECT_MATVIEW
            | ObjectType::OBJECT_SEQUENCE
            | ObjectType::OBJECT_INDEX
            | ObjectType::OBJECT_FOREIGN_TABLE => {}
            ObjectType::OBJECT_COLUMN => columns.extend(parts.pop()),
            // The last part is the thing's own name, the others its table's.
            ObjectType::OBJECT_RULE
            | ObjectType::OBJECT_TRIGGER
            | ObjectType::OBJECT_POLICY
            | ObjectType::OBJECT_TABCONSTRAINT => {
                parts.pop();
            }
            _ => return Ok(()),
        }
        if !parts.is_empty() {
            let relation = relation_of(name_of_parts(parts, "a name")?);
            statement.mentions.push(Mention {
                columns,
                ..mention(action, relation)
            });
        }
        Ok(())
    }
}

fn ddl(tag: &str) -> Statement {
    changes(Statement::new(StatementKind::Ddl(tag.to_owned())))
}

fn admin(tag: &str) -> Statement {
    Statement::new(StatementKind::Admin(tag.to_owned()))
}

fn changes(mut statement: Statement) -> Statement {
    statement.effects.push(SessionEffect::CatalogChange);
    statement
}

/// Adds columns to the relation noted last.
fn with_columns(statement: &mut Statement, columns: impl IntoIterator<Item = String>) {
    if let Some(mention) = statement.mentions.last_mut() {
        mention.columns.extend(columns);
    }
}

fn column_named(name: String) -> Expr {
    super::expr(
        -1,
        ExprKind::Column {
            parts: vec![name],
            star: false,
        },
    )
}

/// ALTER TABLE commands whose name is that of a column.
fn names_a_column(command: AlterTableType::Type) -> bool {
    matches!(
        command,
        AlterTableType::AT_ColumnDefault
            | AlterTableType::AT_DropNotNull
            | AlterTableType::AT_SetNotNull
            | AlterTableType::AT_SetExpression
            | AlterTableType::AT_DropExpression
            | AlterTableType::AT_SetStatistics
            | AlterTableType::AT_SetOptions
            | AlterTableType::AT_ResetOptions
            | AlterTableType::AT_SetStorage
            | AlterTableType::AT_SetCompression
            | AlterTableType::AT_DropColumn
            | AlterTableType::AT_AlterColumnType
            | AlterTableType::AT_AlterColumnGenericOptions
            | AlterTableType::AT_AddIdentity
            | AlterTableType::AT_SetIdentity
            | AlterTableType::AT_DropIdentity
    )
}

/// The word for a kind of object, as command tags have it.
fn object_word(kind: ObjectType::Type) -> Lowered<&'static str> {
    Ok(match kind {
        ObjectType::OBJECT_ACCESS_METHOD => "ACCESS METHOD",
        ObjectType::OBJECT_AGGREGATE => "AGGREGATE",
        ObjectType::OBJECT_ATTRIBUTE | ObjectType::OBJECT_TYPE => "TYPE",
        ObjectType::OBJECT_CAST => "CAST",
        ObjectType::OBJECT_COLUMN | ObjectType::OBJECT_TABLE | ObjectType::OBJECT_TABCONSTRAINT => "TABLE",
        ObjectType::OBJECT_COLLATION => "COLLATION",
        ObjectType::OBJECT_CONVERSION => "CONVERSION",
        ObjectType::OBJECT_DATABASE => "DATABASE",
        ObjectType::OBJECT_DOMAIN | ObjectType::OBJECT_DOMCONSTRAINT => "DOMAIN",
        ObjectType::OBJECT_EVENT_TRIGGER => "EVENT TRIGGER",
        ObjectType::OBJECT_EXTENSION => "EXTENSION",
        ObjectType::OBJECT_FDW => "FOREIGN DATA WRAPPER",
        ObjectType::OBJECT_FOREIGN_SERVER => "SERVER",
        ObjectType::OBJECT_FOREIGN_TABLE => "FOREIGN TABLE",
        ObjectType::OBJECT_FUNCTION => "FUNCTION",
        ObjectType::OBJECT_INDEX => "INDEX",
        ObjectType::OBJECT_LANGUAGE => "LANGUAGE",
        ObjectType::OBJECT_LARGEOBJECT => "LARGE OBJECT",
        ObjectType::OBJECT_MATVIEW => "MATERIALIZED VIEW",
        ObjectType::OBJECT_OPCLASS => "OPERATOR CLASS",
        ObjectType::OBJECT_OPERATOR => "OPERATOR",
        ObjectType::OBJECT_OPFAMILY => "OPERATOR FAMILY",
        ObjectType::OBJECT_POLICY => "POLICY",
        ObjectType::OBJECT_PROCEDURE => "PROCEDURE",
        ObjectType::OBJECT_PUBLICATION => "PUBLICATION",
        ObjectType::OBJECT_ROLE => "ROLE",
        ObjectType::OBJECT_ROUTINE => "ROUTINE",
        ObjectType::OBJECT_RULE => "RULE",
        ObjectType::OBJECT_SCHEMA => "SCHEMA",
        ObjectType::OBJECT_SEQUENCE => "SEQUENCE",
        ObjectType::OBJECT_SUBSCRIPTION => "SUBSCRIPTION",
        ObjectType::OBJECT_STATISTIC_EXT => "STATISTICS",
        ObjectType::OBJECT_TABLESPACE => "TABLESPACE",
        ObjectType::OBJECT_TRANSFORM => "TRANSFORM",
        ObjectType::OBJECT_TRIGGER => "TRIGGER",
        ObjectType::OBJECT_TSCONFIGURATION => "TEXT SEARCH CONFIGURATION",
        ObjectType::OBJECT_TSDICTIONARY => "TEXT SEARCH DICTIONARY",
        ObjectType::OBJECT_TSPARSER => "TEXT SEARCH PARSER",
        ObjectType::OBJECT_TSTEMPLATE => "TEXT SEARCH TEMPLATE",
        ObjectType::OBJECT_USER_MAPPING => "USER MAPPING",
        ObjectType::OBJECT_VIEW => "VIEW",
        other => {
            return Err(Unreadable::NotBuilt(format!(
                "a definition of object kind {other}"
            )));
        }
    })
}
