//! What the operator's owner decides for all pods. No annotation can change it.

use serde::{Deserialize, Serialize};

/// Settings of the injection (part of the operator's settings file, written by the chart).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Settings {
    /// Image of the sidecar, as it is written into pods.
    pub image: String,
    /// `imagePullPolicy` of the sidecar.
    pub image_pull_policy: String,
    /// UID and GID that the sidecar runs with. No other container of an injected pod may have it.
    pub uid: i64,
    /// `host:port` where pods reach the operator's gRPC port.
    pub operator: String,
    /// Resources of the sidecar. Where all of the pod's containers have requests = limits, its requests are its limits.
    pub resources: Resources,
    /// Containers that may stand in front of the sidecar, by name: network proxies.
    pub network_proxies: Vec<String>,
    /// Size limit of the spool volume, as a Kubernetes quantity.
    pub spool_size: String,
    /// Domain of the cluster's DNS.
    pub cluster_domain: String,
}

/// Requests and limits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Resources {
    /// CPU that is asked for.
    pub cpu_request: String,
    /// CPU at most.
    pub cpu_limit: String,
    /// Memory that is asked for.
    pub memory_request: String,
    /// Memory at most.
    pub memory_limit: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            image: format!("weir:{}", env!("CARGO_PKG_VERSION")),
            image_pull_policy: "IfNotPresent".to_owned(),
            uid: 15_090,
            operator: "weir-operator.weir-system.svc:9444".to_owned(),
            resources: Resources::default(),
            network_proxies: vec![
                "istio-proxy".to_owned(),
                "istio-init".to_owned(),
                "istio-validation".to_owned(),
                "linkerd-proxy".to_owned(),
                "linkerd-init".to_owned(),
                "linkerd-network-validator".to_owned(),
            ],
            spool_size: "1Gi".to_owned(),
            cluster_domain: "cluster.local".to_owned(),
        }
    }
}

impl Default for Resources {
    fn default() -> Self {
        Self {
            cpu_request: "50m".to_owned(),
            cpu_limit: "1".to_owned(),
            memory_request: "64Mi".to_owned(),
            memory_limit: "256Mi".to_owned(),
        }
    }
}
