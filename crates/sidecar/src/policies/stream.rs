//! Policies from the operator: each snapshot is in force whole or not at all, and the last good one stays.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use access_policy::{Endpoint, Manifest, PolicySet};
use control_api::identity::Trust;
use control_api::proto::{self, PolicyProblem, SignedSnapshot};
use control_api::signed;
use prost::Message as _;
use receipts::Digest;
use tokio::sync::watch;

use super::{LoadStatus, Loaded, SecretFiles, Seen, Ways, digests, for_endpoint, states};
use crate::fatal::{EndKind, Fatal};
use crate::front::{Closed, Front, InForce};
use crate::upstream::Resolve;

/// What became of a snapshot.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// In force, but for these.
    Ack(proto::Ack),
    /// Not in force; the one before stays.
    Nack(proto::Nack),
}

/// What a snapshot says beside its policies.
#[derive(Debug, Clone, PartialEq)]
pub struct Header {
    /// Version.
    pub version: u64,
    /// Hash of the policies.
    pub hash: Vec<u8>,
    /// Unix seconds.
    pub issued_at: i64,
    /// Unix seconds.
    pub valid_until: i64,
    /// Service account of the pod.
    pub service_account: String,
    /// Where receipts go.
    pub collector: proto::Collector,
}

/// A snapshot in force.
#[derive(Debug)]
struct Taken {
    header: Header,
    set: PolicySet,
    digests: BTreeMap<String, Digest>,
}

#[derive(Debug, Default)]
struct State {
    taken: Option<Taken>,
    generation: u64,
    loaded: Loaded,
    status: LoadStatus,
    secrets_seen: Seen,
    /// Sessions were ended because it became too old.
    ended: bool,
}

/// The policies that the operator last sent, at all fronts of the pod.
#[derive(Debug)]
pub struct StreamedPolicies {
    pod_uid: String,
    fronts: Vec<Arc<Front>>,
    secrets: SecretFiles,
    /// How long open sessions go on with policies that are too old.
    grace: Duration,
    state: Mutex<State>,
    /// Unix seconds; 0: nothing is in force.
    valid_until: AtomicI64,
    changed: watch::Sender<u64>,
    problems: watch::Sender<Vec<PolicyProblem>>,
    header: watch::Sender<Option<Header>>,
}

impl StreamedPolicies {
    /// With nothing in force.
    pub fn new(
        pod_uid: &str,
        fronts: Vec<Arc<Front>>,
        secrets_dir: Option<std::path::PathBuf>,
        grace: Duration,
    ) -> Self {
        Self {
            pod_uid: pod_uid.to_owned(),
            fronts,
            secrets: SecretFiles { folder: secrets_dir },
            grace,
            state: Mutex::default(),
            valid_until: AtomicI64::new(0),
            changed: watch::Sender::new(0),
            problems: watch::Sender::default(),
            header: watch::Sender::default(),
        }
    }

    /// Tells of changes, by generation.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Policies that are not in force as they are written, each with a reason.
    pub fn problems(&self) -> watch::Receiver<Vec<PolicyProblem>> {
        self.problems.subscribe()
    }

    /// What the snapshot in force says beside its policies.
    pub fn header(&self) -> watch::Receiver<Option<Header>> {
        self.header.subscribe()
    }

    /// What the last snapshot came to.
    pub fn status(&self) -> LoadStatus {
        self.lock().status.clone()
    }

    /// What is in force.
    pub fn loaded(&self) -> Loaded {
        self.lock().loaded.clone()
    }

    /// Whether new sessions may begin.
    ///
    /// # Errors
    /// The policies are too old.
    pub fn admit(&self) -> Result<(), Fatal> {
        let valid_until = self.valid_until.load(Ordering::Acquire);
        // Before the first snapshot the fronts say what is missing.
        if valid_until == 0 || control_api::client::now() < valid_until {
            return Ok(());
        }
        Err(too_old())
    }

    /// Takes a snapshot: everything is compiled first, then it is in force for the next statement of every session.
    pub fn take(&self, signed: &SignedSnapshot, trust: &Trust, now: i64) -> Answer {
        let mut state = self.lock();
        let snapshot = match self.check(&state, signed, trust, now) {
            Ok(snapshot) => snapshot,
            Err(message) => {
                let version = proto::Snapshot::decode(signed.snapshot.as_slice())
                    .map_or(0, |snapshot| snapshot.version);
                return refuse(
                    &mut state,
                    version,
                    vec![PolicyProblem {
                        policy: String::new(),
                        reason: "Refused".to_owned(),
                        message,
                    }],
                );
            }
        };
        let (set, digests) = match compile(&snapshot) {
            Ok(compiled) => compiled,
            Err(problems) => return refuse(&mut state, snapshot.version, problems),
        };
        let header = Header {
            version: snapshot.version,
            issued_at: snapshot.issued_at,
            valid_until: snapshot.valid_until,
            service_account: snapshot.service_account,
            collector: snapshot.collector.unwrap_or_default(),
            hash: snapshot.hash,
        };
        let same = !state.ended
            && state
                .taken
                .as_ref()
                .is_some_and(|taken| taken.digests == digests && taken.header.hash == header.hash);
        let version = header.version;
        self.valid_until.store(header.valid_until, Ordering::Release);
        self.header.send_replace(Some(header.clone()));
        state.ended = false;
        state.status.problems.clear();
        state.taken = Some(Taken { header, set, digests });
        if same {
            // Only the times moved on.
            state.loaded.version = version;
        } else {
            self.put_in_force(&mut state);
        }
        let problems = self.problems.borrow().clone();
        Answer::Ack(proto::Ack { version, problems })
    }

    fn check(
        &self,
        state: &State,
        signed: &SignedSnapshot,
        trust: &Trust,
        now: i64,
    ) -> Result<proto::Snapshot, String> {
        let snapshot = signed::verify(signed, trust, &self.pod_uid).map_err(|problem| problem.to_string())?;
        signed::check_validity(&snapshot, now).map_err(|problem| problem.to_string())?;
        if let Some(taken) = &state.taken {
            // Replicas of the operator count from their own starts, so a later snapshot of another replica may have a
            // lower version; what is older in both is a replay.
            let held = &taken.header;
            if snapshot.issued_at < held.issued_at
                || (snapshot.issued_at == held.issued_at && snapshot.version < held.version)
            {
                return Err(format!(
                    "snapshot {} (issued at {}) is older than {} (issued at {}), which is in force",
                    snapshot.version, snapshot.issued_at, held.version, held.issued_at
                ));
            }
        }
        Ok(snapshot)
    }

    /// Puts what was taken in force at every front.
    fn put_in_force(&self, state: &mut State) {
        let Some(taken) = &state.taken else {
            return;
        };
        state.generation += 1;
        let generation = state.generation;
        // Looked at first: a Secret that changes meanwhile is seen as changed by the next look.
        state.secrets_seen = self.secrets_now();
        let captured: BTreeSet<&Endpoint> = self.fronts.iter().map(|front| &front.endpoint).collect();
        for front in &self.fronts {
            let ways = Ways {
                secrets: &self.secrets,
                upstream_address: None,
                listen: &front.listen,
                allow_remote_clients: false,
                resolve: Resolve::WithoutHostsFile,
                capture_ca: true,
            };
            let usable = for_endpoint(&taken.set, &front.endpoint, &ways, generation);
            let in_force = match usable {
                Ok(Some(policies)) => InForce::Policies(Arc::new(policies)),
                Ok(None) => InForce::Closed {
                    why: Closed::NoPolicy,
                    generation,
                },
                Err(problems) => InForce::Closed {
                    why: Closed::Unusable(problems.join("; ")),
                    generation,
                },
            };
            if let InForce::Closed { why, .. } = &in_force {
                tracing::warn!(endpoint = %front.endpoint, ?why, "nothing is let through here");
            }
            front.put(in_force);
        }
        let problems = problems_of(&taken.set, &captured, &self.secrets);
        for problem in &problems {
            tracing::warn!(
                policy = problem.policy,
                reason = problem.reason,
                message = problem.message,
                "a policy is not in force as it is written"
            );
        }
        state.loaded = Loaded {
            generation,
            version: taken.header.version,
            states: states(&taken.set, &taken.digests, None),
            origin: "operator".to_owned(),
        };
        let names: Vec<&str> = state.loaded.states.iter().map(|one| one.name.as_str()).collect();
        tracing::info!(
            version = taken.header.version,
            policies = names.join(", "),
            "policies in force"
        );
        self.problems.send_replace(problems);
        self.changed.send_replace(generation);
    }

    fn secrets_now(&self) -> Seen {
        let mut seen = Seen::new();
        self.secrets.note(&mut seen);
        seen
    }

    /// To be called from time to time: Secrets change, and policies become too old.
    pub fn look(&self, now: i64) {
        let mut state = self.lock();
        if state.taken.is_none() {
            return;
        }
        let valid_until = self.valid_until.load(Ordering::Acquire);
        let grace = i64::try_from(self.grace.as_secs()).unwrap_or(i64::MAX);
        if now >= valid_until.saturating_add(grace) {
            if !state.ended {
                state.ended = true;
                state.generation += 1;
                tracing::error!(valid_until, "the policies are too old: open sessions end");
                for front in &self.fronts {
                    front.put(InForce::Closed {
                        why: Closed::TooOld,
                        generation: state.generation,
                    });
                }
            }
            return;
        }
        if self.secrets_now() != state.secrets_seen {
            self.put_in_force(&mut state);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Each change is complete before the guard goes.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// For new sessions once the policies are too old.
pub(crate) fn too_old() -> Fatal {
    Fatal::new(
        EndKind::Refused,
        "57P03",
        "WEIR-093: the policies of this pod are too old to begin a session with",
    )
    .hint("weir-sidecar has not heard from weir-operator for too long: see that the operator runs and that this pod reaches it")
}

fn refuse(state: &mut State, version: u64, problems: Vec<PolicyProblem>) -> Answer {
    state.status.failures += 1;
    state.status.problems = problems
        .iter()
        .map(|problem| format!("{}: {}", problem.policy, problem.message))
        .collect();
    for problem in &problems {
        tracing::error!(
            version,
            policy = problem.policy,
            message = problem.message,
            "a snapshot is refused; the last good one stays in force"
        );
    }
    Answer::Nack(proto::Nack { version, problems })
}

type Compiled = (PolicySet, BTreeMap<String, Digest>);

fn compile(snapshot: &proto::Snapshot) -> Result<Compiled, Vec<PolicyProblem>> {
    let manifests: Vec<Manifest> = snapshot
        .policies
        .iter()
        .map(|policy| Manifest {
            name: policy.name.clone(),
            text: policy.manifest.clone(),
        })
        .collect();
    match access_policy::compile(&manifests) {
        Ok(set) => Ok((set, digests(&manifests))),
        Err(problems) => Err(problems
            .iter()
            .map(|problem| PolicyProblem {
                policy: problem.file.clone(),
                reason: "Invalid".to_owned(),
                message: format!("{}: {}", problem.field, problem.message),
            })
            .collect()),
    }
}

/// One reason for each policy that is not in force as it is written. A policy holds at the endpoints that were captured
/// even if another of its endpoints was not: leaving it out there would lift its rules.
fn problems_of(set: &PolicySet, captured: &BTreeSet<&Endpoint>, secrets: &SecretFiles) -> Vec<PolicyProblem> {
    set.policies()
        .filter_map(|policy| {
            let problem = |reason: &str, message: String| PolicyProblem {
                policy: policy.file.clone(),
                reason: reason.to_owned(),
                message,
            };
            let missing: Vec<String> = policy
                .endpoints
                .iter()
                .filter(|endpoint| !captured.contains(endpoint))
                .map(ToString::to_string)
                .collect();
            if !missing.is_empty() {
                let message = format!(
                    "{} was not captured when the pod was made; restart the pod",
                    missing.join(", ")
                );
                return Some(problem("NotCaptured", message));
            }
            let missing = policy
                .secret_keys()
                .find(|key| set.secret(key, secrets).is_none())?;
            Some(problem(
                "SecretMissing",
                format!("there is no {missing} in this pod; if the Secret exists, restart the pod"),
            ))
        })
        .collect()
}
