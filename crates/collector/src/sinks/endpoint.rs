//! HTTP(S) to an endpoint that somebody in the cluster named: never to this machine, never to the cloud's metadata.
//!
//! The name is resolved, every address is checked, and the connection goes to the address that was checked: a name that
//! answers otherwise the second time gains nothing. Redirects are not followed. What the endpoint answers is not told
//! on, only its status: a sink's status must not become a way to read pages of the cluster.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, StatusCode, Uri, header};
use hyper_rustls::ConfigBuilderExt;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;

/// Read so that the connection can be used again; longer answers end it.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// 2xx.
    Taken,
    /// 400, 413, 422: it will never take this one.
    Poison(u16),
    /// Anything else: worth another try.
    Again(String),
}

/// May a sink lead to this machine?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoopbackSinks {
    /// For tests and a laptop.
    Allowed,
    /// As it must be in a cluster.
    Refused,
}

#[derive(Debug)]
pub(crate) struct Endpoint {
    uri: Uri,
    host: String,
    port: u16,
    tls: Option<Arc<rustls::ClientConfig>>,
    token: Option<header::HeaderValue>,
    timeout: Duration,
    loopback: LoopbackSinks,
    connection: Option<Connection>,
}

#[derive(Debug)]
struct Connection {
    sender: SendRequest<Full<Bytes>>,
    task: JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Endpoint {
    /// # Errors
    /// What is wrong with the URL or the token, in words.
    pub(crate) fn new(
        url: &str,
        token: &str,
        timeout: Duration,
        loopback: LoopbackSinks,
    ) -> Result<Self, String> {
        let uri: Uri = url.parse().map_err(|_| format!("`{url}` is not a URL"))?;
        let authority = uri.authority().ok_or_else(|| format!("`{url}` names no host"))?;
        if authority.as_str().contains('@') {
            return Err("a URL must not hold a login: use tokenSecretRef".to_owned());
        }
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        let (tls, port) = match uri.scheme_str() {
            Some("https") => (Some(Arc::new(tls_config()?)), 443),
            Some("http") => (None, 80),
            _ => return Err(format!("`{url}` is neither http nor https")),
        };
        let token = match token {
            "" => None,
            token => {
                let mut value = header::HeaderValue::from_str(&format!("Bearer {}", token.trim()))
                    .map_err(|_| "the token holds characters that no header can".to_owned())?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        Ok(Self {
            port: authority.port_u16().unwrap_or(port),
            host,
            tls,
            token,
            timeout,
            loopback,
            connection: None,
            uri,
        })
    }

    pub(crate) async fn post(&mut self, body: Bytes) -> Answer {
        // An idle connection that the endpoint closed meanwhile is no failure: once more, on a new one.
        let kept = self.connection.is_some();
        match tokio::time::timeout(self.timeout, self.try_post(body.clone())).await {
            Ok(Ok(status)) => judge(status),
            Ok(Err(_)) if kept => {
                self.connection = None;
                match tokio::time::timeout(self.timeout, self.try_post(body)).await {
                    Ok(Ok(status)) => judge(status),
                    Ok(Err(error)) => self.failed(error),
                    Err(_) => self.failed("no answer in time".to_owned()),
                }
            }
            Ok(Err(error)) => self.failed(error),
            Err(_) => self.failed("no answer in time".to_owned()),
        }
    }

    fn failed(&mut self, error: String) -> Answer {
        self.connection = None;
        Answer::Again(error)
    }

    async fn try_post(&mut self, body: Bytes) -> Result<StatusCode, String> {
        let mut connection = match self.connection.take().filter(|kept| !kept.sender.is_closed()) {
            Some(kept) => kept,
            None => self.connect().await?,
        };
        let path = self.uri.path_and_query().map_or("/", |path| path.as_str());
        let mut request = Request::post(path)
            .header(
                header::HOST,
                self.uri.authority().map_or("", |name| name.as_str()),
            )
            .header(header::CONTENT_TYPE, "application/json")
            .header(
                header::USER_AGENT,
                concat!("weir-collector/", env!("CARGO_PKG_VERSION")),
            );
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, token);
        }
        let request = request.body(Full::new(body)).map_err(|error| error.to_string())?;
        let said = |error: hyper::Error| format!("the connection broke: {error}");
        connection.sender.ready().await.map_err(said)?;
        let response = connection.sender.send_request(request).await.map_err(said)?;
        let status = response.status();
        let whole = Limited::new(response.into_body(), ANSWER_BYTES_MAX)
            .collect()
            .await;
        if whole.is_ok() {
            self.connection = Some(connection);
        }
        Ok(status)
    }

    async fn connect(&self) -> Result<Connection, String> {
        let addresses: Vec<SocketAddr> = tokio::net::lookup_host((self.host.as_str(), self.port))
            .await
            .map_err(|error| format!("cannot resolve `{}`: {error}", self.host))?
            .collect();
        // One forbidden address is enough: a name that also leads here is not one to trust.
        if let Some((address, what)) = addresses
            .iter()
            .find_map(|address| Some((address.ip(), forbidden(address.ip(), self.loopback)?)))
        {
            return Err(format!(
                "`{}` leads to {address}: {what} addresses are refused",
                self.host
            ));
        }
        let mut problem = format!("`{}` has no address", self.host);
        for address in addresses {
            match TcpStream::connect(address).await {
                Ok(stream) => return self.speak(stream).await,
                Err(error) => problem = format!("cannot reach {address}: {error}"),
            }
        }
        Err(problem)
    }

    async fn speak(&self, stream: TcpStream) -> Result<Connection, String> {
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        match &self.tls {
            None => self.http(TokioIo::new(stream)).await,
            Some(config) => {
                let name = rustls::pki_types::ServerName::try_from(self.host.clone())
                    .map_err(|_| format!("`{}` cannot be verified", self.host))?;
                let stream = TlsConnector::from(Arc::clone(config))
                    .connect(name, stream)
                    .await
                    .map_err(|error| format!("TLS with `{}`: {error}", self.host))?;
                self.http(TokioIo::new(stream)).await
            }
        }
    }

    async fn http(
        &self,
        io: impl hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
    ) -> Result<Connection, String> {
        let (sender, connection) = handshake(io).await.map_err(|error| error.to_string())?;
        let task = tokio::spawn(async move {
            // Its end shows at the sender.
            let _ = connection.await;
        });
        Ok(Connection { sender, task })
    }
}

fn judge(status: StatusCode) -> Answer {
    match status.as_u16() {
        200..=299 => Answer::Taken,
        code @ (400 | 413 | 422) => Answer::Poison(code),
        300..=399 => Answer::Again(format!("answered {status}; redirects are not followed")),
        _ => Answer::Again(format!("answered {status}")),
    }
}

fn tls_config() -> Result<rustls::ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    Ok(rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_native_roots()
        .map_err(|error| format!("no root certificates on this system: {error}"))?
        .with_no_client_auth())
}

/// Which kind of address that is, if none may be told anything there.
fn forbidden(address: IpAddr, loopback: LoopbackSinks) -> Option<&'static str> {
    match address {
        IpAddr::V4(address) => forbidden_v4(address, loopback),
        IpAddr::V6(address) => {
            let segments = address.segments();
            let [.., high, low] = segments;
            let embedded = Ipv4Addr::from((u32::from(high) << 16) | u32::from(low));
            if address.to_ipv4_mapped().is_some() || segments.starts_with(&[0x64, 0xff9b, 0, 0, 0, 0]) {
                return forbidden_v4(embedded, loopback);
            }
            if address.is_loopback() {
                return (loopback == LoopbackSinks::Refused).then_some("loopback");
            }
            match address {
                _ if address.is_unspecified() => Some("unspecified"),
                _ if address.is_multicast() => Some("multicast"),
                _ if address.is_unicast_link_local() => Some("link-local"),
                _ if address == Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254) => Some("metadata"),
                // The old form of an IPv4 address within IPv6: nobody needs it.
                _ if segments.starts_with(&[0, 0, 0, 0, 0, 0]) => Some("embedded IPv4"),
                _ => None,
            }
        }
    }
}

fn forbidden_v4(address: Ipv4Addr, loopback: LoopbackSinks) -> Option<&'static str> {
    let [first, ..] = address.octets();
    match address {
        _ if address.is_loopback() => (loopback == LoopbackSinks::Refused).then_some("loopback"),
        _ if first == 0 => Some("unspecified"),
        _ if address.is_multicast() || address.is_broadcast() => Some("multicast"),
        // 169.254.169.254 among them.
        _ if address.is_link_local() => Some("link-local"),
        _ if address == Ipv4Addr::new(100, 100, 100, 200) => Some("metadata"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_way_back_to_this_machine_or_to_metadata() {
        for wrong in [
            "127.0.0.1",
            "127.9.9.9",
            "0.0.0.0",
            "0.1.2.3",
            "169.254.169.254",
            "224.0.0.1",
            "255.255.255.255",
            "100.100.100.200",
            "::1",
            "::",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b::a9fe:a9fe",
            "fe80::1",
            "ff02::1",
            "fd00:ec2::254",
        ] {
            assert!(
                forbidden(wrong.parse().unwrap(), LoopbackSinks::Refused).is_some(),
                "{wrong}"
            );
        }
        for right in ["10.0.0.1", "172.16.0.9", "8.8.8.8", "2001:db8::1", "fd12::1"] {
            assert_eq!(
                forbidden(right.parse().unwrap(), LoopbackSinks::Refused),
                None,
                "{right}"
            );
        }
        assert_eq!(
            forbidden("127.0.0.1".parse().unwrap(), LoopbackSinks::Allowed),
            None
        );
        assert!(forbidden("169.254.169.254".parse().unwrap(), LoopbackSinks::Allowed).is_some());
    }

    #[test]
    fn what_is_no_endpoint() {
        let new = |url| Endpoint::new(url, "", Duration::from_secs(1), LoopbackSinks::Refused).err();
        for wrong in ["", "ftp://x/", "/only/a/path", "http://user:secret@x/", "x"] {
            assert!(new(wrong).is_some(), "{wrong}");
        }
        assert_eq!(new("http://marquez.data.svc:5000/api/v1/lineage"), None);
    }
}
