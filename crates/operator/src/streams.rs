//! `Policies.Follow`: one stream a pod. What changed for the pod is pushed, signed; what it answers is kept.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use control_api::client::{Held, jitter};
use control_api::peer::{Peer, PodIdentity};
use control_api::proto::policies_server::Policies;
use control_api::proto::{self, operator_message, sidecar_message};
use control_api::tls::ConnectedPeer;
use service_runtime::drain::{Drain, Stage as DrainStage};
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::metrics::{Answer, Metrics, OfAnswer};
use crate::reports::Reports;
use crate::snapshots::Content;
use crate::world::{Change, Pod, Stage, World};

/// Changes that come together are told together.
const DEBOUNCE: Duration = Duration::from_millis(100);
/// Pushes of many streams spread over this.
const SPREAD: Duration = Duration::from_millis(200);
/// Streams from which on pushes are spread.
const MANY: usize = 50;
/// Pushes at once.
const PUSHES_MAX: usize = 25;
/// A peer that takes nothing for this long is cut off.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);
/// A stream without a hello is closed after this.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// A new pod may reach us before the watch told of it.
const POD_TIMEOUT: Duration = Duration::from_secs(5);
/// Life of a stream, ±20 %: replicas share the work again after one of them was away.
const LIFE: Duration = Duration::from_secs(3600);
/// Messages that wait to be sent on one stream.
const QUEUE: usize = 4;
/// Snapshots without an answer that are remembered.
const UNANSWERED_MAX: usize = 16;
/// Items of each list of a report that are kept.
const ITEMS_MAX: usize = 256;

/// Makes a certificate of the capture CA: (CSR in DER, hosts) → chain and times.
pub type IssueCapture = Box<dyn Fn(&[u8], &[String]) -> Result<proto::CaptureReply, String> + Send + Sync>;

/// What streams share.
pub struct Hub {
    world: Arc<World>,
    reports: Arc<Reports>,
    metrics: Arc<Metrics>,
    keys: watch::Receiver<Option<Arc<Held>>>,
    collector: watch::Sender<proto::Collector>,
    valid: Duration,
    drain: Drain,
    streams: Mutex<HashMap<String, Live>>,
    ended: Notify,
    version: AtomicU64,
    pushes: Semaphore,
    accepts: Mutex<Bucket>,
    capture: OnceLock<IssueCapture>,
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Hub").finish_non_exhaustive()
    }
}

/// One open stream, as the hub sees it.
struct Live {
    id: u64,
    namespace: String,
    wake: Arc<Wake>,
    close: watch::Sender<Option<Close>>,
}

/// Why the hub closes a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Close {
    Replaced,
    PodGone,
}

#[derive(Default)]
struct Wake {
    notify: Notify,
    /// When the change came that was not told yet.
    since: Mutex<Option<Instant>>,
}

impl Wake {
    fn wake(&self) {
        self.since
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert_with(Instant::now);
        self.notify.notify_one();
    }

    fn take(&self) -> Option<Instant> {
        self.since.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// How many streams may begin: a burst, and so many a second after it.
struct Bucket {
    tokens: f64,
    at: Instant,
    rate: f64,
}

impl Bucket {
    fn new() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let rate = (15 + 5 * cores).min(100);
        let rate = u32::try_from(rate).map_or(100.0, f64::from);
        Self {
            tokens: 2.0 * rate,
            at: Instant::now(),
            rate,
        }
    }

    fn take(&mut self, now: Instant) -> bool {
        let grown = now.saturating_duration_since(self.at).as_secs_f64() * self.rate;
        self.tokens = (self.tokens + grown).min(2.0 * self.rate);
        self.at = now;
        let enough = self.tokens >= 1.0;
        if enough {
            self.tokens -= 1.0;
        }
        enough
    }
}

impl Hub {
    /// Without streams.
    pub fn new(
        world: Arc<World>,
        reports: Arc<Reports>,
        metrics: Arc<Metrics>,
        keys: watch::Receiver<Option<Arc<Held>>>,
        collector_url: String,
        valid: Duration,
        drain: Drain,
    ) -> Arc<Self> {
        // Versions grow over restarts: they begin at the clock, in microseconds.
        let version = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .ok()
            .and_then(|since| u64::try_from(since.as_micros()).ok())
            .unwrap_or_default();
        let (collector, _) = watch::channel(proto::Collector {
            url: collector_url,
            log_key: String::new(),
        });
        Arc::new(Self {
            world,
            reports,
            metrics,
            keys,
            collector,
            valid,
            drain,
            streams: Mutex::default(),
            ended: Notify::new(),
            version: AtomicU64::new(version),
            pushes: Semaphore::new(PUSHES_MAX),
            accepts: Mutex::new(Bucket::new()),
            capture: OnceLock::new(),
        })
    }

    /// Says who makes certificates of the capture CA.
    pub fn issue_capture_with(&self, issue: IssueCapture) {
        // Once, at the start.
        let _ = self.capture.set(issue);
    }

    /// The collector said which key its log has.
    pub fn log_key(&self, key: &str) {
        self.collector.send_if_modified(|collector| {
            let new = collector.log_key != key;
            if new {
                key.clone_into(&mut collector.log_key);
            }
            new
        });
    }

    /// A change of the world. Wakes those whom it may concern.
    pub fn changed(&self, change: &Change) {
        let streams = self.lock();
        match change {
            Change::Policy { namespace } => {
                for live in streams.values().filter(|live| live.namespace == *namespace) {
                    live.wake.wake();
                }
            }
            Change::Pod { uid, .. } => {
                if let Some(live) = streams.get(uid) {
                    live.wake.wake();
                }
            }
            Change::PodGone { uid, .. } => {
                if let Some(live) = streams.get(uid) {
                    live.close.send_replace(Some(Close::PodGone));
                }
                drop(streams);
                self.reports.forget(uid);
            }
            Change::PolicyStatus { .. } | Change::Sink => {}
        }
    }

    /// Waits until every stream ended (they end by themselves when the process drains).
    pub async fn all_ended(&self) {
        loop {
            let ended = self.ended.notified();
            if self.lock().is_empty() {
                return;
            }
            ended.await;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Live>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next(&self) -> u64 {
        self.version.fetch_add(1, Ordering::Relaxed)
    }

    /// The pod behind a certificate, if it still is what the certificate says.
    async fn pod(&self, identity: &PodIdentity) -> Result<Arc<Pod>, Status> {
        let deadline = Instant::now() + POD_TIMEOUT;
        loop {
            match self.world.pod_by_uid(&identity.pod_uid) {
                Some(pod) => {
                    let same = pod.namespace == identity.namespace
                        && pod.service_account == identity.service_account;
                    return if !same {
                        Err(Status::permission_denied(
                            "this certificate is for a pod with another namespace or service account",
                        ))
                    } else if pod.stage == Stage::Finished {
                        Err(Status::permission_denied("this pod has ended"))
                    } else {
                        Ok(pod)
                    };
                }
                None if Instant::now() < deadline => tokio::time::sleep(Duration::from_millis(50)).await,
                None => {
                    return Err(Status::permission_denied(
                        "there is no pod with the UID of this certificate",
                    ));
                }
            }
        }
    }

    fn register(&self, pod: &Pod) -> (u64, Arc<Wake>, watch::Receiver<Option<Close>>) {
        let id = self.next();
        let wake = Arc::new(Wake::default());
        let (close, closed) = watch::channel(None);
        let old = self.lock().insert(
            pod.uid.clone(),
            Live {
                id,
                namespace: pod.namespace.clone(),
                wake: Arc::clone(&wake),
                close,
            },
        );
        match old {
            Some(old) => {
                old.close.send_replace(Some(Close::Replaced));
            }
            None => {
                self.metrics.streams.inc();
            }
        }
        (id, wake, closed)
    }

    fn unregister(&self, uid: &str, id: u64) {
        let mut streams = self.lock();
        if streams.get(uid).is_some_and(|live| live.id == id) {
            streams.remove(uid);
            self.metrics.streams.dec();
            drop(streams);
            self.reports.disconnected(uid, Instant::now());
        }
        self.ended.notify_waiters();
    }
}

/// Who asks, from the certificate alone.
///
/// # Errors
/// When there is none, or it is of no pod.
#[allow(clippy::result_large_err)] // reason: tonic's own error type
pub fn pod_identity<T>(request: &Request<T>) -> Result<PodIdentity, Status> {
    match peer(request) {
        Some(Peer::Pod(identity)) => Ok(identity),
        Some(Peer::Operator | Peer::Collector) => {
            Err(Status::permission_denied("policies are followed by pods only"))
        }
        None => Err(Status::unauthenticated(
            "a client certificate is needed: ask for one with Identity.Issue",
        )),
    }
}

/// Who asks, from the certificate alone.
pub fn peer<T>(request: &Request<T>) -> Option<Peer> {
    request
        .extensions()
        .get::<ConnectedPeer>()
        .and_then(|connected| connected.peer.clone())
}

/// The gRPC service.
#[derive(Debug, Clone)]
pub struct PoliciesService {
    /// What streams share.
    pub hub: Arc<Hub>,
}

#[tonic::async_trait]
impl Policies for PoliciesService {
    type FollowStream = ReceiverStream<Result<proto::OperatorMessage, Status>>;

    async fn follow(
        &self,
        request: Request<Streaming<proto::SidecarMessage>>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        let hub = Arc::clone(&self.hub);
        let admitted = async {
            let identity = pod_identity(&request)?;
            if hub.drain.stage() != DrainStage::Running {
                return Err(Status::unavailable("this replica is going away: connect again"));
            }
            let free = hub
                .accepts
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take(Instant::now());
            if !free {
                return Err(Status::unavailable(
                    "too many streams begin at once: connect again in a moment",
                ));
            }
            hub.pod(&identity).await
        }
        .await;
        let pod = admitted.inspect_err(|status| {
            hub.metrics.streams_refused.inc();
            tracing::debug!(%status, "stream refused");
        })?;
        let (sender, receiver) = mpsc::channel(QUEUE);
        let stream = Stream {
            incoming: request.into_inner(),
            sender,
            hub,
            pod,
            current: None,
            unanswered: VecDeque::new(),
            version_min: 0,
        };
        // It ends with its peer, its pod or the process (`Hub::all_ended` waits for it).
        tokio::spawn(stream.run());
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn issue_capture(
        &self,
        request: Request<proto::CaptureRequest>,
    ) -> Result<Response<proto::CaptureReply>, Status> {
        let identity = pod_identity(&request)?;
        let pod = self.hub.pod(&identity).await?;
        let selectors = self.hub.world.selectors(&pod.namespace);
        let mut hosts: Vec<String> = selectors
            .matching(&pod.namespace, &pod.labels)
            .into_iter()
            .filter_map(|index| selectors.policies().get(index))
            .flat_map(|policy| policy.capture_hosts())
            .collect();
        hosts.sort();
        hosts.dedup();
        if hosts.is_empty() {
            return Err(Status::failed_precondition(
                "no policy of this pod says clientTLS.mode: Serve without a certificateSecretRef",
            ));
        }
        let issue = self
            .hub
            .capture
            .get()
            .ok_or_else(|| Status::unavailable("this operator has no capture CA yet"))?;
        issue(&request.get_ref().csr, &hosts)
            .map(Response::new)
            .map_err(Status::invalid_argument)
    }
}

/// One stream, from the inside.
struct Stream {
    incoming: Streaming<proto::SidecarMessage>,
    sender: mpsc::Sender<Result<proto::OperatorMessage, Status>>,
    hub: Arc<Hub>,
    pod: Arc<Pod>,
    current: Option<Content>,
    /// Snapshots that were sent: version, and policies with their generations.
    unanswered: VecDeque<(u64, Vec<(String, i64)>)>,
    /// The next version is at least this: another replica, with another clock, may have sent the one before.
    version_min: u64,
}

impl Stream {
    async fn run(mut self) {
        let uid = self.pod.uid.clone();
        let Some(hello) = self.hello().await else {
            self.end(Status::invalid_argument("the first message has to be hello"))
                .await;
            return;
        };
        self.version_min = hello.version_in_force.saturating_add(1);
        let (id, wake, closed) = self.hub.register(&self.pod);
        self.hub
            .reports
            .connected(&self.pod.namespace, &self.pod.name, &uid, &hello);
        // It may have gone between the look and the registration; nobody would tell us any more.
        if self.hub.world.pod_by_uid(&uid).is_some() {
            tracing::info!(namespace = %self.pod.namespace, pod = %self.pod.name, version = %hello.version, "stream opened");
            let status = self.follow(&wake, closed).await;
            tracing::info!(namespace = %self.pod.namespace, pod = %self.pod.name, reason = %status.message(), "stream closed");
            self.end(status).await;
        } else {
            self.end(Status::permission_denied("this pod is gone")).await;
        }
        self.hub.unregister(&uid, id);
    }

    async fn hello(&mut self) -> Option<proto::Hello> {
        let first = tokio::time::timeout(HELLO_TIMEOUT, self.incoming.message()).await;
        match first.ok()?.ok()??.message? {
            sidecar_message::Message::Hello(hello) => Some(hello),
            _ => None,
        }
    }

    /// Says why, if the peer still listens.
    async fn end(&self, status: Status) {
        // Either way the stream is over.
        let _ = tokio::time::timeout(SEND_TIMEOUT, self.sender.send(Err(status))).await;
    }

    async fn follow(&mut self, wake: &Wake, mut closed: watch::Receiver<Option<Close>>) -> Status {
        let mut drain = self.hub.drain.clone();
        let mut keys = self.hub.keys.clone();
        let mut collector = self.hub.collector.subscribe();
        let mut trust = keys
            .borrow_and_update()
            .as_ref()
            .map(|held| held.trust.to_proto());
        let life = LIFE.mul_f64(0.8) + jitter(LIFE.mul_f64(0.4));
        let life = tokio::time::sleep(life);
        tokio::pin!(life);
        let mut push_at = Some(tokio::time::Instant::now());
        let mut renew_at = tokio::time::Instant::now() + self.hub.valid / 2;
        let mut force = true;
        loop {
            let due = push_at.map_or(renew_at, |at| at.min(renew_at));
            tokio::select! {
                message = self.incoming.message() => match message {
                    Ok(Some(message)) => self.receive(message),
                    Ok(None) => return Status::ok("the sidecar closed it"),
                    Err(status) => return Status::aborted(status.message().to_owned()),
                },
                () = wake.notify.notified() => {
                    push_at = push_at.or_else(|| Some(tokio::time::Instant::now() + DEBOUNCE + self.spread()));
                }
                changed = collector.changed() => {
                    // The sender lives in the hub.
                    let _ = changed;
                    push_at = push_at.or_else(|| Some(tokio::time::Instant::now() + DEBOUNCE));
                }
                () = tokio::time::sleep_until(due) => {
                    let renew = renew_at <= due;
                    push_at = None;
                    let since = wake.take();
                    match self.push(force || renew, since).await {
                        Ok(true) => {
                            force = false;
                            renew_at = tokio::time::Instant::now() + (self.hub.valid / 2).mul_f64(0.9)
                                + jitter((self.hub.valid / 2).mul_f64(0.1));
                        }
                        Ok(false) => {}
                        Err(status) => return status,
                    }
                }
                changed = keys.changed() => {
                    if changed.is_err() {
                        return Status::unavailable("this replica is going away: connect again");
                    }
                    let new = keys.borrow_and_update().as_ref().map(|held| held.trust.to_proto());
                    if let Some(bundle) = new.clone() && new != trust {
                        trust = new;
                        if let Err(status) = self.send(operator_message::Message::Trust(bundle)).await {
                            return status;
                        }
                    }
                    // The first key came after us, or the signer moved to another issuer.
                    if force {
                        push_at = Some(tokio::time::Instant::now());
                    }
                }
                _ = closed.changed() => {
                    let why = *closed.borrow();
                    return match why {
                        Some(Close::PodGone) => Status::permission_denied("this pod is gone"),
                        Some(Close::Replaced) | None => {
                            Status::aborted("another stream of this pod took its place")
                        }
                    };
                }
                () = drain.reached(DrainStage::Draining) => {
                    return Status::unavailable("this replica is going away: connect again");
                }
                () = &mut life => return Status::unavailable("this stream is old: connect again"),
                () = self.sender.closed() => return Status::ok("the sidecar closed it"),
            }
        }
    }

    fn spread(&self) -> Duration {
        if self.hub.lock().len() > MANY {
            jitter(SPREAD)
        } else {
            Duration::ZERO
        }
    }

    /// Sends a snapshot, if it says something new or `force` is set. False: nothing was sent.
    #[allow(clippy::result_large_err)] // reason: tonic's own error type
    async fn push(&mut self, force: bool, since: Option<Instant>) -> Result<bool, Status> {
        let hub = Arc::clone(&self.hub);
        if let Some(pod) = hub.world.pod_by_uid(&self.pod.uid) {
            self.pod = pod;
        }
        let collector = hub.collector.borrow().clone();
        let content = hub
            .world
            .selectors(&self.pod.namespace)
            .content(&self.pod, &collector);
        let news = self
            .current
            .as_ref()
            .is_none_or(|current| current.differs(&content));
        if !force && !news {
            return Ok(false);
        }
        let Some(held) = hub.keys.borrow().clone() else {
            // Comes with the key: see `keys.changed()`.
            return Ok(false);
        };
        let _permit = hub.pushes.acquire().await;
        let version = hub.next().max(self.version_min);
        self.version_min = version.saturating_add(1);
        let issued_at = control_api::client::now();
        let valid = i64::try_from(hub.valid.as_secs()).unwrap_or(i64::MAX);
        let snapshot = content.snapshot(version, issued_at, issued_at.saturating_add(valid));
        let signed = control_api::signed::sign(&snapshot, &held.identity)
            .map_err(|problem| Status::internal(problem.to_string()))?;
        if self.unanswered.len() >= UNANSWERED_MAX {
            self.unanswered.pop_front();
        }
        self.unanswered.push_back((version, content.generations()));
        self.current = Some(content);
        self.send(operator_message::Message::Snapshot(signed)).await?;
        hub.metrics.snapshots_pushed.inc();
        if let Some(since) = since {
            hub.metrics.push_seconds.observe(since.elapsed().as_secs_f64());
        }
        Ok(true)
    }

    #[allow(clippy::result_large_err)] // reason: tonic's own error type
    async fn send(&self, message: operator_message::Message) -> Result<(), Status> {
        let message = proto::OperatorMessage {
            message: Some(message),
        };
        match tokio::time::timeout(SEND_TIMEOUT, self.sender.send(Ok(message))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Status::ok("the sidecar closed it")),
            Err(_) => Err(Status::deadline_exceeded("the sidecar takes nothing")),
        }
    }

    fn receive(&mut self, message: proto::SidecarMessage) {
        let hub = Arc::clone(&self.hub);
        match message.message {
            Some(sidecar_message::Message::Ack(ack)) => {
                hub.metrics
                    .answers
                    .get_or_create(&OfAnswer { answer: Answer::Ack })
                    .inc();
                let Some(policies) = self.answered(ack.version) else {
                    return;
                };
                hub.reports.update(&self.pod.uid, |report| {
                    report.policies = acknowledged(&policies, &ack.problems);
                });
            }
            Some(sidecar_message::Message::Nack(nack)) => {
                hub.metrics
                    .answers
                    .get_or_create(&OfAnswer { answer: Answer::Nack })
                    .inc();
                let Some(policies) = self.answered(nack.version) else {
                    return;
                };
                tracing::warn!(namespace = %self.pod.namespace, pod = %self.pod.name, problems = nack.problems.len(), "snapshot refused");
                hub.reports.update(&self.pod.uid, |report| {
                    report.policies = refused(&policies, &nack.problems, &report.policies);
                });
            }
            Some(sidecar_message::Message::Report(mut said)) => {
                said.unresolved.truncate(ITEMS_MAX);
                said.bypasses.truncate(ITEMS_MAX);
                hub.reports
                    .update(&self.pod.uid, |report| report.report = Some(said));
            }
            // A second hello says nothing new.
            Some(sidecar_message::Message::Hello(_)) | None => {}
        }
    }

    /// The policies of the snapshot that is answered. Older ones will not be answered any more.
    fn answered(&mut self, version: u64) -> Option<Vec<(String, i64)>> {
        let at = self.unanswered.iter().position(|(sent, _)| *sent == version)?;
        self.unanswered.drain(..at);
        self.unanswered.pop_front().map(|(_, policies)| policies)
    }
}

/// All of a snapshot's policies are in force, but for those with a problem.
fn acknowledged(policies: &[(String, i64)], problems: &[proto::PolicyProblem]) -> Vec<proto::PolicyAck> {
    policies
        .iter()
        .map(|(policy, generation)| {
            let problem = problems.iter().find(|problem| problem.policy == *policy);
            proto::PolicyAck {
                policy: policy.clone(),
                generation: *generation,
                reason: problem.map(reason).unwrap_or_default(),
                message: problem.map(|problem| problem.message.clone()).unwrap_or_default(),
            }
        })
        .collect()
}

/// Nothing of the snapshot is in force; what was in force before stays.
fn refused(
    policies: &[(String, i64)],
    problems: &[proto::PolicyProblem],
    before: &[proto::PolicyAck],
) -> Vec<proto::PolicyAck> {
    let culprit = problems
        .first()
        .map(|problem| {
            format!(
                "the sidecar refused the snapshot because of policy {}",
                problem.policy
            )
        })
        .unwrap_or_else(|| "the sidecar refused the snapshot".to_owned());
    policies
        .iter()
        .map(|(policy, generation)| {
            let problem = problems.iter().find(|problem| problem.policy == *policy);
            let in_force = before
                .iter()
                .find(|ack| ack.policy == *policy && ack.generation == *generation);
            match (problem, in_force) {
                (Some(problem), _) => proto::PolicyAck {
                    policy: policy.clone(),
                    generation: *generation,
                    reason: reason(problem),
                    message: problem.message.clone(),
                },
                (None, Some(in_force)) => in_force.clone(),
                (None, None) => proto::PolicyAck {
                    policy: policy.clone(),
                    generation: *generation,
                    reason: "Refused".to_owned(),
                    message: culprit.clone(),
                },
            }
        })
        .collect()
}

/// A problem without a reason is still a problem.
fn reason(problem: &proto::PolicyProblem) -> String {
    if problem.reason.is_empty() {
        "Refused".to_owned()
    } else {
        problem.reason.clone()
    }
}
