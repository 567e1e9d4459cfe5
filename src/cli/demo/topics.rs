//! The consumer of the Kafka story: reads a topic as a `read_committed` reader sees it, and rebuilds a table from it as strictly as
//! can be: an event that comes twice or is missing is an error. Joins no group, commits no offset.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message as _;
use rdkafka::topic_partition_list::Offset;
use serde_json::Value;

use super::DemoError;
use super::stage::PATIENCE;

/// One look for the next record.
const POLL: Duration = Duration::from_millis(200);

/// One record.
#[derive(Clone, Debug)]
pub(super) struct Event {
    pub(super) partition: i32,
    pub(super) key: String,
    /// Without one it is a tombstone.
    pub(super) value: Option<Value>,
}

impl Event {
    /// `c`, `u`, `d`, `r`, or nothing for a tombstone.
    pub(super) fn operation(&self) -> &str {
        self.value.as_ref().and_then(|value| value["op"].as_str()).unwrap_or("")
    }

    /// As one line for a person: operation, key, the row.
    pub(super) fn line(&self) -> Vec<String> {
        let row = self.value.as_ref().map(|value| match self.operation() {
            "d" => format!("before {}", value["before"]),
            _ => format!("after {}", value["after"]),
        });
        let operation = if self.value.is_some() { self.operation() } else { "-" };
        vec![operation.to_owned(), self.key.clone(), row.unwrap_or_else(|| "null (tombstone)".to_owned())]
    }
}

/// Every event of a topic that is committed by now, in the order of each partition.
pub(super) async fn read(brokers: &str, topic: &str) -> Result<Vec<Event>, DemoError> {
    let (brokers, topic) = (brokers.to_owned(), topic.to_owned());
    let read = tokio::task::spawn_blocking(move || read_now(&brokers, &topic)).await;
    read.map_err(|error| DemoError::Unexpected(error.to_string()))?
}

fn read_now(brokers: &str, topic: &str) -> Result<Vec<Event>, DemoError> {
    let kafka = |error: KafkaError| DemoError::Unexpected(format!("reading the topic {topic}: {error}"));
    let mut settings = ClientConfig::new();
    settings.set("bootstrap.servers", brokers).set("group.id", "walrelay-demo").set("enable.auto.commit", "false");
    settings.set("isolation.level", "read_committed").set("enable.partition.eof", "true");
    settings.set("fetch.wait.max.ms", "20");
    let consumer: BaseConsumer = settings.create().map_err(kafka)?;
    let metadata = consumer.fetch_metadata(Some(topic), PATIENCE).map_err(kafka)?;
    let mut assignment = TopicPartitionList::new();
    let mut unfinished = BTreeSet::new();
    for partition in metadata.topics().iter().flat_map(|topic| topic.partitions()) {
        assignment.add_partition_offset(topic, partition.id(), Offset::Beginning).map_err(kafka)?;
        unfinished.insert(partition.id());
    }
    consumer.assign(&assignment).map_err(kafka)?;
    let mut events = Vec::new();
    let began = Instant::now();
    while !unfinished.is_empty() {
        match consumer.poll(POLL) {
            Some(Ok(record)) => events.push(Event {
                partition: record.partition(),
                key: String::from_utf8_lossy(record.key().unwrap_or_default()).into_owned(),
                value: record.payload().and_then(|value| serde_json::from_slice(value).ok()),
            }),
            Some(Err(KafkaError::PartitionEOF(partition))) => drop(unfinished.remove(&partition)),
            // A broker that was killed a moment ago: the client connects again by itself.
            Some(Err(error)) if began.elapsed() > PATIENCE => return Err(kafka(error)),
            _ if began.elapsed() > PATIENCE => {
                return Err(DemoError::Unexpected(format!("{topic}: no end within {PATIENCE:?}")));
            }
            _ => {}
        }
    }
    Ok(events)
}

/// The rows that a topic's events leave, by their keys; an error for what no correct feed shows.
pub(super) fn rebuild(events: &[Event]) -> Result<BTreeMap<String, Value>, DemoError> {
    let mut rows: BTreeMap<String, Value> = BTreeMap::new();
    for event in events {
        let Some(value) = &event.value else { continue };
        let key = event.key.clone();
        let fault = match event.operation() {
            "c" => rows.insert(key, value["after"].clone()).map(|_| "came twice"),
            "r" => rows.insert(key, value["after"].clone()).and(None),
            "u" => rows.insert(key, value["after"].clone()).is_none().then_some("changes a row that never came"),
            "d" => rows.remove(&key).is_none().then_some("deletes a row that is not there"),
            _ => Some("is of no known kind"),
        };
        if let Some(fault) = fault {
            return Err(DemoError::Unexpected(format!("an event in partition {} {fault}: {value}", event.partition)));
        }
    }
    Ok(rows)
}
