//! `weir explain`: what a policy does to a statement. The same code decides as in the sidecar.

use std::path::{Path, PathBuf};

use access_policy::{
    BoundPolicy, Decision, DecisionContext, Endpoint, Manifest, Permit, PolicySet, RuleRef, SendAs, Subject,
    Verdict, bind, compile, decide, decide_unreadable,
};
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use sql_facts::{Catalog, CatalogView, Overlay, ParsedStatement, SearchPath, parse, read};

use crate::facts::{Engine, in_names, show_one};
use crate::schema::{after, catalog, search_path, with_stack};
use crate::table::{plain, print};

/// The flags of `weir explain`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The statement; several are judged one by one
    #[arg(value_name = "SQL")]
    sql: String,
    /// Manifest, or a folder of them
    #[arg(long, value_name = "FILE|DIR")]
    policy: PathBuf,
    /// File of CREATE statements
    #[arg(long, value_name = "FILE")]
    schema: Option<PathBuf>,
    /// Whose SQL it is
    #[arg(long, value_name = "ENGINE", default_value = "postgresql")]
    engine: Engine,
    /// Major version of the server, for its built-ins
    #[arg(long, value_name = "N", default_value_t = 15)]
    server_major: u16,
    /// Which database, where the policies name several
    #[arg(long, value_name = "HOST:PORT")]
    database: Option<String>,
    /// Schemas in which names are looked up
    #[arg(long, value_name = "A,B")]
    search_path: Option<String>,
    /// Who asks: serviceAccount=…, user=…, group=…, agent=…, claims.NAME=…
    #[arg(long = "as", value_name = "KEY=VALUE")]
    subject: Vec<String>,
    /// JSON: one object, or an array of them for several statements
    #[arg(long)]
    json: bool,
}

/// Runs it: 0 it runs (or would be let pass by an Audit policy), 1 it is refused, 2 the policy is wrong.
///
/// # Errors
/// Where policy or schema cannot be read.
pub fn run(args: &Args) -> Result<u8> {
    args.engine.check()?;
    let subject = subject(&args.subject)?;
    let policies = match compile(&manifests(&args.policy)?) {
        Ok(policies) => policies,
        Err(problems) => {
            for problem in &problems {
                eprintln!("{problem}");
            }
            return Ok(2);
        }
    };
    let endpoint = endpoint(&policies, args.database.as_deref())?;
    with_stack(|| {
        let path = search_path(args.search_path.as_deref());
        let catalog = catalog(args.schema.as_deref(), args.server_major, &path)?;
        let (policy, unresolved) = bind(&policies.for_database(&endpoint), &catalog, None);
        for name in &unresolved {
            eprintln!(
                "note: policy {}, {}: {}: {}",
                name.policy, name.field, name.name, name.reason
            );
        }
        let answers = explain(&args.sql, &policy, &subject, &catalog, &path);
        let refused = answers
            .iter()
            .any(|answer| answer.get("verdict") == Some(&json!("refuse")));
        if args.json {
            let text = match answers.as_slice() {
                [only] => serde_json::to_string_pretty(only)?,
                several => serde_json::to_string_pretty(several)?,
            };
            print(&text)?;
        } else {
            let shown: Vec<String> = answers.iter().map(show).collect();
            print(&shown.join("\n"))?;
        }
        Ok(u8::from(refused))
    })
}

fn explain(
    sql: &str,
    policy: &BoundPolicy,
    subject: &Subject,
    catalog: &Catalog,
    path: &SearchPath,
) -> Vec<Value> {
    let (mut overlay, mut path) = (Overlay::default(), path.clone());
    let parsed = match parse(sql) {
        Ok(parsed) => parsed,
        Err(reason) => {
            let view = CatalogView {
                catalog,
                overlay: &overlay,
                path: &path,
            };
            let context = DecisionContext {
                policy,
                subject,
                view,
            };
            return vec![answer(&decide_unreadable(sql, &reason, context), sql, None)];
        }
    };
    let mut answers = Vec::new();
    for statement in &parsed.statements {
        let view = CatalogView {
            catalog,
            overlay: &overlay,
            path: &path,
        };
        let explained = explain_one(
            statement,
            DecisionContext {
                policy,
                subject,
                view,
            },
        );
        let runs = explained.get("verdict") != Some(&json!("refuse"));
        answers.push(explained);
        // The next statement meets what this one would have made.
        if runs && parsed.statements.len() > 1 {
            after(statement, catalog, &mut overlay, &mut path);
        }
    }
    answers
}

fn explain_one(statement: &ParsedStatement, context: DecisionContext<'_>) -> Value {
    let decision = decide(statement, context);
    let named = read(statement, context.view).ok().map(|facts| {
        let mut named = in_names(&facts, context.view);
        if let Decision::Permit(permit) = &decision {
            for (column, output) in named.columns.iter_mut().zip(&facts.output) {
                column.mask = output.sources.iter().find_map(|source| {
                    let name = permit
                        .masks()
                        .get(&(source.column.relation, source.column.column))?;
                    Some((*name).to_owned())
                });
            }
        }
        serde_json::to_value(named).unwrap_or(Value::Null)
    });
    answer(&decision, statement.sql(), named)
}

fn answer(decision: &Decision, sql: &str, named: Option<Value>) -> Value {
    let (verdict, code, rule, reason, hint, sent) = match decision {
        Decision::Permit(permit) => {
            let sent = Some(sent(permit, sql));
            match permit.verdict() {
                Verdict::Permit(rule) => ("permit", None, rule, None, None, sent),
                Verdict::WouldRefuse(refusal) => (
                    "audit",
                    Some(refusal.code_text()),
                    &refusal.rule,
                    Some(refusal.reason.clone()),
                    Some(refusal.hint.clone()),
                    sent,
                ),
            }
        }
        Decision::Refuse(refusal) => (
            "refuse",
            Some(refusal.code_text()),
            &refusal.rule,
            Some(refusal.reason.clone()),
            Some(refusal.hint.clone()),
            None,
        ),
    };
    let mut answer = json!({
        "verdict": verdict,
        "code": code,
        "rule": rule_name(rule),
        "policy": rule.policy,
        "reason": reason,
        "hint": hint.filter(|hint| !hint.is_empty()),
        "sql": sent,
        "kind": null,
        "reads": [],
        "writes": [],
        "filters": [],
        "functions": [],
        "columns": [],
    });
    if let (Some(fields), Some(Value::Object(named))) = (answer.as_object_mut(), named) {
        fields.extend(named);
    }
    answer
}

fn rule_name(rule: &RuleRef) -> &str {
    &rule.rule
}

fn sent(permit: &Permit, sql: &str) -> String {
    match permit.send() {
        SendAs::AsWritten => sql.to_owned(),
        SendAs::Governed(governed) => governed.text.clone(),
    }
}

fn show(answer: &Value) -> String {
    let word = |field: &str| {
        answer
            .get(field)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let mut text = String::new();
    let mut line = |title: &str, value: String| {
        if !value.is_empty() {
            text.push_str(&format!("{title:<10} {}\n", plain(&value)));
        }
    };
    line("verdict", word("verdict"));
    line("code", word("code"));
    line("rule", format!("{} of policy {}", word("rule"), word("policy")));
    line("reason", word("reason"));
    line("hint", word("hint"));
    line("sql", word("sql"));
    text + &show_one(answer)
}

fn manifests(path: &Path) -> Result<Vec<Manifest>> {
    let read = |path: &Path| -> Result<Manifest> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Manifest {
            name: path.display().to_string(),
            text,
        })
    };
    if !path.is_dir() {
        return Ok(vec![read(path)?]);
    }
    let mut files: Vec<PathBuf> = std::fs::read_dir(path)
        .with_context(|| format!("cannot read {}", path.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let extension = path.extension().and_then(|extension| extension.to_str());
            path.is_file() && matches!(extension, Some("yaml" | "yml" | "json"))
        })
        .collect();
    files.sort();
    if files.is_empty() {
        bail!("{} holds no manifests", path.display());
    }
    files.iter().map(|file| read(file)).collect()
}

fn endpoint(policies: &PolicySet, given: Option<&str>) -> Result<Endpoint> {
    if let Some(given) = given {
        let (host, port) = given
            .rsplit_once(':')
            .with_context(|| format!("`{given}` is not HOST:PORT"))?;
        let port = port
            .parse()
            .with_context(|| format!("`{given}` is not HOST:PORT"))?;
        let endpoint = Endpoint::new(host, port).map_err(|error| anyhow::anyhow!("--database: {error}"))?;
        if !policies.endpoints().contains(&endpoint) {
            bail!("no policy names {given}");
        }
        return Ok(endpoint);
    }
    let mut databases = policies.databases();
    match (databases.pop(), databases.len()) {
        (Some(only), 0) => Ok(only),
        (None, _) => bail!("the manifests hold no policy"),
        (Some(_), _) => bail!("the policies name several databases: choose one with --database HOST:PORT"),
    }
}

fn subject(given: &[String]) -> Result<Subject> {
    let mut subject = Subject::default();
    for pair in given {
        let (key, value) = pair
            .split_once('=')
            .filter(|(_, value)| !value.is_empty())
            .with_context(|| format!("--as: `{pair}` is not KEY=VALUE"))?;
        let value = value.to_owned();
        let before = match key {
            "serviceAccount" => subject.service_account.replace(value),
            "user" => subject.user.replace(value),
            "agent" => subject.agent.replace(value),
            "group" => {
                subject.groups.insert(value);
                None
            }
            _ => match key.strip_prefix("claims.").filter(|name| !name.is_empty()) {
                Some(name) => subject.claims.insert(name.to_owned(), value),
                None => bail!("--as: `{key}` is none of serviceAccount, user, group, agent, claims.NAME"),
            },
        };
        if before.is_some() {
            bail!("--as: {key} is given twice");
        }
    }
    Ok(subject)
}
