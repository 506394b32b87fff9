//! What the chart's hooks and tests run: short programs that look from outside, say what they found, and end.
//!
//! ```text
//!  helm install ──► install-check    a dry run that the webhook must refuse
//!  helm test ─────► ready, install-check
//!  helm uninstall ► uninstall-check  pods that still have a sidecar; then the webhook configurations go
//! ```

mod install;
mod ready;
mod uninstall;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

/// One check.
#[derive(Debug, Parser)]
#[command(name = "weir-operator", version)]
pub enum Check {
    /// Wait until the API server reaches the webhook.
    InstallCheck {
        /// Namespace for the dry run; nothing is made there.
        #[arg(long, env = "WEIR_POD_NAMESPACE", default_value = "weir-system")]
        namespace: String,
        /// When to give up.
        #[arg(long, default_value_t = 120)]
        timeout_seconds: u32,
    },
    /// Look for pods that still have a sidecar; where there are none, remove the webhook configurations.
    UninstallCheck {
        /// Remove them although pods still have a sidecar.
        #[arg(long)]
        force: bool,
        /// What helm calls it.
        #[command(flatten)]
        release: uninstall::Release,
    },
    /// Wait until each URL answers 200.
    Ready {
        /// Plain HTTP, such as `http://weir-operator.weir-system.svc:8081/readyz`.
        #[arg(required = true)]
        urls: Vec<String>,
        /// When to give up.
        #[arg(long, default_value_t = 30)]
        timeout_seconds: u32,
    },
}

/// What a check found, as it is printed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Finding {
    /// As it should be.
    Good(String),
    /// Not as it should be, and what to do.
    Bad(String),
    /// It could not be found out.
    Unknown(String),
}

impl Check {
    /// The check that this process was started for, if it was. The operator itself has no subcommand.
    pub fn from_arguments() -> Option<Self> {
        let first = std::env::args().nth(1)?;
        ["install-check", "uninstall-check", "ready"]
            .contains(&first.as_str())
            .then(Self::parse)
    }

    /// Runs it and prints what was found. Exit code 0: good, 1: not good, 2: could not be found out.
    ///
    /// # Errors
    /// When no runtime can be made.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        Ok(match runtime.block_on(self.look()) {
            Finding::Good(text) => {
                println!("{text}");
                ExitCode::SUCCESS
            }
            Finding::Bad(text) => {
                println!("{text}");
                ExitCode::from(1)
            }
            Finding::Unknown(text) => {
                println!("{text}");
                ExitCode::from(2)
            }
        })
    }

    async fn look(self) -> Finding {
        match self {
            Self::InstallCheck {
                namespace,
                timeout_seconds,
            } => install::look(&namespace, Duration::from_secs(timeout_seconds.into())).await,
            Self::UninstallCheck { force, release } => uninstall::look(force, &release).await,
            Self::Ready {
                urls,
                timeout_seconds,
            } => ready::look(&urls, Duration::from_secs(timeout_seconds.into())).await,
        }
    }
}

/// The cluster as kubectl finds it.
async fn client() -> Result<kube::Client, Finding> {
    // Fails only if a provider is set already, which is then the same one.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    kube::Client::try_default()
        .await
        .map_err(|error| Finding::Unknown(format!("cannot find the cluster: {error}")))
}
