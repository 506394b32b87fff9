//! Wires the parts together, and takes them apart again in the right order.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use control_api::client::Held;
use control_api::proto::peers_server::PeersServer;
use control_api::proto::policies_server::PoliciesServer;
use control_api::proto::sinks_server::SinksServer;
use control_api::tls::{SwappableConfig, incoming};
use kube::Client;
use kube::client::ClientBuilder;
use prometheus_client::registry::Registry;
use service_runtime::admin::{self, Pages};
use service_runtime::drain::{self, Drain, Stage, Trigger};
use service_runtime::health::Health;
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tonic::service::Routes;

use crate::ca::Authority;
use crate::ca::store::{Store, StoreConfig};
use crate::certificates::{CaBundles, Certificates, TrustMap};
use crate::events::Events;
use crate::identity::{IdentitySettings, Issuer};
use crate::lease;
use crate::metrics::Metrics;
use crate::peers::{PeersService, REPORT_BYTES_MAX, Teller};
use crate::preflight;
use crate::reports::Reports;
use crate::settings::{Options, Settings};
use crate::sinks::SinksService;
use crate::streams::{Hub, PoliciesService};
use crate::view::WorldView;
use crate::watches::{self, Watches};
use crate::webhook::{self, Webhook};
use crate::world::{Change, Listener, World};
use crate::writer::Writer;

/// Largest message of a sidecar or collector.
const MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Streams get this long to end.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// What the parts share.
#[derive(Clone)]
pub struct Shared {
    /// The API server.
    pub client: Client,
    /// What the owner decided.
    pub settings: Arc<Settings>,
    /// Where this process runs.
    pub options: Arc<Options>,
    /// What is known of the cluster.
    pub world: Arc<World>,
    /// What sidecars and collector say.
    pub reports: Arc<Reports>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Streams of sidecars.
    pub hub: Arc<Hub>,
    /// What issues certificates.
    pub authority: watch::Receiver<Arc<Authority>>,
    /// Our certificate and roots.
    pub keys: watch::Receiver<Option<Arc<Held>>>,
    /// TLS of the admission port.
    pub webhook_tls: SwappableConfig,
    /// TLS of the gRPC port.
    pub grpc_tls: SwappableConfig,
    /// Since when we hold the lease.
    pub holding: lease::Holding,
    /// Conditions of readiness.
    pub health: Health,
    /// The end.
    pub drain: Drain,
}

/// Runs until SIGTERM.
///
/// # Errors
/// What keeps the operator from starting, or a part that failed for good.
pub async fn run(options: Options, settings: Settings) -> anyhow::Result<()> {
    let mut registry = Registry::default();
    let metrics = Metrics::new(&mut registry);
    let config = kube::Config::infer().await.context("no cluster is configured")?;
    let client = client(config, Arc::clone(&metrics))?;
    preflight::check(&client, &settings.namespace).await?;

    let (trigger, drain) = drain::channel();
    tokio::spawn(trigger.clone().on_signals());
    let health = Health::new(&watches::CONDITIONS);
    let mut config = StoreConfig::new(&settings.namespace, &settings.trust_domain);
    // An old root stays until the last snapshot under it has ended, too.
    config.lifetimes.snapshot_s = i64::from(settings.snapshot_valid_seconds);
    let store = Store::open(client.clone(), config).await?;
    let authority = store.authority();
    let certificates = Certificates::new(authority.clone(), settings.webhook_names(), &mut registry)?;
    let keys = certificates.held();
    let (holding_sender, holding) = watch::channel(None);
    let world = Arc::new(World::default());
    let reports = Arc::new(Reports::default());
    let hub = Hub::new(
        Arc::clone(&world),
        Arc::clone(&reports),
        Arc::clone(&metrics),
        keys.clone(),
        settings.collector.url.clone(),
        Duration::from_secs(u64::from(settings.snapshot_valid_seconds)),
        drain.clone(),
    );
    let shared = Shared {
        client,
        settings: Arc::new(settings),
        options: Arc::new(options),
        world,
        reports,
        metrics,
        hub,
        authority: authority.clone(),
        keys,
        webhook_tls: certificates.webhook(),
        grpc_tls: certificates.grpc(),
        holding,
        health,
        drain,
    };
    let mut tasks = JoinSet::new();
    let leads = leading(shared.holding.clone());
    tasks.spawn(store.run(leads.clone()));
    tasks.spawn(certificates.run());
    let bundles = CaBundles::new(shared.client.clone(), authority.clone(), &mut registry);
    tasks.spawn(bundles.run(leads.clone()));
    let map = TrustMap::new(
        shared.client.clone(),
        &shared.settings.namespace,
        authority.clone(),
    );
    tasks.spawn(map.run(leads));
    let issuer = Issuer::new(
        shared.client.clone(),
        authority.clone(),
        IdentitySettings {
            namespace: shared.settings.namespace.clone(),
            collector_service_account: shared.settings.collector.service_account.clone(),
            network_proxies: shared.settings.injection.network_proxies.clone(),
        },
        &mut registry,
    );
    let routes = Routes::new(issuer.into_server());
    shared.hub.issue_capture_with(Box::new(move |csr, hosts| {
        authority
            .borrow()
            .issue_capture(csr, hosts, control_api::client::now())
            .map_err(|problem| problem.to_string())
    }));
    // The rest of `tasks` is aborted when it is dropped: nothing of it has to end in good order.
    serve(shared, registry, trigger, holding_sender, routes).await
}

/// Whether we hold the lease, as the authority wants to know it.
fn leading(mut holding: lease::Holding) -> watch::Receiver<bool> {
    let (sender, receiver) = watch::channel(false);
    tokio::spawn(async move {
        loop {
            sender.send_replace(holding.borrow_and_update().is_some());
            tokio::select! {
                changed = holding.changed() => if changed.is_err() { return },
                () = sender.closed() => return,
            }
        }
    });
    receiver
}

/// A client that counts its requests.
///
/// # Errors
/// When the configuration makes no client.
pub fn client(config: kube::Config, metrics: Arc<Metrics>) -> anyhow::Result<Client> {
    let count = tower::util::MapRequestLayer::new(move |request: hyper::Request<kube::client::Body>| {
        let uri = request.uri();
        metrics.request(request.method().as_str(), uri.path(), uri.query());
        request
    });
    Ok(ClientBuilder::try_from(config)?.with_layer(&count).build())
}

/// Serves until drained.
///
/// # Errors
/// When a port cannot be bound.
pub async fn serve(
    shared: Shared,
    registry: Registry,
    trigger: Trigger,
    holding: watch::Sender<Option<std::time::Instant>>,
    routes: Routes,
) -> anyhow::Result<()> {
    let address = |port| SocketAddr::new(shared.options.pod_ip, port);
    let ports = shared.settings.ports;
    let admin_listener = bind(address(ports.admin)).await?;
    let grpc_listener = bind(address(ports.grpc)).await?;
    let webhook_listener = bind(address(ports.webhook)).await?;
    let webhook_metrics = webhook::Metrics::default();
    let mut registry = registry;
    webhook_metrics.register(&mut registry);

    let sinks = SinksService::new(
        shared.client.clone(),
        shared.settings.namespace.clone(),
        Arc::clone(&shared.world),
        Arc::clone(&shared.reports),
        Arc::clone(&shared.hub),
        shared.keys.clone(),
        shared.drain.clone(),
    );
    shared.world.listen(listeners(&shared, &sinks));

    let mut tasks = JoinSet::new();
    tasks.spawn(
        Watches {
            client: shared.client.clone(),
            world: Arc::clone(&shared.world),
            metrics: Arc::clone(&shared.metrics),
            health: shared.health.clone(),
            drain: shared.drain.clone(),
        }
        .run(),
    );
    tasks.spawn(admin_pages(&shared, admin_listener, registry));
    tasks.spawn(admission(shared.clone(), webhook_listener, webhook_metrics));
    let (events, write_events) = Events::new(shared.client.clone(), shared.options.pod_name.clone());
    tasks.spawn(write_events);
    tasks.spawn(
        Writer {
            client: shared.client.clone(),
            world: Arc::clone(&shared.world),
            reports: Arc::clone(&shared.reports),
            metrics: Arc::clone(&shared.metrics),
            holding: shared.holding.clone(),
            events,
            drain: shared.drain.clone(),
        }
        .run(),
    );
    tasks.spawn(
        Teller {
            client: shared.client.clone(),
            namespace: shared.settings.namespace.clone(),
            pod_name: shared.options.pod_name.clone(),
            port: ports.grpc,
            world: Arc::clone(&shared.world),
            reports: Arc::clone(&shared.reports),
            keys: shared.keys.clone(),
            holding: shared.holding.clone(),
            drain: shared.drain.clone(),
        }
        .run(),
    );
    let (give_back, stop) = oneshot::channel();
    let lease = tokio::spawn(lease_when_ready(shared.clone(), holding, stop));
    let grpc = tokio::spawn(grpc(shared.clone(), grpc_listener, sinks, routes));

    let mut drain = shared.drain.clone();
    drain.reached(Stage::Draining).await;
    tracing::info!("draining");
    let ended = async {
        shared.hub.all_ended().await;
        match grpc.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "gRPC ended"),
            Err(error) => tracing::warn!(%error, "gRPC ended"),
        }
    };
    tokio::select! {
        ended = tokio::time::timeout(DRAIN_TIMEOUT, ended) => if ended.is_err() {
            tracing::warn!("streams did not end in time");
        },
        () = drain.reached(Stage::Stopped) => {}
    }
    // The lease last: until now this replica's word was the newest.
    drop(give_back);
    let given = tokio::time::timeout(Duration::from_secs(5), lease).await;
    if given.is_err() {
        tracing::warn!("the lease was not given back in time: it runs out by itself");
    }
    trigger.advance(Stage::Stopped);
    let all = async { while tasks.join_next().await.is_some() {} };
    if tokio::time::timeout(Duration::from_secs(2), all).await.is_err() {
        tracing::debug!("some tasks did not end by themselves");
    }
    Ok(())
}

async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address}"))
}

fn listeners(shared: &Shared, sinks: &SinksService) -> Vec<Listener> {
    let hub = Arc::clone(&shared.hub);
    let sinks = sinks.clone();
    let dirty = Arc::clone(&shared.reports.dirty);
    vec![
        Box::new(move |change| hub.changed(change)),
        Box::new(move |change| sinks.changed(change)),
        Box::new(move |change| match change {
            Change::Policy { namespace }
            | Change::PolicyStatus { namespace }
            | Change::Pod { namespace, .. }
            | Change::PodGone { namespace, .. } => dirty.mark(namespace),
            Change::Sink => {}
        }),
    ]
}

/// A replica that knows nothing yet must not write.
async fn lease_when_ready(
    shared: Shared,
    holding: watch::Sender<Option<std::time::Instant>>,
    mut stop: oneshot::Receiver<()>,
) {
    while !shared.health.missing().is_empty() {
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(50)) => {}
            _ = &mut stop => return,
        }
    }
    lease::hold(
        shared.client.clone(),
        shared.settings.namespace.clone(),
        shared.options.pod_name.clone(),
        Arc::clone(&shared.metrics),
        holding,
        stop,
    )
    .await;
}

async fn grpc(
    shared: Shared,
    listener: TcpListener,
    sinks: SinksService,
    routes: Routes,
) -> anyhow::Result<()> {
    let mut drain = shared.drain.clone();
    // Streams are accepted when they can be answered: an empty world would be told as "no policies".
    while shared
        .health
        .missing()
        .iter()
        .any(|condition| watches::CONDITIONS.contains(condition))
    {
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(20)) => {}
            () = drain.reached(Stage::Draining) => return Ok(()),
        }
    }
    let policies = PoliciesService {
        hub: Arc::clone(&shared.hub),
    };
    let peers = PeersService {
        reports: Arc::clone(&shared.reports),
        holding: shared.holding.clone(),
        drain: shared.drain.clone(),
    };
    let routes = routes
        .add_service(PoliciesServer::new(policies).max_decoding_message_size(MESSAGE_BYTES_MAX))
        .add_service(SinksServer::new(sinks).max_decoding_message_size(MESSAGE_BYTES_MAX))
        .add_service(PeersServer::new(peers).max_decoding_message_size(REPORT_BYTES_MAX));
    tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .http2_keepalive_timeout(Some(Duration::from_secs(5)))
        .max_concurrent_streams(64)
        .add_routes(routes)
        .serve_with_incoming_shutdown(incoming(listener, Arc::clone(&shared.grpc_tls)), async move {
            drain.reached(Stage::Draining).await;
        })
        .await
        .map_err(Into::into)
}

/// Admission is served from the start; until the world is known it says so.
async fn admission(shared: Shared, listener: TcpListener, metrics: webhook::Metrics) {
    let view = WorldView {
        world: Arc::clone(&shared.world),
        health: shared.health.clone(),
        keys: shared.keys.clone(),
    };
    let webhook = Webhook {
        view: Arc::new(view),
        settings: Arc::new(shared.settings.injection.clone()),
        namespace: shared.settings.namespace.as_str().into(),
        metrics,
    };
    let tls = Arc::clone(&shared.webhook_tls);
    if let Err(error) = webhook::serve(listener, tls, webhook, shared.drain.clone()).await {
        tracing::error!(%error, "admission ended");
    }
}

fn admin_pages(
    shared: &Shared,
    listener: TcpListener,
    registry: Registry,
) -> impl Future<Output = ()> + Send + 'static {
    let page = shared.clone();
    let pages = Pages {
        health: shared.health.clone(),
        registry: Arc::new(registry),
        status: Arc::new(move || status_page(&page)),
        drain: shared.drain.clone(),
    };
    async move {
        if let Err(error) = admin::serve(listener, pages).await {
            tracing::error!(%error, "admin pages ended");
        }
    }
}

/// `/status`: what `weir status` reads from each replica.
fn status_page(shared: &Shared) -> serde_json::Value {
    let own = shared
        .keys
        .borrow()
        .as_ref()
        .map(|held| held.identity.not_after());
    let ends = shared.authority.borrow().ends();
    let collector = shared.reports.collector();
    let mut pods = Vec::new();
    for report in shared.reports.all_own() {
        let pod = shared.world.pod_by_uid(&report.uid);
        let said = report.report.clone().unwrap_or_default();
        pods.push(serde_json::json!({
            "namespace": report.namespace,
            "name": report.name,
            "uid": report.uid,
            "node": pod.as_ref().and_then(|pod| pod.node.clone()),
            "version": report.version,
            "captured": report.captured,
            "policies": report.policies.iter().map(|ack| serde_json::json!({
                "name": ack.policy,
                "generation": ack.generation,
                "reason": ack.reason,
                "message": ack.message,
            })).collect::<Vec<_>>(),
            "certificateNotAfter": said.leaf_not_after,
            "receiptsWaiting": said.receipts_waiting,
            "receiptsDropped": said.receipts_dropped,
            "bypasses": said.bypasses.len(),
        }));
    }
    serde_json::json!({
        "version": env!("CARGO_PKG_VERSION"),
        "replica": shared.options.pod_name,
        "leader": shared.holding.borrow().is_some(),
        "podsKnown": shared.world.pod_count(),
        // Unix seconds.
        "certificates": {
            "root": ends.root,
            "previousRoot": ends.previous_root,
            "podsIssuer": ends.pods_issuer,
            "controlIssuer": ends.control_issuer,
            "captureRoot": ends.capture_root,
            "operator": own,
        },
        // Of the one stream that the collector holds; the other replicas do not know it.
        "collector": collector.map(|collector| serde_json::json!({
            "version": collector.version,
            "certificateNotAfter": collector.certificate_not_after,
        })),
        "pods": pods,
    })
}
