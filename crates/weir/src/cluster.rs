//! The cluster as kubectl finds it, and what `weir status` and `weir check` read from it.

use anyhow::{Context, Result, anyhow};
use crd_types::{DatabaseAccessPolicy, LineageSink};
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{Namespace, Pod, PodTemplateSpec};
use kube::api::{ListParams, ObjectList};
use kube::{Api, Client};
use pod_injection::contract;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Which namespaces are looked at.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct Scope {
    /// One namespace; left out, the one of the kubeconfig's context
    #[arg(
        short = 'n',
        long,
        value_name = "NAMESPACE",
        conflicts_with = "all_namespaces"
    )]
    pub namespace: Option<String>,
    /// All namespaces
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,
    /// Where operator and collector run
    #[arg(long, value_name = "NAMESPACE", default_value = "weir-system")]
    pub weir_namespace: String,
}

impl Scope {
    /// Whether the flags speak of a cluster.
    pub(crate) fn is_given(&self) -> bool {
        self.namespace.is_some() || self.all_namespaces
    }
}

/// A cluster and the part of it that was asked for.
pub(crate) struct Cluster {
    pub(crate) client: Client,
    namespace: Option<String>,
    pub(crate) weir_namespace: String,
}

/// Runs it to its end on a runtime of its own.
pub(crate) fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start")?
        .block_on(work)
}

impl Cluster {
    pub(crate) async fn connect(scope: &Scope) -> Result<Self> {
        // Fails only if a provider is set already, which is then the same one.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let config = kube::Config::infer().await.map_err(|error| {
            anyhow!("no cluster: there is no usable kubeconfig ($KUBECONFIG, ~/.kube/config), and this is no pod: {error}")
        })?;
        let namespace = match (&scope.namespace, scope.all_namespaces) {
            (_, true) => None,
            (Some(name), false) => Some(name.clone()),
            (None, false) => Some(config.default_namespace.clone()),
        };
        Ok(Self {
            client: Client::try_from(config).context("cannot use the kubeconfig")?,
            namespace,
            weir_namespace: scope.weir_namespace.clone(),
        })
    }

    /// Objects of the namespaces asked for.
    pub(crate) async fn list<K>(&self, params: &ListParams) -> Result<ObjectList<K>>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
            + Clone
            + std::fmt::Debug
            + DeserializeOwned,
    {
        let api: Api<K> = match &self.namespace {
            Some(namespace) => Api::namespaced(self.client.clone(), namespace),
            None => Api::all(self.client.clone()),
        };
        api.list(params)
            .await
            .map_err(|error| explained(&K::plural(&()), error))
    }

    pub(crate) async fn policies(&self) -> Result<Vec<DatabaseAccessPolicy>> {
        Ok(self.list(&ListParams::default()).await?.items)
    }

    pub(crate) async fn sinks(&self) -> Result<Vec<LineageSink>> {
        Ok(self.list(&ListParams::default()).await?.items)
    }

    /// Pods with a sidecar, by the label that the webhook writes.
    pub(crate) async fn injected_pods(&self) -> Result<Vec<Pod>> {
        let params = ListParams::default().labels(&format!("{}=true", contract::INJECTED_LABEL));
        Ok(self.list(&params).await?.items)
    }

    /// Whether the namespace asked for exists: else every list is empty, and all looks well.
    pub(crate) async fn namespace_exists(&self) -> Result<()> {
        let Some(name) = &self.namespace else {
            return Ok(());
        };
        let api: Api<Namespace> = Api::all(self.client.clone());
        match api.get_opt(name).await {
            Ok(Some(_)) => Ok(()),
            Ok(None) => Err(anyhow!("there is no namespace {name}")),
            // Whoever may read one namespace only may often not get it by name.
            Err(kube::Error::Api(status)) if status.code == 403 => Ok(()),
            Err(error) => Err(explained("namespaces", error)),
        }
    }
}

/// What a person can do about it.
pub(crate) fn explained(what: &str, error: kube::Error) -> anyhow::Error {
    match error {
        kube::Error::Api(status) if status.code == 404 => {
            anyhow!("the cluster does not know {what}: is Weir installed? (`weir check` tells)")
        }
        kube::Error::Api(status) if status.code == 401 => {
            anyhow!("the API server does not accept the kubeconfig's credentials")
        }
        kube::Error::Api(status) if status.code == 403 => anyhow!("may not read {what}: {}", status.message),
        kube::Error::Api(status) => anyhow!("cannot read {what}: {}", status.message),
        error => anyhow!("the API server does not answer: {error}"),
    }
}

/// A workload of Weir's own.
#[derive(Debug, Serialize)]
pub(crate) struct Workload {
    pub(crate) name: &'static str,
    /// Absent: there is no such workload.
    pub(crate) wanted: Option<i32>,
    pub(crate) ready: i32,
    pub(crate) image: Option<String>,
}

impl Workload {
    /// All that is wanted, and at least one.
    pub(crate) fn is_ready(&self) -> bool {
        self.wanted
            .is_some_and(|wanted| wanted > 0 && self.ready >= wanted)
    }
}

impl Cluster {
    /// Operator and collector.
    pub(crate) async fn workloads(&self) -> Result<Vec<Workload>> {
        let operator: Option<Deployment> = self.own("weir-operator").await?;
        let (spec, status) = operator.map_or((None, None), |found| (found.spec, found.status));
        let operator = workload(
            "weir-operator",
            spec.map(|spec| (spec.replicas, spec.template)),
            status.and_then(|status| status.ready_replicas),
        );
        let collector: Option<StatefulSet> = self.own("weir-collector").await?;
        let (spec, status) = collector.map_or((None, None), |found| (found.spec, found.status));
        let collector = workload(
            "weir-collector",
            spec.map(|spec| (spec.replicas, spec.template)),
            status.and_then(|status| status.ready_replicas),
        );
        Ok(vec![operator, collector])
    }

    /// An object in Weir's own namespace.
    async fn own<K>(&self, name: &str) -> Result<Option<K>>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
            + Clone
            + std::fmt::Debug
            + DeserializeOwned,
    {
        Api::<K>::namespaced(self.client.clone(), &self.weir_namespace)
            .get_opt(name)
            .await
            .map_err(|error| explained(&K::plural(&()), error))
    }
}

fn workload(
    name: &'static str,
    spec: Option<(Option<i32>, PodTemplateSpec)>,
    ready: Option<i32>,
) -> Workload {
    let (wanted, template) = spec.map_or((None, None), |(replicas, template)| {
        (Some(replicas.unwrap_or(1)), template.spec)
    });
    let image = template
        .and_then(|pod| pod.containers.into_iter().next())
        .and_then(|container| container.image);
    Workload {
        name,
        wanted,
        ready: ready.unwrap_or(0),
        image,
    }
}
