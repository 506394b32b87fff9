//! `weir-operator`.

use std::process::ExitCode;

use clap::Parser as _;
use operator::checks::Check;
use operator::settings::{LogFormat, Options, Settings};

fn main() -> anyhow::Result<ExitCode> {
    if let Some(check) = Check::from_arguments() {
        return check.run();
    }
    let options = Options::parse();
    service_runtime::logs::init(match options.log_format {
        LogFormat::Text => service_runtime::logs::LogFormat::Text,
        LogFormat::Json => service_runtime::logs::LogFormat::Json,
    });
    // A second provider would be our own mistake, and the first one is the one to keep.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let settings = match Settings::read(&options.settings) {
        Ok(settings) => settings,
        Err(problem) => return Ok(failed(&problem)),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match runtime.block_on(operator::run::run(options, settings)) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(problem) => Ok(failed(&format!("{problem:#}"))),
    }
}

/// One screen that says what is wrong and what mends it.
fn failed(problem: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("weir-operator does not start: {problem}");
    ExitCode::FAILURE
}
