//! The stream from the operator: which sinks there are, which pods are gone, which roots count. And back: how the sinks
//! fare, which chains were lost. Without it everything goes on as it was told last.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use control_api::client::{Held, IdentityConfig, TrustUpdates, jitter, now};
use control_api::identity::Trust;
use control_api::peer::OPERATOR_NAME;
use control_api::proto::sinks_client::SinksClient;
use control_api::proto::{
    self, CollectorHello, CollectorMessage, ReceiptsLost, SinkReport, collector_message, collector_order,
};
use control_api::tls::{Alpn, client_config, connect_channel};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::ReceiverStream;

use crate::http::Job;
use crate::index::{Index, OpenChain, POD_GONE};
use crate::metrics::Metrics;
use crate::peers::Gone;
use crate::sinks::{SINKS_MAX, SinkOrder, SinkStates, write_kept};

/// Deliveries of a pod that is gone may be under way: so long its chains are left open.
const GRACE: Duration = Duration::from_secs(3);
const RETRY_FIRST: Duration = Duration::from_millis(250);
const RETRY_MAX: Duration = Duration::from_secs(15);
/// Statuses are told on change, at most so often.
const REPORT_EVERY: Duration = Duration::from_secs(1);
const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// Losses that a new stream is told of again, because an operator that restarted knows none.
const LOSSES_SECONDS: i64 = 3600;
const QUEUE: usize = 256;

/// How a collector reaches its operator.
#[derive(Debug, Clone)]
pub struct OperatorConfig {
    /// Operator, token, folder of the certificate, first roots.
    pub identity: IdentityConfig,
    /// Where pods deliver.
    pub ingest: SocketAddr,
}

pub(crate) struct Link {
    pub(crate) operator: String,
    pub(crate) held: watch::Receiver<Option<Arc<Held>>>,
    pub(crate) trust: TrustUpdates,
    pub(crate) orders: watch::Sender<Arc<Vec<SinkOrder>>>,
    pub(crate) kept: PathBuf,
    pub(crate) states: SinkStates,
    pub(crate) gone: Gone,
    pub(crate) index_path: Arc<PathBuf>,
    pub(crate) log_key: String,
    pub(crate) metrics: Metrics,
    pub(crate) lost: mpsc::Receiver<ReceiptsLost>,
}

impl Link {
    /// Connects, and again when it breaks, until `stop`.
    pub(crate) async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let mut retry = RETRY_FIRST;
        loop {
            let followed = tokio::select! {
                followed = self.follow(&mut retry) => followed,
                _ = stop.wait_for(|stop| *stop) => return,
            };
            self.metrics.operator_connected.set(0);
            if let Err(problem) = followed {
                tracing::warn!(%problem, "no stream from the operator");
            }
            tokio::select! {
                () = tokio::time::sleep(jitter(retry)) => {}
                _ = stop.wait_for(|stop| *stop) => return,
            }
            retry = (retry * 2).min(RETRY_MAX);
        }
    }

    async fn follow(&mut self, retry: &mut Duration) -> Result<(), String> {
        let held = match self.held.wait_for(Option::is_some).await {
            Ok(held) => held.clone(),
            Err(_) => return Err("no certificate will come".to_owned()),
        };
        let Some(held) = held else { return Ok(()) };
        // Each new certificate comes through here: it asks for a new connection.
        self.metrics.certificate_end.set(held.identity.not_after());
        let tls =
            client_config(&held.trust, Some(&held.identity), Alpn::H2).map_err(|error| error.to_string())?;
        let channel = connect_channel(&self.operator, OPERATOR_NAME, Arc::new(tls))
            .map_err(|error| error.to_string())?;
        let (send, outgoing) = mpsc::channel(QUEUE);
        for message in self.greeting()? {
            send.try_send(CollectorMessage {
                message: Some(message),
            })
            .map_err(|error| error.to_string())?;
        }
        let mut incoming = SinksClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .follow(ReceiverStream::new(outgoing))
            .await
            .map_err(|status| status.to_string())?
            .into_inner();
        tracing::info!("connected to the operator");
        self.metrics.operator_connected.set(1);
        *retry = RETRY_FIRST;
        let mut changes = self.states.changes();
        // What is to be told stays to be told, whatever else arrives before its time has come.
        let mut due = true;
        let mut report_at = tokio::time::Instant::now();
        loop {
            let message = tokio::select! {
                order = incoming.message() => match order {
                    Ok(Some(order)) => {
                        self.obey(order);
                        continue;
                    }
                    Ok(None) => return Ok(()),
                    Err(status) => return Err(status.to_string()),
                },
                changed = changes.changed(), if !due => {
                    changed.map_err(|error| error.to_string())?;
                    due = true;
                    continue;
                }
                () = tokio::time::sleep_until(report_at), if due => {
                    due = false;
                    // Before the states are read: what changes from here on is told again.
                    changes.mark_unchanged();
                    report_at = tokio::time::Instant::now() + REPORT_EVERY;
                    collector_message::Message::Sinks(SinkReport { sinks: self.states.all() })
                }
                lost = self.lost.recv() => match lost {
                    Some(lost) => collector_message::Message::Lost(lost),
                    None => return Ok(()),
                },
                changed = self.held.changed() => {
                    changed.map_err(|error| error.to_string())?;
                    let new = self.held.borrow_and_update().clone();
                    // Other roots hold for this connection as well; another certificate asks for a new one.
                    if new.is_some_and(|new| new.identity.chain != held.identity.chain) {
                        return Ok(());
                    }
                    continue;
                }
            };
            send.send(CollectorMessage {
                message: Some(message),
            })
            .await
            .map_err(|error| error.to_string())?;
        }
    }

    /// Hello, and what was lost lately.
    fn greeting(&self) -> Result<Vec<collector_message::Message>, String> {
        let text = |error: crate::IndexError| error.to_string();
        let index = Index::open_to_read(&self.index_path).map_err(text)?;
        let open: BTreeSet<String> = index
            .open_pod_chains()
            .map_err(text)?
            .into_iter()
            .map(|chain| chain.pod.uid)
            .collect();
        let hello = CollectorHello {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            log_key: self.log_key.clone(),
            open_pods: open.into_iter().collect(),
        };
        let since = now().saturating_sub(LOSSES_SECONDS).saturating_mul(1_000_000);
        let lost = index.lost_chains(since).map_err(text)?;
        Ok(std::iter::once(collector_message::Message::Hello(hello))
            .chain(
                lost.iter()
                    .take(QUEUE - 1)
                    .map(|chain| collector_message::Message::Lost(receipts_lost(chain))),
            )
            .collect())
    }

    fn obey(&self, order: proto::CollectorOrder) {
        match order.message {
            Some(collector_order::Message::Sinks(set)) => {
                if set.sinks.len() > SINKS_MAX {
                    tracing::error!(
                        sinks = set.sinks.len(),
                        "more sinks than {SINKS_MAX}: the last ones get nothing"
                    );
                }
                let orders: Vec<SinkOrder> = set.sinks.into_iter().map(SinkOrder::from_proto).collect();
                if let Err(error) = write_kept(&self.kept, &orders) {
                    tracing::warn!(%error, "the set of sinks cannot be kept");
                }
                self.orders.send_replace(Arc::new(orders));
            }
            Some(collector_order::Message::Gone(gone)) => {
                tracing::info!(pods = gone.uids.len(), "pods are gone");
                self.gone.add(gone.uids);
            }
            Some(collector_order::Message::Trust(bundle)) => {
                if let Err(problem) = self.trust.take(Trust::from_proto(&bundle)) {
                    tracing::warn!(%problem, "the operator sent roots that cannot be used");
                }
            }
            None => {}
        }
    }
}

fn receipts_lost(chain: &OpenChain) -> ReceiptsLost {
    ReceiptsLost {
        pod_uid: chain.pod.uid.clone(),
        namespace: chain.pod.namespace.clone(),
        boot: chain.boot.to_string(),
        reason: POD_GONE.to_owned(),
    }
}

/// Ends the chains of gone pods, a grace after they went.
pub(crate) async fn end_chains(
    gone: Gone,
    jobs: SyncSender<Job>,
    lost: mpsc::Sender<ReceiptsLost>,
    metrics: Metrics,
    mut stop: watch::Receiver<bool>,
) {
    let mut changes = gone.changes();
    // Those of before the restart too.
    changes.mark_changed();
    loop {
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            _ = stop.wait_for(|stop| *stop) => return,
        }
        tokio::select! {
            () = tokio::time::sleep(GRACE) => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
        let uids = gone.since(GRACE);
        let (answer, answered) = oneshot::channel();
        let jobs = jobs.clone();
        let sent = tokio::task::spawn_blocking(move || jobs.send(Job::End(uids, answer)).is_ok());
        if !sent.await.unwrap_or(false) {
            return;
        }
        match answered.await {
            Ok(Ok(chains)) => {
                metrics.chains_lost.inc_by(chains.len() as u64);
                for chain in &chains {
                    tracing::warn!(boot = %chain.boot, pod.uid = %chain.pod.uid, namespace = %chain.pod.namespace,
                        "a pod is gone without closing its chain");
                    // Without room, or without a stream, the next greeting tells it.
                    let _ = lost.try_send(receipts_lost(chain));
                }
            }
            Ok(Err(error)) => {
                tracing::error!(%error, "chains of gone pods cannot be ended");
                changes.mark_changed();
            }
            Err(_) => return,
        }
    }
}
