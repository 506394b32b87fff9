//! `weir audit`: who did what.

use anyhow::Result;
use collector::{AuditFilter, AuditRow};
use jiff::Timestamp;

use crate::source::SourceArgs;
use crate::table::{plain, print, table};
use crate::time::{parse_us, show_us};

/// The flags of `weir audit`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    source: SourceArgs,
    /// Only what touched this relation (orders, public.orders) or column (public.customers.email)
    #[arg(long, value_name = "NAME")]
    object: Option<String>,
    /// Only this person, agent, workload, application or database role; `*` stands for anything
    #[arg(long, value_name = "NAME")]
    actor: Option<String>,
    /// Only this run
    #[arg(long, value_name = "RUN")]
    run: Option<String>,
    /// Only from then on: a time, or how long ago (15m, 24h, 7d)
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Only what was decided so
    #[arg(long, value_name = "VERDICT")]
    verdict: Option<Verdict>,
    /// At most so many, the latest
    #[arg(long, value_name = "N", default_value_t = 1000)]
    limit: u32,
    /// JSON, one array of objects
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Verdict {
    Permit,
    Refuse,
    Hold,
    Audit,
}

/// Runs it.
///
/// # Errors
/// Where the receipts cannot be read.
pub fn run(args: &Args) -> Result<u8> {
    let filter = AuditFilter {
        object: args.object.clone(),
        actor: args.actor.clone(),
        run: args.run.clone(),
        since_us: args
            .since
            .as_deref()
            .map(|since| parse_us(since, Timestamp::now()))
            .transpose()?,
        verdict: args.verdict.map(|verdict| match verdict {
            Verdict::Permit => receipts::Verdict::Permit,
            Verdict::Refuse => receipts::Verdict::Refuse,
            Verdict::Hold => receipts::Verdict::Hold,
            Verdict::Audit => receipts::Verdict::Audit,
        }),
        limit: Some(args.limit),
    };
    let rows = args.source.source()?.audit(&filter)?;
    print(&if args.json {
        serde_json::to_string_pretty(&rows)?
    } else {
        show(&rows)
    })?;
    Ok(0)
}

fn show(rows: &[AuditRow]) -> String {
    if rows.is_empty() {
        return "no receipts".to_owned();
    }
    let mut table = table(&["TIME", "WHO", "VERDICT", "RULE", "OBJECTS", "ROWS", "STATEMENT"]);
    for row in rows {
        let rule = match (&row.rule, &row.code) {
            (Some(rule), Some(code)) => format!("{code} {rule}"),
            (Some(rule), None) => rule.clone(),
            (None, _) => String::new(),
        };
        let verdict = match (row.verdict.as_deref(), row.status.as_deref()) {
            (Some(verdict), None | Some("ok")) => verdict.to_owned(),
            (Some(verdict), Some(status)) => format!("{verdict}, {status}"),
            (None, _) => row.kind.clone(),
        };
        let undone = match row.transaction.as_deref() {
            Some("rolled_back" | "failed") => " (rolled back)",
            _ => "",
        };
        let statement = match (&row.text, &row.reason) {
            (Some(text), _) if !text.is_empty() => plain(text),
            (_, Some(reason)) => plain(reason),
            _ => row.command.clone().unwrap_or_default(),
        };
        let masked = row
            .masked
            .as_ref()
            .map_or(String::new(), |masked| format!("\nmasked: {}", plain(masked)));
        table.add_row(vec![
            show_us(row.time_us),
            plain(&who(row)),
            format!("{verdict}{undone}"),
            plain(&rule),
            plain_lines(&row.objects),
            count(row),
            format!("{}{masked}", shortened(&statement)),
        ]);
    }
    format!("{table}\n{} receipts", rows.len())
}

/// The most telling of what is known.
fn who(row: &AuditRow) -> String {
    let mut parts = Vec::new();
    for (word, value) in [
        ("user", &row.user),
        ("agent", &row.agent),
        ("run", &row.run),
        ("workload", &row.workload),
    ] {
        if let Some(value) = value {
            parts.push(format!("{word} {value}"));
        }
    }
    if parts.is_empty() {
        parts.extend(row.database_user.iter().map(|role| format!("role {role}")));
    }
    parts.join(", ")
}

fn count(row: &AuditRow) -> String {
    match (row.rows_returned, row.rows_affected) {
        (Some(returned), None) => returned.to_string(),
        (Some(0) | None, Some(affected)) => format!("{affected} changed"),
        (Some(returned), Some(affected)) => format!("{returned}, {affected} changed"),
        (None, None) => String::new(),
    }
}

fn plain_lines(lines: &[String]) -> String {
    let shown: Vec<String> = lines.iter().take(6).map(|line| plain(line)).collect();
    let more = lines.len().saturating_sub(6);
    if more > 0 {
        format!("{}\nand {more} more", shown.join("\n"))
    } else {
        shown.join("\n")
    }
}

fn shortened(text: &str) -> String {
    const LETTERS_MAX: usize = 200;
    if text.chars().count() <= LETTERS_MAX {
        return text.to_owned();
    }
    let cut: String = text.chars().take(LETTERS_MAX).collect();
    format!("{cut}…")
}
