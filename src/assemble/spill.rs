//! One transaction's file in the spool folder: appended to, cut, read back in runs of whole messages, gone when dropped.
//! Plain blocking file I/O in large pieces; nothing is ever synced, since nothing in it must survive a restart.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};

use crate::model::SpooledChunks;
use crate::wire::frame;

use super::error::SpoolError;

/// Small pieces are gathered into writes of this size.
const WRITE_BYTES: usize = 256 * 1024;
/// A run read back is at most this long, unless one message is longer.
const READ_BYTES: usize = 1024 * 1024;

/// A file that holds the beginning of a transaction's body.
#[derive(Debug)]
pub(super) struct SpoolFile {
    file: File,
    path: PathBuf,
    folder: Arc<PathBuf>,
    size_bytes: u64,
    used_bytes: Arc<AtomicU64>,
}

impl SpoolFile {
    /// Takes over a new, empty file, opened for reading and appending.
    pub(super) fn new(file: File, path: PathBuf, folder: Arc<PathBuf>, used_bytes: Arc<AtomicU64>) -> Self {
        Self { file, path, folder, size_bytes: 0, used_bytes }
    }

    pub(super) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Writes the pieces behind what is there. After an error the file is of no use.
    pub(super) fn append<'a>(&mut self, pieces: impl Iterator<Item = &'a [u8]>) -> Result<(), SpoolError> {
        let mut writer = BufWriter::with_capacity(WRITE_BYTES, &self.file);
        let mut written_bytes = 0;
        let write_all = || -> io::Result<()> {
            for piece in pieces {
                writer.write_all(piece)?;
                written_bytes += piece.len() as u64;
            }
            writer.flush()
        };
        write_all().map_err(|error| SpoolError::new(&self.folder, "writing a file", error))?;
        self.size_bytes += written_bytes;
        self.used_bytes.fetch_add(written_bytes, Ordering::Relaxed);
        Ok(())
    }

    /// Forgets everything from `size_bytes` on.
    pub(super) fn cut(&mut self, size_bytes: u64) -> Result<(), SpoolError> {
        let removed_bytes = self.size_bytes.saturating_sub(size_bytes);
        self.file.set_len(size_bytes).map_err(|error| SpoolError::new(&self.folder, "cutting a file", error))?;
        self.size_bytes -= removed_bytes;
        self.used_bytes.fetch_sub(removed_bytes, Ordering::Relaxed);
        Ok(())
    }

    /// The run of whole messages at `offset`, where a message must begin; `None` at the end.
    pub(super) fn run_at(&self, offset: u64) -> Result<Option<Bytes>, SpoolError> {
        self.read_run(offset).map_err(|error| SpoolError::new(&self.folder, "reading a file", error))
    }

    /// The bytes at a place of what was written.
    pub(super) fn part(&self, place: Range<u64>) -> Result<BytesMut, SpoolError> {
        let read = self.read(place.start, place.end.saturating_sub(place.start));
        read.map_err(|error| SpoolError::new(&self.folder, "reading a file", error))
    }

    fn read_run(&self, offset: u64) -> io::Result<Option<Bytes>> {
        let left_bytes = self.size_bytes.saturating_sub(offset);
        if left_bytes == 0 {
            return Ok(None);
        }
        let mut run = self.read(offset, left_bytes.min(READ_BYTES as u64))?;
        let broken = || io::Error::new(io::ErrorKind::InvalidData, "it does not hold what was written to it");
        let mut whole_bytes = frame::whole_messages_bytes(&run).map_err(|_| broken())?;
        if whole_bytes == 0 {
            whole_bytes = frame::size_bytes(&run).map_err(|_| broken())?.ok_or_else(broken)?;
            if whole_bytes as u64 > left_bytes {
                return Err(broken());
            }
            run = self.read(offset, whole_bytes as u64)?;
        }
        run.truncate(whole_bytes);
        Ok(Some(run.freeze()))
    }

    fn read(&self, offset: u64, size_bytes: u64) -> io::Result<BytesMut> {
        let mut bytes = BytesMut::zeroed(size_bytes as usize);
        self.file.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }
}

impl Drop for SpoolFile {
    fn drop(&mut self) {
        self.used_bytes.fetch_sub(self.size_bytes, Ordering::Relaxed);
        if let Err(error) = fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(file = %self.path.display(), %error, "a spool file could not be removed");
        }
    }
}

/// A committed transaction's file, read from its beginning.
pub(super) struct SpooledBody {
    file: SpoolFile,
    offset: u64,
}

impl SpooledBody {
    pub(super) fn new(file: SpoolFile) -> Self {
        Self { file, offset: 0 }
    }
}

impl SpooledChunks for SpooledBody {
    fn next_chunk(&mut self) -> io::Result<Option<Bytes>> {
        let run = self.file.run_at(self.offset)?;
        self.offset += run.as_ref().map_or(0, |run| run.len() as u64);
        Ok(run)
    }

    fn rewind_to(&mut self, offset: u64) {
        self.offset = offset;
    }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;

    use super::*;

    fn file_over(path: &str) -> SpoolFile {
        let file = OpenOptions::new().read(true).append(true).open(path).unwrap();
        SpoolFile::new(file, PathBuf::from("/nowhere/x"), Arc::new(PathBuf::from("/spool/standby1")), Arc::default())
    }

    fn message(size_bytes: usize) -> Vec<u8> {
        let mut message = vec![b'd'];
        message.extend(((size_bytes - 1) as u32).to_be_bytes());
        message.resize(size_bytes, b'x');
        message
    }

    #[test]
    fn a_full_disk_is_an_error_with_folder_cause_and_remedy() {
        let mut file = file_over("/dev/full");
        let error = file.append([&b"rows"[..]].into_iter()).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("\"/spool/standby1\" cannot be used: writing a file: No space left on device"), "{text}");
        assert!(text.contains("make room there"), "{text}");
        assert_eq!(io::Error::from(error).kind(), io::ErrorKind::StorageFull);
        assert_eq!(file.size_bytes(), 0);
    }

    #[test]
    fn runs_hold_whole_messages_of_any_size() {
        let named = tempfile::NamedTempFile::new().unwrap();
        let mut file = file_over(named.path().to_str().unwrap());
        let sizes = [400_000, 400_000, 400_000, 3 * READ_BYTES, 5, READ_BYTES, 30];
        let messages: Vec<Vec<u8>> = sizes.into_iter().map(message).collect();
        file.append(messages.iter().map(Vec::as_slice)).unwrap();
        let mut body = SpooledBody::new(file);
        let mut runs = Vec::new();
        while let Some(run) = body.next_chunk().unwrap() {
            runs.push(run);
        }
        assert_eq!(
            runs.iter().map(Bytes::len).collect::<Vec<_>>(),
            [800_000, 400_000, 3 * READ_BYTES, 5, READ_BYTES, 30]
        );
        assert_eq!(runs.concat(), messages.concat());
        body.rewind_to(0);
        assert_eq!(body.next_chunk().unwrap().as_ref(), runs.first());
        body.rewind_to(800_000);
        assert_eq!(body.next_chunk().unwrap().as_ref(), runs.get(1));
    }

    #[test]
    fn a_file_that_someone_changed_is_an_error() {
        let named = tempfile::NamedTempFile::new().unwrap();
        let mut file = file_over(named.path().to_str().unwrap());
        file.append([&message(100)[..]].into_iter()).unwrap();
        fs::write(named.path(), [0; 100]).unwrap();
        let error = file.run_at(0).unwrap_err().to_string();
        assert!(error.contains("reading a file: it does not hold what was written"), "{error}");
        named.as_file().set_len(10).unwrap();
        for error in [file.run_at(0).unwrap_err(), file.part(20..30).unwrap_err()] {
            assert!(error.to_string().contains("/spool/standby1"), "{error}");
        }
    }
}
