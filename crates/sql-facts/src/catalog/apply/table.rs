//! CREATE TABLE: columns, constraints, inheritance, LIKE, and the sequences that come with columns.

use super::*;

impl Change<'_> {
    pub(super) fn create_table(&mut self, create: &nodes::CreateStmt) -> Applied<()> {
        let at = create
            .relation()
            .ok_or_else(|| not_applied("a table without a name"))?;
        let Some((schema, persistence)) = self.home_of(at, create.if_not_exists)? else {
            return Ok(());
        };
        if create.of_typename().is_some() {
            return Err(not_applied("CREATE TABLE OF"));
        }
        let name = name_of(at).to_owned();
        let mut new: Vec<NewColumn> = Vec::new();
        let mut parents = Vec::new();
        for parent in create.inh_relations() {
            let Node::RangeVar(parent) = parent else {
                return Err(not_applied("a parent that is no relation"));
            };
            let parent = self.existing(Some(parent))?;
            parents.push(parent);
            for column in &self.relation(parent)?.columns {
                match new.iter_mut().find(|known| known.column.name == column.name) {
                    Some(known) => known.column.not_null |= column.not_null,
                    None => new.push(self.inherited(parent, column)?),
                }
            }
        }
        let inherited = new.len();
        let mut primary: Vec<String> = Vec::new();
        let mut references = Vec::new();
        for element in create.table_elts() {
            match element {
                Node::ColumnDef(def) => {
                    let column = self.new_column(def)?;
                    let place = new
                        .iter()
                        .take(inherited)
                        .position(|known| known.column.name == column.column.name);
                    match place.and_then(|place| new.get_mut(place)) {
                        Some(known) => merge(known, column),
                        None => new.push(column),
                    }
                }
                Node::TableLikeClause(like) => {
                    let source = self.existing(like.relation())?;
                    let (columns, keys) = self.like(source, like.options)?;
                    primary.extend(keys);
                    new.extend(columns);
                }
                Node::Constraint(constraint) => {
                    self.table_constraint(constraint, &mut new, &mut primary, &mut references)?;
                }
                other => return Err(not_applied(&format!("{} in CREATE TABLE", kind_of(other)))),
            }
        }
        // The grammar of a partition puts constraints and options of columns here as well.
        for constraint in create.constraints() {
            self.table_constraint(constraint, &mut new, &mut primary, &mut references)?;
        }
        for (column, number) in new.iter_mut().zip(1..) {
            column.column.number = number;
            if column.primary {
                primary.push(column.column.name.clone());
            }
        }
        let kind = if create.partspec().is_some() {
            RelationKind::PartitionedTable
        } else {
            RelationKind::Table
        };
        // The key of a partitioned table is the key of each partition.
        if create.partbound().is_some() && primary.is_empty() {
            for parent in &parents {
                let parent = self.relation(*parent)?;
                primary.extend(
                    parent
                        .primary_key
                        .iter()
                        .filter_map(|key| parent.column_by_number(*key))
                        .map(|c| c.name.clone()),
                );
            }
        }
        self.finish_table(schema, name, persistence, kind, new, primary, parents, references)
    }

    #[allow(
        clippy::too_many_arguments,
        reason = "the parts of one CREATE TABLE, put together in one place"
    )]
    pub(super) fn finish_table(
        &mut self,
        schema: String,
        name: String,
        persistence: Persistence,
        kind: RelationKind,
        mut new: Vec<NewColumn>,
        primary: Vec<String>,
        parents: Vec<Oid>,
        mut references: Vec<(Oid, Cascade)>,
    ) -> Applied<()> {
        let oid = self.new_oid();
        let names: Vec<(String, AttNum)> = new
            .iter()
            .map(|c| (c.column.name.clone(), c.column.number))
            .collect();
        let number = |name: &str| {
            names
                .iter()
                .find(|(known, _)| known == name)
                .map(|(_, number)| *number)
        };
        for column in &mut new {
            if let Some(sources) = column.generated_names.take() {
                let mut numbers: Vec<AttNum> = sources.iter().filter_map(|source| number(source)).collect();
                numbers.sort_unstable();
                numbers.dedup();
                column.column.generated_from = Some(numbers);
            }
        }
        let primary_key = primary
            .iter()
            .map(|name| number(name))
            .collect::<Option<Vec<AttNum>>>();
        let primary_key =
            primary_key.ok_or_else(|| not_applied("a primary key over a column that is not there"))?;
        for column in &mut new {
            column.column.not_null |= primary_key.contains(&column.column.number);
            references.append(&mut column.references);
        }
        let row_type = self.new_oid();
        self.add_type(
            row_type,
            schema.clone(),
            name.clone(),
            TypeKind::Composite { relation: oid },
            'C',
            0,
        );
        let last_number = names.last().map_or(0, |(_, number)| *number);
        let sequences: Vec<(String, AttNum, Sequence)> = new
            .iter()
            .map(|c| (c.column.name.clone(), c.column.number, c.sequence.clone()))
            .collect();
        let calls: Vec<(Oid, AttNum)> = new
            .iter()
            .flat_map(|c| c.calls.iter().map(move |oid| (*oid, c.column.number)))
            .collect();
        self.put(Relation {
            oid,
            schema: schema.clone(),
            name: name.clone(),
            kind,
            persistence,
            columns: new.into_iter().map(|column| column.column).collect(),
            primary_key,
            parents,
            row_type,
            last_number,
            ..nothing(oid)
        });
        for (column, number, sequence) in sequences {
            self.make_sequence(oid, &column, number, sequence)?;
        }
        self.note_uses(oid, calls);
        for (referenced, cascade) in references {
            // A relation that references itself is known only now.
            let referenced = if referenced == 0 { oid } else { referenced };
            self.edit(referenced, |relation| {
                relation.cascades.push(Cascade {
                    relation: oid,
                    ..cascade
                })
            });
        }
        Ok(())
    }

    pub(super) fn note_uses(&mut self, relation: Oid, calls: Vec<(Oid, AttNum)>) {
        for (sequence, column) in calls {
            self.edit(sequence, |sequence| {
                if !sequence.used_by.contains(&(relation, column)) {
                    sequence.used_by.push((relation, column));
                }
            });
        }
    }

    pub(super) fn inherited(&self, parent: Oid, column: &Column) -> Applied<NewColumn> {
        let generated_names = match &column.generated_from {
            Some(sources) => Some(self.names_of(parent, sources)?),
            None => None,
        };
        Ok(NewColumn {
            column: column.clone(),
            primary: false,
            sequence: Sequence::No,
            calls: self.calls_of(parent, column.number),
            references: Vec::new(),
            generated_names,
        })
    }
    pub(super) fn names_of(&self, relation: Oid, numbers: &[AttNum]) -> Applied<Vec<String>> {
        let relation = self.relation(relation)?;
        Ok(numbers
            .iter()
            .filter_map(|number| relation.column_by_number(*number))
            .map(|c| c.name.clone())
            .collect())
    }
    /// The sequences that a column's default calls.
    pub(super) fn calls_of(&self, relation: Oid, column: AttNum) -> Vec<Oid> {
        let mut sequences = self.relations();
        sequences.retain(|sequence| sequence.used_by.contains(&(relation, column)));
        sequences.iter().map(|sequence| sequence.oid).collect()
    }

    pub(super) fn like(&self, source: Oid, options: u32) -> Applied<(Vec<NewColumn>, Vec<String>)> {
        let includes = |option: u32| options & option != 0;
        let relation = self.relation(source)?;
        let mut columns = Vec::new();
        for column in &relation.columns {
            let mut new = self.inherited(source, column)?;
            let calls = std::mem::take(&mut new.calls);
            // A sequence that the column owns and no default calls is that of an identity column.
            let identity = column.has_default
                && self.relations().iter().any(|sequence| {
                    sequence.owned_by == Some((source, column.number)) && sequence.used_by.is_empty()
                });
            if column.generated_from.is_some() {
                if !includes(TableLikeOption::CREATE_TABLE_LIKE_GENERATED) {
                    new.generated_names = None;
                    new.column.generated_from = None;
                    new.column.has_default = false;
                    new.column.default_code.clear();
                }
            } else if identity {
                new.column.has_default = includes(TableLikeOption::CREATE_TABLE_LIKE_IDENTITY);
                if new.column.has_default {
                    new.sequence = Sequence::Identity(None);
                }
            } else if includes(TableLikeOption::CREATE_TABLE_LIKE_DEFAULTS) {
                new.calls = calls;
            } else {
                new.column.has_default = false;
                new.column.default_code.clear();
            }
            columns.push(new);
        }
        let keys = if includes(TableLikeOption::CREATE_TABLE_LIKE_INDEXES) {
            self.names_of(source, &relation.primary_key)?
        } else {
            Vec::new()
        };
        Ok((columns, keys))
    }

    pub(super) fn new_column(&self, def: &nodes::ColumnDef) -> Applied<NewColumn> {
        let name = def.colname().unwrap_or_default().to_owned();
        let mut new = NewColumn {
            column: Column {
                number: 0,
                name,
                column_type: placeholder(),
                not_null: def.is_not_null,
                has_default: false,
                generated_from: None,
                default_code: Vec::new(),
            },
            primary: false,
            sequence: Sequence::No,
            calls: Vec::new(),
            references: Vec::new(),
            generated_names: None,
        };
        // Without a type these are options of a column that the parent has.
        if let Some(type_name) = def.type_name() {
            match serial(type_name) {
                Some(oid) => {
                    let plain = self.view().type_by_oid(oid);
                    new.column.column_type = plain.ok_or_else(|| not_applied("a serial column"))?;
                    new.column.not_null = true;
                    new.column.has_default = true;
                    new.sequence = Sequence::Called;
                }
                None => new.column.column_type = self.column_type(Some(type_name), def.coll_clause())?,
            }
        }
        self.default(&mut new, def.raw_default())?;
        for constraint in def.constraints() {
            let Node::Constraint(constraint) = constraint else {
                return Err(not_applied(&format!("{} on a column", kind_of(constraint))));
            };
            self.column_constraint(&mut new, constraint)?;
        }
        Ok(new)
    }

    pub(super) fn column_constraint(
        &self,
        new: &mut NewColumn,
        constraint: &nodes::Constraint,
    ) -> Applied<()> {
        match constraint.contype {
            ConstrType::CONSTR_NOTNULL => new.column.not_null = true,
            ConstrType::CONSTR_DEFAULT => self.default(new, constraint.raw_expr())?,
            ConstrType::CONSTR_IDENTITY => {
                new.column.not_null = true;
                new.column.has_default = true;
                new.sequence = Sequence::Identity(written_sequence(constraint.options()));
            }
            ConstrType::CONSTR_GENERATED => {
                self.default(new, constraint.raw_expr())?;
                new.column.has_default = true;
                new.generated_names = Some(columns_named(constraint.raw_expr())?);
            }
            ConstrType::CONSTR_PRIMARY => {
                new.primary = true;
                new.column.not_null = true;
            }
            ConstrType::CONSTR_FOREIGN => new.references.push(self.reference(constraint)?),
            ConstrType::CONSTR_NULL
            | ConstrType::CONSTR_CHECK
            | ConstrType::CONSTR_UNIQUE
            | ConstrType::CONSTR_EXCLUSION
            | ConstrType::CONSTR_ATTR_DEFERRABLE
            | ConstrType::CONSTR_ATTR_NOT_DEFERRABLE
            | ConstrType::CONSTR_ATTR_DEFERRED
            | ConstrType::CONSTR_ATTR_IMMEDIATE
            | ConstrType::CONSTR_ATTR_ENFORCED
            | ConstrType::CONSTR_ATTR_NOT_ENFORCED => {}
            other => return Err(not_applied(&format!("a constraint of the kind {other}"))),
        }
        Ok(())
    }

    /// What a default expression calls. `DEFAULT NULL` is no default.
    pub(super) fn default(&self, new: &mut NewColumn, expression: Node<'_>) -> Applied<()> {
        match expression {
            Node::None => return Ok(()),
            Node::A_Const(constant) if constant.isnull => {
                new.column.has_default = false;
                return Ok(());
            }
            _ => new.column.has_default = true,
        }
        let view = self.view();
        let mut code = Vec::new();
        let mut calls = Vec::new();
        visit(expression, &mut |node| {
            if let Node::A_Expr(expr) = node {
                code.extend(self.user_operator(expr));
            }
            if let Node::FuncCall(call) = node {
                let names = words(call.funcname());
                let (schema, name) = match names.as_slice() {
                    [name] => (None, name.as_str()),
                    [schema, name] => (Some(schema.as_str()), name.as_str()),
                    _ => return,
                };
                for function in view.user_functions(schema, name, call.args().len()) {
                    code.push(format!("{}.{}", function.schema, function.name));
                }
                // nextval('s') and nextval('s'::regclass).
                if let ("nextval", Some(argument)) = (name, call.args().first())
                    && let Some(sequence) = regclass_literal(argument)
                {
                    let found = match split_name(sequence).as_slice() {
                        [name] => view.resolve_relation(None, name),
                        [schema, name] => view.resolve_relation(Some(schema), name),
                        _ => None,
                    };
                    calls.extend(found.map(|relation| relation.oid));
                }
            }
        })?;
        new.column.default_code.extend(code);
        new.calls.extend(calls);
        Ok(())
    }

    /// The operator's name, where a user's operator may be meant.
    fn user_operator(&self, expr: &nodes::A_Expr) -> Option<String> {
        let names = words(expr.name());
        let operands = if matches!(expr.lexpr(), Node::None) { 1 } else { 2 };
        let facts = match names.as_slice() {
            [name] => self.view().operator(None, name, operands),
            [schema, name] => self.view().operator(Some(schema), name, operands),
            _ => return None,
        };
        (facts.origin == crate::facts::FunctionOrigin::UserDefined).then(|| names.join("."))
    }

    pub(super) fn table_constraint(
        &self,
        constraint: &nodes::Constraint,
        new: &mut [NewColumn],
        primary: &mut Vec<String>,
        references: &mut Vec<(Oid, Cascade)>,
    ) -> Applied<()> {
        match constraint.contype {
            ConstrType::CONSTR_PRIMARY => primary.extend(words(constraint.keys())),
            ConstrType::CONSTR_FOREIGN => references.push(self.reference(constraint)?),
            ConstrType::CONSTR_NOTNULL => {
                for key in words(constraint.keys()) {
                    if let Some(known) = new.iter_mut().find(|known| known.column.name == key) {
                        known.column.not_null = true;
                    }
                }
            }
            ConstrType::CONSTR_CHECK
            | ConstrType::CONSTR_UNIQUE
            | ConstrType::CONSTR_EXCLUSION
            | ConstrType::CONSTR_ATTR_DEFERRABLE
            | ConstrType::CONSTR_ATTR_NOT_DEFERRABLE
            | ConstrType::CONSTR_ATTR_DEFERRED
            | ConstrType::CONSTR_ATTR_IMMEDIATE => {}
            other => return Err(not_applied(&format!("a table constraint of the kind {other}"))),
        }
        Ok(())
    }

    /// The referenced relation (0 = the one being made), and what its changes do here.
    pub(super) fn reference(&self, constraint: &nodes::Constraint) -> Applied<(Oid, Cascade)> {
        let at = constraint
            .pktable()
            .ok_or_else(|| not_applied("a foreign key without a table"))?;
        let changes = |action| matches!(u8::try_from(action), Ok(b'c' | b'n' | b'd'));
        let cascade = Cascade {
            relation: 0,
            on_delete: changes(constraint.fk_del_action),
            on_update: changes(constraint.fk_upd_action),
        };
        Ok((self.find(at).map_or(0, |relation| relation.oid), cascade))
    }

    // Sequences.

    /// `table_column_seq`, shortened and numbered as the server does it.
    pub(super) fn sequence_name(&self, schema: &str, table: &str, column: &str) -> String {
        let view = self.view();
        let mut label = "seq".to_owned();
        let mut number = 0;
        loop {
            let overhead = label.len() + 2;
            let (mut first, mut second) = (table.len(), column.len());
            while first + second + overhead > IDENTIFIER_BYTES_MAX {
                if first > second { first -= 1 } else { second -= 1 }
            }
            let name = format!("{}_{}_{label}", cut(table, first), cut(column, second));
            if view.relation_in(schema, &name).is_none() {
                return name;
            }
            number += 1;
            label = format!("seq{number}");
        }
    }

    /// Makes the sequence that comes with a column.
    pub(super) fn make_sequence(
        &mut self,
        oid: Oid,
        column: &str,
        number: AttNum,
        kind: Sequence,
    ) -> Applied<()> {
        let relation = self.relation(oid)?;
        let (schema, name) = match &kind {
            Sequence::No => return Ok(()),
            Sequence::Identity(Some((Some(schema), name))) => (schema.clone(), name.clone()),
            Sequence::Identity(Some((None, name))) => (relation.schema.clone(), name.clone()),
            Sequence::Called | Sequence::Identity(None) => (
                relation.schema.clone(),
                self.sequence_name(&relation.schema, &relation.name, column),
            ),
        };
        let made = self.create_sequence(schema, &name, relation.persistence)?;
        self.edit(made, |sequence| {
            sequence.owned_by = Some((oid, number));
            if kind == Sequence::Called {
                sequence.used_by = vec![(oid, number)];
            }
        });
        Ok(())
    }

    pub(super) fn create_sequence(
        &mut self,
        schema: String,
        name: &str,
        persistence: Persistence,
    ) -> Applied<Oid> {
        if self.view().relation_in(&schema, name).is_some() {
            return Err(already(name));
        }
        let oid = self.new_oid();
        let mut columns = Vec::new();
        for ((name, type_oid), number) in [("last_value", 20), ("log_cnt", 20), ("is_called", 16)]
            .into_iter()
            .zip(1..)
        {
            let column_type = self.view().type_by_oid(type_oid);
            columns.push(Column {
                number,
                name: name.to_owned(),
                column_type: column_type.ok_or_else(|| not_applied("the built-in types are not there"))?,
                not_null: true,
                has_default: false,
                generated_from: None,
                default_code: Vec::new(),
            });
        }
        self.put(Relation {
            schema,
            name: name.to_owned(),
            kind: RelationKind::Sequence,
            persistence,
            columns,
            last_number: 3,
            ..nothing(oid)
        });
        Ok(oid)
    }

    pub(super) fn own_sequence(&mut self, sequence: Oid, options: &NodeList) -> Applied<()> {
        for option in options {
            let Node::DefElem(option) = option else { continue };
            if option.defname() != Some("owned_by") {
                continue;
            }
            let Node::NodeList(names) = option.arg() else {
                return Err(not_applied("OWNED BY without a name"));
            };
            let names = words(names);
            let (table, column) = match names.as_slice() {
                [none] if none == "none" => {
                    self.edit(sequence, |relation| relation.owned_by = None);
                    continue;
                }
                [table, column] => (self.view().resolve_relation(None, table), column),
                [schema, table, column] => (self.view().resolve_relation(Some(schema), table), column),
                _ => (None, &String::new()),
            };
            let owner = table.and_then(|table| Some((table.oid, table.column(column)?.number)));
            let owner = owner.ok_or_else(|| not_applied("OWNED BY a column that is not there"))?;
            self.edit(sequence, |relation| relation.owned_by = Some(owner));
        }
        Ok(())
    }
}
