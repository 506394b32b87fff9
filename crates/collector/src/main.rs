//! `weir-collector`: keeps receipts and answers questions about them.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use collector::{Config, LoopbackSinks, OperatorConfig, read_sinks_file, serve};
use control_api::client::IdentityConfig;
use control_api::identity::Trust;
use service_runtime::logs::{self, LogFormat};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Keeps receipts in a tamper-evident log and answers questions about them.
#[derive(Debug, Parser)]
#[command(name = "weir-collector", version)]
struct Arguments {
    /// Where `weir` reaches it, and sidecars too where there is no operator. Plain HTTP: keep it on loopback or a trusted
    /// network; with an operator it must be loopback.
    #[arg(long, env = "WEIR_LISTEN", default_value = "127.0.0.1:7460")]
    listen: SocketAddr,
    /// Where /healthz, /readyz and /metrics are; without it beside the other pages.
    #[arg(long, env = "WEIR_ADMIN")]
    admin: Option<SocketAddr>,
    /// Folder of log and index.
    #[arg(long, env = "WEIR_DATA_DIR", default_value = "/var/lib/weir/collector")]
    data_dir: PathBuf,
    /// `host:port` of the operator: runs as part of a cluster. Needs --ingest, --token-file, --identity-dir and
    /// --trust-bundle-file.
    #[arg(long, env = "WEIR_OPERATOR", requires_all = ["ingest", "token_file", "identity_dir", "trust_bundle_file"])]
    operator: Option<String>,
    /// Where pods deliver receipts: HTTPS, a pod's certificate is required.
    #[arg(long, env = "WEIR_INGEST", requires = "operator")]
    ingest: Option<SocketAddr>,
    /// Pod-bound token, audience `weir.dev/identity`.
    #[arg(long, env = "WEIR_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    /// Folder in memory for key and certificate.
    #[arg(long, env = "WEIR_IDENTITY_DIR")]
    identity_dir: Option<PathBuf>,
    /// Roots that count at the start, PEM.
    #[arg(long, env = "WEIR_TRUST_BUNDLE_FILE")]
    trust_bundle_file: Option<PathBuf>,
    /// LineageSink manifests (YAML), to run sinks without an operator.
    #[arg(long, env = "WEIR_SINKS_FILE", conflicts_with = "operator")]
    sinks_file: Option<PathBuf>,
    /// Lets sinks lead to this machine. For tests and a laptop; never with an operator.
    #[arg(long, conflicts_with = "operator")]
    allow_loopback_sinks: bool,
    /// Logs as JSON, one object a line.
    #[arg(long, env = "WEIR_LOG_JSON")]
    log_json: bool,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    logs::init(if arguments.log_json {
        LogFormat::Json
    } else {
        LogFormat::Text
    });
    let sinks = match &arguments.sinks_file {
        Some(path) => read_sinks_file(path).map_err(anyhow::Error::msg)?,
        None => Vec::new(),
    };
    let operator = match (
        arguments.operator,
        arguments.ingest,
        arguments.token_file,
        arguments.identity_dir,
        arguments.trust_bundle_file,
    ) {
        (Some(operator), Some(ingest), Some(token_file), Some(identity_dir), Some(bundle)) => {
            let pem = std::fs::read_to_string(&bundle)
                .with_context(|| format!("cannot read the roots in {}", bundle.display()))?;
            Some(OperatorConfig {
                identity: IdentityConfig {
                    operator,
                    token_file,
                    identity_dir,
                    bootstrap: Trust::from_pem(&pem)?,
                    version: env!("CARGO_PKG_VERSION").to_owned(),
                },
                ingest,
            })
        }
        _ => None,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let result = runtime.block_on(async {
        let (stop, stopped) = watch::channel(false);
        let (mut terminate, mut interrupt) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            let _ = stop.send(true);
        });
        let config = Config {
            listen: arguments.listen,
            admin: arguments.admin,
            data_dir: arguments.data_dir,
            operator,
            sinks,
            loopback_sinks: if arguments.allow_loopback_sinks {
                LoopbackSinks::Allowed
            } else {
                LoopbackSinks::Refused
            },
        };
        serve(
            config,
            |pages, admin| {
                // The one line that scripts wait for.
                println!("weir-collector listens on {pages}, admin pages on {admin}");
            },
            stopped,
        )
        .await
    });
    // A thread that waits for a reader of standard output does not hold up the end.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}
