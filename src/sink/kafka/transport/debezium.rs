//! What Kafka Connect keeps of a Debezium connector for Postgres: the offset up to which its events were sent. Reads Connect's own
//! topic, writes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::Message;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use serde::Deserialize;

use crate::config::KafkaSink;
use crate::model::Lsn;

use super::client::{self, Events};
use super::fault::Fault;
use super::producer::Halt;
use super::reader::may_pass;
use super::sink::in_background;
use crate::sink::SinkError;

/// One answer of a broker.
const ANSWER_LIMIT: Duration = Duration::from_secs(15);
/// The whole reading.
const READ_LIMIT: Duration = Duration::from_secs(120);
/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(100);
/// More names are not remembered.
const CONNECTORS_LIMIT: usize = 100;

/// How far a connector came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DebeziumOffset {
    /// Its `topic.prefix`.
    pub server: String,
    /// The end of the last transaction that it sent whole and that its offset tells of: whatever is behind it is sent again, and so
    /// is a transaction of which it sent a part.
    pub start_lsn: Lsn,
}

/// What the topic says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DebeziumOffsets {
    /// The connector's offset; `None`: there is none.
    pub found: Option<DebeziumOffset>,
    /// Other connectors that have an offset there.
    pub others: BTreeSet<String>,
}

/// The parts of the offset that tell a position; all numbers are LSNs.
#[derive(Debug, Deserialize)]
struct Value {
    /// Of the last event.
    lsn: Option<u64>,
    /// The end of the last commit before that event.
    lsn_commit: Option<u64>,
    /// Of the last event that was sent whole.
    lsn_proc: Option<u64>,
    /// There while a snapshot is under way: a word, or true.
    snapshot: Option<serde_json::Value>,
    last_snapshot_record: Option<bool>,
}

/// Reads the offsets topic of a Connect cluster to its end.
pub async fn debezium_offsets(sink: &KafkaSink, topic: &str, connector: &str) -> Result<DebeziumOffsets, SinkError> {
    let (sink, topic, connector) = (sink.clone(), topic.to_owned(), connector.to_owned());
    in_background(move |halt| read(&sink, &topic, &connector, halt)).await
}

fn read(sink: &KafkaSink, topic: &str, connector: &str, halt: &Halt) -> Result<DebeziumOffsets, SinkError> {
    let events = Events::default();
    let failed = |fault: Fault| fault.while_doing(format!("reading the topic \"{topic}\""), events.connection());
    let settings = client::reader_settings(sink, "read_committed");
    let consumer: BaseConsumer<Events> =
        BaseConsumer::from_config_and_context(&settings, events.clone()).map_err(|error| failed(error.into()))?;
    let partitions = partitions_of(&consumer, topic).map_err(failed)?;
    let mut assignment = TopicPartitionList::new();
    let mut unfinished = BTreeSet::new();
    for partition in 0..partitions {
        let added = assignment.add_partition_offset(topic, partition, Offset::Beginning);
        added.map_err(|error| failed(error.into()))?;
        unfinished.insert(partition);
    }
    consumer.assign(&assignment).map_err(|error| failed(error.into()))?;
    let deadline = Instant::now() + READ_LIMIT;
    let mut reading = Reading::new(connector, &sink.topic_prefix);
    while !unfinished.is_empty() {
        match consumer.poll(PAUSE) {
            Some(Ok(record)) => reading.take(record.key().unwrap_or_default(), record.payload()),
            Some(Err(KafkaError::PartitionEOF(partition))) => drop(unfinished.remove(&partition)),
            Some(Err(error)) if !may_pass(&error) => return Err(failed(error.into())),
            _ => {}
        }
        if halt.is_halted() || Instant::now() >= deadline {
            return Err(failed(Fault::from(Code::OperationTimedOut)));
        }
    }
    reading.finish()
}

fn partitions_of(consumer: &BaseConsumer<Events>, topic: &str) -> Result<i32, Fault> {
    let metadata = consumer.fetch_metadata(Some(topic), ANSWER_LIMIT)?;
    let found = metadata.topics().first().ok_or_else(|| Fault::from(Code::UnknownTopicOrPartition))?;
    found.error().map_or(Ok(found.partitions().len() as i32), |code| Err(Fault::from(Code::from(code))))
}

/// Gathers what the topic says; of each key the last record counts, and all of one key stand in one partition.
struct Reading<'a> {
    connector: &'a str,
    /// Ours: of several that the connector has had, this one counts.
    topic_prefix: &'a str,
    /// The last offset under each of the connector's prefixes.
    last: BTreeMap<String, Vec<u8>>,
    others: BTreeSet<String>,
}

impl<'a> Reading<'a> {
    fn new(connector: &'a str, topic_prefix: &'a str) -> Self {
        Self { connector, topic_prefix, last: BTreeMap::new(), others: BTreeSet::new() }
    }

    /// The key is `["connector",{"server":"prefix"}]`.
    fn take(&mut self, key: &[u8], value: Option<&[u8]>) {
        let Ok((name, partition)) = serde_json::from_slice::<(String, serde_json::Value)>(key) else { return };
        if name == self.connector {
            let server = partition["server"].as_str().unwrap_or("").to_owned();
            match value {
                Some(value) => drop(self.last.insert(server, value.to_vec())),
                None => drop(self.last.remove(&server)),
            }
        } else if value.is_none() {
            self.others.remove(&name);
        } else if self.others.len() < CONNECTORS_LIMIT {
            self.others.insert(name);
        }
    }

    fn finish(mut self) -> Result<DebeziumOffsets, SinkError> {
        let ours = self.last.remove_entry(self.topic_prefix);
        let found = match ours {
            None if self.last.len() > 1 => {
                let prefixes: Vec<String> = self.last.keys().map(|prefix| format!("\"{prefix}\"")).collect();
                return Err(SinkError::Refused(format!(
                    "the connector \"{}\" has offsets under several prefixes, {}: set topic_prefix in [pipeline.sink] to the one to go on from",
                    self.connector,
                    prefixes.join(", ")
                )));
            }
            None => self.last.pop_first(),
            ours => ours,
        };
        let found = found.map(|(server, value)| offset_of(self.connector, server, &value)).transpose()?;
        Ok(DebeziumOffsets { found, others: self.others })
    }
}

fn offset_of(connector: &str, server: String, value: &[u8]) -> Result<DebeziumOffset, SinkError> {
    let refused = |why: &str| SinkError::Refused(format!("the offset of the connector \"{connector}\" {why}"));
    let value: Value = serde_json::from_slice(value).map_err(|_| refused("is not one of Debezium's for Postgres"))?;
    let is_in_snapshot = value.snapshot.is_some_and(|word| !word.is_null() && word != false && word != "false");
    if is_in_snapshot && value.last_snapshot_record != Some(true) {
        return Err(refused(
            "stands within its initial snapshot, which walrelay cannot continue: let it come to its end, or begin anew with initial_copy = true",
        ));
    }
    // Behind a snapshot and before the first commit there is only the snapshot's own position.
    let position = value.lsn_commit.or(value.lsn_proc).or(value.lsn);
    let start_lsn = position.map(Lsn).ok_or_else(|| refused("holds no position (lsn_commit, lsn_proc, lsn)"))?;
    Ok(DebeziumOffset { server, start_lsn })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(records: &[(&str, Option<&str>)], expected: Result<Option<u64>, &str>) {
        let mut reading = Reading::new("shop-connector", "shop");
        for (key, value) in records {
            reading.take(key.as_bytes(), value.map(str::as_bytes));
        }
        match (reading.finish(), expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found.found.map(|offset| offset.start_lsn.0), expected),
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
            (found, expected) => panic!("{found:?} instead of {expected:?}"),
        }
    }

    #[test]
    fn the_position_behind_the_last_whole_transaction_counts() {
        let key = r#"["shop-connector",{"server":"shop"}]"#;
        let streaming = r#"{"transaction_id":null,"lsn_proc":120,"messageType":"UPDATE","lsn_commit":100,"lsn":130,"txId":7,"ts_usec":1}"#;
        check(&[], Ok(None));
        check(&[(key, Some(streaming))], Ok(Some(100)));
        check(&[(key, Some(streaming)), (key, Some(r#"{"lsn":300,"lsn_proc":300,"lsn_commit":290}"#))], Ok(Some(290)));
        check(&[(key, Some(streaming)), (key, None)], Ok(None));
        check(&[(r#"["other",{"server":"shop"}]"#, Some(streaming)), ("no json", None)], Ok(None));
        check(&[(key, Some(r#"{"lsn":50,"txId":1,"snapshot":"INITIAL","last_snapshot_record":true}"#))], Ok(Some(50)));
        check(&[(key, Some(r#"{"lsn":50,"snapshot":true,"last_snapshot_record":false}"#))], Err("initial_copy = true"));
        check(&[(key, Some(r#"{"filename":"a"}"#))], Err("no position"));
        check(&[(key, Some("[]"))], Err("not one of Debezium's"));
        // The connector had other prefixes: ours counts, in whatever order they come; without it, only one that is alone.
        let (before, long_before) =
            (r#"["shop-connector",{"server":"old"}]"#, r#"["shop-connector",{"server":"older"}]"#);
        let old = r#"{"lsn_commit":900}"#;
        check(&[(key, Some(streaming)), (before, Some(old))], Ok(Some(100)));
        check(&[(key, Some(streaming)), (before, None)], Ok(Some(100)));
        check(&[(before, Some(old))], Ok(Some(900)));
        check(&[(before, Some(old)), (long_before, Some(old))], Err("\"old\", \"older\""));
    }

    #[test]
    fn other_connectors_are_named() {
        let mut reading = Reading::new("a", "x");
        reading.take(br#"["b",{"server":"x"}]"#, Some(b"{}"));
        reading.take(br#"["c",{"server":"x"}]"#, Some(b"{}"));
        reading.take(br#"["c",{"server":"x"}]"#, None);
        assert_eq!(reading.finish().unwrap().others, BTreeSet::from(["b".to_owned()]));
    }
}
