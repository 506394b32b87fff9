//! The operator against real API servers of two releases, with sidecars made of our own client. Where none can run these
//! tests say so and pass; with `WEIR_REQUIRE_CLUSTER=1` they fail instead.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)] // reason: tests

mod support;

/// Each test runs on an API server of its own, once for each release.
macro_rules! on_each_release {
    ($($name:ident),* $(,)?) => {
        mod on_1_34 {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                crate::support::on(test_support::cluster::Release::Node, super::$name).await;
            })*
        }
        mod on_1_37 {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                crate::support::on(test_support::cluster::Release::Next, super::$name).await;
            })*
        }
    };
}

mod cases;

use std::time::{Duration, Instant};

use control_api::proto::sinks_client::SinksClient;
use control_api::proto::{self, collector_message, collector_order, sidecar_message};
use serde_json::json;
use support::{ApiServer, Issuer, Operator, Sidecar, captures, channel, condition, policy};
use test_support::{Signal, wait_for_async};
use tokio_stream::wrappers::ReceiverStream;

const FIRST: (u16, u16, u16) = (9443, 9444, 8081);

async fn a_policy_reaches_its_pods_and_their_answers_reach_its_status(server: ApiServer) {
    server.apply(policy("shop", "orders", "report")).await;
    server.apply(policy("other", "secret", "report")).await;
    let uid = server
        .pod("shop", "report-1", json!({"app": "report"}), captures())
        .await;
    server.pod("shop", "bare-1", json!({"app": "bare"}), None).await;
    let operator = Operator::start(&server, "operator-1", server.address(1), FIRST).await;
    let issuer = Issuer::open(&server).await;
    let held = issuer.pod("shop", "default", &uid);

    // The pod gets its own namespace's policies, acknowledges, and the status says so.
    let mut sidecar = Sidecar::connect(&held, &uid, &operator.address)
        .await
        .expect("a stream");
    let first = sidecar.snapshot().await.expect("a snapshot");
    assert_eq!(first.policies.len(), 1);
    assert_eq!(first.policies[0].name, "orders");
    assert!(first.valid_until - first.issued_at == 86_400);
    server
        .policy_is("shop", "orders", "waiting for the answer", |status| {
            condition(status, "Enforced") == ("False", "Waiting")
        })
        .await;
    sidecar.ack(first.version).await;
    server
        .policy_is("shop", "orders", "enforced", |status| {
            status["matchedPods"] == 1
                && status["enforcedPods"] == 1
                && condition(status, "Ready") == ("True", "Enforced")
        })
        .await;

    // A change arrives in under a second.
    let mut changed = policy("shop", "orders", "report");
    changed["spec"]["guardrails"] = json!({"maxReturnedRows": 7});
    let asked = Instant::now();
    server.apply(changed.clone()).await;
    let second = sidecar.snapshot().await.expect("a snapshot");
    let took = asked.elapsed();
    println!("from apply to snapshot: {took:?}");
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert!(second.version > first.version && second.hash != first.hash);
    assert_eq!(second.policies[0].generation, 2);
    assert!(second.policies[0].manifest.contains("\"maxReturnedRows\":7"));
    sidecar.ack(second.version).await;
    server
        .policy_is("shop", "orders", "generation 2 enforced", |status| {
            status["observedGeneration"] == 2 && condition(status, "Enforced") == ("True", "Enforced")
        })
        .await;

    // Another namespace's policy, and a status write, are no news for it.
    server.apply(policy("other", "more", "report")).await;
    assert!(sidecar.hears_nothing(Duration::from_millis(700)).await);

    // A refusal is told with its reason.
    changed["spec"]["guardrails"] = json!({"maxReturnedRows": 8});
    server.apply(changed).await;
    let third = sidecar.snapshot().await.expect("a snapshot");
    sidecar
        .say(sidecar_message::Message::Nack(proto::Nack {
            version: third.version,
            problems: vec![proto::PolicyProblem {
                policy: "orders".to_owned(),
                reason: "SecretMissing".to_owned(),
                message: "secret orders-login is not mounted".to_owned(),
            }],
        }))
        .await;
    server
        .policy_is("shop", "orders", "the refusal", |status| {
            condition(status, "Ready") == ("False", "SecretMissing") && status["enforcedPods"] == 0
        })
        .await;

    // A policy that selects a pod without a sidecar says so, and its owner gets an event.
    server.apply(policy("shop", "bare", "bare")).await;
    server
        .policy_is("shop", "bare", "the pod without a sidecar", |status| {
            condition(status, "Enforced") == ("False", "Uninjected")
                && status["uninjectedPods"] == json!(["bare-1"])
        })
        .await;
    wait_for_async("the event on the pod", 10, async || {
        let events = server.list("Event", "shop").await;
        events
            .iter()
            .any(|event| event["reason"] == "Uninjected" && event["regarding"]["name"] == "bare-1")
            .then_some(())
    })
    .await
    .expect("an event");

    // A second stream of the pod takes the place of the first.
    let mut again = Sidecar::connect(&held, &uid, &operator.address)
        .await
        .expect("a stream");
    again.snapshot().await.expect("a snapshot");
    let closed = sidecar.snapshot().await.expect_err("closed");
    assert_eq!(closed.code(), tonic::Code::Aborted, "{closed}");

    // The pod goes: its stream is closed and its UID refused.
    server.delete("Pod", "shop", "report-1").await;
    let closed = again.snapshot().await.expect_err("closed");
    assert_eq!(closed.code(), tonic::Code::PermissionDenied, "{closed}");
    let refused = Sidecar::connect(&held, &uid, &operator.address).await;
    assert_eq!(
        refused.err().map(|status| status.code()),
        Some(tonic::Code::PermissionDenied)
    );
    server
        .policy_is("shop", "orders", "no pods", |status| {
            condition(status, "Enforced") == ("Unknown", "NoPods")
        })
        .await;
}

async fn who_asks_is_read_from_the_certificate_alone(server: ApiServer) {
    server.apply(policy("shop", "orders", "report")).await;
    let uid = server
        .pod("shop", "report-1", json!({"app": "report"}), captures())
        .await;
    let operator = Operator::start(&server, "operator-1", server.address(11), FIRST).await;
    let issuer = Issuer::open(&server).await;
    for (held, what) in [
        (issuer.pod("shop", "default", "no-such-uid"), "an unknown UID"),
        (issuer.pod("other", "default", &uid), "another namespace"),
        (issuer.pod("shop", "root", &uid), "another service account"),
        (issuer.collector(), "the collector"),
    ] {
        let refused = Sidecar::connect(&held, &uid, &operator.address).await;
        let code = refused.err().map(|status| status.code());
        assert_eq!(code, Some(tonic::Code::PermissionDenied), "{what}");
    }
    let mut without = issuer.pod("shop", "default", &uid);
    let config = control_api::tls::client_config(&without.trust, None, control_api::tls::Alpn::H2)
        .expect("configuration");
    let bare = control_api::tls::connect_channel(
        &operator.address,
        control_api::peer::OPERATOR_NAME,
        std::sync::Arc::new(config),
    )
    .expect("channel");
    let refused = proto::policies_client::PoliciesClient::new(bare)
        .follow(tokio_stream::iter(Vec::new()))
        .await
        .err();
    assert_eq!(
        refused.map(|status| status.code()),
        Some(tonic::Code::Unauthenticated)
    );
    // A pod is no collector, and no replica.
    without.renew_at = 0;
    let pod = channel(&without, &operator.address);
    let refused = SinksClient::new(pod.clone())
        .follow(tokio_stream::iter(Vec::new()))
        .await
        .err();
    assert_eq!(
        refused.map(|status| status.code()),
        Some(tonic::Code::PermissionDenied)
    );
    let refused = proto::peers_client::PeersClient::new(pod)
        .report(tokio_stream::iter(Vec::new()))
        .await
        .err();
    assert_eq!(
        refused.map(|status| status.code()),
        Some(tonic::Code::PermissionDenied)
    );
}

async fn a_killed_operator_comes_back_without_losing_a_count(server: ApiServer) {
    server.apply(policy("shop", "orders", "report")).await;
    let uid = server
        .pod("shop", "report-1", json!({"app": "report"}), captures())
        .await;
    let mut operator = Operator::start(&server, "operator-1", server.address(21), FIRST).await;
    let issuer = Issuer::open(&server).await;
    let held = issuer.pod("shop", "default", &uid);
    let mut sidecar = Sidecar::connect(&held, &uid, &operator.address)
        .await
        .expect("a stream");
    let first = sidecar.snapshot().await.expect("a snapshot");
    sidecar.ack(first.version).await;
    let before = server
        .policy_is("shop", "orders", "enforced", |status| status["enforcedPods"] == 1)
        .await;
    operator.process.signal(Signal::Kill).expect("killed");
    sidecar.snapshot().await.expect_err("the stream broke");
    drop(operator);
    let operator = Operator::start(&server, "operator-1", server.address(21), FIRST).await;
    wait_for_async("the new process to hold the lease", 40, async || {
        support::http(&format!("{}:8081", server.address(21)), "/metrics")
            .await?
            .contains("weir_operator_leader 1")
            .then_some(())
    })
    .await
    .expect("the lease");
    // It has looked at the policy, and has not written a lower count.
    wait_for_async("a reconcile", 20, async || {
        let page = support::http(&format!("{}:8081", server.address(21)), "/metrics").await?;
        let line = page
            .lines()
            .find(|line| line.starts_with("weir_operator_reconciles_total"))?;
        (line.rsplit(' ').next()?.parse::<u64>().ok()? > 0).then_some(())
    })
    .await
    .expect("a look");
    let policy = server
        .get("DatabaseAccessPolicy", "shop", "orders")
        .await
        .unwrap()
        .unwrap();
    assert_eq!(policy["status"], before["status"]);
    let mut sidecar = Sidecar::connect_again(&held, &uid, &operator.address).await;
    let second = sidecar.snapshot().await.expect("a snapshot");
    assert!(second.version > first.version, "versions grow over restarts");
    assert_eq!(second.hash, first.hash);
    sidecar.ack(second.version).await;
    // Nothing changed, so nothing is written: the same resource version.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let after = server
        .get("DatabaseAccessPolicy", "shop", "orders")
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        after["metadata"]["resourceVersion"],
        before["metadata"]["resourceVersion"]
    );
}

async fn replicas_share_streams_and_leadership_moves(server: ApiServer) {
    server.apply(policy("shop", "orders", "report")).await;
    let one = server
        .pod("shop", "report-1", json!({"app": "report"}), captures())
        .await;
    let two = server
        .pod("shop", "report-2", json!({"app": "report"}), captures())
        .await;
    let mut first = Operator::start(&server, "operator-1", server.address(31), FIRST).await;
    server.led_by("operator-1", 20).await;
    let second = Operator::start(&server, "operator-2", server.address(32), FIRST).await;
    let issuer = Issuer::open(&server).await;
    let (held_one, held_two) = (
        issuer.pod("shop", "default", &one),
        issuer.pod("shop", "default", &two),
    );
    let mut sidecar_one = Sidecar::connect(&held_one, &one, &first.address)
        .await
        .expect("a stream");
    let mut sidecar_two = Sidecar::connect(&held_two, &two, &second.address)
        .await
        .expect("a stream");
    for sidecar in [&mut sidecar_one, &mut sidecar_two] {
        let snapshot = sidecar.snapshot().await.expect("a snapshot");
        sidecar.ack(snapshot.version).await;
    }
    let before = server
        .policy_is("shop", "orders", "both pods counted", |status| {
            status["enforcedPods"] == 2
        })
        .await;

    // The holder goes in good order: streams are told, the lease is given back, the other takes it.
    let gone = Instant::now();
    first.process.signal(Signal::Term).expect("asked");
    let closed = sidecar_one.snapshot().await.expect_err("told to go");
    assert_eq!(closed.code(), tonic::Code::Unavailable, "{closed}");
    let mut sidecar_one = Sidecar::connect_again(&held_one, &one, &second.address).await;
    let snapshot = sidecar_one.snapshot().await.expect("a snapshot");
    sidecar_one.ack(snapshot.version).await;
    server.led_by("operator-2", 30).await;
    println!("leadership moved in {:?}", gone.elapsed());

    // No count was lost on the way, and the new holder writes what changes now.
    let policy_now = server
        .get("DatabaseAccessPolicy", "shop", "orders")
        .await
        .unwrap()
        .unwrap();
    assert_eq!(policy_now["status"], before["status"]);
    let mut changed = policy("shop", "orders", "report");
    changed["spec"]["mode"] = json!("Audit");
    server.apply(changed).await;
    for sidecar in [&mut sidecar_one, &mut sidecar_two] {
        let snapshot = sidecar.snapshot().await.expect("a snapshot");
        sidecar.ack(snapshot.version).await;
    }
    server
        .policy_is("shop", "orders", "the new holder's word", |status| {
            status["observedGeneration"] == 2
                && status["enforcedPods"] == 2
                && condition(status, "Enforced") == ("False", "AuditMode")
        })
        .await;
}

async fn the_collector_gets_its_sinks_and_hears_of_gone_pods(server: ApiServer) {
    server.apply(policy("shop", "orders", "report")).await;
    let uid = server
        .pod("shop", "report-1", json!({"app": "report"}), captures())
        .await;
    server
        .apply(json!({
            "apiVersion": "weir.dev/v1alpha1", "kind": "LineageSink",
            "metadata": {"name": "marquez", "namespace": "shop"},
            "spec": {"openLineage": {"url": "https://marquez.shop.svc/api/v1/lineage",
                "tokenSecretRef": {"name": "marquez", "key": "token"}}},
        }))
        .await;
    server
        .apply(json!({
            "apiVersion": "weir.dev/v1alpha1", "kind": "LineageSink",
            "metadata": {"name": "all", "namespace": "weir-system"}, "spec": {"stdout": {}},
        }))
        .await;
    let operator = Operator::start(&server, "operator-1", server.address(41), FIRST).await;
    let issuer = Issuer::open(&server).await;
    let (say, said) = tokio::sync::mpsc::channel(8);
    let hello = proto::CollectorHello {
        version: "test".to_owned(),
        log_key: "log+key".to_owned(),
        open_pods: vec![uid.clone(), "gone-before".to_owned()],
    };
    let message = |message| proto::CollectorMessage {
        message: Some(message),
    };
    say.send(message(collector_message::Message::Hello(hello)))
        .await
        .unwrap();
    let mut orders = SinksClient::new(channel(&issuer.collector(), &operator.address))
        .follow(ReceiverStream::new(said))
        .await
        .expect("a stream")
        .into_inner();
    let mut next = async || {
        let order = tokio::time::timeout(Duration::from_secs(10), orders.message());
        order
            .await
            .expect("in time")
            .expect("open")
            .expect("open")
            .message
            .expect("an order")
    };
    // Who went while nobody listened is asked for, and named.
    assert_eq!(
        next().await,
        collector_order::Message::Gone(proto::PodsGone {
            uids: vec!["gone-before".to_owned()]
        })
    );
    let collector_order::Message::Sinks(set) = next().await else {
        panic!("no sinks");
    };
    assert_eq!(set.sinks.len(), 1, "the one with a token waits for its secret");
    assert_eq!(
        (set.sinks[0].name.as_str(), set.sinks[0].events_of.as_str()),
        ("all", "")
    );
    wait_for_async("the missing secret in the sink's status", 10, async || {
        let sink = server.get("LineageSink", "shop", "marquez").await.ok()??;
        (condition(&sink["status"], "Ready") == ("False", "SecretUnreadable")).then_some(())
    })
    .await
    .expect("said");

    // With the secret (and a touch of the sink) it comes with its token.
    server
        .apply(json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "marquez", "namespace": "shop"},
            "stringData": {"token": "hunter2\n"},
        }))
        .await;
    server
        .apply(json!({
            "apiVersion": "weir.dev/v1alpha1", "kind": "LineageSink",
            "metadata": {"name": "marquez", "namespace": "shop"},
            "spec": {"openLineage": {"url": "https://marquez.shop.svc/api/v2/lineage",
                "tokenSecretRef": {"name": "marquez", "key": "token"}}},
        }))
        .await;
    let collector_order::Message::Sinks(set) = next().await else {
        panic!("no sinks");
    };
    let sink = set
        .sinks
        .iter()
        .find(|sink| sink.name == "marquez")
        .expect("there");
    assert_eq!(
        (sink.token.as_str(), sink.events_of.as_str()),
        ("hunter2", "shop")
    );
    say.send(message(collector_message::Message::Sinks(proto::SinkReport {
        sinks: vec![proto::SinkStatus {
            sink: "shop/marquez".to_owned(),
            generation: sink.generation,
            ready: true,
            reason: "Delivering".to_owned(),
            message: "the endpoint takes events".to_owned(),
            delivered: 5,
            ..proto::SinkStatus::default()
        }],
    })))
    .await
    .unwrap();
    wait_for_async("the sink's status", 20, async || {
        let sink = server.get("LineageSink", "shop", "marquez").await.ok()??;
        (condition(&sink["status"], "Ready") == ("True", "Delivering") && sink["status"]["delivered"] == 5)
            .then_some(())
    })
    .await
    .expect("said");

    // A pod goes without having delivered everything.
    server.delete("Pod", "shop", "report-1").await;
    assert_eq!(
        next().await,
        collector_order::Message::Gone(proto::PodsGone {
            uids: vec![uid.clone()]
        })
    );
    say.send(message(collector_message::Message::Lost(proto::ReceiptsLost {
        pod_uid: uid.clone(),
        namespace: "shop".to_owned(),
        boot: "b1".to_owned(),
        reason: "no end".to_owned(),
    })))
    .await
    .unwrap();
    server
        .policy_is("shop", "orders", "lost receipts", |status| {
            condition(status, "Degraded") == ("True", "ReceiptsLost")
        })
        .await;
}

async fn a_killed_holder_is_followed_by_the_other_replica(server: ApiServer) {
    server.apply(policy("shop", "orders", "report")).await;
    let uid = server
        .pod("shop", "report-1", json!({"app": "report"}), captures())
        .await;
    let mut first = Operator::start(&server, "operator-1", server.address(81), FIRST).await;
    server.led_by("operator-1", 20).await;
    let second = Operator::start(&server, "operator-2", server.address(82), FIRST).await;
    let held = Issuer::open(&server).await.pod("shop", "default", &uid);
    let mut sidecar = Sidecar::connect(&held, &uid, &first.address)
        .await
        .expect("a stream");
    let snapshot = sidecar.snapshot().await.expect("a snapshot");
    sidecar.ack(snapshot.version).await;
    let before = server
        .policy_is("shop", "orders", "enforced", |status| status["enforcedPods"] == 1)
        .await;

    // No farewell: the lease runs out by itself.
    first.process.stop(Signal::Kill, 10).expect("killed");
    sidecar.snapshot().await.expect_err("the stream broke");
    // What this sidecar has came from a clock far ahead: the next version is newer all the same.
    let ahead = u64::MAX / 2;
    let mut sidecar = Sidecar::connect_with(&held, &uid, &second.address, ahead)
        .await
        .expect("a stream");
    let snapshot = sidecar.snapshot().await.expect("a snapshot");
    assert!(snapshot.version > ahead, "{}", snapshot.version);
    sidecar.ack(snapshot.version).await;
    wait_for_async("the second to lead", 60, async || {
        let lease = server.get("Lease", "weir-system", "weir-operator").await.ok()??;
        let status = server
            .get("DatabaseAccessPolicy", "shop", "orders")
            .await
            .ok()??;
        assert_eq!(status["status"]["enforcedPods"], 1, "no count is lost on the way");
        (lease["spec"]["holderIdentity"] == "operator-2").then_some(())
    })
    .await
    .expect("a leader");
    let mut changed = policy("shop", "orders", "report");
    changed["spec"]["guardrails"] = json!({"maxReturnedRows": 9});
    server.apply(changed).await;
    let next = sidecar.snapshot().await.expect("a snapshot");
    assert!(next.version > snapshot.version);
    sidecar.ack(next.version).await;
    let after = server
        .policy_is("shop", "orders", "the new holder's word", |status| {
            status["observedGeneration"] == 2
                && status["enforcedPods"] == 1
                && condition(status, "Ready") == ("True", "Enforced")
        })
        .await;
    assert_eq!(before["status"]["matchedPods"], after["status"]["matchedPods"]);
    // The authority is the new holder's too: it rotates when asked.
    cases::identity::rotate_roots(&server).await;
    cases::identity::roots(&server, 2).await;
}

on_each_release!(
    a_policy_reaches_its_pods_and_their_answers_reach_its_status,
    who_asks_is_read_from_the_certificate_alone,
    a_killed_operator_comes_back_without_losing_a_count,
    replicas_share_streams_and_leadership_moves,
    the_collector_gets_its_sinks_and_hears_of_gone_pods,
    a_killed_holder_is_followed_by_the_other_replica,
);
