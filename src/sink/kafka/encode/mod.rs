//! Turns decoded changes into Kafka records: keys, values and headers as bytes. Never talks to a broker or a server, and never
//! holds more than one record.
//!
//! # The contract with who carries the records
//!
//! * One [`Encoder`] for the stream, one more for each worker of the initial copy. It lives as long as a replication session.
//! * For each whole transaction: [`Encoder::begin`], then [`Encoder::message`] for every pgoutput message of its body *in order*
//!   (Relation, Type and Origin messages too, also in a transaction that is skipped: see [`Encoder::note`]), then
//!   [`Encoder::end`]. A non-transactional logical message is a unit of its own: [`Encoder::outside_message`].
//! * [`Step::NeedFacts`] means: nothing was sent, nothing was noted. Run [`catalog_query`] for that table on the primary, hand
//!   the answer to [`Encoder::describe`] (an empty answer, for a table that is gone by now, to [`Encoder::describe_missing`]),
//!   and give the *same* message again. It is answered at most once for each Relation message that says something new.
//! * What is sent goes to the [`Outlet`] at once, in the order of the topic. A borrowed [`Record`] is valid during the call.
//! * An error of the outlet comes back unchanged and leaves the encoder unusable: begin a new one, as after any restart.
//! * Topics are named here and made by the outlet, before it sends the first record of a name that it has not seen.
//! * Sizes are the outlet's business: it sees the whole record before it sends it.

mod facts;

use crate::config::KafkaSink;
use crate::decode::{Logical, Message, Value};
use crate::model::{Lsn, PipelineName, QualifiedName, Timestamp};

use super::super::SinkError;
use super::super::postgres::TableFilter;

pub use facts::{ColumnFacts, IndexFacts, TableFacts, TypeFacts, catalog_query, read_facts};

/// One header of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its value.
    pub value: &'a [u8],
}

/// Which partitions of its topic a record goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// [`partition_of`](super::partition::partition_of) its key.
    ByKey,
    /// A copy to each: a TRUNCATE concerns every key.
    EveryPartition,
}

/// One record, borrowed from the encoder's buffers.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// Its topic's whole name.
    pub topic: &'a str,
    /// Which partitions.
    pub placement: Placement,
    /// `None`: a record without key.
    pub key: Option<&'a [u8]>,
    /// `None`: a tombstone.
    pub value: Option<&'a [u8]>,
    /// In order.
    pub headers: &'a [Header<'a>],
    /// CreateTime, milliseconds since 1970: when it was made.
    pub timestamp_ms: i64,
    /// Where its change stands in the WAL; of BEGIN and END the commit.
    pub lsn: Lsn,
    /// The top-level transaction; `None` for a non-transactional message, and in a snapshot that has none.
    pub xid: Option<u32>,
}

/// Takes the records.
pub trait Outlet {
    /// Takes one record, or copies it into a queue. An error ends the encoder.
    fn send(&mut self, record: Record<'_>) -> Result<(), SinkError>;
}

/// Where the events come from.
#[derive(Clone, Debug)]
pub struct Origin {
    /// The pipeline, for the log and the context headers.
    pub pipeline: PipelineName,
    /// `source.db`.
    pub database: String,
    /// End of the last transaction (or position of the last non-transactional message) that was sent before, if the progress
    /// record says so: the first element of `source.sequence`.
    pub previous_end: Option<Lsn>,
    /// Which tables of the publication are wanted.
    pub tables: TableFilter,
}

/// A transaction, as its Begin and Commit say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransactionMark<'a> {
    /// Top-level transaction id.
    pub xid: u32,
    /// Start of the commit record.
    pub commit_lsn: Lsn,
    /// First byte after it.
    pub end_lsn: Lsn,
    /// By the primary's clock.
    pub commit_time: Timestamp,
    /// Name of the replication origin, if it was replayed on the primary: `source.origin`.
    pub origin: Option<&'a str>,
}

/// What a message led to.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Step {
    /// Its records were sent, or it has none.
    Done,
    /// Nothing was done: describe this table and give the message again.
    NeedFacts(QualifiedName),
}

/// Where a row stands in a snapshot: Debezium's `source.snapshot`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotMark {
    /// The very first row.
    First,
    /// The first of its table.
    FirstInTable,
    /// Any other.
    Inside,
    /// The last of its table; also the only one.
    LastInTable,
    /// The last row of the last table that has rows.
    Last,
}

impl SnapshotMark {
    /// Debezium's word.
    pub fn word(self) -> &'static str {
        match self {
            SnapshotMark::First => "first",
            SnapshotMark::FirstInTable => "first_in_data_collection",
            SnapshotMark::Inside => "true",
            SnapshotMark::LastInTable => "last_in_data_collection",
            SnapshotMark::Last => "last",
        }
    }
}

/// The snapshot that rows belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotPoint {
    /// Its consistent point: `source.lsn`.
    pub lsn: Lsn,
    /// When it was taken: `source.ts_ms`.
    pub time: Timestamp,
    /// `source.txId`, if it has one.
    pub xid: Option<u32>,
}

/// A table of a snapshot, see [`Encoder::snapshot_table`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotTable(pub(super) usize);

/// What has been counted since the encoder was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Records handed to the outlet.
    pub records: u64,
    /// Bytes of their keys and values.
    pub bytes: u64,
    /// Values that the form could not hold, named in `walrelay.lossy`.
    pub lossy_values: u64,
    /// Truncates of tables that made no event.
    pub skipped_truncates: u64,
}

/// Makes records out of changes.
#[derive(Debug)]
pub struct Encoder {
    settings: KafkaSink,
    origin: Origin,
    counters: Counters,
}

impl Encoder {
    /// For one session.
    pub fn new(settings: KafkaSink, origin: Origin) -> Self {
        Self { settings, origin, counters: Counters::default() }
    }

    /// What the primary's catalog says about a table now. Also for many tables before the stream begins: spares the asking.
    pub fn describe(&mut self, facts: TableFacts) {
        let _ = facts;
    }

    /// The table is gone from the catalog: its Relation message must do.
    pub fn describe_missing(&mut self, table: QualifiedName) {
        let _ = table;
    }

    /// The topic of a table's events.
    pub fn topic_of(&self, table: &QualifiedName) -> String {
        let _ = table;
        self.settings.topic.clone()
    }

    /// The counters.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// A transaction begins.
    pub fn begin(&mut self, mark: TransactionMark<'_>, outlet: &mut dyn Outlet) -> Result<(), SinkError> {
        let _ = (mark, outlet, &self.origin);
        Err(unfinished())
    }

    /// One message of the transaction's body, with the position of its `XLogData`.
    pub fn message(&mut self, lsn: Lsn, message: &Message<'_>, outlet: &mut dyn Outlet) -> Result<Step, SinkError> {
        let _ = (lsn, message, outlet);
        Err(unfinished())
    }

    /// One message of a transaction that is skipped: only what describes relations and types is kept.
    pub fn note(&mut self, message: &Message<'_>) -> Result<Step, SinkError> {
        let _ = message;
        Err(unfinished())
    }

    /// The transaction ends.
    pub fn end(&mut self, outlet: &mut dyn Outlet) -> Result<(), SinkError> {
        let _ = outlet;
        Err(unfinished())
    }

    /// A non-transactional logical message, received now.
    pub fn outside_message(&mut self, message: &Logical<'_>, outlet: &mut dyn Outlet) -> Result<(), SinkError> {
        let _ = (message, outlet);
        Err(unfinished())
    }

    /// Makes a table ready for [`Encoder::snapshot_row`]: its facts, and the columns that rows will have, in their order.
    pub fn snapshot_table(&mut self, facts: TableFacts, columns: &[&str]) -> Result<SnapshotTable, SinkError> {
        let _ = (facts, columns);
        Err(unfinished())
    }

    /// One row of a snapshot, as an `r` event: its values in text form, in the order of the columns of `snapshot_table`.
    pub fn snapshot_row<'v>(
        &mut self,
        table: SnapshotTable,
        point: SnapshotPoint,
        mark: SnapshotMark,
        values: impl Iterator<Item = Value<'v>>,
        outlet: &mut dyn Outlet,
    ) -> Result<(), SinkError> {
        let _ = (table, point, mark, values.count(), outlet);
        Err(unfinished())
    }
}

fn unfinished() -> SinkError {
    SinkError::Refused("this build of walrelay cannot make Kafka events yet".to_owned())
}
