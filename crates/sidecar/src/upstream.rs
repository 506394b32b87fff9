//! Towards the database: addresses, TLS, first packets.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use access_policy::policy::TargetSession;
use bytes::BytesMut;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{LookupIpStrategy, ResolveHosts};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use wire_protocol::postgres::write;

use crate::fatal::{EndKind, Fatal};
use crate::stream::{Leg, Stream, tune};
use crate::tls;

/// One address has this long to answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// TLS has this long.
const TLS_TIMEOUT: Duration = Duration::from_secs(15);

/// Addresses whose role is remembered.
const ROLES_MAX: usize = 256;

/// A host and port to dial.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HostPort {
    /// Name or address, without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl std::fmt::Display for HostPort {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.host.contains(':') {
            write!(formatter, "[{}]:{}", self.host, self.port)
        } else {
            write!(formatter, "{}:{}", self.host, self.port)
        }
    }
}

impl std::str::FromStr for HostPort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || format!("`{text}` is not HOST:PORT");
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let host = match host.strip_prefix('[') {
            Some(rest) => rest.strip_suffix(']').ok_or_else(wrong)?,
            None if host.contains(':') => return Err(wrong()),
            None => host,
        };
        if host.is_empty() {
            return Err(wrong());
        }
        Ok(Self {
            host: host.to_owned(),
            port: port.parse().map_err(|_| wrong())?,
        })
    }
}

/// TLS towards the database.
#[derive(Clone)]
pub enum UpstreamTls {
    /// None.
    Disable,
    /// Always; never without.
    Use(TlsConnector),
}

impl std::fmt::Debug for UpstreamTls {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Disable => "Disable",
            Self::Use(_) => "Use",
        })
    }
}

/// The sidecar's own login. `Debug` shows no password.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// User the database sees.
    pub username: String,
    /// Password.
    pub password: Vec<u8>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Credentials")
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// Who logs in at the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Login {
    /// The client, with its own password.
    PassThrough,
    /// The sidecar.
    Own(Credentials),
}

/// How a name becomes addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resolve {
    /// As the system does it.
    System,
    /// By DNS alone. In a pod the hosts file leads the name to the sidecar itself.
    WithoutHostsFile,
}

impl Resolve {
    /// Addresses of a name, at least one.
    ///
    /// # Errors
    /// Why there are none, in the resolver's words.
    pub async fn addresses(self, dial: &HostPort) -> Result<Vec<SocketAddr>, String> {
        match self {
            Self::System => tokio::net::lookup_host((dial.host.as_str(), dial.port))
                .await
                .map(Iterator::collect)
                .map_err(|error| error.to_string()),
            Self::WithoutHostsFile => {
                if let Ok(address) = dial.host.parse::<IpAddr>() {
                    return Ok(vec![SocketAddr::new(address, dial.port)]);
                }
                // Made anew each time: nothing is cached, so no TTL is outlived, and resolv.conf is read as it is now.
                let mut builder = TokioResolver::builder_tokio().map_err(|error| error.to_string())?;
                let options = builder.options_mut();
                options.use_hosts_file = ResolveHosts::Never;
                options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
                let resolver = builder.build().map_err(|error| error.to_string())?;
                let found = resolver
                    .lookup_ip(dial.host.as_str())
                    .await
                    .map_err(|error| error.to_string())?;
                Ok(found
                    .iter()
                    .map(|address| SocketAddr::new(address, dial.port))
                    .collect())
            }
        }
    }
}

/// One database server and how to reach it.
#[derive(Debug, Clone)]
pub struct Upstream {
    /// The name policies know it by; certificates are checked against this host.
    pub name: HostPort,
    /// What is dialled.
    pub dial: HostPort,
    /// How its name becomes addresses.
    pub resolve: Resolve,
    /// TLS.
    pub tls: UpstreamTls,
    /// Login.
    pub login: Login,
    /// Which of its addresses will do.
    pub target: TargetSession,
}

impl Upstream {
    /// Addresses of its name, now.
    ///
    /// # Errors
    /// A [`Fatal`] that says what the resolver said.
    pub async fn addresses(&self) -> Result<Vec<SocketAddr>, Fatal> {
        tokio::time::timeout(CONNECT_TIMEOUT, self.resolve.addresses(&self.dial))
            .await
            .unwrap_or_else(|_| Err("no answer".to_owned()))
            .map_err(|error| unreachable(self, &format!("its name cannot be resolved: {error}")))
    }
}

/// What a server does at an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It takes writes.
    Primary,
    /// It follows another one.
    Standby,
}

/// What the last sessions found at the addresses of a name. It only says where to begin: each login looks again.
#[derive(Debug, Default)]
pub struct Roles {
    known: Mutex<HashMap<SocketAddr, (Role, Instant)>>,
}

impl Roles {
    /// Remembers.
    pub fn note(&self, address: SocketAddr, role: Role) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= ROLES_MAX && !known.contains_key(&address) {
            known.clear();
        }
        known.insert(address, (role, Instant::now()));
    }

    /// The primary first, then what is not known, then standbys: the one that was asked longest ago may be the primary
    /// by now.
    pub fn order(&self, addresses: &mut [SocketAddr]) {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        addresses.sort_by_key(|address| match known.get(address) {
            Some((Role::Primary, _)) => (0, None),
            None => (1, None),
            Some((Role::Standby, at)) => (2, Some(*at)),
        });
    }
}

/// A fresh connection.
#[derive(Debug)]
pub struct Connection {
    /// Nothing was sent on it but TLS.
    pub leg: Leg,
    /// Where it goes.
    pub address: SocketAddr,
    /// `tls-server-end-point`, where TLS is on and the certificate has one.
    pub binding: Option<Vec<u8>>,
}

/// Connects to the first address that answers.
///
/// # Errors
/// A [`Fatal`] that says what the database's side did.
pub async fn connect(upstream: &Upstream) -> Result<Connection, Fatal> {
    let addresses = upstream.addresses().await?;
    let mut last = "its name has no address".to_owned();
    for address in addresses {
        match tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
            Ok(Ok(socket)) => return secure(upstream, socket, address).await,
            Ok(Err(error)) => last = format!("{address}: {error}"),
            Err(_) => last = format!("{address}: no answer"),
        }
    }
    Err(unreachable(upstream, &last))
}

/// Connects to one address: that of a session which is to be cancelled.
///
/// # Errors
/// As [`connect`].
pub async fn connect_to(upstream: &Upstream, address: SocketAddr) -> Result<Connection, Fatal> {
    match tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
        Ok(Ok(socket)) => secure(upstream, socket, address).await,
        Ok(Err(error)) => Err(unreachable(upstream, &format!("{address}: {error}"))),
        Err(_) => Err(unreachable(upstream, &format!("{address}: no answer"))),
    }
}

async fn secure(upstream: &Upstream, socket: TcpStream, address: SocketAddr) -> Result<Connection, Fatal> {
    tune(&socket).map_err(|error| unreachable(upstream, &error.to_string()))?;
    let UpstreamTls::Use(connector) = &upstream.tls else {
        return Ok(Connection {
            leg: Leg::new(Stream::Plain(socket)),
            address,
            binding: None,
        });
    };
    let handshake = async {
        let mut leg = Leg::new(Stream::Plain(socket));
        let mut request = BytesMut::new();
        write::frontend::ssl_request(&mut request);
        leg.send(request.freeze());
        let io = |error: std::io::Error| tls_failed(upstream, &error.to_string());
        leg.flush().await.map_err(io)?;
        while leg.received.is_empty() {
            if leg.fill().await.map_err(io)? == 0 {
                return Err(tls_failed(upstream, "it closed the connection"));
            }
        }
        match leg.received.as_ref() {
            b"S" => {}
            b"N" => {
                return Err(tls_failed(
                    upstream,
                    "it does not offer TLS (the policy's tls.mode asks for it)",
                ));
            }
            // Anything behind the answer would be taken for what the encrypted side said.
            _ => {
                return Err(tls_failed(
                    upstream,
                    "it answered the request for TLS with something else",
                ));
            }
        }
        let Stream::Plain(socket) = leg.into_stream() else {
            return Err(tls_failed(upstream, "TLS within TLS"));
        };
        let name = ServerName::try_from(upstream.name.host.clone())
            .map_err(|error| tls_failed(upstream, &error.to_string()))?;
        let stream = connector
            .connect(name, socket)
            .await
            .map_err(|error| tls_failed(upstream, &error.to_string()))?;
        let binding = stream
            .get_ref()
            .1
            .peer_certificates()
            .and_then(<[_]>::first)
            .and_then(tls::end_point_binding);
        Ok(Connection {
            leg: Leg::new(Stream::Client(Box::new(stream))),
            address,
            binding,
        })
    };
    match tokio::time::timeout(TLS_TIMEOUT, handshake).await {
        Ok(result) => result,
        Err(_) => Err(tls_failed(upstream, "no answer")),
    }
}

/// None of a name's addresses takes writes; why not, each.
pub fn no_primary(upstream: &Upstream, passed: &[String]) -> Fatal {
    let passed = match passed {
        [] => "its name has no address".to_owned(),
        passed => passed.join("; "),
    };
    Fatal::new(
        EndKind::Unreachable,
        "08001",
        format!(
            "no address of the database {} takes writes: {passed}",
            upstream.name
        ),
    )
}

fn unreachable(upstream: &Upstream, why: &str) -> Fatal {
    Fatal::new(
        EndKind::Unreachable,
        "08001",
        format!("cannot reach the database {}: {why}", upstream.name),
    )
}

fn tls_failed(upstream: &Upstream, why: &str) -> Fatal {
    Fatal::new(
        EndKind::Login,
        "08001",
        format!("no TLS with the database {}: {why}", upstream.name),
    )
}

/// For the databases of one process.
pub type SharedUpstream = Arc<Upstream>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_primary_is_tried_first_and_the_standby_asked_longest_ago_before_the_others() {
        let address = |last: u8| SocketAddr::new(IpAddr::from([10, 0, 0, last]), 5432);
        let roles = Roles::default();
        let ordered = |roles: &Roles| {
            let mut all: Vec<SocketAddr> = (1..=4).map(address).collect();
            roles.order(&mut all);
            all
        };
        assert_eq!(ordered(&roles), [1, 2, 3, 4].map(address));
        roles.note(address(1), Role::Standby);
        roles.note(address(2), Role::Standby);
        roles.note(address(4), Role::Primary);
        assert_eq!(ordered(&roles), [4, 3, 1, 2].map(address));
        // It was demoted.
        roles.note(address(4), Role::Standby);
        roles.note(address(1), Role::Standby);
        let order: Vec<SocketAddr> = ordered(&roles);
        assert_eq!((order[0], order[1]), (address(3), address(2)));
        for index in 0..10_000_u16 {
            roles.note(SocketAddr::new(IpAddr::from([10, 0, 0, 1]), index), Role::Standby);
        }
        assert!(roles.known.lock().unwrap().len() <= ROLES_MAX);
    }
}
