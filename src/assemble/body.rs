//! The body of an open transaction: first what is already in its spool file, then what is in memory. Every byte in memory is
//! in its reservation. Knows no transactions, only runs of whole messages.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use crate::decode::Tag;
use crate::model::{Body, MemoryBudget, Reservation};
use crate::wire::frame::{self, HEADER_BYTES};
use crate::wire::replication::{self, ReplicationMessage};

use super::error::{AssembleError, SpoolError};
use super::spill::{SpoolFile, SpooledBody};
use super::spool::Spool;

/// What a transaction costs beside its body: its structure and the list of its pieces.
const OVERHEAD_BYTES: u64 = 512;
/// Buffers for copied runs are between these two, or as large as the run.
const BUFFER_MIN_BYTES: u64 = 4 * 1024;
const BUFFER_MAX_BYTES: u64 = 256 * 1024;
/// A finished buffer may keep at most this part of its content as unused room, which is not reserved.
const ROOM_PART: usize = 8;
/// What gathers in memory behind a spool file before it is written too.
const WRITE_BYTES: u64 = 256 * 1024;

/// See the file.
#[derive(Debug)]
pub(super) struct OpenBody {
    file: Option<SpoolFile>,
    pieces: VecDeque<Bytes>,
    /// The last piece while copied runs still fit in.
    growing: BytesMut,
    /// Of `pieces` and `growing`.
    memory_bytes: u64,
    reservation: Reservation,
}

/// A body whose transaction was committed.
pub(super) struct FinishedBody {
    pub(super) body: Body,
    pub(super) size_bytes: u64,
    pub(super) reservation: Reservation,
}

impl OpenBody {
    /// Empty.
    pub(super) fn new(budget: &Arc<MemoryBudget>) -> Self {
        let mut reservation = budget.reservation();
        reservation.grow(OVERHEAD_BYTES);
        Self { file: None, pieces: VecDeque::new(), growing: BytesMut::new(), memory_bytes: 0, reservation }
    }

    /// Everything so far, in the file and in memory.
    pub(super) fn size_bytes(&self) -> u64 {
        self.file.as_ref().map_or(0, SpoolFile::size_bytes) + self.memory_bytes
    }

    /// What spooling would free.
    pub(super) fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    /// Everything reserved.
    pub(super) fn reserved_bytes(&self) -> u64 {
        self.reservation.bytes()
    }

    /// Takes a run as it is.
    pub(super) fn append(&mut self, run: Bytes) -> Result<(), SpoolError> {
        self.seal_growing();
        self.memory_bytes += run.len() as u64;
        self.pieces.push_back(run);
        self.settle()
    }

    /// Copies a run into buffers of its own, so that it pins no chunk.
    pub(super) fn append_copy(&mut self, run: &[u8]) -> Result<(), SpoolError> {
        if self.growing.capacity() - self.growing.len() < run.len() {
            self.seal_growing();
            let wanted_bytes = self.memory_bytes.clamp(BUFFER_MIN_BYTES, BUFFER_MAX_BYTES) as usize;
            self.growing = BytesMut::with_capacity(wanted_bytes.max(run.len()));
        }
        self.growing.extend_from_slice(run);
        self.memory_bytes += run.len() as u64;
        self.settle()
    }

    /// The run of whole messages at `offset`, where a message must begin; `None` at the end.
    pub(super) fn run_at(&self, offset: u64) -> Result<Option<Bytes>, SpoolError> {
        let file_bytes = self.file.as_ref().map_or(0, SpoolFile::size_bytes);
        if let Some(file) = self.file.as_ref().filter(|_| offset < file_bytes) {
            return file.run_at(offset);
        }
        let mut before_bytes = (offset - file_bytes) as usize;
        for piece in &self.pieces {
            if before_bytes < piece.len() {
                return Ok(Some(piece.slice(before_bytes..)));
            }
            before_bytes -= piece.len();
        }
        let rest = self.growing.get(before_bytes..).filter(|rest| !rest.is_empty());
        Ok(rest.map(Bytes::copy_from_slice))
    }

    /// Moves what is in memory to the file, which is made if there is none. From then on the rest follows by itself.
    pub(super) fn spool(&mut self, spool: &Spool, xid: u32) -> Result<(), SpoolError> {
        if self.file.is_none() {
            self.file = Some(spool.create(xid)?);
        }
        self.write()
    }

    /// Drops everything from `offset` on, where a message begins, except relations and types, which move up: the primary
    /// describes them once per streamed transaction and would not do so again (`get_schema_sent_in_streamed_txn` in
    /// `src/backend/replication/pgoutput/pgoutput.c`). Returns the number of rows dropped.
    ///
    /// Reads what it drops: each byte at most once in its life, in runs of about 1 MiB.
    pub(super) fn cut(&mut self, offset: u64) -> Result<u64, AssembleError> {
        let mut sieve = Sieve::default();
        let mut at = offset;
        if let Some(file) = &self.file {
            while let Some(run) = file.run_at(at)? {
                at += run.len() as u64;
                sieve.pass(&run)?;
            }
        }
        let file_bytes = self.file.as_ref().map_or(0, SpoolFile::size_bytes);
        self.cut_memory(offset.saturating_sub(file_bytes) as usize, &mut sieve)?;
        if let Some(file) = &mut self.file
            && offset < file_bytes
        {
            file.cut(offset)?;
        }
        if !sieve.kept.is_empty() {
            self.append_copy(&sieve.kept)?;
        }
        self.settle()?;
        Ok(sieve.rows)
    }

    /// Keeps the first `keep_bytes` of what is in memory.
    fn cut_memory(&mut self, keep_bytes: usize, sieve: &mut Sieve) -> Result<(), AssembleError> {
        let mut before_bytes = 0;
        let mut torn = None;
        for (index, piece) in self.pieces.iter().enumerate() {
            let keep = keep_bytes.saturating_sub(before_bytes).min(piece.len());
            sieve.pass(&piece[keep..])?;
            if keep < piece.len() && torn.is_none() {
                torn = Some((index, piece.slice(..keep)));
            }
            before_bytes += piece.len();
        }
        let keep = keep_bytes.saturating_sub(before_bytes).min(self.growing.len());
        sieve.pass(&self.growing[keep..])?;
        self.growing.truncate(keep);
        self.memory_bytes = keep_bytes as u64;
        if let Some((index, rest)) = torn {
            self.pieces.truncate(index);
            // As a copy: a short rest must not keep its whole buffer.
            self.memory_bytes -= rest.len() as u64;
            self.append_copy(&rest)?;
        }
        Ok(())
    }

    /// The transaction is committed: what it holds in memory stays there, or all of it is in the file.
    pub(super) fn finish(mut self) -> Result<FinishedBody, SpoolError> {
        let size_bytes = self.size_bytes();
        if self.file.is_some() {
            self.write()?;
        }
        self.seal_growing();
        self.settle()?;
        let body = match self.file {
            Some(file) => Body::Spooled(Box::new(SpooledBody::new(file))),
            None => Body::Memory(self.pieces),
        };
        Ok(FinishedBody { body, size_bytes, reservation: self.reservation })
    }

    /// The growing piece is finished. Where much room is left in its buffer it moves to one that fits.
    fn seal_growing(&mut self) {
        if self.growing.is_empty() {
            return;
        }
        let growing = std::mem::take(&mut self.growing);
        let room_bytes = growing.capacity() - growing.len();
        let piece =
            if room_bytes > growing.len() / ROOM_PART { Bytes::copy_from_slice(&growing) } else { growing.freeze() };
        self.pieces.push_back(piece);
    }

    /// After every change: what has gathered behind a file is written, and the reservation is what memory holds.
    fn settle(&mut self) -> Result<(), SpoolError> {
        if self.file.is_some() && self.memory_bytes >= WRITE_BYTES {
            return self.write();
        }
        let room_bytes = (self.growing.capacity() - self.growing.len()) as u64;
        self.reservation.resize(OVERHEAD_BYTES + self.memory_bytes + room_bytes);
        Ok(())
    }

    fn write(&mut self) -> Result<(), SpoolError> {
        if let Some(file) = &mut self.file
            && self.memory_bytes > 0
        {
            file.append(self.pieces.iter().map(|piece| &piece[..]).chain([&self.growing[..]]))?;
            self.pieces = VecDeque::new();
            self.growing = BytesMut::new();
            self.memory_bytes = 0;
        }
        self.reservation.resize(OVERHEAD_BYTES);
        Ok(())
    }
}

/// What is cut off passes through: rows are counted, descriptions are kept.
#[derive(Default)]
struct Sieve {
    rows: u64,
    kept: Vec<u8>,
}

impl Sieve {
    fn pass(&mut self, run: &[u8]) -> Result<(), AssembleError> {
        let mut offset = 0;
        for frame in frame::frames(run) {
            let frame = frame?;
            let end = offset + HEADER_BYTES + frame.body.len();
            if let ReplicationMessage::XLogData { payload, .. } = replication::parse(frame.body)? {
                match Tag::of(payload)? {
                    Tag::Insert | Tag::Update | Tag::Delete => self.rows += 1,
                    Tag::Relation | Tag::Type => self.kept.extend_from_slice(&run[offset..end]),
                    _ => {}
                }
            }
            offset = end;
        }
        Ok(())
    }
}
