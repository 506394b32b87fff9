//! Waits for pages.

use std::time::Duration;

use axum::http::{Request, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::time::{Instant, sleep, timeout_at};

use super::Finding;

/// Between two attempts. A Service answers up to a second later than its pods are ready.
const PAUSE: Duration = Duration::from_millis(500);

pub(super) async fn look(urls: &[String], wait: Duration) -> Finding {
    let deadline = Instant::now() + wait;
    let client = Client::builder(TokioExecutor::new()).build_http();
    for url in urls {
        let mut last = "no answer".to_owned();
        while let Err(problem) = ask(&client, url, deadline).await {
            if let Some(problem) = problem {
                last = problem;
            }
            if Instant::now() + PAUSE > deadline {
                return Finding::Bad(format!("{url}: {last}, for {} seconds", wait.as_secs()));
            }
            sleep(PAUSE).await;
        }
    }
    Finding::Good(format!("ready: {}", urls.join(", ")))
}

/// `Err(None)`: time was up before anything was known.
async fn ask(
    client: &Client<HttpConnector, String>,
    url: &str,
    deadline: Instant,
) -> Result<(), Option<String>> {
    let request = Request::get(url)
        .body(String::new())
        .map_err(|error| Some(format!("not a URL: {error}")))?;
    match timeout_at(deadline, client.request(request)).await {
        Err(_) => Err(None),
        Ok(Err(error)) => {
            // The client's own text is only "client error (Connect)"; what happened is below it.
            let mut cause: &dyn std::error::Error = &error;
            while let Some(next) = cause.source() {
                cause = next;
            }
            Err(Some(cause.to_string()))
        }
        Ok(Ok(answer)) if answer.status() == StatusCode::OK => Ok(()),
        Ok(Ok(answer)) => Err(Some(format!("answered {}", answer.status()))),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use axum::Router;
    use axum::routing::get;

    use super::*;

    async fn page(refusals: u32) -> String {
        let asked = Arc::new(AtomicU32::new(0));
        let app = Router::new().route(
            "/readyz",
            get(move || async move {
                if asked.fetch_add(1, Ordering::SeqCst) < refusals {
                    StatusCode::SERVICE_UNAVAILABLE
                } else {
                    StatusCode::OK
                }
            }),
        );
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = listener.local_addr().expect("address");
        tokio::spawn(async move { axum::serve(listener, app).await });
        format!("http://{address}/readyz")
    }

    #[tokio::test]
    async fn waits_for_a_page_that_becomes_ready() {
        let url = page(2).await;
        let found = look(std::slice::from_ref(&url), Duration::from_secs(30)).await;
        assert_eq!(found, Finding::Good(format!("ready: {url}")));
    }

    #[tokio::test]
    async fn says_what_a_page_answered_when_time_is_up() {
        let url = page(u32::MAX).await;
        let found = look(&[url], Duration::from_millis(600)).await;
        assert!(
            matches!(&found, Finding::Bad(text) if text.contains("503")),
            "{found:?}"
        );
    }

    #[tokio::test]
    async fn says_that_nobody_listens() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let url = format!("http://{}/", listener.local_addr().expect("address"));
        drop(listener);
        let found = look(&[url], Duration::from_millis(600)).await;
        assert!(
            matches!(&found, Finding::Bad(text) if text.contains("refused")),
            "{found:?}"
        );
    }
}
