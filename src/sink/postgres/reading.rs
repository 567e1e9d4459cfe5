//! Reads the transactions of a batch chunk by chunk, as often as it takes: a batch that cannot be written in one way is read
//! again for another. Decodes nothing.

use std::io;

use bytes::Bytes;

use crate::model::{Body, Lsn, Transaction, joined};

use super::super::SinkError;

/// The transaction that a chunk belongs to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Source {
    /// Its place in the batch.
    pub(super) at: usize,
    pub(super) commit_lsn: Lsn,
    pub(super) is_streamed: bool,
}

/// Where reading stands.
pub(super) struct Reader<'t> {
    transactions: &'t mut [Transaction],
    at: usize,
    chunk: usize,
    /// Where it begins in what is spooled.
    spool_offset: u64,
}

impl<'t> Reader<'t> {
    /// Before the first chunk.
    pub(super) fn new(transactions: &'t mut [Transaction]) -> Self {
        Self { transactions, at: 0, chunk: 0, spool_offset: 0 }
    }

    /// Behind so many bytes of one transaction, where a message ends; and how many are left out: what is in memory comes whole.
    pub(super) fn behind(transaction: &'t mut Transaction, written_bytes: u64) -> (Self, u64) {
        let spool_offset = if matches!(transaction.body, Body::Spooled(_)) { written_bytes } else { 0 };
        (Self { spool_offset, ..Self::new(std::slice::from_mut(transaction)) }, spool_offset)
    }

    /// The next chunk; `None` behind the last transaction.
    pub(super) async fn next(&mut self) -> Result<Option<(Source, Bytes)>, SinkError> {
        while let Some(transaction) = self.transactions.get_mut(self.at) {
            let chunk = match &mut transaction.body {
                Body::Memory(chunks) => chunks.get(self.chunk).cloned(),
                Body::Spooled(_) => {
                    let begin = (self.chunk == 0).then_some(self.spool_offset);
                    spooled_chunk(&mut transaction.body, begin).await?
                }
            };
            if let Some(chunk) = chunk {
                self.chunk += 1;
                let (commit_lsn, is_streamed) = (transaction.commit_lsn, transaction.streamed);
                return Ok(Some((Source { at: self.at, commit_lsn, is_streamed }, chunk)));
            }
            self.at += 1;
            self.chunk = 0;
        }
        Ok(None)
    }
}

/// A spooled chunk is read where reading may block.
async fn spooled_chunk(body: &mut Body, begin: Option<u64>) -> Result<Option<Bytes>, SinkError> {
    let Body::Spooled(mut file) = std::mem::replace(body, Body::Memory(Default::default())) else { return Ok(None) };
    let read = move || {
        if let Some(offset) = begin {
            file.rewind_to(offset);
        }
        let chunk = file.next_chunk();
        (file, chunk)
    };
    let read = joined(tokio::task::spawn_blocking(read).await);
    let (file, chunk) = read.map_err(|error| SinkError::Spool(io::Error::other(error)))?;
    *body = Body::Spooled(file);
    chunk.map_err(SinkError::Spool)
}
