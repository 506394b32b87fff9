//! `weir-collector`: keeps receipts and answers questions about them.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Parser;
use collector::{Config, serve};
use service_runtime::logs::{self, LogFormat};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Keeps receipts in a tamper-evident log and answers questions about them.
#[derive(Debug, Parser)]
#[command(name = "weir-collector", version)]
struct Arguments {
    /// Where sidecars and `weir` reach it. Plain HTTP: keep it on loopback or a trusted network.
    #[arg(long, env = "WEIR_LISTEN", default_value = "127.0.0.1:7460")]
    listen: SocketAddr,
    /// Where /healthz, /readyz and /metrics are; without it beside the other pages.
    #[arg(long, env = "WEIR_ADMIN")]
    admin: Option<SocketAddr>,
    /// Folder of log and index.
    #[arg(long, env = "WEIR_DATA_DIR", default_value = "/var/lib/weir/collector")]
    data_dir: PathBuf,
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
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
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
    })
}
