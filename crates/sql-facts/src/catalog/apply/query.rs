//! Views, materialized views and tables made of queries.

use super::*;

impl Change<'_> {
    pub(super) fn create_view(&mut self, view: &nodes::ViewStmt) -> Applied<()> {
        let at = view.view().ok_or_else(|| not_applied("a view without a name"))?;
        let old = if view.replace { self.find_in_home(at) } else { None };
        let (schema, persistence) = match &old {
            Some(old) => (old.schema.clone(), old.persistence),
            None => match self.home_of(at, false)? {
                Some(home) => home,
                None => return Ok(()),
            },
        };
        let columns = self.query_columns(view.query(), &words(view.aliases()))?;
        let options = view.options().iter().filter_map(|option| match option {
            Node::DefElem(option) => Some(format!(
                "{}={}",
                option.defname().unwrap_or_default(),
                option_value(option.arg())
            )),
            _ => None,
        });
        let security_invoker = options.into_iter().any(|option| is_security_invoker(&option));
        let definition = deparsed(view.query())?;
        self.finish_query_relation(
            old,
            schema,
            name_of(at),
            RelationKind::View,
            persistence,
            columns,
            |relation| {
                relation.security_invoker = security_invoker;
                relation.definition = Some(definition);
            },
        )
    }

    /// The relation that CREATE OR REPLACE would replace: only in the schema in which it would be made.
    pub(super) fn find_in_home(&self, at: &nodes::RangeVar) -> Option<Arc<Relation>> {
        let temporary = u8::try_from(at.relpersistence) == Ok(b't') || at.schemaname() == Some("pg_temp");
        let schema = if temporary {
            self.overlay.temp_schema.clone()?
        } else {
            self.home(at.schemaname()).ok()?
        };
        let oid = self.view().relation_in(&schema, at.relname()?)?.oid;
        self.relation(oid).ok()
    }

    /// SELECT INTO; any other SELECT changes nothing.
    pub(super) fn select_into(&mut self, select: &nodes::SelectStmt) -> Applied<()> {
        let Some(into) = select.into_clause() else {
            // In a set operation the clause stands in the leftmost arm.
            let mut arm = select;
            while let Some(left) = arm.larg() {
                arm = left;
            }
            return match arm.into_clause() {
                Some(_) => Err(not_applied(
                    "SELECT INTO in a set operation: write CREATE TABLE AS",
                )),
                None => Ok(()),
            };
        };
        // Copying recurses in the library, without a bound of its own.
        visit(Node::SelectStmt(select), &mut |_| {})?;
        let query = pg_raw_parse::make::owned(|mem| {
            let mut query = mem.make_unique(select);
            query
                .as_mut()
                .set_into_clause(mem.make_unique(None::<&nodes::IntoClause>));
            query
        });
        self.create_as(into, Node::SelectStmt(&query), RelationKind::Table, false)
    }

    pub(super) fn create_as(
        &mut self,
        into: &nodes::IntoClause,
        query: Node<'_>,
        kind: RelationKind,
        if_not_exists: bool,
    ) -> Applied<()> {
        let at = into.rel().ok_or_else(|| not_applied("a table without a name"))?;
        let Some((schema, persistence)) = self.home_of(at, if_not_exists)? else {
            return Ok(());
        };
        let columns = self.query_columns(query, &words(into.col_names()))?;
        let definition = if kind == RelationKind::MaterializedView {
            Some(deparsed(query)?)
        } else {
            None
        };
        self.finish_query_relation(
            None,
            schema,
            name_of(at),
            kind,
            persistence,
            columns,
            |relation| {
                relation.definition = definition;
            },
        )
    }

    #[allow(
        clippy::too_many_arguments,
        reason = "the parts of one CREATE VIEW, put together in one place"
    )]
    pub(super) fn finish_query_relation(
        &mut self,
        old: Option<Arc<Relation>>,
        schema: String,
        name: &str,
        kind: RelationKind,
        persistence: Persistence,
        columns: Vec<Column>,
        more: impl FnOnce(&mut Relation),
    ) -> Applied<()> {
        let mut relation = match old {
            Some(old) if old.kind == kind => old.as_ref().clone(),
            Some(_) => return Err(already(name)),
            None => {
                let oid = self.new_oid();
                let row_type = self.new_oid();
                let kind_of_row = TypeKind::Composite { relation: oid };
                self.add_type(row_type, schema.clone(), name.to_owned(), kind_of_row, 'C', 0);
                Relation {
                    schema,
                    name: name.to_owned(),
                    kind,
                    persistence,
                    row_type,
                    ..nothing(oid)
                }
            }
        };
        relation.last_number = columns.last().map_or(0, |column| column.number);
        relation.columns = columns;
        more(&mut relation);
        if relation.definition.is_some() {
            relation.definition_path = self.path.clone();
            if self.overlay.temp_schema.is_none() {
                relation.definition_path.0.push(String::new());
            }
        }
        self.put(relation);
        Ok(())
    }

    pub(super) fn query_columns(&self, query: Node<'_>, names: &[String]) -> Applied<Vec<Column>> {
        let found = infer::query_columns(self.view(), &deparsed(query)?)?;
        let mut columns = Vec::with_capacity(found.len());
        for ((place, (name, column_type)), number) in found.into_iter().enumerate().zip(1..) {
            let name = names.get(place).cloned().unwrap_or(name);
            let column_type = column_type
                .ok_or_else(|| not_applied(&format!("the type of its column `{name}` is not known")))?;
            columns.push(Column {
                number,
                name,
                column_type,
                not_null: false,
                has_default: false,
                generated_from: None,
                default_code: Vec::new(),
            });
        }
        Ok(columns)
    }
}
