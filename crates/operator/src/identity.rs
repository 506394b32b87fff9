//! The `Identity` service: who brings a token that the API server says is a living, injected pod's gets a leaf for it.
//!
//! ```text
//!  token ──TokenReview (audience weir.dev/identity)──► account, pod name, pod UID
//!        ──GET pod──► the same UID and account, alive, our sidecar in front ──► leaf
//! ```
//! The pod is always read from the API server, not from what we watch: a leaf is rare (one a pod and day), a pod that
//! began a moment ago must be found, and one that is gone must not.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use control_api::TOKEN_AUDIENCE;
use control_api::client::now;
use control_api::peer::PodIdentity;
use control_api::proto::identity_server::{Identity as Service, IdentityServer};
use control_api::proto::{IssueReply, IssueRequest};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use pod_injection::contract;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use tokio::sync::{Semaphore, watch};
use tonic::{Request, Response, Status};

use crate::ca::{Authority, CaProblem};

/// Requests at one time; TokenReview is what costs.
const AT_ONCE: usize = 50;
/// Whoever waits longer for a place is told to come back.
const PLACE_WAIT: Duration = Duration::from_secs(5);
/// The API server may take so long for each of our two questions.
const ANSWER_WAIT: Duration = Duration::from_secs(5);
/// A token that was good is not reviewed again for so long.
const REVIEW_LIFE: Duration = Duration::from_secs(60);
/// Reviews that are remembered.
const REVIEWS_MAX: usize = 20_000;
/// Largest message: a token and a request are a few kB.
const MESSAGE_BYTES_MAX: usize = 64 * 1024;
/// A pod that was to be gone so long ago is not just ending.
const TERMINATING_MAX_S: i64 = 60;

/// `TokenReview` puts a pod's name here.
const EXTRA_POD_NAME: &str = "authentication.kubernetes.io/pod-name";
/// And its UID here.
const EXTRA_POD_UID: &str = "authentication.kubernetes.io/pod-uid";

/// What the token proves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    /// Of account and pod.
    pub namespace: String,
    /// Account.
    pub service_account: String,
    /// Pod.
    pub pod_name: String,
    /// Pod.
    pub pod_uid: String,
}

/// Why no leaf is issued.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Not a token for us.
    #[error("the token is refused: {0}")]
    Token(String),
    /// A token, but of somebody else than a service account.
    #[error("the token is not of a service account, but of `{0}`")]
    NotAServiceAccount(String),
    /// A token that is not bound to a pod.
    #[error("the token is bound to no pod: use a projected token with audience {TOKEN_AUDIENCE}")]
    NotBound,
    /// Gone, or made anew under the same name.
    #[error("the pod {0} is gone")]
    Gone(String),
    /// Ended, or to be gone for long.
    #[error("the pod {0} has ended")]
    Ended(String),
    /// The token is of another account than the pod's.
    #[error("the pod {pod} runs as service account `{runs_as}`, the token is of `{token}`")]
    OtherAccount {
        /// Pod.
        pod: String,
        /// Its account.
        runs_as: String,
        /// The token's.
        token: String,
    },
    /// Our sidecar is not where we put it.
    #[error("the pod {pod} is not injected: {why}")]
    NotInjected {
        /// Pod.
        pod: String,
        /// Why.
        why: &'static str,
    },
    /// The certificate request.
    #[error("{0}")]
    Request(String),
    /// The API server did not answer.
    #[error("the API server cannot be asked: {0}")]
    ApiServer(String),
    /// Too many ask.
    #[error("too many requests at one time; ask again")]
    Busy,
    /// Our own fault.
    #[error("no certificate can be made")]
    Internal,
}

/// Label `outcome` of the counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(missing_docs)] // reason: the names of the refusals
pub enum Outcome {
    Pod,
    Collector,
    Token,
    NotAServiceAccount,
    NotBound,
    Gone,
    Ended,
    OtherAccount,
    NotInjected,
    Request,
    ApiServer,
    Busy,
    Internal,
}

impl Refusal {
    fn outcome(&self) -> Outcome {
        match self {
            Self::Token(_) => Outcome::Token,
            Self::NotAServiceAccount(_) => Outcome::NotAServiceAccount,
            Self::NotBound => Outcome::NotBound,
            Self::Gone(_) => Outcome::Gone,
            Self::Ended(_) => Outcome::Ended,
            Self::OtherAccount { .. } => Outcome::OtherAccount,
            Self::NotInjected { .. } => Outcome::NotInjected,
            Self::Request(_) => Outcome::Request,
            Self::ApiServer(_) => Outcome::ApiServer,
            Self::Busy => Outcome::Busy,
            Self::Internal => Outcome::Internal,
        }
    }

    fn status(&self) -> Status {
        let text = self.to_string();
        match self {
            Self::Token(_) => Status::unauthenticated(text),
            Self::NotAServiceAccount(_)
            | Self::NotBound
            | Self::OtherAccount { .. }
            | Self::NotInjected { .. } => Status::permission_denied(text),
            Self::Gone(_) | Self::Ended(_) => Status::failed_precondition(text),
            Self::Request(_) => Status::invalid_argument(text),
            Self::ApiServer(_) => Status::unavailable(text),
            Self::Busy => Status::resource_exhausted(text),
            Self::Internal => Status::internal(text),
        }
    }
}

/// Labels of the counter.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct OfIssue {
    pub(crate) outcome: Outcome,
}

pub(crate) fn requests_metric(registry: &mut Registry) -> Family<OfIssue, Counter> {
    let issued = Family::default();
    registry.register(
        "weir_identity_requests",
        "Requests for a certificate, by how they ended",
        issued.clone(),
    );
    issued
}

/// Who is who in this cluster.
#[derive(Debug, Clone)]
pub struct IdentitySettings {
    /// Weir's own.
    pub namespace: String,
    /// The collector's account, in that namespace.
    pub collector_service_account: String,
    /// Containers that may stand before the sidecar.
    pub network_proxies: Vec<String>,
}

/// The service.
pub struct Issuer {
    client: Client,
    authority: watch::Receiver<Arc<Authority>>,
    settings: IdentitySettings,
    places: Semaphore,
    reviews: Mutex<HashMap<[u8; 32], (Instant, Proof)>>,
    issued: Family<OfIssue, Counter>,
}

impl std::fmt::Debug for Issuer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Issuer")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

impl Issuer {
    /// Issues with this authority.
    pub fn new(
        client: Client,
        authority: watch::Receiver<Arc<Authority>>,
        settings: IdentitySettings,
        registry: &mut Registry,
    ) -> Self {
        let issued = requests_metric(registry);
        Self {
            client,
            authority,
            settings,
            places: Semaphore::new(AT_ONCE),
            reviews: Mutex::default(),
            issued,
        }
    }

    /// For tonic, with its limit set.
    pub fn into_server(self) -> IdentityServer<Self> {
        IdentityServer::new(self).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    async fn answer(&self, request: &IssueRequest) -> Result<(Outcome, IssueReply), Refusal> {
        let _place = tokio::time::timeout(PLACE_WAIT, self.places.acquire())
            .await
            .map_err(|_| Refusal::Busy)?
            .map_err(|_| Refusal::Busy)?;
        let proof = self.review(&request.token).await?;
        let pod = self.pod(&proof).await?;
        // Only now: whoever is refused learns nothing by sending odd requests.
        let authority = self.authority.borrow().clone();
        let time = now();
        let collector = proof.namespace == self.settings.namespace
            && proof.service_account == self.settings.collector_service_account;
        let issued = if collector {
            check_pod(&proof, pod.as_ref(), time)?;
            authority
                .issue_collector(&request.csr, time)
                .map(|reply| (Outcome::Collector, reply))
        } else {
            let pod = check_pod(&proof, pod.as_ref(), time)?;
            check_injected(&proof, pod, &self.settings.network_proxies)?;
            let identity = PodIdentity {
                trust_domain: authority.trust_domain().to_owned(),
                namespace: proof.namespace.clone(),
                service_account: proof.service_account.clone(),
                pod_uid: proof.pod_uid.clone(),
            };
            authority
                .issue_pod(&request.csr, &identity, time)
                .map(|reply| (Outcome::Pod, reply))
        };
        let (outcome, reply) = issued.map_err(|problem| match problem {
            CaProblem::Request(_) => Refusal::Request(problem.to_string()),
            CaProblem::Hosts(_) | CaProblem::Stored { .. } | CaProblem::Make(_) => {
                tracing::error!(%problem, "no certificate can be made");
                Refusal::Internal
            }
        })?;
        tracing::info!(
            namespace = proof.namespace,
            service_account = proof.service_account,
            pod = proof.pod_name,
            uid = proof.pod_uid,
            version = %request.version.chars().take(32).collect::<String>(),
            not_after = reply.not_after,
            "certificate issued"
        );
        Ok((outcome, reply))
    }

    /// What the API server says of the token.
    async fn review(&self, token: &str) -> Result<Proof, Refusal> {
        if token.is_empty() {
            return Err(Refusal::Token("there is none".to_owned()));
        }
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, token.as_bytes());
        let hash: [u8; 32] = digest.as_ref().try_into().map_err(|_| Refusal::Internal)?;
        if let Some(proof) = self.reviewed(&hash) {
            return Ok(proof);
        }
        let review = TokenReview {
            metadata: ObjectMeta::default(),
            spec: TokenReviewSpec {
                audiences: Some(vec![TOKEN_AUDIENCE.to_owned()]),
                token: Some(token.to_owned()),
            },
            status: None,
        };
        let api: Api<TokenReview> = Api::all(self.client.clone());
        let params = PostParams::default();
        let asking = api.create(&params, &review);
        let status = tokio::time::timeout(ANSWER_WAIT, asking)
            .await
            .map_err(|_| Refusal::ApiServer("no answer in time".to_owned()))?
            .map_err(|error| Refusal::ApiServer(error.to_string()))?
            .status
            .unwrap_or_default();
        let proof = check_review(&status)?;
        let mut reviews = self.reviews.lock().unwrap_or_else(PoisonError::into_inner);
        if reviews.len() >= REVIEWS_MAX {
            reviews.retain(|_, (at, _)| at.elapsed() < REVIEW_LIFE);
        }
        // Full of young ones: the token is reviewed again, which is only slower.
        if reviews.len() < REVIEWS_MAX {
            reviews.insert(hash, (Instant::now(), proof.clone()));
        }
        Ok(proof)
    }

    fn reviewed(&self, hash: &[u8; 32]) -> Option<Proof> {
        let reviews = self.reviews.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, proof) = reviews.get(hash)?;
        (at.elapsed() < REVIEW_LIFE).then(|| proof.clone())
    }

    async fn pod(&self, proof: &Proof) -> Result<Option<Pod>, Refusal> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &proof.namespace);
        tokio::time::timeout(ANSWER_WAIT, api.get_opt(&proof.pod_name))
            .await
            .map_err(|_| Refusal::ApiServer("no answer in time".to_owned()))?
            .map_err(|error| Refusal::ApiServer(error.to_string()))
    }
}

#[tonic::async_trait]
impl Service for Issuer {
    async fn issue(&self, request: Request<IssueRequest>) -> Result<Response<IssueReply>, Status> {
        let request = request.into_inner();
        match self.answer(&request).await {
            Ok((outcome, reply)) => {
                self.issued.get_or_create(&OfIssue { outcome }).inc();
                Ok(Response::new(reply))
            }
            Err(refusal) => {
                let outcome = refusal.outcome();
                self.issued.get_or_create(&OfIssue { outcome }).inc();
                tracing::warn!(%refusal, "no certificate issued");
                Err(refusal.status())
            }
        }
    }
}

/// What a TokenReview proves: a service account, and the pod that its token is bound to.
///
/// # Errors
/// [`Refusal`]
pub fn check_review(status: &TokenReviewStatus) -> Result<Proof, Refusal> {
    if status.authenticated != Some(true) {
        let why = status
            .error
            .as_deref()
            .unwrap_or("the API server does not know it");
        return Err(Refusal::Token(why.chars().take(300).collect()));
    }
    // A webhook authenticator that knows no audiences answers without any: that proves nothing to us.
    if !status
        .audiences
        .iter()
        .flatten()
        .any(|audience| audience == TOKEN_AUDIENCE)
    {
        return Err(Refusal::Token(format!(
            "it is not for the audience {TOKEN_AUDIENCE}"
        )));
    }
    let user = status
        .user
        .as_ref()
        .ok_or_else(|| Refusal::Token("it names nobody".to_owned()))?;
    let username = user.username.as_deref().unwrap_or_default();
    let stranger = || Refusal::NotAServiceAccount(username.chars().take(100).collect());
    let account = username
        .strip_prefix("system:serviceaccount:")
        .ok_or_else(stranger)?;
    let (namespace, service_account) = account.split_once(':').ok_or_else(stranger)?;
    let one = |key: &str| match user
        .extra
        .as_ref()
        .and_then(|extra| extra.get(key))
        .map(Vec::as_slice)
    {
        Some([value])
            if control_api::peer::read_uri(&format!("spiffe://a/ns/a/sa/a/pod/{value}")).is_ok() =>
        {
            Ok(value.clone())
        }
        _ => Err(Refusal::NotBound),
    };
    let proof = Proof {
        namespace: namespace.to_owned(),
        service_account: service_account.to_owned(),
        pod_name: one(EXTRA_POD_NAME)?,
        pod_uid: one(EXTRA_POD_UID)?,
    };
    // All of them become parts of a URI.
    let uri = format!(
        "spiffe://a/ns/{namespace}/sa/{service_account}/pod/{}",
        proof.pod_uid
    );
    control_api::peer::read_uri(&uri).map_err(|_| stranger())?;
    Ok(proof)
}

/// The pod of the token is there, the same, and alive.
///
/// # Errors
/// [`Refusal`]
pub fn check_pod<'a>(proof: &Proof, pod: Option<&'a Pod>, now: i64) -> Result<&'a Pod, Refusal> {
    let name = || format!("{}/{}", proof.namespace, proof.pod_name);
    let pod = pod
        .filter(|pod| pod.metadata.uid.as_deref() == Some(&proof.pod_uid))
        .ok_or_else(|| Refusal::Gone(name()))?;
    let account = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.service_account_name.as_deref());
    let account = account.unwrap_or("default");
    if account != proof.service_account {
        return Err(Refusal::OtherAccount {
            pod: name(),
            runs_as: account.to_owned(),
            token: proof.service_account.clone(),
        });
    }
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    // The time already includes the grace period.
    let gone_at = pod
        .metadata
        .deletion_timestamp
        .as_ref()
        .map(|time| time.0.as_second());
    let late = gone_at.is_some_and(|at| now > at.saturating_add(TERMINATING_MAX_S));
    if late || matches!(phase, Some("Succeeded" | "Failed")) {
        return Err(Refusal::Ended(name()));
    }
    Ok(pod)
}

/// Our sidecar is in front of all that the application brings. The backstop policies keep it so; this looks again.
///
/// # Errors
/// [`Refusal::NotInjected`]
pub fn check_injected(proof: &Proof, pod: &Pod, network_proxies: &[String]) -> Result<(), Refusal> {
    let refused = |why| Refusal::NotInjected {
        pod: format!("{}/{}", proof.namespace, proof.pod_name),
        why,
    };
    let label = pod
        .metadata
        .labels
        .as_ref()
        .and_then(|labels| labels.get(contract::INJECTED_LABEL));
    if label.map(String::as_str) != Some("true") {
        return Err(refused("it has no label weir.dev/injected"));
    }
    let annotations = pod.metadata.annotations.as_ref();
    let annotation = annotations.and_then(|all| all.get(contract::INJECTED));
    if annotation.is_none_or(|text| serde_json::from_str::<contract::Injected>(text).is_err()) {
        return Err(refused("it has no annotation weir.dev/injected"));
    }
    let containers = pod
        .spec
        .iter()
        .flat_map(|spec| spec.init_containers.iter().flatten());
    let first = containers
        .into_iter()
        .find(|container| !network_proxies.contains(&container.name));
    match first {
        Some(first)
            if first.name == contract::CONTAINER && first.restart_policy.as_deref() == Some("Always") =>
        {
            Ok(())
        }
        _ => Err(refused("the sidecar is not in front of its other containers")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// What a refusal speaks of, and what brings it about.
    type Case = (&'static str, fn(&mut Value));

    fn review(change: impl Fn(&mut Value)) -> Result<Proof, Refusal> {
        let mut status = json!({
            "authenticated": true,
            "audiences": [TOKEN_AUDIENCE],
            "user": {
                "username": "system:serviceaccount:shop:orders",
                "extra": {EXTRA_POD_NAME: ["orders-1"], EXTRA_POD_UID: ["uid-1"]},
            },
        });
        change(&mut status);
        check_review(&serde_json::from_value(status).unwrap())
    }

    fn proof() -> Proof {
        Proof {
            namespace: "shop".to_owned(),
            service_account: "orders".to_owned(),
            pod_name: "orders-1".to_owned(),
            pod_uid: "uid-1".to_owned(),
        }
    }

    #[test]
    fn a_review_proves_a_pod_or_nothing() {
        assert_eq!(review(|_| ()), Ok(proof()));
        let refused: [Case; 12] = [
            ("not authenticated", |status| {
                status["authenticated"] = json!(false)
            }),
            ("no verdict", |status| status["authenticated"] = Value::Null),
            ("no audiences", |status| status["audiences"] = Value::Null),
            ("another audience", |status| {
                status["audiences"] = json!(["https://kubernetes.default.svc"])
            }),
            ("no user", |status| status["user"] = Value::Null),
            ("a person", |status| status["user"]["username"] = json!("alice")),
            ("a node", |status| {
                status["user"]["username"] = json!("system:node:n1")
            }),
            ("half an account", |status| {
                status["user"]["username"] = json!("system:serviceaccount:shop")
            }),
            ("an odd account", |status| {
                status["user"]["username"] = json!("system:serviceaccount:shop:a/b")
            }),
            ("no pod", |status| status["user"]["extra"] = json!({})),
            ("two UIDs", |status| {
                status["user"]["extra"][EXTRA_POD_UID] = json!(["a", "b"])
            }),
            ("a UID with a slash", |status| {
                status["user"]["extra"][EXTRA_POD_UID] = json!(["a/b"])
            }),
        ];
        for (what, change) in refused {
            assert!(review(change).is_err(), "{what}");
        }
        assert_eq!(
            review(|status| status["user"]["extra"] = Value::Null),
            Err(Refusal::NotBound)
        );
    }

    fn pod(change: impl Fn(&mut Value)) -> Pod {
        let mut pod = json!({
            "metadata": {
                "name": "orders-1", "namespace": "shop", "uid": "uid-1",
                "labels": {"weir.dev/injected": "true"},
                "annotations": {"weir.dev/injected": r#"{"version":"1","image":"weir:1"}"#},
            },
            "spec": {
                "serviceAccountName": "orders",
                "initContainers": [{"name": "weir-sidecar", "restartPolicy": "Always"}, {"name": "migrate"}],
                "containers": [{"name": "app"}],
            },
            "status": {"phase": "Pending"},
        });
        change(&mut pod);
        serde_json::from_value(pod).unwrap()
    }

    fn checked(pod: &Pod) -> Result<(), Refusal> {
        let pod = check_pod(&proof(), Some(pod), 1_800_000_000)?;
        check_injected(&proof(), pod, &["istio-proxy".to_owned()])
    }

    #[test]
    fn a_living_injected_pod_passes() {
        assert_eq!(checked(&pod(|_| ())), Ok(()));
        // Behind a network proxy, and while it ends (2027-01-15T08:00:00Z is `now`).
        let changes: [fn(&mut Value); 2] = [
            |pod| {
                pod["spec"]["initContainers"]
                    .as_array_mut()
                    .unwrap()
                    .insert(0, json!({"name": "istio-proxy"}))
            },
            |pod| pod["metadata"]["deletionTimestamp"] = json!("2027-01-15T07:59:30Z"),
        ];
        for change in changes {
            assert_eq!(checked(&pod(change)), Ok(()));
        }
    }

    #[test]
    fn others_are_refused_with_the_reason() {
        assert_eq!(
            check_pod(&proof(), None, 0),
            Err(Refusal::Gone("shop/orders-1".to_owned()))
        );
        let changes: [Case; 12] = [
            ("is gone", |pod| pod["metadata"]["uid"] = json!("uid-2")),
            ("is gone", |pod| pod["metadata"]["uid"] = Value::Null),
            ("service account `default`", |pod| {
                pod["spec"]["serviceAccountName"] = Value::Null
            }),
            ("service account `other`", |pod| {
                pod["spec"]["serviceAccountName"] = json!("other")
            }),
            ("has ended", |pod| pod["status"]["phase"] = json!("Failed")),
            ("has ended", |pod| pod["status"]["phase"] = json!("Succeeded")),
            ("has ended", |pod| {
                pod["metadata"]["deletionTimestamp"] = json!("2027-01-15T07:58:30Z")
            }),
            ("no label", |pod| pod["metadata"]["labels"] = json!({})),
            ("no annotation", |pod| {
                pod["metadata"]["annotations"]["weir.dev/injected"] = json!("true")
            }),
            ("not in front", |pod| pod["spec"]["initContainers"] = Value::Null),
            ("not in front", |pod| {
                pod["spec"]["initContainers"].as_array_mut().unwrap().reverse()
            }),
            ("not in front", |pod| {
                pod["spec"]["initContainers"][0]["restartPolicy"] = Value::Null
            }),
        ];
        for (part, change) in changes {
            let refusal = checked(&pod(change)).expect_err(part).to_string();
            assert!(refusal.contains(part), "{part}: {refusal}");
        }
    }
}
