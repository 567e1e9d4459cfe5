//! What one read of the replication stream brought: whole messages, of which the CopyData go on. Interprets nothing but keepalives' wish
//! for a reply, how long ago a transaction was committed, and the server's own notices and errors; reads and writes nothing itself.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};

use crate::wire::replication::{self, ReplicationMessage};
use crate::wire::{ServerError, WireError, frame};

use super::SourceError;

/// What is being done, for errors.
pub(super) const READING: &str = "reading the replication stream";

/// What it brought.
#[derive(Debug)]
pub(super) struct Read {
    pub(super) copy_data: Bytes,
    /// Whether a keepalive in it asks for a reply.
    pub(super) wants_reply: bool,
    /// Of the last transaction in it that tells.
    pub(super) sent: Option<Sent>,
}

/// When, by the primary's clock, something of a transaction was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// So long after its commit.
    AfterCommit(Duration),
    /// It is still open.
    BeforeCommit,
}

/// Whether the end of a transaction is still to come that begins with the first message and goes on in the last: the walsender sends it
/// message by message, and each of them would wake us. Not asked in the middle of a large one, which comes at its own pace.
pub(super) fn lacks_its_end(first: frame::Frame<'_>, last: frame::Frame<'_>) -> bool {
    let begins = kind(first.body) == Some(b'B');
    begins && matches!(kind(last.body), Some(b'B' | b'O' | b'R' | b'Y' | b'I' | b'U' | b'D' | b'T'))
}

/// The kind of pgoutput's message in a CopyData; `None` for a keepalive.
#[inline]
fn kind(body: &[u8]) -> Option<u8> {
    let is_xlog_data = body.first() == Some(&b'w');
    body.get(replication::XLOG_DATA_HEADER_BYTES).copied().filter(|_| is_xlog_data)
}

/// What a Begin message tells (int64 commit LSN, int64 commit time behind the tag), or a Stream Start; `None` for any other message.
#[inline]
fn sent(body: &[u8]) -> Option<Sent> {
    match kind(body)? {
        b'B' => {}
        b'S' => return Some(Sent::BeforeCommit),
        _ => return None,
    }
    let Ok(ReplicationMessage::XLogData { time, payload, .. }) = replication::parse(body) else { return None };
    let committed = payload.get(9..).and_then(<[u8]>::first_chunk::<8>).map(|bytes| i64::from_be_bytes(*bytes))?;
    Some(Sent::AfterCommit(Duration::from_micros(u64::try_from(time.0.saturating_sub(committed)).unwrap_or(0))))
}

/// The `CopyData` of a chunk. Any other message is a notice (logged, or an error if the server says that it skips changes), or
/// ends the stream.
pub(super) fn copy_data_of(chunk: Bytes) -> Result<Read, SourceError> {
    let mut wants_reply = false;
    let mut last_sent = None;
    let mut other_messages_bytes = 0;
    for message in frame::frames(&chunk) {
        let message = message.map_err(SourceError::wire(READING))?;
        match (message.tag, message.body) {
            (b'd', [b'k', .., 1]) => wants_reply = true,
            (b'd', body) => last_sent = sent(body).or(last_sent),
            (b'S', _) => other_messages_bytes += message.body.len() + frame::HEADER_BYTES,
            (b'N', body) => {
                notice(&ServerError::parse(body))?;
                other_messages_bytes += body.len() + frame::HEADER_BYTES;
            }
            (b'E', body) => {
                let source = WireError::Server(Box::new(ServerError::parse(body)));
                return Err(SourceError::Wire { context: "streaming from the primary".to_owned(), source });
            }
            (b'c' | b'C' | b'Z', _) => return Err(SourceError::Ended),
            (tag, _) => return Err(SourceError::Protocol(format!("a message '{}' in the stream", tag as char))),
        }
    }
    if other_messages_bytes == 0 {
        return Ok(Read { copy_data: chunk, wants_reply, sent: last_sent });
    }
    // Rare: leave the other messages out.
    let mut copy_data = BytesMut::with_capacity(chunk.len() - other_messages_bytes);
    for message in frame::frames(&chunk).flatten().filter(|message| message.tag == b'd') {
        let start = frame::begin(b'd', &mut copy_data);
        copy_data.put_slice(message.body);
        frame::end(start, &mut copy_data).map_err(SourceError::wire(READING))?;
    }
    Ok(Read { copy_data: copy_data.freeze(), wants_reply, sent: last_sent })
}

/// `object_not_in_prerequisite_state`: "skipped loading publication" (`pgoutput.c`, LoadPublications), in whatever language.
const SKIPPED_LOADING: &str = "55000";

/// From 18 on a missing publication is only a warning inside the stream, and its changes are left out: fatal for a standby.
fn notice(notice: &ServerError) -> Result<(), SourceError> {
    if notice.code == SKIPPED_LOADING && notice.severity == "WARNING" {
        return Err(SourceError::Skipping(notice.to_string()));
    }
    tracing::info!(notice = %notice, "the primary says");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Builds a chunk of messages, keeps the CopyData of it, and compares.
    fn check(messages: &[(u8, &[u8])], expected: Result<(&[&[u8]], bool), &str>) {
        let chunk = |messages: &[(u8, &[u8])]| {
            let mut bytes = Vec::new();
            for (tag, body) in messages {
                bytes.put_u8(*tag);
                bytes.put_u32(body.len() as u32 + 4);
                bytes.put_slice(body);
            }
            Bytes::from(bytes)
        };
        let result = copy_data_of(chunk(messages));
        match (result, expected) {
            (Ok(Read { copy_data, wants_reply, .. }), Ok((bodies, expected_reply))) => {
                let expected: Vec<(u8, &[u8])> = bodies.iter().map(|body| (b'd', *body)).collect();
                assert_eq!(copy_data, chunk(&expected));
                assert_eq!(wants_reply, expected_reply);
            }
            (Err(error), Err(text)) => assert!(error.to_string().contains(text), "{error}"),
            (result, expected) => panic!("{result:?} instead of {expected:?}"),
        }
    }

    #[test]
    fn a_begin_tells_how_long_ago_it_was_committed_and_a_stream_that_it_is_open() {
        let message = |sent: i64, tag: u8, committed: i64| {
            let mut body = vec![b'w'];
            body.extend([0, 0, sent].into_iter().flat_map(i64::to_be_bytes));
            body.push(tag);
            body.extend([7, committed].into_iter().flat_map(i64::to_be_bytes));
            body.extend([0; 4]);
            body
        };
        assert_eq!(sent(&message(5_000, b'B', 2_000)), Some(Sent::AfterCommit(Duration::from_millis(3))));
        // A clock that was set back.
        assert_eq!(sent(&message(2_000, b'B', 5_000)), Some(Sent::AfterCommit(Duration::ZERO)));
        assert_eq!(sent(&message(5_000, b'S', 2_000)), Some(Sent::BeforeCommit));
        assert_eq!(sent(&message(5_000, b'C', 2_000)), None);
        assert_eq!(sent(&message(5_000, b'B', 2_000)[..30]), None);
    }

    #[test]
    fn only_copy_data_goes_on() {
        let asking = b"k\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\0\x01".as_slice();
        let quiet = b"k\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\0\0".as_slice();
        check(&[(b'd', b"w1"), (b'd', quiet)], Ok((&[b"w1", quiet], false)));
        check(&[(b'd', asking), (b'd', b"w1")], Ok((&[asking, b"w1"], true)));
        check(&[(b'd', b"w1"), (b'S', b"TimeZone\0UTC\0"), (b'd', b"w2")], Ok((&[b"w1", b"w2"], false)));
        check(&[(b'd', b"w1"), (b'N', b"SNOTICE\0Mhello\0\0"), (b'd', b"w2")], Ok((&[b"w1", b"w2"], false)));
        check(&[(b'C', b"COPY 0\0")], Err("ended the replication stream"));
        let skipped = b"SWARNUNG\0VWARNING\0C55000\0M\xc3\x9cberspringe das Laden der Publikation\0\0";
        check(&[(b'N', skipped)], Err("skips changes"));
        check(&[(b'N', b"SWARNING\0VWARNING\0C01000\0Mabout a publication\0\0"), (b'd', b"w1")], Ok((&[b"w1"], false)));
        check(&[(b'E', b"SFATAL\0VFATAL\0C57P01\0Mterminating connection\0\0")], Err("57P01"));
        check(&[(b'?', b"")], Err("message '?'"));
    }
}
