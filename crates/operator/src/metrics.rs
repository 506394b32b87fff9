//! What the operator counts. Labels are closed lists, and the names of policies.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// What is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(missing_docs)] // reason: the names of the resources
pub enum Watched {
    Policies,
    Sinks,
    Pods,
    Namespaces,
    Lease,
}

/// Label `resource`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OfResource {
    /// What is watched.
    pub resource: Watched,
}

/// Labels of one policy.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, EncodeLabelSet)]
pub struct OfPolicy {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub policy: String,
}

/// How a write of status ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(missing_docs)] // reason: say themselves
pub enum WriteOutcome {
    Written,
    Failed,
    TimedOut,
    Overflow,
}

/// Label `outcome`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OfWrite {
    /// How it ended.
    pub outcome: WriteOutcome,
}

/// What a sidecar answered to a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(missing_docs)] // reason: say themselves
pub enum Answer {
    Ack,
    Nack,
}

/// Label `answer`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OfAnswer {
    /// Ack or nack.
    pub answer: Answer,
}

/// Verbs of requests to the API server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(missing_docs)] // reason: say themselves
#[allow(non_camel_case_types)] // reason: printed as Kubernetes writes them
pub enum Verb {
    get,
    list,
    watch,
    create,
    update,
    patch,
    delete,
}

/// Resources of requests to the API server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(missing_docs)] // reason: the names of the resources
#[allow(non_camel_case_types)] // reason: printed as Kubernetes writes them
pub enum ApiResource {
    databaseaccesspolicies,
    lineagesinks,
    pods,
    namespaces,
    secrets,
    leases,
    events,
    tokenreviews,
    selfsubjectaccessreviews,
    customresourcedefinitions,
    webhookconfigurations,
    other,
}

/// Labels of a request to the API server.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OfRequest {
    /// Verb.
    pub verb: Verb,
    /// Resource.
    pub resource: ApiResource,
}

/// All of it.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// Requests to the API server.
    pub api_requests: Family<OfRequest, Counter>,
    /// Watches that had to start again.
    pub watch_failures: Family<OfResource, Counter>,
    /// Objects that could not be read and were passed over.
    pub unreadable_objects: Family<OfResource, Counter>,
    /// Policies whose status was computed.
    pub reconciles: Counter,
    /// Writes of status.
    pub status_writes: Family<OfWrite, Counter>,
    /// Open streams of sidecars.
    pub streams: Gauge,
    /// Streams that were refused.
    pub streams_refused: Counter,
    /// Snapshots sent.
    pub snapshots_pushed: Counter,
    /// What sidecars answered.
    pub answers: Family<OfAnswer, Counter>,
    /// From the change to the send.
    pub push_seconds: Histogram,
    /// 1 while this replica holds the lease.
    pub leader: Gauge,
    /// Running pods that a policy selects.
    pub matched: Family<OfPolicy, Gauge>,
    /// Those whose sidecar enforces it.
    pub enforced: Family<OfPolicy, Gauge>,
    /// Those without a sidecar.
    pub uninjected: Family<OfPolicy, Gauge>,
    /// Those that have to be restarted.
    pub restart_needed: Family<OfPolicy, Gauge>,
    /// Those that went around the sidecar.
    pub bypassed: Family<OfPolicy, Gauge>,
    /// Receipts that wait in the sidecars of the pods.
    pub receipts_waiting: Family<OfPolicy, Gauge<f64, AtomicU64>>,
}

impl Metrics {
    /// Registers all.
    pub fn new(registry: &mut Registry) -> Arc<Self> {
        let metrics = Self {
            api_requests: Family::default(),
            watch_failures: Family::default(),
            unreadable_objects: Family::default(),
            reconciles: Counter::default(),
            status_writes: Family::default(),
            streams: Gauge::default(),
            streams_refused: Counter::default(),
            snapshots_pushed: Counter::default(),
            answers: Family::default(),
            push_seconds: Histogram::new(exponential_buckets(0.01, 2.0, 12)),
            leader: Gauge::default(),
            matched: Family::default(),
            enforced: Family::default(),
            uninjected: Family::default(),
            restart_needed: Family::default(),
            bypassed: Family::default(),
            receipts_waiting: Family::default(),
        };
        let operator = registry.sub_registry_with_prefix("weir_operator");
        operator.register(
            "api_requests",
            "Requests to the Kubernetes API server",
            metrics.api_requests.clone(),
        );
        operator.register(
            "watch_failures",
            "Watches that failed and start again",
            metrics.watch_failures.clone(),
        );
        operator.register(
            "unreadable_objects",
            "Objects that could not be read and were passed over",
            metrics.unreadable_objects.clone(),
        );
        operator.register(
            "reconciles",
            "Policies whose status was computed",
            metrics.reconciles.clone(),
        );
        operator.register(
            "status_writes",
            "Writes of status, by outcome",
            metrics.status_writes.clone(),
        );
        operator.register("streams", "Open streams of sidecars", metrics.streams.clone());
        operator.register(
            "streams_refused",
            "Streams that were refused",
            metrics.streams_refused.clone(),
        );
        operator.register(
            "snapshots_pushed",
            "Snapshots sent to sidecars",
            metrics.snapshots_pushed.clone(),
        );
        operator.register(
            "snapshot_answers",
            "What sidecars answered to snapshots",
            metrics.answers.clone(),
        );
        operator.register(
            "push_seconds",
            "From a change to its snapshot being sent",
            metrics.push_seconds.clone(),
        );
        operator.register(
            "leader",
            "1 while this replica holds the lease and writes status",
            metrics.leader.clone(),
        );
        let policy = registry.sub_registry_with_prefix("weir_policy");
        policy.register(
            "matched_pods",
            "Running pods that the policy selects",
            metrics.matched.clone(),
        );
        policy.register(
            "enforced_pods",
            "Selected pods whose sidecar enforces this generation",
            metrics.enforced.clone(),
        );
        policy.register(
            "uninjected_pods",
            "Selected pods without a sidecar",
            metrics.uninjected.clone(),
        );
        policy.register(
            "restart_needed_pods",
            "Selected pods whose sidecar does not capture what the policy names",
            metrics.restart_needed.clone(),
        );
        policy.register(
            "bypassed_pods",
            "Selected pods that went around their sidecar",
            metrics.bypassed.clone(),
        );
        policy.register(
            "receipts_waiting",
            "Receipts that wait in the sidecars of the selected pods",
            metrics.receipts_waiting.clone(),
        );
        Arc::new(metrics)
    }

    /// Forgets a policy that is no more.
    pub fn forget(&self, policy: &OfPolicy) {
        self.matched.remove(policy);
        self.enforced.remove(policy);
        self.uninjected.remove(policy);
        self.restart_needed.remove(policy);
        self.bypassed.remove(policy);
        self.receipts_waiting.remove(policy);
    }

    /// Counts a request to the API server.
    pub fn request(&self, method: &str, path: &str, query: Option<&str>) {
        self.api_requests
            .get_or_create(&classify(method, path, query))
            .inc();
    }
}

/// Verb and resource of a request, both from closed lists.
fn classify(method: &str, path: &str, query: Option<&str>) -> OfRequest {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    // /api/v1/… or /apis/GROUP/VERSION/…, then namespaces/NAME/ in front of what is namespaced.
    let rest = match parts.as_slice() {
        ["api", _, rest @ ..] | ["apis", _, _, rest @ ..] => rest,
        _ => &[],
    };
    let rest = match rest {
        ["namespaces", _, rest @ ..] if !rest.is_empty() => rest,
        rest => rest,
    };
    let (resource, named) = match rest {
        [resource] => (*resource, false),
        [resource, ..] => (*resource, true),
        [] => ("", false),
    };
    let resource = match resource {
        "databaseaccesspolicies" => ApiResource::databaseaccesspolicies,
        "lineagesinks" => ApiResource::lineagesinks,
        "pods" => ApiResource::pods,
        "namespaces" => ApiResource::namespaces,
        "secrets" => ApiResource::secrets,
        "leases" => ApiResource::leases,
        "events" => ApiResource::events,
        "tokenreviews" => ApiResource::tokenreviews,
        "selfsubjectaccessreviews" => ApiResource::selfsubjectaccessreviews,
        "customresourcedefinitions" => ApiResource::customresourcedefinitions,
        "mutatingwebhookconfigurations" | "validatingwebhookconfigurations" => {
            ApiResource::webhookconfigurations
        }
        _ => ApiResource::other,
    };
    let watch = query.is_some_and(|query| {
        query
            .split('&')
            .any(|pair| pair == "watch=true" || pair == "watch=1")
    });
    let verb = match method {
        "POST" => Verb::create,
        "PUT" => Verb::update,
        "PATCH" => Verb::patch,
        "DELETE" => Verb::delete,
        _ if watch => Verb::watch,
        _ if named => Verb::get,
        _ => Verb::list,
    };
    OfRequest { verb, resource }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_documented() {
        use crate::certificates::{OfCertificate, OfConfiguration, Which, bundles_metric, ends_metric};
        use crate::identity::{OfIssue, requests_metric};
        use crate::webhook::metrics as webhook;

        let mut registry = Registry::default();
        let metrics = Metrics::new(&mut registry);
        let admission = webhook::Metrics::default();
        admission.register(&mut registry);
        let ends = ends_metric(&mut registry);
        let bundles = bundles_metric(&mut registry);
        let requests = requests_metric(&mut registry);
        // A family without a series is not on the page.
        let of = OfResource {
            resource: Watched::Pods,
        };
        metrics.watch_failures.get_or_create(&of).inc();
        metrics.unreadable_objects.get_or_create(&of).inc();
        metrics.request("GET", "/api/v1/pods", None);
        let outcome = WriteOutcome::Written;
        metrics.status_writes.get_or_create(&OfWrite { outcome }).inc();
        let answer = Answer::Ack;
        metrics.answers.get_or_create(&OfAnswer { answer }).inc();
        let policy = OfPolicy {
            namespace: "shop".to_owned(),
            policy: "orders".to_owned(),
        };
        for family in [
            &metrics.matched,
            &metrics.enforced,
            &metrics.uninjected,
            &metrics.restart_needed,
            &metrics.bypassed,
        ] {
            family.get_or_create(&policy).set(1);
        }
        metrics.receipts_waiting.get_or_create(&policy).set(1.0);
        admission.review(webhook::Reviewed::Pod, webhook::Outcome::Allowed);
        let certificate = Which::Root;
        ends.get_or_create(&OfCertificate { certificate }).set(1);
        let configuration = "weir-pods".to_owned();
        bundles.get_or_create(&OfConfiguration { configuration }).set(1);
        let outcome = crate::identity::Outcome::Pod;
        requests.get_or_create(&OfIssue { outcome }).inc();
        let mut page = String::new();
        prometheus_client::encoding::text::encode(&mut page, &registry).unwrap();
        test_support::metrics_page::compare("weir-operator", &page).unwrap();
    }

    #[test]
    fn requests_are_told_apart() {
        for (method, path, query, verb, resource) in [
            (
                "GET",
                "/api/v1/pods",
                Some("watch=true&x=y"),
                Verb::watch,
                ApiResource::pods,
            ),
            (
                "GET",
                "/api/v1/pods",
                Some("limit=50"),
                Verb::list,
                ApiResource::pods,
            ),
            (
                "GET",
                "/api/v1/namespaces",
                None,
                Verb::list,
                ApiResource::namespaces,
            ),
            (
                "GET",
                "/api/v1/namespaces/a",
                None,
                Verb::get,
                ApiResource::namespaces,
            ),
            (
                "GET",
                "/api/v1/namespaces/a/secrets/b",
                None,
                Verb::get,
                ApiResource::secrets,
            ),
            (
                "PATCH",
                "/apis/weir.dev/v1alpha1/namespaces/a/databaseaccesspolicies/p/status",
                None,
                Verb::patch,
                ApiResource::databaseaccesspolicies,
            ),
            (
                "POST",
                "/apis/events.k8s.io/v1/namespaces/a/events",
                None,
                Verb::create,
                ApiResource::events,
            ),
            ("GET", "/version", None, Verb::list, ApiResource::other),
        ] {
            assert_eq!(
                classify(method, path, query),
                OfRequest { verb, resource },
                "{method} {path}"
            );
        }
    }
}
