//! What `[pipeline.sink]` with `type = "kafka"` says, as plain data with every default filled in. Connects nowhere.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::model::{Lsn, QualifiedName};

use super::{Secret, TablePattern};

/// A Kafka cluster and what the events look like.
#[derive(Clone, Debug, PartialEq)]
pub struct KafkaSink {
    /// `bootstrap.servers`.
    pub brokers: String,
    /// First part of every topic's name, and `source.name`.
    pub topic_prefix: String,
    /// With `{prefix}`, `{schema}`, `{table}`.
    pub topic: String,
    /// Shape of the values.
    pub format: KafkaFormat,
    /// Embedded Connect schema in keys, as JsonConverter does.
    pub schemas_key: bool,
    /// The same in values.
    pub schemas_value: bool,
    /// How a position and its events become one.
    pub delivery: Delivery,
    /// `{prefix}.transaction`, and the transaction block in each event.
    pub transaction_topic: bool,
    /// `transaction.timeout.ms`; never above the broker's limit, which is known only there.
    pub transaction_timeout: Duration,
    /// A transaction that takes longer than one Kafka transaction may.
    pub on_large_transaction: OnLargeTransaction,
    /// A record that its topic would refuse for its size.
    pub on_oversized: OnOversized,
    /// How topics are made; `None`: they must exist.
    pub create_topics: Option<CreateTopics>,
    /// Where the progress record stands.
    pub progress_topic: String,
    /// Placeholders filled in.
    pub transactional_id: String,
    /// When a position counts as applied.
    pub apply_means: ApplyMeans,
    /// Whether a delete is followed by a record without value.
    pub tombstones: bool,
    /// Debezium's `__debezium.context.*` headers.
    pub context_headers: bool,
    /// Types that Debezium drops, as text.
    pub include_unknown_types: bool,
    /// Operations that make no event.
    pub skipped_operations: SkippedOperations,
    /// `decimal.handling.mode`.
    pub decimal: DecimalMode,
    /// `time.precision.mode`.
    pub time_precision: TimePrecision,
    /// `interval.handling.mode`.
    pub interval: IntervalMode,
    /// `hstore.handling.mode`.
    pub hstore: HstoreMode,
    /// `binary.handling.mode`.
    pub binary: BinaryMode,
    /// A NULL goes out as the column's default, as JsonConverter does.
    pub replace_null_with_default: bool,
    /// Stands for a large value that an UPDATE did not touch.
    pub unavailable_value: String,
    /// Only these columns; empty: all.
    pub column_include: Vec<ColumnPattern>,
    /// Not these columns.
    pub column_exclude: Vec<ColumnPattern>,
    /// Tables whose key is made of these columns; the first match counts.
    pub message_key: Vec<(TablePattern, Vec<String>)>,
    /// `sasl.password`.
    pub password: Option<Secret>,
    /// Where an existing slot is adopted while no progress exists.
    pub start_lsn: Option<Lsn>,
    /// First match wins.
    pub routes: Vec<Route>,
    /// Every match counts; of several for one column, the first.
    pub masks: Vec<Mask>,
    /// A table whose rows are messages.
    pub outbox: Option<Outbox>,
    /// librdkafka properties, passed on as they are.
    pub client: ClientProperties,
}

impl KafkaSink {
    /// `{prefix}.transaction`.
    pub fn transaction_topic_name(&self) -> String {
        format!("{}.transaction", self.topic_prefix)
    }

    /// `{prefix}.message`, where logical messages go.
    pub fn message_topic_name(&self) -> String {
        format!("{}.message", self.topic_prefix)
    }

    /// `{prefix}.dead_letter`.
    pub fn dead_letter_topic_name(&self) -> String {
        format!("{}.dead_letter", self.topic_prefix)
    }
}

/// `format`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KafkaFormat {
    /// Debezium's envelope.
    Debezium,
    /// The row alone, as ExtractNewRecordState makes it.
    Plain(PlainFormat),
}

/// What belongs to `format = "plain"` only.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PlainFormat {
    /// `delete_handling = "rewrite"`: the before-row with `__deleted` instead of a tombstone.
    pub rewrite_deletes: bool,
    /// Fields of the envelope that are added, with their names: `__`, and the word with `_` for its dot.
    pub add_fields: Vec<(String, AddedField)>,
}

/// One of `add_fields`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum AddedField {
    Op,
    TsMs,
    TsUs,
    TsNs,
    Lsn,
    TxId,
    Schema,
    Table,
    Db,
    SourceTsMs,
    SourceTsUs,
    SourceTsNs,
    Sequence,
    Snapshot,
    Name,
    Connector,
    Version,
    TransactionId,
}

/// `delivery`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// Kafka transactions that hold the progress record too.
    ExactlyOnce,
    /// An idempotent producer; the record follows the events.
    AtLeastOnce,
}

/// `on_large_transaction`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnLargeTransaction {
    /// Stop and say so.
    Stop,
    /// Several Kafka transactions, marked by the header `walrelay.split`.
    Split,
}

/// `on_oversized`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnOversized {
    /// Stop and say so.
    Stop,
    /// The key and the reason go to `{prefix}.dead_letter`.
    DeadLetter,
}

/// `apply_means`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApplyMeans {
    /// The Kafka transaction's outcome is irrevocable: together with flush.
    Committed,
    /// A `read_committed` consumer can see the events.
    Readable,
}

/// `create_topics`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateTopics {
    /// -1: the broker's default.
    pub partitions: i32,
    /// -1: the broker's default.
    pub replication_factor: i32,
    /// Settings of the topic.
    pub config: BTreeMap<String, String>,
}

impl Default for CreateTopics {
    fn default() -> Self {
        Self { partitions: -1, replication_factor: -1, config: BTreeMap::new() }
    }
}

/// `skipped_operations`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SkippedOperations {
    /// `c`.
    pub create: bool,
    /// `u`.
    pub update: bool,
    /// `d`.
    pub delete: bool,
    /// `t`.
    pub truncate: bool,
}

/// `decimal`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum DecimalMode {
    Precise,
    String,
    Double,
}

/// `time_precision`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum TimePrecision {
    Adaptive,
    AdaptiveTimeMicroseconds,
    Connect,
    IsoString,
    Microseconds,
    Nanoseconds,
}

/// `interval`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum IntervalMode {
    Numeric,
    String,
}

/// `hstore`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum HstoreMode {
    Json,
    Map,
}

/// `binary`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum BinaryMode {
    Bytes,
    Base64,
    Base64UrlSafe,
    Hex,
}

/// `schema.table.column`, where `*` stands for any run of characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColumnPattern {
    /// The first two parts.
    pub table: TablePattern,
    /// The last part, itself a pattern.
    pub column: String,
}

impl ColumnPattern {
    /// Splits at the first dot and at the last.
    pub fn new(text: &str) -> Option<Self> {
        let (table, column) = text.rsplit_once('.')?;
        let table = TablePattern::new(table).ok()?;
        (!column.is_empty()).then(|| Self { table, column: column.to_owned() })
    }

    /// Whether the column matches.
    pub fn matches(&self, table: &QualifiedName, column: &str) -> bool {
        self.table.matches(table) && super::pattern::glob_matches(&self.column, column)
    }
}

/// One `[[pipeline.sink.route]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Which tables.
    pub tables: Vec<TablePattern>,
    /// Their topic, with `{prefix}`, `{schema}`, `{table}`.
    pub topic: String,
}

/// One `[[pipeline.sink.mask]]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Mask {
    /// Which columns.
    pub columns: Vec<ColumnPattern>,
    /// How.
    pub with: MaskWith,
}

/// `with` of a mask.
#[derive(Clone, Debug, PartialEq)]
pub enum MaskWith {
    /// `fixed:TEXT`: this instead of the value.
    Fixed(String),
    /// `truncate:N`: the first characters.
    Truncate(usize),
    /// `hash`: SHA-256 over salt and value, in hexadecimal digits.
    Hash {
        /// The content of `salt_file`.
        salt: Option<Secret>,
    },
}

/// `[pipeline.sink.outbox]`: each INSERT into the table is a message; other operations on it make none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outbox {
    /// Which table.
    pub table: QualifiedName,
    /// The topic, with `{column}` for a column's text, e.g. `outbox.event.{aggregatetype}`.
    pub route: String,
    /// Column of the record's key.
    pub key: String,
    /// Column of the record's value.
    pub payload: String,
    /// Columns that become headers, with their headers' names.
    pub headers: Vec<(String, String)>,
}

/// librdkafka properties; their values may be secrets and are not shown.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ClientProperties(pub BTreeMap<String, String>);

impl fmt::Debug for ClientProperties {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_set().entries(self.0.keys()).finish()
    }
}
