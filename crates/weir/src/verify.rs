//! `weir verify`: two verdicts on receipts, computed here from their bytes. A collector only hands them over.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use collector::{GroupsPage, LogVerifier, PlacedGroup};
use control_api::identity::Trust;
use control_api::signed::verify_bind;
use receipts::{
    Binding, BootId, Checkpoint, Completeness, Integrity, LogKey, ProblemKind, Receipt, Report, Scope,
    Verifier, read_group_line, verify_range,
};
use serde::Serialize;

use crate::source::{Source, SourceArgs, get_text};
use crate::table::{plain, print};

/// Pods named in the text.
const PODS_SHOWN: usize = 10;

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
    /// Roots of the cluster's identities (PEM, such as `roots.pem` of the ConfigMap weir-trust): a pod's word that a chain is its
    /// counts only under them. Without it the certificates shown beside it are taken for what they say
    #[arg(long, value_name = "FILE")]
    roots: Option<PathBuf>,
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
    /// Pods that signed for the chains of their sidecars.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pods: BTreeSet<String>,
    /// They lead to the roots that were given.
    pods_trusted: bool,
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
    let roots = match &args.roots {
        Some(file) => {
            let text =
                std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
            Some(Trust::from_pem(&text).with_context(|| format!("{} holds no roots", file.display()))?)
        }
        None => None,
    };
    let mut answer = match &args.file {
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
    answer.pods_trusted = roots.is_some();
    answer.pods = check_bindings(&mut answer.report, roots.as_ref());
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
            pods: BTreeSet::new(),
            pods_trusted: false,
            range: None,
        }
    }
}

/// What pods say of chains: a wrong signature, a certificate that leads nowhere, or two pods for one chain is a problem.
fn check_bindings(report: &mut Report, roots: Option<&Trust>) -> BTreeSet<String> {
    let mut of_chain: BTreeMap<BootId, String> = BTreeMap::new();
    for Binding { boot, time_us, bind } in std::mem::take(&mut report.bindings) {
        let pod = bind
            .decode()
            .ok_or_else(|| "it is no bytes".to_owned())
            .and_then(|(certificates, signature)| {
                let at = time_us.div_euclid(1_000_000);
                verify_bind(&boot.0, &certificates, &signature, roots, at)
            })
            .and_then(|pod| match pod.uri() {
                uri if uri == bind.peer => Ok(uri),
                uri => Err(format!("the certificate is that of {uri}")),
            });
        let pod = match pod {
            Ok(pod) => pod,
            Err(why) => {
                let message = format!("{} says that {boot} is its chain: {why}", bind.peer);
                report.problem(ProblemKind::BadSignature, message);
                continue;
            }
        };
        let first = of_chain.entry(boot).or_insert_with(|| pod.clone());
        if *first != pod {
            let message = format!("{first} and {pod} both say that {boot} is their chain");
            report.problem(ProblemKind::Twice, message);
        }
    }
    of_chain.into_values().collect()
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
    for (place, pod) in answer.pods.iter().take(PODS_SHOWN).enumerate() {
        let (head, known) = match (place, answer.pods_trusted) {
            (0, true) => ("PODS        ", " (under the roots given)"),
            (0, false) => (
                "PODS        ",
                " (as its own certificate says; give --roots to check that)",
            ),
            _ => ("            ", ""),
        };
        text.push_str(&format!("{head}  {}{known}\n", plain(pod)));
    }
    if let Some(more) = answer.pods.len().checked_sub(PODS_SHOWN).filter(|more| *more > 0) {
        text.push_str(&format!("              and {more} more (--json)\n"));
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
