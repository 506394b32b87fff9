//! Whole statements.

use std::rc::Rc;

use super::{RawOutput, Resolved, Resolver};
use crate::catalog::{Operand, Relation, unlisted};
use crate::facts::{
    Action, CallSyntax, Clause, ColumnId, FunctionOrigin, RangeRole, SessionEffect, StatementKind,
    Transformation, Unreadable,
};
use crate::form::{Body, ExprKind, Mention, Query, RelationRef, Scoped, Statement, StoredBody};
use crate::postgres::lineage::Lineage;
use crate::postgres::scope::{Entry, Env, Level};

impl<'v> Resolver<'v> {
    pub(super) fn statement(&mut self, statement: &Statement) -> Resolved<()> {
        let env = Env {
            level: None,
            ctes: None,
            windows: None,
        };
        let mut types = Vec::with_capacity(statement.types.len());
        for target in &statement.types {
            types.push(self.note_type(target));
        }
        if matches!(statement.kind, StatementKind::Prepare(_)) {
            self.parameters = types;
        }
        if let Some(query) = &statement.query {
            let clause = if statement.stored {
                Clause::InnerOutput
            } else {
                Clause::OutermostOutput
            };
            let output = self.query(query, env, clause, true)?;
            for (index, field) in output.fields.into_iter().enumerate() {
                let name = statement.columns.get(index).cloned().unwrap_or(field.name);
                self.outputs.push(RawOutput {
                    name,
                    target: None,
                    lineage: field.lineage,
                });
            }
            self.settle_settings(query);
        } else {
            for name in &statement.columns {
                self.outputs.push(RawOutput {
                    name: name.clone(),
                    target: None,
                    lineage: Rc::default(),
                });
            }
        }
        for mention in &statement.mentions {
            self.mention(mention)?;
        }
        for scoped in &statement.scoped {
            self.scoped(scoped)?;
        }
        for expr in &statement.loose {
            // Values that go into a statement of their own.
            self.expr(expr, env, Clause::InnerOutput)?;
        }
        for body in &statement.bodies {
            self.body(body)?;
        }
        if let Some(name) = statement.opaque {
            let facts = crate::catalog::CodeFacts {
                origin: FunctionOrigin::UserDefined,
                ..unlisted()
            };
            self.note_call(-1, name.to_owned(), CallSyntax::Function, facts);
        }
        // The tag of COPY counts what it copied, that of EXPLAIN nothing.
        self.hidden_writes |= self.writes_data
            && matches!(
                statement.kind,
                StatementKind::CopyTo(_) | StatementKind::Explain { analyze: true }
            );
        self.writes_data |= statement.writes_data;
        self.effects.extend(statement.effects.iter().cloned());
        if statement.kind == (StatementKind::Explain { analyze: false }) {
            self.effects.clear();
            self.writes_data = false;
            self.hidden_writes = false;
        }
        Ok(())
    }

    /// A relation named outside a query.
    fn mention(&mut self, mention: &Mention) -> Resolved<()> {
        let relation = self.act(mention.action, &mention.relation);
        if let Some(role) = mention.role {
            let range = self.range(&mention.relation, role, false).range;
            if let (Some(relation), Some(range)) = (relation, range) {
                return self.copied(mention, relation, range, role);
            }
            return Ok(());
        }
        if let Some(relation) = relation {
            for name in &mention.columns {
                if let Some(column) = relation.column(name) {
                    self.act_by_oid(mention.action, relation.oid, Some(column.number));
                }
            }
        }
        Ok(())
    }

    /// `COPY relation`: its columns in order; generated ones are neither written nor read.
    fn copied(
        &mut self,
        mention: &Mention,
        relation: &Relation,
        range: usize,
        role: RangeRole,
    ) -> Resolved<()> {
        let mut numbers = Vec::new();
        if mention.all_columns {
            let stored = relation
                .columns
                .iter()
                .filter(|column| column.generated_from.is_none());
            numbers.extend(stored.map(|column| column.number));
            self.needs_all_columns(&[range]);
        }
        for name in &mention.columns {
            match relation.column(name) {
                Some(column) => numbers.push(column.number),
                None => {
                    return Err(Unreadable::UnknownName(format!(
                        "column \"{name}\" of relation \"{}\" does not exist",
                        relation.name
                    )));
                }
            }
        }
        for number in numbers {
            let column = ColumnId {
                relation: relation.oid,
                column: number,
            };
            let name = relation
                .column_by_number(number)
                .map(|column| column.name.clone())
                .unwrap_or_default();
            let (target, lineage) = if role == RangeRole::CopyFromTarget {
                self.act_by_oid(Action::Insert, relation.oid, Some(number));
                (Some(column), Lineage::default())
            } else {
                self.read_column(range, number);
                (None, Lineage::column(column))
            };
            self.outputs.push(RawOutput {
                name,
                target,
                lineage: Rc::new(lineage),
            });
        }
        Ok(())
    }

    /// The entry that expressions of a definition see; reads through it count as Select.
    fn definition_entry(&mut self, relation: &RelationRef, created: bool) -> Entry {
        if created {
            let mut entry = Entry::new(Some(relation.name.name.clone()));
            entry.open = Some(Rc::default());
            entry.unknown = Some(format!("relation {} is being made", relation.name.written()));
            entry.system_columns = true;
            return entry;
        }
        let mut entry = Entry::new(Some(relation.name.name.clone()));
        match self.relation(relation) {
            Some(known) => {
                entry.defined = Some(known.oid);
                entry.fields = known
                    .columns
                    .iter()
                    .map(|column| crate::postgres::scope::Field {
                        name: column.name.clone(),
                        lineage: Rc::new(Lineage::column(ColumnId {
                            relation: known.oid,
                            column: column.number,
                        })),
                        row: None,
                        kind: Operand::Typed(column.column_type.oid),
                        origin: None,
                    })
                    .collect();
                // System columns are never protected; their names must only be known.
                entry.system_columns = true;
            }
            None => entry.open = Some(Rc::default()),
        }
        entry
    }

    fn scoped(&mut self, scoped: &Scoped) -> Resolved<()> {
        let entry = self.definition_entry(&scoped.relation, scoped.created);
        let mut entries = vec![entry];
        if scoped.old_and_new {
            entries = versions(&entries);
        }
        let parts: [&[Entry]; 1] = [&entries];
        let level = Level {
            parts: &parts,
            parent: None,
        };
        let env = Env {
            level: Some(&level),
            ctes: None,
            windows: None,
        };
        for expr in &scoped.exprs {
            let value = self.expr(expr, env, Clause::Where)?;
            self.decides(&value.lineage, Transformation::Filter);
        }
        Ok(())
    }

    fn body(&mut self, body: &StoredBody) -> Resolved<()> {
        let (entries, query) = match body {
            StoredBody::Function(query) => (vec![parameters()], query),
            StoredBody::FunctionValue(expr) => {
                let entries = [parameters()];
                let parts: [&[Entry]; 1] = [&entries];
                let level = Level {
                    parts: &parts,
                    parent: None,
                };
                self.expr(
                    expr,
                    Env {
                        level: Some(&level),
                        ctes: None,
                        windows: None,
                    },
                    Clause::InnerOutput,
                )?;
                return Ok(());
            }
            StoredBody::Rule(relation, query) => {
                let entry = self.definition_entry(relation, false);
                (versions(&[entry]), query)
            }
        };
        let parts: [&[Entry]; 1] = [&entries];
        let level = Level {
            parts: &parts,
            parent: None,
        };
        let env = Env {
            level: Some(&level),
            ctes: None,
            windows: None,
        };
        let outputs = self.outputs.len();
        let output = self.query(query, env, Clause::InnerOutput, true)?;
        for field in output.fields {
            self.decides(&field.lineage, Transformation::Filter);
        }
        // It runs later: nothing of it is an output of this statement.
        self.outputs.truncate(outputs);
        Ok(())
    }

    /// What `set_config` does is certain only in a plain select list without FROM, where each call runs once.
    fn settle_settings(&mut self, query: &Query) {
        let plain = match &query.body {
            Body::Select(select) => {
                let calls = select.items.iter().filter(
                    |item| matches!(&item.expr.kind, ExprKind::Call(call) if call.name.name == "set_config"),
                );
                query.with.is_none()
                    && query.limit.is_empty()
                    && select.from.is_empty()
                    && select.filter.is_none()
                    && select.having.is_none()
                    && calls.count() == self.effects.len()
            }
            Body::Values(_) | Body::SetOperation(_) | Body::Write(_) => false,
        };
        if !plain && !self.effects.is_empty() {
            self.effects = vec![SessionEffect::UnknownSetting];
        }
    }
}

/// OLD and NEW over the columns of an entry.
fn versions(entries: &[Entry]) -> Vec<Entry> {
    entries
        .iter()
        .flat_map(|entry| {
            ["old", "new"].map(|name| Entry {
                name: Some(name.to_owned()),
                bare: false,
                ..entry.clone()
            })
        })
        .collect()
}

/// Parameters of a function, which may stand wherever a column may.
fn parameters() -> Entry {
    let mut entry = Entry::new(None);
    entry.open = Some(Rc::default());
    entry
}
