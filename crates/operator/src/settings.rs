//! Settings: one YAML file for what the owner decides, and options for where this process runs.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// Where this process runs, and which settings it reads.
#[derive(Debug, Clone, clap::Parser)]
#[command(
    name = "weir-operator",
    version,
    about = "Watches the cluster for Weir: injects sidecars, admits policies, issues identities, streams policies, writes status.",
    after_help = "The cluster is found as kubectl finds it: KUBECONFIG, ~/.kube/config, or the pod's own service account.\n\
                  Logs go to stderr; WEIR_LOG holds the filter (debug, info,operator=trace)."
)]
pub struct Options {
    /// Settings file, YAML. Unknown keys are refused.
    #[arg(
        long,
        env = "WEIR_SETTINGS",
        default_value = "/etc/weir/settings.yaml",
        value_name = "FILE"
    )]
    pub settings: PathBuf,
    /// Name of this pod: identity in the lease, and the name that other replicas look for.
    #[arg(long, env = "WEIR_POD_NAME", value_name = "NAME")]
    pub pod_name: String,
    /// Address of this pod: all ports are bound to it, and other replicas reach it there.
    #[arg(long, env = "WEIR_POD_IP", default_value = "0.0.0.0", value_name = "ADDRESS")]
    pub pod_ip: IpAddr,
    /// How log lines look.
    #[arg(long, env = "WEIR_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// What the operator's owner decides. The chart writes this file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Settings {
    /// Namespace of Weir itself.
    pub namespace: String,
    /// Trust domain of the identities: `spiffe://DOMAIN/ns/…`.
    pub trust_domain: String,
    /// What is injected.
    pub injection: pod_injection::Settings,
    /// How long a snapshot counts without the operator.
    pub snapshot_valid_seconds: u32,
    /// Where receipts go.
    pub collector: Collector,
    /// Ports of this process.
    pub ports: Ports,
    /// How the API server reaches the webhooks.
    pub webhook: Webhook,
}

/// `collector`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Collector {
    /// Where sidecars deliver receipts. Empty: nowhere, they stay in the spool.
    pub url: String,
    /// Service account of the collector, in Weir's own namespace.
    pub service_account: String,
}

/// `ports`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Ports {
    /// Admission, HTTPS.
    pub webhook: u16,
    /// Identity, policies, sinks and replicas, gRPC.
    pub grpc: u16,
    /// Health, metrics and status, HTTP.
    pub admin: u16,
}

/// `webhook`: how the API server reaches this process.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Webhook {
    /// Through a Service of Weir's namespace.
    Service {
        /// Its name.
        name: String,
    },
    /// At an address: for an operator that runs outside of the cluster.
    Url(String),
}

/// A settings file that does not count.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// It is not there.
    #[error("cannot read settings `{0}`: {1}")]
    Unreadable(PathBuf, std::io::Error),
    /// It does not parse.
    #[error("settings `{0}`: {1}")]
    Invalid(PathBuf, String),
}

impl Settings {
    /// Reads the file.
    ///
    /// # Errors
    /// What is wrong with it, by line and key.
    pub fn read(path: &Path) -> Result<Self, SettingsError> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| SettingsError::Unreadable(path.to_owned(), error))?;
        Self::parse(&text).map_err(|problem| SettingsError::Invalid(path.to_owned(), problem))
    }

    /// Parses the text of the file.
    ///
    /// # Errors
    /// What is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        let settings: Self = serde_yaml::from_str(text).map_err(|error| error.to_string())?;
        if settings.namespace.is_empty() {
            return Err("`namespace` is empty: name the namespace that Weir runs in".to_owned());
        }
        if settings.trust_domain.is_empty() {
            return Err("`trustDomain` is empty: `cluster.local` is the usual one".to_owned());
        }
        if !(60..=30 * 86_400).contains(&settings.snapshot_valid_seconds) {
            return Err(format!(
                "`snapshotValidSeconds` is {}: say 60 (a minute: an operator away for longer stops every new session) to 2592000 (thirty days)",
                settings.snapshot_valid_seconds
            ));
        }
        let url = &settings.collector.url;
        if !url.is_empty() && !url.starts_with("https://") {
            return Err(format!("`collector.url` is `{url}`: it must begin with https://"));
        }
        if let Webhook::Url(url) = &settings.webhook
            && !url.starts_with("https://")
        {
            return Err(format!("`webhook.url` is `{url}`: it must begin with https://"));
        }
        Ok(settings)
    }
}

impl Settings {
    /// Names and addresses that the API server dials for the webhooks: they stand in our certificate.
    pub fn webhook_names(&self) -> Vec<String> {
        match &self.webhook {
            Webhook::Service { name } => vec![
                format!("{name}.{}.svc", self.namespace),
                format!("{name}.{}.svc.{}", self.namespace, self.injection.cluster_domain),
            ],
            Webhook::Url(url) => {
                let rest = url.strip_prefix("https://").unwrap_or(url);
                let authority = rest.split('/').next().unwrap_or_default();
                let host = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
                    Some((address, _)) => address,
                    None => authority.split(':').next().unwrap_or_default(),
                };
                vec![host.to_owned()]
            }
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            namespace: "weir-system".to_owned(),
            trust_domain: "cluster.local".to_owned(),
            injection: pod_injection::Settings::default(),
            snapshot_valid_seconds: 86_400,
            collector: Collector::default(),
            ports: Ports::default(),
            webhook: Webhook::Service {
                name: "weir-operator".to_owned(),
            },
        }
    }
}

impl Default for Collector {
    fn default() -> Self {
        Self {
            url: "https://weir-collector.weir-system.svc:9445".to_owned(),
            service_account: "weir-collector".to_owned(),
        }
    }
}

impl Default for Ports {
    fn default() -> Self {
        Self {
            webhook: 9443,
            grpc: 9444,
            admin: 8081,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_has_a_default_and_unknown_ones_are_refused() {
        assert_eq!(Settings::parse("{}").expect("empty"), Settings::default());
        let refused = Settings::parse("namspace: x").expect_err("misspelt");
        assert!(refused.contains("namspace"), "{refused}");
        let refused = Settings::parse("ports: {grcp: 1}").expect_err("misspelt");
        assert!(refused.contains("grcp"), "{refused}");
    }

    #[test]
    fn the_whole_file() {
        let settings = Settings::parse(
            "namespace: weir\ntrustDomain: example.org\ninjection: {image: 'registry/weir:1', uid: 7000}\n\
             snapshotValidSeconds: 3600\ncollector: {url: 'https://c:1', serviceAccount: keeper}\n\
             ports: {webhook: 1, grpc: 2, admin: 3}\nwebhook: {url: 'https://127.0.0.1:1'}\n",
        )
        .expect("parses");
        assert_eq!(settings.injection.uid, 7000);
        assert_eq!(settings.webhook, Webhook::Url("https://127.0.0.1:1".to_owned()));
        assert_eq!(settings.collector.service_account, "keeper");
        assert_eq!(settings.webhook_names(), ["127.0.0.1"]);
        assert_eq!(
            Settings::default().webhook_names(),
            [
                "weir-operator.weir-system.svc",
                "weir-operator.weir-system.svc.cluster.local"
            ]
        );
        let service = Settings::parse("webhook: {service: {name: op}}").expect("parses");
        assert_eq!(
            service.webhook,
            Webhook::Service {
                name: "op".to_owned()
            }
        );
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_the_mend() {
        for (text, part) in [
            ("snapshotValidSeconds: 1", "a minute"),
            ("collector: {url: 'http://c'}", "https://"),
            ("webhook: {url: 'http://c'}", "https://"),
            ("namespace: ''", "namespace that Weir runs in"),
        ] {
            let refused = Settings::parse(text).expect_err(text);
            assert!(refused.contains(part), "{text}: {refused}");
        }
    }
}
