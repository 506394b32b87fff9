//! `weir-sidecar`.

use clap::Parser;
use service_runtime::logs::{self, LogFormat};
use sidecar::config::{LogStyle, Options};

fn main() -> anyhow::Result<()> {
    // Before anything asks for TLS: one provider for the process.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let options = Options::parse();
    logs::init(match options.log_style() {
        LogStyle::Text => LogFormat::Text,
        LogStyle::Json => LogFormat::Json,
    });
    let config = options.resolve()?;
    if config.spool_dir_derived {
        tracing::info!(dir = %config.spool_dir.display(), "receipts are kept in this folder (--spool-dir)");
    }
    sidecar::sidecar::run(config)?;
    Ok(())
}
