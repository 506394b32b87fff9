//! A whole node: API server, scheduler, controllers, kubelet, DNS. One a machine, shared by the tests of a binary.

use anyhow::{Context, Result, bail};
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};

use super::{CHOSEN, Kubectl};

/// The node. It ends with this process, however that ends; [`Node::stop`] ends it in good order and waits for it.
#[derive(Debug)]
pub struct Node {
    kubectl: Kubectl,
    /// `None` for a cluster that the user chose.
    own: Option<Own>,
}

#[derive(Debug)]
struct Own {
    state: PathBuf,
    bin: PathBuf,
    /// Holds the node while its stdin is open.
    holder: Mutex<Option<Child>>,
}

static NODE: OnceLock<Result<Node, String>> = OnceLock::new();

/// Ends the node of this process, if one was started.
pub fn stop_node() -> Result<()> {
    match NODE.get() {
        Some(Ok(node)) => node.stop(),
        _ => Ok(()),
    }
}

/// The node of this process, started when first asked for. Asking again after a failure tells the same failure.
pub fn node() -> Result<&'static Node> {
    static STARTING: Mutex<()> = Mutex::new(());
    let _one = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
    NODE.get_or_init(|| Node::start().map_err(|error| format!("{error:#}")))
        .as_ref()
        .map_err(|error| anyhow::anyhow!("{error}"))
}

impl Node {
    fn start() -> Result<Self> {
        if let Some(kubeconfig) = std::env::var_os(CHOSEN) {
            return Ok(Self {
                kubectl: Kubectl::chosen(Path::new(&kubeconfig)),
                own: None,
            });
        }
        let bin = super::programs(&[])?;
        let state = match std::env::var_os("WEIR_CLUSTER_STATE") {
            Some(state) => PathBuf::from(state),
            None => bin.parent().context("the cache folder")?.join("node"),
        };
        // A process group of its own: Ctrl-C reaches the test, and the end of the pipe tells the holder.
        let mut holder = Command::new(script("hold.sh"))
            .arg(&state)
            .arg(&bin)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .context("cannot run tests/cluster/hold.sh")?;
        let mut said = String::new();
        if let Some(stdout) = holder.stdout.take() {
            BufReader::new(stdout).read_line(&mut said)?;
        }
        if said.trim() != "ready" {
            holder.wait()?;
            bail!("the node did not start: see above");
        }
        Ok(Self {
            kubectl: Kubectl {
                kubeconfig: state.join("admin.conf"),
                bin: bin.clone(),
            },
            own: Some(Own {
                state,
                bin,
                holder: Mutex::new(Some(holder)),
            }),
        })
    }

    /// kubectl and helm for it.
    pub fn kubectl(&self) -> &Kubectl {
        &self.kubectl
    }

    /// Makes and imports the images of the tests, with our programs as they are built now. The nodes of a cluster that
    /// the user chose must have them already (`tests/cluster/images.sh` makes the archives).
    pub fn import_images(&self, programs: &Path) -> Result<()> {
        let Some(own) = &self.own else { return Ok(()) };
        run(Command::new(script("images.sh")).arg(&own.state).arg(programs))
    }

    /// Starts again what died.
    pub fn repair(&self) -> Result<()> {
        let own = self.own()?;
        run(Command::new(script("up.sh")).arg(&own.state).arg(&own.bin))
    }

    /// Stops all of it, unless `WEIR_KEEP_CLUSTER` is set. A cluster that the user chose is left alone.
    pub fn stop(&self) -> Result<()> {
        let Some(own) = &self.own else { return Ok(()) };
        let holder = own.holder.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut holder) = holder {
            drop(holder.stdin.take());
            holder.wait()?;
        }
        Ok(())
    }

    fn own(&self) -> Result<&Own> {
        self.own
            .as_ref()
            .with_context(|| format!("{CHOSEN} names a cluster that is not ours to change"))
    }
}

fn script(name: &str) -> PathBuf {
    crate::workspace_root().join("tests/cluster").join(name)
}

fn run(command: &mut Command) -> Result<()> {
    let status = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .with_context(|| format!("cannot run {}", command.get_program().to_string_lossy()))?;
    if !status.success() {
        bail!("{} failed: see above", command.get_program().to_string_lossy());
    }
    Ok(())
}
