//! Types, functions, operators, casts, triggers and schemas.

use super::*;

impl Change<'_> {
    pub(super) fn create_composite(&mut self, composite: &nodes::CompositeTypeStmt) -> Applied<()> {
        let at = composite
            .typevar()
            .ok_or_else(|| not_applied("a type without a name"))?;
        let Some((schema, _)) = self.home_of(at, false)? else {
            return Ok(());
        };
        let mut columns = Vec::new();
        for (def, number) in composite.coldeflist().iter().zip(1..) {
            let mut column = self.new_column(def)?.column;
            column.number = number;
            columns.push(column);
        }
        let (oid, row_type) = (self.new_oid(), self.new_oid());
        let name = name_of(at).to_owned();
        self.add_type(
            row_type,
            schema.clone(),
            name.clone(),
            TypeKind::Composite { relation: oid },
            'C',
            0,
        );
        let last_number = columns.last().map_or(0, |column| column.number);
        self.put(Relation {
            schema,
            name,
            kind: RelationKind::CompositeType,
            columns,
            row_type,
            last_number,
            ..nothing(oid)
        });
        Ok(())
    }

    pub(super) fn create_domain(&mut self, create: &nodes::CreateDomainStmt) -> Applied<()> {
        let base = self.column_type(create.type_name(), create.coll_clause())?;
        let (schema, name) = self.named_home(&strings(create.domainname()))?;
        if self.view().types().named(&schema, &name).is_some() {
            return Err(already(&name));
        }
        let mut not_null = false;
        let mut checks = Vec::new();
        let mut user_code = false;
        for constraint in create.constraints() {
            match constraint.contype {
                ConstrType::CONSTR_NOTNULL => not_null = true,
                ConstrType::CONSTR_CHECK => {
                    let (check, calls_user_code) = self.check(constraint.raw_expr())?;
                    checks.push(check);
                    user_code |= calls_user_code;
                }
                _ => {}
            }
        }
        let (category, mut collation) = self
            .view()
            .type_entry(base.oid)
            .map_or(('U', 0), |entry| (entry.category, entry.collation));
        match base.collation.as_deref() {
            None => {}
            Some("pg_catalog.\"C\"") => collation = 950,
            Some(other) => return Err(not_applied(&format!("a domain with the collation {other}"))),
        }
        let kind = TypeKind::Domain {
            base: base.oid,
            modifier: base.modifier,
            not_null,
            checks,
            user_code,
        };
        let oid = self.new_oid();
        self.add_type(oid, schema, name, kind, category, collation);
        Ok(())
    }

    /// A CHECK as the server prints it, and whether it calls code that is not built in.
    pub(super) fn check(&self, expression: Node<'_>) -> Applied<(String, bool)> {
        let view = self.view();
        let mut user_code = false;
        visit(expression, &mut |node| {
            let (names, arguments, operator) = match node {
                Node::FuncCall(call) => (words(call.funcname()), call.args().len(), false),
                Node::A_Expr(expr) => (
                    words(expr.name()),
                    if matches!(expr.lexpr(), Node::None) { 1 } else { 2 },
                    true,
                ),
                _ => return,
            };
            let (schema, name) = match names.as_slice() {
                [name] => (None, name.as_str()),
                [schema, name] => (Some(schema.as_str()), name.as_str()),
                _ => return,
            };
            let facts = if operator {
                view.operator(schema, name, arguments)
            } else {
                view.function(schema, name, arguments)
            };
            user_code |= facts.origin == crate::facts::FunctionOrigin::UserDefined;
        })?;
        let text = deparsed_expression(expression)?;
        Ok((format!("CHECK ({text})"), user_code))
    }

    pub(super) fn alter_domain(&mut self, alter: &nodes::AlterDomainStmt) -> Applied<()> {
        let oid = self.type_named(&words(alter.type_name()))?;
        let Node::Constraint(constraint) = alter.def() else {
            // SET DEFAULT, SET NOT NULL, DROP CONSTRAINT…: a check that goes stays known.
            return Ok(());
        };
        if constraint.contype != ConstrType::CONSTR_CHECK {
            return Ok(());
        }
        let (check, calls_user_code) = self.check(constraint.raw_expr())?;
        let Some(mut entry) = self.view().type_entry(oid).cloned() else {
            return Ok(());
        };
        if let TypeKind::Domain {
            checks, user_code, ..
        } = &mut entry.kind
        {
            checks.push(check);
            *user_code |= calls_user_code;
        }
        self.overlay.types.insert(entry);
        Ok(())
    }

    pub(super) fn create_range(&mut self, create: &nodes::CreateRangeStmt) -> Applied<()> {
        let mut subtype = None;
        let mut user_code = false;
        for option in create.params() {
            match (option.defname(), option.arg()) {
                (Some("subtype"), Node::TypeName(name)) => {
                    subtype = Some(resolve_type_name(self.view(), name)?.oid)
                }
                (Some("canonical"), _) => user_code = true,
                (Some("multirange_type_name"), _) => {
                    return Err(not_applied("a range with a named multirange"));
                }
                _ => {}
            }
        }
        let subtype = subtype.ok_or_else(|| not_applied("a range without a subtype"))?;
        let names = strings(create.type_name());
        self.create_type(&names, TypeKind::Range { subtype, user_code }, 'R')?;
        let range = self.type_named(&names)?;
        let (schema, name) = self.named_home(&names)?;
        if self.catalog.server_major >= 14 {
            let multirange = multirange_name(&name);
            self.create_type(
                &[schema.clone(), multirange.clone()],
                TypeKind::Multirange { range },
                'R',
            )?;
            self.add_function(schema.clone(), multirange, 'f', 0, None, Vec::new());
        }
        // Constructors.
        self.add_function(schema, name, 'f', 2, Some(3), Vec::new());
        Ok(())
    }

    pub(super) fn add_function(
        &mut self,
        schema: String,
        name: String,
        kind: char,
        arguments_min: usize,
        arguments_max: Option<usize>,
        arguments: Vec<Oid>,
    ) {
        let oid = self.new_oid();
        self.overlay.code.add_function(UserFunction {
            oid,
            schema,
            name,
            kind,
            arguments_min,
            arguments_max,
            arguments,
        });
    }

    pub(super) fn create_function(&mut self, create: &nodes::CreateFunctionStmt) -> Applied<()> {
        let (schema, name) = self.named_home(&words(create.funcname()))?;
        let kind = if create.is_procedure { 'p' } else { 'f' };
        self.add_parameters(schema, name, kind, create.parameters().iter())
    }

    pub(super) fn add_parameters<'n>(
        &mut self,
        schema: String,
        name: String,
        kind: char,
        parameters: impl Iterator<Item = &'n nodes::FunctionParameter>,
    ) -> Applied<()> {
        let (mut all, mut with_default, mut variadic) = (0_usize, 0_usize, false);
        let mut arguments = Vec::new();
        for parameter in parameters {
            match parameter.mode {
                FunctionParameterMode::FUNC_PARAM_TABLE => continue,
                // A procedure is called with its OUT arguments written.
                FunctionParameterMode::FUNC_PARAM_OUT if kind != 'p' => continue,
                FunctionParameterMode::FUNC_PARAM_VARIADIC => variadic = true,
                _ => {}
            }
            all += 1;
            with_default += usize::from(!matches!(parameter.defexpr(), Node::None));
            // A type that is not known here hides nothing: the number of arguments is what counts.
            let resolved = parameter
                .arg_type()
                .and_then(|name| resolve_type_name(self.view(), name).ok());
            arguments.push(resolved.map_or(0, |resolved| resolved.oid));
        }
        let fewest = all
            .saturating_sub(with_default)
            .saturating_sub(usize::from(variadic));
        self.add_function(schema, name, kind, fewest, (!variadic).then_some(all), arguments);
        Ok(())
    }

    pub(super) fn define(&mut self, define: &nodes::DefineStmt) -> Applied<()> {
        let names = strings(define.defnames());
        match define.kind {
            ObjectType::OBJECT_OPERATOR => {
                let (schema, name) = self.named_home(&names)?;
                let side = |wanted: &str| -> Option<&nodes::TypeName> {
                    define
                        .definition()
                        .iter()
                        .find(|o| o.defname() == Some(wanted))
                        .and_then(|o| match o.arg() {
                            Node::TypeName(name) => Some(name),
                            _ => None,
                        })
                };
                let of = |name: Option<&nodes::TypeName>| match name {
                    None => Ok(0),
                    Some(name) => resolve_type_name(self.view(), name).map(|resolved| resolved.oid),
                };
                let (left, right) = (of(side("leftarg"))?, of(side("rightarg"))?);
                let oid = self.new_oid();
                self.overlay.code.add_operator(UserOperator {
                    oid,
                    schema,
                    name,
                    left,
                    right,
                });
                Ok(())
            }
            ObjectType::OBJECT_AGGREGATE => {
                let (schema, name) = self.named_home(&names)?;
                // (list of arguments, number of direct ones); the old style has its argument in the definition.
                let arguments = match define.args().first() {
                    Some(Node::NodeList(list)) => list,
                    _ => {
                        self.add_function(schema, name, 'a', 0, None, Vec::new());
                        return Ok(());
                    }
                };
                let parameters = arguments.iter().filter_map(|node| match node {
                    Node::FunctionParameter(parameter) => Some(parameter),
                    _ => None,
                });
                self.add_parameters(schema, name, 'a', parameters)
            }
            ObjectType::OBJECT_TYPE => {
                let known = self.type_named(&names);
                if known.is_ok() {
                    // The shell type of before gets its functions.
                    return Ok(());
                }
                self.create_type(&names, TypeKind::Base { user_code: true }, 'U')
            }
            ObjectType::OBJECT_COLLATION
            | ObjectType::OBJECT_TSCONFIGURATION
            | ObjectType::OBJECT_TSDICTIONARY
            | ObjectType::OBJECT_TSPARSER
            | ObjectType::OBJECT_TSTEMPLATE => Ok(()),
            other => Err(not_applied(&format!("CREATE of the kind {other}"))),
        }
    }

    pub(super) fn create_cast(&mut self, create: &nodes::CreateCastStmt) -> Applied<()> {
        let of = |name: Option<&nodes::TypeName>| match name {
            Some(name) => resolve_type_name(self.view(), name).map(|resolved| resolved.oid),
            None => Err(not_applied("a cast without a type")),
        };
        let (source, target) = (of(create.sourcetype())?, of(create.targettype())?);
        // Which function it is does not matter; one that is built in is taken for a user's.
        let function = if create.func().is_some() {
            self.new_oid()
        } else {
            0
        };
        let implicit = create.context == CoercionContext::COERCION_IMPLICIT;
        self.overlay.code.add_cast(UserCast {
            source,
            target,
            function,
            implicit,
        });
        Ok(())
    }

    pub(super) fn create_trigger(&mut self, trigger: &nodes::CreateTrigStmt) -> Applied<()> {
        const BEFORE: i16 = 1 << 1;
        const INSERT_OR_UPDATE: i16 = (1 << 2) | (1 << 4);
        let oid = self.existing(trigger.relation())?;
        let name = trigger.trigname().unwrap_or_default().to_owned();
        let before = trigger.row && trigger.timing == BEFORE && trigger.events & INSERT_OR_UPDATE != 0;
        // A row trigger of a partitioned table is made on each partition too.
        let mut family = vec![oid];
        if trigger.row && self.relation(oid)?.kind == RelationKind::PartitionedTable {
            family.extend(self.descendants(oid));
        }
        for member in family {
            let name = name.clone();
            self.edit(member, |relation| {
                relation.before_row_triggers |= before;
                if !relation.triggers.contains(&name) {
                    relation.triggers.push(name);
                }
            });
        }
        Ok(())
    }

    pub(super) fn create_schema(&mut self, create: &nodes::CreateSchemaStmt) -> Applied<()> {
        let Some(name) = create.schemaname() else {
            return Err(not_applied(
                "CREATE SCHEMA AUTHORIZATION: write the schema's name",
            ));
        };
        if self.home(Some(name)).is_ok() {
            return if create.if_not_exists {
                Ok(())
            } else {
                Err(already(name))
            };
        }
        self.overlay.schemas.insert(name.to_owned());
        self.overlay.dropped_schemas.remove(name);
        // Its elements are made as if the new schema were first in the path.
        let mut path = self.path.clone();
        path.0.insert(0, name.to_owned());
        for element in create.schema_elts() {
            Change {
                catalog: self.catalog,
                overlay: self.overlay,
                path: &path,
            }
            .statement(element)?;
        }
        Ok(())
    }
}
