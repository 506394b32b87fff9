//! The operator's own certificate (webhooks and gRPC), in memory, renewed by wall clock; and the `caBundle` by which the
//! API server knows it.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use base64::Engine;
use control_api::client::{Held, now};
use control_api::tls::{Alpn, ClientAuth, SwappableConfig, server_config};
use futures_util::StreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{DynamicObject, Patch, PatchParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client};
use pod_injection::contract::{PODS_WEBHOOKS, POLICIES_WEBHOOKS};
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::ca::Authority;

/// Owner of the field `caBundle`.
const MANAGER: &str = "weir-operator-ca";
/// Owner of the ConfigMap with the roots.
const TRUST_MANAGER: &str = "weir-operator-trust";
/// ConfigMap with the roots in Weir's namespace; the collector mounts it.
pub const TRUST_MAP: &str = "weir-trust";
/// Its key.
pub const TRUST_KEY: &str = "roots.pem";
/// How often clock and bundles are looked at.
const CHECK_EVERY: Duration = Duration::from_secs(30);

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum CertificateProblem {
    /// The authority cannot make it.
    #[error(transparent)]
    Ca(#[from] crate::ca::CaProblem),
    /// rustls cannot use it.
    #[error(transparent)]
    Identity(#[from] control_api::identity::IdentityProblem),
}

/// Which certificate a gauge is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Which {
    Root,
    PreviousRoot,
    PodsIssuer,
    ControlIssuer,
    CaptureRoot,
    Webhook,
}

impl EncodeLabelValue for Which {
    fn encode(
        &self,
        encoder: &mut prometheus_client::encoding::LabelValueEncoder<'_>,
    ) -> Result<(), std::fmt::Error> {
        let name = match self {
            Self::Root => "root",
            Self::PreviousRoot => "previous_root",
            Self::PodsIssuer => "pods_issuer",
            Self::ControlIssuer => "control_issuer",
            Self::CaptureRoot => "capture_root",
            Self::Webhook => "webhook",
        };
        name.encode(encoder)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct OfCertificate {
    pub(crate) certificate: Which,
}

pub(crate) fn ends_metric(registry: &mut Registry) -> Family<OfCertificate, Gauge> {
    let ends = Family::default();
    registry.register(
        "weir_certificate_not_after_seconds",
        "When a certificate of this operator ends, Unix seconds",
        ends.clone(),
    );
    ends
}

/// The operator's own certificate, and all that is made of it.
#[derive(Debug)]
pub struct Certificates {
    authority: watch::Receiver<Arc<Authority>>,
    names: Vec<String>,
    held: watch::Sender<Option<Arc<Held>>>,
    webhook: SwappableConfig,
    grpc: SwappableConfig,
    ends: Family<OfCertificate, Gauge>,
}

impl Certificates {
    /// Makes the first one. `names` are what the API server dials: `SERVICE.NAMESPACE.svc`, or the host of a URL.
    ///
    /// # Errors
    /// [`CertificateProblem`]
    pub fn new(
        mut authority: watch::Receiver<Arc<Authority>>,
        names: Vec<String>,
        registry: &mut Registry,
    ) -> Result<Self, CertificateProblem> {
        let ends = ends_metric(registry);
        let current = authority.borrow_and_update().clone();
        let held = current.own(&names, now())?;
        let this = Self {
            webhook: Arc::new(ArcSwap::from_pointee(server(&held, Alpn::Http1)?)),
            grpc: Arc::new(ArcSwap::from_pointee(server(&held, Alpn::H2)?)),
            authority,
            names,
            held: watch::channel(Some(Arc::new(held))).0,
            ends,
        };
        this.show(&current);
        Ok(this)
    }

    /// Key, chain and roots; signs snapshots and reaches other replicas.
    pub fn held(&self) -> watch::Receiver<Option<Arc<Held>>> {
        self.held.subscribe()
    }

    /// TLS of the admission port.
    pub fn webhook(&self) -> SwappableConfig {
        Arc::clone(&self.webhook)
    }

    /// TLS of the gRPC port. A client certificate may be missing: `Identity` has another proof, all other services ask.
    pub fn grpc(&self) -> SwappableConfig {
        Arc::clone(&self.grpc)
    }

    /// Renews until the task is dropped: by the wall clock when 70 % of its life are over, and at once when the authority changes.
    pub async fn run(mut self) {
        loop {
            let changed = tokio::select! {
                changed = self.authority.changed() => {
                    if changed.is_err() {
                        // The store is gone, which happens only at the end of the process.
                        return;
                    }
                    true
                }
                () = tokio::time::sleep(CHECK_EVERY) => false,
            };
            let time = now();
            if !changed && !self.due(time) {
                continue;
            }
            let authority = self.authority.borrow_and_update().clone();
            match self.renew(&authority, time) {
                Ok(()) => self.show(&authority),
                // The old one serves on; tried again at the next look at the clock.
                Err(problem) => tracing::error!(%problem, "the operator's certificate cannot be renewed"),
            }
        }
    }

    fn due(&self, now: i64) -> bool {
        let held = self.held.borrow();
        let Some(held) = held.as_ref() else { return true };
        // What was issued under other roots, or failed to be, is due as well.
        held.trust != self.authority.borrow().trust() || now >= held.renew_at
    }

    fn renew(&self, authority: &Authority, now: i64) -> Result<(), CertificateProblem> {
        let held = authority.own(&self.names, now)?;
        let (webhook, grpc) = (server(&held, Alpn::Http1)?, server(&held, Alpn::H2)?);
        self.webhook.store(Arc::new(webhook));
        self.grpc.store(Arc::new(grpc));
        tracing::info!(
            not_after = held.identity.not_after(),
            "the operator's certificate was renewed"
        );
        self.held.send_replace(Some(Arc::new(held)));
        Ok(())
    }

    fn show(&self, authority: &Authority) {
        let ends = authority.ends();
        let webhook = self.held.borrow().as_ref().map(|held| held.identity.not_after());
        for (certificate, end) in [
            (Which::Root, Some(ends.root)),
            (Which::PreviousRoot, ends.previous_root),
            (Which::PodsIssuer, Some(ends.pods_issuer)),
            (Which::ControlIssuer, Some(ends.control_issuer)),
            (Which::CaptureRoot, Some(ends.capture_root)),
            (Which::Webhook, webhook),
        ] {
            let labels = OfCertificate { certificate };
            match end {
                Some(end) => {
                    self.ends.get_or_create(&labels).set(end);
                }
                None => {
                    self.ends.remove(&labels);
                }
            }
        }
    }
}

fn server(held: &Held, alpn: Alpn) -> Result<rustls::ServerConfig, control_api::identity::IdentityProblem> {
    server_config(&held.trust, &held.identity, ClientAuth::Optional, alpn)
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct OfConfiguration {
    pub(crate) configuration: String,
}

pub(crate) fn bundles_metric(registry: &mut Registry) -> Family<OfConfiguration, Gauge> {
    let right = Family::default();
    registry.register(
        "weir_webhook_ca_bundle_current",
        "1 while the webhook configuration carries the roots that count now",
        right.clone(),
    );
    right
}

/// Kind of a webhook configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Webhooks {
    Mutating,
    Validating,
}

impl Webhooks {
    fn resource(self) -> ApiResource {
        let kind = match self {
            Self::Mutating => "MutatingWebhookConfiguration",
            Self::Validating => "ValidatingWebhookConfiguration",
        };
        ApiResource::from_gvk(&GroupVersionKind::gvk("admissionregistration.k8s.io", "v1", kind))
    }
}

/// Keeps `caBundle` of Weir's webhook configurations equal to the roots. All replicas look, the holder of the lease writes.
pub struct CaBundles {
    client: Client,
    authority: watch::Receiver<Arc<Authority>>,
    right: Family<OfConfiguration, Gauge>,
}

impl std::fmt::Debug for CaBundles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CaBundles").finish_non_exhaustive()
    }
}

impl CaBundles {
    /// For the configurations of the chart.
    pub fn new(client: Client, authority: watch::Receiver<Arc<Authority>>, registry: &mut Registry) -> Self {
        let right = bundles_metric(registry);
        Self {
            client,
            authority,
            right,
        }
    }

    /// Watches and repairs until the task is dropped.
    pub async fn run(mut self, mut is_leader: watch::Receiver<bool>) {
        let mut mutating = Watched::new(&self.client, PODS_WEBHOOKS, Webhooks::Mutating);
        let mut validating = Watched::new(&self.client, POLICIES_WEBHOOKS, Webhooks::Validating);
        loop {
            tokio::select! {
                () = mutating.next() => {}
                () = validating.next() => {}
                changed = self.authority.changed() => if changed.is_err() { return },
                changed = is_leader.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(CHECK_EVERY) => {}
            }
            let bundle = bundle(&self.authority.borrow_and_update().clone());
            let leads = *is_leader.borrow_and_update();
            for watched in [&mut mutating, &mut validating] {
                let right = watched.keep(&bundle, leads).await;
                let configuration = watched.name.clone();
                self.right
                    .get_or_create(&OfConfiguration { configuration })
                    .set(i64::from(right));
            }
        }
    }
}

/// One configuration, as last seen.
struct Watched {
    api: Api<DynamicObject>,
    resource: ApiResource,
    name: String,
    events: futures_util::stream::BoxStream<'static, Result<Event<DynamicObject>, watcher::Error>>,
    object: Option<DynamicObject>,
}

impl Watched {
    fn new(client: &Client, name: &str, kind: Webhooks) -> Self {
        let resource = kind.resource();
        let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
        let selected = watcher::Config::default().fields(&format!("metadata.name={name}"));
        Self {
            events: watcher::watcher(api.clone(), selected).default_backoff().boxed(),
            api,
            resource,
            name: name.to_owned(),
            object: None,
        }
    }

    /// Cancel safe: an event is taken or it is not.
    async fn next(&mut self) {
        match self.events.next().await {
            Some(Ok(Event::InitApply(object) | Event::Apply(object))) => self.object = Some(object),
            Some(Ok(Event::Init | Event::Delete(_))) => self.object = None,
            Some(Ok(Event::InitDone)) => {}
            Some(Err(error)) => tracing::warn!(%error, "cannot watch a webhook configuration"),
            // A watcher has no end; were it one, this must not spin.
            None => std::future::pending().await,
        }
    }

    /// Whether it is right; the holder of the lease makes it so.
    async fn keep(&mut self, bundle: &str, leads: bool) -> bool {
        let Some(object) = &self.object else { return false };
        let Some(patch) = repair(object, &self.resource, &self.name, bundle) else {
            return true;
        };
        if !leads {
            return false;
        }
        // Forced: whoever else writes the field writes a bundle that nothing would answer to.
        let params = PatchParams::apply(MANAGER).force();
        match self.api.patch(&self.name, &params, &Patch::Apply(&patch)).await {
            Ok(object) => {
                tracing::info!(kind = self.resource.kind, name = self.name, "caBundle written");
                self.object = Some(object);
                true
            }
            Err(error) => {
                tracing::warn!(%error, kind = self.resource.kind, name = self.name, "cannot write caBundle");
                false
            }
        }
    }
}

/// Keeps the ConfigMap [`TRUST_MAP`] equal to the roots. The holder of the lease writes it.
pub struct TrustMap {
    api: Api<ConfigMap>,
    authority: watch::Receiver<Arc<Authority>>,
}

impl std::fmt::Debug for TrustMap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TrustMap").finish_non_exhaustive()
    }
}

impl TrustMap {
    /// In Weir's own namespace.
    pub fn new(client: Client, namespace: &str, authority: watch::Receiver<Arc<Authority>>) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            authority,
        }
    }

    /// Writes until the task is dropped: at once when the roots change or this replica begins to lead, and whenever a
    /// look finds it missing or changed.
    pub async fn run(mut self, mut is_leader: watch::Receiver<bool>) {
        loop {
            if *is_leader.borrow_and_update() {
                let pem = self.authority.borrow_and_update().trust().to_pem();
                if let Err(error) = self.keep(&pem).await {
                    tracing::warn!(%error, map = TRUST_MAP, "cannot write the roots");
                }
            }
            tokio::select! {
                changed = self.authority.changed() => if changed.is_err() { return },
                changed = is_leader.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(CHECK_EVERY) => {}
            }
        }
    }

    async fn keep(&self, pem: &str) -> Result<(), kube::Error> {
        let current = self.api.get_opt(TRUST_MAP).await?.and_then(|map| map.data);
        if current.is_some_and(|data| data.get(TRUST_KEY).is_some_and(|held| held == pem)) {
            return Ok(());
        }
        let map = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": TRUST_MAP, "labels": {"app.kubernetes.io/part-of": "weir"}},
            "data": {TRUST_KEY: pem},
        });
        // Forced: roots that somebody else put there would be trusted by the collector.
        let params = PatchParams::apply(TRUST_MANAGER).force();
        self.api.patch(TRUST_MAP, &params, &Patch::Apply(&map)).await?;
        tracing::info!(map = TRUST_MAP, "roots written");
        Ok(())
    }
}

fn bundle(authority: &Authority) -> String {
    base64::engine::general_purpose::STANDARD.encode(authority.trust().to_pem())
}

/// What to apply so that every webhook of the configuration carries the bundle; nothing if all do.
fn repair(object: &DynamicObject, resource: &ApiResource, name: &str, bundle: &str) -> Option<Value> {
    let webhooks = object.data.get("webhooks").and_then(Value::as_array)?;
    let is_right =
        |webhook: &Value| webhook.pointer("/clientConfig/caBundle").and_then(Value::as_str) == Some(bundle);
    if webhooks.iter().all(is_right) {
        return None;
    }
    // All of them, always: what an apply leaves out, its manager gives up.
    let webhooks: Vec<Value> = webhooks
        .iter()
        .filter_map(|webhook| webhook.get("name"))
        .map(|name| json!({"name": name, "clientConfig": {"caBundle": bundle}}))
        .collect();
    Some(json!({
        "apiVersion": resource.api_version,
        "kind": resource.kind,
        "metadata": {"name": name},
        "webhooks": webhooks,
    }))
}
