//! `Sinks.Follow`: the collector gets its sinks and hears of pods that are gone; it says how its sinks fare.

use std::sync::Arc;
use std::time::{Duration, Instant};

use control_api::client::Held;
use control_api::identity::not_after;
use control_api::peer::Peer;
use control_api::proto::sinks_server::Sinks;
use control_api::proto::{self, collector_message, collector_order};
use control_api::tls::ConnectedPeer;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use service_runtime::drain::{Drain, Stage};
use tokio::sync::{broadcast, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::reports::{Collector, Reports};
use crate::streams::{Hub, peer};
use crate::world::{Change, Sink, World};

/// Changes that come together are told together.
const DEBOUNCE: Duration = Duration::from_millis(100);
/// Secrets are read again after this: their change is not watched.
const SECRETS_AGAIN: Duration = Duration::from_secs(60);
/// One Secret may take this long.
const SECRET_TIMEOUT: Duration = Duration::from_secs(5);
/// Messages that wait to be sent.
const QUEUE: usize = 16;
/// A collector that takes nothing for this long is cut off.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);
/// Gone pods that wait to be told. A collector that falls behind connects anew and asks.
const GONE_QUEUE: usize = 4096;
/// UIDs of one message.
const GONE_MAX: usize = 1000;

/// The gRPC service.
#[derive(Clone)]
pub struct SinksService {
    client: Client,
    namespace: String,
    world: Arc<World>,
    reports: Arc<Reports>,
    hub: Arc<Hub>,
    keys: watch::Receiver<Option<Arc<Held>>>,
    drain: Drain,
    changed: watch::Sender<u64>,
    gone: broadcast::Sender<String>,
}

impl std::fmt::Debug for SinksService {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("SinksService").finish_non_exhaustive()
    }
}

impl SinksService {
    /// Without streams.
    pub fn new(
        client: Client,
        namespace: String,
        world: Arc<World>,
        reports: Arc<Reports>,
        hub: Arc<Hub>,
        keys: watch::Receiver<Option<Arc<Held>>>,
        drain: Drain,
    ) -> Self {
        Self {
            client,
            namespace,
            world,
            reports,
            hub,
            keys,
            drain,
            changed: watch::Sender::new(0),
            gone: broadcast::Sender::new(GONE_QUEUE),
        }
    }

    /// A change of the world.
    pub fn changed(&self, change: &Change) {
        match change {
            Change::Sink => self.changed.send_modify(|count| *count = count.wrapping_add(1)),
            Change::PodGone { uid, .. } => {
                // Nobody listens while there is no collector; it asks when it comes.
                let _ = self.gone.send(uid.clone());
            }
            Change::Policy { .. } | Change::PolicyStatus { .. } | Change::Pod { .. } => {}
        }
    }

    /// All sinks with their tokens. Those whose token cannot be read are left out and told in their status.
    async fn set(&self) -> proto::SinkSet {
        let mut sinks = Vec::new();
        for sink in self.world.sinks() {
            let Ok(typed) = &sink.typed else {
                continue;
            };
            let reference = typed
                .open_lineage
                .as_ref()
                .and_then(|open_lineage| open_lineage.token_secret_ref.as_ref());
            let token = match reference {
                None => Ok(String::new()),
                Some(reference) => self.token(&sink.namespace, &reference.name, &reference.key).await,
            };
            match token {
                Ok(token) => {
                    let own = sink.namespace == self.namespace;
                    sinks.push(proto::Sink {
                        namespace: sink.namespace.clone(),
                        name: sink.name.clone(),
                        uid: sink.uid.clone(),
                        generation: sink.generation,
                        spec: sink.spec.clone(),
                        events_of: if own {
                            String::new()
                        } else {
                            sink.namespace.clone()
                        },
                        token,
                    });
                }
                Err(problem) => self.unreadable(&sink, problem),
            }
        }
        proto::SinkSet { sinks }
    }

    fn unreadable(&self, sink: &Sink, problem: String) {
        let before = self.reports.sink(&sink.key()).unwrap_or_default();
        let status = proto::SinkStatus {
            sink: sink.key(),
            generation: sink.generation,
            ready: false,
            reason: "SecretUnreadable".to_owned(),
            message: problem,
            ..before
        };
        self.reports.sinks([status]);
    }

    async fn token(&self, namespace: &str, name: &str, key: &str) -> Result<String, String> {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        let secret = match tokio::time::timeout(SECRET_TIMEOUT, secrets.get(name)).await {
            Err(_) => return Err(format!("secret {namespace}/{name} could not be read in time")),
            Ok(Err(kube::Error::Api(status))) if status.code == 403 => {
                return Err(missing_right(namespace, name, &self.namespace));
            }
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => {
                return Err(format!("there is no secret {name} in namespace {namespace}"));
            }
            Ok(Err(error)) => return Err(format!("secret {namespace}/{name} cannot be read: {error}")),
            Ok(Ok(secret)) => secret,
        };
        let value = secret
            .data
            .unwrap_or_default()
            .remove(key)
            .ok_or_else(|| format!("secret {namespace}/{name} has no key {key}"))?;
        let text = String::from_utf8(value.0)
            .map_err(|_| format!("key {key} of secret {namespace}/{name} is not text"))?;
        Ok(text.trim_end_matches(['\r', '\n']).to_owned())
    }
}

/// What to do where the operator may not read a Secret.
fn missing_right(namespace: &str, secret: &str, weir: &str) -> String {
    format!(
        "the operator may not read secret {secret}: kubectl -n {namespace} create role weir-sink-{secret} --verb=get \
         --resource=secrets --resource-name={secret} && kubectl -n {namespace} create rolebinding weir-sink-{secret} \
         --role=weir-sink-{secret} --serviceaccount={weir}:weir-operator"
    )
}

#[tonic::async_trait]
impl Sinks for SinksService {
    type FollowStream = ReceiverStream<Result<proto::CollectorOrder, Status>>;

    async fn follow(
        &self,
        request: Request<Streaming<proto::CollectorMessage>>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        if peer(&request) != Some(Peer::Collector) {
            return Err(Status::permission_denied(
                "sinks are followed by the collector only",
            ));
        }
        if self.drain.stage() != Stage::Running {
            return Err(Status::unavailable("this replica is going away: connect again"));
        }
        let (sender, receiver) = mpsc::channel(QUEUE);
        let service = self.clone();
        // It connects anew with each new certificate: what this connection began with is what it has.
        let ends = request
            .extensions()
            .get::<ConnectedPeer>()
            .and_then(|connected| connected.leaf.as_ref())
            .map_or(0, not_after);
        let incoming = request.into_inner();
        // It ends with its peer or with the process.
        tokio::spawn(async move {
            let status = service.run(incoming, ends, &sender).await;
            tracing::info!(reason = %status.message(), "stream of the collector closed");
            // Either way the stream is over.
            let _ = tokio::time::timeout(SEND_TIMEOUT, sender.send(Err(status))).await;
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

type Outgoing = mpsc::Sender<Result<proto::CollectorOrder, Status>>;

impl SinksService {
    async fn run(
        &self,
        mut incoming: Streaming<proto::CollectorMessage>,
        certificate_not_after: i64,
        sender: &Outgoing,
    ) -> Status {
        let hello = match tokio::time::timeout(SEND_TIMEOUT, incoming.message()).await {
            Ok(Ok(Some(proto::CollectorMessage {
                message: Some(collector_message::Message::Hello(hello)),
            }))) => hello,
            _ => return Status::invalid_argument("the first message has to be hello"),
        };
        tracing::info!(version = %hello.version, "stream of the collector opened");
        self.hub.log_key(&hello.log_key);
        let stream = self.reports.collector_came(Collector {
            version: hello.version.chars().take(64).collect(),
            certificate_not_after,
        });
        let status = self.follow_collector(incoming, &hello, sender).await;
        self.reports.collector_went(stream);
        status
    }

    async fn follow_collector(
        &self,
        mut incoming: Streaming<proto::CollectorMessage>,
        hello: &proto::CollectorHello,
        sender: &Outgoing,
    ) -> Status {
        // First listen, then look: what goes meanwhile is in one of both.
        let mut gone = self.gone.subscribe();
        let mut changed = self.changed.subscribe();
        let mut keys = self.keys.clone();
        // The collector has the roots of now: it could not have connected otherwise.
        keys.mark_unchanged();
        let mut drain = self.drain.clone();
        let missing = self.world.missing(hello.open_pods.iter());
        for uids in missing.chunks(GONE_MAX) {
            let order = collector_order::Message::Gone(proto::PodsGone { uids: uids.to_vec() });
            if let Err(status) = send(sender, order).await {
                return status;
            }
        }
        let mut told: Option<proto::SinkSet> = None;
        let mut at = tokio::time::Instant::now();
        loop {
            tokio::select! {
                message = incoming.message() => match message {
                    Ok(Some(message)) => self.receive(message),
                    Ok(None) => return Status::ok("the collector closed it"),
                    Err(status) => return Status::aborted(status.message().to_owned()),
                },
                _ = changed.changed() => at = at.min(tokio::time::Instant::now() + DEBOUNCE),
                () = tokio::time::sleep_until(at) => {
                    at = tokio::time::Instant::now() + SECRETS_AGAIN;
                    changed.mark_unchanged();
                    let set = self.set().await;
                    if told.as_ref() != Some(&set) {
                        told = Some(set.clone());
                        if let Err(status) = send(sender, collector_order::Message::Sinks(set)).await {
                            return status;
                        }
                    }
                }
                uid = gone.recv() => {
                    let mut uids = match uid {
                        Ok(uid) => vec![uid],
                        Err(_) => return Status::unavailable("too far behind: connect again"),
                    };
                    while uids.len() < GONE_MAX && let Ok(uid) = gone.try_recv() {
                        uids.push(uid);
                    }
                    let order = collector_order::Message::Gone(proto::PodsGone { uids });
                    if let Err(status) = send(sender, order).await {
                        return status;
                    }
                }
                new = keys.changed() => {
                    if new.is_err() {
                        return Status::unavailable("this replica is going away: connect again");
                    }
                    let trust = keys.borrow_and_update().as_ref().map(|held| held.trust.to_proto());
                    if let Some(trust) = trust
                        && let Err(status) = send(sender, collector_order::Message::Trust(trust)).await
                    {
                        return status;
                    }
                }
                () = drain.reached(Stage::Draining) => {
                    return Status::unavailable("this replica is going away: connect again");
                }
                () = sender.closed() => return Status::ok("the collector closed it"),
            }
        }
    }

    fn receive(&self, message: proto::CollectorMessage) {
        match message.message {
            Some(collector_message::Message::Sinks(report)) => self.reports.sinks(report.sinks),
            Some(collector_message::Message::Lost(lost)) => {
                tracing::warn!(namespace = %lost.namespace, pod_uid = %lost.pod_uid, reason = %lost.reason, "receipts lost");
                self.reports.lost(lost, Instant::now());
            }
            Some(collector_message::Message::Hello(hello)) => self.hub.log_key(&hello.log_key),
            None => {}
        }
    }
}

#[allow(clippy::result_large_err)] // reason: tonic's own error type
async fn send(sender: &Outgoing, order: collector_order::Message) -> Result<(), Status> {
    let order = proto::CollectorOrder { message: Some(order) };
    match tokio::time::timeout(SEND_TIMEOUT, sender.send(Ok(order))).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(Status::ok("the collector closed it")),
        Err(_) => Err(Status::deadline_exceeded("the collector takes nothing")),
    }
}
