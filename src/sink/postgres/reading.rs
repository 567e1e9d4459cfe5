//! Reads the transactions of a batch chunk by chunk, as often as it takes: a batch that cannot be written in one way is read
//! again for another. Decodes nothing.

use std::io;

use bytes::Bytes;

use crate::model::{Body, Lsn, Transaction};

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
}

impl<'t> Reader<'t> {
    /// Before the first chunk.
    pub(super) fn new(transactions: &'t mut [Transaction]) -> Self {
        Self { transactions, at: 0, chunk: 0 }
    }

    /// The next chunk; `None` behind the last transaction.
    pub(super) async fn next(&mut self) -> Result<Option<(Source, Bytes)>, SinkError> {
        while let Some(transaction) = self.transactions.get_mut(self.at) {
            let chunk = match &mut transaction.body {
                Body::Memory(chunks) => chunks.get(self.chunk).cloned(),
                Body::Spooled(_) => spooled_chunk(&mut transaction.body, self.chunk == 0).await?,
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
async fn spooled_chunk(body: &mut Body, is_first: bool) -> Result<Option<Bytes>, SinkError> {
    let Body::Spooled(mut file) = std::mem::replace(body, Body::Memory(Default::default())) else { return Ok(None) };
    let read = move || {
        if is_first {
            file.rewind();
        }
        let chunk = file.next_chunk();
        (file, chunk)
    };
    let (file, chunk) =
        tokio::task::spawn_blocking(read).await.map_err(|error| SinkError::Spool(io::Error::other(error)))?;
    *body = Body::Spooled(file);
    chunk.map_err(SinkError::Spool)
}
