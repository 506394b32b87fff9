//! kubectl and helm against one cluster.

use anyhow::{Context, Result, bail};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::wait_for;

/// Runs kubectl with one kubeconfig. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Kubectl {
    pub(crate) bin: PathBuf,
    pub(crate) kubeconfig: PathBuf,
}

/// What a command said.
#[derive(Clone, Debug)]
pub struct Said {
    /// It succeeded.
    pub ok: bool,
    /// stdout.
    pub out: String,
    /// stderr: errors and warnings.
    pub err: String,
}

impl Kubectl {
    /// For a cluster that the user chose, with programs from PATH.
    pub fn chosen(kubeconfig: &Path) -> Self {
        Self {
            bin: PathBuf::new(),
            kubeconfig: kubeconfig.to_owned(),
        }
    }

    /// The kubeconfig.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// A `PATH` on which kubectl and helm are these.
    pub fn path(&self) -> String {
        let path = std::env::var("PATH").unwrap_or_default();
        format!("{}:{path}", self.bin.display())
    }

    fn program(&self, name: &str) -> PathBuf {
        let own = self.bin.join(name);
        if own.is_file() { own } else { PathBuf::from(name) }
    }

    /// kubectl with these arguments, for a test that needs more than its text.
    pub fn command(&self, arguments: &[&str]) -> Command {
        self.run_of("kubectl", arguments)
    }

    fn run_of(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.program(program));
        command.args(arguments).env("KUBECONFIG", &self.kubeconfig);
        command
    }

    /// Runs kubectl and gives back whatever it said.
    pub fn try_run(&self, arguments: &[&str]) -> Result<Said> {
        self.said(self.run_of("kubectl", arguments), None)
    }

    /// Runs kubectl with text on stdin and gives back whatever it said.
    pub fn try_with(&self, arguments: &[&str], stdin: &str) -> Result<Said> {
        self.said(self.run_of("kubectl", arguments), Some(stdin))
    }

    /// Runs helm and gives back whatever it said.
    pub fn try_helm(&self, arguments: &[&str]) -> Result<Said> {
        self.said(self.run_of("helm", arguments), None)
    }

    /// Runs kubectl; it must succeed.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        let said = self.try_run(arguments)?;
        if !said.ok {
            bail!("kubectl {}: {}", arguments.join(" "), said.err.trim());
        }
        Ok(said.out)
    }

    /// Runs helm; it must succeed.
    pub fn helm(&self, arguments: &[&str]) -> Result<String> {
        let said = self.try_helm(arguments)?;
        if !said.ok {
            bail!("helm {}: {}{}", arguments.join(" "), said.out, said.err.trim());
        }
        Ok(said.out)
    }

    /// Applies manifests to a namespace; they must be taken.
    pub fn apply(&self, namespace: &str, yaml: &str) -> Result<String> {
        let said = self.try_with(&["apply", "-n", namespace, "-f", "-"], yaml)?;
        if !said.ok {
            bail!("kubectl apply: {}", said.err.trim());
        }
        Ok(said.out)
    }

    /// Waits until `kubectl ARGUMENTS` prints what `wanted` accepts; the last answer is in the error.
    pub fn wait(
        &self,
        arguments: &[&str],
        seconds_max: u64,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<String> {
        let mut last = String::new();
        wait_for(&format!("kubectl {}", arguments.join(" ")), seconds_max, || {
            let said = self.try_run(arguments).ok()?;
            last = format!("{}{}", said.out, said.err);
            (said.ok && wanted(&said.out)).then_some(said.out)
        })
        .with_context(|| format!("it said last: {}", last.trim()))
    }

    /// Makes a namespace of its own for a test.
    pub fn namespace(&self, name: &str) -> Result<()> {
        self.apply(
            "default",
            &format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n"),
        )
        .map(drop)
    }

    /// Ends a namespace without waiting for its end.
    pub fn drop_namespace(&self, name: &str) {
        let _ = self.try_run(&["delete", "namespace", name, "--wait=false", "--ignore-not-found"]);
    }

    fn said(&self, mut command: Command, stdin: Option<&str>) -> Result<Said> {
        let program = command.get_program().to_string_lossy().into_owned();
        let mut child = command
            .stdin(if stdin.is_some() {
                Stdio::piped()
            } else {
                Stdio::null()
            })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {program}"))?;
        if let (Some(mut pipe), Some(text)) = (child.stdin.take(), stdin) {
            // A program that ends early says why itself.
            let _ = pipe.write_all(text.as_bytes());
        }
        let output = child.wait_with_output()?;
        Ok(Said {
            ok: output.status.success(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }
}
