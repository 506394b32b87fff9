//! ALTER TABLE.

use super::*;

impl Change<'_> {
    pub(super) fn alter_table(&mut self, alter: &nodes::AlterTableStmt) -> Applied<()> {
        let Some(at) = alter.relation() else {
            return Err(not_applied("ALTER TABLE without a name"));
        };
        let Some(relation) = self.find(at) else {
            // Indexes made by this text are not kept; nothing of theirs matters here.
            return if alter.missing_ok || alter.objtype == ObjectType::OBJECT_INDEX {
                Ok(())
            } else {
                Err(not_applied(&format!("relation `{}` is not there", written(at))))
            };
        };
        let (oid, only) = (relation.oid, !at.inh);
        for command in alter.cmds() {
            let Node::AlterTableCmd(command) = command else {
                return Err(not_applied(&format!("{} in ALTER TABLE", kind_of(command))));
            };
            self.alter(oid, command, only)?;
        }
        Ok(())
    }

    pub(super) fn alter(&mut self, oid: Oid, command: &nodes::AlterTableCmd, only: bool) -> Applied<()> {
        let name = command.name().unwrap_or_default();
        match command.subtype {
            AlterTableType::AT_AddColumn => {
                let Node::ColumnDef(def) = command.def() else {
                    return Err(not_applied("ADD COLUMN"));
                };
                self.add_column(oid, def, command.missing_ok, false)
            }
            AlterTableType::AT_DropColumn => self.drop_column(oid, name, command.missing_ok),
            AlterTableType::AT_ColumnDefault => self.set_default(oid, name, command.def()),
            AlterTableType::AT_DropNotNull => self.each(oid, only, name, |column| column.not_null = false),
            AlterTableType::AT_SetNotNull => self.each(oid, only, name, |column| column.not_null = true),
            AlterTableType::AT_DropExpression => self.each(oid, only, name, |column| {
                column.generated_from = None;
                column.has_default = false;
                column.default_code.clear();
            }),
            AlterTableType::AT_SetExpression => {
                let sources = columns_named(command.def())?;
                let relation = self.relation(oid)?;
                let mut numbers: Vec<AttNum> = sources
                    .iter()
                    .filter_map(|name| relation.column(name))
                    .map(|c| c.number)
                    .collect();
                numbers.sort_unstable();
                numbers.dedup();
                self.edit_column(oid, name, |column| column.generated_from = Some(numbers))
            }
            AlterTableType::AT_AlterColumnType => {
                let Node::ColumnDef(def) = command.def() else {
                    return Err(not_applied("ALTER COLUMN TYPE"));
                };
                let column_type = self.column_type(def.type_name(), def.coll_clause())?;
                self.each(oid, only, name, |column| column.column_type = column_type.clone())
            }
            AlterTableType::AT_AddConstraint => {
                let Node::Constraint(constraint) = command.def() else {
                    return Err(not_applied("ADD CONSTRAINT"));
                };
                self.add_constraint(oid, constraint)
            }
            AlterTableType::AT_DropConstraint => {
                let relation = self.relation(oid)?;
                // Names of constraints are not kept: the one the server would have given is known.
                if name == default_key_name(&relation.name) {
                    self.edit(oid, |relation| relation.primary_key.clear());
                }
                Ok(())
            }
            AlterTableType::AT_AddIdentity => {
                let number = self.column_number(oid, name)?;
                self.edit_column(oid, name, |column| {
                    column.has_default = true;
                    column.not_null = true;
                })?;
                let name_written = match command.def() {
                    Node::Constraint(constraint) => written_sequence(constraint.options()),
                    _ => None,
                };
                self.make_sequence(oid, name, number, Sequence::Identity(name_written))
            }
            AlterTableType::AT_DropIdentity => {
                let number = self.column_number(oid, name)?;
                self.drop_owned_sequences(oid, Some(number));
                self.edit_column(oid, name, |column| column.has_default = false)
            }
            AlterTableType::AT_AddInherit | AlterTableType::AT_DropInherit => {
                let Node::RangeVar(parent) = command.def() else {
                    return Err(not_applied("INHERIT"));
                };
                let parent = self.existing(Some(parent))?;
                let add = command.subtype == AlterTableType::AT_AddInherit;
                self.edit(oid, |relation| {
                    relation.parents.retain(|known| *known != parent);
                    if add {
                        relation.parents.push(parent);
                    }
                });
                Ok(())
            }
            AlterTableType::AT_AttachPartition | AlterTableType::AT_DetachPartition => {
                let Node::PartitionCmd(partition) = command.def() else {
                    return Err(not_applied("PARTITION"));
                };
                let child = self.existing(partition.name())?;
                let add = command.subtype == AlterTableType::AT_AttachPartition;
                let key = self.relation(oid)?;
                let key = self.names_of(oid, &key.primary_key)?;
                self.edit(child, |relation| {
                    relation.parents.retain(|known| *known != oid);
                    if add {
                        relation.parents.push(oid);
                        let own: Option<Vec<AttNum>> = key
                            .iter()
                            .map(|name| relation.column(name).map(|c| c.number))
                            .collect();
                        if relation.primary_key.is_empty() {
                            relation.primary_key = own.unwrap_or_default();
                        }
                    }
                });
                Ok(())
            }
            AlterTableType::AT_SetRelOptions | AlterTableType::AT_ResetRelOptions => {
                let set = command.subtype == AlterTableType::AT_SetRelOptions;
                if let Node::NodeList(options) = command.def() {
                    for option in options {
                        let Node::DefElem(option) = option else { continue };
                        if option.defname() == Some("security_invoker") {
                            let on = is_security_invoker(&format!(
                                "security_invoker={}",
                                option_value(option.arg())
                            ));
                            self.edit(oid, |relation| relation.security_invoker = set && on);
                        }
                    }
                }
                Ok(())
            }
            AlterTableType::AT_SetLogged => {
                self.edit(oid, |relation| relation.persistence = Persistence::Permanent);
                Ok(())
            }
            AlterTableType::AT_SetUnLogged => {
                self.edit(oid, |relation| relation.persistence = Persistence::Unlogged);
                Ok(())
            }
            AlterTableType::AT_SetStatistics
            | AlterTableType::AT_SetOptions
            | AlterTableType::AT_ResetOptions
            | AlterTableType::AT_SetStorage
            | AlterTableType::AT_SetCompression
            | AlterTableType::AT_AlterConstraint
            | AlterTableType::AT_ValidateConstraint
            | AlterTableType::AT_ChangeOwner
            | AlterTableType::AT_ClusterOn
            | AlterTableType::AT_DropCluster
            | AlterTableType::AT_SetAccessMethod
            | AlterTableType::AT_SetTableSpace
            | AlterTableType::AT_EnableTrig
            | AlterTableType::AT_EnableAlwaysTrig
            | AlterTableType::AT_EnableReplicaTrig
            | AlterTableType::AT_DisableTrig
            | AlterTableType::AT_EnableTrigAll
            | AlterTableType::AT_DisableTrigAll
            | AlterTableType::AT_EnableTrigUser
            | AlterTableType::AT_DisableTrigUser
            | AlterTableType::AT_EnableRule
            | AlterTableType::AT_EnableAlwaysRule
            | AlterTableType::AT_EnableReplicaRule
            | AlterTableType::AT_DisableRule
            | AlterTableType::AT_ReplicaIdentity
            | AlterTableType::AT_EnableRowSecurity
            | AlterTableType::AT_DisableRowSecurity
            | AlterTableType::AT_ForceRowSecurity
            | AlterTableType::AT_NoForceRowSecurity
            | AlterTableType::AT_SetIdentity => Ok(()),
            other => Err(not_applied(&format!("ALTER TABLE of the kind {other}"))),
        }
    }

    pub(super) fn column_number(&self, oid: Oid, name: &str) -> Applied<AttNum> {
        let number = self.relation(oid)?.column(name).map(|column| column.number);
        number.ok_or_else(|| not_applied(&format!("column `{name}` is not there")))
    }
    pub(super) fn edit_column(
        &mut self,
        oid: Oid,
        name: &str,
        change: impl FnOnce(&mut Column),
    ) -> Applied<()> {
        self.column_number(oid, name)?;
        self.edit(oid, |relation| {
            if let Some(column) = relation.columns.iter_mut().find(|column| column.name == name) {
                change(column);
            }
        });
        Ok(())
    }
    /// Changes a column here and in all that inherit it.
    pub(super) fn each(
        &mut self,
        oid: Oid,
        only: bool,
        name: &str,
        change: impl Fn(&mut Column),
    ) -> Applied<()> {
        self.edit_column(oid, name, &change)?;
        if !only {
            for child in self.descendants(oid) {
                self.edit_column(child, name, &change)?;
            }
        }
        Ok(())
    }
    /// Children, their children, and so on; each once.
    pub(super) fn descendants(&self, oid: Oid) -> Vec<Oid> {
        let mut found = Vec::new();
        let mut next = vec![oid];
        while let Some(parent) = next.pop() {
            for child in self.children(parent) {
                if child != oid && !found.contains(&child) {
                    found.push(child);
                    next.push(child);
                }
            }
        }
        found
    }

    pub(super) fn add_column(
        &mut self,
        oid: Oid,
        def: &nodes::ColumnDef,
        if_not_exists: bool,
        child: bool,
    ) -> Applied<()> {
        let mut new = self.new_column(def)?;
        let relation = self.relation(oid)?;
        if relation.column(&new.column.name).is_some() {
            // A child that has the column already keeps it.
            return if if_not_exists || child {
                Ok(())
            } else {
                Err(already(&new.column.name))
            };
        }
        let number = relation
            .last_number
            .checked_add(1)
            .ok_or_else(|| not_applied("too many columns"))?;
        new.column.number = number;
        if let Some(sources) = new.generated_names.take() {
            let mut numbers: Vec<AttNum> = sources
                .iter()
                .filter_map(|name| relation.column(name))
                .map(|c| c.number)
                .collect();
            numbers.sort_unstable();
            numbers.dedup();
            new.column.generated_from = Some(numbers);
        }
        let (sequence, primary, name) = (
            if child { Sequence::No } else { new.sequence.clone() },
            new.primary && !child,
            new.column.name.clone(),
        );
        self.edit(oid, |relation| {
            relation.columns.push(new.column);
            relation.last_number = number;
            if primary {
                relation.primary_key = vec![number];
            }
        });
        self.make_sequence(oid, &name, number, sequence)?;
        self.note_uses(
            oid,
            new.calls.iter().map(|sequence| (*sequence, number)).collect(),
        );
        for (referenced, cascade) in new.references {
            let referenced = if referenced == 0 { oid } else { referenced };
            self.edit(referenced, |relation| {
                relation.cascades.push(Cascade {
                    relation: oid,
                    ..cascade
                })
            });
        }
        for child in self.children(oid) {
            self.add_column(child, def, if_not_exists, true)?;
        }
        Ok(())
    }

    pub(super) fn drop_column(&mut self, oid: Oid, name: &str, if_exists: bool) -> Applied<()> {
        let number = match self.column_number(oid, name) {
            Ok(number) => number,
            Err(_) if if_exists => return Ok(()),
            Err(error) => return Err(error),
        };
        self.drop_owned_sequences(oid, Some(number));
        self.forget_uses(oid, Some(number));
        self.edit(oid, |relation| {
            relation.columns.retain(|column| column.number != number);
            // CASCADE takes generated columns along.
            relation.columns.retain(|c| {
                c.generated_from
                    .as_ref()
                    .is_none_or(|from| !from.contains(&number))
            });
            if relation.primary_key.contains(&number) {
                relation.primary_key.clear();
            }
        });
        for child in self.children(oid) {
            self.drop_column(child, name, true)?;
        }
        Ok(())
    }

    pub(super) fn set_default(&mut self, oid: Oid, name: &str, expression: Node<'_>) -> Applied<()> {
        let number = self.column_number(oid, name)?;
        let column = self
            .relation(oid)?
            .column(name)
            .cloned()
            .ok_or_else(|| not_applied("the column is not there"))?;
        let mut new = NewColumn {
            column: Column {
                has_default: false,
                default_code: Vec::new(),
                ..column
            },
            primary: false,
            sequence: Sequence::No,
            calls: Vec::new(),
            references: Vec::new(),
            generated_names: None,
        };
        self.default(&mut new, expression)?;
        self.forget_uses(oid, Some(number));
        let (has_default, code) = (new.column.has_default, new.column.default_code);
        self.each(oid, false, name, |column| {
            column.has_default = has_default;
            column.default_code = code.clone();
        })?;
        self.note_uses(
            oid,
            new.calls.iter().map(|sequence| (*sequence, number)).collect(),
        );
        Ok(())
    }

    pub(super) fn add_constraint(&mut self, oid: Oid, constraint: &nodes::Constraint) -> Applied<()> {
        match constraint.contype {
            ConstrType::CONSTR_PRIMARY => {
                if constraint.indexname().is_some() {
                    return Err(not_applied("a primary key made of an index"));
                }
                let relation = self.relation(oid)?;
                let keys: Option<Vec<AttNum>> = words(constraint.keys())
                    .iter()
                    .map(|key| relation.column(key).map(|c| c.number))
                    .collect();
                let keys =
                    keys.ok_or_else(|| not_applied("a primary key over a column that is not there"))?;
                let names = words(constraint.keys());
                for member in std::iter::once(oid).chain(self.descendants(oid)) {
                    self.edit(member, |relation| {
                        for column in &mut relation.columns {
                            column.not_null |= names.contains(&column.name);
                        }
                    });
                }
                self.edit(oid, |relation| relation.primary_key = keys);
                // Partitions get the key too; children by inheritance do not.
                if relation.kind == RelationKind::PartitionedTable {
                    for child in self.descendants(oid) {
                        self.edit(child, |relation| {
                            let own: Option<Vec<AttNum>> = names
                                .iter()
                                .map(|name| relation.column(name).map(|c| c.number))
                                .collect();
                            relation.primary_key = own.unwrap_or_default();
                        });
                    }
                }
                Ok(())
            }
            ConstrType::CONSTR_FOREIGN => {
                let (referenced, cascade) = self.reference(constraint)?;
                if referenced == 0 {
                    return Err(not_applied("a foreign key to a table that is not there"));
                }
                self.edit(referenced, |relation| {
                    relation.cascades.push(Cascade {
                        relation: oid,
                        ..cascade
                    })
                });
                Ok(())
            }
            ConstrType::CONSTR_NOTNULL => {
                for key in words(constraint.keys()) {
                    self.each(oid, false, &key, |column| column.not_null = true)?;
                }
                Ok(())
            }
            ConstrType::CONSTR_CHECK | ConstrType::CONSTR_UNIQUE | ConstrType::CONSTR_EXCLUSION => Ok(()),
            other => Err(not_applied(&format!("a constraint of the kind {other}"))),
        }
    }
}
