//! Replicas tell the holder of the lease what their streams say, so that one of them can write the whole status.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use control_api::client::{Held, jitter};
use control_api::peer::{OPERATOR_NAME, Peer};
use control_api::proto;
use control_api::proto::peers_client::PeersClient;
use control_api::proto::peers_server::Peers;
use control_api::tls::{Alpn, client_config, connect_channel};
use kube::Client;
use service_runtime::drain::{Drain, Stage};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::lease::{self, Holding};
use crate::reports::Reports;
use crate::streams::peer;
use crate::world::World;

/// At most so often.
const PACE: Duration = Duration::from_secs(1);
/// At least so often.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// How often the lease is looked at.
const LOOK: Duration = Duration::from_secs(5);
/// Largest report: 10,000 pods with 100 policies each.
pub const REPORT_BYTES_MAX: usize = 64 * 1024 * 1024;

/// The side of the holder.
#[derive(Debug, Clone)]
pub struct PeersService {
    /// Where reports are kept.
    pub reports: Arc<Reports>,
    /// Whether we hold the lease.
    pub holding: Holding,
    /// The end.
    pub drain: Drain,
}

#[tonic::async_trait]
impl Peers for PeersService {
    async fn report(
        &self,
        request: Request<Streaming<proto::ReplicaReport>>,
    ) -> Result<Response<proto::ReplicaReply>, Status> {
        if peer(&request) != Some(Peer::Operator) {
            return Err(Status::permission_denied(
                "only replicas of the operator report here",
            ));
        }
        let mut incoming = request.into_inner();
        let mut holding = self.holding.clone();
        let mut drain = self.drain.clone();
        let mut replica = None;
        let ended = loop {
            tokio::select! {
                message = incoming.message() => match message {
                    Ok(Some(report)) => {
                        replica = Some(report.replica.clone());
                        self.reports.merge(report, Instant::now());
                    }
                    Ok(None) => break Ok(Response::new(proto::ReplicaReply {})),
                    Err(status) => break Err(status),
                },
                changed = holding.changed() => {
                    if changed.is_err() || holding.borrow().is_none() {
                        break Err(Status::failed_precondition("this replica does not hold the lease"));
                    }
                }
                () = drain.reached(Stage::Draining) => {
                    break Err(Status::unavailable("this replica is going away"));
                }
            }
        };
        if let Some(replica) = replica {
            self.reports.replica_gone(&replica, Instant::now());
        }
        ended
    }
}

/// The side of all others.
pub struct Teller {
    /// The API server.
    pub client: Client,
    /// Weir's namespace.
    pub namespace: String,
    /// Name of our pod.
    pub pod_name: String,
    /// gRPC port of all replicas.
    pub port: u16,
    /// Where the holder's address is found.
    pub world: Arc<World>,
    /// What is told.
    pub reports: Arc<Reports>,
    /// With what we prove who we are.
    pub keys: watch::Receiver<Option<Arc<Held>>>,
    /// Whether we hold the lease ourselves.
    pub holding: Holding,
    /// The end.
    pub drain: Drain,
}

impl std::fmt::Debug for Teller {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Teller").finish_non_exhaustive()
    }
}

impl Teller {
    /// Tells the holder, whoever it is, until the process stops.
    pub async fn run(self) {
        let mut drain = self.drain.clone();
        loop {
            tokio::select! {
                () = drain.reached(Stage::Stopped) => return,
                () = self.round() => {}
            }
        }
    }

    async fn round(&self) {
        if self.holding.borrow().is_none()
            && let Some(address) = self.holder().await
            && let Err(status) = self.tell(&address.0, address.1).await
        {
            tracing::debug!(%status, holder = address.0, "the holder of the lease does not listen");
        }
        tokio::time::sleep(PACE + jitter(PACE)).await;
    }

    /// Name and address of the holder, if it is another replica.
    async fn holder(&self) -> Option<(String, SocketAddr)> {
        let holder = match lease::holder(&self.client, &self.namespace).await {
            Ok(holder) => holder.filter(|holder| *holder != self.pod_name)?,
            Err(error) => {
                tracing::debug!(%error, "the lease cannot be read");
                return None;
            }
        };
        let pod = self.world.pod_by_name(&self.namespace, &holder)?;
        let ip: std::net::IpAddr = pod.ip.as_ref()?.parse().ok()?;
        Some((holder, SocketAddr::new(ip, self.port)))
    }

    async fn tell(&self, holder: &str, address: SocketAddr) -> Result<(), Status> {
        let held = self
            .keys
            .borrow()
            .clone()
            .ok_or_else(|| Status::unavailable("no certificate yet"))?;
        let unavailable = |error: &dyn std::fmt::Display| Status::unavailable(error.to_string());
        let config = client_config(&held.trust, Some(&held.identity), Alpn::H2)
            .map_err(|error| unavailable(&error))?;
        let channel = connect_channel(&address.to_string(), OPERATOR_NAME, Arc::new(config))
            .map_err(|error| unavailable(&error))?;
        let (sender, receiver) = mpsc::channel(1);
        let mut client = PeersClient::new(channel).max_encoding_message_size(REPORT_BYTES_MAX);
        let call = client.report(Request::new(ReceiverStream::new(receiver)));
        let mut holding = self.holding.clone();
        let mut keys = self.keys.clone();
        keys.mark_unchanged();
        let feed = async {
            let mut looked = Instant::now();
            let mut told = None;
            loop {
                let report = self.reports.own(&self.pod_name);
                if told.as_ref() != Some(&report) || looked.elapsed() >= HEARTBEAT {
                    told = Some(report.clone());
                    if sender.send(report).await.is_err() {
                        return;
                    }
                }
                tokio::time::sleep(PACE).await;
                // A change, or time to look at the lease.
                let _ = tokio::time::timeout(LOOK, self.reports.changed.notified()).await;
                if looked.elapsed() >= LOOK {
                    looked = Instant::now();
                    match lease::holder(&self.client, &self.namespace).await {
                        Ok(now) if now.as_deref() != Some(holder) => return,
                        // Without the API server the last known holder is the best guess.
                        Ok(_) | Err(_) => {}
                    }
                }
            }
        };
        tokio::select! {
            reply = call => reply.map(|_| ()),
            () = feed => Ok(()),
            _ = holding.changed() => Ok(()),
            // A new certificate: a new channel.
            _ = keys.changed() => Ok(()),
        }
    }
}
