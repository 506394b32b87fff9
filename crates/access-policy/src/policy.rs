//! Policies as they are enforced, before names are looked up.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use crd_types::policy::Transport;
use row_masking::{DateUnit, HashKey, Mask};
use sql_facts::facts::Action;

use crate::names::{ColumnName, Prefix, TablePattern};
use crate::predicate::Predicate;
use crate::secret::{NoSecrets, SecretBytes, SecretKey, SecretSource};

/// A host and port in canonical form (lower case, no final dot).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    /// Host name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl Endpoint {
    /// Brings a host into its canonical form: lower case, no final dot, addresses as `std` prints them.
    ///
    /// # Errors
    /// What is wrong with the host.
    pub fn new(host: &str, port: u16) -> Result<Self, String> {
        let bare = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .unwrap_or(host);
        if let Ok(address) = bare.parse::<std::net::IpAddr>() {
            return Ok(Self {
                host: address.to_string(),
                port,
            });
        }
        let lower = host.to_ascii_lowercase();
        let name = lower.strip_suffix('.').unwrap_or(&lower);
        if name.contains("://") || name.contains('/') {
            return Err("must be a host name or address, not a URL".to_owned());
        }
        if let Some((stem, _)) = name.split_once(':') {
            return Err(format!(
                "must not hold a port; write host: {stem} and port beside it"
            ));
        }
        let allowed = |letter: char| letter.is_ascii_alphanumeric() || letter == '-' || letter == '_';
        let label = |label: &str| !label.is_empty() && label.len() <= 63 && label.chars().all(allowed);
        if !name.split('.').all(label) {
            return Err("is not a host name or address".to_owned());
        }
        Ok(Self {
            host: name.to_owned(),
            port,
        })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(formatter, "[{}]:{}", self.host, self.port)
        } else {
            write!(formatter, "{}:{}", self.host, self.port)
        }
    }
}

/// `spec.mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PolicyMode {
    /// Refuse, mask, filter.
    Enforce,
    /// Decide and record, change nothing.
    Audit,
}

/// Allow or Deny.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effect {
    /// It may happen.
    Allow,
    /// It is refused.
    Deny,
}

/// `spec.receipts.mode`, loosest first: the strictest of several counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ReceiptMode {
    /// Records may be lost under pressure; each loss is counted and signed as a gap.
    BestEffort,
    /// On disk before a write goes out.
    Durable,
    /// Acknowledged by the collector before a write goes out.
    Strict,
}

/// `database.tls.mode`, loosest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsMode {
    /// No TLS.
    Disable,
    /// TLS, the certificate is not checked.
    Require,
    /// The certificate comes from the given authority.
    VerifyCa,
    /// It is also for the host.
    VerifyFull,
}

/// TLS towards the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsSettings {
    /// How much is checked.
    pub mode: TlsMode,
    /// Where the authority's certificate (PEM) is; `None` = the system's.
    pub ca: Option<SecretKey>,
}

impl Default for TlsSettings {
    fn default() -> Self {
        Self {
            mode: TlsMode::VerifyFull,
            ca: None,
        }
    }
}

/// `database.clientTLS`: TLS towards the application.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ClientTlsSettings {
    /// Its request for TLS is answered with no.
    #[default]
    Plain,
    /// Its request for TLS is answered with yes.
    Serve {
        /// What it is shown; `None` = a leaf of the capture CA.
        certificate: Option<CertificateSettings>,
    },
}

/// A certificate of the policy's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateSettings {
    /// Where the chain (PEM) is.
    pub certificate: SecretKey,
    /// Where its key (PEM) is.
    pub key: SecretKey,
}

/// `database.capture`: how the application's connections come to the sidecar.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum CaptureSettings {
    /// The host's name leads to it.
    #[default]
    Alias,
    /// Variables of the application's containers are rewritten.
    Env {
        /// Those that hold the host.
        host_variables: Vec<String>,
        /// Those that hold the port.
        port_variables: Vec<String>,
        /// Those that hold a URL or connection string.
        url_variables: Vec<String>,
    },
}

/// `database.targetSession`: which of the host's addresses will do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum TargetSession {
    /// The first that answers.
    #[default]
    Any,
    /// The one that takes writes.
    ReadWrite,
}

/// The sidecar's own login.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CredentialSettings {
    /// Where the user name is.
    pub username: SecretKey,
    /// Where the password is.
    pub password: SecretKey,
}

/// Who asks, as far as policies tell subjects apart.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Subject {
    /// Kubernetes service account, or `--as serviceAccount=`.
    pub service_account: Option<String>,
    /// Person.
    pub user: Option<String>,
    /// Groups of the person.
    pub groups: BTreeSet<String>,
    /// AI agent.
    pub agent: Option<String>,
    /// Values for `:claims.x` in row filters.
    pub claims: BTreeMap<String, String>,
}

/// Whom a rule names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SubjectPattern {
    /// A service account.
    ServiceAccount(String),
    /// A person.
    User(String),
    /// A group.
    Group(String),
    /// An agent.
    Agent(String),
}

impl SubjectPattern {
    /// It names this subject.
    pub fn matches(&self, subject: &Subject) -> bool {
        match self {
            Self::ServiceAccount(name) => subject.service_account.as_ref() == Some(name),
            Self::User(name) => subject.user.as_ref() == Some(name),
            Self::Group(name) => subject.groups.contains(name),
            Self::Agent(name) => subject.agent.as_ref() == Some(name),
        }
    }
}

/// One rule of `access`.
#[derive(Debug, Clone)]
pub struct AccessRule {
    /// Name.
    pub name: String,
    /// Path of the rule in its manifest.
    pub field: String,
    /// Allow or Deny.
    pub effect: Effect,
    /// Empty = everybody.
    pub subjects: Vec<SubjectPattern>,
    /// What it speaks of.
    pub actions: BTreeSet<Action>,
    /// Empty (and no columns) = every relation, and actions on none.
    pub tables: Vec<TablePattern>,
    /// Narrow the rule.
    pub columns: Vec<ColumnName>,
}

/// What a mask rule asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MaskSpec {
    /// NULL.
    Null,
    /// The same value.
    Constant(String),
    /// Stars, but for some characters.
    Partial {
        /// At the start.
        keep_first: u32,
        /// At the end.
        keep_last: u32,
    },
    /// First letter and domain.
    Email,
    /// Start of the unit.
    DateTrunc(DateUnit),
    /// A keyed token.
    Hash(SecretKey),
}

/// One rule of `masks`.
#[derive(Debug, Clone)]
pub struct MaskRule {
    /// Name.
    pub name: String,
    /// Path of the rule in its manifest.
    pub field: String,
    /// Named columns.
    pub columns: Vec<ColumnName>,
    /// Named labels.
    pub labels: Vec<Prefix>,
    /// What is shown.
    pub mask: MaskSpec,
    /// Who sees the value.
    pub except: Vec<SubjectPattern>,
}

/// One rule of `rowFilters`.
#[derive(Debug, Clone)]
pub struct RowFilterRule {
    /// Name.
    pub name: String,
    /// Path of the rule in its manifest.
    pub field: String,
    /// Where it holds.
    pub tables: Vec<TablePattern>,
    /// The condition.
    pub predicate: Predicate,
    /// Who is not held by it.
    pub except: Vec<SubjectPattern>,
}

/// What one policy says of functions.
#[derive(Debug, Clone, Default)]
pub struct FunctionRules {
    /// May be called.
    pub allow: Vec<Prefix>,
    /// May not be called.
    pub deny: Vec<Prefix>,
    /// Code whose body cannot be seen.
    pub user_defined: Option<Effect>,
}

/// What one policy says in `guardrails`.
#[derive(Debug, Clone, Default)]
pub struct GuardrailRules {
    /// UPDATE needs an effective WHERE.
    pub require_where_update: bool,
    /// DELETE needs an effective WHERE.
    pub require_where_delete: bool,
    /// Rows changed in one transaction.
    pub max_affected_rows: Option<u64>,
    /// Rows delivered by one statement.
    pub max_returned_rows: Option<u64>,
    /// Seconds.
    pub statement_timeout_seconds: Option<u32>,
    /// Functions.
    pub functions: Option<FunctionRules>,
    /// Channels of LISTEN.
    pub channels: Option<Vec<Prefix>>,
    /// Files of the server.
    pub files: Option<Effect>,
    /// Programs of the server.
    pub programs: Option<Effect>,
}

/// One policy, checked.
#[derive(Debug, Clone)]
pub struct Policy {
    /// `namespace/name`, or `name`.
    pub id: String,
    /// Where it came from.
    pub file: String,
    /// Namespace.
    pub namespace: Option<String>,
    /// Mode.
    pub mode: PolicyMode,
    /// Its names of the database.
    pub endpoints: Vec<Endpoint>,
    /// The only database it is for.
    pub database: Option<String>,
    /// TLS, where it says so.
    pub tls: Option<TlsSettings>,
    /// Login, where it says so.
    pub credentials: Option<CredentialSettings>,
    /// Over what the password may be sent.
    pub transport: Option<Transport>,
    /// TLS towards the application.
    pub client_tls: ClientTlsSettings,
    /// How connections come to the sidecar.
    pub capture: CaptureSettings,
    /// Which address.
    pub target_session: TargetSession,
    /// What holds where no rule speaks.
    pub default_action: Effect,
    /// Label and column, with the path of the column.
    pub classifications: Vec<(String, ColumnName, String)>,
    /// Access rules.
    pub access: Vec<AccessRule>,
    /// Masks.
    pub masks: Vec<MaskRule>,
    /// Row filters.
    pub row_filters: Vec<RowFilterRule>,
    /// Guardrails.
    pub guardrails: GuardrailRules,
    /// Receipts.
    pub receipt_mode: ReceiptMode,
}

impl Policy {
    /// Every Secret and key that it names, all of its own namespace.
    pub fn secret_keys(&self) -> impl Iterator<Item = &SecretKey> {
        let ca = self.tls.iter().filter_map(|tls| tls.ca.as_ref());
        let login = self
            .credentials
            .iter()
            .flat_map(|login| [&login.username, &login.password]);
        let certificate = match &self.client_tls {
            ClientTlsSettings::Serve {
                certificate: Some(names),
            } => Some([&names.certificate, &names.key]),
            ClientTlsSettings::Serve { certificate: None } | ClientTlsSettings::Plain => None,
        };
        let keys = self.masks.iter().filter_map(|rule| match &rule.mask {
            MaskSpec::Hash(key) => Some(key),
            MaskSpec::Null
            | MaskSpec::Constant(_)
            | MaskSpec::Partial { .. }
            | MaskSpec::Email
            | MaskSpec::DateTrunc(_) => None,
        });
        ca.chain(login)
            .chain(certificate.into_iter().flatten())
            .chain(keys)
    }

    /// Names of those Secrets.
    pub fn secret_names(&self) -> BTreeSet<&str> {
        self.secret_keys().map(|key| key.name.as_str()).collect()
    }

    /// It has a mask, a row filter, a Deny rule or `defaultAction: Deny`.
    pub fn protects(&self) -> bool {
        self.default_action == Effect::Deny
            || !self.masks.is_empty()
            || !self.row_filters.is_empty()
            || self.access.iter().any(|rule| rule.effect == Effect::Deny)
    }
}

/// Secrets that manifests hold, by namespace and name.
pub(crate) type ManifestSecrets = BTreeMap<(Option<String>, String), BTreeMap<String, SecretBytes>>;

/// Everything that `compile` made of a directory.
#[derive(Debug, Clone, Default)]
pub struct PolicySet {
    pub(crate) policies: Vec<Arc<Policy>>,
    pub(crate) secrets: Arc<ManifestSecrets>,
}

impl PolicySet {
    /// All policies that name this endpoint, together; refuses everything where none does. Keys of Hash masks come
    /// from the manifests alone.
    pub fn for_database(&self, endpoint: &Endpoint) -> DatabasePolicy {
        self.for_database_with(endpoint, &NoSecrets)
    }

    /// The same, with another source for keys of Hash masks that no manifest holds.
    pub fn for_database_with(&self, endpoint: &Endpoint, source: &dyn SecretSource) -> DatabasePolicy {
        let group = self.group(endpoint);
        let mut keys = BTreeMap::new();
        for mask in group.iter().flat_map(|policy| &policy.masks) {
            if let MaskSpec::Hash(reference) = &mask.mask {
                let key = match self.secret(reference, source) {
                    Some(bytes) => HashKey::new(bytes.expose()).map_err(|error| error.to_string()),
                    None => Err(format!("there is no {reference}")),
                };
                keys.insert(reference.clone(), key);
            }
        }
        DatabasePolicy {
            policies: group,
            keys,
        }
    }

    /// The bytes of a key: a manifest's first, else the source's.
    pub fn secret(&self, key: &SecretKey, source: &dyn SecretSource) -> Option<SecretBytes> {
        self.secrets
            .get(&(key.namespace.clone(), key.name.clone()))
            // A manifest without a namespace serves every policy: on a laptop nobody writes them.
            .or_else(|| self.secrets.get(&(None, key.name.clone())))
            .and_then(|data| data.get(&key.key))
            .cloned()
            .or_else(|| source.secret(key))
    }

    /// The databases named.
    pub fn endpoints(&self) -> BTreeSet<Endpoint> {
        self.policies
            .iter()
            .flat_map(|policy| policy.endpoints.iter().cloned())
            .collect()
    }

    /// One endpoint for each database, the one its first policy gives first; policies that share an endpoint are one
    /// database.
    pub fn databases(&self) -> Vec<Endpoint> {
        let mut seen: BTreeSet<Endpoint> = BTreeSet::new();
        let mut firsts = Vec::new();
        for policy in &self.policies {
            let Some(first) = policy.endpoints.first() else {
                continue;
            };
            if seen.contains(first) {
                continue;
            }
            let group = self.group(first);
            seen.extend(group.iter().flat_map(|policy| policy.endpoints.iter().cloned()));
            firsts.push(first.clone());
        }
        firsts
    }

    /// Every policy.
    pub fn policies(&self) -> impl Iterator<Item = &Policy> {
        self.policies.iter().map(AsRef::as_ref)
    }

    /// Policies that share an endpoint, also through each other.
    pub(crate) fn group(&self, endpoint: &Endpoint) -> Vec<Arc<Policy>> {
        let mut names = BTreeSet::from([endpoint.clone()]);
        loop {
            let before = names.len();
            for policy in &self.policies {
                if policy.endpoints.iter().any(|endpoint| names.contains(endpoint)) {
                    names.extend(policy.endpoints.iter().cloned());
                }
            }
            if names.len() == before {
                break;
            }
        }
        self.policies
            .iter()
            .filter(|policy| policy.endpoints.iter().any(|endpoint| names.contains(endpoint)))
            .cloned()
            .collect()
    }
}

/// All policies of one database, before names are looked up.
#[derive(Debug, Clone)]
pub struct DatabasePolicy {
    pub(crate) policies: Vec<Arc<Policy>>,
    pub(crate) keys: BTreeMap<SecretKey, Result<HashKey, String>>,
}

impl DatabasePolicy {
    /// No policy names the database: everything is refused.
    pub fn is_empty(&self) -> bool {
        self.policies.is_empty()
    }

    /// Names of the policies, `namespace/name`.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.policies.iter().map(|policy| policy.id.as_str())
    }

    /// Databases of that server that may be used; empty = any.
    pub fn database_names(&self) -> BTreeSet<&str> {
        self.policies
            .iter()
            .filter_map(|policy| policy.database.as_deref())
            .collect()
    }

    /// The policies for one database of the server, by its name. `None`: no policy lets that database be used.
    pub fn for_name(&self, database: &str) -> Option<Self> {
        let names = self.database_names();
        if !names.is_empty() && !names.contains(database) {
            return None;
        }
        let policies = self
            .policies
            .iter()
            .filter(|policy| policy.database.as_deref().is_none_or(|name| name == database))
            .cloned()
            .collect();
        Some(Self {
            policies,
            keys: self.keys.clone(),
        })
    }

    /// TLS towards the server (policies of one database agree, or `compile` refuses them).
    pub fn tls(&self) -> TlsSettings {
        self.policies
            .iter()
            .find_map(|policy| policy.tls.clone())
            .unwrap_or_default()
    }

    /// The sidecar's login; `None` = the application's own passes through.
    pub fn credentials(&self) -> Option<CredentialSettings> {
        self.policies.iter().find_map(|policy| policy.credentials.clone())
    }

    /// TLS towards the application. One policy that says Serve is enough (their certificates agree, or `compile`
    /// refuses them).
    pub fn client_tls(&self) -> ClientTlsSettings {
        let serve = self
            .policies
            .iter()
            .find(|policy| policy.client_tls != ClientTlsSettings::Plain);
        serve.map(|policy| policy.client_tls.clone()).unwrap_or_default()
    }

    /// Which of the addresses of this endpoint will do. ReadWrite is meant for a policy's `host`: its `otherEndpoints` may
    /// be replicas. One policy that says it is enough.
    pub fn target_session(&self, endpoint: &Endpoint) -> TargetSession {
        let named = self
            .policies
            .iter()
            .filter(|policy| policy.endpoints.first() == Some(endpoint));
        named
            .map(|policy| policy.target_session)
            .max()
            .unwrap_or_default()
    }

    /// Strictest receipt mode.
    pub fn receipt_mode(&self) -> ReceiptMode {
        let modes = self.policies.iter().map(|policy| policy.receipt_mode);
        modes.max().unwrap_or(ReceiptMode::Durable)
    }

    /// The mask that a rule asks for. A key that cannot be had makes it Null, with the reason.
    pub(crate) fn mask(&self, spec: &MaskSpec) -> (Mask, Option<String>) {
        let mask = match spec {
            MaskSpec::Null => Mask::Null,
            MaskSpec::Constant(value) => Mask::Constant { value: value.clone() },
            MaskSpec::Partial {
                keep_first,
                keep_last,
            } => Mask::Partial {
                keep_first: *keep_first,
                keep_last: *keep_last,
            },
            MaskSpec::Email => Mask::Email,
            MaskSpec::DateTrunc(unit) => Mask::DateTrunc { unit: *unit },
            MaskSpec::Hash(reference) => match self.keys.get(reference) {
                Some(Ok(key)) => Mask::Hash { key: key.clone() },
                Some(Err(reason)) => return (Mask::Null, Some(reason.clone())),
                None => return (Mask::Null, Some(format!("there is no {reference}"))),
            },
        };
        (mask, None)
    }
}
