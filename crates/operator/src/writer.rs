//! The holder of the lease writes status: computed when something changed, at most once a second for each object, and
//! looked at again every ten seconds, which repairs whatever was lost.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use control_api::client::jitter;
use crd_types::DatabaseAccessPolicyStatus;
use crd_types::sink::LineageSinkStatus;
use futures_util::StreamExt as _;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, Resource};
use serde::de::DeserializeOwned;
use service_runtime::drain::{Drain, Stage};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::events::{Events, Told, of_policy};
use crate::lease::Holding;
use crate::metrics::{Metrics, OfPolicy, OfWrite, WriteOutcome};
use crate::reports::Reports;
use crate::status::{self, Question, Seen};
use crate::world::{Pod, Policy, RawPolicy, RawSink, Sink, World};

/// Field manager of every write.
pub const FIELD_MANAGER: &str = "weir-operator";
/// Objects are written at most so often.
const PACE: Duration = Duration::from_secs(1);
/// Everything is looked at again.
const RESYNC_TICKS: u32 = 10;
/// Writes that wait.
const QUEUE: usize = 1000;
/// Writes at once.
const WRITERS: usize = 4;
/// One write may take this long.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// How often one write is tried.
const ATTEMPTS: u32 = 3;
/// A new holder writes no lower count for this long, unless all sidecars have spoken.
const SETTLE: Duration = Duration::from_secs(30);
/// The watch tells of our own write within this time.
const ECHO: Duration = Duration::from_secs(5);

/// One write.
#[derive(Debug, Clone)]
struct Write {
    kind: Kind,
    namespace: String,
    name: String,
    patch: serde_json::Value,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Policy,
    Sink,
}

/// Computes and writes.
pub struct Writer {
    /// The API server.
    pub client: Client,
    /// What is known.
    pub world: Arc<World>,
    /// What sidecars say.
    pub reports: Arc<Reports>,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// Whether we hold the lease.
    pub holding: Holding,
    /// For news.
    pub events: Events,
    /// The end.
    pub drain: Drain,
}

/// What is remembered between two looks.
#[derive(Default)]
struct Memory {
    policies: HashMap<(String, String), (DatabaseAccessPolicyStatus, Instant)>,
    sinks: HashMap<String, (LineageSinkStatus, Instant)>,
    shown: BTreeSet<OfPolicy>,
    told: Told,
}

impl Writer {
    /// Runs until the process drains.
    pub async fn run(self) {
        let (sender, receiver) = mpsc::channel::<Write>(QUEUE);
        let (client, metrics) = (self.client.clone(), Arc::clone(&self.metrics));
        let writing = ReceiverStream::new(receiver).for_each_concurrent(WRITERS, |write| {
            let (client, metrics) = (client.clone(), Arc::clone(&metrics));
            async move {
                let outcome = perform(&client, &write).await;
                metrics.status_writes.get_or_create(&OfWrite { outcome }).inc();
            }
        });
        tokio::join!(writing, self.look(sender));
    }

    async fn look(&self, queue: mpsc::Sender<Write>) {
        let mut drain = self.drain.clone();
        let mut memory = Memory::default();
        let mut ticks = tokio::time::interval(PACE);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut tick: u32 = 0;
        let mut held = None;
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = drain.reached(Stage::Draining) => return,
            }
            let holding = *self.holding.borrow();
            let Some(since) = holding else {
                if held.take().is_some() {
                    // Another replica shows them now.
                    for policy in &memory.shown {
                        self.metrics.forget(policy);
                    }
                    memory = Memory::default();
                }
                continue;
            };
            let resync = held != holding || tick.is_multiple_of(RESYNC_TICKS);
            held = holding;
            tick = tick.wrapping_add(1);
            let mut namespaces = self.reports.dirty.take();
            if resync {
                namespaces.extend(self.world.governed_namespaces());
                self.forget_gone(&mut memory);
            }
            for namespace in namespaces {
                self.namespace(&namespace, since, &mut memory, &queue);
            }
            for sink in self.world.sinks() {
                self.sink(&sink, resync, &mut memory, &queue);
            }
        }
    }

    fn forget_gone(&self, memory: &mut Memory) {
        let mut there = BTreeSet::new();
        for namespace in self.world.governed_namespaces() {
            for policy in self.world.selectors(&namespace).policies() {
                there.insert(label(policy));
            }
        }
        for gone in memory.shown.difference(&there) {
            self.metrics.forget(gone);
        }
        memory.shown.retain(|policy| there.contains(policy));
        memory.policies.retain(|(namespace, name), _| {
            there.contains(&OfPolicy {
                namespace: namespace.clone(),
                policy: name.clone(),
            })
        });
        let sinks: BTreeSet<String> = self.world.sinks().iter().map(|sink| sink.key()).collect();
        memory.sinks.retain(|key, _| sinks.contains(key));
    }

    fn namespace(&self, namespace: &str, since: Instant, memory: &mut Memory, queue: &mpsc::Sender<Write>) {
        let now = Instant::now();
        let selectors = self.world.selectors(namespace);
        let pods: Vec<Arc<Pod>> = self
            .world
            .pods_of(namespace)
            .into_iter()
            .filter(|pod| pod.counts())
            .collect();
        let words = self.reports.of(pods.iter().map(|pod| pod.uid.as_str()), now);
        // Which pods each policy selects: asked from the side of the pods, which find their policies by label.
        let mut selected: BTreeMap<usize, Vec<Seen<'_>>> = BTreeMap::new();
        for pod in &pods {
            for index in selectors.matching(namespace, &pod.labels) {
                selected.entry(index).or_default().push(Seen {
                    pod,
                    report: words.get(&pod.uid),
                });
            }
        }
        let span = Duration::try_from(status::LOSS_COUNTS).unwrap_or_default();
        let mut losses: BTreeMap<usize, usize> = BTreeMap::new();
        for uid in self.reports.losses_of(namespace, now, span) {
            let of = match self.world.pod_or_gone(&uid) {
                Some(pod) => selectors.matching(namespace, &pod.labels),
                // Gone before this replica began: it may have been anybody's.
                None => (0..selectors.policies().len()).collect(),
            };
            for index in of {
                *losses.entry(index).or_default() += 1;
            }
        }
        for (index, policy) in selectors.policies().iter().enumerate() {
            let pods = selected.get(&index).map(Vec::as_slice).unwrap_or_default();
            let losses = losses.get(&index).copied().unwrap_or_default();
            self.policy(policy, pods, losses, since, memory, queue);
        }
    }

    fn policy(
        &self,
        policy: &Policy,
        pods: &[Seen<'_>],
        losses: usize,
        since: Instant,
        memory: &mut Memory,
        queue: &mpsc::Sender<Write>,
    ) {
        self.metrics.reconciles.inc();
        let answer = status::status(&Question {
            policy,
            pods,
            losses,
            now: Timestamp::now(),
        });
        let silent = pods.iter().any(|seen| seen.pod.injected && seen.report.is_none());
        if since.elapsed() < SETTLE && silent && lower(&policy.status, &answer.status) {
            // Their streams are on the way to us, or to another replica that will tell.
            return;
        }
        let labels = label(policy);
        self.show(&labels, &answer);
        memory.shown.insert(labels);
        for pod in pods.iter().filter(|seen| !seen.pod.injected).map(|seen| seen.pod) {
            if let Some(news) = memory.told.uninjected(policy, pod, Instant::now()) {
                self.events.say(news);
            }
        }
        let key = (policy.namespace.clone(), policy.name.clone());
        let written = memory.policies.get(&key);
        let echoes = written.is_some_and(|(status, at)| *status == answer.status && at.elapsed() < ECHO);
        if answer.status == policy.status || echoes {
            return;
        }
        let before = written
            .filter(|(_, at)| at.elapsed() < ECHO)
            .map_or(&policy.status, |(status, _)| status);
        for news in of_policy(policy, &before.conditions, &answer.status.conditions) {
            self.events.say(news);
        }
        let write = Write {
            kind: Kind::Policy,
            namespace: policy.namespace.clone(),
            name: policy.name.clone(),
            patch: patch::<RawPolicy>(&policy.name, &policy.uid, &answer.status),
        };
        if self.enqueue(queue, write) {
            memory.policies.insert(key, (answer.status, Instant::now()));
        }
    }

    fn show(&self, labels: &OfPolicy, answer: &status::Answer) {
        let status = &answer.status;
        let metrics = &self.metrics;
        let count = |value: Option<i32>| i64::from(value.unwrap_or_default());
        metrics
            .matched
            .get_or_create(labels)
            .set(count(status.matched_pods));
        metrics
            .enforced
            .get_or_create(labels)
            .set(count(status.enforced_pods));
        metrics
            .uninjected
            .get_or_create(labels)
            .set(count(status.uninjected_pods_count));
        metrics
            .restart_needed
            .get_or_create(labels)
            .set(count(status.restart_needed_pods_count));
        metrics
            .bypassed
            .get_or_create(labels)
            .set(i64::try_from(answer.bypassed.len()).unwrap_or(i64::MAX));
        #[allow(clippy::cast_precision_loss)] // reason: a gauge for people
        metrics
            .receipts_waiting
            .get_or_create(labels)
            .set(answer.receipts_waiting as f64);
    }

    fn sink(&self, sink: &Sink, resync: bool, memory: &mut Memory, queue: &mpsc::Sender<Write>) {
        let reported = self.reports.sink(&sink.key());
        let status = status::sink_status(sink, reported.as_ref(), Timestamp::now());
        let written = memory.sinks.get(&sink.key());
        let echoes = written.is_some_and(|(written, at)| *written == status && at.elapsed() < ECHO);
        if status == sink.status || echoes {
            return;
        }
        let before = written
            .filter(|(_, at)| at.elapsed() < ECHO)
            .map_or(&sink.status, |(status, _)| status);
        // Counters move with every event: they are written with the resync alone.
        if !resync && before.conditions == status.conditions {
            return;
        }
        let write = Write {
            kind: Kind::Sink,
            namespace: sink.namespace.clone(),
            name: sink.name.clone(),
            patch: patch::<RawSink>(&sink.name, &sink.uid, &status),
        };
        if self.enqueue(queue, write) {
            memory.sinks.insert(sink.key(), (status, Instant::now()));
        }
    }

    fn enqueue(&self, queue: &mpsc::Sender<Write>, write: Write) -> bool {
        let taken = queue.try_send(write).is_ok();
        if !taken {
            self.metrics
                .status_writes
                .get_or_create(&OfWrite {
                    outcome: WriteOutcome::Overflow,
                })
                .inc();
        }
        taken
    }
}

/// Whether the new status counts fewer pods for the same generation.
fn lower(before: &DatabaseAccessPolicyStatus, after: &DatabaseAccessPolicyStatus) -> bool {
    before.observed_generation == after.observed_generation && after.enforced_pods < before.enforced_pods
}

fn label(policy: &Policy) -> OfPolicy {
    OfPolicy {
        namespace: policy.namespace.clone(),
        policy: policy.name.clone(),
    }
}

/// With the UID, so that an object that was made anew under the name is left alone.
fn patch<K: Resource<DynamicType = ()>>(
    name: &str,
    uid: &str,
    status: &impl serde::Serialize,
) -> serde_json::Value {
    serde_json::json!({
        "apiVersion": K::api_version(&()),
        "kind": K::kind(&()),
        "metadata": {"name": name, "uid": uid},
        "status": status,
    })
}

async fn perform(client: &Client, write: &Write) -> WriteOutcome {
    match write.kind {
        Kind::Policy => perform_on::<RawPolicy>(client, write).await,
        Kind::Sink => perform_on::<RawSink>(client, write).await,
    }
}

async fn perform_on<K>(client: &Client, write: &Write) -> WriteOutcome
where
    K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + std::fmt::Debug,
{
    let api: Api<K> = Api::namespaced(client.clone(), &write.namespace);
    let params = PatchParams::apply(FIELD_MANAGER).force();
    let mut outcome = WriteOutcome::Failed;
    for attempt in 0..ATTEMPTS {
        let patch = Patch::Apply(&write.patch);
        let patched =
            tokio::time::timeout(WRITE_TIMEOUT, api.patch_status(&write.name, &params, &patch)).await;
        match patched {
            Ok(Ok(_)) => return WriteOutcome::Written,
            // It was deleted, or made anew: nothing to say about it.
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409) => {
                return WriteOutcome::Written;
            }
            Ok(Err(error)) => {
                tracing::warn!(namespace = %write.namespace, name = %write.name, %error, "status not written");
                outcome = WriteOutcome::Failed;
            }
            Err(_) => outcome = WriteOutcome::TimedOut,
        }
        tokio::time::sleep(jitter(Duration::from_millis(500) * 2_u32.pow(attempt))).await;
    }
    outcome
}
