//! HTTPS, and the way from a path to a review.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde_json::Value;
use service_runtime::drain::{Drain, Stage};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::Webhook;
use super::review::Request;

/// An object of the API server is at most 3 MB, and a review may hold it twice.
const BODY_BYTES_MAX: usize = 10 << 20;
/// Nobody's review takes longer to arrive; the API server gives up after five seconds.
const ARRIVAL: Duration = Duration::from_secs(10);
/// The API server keeps few connections; whoever opens more waits.
const CONNECTIONS_MAX: usize = 256;

/// The paths, without TLS.
pub fn router(webhook: Webhook) -> Router {
    Router::new()
        .route("/pods", post(pods))
        .route("/policies", post(policies))
        .route("/sinks", post(sinks))
        .with_state(webhook)
}

/// Serves admission until draining begins, and what is open then to its end. Each handshake takes the configuration
/// that is there at that moment, so certificates change without a restart.
///
/// # Errors
/// Never on account of one connection; when the listener fails for good.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<ArcSwap<rustls::ServerConfig>>,
    webhook: Webhook,
    drain: Drain,
) -> io::Result<()> {
    let router = router(webhook);
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    let mut draining = drain.clone();
    loop {
        let Ok(place) = Arc::clone(&room).acquire_owned().await else {
            return Ok(());
        };
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of descriptors, or the peer was gone: neither ends the service.
                    tracing::warn!(%error, "cannot accept a connection to the webhook");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
            () = draining.reached(Stage::Draining) => break,
        };
        while connections.try_join_next().is_some() {}
        let acceptor = TlsAcceptor::from(tls.load_full());
        let (router, drain) = (router.clone(), drain.clone());
        connections.spawn(async move {
            connection(stream, acceptor, router, drain).await;
            drop(place);
        });
    }
    while connections.join_next().await.is_some() {}
    Ok(())
}

async fn connection(stream: TcpStream, acceptor: TlsAcceptor, router: Router, mut drain: Drain) {
    let stream = match tokio::time::timeout(ARRIVAL, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(%error, "a connection to the webhook did not shake hands");
            return;
        }
        Err(_) => return,
    };
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(ARRIVAL);
    let mut served =
        std::pin::pin!(builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router)));
    let ended = tokio::select! {
        ended = served.as_mut() => ended,
        () = drain.reached(Stage::Draining) => {
            served.as_mut().graceful_shutdown();
            tokio::select! {
                ended = served => ended,
                () = drain.reached(Stage::Stopped) => return,
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection to the webhook ended");
    }
}

async fn pods(State(webhook): State<Webhook>, body: Body) -> Response {
    let review = match read(body).await {
        Ok(review) => review,
        Err(response) => return response,
    };
    match Request::new(&review) {
        Ok(request) => answer(&webhook.pod(&request).await),
        Err(problem) => wrong(problem),
    }
}

async fn policies(State(webhook): State<Webhook>, body: Body) -> Response {
    judged(body, |request| webhook.policy(request)).await
}

async fn sinks(State(webhook): State<Webhook>, body: Body) -> Response {
    judged(body, |request| webhook.sink(request)).await
}

async fn judged(body: Body, judge: impl FnOnce(&Request<'_>) -> Value) -> Response {
    let review = match read(body).await {
        Ok(review) => review,
        Err(response) => return response,
    };
    match Request::new(&review) {
        Ok(request) => answer(&judge(&request)),
        Err(problem) => wrong(problem),
    }
}

async fn read(body: Body) -> Result<Value, Response> {
    let bytes = match tokio::time::timeout(ARRIVAL, to_bytes(body, BODY_BYTES_MAX)).await {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(_)) => {
            let text = format!("the body is longer than {BODY_BYTES_MAX} bytes, or broke off\n");
            return Err((StatusCode::PAYLOAD_TOO_LARGE, text).into_response());
        }
        Err(_) => {
            return Err((StatusCode::REQUEST_TIMEOUT, "the body did not arrive in time\n").into_response());
        }
    };
    serde_json::from_slice(&bytes).map_err(|error| wrong(&format!("not JSON: {error}")))
}

fn answer(review: &Value) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], review.to_string()).into_response()
}

fn wrong(problem: &str) -> Response {
    (StatusCode::BAD_REQUEST, format!("{problem}\n")).into_response()
}
