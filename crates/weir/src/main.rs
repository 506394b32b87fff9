//! `weir`: questions about receipts, and about what a policy does.

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use weir::{audit, check, demo, explain, export, facts, lineage, status, verify};

/// Database governance: who did what, where data went, and what a policy does to a statement.
#[derive(Debug, Parser)]
#[command(name = "weir", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Who did what
    Audit(audit::Args),
    /// Where a column's values come from, and where they went
    Lineage(lineage::Args),
    /// Whether the receipts are unaltered (INTEGRITY) and all there (COMPLETENESS)
    Verify(verify::Args),
    /// Write a part of the log to a file that `weir verify` checks offline
    Export(export::Args),
    /// The collector's index
    Index(status::IndexArgs),
    /// Policies, pods and sinks of a cluster; or what a collector or spool holds
    Status(status::Args),
    /// What is wrong with an installation, and what to do: 0 nothing, 1 something, 2 it cannot be found out
    Check(check::Args),
    /// What a policy does to a statement; no database needed
    Explain(explain::Args),
    /// What a statement reads and writes; no database or policy needed
    Facts(facts::Args),
    /// A governed PostgreSQL on this machine, to try by hand
    Demo(demo::Args),
}

/// Cannot read what was asked for.
const CANNOT: u8 = 3;

/// Started as `kubectl weir`: by the name of a link to this program.
fn is_plugin() -> bool {
    std::env::args_os().next().is_some_and(|name| {
        std::path::Path::new(&name)
            .file_stem()
            .is_some_and(|stem| stem == "kubectl-weir")
    })
}

fn main() -> ExitCode {
    let name = if is_plugin() { "kubectl weir" } else { "weir" };
    let matches = Arguments::command().bin_name(name).get_matches();
    let arguments = Arguments::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let result = match arguments.command {
        Command::Audit(args) => audit::run(&args),
        Command::Lineage(args) => lineage::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Export(args) => export::run(&args),
        Command::Index(args) => status::index(&args),
        Command::Status(args) => status::run(&args, is_plugin()),
        Command::Check(args) => check::run(&args),
        Command::Explain(args) => explain::run(&args),
        Command::Facts(args) => facts::run(&args),
        Command::Demo(args) => demo::run(&args).map(|()| 0),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            // A reader that has seen enough (`| head`) is no failure.
            let closed = error
                .downcast_ref::<std::io::Error>()
                .is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe);
            if closed {
                return ExitCode::SUCCESS;
            }
            eprintln!("weir: {error:#}");
            ExitCode::from(CANNOT)
        }
    }
}
