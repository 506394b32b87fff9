//! A sidecar in front of a throw-away server, for commands that compare with and without it.

use anyhow::{Context, Result, ensure};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use test_support::{Postgres, Process, Signal, free_port, wait_for};

/// What the policy in front of the server says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Policy {
    /// Nothing is protected: statements pass as they are, and are recorded.
    AllowAll,
    /// One table nobody asks for is denied, so everything else is read, judged and recorded.
    Judged,
}

impl Policy {
    fn manifest(self, port: u16, database: &str) -> String {
        let access = match self {
            Self::AllowAll => "",
            Self::Judged => {
                "  access:\n  - {name: closed, effect: Deny, actions: [Select], tables: [public.nobody_asks]}\n"
            }
        };
        format!(
            "apiVersion: weir.dev/v1alpha1\nkind: DatabaseAccessPolicy\n\
             metadata: {{name: compare, namespace: default}}\nspec:\n  mode: Enforce\n  podSelector: {{}}\n  \
             database:\n    engine: PostgreSQL\n    host: 127.0.0.1\n    port: {port}\n    name: {database}\n    \
             tls: {{mode: Disable}}\n  defaultAction: Allow\n{access}  \
             guardrails:\n    serverAccess: {{files: Allow, programs: Allow}}\n"
        )
    }
}

/// A running sidecar; it ends when dropped.
#[derive(Debug)]
pub(crate) struct Sidecar {
    // The process ends before its folder goes.
    _process: Process,
    pub(crate) port: u16,
    _folder: tempfile::TempDir,
}

impl Sidecar {
    pub(crate) fn start(program: &Path, server: &Postgres, database: &str, policy: Policy) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("weir-sidecar-").tempdir()?;
        let policies = folder.path().join("policies");
        std::fs::create_dir(&policies)?;
        std::fs::write(
            policies.join("compare.yaml"),
            policy.manifest(server.port(), database),
        )?;
        let (port, admin) = (free_port()?, free_port()?);
        let mut command = Command::new(program);
        command
            .args([
                "--listen",
                &format!("127.0.0.1:{port}"),
                "--upstream",
                &server.address(),
            ])
            .args([
                "--admin",
                &format!("127.0.0.1:{admin}"),
                "--as",
                "serviceAccount=compare",
            ])
            .arg("--policy-dir")
            .arg(&policies)
            .arg("--spool-dir")
            .arg(folder.path().join("spool"));
        let mut process = Process::start(command, &folder.path().join("log"), Signal::Term)?;
        wait_for("weir-sidecar to be ready", 30, || match process.ended() {
            Some(status) => Some(Err(anyhow::anyhow!(
                "weir-sidecar ended ({status}): {}",
                process.log()
            ))),
            None => is_ready(admin).unwrap_or(false).then_some(Ok(())),
        })
        .with_context(|| process.log())??;
        Ok(Self {
            _process: process,
            port,
            _folder: folder,
        })
    }
}

fn is_ready(port: u16) -> Result<bool> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(!answer.is_empty(), "no answer");
    Ok(answer.starts_with("HTTP/1.1 200"))
}
