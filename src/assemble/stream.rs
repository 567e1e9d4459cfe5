//! A streamed transaction: the primary sends it in blocks while it is still open there, and takes parts of it back when
//! subtransactions roll back.
//!
//! ```text
//!   S ─▶ in a block ─E─▶ open ─S─▶ in a block …
//!                         │
//!                         ├─ A(top, sub) ─▶ open, cut at the first change of sub
//!                         ├─ A(top, top) ─▶ gone
//!                         └─ c ───────────▶ committed
//! ```

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::decode::stream_xid;
use crate::model::{Lsn, MemoryBudget, Reservation, Timestamp, Transaction};

use super::body::OpenBody;
use super::descriptions::Descriptions;
use super::error::{AssembleError, SpoolError};
use super::places::Places;
use super::subtransactions::{First, Subtransactions};

/// Between its first block and its commit or abort.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) xid: u32,
    pub(super) origin: Option<String>,
    pub(super) rows: u64,
    pub(super) body: OpenBody,
    pub(super) descriptions: Descriptions,
    /// How far the body was read before its end is known, …
    read_bytes: u64,
    /// … and how often a rollback took some of that back.
    taken_back: u32,
    /// The shortest that it was cut to since that was asked last.
    cut_to_bytes: u64,
    subtransactions: Subtransactions,
    /// Where the descriptions stand in the body.
    places: Places,
    /// Of `subtransactions` and `places`.
    notes_reservation: Reservation,
}

impl Stream {
    pub(super) fn begin(xid: u32, budget: &Arc<MemoryBudget>) -> Self {
        Self {
            xid,
            origin: None,
            rows: 0,
            body: OpenBody::new(budget),
            descriptions: Descriptions::default(),
            read_bytes: 0,
            taken_back: 0,
            cut_to_bytes: u64::MAX,
            subtransactions: Subtransactions::new(xid),
            places: Places::default(),
            notes_reservation: budget.reservation(),
        }
    }

    /// A change in a block, `run_bytes` behind what `body` already holds; to be told before it is counted among the rows.
    #[inline]
    pub(super) fn note(&mut self, tag: u8, payload: &[u8], run_bytes: usize) -> Result<(), AssembleError> {
        let xid = stream_xid(payload).ok_or(AssembleError::Misplaced { tag, place: "without its transaction id" })?;
        let offset = self.body.size_bytes() + run_bytes as u64;
        let noted = self.subtransactions.note(xid, offset, self.rows);
        noted.map_err(|_| AssembleError::TooManySubtransactions { xid: self.xid })
    }

    /// A relation or a type, at this place of what is behind `body`. A rollback must not take it back: the primary describes it once per
    /// streamed transaction and would not do so again (`get_schema_sent_in_streamed_txn` in
    /// `src/backend/replication/pgoutput/pgoutput.c`).
    pub(super) fn note_description(&mut self, place: Range<usize>) {
        let before_bytes = self.body.size_bytes();
        self.places.note(before_bytes + place.start as u64..before_bytes + place.end as u64);
    }

    /// Takes the run of messages since the last call.
    pub(super) fn append(&mut self, run: &[u8]) -> Result<(), SpoolError> {
        self.reserve_notes();
        self.body.append_copy(run)
    }

    /// The subtransaction `subxid` rolled back. One that never changed anything here is nothing to take back.
    pub(super) fn abort(&mut self, subxid: u32) -> Result<(), SpoolError> {
        if let Some(First { offset, rows, .. }) = self.subtransactions.cut(subxid) {
            self.cut_to_bytes = self.cut_to_bytes.min(offset);
            if offset < self.read_bytes {
                self.taken_back += 1;
                self.read_bytes = 0;
            }
            self.body.cut(offset, &self.places.cut(offset))?;
            self.rows = rows;
            self.reserve_notes();
        }
        Ok(())
    }

    fn reserve_notes(&mut self) {
        self.notes_reservation.resize(self.subtransactions.size_bytes() + self.places.size_bytes());
    }

    /// The run at `offset` of what has come, for who writes it before the end is known; `None` where nothing more has.
    pub(super) fn read(&mut self, offset: u64) -> Result<Option<Bytes>, SpoolError> {
        let run = self.body.run_at(offset)?;
        let end = offset + run.as_ref().map_or(0, |run| run.len() as u64);
        self.read_bytes = self.read_bytes.max(end);
        Ok(run)
    }

    /// How often what was read was taken back.
    pub(super) fn taken_back(&self) -> u32 {
        self.taken_back
    }

    /// What still stands of what had come when this was asked last; what has come since may stand behind it.
    pub(super) fn take_cut_to(&mut self) -> u64 {
        std::mem::replace(&mut self.cut_to_bytes, u64::MAX)
    }

    /// Everything reserved.
    pub(super) fn reserved_bytes(&self) -> u64 {
        self.body.reserved_bytes() + self.notes_reservation.bytes()
    }

    pub(super) fn commit(
        self,
        commit_lsn: Lsn,
        end_lsn: Lsn,
        commit_time: Timestamp,
    ) -> Result<Transaction, AssembleError> {
        let finished = self.body.finish()?;
        Ok(Transaction {
            xid: self.xid,
            commit_lsn,
            end_lsn,
            commit_time,
            origin: self.origin,
            streamed: true,
            taken_back: self.taken_back,
            rows: self.rows,
            size_bytes: finished.size_bytes,
            body: finished.body,
            reservation: Some(finished.reservation),
        })
    }
}
