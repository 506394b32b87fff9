//! How far a sink is, on disk: one small file a sink, named by the sink's UID, replaced as a whole.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use receipts::Digest;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cursor {
    /// Log index of the first entry that the sink has not acknowledged.
    pub(crate) next: u64,
    /// Events acknowledged since the sink was made.
    pub(crate) delivered: u64,
    /// Attempts that failed, and events that were skipped.
    pub(crate) failed: u64,
    /// Unix seconds; 0: never.
    pub(crate) last_delivery: i64,
}

/// One sink's file.
#[derive(Debug, Clone)]
pub(crate) struct CursorFile(PathBuf);

impl CursorFile {
    /// UIDs come from elsewhere: their digest is the name.
    pub(crate) fn new(dir: &Path, uid: &str) -> Self {
        let digest = Digest::of(&[b"weir-sink-v1\0", uid.as_bytes()]).to_string();
        Self(dir.join(format!("{}.json", digest.get(..32).unwrap_or_default())))
    }

    /// `None` for a sink that was never seen.
    ///
    /// # Errors
    /// A file that cannot be read is an error, never a new sink: that would leave events out.
    pub(crate) fn read(&self) -> io::Result<Option<Cursor>> {
        match std::fs::read(&self.0) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(crate) fn write(&self, cursor: &Cursor) -> io::Result<()> {
        write_whole(&self.0, &serde_json::to_vec(cursor)?)
    }
}

/// Either the old or the new content is there, whatever happens.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = std::fs::File::create(&new)?;
    file.write_all(bytes)?;
    file.sync_data()?;
    drop(file);
    std::fs::rename(&new, path)
}
