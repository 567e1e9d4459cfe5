//! A consumer that rebuilds a table from a feed of walrelay in Debezium's format, truncates included, and prints its rows as JSON
//! lines. It reads to the end of the topic and stops. Writes nothing, joins no group, commits no offset.
//!
//! ```sh
//! cargo run --example rebuild_table -- kafka1:9092 shop.public.orders
//! ```
//!
//! What a consumer must do, and why it is enough:
//!
//! 1. Read with `isolation.level = read_committed`: each transaction is seen whole or not at all, and once.
//! 2. Keep the rows of each partition apart. A key never changes its partition, and a TRUNCATE is sent to every partition: it
//!    removes exactly what stands before it there.
//! 3. Keep the old value of the columns that the header `walrelay.unchanged` names: an UPDATE that does not touch a large value
//!    (TOAST) does not bring it, and the event holds a placeholder instead.
//! 4. Nothing for a change of key: it comes as a delete of the old key and a create under the new one. Only large values cannot
//!    follow their row from one key to another; `REPLICA IDENTITY FULL` on the table makes them part of the event.
//!
//! TRUNCATE is among the events only with `skipped_operations = []`, since Debezium skips it by default.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::time::Duration;

use rdkafka::TopicPartitionList;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Headers as _, Message as _};
use rdkafka::topic_partition_list::Offset;
use serde_json::{Map, Value};

/// A broker that is silent for so long is given up.
const PATIENCE: Duration = Duration::from_secs(30);

/// One row: column names and values.
pub type Row = Map<String, Value>;

/// The rows of one table: for each partition its keys, as bytes, with their rows.
#[derive(Debug, Default)]
pub struct Table {
    partitions: BTreeMap<i32, BTreeMap<Vec<u8>, Row>>,
}

impl Table {
    /// Takes the next record of a partition. `unchanged`: what its header of that name says.
    pub fn take(
        &mut self,
        partition: i32,
        key: &[u8],
        value: Option<&[u8]>,
        unchanged: &[String],
    ) -> Result<(), Box<dyn Error>> {
        // A tombstone follows each delete. It is for log compaction; here it says nothing new.
        let Some(value) = value else { return Ok(()) };
        let mut event: Value = serde_json::from_slice(value)?;
        // With schemas_value = true the event stands inside.
        if let Some(payload) = event.get_mut("payload") {
            event = payload.take();
        }
        let rows = self.partitions.entry(partition).or_default();
        match event["op"].as_str() {
            // c: INSERT, r: a row of the initial copy (which may come twice), u: UPDATE.
            Some("c" | "r" | "u") => {
                let Value::Object(mut row) = event["after"].take() else { return Err("an event without a row".into()) };
                keep_unchanged(&mut row, rows.get(key), unchanged)?;
                rows.insert(key.to_vec(), row);
            }
            Some("d") => drop(rows.remove(key)),
            Some("t") => rows.clear(),
            other => return Err(format!("an operation that this consumer does not know: {other:?}").into()),
        }
        Ok(())
    }

    /// Every row.
    pub fn rows(&self) -> impl Iterator<Item = &Row> {
        self.partitions.values().flat_map(BTreeMap::values)
    }
}

/// Puts the values that did not come in place of their placeholders.
fn keep_unchanged(row: &mut Row, before: Option<&Row>, unchanged: &[String]) -> Result<(), Box<dyn Error>> {
    for column in unchanged {
        let value = before.and_then(|before| before.get(column)).ok_or_else(|| {
            format!("\"{column}\" did not come with its row's new key: set REPLICA IDENTITY FULL on the table")
        })?;
        row.insert(column.clone(), value.clone());
    }
    Ok(())
}

/// The columns that an UPDATE did not touch and did not bring.
fn unchanged(message: &BorrowedMessage<'_>) -> Result<Vec<String>, Box<dyn Error>> {
    let header = message.headers().into_iter().flat_map(|all| all.iter()).find(|it| it.key == "walrelay.unchanged");
    header.and_then(|header| header.value).map_or(Ok(Vec::new()), |names| Ok(serde_json::from_slice(names)?))
}

/// Reads the topic from its beginning to its end.
pub fn rebuild(brokers: &str, topic: &str) -> Result<Table, Box<dyn Error>> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("isolation.level", "read_committed")
        .set("enable.partition.eof", "true")
        // The client wants a name even where no group is joined and no offset kept.
        .set("group.id", "rebuild_table")
        .set("enable.auto.commit", "false")
        .create()?;
    let metadata = consumer.fetch_metadata(Some(topic), PATIENCE)?;
    let mut assignment = TopicPartitionList::new();
    let mut unfinished = BTreeSet::new();
    for partition in metadata.topics().iter().flat_map(|topic| topic.partitions()) {
        assignment.add_partition_offset(topic, partition.id(), Offset::Beginning)?;
        unfinished.insert(partition.id());
    }
    consumer.assign(&assignment)?;
    let mut table = Table::default();
    while !unfinished.is_empty() {
        match consumer.poll(PATIENCE) {
            Some(Ok(message)) => {
                let key = message.key().unwrap_or_default();
                table.take(message.partition(), key, message.payload(), &unchanged(&message)?)?;
            }
            Some(Err(KafkaError::PartitionEOF(partition))) => drop(unfinished.remove(&partition)),
            Some(Err(error)) => return Err(error.into()),
            None => return Err(format!("{brokers}: no answer within {PATIENCE:?}").into()),
        }
    }
    Ok(table)
}

#[allow(clippy::print_stdout, reason = "its output")]
fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(brokers), Some(topic)) = (arguments.next(), arguments.next()) else {
        return Err("usage: rebuild_table BROKERS TOPIC".into());
    };
    for row in rebuild(&brokers, &topic)?.rows() {
        println!("{}", serde_json::to_string(row)?);
    }
    Ok(())
}
