//! What can go wrong while transactions are put together: bytes that break the protocol, or the spool folder.

use std::io;
use std::path::{Path, PathBuf};

use crate::decode::DecodeError;
use crate::model::{Lsn, Retry};
use crate::wire::WireError;

use super::subtransactions;

/// An error of assembling. The assembler must be dropped after it; what it yielded before stays valid.
#[derive(Debug, thiserror::Error)]
pub enum AssembleError {
    /// A chunk that is no run of whole CopyData messages.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// A pgoutput message that cannot be read.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// A backend message other than CopyData.
    #[error("a message '{}' stands among the CopyData messages of the replication stream", char::from(*tag).escape_default())]
    NotCopyData {
        /// Its tag.
        tag: u8,
    },
    /// A message where the protocol does not allow it.
    #[error(
        "the primary sent a pgoutput message '{}' {place}, where the protocol does not allow it; nothing of it was applied. \
         If it comes again after a restart of walrelay, report it with the server's version",
        char::from(*tag).escape_default()
    )]
    Misplaced {
        /// Its first byte.
        tag: u8,
        /// Where it came.
        place: &'static str,
    },
    /// The Commit is not the one its Begin announced.
    #[error("the commit of transaction {xid} stands at {commit_lsn}, but its begin announced {final_lsn}")]
    CommitMismatch {
        /// The transaction.
        xid: u32,
        /// Of the Begin.
        final_lsn: Lsn,
        /// Of the Commit.
        commit_lsn: Lsn,
    },
    /// A later block or the commit of a streamed transaction whose first block never came.
    #[error("the primary goes on with the streamed transaction {xid} (message '{}'), but its first block never came", char::from(*tag))]
    UnknownStream {
        /// `S` or `c`.
        tag: u8,
        /// The transaction.
        xid: u32,
    },
    /// A first block of a transaction that is already open.
    #[error("the primary begins the streamed transaction {xid} a second time")]
    StreamedTwice {
        /// The transaction.
        xid: u32,
    },
    /// More open streamed transactions than a server can have.
    #[error("{limit} streamed transactions are open at once; a server cannot have more")]
    TooManyStreams {
        /// The limit.
        limit: usize,
    },
    /// More subtransactions than are remembered.
    #[error(
        "the streamed transaction {xid} has more than {} subtransactions with changes, the limit of walrelay (and of \
         PostgreSQL's own apply worker); raise logical_decoding_work_mem for walrelay's role on the primary so that the \
         transaction is sent only at its commit",
        subtransactions::LIMIT
    )]
    TooManySubtransactions {
        /// The transaction.
        xid: u32,
    },
    /// The slot decodes at PREPARE TRANSACTION.
    #[error(
        "the slot sends two-phase messages ('{}'), for which walrelay never asks: someone else created or altered it with \
         two_phase = true. Let walrelay use another slot (`slot` in the configuration), or drop this one and let walrelay \
         make its own",
        char::from(*tag)
    )]
    TwoPhase {
        /// `b`, `P`, `K`, `r` or `p`.
        tag: u8,
    },
    /// The spool folder.
    #[error(transparent)]
    Spool(#[from] SpoolError),
}

impl AssembleError {
    /// Whether the same stream may pass later without anyone changing anything here.
    pub fn retry(&self) -> Retry {
        match self {
            AssembleError::Wire(error) => error.retry(),
            // The next attempt opens the folder anew, and says what it lacks.
            AssembleError::Spool(_) => Retry::Later,
            _ => Retry::Never,
        }
    }
}

/// The spool folder cannot be made, written or read.
#[derive(Debug, thiserror::Error)]
#[error("the spool folder \"{}\" cannot be used: {doing}: {source}; {}", folder.display(), self.remedy())]
pub struct SpoolError {
    folder: PathBuf,
    doing: &'static str,
    source: io::Error,
}

impl SpoolError {
    pub(super) fn new(folder: &Path, doing: &'static str, source: io::Error) -> Self {
        Self { folder: folder.to_owned(), doing, source }
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn is_full(&self) -> bool {
        matches!(
            self.source.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
        )
    }

    fn remedy(&self) -> &'static str {
        match self.source.kind() {
            _ if self.is_full() => "make room there, point spool_dir to a larger disk, or raise memory_limit",
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                "let the user that runs walrelay write there, or point spool_dir to a folder where it may"
            }
            _ => "point spool_dir to a folder on a local disk that the user that runs walrelay may write",
        }
    }
}

impl From<SpoolError> for io::Error {
    /// Keeps the kind, and the folder in the text: for [`crate::model::SpooledChunks`].
    fn from(error: SpoolError) -> Self {
        io::Error::new(error.source.kind(), error)
    }
}
