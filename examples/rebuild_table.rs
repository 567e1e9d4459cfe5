//! Rebuilds a table from a feed of walrelay in Debezium's format, truncates included, and prints its rows as JSON lines:
//!
//! ```sh
//! cargo run --example rebuild_table -- kafka1:9092 shop.public.orders
//! ```
//!
//! What a consumer must do, and why it is enough:
//!
//! * read `read_committed`: a record is seen only with its whole transaction, once;
//! * keep the rows of each partition apart: a key never changes its partition, so a TRUNCATE, which is sent to every partition,
//!   removes exactly what stands before it there;
//! * keep the old value of the columns that the header `walrelay.unchanged` names: an UPDATE that does not touch a large value does
//!   not bring it.
//!
//! It reads to the end of the topic and stops. Writes nothing, joins no group, commits no offset.

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

/// The rows of one table: for each partition its keys, as bytes, with their rows.
#[derive(Debug, Default)]
pub struct Table {
    partitions: BTreeMap<i32, BTreeMap<Vec<u8>, Map<String, Value>>>,
}

impl Table {
    /// Takes the next record of a partition.
    pub fn apply(
        &mut self,
        partition: i32,
        key: &[u8],
        value: Option<&[u8]>,
        unchanged: &[String],
    ) -> Result<(), Box<dyn Error>> {
        // A tombstone follows each delete, for log compaction; it says nothing new.
        let Some(value) = value else { return Ok(()) };
        let mut event: Value = serde_json::from_slice(value)?;
        // With schemas_value = true the event stands inside.
        if let Some(payload) = event.get_mut("payload") {
            event = payload.take();
        }
        let rows = self.partitions.entry(partition).or_default();
        match event["op"].as_str() {
            Some("c" | "r" | "u") => {
                let Value::Object(mut row) = event["after"].take() else { return Err("an event without a row".into()) };
                let before = rows.get(key);
                for column in unchanged {
                    if let Some(kept) = before.and_then(|before| before.get(column)) {
                        row.insert(column.clone(), kept.clone());
                    }
                }
                rows.insert(key.to_vec(), row);
            }
            Some("d") => drop(rows.remove(key)),
            Some("t") => rows.clear(),
            other => return Err(format!("an operation that this example does not know: {other:?}").into()),
        }
        Ok(())
    }

    /// Every row.
    pub fn rows(&self) -> impl Iterator<Item = &Map<String, Value>> {
        self.partitions.values().flat_map(BTreeMap::values)
    }
}

/// The columns that an UPDATE did not touch and did not bring.
fn unchanged(message: &BorrowedMessage<'_>) -> Result<Vec<String>, Box<dyn Error>> {
    let headers = message.headers().into_iter().flat_map(|headers| headers.iter());
    match headers.into_iter().find(|header| header.key == "walrelay.unchanged").and_then(|header| header.value) {
        Some(names) => Ok(serde_json::from_slice(names)?),
        None => Ok(Vec::new()),
    }
}

/// Reads the topic from its beginning to its end.
pub fn rebuild(brokers: &str, topic: &str) -> Result<Table, Box<dyn Error>> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "rebuild_table")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .set("isolation.level", "read_committed")
        .create()?;
    let metadata = consumer.fetch_metadata(Some(topic), PATIENCE)?;
    let mut assignment = TopicPartitionList::new();
    let mut open = BTreeSet::new();
    for partition in metadata.topics().iter().flat_map(|topic| topic.partitions()) {
        assignment.add_partition_offset(topic, partition.id(), Offset::Beginning)?;
        open.insert(partition.id());
    }
    consumer.assign(&assignment)?;
    let mut table = Table::default();
    while !open.is_empty() {
        match consumer.poll(PATIENCE) {
            Some(Ok(message)) if open.contains(&message.partition()) => {
                let key = message.key().unwrap_or_default();
                table.apply(message.partition(), key, message.payload(), &unchanged(&message)?)?;
            }
            Some(Ok(_)) => {}
            Some(Err(KafkaError::PartitionEOF(partition))) => drop(open.remove(&partition)),
            Some(Err(error)) => return Err(error.into()),
            None => return Err(format!("{brokers} is silent").into()),
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
        println!("{}", Value::Object(row.clone()));
    }
    Ok(())
}
