//! The open segment file and the list of those behind it.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use receipts::BootId;

use super::record::Record;

/// The segment that is written to. Session threads append marks, the writer thread everything else; each append is one
/// `write` under a lock.
#[derive(Debug)]
pub(super) struct OpenSegment {
    pub(super) number: u64,
    pub(super) path: PathBuf,
    pub(super) file: Arc<File>,
    pub(super) bytes: u64,
    /// Statements begun in this segment whose outcome is not on disk yet.
    pub(super) unresolved: Arc<AtomicU64>,
}

/// A segment that is not written to any more.
#[derive(Debug)]
pub(super) struct ClosedSegment {
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
    pub(super) unresolved: Arc<AtomicU64>,
    /// Last signed event in it, for each process (one, but for damaged folders).
    pub(super) last_seq: BTreeMap<BootId, u64>,
}

impl OpenSegment {
    /// Makes the file; it starts with the process' name.
    pub(super) fn create(folder: &Path, number: u64, boot: BootId) -> io::Result<Self> {
        let path = folder.join(format!("{number:010}.seg"));
        let file = OpenOptions::new().append(true).create_new(true).open(&path)?;
        let mut segment = Self {
            number,
            path,
            file: Arc::new(file),
            bytes: 0,
            unresolved: Arc::new(AtomicU64::new(0)),
        };
        let mut bytes = Vec::new();
        Record::Start(boot).encode_into(&mut bytes);
        let written = segment
            .append(&bytes)
            .and_then(|()| segment.file.sync_data())
            .and_then(|()| sync_folder(folder));
        if let Err(error) = written {
            // Nothing is in it: leave no empty file behind.
            let _ = std::fs::remove_file(&segment.path);
            return Err(error);
        }
        Ok(segment)
    }

    /// Appends all of it or nothing.
    pub(super) fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        match (&*self.file).write_all(bytes) {
            Ok(()) => {
                self.bytes += bytes.len() as u64;
                Ok(())
            }
            Err(error) => {
                // A record written by half would hide what follows it. If this fails too, the reader finds a torn
                // record here and recovery says so.
                let _ = self.file.set_len(self.bytes);
                Err(error)
            }
        }
    }

    /// What is kept of it once another one is open.
    pub(super) fn close(&self, boot: BootId, last_seq: Option<u64>) -> ClosedSegment {
        ClosedSegment {
            path: self.path.clone(),
            bytes: self.bytes,
            unresolved: Arc::clone(&self.unresolved),
            last_seq: last_seq.map(|seq| (boot, seq)).into_iter().collect(),
        }
    }
}

impl ClosedSegment {
    /// Everything in it was delivered and nothing in it is waited for.
    pub(super) fn is_done(&self, delivered: &BTreeMap<BootId, u64>) -> bool {
        self.unresolved.load(Ordering::Acquire) == 0
            && self
                .last_seq
                .iter()
                .all(|(boot, seq)| delivered.get(boot).is_some_and(|delivered| delivered >= seq))
    }
}

/// Makes a new or removed name in a folder durable.
pub(super) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}
