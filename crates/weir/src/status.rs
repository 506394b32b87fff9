//! `weir status` and `weir index`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use collector::{Index, Log};
use serde::Serialize;

use crate::cluster::Scope;
use crate::installed;
use crate::source::{Source, SourceArgs};
use crate::table::print;

/// The flags of `weir status`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    source: SourceArgs,
    #[command(flatten)]
    scope: Scope,
    /// JSON
    #[arg(long)]
    json: bool,
}

/// `weir index`.
#[derive(Debug, clap::Args)]
pub struct IndexArgs {
    #[command(subcommand)]
    command: IndexCommand,
}

#[derive(Debug, clap::Subcommand)]
enum IndexCommand {
    /// Whether the index says what the log says: 0 yes, 1 no. The collector must not run
    Check {
        /// The collector's folder
        #[arg(long, env = "WEIR_DATA_DIR", value_name = "DIR")]
        data_dir: PathBuf,
    },
    /// Make the index anew from the log. The collector must not run
    Rebuild {
        /// The collector's folder
        #[arg(long, env = "WEIR_DATA_DIR", value_name = "DIR")]
        data_dir: PathBuf,
    },
}

#[derive(Debug, Serialize)]
struct SpoolState {
    spool_dir: PathBuf,
    /// A sidecar uses it now.
    live: bool,
    segments: usize,
    bytes: u64,
    signed_events: u64,
    unsigned_events: u64,
    processes: u64,
    begun: usize,
}

/// Runs it: of the receipts where their place is given, or where this machine has a spool folder and no namespace is
/// given; else, and always as `kubectl weir`, of the cluster.
///
/// # Errors
/// Where receipts or cluster cannot be read.
pub fn run(args: &Args, is_plugin: bool) -> Result<u8> {
    let receipts =
        !args.scope.is_given() && (args.source.is_given() || (!is_plugin && args.source.has_spool()));
    if !receipts {
        return installed::run(&args.scope, args.json);
    }
    let source = args.source.source()?;
    if let Some(status) = source.status()? {
        if args.json {
            print(&serde_json::to_string_pretty(&status)?)?;
        } else {
            print(&format!(
                "{}\nlog         {}\nentries     {} ({} signed, {} indexed)\nprocesses   {} ({} not ended in order)\ngaps        {}",
                status.program,
                status.log_key,
                status.entries,
                status.signed,
                status.indexed,
                status.processes,
                status.open_processes,
                status.gaps
            ))?;
        }
        return Ok(0);
    }
    let Source::Spool(dir) = source else {
        bail!("no status");
    };
    let segments =
        sidecar::spool::segments(&dir).with_context(|| format!("cannot read {}", dir.display()))?;
    let (report, marks) = sidecar::spool::verify_folder(&dir)?;
    let state = SpoolState {
        live: sidecar::spool::is_live(&dir),
        bytes: segments
            .iter()
            .filter_map(|(_, path)| Some(std::fs::metadata(path).ok()?.len()))
            .sum(),
        segments: segments.len(),
        signed_events: report.events,
        unsigned_events: report.unsigned,
        processes: report.processes,
        begun: marks.len(),
        spool_dir: dir,
    };
    if args.json {
        print(&serde_json::to_string_pretty(&state)?)?;
    } else {
        print(&format!(
            "spool       {} ({})\nsegments    {} ({} bytes)\nevents      {} signed, {} not yet\nprocesses   {}\nbegun       {} statements without an outcome",
            state.spool_dir.display(),
            if state.live { "in use" } else { "not in use" },
            state.segments,
            state.bytes,
            state.signed_events,
            state.unsigned_events,
            state.processes,
            state.begun
        ))?;
    }
    Ok(0)
}

/// Runs `weir index`.
///
/// # Errors
/// Where the log cannot be read, a collector runs, or the index not be written.
pub fn index(args: &IndexArgs) -> Result<u8> {
    let (IndexCommand::Rebuild { data_dir } | IndexCommand::Check { data_dir }) = &args.command;
    if collector::is_live(data_dir) {
        bail!("a collector uses {}: end it first", data_dir.display());
    }
    match &args.command {
        IndexCommand::Rebuild { data_dir } => rebuild(data_dir),
        IndexCommand::Check { data_dir } => check(data_dir),
    }
}

fn check(data_dir: &Path) -> Result<u8> {
    let kept = Index::open_to_read(&data_dir.join("index.sqlite"))?.dump()?;
    let mut anew = Index::in_memory()?;
    anew.catch_up(&Log::open_to_read(data_dir)?)?;
    if kept == anew.dump()? {
        print("the index says what the log says")?;
        return Ok(0);
    }
    print("the index says something else than the log: run `weir index rebuild`")?;
    Ok(1)
}

fn rebuild(data_dir: &Path) -> Result<u8> {
    let log = Log::open_to_read(data_dir)?;
    let (path, new) = (data_dir.join("index.sqlite"), data_dir.join("index.sqlite.new"));
    for stale in [
        &new,
        &data_dir.join("index.sqlite.new-wal"),
        &data_dir.join("index.sqlite.new-shm"),
    ] {
        remove_if_there(stale)?;
    }
    let mut index = Index::open(&new)?;
    index.catch_up(&log)?;
    let entries = index.next()?;
    index.close()?;
    for old in [
        &path,
        &data_dir.join("index.sqlite-wal"),
        &data_dir.join("index.sqlite-shm"),
    ] {
        remove_if_there(old)?;
    }
    std::fs::rename(&new, &path).context("cannot put the new index in its place")?;
    print(&format!("indexed {entries} entries"))?;
    Ok(0)
}

fn remove_if_there(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
