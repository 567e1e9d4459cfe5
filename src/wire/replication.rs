//! The messages inside CopyData while replication streams: `w` and `k` from the server, `r` to it. Pure and total.
//! Layouts: the page "Streaming Replication Protocol" of the PostgreSQL manual.

use bytes::{BufMut, BytesMut};

use crate::model::{Lsn, Positions, Timestamp};

use super::WireError;

/// The envelope of one pgoutput message: tag, three int64.
pub const XLOG_DATA_HEADER_BYTES: usize = 25;

/// What a CopyData of the server holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplicationMessage<'a> {
    /// `w`: one message of the output plugin. Its positions are no promise: never derive a confirmation from them.
    XLogData {
        /// The change's own position, or 0/0.
        start: Lsn,
        /// The same in logical replication.
        end: Lsn,
        /// The server's clock.
        time: Timestamp,
        /// The plugin's message.
        payload: &'a [u8],
    },
    /// `k`: everything that ends at or below `wal_end` and will ever be sent was sent before this.
    Keepalive {
        /// End of what was decoded.
        wal_end: Lsn,
        /// The server's clock.
        time: Timestamp,
        /// Whether the server wants a status message now.
        reply_requested: bool,
    },
}

/// Reads the body of a CopyData message.
#[inline]
pub fn parse(body: &[u8]) -> Result<ReplicationMessage<'_>, WireError> {
    match body.split_first() {
        Some((b'w', rest)) => match rest.split_at_checked(XLOG_DATA_HEADER_BYTES - 1) {
            Some((header, payload)) => Ok(ReplicationMessage::XLogData {
                start: Lsn(int64(header, 0)),
                end: Lsn(int64(header, 8)),
                time: Timestamp(int64(header, 16) as i64),
                payload,
            }),
            None => Err(WireError::Replication { tag: b'w', size_bytes: body.len() }),
        },
        Some((b'k', rest)) if rest.len() == 17 => Ok(ReplicationMessage::Keepalive {
            wal_end: Lsn(int64(rest, 0)),
            time: Timestamp(int64(rest, 8) as i64),
            reply_requested: rest[16] != 0,
        }),
        Some((tag, _)) => Err(WireError::Replication { tag: *tag, size_bytes: body.len() }),
        None => Err(WireError::Replication { tag: 0, size_bytes: 0 }),
    }
}

/// The int64 at `offset`, which the caller has checked; zero beyond the end rather than a panic.
#[inline]
fn int64(bytes: &[u8], offset: usize) -> u64 {
    bytes.get(offset..).and_then(<[u8]>::first_chunk::<8>).map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

/// Appends a whole CopyData message with a standby status update, `r`.
pub fn status_update(positions: &Positions, now: Timestamp, reply_requested: bool, out: &mut BytesMut) {
    out.put_u8(b'd');
    out.put_u32(4 + 34);
    out.put_u8(b'r');
    out.put_u64(positions.write.0);
    out.put_u64(positions.flush.0);
    out.put_u64(positions.apply.0);
    out.put_i64(now.0);
    out.put_u8(u8::from(reply_requested));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_servers_messages_are_read() {
        let mut body = vec![b'w'];
        body.extend([1u64, 2, 3].into_iter().flat_map(u64::to_be_bytes));
        body.extend(b"Bxyz");
        let expected =
            ReplicationMessage::XLogData { start: Lsn(1), end: Lsn(2), time: Timestamp(3), payload: b"Bxyz" };
        assert_eq!(parse(&body).unwrap(), expected);

        let mut body = vec![b'k'];
        body.extend([7u64, 8].into_iter().flat_map(u64::to_be_bytes));
        body.push(1);
        let expected = ReplicationMessage::Keepalive { wal_end: Lsn(7), time: Timestamp(8), reply_requested: true };
        assert_eq!(parse(&body).unwrap(), expected);
    }

    #[test]
    fn a_message_of_another_shape_is_an_error() {
        for body in [&b""[..], b"w", b"w1234567", b"k", b"k123456789012345678", b"s"] {
            assert!(parse(body).is_err(), "{body:?}");
        }
    }

    #[test]
    fn a_status_update_has_the_layout_of_the_manual() {
        let mut out = BytesMut::new();
        let positions = Positions { write: Lsn(0x0102), flush: Lsn(3), apply: Lsn(4) };
        status_update(&positions, Timestamp(5), true, &mut out);
        assert_eq!(out.len(), 39);
        assert_eq!(out[..6], *b"d\0\0\0\x26r");
        assert_eq!(out[6..14], 0x0102u64.to_be_bytes());
        assert_eq!(out[14..22], 3u64.to_be_bytes());
        assert_eq!(out[22..30], 4u64.to_be_bytes());
        assert_eq!(out[30..38], 5u64.to_be_bytes());
        assert_eq!(out[38], 1);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(body in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = parse(&body);
        }
    }
}
