//! Cancel keys of our own: what a client got at its start, and which session of the server that is.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use wire_protocol::postgres::startup::{CancelRequest, VERSION_3_2};
use wire_protocol::postgres::write;

use crate::upstream::{SharedUpstream, connect_to};

/// A cancel request has this long.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Where to cancel a session. `Debug` shows no key.
#[derive(Clone)]
pub struct CancelTarget {
    /// Server.
    pub upstream: SharedUpstream,
    /// Its address, for names with several.
    pub address: SocketAddr,
    /// The server's process id.
    pub process_id: u32,
    /// The server's key.
    pub key: Bytes,
}

impl std::fmt::Debug for CancelTarget {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("CancelTarget")
            .field("address", &self.address)
            .field("process_id", &self.process_id)
            .finish_non_exhaustive()
    }
}

impl CancelTarget {
    /// Sends the cancel request and waits until the server closes that connection: from then on it cannot hit a
    /// later statement.
    ///
    /// # Errors
    /// What went wrong, for the log.
    pub async fn cancel(&self) -> Result<(), String> {
        let request = async {
            let mut connection = connect_to(&self.upstream, self.address)
                .await
                .map_err(|fatal| fatal.message)?;
            let mut packet = BytesMut::new();
            write::frontend::cancel_request(&mut packet, self.process_id, &self.key)
                .map_err(|error| error.to_string())?;
            connection.leg.send(packet.freeze());
            connection.leg.flush().await.map_err(|error| error.to_string())?;
            // The server answers nothing; it closes.
            while connection.leg.fill().await.is_ok_and(|count| count > 0) {
                connection.leg.received.clear();
            }
            Ok(())
        };
        tokio::time::timeout(TIMEOUT, request)
            .await
            .unwrap_or_else(|_| Err("no answer".to_owned()))
    }
}

type Keys = HashMap<(u32, Bytes), CancelTarget>;

/// All sessions of the process.
#[derive(Debug, Clone, Default)]
pub struct Cancels {
    keys: Arc<Mutex<Keys>>,
}

/// A session's own key; it ends with this.
#[derive(Debug)]
pub struct CancelKey {
    cancels: Cancels,
    process_id: u32,
    key: Bytes,
    /// Where it leads.
    pub target: CancelTarget,
}

impl Cancels {
    /// Makes a key for a session whose protocol version is `version`: 4 bytes in 3.0, 32 in 3.2. The process id stays
    /// the server's: drivers compare it with the one in notifications.
    ///
    /// # Errors
    /// When the system gives no randomness, or no free key is found.
    pub fn register(&self, target: CancelTarget, version: u32) -> Result<CancelKey, String> {
        for _ in 0..16 {
            let mut random = [0_u8; 32];
            aws_lc_rs::rand::fill(&mut random).map_err(|_| "no randomness".to_owned())?;
            let length = if version >= VERSION_3_2 { 32 } else { 4 };
            let key = Bytes::copy_from_slice(random.get(..length).unwrap_or_default());
            let process_id = target.process_id;
            if let Entry::Vacant(entry) = self.lock().entry((process_id, key.clone())) {
                entry.insert(target.clone());
                return Ok(CancelKey {
                    cancels: self.clone(),
                    process_id,
                    key,
                    target,
                });
            }
        }
        Err("no free cancel key".to_owned())
    }

    /// The session that a request names, if it is one of ours.
    pub fn find(&self, request: &CancelRequest) -> Option<CancelTarget> {
        self.lock()
            .get(&(request.process_id, request.key.clone()))
            .cloned()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Keys> {
        // A map of keys is right whatever panicked while holding it.
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl CancelKey {
    /// What the client is told.
    pub fn process_id(&self) -> u32 {
        self.process_id
    }
    /// What the client is told.
    pub fn key(&self) -> &Bytes {
        &self.key
    }
}

impl Drop for CancelKey {
    fn drop(&mut self) {
        self.cancels.lock().remove(&(self.process_id, self.key.clone()));
    }
}
