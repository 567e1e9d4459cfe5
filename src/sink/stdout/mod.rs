//! Decoded changes as JSON lines, for looking. Durable means written and flushed to the output; nothing is remembered over a
//! restart, so a change may come twice and is never left out.

mod line;

use std::io::{self, Write};

use bytes::Bytes;

use crate::decode::{Context, Message, Relations, decode};
use crate::model::{Applied, Durable, Transaction};
use crate::wire::frame::frames;
use crate::wire::replication::{ReplicationMessage, parse};

use super::{Batch, Receipt, SinkError};

use line::line_of;

/// Gathered before it is written, bytes.
const WRITE_BYTES: usize = 64 * 1024;

/// Writes to standard output, or to whatever `tail` and tests give it.
pub struct StdoutSink {
    output: Box<dyn Write + Send>,
    relations: Relations,
    buffer: Vec<u8>,
}

impl std::fmt::Debug for StdoutSink {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("StdoutSink")
    }
}

impl StdoutSink {
    /// To the process's standard output.
    pub fn new() -> Self {
        Self::to(Box::new(io::stdout()))
    }

    /// To another output.
    pub fn to(output: Box<dyn Write + Send>) -> Self {
        Self { output, relations: Relations::default(), buffer: Vec::new() }
    }

    /// Writes a batch and flushes it.
    pub fn apply(&mut self, mut batch: Batch) -> Result<Receipt, SinkError> {
        let mut rows = 0;
        for transaction in &mut batch.transactions {
            rows += transaction.rows;
            self.write(transaction)?;
        }
        self.write_out()?;
        self.output.flush().map_err(SinkError::Output)?;
        Ok(Receipt {
            applied: Applied(batch.position),
            durable: Some(Durable(batch.position)),
            transactions: batch.transactions.len() as u64,
            rows,
            commit_time: batch.transactions.last().map(|transaction| transaction.commit_time),
        })
    }

    fn write(&mut self, transaction: &mut Transaction) -> Result<(), SinkError> {
        let context = Context { in_stream: transaction.streamed, parallel: false };
        while let Some(chunk) = transaction.next_chunk().map_err(SinkError::Spool)? {
            self.write_chunk(&chunk, context)?;
        }
        Ok(())
    }

    fn write_chunk(&mut self, chunk: &Bytes, context: Context) -> Result<(), SinkError> {
        for frame in frames(chunk) {
            let frame = frame.map_err(SinkError::wire("reading a received transaction"))?;
            let message = parse(frame.body).map_err(SinkError::wire("reading a received transaction"))?;
            let ReplicationMessage::XLogData { start, payload, .. } = message else { continue };
            match decode(payload, context)? {
                Message::Relation(body) => drop(self.relations.note(&body)),
                message => line_of(&message, start, &self.relations, &mut self.buffer)?,
            }
            if self.buffer.len() >= WRITE_BYTES {
                self.write_out()?;
            }
        }
        Ok(())
    }

    fn write_out(&mut self) -> Result<(), SinkError> {
        self.output.write_all(&self.buffer).map_err(SinkError::Output)?;
        self.buffer.clear();
        Ok(())
    }
}

impl Default for StdoutSink {
    fn default() -> Self {
        Self::new()
    }
}
