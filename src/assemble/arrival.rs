//! What the assembler yields, in the order in which it became complete.

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};

use crate::model::{Body, Lsn, Reservation, Timestamp, Transaction};
use crate::wire::frame::HEADER_BYTES;

/// Before the payload of an `XLogData` message: tag, start, end, time.
const ENVELOPE_BYTES: usize = 25;

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

impl LogicalMessage {
    /// As a unit of its own among transactions: no transaction id, no rows, and one message as its body. `lsn` is the end of its
    /// record; it is sent again unless the confirmed position is beyond the record's start.
    pub fn into_unit(self, received: Timestamp) -> Transaction {
        let payload_bytes = 1 + 1 + 8 + self.prefix.len() + 1 + 4 + self.content.len();
        let mut body = BytesMut::with_capacity(HEADER_BYTES + ENVELOPE_BYTES + payload_bytes);
        body.put_u8(b'd');
        body.put_u32((4 + ENVELOPE_BYTES + payload_bytes) as u32);
        body.put_u8(b'w');
        body.put_u64(self.lsn.0);
        body.put_u64(self.lsn.0);
        body.put_i64(received.0);
        body.put_slice(b"M\0");
        body.put_u64(self.lsn.0);
        body.put_slice(self.prefix.as_bytes());
        body.put_u8(0);
        body.put_u32(self.content.len() as u32);
        body.put_slice(&self.content);
        Transaction {
            xid: 0,
            commit_lsn: self.lsn,
            end_lsn: self.lsn,
            commit_time: received,
            origin: None,
            streamed: false,
            taken_back: 0,
            rows: 0,
            size_bytes: body.len() as u64,
            body: Body::Memory([body.freeze()].into()),
            reservation: Some(self.reservation),
        }
    }
}

impl fmt::Debug for LogicalMessage {
    /// Without the content: it may be a secret as much as a row may.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = formatter.debug_struct("LogicalMessage");
        text.field("lsn", &self.lsn).field("prefix", &self.prefix).field("content_bytes", &self.content.len());
        text.finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::{Context, Message, decode};
    use crate::model::MemoryBudget;
    use crate::wire::frame::frames;
    use crate::wire::replication::{ReplicationMessage, parse};

    #[test]
    fn a_message_becomes_a_unit_that_reads_as_the_primary_sent_it() {
        let message = LogicalMessage {
            lsn: Lsn(0x1F),
            prefix: "mine".to_owned(),
            content: Bytes::from_static(b"\x00\xFF"),
            reservation: MemoryBudget::new(100).reservation(),
        };
        let mut unit = message.into_unit(Timestamp(7));
        assert!(unit.is_outside_message());
        assert_eq!((unit.commit_lsn, unit.end_lsn, unit.rows), (Lsn(0x1F), Lsn(0x1F), 0));
        // Replayed here long after its commit elsewhere, it has waited since it was sent.
        (unit.origin, unit.commit_time) = (Some("elsewhere".to_owned()), Timestamp(1));
        assert_eq!(unit.waits_since(), Timestamp(7));
        unit.origin = None;
        assert_eq!(unit.waits_since(), Timestamp(1));
        let chunk = unit.next_chunk().unwrap().unwrap();
        let frame = frames(&chunk).next().unwrap().unwrap();
        let ReplicationMessage::XLogData { start, payload, .. } = parse(frame.body).unwrap() else { panic!("no data") };
        let Message::Logical(logical) = decode(payload, Context::default()).unwrap() else { panic!("no message") };
        assert_eq!((start, logical.lsn, logical.is_transactional), (Lsn(0x1F), Lsn(0x1F), false));
        assert_eq!((logical.prefix, logical.content), (&b"mine"[..], &b"\x00\xFF"[..]));
    }
}
