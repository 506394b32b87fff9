//! The log on disk. What is acknowledged is in `tail.wal` (fdatasync) first; once enough events are there they move to
//! segment files as zstd frames of up to 256 events. The tree, its tiles and the index can be made anew from these two.
//!
//! ```text
//!  log.key, log.pub          key of the log: secret seed, and `name+hash+base64`
//!  tail.wal                  length | crc32c | first index | group                 (one record a group)
//!  segments/<first>.frames   magic | length | crc32c | first index | events | zstd (length | group …)
//!  tile/…                    full tiles
//!  checkpoint                the last signed checkpoint
//! ```

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use receipts::{
    Checkpoint, Digest, Frontier, HoleKind, LogKey, ProblemKind, Report, Scope, SignedGroup, SigningKey,
    Verifier,
};

use crate::tree::{TILE_WIDTH, Tree};

const FRAME_MAGIC: [u8; 4] = *b"WFR1";
const FRAME_HEAD_BYTES: usize = 4 + 4 + 4 + 8 + 4;
const FRAME_EVENTS_MAX: u64 = 256;
/// A frame's compressed and plain size are bounded: 256 events of 64 KiB.
const FRAME_BYTES_MAX: usize = 20 << 20;
const WAL_HEAD_BYTES: usize = 4 + 4 + 8;
/// Events in the tail that make it worth a move.
const SEAL_EVENTS: u64 = 1024;
const SEGMENT_BYTES: u64 = 64 << 20;

/// Why the log cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// A file.
    #[error("cannot use the log in `{dir}`: {source}")]
    Io {
        /// Folder.
        dir: PathBuf,
        /// What failed.
        source: io::Error,
    },
    /// Another process has it.
    #[error("the log in `{0}` is in use by another process")]
    Locked(PathBuf),
    /// Something is there that was not written so.
    #[error("the log in `{dir}` is damaged at index {index}: {what}; run `weir verify --data-dir`")]
    Damaged {
        /// Folder.
        dir: PathBuf,
        /// First entry that is concerned.
        index: u64,
        /// What.
        what: &'static str,
    },
    /// Less is there than was promised, or something else.
    #[error("the log in `{dir}` does not fit its last checkpoint: {what}; nothing is added to it")]
    DoesNotFit {
        /// Folder.
        dir: PathBuf,
        /// What.
        what: String,
    },
    /// No key.
    #[error("cannot make or read the key of the log")]
    Key,
}

/// A group and where it is in the log.
#[derive(Debug, Clone)]
pub struct PlacedGroup {
    /// Log index of its first event.
    pub index: u64,
    /// The group.
    pub group: Arc<SignedGroup>,
}

impl PlacedGroup {
    /// Log index after its last event.
    pub fn end(&self) -> u64 {
        self.index + self.group.events.len() as u64
    }
}

#[derive(Debug, Clone)]
struct Frame {
    first: u64,
    events: u64,
    path: Arc<PathBuf>,
    offset: u64,
}

type DecodedFrame = (u64, Arc<Vec<PlacedGroup>>);

/// The log of one collector.
#[derive(Debug)]
pub struct Log {
    dir: PathBuf,
    key: Option<SigningKey>,
    log_key: LogKey,
    frames: Vec<Frame>,
    sealed: u64,
    tail: Vec<PlacedGroup>,
    wal: Option<File>,
    wal_bytes: u64,
    segment: Option<(File, Arc<PathBuf>, u64)>,
    tree: Tree,
    checkpoint: Option<(u64, String)>,
    decoded: Mutex<Option<DecodedFrame>>,
    _lock: Option<File>,
}

impl Log {
    /// Opens or makes a log, for one process.
    ///
    /// # Errors
    /// [`LogError`]; a log that does not fit its checkpoint is not opened.
    pub fn open(dir: &Path) -> Result<Self, LogError> {
        let io = |source| LogError::Io {
            dir: dir.to_owned(),
            source,
        };
        make_private_folder(&dir.join("segments")).map_err(io)?;
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(dir.join("lock"))
            .map_err(io)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => return Err(LogError::Locked(dir.to_owned())),
            Err(std::fs::TryLockError::Error(source)) => return Err(io(source)),
        }
        let key = read_or_make_key(dir)?;
        let log_key = LogKey {
            name: format!("weir.dev/log/{}", key.boot()),
            key: key.public(),
        };
        let public = dir.join("log.pub");
        match std::fs::read_to_string(&public) {
            Ok(text) if text.trim() == log_key.to_vkey() => {}
            Ok(_) => return Err(LogError::Key),
            Err(_) => write_synced(&public, format!("{}\n", log_key.to_vkey()).as_bytes()).map_err(io)?,
        }
        let mut log = Self::load(dir, log_key, false)?;
        log.key = Some(key);
        log._lock = Some(lock);
        Ok(log)
    }

    /// Opens a log to read it, also while a collector adds to it.
    ///
    /// # Errors
    /// [`LogError`]
    pub fn open_to_read(dir: &Path) -> Result<Self, LogError> {
        Self::load(dir, read_public_key(dir)?, true)
    }

    fn load(dir: &Path, log_key: LogKey, read_only: bool) -> Result<Self, LogError> {
        let io = |source| LogError::Io {
            dir: dir.to_owned(),
            source,
        };
        let checkpoint = read_checkpoint(dir, &log_key)?;
        // The tail first: what moves to a segment meanwhile is then seen twice, not never.
        let wal_path = dir.join("tail.wal");
        let wal_bytes = read_if_there(&wal_path).map_err(io)?;
        let mut log = Self {
            dir: dir.to_owned(),
            key: None,
            log_key,
            frames: Vec::new(),
            sealed: 0,
            tail: Vec::new(),
            wal: None,
            wal_bytes: 0,
            segment: None,
            tree: Tree::new(dir.to_owned(), read_only),
            checkpoint: None,
            decoded: Mutex::new(None),
            _lock: None,
        };
        let (records, good) = read_wal(&wal_bytes);
        let wal_from = records.first().map(|placed| placed.index);
        log.load_frames(read_only, wal_from)?;
        for placed in records {
            if placed.index >= log.sealed {
                if placed.index != log.size() {
                    return Err(log.damaged(placed.index, "the tail does not follow the segments"));
                }
                log.tail.push(placed);
            }
        }
        if !read_only {
            let mut wal = OpenOptions::new()
                .create(true)
                .truncate(false)
                .read(true)
                .write(true)
                .open(&wal_path)
                .map_err(io)?;
            // A record torn by a crash was never acknowledged.
            wal.set_len(good)
                .and_then(|()| wal.seek(SeekFrom::End(0)).map(drop))
                .and_then(|()| wal.sync_all())
                .map_err(io)?;
            log.wal = Some(wal);
            log.wal_bytes = good;
        }
        let size = log.size();
        log.grow_tree(size, true)?;
        if let Some((checkpoint, note)) = checkpoint {
            if checkpoint.size > size {
                return Err(
                    log.does_not_fit(format!("it has {size} entries, {} are signed", checkpoint.size))
                );
            }
            let fits = |log: &Self| {
                log.tree
                    .root_at(checkpoint.size)
                    .is_ok_and(|root| root == checkpoint.root)
            };
            if !fits(&log) {
                // The tiles may be torn: make them anew from the entries before saying so of the entries.
                log.tree = Tree::new(dir.to_owned(), read_only);
                log.grow_tree(size, false)?;
            }
            if !fits(&log) {
                return Err(
                    log.does_not_fit(format!("the first {} entries have another root", checkpoint.size))
                );
            }
            log.checkpoint = Some((checkpoint.size, note));
        }
        Ok(log)
    }

    fn load_frames(&mut self, read_only: bool, wal_from: Option<u64>) -> Result<(), LogError> {
        let io = |source| LogError::Io {
            dir: self.dir.clone(),
            source,
        };
        let paths = segment_paths(&self.dir).map_err(io)?;
        let last = paths.len().saturating_sub(1);
        for (number, path) in paths.into_iter().enumerate() {
            let path = Arc::new(path);
            let mut file = File::open(&*path).map_err(io)?;
            let bytes = file.metadata().map_err(io)?.len();
            let mut offset = 0;
            while offset < bytes {
                let head = read_frame_head(&mut file, offset).map_err(io)?;
                let whole = head
                    .as_ref()
                    .is_some_and(|head| offset + (FRAME_HEAD_BYTES + head.bytes) as u64 <= bytes);
                let Some(head) = head.filter(|_| whole) else {
                    // A crash while frames were written: the tail still holds them.
                    if number == last && wal_from.is_some_and(|from| from <= self.sealed) {
                        if !read_only {
                            let cut = File::options().write(true).open(&*path).and_then(|file| {
                                file.set_len(offset)?;
                                file.sync_all()
                            });
                            cut.map_err(io)?;
                        }
                        break;
                    }
                    return Err(self.damaged(self.sealed, "a frame cannot be read"));
                };
                if head.first != self.sealed {
                    return Err(self.damaged(self.sealed, "a frame is missing"));
                }
                self.frames.push(Frame {
                    first: head.first,
                    events: head.events,
                    path: Arc::clone(&path),
                    offset,
                });
                self.sealed += head.events;
                offset += (FRAME_HEAD_BYTES + head.bytes) as u64;
            }
        }
        Ok(())
    }

    /// Adds the leaves up to `size` to the tree, from tiles on disk where they are.
    fn grow_tree(&mut self, size: u64, from_tiles: bool) -> Result<(), LogError> {
        let io = |source| LogError::Io {
            dir: self.dir.clone(),
            source,
        };
        while from_tiles && self.tree.size() + TILE_WIDTH as u64 <= size {
            if !self.tree.take_tile().map_err(io)? {
                break;
            }
        }
        while self.tree.size() < size {
            let at = self.tree.size();
            for placed in self.groups_at(at)?.iter() {
                for (event, index) in placed.group.events.iter().zip(placed.index..) {
                    if index >= self.tree.size() {
                        let io = |source| LogError::Io {
                            dir: self.dir.clone(),
                            source,
                        };
                        self.tree.push(receipts::leaf_hash(event)).map_err(io)?;
                    }
                }
            }
            if self.tree.size() == at {
                return Err(self.damaged(at, "an entry is missing"));
            }
        }
        Ok(())
    }

    fn damaged(&self, index: u64, what: &'static str) -> LogError {
        LogError::Damaged {
            dir: self.dir.clone(),
            index,
            what,
        }
    }

    fn does_not_fit(&self, what: String) -> LogError {
        LogError::DoesNotFit {
            dir: self.dir.clone(),
            what,
        }
    }

    fn io(&self, source: io::Error) -> LogError {
        LogError::Io {
            dir: self.dir.clone(),
            source,
        }
    }

    /// Number of entries.
    pub fn size(&self) -> u64 {
        self.tail.last().map_or(self.sealed, PlacedGroup::end)
    }

    /// Key of the log.
    pub fn key(&self) -> &LogKey {
        &self.log_key
    }

    /// The last checkpoint signed: size and note.
    pub fn checkpoint(&self) -> Option<&(u64, String)> {
        self.checkpoint.as_ref()
    }

    /// Its folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Appends groups: when this returns they are on disk. Gives the index of each one's first event. After an error none
    /// of them is in the log; after a failed sync nothing is appended any more.
    ///
    /// # Errors
    /// [`LogError::Io`]
    pub fn append(&mut self, groups: Vec<SignedGroup>) -> Result<Vec<u64>, LogError> {
        let (mut bytes, mut placed, mut index) = (Vec::new(), Vec::new(), self.size());
        for group in groups {
            write_wal_record(&mut bytes, index, &group.encode());
            let next = PlacedGroup {
                index,
                group: Arc::new(group),
            };
            index = next.end();
            placed.push(next);
        }
        let Some(wal) = self.wal.as_mut() else {
            return Err(self.io(io::ErrorKind::PermissionDenied.into()));
        };
        if let Err(error) = wal.write_all(&bytes) {
            // What was written by half must not stay in front of what is written next.
            let undone = wal
                .set_len(self.wal_bytes)
                .and_then(|()| wal.seek(SeekFrom::End(0)));
            if undone.is_err() {
                self.wal = None;
            }
            return Err(self.io(error));
        }
        if let Err(error) = wal.sync_data() {
            // Nobody knows what is on disk now: nothing more is promised before a new start has looked.
            self.wal = None;
            return Err(self.io(error));
        }
        self.wal_bytes += bytes.len() as u64;
        for placed in &placed {
            for event in &placed.group.events {
                self.tree
                    .push(receipts::leaf_hash(event))
                    .map_err(|source| LogError::Io {
                        dir: self.dir.clone(),
                        source,
                    })?;
            }
        }
        let indexes = placed.iter().map(|placed| placed.index).collect();
        self.tail.extend(placed);
        if self.size() - self.sealed >= SEAL_EVENTS {
            self.seal(false)?;
        }
        Ok(indexes)
    }

    /// Moves everything from the tail to a segment, when the log is closed.
    ///
    /// # Errors
    /// [`LogError::Io`]
    pub fn seal_all(&mut self) -> Result<(), LogError> {
        if self.tail.is_empty() {
            Ok(())
        } else {
            self.seal(true)
        }
    }

    /// Moves full frames from the tail to a segment; the last one too if `all`.
    fn seal(&mut self, all: bool) -> Result<(), LogError> {
        let mut frames = Vec::new();
        let (mut taken, mut current, mut events) = (0, Vec::new(), 0);
        for (at, placed) in self.tail.iter().enumerate() {
            let count = placed.group.events.len() as u64;
            if events + count > FRAME_EVENTS_MAX {
                frames.push(std::mem::take(&mut current));
                taken = at;
                events = 0;
            }
            events += count;
            current.push(placed.clone());
        }
        if all {
            frames.push(current);
            taken = self.tail.len();
        }
        for frame in frames {
            self.write_frame(&frame).map_err(|source| LogError::Io {
                dir: self.dir.clone(),
                source,
            })?;
        }
        if let Some((file, _, _)) = &self.segment {
            file.sync_data().map_err(|source| self.io(source))?;
        }
        self.tail.drain(..taken);
        let mut bytes = Vec::new();
        for placed in &self.tail {
            write_wal_record(&mut bytes, placed.index, &placed.group.encode());
        }
        let (new, path) = (self.dir.join("tail.wal.new"), self.dir.join("tail.wal"));
        let swapped = write_synced(&new, &bytes)
            .and_then(|()| std::fs::rename(&new, &path))
            .and_then(|()| File::open(&self.dir)?.sync_all())
            .and_then(|()| OpenOptions::new().append(true).open(&path));
        self.wal = Some(swapped.map_err(|source| self.io(source))?);
        self.wal_bytes = bytes.len() as u64;
        Ok(())
    }

    fn write_frame(&mut self, groups: &[PlacedGroup]) -> io::Result<()> {
        let Some(first) = groups.first().map(|placed| placed.index) else {
            return Ok(());
        };
        let events: u64 = groups.iter().map(|placed| placed.group.events.len() as u64).sum();
        let mut plain = Vec::new();
        for placed in groups {
            let group = placed.group.encode();
            plain.extend_from_slice(&(group.len() as u32).to_be_bytes());
            plain.extend_from_slice(&group);
        }
        let packed = zstd::bulk::compress(&plain, 3)?;
        let mut body = first.to_be_bytes().to_vec();
        body.extend_from_slice(&(events as u32).to_be_bytes());
        body.extend_from_slice(&packed);
        let mut bytes = FRAME_MAGIC.to_vec();
        bytes.extend_from_slice(&(packed.len() as u32).to_be_bytes());
        bytes.extend_from_slice(&crc32c::crc32c(&body).to_be_bytes());
        bytes.extend_from_slice(&body);
        if self
            .segment
            .as_ref()
            .is_none_or(|(_, _, size)| *size >= SEGMENT_BYTES)
        {
            if let Some((file, _, _)) = self.segment.take() {
                file.sync_data()?;
            }
            let path = self.dir.join("segments").join(format!("{first:020}.frames"));
            // It may be there, cut to nothing, after a crash.
            let file = OpenOptions::new().append(true).create(true).open(&path)?;
            let size = file.metadata()?.len();
            File::open(self.dir.join("segments"))?.sync_all()?;
            self.segment = Some((file, Arc::new(path), size));
        }
        if let Some((file, path, size)) = self.segment.as_mut() {
            if let Err(error) = file.write_all(&bytes) {
                file.set_len(*size)?;
                return Err(error);
            }
            self.frames.push(Frame {
                first,
                events,
                path: Arc::clone(path),
                offset: *size,
            });
            *size += bytes.len() as u64;
            self.sealed += events;
        }
        Ok(())
    }

    /// Signs the log as it is, keeps the checkpoint and gives it.
    ///
    /// # Errors
    /// [`LogError`]
    pub fn sign_checkpoint(&mut self) -> Result<(u64, String), LogError> {
        let size = self.size();
        if let Some(checkpoint) = self.checkpoint.as_ref().filter(|(signed, _)| *signed == size) {
            return Ok(checkpoint.clone());
        }
        let root = self.tree.root_at(size).map_err(|source| self.io(source))?;
        let checkpoint = Checkpoint {
            origin: self.log_key.name.clone(),
            size,
            root,
        };
        let note = checkpoint.sign(self.key.as_ref().ok_or(LogError::Key)?);
        self.checkpoint = Some((size, note.clone()));
        Ok((size, note))
    }

    /// Puts the last checkpoint into its file. The entries it signs are on disk before; if it is lost in a crash, the next
    /// one signs the same and more.
    ///
    /// # Errors
    /// [`LogError::Io`]
    pub fn write_checkpoint(&self) -> Result<(), LogError> {
        let Some((_, note)) = &self.checkpoint else {
            return Ok(());
        };
        let new = self.dir.join("checkpoint.new");
        write_synced(&new, note.as_bytes())
            .and_then(|()| std::fs::rename(&new, self.dir.join("checkpoint")))
            .map_err(|source| self.io(source))
    }

    /// Proof that the log of `size` entries starts with the log of `old` entries.
    ///
    /// # Errors
    /// [`LogError::Io`] where a tile cannot be read.
    pub fn consistency(&self, old: u64, size: u64) -> Result<Vec<Digest>, LogError> {
        receipts::consistency_proof(&self.tree, old, size).map_err(|source| self.io(source))
    }

    /// Proof that the entries `[from, to)` are in the log of `size` entries.
    ///
    /// # Errors
    /// [`LogError::Io`] where a tile cannot be read.
    pub fn range_proof(&self, from: u64, to: u64, size: u64) -> Result<Vec<Digest>, LogError> {
        receipts::range_proof(&self.tree, from, to, size).map_err(|source| self.io(source))
    }

    /// A tile in its file form.
    ///
    /// # Errors
    /// Where there is none.
    pub fn tile(&self, level: usize, number: u64) -> io::Result<Vec<u8>> {
        Ok(self
            .tree
            .tile(level, number)?
            .iter()
            .flat_map(|hash| hash.0)
            .collect())
    }

    /// The groups stored together with the entry `index`: at least the one that holds it. Empty past the end.
    ///
    /// # Errors
    /// [`LogError::Damaged`], [`LogError::Io`]
    pub fn groups_at(&self, index: u64) -> Result<Arc<Vec<PlacedGroup>>, LogError> {
        if index >= self.sealed {
            let from = self.tail.partition_point(|placed| placed.end() <= index);
            let part = self
                .tail
                .iter()
                .skip(from)
                .take(FRAME_EVENTS_MAX as usize)
                .cloned()
                .collect();
            return Ok(Arc::new(part));
        }
        let at = self
            .frames
            .partition_point(|frame| frame.first + frame.events <= index);
        let Some(frame) = self.frames.get(at) else {
            return Err(self.damaged(index, "no frame holds it"));
        };
        if let Some((first, groups)) = self
            .decoded
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .as_ref()
            && *first == frame.first
        {
            return Ok(Arc::clone(groups));
        }
        let groups = self.decode(frame)?;
        *self.decoded.lock().unwrap_or_else(PoisonError::into_inner) =
            Some((frame.first, Arc::clone(&groups)));
        Ok(groups)
    }

    fn decode(&self, frame: &Frame) -> Result<Arc<Vec<PlacedGroup>>, LogError> {
        let mut file = File::open(&*frame.path).map_err(|source| self.io(source))?;
        let head = read_frame_head(&mut file, frame.offset)
            .map_err(|source| self.io(source))?
            .ok_or_else(|| self.damaged(frame.first, "a frame's head"))?;
        let mut body = vec![0; head.bytes];
        file.read_exact(&mut body).map_err(|source| self.io(source))?;
        let groups = decode_frame(&head, &body).map_err(|what| self.damaged(frame.first, what))?;
        Ok(Arc::new(groups))
    }

    /// Goes through the groups that hold entries of `[from, to)`, in order.
    ///
    /// # Errors
    /// [`LogError::Damaged`], [`LogError::Io`]
    pub fn each_group(&self, from: u64, to: u64, mut each: impl FnMut(&PlacedGroup)) -> Result<(), LogError> {
        let mut at = from;
        while at < to.min(self.size()) {
            let groups = self.groups_at(at)?;
            let before = at;
            for placed in groups.iter() {
                if placed.end() > at && placed.index < to {
                    each(placed);
                    at = placed.end();
                }
            }
            if at == before {
                return Err(self.damaged(at, "an entry is missing"));
            }
        }
        Ok(())
    }

    /// The receipt of one entry.
    ///
    /// # Errors
    /// [`LogError`]
    pub fn receipt(&self, index: u64) -> Result<Option<receipts::Receipt>, LogError> {
        let groups = self.groups_at(index)?;
        let found = groups
            .iter()
            .find(|placed| placed.index <= index && index < placed.end());
        Ok(found.and_then(|placed| placed.group.receipt(usize::try_from(index - placed.index).ok()?)))
    }

    /// The bytes of one entry.
    ///
    /// # Errors
    /// [`LogError`]
    pub fn entry(&self, index: u64) -> Result<Option<Vec<u8>>, LogError> {
        let groups = self.groups_at(index)?;
        Ok(groups
            .iter()
            .find(|placed| placed.index <= index && index < placed.end())
            .and_then(|placed| {
                placed
                    .group
                    .events
                    .get(usize::try_from(index - placed.index).ok()?)
                    .cloned()
            }))
    }
}

struct FrameHead {
    bytes: usize,
    checksum: u32,
    first: u64,
    events: u64,
}

/// `None` where there is no head, or the file ends in it.
fn read_frame_head(file: &mut File, offset: u64) -> io::Result<Option<FrameHead>> {
    file.seek(SeekFrom::Start(offset))?;
    let mut bytes = [0; FRAME_HEAD_BYTES];
    match file.read_exact(&mut bytes) {
        Ok(()) => Ok(parse_frame_head(&bytes)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

fn parse_frame_head(bytes: &[u8]) -> Option<FrameHead> {
    let (magic, rest) = bytes.split_first_chunk::<4>()?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let (checksum, rest) = rest.split_first_chunk::<4>()?;
    let (first, rest) = rest.split_first_chunk::<8>()?;
    let (events, _) = rest.split_first_chunk::<4>()?;
    let head = FrameHead {
        bytes: u32::from_be_bytes(*length) as usize,
        checksum: u32::from_be_bytes(*checksum),
        first: u64::from_be_bytes(*first),
        events: u64::from(u32::from_be_bytes(*events)),
    };
    let plausible = head.bytes <= FRAME_BYTES_MAX && (1..=FRAME_EVENTS_MAX).contains(&head.events);
    (*magic == FRAME_MAGIC && plausible).then_some(head)
}

fn decode_frame(head: &FrameHead, packed: &[u8]) -> Result<Vec<PlacedGroup>, &'static str> {
    let mut body = head.first.to_be_bytes().to_vec();
    body.extend_from_slice(&(head.events as u32).to_be_bytes());
    body.extend_from_slice(packed);
    if crc32c::crc32c(&body) != head.checksum {
        return Err("a frame's checksum is wrong");
    }
    let plain = zstd::bulk::decompress(packed, FRAME_BYTES_MAX).map_err(|_| "a frame cannot be unpacked")?;
    let (mut rest, mut groups, mut index) = (plain.as_slice(), Vec::new(), head.first);
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let (mut bytes, after) = after
            .split_at_checked(u32::from_be_bytes(*length) as usize)
            .ok_or("a frame ends within a group")?;
        rest = after;
        let group = SignedGroup::decode(&mut bytes).map_err(|_| "a group cannot be read")?;
        if !bytes.is_empty() {
            return Err("a group is followed by something else");
        }
        let placed = PlacedGroup {
            index,
            group: Arc::new(group),
        };
        index = placed.end();
        groups.push(placed);
    }
    if !rest.is_empty() || index != head.first + head.events {
        return Err("a frame does not hold what its head says");
    }
    Ok(groups)
}

fn write_wal_record(bytes: &mut Vec<u8>, index: u64, group: &[u8]) {
    let mut body = index.to_be_bytes().to_vec();
    body.extend_from_slice(group);
    bytes.extend_from_slice(&(group.len() as u32).to_be_bytes());
    bytes.extend_from_slice(&crc32c::crc32c(&body).to_be_bytes());
    bytes.extend_from_slice(&body);
}

/// The records, and how many bytes of them are good.
fn read_wal(bytes: &[u8]) -> (Vec<PlacedGroup>, u64) {
    let (mut rest, mut records) = (bytes, Vec::new());
    while let Some((group, length)) = read_wal_record(rest) {
        rest = rest.get(length..).unwrap_or_default();
        records.push(group);
    }
    (records, (bytes.len() - rest.len()) as u64)
}

fn read_wal_record(bytes: &[u8]) -> Option<(PlacedGroup, usize)> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let (checksum, rest) = rest.split_first_chunk::<4>()?;
    let length = u32::from_be_bytes(*length) as usize;
    let body = rest.get(..length.checked_add(8)?)?;
    if crc32c::crc32c(body) != u32::from_be_bytes(*checksum) {
        return None;
    }
    let (index, mut group) = body.split_first_chunk::<8>()?;
    let decoded = SignedGroup::decode(&mut group)
        .ok()
        .filter(|_| group.is_empty())?;
    let placed = PlacedGroup {
        index: u64::from_be_bytes(*index),
        group: Arc::new(decoded),
    };
    Some((placed, WAL_HEAD_BYTES + length))
}

/// Verifies a log from its files alone: every frame, group, signature, link, the tree and the checkpoint. `trusted` is the
/// log's key as known from elsewhere; without it the one beside the log is taken.
///
/// # Errors
/// Where files cannot be read at all.
pub fn verify_log(dir: &Path, trusted: Option<&LogKey>) -> Result<Report, LogError> {
    let io = |source| LogError::Io {
        dir: dir.to_owned(),
        source,
    };
    let mut verifier = Verifier::new(Scope::Whole);
    let key = read_public_key(dir)?;
    if let Some(trusted) = trusted
        && *trusted != key
    {
        verifier.problem(
            ProblemKind::Tree,
            None,
            format!("this is the log {}, not {}", key.name, trusted.name),
        );
    }
    let checkpoint = match std::fs::read_to_string(dir.join("checkpoint")) {
        Ok(note) => match Checkpoint::verify(&note, trusted.unwrap_or(&key)) {
            Ok(checkpoint) => Some(checkpoint),
            Err(problem) => {
                verifier.problem(ProblemKind::Tree, None, problem.to_string());
                None
            }
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            verifier.problem(ProblemKind::Tree, None, "the checkpoint is not text".to_owned());
            None
        }
        Err(error) => return Err(io(error)),
    };
    let live = is_live(dir);
    let tail = read_if_there(&dir.join("tail.wal")).map_err(io)?;
    let mut walk = LogVerifier::new(verifier, checkpoint);
    let paths = segment_paths(dir).map_err(io)?;
    let (records, good) = read_wal(&tail);
    let tail_from = records.first().map(|placed| placed.index);
    let last = paths.len().saturating_sub(1);
    for (number, path) in paths.iter().enumerate() {
        let bytes = std::fs::read(path).map_err(io)?;
        walk.segment(&bytes, number == last && tail_from.is_some());
    }
    for placed in &records {
        walk.group(placed);
    }
    if good < tail.len() as u64 && !live {
        let lost = tail.len() as u64 - good;
        // A crash tears only what was never acknowledged; but what is damaged in the middle hides what is behind it.
        walk.verifier.problem(
            ProblemKind::Unreadable,
            Some(walk.next),
            format!("{lost} bytes of the tail cannot be read"),
        );
    }
    Ok(walk.finish())
}

/// Verifies a log whose groups come one after the other from index 0 on.
#[derive(Debug)]
pub struct LogVerifier {
    verifier: Verifier,
    frontier: Frontier,
    checkpoint: Option<Checkpoint>,
    next: u64,
}

impl LogVerifier {
    /// Nothing seen yet; the tree is compared with that checkpoint.
    pub fn new(verifier: Verifier, checkpoint: Option<Checkpoint>) -> Self {
        Self {
            verifier,
            frontier: Frontier::default(),
            checkpoint,
            next: 0,
        }
    }

    fn segment(&mut self, bytes: &[u8], may_be_torn: bool) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let head = parse_frame_head(rest);
            let body = head
                .as_ref()
                .and_then(|head| rest.get(FRAME_HEAD_BYTES..FRAME_HEAD_BYTES + head.bytes));
            let (Some(head), Some(body)) = (head, body) else {
                if !may_be_torn {
                    self.verifier.problem(
                        ProblemKind::Unreadable,
                        Some(self.next),
                        format!("{} bytes from index {} on cannot be read", rest.len(), self.next),
                    );
                }
                return;
            };
            rest = rest.get(FRAME_HEAD_BYTES + head.bytes..).unwrap_or_default();
            match decode_frame(&head, body) {
                Ok(groups) => groups.iter().for_each(|placed| self.group(placed)),
                Err(what) => {
                    self.verifier.problem(
                        ProblemKind::Unreadable,
                        Some(self.next),
                        format!("{what} (entries {}..{})", self.next, self.next + head.events),
                    );
                    self.next += head.events;
                }
            }
        }
    }

    /// The next group.
    pub fn group(&mut self, placed: &PlacedGroup) {
        if placed.end() <= self.next {
            return;
        }
        if placed.index > self.next {
            self.verifier.hole(
                HoleKind::Missing,
                format!("entries {}..{} of the log", self.next, placed.index),
            );
        }
        self.next = placed.end();
        for leaf in self.verifier.group(Some(placed.index), &placed.group) {
            self.frontier.push(leaf);
            if let Some(checkpoint) = &self.checkpoint
                && checkpoint.size == self.frontier.size()
                && checkpoint.root != self.frontier.root()
            {
                self.verifier.problem(
                    ProblemKind::Tree,
                    None,
                    format!(
                        "the first {} entries are not those that the checkpoint signs",
                        checkpoint.size
                    ),
                );
            }
        }
    }

    /// The verdicts.
    pub fn finish(mut self) -> Report {
        if let Some(checkpoint) = &self.checkpoint
            && checkpoint.size > self.frontier.size()
        {
            self.verifier.hole(
                HoleKind::Shorter,
                format!(
                    "the checkpoint signs {} entries, {} are here",
                    checkpoint.size,
                    self.frontier.size()
                ),
            );
        }
        self.verifier.finish()
    }
}

fn read_public_key(dir: &Path) -> Result<LogKey, LogError> {
    let text = std::fs::read_to_string(dir.join("log.pub")).map_err(|source| LogError::Io {
        dir: dir.to_owned(),
        source,
    })?;
    LogKey::from_vkey(text.trim()).ok_or(LogError::Key)
}

fn read_checkpoint(dir: &Path, key: &LogKey) -> Result<Option<(Checkpoint, String)>, LogError> {
    let note = match std::fs::read_to_string(dir.join("checkpoint")) {
        Ok(note) => note,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => {
            return Err(LogError::Io {
                dir: dir.to_owned(),
                source,
            });
        }
    };
    match Checkpoint::verify(&note, key) {
        Ok(checkpoint) => Ok(Some((checkpoint, note))),
        Err(problem) => Err(LogError::DoesNotFit {
            dir: dir.to_owned(),
            what: problem.to_string(),
        }),
    }
}

fn segment_paths(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(dir.join("segments"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "frames") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn read_if_there(path: &Path) -> io::Result<Vec<u8>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn make_private_folder(dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

fn read_or_make_key(dir: &Path) -> Result<SigningKey, LogError> {
    use std::os::unix::fs::OpenOptionsExt;
    let path = dir.join("log.key");
    let io = |source| LogError::Io {
        dir: dir.to_owned(),
        source,
    };
    let mut seed = [0_u8; 32];
    match std::fs::read_to_string(&path) {
        Ok(text) => hex::decode_to_slice(text.trim(), &mut seed).map_err(|_| LogError::Key)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            aws_lc_rs::rand::fill(&mut seed).map_err(|_| LogError::Key)?;
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&path)
                .map_err(io)?;
            file.write_all(hex::encode(seed).as_bytes())
                .and_then(|()| file.sync_all())
                .map_err(io)?;
        }
        Err(error) => return Err(io(error)),
    }
    SigningKey::from_seed(&seed).map_err(|_| LogError::Key)
}

/// Whether a collector has the log open.
pub fn is_live(dir: &Path) -> bool {
    match File::options().write(true).open(dir.join("lock")) {
        Ok(file) => matches!(file.try_lock(), Err(std::fs::TryLockError::WouldBlock)),
        Err(_) => false,
    }
}
