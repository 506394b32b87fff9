//! What sidecars and the collector say: through our own streams, and through those of the other replicas.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use control_api::proto;
use tokio::sync::Notify;

/// What a sidecar said counts for this long after its stream broke: it may be on its way to another replica.
pub const GRACE: Duration = Duration::from_secs(30);
/// Losses that are remembered.
const LOSSES_MAX: usize = 1000;

/// Namespaces whose policies have to be looked at again.
#[derive(Debug, Default)]
pub struct Dirty {
    namespaces: Mutex<BTreeSet<String>>,
    notify: Notify,
}

impl Dirty {
    /// Marks one.
    pub fn mark(&self, namespace: &str) {
        self.namespaces
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(namespace.to_owned());
        self.notify.notify_one();
    }

    /// Takes all that are marked.
    pub fn take(&self) -> BTreeSet<String> {
        std::mem::take(&mut *self.namespaces.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits for a mark.
    pub async fn marked(&self) {
        self.notify.notified().await;
    }
}

/// Where a word came from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Source {
    Own,
    Replica(String),
}

#[derive(Debug, Clone)]
struct Word {
    report: proto::PodReport,
    source: Source,
    /// Since when the stream is broken.
    silent_since: Option<Instant>,
}

/// All of it. Bounded by the pods of the cluster: who is gone is forgotten.
#[derive(Debug, Default)]
pub struct Reports {
    state: Mutex<State>,
    /// For the writer of status.
    pub dirty: std::sync::Arc<Dirty>,
    /// For the stream to the holder of the lease.
    pub changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    pods: HashMap<String, Word>,
    sinks: BTreeMap<String, proto::SinkStatus>,
    /// Losses that our own collector stream told.
    own_losses: VecDeque<proto::ReceiptsLost>,
    /// Losses of all replicas: (pod UID, boot) → when, and namespace.
    losses: HashMap<(String, String), (Instant, String)>,
    /// The collector whose stream we hold, and which of its streams that is.
    collector: Option<Collector>,
    collector_streams: u64,
}

/// The collector, as its stream with us tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collector {
    /// Its version.
    pub version: String,
    /// When its certificate ends, Unix seconds.
    pub certificate_not_after: i64,
}

impl Reports {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // Every step below leaves the maps whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn touched(&self, namespace: &str) {
        self.dirty.mark(namespace);
        self.changed.notify_one();
    }

    /// A sidecar opened its stream with us. What it had acknowledged counts until it answers anew.
    pub fn connected(&self, namespace: &str, name: &str, uid: &str, hello: &proto::Hello) {
        let mut state = self.lock();
        let before = state.pods.remove(uid);
        let (policies, report) = before
            .map(|word| (word.report.policies, word.report.report))
            .unwrap_or_default();
        state.pods.insert(
            uid.to_owned(),
            Word {
                report: proto::PodReport {
                    namespace: namespace.to_owned(),
                    uid: uid.to_owned(),
                    name: name.to_owned(),
                    version: hello.version.chars().take(64).collect(),
                    captured: hello.captured.iter().take(256).cloned().collect(),
                    policies,
                    report,
                },
                source: Source::Own,
                silent_since: None,
            },
        );
        drop(state);
        self.touched(namespace);
    }

    /// A sidecar with a stream to us said something.
    pub fn update(&self, uid: &str, change: impl FnOnce(&mut proto::PodReport)) {
        let mut state = self.lock();
        let Some(word) = state.pods.get_mut(uid) else {
            return;
        };
        let before = word.report.clone();
        change(&mut word.report);
        if word.report == before {
            return;
        }
        let namespace = word.report.namespace.clone();
        drop(state);
        self.touched(&namespace);
    }

    /// Its stream to us broke.
    pub fn disconnected(&self, uid: &str, now: Instant) {
        let mut state = self.lock();
        let Some(word) = state.pods.get_mut(uid).filter(|word| word.source == Source::Own) else {
            return;
        };
        word.silent_since = Some(now);
        let namespace = word.report.namespace.clone();
        drop(state);
        self.touched(&namespace);
    }

    /// The pod is gone.
    pub fn forget(&self, uid: &str) {
        self.lock().pods.remove(uid);
        self.changed.notify_one();
    }

    /// The collector has a stream with us; gives its number.
    pub fn collector_came(&self, collector: Collector) -> u64 {
        let mut state = self.lock();
        state.collector = Some(collector);
        state.collector_streams += 1;
        state.collector_streams
    }

    /// That stream is over. A newer one stays.
    pub fn collector_went(&self, stream: u64) {
        let mut state = self.lock();
        if state.collector_streams == stream {
            state.collector = None;
        }
    }

    /// The collector whose stream we hold.
    pub fn collector(&self) -> Option<Collector> {
        self.lock().collector.clone()
    }

    /// The collector told us about its sinks.
    pub fn sinks(&self, sinks: impl IntoIterator<Item = proto::SinkStatus>) {
        let mut state = self.lock();
        for sink in sinks.into_iter().take(10_000) {
            state.sinks.insert(sink.sink.clone(), sink);
        }
        drop(state);
        self.changed.notify_one();
    }

    /// The collector told us of a chain without an end.
    pub fn lost(&self, lost: proto::ReceiptsLost, now: Instant) {
        let mut state = self.lock();
        if state.own_losses.len() >= LOSSES_MAX {
            state.own_losses.pop_front();
        }
        state.own_losses.push_back(lost.clone());
        Self::remember(&mut state, &lost, now);
        drop(state);
        self.touched(&lost.namespace);
    }

    fn remember(state: &mut State, lost: &proto::ReceiptsLost, now: Instant) -> bool {
        let key = (lost.pod_uid.clone(), lost.boot.clone());
        if state.losses.contains_key(&key) {
            return false;
        }
        if state.losses.len() >= LOSSES_MAX {
            let oldest = state
                .losses
                .iter()
                .min_by_key(|(_, (at, _))| *at)
                .map(|(key, _)| key.clone());
            if let Some(oldest) = oldest {
                state.losses.remove(&oldest);
            }
        }
        state.losses.insert(key, (now, lost.namespace.clone()));
        true
    }

    /// What our own streams say, for the holder of the lease.
    pub fn own(&self, replica: &str) -> proto::ReplicaReport {
        let state = self.lock();
        let mut pods: Vec<proto::PodReport> = state
            .pods
            .values()
            .filter(|word| word.source == Source::Own && word.silent_since.is_none())
            .map(|word| word.report.clone())
            .collect();
        pods.sort_by(|a, b| a.uid.cmp(&b.uid));
        proto::ReplicaReport {
            replica: replica.to_owned(),
            pods,
            sinks: state.sinks.values().cloned().collect(),
            lost: state.own_losses.iter().cloned().collect(),
        }
    }

    /// What the streams of another replica say.
    pub fn merge(&self, report: proto::ReplicaReport, now: Instant) {
        let source = Source::Replica(report.replica);
        let mut touched = BTreeSet::new();
        let mut state = self.lock();
        let told: BTreeSet<String> = report.pods.iter().map(|pod| pod.uid.clone()).collect();
        for (uid, word) in &mut state.pods {
            if word.source == source && word.silent_since.is_none() && !told.contains(uid) {
                word.silent_since = Some(now);
                touched.insert(word.report.namespace.clone());
            }
        }
        for mut pod in report.pods {
            match state.pods.get(&pod.uid) {
                // A live stream of ours is newer than what somebody else still believes.
                Some(word) if word.source == Source::Own && word.silent_since.is_none() => continue,
                Some(word) => {
                    if pod.policies.is_empty() {
                        // It has only just connected there.
                        pod.policies.clone_from(&word.report.policies);
                    }
                    if word.report == pod && word.source == source && word.silent_since.is_none() {
                        continue;
                    }
                }
                None => {}
            }
            touched.insert(pod.namespace.clone());
            state.pods.insert(
                pod.uid.clone(),
                Word {
                    report: pod,
                    source: source.clone(),
                    silent_since: None,
                },
            );
        }
        for sink in report.sinks {
            state.sinks.insert(sink.sink.clone(), sink);
        }
        for lost in report.lost.iter().take(LOSSES_MAX) {
            if Self::remember(&mut state, lost, now) {
                touched.insert(lost.namespace.clone());
            }
        }
        drop(state);
        for namespace in touched {
            self.dirty.mark(&namespace);
        }
    }

    /// Another replica's stream to us ended.
    pub fn replica_gone(&self, replica: &str, now: Instant) {
        let source = Source::Replica(replica.to_owned());
        for word in self.lock().pods.values_mut() {
            if word.source == source && word.silent_since.is_none() {
                word.silent_since = Some(now);
            }
        }
    }

    /// The words that count now, of these pods.
    pub fn of<'a>(
        &self,
        uids: impl Iterator<Item = &'a str>,
        now: Instant,
    ) -> HashMap<String, proto::PodReport> {
        let state = self.lock();
        uids.filter_map(|uid| {
            let word = state.pods.get(uid)?;
            let counts = word
                .silent_since
                .is_none_or(|since| now.saturating_duration_since(since) < GRACE);
            counts.then(|| (uid.to_owned(), word.report.clone()))
        })
        .collect()
    }

    /// Every word of our own streams, for the status page.
    pub fn all_own(&self) -> Vec<proto::PodReport> {
        self.own("").pods
    }

    /// Status of a sink, as the collector said it last.
    pub fn sink(&self, key: &str) -> Option<proto::SinkStatus> {
        self.lock().sinks.get(key).cloned()
    }

    /// UIDs of gone pods of this namespace that left receipts behind within `span`.
    pub fn losses_of(&self, namespace: &str, now: Instant, span: Duration) -> BTreeSet<String> {
        self.lock()
            .losses
            .iter()
            .filter(|(_, (at, of))| of == namespace && now.saturating_duration_since(*at) < span)
            .map(|((uid, _), _)| uid.clone())
            .collect()
    }
}
