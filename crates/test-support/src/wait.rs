//! Waiting for a condition, with a bound. The short pause between two looks is not a synchronisation: the test goes
//! on the moment the condition holds and fails by name when it never does.

use anyhow::{Context, Result, bail};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

const PAUSE: Duration = Duration::from_millis(10);

/// Looks until `condition` gives a value, at most `seconds_max`; the error says `what` was waited for.
pub fn wait_for<T>(what: &str, seconds_max: u64, mut condition: impl FnMut() -> Option<T>) -> Result<T> {
    let end = Instant::now() + Duration::from_secs(seconds_max);
    loop {
        if let Some(value) = condition() {
            return Ok(value);
        }
        if Instant::now() > end {
            bail!("waited {seconds_max} s in vain for: {what}");
        }
        std::thread::sleep(PAUSE);
    }
}

/// [`wait_for`] for a condition that must be awaited.
pub async fn wait_for_async<T>(
    what: &str,
    seconds_max: u64,
    mut condition: impl AsyncFnMut() -> Option<T>,
) -> Result<T> {
    let end = Instant::now() + Duration::from_secs(seconds_max);
    loop {
        if let Some(value) = condition().await {
            return Ok(value);
        }
        if Instant::now() > end {
            bail!("waited {seconds_max} s in vain for: {what}");
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Waits until something accepts connections on `127.0.0.1:port`.
pub fn wait_for_port(port: u16, seconds_max: u64) -> Result<()> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    wait_for(&format!("a listener on {address}"), seconds_max, || {
        TcpStream::connect_timeout(&address, Duration::from_secs(1))
            .ok()
            .map(drop)
    })
}

/// A loopback port that was free a moment ago. Another process may take it first: whoever binds it must be ready to
/// ask again, or better bind port 0 itself.
pub fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot bind a loopback port")?;
    Ok(listener.local_addr()?.port())
}
