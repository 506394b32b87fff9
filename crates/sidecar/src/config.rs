//! Flags, environment, file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use access_policy::Subject;
use clap::Parser;
use serde::Deserialize;

use crate::pod::Pod;
use crate::upstream::HostPort;

/// The governing proxy in front of a PostgreSQL database.
#[derive(Debug, Clone, Default, Parser, Deserialize)]
#[command(name = "weir-sidecar", version, about)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Options {
    /// File with any of these options by their names (TOML if it ends in .toml, else YAML). Flags and environment win.
    #[arg(long, env = "WEIR_CONFIG", value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Where applications connect.
    #[arg(long, env = "WEIR_LISTEN", value_name = "HOST:PORT")]
    pub listen: Option<String>,
    /// The database, by the name that policies know it by. May be left out when all policies name one database.
    #[arg(long, env = "WEIR_UPSTREAM", value_name = "HOST:PORT")]
    pub upstream: Option<String>,
    /// Dial this address instead (demos, tunnels); the name stays.
    #[arg(long, env = "WEIR_UPSTREAM_ADDRESS", value_name = "HOST:PORT")]
    pub upstream_address: Option<String>,
    /// Folder of policy manifests (*.yaml, *.yml, *.json), watched for changes.
    #[arg(long, env = "WEIR_POLICY_DIR", value_name = "DIR")]
    pub policy_dir: Option<PathBuf>,
    /// Folder of receipts. Default: $XDG_STATE_HOME/weir/spool/PORT, as root /var/lib/weir/spool/PORT.
    #[arg(long, env = "WEIR_SPOOL_DIR", value_name = "DIR")]
    pub spool_dir: Option<PathBuf>,
    /// Folder of secrets: files DIR/NAME/KEY, as Kubernetes mounts them.
    #[arg(long, env = "WEIR_SECRETS_DIR", value_name = "DIR")]
    pub secrets_dir: Option<PathBuf>,
    /// Where /healthz, /readyz, /metrics and /status are served.
    #[arg(long, env = "WEIR_ADMIN", value_name = "HOST:PORT")]
    pub admin: Option<String>,
    /// The collector that keeps the receipts. Without it they stay in the spool.
    #[arg(long, env = "WEIR_COLLECTOR", value_name = "URL")]
    pub collector: Option<String>,
    /// The collector's key, as it prints it (name+hash+base64). Without it the first one seen is kept.
    #[arg(long, env = "WEIR_COLLECTOR_KEY", value_name = "KEY")]
    pub collector_key: Option<String>,
    /// Who the workload is, where no operator proves it: serviceAccount=…, user=…, group=…, agent=…, claims.NAME=….
    #[arg(long = "as", env = "WEIR_AS", value_name = "KEY=VALUE", value_delimiter = ',')]
    pub r#as: Vec<String>,
    /// Listen beyond loopback although the sidecar logs in by itself: whoever reaches the port gets in.
    #[arg(long, env = "WEIR_ALLOW_REMOTE_CLIENTS", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub allow_remote_clients: Option<bool>,
    /// Longest statement, in bytes.
    #[arg(long, env = "WEIR_STATEMENT_MAX_BYTES", value_name = "BYTES")]
    pub statement_max_bytes: Option<u32>,
    /// How long running statements may take after SIGTERM.
    #[arg(long, env = "WEIR_DRAIN_SECONDS", value_name = "SECONDS")]
    pub drain_seconds: Option<u64>,
    /// Most client connections at once.
    #[arg(long, env = "WEIR_MAX_CONNECTIONS", value_name = "COUNT")]
    pub max_connections: Option<usize>,
    /// How often the catalog of the database is read again.
    #[arg(long, env = "WEIR_CATALOG_POLL_SECONDS", value_name = "SECONDS")]
    pub catalog_poll_seconds: Option<u64>,
    /// Threads that serve connections. Default: one for each core.
    #[arg(long, env = "WEIR_THREADS", value_name = "COUNT")]
    pub threads: Option<usize>,
    /// TLS towards applications: plain | serve.
    #[arg(long, env = "WEIR_CLIENT_TLS", value_name = "MODE")]
    pub client_tls: Option<ClientTls>,
    /// Certificate for --client-tls serve (PEM). Without it one is made at each start.
    #[arg(long, env = "WEIR_CLIENT_TLS_CERTIFICATE", value_name = "FILE")]
    pub client_tls_certificate: Option<PathBuf>,
    /// Key for --client-tls-certificate (PEM).
    #[arg(long, env = "WEIR_CLIENT_TLS_KEY", value_name = "FILE")]
    pub client_tls_key: Option<PathBuf>,
    /// Logs: text | json.
    #[arg(long, env = "WEIR_LOG_FORMAT", value_name = "FORMAT")]
    pub log_format: Option<LogStyle>,
}

/// TLS towards applications.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClientTls {
    /// Requests for TLS are answered with no.
    #[default]
    Plain,
    /// TLS for those who ask for it.
    Serve,
}

/// How logs look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogStyle {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// What is wrong with the options.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The file.
    #[error("cannot read {path}: {error}")]
    File {
        /// Which.
        path: String,
        /// Why.
        error: String,
    },
    /// An option.
    #[error("--{option}: {message}")]
    Option {
        /// Which.
        option: &'static str,
        /// What is wrong.
        message: String,
    },
    /// What the webhook wrote into the environment.
    #[error("{name}: {message}")]
    Environment {
        /// Which variable.
        name: &'static str,
        /// What is wrong.
        message: String,
    },
}

/// Where policies come from, and so where applications connect.
#[derive(Debug, Clone)]
pub enum Role {
    /// From a folder, for one database.
    Folder(FolderRole),
    /// From the operator, for what the pod captured.
    Pod(Box<Pod>),
}

/// One database, governed by the manifests of a folder.
#[derive(Debug, Clone)]
pub struct FolderRole {
    /// Where applications connect.
    pub listen: HostPort,
    /// The database's name, where it is given.
    pub upstream: Option<HostPort>,
    /// What is dialled in its place.
    pub upstream_address: Option<HostPort>,
    /// Manifests.
    pub policy_dir: PathBuf,
}

/// Options, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where policies come from.
    pub role: Role,
    /// Receipts.
    pub spool_dir: PathBuf,
    /// Cap of that folder.
    pub spool_bytes_max: Option<u64>,
    /// The spool's folder was not given but derived.
    pub spool_dir_derived: bool,
    /// Secrets.
    pub secrets_dir: Option<PathBuf>,
    /// Admin pages.
    pub admin: Option<HostPort>,
    /// Collector.
    pub collector: Option<String>,
    /// Its key.
    pub collector_key: Option<String>,
    /// Who.
    pub subject: Subject,
    /// Listen beyond loopback with credentials.
    pub allow_remote_clients: bool,
    /// Longest statement.
    pub statement_max_bytes: u32,
    /// Grace time.
    pub drain: Duration,
    /// Connections at once.
    pub max_connections: usize,
    /// Catalog.
    pub catalog_poll: Duration,
    /// Threads.
    pub threads: usize,
    /// TLS towards applications.
    pub client_tls: ClientTlsConfig,
}

/// TLS towards applications, with its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientTlsConfig {
    /// None.
    Plain,
    /// With a certificate made at start.
    SelfMade,
    /// With these files.
    Given {
        /// PEM.
        certificate: PathBuf,
        /// PEM.
        key: PathBuf,
    },
}

impl Options {
    /// Fills in from the file, and checks. Where the environment is that of an injected pod, the operator says the rest.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn resolve(self) -> Result<Config, ConfigError> {
        let pod = Pod::read(|name| std::env::var(name).ok())?;
        self.resolve_for(pod)
    }

    /// The same, for a pod or for none.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn resolve_for(self, pod: Option<Pod>) -> Result<Config, ConfigError> {
        let file = match &self.config {
            Some(path) => read_file(path)?,
            None => Self::default(),
        };
        let listen = host_port("listen", self.listen.or(file.listen))?;
        let policy_dir = self.policy_dir.or(file.policy_dir);
        let upstream = host_port("upstream", self.upstream.or(file.upstream))?;
        let upstream_address = host_port(
            "upstream-address",
            self.upstream_address.or(file.upstream_address),
        )?;
        let admin = host_port("admin", self.admin.or(file.admin))?;
        let spool_bytes_max = pod.as_ref().and_then(|pod| pod.spool_bytes_max);
        let (role, admin) = match pod {
            Some(pod) => {
                // A pod's sidecar takes its policies from the operator alone.
                for (option, given) in [
                    ("listen", listen.is_some()),
                    ("policy-dir", policy_dir.is_some()),
                    ("upstream", upstream.is_some()),
                    ("upstream-address", upstream_address.is_some()),
                    ("collector", self.collector.is_some() || file.collector.is_some()),
                    ("as", !self.r#as.is_empty() || !file.r#as.is_empty()),
                    (
                        "client-tls",
                        self.client_tls.is_some() || file.client_tls.is_some(),
                    ),
                ] {
                    if given {
                        return Err(wrong(
                            option,
                            "is not for a sidecar that an operator leads (WEIR_OPERATOR)",
                        ));
                    }
                }
                let own = pod.admin.clone();
                (Role::Pod(Box::new(pod)), Some(admin.unwrap_or(own)))
            }
            None => {
                let folder = FolderRole {
                    listen: listen.ok_or_else(|| missing("listen"))?,
                    upstream,
                    upstream_address,
                    policy_dir: policy_dir.ok_or_else(|| missing("policy-dir"))?,
                };
                (Role::Folder(folder), admin)
            }
        };
        let given = if self.r#as.is_empty() {
            file.r#as
        } else {
            self.r#as
        };
        let spool_dir = self.spool_dir.or(file.spool_dir);
        let spool_dir_derived = spool_dir.is_none();
        let spool_dir = match spool_dir {
            Some(dir) => dir,
            None => match &role {
                Role::Folder(folder) => default_spool(folder.listen.port)?,
                Role::Pod(_) => return Err(missing("spool-dir")),
            },
        };
        let client_tls = self.client_tls.or(file.client_tls).unwrap_or_default();
        let certificate = self.client_tls_certificate.or(file.client_tls_certificate);
        let key = self.client_tls_key.or(file.client_tls_key);
        let client_tls = match (client_tls, certificate, key) {
            (ClientTls::Plain, None, None) => ClientTlsConfig::Plain,
            (ClientTls::Serve, None, None) => ClientTlsConfig::SelfMade,
            (ClientTls::Serve, Some(certificate), Some(key)) => ClientTlsConfig::Given { certificate, key },
            (ClientTls::Plain, ..) => {
                return Err(wrong("client-tls-certificate", "needs --client-tls serve"));
            }
            (ClientTls::Serve, ..) => {
                return Err(wrong(
                    "client-tls-certificate",
                    "and --client-tls-key belong together",
                ));
            }
        };
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Config {
            role,
            spool_dir,
            spool_bytes_max,
            spool_dir_derived,
            secrets_dir: self.secrets_dir.or(file.secrets_dir),
            admin,
            collector: self.collector.or(file.collector),
            collector_key: self.collector_key.or(file.collector_key),
            subject: subject(&given)?,
            allow_remote_clients: self
                .allow_remote_clients
                .or(file.allow_remote_clients)
                .unwrap_or(false),
            statement_max_bytes: at_least(
                "statement-max-bytes",
                self.statement_max_bytes.or(file.statement_max_bytes),
                wire_protocol::postgres::STATEMENT_LENGTH_DEFAULT,
                1024,
            )?,
            drain: Duration::from_secs(self.drain_seconds.or(file.drain_seconds).unwrap_or(25)),
            max_connections: at_least(
                "max-connections",
                self.max_connections.or(file.max_connections),
                1000,
                1,
            )?,
            catalog_poll: Duration::from_secs(at_least(
                "catalog-poll-seconds",
                self.catalog_poll_seconds.or(file.catalog_poll_seconds),
                60,
                1,
            )?),
            threads: at_least("threads", self.threads.or(file.threads), cores, 1)?,
            client_tls,
        })
    }

    /// How logs look: needed before the rest is checked.
    pub fn log_style(&self) -> LogStyle {
        self.log_format.unwrap_or_default()
    }
}

fn read_file(path: &Path) -> Result<Options, ConfigError> {
    let failed = |error: String| ConfigError::File {
        path: path.display().to_string(),
        error,
    };
    let text = std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
    if path.extension().is_some_and(|extension| extension == "toml") {
        toml::from_str(&text).map_err(|error| failed(error.to_string()))
    } else {
        serde_yaml::from_str(&text).map_err(|error| failed(error.to_string()))
    }
}

fn missing(option: &'static str) -> ConfigError {
    wrong(option, "is needed")
}

fn wrong(option: &'static str, message: &str) -> ConfigError {
    ConfigError::Option {
        option,
        message: message.to_owned(),
    }
}

fn host_port(option: &'static str, text: Option<String>) -> Result<Option<HostPort>, ConfigError> {
    text.map(|text| text.parse())
        .transpose()
        .map_err(|message: String| ConfigError::Option { option, message })
}

fn at_least<T: PartialOrd + std::fmt::Display>(
    option: &'static str,
    given: Option<T>,
    default: T,
    least: T,
) -> Result<T, ConfigError> {
    let value = given.unwrap_or(default);
    if value < least {
        return Err(wrong(option, &format!("must be {least} or more")));
    }
    Ok(value)
}

fn default_spool(port: u16) -> Result<PathBuf, ConfigError> {
    let variable = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    // A user's own state, else that of the system for those who may write there.
    let base = match (variable("XDG_STATE_HOME"), variable("HOME")) {
        (Some(state), _) => state.join("weir"),
        (None, Some(home)) if home != Path::new("/root") => home.join(".local/state/weir"),
        (None, _) => PathBuf::from("/var/lib/weir"),
    };
    if base.is_relative() {
        return Err(wrong(
            "spool-dir",
            "cannot be derived: XDG_STATE_HOME is not an absolute path",
        ));
    }
    Ok(base.join("spool").join(port.to_string()))
}

fn subject(given: &[String]) -> Result<Subject, ConfigError> {
    let mut subject = Subject::default();
    let mut seen: BTreeMap<&str, ()> = BTreeMap::new();
    for pair in given {
        let (key, value) = pair
            .split_once('=')
            .filter(|(_, value)| !value.is_empty())
            .ok_or_else(|| wrong("as", &format!("`{pair}` is not KEY=VALUE")))?;
        if key != "group" && seen.insert(key, ()).is_some() {
            return Err(wrong("as", &format!("{key} is given twice")));
        }
        let value = value.to_owned();
        match key {
            "serviceAccount" => subject.service_account = Some(value),
            "user" => subject.user = Some(value),
            "group" => {
                subject.groups.insert(value);
            }
            "agent" => subject.agent = Some(value),
            other => match other.strip_prefix("claims.").filter(|name| !name.is_empty()) {
                Some(name) => {
                    subject.claims.insert(name.to_owned(), value);
                }
                None => {
                    return Err(wrong(
                        "as",
                        &format!("`{key}` is none of serviceAccount, user, group, agent, claims.NAME"),
                    ));
                }
            },
        }
    }
    Ok(subject)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(arguments: &[&str]) -> Options {
        Options::parse_from(std::iter::once("weir-sidecar").chain(arguments.iter().copied()))
    }

    fn file(name: &str, text: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        (folder, path)
    }

    #[test]
    fn flags_win_over_the_file() {
        let (_folder, path) = file(
            "weir.toml",
            "listen = '127.0.0.1:1'\npolicy-dir = '/p'\nmax-connections = 7\n",
        );
        let path = path.to_str().unwrap();
        let config = options(&["--config", path, "--listen", "[::1]:5"])
            .resolve_for(None)
            .unwrap();
        assert_eq!(config.max_connections, 7);
        let Role::Folder(folder) = config.role else {
            panic!("not a folder");
        };
        assert_eq!(folder.listen.to_string(), "[::1]:5");
        assert_eq!(folder.policy_dir, PathBuf::from("/p"));
    }

    #[test]
    fn unknown_keys_of_a_file_are_refused() {
        for (name, text) in [
            ("a.toml", "listen = '127.0.0.1:1'\npolicy-dirr = '/p'\n"),
            ("a.yaml", "listen: 127.0.0.1:1\npolicy-dirr: /p\n"),
        ] {
            let (_folder, path) = file(name, text);
            let error = options(&["--config", path.to_str().unwrap()])
                .resolve_for(None)
                .unwrap_err();
            assert!(error.to_string().contains("policy-dirr"), "{error}");
        }
    }

    #[test]
    fn the_subject_is_read() {
        let config = options(&[
            "--listen",
            "127.0.0.1:1",
            "--policy-dir",
            "/p",
            "--as",
            "serviceAccount=report-agent",
            "--as",
            "claims.tenant=7",
            "--as",
            "group=a",
            "--as",
            "group=b",
        ])
        .resolve_for(None)
        .unwrap();
        assert_eq!(config.subject.service_account.as_deref(), Some("report-agent"));
        assert_eq!(config.subject.claims.get("tenant").map(String::as_str), Some("7"));
        assert_eq!(config.subject.groups.len(), 2);
        for bad in ["tenant=7", "serviceAccount", "serviceAccount=", "claims.=7"] {
            let error = options(&["--listen", "127.0.0.1:1", "--policy-dir", "/p", "--as", bad])
                .resolve_for(None)
                .unwrap_err();
            assert!(
                matches!(error, ConfigError::Option { option: "as", .. }),
                "{error}"
            );
        }
    }

    #[test]
    fn what_is_needed_is_named() {
        let error = options(&["--policy-dir", "/p"]).resolve_for(None).unwrap_err();
        assert_eq!(error.to_string(), "--listen: is needed");
        let error = options(&["--listen", "::1:5432", "--policy-dir", "/p"])
            .resolve_for(None)
            .unwrap_err();
        assert!(error.to_string().contains("not HOST:PORT"), "{error}");
    }
}
