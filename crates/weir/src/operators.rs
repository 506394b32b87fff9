//! What only the operators know: which policies each sidecar has applied, and when certificates end.
//!
//! Each replica knows its own streams, so each is asked, on its admin page `/status`, through the API server (`get` of
//! `pods/proxy`): nothing has to be reachable from here but the API server.

use std::collections::HashMap;

use anyhow::{Result, anyhow};
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use serde::{Deserialize, Serialize};

use crate::cluster::{Cluster, explained};

/// The operator's admin port, where a pod does not name it.
const ADMIN_PORT: i32 = 8081;
/// For one replica.
const TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);

/// The page of one replica. What an older operator does not say is absent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Page {
    certificates: Ends,
    collector: Option<CollectorPage>,
    pods: Vec<PodPage>,
}

/// Ends of certificates, Unix seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Ends {
    root: Option<i64>,
    previous_root: Option<i64>,
    pods_issuer: Option<i64>,
    control_issuer: Option<i64>,
    capture_root: Option<i64>,
    operator: Option<i64>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct CollectorPage {
    certificate_not_after: i64,
}

/// What a sidecar told the replica that holds its stream.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct PodPage {
    uid: String,
    pub(crate) version: String,
    pub(crate) policies: Vec<Applied>,
    certificate_not_after: i64,
    pub(crate) receipts_waiting: u64,
    pub(crate) receipts_dropped: u64,
}

impl PodPage {
    /// End of the pod's leaf, Unix seconds; the sidecar tells it after a moment.
    pub(crate) fn certificate_not_after(&self) -> Option<i64> {
        Some(self.certificate_not_after).filter(|end| *end > 0)
    }
}

/// The generation of a policy that a sidecar acknowledged.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Applied {
    #[serde(rename(deserialize = "name"))]
    pub(crate) policy: String,
    pub(crate) generation: i64,
    /// Empty: enforced; else why not.
    pub(crate) reason: String,
    pub(crate) message: String,
}

/// How long before its end a certificate should have been renewed (docs/identity.md).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Renewed when 70 % of a day are over.
    Leaf,
    /// Renewed when ten days are left.
    Issuer,
    /// Renewed when four months are left.
    Root,
    /// Ends by itself.
    PreviousRoot,
}

impl Kind {
    const fn late_seconds(self) -> i64 {
        const HOUR: i64 = 3600;
        match self {
            Self::Leaf => 4 * HOUR,
            Self::Issuer => 7 * 24 * HOUR,
            Self::Root => 60 * 24 * HOUR,
            Self::PreviousRoot => 0,
        }
    }
}

/// A certificate and its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Certificate {
    pub(crate) name: String,
    /// Unix seconds.
    pub(crate) not_after: i64,
    #[serde(skip)]
    kind: Kind,
}

impl Certificate {
    /// It should have been renewed long ago.
    pub(crate) fn is_late(&self, now: i64) -> bool {
        self.not_after.saturating_sub(now) < self.kind.late_seconds()
    }
}

/// Whether a pod's leaf should have been renewed long ago.
pub(crate) fn leaf_is_late(not_after: i64, now: i64) -> bool {
    not_after.saturating_sub(now) < Kind::Leaf.late_seconds()
}

/// What the replicas that answered know.
#[derive(Debug, Default)]
pub(crate) struct Operators {
    pub(crate) certificates: Vec<Certificate>,
    /// By UID.
    pods: HashMap<String, PodPage>,
    /// Replicas that did not answer, and why.
    pub(crate) silent: Vec<String>,
}

impl Operators {
    /// Asks every replica. What cannot be asked is in `silent`.
    pub(crate) async fn ask(cluster: &Cluster) -> Self {
        let silent = |why: String| Self {
            silent: vec![why],
            ..Self::default()
        };
        let api: Api<Pod> = Api::namespaced(cluster.client.clone(), &cluster.weir_namespace);
        let params =
            ListParams::default().labels("app.kubernetes.io/name=weir,app.kubernetes.io/component=operator");
        let pods = match api.list(&params).await {
            Ok(pods) => pods.items,
            Err(error) => return silent(format!("{:#}", explained("pods", error))),
        };
        if pods.is_empty() {
            return silent(format!(
                "no operator runs in namespace {}",
                cluster.weir_namespace
            ));
        }
        let pages = futures_util::future::join_all(pods.iter().map(|pod| page(cluster, pod))).await;
        Self::of(pods.iter().map(ResourceExt::name_any).zip(pages).collect())
    }

    fn of(pages: Vec<(String, Result<Page>)>) -> Self {
        let mut all = Self::default();
        let mut shared: [Option<i64>; 5] = [None; 5];
        let mut operators = Vec::new();
        for (name, page) in pages {
            let page = match page {
                Ok(page) => page,
                Err(error) => {
                    all.silent.push(format!("{name}: {error:#}"));
                    continue;
                }
            };
            let ends = page.certificates;
            for (known, told) in shared.iter_mut().zip([
                ends.root,
                ends.previous_root,
                ends.pods_issuer,
                ends.control_issuer,
                ends.capture_root,
            ]) {
                // Each replica has intermediates of its own: the one that ends first counts.
                *known = match (*known, told) {
                    (Some(one), Some(other)) => Some(one.min(other)),
                    (one, other) => one.or(other),
                };
            }
            operators.extend(ends.operator.map(|end| (format!("operator {name}"), end)));
            operators.extend(
                page.collector
                    .filter(|collector| collector.certificate_not_after > 0)
                    .map(|collector| ("collector".to_owned(), collector.certificate_not_after)),
            );
            all.pods
                .extend(page.pods.into_iter().map(|pod| (pod.uid.clone(), pod)));
        }
        let [root, previous_root, pods_issuer, control_issuer, capture_root] = shared;
        let shared = [
            ("root", root, Kind::Root),
            ("previous root", previous_root, Kind::PreviousRoot),
            ("capture root", capture_root, Kind::Root),
            ("issuer of pods", pods_issuer, Kind::Issuer),
            ("issuer of operator and collector", control_issuer, Kind::Issuer),
        ];
        let certificate = |name: String, not_after, kind| Certificate {
            name,
            not_after,
            kind,
        };
        all.certificates = shared
            .into_iter()
            .filter_map(|(name, end, kind)| Some(certificate(name.to_owned(), end?, kind)))
            .chain(
                operators
                    .into_iter()
                    .map(|(name, end)| certificate(name, end, Kind::Leaf)),
            )
            .collect();
        all
    }

    /// What the sidecar of this pod says.
    pub(crate) fn pod(&self, uid: Option<&str>) -> Option<&PodPage> {
        self.pods.get(uid?)
    }
}

async fn page(cluster: &Cluster, pod: &Pod) -> Result<Page> {
    let port = pod
        .spec
        .iter()
        .flat_map(|spec| spec.containers.iter())
        .flat_map(|container| container.ports.iter().flatten())
        .find(|port| port.name.as_deref() == Some("weir-admin"))
        .map_or(ADMIN_PORT, |port| port.container_port);
    let (namespace, name) = (&cluster.weir_namespace, pod.name_any());
    let path = format!("/api/v1/namespaces/{namespace}/pods/{name}:{port}/proxy/status");
    let request = hyper::Request::get(path).body(Vec::new())?;
    let answer = tokio::time::timeout(TIMEOUT, cluster.client.request_text(request)).await;
    let text = answer
        .map_err(|_| anyhow!("it does not answer the API server in time"))?
        .map_err(|error| match error {
            kube::Error::Api(status) if status.code == 403 => {
                anyhow!("you may not read it: `get` of `pods/proxy` in namespace {namespace} is needed")
            }
            kube::Error::Api(status) => anyhow!("the API server does not reach it: {}", status.message),
            error => explained("pods/proxy", error),
        })?;
    serde_json::from_str(&text).map_err(|error| anyhow!("its page cannot be read: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(text: &str) -> Result<Page> {
        Ok(serde_json::from_str(text)?)
    }

    #[test]
    fn replicas_are_put_together() {
        let all = Operators::of(vec![
            (
                "a".to_owned(),
                told(
                    r#"{"version": "1", "certificates": {"root": 900, "podsIssuer": 500, "operator": 70},
                    "collector": {"version": "1", "certificateNotAfter": 80},
                    "pods": [{"uid": "u1", "version": "1", "certificateNotAfter": 60,
                        "policies": [{"name": "orders", "generation": 3}]}], "new": {}}"#,
                ),
            ),
            (
                "b".to_owned(),
                told(r#"{"certificates": {"root": 900, "podsIssuer": 400}, "pods": [{"uid": "u2"}]}"#),
            ),
            ("c".to_owned(), Err(anyhow!("gone"))),
        ]);
        let ends: Vec<(&str, i64)> = all
            .certificates
            .iter()
            .map(|certificate| (certificate.name.as_str(), certificate.not_after))
            .collect();
        assert_eq!(
            ends,
            [
                ("root", 900),
                ("issuer of pods", 400),
                ("operator a", 70),
                ("collector", 80)
            ]
        );
        let pod = all.pod(Some("u1")).expect("told by a");
        assert_eq!(
            (pod.policies[0].policy.as_str(), pod.policies[0].generation),
            ("orders", 3)
        );
        assert_eq!(pod.certificate_not_after(), Some(60));
        assert_eq!(
            all.pod(Some("u2")).expect("told by b").certificate_not_after(),
            None
        );
        assert_eq!(all.silent, ["c: gone"]);
    }

    /// Each kind is renewed long before: what is nearer its end than this was not.
    #[test]
    fn a_certificate_that_should_have_been_renewed_is_late() {
        const HOUR: i64 = 3600;
        let ends_in = |kind, hours: i64| Certificate {
            name: String::new(),
            not_after: hours * HOUR,
            kind,
        };
        for (kind, fine) in [(Kind::Leaf, 5), (Kind::Issuer, 9 * 24), (Kind::Root, 100 * 24)] {
            assert!(!ends_in(kind, fine).is_late(0), "{kind:?}");
            assert!(ends_in(kind, fine).is_late((fine - 1) * HOUR), "{kind:?}");
        }
        assert!(!ends_in(Kind::PreviousRoot, 1).is_late(0));
    }
}
