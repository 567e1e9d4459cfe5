//! What a Kafka sink is opened for. Plain data.

use crate::config::{KafkaSink, ServerUrl};
use crate::model::{FeedCounts, Heartbeat, PipelineName, QualifiedName};

use crate::sink::postgres::TableFilter;

/// What a sink is opened for.
#[derive(Clone, Debug)]
pub struct Opening {
    /// The pipeline.
    pub pipeline: PipelineName,
    /// Brokers, topics, form of the events.
    pub sink: KafkaSink,
    /// For the catalog.
    pub primary: ServerUrl,
    /// The client's queue is bounded by a part of it.
    pub memory_limit_bytes: u64,
    /// Which relations.
    pub filter: TableFilter,
    /// Tables whose topics are to exist beforehand.
    pub tables: Vec<QualifiedName>,
    /// Workers of a copy that was cut off: each may have left a transaction open.
    pub left_copies: usize,
    /// Beats while work is done.
    pub heartbeat: Heartbeat,
    /// Counts what is committed.
    pub feed: FeedCounts,
}
