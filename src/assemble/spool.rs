//! The spool folder of one pipeline, `spool_dir/PIPELINE/`: makes it, clears it of what ended daemons left, opens files in it.
//! Never touches a file whose name it does not know, nor one that a living daemon holds.
//!
//! A file is named `walrelay-PID-XID-RANDOM.spool` (the process is there for people only) and is locked (`flock`) by who
//! made it for as long as it is open. The kernel drops the lock when the process ends, however it ends: so a file that can
//! be locked is a leftover. Files keep their names while in use, so that `ls` and `du` tell where the disk went.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::model::PipelineName;

use super::error::SpoolError;
use super::spill::SpoolFile;

/// What `open` writes and reads back, bytes.
const PROBE_BYTES: usize = 8192;

/// A pipeline's spool folder, proven writable.
#[derive(Clone, Debug)]
pub struct Spool {
    folder: Arc<PathBuf>,
    used_bytes: Arc<AtomicU64>,
}

impl Spool {
    /// Makes `spool_dir/PIPELINE` (for its owner only: rows are in it) where it is missing, removes what ended daemons left
    /// there, and proves that a file can be written. Blocks on the file system.
    pub fn open(spool_dir: &Path, pipeline: &PipelineName) -> Result<Self, SpoolError> {
        let folder = spool_dir.join(pipeline.as_str());
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&folder);
        made.map_err(|error| SpoolError::new(&folder, "making it", error))?;
        remove_leftovers(&folder).map_err(|error| SpoolError::new(&folder, "listing it", error))?;
        let spool = Self { folder: Arc::new(folder), used_bytes: Arc::new(AtomicU64::new(0)) };
        spool.create(0)?.append([&[0; PROBE_BYTES][..]].into_iter())?;
        Ok(spool)
    }

    /// The pipeline's own folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Held in files of this pipeline now, bytes: open transactions, and committed ones that the sink has not finished.
    pub fn used_bytes(&self) -> u64 {
        self.used_bytes.load(Ordering::Relaxed)
    }

    /// A new, empty file for the transaction `xid`; removed when dropped.
    pub(super) fn create(&self, xid: u32) -> Result<SpoolFile, SpoolError> {
        let fault = |doing| move |error| SpoolError::new(&self.folder, doing, error);
        loop {
            let name = format!("walrelay-{}-{xid}-{:016x}.spool", std::process::id(), rand::random::<u64>());
            let path = self.folder.join(name);
            let mut options = OpenOptions::new();
            options.read(true).append(true).create_new(true).mode(0o600);
            let file = options.open(&path).map_err(fault("creating a file"))?;
            match file.try_lock() {
                Ok(()) => {}
                // Another daemon's clearing took our new file for a leftover in the instant before the lock.
                Err(TryLockError::WouldBlock) => continue,
                Err(TryLockError::Error(error)) => {
                    drop(fs::remove_file(&path));
                    return Err(fault("locking a file")(error));
                }
            }
            // The same, a moment later: it was locked, removed and let go before our turn.
            if fs::symlink_metadata(&path).is_ok() {
                return Ok(SpoolFile::new(file, path, Arc::clone(&self.folder), Arc::clone(&self.used_bytes)));
            }
        }
    }
}

/// Whether the name is one that [`Spool::create`] gives.
fn is_ours(name: &str) -> bool {
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let is_random = |part: &str| part.len() == 16 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
    let Some(parts) = name.strip_prefix("walrelay-").and_then(|rest| rest.strip_suffix(".spool")) else { return false };
    let parts: Vec<&str> = parts.split('-').collect();
    matches!(parts[..], [process, xid, random] if is_number(process) && is_number(xid) && is_random(random))
}

/// Removes the files of ended daemons. One that cannot be opened or removed is told and left: it may be another user's.
fn remove_leftovers(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
        if !is_file || !entry.file_name().to_str().is_some_and(is_ours) {
            continue;
        }
        let path = entry.path();
        match remove_unless_held(&path) {
            Ok(true) => tracing::info!(file = %path.display(), "removed a spool file that an ended walrelay left"),
            Ok(false) => tracing::debug!(file = %path.display(), "a living walrelay holds this spool file"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(file = %path.display(), %error, "a left spool file could not be removed"),
        }
    }
    Ok(())
}

fn remove_unless_held(path: &Path) -> io::Result<bool> {
    let file = File::open(path)?;
    match file.try_lock() {
        Ok(()) => fs::remove_file(path).map(|()| true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pipeline() -> PipelineName {
        PipelineName::new("standby1").unwrap()
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn the_folder_is_made_for_its_owner_only_and_left_empty() {
        use std::os::unix::fs::PermissionsExt;
        let root = tempfile::tempdir().unwrap();
        let spool = Spool::open(&root.path().join("a/b"), &pipeline()).unwrap();
        assert_eq!(spool.folder(), root.path().join("a/b/standby1"));
        assert_eq!(fs::metadata(spool.folder()).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(names(spool.folder()), [""; 0]);
        assert_eq!(spool.used_bytes(), 0);
    }

    #[test]
    fn only_files_of_ended_daemons_are_removed() {
        let root = tempfile::tempdir().unwrap();
        let spool = Spool::open(root.path(), &pipeline()).unwrap();
        let held = spool.create(7).unwrap();
        let strangers = [
            "notes.txt",
            "walrelay-1-2-0123456789abcde.spool",
            "walrelay-1-x-0123456789abcdef.spool",
            "walrelay-1-2-0123456789abcdef.spool.gz",
            "walrelay-1-2-0123456789abcdef",
        ];
        for name in strangers.into_iter().chain(["walrelay-1-2-0123456789abcdef.spool"]) {
            fs::write(spool.folder().join(name), "rows").unwrap();
        }
        fs::create_dir(spool.folder().join("walrelay-1-3-0123456789abcdef.spool")).unwrap();

        Spool::open(root.path(), &pipeline()).unwrap();
        let left = names(spool.folder());
        assert!(!left.contains(&"walrelay-1-2-0123456789abcdef.spool".to_owned()), "{left:?}");
        assert_eq!(left.len(), strangers.len() + 2, "{left:?}");

        drop(held);
        assert_eq!(names(spool.folder()).len(), strangers.len() + 1);
    }

    #[test]
    fn a_folder_that_cannot_be_used_is_refused_with_folder_cause_and_remedy() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("file");
        fs::write(&file, "").unwrap();
        let error = Spool::open(&file, &pipeline()).unwrap_err().to_string();
        assert!(error.contains("file/standby1\" cannot be used: making it: Not a directory"), "{error}");
        assert!(error.contains("point spool_dir to a folder"), "{error}");

        let spool = Spool::open(root.path(), &pipeline()).unwrap();
        fs::remove_dir(spool.folder()).unwrap();
        let error = spool.create(1).unwrap_err().to_string();
        assert!(error.contains("standby1\" cannot be used: creating a file: No such file"), "{error}");
    }
}
