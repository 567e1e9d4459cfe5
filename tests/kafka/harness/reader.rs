//! The consumer of the tests: reads whole topics up to the end that a `read_committed` reader sees. Never commits an offset, never
//! joins a group.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Headers as _, Message as _};
use rdkafka::topic_partition_list::Offset;
use serde_json::Value;

use super::PATIENCE;

/// One record of a topic, as its bytes came.
#[derive(Clone, Debug)]
pub struct Record {
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
    pub timestamp_ms: i64,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(String, Vec<u8>)>,
}

impl Record {
    fn of(message: &BorrowedMessage<'_>) -> Self {
        let headers = message.headers().into_iter().flat_map(|headers| headers.iter());
        Self {
            topic: message.topic().to_owned(),
            partition: message.partition(),
            offset: message.offset(),
            timestamp_ms: message.timestamp().to_millis().unwrap_or(-1),
            key: message.key().map(<[u8]>::to_vec),
            value: message.payload().map(<[u8]>::to_vec),
            headers: headers.map(|header| (header.key.to_owned(), header.value.unwrap_or_default().to_vec())).collect(),
        }
    }

    /// The key's JSON, null without one.
    pub fn key_json(&self) -> Value {
        self.key.as_deref().map_or(Value::Null, json)
    }

    /// The value's JSON, null for a tombstone.
    pub fn json(&self) -> Value {
        self.value.as_deref().map_or(Value::Null, json)
    }

    /// The key as text, empty without one.
    pub fn key_text(&self) -> String {
        String::from_utf8(self.key.clone().unwrap_or_default()).unwrap()
    }

    /// A header as text.
    pub fn header(&self, name: &str) -> Option<String> {
        let found = self.headers.iter().find(|(key, _)| key == name)?;
        Some(String::from_utf8(found.1.clone()).unwrap())
    }
}

/// By the parser that the library itself holds, optimized: tests read hundreds of megabytes.
fn json(bytes: &[u8]) -> Value {
    let text = std::str::from_utf8(bytes).unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(bytes)));
    text.parse().unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Reads topics of one broker.
#[derive(Clone)]
pub struct Reader {
    settings: ClientConfig,
}

impl Reader {
    pub fn new(address: &str) -> Self {
        Self::with(address, &[])
    }

    /// With librdkafka properties of its own, e.g. TLS, or `isolation.level`.
    pub fn with(address: &str, properties: &[(&str, &str)]) -> Self {
        let mut settings = ClientConfig::new();
        settings.set("bootstrap.servers", address).set("group.id", "walrelay.test").set("enable.auto.commit", "false");
        settings.set("enable.partition.eof", "true").set("isolation.level", "read_committed");
        settings.set("allow.auto.create.topics", "false").set("fetch.wait.max.ms", "50");
        for (name, value) in properties {
            settings.set(*name, *value);
        }
        Self { settings }
    }

    /// The topics of the broker, without its internal ones.
    pub async fn topics(&self) -> BTreeSet<String> {
        self.partitions().await.into_iter().map(|(topic, _)| topic).collect()
    }

    /// Every topic with the number of its partitions.
    pub async fn partitions(&self) -> Vec<(String, i32)> {
        let settings = self.settings.clone();
        blocking(move || {
            let consumer: BaseConsumer = settings.create().unwrap();
            let metadata = consumer.fetch_metadata(None, PATIENCE).unwrap();
            let topics = metadata.topics().iter().filter(|topic| !topic.name().starts_with("__"));
            topics.map(|topic| (topic.name().to_owned(), topic.partitions().len() as i32)).collect()
        })
        .await
    }

    /// Waits until no transaction is open in any partition: a commit is irrevocable before its markers let a reader see it.
    pub async fn settled(&self) {
        let topics = self.partitions().await;
        let settings = self.settings.clone();
        blocking(move || {
            let committed: BaseConsumer = settings.create().unwrap();
            let everything: BaseConsumer =
                settings.clone().set("isolation.level", "read_uncommitted").create().unwrap();
            let began = Instant::now();
            let end = |consumer: &BaseConsumer, topic: &str, partition| {
                consumer.fetch_watermarks(topic, partition, PATIENCE).unwrap().1
            };
            for (topic, partitions) in &topics {
                for partition in 0..*partitions {
                    while end(&committed, topic, partition) < end(&everything, topic, partition) {
                        assert!(began.elapsed() < PATIENCE, "a transaction stays open in {topic}/{partition}");
                        std::thread::sleep(Duration::from_millis(20));
                    }
                }
            }
        })
        .await;
    }

    /// Every record of these topics that is committed by now: partition by partition in order of their offsets. A topic that is
    /// not there has no record.
    pub async fn read(&self, topics: &[&str]) -> Vec<Record> {
        let (sender, receiver) = std::sync::mpsc::channel();
        self.each(topics, move |message| sender.send(Record::of(message)).unwrap()).await;
        let mut records: Vec<Record> = receiver.into_iter().collect();
        records.sort_by(|one, other| {
            (&one.topic, one.partition, one.offset).cmp(&(&other.topic, other.partition, other.offset))
        });
        records
    }

    /// Where each partition of these topics ends for a reader.
    pub async fn ends(&self, topics: &[&str]) -> BTreeMap<(String, i32), i64> {
        let mut partitions = self.partitions().await;
        partitions.retain(|(topic, _)| topics.contains(&topic.as_str()));
        let settings = self.settings.clone();
        blocking(move || {
            let consumer: BaseConsumer = settings.create().unwrap();
            let places =
                partitions.iter().flat_map(|(topic, count)| (0..*count).map(move |partition| (topic, partition)));
            let end = |topic: &str, partition| consumer.fetch_watermarks(topic, partition, PATIENCE).unwrap().1;
            places.map(|(topic, partition)| ((topic.clone(), partition), end(topic, partition))).collect()
        })
        .await
    }

    /// How many records of one topic are committed; keeps none of them.
    pub async fn count(&self, topic: &str) -> u64 {
        let count = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&count);
        self.each(&[topic], move |_| {
            let _ = counted.fetch_add(1, Ordering::Relaxed);
        })
        .await;
        count.load(Ordering::Relaxed)
    }

    /// Gives each committed record of these topics to `take`.
    async fn each(&self, topics: &[&str], mut take: impl FnMut(&BorrowedMessage<'_>) + Send + 'static) {
        let wanted: BTreeSet<&str> = topics.iter().copied().collect();
        let partitions: Vec<(String, i32)> =
            self.partitions().await.into_iter().filter(|(topic, _)| wanted.contains(topic.as_str())).collect();
        let settings = self.settings.clone();
        blocking(move || {
            for (topic, count) in &partitions {
                read_to_the_end(&settings, topic, *count, &mut take);
            }
        })
        .await;
    }

    /// Every record of one topic with one partition, or of several partitions one after the other.
    pub async fn read_one(&self, topic: &str) -> Vec<Record> {
        self.read(&[topic]).await
    }

    /// Every record of every topic whose name begins so.
    pub async fn read_prefix(&self, prefix: &str) -> Vec<Record> {
        let topics = self.topics().await;
        let topics: Vec<&str> = topics.iter().map(String::as_str).filter(|topic| topic.starts_with(prefix)).collect();
        self.read(&topics).await
    }

    /// Reads these topics again and again until `is_enough`.
    pub async fn read_until(&self, what: &str, topics: &[&str], is_enough: impl Fn(&[Record]) -> bool) -> Vec<Record> {
        let began = Instant::now();
        loop {
            let records = self.read(topics).await;
            if is_enough(&records) {
                return records;
            }
            let shown: Vec<String> = records.iter().rev().take(5).map(|record| format!("{record:?}")).collect();
            assert!(
                began.elapsed() < PATIENCE,
                "waited in vain: {what}; {} records in {topics:?}, the last:\n{}",
                records.len(),
                shown.join("\n")
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Until there are at least so many.
    pub async fn read_count(&self, topics: &[&str], count: usize) -> Vec<Record> {
        self.read_until(&format!("{count} records"), topics, |records| records.len() >= count).await
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

/// Topic by topic, because librdkafka's end-of-partition names no topic.
fn read_to_the_end(settings: &ClientConfig, topic: &str, partitions: i32, take: &mut impl FnMut(&BorrowedMessage<'_>)) {
    let mut assignment = TopicPartitionList::new();
    for partition in 0..partitions {
        assignment.add_partition_offset(topic, partition, Offset::Beginning).unwrap();
    }
    let consumer: BaseConsumer = settings.create().unwrap();
    consumer.assign(&assignment).unwrap();
    let mut open: BTreeSet<i32> = (0..partitions).collect();
    let mut last = Instant::now();
    while !open.is_empty() {
        match consumer.poll(Duration::from_millis(200)) {
            Some(Ok(message)) => {
                last = Instant::now();
                // What arrives behind an end that was seen belongs to the next reading.
                if open.contains(&message.partition()) {
                    take(&message);
                }
            }
            Some(Err(KafkaError::PartitionEOF(partition))) => drop(open.remove(&partition)),
            // Brokers restart in these tests: the client connects again by itself.
            answer => {
                assert!(last.elapsed() < PATIENCE, "{topic}: no end of {open:?}: {:?}", answer.map(|it| it.err()))
            }
        }
    }
}
