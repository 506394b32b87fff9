//! Facts in names, for receipts: OIDs mean nothing outside the database they come from.

use std::collections::BTreeMap;

use access_policy::Permit;
use sql_facts::StatementFacts;
use sql_facts::facts::{Action, ColumnId, OutputColumn, StatementKind, Transformation};
use sql_facts::{AttNum, CatalogView, Oid};

/// A statement in names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Description {
    /// Kind, as a command tag (`SELECT`, `ALTER TABLE`).
    pub kind: String,
    /// The text with its literals removed.
    pub normalized: String,
    /// What is done to which relation, with the columns' names.
    pub actions: Vec<(Action, String, Vec<String>)>,
    /// Columns that decide which rows come out.
    pub filters: Vec<(String, Transformation)>,
    /// Functions called.
    pub functions: Vec<String>,
    /// Result columns (or assigned ones, then `target` is set) and where they come from.
    pub output: Vec<OutputDescription>,
}

/// One result column in names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OutputDescription {
    /// As the client sees it.
    pub name: String,
    /// For a write: the column assigned.
    pub target: Option<String>,
    /// Type of its mask, where it shows a masked column.
    pub mask: Option<String>,
    /// Sources, `schema.table.column`.
    pub sources: Vec<(String, Transformation)>,
}

impl Description {
    /// Of a text that could not be read.
    pub fn unreadable() -> Self {
        Self {
            kind: "unreadable".to_owned(),
            ..Self::default()
        }
    }
}

/// Longest text of a refused statement that is read again to say what it would have touched.
const REFUSED_TEXT_MAX_BYTES: usize = 64 << 10;

/// Puts the facts of a permitted statement into names.
pub(crate) fn describe(permit: &Permit, view: CatalogView<'_>) -> Description {
    match permit.facts() {
        Some(facts) => in_names(facts, permit.masks(), view),
        None => Description::unreadable(),
    }
}

/// What a refused statement would have touched, where its text (without literals) is one statement that can be read.
pub(crate) fn describe_text(text: &str, view: CatalogView<'_>) -> Option<Description> {
    if text.is_empty() || text.len() > REFUSED_TEXT_MAX_BYTES {
        return None;
    }
    let parsed = sql_facts::parse(text).ok()?;
    let [statement] = parsed.statements.as_slice() else {
        return None;
    };
    let facts = sql_facts::read(statement, view).ok()?;
    Some(in_names(&facts, &BTreeMap::new(), view))
}

fn in_names(
    facts: &StatementFacts,
    masks: &BTreeMap<(Oid, AttNum), &'static str>,
    view: CatalogView<'_>,
) -> Description {
    let created = created_name(facts, view);
    let mut functions: Vec<String> = facts
        .calls
        .iter()
        .filter(|call| call.syntax == sql_facts::facts::CallSyntax::Function)
        .map(|call| call.name.clone())
        .collect();
    functions.sort();
    functions.dedup();
    Description {
        kind: facts.kind.name().to_owned(),
        normalized: facts.normalized.clone(),
        actions: facts
            .actions
            .iter()
            .map(|action| {
                let columns = action
                    .columns
                    .iter()
                    .filter_map(|number| action.relation.and_then(|oid| column_name(view, oid, *number)))
                    .collect();
                let name = match &created {
                    Some(created) if action.action == Action::Ddl && action.relation.is_none() => created,
                    _ => &action.name,
                };
                (action.action, without_number(name), columns)
            })
            .collect(),
        filters: facts
            .indirect
            .iter()
            .filter_map(|source| Some((qualified(view, source.column)?, source.transformation)))
            .collect(),
        functions,
        output: facts
            .output
            .iter()
            .map(|output| OutputDescription {
                name: output.name.clone(),
                target: match output.target {
                    Some(column) => qualified(view, column),
                    None => created
                        .as_ref()
                        .map(|created| format!("{created}.{}", output.name)),
                },
                mask: mask_of(output, masks),
                sources: output
                    .sources
                    .iter()
                    .filter_map(|source| Some((qualified(view, source.column)?, source.transformation)))
                    .collect(),
            })
            .collect(),
    }
}

/// The name of the relation that CREATE TABLE AS, SELECT INTO or CREATE VIEW makes, with the schema it will be in.
fn created_name(facts: &StatementFacts, view: CatalogView<'_>) -> Option<String> {
    match facts.kind {
        StatementKind::CreateTableAs | StatementKind::CreateView => {}
        _ => return None,
    }
    let created = facts.actions.iter().find(|action| action.action == Action::Ddl)?;
    if facts.creates_temporary {
        let bare = created
            .name
            .rsplit_once('.')
            .map_or(created.name.as_str(), |(_, bare)| bare);
        return Some(format!("pg_temp.{bare}"));
    }
    if created.relation.is_some() || created.name.contains('.') {
        return Some(created.name.clone());
    }
    let schema = view.path.0.iter().find(|schema| !schema.starts_with("pg_"))?;
    Some(format!("{schema}.{}", created.name))
}

/// Types of the masks that an output column shows; a whole row shows those of all its columns.
fn mask_of(output: &OutputColumn, masks: &BTreeMap<(Oid, AttNum), &'static str>) -> Option<String> {
    let mut names: Vec<&str> = Vec::new();
    for source in &output.sources {
        let ColumnId { relation, column } = source.column;
        let shown = masks
            .iter()
            .filter(|((masked, number), _)| *masked == relation && (*number == column || column == 0));
        names.extend(shown.map(|(_, name)| *name));
    }
    names.sort_unstable();
    names.dedup();
    (!names.is_empty()).then(|| names.join(", "))
}

/// The server numbers temporary schemas (`pg_temp_3`) as sessions come; the number means nothing to anybody.
fn schema_without_number(schema: &str) -> &str {
    if schema.starts_with("pg_temp_") {
        "pg_temp"
    } else {
        schema
    }
}

fn without_number(name: &str) -> String {
    match name.split_once('.') {
        Some((schema, rest)) => format!("{}.{rest}", schema_without_number(schema)),
        None => name.to_owned(),
    }
}

fn column_name(view: CatalogView<'_>, relation: Oid, number: AttNum) -> Option<String> {
    if number == 0 {
        return Some("*".to_owned());
    }
    Some(view.relation(relation)?.column_by_number(number)?.name.clone())
}

fn qualified(view: CatalogView<'_>, id: ColumnId) -> Option<String> {
    let relation = view.relation(id.relation)?;
    Some(format!(
        "{}.{}.{}",
        schema_without_number(&relation.schema),
        relation.name,
        column_name(view, id.relation, id.column)?
    ))
}
