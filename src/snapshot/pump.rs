//! Passes one COPY straight through: the rows that the primary sends, a message each, are the standby's byte for byte, many to a
//! message. Reading overlaps with writing; at most a few chunks lie between. Looks into no row.

use std::time::Instant;

use bytes::{BufMut, Bytes, BytesMut};
use postgres_protocol::message::frontend;
use tokio::sync::mpsc;
use tokio::time::timeout_at;

use crate::source::ReceivePolicy;
use crate::wire::frame::{self, Frame};
use crate::wire::{Connection, ServerError, WireError};

use super::error::Side;
use super::progress::CopyProgress;

/// Chunks between reader and writer; each is what a read or two of the socket brought (at most about 1 MiB, unless a row is
/// larger).
const CHUNKS_BETWEEN: usize = 4;
/// What may stay unwritten before more is taken.
const UNWRITTEN_LIMIT_BYTES: usize = 256 * 1024;
/// Rows go to the standby in messages of at most so many bytes, unless one is larger: its backend pays for each message
/// (`CopyGetData` in `src/backend/commands/copyfromparse.c`), and what it holds at once stays in its cache.
const MESSAGE_BYTES: usize = 32 * 1024;
/// The end of a binary COPY is sent as a message of its own: a field count of -1.
const BINARY_TRAILER: &[u8] = &[0xff, 0xff];

/// A failure and the server it came from.
pub(super) type Failure = (Side, WireError);

/// What went through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Passed {
    /// By the standby's command tag.
    pub(super) rows: u64,
    /// CopyData as the primary sends it, frames included.
    pub(super) bytes: u64,
}

/// Runs `copy_out` on the primary and `copy_in` on the standby to their ends. On an error, or when dropped before its end,
/// both connections are in the middle of something and must be closed: the standby then takes back what it has.
pub(super) async fn pass_through(
    (from, copy_out): (&mut Connection, &str),
    (to, copy_in): (&mut Connection, &str),
    progress: &CopyProgress,
) -> Result<Passed, Failure> {
    begin(from, copy_out, b'H').await.map_err(at(Side::Primary))?;
    begin(to, copy_in, b'G').await.map_err(at(Side::Standby))?;
    let (sender, receiver) = mpsc::channel(CHUNKS_BETWEEN);
    let reading = async { read(from, sender, progress).await.map_err(at(Side::Primary)) };
    let writing = async { write(to, receiver).await.map_err(at(Side::Standby)) };
    let (read, rows) = tokio::try_join!(reading, writing)?;
    // An empty binary COPY is one message too, and a trigger that fires in replica role may drop rows.
    progress.settle_rows(read.rows, rows);
    Ok(Passed { rows, bytes: read.bytes })
}

fn at(side: Side) -> impl FnOnce(WireError) -> Failure {
    move |error| (side, error)
}

/// Sends the COPY command and waits for the mode it opens.
async fn begin(connection: &mut Connection, sql: &str, expected: u8) -> Result<(), WireError> {
    frontend::query(sql, connection.outgoing())?;
    connection.flush().await?;
    loop {
        let message = connection.next_message().await?;
        match message.tag {
            tag if tag == expected => return Ok(()),
            b'E' => return Err(WireError::Server(Box::new(ServerError::parse(&message.body)))),
            b'N' | b'S' => {}
            tag => return Err(WireError::Unexpected { tag, during: "starting a COPY" }),
        }
    }
}

/// What the reader hands on. The end is said, so that a reader that failed is never taken for one that ended.
enum Piece {
    /// Whole messages, rows among them.
    Data(Bytes),
    End,
}

/// Reads until the primary is ready for the next query.
async fn read(
    from: &mut Connection,
    sender: mpsc::Sender<Piece>,
    progress: &CopyProgress,
) -> Result<Passed, WireError> {
    let mut passed = Passed::default();
    let mut policy = ReceivePolicy::new(true, None, Instant::now());
    loop {
        let chunk = read_chunk(from, &mut policy).await?;
        let found = look_through(&chunk)?;
        if found.data.bytes > 0 {
            passed.rows += found.data.rows;
            passed.bytes += found.data.bytes;
            sender.send(Piece::Data(chunk)).await.map_err(|_| WireError::Closed)?;
            progress.add(found.data.rows, found.data.bytes);
        }
        if found.is_ready {
            // The last read may have been a large one: the next answer on this connection will be small.
            from.set_receive_low_water(1);
            sender.send(Piece::End).await.map_err(|_| WireError::Closed)?;
            return Ok(passed);
        }
    }
}

/// One read, gathered by the kernel while much arrives: the primary's backend sends page by page, and each wake-up of ours is
/// at its cost.
async fn read_chunk(from: &mut Connection, policy: &mut ReceivePolicy) -> Result<Bytes, WireError> {
    let chunk = loop {
        from.set_receive_low_water(policy.low_water(false));
        match policy.look_at() {
            None => break from.read_chunk().await?,
            Some(look_at) => match timeout_at(look_at.into(), from.read_chunk()).await {
                Ok(chunk) => break chunk?,
                Err(_) => policy.cool(Instant::now()),
            },
        }
    };
    policy.read(chunk.len(), Instant::now());
    Ok(chunk)
}

/// Writes until the end was said, then waits for the standby's word; returns the rows it took. Between chunks it looks for an
/// error, since a server that has failed goes on swallowing data.
async fn write(to: &mut Connection, mut receiver: mpsc::Receiver<Piece>) -> Result<u64, WireError> {
    let mut rows = 0;
    loop {
        tokio::select! {
            biased;
            message = to.next_message() => {
                let message = message?;
                match message.tag {
                    b'C' => rows = row_count(&message.body),
                    b'E' => return Err(WireError::Server(Box::new(ServerError::parse(&message.body)))),
                    b'Z' => return Ok(rows),
                    b'N' | b'S' => {}
                    tag => return Err(WireError::Unexpected { tag, during: "writing a COPY" }),
                }
            }
            piece = receiver.recv(), if !receiver.is_closed() || !receiver.is_empty() => match piece {
                Some(Piece::Data(chunk)) => {
                    join_rows(&chunk, to.outgoing())?;
                    to.drain_outgoing(UNWRITTEN_LIMIT_BYTES).await?;
                }
                Some(Piece::End) => {
                    frontend::copy_done(to.outgoing());
                    to.flush().await?;
                    receiver.close();
                }
                // The reader failed; its error is the one that counts.
                None => return Err(WireError::Closed),
            },
        }
    }
}

/// What is in a chunk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Found {
    /// The server sends each row as one message (`CopySendEndOfRow` in `src/backend/commands/copyto.c`).
    data: Passed,
    /// Whether the server has ended the COPY and waits for the next query.
    is_ready: bool,
}

/// Counts the rows of a chunk of whole messages; a server's error in it is ours.
fn look_through(chunk: &[u8]) -> Result<Found, WireError> {
    let mut found = Found::default();
    for message in frame::frames(chunk) {
        let message = message?;
        match message.tag {
            b'd' => {
                found.data.bytes += (message.body.len() + frame::HEADER_BYTES) as u64;
                found.data.rows += u64::from(message.body != BINARY_TRAILER);
            }
            b'c' | b'C' | b'N' | b'S' => {}
            b'Z' => found.is_ready = true,
            b'E' => return Err(WireError::Server(Box::new(ServerError::parse(message.body)))),
            tag => return Err(WireError::Unexpected { tag, during: "reading a COPY" }),
        }
    }
    Ok(found)
}

/// Puts the rows of a chunk of whole messages behind what goes out, in as few messages as [`MESSAGE_BYTES`] allows.
fn join_rows(chunk: &[u8], outgoing: &mut BytesMut) -> Result<(), WireError> {
    let mut start = None;
    for message in frame::frames(chunk) {
        let Frame { tag: b'd', body } = message? else { continue };
        if let Some(full) = start.take_if(|start| outgoing.len() - *start + body.len() > MESSAGE_BYTES) {
            frame::end(full, outgoing)?;
        }
        start.get_or_insert_with(|| frame::begin(b'd', outgoing));
        outgoing.put_slice(body);
    }
    start.map_or(Ok(()), |last| frame::end(last, outgoing))
}

/// `COPY 42` → 42.
fn row_count(tag: &[u8]) -> u64 {
    let text = String::from_utf8_lossy(tag.split(|byte| *byte == 0).next().unwrap_or(&[])).into_owned();
    text.rsplit(' ').next().and_then(|count| count.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(body: &[u8]) -> Vec<u8> {
        let mut message = vec![b'd'];
        message.put_u32(body.len() as u32 + 4);
        message.put_slice(body);
        message
    }

    /// Looks through a chunk of these messages and joins its rows behind what was there.
    fn check(messages: &[Vec<u8>], (bytes, rows, is_ready): (u64, u64, bool), joined: &[Vec<u8>]) {
        let chunk = messages.concat();
        let found = look_through(&chunk).unwrap();
        assert_eq!(found, Found { data: Passed { rows, bytes }, is_ready }, "{chunk:?}");
        let mut outgoing = BytesMut::from(&b"X\0\0\0\x04"[..]);
        join_rows(&chunk, &mut outgoing).unwrap();
        assert_eq!(outgoing[5..], joined.concat(), "{chunk:?}");
    }

    #[test]
    fn rows_are_counted_and_joined_whatever_stands_between_them() {
        let row = data(b"ab");
        let notice = b"N\0\0\0\x05\0".to_vec();
        let [done, ready] = [b"c\0\0\0\x04".to_vec(), b"Z\0\0\0\x05I".to_vec()];
        check(&[], (0, 0, false), &[]);
        check(std::slice::from_ref(&row), (7, 1, false), std::slice::from_ref(&row));
        check(&[row.clone(), notice, row.clone()], (14, 2, false), &[data(b"abab")]);
        check(&[row.clone(), data(BINARY_TRAILER), done.clone(), ready.clone()], (14, 1, true), &[data(b"ab\xff\xff")]);
        check(&[done, ready], (0, 0, true), &[]);
        // A row that is no shorter than a message goes alone.
        let [long, short] = [vec![b'x'; MESSAGE_BYTES], vec![b'y'; 3]];
        let alone = [&short, &long, &short].map(|body| data(body));
        check(&alone, (MESSAGE_BYTES as u64 + 21, 3, false), &alone);
    }

    #[test]
    fn what_is_torn_or_unknown_is_refused() {
        for (chunk, text) in [
            (&b"d\0\0\0\x09ab"[..], "torn"),
            (b"?\0\0\0\x04", "'?'"),
            (b"E\0\0\0\x1eSERROR\0C57014\0Mcancelled\0\0", "57014"),
        ] {
            let error = look_through(chunk).unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
    }

    #[test]
    fn the_row_count_is_read_from_the_command_tag() {
        assert_eq!(row_count(b"COPY 1234567\0"), 1_234_567);
        assert_eq!(row_count(b"COPY\0"), 0);
    }
}
