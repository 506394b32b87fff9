//! `weir lineage`: where a column's values come from, and where they went.

use anyhow::Result;
use collector::{Direction, Lineage};
use serde::Serialize;

use crate::source::SourceArgs;
use crate::table::{plain, print, table};
use crate::time::show_us;

/// The flags of `weir lineage`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A relation (orders, public.orders) or a column (public.orders.total)
    #[arg(value_name = "TABLE[.COLUMN]")]
    name: String,
    #[command(flatten)]
    source: SourceArgs,
    /// Only where it comes from
    #[arg(long, conflicts_with = "downstream")]
    upstream: bool,
    /// Only where it went
    #[arg(long)]
    downstream: bool,
    /// JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Answer {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    upstream: Option<Lineage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    downstream: Option<Lineage>,
}

/// Runs it.
///
/// # Errors
/// Where the receipts cannot be read.
pub fn run(args: &Args) -> Result<u8> {
    let source = args.source.source()?;
    let ask = |wanted: bool, direction| wanted.then(|| source.lineage(&args.name, direction)).transpose();
    let answer = Answer {
        name: args.name.clone(),
        upstream: ask(!args.downstream, Direction::Upstream)?,
        downstream: ask(!args.upstream, Direction::Downstream)?,
    };
    if args.json {
        print(&serde_json::to_string_pretty(&answer)?)?;
        return Ok(0);
    }
    let known = [&answer.upstream, &answer.downstream]
        .into_iter()
        .flatten()
        .any(|lineage| !lineage.nodes.is_empty());
    if !known {
        print(&format!(
            "no receipt tells of data that came from or went to {}",
            plain(&args.name)
        ))?;
        return Ok(0);
    }
    for (title, lineage) in [("COMES FROM", &answer.upstream), ("WENT TO", &answer.downstream)] {
        if let Some(lineage) = lineage {
            print(&show(title, lineage))?;
        }
    }
    Ok(0)
}

fn show(title: &str, lineage: &Lineage) -> String {
    if lineage.edges.is_empty() {
        return format!("{title}: nothing that a receipt tells of\n");
    }
    let mut table = table(&[
        "STEP",
        "FROM",
        "TO",
        "HOW",
        "MASK",
        "STATEMENTS",
        "LAST",
        "RECEIPT",
    ]);
    for edge in &lineage.edges {
        table.add_row(vec![
            edge.depth.to_string(),
            plain(&edge.source),
            plain(&edge.target),
            edge.transformation.to_lowercase(),
            edge.mask.as_deref().map(plain).unwrap_or_default(),
            edge.count.to_string(),
            show_us(edge.last_us),
            edge.last_index.to_string(),
        ]);
    }
    let cut = if lineage.cut { "\n(cut: there is more)" } else { "" };
    format!("{title}\n{table}{cut}\n")
}
