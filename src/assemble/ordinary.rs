//! An ordinary transaction, Begin to Commit: the primary sends it once it is committed there, in one piece.

use std::sync::Arc;

use bytes::Bytes;

use crate::model::{Lsn, MemoryBudget, Timestamp, Transaction};

use super::body::OpenBody;
use super::error::{AssembleError, SpoolError};

/// Begun, and its Commit not yet received.
#[derive(Debug)]
pub(super) struct Ordinary {
    pub(super) xid: u32,
    pub(super) origin: Option<String>,
    pub(super) rows: u64,
    pub(super) body: OpenBody,
    final_lsn: Lsn,
}

impl Ordinary {
    pub(super) fn begin(xid: u32, final_lsn: Lsn, budget: &Arc<MemoryBudget>) -> Self {
        Self { xid, origin: None, rows: 0, body: OpenBody::new(budget), final_lsn }
    }

    /// Takes a part of `chunk`. Usually it stays a part of it, without a copy. Where streamed blocks, which are copied, share
    /// the chunk, a small part is copied as well: else it would pin a chunk many times its size.
    pub(super) fn append(
        &mut self,
        chunk: &Bytes,
        run: std::ops::Range<usize>,
        is_shared: bool,
    ) -> Result<(), SpoolError> {
        if is_shared && run.len() < chunk.len() / 2 {
            self.body.append(Bytes::copy_from_slice(&chunk[run]))
        } else {
            self.body.append(chunk.slice(run))
        }
    }

    pub(super) fn commit(
        self,
        commit_lsn: Lsn,
        end_lsn: Lsn,
        commit_time: Timestamp,
    ) -> Result<Transaction, AssembleError> {
        if commit_lsn != self.final_lsn {
            return Err(AssembleError::CommitMismatch { xid: self.xid, final_lsn: self.final_lsn, commit_lsn });
        }
        let finished = self.body.finish()?;
        Ok(Transaction {
            xid: self.xid,
            commit_lsn,
            end_lsn,
            commit_time,
            origin: self.origin,
            streamed: false,
            taken_back: 0,
            rows: self.rows,
            size_bytes: finished.size_bytes,
            body: finished.body,
            reservation: Some(finished.reservation),
        })
    }
}
