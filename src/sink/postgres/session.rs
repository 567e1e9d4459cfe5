//! Statements in a pipeline on one connection: Parse, Bind and Execute are written without waiting; answers are read while
//! writing and matched, in order, with what each Execute was for. Everything between two Syncs is one transaction of the
//! server (the manual's page "Message Flow", Pipelining), and several of them may be under way. Knows nothing of rows or tables.

use std::collections::VecDeque;

use bytes::{BufMut, Bytes, BytesMut};
use postgres_protocol::message::frontend;
use tokio::sync::mpsc;

use crate::decode::Value;
use crate::model::Lsn;
use crate::wire::{Connection, OwnedMessage, ServerError, WireError, frame};

use super::super::{Batch, Receipt};
use super::change::{Failure, Purpose, Sent};

/// Written in pieces of about this size, so that a transaction of any length passes in bounded memory.
const WRITE_BYTES: usize = 64 * 1024;
/// Statements whose answer is not read yet.
const IN_FLIGHT_LIMIT: usize = 8192;
/// Bytes of changes whose answer is not read yet: they are kept to name the change that fails.
const IN_FLIGHT_LIMIT_BYTES: usize = 4 * 1024 * 1024;

/// A connection with statements under way. After an error it is to be rolled back, or dropped, which makes the server do so.
#[derive(Debug)]
pub(super) struct Pipelined {
    connection: Connection,
    in_flight: VecDeque<Purpose>,
    in_flight_bytes: usize,
    /// Syncs whose ReadyForQuery is not read yet.
    syncs: usize,
    /// Whether anything was put into the pipeline since the last Sync, …
    is_open: bool,
    /// … and whether that ends inside a COPY.
    is_copying: bool,
    /// Rows of the query under way.
    rows: Vec<Bytes>,
    /// Batches that were sent whole and are not answered.
    unanswered: usize,
    /// Where the last answered batch left the record, …
    committed: Lsn,
    /// … and its row (`ctid`).
    place: String,
    receipts: mpsc::Sender<Receipt>,
}

impl Pipelined {
    /// A session whose record stands at `committed`. Who sends more batches than `receipts` has room for must take some out.
    pub(super) fn new(connection: Connection, committed: Lsn, receipts: mpsc::Sender<Receipt>) -> Self {
        // Rows are pushed without a look at what the server reads. That it is gone the session that holds the pipeline's lock tells.
        connection.lift_send_limit();
        Self {
            connection,
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            syncs: 0,
            is_open: false,
            is_copying: false,
            rows: Vec::new(),
            unanswered: 0,
            committed,
            place: String::new(),
            receipts,
        }
    }

    /// Where the last batch that is answered left the record.
    pub(super) fn committed(&self) -> Lsn {
        self.committed
    }

    /// Where the last move of the record that this session was told of left its row.
    pub(super) fn place(&self) -> &str {
        &self.place
    }

    /// Batches that were sent whole and are not answered.
    pub(super) fn unanswered(&self) -> usize {
        self.unanswered
    }

    /// Whether a batch was sent whole and is not answered.
    pub(super) fn has_unanswered(&self) -> bool {
        self.unanswered > 0
    }

    /// Whether the first unanswered batch was written as sets, be it in part.
    pub(super) fn is_first_folded(&self) -> bool {
        let first = self.in_flight.iter().find_map(|purpose| match purpose {
            Purpose::Commit(sent) => Some(sent.is_folded),
            _ => None,
        });
        first.unwrap_or(false)
    }

    /// Prepares a statement under `name`.
    pub(super) fn parse(&mut self, name: &str, sql: &str, types: &[u32]) -> Result<(), WireError> {
        self.is_open = true;
        Ok(frontend::parse(name, sql, types.iter().copied(), self.connection.outgoing())?)
    }

    /// Runs a prepared statement with the values as they were received.
    pub(super) fn execute<'a>(
        &mut self,
        name: &str,
        values: impl Iterator<Item = Value<'a>> + Clone,
        purpose: Purpose,
    ) -> Result<(), WireError> {
        self.put(name, values, purpose)?;
        self.ask_if_awaited();
        Ok(())
    }

    /// The server answers what somebody waits for without waiting for the Sync.
    fn ask_if_awaited(&mut self) {
        if self.in_flight.back().is_some_and(Purpose::is_awaited) {
            frontend::flush(self.connection.outgoing());
        }
    }

    fn put<'a>(
        &mut self,
        name: &str,
        values: impl Iterator<Item = Value<'a>> + Clone,
        purpose: Purpose,
    ) -> Result<(), WireError> {
        self.is_open = true;
        let outgoing = self.connection.outgoing();
        bind(name, values, outgoing)?;
        frontend::execute("", 0, outgoing)?;
        self.in_flight_bytes += purpose.size_bytes();
        self.in_flight.push_back(purpose);
        Ok(())
    }

    /// Runs a prepared `COPY … FROM STDIN`; its rows follow with `copy_data`. Nobody waits for the server's consent: what it
    /// does not want it discards up to the next Sync.
    pub(super) fn begin_copy(&mut self, name: &str, purpose: Purpose) -> Result<(), WireError> {
        self.put(name, std::iter::empty(), purpose)?;
        self.is_copying = true;
        Ok(())
    }

    /// Sends what `write` appends as a piece of the COPY under way.
    pub(super) fn copy_data<E: From<WireError>>(
        &mut self,
        write: impl FnOnce(&mut BytesMut) -> Result<(), E>,
    ) -> Result<(), E> {
        let outgoing = self.connection.outgoing();
        let start = frame::begin(b'd', outgoing);
        write(outgoing)?;
        Ok(frame::end(start, outgoing)?)
    }

    /// Ends the COPY under way.
    pub(super) fn end_copy(&mut self) {
        frontend::copy_done(self.connection.outgoing());
        self.is_copying = false;
        self.ask_if_awaited();
    }

    /// After an error: undoes everything that is not answered, whatever state it is in. What was sent behind a batch that
    /// failed has failed too, since the record is not where it expects it. The session is as good as new, but for prepared
    /// statements: all are forgotten. Gives back the batches that had been sent whole, in order.
    pub(super) async fn roll_back(&mut self) -> Result<Vec<Batch>, WireError> {
        self.begin_roll_back()?;
        self.rolled_back().await
    }

    /// The first half of `roll_back`: asks for it.
    pub(super) fn begin_roll_back(&mut self) -> Result<(), WireError> {
        if self.is_copying {
            frontend::copy_fail("given up", self.connection.outgoing())?;
        }
        if self.is_open {
            self.execute_once("ROLLBACK")?;
            self.send_sync();
        }
        self.execute_once("DEALLOCATE ALL")?;
        self.send_sync();
        Ok(())
    }

    /// The second half of `roll_back`: waits for it. Cancel safe.
    pub(super) async fn rolled_back(&mut self) -> Result<Vec<Batch>, WireError> {
        while self.syncs > 0 {
            match self.connection.try_next_message()? {
                Some(message) => self.syncs -= usize::from(message.tag == b'Z'),
                None => {
                    self.connection.pump().await?;
                }
            }
        }
        self.in_flight_bytes = 0;
        self.unanswered = 0;
        self.rows.clear();
        let batches = self.in_flight.drain(..).filter_map(|purpose| match purpose {
            Purpose::Commit(sent) => Some(sent.batch),
            _ => None,
        });
        Ok(batches.collect())
    }

    fn send_sync(&mut self) {
        frontend::sync(self.connection.outgoing());
        self.syncs += 1;
        (self.is_open, self.is_copying) = (false, false);
    }

    /// Ends a batch with its Sync, which commits it. Its receipt comes when that is answered.
    pub(super) fn commit(&mut self, sent: Box<Sent>) {
        self.send_sync();
        self.in_flight.push_back(Purpose::Commit(sent));
        self.unanswered += 1;
    }

    /// Ends, with a Sync of its own, what is no batch, behind no batch, and waits for its answer.
    pub(super) async fn sync(&mut self) -> Result<(), Failure> {
        self.send_sync();
        self.next_commit().await
    }

    /// Another session moved the record to here.
    pub(super) fn committed_elsewhere(&mut self, position: Lsn) {
        self.committed = position;
    }

    /// Writes as much as goes out without waiting; the rest goes out while answers are awaited.
    pub(super) async fn write_now(&mut self) -> Result<(), WireError> {
        self.connection.write_now().await
    }

    /// Waits until one more batch is answered. Cancel safe.
    pub(super) async fn next_commit(&mut self) -> Result<(), Failure> {
        while !self.next_answer().await? {}
        Ok(())
    }

    /// Takes answers until one is an error. Cancel safe.
    pub(super) async fn lost(&mut self) -> Failure {
        loop {
            if let Err(failure) = self.next_answer().await {
                return failure;
            }
        }
    }

    /// Waits until every batch that was sent whole is answered.
    pub(super) async fn settle_commits(&mut self) -> Result<(), Failure> {
        while self.unanswered > 0 {
            self.next_answer().await?;
        }
        Ok(())
    }

    /// Runs a statement without parameters once.
    pub(super) fn execute_once(&mut self, sql: &str) -> Result<(), WireError> {
        self.parse("", sql, &[])?;
        self.execute("", std::iter::empty(), Purpose::Query)
    }

    /// Forgets a prepared statement.
    pub(super) fn close(&mut self, name: &str) -> Result<(), WireError> {
        self.is_open = true;
        Ok(frontend::close(b'S', name, self.connection.outgoing())?)
    }

    /// Whether enough is gathered that it should go out.
    pub(super) fn is_full(&mut self) -> bool {
        self.connection.outgoing().len() >= WRITE_BYTES
    }

    /// Writes if enough is gathered.
    pub(super) async fn write_if_full(&mut self) -> Result<(), Failure> {
        if self.is_full() { self.write().await } else { Ok(()) }
    }

    /// Writes what is gathered, takes the answers that come meanwhile, and waits for some when too many are outstanding.
    pub(super) async fn write(&mut self) -> Result<(), Failure> {
        loop {
            // A batch before this one may be committed while a statement of this one waits for a lock: that is told at once.
            let is_written = self.connection.drain_or_hear(WRITE_BYTES / 2).await?;
            while let Some(message) = self.connection.try_next_message()? {
                self.answer(&message)?;
            }
            if is_written {
                break;
            }
        }
        if self.in_flight.len() > IN_FLIGHT_LIMIT || self.in_flight_bytes > IN_FLIGHT_LIMIT_BYTES {
            frontend::flush(self.connection.outgoing());
            while self.in_flight.len() > IN_FLIGHT_LIMIT / 2 || self.in_flight_bytes > IN_FLIGHT_LIMIT_BYTES / 2 {
                self.next_answer().await?;
            }
        }
        Ok(())
    }

    /// Waits until everything sent so far is answered, without ending the transaction.
    pub(super) async fn settle(&mut self) -> Result<(), Failure> {
        if self.in_flight.is_empty() {
            return Ok(());
        }
        frontend::flush(self.connection.outgoing());
        while !self.in_flight.is_empty() {
            self.next_answer().await?;
        }
        Ok(())
    }

    /// Runs one statement inside the transaction under way and returns the first column of its rows.
    pub(super) async fn query_texts(&mut self, sql: &str) -> Result<Vec<String>, Failure> {
        self.settle().await?;
        self.rows.clear();
        self.parse("", sql, &[])?;
        self.execute("", std::iter::empty(), Purpose::Query)?;
        self.settle().await?;
        let rows = std::mem::take(&mut self.rows);
        // A DataRow of one column: int16 count, int32 length, bytes.
        let text = |row: &Bytes| String::from_utf8_lossy(row.get(6..).unwrap_or(&[])).into_owned();
        Ok(rows.iter().map(text).collect())
    }

    async fn next_answer(&mut self) -> Result<bool, Failure> {
        loop {
            if let Some(message) = self.connection.try_next_message()? {
                return self.answer(&message);
            }
            self.connection.pump().await?;
        }
    }

    /// Matches one message with what is expected. Returns whether it is ReadyForQuery.
    fn answer(&mut self, message: &OwnedMessage) -> Result<bool, Failure> {
        match message.tag {
            b'C' | b'I' => drop(self.take_first()),
            b'D' if matches!(self.in_flight.front(), Some(Purpose::Query)) => self.rows.push(message.body.clone()),
            b'D' if matches!(self.in_flight.front(), Some(Purpose::Progress)) => self.note_place(&message.body),
            b'E' => {
                let error = WireError::Server(Box::new(ServerError::parse(&message.body)));
                // Answers come in order, so the first outstanding statement is the one that failed, be it at its Parse.
                return Err(Failure { purpose: self.take_first(), error });
            }
            b'Z' => {
                self.syncs = self.syncs.saturating_sub(1);
                // Rows that nobody asked for would keep the buffers alive that they were read into.
                self.rows.clear();
                let sent = match self.in_flight.pop_front() {
                    Some(Purpose::Commit(sent)) => sent,
                    None => return Ok(true),
                    Some(_) => return Err(WireError::Unexpected { tag: b'Z', during: "applying" }.into()),
                };
                self.unanswered -= 1;
                self.committed = sent.receipt.applied.0;
                let told = self.receipts.try_send(sent.receipt);
                debug_assert!(!matches!(told, Err(mpsc::error::TrySendError::Full(_))), "nobody takes the receipts");
                return Ok(true);
            }
            b'N' => {
                let notice = ServerError::parse(&message.body);
                tracing::debug!(code = notice.code, message = notice.message, "the standby says");
            }
            b'1' | b'2' | b'3' | b'D' | b'G' | b'T' | b'n' | b'S' | b'A' => {}
            tag => return Err(WireError::Unexpected { tag, during: "applying" }.into()),
        }
        Ok(false)
    }

    /// A DataRow whose first column is the place: int16 count, int32 length, bytes.
    fn note_place(&mut self, row: &[u8]) {
        let length = row.get(2..6).and_then(|length| length.try_into().ok()).map_or(0, i32::from_be_bytes);
        let text = usize::try_from(length).ok().and_then(|length| row.get(6..6 + length));
        self.place.clear();
        self.place.push_str(text.and_then(|text| std::str::from_utf8(text).ok()).unwrap_or_default());
    }

    /// Takes the first outstanding statement out. A batch stays: what fails at its Sync fails as a whole.
    fn take_first(&mut self) -> Option<Purpose> {
        if matches!(self.in_flight.front(), Some(Purpose::Commit(_))) {
            return None;
        }
        let purpose = self.in_flight.pop_front()?;
        self.in_flight_bytes -= purpose.size_bytes();
        Some(purpose)
    }
}

/// A Bind of the unnamed portal: format codes only where a value is binary, results as text.
pub(super) fn bind<'a>(
    statement: &str,
    values: impl Iterator<Item = Value<'a>> + Clone,
    out: &mut BytesMut,
) -> Result<(), WireError> {
    let is_too_long = || WireError::Length { tag: b'B', length: usize::MAX };
    let start = frame::begin(b'B', out);
    out.put_u8(0);
    out.put_slice(statement.as_bytes());
    out.put_u8(0);
    let (count, has_binary) = values
        .clone()
        .fold((0usize, false), |(count, binary), value| (count + 1, binary | matches!(value, Value::Binary(_))));
    let count = u16::try_from(count).map_err(|_| is_too_long())?;
    if has_binary {
        out.put_u16(count);
        values.clone().for_each(|value| out.put_u16(u16::from(matches!(value, Value::Binary(_)))));
    } else {
        out.put_u16(0);
    }
    out.put_u16(count);
    for value in values {
        match value {
            Value::Text(bytes) | Value::Binary(bytes) => {
                out.put_i32(i32::try_from(bytes.len()).map_err(|_| is_too_long())?);
                out.put_slice(bytes);
            }
            Value::Null | Value::Unchanged => out.put_i32(-1),
        }
    }
    out.put_u16(0);
    frame::end(start, out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bind_says_formats_only_where_a_value_is_binary() {
        for (values, expected) in [
            (vec![Value::Text(b"ab"), Value::Null], &b"B\0\0\0\x1a\0s\0\0\0\0\x02\0\0\0\x02ab\xff\xff\xff\xff\0\0"[..]),
            (
                vec![Value::Binary(b"x"), Value::Text(b"")],
                b"B\0\0\0\x1d\0s\0\0\x02\0\x01\0\0\0\x02\0\0\0\x01x\0\0\0\0\0\0",
            ),
            (vec![], b"B\0\0\0\x0d\0s\0\0\0\0\0\0\0"),
        ] {
            let mut out = BytesMut::new();
            bind("s", values.iter().copied(), &mut out).unwrap();
            assert_eq!(out[5..], expected[5..]);
            assert_eq!(out[1..5], (expected.len() as u32 - 1).to_be_bytes());
        }
    }
}
