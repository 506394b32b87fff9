//! The collector as part of a cluster: a small operator of ours issues its certificate and gives the orders.

use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;
use control_api::identity::{Identity, Trust};
use control_api::peer::COLLECTOR_NAME;
use control_api::proto::collector_message::Message as FromCollector;
use control_api::proto::collector_order::Message as Order;
use control_api::proto::identity_server::{Identity as IdentityService, IdentityServer};
use control_api::proto::sinks_server::{Sinks, SinksServer};
use control_api::proto::{self, IssueReply, IssueRequest};
use control_api::tls::{Alpn, ClientAuth, client_config, connect, incoming, server_config};
use receipts::{Body, ChainClose, SignedGroup};
use serde_json::Value;
use test_support::authority::{Authority, Leaf, Signer};
use test_support::{Process, Signal, free_port, wait_for};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{broadcast, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::{Sidecar, server};

fn identity(leaf: Leaf) -> Identity {
    Identity::from_der(leaf.chain, leaf.key)
}

fn trust(authority: &Authority) -> Trust {
    Trust::from_pem(&authority.root_pem()).unwrap()
}

#[derive(Clone)]
struct Operator {
    authority: Arc<Authority>,
    sinks: proto::SinkSet,
    orders: broadcast::Sender<Order>,
    heard: Arc<Mutex<Vec<FromCollector>>>,
}

#[tonic::async_trait]
impl IdentityService for Operator {
    async fn issue(&self, request: Request<IssueRequest>) -> Result<Response<IssueReply>, Status> {
        let spec = self.authority.spec(
            "spiffe://td/weir/collector",
            Some(COLLECTOR_NAME),
            Signer::Control,
        );
        let chain = self
            .authority
            .sign_request(&spec, &request.into_inner().csr)
            .unwrap();
        let now = control_api::client::now();
        Ok(Response::new(IssueReply {
            chain,
            trust: Some(trust(&self.authority).to_proto()),
            not_after: now + 3600,
            renew_at: now + 1800,
        }))
    }
}

#[tonic::async_trait]
impl Sinks for Operator {
    type FollowStream = ReceiverStream<Result<proto::CollectorOrder, Status>>;

    async fn follow(
        &self,
        request: Request<Streaming<proto::CollectorMessage>>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        let (send, receive) = mpsc::channel(16);
        let (operator, mut messages, mut orders) =
            (self.clone(), request.into_inner(), self.orders.subscribe());
        let order = |message| {
            Ok(proto::CollectorOrder {
                message: Some(message),
            })
        };
        send.try_send(order(Order::Sinks(self.sinks.clone()))).unwrap();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    message = messages.message() => match message {
                        Ok(Some(message)) => operator.heard.lock().unwrap().extend(message.message),
                        Ok(None) | Err(_) => return,
                    },
                    Ok(message) = orders.recv() => send.send(order(message)).await.unwrap(),
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receive)))
    }
}

impl Operator {
    /// Its address.
    async fn serve(&self) -> String {
        let identity = identity(self.authority.operator().unwrap());
        let config =
            server_config(&trust(&self.authority), &identity, ClientAuth::Optional, Alpn::H2).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let router = tonic::transport::Server::builder()
            .add_service(IdentityServer::new(self.clone()))
            .add_service(SinksServer::new(self.clone()));
        let connections = incoming(listener, Arc::new(ArcSwap::from_pointee(config)));
        tokio::spawn(router.serve_with_incoming(connections));
        address
    }

    /// What the last report said of a sink.
    fn delivered(&self, sink: &str) -> Option<u64> {
        let heard = self.heard.lock().unwrap();
        let last = heard.iter().rev().find_map(|message| match message {
            FromCollector::Sinks(report) => Some(report),
            FromCollector::Hello(_) | FromCollector::Lost(_) => None,
        })?;
        let state = last.sinks.iter().find(|state| state.sink == sink)?;
        Some(state.delivered)
    }

    fn lost(&self) -> Vec<proto::ReceiptsLost> {
        self.heard
            .lock()
            .unwrap()
            .iter()
            .filter_map(|message| match message {
                FromCollector::Lost(lost) => Some(lost.clone()),
                FromCollector::Hello(_) | FromCollector::Sinks(_) => None,
            })
            .collect()
    }
}

fn sink(namespace: &str, events_of: &str) -> proto::Sink {
    proto::Sink {
        namespace: namespace.to_owned(),
        name: "lines".to_owned(),
        uid: format!("uid-of-{namespace}"),
        generation: 1,
        spec: r#"{"stdout":{}}"#.to_owned(),
        events_of: events_of.to_owned(),
        token: String::new(),
    }
}

fn start(dir: &Path, operator: &str, ingest: u16) -> (Process, String) {
    let log = dir.join("output");
    let before = std::fs::read_to_string(&log).unwrap_or_default().len();
    let mut command = Command::new(env!("CARGO_BIN_EXE_weir-collector"));
    command
        .args(["--listen", "127.0.0.1:0", "--operator", operator])
        .args(["--ingest", &format!("127.0.0.1:{ingest}")])
        .arg("--data-dir")
        .arg(dir.join("data"))
        .arg("--token-file")
        .arg(dir.join("token"))
        .arg("--identity-dir")
        .arg(dir.join("identity"))
        .arg("--trust-bundle-file")
        .arg(dir.join("roots.pem"));
    let process = Process::start(command, &log, Signal::Kill).unwrap();
    let address = wait_for("the collector's address", 30, || {
        process.log().get(before..)?.lines().find_map(|line| {
            Some(
                line.strip_prefix("weir-collector listens on ")?
                    .split(',')
                    .next()?
                    .to_owned(),
            )
        })
    })
    .unwrap();
    (process, address)
}

/// Status of one delivery, or why there was none.
async fn deliver(
    ingest: u16,
    trust: &Trust,
    who: Option<&Identity>,
    groups: &[SignedGroup],
) -> Result<u16, String> {
    let mut body = Vec::new();
    for group in groups {
        let bytes = group.encode();
        body.extend_from_slice(&u32::try_from(bytes.len()).unwrap().to_be_bytes());
        body.extend_from_slice(&bytes);
    }
    let config = client_config(trust, who, Alpn::Http1).map_err(|error| error.to_string())?;
    let address = format!("127.0.0.1:{ingest}");
    let exchange = async {
        let mut stream = connect(&address, COLLECTOR_NAME, Arc::new(config)).await?;
        let head = format!(
            "POST /v1/ingest HTTP/1.1\r\nhost: weir\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(&body).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        std::io::Result::Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    let answer = exchange.await.map_err(|error| error.to_string())?;
    answer
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .ok_or_else(|| format!("no answer: `{answer}`"))
}

fn lines(process: &Process, sink: &str) -> Vec<Value> {
    process
        .log()
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|line| line["sink"] == sink)
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_deliver_and_their_chains_end_with_them() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Arc::new(Authority::new("td").unwrap());
    let trust = trust(&authority);
    std::fs::write(dir.path().join("token"), "token").unwrap();
    std::fs::write(dir.path().join("roots.pem"), authority.root_pem()).unwrap();
    let operator = Operator {
        authority: Arc::clone(&authority),
        sinks: proto::SinkSet {
            sinks: vec![
                sink("weir-system", ""),
                sink("shop", "shop"),
                sink("other", "other"),
            ],
        },
        orders: broadcast::channel(16).0,
        heard: Arc::default(),
    };
    let address = operator.serve().await;
    let ingest = free_port().unwrap();
    let (process, pages) = start(dir.path(), &address, ingest);
    wait_for("it is ready", 30, || {
        server::exchange(&pages, "GET /readyz", b"")
            .ok()
            .filter(|(status, _)| *status == 200)
    })
    .unwrap();
    wait_for("cursors of three sinks", 20, || {
        let files = std::fs::read_dir(dir.path().join("data/sinks")).ok()?.flatten();
        (files
            .filter(|file| file.path().extension().is_some_and(|end| end == "json"))
            .count()
            == 4)
            .then_some(())
    })
    .unwrap();

    // Orders that come all the time must not keep the collector from telling how its sinks stand.
    let orders = operator.orders.clone();
    let busy = tokio::spawn(async move {
        let nobody = proto::PodsGone {
            uids: vec!["nobody".to_owned()],
        };
        loop {
            let _ = orders.send(Order::Gone(nobody.clone()));
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    });
    let pod = identity(authority.pod("shop", "report-agent", "uid-1").unwrap());
    let other = identity(authority.pod("shop", "report-agent", "uid-2").unwrap());
    let (mut first, mut second) = (Sidecar::new(1), Sidecar::new(2));
    let groups = [first.open(), first.reads(2)];
    // Nobody without a certificate, nobody who is not a pod, and not over the pages.
    assert!(deliver(ingest, &trust, None, &groups).await.is_err());
    let control = identity(authority.collector().unwrap());
    assert!(deliver(ingest, &trust, Some(&control), &groups).await.is_err());
    assert_eq!(server::exchange(&pages, "POST /v1/ingest", b"x").unwrap().0, 404);

    assert_eq!(deliver(ingest, &trust, Some(&pod), &groups).await, Ok(200));
    assert_eq!(
        deliver(ingest, &trust, Some(&pod), &groups).await,
        Ok(200),
        "sent again"
    );
    let more = [first.reads(1)];
    assert_eq!(
        deliver(ingest, &trust, Some(&other), &more).await,
        Ok(403),
        "another pod's chain"
    );
    // Ends in order.
    let whole = [
        second.open(),
        second.group(vec![(
            None,
            Body::ChainClose(ChainClose {
                reason: "drain".to_owned(),
            }),
        )]),
    ];
    assert_eq!(deliver(ingest, &trust, Some(&other), &whole).await, Ok(200));

    wait_for("events at the sinks", 20, || {
        (lines(&process, "shop/lines").len() == 7 && lines(&process, "weir-system/lines").len() >= 9)
            .then_some(())
    })
    .unwrap();
    wait_for("the report that all of it was delivered", 20, || {
        (operator.delivered("shop/lines") == Some(7)).then_some(())
    })
    .unwrap();
    busy.abort();
    assert!(lines(&process, "other/lines").is_empty());
    assert!(
        lines(&process, "shop/lines")
            .iter()
            .all(|line| line["namespace"] == "shop"
                && line["workload"] == "spiffe://td/ns/shop/sa/report-agent")
    );
    let audit = server::get(&pages, "/v1/audit");
    assert!(
        audit.contains("spiffe://td/ns/shop/sa/report-agent") && audit.contains("verified"),
        "{audit}"
    );

    // Both pods go: one chain had an end.
    let uids = vec!["uid-1".to_owned(), "uid-2".to_owned()];
    operator
        .orders
        .send(Order::Gone(proto::PodsGone { uids: uids.clone() }))
        .unwrap();
    wait_for("the loss is told", 20, || {
        (operator.lost().len() == 1).then_some(())
    })
    .unwrap();
    let lost = operator.lost();
    assert_eq!(
        (lost[0].pod_uid.as_str(), lost[0].boot.clone()),
        ("uid-1", first.boot().to_string())
    );
    assert!(
        deliver(ingest, &trust, Some(&pod), &more).await.is_err(),
        "a gone pod"
    );
    let gaps = |pages: &str| {
        server::get(pages, "/v1/audit")
            .matches("pod gone without closing")
            .count()
    };
    assert_eq!(gaps(&pages), 1);

    // Killed, started again, told again: once is enough, and the pod stays gone.
    drop(process);
    operator.heard.lock().unwrap().clear();
    let (process, pages) = start(dir.path(), &address, ingest);
    wait_for("the loss is told anew", 30, || {
        (!operator.lost().is_empty()).then_some(())
    })
    .unwrap();
    operator
        .orders
        .send(Order::Gone(proto::PodsGone { uids }))
        .unwrap();
    assert!(
        deliver(ingest, &trust, Some(&pod), &more).await.is_err(),
        "still gone"
    );
    // Another pod's loss comes after it in the one queue.
    let third = identity(authority.pod("shop", "report-agent", "uid-3").unwrap());
    let mut chain = Sidecar::new(3);
    let open = [chain.open()];
    wait_for_delivery(ingest, &trust, &third, &open).await;
    operator
        .orders
        .send(Order::Gone(proto::PodsGone {
            uids: vec!["uid-3".to_owned()],
        }))
        .unwrap();
    wait_for("its loss", 20, || {
        operator
            .lost()
            .iter()
            .any(|lost| lost.pod_uid == "uid-3")
            .then_some(())
    })
    .unwrap();
    assert_eq!(gaps(&pages), 2);
    drop(process);
    let log = collector::Log::open_to_read(&dir.path().join("data")).unwrap();
    let mut anew = collector::Index::in_memory().unwrap();
    anew.catch_up(&log).unwrap();
    assert_eq!(
        anew.pod_of(&first.boot()).unwrap().unwrap().uid,
        "uid-1",
        "rebuilt from the log"
    );
}

async fn wait_for_delivery(ingest: u16, trust: &Trust, who: &Identity, groups: &[SignedGroup]) {
    let took = test_support::wait_for_async("a delivery", 20, async || {
        deliver(ingest, trust, Some(who), groups)
            .await
            .ok()
            .filter(|status| *status == 200)
    });
    took.await.unwrap();
}
