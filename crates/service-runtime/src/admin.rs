//! The admin port.

use std::sync::Arc;

use axum::Json;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::registry::Registry;

use crate::drain::{Drain, Stage};
use crate::health::Health;

/// Makes the page `/status`.
pub type StatusPage = Arc<dyn Fn() -> serde_json::Value + Send + Sync>;

/// What the admin pages show.
#[derive(Clone)]
pub struct Pages {
    /// For `/readyz`.
    pub health: Health,
    /// For `/metrics`.
    pub registry: Arc<Registry>,
    /// For `/status`.
    pub status: StatusPage,
    /// Not ready while draining.
    pub drain: Drain,
}

impl std::fmt::Debug for Pages {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Pages").finish_non_exhaustive()
    }
}

/// `/healthz`, `/readyz`, `/metrics`, `/status`.
pub fn router(pages: Pages) -> Router {
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/status", get(status))
        .with_state(pages)
}

/// Serves the pages until the process stops (while it drains, too: its probes and metrics are wanted then).
///
/// # Errors
/// When the listener fails.
pub async fn serve(listener: tokio::net::TcpListener, pages: Pages) -> std::io::Result<()> {
    let mut drain = pages.drain.clone();
    axum::serve(listener, router(pages))
        .with_graceful_shutdown(async move { drain.reached(Stage::Stopped).await })
        .await
}

async fn ready(State(pages): State<Pages>) -> Response {
    let missing = pages.health.missing();
    if pages.drain.stage() != Stage::Running {
        (StatusCode::SERVICE_UNAVAILABLE, "draining\n".to_owned()).into_response()
    } else if missing.is_empty() {
        "ok\n".into_response()
    } else {
        let text = format!("waiting for {}\n", missing.join(", "));
        (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
    }
}

async fn metrics(State(pages): State<Pages>) -> Response {
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &pages.registry) {
        Ok(()) => (
            [(
                header::CONTENT_TYPE,
                "application/openmetrics-text; version=1.0.0; charset=utf-8",
            )],
            text,
        )
            .into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

async fn status(State(pages): State<Pages>) -> Response {
    Json((pages.status)()).into_response()
}
