//! The log's Merkle tree, kept as C2SP `tlog-tiles`: `tile/<level>/<number>` holds 256 hashes of level `8 · level`.
//! Full tiles are files; the last tile of each level is in memory. Everything here can be made anew from the log.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use receipts::{Digest, HashSource, root_of};

/// Hashes in a full tile.
pub(crate) const TILE_WIDTH: usize = 256;
/// Tiles kept in memory.
const CACHE_TILES: usize = 256;

/// By level and number.
type Tiles = HashMap<(usize, u64), Arc<Vec<Digest>>>;

#[derive(Debug)]
pub(crate) struct Tree {
    dir: PathBuf,
    size: u64,
    /// By level: hashes of the tile that is not full yet.
    partial: Vec<Vec<Digest>>,
    cache: Mutex<Tiles>,
    /// Full tiles are not written (a log that is only read).
    read_only: bool,
    /// Only with `read_only`: full tiles that are not on disk.
    unwritten: Tiles,
}

impl Tree {
    pub(crate) fn new(dir: PathBuf, read_only: bool) -> Self {
        Self {
            dir,
            size: 0,
            partial: Vec::new(),
            cache: Mutex::default(),
            read_only,
            unwritten: HashMap::new(),
        }
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Takes a full tile of leaves over from its file, if it is there and whole.
    pub(crate) fn take_tile(&mut self) -> io::Result<bool> {
        let number = self.size / TILE_WIDTH as u64;
        let Ok(tile) = read_tile(&tile_path(&self.dir, 0, number)) else {
            return Ok(false);
        };
        self.size += TILE_WIDTH as u64;
        let root = root_of(&tile);
        self.push_at(1, root)?;
        Ok(true)
    }

    /// Appends a leaf.
    pub(crate) fn push(&mut self, leaf: Digest) -> io::Result<()> {
        self.size += 1;
        self.push_at(0, leaf)
    }

    fn push_at(&mut self, level: usize, hash: Digest) -> io::Result<()> {
        let (mut level, mut hash) = (level, hash);
        loop {
            while self.partial.len() <= level {
                self.partial.push(Vec::with_capacity(TILE_WIDTH));
            }
            let Some(tile) = self.partial.get_mut(level) else {
                return Ok(());
            };
            tile.push(hash);
            if tile.len() < TILE_WIDTH {
                return Ok(());
            }
            let tile = Arc::new(std::mem::take(tile));
            let number = (self.size >> (8 * (level + 1))) - 1;
            hash = root_of(&tile);
            if self.read_only {
                self.unwritten.insert((level, number), tile);
            } else {
                write_tile(&tile_path(&self.dir, level, number), &tile)?;
                self.remember(level, number, tile);
            }
            level += 1;
        }
    }

    fn remember(&self, level: usize, number: u64, tile: Arc<Vec<Digest>>) {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if cache.len() >= CACHE_TILES {
            cache.clear();
        }
        cache.insert((level, number), tile);
    }

    /// A tile, full or not, in its file form.
    pub(crate) fn tile(&self, level: usize, number: u64) -> io::Result<Arc<Vec<Digest>>> {
        let width = self
            .size
            .checked_shr(u32::try_from(8 * level).unwrap_or(u32::MAX))
            .unwrap_or(0);
        let full = width / TILE_WIDTH as u64;
        if number == full {
            return self
                .partial
                .get(level)
                .cloned()
                .map(Arc::new)
                .ok_or_else(|| io::ErrorKind::NotFound.into());
        }
        if number > full {
            return Err(io::ErrorKind::NotFound.into());
        }
        if let Some(tile) = self.unwritten.get(&(level, number)) {
            return Ok(Arc::clone(tile));
        }
        if let Some(tile) = self
            .cache
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&(level, number))
        {
            return Ok(Arc::clone(tile));
        }
        let tile = Arc::new(read_tile(&tile_path(&self.dir, level, number))?);
        self.remember(level, number, Arc::clone(&tile));
        Ok(tile)
    }

    pub(crate) fn root_at(&self, size: u64) -> io::Result<Digest> {
        receipts::hash_range(self, 0, size)
    }
}

impl HashSource for Tree {
    type Error = io::Error;
    fn node(&self, level: u32, index: u64) -> io::Result<Digest> {
        let (tile_level, height) = ((level / 8) as usize, level % 8);
        let first = index << height;
        let tile = self.tile(tile_level, first / TILE_WIDTH as u64)?;
        let from = (first % TILE_WIDTH as u64) as usize;
        let hashes = tile
            .get(from..from + (1 << height))
            .ok_or(io::ErrorKind::NotFound)?;
        Ok(root_of(hashes))
    }
}

/// `tile/<level>/x001/x234/067`: thousands in groups of three digits.
fn tile_path(dir: &Path, level: usize, number: u64) -> PathBuf {
    dir.join("tile").join(level.to_string()).join(number_path(number))
}

pub(crate) fn number_path(number: u64) -> String {
    let mut path = format!("{:03}", number % 1000);
    let mut rest = number / 1000;
    while rest > 0 {
        path = format!("x{:03}/{path}", rest % 1000);
        rest /= 1000;
    }
    path
}

/// Reads [`number_path`].
pub(crate) fn parse_number_path(path: &str) -> Option<u64> {
    let mut number: u64 = 0;
    let parts: Vec<&str> = path.split('/').collect();
    for (place, part) in parts.iter().enumerate() {
        let digits = if place + 1 < parts.len() {
            part.strip_prefix('x')?
        } else {
            part
        };
        if digits.len() != 3 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        number = number.checked_mul(1000)?.checked_add(digits.parse().ok()?)?;
    }
    (number_path(number) == path).then_some(number)
}

fn read_tile(path: &Path) -> io::Result<Vec<Digest>> {
    let bytes = std::fs::read(path)?;
    let hashes: Vec<Digest> = bytes.chunks_exact(32).filter_map(Digest::from_slice).collect();
    if hashes.len() != TILE_WIDTH || bytes.len() != TILE_WIDTH * 32 {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(hashes)
}

fn write_tile(path: &Path, tile: &[Digest]) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let bytes: Vec<u8> = tile.iter().flat_map(|hash| hash.0).collect();
    // A tile torn by a crash has another size, or does not lead to the checkpoint: both are noticed at the next start.
    std::fs::write(path, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_give_the_same_root_as_a_flat_tree() {
        let dir = tempfile::tempdir().unwrap();
        let leaves: Vec<Digest> = (0..70_000_u64)
            .map(|i| receipts::leaf_hash(&i.to_be_bytes()))
            .collect();
        let mut tree = Tree::new(dir.path().to_owned(), false);
        for (at, leaf) in leaves.iter().enumerate() {
            tree.push(*leaf).unwrap();
            if at % 9973 == 0 || at == 69_999 {
                let size = at as u64 + 1;
                assert_eq!(tree.root_at(size).unwrap(), root_of(&leaves[..=at]));
                let old = size / 3 + 1;
                let proof = receipts::consistency_proof(&tree, old, size).unwrap();
                let (old_root, root) = (root_of(&leaves[..old as usize]), root_of(&leaves[..=at]));
                assert!(receipts::verify_consistency(old, &old_root, size, &root, &proof));
            }
        }
        let mut again = Tree::new(dir.path().to_owned(), false);
        while again.take_tile().unwrap() {}
        for leaf in &leaves[again.size() as usize..] {
            again.push(*leaf).unwrap();
        }
        assert_eq!(again.root_at(70_000).unwrap(), root_of(&leaves));
    }

    #[test]
    fn numbers_as_paths() {
        for (number, path) in [
            (0, "000"),
            (999, "999"),
            (1000, "x001/000"),
            (1_234_067, "x001/x234/067"),
        ] {
            assert_eq!(number_path(number), path);
            assert_eq!(parse_number_path(path), Some(number));
        }
        assert_eq!(parse_number_path("x000/001"), None);
        assert_eq!(parse_number_path("1"), None);
    }
}
