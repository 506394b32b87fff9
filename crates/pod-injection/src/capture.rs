//! What is captured: the endpoints of all policies that select the pod, each with an address of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use access_policy::Endpoint;
use crd_types::DatabaseAccessPolicy;
use crd_types::policy::{ClientTlsMode, TlsMode};

use crate::contract::Captured;
use crate::refusal::{Reason, Refusal};
use crate::{Context, aliases, endpoints, needs_ca, secrets};

/// The first address: `127.0.0.1` is the application's own.
const FIRST: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
/// More hosts than this in one pod are a mistake, and would fill its annotation.
const HOSTS_MAX: usize = 250;
const NAME_BYTES_MAX: usize = 253;
/// Kubernetes' own bound for the name of a Secret.
const SECRET_BYTES_MAX: usize = 253;

/// What the pod will capture.
#[derive(Debug)]
pub(crate) struct Plan {
    /// In the order of hosts and ports.
    pub(crate) captured: Vec<Captured>,
    /// Every spelling of every captured host, aliased or not → the host.
    pub(crate) spellings: BTreeMap<String, String>,
    /// All Secrets, in order.
    pub(crate) secrets: Vec<String>,
    /// Whether the application is shown the capture CA.
    pub(crate) needs_ca: bool,
}

impl Plan {
    pub(crate) fn make(
        policies: &[&DatabaseAccessPolicy],
        context: &Context<'_>,
        refusals: &mut Vec<Refusal>,
    ) -> Self {
        for policy in policies {
            review(policy, refusals);
        }
        let mut ports: BTreeMap<String, BTreeMap<u16, BTreeSet<String>>> = BTreeMap::new();
        let mut aliased: BTreeSet<String> = BTreeSet::new();
        for policy in policies {
            for endpoint in endpoints(policy) {
                if aliases(policy) {
                    aliased.insert(endpoint.host.clone());
                }
                let secrets_of = ports
                    .entry(endpoint.host)
                    .or_default()
                    .entry(endpoint.port)
                    .or_default();
                secrets_of.extend(secrets(policy));
            }
        }
        if ports.len() > HOSTS_MAX {
            refusals.push(Refusal::new(
                Reason::TooManyHosts,
                format!(
                    "the policies that select this pod name {} hosts, more than {HOSTS_MAX}",
                    ports.len()
                ),
                "narrow their podSelectors",
            ));
        }
        let spellings = spellings_of(ports.keys(), context, refusals);
        let mut captured = Vec::new();
        for ((host, ports), number) in ports.iter().zip(u32::from(FIRST)..) {
            let address = Ipv4Addr::from(number);
            let names: Vec<String> = if aliased.contains(host) {
                spelled(host, context.namespace, &context.settings.cluster_domain)
            } else {
                Vec::new()
            };
            for (port, secrets) in ports {
                captured.push(Captured {
                    host: host.clone(),
                    port: *port,
                    listen: format!("{address}:{port}"),
                    names: names.clone(),
                    secrets: secrets.iter().cloned().collect(),
                });
            }
        }
        let mut all: Vec<String> = policies.iter().flat_map(|policy| secrets(policy)).collect();
        all.sort();
        all.dedup();
        Self {
            captured,
            spellings,
            secrets: all,
            needs_ca: policies.iter().any(|policy| needs_ca(policy)),
        }
    }

    /// Whether any host is captured by name.
    pub(crate) fn aliases(&self) -> bool {
        self.captured.iter().any(|endpoint| !endpoint.names.is_empty())
    }

    /// Where the sidecar listens for a host, under any of its spellings, and a port.
    pub(crate) fn listener(&self, host: &str, port: u16) -> Option<&Captured> {
        let host = Endpoint::new(host, port).ok()?.host;
        let host = self.spellings.get(&host)?;
        self.captured
            .iter()
            .find(|it| it.host == *host && it.port == port)
    }
}

/// What of a policy makes it impossible to inject a pod for it. Admission of policies refuses the same; a policy may
/// have been written while there was no admission.
fn review(policy: &DatabaseAccessPolicy, refusals: &mut Vec<Refusal>) {
    let name = policy.metadata.name.as_deref().unwrap_or_default();
    let database = &policy.spec.database;
    let others = database
        .other_endpoints
        .iter()
        .map(|other| (&other.host, other.port));
    for (host, port) in std::iter::once((&database.host, database.port)).chain(others) {
        match Endpoint::new(host, port) {
            Err(problem) => refusals.push(Refusal::new(
                Reason::WrongHost,
                format!("policy {name} names the host `{host}`, which {problem}"),
                "correct the policy",
            )),
            Ok(endpoint) if !aliases(policy) => drop(endpoint),
            Ok(endpoint) if endpoint.host.parse::<IpAddr>().is_ok() => refusals.push(Refusal::new(
                Reason::AddressNeedsEnv,
                format!("policy {name} captures by name, and `{host}` is an address"),
                "set database.capture.mode: Env in the policy, or name the host",
            )),
            Ok(endpoint) if !aliasable(&endpoint.host) => refusals.push(Refusal::new(
                Reason::HostNotAliasable,
                format!("policy {name} captures by name, and Kubernetes takes no hosts entry for `{host}`"),
                "use a name of lower-case letters, digits, `-` and `.`, or database.capture.mode: Env",
            )),
            Ok(_) => {}
        }
    }
    for secret in secrets(policy) {
        if secret.len() > SECRET_BYTES_MAX || !aliasable(&secret) {
            refusals.push(Refusal::new(
                Reason::WrongSecretName,
                format!("policy {name} names the Secret `{secret}`, and no Secret can have that name"),
                "correct the policy",
            ));
        }
    }
    match (database.client_tls.mode, database.tls.mode, &database.credentials) {
        (ClientTlsMode::Plain, _, _) | (_, TlsMode::Disable, _) | (_, _, Some(_)) => {}
        (ClientTlsMode::Serve, TlsMode::Require | TlsMode::VerifyCA | TlsMode::VerifyFull, None) => {
            refusals.push(Refusal::new(
                Reason::ServeWithoutCredentials,
                format!(
                    "policy {name} has clientTLS.mode: Serve without credentials, and a login passed through two TLS \
                     connections looks like an attack to the server"
                ),
                "give the policy database.credentials, or clientTLS.mode: Plain",
            ));
        }
    }
}

/// Whether Kubernetes takes it as a name in `hostAliases` (a DNS-1123 subdomain, as names of Secrets are).
fn aliasable(host: &str) -> bool {
    host.len() <= NAME_BYTES_MAX
        && host.split('.').all(|label| {
            let inner =
                |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '-';
            !label.is_empty() && label.chars().all(inner) && !label.starts_with('-') && !label.ends_with('-')
        })
}

/// Every name under which a resolver of a pod in `namespace` may be asked for `host`, itself first.
fn spelled(host: &str, namespace: &str, cluster_domain: &str) -> Vec<String> {
    if host.parse::<IpAddr>().is_ok() {
        return vec![host.to_owned()];
    }
    let local = host
        .strip_suffix(cluster_domain)
        .and_then(|rest| rest.strip_suffix(".svc."))
        .or_else(|| host.strip_suffix(".svc"));
    // `db`, `db.shop` and `db.shop.svc` are completed by the search list. Names with more dots and without `.svc` are
    // of the world outside, where there is one spelling.
    let service = match (local, host.split('.').count()) {
        (Some(local), _) if local.contains('.') => Some(local.to_owned()),
        (None, 1) => Some(format!("{host}.{namespace}")),
        (None, 2) => Some(host.to_owned()),
        _ => None,
    };
    let mut names = vec![host.to_owned()];
    if let Some(service) = service {
        let own = service
            .strip_suffix(namespace)
            .and_then(|stem| stem.strip_suffix('.'))
            .map(ToOwned::to_owned);
        let long = [
            format!("{service}.svc"),
            format!("{service}.svc.{cluster_domain}"),
        ];
        for name in own.into_iter().chain([service]).chain(long) {
            if !names.contains(&name) && name.len() <= NAME_BYTES_MAX {
                names.push(name);
            }
        }
    }
    names
}

fn spellings_of<'a>(
    hosts: impl Iterator<Item = &'a String>,
    context: &Context<'_>,
    refusals: &mut Vec<Refusal>,
) -> BTreeMap<String, String> {
    let mut owners: BTreeMap<String, String> = BTreeMap::new();
    for host in hosts {
        let mut told = false;
        for name in spelled(host, context.namespace, &context.settings.cluster_domain) {
            let owner = owners.entry(name.clone()).or_insert_with(|| host.clone());
            if owner != host && !told {
                told = true;
                refusals.push(Refusal::new(
                    Reason::SpellingCollides,
                    format!(
                        "the policies name the hosts `{owner}` and `{host}`, and `{name}` is a name of both"
                    ),
                    "write the host alike in all policies, in its longest form",
                ));
            }
        }
    }
    owners
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_has_four_names_in_its_own_namespace_and_three_elsewhere() {
        let of = |host: &str, namespace: &str| spelled(host, namespace, "cluster.local");
        let all = ["db.shop.svc", "db", "db.shop", "db.shop.svc.cluster.local"];
        assert_eq!(of("db.shop.svc", "shop"), all);
        assert_eq!(
            of("db.shop.svc", "other"),
            ["db.shop.svc", "db.shop", "db.shop.svc.cluster.local"]
        );
        assert_eq!(
            of("db", "shop"),
            ["db", "db.shop", "db.shop.svc", "db.shop.svc.cluster.local"]
        );
        assert_eq!(
            of("db.shop.svc.cluster.local", "shop"),
            ["db.shop.svc.cluster.local", "db", "db.shop", "db.shop.svc"]
        );
        assert_eq!(
            of("pg-0.pg.shop.svc", "shop"),
            [
                "pg-0.pg.shop.svc",
                "pg-0.pg",
                "pg-0.pg.shop",
                "pg-0.pg.shop.svc.cluster.local"
            ]
        );
        assert_eq!(of("pg.rds.example.com", "shop"), ["pg.rds.example.com"]);
        assert_eq!(of("10.1.2.3", "shop"), ["10.1.2.3"]);
        assert_eq!(of("foo.svc", "shop"), ["foo.svc"]);
    }
}
