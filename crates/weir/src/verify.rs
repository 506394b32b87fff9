//! `weir verify`: two verdicts on receipts, computed here from their bytes. A collector only hands them over.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use collector::{GroupsPage, LogVerifier, PlacedGroup};
use receipts::{
    Checkpoint, Completeness, Integrity, LogKey, ProblemKind, Receipt, Report, Scope, Verifier,
    read_group_line, verify_range,
};
use serde::Serialize;

use crate::source::{Source, SourceArgs, get_text};
use crate::table::{plain, print};

/// The flags of `weir verify`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A file that `weir export` wrote, or one receipt as JSON; checked offline
    #[arg(value_name = "FILE", conflicts_with_all = ["collector", "data_dir", "spool_dir"])]
    file: Option<PathBuf>,
    #[command(flatten)]
    source: SourceArgs,
    /// The log's key as you know it from elsewhere (name+hash+base64); without it the key that comes with the log is taken
    #[arg(long, env = "WEIR_COLLECTOR_KEY", value_name = "KEY")]
    log_key: Option<String>,
    /// JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Answer {
    source: String,
    #[serde(flatten)]
    report: Report,
    /// Statements that have begun and have no outcome yet (spool folders).
    #[serde(skip_serializing_if = "Option::is_none")]
    begun: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    log_key: Option<String>,
    log_key_trusted: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    range: Option<(u64, u64)>,
}

/// Runs it: 0 unaltered and complete, 1 altered, 2 incomplete, 3 (as an error) cannot be read.
///
/// # Errors
/// Where there is nothing that can be read as receipts.
pub fn run(args: &Args) -> Result<u8> {
    let trusted = match &args.log_key {
        Some(text) => {
            Some(LogKey::from_vkey(text).with_context(|| format!("`{text}` is not the key of a log"))?)
        }
        None => None,
    };
    let answer = match &args.file {
        Some(file) => verify_file(file, trusted.as_ref())?,
        None => match args.source.source()? {
            Source::Collector(url) => verify_collector(&url, trusted.as_ref())?,
            Source::Data(dir) => Answer {
                report: collector::verify_log(&dir, trusted.as_ref())?,
                log_key: std::fs::read_to_string(dir.join("log.pub"))
                    .ok()
                    .map(|key| key.trim().to_owned()),
                ..Answer::of(format!("log {}", dir.display()), trusted.as_ref())
            },
            Source::Spool(dir) => {
                let (report, marks) = sidecar::spool::verify_folder(&dir)
                    .with_context(|| format!("cannot read the spool folder {}", dir.display()))?;
                if report.events == 0 && report.unsigned == 0 && report.problem_count == 0 {
                    bail!("{} holds no receipts", dir.display());
                }
                Answer {
                    report,
                    begun: Some(marks.len()),
                    ..Answer::of(format!("spool {}", dir.display()), None)
                }
            }
        },
    };
    print(&if args.json {
        serde_json::to_string_pretty(&answer)?
    } else {
        show(&answer)
    })?;
    Ok(match (answer.report.integrity, answer.report.completeness) {
        (Integrity::Invalid, _) => 1,
        (Integrity::Ok, Completeness::Incomplete) => 2,
        (Integrity::Ok, Completeness::Complete) => 0,
    })
}

impl Answer {
    fn of(source: String, trusted: Option<&LogKey>) -> Self {
        Self {
            source,
            report: Verifier::new(Scope::Whole).finish(),
            begun: None,
            log_key: None,
            log_key_trusted: trusted.is_some(),
            range: None,
        }
    }
}

fn verify_file(file: &Path, trusted: Option<&LogKey>) -> Result<Answer> {
    let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let source = format!("file {}", file.display());
    if let Ok(receipt) = serde_json::from_slice::<Receipt>(&bytes) {
        let mut verifier = Verifier::new(Scope::Part);
        if let Err(problem) = receipt.verify() {
            verifier.problem(ProblemKind::Altered, None, format!("the receipt: {problem}"));
        }
        let mut report = verifier.finish();
        report.events = 1;
        return Ok(Answer {
            report,
            ..Answer::of(source, None)
        });
    }
    let (header, report) = verify_range(&bytes, trusted)?;
    Ok(Answer {
        report,
        log_key: Some(header.log_key),
        range: Some((header.from, header.to)),
        ..Answer::of(source, trusted)
    })
}

fn verify_collector(url: &str, trusted: Option<&LogKey>) -> Result<Answer> {
    let key_text = get_text(&format!("{url}/log/key"))?;
    let key = LogKey::from_vkey(key_text.trim()).context("the collector's key is not one")?;
    let mut verifier = Verifier::new(Scope::Whole);
    if let Some(trusted) = trusted
        && *trusted != key
    {
        verifier.problem(
            ProblemKind::Tree,
            None,
            format!("this is the log {}, not {}", key.name, trusted.name),
        );
    }
    let note = get_text(&format!("{url}/checkpoint"))?;
    let checkpoint = match Checkpoint::verify(&note, trusted.unwrap_or(&key)) {
        Ok(checkpoint) => Some(checkpoint),
        Err(problem) => {
            verifier.problem(ProblemKind::Tree, None, problem.to_string());
            None
        }
    };
    let size = checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.size);
    let mut log = LogVerifier::new(verifier, checkpoint);
    let mut next = 0;
    while next < size {
        let text = get_text(&format!("{url}/v1/groups?from={next}"))?;
        let mut lines = text.lines();
        let page: GroupsPage =
            serde_json::from_str(lines.next().unwrap_or_default()).context("not a page of groups")?;
        if page.from != next || page.to <= next {
            // The verdict says that it ends before what is signed.
            break;
        }
        for line in lines {
            let group = read_group_line(line).context("a page holds something else than groups")?;
            let placed = PlacedGroup {
                index: next,
                group: Arc::new(group),
            };
            next = placed.end();
            log.group(&placed);
        }
    }
    Ok(Answer {
        report: log.finish(),
        log_key: Some(key.to_vkey()),
        ..Answer::of(format!("collector {url}"), trusted)
    })
}

fn show(answer: &Answer) -> String {
    let report = &answer.report;
    let mut text = format!("SOURCE        {}\n", plain(&answer.source));
    if let Some((from, to)) = answer.range {
        text.push_str(&format!("RANGE         entries {from}..{to} of the log\n"));
    }
    let verdict = match report.integrity {
        Integrity::Ok => "ok        ",
        Integrity::Invalid => "INVALID   ",
    };
    text.push_str(&format!(
        "INTEGRITY     {verdict}  {} events in {} groups by {} processes, {} altered or out of place\n",
        report.events, report.groups, report.processes, report.problem_count
    ));
    for problem in &report.problems {
        text.push_str(&format!("              - {}\n", plain(&problem.to_string())));
    }
    let verdict = match report.completeness {
        Completeness::Complete => "complete  ",
        Completeness::Incomplete => "INCOMPLETE",
    };
    text.push_str(&format!(
        "COMPLETENESS  {verdict}  {} sessions, {} holes\n",
        report.sessions, report.hole_count
    ));
    for hole in &report.holes {
        text.push_str(&format!("              - {}\n", plain(&hole.message)));
    }
    let begun = answer.begun.map(|begun| begun as u64);
    for (count, what) in [
        (report.running, "processes go on recording"),
        (report.unsigned, "events are written and not signed yet"),
        (report.in_flight, "announced writes wait for their outcome"),
        (begun.unwrap_or(0), "statements have begun and not ended"),
        (
            report.outcome_unknown,
            "statements have an unknown outcome: their process ended while they ran",
        ),
        (
            report.recovered,
            "events were taken over from a process that ended before it signed them",
        ),
    ] {
        if count > 0 {
            text.push_str(&format!("              {count} {what}\n"));
        }
    }
    if let Some(key) = &answer.log_key {
        let known = if answer.log_key_trusted {
            "as given"
        } else {
            "as found with the log; give --log-key to check whose it is"
        };
        text.push_str(&format!("LOG           {} ({known})\n", plain(key)));
    }
    text
}
