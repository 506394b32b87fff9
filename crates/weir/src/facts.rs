//! `weir facts`: what a statement reads and writes.

use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde_json::{Value, json};
use sql_facts::facts::{Action, CallSyntax, ColumnId, TableAction};
use sql_facts::{Catalog, CatalogView, Overlay, SearchPath, StatementFacts, Unreadable, parse, read};

use crate::schema::{after, catalog, search_path, with_stack};
use crate::table::print;

/// Longest line that is read.
const LINE_BYTES_MAX: usize = 128 << 20;

/// The flags of `weir facts`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The statement; several are taken apart
    #[arg(
        value_name = "SQL",
        required_unless_present = "stdin_jsonl",
        conflicts_with = "stdin_jsonl"
    )]
    sql: Option<String>,
    /// Whose SQL it is
    #[arg(long, value_name = "ENGINE", default_value = "postgresql")]
    engine: Engine,
    /// File of CREATE statements
    #[arg(long, value_name = "FILE")]
    schema: Option<PathBuf>,
    /// Major version of the server, for its built-ins
    #[arg(long, value_name = "N", default_value_t = 15)]
    server_major: u16,
    /// Schemas in which names are looked up
    #[arg(long, value_name = "A,B")]
    search_path: Option<String>,
    /// Read one JSON object `{"id": …, "sql": "…"}` a line, write one a line
    #[arg(long)]
    stdin_jsonl: bool,
    /// JSON, also for a single statement
    #[arg(long)]
    json: bool,
}

/// Engines whose SQL can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Engine {
    /// PostgreSQL.
    Postgresql,
    /// MySQL and MariaDB.
    Mysql,
}

impl Engine {
    /// Only what is built.
    pub(crate) fn check(self) -> Result<()> {
        match self {
            Self::Postgresql => Ok(()),
            Self::Mysql => bail!("MySQL statements cannot be read yet"),
        }
    }
}

/// One column of the result.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Column {
    pub(crate) name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) target: Option<String>,
    pub(crate) sources: Vec<Source>,
    pub(crate) mask: Option<String>,
}

/// A column that something comes from.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Source {
    pub(crate) column: String,
    pub(crate) transformation: sql_facts::facts::Transformation,
}

/// What is done to one relation.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Touch {
    pub(crate) relation: String,
    pub(crate) action: String,
    pub(crate) columns: Vec<String>,
}

/// Facts in names.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Named {
    pub(crate) kind: String,
    pub(crate) reads: Vec<Touch>,
    pub(crate) writes: Vec<Touch>,
    pub(crate) filters: Vec<Source>,
    pub(crate) functions: Vec<String>,
    pub(crate) columns: Vec<Column>,
}

/// Runs it: 0 read, 1 cannot be read.
///
/// # Errors
/// Where schema or input cannot be read.
pub fn run(args: &Args) -> Result<u8> {
    args.engine.check()?;
    with_stack(|| {
        let path = search_path(args.search_path.as_deref());
        let catalog = catalog(args.schema.as_deref(), args.server_major, &path)?;
        if args.stdin_jsonl {
            return stream(&catalog, &path);
        }
        let (answer, code) = facts_of(args.sql.as_deref().unwrap_or_default(), &catalog, &path);
        if args.json {
            print(&serde_json::to_string_pretty(&answer)?)?;
        } else {
            print(&show(&answer))?;
        }
        Ok(code)
    })
}

/// One line out for each line in, whatever is in it.
fn stream(catalog: &Catalog, path: &SearchPath) -> Result<u8> {
    let mut input = BufReader::with_capacity(1 << 16, std::io::stdin().lock());
    let mut output = BufWriter::new(std::io::stdout().lock());
    let mut line = Vec::new();
    loop {
        line.clear();
        // Bounded: a line without an end must not take all memory.
        let count = std::io::Read::take(&mut input, LINE_BYTES_MAX as u64)
            .read_until(b'\n', &mut line)
            .context("cannot read the input")?;
        if count == 0 {
            break;
        }
        if line.last() == Some(&b'\n') {
            line.pop();
        } else if count == LINE_BYTES_MAX {
            skip_line(&mut input)?;
            serde_json::to_writer(&mut output, &json!({"id": null, "error": "the line is too long"}))?;
            output.write_all(b"\n")?;
            continue;
        }
        serde_json::to_writer(&mut output, &answer_line(&line, catalog, path))?;
        output.write_all(b"\n")?;
        // Whoever waits for this answer before the next question gets it.
        if !input.buffer().contains(&b'\n') {
            output.flush()?;
        }
    }
    output.flush()?;
    Ok(0)
}

fn skip_line(input: &mut impl BufRead) -> Result<()> {
    loop {
        let buffer = input.fill_buf()?;
        if buffer.is_empty() {
            return Ok(());
        }
        let (used, done) = match buffer.iter().position(|byte| *byte == b'\n') {
            Some(end) => (end + 1, true),
            None => (buffer.len(), false),
        };
        input.consume(used);
        if done {
            return Ok(());
        }
    }
}

fn answer_line(line: &[u8], catalog: &Catalog, path: &SearchPath) -> Value {
    let question: Value = match serde_json::from_slice(line) {
        Ok(question) => question,
        Err(error) => return json!({"id": null, "error": format!("not a JSON object: {error}")}),
    };
    let id = question.get("id").cloned().unwrap_or(Value::Null);
    let Some(sql) = question.get("sql").and_then(Value::as_str) else {
        return json!({"id": id, "error": "no `sql`"});
    };
    let (answer, _) = facts_of(sql, catalog, path);
    match answer {
        Value::Object(mut fields) => {
            fields.insert("id".to_owned(), id);
            Value::Object(fields)
        }
        other => json!({"id": id, "error": format!("unexpected {other}")}),
    }
}

/// One object: the facts of a single statement, or `statements` for several, or `error`.
fn facts_of(sql: &str, catalog: &Catalog, path: &SearchPath) -> (Value, u8) {
    let parsed = match parse(sql) {
        Ok(parsed) => parsed,
        Err(reason) => return (unreadable(&reason), 1),
    };
    let (mut overlay, mut path) = (Overlay::default(), path.clone());
    let mut answers: Vec<(Value, u8)> = Vec::new();
    let several = parsed.statements.len() > 1;
    for statement in &parsed.statements {
        let view = CatalogView {
            catalog,
            overlay: &overlay,
            path: &path,
        };
        answers.push(match read(statement, view) {
            Ok(facts) => (
                serde_json::to_value(in_names(&facts, view)).unwrap_or(Value::Null),
                0,
            ),
            Err(reason) => (unreadable(&reason), 1),
        });
        if several {
            after(statement, catalog, &mut overlay, &mut path);
        }
    }
    if answers.len() == 1
        && let Some(only) = answers.pop()
    {
        return only;
    }
    let code = answers.iter().map(|(_, code)| *code).max().unwrap_or(0);
    let statements: Vec<Value> = answers.into_iter().map(|(answer, _)| answer).collect();
    (json!({"statements": statements}), code)
}

fn unreadable(reason: &Unreadable) -> Value {
    let kind = match reason {
        Unreadable::Syntax { .. } => "syntax",
        Unreadable::TooComplex(_) => "too-complex",
        Unreadable::UnknownName(_) => "unknown-name",
        Unreadable::NotBuilt(_) => "not-built",
    };
    let position = match reason {
        Unreadable::Syntax { position, .. } if *position > 0 => json!(position),
        _ => Value::Null,
    };
    json!({"error": reason.to_string(), "error_kind": kind, "position": position})
}

/// Puts facts into names.
pub(crate) fn in_names(facts: &StatementFacts, view: CatalogView<'_>) -> Named {
    let touch = |action: &TableAction| Touch {
        relation: action.name.clone(),
        action: action_name(action.action).to_owned(),
        columns: action
            .columns
            .iter()
            .filter_map(|column| {
                column_name(
                    view,
                    ColumnId {
                        relation: action.relation?,
                        column: *column,
                    },
                )
            })
            .collect(),
    };
    let (reads, writes): (Vec<_>, Vec<_>) = facts
        .actions
        .iter()
        .partition(|action| action.action == Action::Select);
    let mut functions: Vec<String> = facts
        .calls
        .iter()
        .filter(|call| call.syntax == CallSyntax::Function)
        .map(|call| call.name.clone())
        .collect();
    functions.sort();
    functions.dedup();
    let source = |source: &sql_facts::facts::Source| {
        Some(Source {
            column: qualified(view, source.column)?,
            transformation: source.transformation,
        })
    };
    Named {
        kind: facts.kind.name().to_owned(),
        reads: reads.into_iter().map(touch).collect(),
        writes: writes.into_iter().map(touch).collect(),
        filters: facts.indirect.iter().filter_map(source).collect(),
        functions,
        columns: facts
            .output
            .iter()
            .map(|output| Column {
                name: output.name.clone(),
                target: output.target.and_then(|column| qualified(view, column)),
                sources: output.sources.iter().filter_map(source).collect(),
                mask: None,
            })
            .collect(),
    }
}

fn column_name(view: CatalogView<'_>, id: ColumnId) -> Option<String> {
    if id.column == 0 {
        return Some("*".to_owned());
    }
    Some(
        view.relation(id.relation)?
            .column_by_number(id.column)?
            .name
            .clone(),
    )
}

pub(crate) fn qualified(view: CatalogView<'_>, id: ColumnId) -> Option<String> {
    let relation = view.relation(id.relation)?;
    Some(format!(
        "{}.{}.{}",
        relation.schema,
        relation.name,
        column_name(view, id)?
    ))
}

fn action_name(action: Action) -> &'static str {
    match action {
        Action::Select => "select",
        Action::Insert => "insert",
        Action::Update => "update",
        Action::Delete => "delete",
        Action::Truncate => "truncate",
        Action::Ddl => "ddl",
        Action::Call => "call",
        Action::Admin => "admin",
    }
}

fn show(answer: &Value) -> String {
    let statements = match answer.get("statements").and_then(Value::as_array) {
        Some(statements) => statements.clone(),
        None => vec![answer.clone()],
    };
    let parts: Vec<String> = statements.iter().map(show_one).collect();
    parts.join("\n")
}

/// The facts of one statement for people; also the second half of `weir explain`.
pub(crate) fn show_one(answer: &Value) -> String {
    let mut text = String::new();
    let mut line = |title: &str, value: String| {
        if !value.is_empty() {
            text.push_str(&format!("{title:<10} {}\n", crate::table::plain(&value)));
        }
    };
    if let Some(error) = answer.get("error").and_then(Value::as_str) {
        line("cannot", format!("be read: {error}"));
        return text;
    }
    let word = |value: &Value, field: &str| {
        value
            .get(field)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let list = |value: &Value, field: &str| {
        value
            .get(field)
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default()
    };
    let words = |items: &[Value]| {
        items
            .iter()
            .filter_map(Value::as_str)
            .collect::<Vec<_>>()
            .join(", ")
    };
    line("kind", word(answer, "kind"));
    for field in ["reads", "writes"] {
        for touch in list(answer, field) {
            let columns = words(&list(&touch, "columns"));
            line(
                field,
                format!(
                    "{} {} ({columns})",
                    word(&touch, "action"),
                    word(&touch, "relation")
                ),
            );
        }
    }
    let sources = |items: &[Value]| {
        let shown: Vec<String> = items
            .iter()
            .map(|source| {
                format!(
                    "{} {}",
                    word(source, "transformation").to_lowercase(),
                    word(source, "column")
                )
            })
            .collect();
        shown.join(", ")
    };
    line("filters", sources(&list(answer, "filters")));
    line("functions", words(&list(answer, "functions")));
    for column in list(answer, "columns") {
        let target = word(&column, "target");
        let target = if target.is_empty() {
            String::new()
        } else {
            format!(" → {target}")
        };
        let mask = word(&column, "mask");
        let mask = if mask.is_empty() {
            String::new()
        } else {
            format!(" [mask {mask}]")
        };
        line(
            "column",
            format!(
                "{}{target} ← {}{mask}",
                word(&column, "name"),
                sources(&list(&column, "sources"))
            ),
        );
    }
    text
}
