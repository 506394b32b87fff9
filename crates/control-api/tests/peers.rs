//! Every wrong pairing is refused, over real TLS on loopback.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)] // reason: tests

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use control_api::client::{Held, IdentityClient, IdentityConfig, now};
use control_api::identity::{Identity, Trust};
use control_api::peer::{COLLECTOR_NAME, OPERATOR_NAME, Peer};
use control_api::proto::identity_server::{Identity as Service, IdentityServer};
use control_api::proto::{IssueReply, IssueRequest};
use control_api::tls::{
    Alpn, ClientAuth, ConnectedPeer, SwappableConfig, client_config, connect, connect_channel, incoming,
    server_config,
};
use control_api::{proto, signed};
use rustls::pki_types::CertificateDer;
use test_support::authority::{Authority, Leaf, LeafSpec, Signer};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_stream::StreamExt;

fn identity(leaf: Leaf) -> Identity {
    Identity::from_der(leaf.chain, leaf.key)
}

fn trust(authority: &Authority) -> Trust {
    Trust {
        roots: vec![CertificateDer::from(authority.root())],
        capture_roots: Vec::new(),
    }
}

/// One connection from this client to this server: whom the server saw, or why it did not come about.
async fn meet(
    server: (&Trust, &Identity, ClientAuth),
    name: &'static str,
    client: (&Trust, Option<&Identity>),
) -> Result<Option<Peer>, String> {
    let config = server_config(server.0, server.1, server.2, Alpn::Http1).map_err(|e| e.to_string())?;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let mut accepted = incoming(listener, Arc::new(ArcSwap::from_pointee(config)));
    let config = client_config(client.0, client.1, Alpn::Http1).map_err(|e| e.to_string())?;
    let mut stream = connect(&address, name, Arc::new(config))
        .await
        .map_err(|e| e.to_string())?;
    // In TLS 1.3 a client hears of a refused certificate only when it reads.
    let mut byte = [0];
    tokio::select! {
        connection = accepted.next() => Ok(connection.unwrap().unwrap().peer().peer.clone()),
        read = tokio::io::AsyncReadExt::read(&mut stream, &mut byte) => Err(format!("{read:?}")),
    }
}

#[tokio::test]
async fn the_right_pairs_meet() {
    let authority = Authority::new("td").unwrap();
    let trust = trust(&authority);
    let operator = identity(authority.operator().unwrap());
    let collector = identity(authority.collector().unwrap());
    let pod = identity(authority.pod("shop", "orders", "uid-1").unwrap());
    let seen = meet(
        (&trust, &operator, ClientAuth::Required),
        OPERATOR_NAME,
        (&trust, Some(&pod)),
    )
    .await;
    let Ok(Some(Peer::Pod(seen))) = seen else {
        panic!("{seen:?}")
    };
    assert_eq!(seen.uri(), "spiffe://td/ns/shop/sa/orders/pod/uid-1");
    let seen = meet(
        (&trust, &operator, ClientAuth::Required),
        OPERATOR_NAME,
        (&trust, Some(&collector)),
    )
    .await;
    assert_eq!(seen, Ok(Some(Peer::Collector)));
    let seen = meet(
        (&trust, &operator, ClientAuth::Required),
        OPERATOR_NAME,
        (&trust, Some(&operator)),
    )
    .await;
    assert_eq!(seen, Ok(Some(Peer::Operator)));
    let seen = meet(
        (&trust, &collector, ClientAuth::Required),
        COLLECTOR_NAME,
        (&trust, Some(&pod)),
    )
    .await;
    assert!(matches!(seen, Ok(Some(Peer::Pod(_)))), "{seen:?}");
    let seen = meet(
        (&trust, &operator, ClientAuth::Optional),
        OPERATOR_NAME,
        (&trust, None),
    )
    .await;
    assert_eq!(seen, Ok(None));
}

#[tokio::test]
async fn wrong_servers_are_refused() {
    let authority = Authority::new("td").unwrap();
    let trust = trust(&authority);
    let other = Authority::new("td").unwrap();
    let pod_uri = "spiffe://td/ns/shop/sa/orders/pod/uid-1";
    let operator_uri = "spiffe://td/weir/operator";
    let spec = |uri, name, signer| authority.spec(uri, name, signer);
    let expired = LeafSpec {
        not_before: now() - 7200,
        not_after: now() - 3600,
        ..spec(operator_uri, Some(OPERATOR_NAME), Signer::Control)
    };
    let early = LeafSpec {
        not_before: now() + 3600,
        not_after: now() + 7200,
        ..spec(operator_uri, Some(OPERATOR_NAME), Signer::Control)
    };
    let client_only = LeafSpec {
        server: false,
        ..spec(operator_uri, Some(OPERATOR_NAME), Signer::Control)
    };
    for (what, leaf, name) in [
        (
            "a pod's own leaf",
            authority.pod("shop", "orders", "uid-1").unwrap(),
            OPERATOR_NAME,
        ),
        // What a stolen intermediate of pods could sign at best: its own usage forbids it.
        (
            "an operator signed by the intermediate of pods",
            authority
                .issue(&spec(operator_uri, Some(OPERATOR_NAME), Signer::Pods))
                .unwrap(),
            OPERATOR_NAME,
        ),
        (
            "the collector as operator",
            authority.collector().unwrap(),
            OPERATOR_NAME,
        ),
        (
            "the operator as collector",
            authority.operator().unwrap(),
            COLLECTOR_NAME,
        ),
        (
            "the operator's name with a pod's URI",
            authority
                .issue(&spec(pod_uri, Some(OPERATOR_NAME), Signer::Control))
                .unwrap(),
            OPERATOR_NAME,
        ),
        (
            "the collector's URI with the operator's name",
            authority
                .issue(&spec(
                    "spiffe://td/weir/collector",
                    Some(OPERATOR_NAME),
                    Signer::Control,
                ))
                .unwrap(),
            OPERATOR_NAME,
        ),
        ("another root", other.operator().unwrap(), OPERATOR_NAME),
        ("expired", authority.issue(&expired).unwrap(), OPERATOR_NAME),
        ("not yet valid", authority.issue(&early).unwrap(), OPERATOR_NAME),
        (
            "no serverAuth",
            authority.issue(&client_only).unwrap(),
            OPERATOR_NAME,
        ),
    ] {
        let seen = meet(
            (&trust, &identity(leaf), ClientAuth::Optional),
            name,
            (&trust, None),
        )
        .await;
        assert!(seen.is_err(), "{what}: {seen:?}");
    }
}

#[tokio::test]
async fn wrong_clients_are_refused() {
    let authority = Authority::new("td").unwrap();
    let trusted = trust(&authority);
    let other = Authority::new("td").unwrap();
    let operator = identity(authority.operator().unwrap());
    let pod = |uris: &[&str]| {
        let mut spec = authority.spec("", None, Signer::Pods);
        spec.uris = uris.iter().map(|uri| (*uri).to_owned()).collect();
        authority.issue(&spec).unwrap()
    };
    let good = "spiffe://td/ns/shop/sa/orders/pod/uid-1";
    let mut expired = authority.spec(good, None, Signer::Pods);
    (expired.not_before, expired.not_after) = (now() - 7200, now() - 3600);
    for (what, leaf) in [
        ("another root", other.pod("shop", "orders", "uid-1").unwrap()),
        ("expired", authority.issue(&expired).unwrap()),
        (
            "two URIs",
            pod(&[good, "spiffe://td/ns/shop/sa/orders/pod/uid-2"]),
        ),
        ("the same URI twice", pod(&[good, good])),
        ("no URI", pod(&[])),
        (
            "a UID with a slash",
            pod(&["spiffe://td/ns/shop/sa/orders/pod/a/b"]),
        ),
        ("no UID", pod(&["spiffe://td/ns/shop/sa/orders/pod/"])),
        ("no pod", pod(&["spiffe://td/ns/shop/sa/orders"])),
        ("another scheme", pod(&["https://td/ns/shop/sa/orders/pod/uid-1"])),
        ("an escape", pod(&["spiffe://td/ns/shop/sa/orders/pod/uid%2f1"])),
    ] {
        for auth in [ClientAuth::Required, ClientAuth::Optional] {
            let client = identity(leaf.clone());
            // The other root's client trusts our server: the refusal must come from the server.
            let seen = meet(
                (&trusted, &operator, auth),
                OPERATOR_NAME,
                (&trusted, Some(&client)),
            )
            .await;
            assert!(seen.is_err(), "{what}: {seen:?}");
        }
    }
    let seen = meet(
        (&trusted, &operator, ClientAuth::Required),
        OPERATOR_NAME,
        (&trusted, None),
    )
    .await;
    assert!(seen.is_err(), "no certificate: {seen:?}");
}

#[tokio::test]
async fn a_capture_root_is_trusted_by_nothing_of_weir() {
    let authority = Authority::new("td").unwrap();
    let capture = Authority::new("td").unwrap();
    let trust = Trust {
        roots: vec![CertificateDer::from(authority.root())],
        capture_roots: vec![CertificateDer::from(capture.root())],
    };
    let server = identity(capture.operator().unwrap());
    let seen = meet(
        (&trust, &server, ClientAuth::Optional),
        OPERATOR_NAME,
        (&trust, None),
    )
    .await;
    assert!(seen.is_err(), "{seen:?}");
    let operator = identity(authority.operator().unwrap());
    let pod = identity(capture.pod("shop", "orders", "uid-1").unwrap());
    let seen = meet(
        (&trust, &operator, ClientAuth::Required),
        OPERATOR_NAME,
        (&trust, Some(&pod)),
    )
    .await;
    assert!(seen.is_err(), "{seen:?}");
}

fn snapshot() -> proto::Snapshot {
    proto::Snapshot {
        version: 7,
        pod_uid: "uid-1".to_owned(),
        issued_at: now(),
        valid_until: now() + 3600,
        ..proto::Snapshot::default()
    }
}

#[test]
fn a_snapshot_proves_itself() {
    let authority = Authority::new("td").unwrap();
    let trusted = trust(&authority);
    let operator = identity(authority.operator().unwrap());
    let good = signed::sign(&snapshot(), &operator).unwrap();
    assert_eq!(signed::verify(&good, &trusted, "uid-1").unwrap().version, 7);

    assert!(signed::verify(&good, &trusted, "uid-2").is_err(), "another pod");
    assert!(
        signed::verify(&good, &trust(&Authority::new("td").unwrap()), "uid-1").is_err(),
        "another root"
    );
    for at in 0..good.snapshot.len() {
        let mut changed = good.clone();
        changed.snapshot[at] ^= 1;
        assert!(signed::verify(&changed, &trusted, "uid-1").is_err(), "byte {at}");
    }
    let mut changed = good.clone();
    changed.signature[10] ^= 1;
    assert!(signed::verify(&changed, &trusted, "uid-1").is_err(), "signature");
    let mut changed = good.clone();
    changed.chain.truncate(1);
    assert!(signed::verify(&changed, &trusted, "uid-1").is_err(), "no issuer");
    changed.chain.clear();
    assert!(signed::verify(&changed, &trusted, "uid-1").is_err(), "no chain");

    for (what, leaf) in [
        ("a pod", authority.pod("shop", "orders", "uid-1").unwrap()),
        ("the collector", authority.collector().unwrap()),
        (
            "an operator of the pods' intermediate",
            authority
                .issue(&authority.spec("spiffe://td/weir/operator", Some(OPERATOR_NAME), Signer::Pods))
                .unwrap(),
        ),
    ] {
        let wrong = signed::sign(&snapshot(), &identity(leaf)).unwrap();
        assert!(signed::verify(&wrong, &trusted, "uid-1").is_err(), "{what}");
    }
}

#[test]
fn a_snapshot_outlives_its_signer_but_not_itself() {
    let authority = Authority::new("td").unwrap();
    let mut spec = authority.spec("spiffe://td/weir/operator", Some(OPERATOR_NAME), Signer::Control);
    (spec.not_before, spec.not_after) = (now() - 7200, now() - 3600);
    let operator = identity(authority.issue(&spec).unwrap());
    let mut old = snapshot();
    (old.issued_at, old.valid_until) = (now() - 4000, now() + 4000);
    let signed_then = signed::sign(&old, &operator).unwrap();
    assert!(signed::verify(&signed_then, &trust(&authority), "uid-1").is_ok());
    // Signed with a certificate that had ended by then.
    old.issued_at = now() - 1000;
    let signed_late = signed::sign(&old, &operator).unwrap();
    assert!(signed::verify(&signed_late, &trust(&authority), "uid-1").is_err());

    assert!(signed::check_validity(&old, old.valid_until - 1).is_ok());
    assert!(signed::check_validity(&old, old.valid_until).is_err());
}

/// An operator that issues to anybody who brings the token, for so many seconds.
struct Issuer {
    authority: Arc<Authority>,
    calls: Arc<AtomicU32>,
    life: Arc<AtomicI64>,
    capture: Vec<u8>,
}

#[tonic::async_trait]
impl Service for Issuer {
    async fn issue(
        &self,
        request: tonic::Request<IssueRequest>,
    ) -> Result<tonic::Response<IssueReply>, tonic::Status> {
        let connected = request.extensions().get::<ConnectedPeer>().unwrap();
        assert_eq!(connected.peer, None);
        let request = request.into_inner();
        let call = self.calls.fetch_add(1, Ordering::SeqCst);
        if call == 0 {
            return Err(tonic::Status::unavailable("not yet"));
        }
        assert_eq!(request.token, "the token");
        let mut spec = self
            .authority
            .spec("spiffe://td/ns/shop/sa/orders/pod/uid-1", None, Signer::Pods);
        spec.not_after = now() + 3600;
        let chain = self
            .authority
            .sign_request(&spec, &request.csr)
            .map_err(|error| tonic::Status::invalid_argument(error.to_string()))?;
        Ok(tonic::Response::new(IssueReply {
            chain,
            trust: Some(proto::TrustBundle {
                roots: vec![self.authority.root()],
                capture_roots: vec![self.capture.clone()],
            }),
            not_after: spec.not_after,
            renew_at: now() + self.life.load(Ordering::SeqCst),
        }))
    }
}

async fn serve(
    authority: &Arc<Authority>,
    calls: &Arc<AtomicU32>,
    life: &Arc<AtomicI64>,
) -> (SocketAddr, SwappableConfig) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let operator = identity(authority.operator().unwrap());
    let config = server_config(&trust(authority), &operator, ClientAuth::Optional, Alpn::H2).unwrap();
    let config: SwappableConfig = Arc::new(ArcSwap::from_pointee(config));
    let service = IdentityServer::new(Issuer {
        authority: Arc::clone(authority),
        calls: Arc::clone(calls),
        life: Arc::clone(life),
        capture: Authority::new("td").unwrap().root(),
    });
    let connections = incoming(listener, Arc::clone(&config));
    tokio::spawn(async move {
        tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming(connections)
            .await
            .unwrap();
    });
    (address, config)
}

async fn until(receiver: &mut watch::Receiver<Option<Arc<Held>>>, want: impl Fn(&Held) -> bool) -> Arc<Held> {
    let wait = receiver.wait_for(|held| held.as_deref().is_some_and(&want));
    let held = tokio::time::timeout(Duration::from_secs(30), wait)
        .await
        .unwrap()
        .unwrap();
    held.clone().unwrap()
}

#[tokio::test]
async fn a_pod_gets_keeps_and_renews_its_certificate() {
    let authority = Arc::new(Authority::new("td").unwrap());
    let (calls, life) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicI64::new(1)));
    let (address, _) = serve(&authority, &calls, &life).await;
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    std::fs::write(&token, "the token\n").unwrap();
    let config = IdentityConfig {
        operator: address.to_string(),
        token_file: token,
        identity_dir: folder.path().join("identity"),
        bootstrap: trust(&authority),
        version: "test".to_owned(),
    };
    let client = IdentityClient::new(config.clone());
    let updates = client.trust_updates();
    let mut held = client.held();
    assert!(held.borrow().is_none());
    let task = tokio::spawn(client.run());

    // The first call fails; it asks again.
    let first = until(&mut held, |_| true).await;
    assert_eq!(first.trust.capture_roots.len(), 1);
    // Due after a second: renewed, with another key.
    let second = until(&mut held, |now| now.identity.chain != first.identity.chain).await;
    assert_ne!(first.identity.key, second.identity.key);
    life.store(1800, Ordering::SeqCst);
    until(&mut held, |held| held.renew_at > now() + 60).await;

    // What is there to serve with: the pod is let in by its new leaf.
    let operator = identity(authority.operator().unwrap());
    let trusted = trust(&authority);
    let seen = meet(
        (&trusted, &operator, ClientAuth::Required),
        OPERATOR_NAME,
        (&second.trust, Some(&second.identity)),
    )
    .await;
    assert!(matches!(seen, Ok(Some(Peer::Pod(_)))), "{seen:?}");

    // New roots from the stream count at once; none at all never.
    let next = Authority::new("td").unwrap();
    let both = Trust {
        roots: vec![
            CertificateDer::from(authority.root()),
            CertificateDer::from(next.root()),
        ],
        capture_roots: Vec::new(),
    };
    updates.take(both.clone()).unwrap();
    until(&mut held, |held| held.trust == both).await;
    assert!(updates.take(Trust::default()).is_err());

    // A new process of the same pod finds all of it, without the operator.
    task.abort();
    let last = held.borrow().clone().unwrap();
    let asked = calls.load(Ordering::SeqCst);
    let client = IdentityClient::new(config.clone());
    let found = client.held().borrow().clone().unwrap();
    assert_eq!(found.identity.chain, last.identity.chain);
    assert_eq!(found.identity.key, last.identity.key);
    assert_eq!((&found.trust, found.renew_at), (&both, last.renew_at));
    assert_eq!(calls.load(Ordering::SeqCst), asked);
    use std::os::unix::fs::PermissionsExt;
    for file in std::fs::read_dir(&config.identity_dir).unwrap() {
        let file = file.unwrap();
        assert_eq!(
            file.metadata().unwrap().permissions().mode() & 0o777,
            0o600,
            "{file:?}"
        );
    }
    // A key that is not the leaf's: neither counts.
    let other = authority.pod("shop", "orders", "uid-1").unwrap();
    std::fs::write(config.identity_dir.join("leaf.key"), other.key).unwrap();
    assert!(IdentityClient::new(config).held().borrow().is_none());
}

#[tokio::test]
async fn the_token_is_shown_to_nobody_but_the_operator() {
    let authority = Arc::new(Authority::new("td").unwrap());
    let (calls, life) = (Arc::new(AtomicU32::new(1)), Arc::new(AtomicI64::new(1800)));
    let (address, config) = serve(&authority, &calls, &life).await;
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    std::fs::write(&token, "the token").unwrap();
    let client = IdentityClient::new(IdentityConfig {
        operator: address.to_string(),
        token_file: token,
        identity_dir: folder.path().to_owned(),
        bootstrap: trust(&Authority::new("td").unwrap()),
        version: String::new(),
    });
    assert!(client.obtain().await.is_err());
    // Nor to the collector, though its root is the right one.
    let collector = identity(authority.collector().unwrap());
    config.store(Arc::new(
        server_config(&trust(&authority), &collector, ClientAuth::Optional, Alpn::H2).unwrap(),
    ));
    let channel = connect_channel(
        &address.to_string(),
        OPERATOR_NAME,
        Arc::new(client_config(&trust(&authority), None, Alpn::H2).unwrap()),
    )
    .unwrap();
    let request = IssueRequest::default();
    let answer = control_api::proto::identity_client::IdentityClient::new(channel)
        .issue(request)
        .await;
    assert!(answer.is_err());
    assert_eq!(calls.load(Ordering::SeqCst), 1, "nobody was asked");
}
