//! Policies from a folder: watched, the last good ones kept.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use access_policy::{Endpoint, Manifest, PolicySet};
use receipts::Digest;
use service_runtime::drain::{Drain, Stage};
use tokio::sync::watch;

use super::{
    LoadStatus, Loaded, Policies, SecretFiles, Seen, Ways, digests, entries, for_endpoint, note_files, states,
};
use crate::config::FolderRole;
use crate::front::{Front, InForce};
use crate::upstream::Resolve;

/// How often the folders are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// Largest manifest.
const MANIFEST_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// A folder whose manifests are in force at one front.
#[derive(Debug)]
pub struct PolicyFolder {
    role: FolderRole,
    secrets: SecretFiles,
    allow_remote_clients: bool,
    front: Arc<Front>,
    loaded: Mutex<Loaded>,
    status: Mutex<LoadStatus>,
    changed: watch::Sender<u64>,
}

impl PolicyFolder {
    /// Loads for the first time.
    ///
    /// # Errors
    /// Every problem found; without policies nothing is served.
    pub fn load(
        role: FolderRole,
        secrets_dir: Option<std::path::PathBuf>,
        allow_remote_clients: bool,
    ) -> Result<Self, Vec<String>> {
        let compiled = compile(&role.policy_dir)?;
        let endpoint = endpoint_of(&role, &compiled.set)?;
        let front = Arc::new(Front::new(role.listen.clone(), endpoint));
        let (changed, _) = watch::channel(1);
        let folder = Self {
            role,
            secrets: SecretFiles { folder: secrets_dir },
            allow_remote_clients,
            front,
            loaded: Mutex::default(),
            status: Mutex::default(),
            changed,
        };
        let (policies, loaded) = folder.take(&compiled, 1)?;
        *folder.loaded.lock().unwrap_or_else(PoisonError::into_inner) = loaded;
        folder.front.put(InForce::Policies(Arc::new(policies)));
        Ok(folder)
    }

    /// Where they hold.
    pub fn front(&self) -> &Arc<Front> {
        &self.front
    }

    /// What is in force.
    pub fn loaded(&self) -> Loaded {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What the last attempt said.
    pub fn status(&self) -> LoadStatus {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Tells of changes.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn take(&self, compiled: &Compiled, generation: u64) -> Result<(Policies, Loaded), Vec<String>> {
        let ways = Ways {
            secrets: &self.secrets,
            upstream_address: self.role.upstream_address.as_ref(),
            listen: &self.role.listen,
            allow_remote_clients: self.allow_remote_clients,
            resolve: Resolve::System,
            capture_ca: false,
        };
        let endpoint = &self.front.endpoint;
        let policies = for_endpoint(&compiled.set, endpoint, &ways, generation)?.ok_or_else(|| {
            vec![format!(
                "no policy in {} names the database {endpoint}",
                self.role.policy_dir.display()
            )]
        })?;
        let names: Vec<&str> = policies.policy.names().collect();
        let loaded = Loaded {
            generation,
            version: generation,
            states: states(&compiled.set, &compiled.digests, Some(&names)),
            origin: self.role.policy_dir.display().to_string(),
        };
        Ok((policies, loaded))
    }

    /// Loads again; what does not load leaves the last good policies in force.
    pub fn reload(&self) {
        let generation = self.loaded().generation + 1;
        let taken = compile(&self.role.policy_dir).and_then(|compiled| self.take(&compiled, generation));
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        match taken {
            Ok((policies, loaded)) => {
                let names: Vec<&str> = policies.policy.names().collect();
                tracing::info!(generation, policies = names.join(", "), "policies loaded");
                status.problems.clear();
                *self.loaded.lock().unwrap_or_else(PoisonError::into_inner) = loaded;
                self.front.put(InForce::Policies(Arc::new(policies)));
                self.changed.send_replace(generation);
            }
            Err(problems) => {
                for problem in &problems {
                    tracing::error!(%problem, "policies do not load; the last good ones stay in force");
                }
                status.problems = problems;
                status.failures += 1;
            }
        }
    }

    /// Watches the folders until the process drains.
    pub async fn watch(self: Arc<Self>, mut drain: Drain) {
        let mut seen = self.seen();
        let mut ticks = tokio::time::interval(LOOK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = drain.reached(Stage::Draining) => return,
            }
            let now = self.seen();
            if now != seen {
                seen = now;
                self.reload();
            }
        }
    }

    /// What the folders look like. Follows links, so that a folder swapped as Kubernetes does it shows.
    fn seen(&self) -> Seen {
        let mut seen = Seen::new();
        note_files(&self.role.policy_dir, &mut seen);
        self.secrets.note(&mut seen);
        seen
    }
}

/// A folder's manifests, compiled.
struct Compiled {
    set: PolicySet,
    /// SHA-256 of each manifest.
    digests: BTreeMap<String, Digest>,
}

fn compile(folder: &Path) -> Result<Compiled, Vec<String>> {
    let cannot =
        |path: &Path, error: std::io::Error| vec![format!("cannot read {}: {error}", path.display())];
    std::fs::read_dir(folder).map_err(|error| cannot(folder, error))?;
    let mut manifests = Vec::new();
    for path in entries(folder) {
        let is_manifest = path
            .extension()
            .and_then(|extension| extension.to_str())
            .is_some_and(|extension| matches!(extension, "yaml" | "yml" | "json"));
        if !is_manifest {
            continue;
        }
        let size = std::fs::metadata(&path)
            .map_err(|error| cannot(&path, error))?
            .len();
        if size > MANIFEST_BYTES_MAX {
            return Err(vec![format!(
                "{} is larger than {MANIFEST_BYTES_MAX} bytes",
                path.display()
            )]);
        }
        let text = std::fs::read_to_string(&path).map_err(|error| cannot(&path, error))?;
        manifests.push(Manifest {
            name: path.display().to_string(),
            text,
        });
    }
    let set = access_policy::compile(&manifests)
        .map_err(|problems| problems.iter().map(ToString::to_string).collect::<Vec<_>>())?;
    Ok(Compiled {
        digests: digests(&manifests),
        set,
    })
}

fn endpoint_of(role: &FolderRole, set: &PolicySet) -> Result<Endpoint, Vec<String>> {
    if let Some(upstream) = &role.upstream {
        return Endpoint::new(&upstream.host, upstream.port)
            .map_err(|error| vec![format!("--upstream: the host {error}")]);
    }
    let mut databases = set.databases();
    match (databases.pop(), databases.len()) {
        (Some(only), 0) => Ok(only),
        (None, _) => Err(vec![format!(
            "there is no policy in {}",
            role.policy_dir.display()
        )]),
        (Some(last), _) => {
            databases.push(last);
            let names: Vec<String> = databases.iter().map(ToString::to_string).collect();
            Err(vec![format!(
                "the policies name several databases ({}): choose one with --upstream",
                names.join(", ")
            )])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_that_asks_for_a_certificate_that_nobody_makes_does_not_load() {
        let folder = tempfile::tempdir().unwrap();
        let text = "apiVersion: weir.dev/v1alpha1\nkind: DatabaseAccessPolicy\nmetadata: {name: orders}\n\
                    spec:\n  podSelector: {}\n  database: {engine: PostgreSQL, host: db, \
                    tls: {mode: Disable}, clientTLS: {mode: Serve}}\n";
        std::fs::write(folder.path().join("orders.yaml"), text).unwrap();
        let role = FolderRole {
            listen: "127.0.0.1:1".parse().unwrap(),
            upstream: None,
            upstream_address: None,
            policy_dir: folder.path().to_owned(),
        };
        let problems = PolicyFolder::load(role, None, false).unwrap_err();
        let named =
            |problem: &String| problem.contains("clientTLS") && problem.contains("certificateSecretRef");
        assert!(problems.len() == 1 && problems.iter().all(named), "{problems:?}");
    }
}
