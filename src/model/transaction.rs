//! A whole committed transaction on its way to a sink. It carries the bytes as they came; no row is decoded here.

use std::collections::VecDeque;
use std::fmt;
use std::io;

use bytes::Bytes;

use super::{Lsn, Reservation, Timestamp};

/// A transaction whose end was received.
///
/// Its rows are the backend messages themselves: each chunk is a run of whole `CopyData` messages (`d`, int32 length, then
/// the `w` envelope of the replication protocol with one pgoutput message), without the Begin and the Commit. Who applies it
/// walks them with `wire::frame` and `decode`, and must note every Relation message it passes, even in a transaction it skips.
#[derive(Debug)]
pub struct Transaction {
    /// The top-level transaction id on the primary; 0, which no transaction has, for a non-transactional logical message.
    pub xid: u32,
    /// Start of the commit record. Never confirm this one.
    pub commit_lsn: Lsn,
    /// First byte after the commit record: what a waiting backend waits for, and what is confirmed.
    pub end_lsn: Lsn,
    /// Commit time by the primary's clock (or by the origin's, if it was replayed there).
    pub commit_time: Timestamp,
    /// Name of the replication origin, if the transaction was replayed on the primary.
    pub origin: Option<String>,
    /// Whether it came in streamed blocks: then each message carries an int32 xid after its tag.
    pub streamed: bool,
    /// How often something was taken back (a subtransaction rolled back) that had been read while the transaction was open: who
    /// wrote what it read begins anew.
    pub taken_back: u32,
    /// Number of Insert, Update and Delete messages.
    pub rows: u64,
    /// Total size of the chunks, bytes, wherever they are.
    pub size_bytes: u64,
    /// The rows.
    pub body: Body,
    /// Its part of the pipeline's memory budget.
    pub reservation: Option<Reservation>,
}

/// Where the rows of a transaction are.
pub enum Body {
    /// In memory, in order.
    Memory(VecDeque<Bytes>),
    /// In the spool folder; read back in chunks of bounded size.
    Spooled(Box<dyn SpooledChunks>),
}

impl fmt::Debug for Body {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Body::Memory(chunks) => write!(formatter, "Memory({} chunks)", chunks.len()),
            Body::Spooled(_) => formatter.write_str("Spooled"),
        }
    }
}

/// A spooled transaction, read from the beginning.
pub trait SpooledChunks: Send + Sync {
    /// The next run of whole messages (at most about 1 MiB unless one message is larger), `None` at the end.
    /// Blocks on the file system: call it where that is allowed.
    fn next_chunk(&mut self) -> io::Result<Option<Bytes>>;

    /// Begins again, at a message that stands behind so many bytes.
    fn rewind_to(&mut self, offset: u64);
}

/// Where the time stands at which the primary sent a message, in a `CopyData` with an `XLogData`: behind tag, length, tag, start and end.
const SENT_AT: std::ops::Range<usize> = 22..30;

impl Transaction {
    /// From when on it counts as waiting: its commit. One that was replayed on the primary was committed elsewhere, perhaps long before:
    /// there it is the sending of its first row, while that is in memory.
    pub fn waits_since(&self) -> Timestamp {
        let sent = match (&self.origin, &self.body) {
            (Some(_), Body::Memory(chunks)) => chunks.front().and_then(|chunk| chunk.get(SENT_AT)?.try_into().ok()),
            _ => None,
        };
        sent.map_or(self.commit_time, |bytes| Timestamp(i64::from_be_bytes(bytes)))
    }

    /// Whether this is a unit of its own for one non-transactional logical message, which belongs to no transaction.
    pub fn is_outside_message(&self) -> bool {
        self.xid == 0
    }

    /// Takes the next chunk out, `None` at the end. Reading a spooled chunk blocks for a disk read of about 1 MiB.
    pub fn next_chunk(&mut self) -> io::Result<Option<Bytes>> {
        match &mut self.body {
            Body::Memory(chunks) => Ok(chunks.pop_front()),
            Body::Spooled(file) => file.next_chunk(),
        }
    }
}
