//! TLS between the parts of Weir: 1.3, mutual, verified against Weir's own roots and against a fixed name.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tonic::transport::server::Connected;
use tonic::transport::{Channel, Endpoint};

use crate::identity::{Identity, IdentityProblem, Trust};
use crate::peer::{COLLECTOR_NAME, OPERATOR_NAME, Peer, read_peer};

/// A handshake may take this long.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Handshakes at once.
const HANDSHAKES_MAX: usize = 128;
/// Connections that wait to be served.
const READY_MAX: usize = 32;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Must a client show a certificate?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientAuth {
    /// It may (what it may then do is decided by who it is).
    Optional,
    /// It must.
    Required,
}

/// What is spoken within TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alpn {
    /// gRPC.
    H2,
    /// HTTP/1.1.
    Http1,
}

impl Alpn {
    fn wire(self) -> Vec<Vec<u8>> {
        match self {
            Self::H2 => vec![b"h2".to_vec()],
            Self::Http1 => vec![b"http/1.1".to_vec()],
        }
    }
}

fn tls(error: &rustls::Error) -> IdentityProblem {
    IdentityProblem::Unreadable {
        what: "certificate and key",
        why: error.to_string(),
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// A client that shows `identity` (if any) and trusts only `trust`.
///
/// # Errors
/// [`IdentityProblem`]
pub fn client_config(
    trust: &Trust,
    identity: Option<&Identity>,
    alpn: Alpn,
) -> Result<rustls::ClientConfig, IdentityProblem> {
    let verifier = WebPkiServerVerifier::builder_with_provider(trust.store()?, provider())
        .build()
        .map_err(|error| IdentityProblem::Unreadable {
            what: "root certificates",
            why: error.to_string(),
        })?;
    let builder = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| tls(&error))?
        .dangerous() // reason: the verifier is webpki's, with one question more
        .with_custom_certificate_verifier(Arc::new(ControlPlane(verifier)));
    let mut config = match identity {
        Some(identity) => builder
            .with_client_auth_cert(identity.chain.clone(), identity.key.clone_key())
            .map_err(|error| tls(&error))?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.wire();
    // A resumed session would keep what was verified under roots that count no more.
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

/// A server that shows `identity` and lets in whom `trust` vouches for.
///
/// # Errors
/// [`IdentityProblem`]
pub fn server_config(
    trust: &Trust,
    identity: &Identity,
    client: ClientAuth,
    alpn: Alpn,
) -> Result<rustls::ServerConfig, IdentityProblem> {
    let verifier = WebPkiClientVerifier::builder_with_provider(trust.store()?, provider());
    let verifier = match client {
        ClientAuth::Optional => verifier.allow_unauthenticated(),
        ClientAuth::Required => verifier,
    }
    .build()
    .map_err(|error| IdentityProblem::Unreadable {
        what: "root certificates",
        why: error.to_string(),
    })?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| tls(&error))?
        .with_client_cert_verifier(Arc::new(KnownPeer(verifier)))
        .with_single_cert(identity.chain.clone(), identity.key.clone_key())
        .map_err(|error| tls(&error))?;
    config.alpn_protocols = alpn.wire();
    // A session that is taken up again would skip the check of a certificate that has ended since.
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// A gRPC channel to `authority` (`host:port`), verified as `name`. Connects when first used, and again when it broke;
/// whoever rotates certificates makes a new channel.
///
/// # Errors
/// Where `authority` is none.
pub fn connect_channel(
    authority: &str,
    name: &'static str,
    config: Arc<rustls::ClientConfig>,
) -> Result<Channel, tonic::transport::Error> {
    let endpoint = Endpoint::from_shared(format!("http://{authority}"))?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(3))
        .keep_alive_while_idle(true);
    let target = authority.to_owned();
    Ok(endpoint.connect_with_connector_lazy(tower::service_fn(move |_| {
        let (target, config) = (target.clone(), Arc::clone(&config));
        async move {
            connect(&target, name, config)
                .await
                .map(hyper_util::rt::TokioIo::new)
        }
    })))
}

/// One TLS connection to `authority`, verified as `name`.
///
/// # Errors
/// As the network or the handshake says.
pub async fn connect(
    authority: &str,
    name: &'static str,
    config: Arc<rustls::ClientConfig>,
) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let connecting = async {
        let socket = TcpStream::connect(authority).await?;
        socket.set_nodelay(true)?;
        let server =
            ServerName::try_from(name).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        TlsConnector::from(config).connect(server, socket).await
    };
    tokio::time::timeout(HANDSHAKE_TIMEOUT, connecting)
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no answer in time"))?
}

/// The configuration of new connections: swapped when certificates rotate.
pub type SwappableConfig = Arc<ArcSwap<rustls::ServerConfig>>;

/// Who is at the other end: in the extensions of every request.
#[derive(Debug, Clone)]
pub struct ConnectedPeer {
    /// From its verified certificate; `None` without one.
    pub peer: Option<Peer>,
    /// Its leaf.
    pub leaf: Option<CertificateDer<'static>>,
    /// Its address.
    pub address: SocketAddr,
}

/// An accepted connection.
#[derive(Debug)]
pub struct TlsConnection {
    stream: tokio_rustls::server::TlsStream<TcpStream>,
    peer: ConnectedPeer,
}

impl TlsConnection {
    /// Who is at the other end.
    pub fn peer(&self) -> &ConnectedPeer {
        &self.peer
    }
}

impl Connected for TlsConnection {
    type ConnectInfo = ConnectedPeer;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.peer.clone()
    }
}

impl AsyncRead for TlsConnection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for TlsConnection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Accepts on `listener` until the returned stream is dropped. Handshakes run beside each other, bounded in number and
/// time; a slow one holds up nobody.
pub fn incoming(
    listener: TcpListener,
    config: SwappableConfig,
) -> tokio_stream::wrappers::ReceiverStream<io::Result<TlsConnection>> {
    let (sender, receiver) = mpsc::channel(READY_MAX);
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    tokio::spawn(async move {
        loop {
            let Ok(permit) = Arc::clone(&handshakes).acquire_owned().await else {
                return;
            };
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = sender.closed() => return,
            };
            let (socket, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors, mostly: the next connection may find one.
                    tracing::error!(%error, "a connection cannot be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let (config, sender) = (config.load_full(), sender.clone());
            tokio::spawn(async move {
                let _permit = permit;
                match tokio::time::timeout(HANDSHAKE_TIMEOUT, accept(socket, address, config)).await {
                    Ok(Ok(connection)) => {
                        // Whoever served is gone.
                        let _ = sender.send(Ok(connection)).await;
                    }
                    Ok(Err(error)) => tracing::debug!(%address, %error, "no TLS"),
                    Err(_) => tracing::debug!(%address, "no TLS in time"),
                }
            });
        }
    });
    tokio_stream::wrappers::ReceiverStream::new(receiver)
}

async fn accept(
    socket: TcpStream,
    address: SocketAddr,
    config: Arc<rustls::ServerConfig>,
) -> io::Result<TlsConnection> {
    socket.set_nodelay(true)?;
    let stream = TlsAcceptor::from(config).accept(socket).await?;
    let leaf = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(<[_]>::first)
        .map(|leaf| leaf.clone().into_owned());
    // The handshake has read it before: whoever names nobody is not let in.
    let peer = match &leaf {
        Some(leaf) => Some(
            read_peer(leaf).map_err(|problem| io::Error::new(io::ErrorKind::PermissionDenied, problem))?,
        ),
        None => None,
    };
    Ok(TlsConnection {
        stream,
        peer: ConnectedPeer { peer, leaf, address },
    })
}

fn refused(problem: impl std::error::Error + Send + Sync + 'static) -> rustls::Error {
    CertificateError::Other(OtherError(Arc::new(problem))).into()
}

/// The server is who its fixed name says: chain and name by webpki, then the SPIFFE name.
#[derive(Debug)]
struct ControlPlane(Arc<WebPkiServerVerifier>);

#[derive(Debug, thiserror::Error)]
#[error("the server is not {0}")]
struct OtherServer(String);

impl ServerCertVerifier for ControlPlane {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified =
            self.0
                .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)?;
        let name = server_name.to_str();
        let expected = match name.as_ref() {
            OPERATOR_NAME => Peer::Operator,
            COLLECTOR_NAME => Peer::Collector,
            _ => return Err(refused(OtherServer("one that Weir knows".to_owned()))),
        };
        if read_peer(end_entity).map_err(refused)? != expected {
            return Err(refused(OtherServer(name.into_owned())));
        }
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// The client is somebody that Weir knows: chain by webpki, then the SPIFFE name.
#[derive(Debug)]
struct KnownPeer(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for KnownPeer {
    fn client_auth_mandatory(&self) -> bool {
        self.0.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.0.verify_client_cert(end_entity, intermediates, now)?;
        read_peer(end_entity).map_err(refused)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}
