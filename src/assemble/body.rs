//! The body of an open transaction: first what is already in its spool file, then what is in memory. Every byte in memory is
//! in its reservation. Knows no transactions, only runs of whole messages.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use crate::model::{Body, MemoryBudget, Reservation};

use super::error::SpoolError;
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

    /// Drops everything from `offset` on, where a message begins, except what stands at the places `kept`, whole messages behind
    /// `offset` and in order, which move up.
    ///
    /// Reads nothing but these. What is dropped may be gigabytes in the file, and while they were read, nobody would tell the primary that
    /// we live.
    pub(super) fn cut(&mut self, offset: u64, kept: &[Range<u64>]) -> Result<(), SpoolError> {
        let moved = self.gather(kept)?;
        let file_bytes = self.file.as_ref().map_or(0, SpoolFile::size_bytes);
        self.cut_memory(offset.saturating_sub(file_bytes) as usize)?;
        if let Some(file) = &mut self.file
            && offset < file_bytes
        {
            file.cut(offset)?;
        }
        if !moved.is_empty() {
            self.append_copy(&moved)?;
        }
        self.settle()
    }

    /// What stands at these places, which are in order, one behind the other.
    fn gather(&self, places: &[Range<u64>]) -> Result<Vec<u8>, SpoolError> {
        let mut gathered = Vec::new();
        let mut before_bytes = 0;
        if let Some(file) = &self.file {
            before_bytes = file.size_bytes();
            for place in places.iter().take_while(|place| place.start < before_bytes) {
                gathered.extend_from_slice(&file.part(place.start..place.end.min(before_bytes))?);
            }
        }
        for piece in self.pieces.iter().map(|piece| &piece[..]).chain([&self.growing[..]]) {
            let end_bytes = before_bytes + piece.len() as u64;
            let first = places.partition_point(|place| place.end <= before_bytes);
            for place in places[first..].iter().take_while(|place| place.start < end_bytes) {
                // A place of several messages may begin in the piece before, or in the file, and end in the piece behind.
                let start = place.start.max(before_bytes) - before_bytes;
                let end = place.end.min(end_bytes) - before_bytes;
                gathered.extend_from_slice(&piece[start as usize..end as usize]);
            }
            before_bytes = end_bytes;
        }
        Ok(gathered)
    }

    /// Keeps the first `keep_bytes` of what is in memory.
    fn cut_memory(&mut self, keep_bytes: usize) -> Result<(), SpoolError> {
        let mut before_bytes = 0;
        let mut torn = None;
        for (index, piece) in self.pieces.iter().enumerate() {
            let keep = keep_bytes.saturating_sub(before_bytes).min(piece.len());
            if keep < piece.len() && torn.is_none() {
                torn = Some((index, piece.slice(..keep)));
            }
            before_bytes += piece.len();
        }
        let keep = keep_bytes.saturating_sub(before_bytes).min(self.growing.len());
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
