//! Passes one COPY straight through: the primary's CopyData messages are the standby's, byte for byte, since the frame is the
//! same in both directions. Reading overlaps with writing; at most a few chunks lie between. Looks into no row.

use std::time::Instant;

use bytes::{BufMut, Bytes};
use postgres_protocol::message::frontend;
use tokio::sync::mpsc;
use tokio::time::timeout_at;

use crate::source::ReceivePolicy;
use crate::wire::{Connection, ServerError, WireError, frame};

use super::error::Side;
use super::progress::CopyProgress;

/// Chunks between reader and writer; each is what a read or two of the socket brought (at most about 1 MiB, unless a row is
/// larger).
const CHUNKS_BETWEEN: usize = 4;
/// What may stay unwritten before more is taken.
const UNWRITTEN_LIMIT_BYTES: usize = 256 * 1024;
/// The end of a binary COPY is sent as a message of its own: a field count of -1.
const BINARY_TRAILER: &[u8] = &[0xff, 0xff];

/// A failure and the server it came from.
pub(super) type Failure = (Side, WireError);

/// What went through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Passed {
    /// By the standby's command tag.
    pub(super) rows: u64,
    /// CopyData, frames included.
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
        let run = Run::at_start_of(&chunk)?;
        if run.bytes > 0 {
            passed.rows += run.rows;
            passed.bytes += run.bytes as u64;
            let data = chunk.slice(..run.bytes);
            sender.send(Piece::Data(data)).await.map_err(|_| WireError::Closed)?;
            progress.add(run.rows, run.bytes as u64);
        }
        for message in frame::frames(&chunk[run.bytes..]) {
            let message = message?;
            match message.tag {
                b'c' | b'C' | b'N' | b'S' => {}
                b'E' => return Err(WireError::Server(Box::new(ServerError::parse(message.body)))),
                b'Z' => {
                    // The last read may have been a large one: the next answer on this connection will be small.
                    set_low_water(from, 1);
                    sender.send(Piece::End).await.map_err(|_| WireError::Closed)?;
                    return Ok(passed);
                }
                b'd' => {
                    // Data after a notice: rare, so it is copied together anew.
                    let mut data = bytes::BytesMut::with_capacity(message.body.len() + frame::HEADER_BYTES);
                    data.put_u8(b'd');
                    data.put_u32(message.body.len() as u32 + 4);
                    data.put_slice(message.body);
                    let run = Run::at_start_of(&data)?;
                    passed.rows += run.rows;
                    passed.bytes += run.bytes as u64;
                    progress.add(run.rows, run.bytes as u64);
                    sender.send(Piece::Data(data.freeze())).await.map_err(|_| WireError::Closed)?;
                }
                tag => return Err(WireError::Unexpected { tag, during: "reading a COPY" }),
            }
        }
    }
}

/// One read, gathered by the kernel while much arrives: the primary's backend sends page by page, and each wake-up of ours is
/// at its cost.
async fn read_chunk(from: &mut Connection, policy: &mut ReceivePolicy) -> Result<Bytes, WireError> {
    if let Some(look_at) = policy.look_at() {
        if let Ok(chunk) = timeout_at(look_at.into(), from.read_chunk()).await {
            return note(from, policy, chunk?);
        }
        policy.looked(Instant::now());
        set_low_water(from, 1);
    }
    let chunk = from.read_chunk().await?;
    note(from, policy, chunk)
}

fn note(from: &mut Connection, policy: &mut ReceivePolicy, chunk: Bytes) -> Result<Bytes, WireError> {
    if let Some(low_water_bytes) = policy.read(chunk.len(), Instant::now()) {
        set_low_water(from, low_water_bytes);
    }
    Ok(chunk)
}

fn set_low_water(connection: &mut Connection, bytes: u32) {
    if let Err(error) = connection.set_receive_low_water(bytes) {
        tracing::debug!(%error, "SO_RCVLOWAT could not be set; reading stays eager");
    }
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
                Some(Piece::Data(data)) => {
                    to.outgoing().put_slice(&data);
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

/// The CopyData messages at the start of a chunk of whole messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Run {
    bytes: usize,
    /// The server sends each row as one message (`CopySendEndOfRow` in `src/backend/commands/copyto.c`).
    rows: u64,
}

impl Run {
    fn at_start_of(chunk: &[u8]) -> Result<Self, WireError> {
        let mut run = Run::default();
        for message in frame::frames(chunk) {
            let message = message?;
            if message.tag != b'd' {
                break;
            }
            run.bytes += message.body.len() + frame::HEADER_BYTES;
            run.rows += u64::from(message.body != BINARY_TRAILER);
        }
        Ok(run)
    }
}

/// `COPY 42` → 42.
fn row_count(tag: &[u8]) -> u64 {
    let text = String::from_utf8_lossy(tag.split(|byte| *byte == 0).next().unwrap_or(&[])).into_owned();
    text.rsplit(' ').next().and_then(|count| count.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_ends_before_the_first_message_that_is_no_data() {
        let row = b"d\0\0\0\x06ab";
        let trailer = b"d\0\0\0\x06\xff\xff";
        let done = b"c\0\0\0\x04";
        for (chunk, bytes, rows) in [
            (vec![], 0, 0),
            (row.to_vec(), 7, 1),
            ([&row[..], &row[..], &trailer[..]].concat(), 21, 2),
            ([&row[..], &done[..], &row[..]].concat(), 7, 1),
            (done.to_vec(), 0, 0),
        ] {
            assert_eq!(Run::at_start_of(&chunk).unwrap(), Run { bytes, rows }, "{chunk:?}");
        }
        assert!(Run::at_start_of(b"d\0\0\0\x09ab").is_err());
    }

    #[test]
    fn the_row_count_is_read_from_the_command_tag() {
        assert_eq!(row_count(b"COPY 1234567\0"), 1_234_567);
        assert_eq!(row_count(b"COPY\0"), 0);
    }
}
