//! One worker's end of the initial copy: rows of a table as the primary sends them (`DataRow` messages) become `r` events. Each
//! worker has a producer of its own; a table's record that says "finished" is part of the Kafka transaction of its last row.
//!
//! ```text
//! begin(table) ─▶ rows … ─▶ settle (all but the held row are committed) ─▶ end(held row marked, with the record or without)
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::decode::Value;
use crate::model::QualifiedName;
use crate::sink::SinkError;
use crate::sink::kafka::encode::{Encoder, Origin, SnapshotMark, SnapshotPoint, SnapshotTable};
use crate::wire::WireError;
use crate::wire::frame::frames;

use super::answer::{Answer, Failure, attempt, awaited, broken_down, ended};
use super::catalog::Catalog;
use super::open;
use super::opening::Opening;
use super::parts::time_limit;
use super::producer::Halt;
use super::progress::{CopiedTable, copied_key, copied_value};
use super::session::Session;

/// Chunks between the primary and the encoder; each is what a read or two of the socket brought.
const CHUNKS_BETWEEN: usize = 4;
/// A Kafka transaction of the copy takes no further chunk beyond this.
const TRANSACTION_BYTES: u64 = 8 << 20;

/// What the workers of one copy share.
#[derive(Debug, Default)]
pub struct FirstRow(AtomicBool);

impl FirstRow {
    /// True once.
    fn take(&self) -> bool {
        !self.0.load(Ordering::Relaxed) && !self.0.swap(true, Ordering::AcqRel)
    }
}

/// A table, or a part of one, that a worker begins.
#[derive(Clone, Debug)]
pub struct Piece {
    /// Which table.
    pub table: QualifiedName,
    /// The columns that rows will have, in their order.
    pub columns: Vec<String>,
    /// Whether the copy has sent a row.
    pub of_copy: Arc<FirstRow>,
    /// Whether the table has sent a row.
    pub of_table: Arc<FirstRow>,
}

/// How a piece ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PieceEnd {
    /// Other pieces of the table are not finished.
    Inside,
    /// It was the table's last: the table is recorded as finished, with its rows.
    Table(CopiedTable),
    /// It was the last of the last table.
    Copy(CopiedTable),
}

enum Order {
    Begin(Piece),
    Rows(Bytes),
    Settle(Answer<u64>),
    End(PieceEnd, Answer<()>),
}

/// A worker's producer on its thread.
#[derive(Debug)]
pub struct CopyWriter {
    orders: mpsc::Sender<Order>,
    halt: Halt,
}

impl Drop for CopyWriter {
    fn drop(&mut self) {
        self.halt.halt();
    }
}

impl CopyWriter {
    /// Opens the worker of this number; a producer that an earlier copy left under the same number is fenced off.
    pub async fn open(
        opening: &Opening,
        number: usize,
        database: String,
        point: SnapshotPoint,
    ) -> Result<Self, SinkError> {
        let (orders, incoming) = mpsc::channel(CHUNKS_BETWEEN);
        let (opened, wait) = awaited();
        let halt = Halt::default();
        let writer = Self { orders, halt: halt.clone() };
        let mut opening = opening.clone();
        let progress_id = opening.sink.transactional_id.clone();
        opening.sink.transactional_id = open::copy_id(&progress_id, number);
        // Who opened the pipeline's own producer has seen to them; a worker has no workers.
        opening.left_copies = 0;
        let runtime = Handle::current();
        let span = tracing::Span::current();
        let started = thread::Builder::new().name("walrelay-copy".to_owned()).spawn(move || {
            let _entered = span.enter();
            match attempt(|| Work::open(opening, progress_id, database, point, runtime, &halt)) {
                Ok(work) => {
                    if !opened.give(Ok(())) {
                        work.run(incoming);
                    }
                }
                Err(failure) => {
                    opened.give(Err(failure));
                }
            }
        });
        started.map_err(|error| broken_down(error.to_string()))?;
        wait.given().await?;
        Ok(writer)
    }

    /// Begins a piece.
    pub async fn begin(&self, piece: Piece) -> Result<(), SinkError> {
        self.orders.send(Order::Begin(piece)).await.map_err(|_| ended())
    }

    /// Takes whole `DataRow` messages. An error of an earlier call shows at the latest in `settle`.
    pub async fn rows(&self, chunk: Bytes) -> Result<(), SinkError> {
        self.orders.send(Order::Rows(chunk)).await.map_err(|_| ended())
    }

    /// Waits until every row but the last is committed; gives the number of rows, the last one counted.
    pub async fn settle(&self) -> Result<u64, SinkError> {
        let (answer, wait) = awaited();
        self.orders.send(Order::Settle(answer)).await.map_err(|_| ended())?;
        wait.given().await
    }

    /// Commits the last row, and the record.
    pub async fn end(&self, end: PieceEnd) -> Result<(), SinkError> {
        let (answer, wait) = awaited();
        self.orders.send(Order::End(end, answer)).await.map_err(|_| ended())?;
        wait.given().await
    }
}

/// What a piece has come to.
struct Current {
    piece: Piece,
    table: SnapshotTable,
    /// The last row, kept back because only the end tells how it is marked.
    held: Option<Bytes>,
    rows: u64,
}

struct Work {
    session: Session,
    runtime: Handle,
    catalog: Catalog,
    encoder: Encoder,
    point: SnapshotPoint,
    progress_id: String,
    current: Option<Current>,
    is_in_transaction: bool,
    transaction_bytes: u64,
}

impl Work {
    fn open(
        opening: Opening,
        progress_id: String,
        database: String,
        point: SnapshotPoint,
        runtime: Handle,
        halt: &Halt,
    ) -> Result<Self, SinkError> {
        let catalog = || Catalog::new(runtime.clone(), opening.primary.clone(), &opening.pipeline);
        let origin =
            Origin { pipeline: opening.pipeline.clone(), database, previous_end: None, tables: opening.filter.clone() };
        let encoder = Encoder::new(opening.sink.clone(), origin);
        let (own, shared) = (catalog(), catalog());
        let opened = open::open(&opening, runtime.clone(), halt)?;
        let session = Session::new(opening, opened, shared, None)?;
        Ok(Self {
            session,
            runtime,
            catalog: own,
            encoder,
            point,
            progress_id,
            current: None,
            is_in_transaction: false,
            transaction_bytes: 0,
        })
    }

    /// After a failure every answer is that failure once, then the thread is gone; the producer's end aborts what is open.
    fn run(mut self, mut orders: mpsc::Receiver<Order>) {
        let mut failed: Option<Failure> = None;
        while let Some(order) = self.next(&mut orders, &mut failed) {
            let is_over = match order {
                Order::Begin(piece) if failed.is_none() => {
                    failed = attempt(|| self.begin(piece)).err();
                    false
                }
                Order::Rows(chunk) if failed.is_none() => {
                    failed = attempt(|| self.rows(&chunk)).err();
                    false
                }
                Order::Begin(_) | Order::Rows(_) => false,
                Order::Settle(answer) => answered(&mut failed, answer, || self.settle()),
                Order::End(end, answer) => answered(&mut failed, answer, || self.end(&end)),
            };
            if is_over {
                break;
            }
        }
        self.session.give_up(self.is_in_transaction);
    }

    /// The next order. What is open is committed when its time comes, whether or not the primary sends more until then.
    fn next(&mut self, orders: &mut mpsc::Receiver<Order>, failed: &mut Option<Failure>) -> Option<Order> {
        while let Some(left) = self.time_left().filter(|_| failed.is_none()) {
            match self.runtime.block_on(async { timeout(left, orders.recv()).await }) {
                Ok(order) => return order,
                Err(_) => *failed = attempt(|| self.commit()).err(),
            }
        }
        orders.blocking_recv()
    }

    /// Until the open transaction is to be committed, however little is in it: the brokers end one that lasts too long, and the table
    /// would begin anew, each time.
    fn time_left(&self) -> Option<Duration> {
        let is_timed = self.is_in_transaction && self.session.is_exactly_once();
        let due = self.session.began + time_limit(self.session.timeout);
        is_timed.then(|| due.saturating_duration_since(Instant::now()))
    }

    fn begin(&mut self, piece: Piece) -> Result<(), SinkError> {
        let facts = self.catalog.facts(std::slice::from_ref(&piece.table))?.into_iter().next();
        let facts =
            facts.ok_or_else(|| SinkError::Shape(format!("the table {} is gone from the primary", piece.table)))?;
        let columns: Vec<&str> = piece.columns.iter().map(String::as_str).collect();
        let table = self.encoder.snapshot_table(facts, &columns)?;
        self.current = Some(Current { piece, table, held: None, rows: 0 });
        Ok(())
    }

    fn rows(&mut self, chunk: &Bytes) -> Result<(), SinkError> {
        for frame in frames(chunk) {
            let frame = frame.map_err(SinkError::wire("reading a table's rows"))?;
            let Some(current) = &mut self.current else { return Err(ended()) };
            current.rows += 1;
            if let Some(row) = current.held.replace(chunk.slice_ref(frame.body)) {
                self.send(&row, SnapshotMark::Inside)?;
            }
        }
        self.session.beat();
        let is_full =
            self.transaction_bytes >= TRANSACTION_BYTES || self.time_left().is_some_and(|left| left.is_zero());
        if is_full { self.commit() } else { Ok(()) }
    }

    /// Sends one row; `mark` is for a row that is not the first of anything.
    fn send(&mut self, row: &[u8], mark: SnapshotMark) -> Result<(), SinkError> {
        if !self.is_in_transaction {
            self.session.begin()?;
            self.is_in_transaction = true;
        }
        let Some(current) = &self.current else { return Err(ended()) };
        let (is_first_of_table, is_first) = (current.piece.of_table.take(), current.piece.of_copy.take());
        let mark = match mark {
            SnapshotMark::Inside if is_first => SnapshotMark::First,
            SnapshotMark::Inside if is_first_of_table => SnapshotMark::FirstInTable,
            mark => mark,
        };
        self.transaction_bytes += row.len() as u64;
        let values = Values::of(row)?;
        self.encoder.snapshot_row(current.table, self.point, mark, values, self.session.carrier())
    }

    fn settle(&mut self) -> Result<u64, SinkError> {
        self.commit()?;
        Ok(self.current.as_ref().map_or(0, |current| current.rows))
    }

    fn end(&mut self, end: &PieceEnd) -> Result<(), SinkError> {
        let Some(held) = self.current.as_mut().map(|current| current.held.take()) else { return Err(ended()) };
        if let Some(row) = held {
            let mark = match end {
                PieceEnd::Inside => SnapshotMark::Inside,
                PieceEnd::Table(_) => SnapshotMark::LastInTable,
                PieceEnd::Copy(_) => SnapshotMark::Last,
            };
            self.send(&row, mark)?;
        }
        if let PieceEnd::Table(copied) | PieceEnd::Copy(copied) = end {
            if !self.is_in_transaction {
                self.session.begin()?;
                self.is_in_transaction = true;
            }
            self.session.settle_deliveries()?;
            let Some(current) = &self.current else { return Err(ended()) };
            let key = copied_key(&self.progress_id, &current.piece.table);
            self.session.produce_record(&key, &copied_value(&current.piece.table, *copied))?;
        }
        self.commit()?;
        self.current = None;
        Ok(())
    }

    fn commit(&mut self) -> Result<(), SinkError> {
        if std::mem::take(&mut self.is_in_transaction) {
            self.transaction_bytes = 0;
            self.session.commit()?;
            self.session.tally(self.encoder.counters());
        }
        Ok(())
    }
}

/// Answers with what failed before, else with what the work gives. True: nothing more will be done.
fn answered<T>(failed: &mut Option<Failure>, answer: Answer<T>, work: impl FnOnce() -> Result<T, SinkError>) -> bool {
    answer.give(failed.take().map_or_else(|| attempt(work), Err))
}

/// The values of a `DataRow` in text form.
#[derive(Clone)]
struct Values<'a> {
    rest: &'a [u8],
}

impl<'a> Values<'a> {
    /// Checks the row whole, so that the iterator cannot meet a torn value.
    fn of(body: &'a [u8]) -> Result<Self, SinkError> {
        let torn = || SinkError::wire("reading a table's rows")(WireError::Unexpected { tag: b'D', during: "a copy" });
        let (_, mut at) = body.split_first_chunk::<2>().ok_or_else(torn)?;
        let values = Self { rest: at };
        while !at.is_empty() {
            let (length, rest) = at.split_first_chunk::<4>().ok_or_else(torn)?;
            let length = usize::try_from(i32::from_be_bytes(*length)).unwrap_or(0);
            at = rest.get(length..).ok_or_else(torn)?;
        }
        Ok(values)
    }
}

impl<'a> Iterator for Values<'a> {
    type Item = Value<'a>;

    fn next(&mut self) -> Option<Value<'a>> {
        let (length, rest) = self.rest.split_first_chunk::<4>()?;
        match usize::try_from(i32::from_be_bytes(*length)) {
            Err(_) => {
                self.rest = rest;
                Some(Value::Null)
            }
            Ok(length) => {
                let (value, rest) = rest.split_at_checked(length)?;
                self.rest = rest;
                Some(Value::Text(value))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_read_value_by_value_or_not_at_all() {
        let row = b"\0\x03\0\0\0\x01a\xff\xff\xff\xff\0\0\0\0";
        let values: Vec<_> = Values::of(row).unwrap().collect();
        assert_eq!(values, [Value::Text(b"a"), Value::Null, Value::Text(b"")]);
        for torn in [&b""[..], b"\0", b"\0\x01\0\0", b"\0\x01\0\0\0\x02a"] {
            assert!(Values::of(torn).is_err(), "{torn:?}");
        }
    }
}
