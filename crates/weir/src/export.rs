//! `weir export`: a part of the log as a file.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use collector::{Index, Log};
use jiff::Timestamp;

use crate::source::{Source, SourceArgs, get_json, get_text};
use crate::table::print;
use crate::time::parse_us;

/// The flags of `weir export`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    source: SourceArgs,
    /// From then on: a time, how long ago (24h), or a log index
    #[arg(long, value_name = "TIME|INDEX", default_value = "0")]
    from: String,
    /// Up to then, not included; without it up to the end
    #[arg(long, value_name = "TIME|INDEX")]
    to: Option<String>,
    /// One receipt, by its log index (RECEIPT of `weir lineage`, `index` of `weir audit --json`): verifiable by itself
    #[arg(long, value_name = "INDEX", conflicts_with_all = ["from", "to"])]
    receipt: Option<u64>,
    /// The file
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// Runs it.
///
/// # Errors
/// Where the log cannot be read or the file not be written.
pub fn run(args: &Args) -> Result<u8> {
    let source = args.source.source()?;
    if let Some(index) = args.receipt {
        let receipt = match &source {
            Source::Collector(url) => get_json(&format!("{url}/v1/receipt?index={index}"))?,
            Source::Data(dir) => Log::open_to_read(dir)?
                .receipt(index)?
                .context("the log has no such entry")?,
            Source::Spool(_) => bail!("a spool has no log indexes: give --collector or --data-dir"),
        };
        let receipt: receipts::Receipt = receipt;
        let text = serde_json::to_string_pretty(&receipt)? + "\n";
        std::fs::write(&args.file, text).with_context(|| format!("cannot write {}", args.file.display()))?;
        print(&format!("wrote receipt {index} to {}", args.file.display()))?;
        return Ok(0);
    }
    let (from, to) = indexes(args, &source)?;
    let text = match &source {
        Source::Collector(url) => get_text(&format!("{url}/v1/range?from={from}&to={to}"))?,
        Source::Data(dir) => collector::export_range(&Log::open_to_read(dir)?, from, to)?,
        Source::Spool(_) => bail!("a spool has no log to prove a part of: give --collector or --data-dir"),
    };
    std::fs::write(&args.file, &text).with_context(|| format!("cannot write {}", args.file.display()))?;
    print(&format!(
        "wrote {} groups to {}",
        text.lines().count().saturating_sub(1),
        args.file.display()
    ))?;
    Ok(0)
}

/// Log indexes of the bounds; times are looked up together.
fn indexes(args: &Args, source: &Source) -> Result<(u64, u64)> {
    let number = |text: &str| text.parse::<u64>().ok();
    let to = args.to.as_deref();
    let numbers = (number(&args.from), to.map_or(Some(u64::MAX), number));
    if let (Some(from), Some(to)) = numbers {
        return Ok((from, to));
    }
    let now = Timestamp::now();
    let time = |text: &str| parse_us(text, now);
    // Where one bound is an index, the other bound's time alone decides.
    let from_us = if numbers.0.is_some() {
        i64::MIN
    } else {
        time(&args.from)?
    };
    let to_us = match (to, numbers.1) {
        (Some(to), None) => time(to)?,
        _ => i64::MAX,
    };
    let found: Option<(u64, u64)> = match source {
        Source::Collector(url) => get_json(&format!("{url}/v1/between?from_us={from_us}&to_us={to_us}"))?,
        Source::Data(dir) => {
            let mut index = Index::in_memory()?;
            index.catch_up(&Log::open_to_read(dir)?)?;
            index.between(from_us, to_us)?
        }
        Source::Spool(_) => None,
    };
    let (found_from, found_to) = found.context("nothing happened between these times")?;
    Ok((
        numbers.0.unwrap_or(found_from),
        if to.is_some() {
            numbers.1.unwrap_or(found_to)
        } else {
            found_to
        },
    ))
}
