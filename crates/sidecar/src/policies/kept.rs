//! The last good snapshot on disk, as the operator signed it: it proves itself after a restart without the operator.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use control_api::proto::SignedSnapshot;
use control_api::signed::SNAPSHOT_BYTES_MAX;
use prost::Message as _;

const FILE: &str = "snapshot.pb";
/// A snapshot with its certificates.
const BYTES_MAX: u64 = SNAPSHOT_BYTES_MAX as u64 + (1 << 20);

/// A file beside the segments of the spool.
#[derive(Debug, Clone)]
pub struct KeptSnapshot {
    dir: PathBuf,
}

impl KeptSnapshot {
    /// In this folder.
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// What was kept. `None`: nothing.
    ///
    /// # Errors
    /// It cannot be read, or is no snapshot.
    pub fn read(&self) -> io::Result<Option<SignedSnapshot>> {
        let file = match File::open(self.dir.join(FILE)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut bytes = Vec::new();
        file.take(BYTES_MAX + 1).read_to_end(&mut bytes)?;
        SignedSnapshot::decode(bytes.as_slice())
            .map(Some)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    /// Keeps it: the old one or the new one is there after a crash, never half of one.
    ///
    /// # Errors
    /// From the disk.
    pub fn write(&self, signed: &SignedSnapshot) -> io::Result<()> {
        use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.dir)?;
        let new = self.dir.join("snapshot.pb.new");
        let mut file = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(&signed.encode_to_vec())?;
        file.sync_all()?;
        std::fs::rename(&new, self.dir.join(FILE))?;
        File::open(&self.dir)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_comes_back_and_garbage_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let kept = KeptSnapshot::new(&folder.path().join("spool"));
        assert_eq!(kept.read().unwrap(), None);
        let signed = SignedSnapshot {
            snapshot: vec![1, 2, 3],
            chain: vec![vec![4]],
            signature: vec![5],
        };
        kept.write(&signed).unwrap();
        assert_eq!(kept.read().unwrap(), Some(signed));
        std::fs::write(folder.path().join("spool").join(FILE), [0xff; 40]).unwrap();
        assert!(kept.read().is_err());
    }
}
