//! The state machine over the messages of one replication session.
//!
//! ```text
//!            ┌───── B ─────▶ Ordinary ──── C ────▶ a transaction ─┐
//!   Idle ────┤                                                    ├──▶ Idle
//!            ├───── S ─────▶ Block ─────── E ─────────────────────┤
//!            └── c, A, M, k (a keepalive may come anywhere) ──────┘
//! ```
//!
//! It looks at first bytes, the fixed fields of the messages above and the transaction ids of streamed changes. The messages
//! of a transaction that lie together in a chunk are one run, handed on as a slice of the chunk. A streamed block's run is
//! copied instead: it may stay for hours, and must not pin the chunk with all that is not its own.

use std::collections::HashMap;
use std::mem;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::decode::{Context, Logical, Message, Tag, decode};
use crate::model::{Lsn, MemoryBudget, Timestamp};
use crate::wire::frame::{HEADER_BYTES, frames};
use crate::wire::replication::{ReplicationMessage, parse};

use super::descriptions::Descriptions;
use super::error::AssembleError;
use super::ordinary::Ordinary;
use super::stream::Stream;
use super::{Arrival, LogicalMessage, Spool};

/// Most streamed transactions open at once: no server has more backends (`MAX_BACKENDS` in
/// `src/include/storage/procnumber.h`).
const STREAMS_LIMIT: usize = (1 << 18) - 1;
/// An open transaction that holds less stays in memory: a file for it would free next to nothing.
const SPOOLED_MIN_BYTES: u64 = 64 * 1024;
/// With a small memory limit that is rather this part of the limit.
const SPOOLED_MIN_PART: u64 = 16;

/// A streamed transaction whose end is not known yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenStream {
    /// What has come, bytes, without what was taken back.
    pub size_bytes: u64,
    /// See [`crate::model::Transaction::taken_back`].
    pub taken_back: u32,
}

impl OpenStream {
    fn of(stream: &Stream) -> Self {
        Self { size_bytes: stream.body.size_bytes(), taken_back: stream.taken_back() }
    }
}

/// Puts the messages of one replication session together to whole transactions, in commit order. A new session needs a new
/// one: the primary sends open transactions again from their beginning.
#[derive(Debug)]
pub struct Assembler {
    budget: Arc<MemoryBudget>,
    spool: Spool,
    state: State,
    /// Streamed transactions between two blocks.
    streams: HashMap<u32, Box<Stream>>,
    /// All that came.
    descriptions: Descriptions,
}

#[derive(Debug)]
enum State {
    Idle,
    Ordinary(Box<Ordinary>),
    Block(Box<Stream>),
}

impl State {
    fn place(&self) -> &'static str {
        match self {
            State::Idle => "outside any transaction",
            State::Ordinary(_) => "inside a transaction",
            State::Block(_) => "inside a streamed block",
        }
    }
}

impl Assembler {
    /// Nothing open.
    pub fn new(budget: Arc<MemoryBudget>, spool: Spool) -> Self {
        Self { budget, spool, state: State::Idle, streams: HashMap::new(), descriptions: Descriptions::default() }
    }

    /// Takes the next chunk, a run of whole CopyData messages, and appends what became complete to `out`.
    ///
    /// Memory that it holds when it returns is at most the limit of the budget and what only the sink can free
    /// ([`Self::must_wait`]), with up to 64 KiB for each open transaction. While the budget is over its limit this writes to
    /// the spool folder in large pieces: call it where blocking is allowed. A rollback shortens a file and reads a few descriptions of it.
    pub fn push(&mut self, chunk: Bytes, out: &mut Vec<Arrival>) -> Result<(), AssembleError> {
        let mut run_start = 0;
        let mut offset = 0;
        for frame in frames(&chunk) {
            let frame = frame?;
            let start = offset;
            offset += HEADER_BYTES + frame.body.len();
            if frame.tag != b'd' {
                return Err(AssembleError::NotCopyData { tag: frame.tag });
            }
            match parse(frame.body)? {
                ReplicationMessage::XLogData { payload, .. } => {
                    if self.is_body(payload, start - run_start..offset - run_start)? {
                        continue;
                    }
                    self.take_run(&chunk, run_start..start)?;
                    self.control(payload, out)?;
                }
                ReplicationMessage::Keepalive { wal_end, time, reply_requested } => {
                    self.take_run(&chunk, run_start..start)?;
                    out.push(Arrival::Keepalive { wal_end, reply_requested, time });
                }
            }
            run_start = offset;
        }
        self.take_run(&chunk, run_start..offset)?;
        self.spool_while_over()
    }

    /// Held in memory by transactions that are not yet committed, bytes.
    pub fn open_bytes(&self) -> u64 {
        let current = match &self.state {
            State::Idle => 0,
            State::Ordinary(open) => open.body.reserved_bytes(),
            State::Block(stream) => stream.reserved_bytes(),
        };
        current + self.streams.values().map(|stream| stream.reserved_bytes()).sum::<u64>()
    }

    /// Whether what is already handed out is over the memory limit: then wait for the budget's `released` before the next
    /// `push`. Open transactions do not count: only more messages can end them.
    pub fn must_wait(&self) -> bool {
        self.budget.used_bytes().saturating_sub(self.open_bytes()) > self.budget.limit_bytes()
    }

    /// Streamed transactions that are open.
    pub fn open_streams(&self) -> usize {
        self.streams.len() + usize::from(matches!(self.state, State::Block(_)))
    }

    /// The streamed transaction that is open and has brought the most, by its id.
    pub fn largest_stream(&self) -> Option<(u32, OpenStream)> {
        let streams = self.open_stream_list().map(|stream| (stream.xid, OpenStream::of(stream)));
        streams.max_by_key(|(_, stream)| stream.size_bytes)
    }

    /// What is known of an open streamed transaction, and how much still stands of what had come when this was asked last (no limit
    /// where nothing was cut off since); `None` once it has ended.
    pub fn look_at_stream(&mut self, xid: u32) -> Option<(OpenStream, u64)> {
        self.open_stream(xid).map(|stream| (OpenStream::of(stream), stream.take_cut_to()))
    }

    /// The run of whole messages at `offset` of an open streamed transaction, where a message begins, for who writes it before its
    /// end is known. `None` where nothing more has come. May read from the spool folder.
    pub fn read_stream(&mut self, xid: u32, offset: u64) -> Result<Option<Bytes>, AssembleError> {
        Ok(self.open_stream(xid).map(|stream| stream.read(offset)).transpose()?.flatten())
    }

    fn open_stream(&mut self, xid: u32) -> Option<&mut Stream> {
        match &mut self.state {
            State::Block(stream) if stream.xid == xid => Some(stream),
            _ => self.streams.get_mut(&xid).map(|stream| &mut **stream),
        }
    }

    fn open_stream_list(&self) -> impl Iterator<Item = &Stream> {
        let current = match &self.state {
            State::Block(stream) => Some(&**stream),
            _ => None,
        };
        self.streams.values().map(|stream| &**stream).chain(current)
    }

    /// Whether the message, which has this place in its run, belongs to the body of what is open; then it is counted.
    #[inline]
    fn is_body(&mut self, payload: &[u8], place: Range<usize>) -> Result<bool, AssembleError> {
        let tag = Tag::of(payload)?;
        match &mut self.state {
            State::Ordinary(open) => match tag {
                Tag::Insert | Tag::Update | Tag::Delete => open.rows += 1,
                Tag::Relation => self.descriptions.note(&payload[1..], None),
                Tag::Type | Tag::Truncate => {}
                // Bit 0 of its flags: transactional. Any other is sent between transactions.
                Tag::Logical if payload.get(1).is_some_and(|flags| flags & 1 == 1) => {}
                _ => return Ok(false),
            },
            State::Block(stream) => match tag {
                Tag::Insert | Tag::Update | Tag::Delete => {
                    stream.note(payload[0], payload, place.start)?;
                    stream.rows += 1;
                }
                Tag::Truncate | Tag::Logical => stream.note(payload[0], payload, place.start)?,
                Tag::Relation => {
                    stream.note_description(place);
                    self.descriptions.note(payload.get(5..).unwrap_or_default(), Some(&mut stream.descriptions));
                }
                Tag::Type => stream.note_description(place),
                _ => return Ok(false),
            },
            State::Idle => return Ok(false),
        }
        Ok(true)
    }

    /// Gives the run to what is open. Between transactions a run is empty: `control` has refused what stands there.
    fn take_run(&mut self, chunk: &Bytes, run: Range<usize>) -> Result<(), AssembleError> {
        if run.is_empty() {
            return Ok(());
        }
        match &mut self.state {
            State::Idle => debug_assert!(false, "a run of messages between transactions"),
            State::Ordinary(open) => open.append(chunk, run, !self.streams.is_empty())?,
            State::Block(stream) => stream.append(&chunk[run])?,
        }
        Ok(())
    }

    /// A message that begins, ends or names a transaction, or stands between them.
    fn control(&mut self, payload: &[u8], out: &mut Vec<Arrival>) -> Result<(), AssembleError> {
        let message = decode(payload, Context::default())?;
        let tag = payload[0];
        self.state = match (mem::replace(&mut self.state, State::Idle), message) {
            (State::Idle, Message::Begin { final_lsn, xid, .. }) => {
                State::Ordinary(Box::new(Ordinary::begin(xid, final_lsn, &self.budget)))
            }
            (State::Ordinary(open), Message::Commit { commit_lsn, end_lsn, commit_time }) => {
                out.push(Arrival::Transaction(open.commit(commit_lsn, end_lsn, commit_time)?));
                State::Idle
            }
            (State::Ordinary(mut open), Message::Origin { name, .. }) => {
                open.origin = Some(String::from_utf8_lossy(name).into_owned());
                State::Ordinary(open)
            }
            (State::Block(mut stream), Message::Origin { name, .. }) => {
                stream.origin = Some(String::from_utf8_lossy(name).into_owned());
                State::Block(stream)
            }
            (State::Idle, Message::StreamStart { xid, is_first }) => State::Block(self.start_block(xid, is_first)?),
            (State::Block(stream), Message::StreamStop) => {
                self.streams.insert(stream.xid, stream);
                State::Idle
            }
            (State::Idle, Message::StreamCommit { xid, commit_lsn, end_lsn, commit_time }) => {
                out.push(self.commit_stream(xid, commit_lsn, end_lsn, commit_time)?);
                State::Idle
            }
            (State::Idle, Message::StreamAbort { xid, subxid, .. }) => {
                self.abort_stream(xid, subxid)?;
                State::Idle
            }
            (State::Idle, Message::Logical(message)) if !message.is_transactional => {
                out.push(self.message(message));
                State::Idle
            }
            (
                _,
                Message::BeginPrepare(_)
                | Message::Prepare(_)
                | Message::CommitPrepared(_)
                | Message::RollbackPrepared { .. }
                | Message::StreamPrepare(_),
            ) => return Err(AssembleError::TwoPhase { tag }),
            (state, _) => return Err(AssembleError::Misplaced { tag, place: state.place() }),
        };
        Ok(())
    }

    fn start_block(&mut self, xid: u32, is_first: bool) -> Result<Box<Stream>, AssembleError> {
        match (self.streams.remove(&xid), is_first) {
            (Some(stream), false) => Ok(stream),
            (None, true) if self.streams.len() >= STREAMS_LIMIT => {
                Err(AssembleError::TooManyStreams { limit: STREAMS_LIMIT })
            }
            (None, true) => Ok(Box::new(Stream::begin(xid, &self.budget))),
            (None, false) => Err(AssembleError::UnknownStream { tag: b'S', xid }),
            (Some(_), true) => Err(AssembleError::StreamedTwice { xid }),
        }
    }

    fn commit_stream(
        &mut self,
        xid: u32,
        commit_lsn: Lsn,
        end_lsn: Lsn,
        commit_time: Timestamp,
    ) -> Result<Arrival, AssembleError> {
        let mut stream = self.streams.remove(&xid).ok_or(AssembleError::UnknownStream { tag: b'c', xid })?;
        let newer = self.descriptions.since(&stream.descriptions, xid, commit_lsn)?;
        if !newer.is_empty() {
            stream.append(&newer)?;
        }
        Ok(Arrival::Transaction(stream.commit(commit_lsn, end_lsn, commit_time)?))
    }

    /// An abort of what was never seen takes nothing back.
    fn abort_stream(&mut self, xid: u32, subxid: u32) -> Result<(), AssembleError> {
        if xid == subxid {
            self.streams.remove(&xid);
            return Ok(());
        }
        match self.streams.get_mut(&xid) {
            Some(stream) => Ok(stream.abort(subxid)?),
            None => Ok(()),
        }
    }

    fn message(&self, message: Logical<'_>) -> Arrival {
        let mut reservation = self.budget.reservation();
        reservation.grow((message.prefix.len() + message.content.len()) as u64);
        Arrival::Message(LogicalMessage {
            lsn: message.lsn,
            prefix: String::from_utf8_lossy(message.prefix).into_owned(),
            content: Bytes::copy_from_slice(message.content),
            reservation,
        })
    }

    /// Moves the largest open transactions to the spool folder until the budget holds or only small ones are left.
    fn spool_while_over(&mut self) -> Result<(), AssembleError> {
        let smallest_bytes = SPOOLED_MIN_BYTES.min(self.budget.limit_bytes() / SPOOLED_MIN_PART).max(1);
        while self.budget.is_over() {
            let current = match &mut self.state {
                State::Idle => None,
                State::Ordinary(open) => Some((&mut open.body, open.xid)),
                State::Block(stream) => Some((&mut stream.body, stream.xid)),
            };
            let waiting = self.streams.values_mut().map(|stream| (&mut stream.body, stream.xid));
            let Some((body, xid)) = waiting.chain(current).max_by_key(|(body, _)| body.memory_bytes()) else { break };
            if body.memory_bytes() < smallest_bytes {
                break;
            }
            body.spool(&self.spool, xid)?;
        }
        Ok(())
    }
}
