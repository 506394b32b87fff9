//! RENAME, SET SCHEMA, DROP.

use super::*;

impl Change<'_> {
    pub(super) fn rename(&mut self, rename: &nodes::RenameStmt) -> Applied<()> {
        let new = rename.newname().unwrap_or_default();
        match rename.rename_type {
            ObjectType::OBJECT_TABLE
            | ObjectType::OBJECT_VIEW
            | ObjectType::OBJECT_MATVIEW
            | ObjectType::OBJECT_SEQUENCE
            | ObjectType::OBJECT_FOREIGN_TABLE
            | ObjectType::OBJECT_INDEX => match self.existing(rename.relation()) {
                Ok(oid) => {
                    let schema = self.relation(oid)?.schema.clone();
                    self.move_relation(oid, &schema, new)
                }
                Err(_) if rename.missing_ok || rename.rename_type == ObjectType::OBJECT_INDEX => Ok(()),
                Err(error) => Err(error),
            },
            ObjectType::OBJECT_COLUMN | ObjectType::OBJECT_ATTRIBUTE => {
                let oid = match self.existing(rename.relation()) {
                    Ok(oid) => oid,
                    Err(_) if rename.missing_ok => return Ok(()),
                    Err(error) => return Err(error),
                };
                let old = rename.subname().unwrap_or_default();
                if self.relation(oid)?.column(new).is_some() {
                    return Err(already(new));
                }
                self.each(oid, false, old, |column| column.name = new.to_owned())
            }
            ObjectType::OBJECT_TYPE | ObjectType::OBJECT_DOMAIN => {
                let oid = self.type_named(&object_names(rename.object()))?;
                let entry = self.view().type_entry(oid).cloned();
                match entry.map(|entry| (entry.schema, entry.kind)) {
                    Some((schema, TypeKind::Composite { relation })) => {
                        self.move_relation(relation, &schema, new)
                    }
                    Some((schema, _)) => {
                        self.move_type(oid, &schema, new);
                        Ok(())
                    }
                    None => Err(not_applied("the type is not there")),
                }
            }
            ObjectType::OBJECT_SCHEMA => {
                let old = rename.subname().unwrap_or_default().to_owned();
                self.home(Some(&old))?;
                self.overlay.schemas.remove(&old);
                self.overlay.dropped_schemas.insert(old.clone());
                self.overlay.dropped_schemas.remove(new);
                self.overlay.schemas.insert(new.to_owned());
                for relation in self
                    .relations()
                    .into_iter()
                    .filter(|relation| relation.schema == old)
                {
                    self.move_relation(relation.oid, new, &relation.name)?;
                }
                for entry in self.types_of_schema(&old) {
                    self.overlay.types.insert(TypeEntry {
                        schema: new.to_owned(),
                        ..entry
                    });
                }
                Ok(())
            }
            ObjectType::OBJECT_TRIGGER => {
                let oid = self.existing(rename.relation())?;
                let old = rename.subname().unwrap_or_default();
                self.edit(oid, |relation| {
                    relation
                        .triggers
                        .iter_mut()
                        .filter(|name| *name == old)
                        .for_each(|name| *name = new.to_owned());
                });
                Ok(())
            }
            ObjectType::OBJECT_RULE => {
                let oid = self.existing(rename.relation())?;
                let old = rename.subname().unwrap_or_default();
                self.edit(oid, |relation| {
                    relation
                        .rules
                        .iter_mut()
                        .filter(|name| *name == old)
                        .for_each(|name| *name = new.to_owned());
                });
                Ok(())
            }
            // A key renamed to the name the server would give is then taken for it; nothing else is named by it.
            ObjectType::OBJECT_TABCONSTRAINT
            | ObjectType::OBJECT_DOMCONSTRAINT
            | ObjectType::OBJECT_POLICY
            | ObjectType::OBJECT_ROLE
            | ObjectType::OBJECT_STATISTIC_EXT => Ok(()),
            ObjectType::OBJECT_FUNCTION
            | ObjectType::OBJECT_PROCEDURE
            | ObjectType::OBJECT_ROUTINE
            | ObjectType::OBJECT_AGGREGATE => {
                let old = object_names(rename.object());
                self.copy_functions(&old, |function| function.name = new.to_owned())
            }
            other => Err(not_applied(&format!("RENAME of the kind {other}"))),
        }
    }

    pub(super) fn set_schema(&mut self, alter: &nodes::AlterObjectSchemaStmt) -> Applied<()> {
        let new = self.home(alter.newschema())?;
        match alter.object_type {
            ObjectType::OBJECT_TABLE
            | ObjectType::OBJECT_VIEW
            | ObjectType::OBJECT_MATVIEW
            | ObjectType::OBJECT_SEQUENCE
            | ObjectType::OBJECT_FOREIGN_TABLE => {
                let oid = match self.existing(alter.relation()) {
                    Ok(oid) => oid,
                    Err(_) if alter.missing_ok => return Ok(()),
                    Err(error) => return Err(error),
                };
                let name = self.relation(oid)?.name.clone();
                self.move_relation(oid, &new, &name)?;
                let owned = self.relations().into_iter();
                for owned in owned
                    .filter(|r| r.owned_by.is_some_and(|(owner, _)| owner == oid))
                    .collect::<Vec<_>>()
                {
                    self.move_relation(owned.oid, &new, &owned.name)?;
                }
                Ok(())
            }
            ObjectType::OBJECT_TYPE | ObjectType::OBJECT_DOMAIN => {
                let oid = self.type_named(&object_names(alter.object()))?;
                match self
                    .view()
                    .type_entry(oid)
                    .map(|entry| (entry.name.clone(), entry.kind.clone()))
                {
                    Some((name, TypeKind::Composite { relation })) => {
                        self.move_relation(relation, &new, &name)
                    }
                    Some((name, _)) => {
                        self.move_type(oid, &new, &name);
                        Ok(())
                    }
                    None => Err(not_applied("the type is not there")),
                }
            }
            ObjectType::OBJECT_FUNCTION
            | ObjectType::OBJECT_PROCEDURE
            | ObjectType::OBJECT_ROUTINE
            | ObjectType::OBJECT_AGGREGATE => {
                let old = object_names(alter.object());
                self.copy_functions(&old, |function| function.schema = new.clone())
            }
            other => Err(not_applied(&format!("SET SCHEMA of the kind {other}"))),
        }
    }

    /// The functions of that name are known under another name or schema as well: which overload was meant is not
    /// looked at, and the old name stays closed.
    pub(super) fn copy_functions(
        &mut self,
        names: &[String],
        change: impl Fn(&mut UserFunction),
    ) -> Applied<()> {
        let (schema, name) = match names {
            [name] => (None, name),
            [schema, name] => (Some(schema), name),
            _ => return Err(not_applied("a function's name of more than two parts")),
        };
        let all = self
            .overlay
            .code
            .functions(name)
            .iter()
            .chain(self.catalog.code.functions(name));
        let named: Vec<UserFunction> = all
            .filter(|f| schema.is_none_or(|s| *s == f.schema))
            .cloned()
            .collect();
        for mut function in named {
            function.oid = self.new_oid();
            change(&mut function);
            self.overlay.code.add_function(function);
        }
        Ok(())
    }

    pub(super) fn type_named(&self, names: &[String]) -> Applied<Oid> {
        let view = self.view();
        let entry = match names {
            [name] => view.resolve_type_entry(None, name),
            [schema, name] => view.resolve_type_entry(Some(schema), name),
            _ => None,
        };
        entry
            .map(|entry| entry.oid)
            .ok_or_else(|| not_applied(&format!("type `{}` is not there", names.join("."))))
    }

    pub(super) fn types_of_schema(&self, schema: &str) -> Vec<TypeEntry> {
        let below = self
            .catalog
            .types
            .iter()
            .filter(|e| self.view().type_entry(e.oid).is_some_and(|now| now == *e));
        self.overlay
            .types
            .iter()
            .chain(below)
            .filter(|entry| entry.schema == schema)
            .cloned()
            .collect()
    }

    pub(super) fn drop_objects(&mut self, drop: &nodes::DropStmt) -> Applied<()> {
        for object in drop.objects() {
            let names = object_names(object);
            let (schema, name) = match names.as_slice() {
                [name] => (None, name.as_str()),
                [schema, name] => (Some(schema.as_str()), name.as_str()),
                [_, schema, name] => (Some(schema.as_str()), name.as_str()),
                _ => (None, ""),
            };
            match drop.remove_type {
                ObjectType::OBJECT_TABLE
                | ObjectType::OBJECT_VIEW
                | ObjectType::OBJECT_MATVIEW
                | ObjectType::OBJECT_SEQUENCE
                | ObjectType::OBJECT_FOREIGN_TABLE => {
                    let found = self
                        .view()
                        .resolve_relation(schema, name)
                        .map(|relation| relation.oid);
                    match found {
                        Some(oid) => self.drop_relation(oid)?,
                        None if drop.missing_ok => {}
                        None => {
                            return Err(not_applied(&format!(
                                "relation `{}` is not there",
                                names.join(".")
                            )));
                        }
                    }
                }
                ObjectType::OBJECT_TYPE | ObjectType::OBJECT_DOMAIN => match self.type_named(&names) {
                    Ok(oid) => {
                        let kind = self.view().type_entry(oid).map(|entry| entry.kind.clone());
                        if let Some(TypeKind::Composite { relation }) = kind {
                            self.drop_relation(relation)?;
                        }
                        self.remove_type(oid);
                    }
                    Err(_) if drop.missing_ok => {}
                    Err(error) => return Err(error),
                },
                ObjectType::OBJECT_SCHEMA => {
                    if self.home(Some(name)).is_err() {
                        if drop.missing_ok {
                            continue;
                        }
                        return Err(not_applied(&format!("schema `{name}` is not there")));
                    }
                    self.overlay.schemas.remove(name);
                    self.overlay.dropped_schemas.insert(name.to_owned());
                    for relation in self
                        .relations()
                        .into_iter()
                        .filter(|relation| relation.schema == name)
                    {
                        self.drop_relation(relation.oid)?;
                    }
                    for entry in self.types_of_schema(name) {
                        self.overlay.types.hide(entry.oid);
                    }
                }
                ObjectType::OBJECT_TRIGGER | ObjectType::OBJECT_RULE => {
                    // The table's name, then the trigger's. Whether another BEFORE trigger is left is not known.
                    let (table, object) = match names.as_slice() {
                        [table, object] => (self.view().resolve_relation(None, table), object),
                        [schema, table, object] => {
                            (self.view().resolve_relation(Some(schema), table), object)
                        }
                        _ => return Err(not_applied("DROP TRIGGER without a table")),
                    };
                    if let Some(oid) = table.map(|table| table.oid) {
                        let is_trigger = drop.remove_type == ObjectType::OBJECT_TRIGGER;
                        self.edit(oid, |relation| {
                            if is_trigger {
                                relation.triggers.retain(|name| name != object);
                                relation.before_row_triggers &= !relation.triggers.is_empty();
                            } else {
                                relation.rules.retain(|name| name != object);
                            }
                        });
                    }
                }
                // What is dropped of these stays known, and closed.
                ObjectType::OBJECT_FUNCTION
                | ObjectType::OBJECT_PROCEDURE
                | ObjectType::OBJECT_ROUTINE
                | ObjectType::OBJECT_AGGREGATE
                | ObjectType::OBJECT_OPERATOR
                | ObjectType::OBJECT_CAST
                | ObjectType::OBJECT_EXTENSION
                | ObjectType::OBJECT_INDEX
                | ObjectType::OBJECT_POLICY
                | ObjectType::OBJECT_COLLATION
                | ObjectType::OBJECT_CONVERSION
                | ObjectType::OBJECT_STATISTIC_EXT
                | ObjectType::OBJECT_EVENT_TRIGGER
                | ObjectType::OBJECT_PUBLICATION
                | ObjectType::OBJECT_OPCLASS
                | ObjectType::OBJECT_OPFAMILY
                | ObjectType::OBJECT_LANGUAGE
                | ObjectType::OBJECT_TSCONFIGURATION
                | ObjectType::OBJECT_TSDICTIONARY
                | ObjectType::OBJECT_TSPARSER
                | ObjectType::OBJECT_TSTEMPLATE => {}
                other => return Err(not_applied(&format!("DROP of the kind {other}"))),
            }
        }
        Ok(())
    }

    pub(super) fn drop_relation(&mut self, oid: Oid) -> Applied<()> {
        // Gone already, with what it belonged to.
        let Ok(relation) = self.relation(oid) else {
            return Ok(());
        };
        // Partitions go with their table; children by inheritance only with CASCADE, without which the server refuses.
        for child in self.children(oid) {
            self.drop_relation(child)?;
        }
        self.drop_owned_sequences(oid, None);
        self.forget_uses(oid, None);
        for referenced in self
            .relations()
            .into_iter()
            .filter(|r| r.cascades.iter().any(|c| c.relation == oid))
        {
            self.edit(referenced.oid, |relation| {
                relation.cascades.retain(|c| c.relation != oid)
            });
        }
        if relation.row_type != 0 {
            self.remove_type(relation.row_type);
        }
        self.overlay.relations.insert(oid, None);
        Ok(())
    }

    pub(super) fn drop_owned_sequences(&mut self, oid: Oid, column: Option<AttNum>) {
        let owned = |relation: &Relation| {
            relation
                .owned_by
                .is_some_and(|(owner, number)| owner == oid && column.is_none_or(|c| c == number))
        };
        for sequence in self.relations().into_iter().filter(|relation| owned(relation)) {
            self.overlay.relations.insert(sequence.oid, None);
        }
    }
    pub(super) fn forget_uses(&mut self, oid: Oid, column: Option<AttNum>) {
        let used = |use_: &(Oid, AttNum)| use_.0 == oid && column.is_none_or(|column| column == use_.1);
        for sequence in self
            .relations()
            .into_iter()
            .filter(|relation| relation.used_by.iter().any(used))
        {
            self.edit(sequence.oid, |sequence| {
                sequence.used_by.retain(|use_| !used(use_))
            });
        }
    }
}
