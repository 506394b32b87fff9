//! Many policies and pods: what the operator asks of the API server, by the API server's own count.

use std::time::Instant;

use futures_util::{StreamExt, stream};
use kube::api::{ListParams, PostParams};
use serde_json::{Value, json};
use test_support::{Signal, wait_for_async};

use crate::FIRST;
use crate::support::{self, ApiServer, Operator, captures, condition, policy};

const POLICIES: usize = 100;
const PODS: usize = 500;

fn app(index: usize) -> String {
    format!("app-{}", index % POLICIES)
}

/// Every second app has a sidecar that never connects; the others have none, and an owner.
async fn pod(server: &ApiServer, index: usize) {
    let app = app(index);
    let name = format!("pod-{index}");
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop", "labels": {"app": app}},
        "spec": {"containers": [{"name": "app", "image": "app"}]},
    });
    if index.is_multiple_of(2) {
        pod["metadata"]["annotations"] = json!({"weir.dev/captured": captures().unwrap().to_string()});
        pod["spec"]["initContainers"] =
            json!([{"name": "weir-sidecar", "image": "weir", "restartPolicy": "Always"}]);
    } else {
        pod["metadata"]["ownerReferences"] = json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet",
            "name": app, "uid": format!("uid-of-{app}"), "controller": true}]);
    }
    let api = server.api_of("Pod", "shop");
    let typed = serde_json::from_value(pod).unwrap();
    api.create(&PostParams::default(), &typed).await.expect("a pod");
    server
        .pod_status("shop", &name, json!({"phase": "Running"}))
        .await;
}

/// What only the operator does, beside leases: reads and watches of what it follows, statuses, Events.
async fn asked(server: &ApiServer) -> u64 {
    let requests = server.requests().await;
    requests
        .iter()
        .filter(|((verb, resource, subresource), _)| match resource.as_str() {
            "databaseaccesspolicies" => subresource == "status" || verb == "LIST" || verb == "WATCH",
            "pods" => verb == "LIST" || verb == "WATCH",
            "events" | "lineagesinks" => true,
            _ => false,
        })
        .map(|(_, count)| count)
        .sum()
}

async fn all_requests(server: &ApiServer) -> u64 {
    server.requests().await.values().sum()
}

async fn status_writes(server: &ApiServer) -> u64 {
    let requests = server.requests().await;
    requests
        .iter()
        .filter(|((_, resource, subresource), _)| {
            resource == "databaseaccesspolicies" && subresource == "status"
        })
        .map(|(_, count)| count)
        .sum()
}

/// Every policy says what its five pods are.
async fn all_told(server: &ApiServer) {
    wait_for_async("the status of every policy", 120, async || {
        let policies = server.api_of("DatabaseAccessPolicy", "shop");
        let list = policies.list(&ListParams::default()).await.ok()?;
        let right = list
            .into_iter()
            .map(|policy| serde_json::to_value(policy).unwrap())
            .filter(|policy| policy["status"]["matchedPods"] == PODS / POLICIES)
            .count();
        (right == POLICIES).then_some(())
    })
    .await
    .expect("told");
}

/// The lease was renewed so many times more: time has passed for the operator, by its own clock.
async fn renewals(server: &ApiServer, count: usize) {
    let mut last = Value::Null;
    for _ in 0..=count {
        last = wait_for_async("the lease to be renewed", 30, async || {
            let lease = server.get("Lease", "weir-system", "weir-operator").await.ok()??;
            let at = lease["spec"]["renewTime"].clone();
            (at.is_string() && at != last).then_some(at)
        })
        .await
        .expect("renewed");
    }
}

async fn a_hundred_policies_and_five_hundred_pods_settle(server: ApiServer) {
    let rights = server.operator_account().await;
    let mut operator = Operator::start_as(&server, &rights, "operator-1", server.address(71), FIRST).await;
    let begun = Instant::now();
    let before = all_requests(&server).await;
    for index in 0..POLICIES {
        server
            .apply(policy("shop", &format!("policy-{index}"), &app(index)))
            .await;
    }
    stream::iter(0..PODS)
        .for_each_concurrent(16, async |index| pod(&server, index).await)
        .await;
    all_told(&server).await;
    let (spent, writes, asked_at_first) = (
        all_requests(&server).await - before,
        status_writes(&server).await,
        asked(&server).await,
    );
    let seconds = begun.elapsed().as_secs_f64();
    #[allow(clippy::cast_precision_loss)] // reason: a small count
    let rate = spent as f64 / seconds;
    println!(
        "{POLICIES} policies, {PODS} pods: {spent} requests by everybody in {seconds:.1} s ({rate:.0}/s), \
         {writes} writes of status, {asked_at_first} requests of the operator"
    );
    // A write when it is new, and one for each of its pods at the very most.
    assert!(writes <= u64::try_from(POLICIES + PODS).unwrap(), "{writes}");
    // Beside those: lists and watches of four kinds, two Events a policy, one an owner.
    assert!(
        asked_at_first <= writes + u64::try_from(3 * POLICIES).unwrap() + 60,
        "{asked_at_first}"
    );

    // Nothing changes: nothing is asked but what keeps lease and watches.
    let begun = Instant::now();
    renewals(&server, 1).await;
    let (quiet, written) = (asked(&server).await, status_writes(&server).await);
    renewals(&server, 2).await;
    let more = asked(&server).await - quiet;
    println!(
        "{more} requests in {:.1} s when nothing changes",
        begun.elapsed().as_secs_f64()
    );
    assert!(more <= 10, "{more} requests while nothing changed");
    assert_eq!(
        status_writes(&server).await,
        written,
        "a status was written while nothing changed"
    );

    // Owners and policies have their Events: one an owner, however many pods.
    let events = server.list("Event", "shop").await;
    let about = |kind: &str| {
        events
            .iter()
            .filter(|event| event["regarding"]["kind"] == kind && event["reason"] == "Uninjected")
            .count()
    };
    assert_eq!((about("ReplicaSet"), about("Pod")), (POLICIES / 2, 0));
    assert_eq!(about("DatabaseAccessPolicy"), POLICIES / 2);

    // A new process finds everything as it would write it.
    operator.process.stop(Signal::Kill, 10).unwrap();
    let _operator = Operator::start_as(&server, &rights, "operator-1", server.address(71), FIRST).await;
    wait_for_async("the new process to look at all of it", 60, async || {
        let page = support::http(&format!("{}:8081", server.address(71)), "/metrics").await?;
        let line = page
            .lines()
            .find(|line| line.starts_with("weir_operator_reconciles_total"))?;
        let looked: usize = line.rsplit(' ').next()?.parse().ok()?;
        (looked >= POLICIES).then_some(())
    })
    .await
    .expect("a look at all");
    renewals(&server, 1).await;
    assert_eq!(
        status_writes(&server).await,
        written,
        "a restart writes nothing anew"
    );
    let one = server
        .get("DatabaseAccessPolicy", "shop", "policy-1")
        .await
        .unwrap()
        .unwrap();
    assert_eq!(condition(&one["status"], "Enforced"), ("False", "Uninjected"));
}

on_each_release!(a_hundred_policies_and_five_hundred_pods_settle,);
