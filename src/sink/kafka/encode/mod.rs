//! Turns decoded changes into Kafka records: keys, values and headers as bytes. Never talks to a broker or a server, and never
//! holds more than one record.
//!
//! # The contract with who carries the records
//!
//! * One [`Encoder`] for the stream, one more for each worker of the initial copy. It lives as long as a replication session.
//! * For each whole transaction: [`Encoder::begin`], then [`Encoder::message`] for every pgoutput message of its body *in order*
//!   (Relation, Type and Origin messages too, also in a transaction that is skipped: see [`Encoder::note`]), then
//!   [`Encoder::end`]. A non-transactional logical message is a unit of its own: [`Encoder::outside_message`].
//! * [`Step::NeedFacts`] means: nothing was sent, nothing was noted. Run [`catalog_query_of`] for the relation's OID on the primary, or
//!   [`catalog_query`] for its name where that finds nothing, hand the answer, under the relation's name, to
//!   [`Encoder::describe`] (an empty answer, for a table that is gone by now, to [`Encoder::describe_missing`]), and give the *same* message again. Each Relation message asks at most once; facts that were given before it came spare the
//!   asking, if they agree with it.
//! * What is sent goes to the [`Outlet`] at once, in the order of the topic. A borrowed [`Record`] is valid during the call.
//! * An error of the outlet comes back unchanged and leaves the encoder unusable: begin a new one, as after any restart.
//! * Topics are named here and made by the outlet, before it sends the first record of a name that it has not seen.
//! * Sizes are the outlet's business: it sees the whole record before it sends it.

#[cfg(test)]
mod behaviour;
#[cfg(test)]
mod captured;
mod column;
mod composite;
mod context;
mod default;
mod facts;
mod filler;
mod form;
#[cfg(test)]
mod golden;
mod headers;
mod json;
mod metadata;
mod number;
mod open_transaction;
mod outbox;
mod plain;
mod plan;
mod review;
mod row;
mod schema;
mod source;
mod tables;
mod temporal;
#[cfg(test)]
mod testing;
mod topic;
#[cfg(test)]
mod values;
mod writer;

use crate::config::KafkaSink;
use crate::config::kafka::KafkaFormat;
use crate::decode::{Logical, Message, OldTuple, Value, Values};
use crate::model::{FeedReport, Lsn, PipelineName, QualifiedName, Timestamp};

use super::super::SinkError;
use super::super::postgres::TableFilter;
use open_transaction::Transaction;
use row::Row;
use source::SourceFacts;
use tables::{Tables, Target};
use writer::Writer;

pub use facts::{ColumnFacts, IndexFacts, TableFacts, TypeFacts, catalog_query, catalog_query_of, read_facts};
pub use outbox::may_route_to;
pub use review::{Remark, review};

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

/// Makes records out of changes.
#[derive(Debug)]
pub struct Encoder {
    origin: Origin,
    previous_end: Option<Lsn>,
    tables: Tables,
    snapshot_tables: Vec<(QualifiedName, Target)>,
    snapshot_source: Option<(SnapshotPoint, SnapshotMark)>,
    writer: Writer,
}

impl Encoder {
    /// For one session.
    pub fn new(settings: KafkaSink, origin: Origin) -> Self {
        Self {
            previous_end: origin.previous_end,
            origin,
            tables: Tables::default(),
            snapshot_tables: Vec::new(),
            snapshot_source: None,
            writer: Writer::new(settings),
        }
    }

    /// What the primary's catalog says about a table now. Also for many tables before the stream begins: spares the asking.
    pub fn describe(&mut self, facts: TableFacts) {
        self.tables.describe(facts.qualified_name(), Some(facts));
    }

    /// The table is gone from the catalog: its Relation message must do.
    pub fn describe_missing(&mut self, table: QualifiedName) {
        self.tables.describe(table, None);
    }

    /// The topic of a table's events.
    pub fn topic_of(&self, table: &QualifiedName) -> String {
        topic::topic_of(table, &self.writer.settings)
    }

    /// What has been counted since the encoder was made; dead letters are the outlet's matter.
    pub fn counters(&self) -> FeedReport {
        self.writer.counters
    }

    /// A transaction begins.
    pub fn begin(&mut self, mark: TransactionMark<'_>, outlet: &mut dyn Outlet) -> Result<(), SinkError> {
        let facts = SourceFacts {
            snapshot: "false",
            time: mark.commit_time,
            xid: Some(mark.xid),
            previous_end: self.previous_end,
            origin: mark.origin,
        };
        self.writer.source.fill(&self.writer.settings, &self.origin.database, &facts);
        self.snapshot_source = None;
        self.writer.transaction = Some(Transaction::new(mark.xid, mark.commit_lsn, mark.end_lsn));
        self.writer.frame(false, outlet)
    }

    /// One message of the transaction's body, with the position of its `XLogData`.
    pub fn message(&mut self, lsn: Lsn, message: &Message<'_>, outlet: &mut dyn Outlet) -> Result<Step, SinkError> {
        let skipped = self.writer.settings.skipped_operations;
        match message {
            Message::Insert { relation_oid, new, .. } => match self.tables.target(*relation_oid)? {
                Target::Rows(plan) if !skipped.create => self.writer.insert(plan, lsn, b'c', new.iter(), outlet)?,
                Target::Outbox(plan) => {
                    let name = self.tables.name(*relation_oid)?;
                    self.writer.outbox(plan, name, lsn, new.iter(), outlet)?;
                }
                _ => {}
            },
            Message::Update { relation_oid, old, new, .. } => {
                if let Target::Rows(plan) = self.tables.target(*relation_oid)? {
                    self.writer.update(plan, lsn, old.as_ref().map(row_of), new.iter(), outlet)?;
                }
            }
            Message::Delete { relation_oid, old, .. } => match self.tables.target(*relation_oid)? {
                Target::Rows(plan) if !skipped.delete => self.writer.delete(plan, lsn, row_of(old), outlet)?,
                _ => {}
            },
            Message::Truncate { relation_oids, .. } => {
                for oid in relation_oids.iter() {
                    self.truncate(oid, lsn, outlet)?;
                }
            }
            Message::Logical(logical) => self.writer.logical_message(lsn, logical, outlet)?,
            other => return self.note(other),
        }
        Ok(Step::Done)
    }

    fn truncate(&mut self, oid: u32, lsn: Lsn, outlet: &mut dyn Outlet) -> Result<(), SinkError> {
        let Target::Rows(plan) = self.tables.target(oid)? else { return Ok(()) };
        let is_envelope = self.writer.settings.format == KafkaFormat::Debezium;
        if is_envelope && !self.writer.settings.skipped_operations.truncate {
            return self.writer.truncate(plan, lsn, outlet);
        }
        tracing::warn!(table = %plan.name, %lsn, "a TRUNCATE made no event: consumers keep the table's rows");
        self.writer.counters.skipped_truncates += 1;
        Ok(())
    }

    /// One message of a transaction that is skipped: only what describes relations and types is kept.
    pub fn note(&mut self, message: &Message<'_>) -> Result<Step, SinkError> {
        match message {
            Message::Relation(body) => self.tables.note_relation(body, &self.writer.settings, &self.origin),
            Message::Type { oid, schema, name, .. } => {
                self.tables.note_type(*oid, schema, name);
                Ok(Step::Done)
            }
            _ => Ok(Step::Done),
        }
    }

    /// The transaction ends.
    pub fn end(&mut self, outlet: &mut dyn Outlet) -> Result<(), SinkError> {
        self.writer.frame(true, outlet)?;
        self.writer.trim();
        if let Some(transaction) = self.writer.transaction.take() {
            self.previous_end = Some(transaction.end_lsn);
        }
        Ok(())
    }

    /// A non-transactional logical message, received now. Its own time is not known, so the source's is the present.
    pub fn outside_message(&mut self, message: &Logical<'_>, outlet: &mut dyn Outlet) -> Result<(), SinkError> {
        let facts = SourceFacts {
            snapshot: "false",
            time: Timestamp::now(),
            xid: None,
            previous_end: self.previous_end,
            origin: None,
        };
        self.writer.source.fill(&self.writer.settings, &self.origin.database, &facts);
        self.snapshot_source = None;
        self.writer.transaction = None;
        self.writer.logical_message(message.lsn, message, outlet)?;
        self.previous_end = Some(message.lsn);
        Ok(())
    }

    /// Makes a table ready for [`Encoder::snapshot_row`]: its facts, and the columns that rows will have, in their order.
    pub fn snapshot_table(&mut self, facts: TableFacts, columns: &[&str]) -> Result<SnapshotTable, SinkError> {
        let relation = facts.to_relation(columns)?;
        let target = self.tables.snapshot_target(&relation, &facts, &self.writer.settings)?;
        self.snapshot_tables.push((relation.name, target));
        Ok(SnapshotTable(self.snapshot_tables.len() - 1))
    }

    /// One row of a snapshot, as an `r` event, or as the message that a row of the outbox holds: its values in text form, in the order of the columns of `snapshot_table`.
    pub fn snapshot_row<'v>(
        &mut self,
        table: SnapshotTable,
        point: SnapshotPoint,
        mark: SnapshotMark,
        values: impl Iterator<Item = Value<'v>> + Clone,
        outlet: &mut dyn Outlet,
    ) -> Result<(), SinkError> {
        let unknown = || SinkError::Refused("a snapshot's row came before its table was described".to_owned());
        let (name, target) = self.snapshot_tables.get(table.0).ok_or_else(unknown)?;
        if self.snapshot_source != Some((point, mark)) {
            let facts = SourceFacts {
                snapshot: mark.word(),
                time: point.time,
                xid: point.xid,
                previous_end: None,
                origin: None,
            };
            self.writer.source.fill(&self.writer.settings, &self.origin.database, &facts);
            self.writer.transaction = None;
            self.snapshot_source = Some((point, mark));
        }
        match target {
            Target::Rows(plan) => self.writer.insert(plan, point.lsn, b'r', values, outlet)?,
            Target::Outbox(plan) => self.writer.outbox(plan, name, point.lsn, values, outlet)?,
            Target::Unwanted | Target::Unlisted => {}
        }
        self.writer.trim();
        Ok(())
    }
}

fn row_of<'a>(old: &OldTuple<'a>) -> Row<Values<'a>> {
    Row { values: old.tuple().iter(), is_key_only: matches!(old, OldTuple::Key(_)) }
}
