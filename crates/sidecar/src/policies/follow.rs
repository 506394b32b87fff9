//! The stream from the operator: hello, snapshots with their answers, reports. It is begun again whenever it ends.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use control_api::client::{Held, TrustUpdates, jitter, now};
use control_api::identity::Trust;
use control_api::peer::OPERATOR_NAME;
use control_api::proto::policies_client::PoliciesClient;
use control_api::proto::{self, operator_message, sidecar_message};
use control_api::signed::SNAPSHOT_BYTES_MAX;
use control_api::tls::{Alpn, client_config, connect_channel};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;

use super::kept::KeptSnapshot;
use super::stream::{Answer, StreamedPolicies};

const RETRY_FIRST: Duration = Duration::from_millis(250);
const RETRY_MAX: Duration = Duration::from_secs(15);
/// The operator has this long to take the stream up.
const BEGIN_TIMEOUT: Duration = Duration::from_secs(15);
/// How often is looked for something to report.
const LOOK: Duration = Duration::from_secs(1);
/// A report is sent at least that often.
const REPORT: Duration = Duration::from_secs(30);
/// Messages that wait to be sent.
const QUEUE: usize = 8;

/// What the sidecar sees, once there is something to see.
pub type MakeReport = Box<dyn Fn() -> proto::Report + Send + Sync>;

/// Follows the operator.
pub struct Follow {
    /// `host:port`
    pub operator: String,
    /// The pod's certificate.
    pub identity: watch::Receiver<Option<Arc<Held>>>,
    /// For roots that the stream tells of.
    pub trust: TrustUpdates,
    /// Where snapshots go.
    pub policies: Arc<StreamedPolicies>,
    /// Where the last good one is kept.
    pub kept: KeptSnapshot,
    /// `host:port` of each captured endpoint.
    pub captured: Vec<String>,
    /// Chain of receipts, once it is open.
    pub boot: Arc<OnceLock<String>>,
    /// What is reported.
    pub report: MakeReport,
}

impl std::fmt::Debug for Follow {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Follow")
            .field("operator", &self.operator)
            .finish_non_exhaustive()
    }
}

impl Follow {
    /// Follows until the task is dropped.
    pub async fn run(mut self) {
        let mut retry = RETRY_FIRST;
        let mut told = String::new();
        loop {
            let held = match self.identity.wait_for(Option::is_some).await {
                Ok(held) => held.clone(),
                // Whoever obtains certificates is gone: the process ends.
                Err(_) => return,
            };
            let Some(held) = held else { continue };
            self.identity.mark_unchanged();
            let mut served = false;
            let ended = self.stream(&held, &mut served).await;
            if served {
                retry = RETRY_FIRST;
            }
            let Err(error) = ended else {
                // A new certificate: at once, with it.
                continue;
            };
            if served || told != error {
                tracing::warn!(%error, "no stream from the operator; the policies in force stay");
                told = error;
            }
            tokio::time::sleep(jitter(retry)).await;
            retry = (retry * 2).min(RETRY_MAX);
        }
    }

    /// One stream. `Ok`: the certificate or the roots changed.
    async fn stream(&mut self, held: &Held, served: &mut bool) -> Result<(), String> {
        let config =
            client_config(&held.trust, Some(&held.identity), Alpn::H2).map_err(|error| error.to_string())?;
        let channel = connect_channel(&self.operator, OPERATOR_NAME, Arc::new(config))
            .map_err(|error| error.to_string())?;
        let (sender, receiver) = mpsc::channel(QUEUE);
        send(&sender, sidecar_message::Message::Hello(self.hello())).await?;
        let mut client =
            PoliciesClient::new(channel).max_decoding_message_size(SNAPSHOT_BYTES_MAX + (1 << 20));
        let mut incoming = tokio::time::timeout(BEGIN_TIMEOUT, client.follow(ReceiverStream::new(receiver)))
            .await
            .map_err(|_| "no answer in time".to_owned())?
            .map_err(|status| format!("{:?}: {}", status.code(), status.message()))?
            .into_inner();
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut reported: Option<(proto::Report, tokio::time::Instant)> = None;
        loop {
            tokio::select! {
                message = incoming.message() => {
                    let message = message
                        .map_err(|status| format!("{:?}: {}", status.code(), status.message()))?
                        .ok_or("the operator ended the stream")?;
                    match message.message {
                        Some(operator_message::Message::Snapshot(snapshot)) => {
                            *served = true;
                            let answer = match self.policies.take(&snapshot, &held.trust, now()) {
                                Answer::Ack(ack) => {
                                    // Kept before it is acknowledged. Without a disk it is in force all the same.
                                    if let Err(error) = self.kept.write(&snapshot) {
                                        tracing::error!(%error, "the snapshot cannot be kept: a restart would need the operator");
                                    }
                                    sidecar_message::Message::Ack(ack)
                                }
                                Answer::Nack(nack) => sidecar_message::Message::Nack(nack),
                            };
                            send(&sender, answer).await?;
                        }
                        Some(operator_message::Message::Trust(bundle)) => {
                            if let Err(error) = self.trust.take(Trust::from_proto(&bundle)) {
                                tracing::error!(%error, "roots from the operator cannot be used");
                            }
                        }
                        // Of a newer operator.
                        None => {}
                    }
                }
                changed = self.identity.changed() => {
                    return changed.map_err(|_| "the process ends".to_owned());
                }
                _ = looks.tick() => {
                    let report = (self.report)();
                    let due = reported
                        .as_ref()
                        .is_none_or(|(last, at)| at.elapsed() >= REPORT || differs(last, &report));
                    if due {
                        send(&sender, sidecar_message::Message::Report(report.clone())).await?;
                        reported = Some((report, tokio::time::Instant::now()));
                    }
                }
            }
        }
    }

    fn hello(&self) -> proto::Hello {
        let header = self.policies.header().borrow().clone();
        let (version_in_force, hash_in_force) =
            header.map_or((0, Vec::new()), |header| (header.version, header.hash));
        proto::Hello {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            captured: self.captured.clone(),
            version_in_force,
            hash_in_force,
            boot: self.boot.get().cloned().unwrap_or_default(),
        }
    }
}

/// Receipts come and go with every statement: their number alone is no news.
fn differs(last: &proto::Report, new: &proto::Report) -> bool {
    let last = proto::Report {
        receipts_waiting: new.receipts_waiting,
        ..last.clone()
    };
    last != *new
}

async fn send(
    sender: &mpsc::Sender<proto::SidecarMessage>,
    message: sidecar_message::Message,
) -> Result<(), String> {
    let message = proto::SidecarMessage {
        message: Some(message),
    };
    sender
        .send_timeout(message, BEGIN_TIMEOUT)
        .await
        .map_err(|_| "the operator takes nothing more".to_owned())
}
