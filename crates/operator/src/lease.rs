//! Who writes status: the holder of the Lease `weir-operator`. All replicas serve all else.

use std::time::{Duration, Instant};

use control_api::client::jitter;
use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, Client};
use kube_lease_manager::LeaseManagerBuilder;
use tokio::sync::{oneshot, watch};

use crate::metrics::Metrics;

/// Name of the Lease.
pub const NAME: &str = "weir-operator";
/// A holder that is silent for this long has lost it.
const DURATION_SECONDS: u64 = 10;
/// It renews so long before.
const GRACE_SECONDS: u64 = 4;

/// Since when this replica holds the lease, if it does.
pub type Holding = watch::Receiver<Option<Instant>>;

/// Competes for the lease until `stop` is dropped or sent; then gives it back.
pub async fn hold(
    client: Client,
    namespace: String,
    identity: String,
    metrics: std::sync::Arc<Metrics>,
    holding: watch::Sender<Option<Instant>>,
    mut stop: oneshot::Receiver<()>,
) {
    loop {
        let manager = LeaseManagerBuilder::new(client.clone(), NAME)
            .with_namespace(&namespace)
            .with_identity(&identity)
            .with_duration(DURATION_SECONDS)
            .with_grace(GRACE_SECONDS)
            .build()
            .await;
        let manager = match manager {
            Ok(manager) => manager,
            Err(error) => {
                tracing::warn!(%error, "no lease");
                tokio::select! {
                    () = tokio::time::sleep(Duration::from_secs(1) + jitter(Duration::from_secs(4))) => continue,
                    _ = &mut stop => return,
                }
            }
        };
        let (mut state, task) = manager.watch().await;
        loop {
            let holds = *state.borrow_and_update();
            holding.send_if_modified(|since| {
                let changed = since.is_some() != holds;
                if changed {
                    *since = holds.then(Instant::now);
                    tracing::info!(holds, "lease");
                }
                changed
            });
            metrics.leader.set(i64::from(holds));
            tokio::select! {
                changed = state.changed() => if changed.is_err() { break },
                _ = &mut stop => {
                    holding.send_replace(None);
                    metrics.leader.set(0);
                    // The task gives the lease back when nobody listens any more.
                    drop(state);
                    match task.await {
                        Ok(Ok(_)) => tracing::info!("lease given back"),
                        Ok(Err(error)) => tracing::warn!(%error, "lease not given back: it runs out by itself"),
                        Err(error) => tracing::warn!(%error, "lease not given back: it runs out by itself"),
                    }
                    return;
                }
            }
        }
        holding.send_replace(None);
        metrics.leader.set(0);
        if let Ok(Err(error)) = task.await {
            tracing::warn!(%error, "lease lost");
        }
    }
}

/// Who holds it now.
///
/// # Errors
/// As the API server says.
pub async fn holder(client: &Client, namespace: &str) -> Result<Option<String>, kube::Error> {
    let leases: Api<Lease> = Api::namespaced(client.clone(), namespace);
    Ok(leases
        .get_opt(NAME)
        .await?
        .and_then(|lease| lease.spec)
        .and_then(|spec| spec.holder_identity)
        .filter(|holder| !holder.is_empty()))
}
