//! What the assembler yields, in the order in which it became complete.

use std::fmt;

use bytes::Bytes;

use crate::model::{Lsn, Reservation, Timestamp, Transaction};

/// Something the stream brought whole.
#[derive(Debug)]
pub enum Arrival {
    /// A committed transaction.
    Transaction(Transaction),
    /// A logical message outside any transaction.
    Message(LogicalMessage),
    /// Everything that ends at or below `wal_end` and will ever be sent was sent before. May stand before a transaction
    /// whose first rows came earlier: that one ends above `wal_end`.
    Keepalive {
        /// End of what the primary decoded.
        wal_end: Lsn,
        /// Whether the primary wants a status message now.
        reply_requested: bool,
        /// The primary's clock.
        time: Timestamp,
    },
}

/// A message of `pg_logical_emit_message` that is not transactional: sent at once, even if its transaction rolls back.
pub struct LogicalMessage {
    /// What `pg_logical_emit_message` returned.
    pub lsn: Lsn,
    /// Whose it is.
    pub prefix: String,
    /// Raw bytes, in no encoding; a copy, so that they pin no chunk.
    pub content: Bytes,
    /// Its part of the pipeline's memory budget.
    pub reservation: Reservation,
}

impl fmt::Debug for LogicalMessage {
    /// Without the content: it may be a secret as much as a row may.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = formatter.debug_struct("LogicalMessage");
        text.field("lsn", &self.lsn).field("prefix", &self.prefix).field("content_bytes", &self.content.len());
        text.finish_non_exhaustive()
    }
}
