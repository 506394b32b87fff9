//! A real Kubernetes for tests: one whole node ([`node()`]), or API servers alone ([`ApiServer`]).
//!
//! Both come from `tests/cluster/`, built once into a cache folder. Where they cannot run, the reason is a value
//! ([`NotHere`]), so that a test binary can tell it instead of passing silently.

mod api_server;
mod kubectl;
mod node;

use anyhow::{Context, Result, bail};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

pub use api_server::{ApiServer, Release};
pub use kubectl::{Kubectl, Said};
pub use node::{Node, node, stop_node};

/// Why cluster tests do not run here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotHere(pub String);

/// Set: cluster tests are left out.
pub const SKIP: &str = "WEIR_SKIP_CLUSTER";
/// Set: a cluster test that cannot run is a failure.
pub const REQUIRE: &str = "WEIR_REQUIRE_CLUSTER";
/// Names the kubeconfig of a cluster that the user chose.
pub const CHOSEN: &str = "WEIR_TEST_KUBECONFIG";

/// A variable that is set to something but `0`.
pub fn wanted(variable: &str) -> bool {
    std::env::var(variable).is_ok_and(|value| !value.is_empty() && value != "0")
}

/// Takes note that a test was left out, for the one line at the end of `make test`.
///
/// # Errors
/// Why it is a failure: the variable [`REQUIRE`] is set, or the note cannot be written.
pub fn leave_out(NotHere(why): &NotHere) -> Result<()> {
    if wanted(REQUIRE) {
        bail!("{why}, and {REQUIRE} is set");
    }
    let path = crate::target_folder()?.join("cluster-tests-left-out");
    let mut notes = std::fs::OpenOptions::new().create(true).append(true).open(path)?;
    writeln!(notes, "{why}").map_err(Into::into)
}

/// Whether tests with API servers can run.
pub fn api_servers() -> Result<(), NotHere> {
    if wanted(SKIP) {
        return Err(NotHere(format!("{SKIP} is set")));
    }
    if !cfg!(target_os = "linux") {
        return Err(NotHere("this is no Linux".to_owned()));
    }
    Ok(())
}

/// Whether tests with a node can run.
pub fn nodes() -> Result<(), NotHere> {
    api_servers()?;
    if std::env::var_os(CHOSEN).is_some() {
        return Ok(());
    }
    let lacks = |what: &str| Err(NotHere(format!("{what} (a node needs root and its own cgroups)")));
    let uid = Command::new("id").arg("-u").output();
    if !uid.is_ok_and(|output| output.stdout.trim_ascii() == b"0") {
        return lacks("this is not root");
    }
    let writable = |path: &str| {
        let probe = std::path::Path::new(path).join("weir-probe");
        let made = std::fs::create_dir(&probe).is_ok();
        let _ = std::fs::remove_dir(&probe);
        made
    };
    if !writable("/sys/fs/cgroup") && !writable("/sys/fs/cgroup/memory") {
        return lacks("/sys/fs/cgroup cannot be written");
    }
    let bridge = Command::new("ip")
        .args(["link", "add", "weir-probe0", "type", "bridge"])
        .stderr(Stdio::null())
        .status();
    let _ = Command::new("ip")
        .args(["link", "delete", "weir-probe0"])
        .stderr(Stdio::null())
        .status();
    match bridge {
        Ok(status) if status.success() => Ok(()),
        // No `ip` yet: the build installs it, and the start then tells.
        Err(_) => Ok(()),
        Ok(_) => lacks("no network bridge can be made"),
    }
}

/// helm without a cluster, for what it renders.
pub fn helm() -> Result<Kubectl> {
    Ok(Kubectl {
        bin: programs(&["api"])?,
        kubeconfig: PathBuf::from("/dev/null"),
    })
}

/// The programs of the test cluster, built when they are missing. `what` is `api` or nothing.
pub(crate) fn programs(what: &[&str]) -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os("WEIR_CLUSTER_BIN") {
        return Ok(folder.into());
    }
    let script = crate::workspace_root().join("tests/cluster/build.sh");
    let output = Command::new(&script)
        .args(what)
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot run {}", script.display()))?;
    if !output.status.success() {
        bail!("the test cluster cannot be built: see above");
    }
    Ok(PathBuf::from(String::from_utf8(output.stdout)?.trim()))
}
