//! The delivery thread: reads signed groups back from the segment files, posts them to the collector, checks what it
//! answers, and lets segments go that a verified checkpoint covers.
//!
//! The collector's answer to `POST /v1/ingest` is an [`Answer`]: its checkpoint, a proof that the log it speaks of
//! starts with the log we saw last, and for each group a proof that its events are in it. Nothing is deleted on less.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use control_api::client::Held;
use control_api::peer::COLLECTOR_NAME;
use control_api::tls::{Alpn, client_config};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use receipts::{
    BootId, Checkpoint, Digest, Gap, GapChain, LogHead, LogKey, SignedGroup, root_of_range,
    verify_consistency,
};
use serde::{Deserialize, Serialize};

use super::read::Pending;
use super::record::{Next, Record, next};
use super::{Entry, HeldIdentity, Shared, held, now_us, segments};

/// Groups of one request, in bytes.
const REQUEST_BYTES: usize = 1 << 20;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
const ANSWER_BYTES_MAX: usize = 16 << 20;
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);
const DELIVERED_FILE: &str = "delivered.json";

/// Where the collector is.
#[derive(Debug, Clone)]
pub(super) struct Target {
    uri: hyper::Uri,
    /// With mutual TLS, by this certificate.
    identity: Option<HeldIdentity>,
}

impl Target {
    pub(super) fn parse(url: &str, identity: Option<HeldIdentity>) -> Option<Self> {
        let base: hyper::Uri = url.trim_end_matches('/').parse().ok()?;
        // A pod's receipts never go over plain HTTP, and nobody else has a certificate to show.
        let scheme = if identity.is_some() { "https" } else { "http" };
        if base.scheme_str() != Some(scheme) {
            return None;
        }
        let uri = format!("{scheme}://{}/v1/ingest", base.authority()?)
            .parse()
            .ok()?;
        Some(Self { uri, identity })
    }
}

/// What the collector acknowledged, kept beside the segments.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Delivered {
    /// Last event of each process that is in the log.
    pub(super) boots: BTreeMap<String, u64>,
    /// Key of the log, pinned.
    pub(super) log_key: Option<String>,
    /// Last verified head.
    pub(super) head: Option<LogHead>,
}

/// The collector's answer.
#[derive(Debug, Deserialize)]
struct Answer {
    log_key: String,
    checkpoint: String,
    consistency: Vec<Digest>,
    groups: Vec<Placed>,
}

/// Where a group is in the log.
#[derive(Debug, Deserialize)]
struct Placed {
    boot: BootId,
    first_seq: u64,
    index: u64,
    proof: Vec<Digest>,
}

#[derive(Debug, thiserror::Error)]
enum DeliveryError {
    #[error("the collector cannot be reached: {0}")]
    Unreachable(String),
    #[error("the collector answered {status}: {text}")]
    Status { status: u16, text: String },
    #[error("the collector's answer is not one: {0}")]
    BadAnswer(String),
    #[error("the collector's answer does not prove that it keeps the receipts: {0}")]
    NotProved(&'static str),
    #[error("cannot read the spool: {0}")]
    Io(#[from] io::Error),
}

pub(super) fn read_delivered(dir: &Path) -> DeliveredState {
    let read: Delivered = std::fs::read(dir.join(DELIVERED_FILE))
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .unwrap_or_default();
    DeliveredState {
        boots: read
            .boots
            .iter()
            .filter_map(|(boot, seq)| Some((BootId::from_hex(boot)?, *seq)))
            .collect(),
        key: read.log_key.as_deref().and_then(LogKey::from_vkey),
        head: read.head,
    }
}

/// [`Delivered`] with its types.
#[derive(Debug, Clone, Default)]
pub(super) struct DeliveredState {
    pub(super) boots: BTreeMap<BootId, u64>,
    pub(super) key: Option<LogKey>,
    pub(super) head: Option<LogHead>,
}

impl DeliveredState {
    fn write(&self, dir: &Path) -> io::Result<()> {
        let file = Delivered {
            boots: self
                .boots
                .iter()
                .map(|(boot, seq)| (boot.to_string(), *seq))
                .collect(),
            log_key: self.key.as_ref().map(LogKey::to_vkey),
            head: self.head,
        };
        let new = dir.join("delivered.json.new");
        let mut out = File::create(&new)?;
        out.write_all(&serde_json::to_vec(&file)?)?;
        out.sync_data()?;
        std::fs::rename(new, dir.join(DELIVERED_FILE))
    }
}

pub(super) fn start(
    shared: Arc<Shared>,
    target: Target,
    pinned: Option<LogKey>,
    mut state: DeliveredState,
) -> io::Result<JoinHandle<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    if pinned.is_some() {
        if state.key != pinned {
            // Another log: what was seen of the old one proves nothing about it.
            state.head = None;
            state.boots.clear();
        }
        state.key = pinned;
    }
    std::thread::Builder::new()
        .name("weir-delivery".to_owned())
        .spawn(move || {
            let client = match &target.identity {
                Some(identity) => Carrier::Tls(TlsCarrier {
                    identity: identity.clone(),
                    open: None,
                }),
                None => Carrier::Plain(Box::new(Client::builder(TokioExecutor::new()).build_http())),
            };
            let delivery = Delivery {
                shared,
                target,
                state,
                client,
                segment: 0,
                offset: 0,
                pending: Pending::default(),
                told: BTreeSet::new(),
            };
            runtime.block_on(delivery.run());
        })
}

/// What carries requests.
enum Carrier {
    Plain(Box<Client<HttpConnector, Full<Bytes>>>),
    Tls(TlsCarrier),
}

/// One connection that is kept open, over mutual TLS.
struct TlsCarrier {
    identity: HeldIdentity,
    /// With the certificate and the roots it was made by.
    open: Option<(SendRequest<Full<Bytes>>, Arc<Held>)>,
}

impl Carrier {
    async fn send(
        &mut self,
        request: hyper::Request<Full<Bytes>>,
    ) -> Result<hyper::Response<Incoming>, String> {
        match self {
            Self::Plain(client) => client.request(request).await.map_err(|error| error.to_string()),
            Self::Tls(carrier) => carrier.send(request).await,
        }
    }
}

impl TlsCarrier {
    async fn send(
        &mut self,
        request: hyper::Request<Full<Bytes>>,
    ) -> Result<hyper::Response<Incoming>, String> {
        let held = self
            .identity
            .borrow()
            .clone()
            .ok_or("this pod has no certificate yet")?;
        let (mut parts, body) = request.into_parts();
        let authority = parts.uri.authority().ok_or("no authority")?.clone();
        // Taken out: whatever fails or is given up on the way leaves no connection behind.
        let open = self
            .open
            .take()
            .filter(|(sender, by)| Arc::ptr_eq(by, &held) && !sender.is_closed());
        let mut sender = match open {
            Some((sender, _)) => sender,
            None => connect_to(&authority, &held).await?,
        };
        sender.ready().await.map_err(|error| error.to_string())?;
        if let Ok(host) = authority.as_str().parse() {
            parts.headers.insert(hyper::header::HOST, host);
        }
        parts.uri = hyper::Uri::from_static("/v1/ingest");
        let response = sender
            .send_request(hyper::Request::from_parts(parts, body))
            .await
            .map_err(|error| error.to_string())?;
        self.open = Some((sender, held));
        Ok(response)
    }
}

async fn connect_to(
    authority: &hyper::http::uri::Authority,
    held: &Held,
) -> Result<SendRequest<Full<Bytes>>, String> {
    let config =
        client_config(&held.trust, Some(&held.identity), Alpn::Http1).map_err(|error| error.to_string())?;
    let port = authority.port_u16().unwrap_or(443);
    let target = format!("{}:{port}", authority.host());
    let stream = control_api::tls::connect(&target, COLLECTOR_NAME, Arc::new(config))
        .await
        .map_err(|error| error.to_string())?;
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    // It ends with its sender; what broke it shows at the next request.
    tokio::spawn(connection);
    Ok(sender)
}

struct Delivery {
    shared: Arc<Shared>,
    target: Target,
    state: DeliveredState,
    client: Carrier,
    /// Everything before this place was delivered or skipped.
    segment: u64,
    offset: u64,
    pending: Pending,
    /// Damaged places that were told of.
    told: BTreeSet<(u64, u64)>,
}

impl Delivery {
    async fn run(mut self) {
        let mut signed = self.shared.signed.subscribe();
        let mut stop = self.shared.stop_delivery.subscribe();
        let mut retry = RETRY_FIRST;
        loop {
            let deadline = *stop.borrow_and_update();
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return;
            }
            let now = *signed.borrow_and_update();
            let result = match self.collect() {
                Ok(Some((groups, segment, offset))) => {
                    let result = self.post(&groups).await;
                    if result.is_ok() {
                        (self.segment, self.offset) = (segment, offset);
                    } else {
                        self.pending.events.clear();
                    }
                    result
                }
                Ok(None) => {
                    if now.last {
                        return;
                    }
                    tokio::select! {
                        changed = signed.changed() => if changed.is_err() { return },
                        changed = stop.changed() => if changed.is_err() { return },
                    }
                    continue;
                }
                Err(error) => Err(error.into()),
            };
            match result {
                Ok(()) => {
                    retry = RETRY_FIRST;
                    *held(&self.shared.delivery_error) = None;
                }
                Err(error) => {
                    self.failed(error.to_string());
                    let limit = deadline.map_or(retry, |deadline| {
                        retry.min(deadline.saturating_duration_since(Instant::now()))
                    });
                    tokio::select! {
                        () = tokio::time::sleep(limit) => {}
                        _ = stop.changed() => {}
                    }
                    retry = (retry * 2).min(RETRY_MAX);
                }
            }
        }
    }

    /// Keeps the reason for status pages; says it once.
    fn failed(&self, reason: String) {
        let mut last = held(&self.shared.delivery_error);
        if last.as_ref() != Some(&reason) {
            tracing::warn!(%reason, "receipts are not delivered; they stay in the spool");
        }
        *last = Some(reason);
    }

    /// The next groups that the collector does not have, and the place after them.
    fn collect(&mut self) -> io::Result<Option<(Vec<SignedGroup>, u64, u64)>> {
        let signed = *self.shared.signed.borrow();
        let (mut groups, mut size) = (Vec::new(), 0);
        for (number, path) in segments(&self.shared.dir)? {
            if number < self.segment || number > signed.segment {
                continue;
            }
            if number > self.segment {
                (self.segment, self.offset) = (number, 0);
                self.pending.events.clear();
            }
            let mut file = File::open(&path)?;
            let end = if number == signed.segment {
                signed.bytes
            } else {
                file.metadata()?.len()
            };
            file.seek(SeekFrom::Start(self.offset))?;
            let mut bytes = Vec::new();
            // At most one segment: its size is bounded.
            file.take(end.saturating_sub(self.offset))
                .read_to_end(&mut bytes)?;
            let (mut rest, mut place, mut after) = (bytes.as_slice(), self.offset, self.offset);
            self.pending.events.clear();
            loop {
                match next(rest) {
                    Next::Record(record, length) => {
                        rest = rest.get(length..).unwrap_or_default();
                        place += length as u64;
                        match record {
                            Record::Event(event) => self.pending.events.push(event.to_vec()),
                            Record::Signature(header) => {
                                after = place;
                                if let Some(group) = self.pending.sign(header) {
                                    let has = self
                                        .state
                                        .boots
                                        .get(&header.boot)
                                        .is_some_and(|seq| *seq >= header.last_seq());
                                    if has && groups.is_empty() {
                                        self.offset = place;
                                    } else if !has {
                                        size += group.events.iter().map(Vec::len).sum::<usize>();
                                        groups.push(group);
                                    }
                                    if size >= REQUEST_BYTES {
                                        return Ok(Some((groups, number, place)));
                                    }
                                }
                            }
                            Record::Start(_) | Record::Mark(_) => {}
                        }
                    }
                    Next::End => break,
                    Next::Short | Next::Damaged => {
                        if self.told.insert((number, place)) {
                            self.damaged(number, place, rest.len());
                        }
                        break;
                    }
                }
            }
            if !groups.is_empty() {
                // Events behind the last group wait for their signature.
                return Ok(Some((groups, number, after)));
            }
        }
        Ok(None)
    }

    /// A segment that cannot be read to its end: what is behind is lost, and the chain says so. Torn ends of ended
    /// processes were told at the start; they are cut off by then.
    fn damaged(&self, segment: u64, place: u64, bytes: usize) {
        tracing::error!(
            segment,
            place,
            bytes,
            "a spool segment is damaged: the receipts behind this place are lost"
        );
        let mut queue = held(&self.shared.queue);
        if queue.items.len() < super::QUEUE_MAX {
            queue.items.push_back(super::Queued {
                entry: Entry {
                    time_us: now_us(),
                    mono_us: self.shared.mono_us(),
                    session: None,
                    body: receipts::Body::Gap(Gap {
                        chain: GapChain::Unchained,
                        boot: self.shared.boot,
                        from: None,
                        to: None,
                        count: None,
                        from_us: None,
                        to_us: None,
                        reason: format!("damaged record: {bytes} bytes of segment {segment} cannot be read"),
                    }),
                },
                then: super::Then::Nothing,
            });
            self.shared.work.notify_one();
        }
    }

    async fn post(&mut self, groups: &[SignedGroup]) -> Result<(), DeliveryError> {
        let mut body = Vec::new();
        for group in groups {
            let bytes = group.encode();
            body.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
            body.extend_from_slice(&bytes);
        }
        let seen = self.state.head.map_or(0, |head| head.size);
        let request = hyper::Request::post(self.target.uri.clone())
            .header("content-type", "application/vnd.weir.groups.v1")
            .header("weir-seen-size", seen.to_string())
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| DeliveryError::BadAnswer(error.to_string()))?;
        let exchange = async {
            let response = self
                .client
                .send(request)
                .await
                .map_err(DeliveryError::Unreachable)?;
            let status = response.status();
            let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX)
                .collect()
                .await
                .map_err(|error| DeliveryError::Unreachable(error.to_string()))?
                .to_bytes();
            Ok::<_, DeliveryError>((status, body))
        };
        let (status, body) = tokio::time::timeout(REQUEST_TIMEOUT, exchange)
            .await
            .map_err(|_| DeliveryError::Unreachable("no answer in time".to_owned()))??;
        if !status.is_success() {
            let text = String::from_utf8_lossy(&body).chars().take(300).collect();
            return Err(DeliveryError::Status {
                status: status.as_u16(),
                text,
            });
        }
        let answer: Answer =
            serde_json::from_slice(&body).map_err(|error| DeliveryError::BadAnswer(error.to_string()))?;
        self.check(groups, &answer)?;
        self.state.write(&self.shared.dir)?;
        let own = self.state.boots.get(&self.shared.boot).map_or(0, |seq| seq + 1);
        *held(&self.shared.delivered_seq) = self.state.boots.clone();
        *held(&self.shared.seen_head) = self.state.head;
        self.shared.delivered.send_replace(own);
        self.shared.work.notify_one();
        self.shared.delete_done();
        Ok(())
    }

    fn check(&mut self, groups: &[SignedGroup], answer: &Answer) -> Result<(), DeliveryError> {
        let key = LogKey::from_vkey(&answer.log_key).ok_or(DeliveryError::NotProved("its key is not one"))?;
        if self.state.key.as_ref().is_some_and(|pinned| *pinned != key) {
            return Err(DeliveryError::NotProved("its key is not the one it had before"));
        }
        let checkpoint = Checkpoint::verify(&answer.checkpoint, &key)
            .map_err(|_| DeliveryError::NotProved("its checkpoint is not signed by its key"))?;
        if let Some(head) = self.state.head
            && !verify_consistency(
                head.size,
                &head.root,
                checkpoint.size,
                &checkpoint.root,
                &answer.consistency,
            )
        {
            return Err(DeliveryError::NotProved("its log is not the one it had before"));
        }
        for group in groups {
            let header = &group.header;
            let placed = answer
                .groups
                .iter()
                .find(|placed| placed.boot == header.boot && placed.first_seq == header.first_seq)
                .ok_or(DeliveryError::NotProved("a group is not in its answer"))?;
            let leaves: Vec<Digest> = group
                .events
                .iter()
                .map(|event| receipts::leaf_hash(event))
                .collect();
            if root_of_range(&leaves, placed.index, checkpoint.size, &placed.proof) != Some(checkpoint.root) {
                return Err(DeliveryError::NotProved("a group is not in its log"));
            }
        }
        for group in groups {
            let last = self.state.boots.entry(group.header.boot).or_default();
            *last = (*last).max(group.header.last_seq());
        }
        self.state.key = Some(key);
        self.state.head = Some(LogHead {
            size: checkpoint.size,
            root: checkpoint.root,
        });
        Ok(())
    }
}
