//! Carries records to the producer: finds or makes their topics, gives each its partition, checks its size. Keeps no record.

use std::cell::Cell;
use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use rdkafka::error::RDKafkaErrorCode as Code;

use crate::config::kafka::{ApplyMeans, OnOversized};
use crate::model::{FeedCounts, Heartbeat, Lsn};

use super::fault::Fault;
use super::headway::Headway;
use super::opening::Opening;
use super::producer::{Outgoing, Producer, TopicHandle};
use super::topics::{Topics, listed};
use crate::sink::SinkError;
use crate::sink::kafka::encode::{Header, Outlet, Placement, Record};
use crate::sink::kafka::partition::partition_of;

/// What a record batch of one record costs beside key, value and headers.
const RECORD_OVERHEAD_BYTES: usize = 100;
/// What a header costs beside name and value.
const HEADER_OVERHEAD_BYTES: usize = 10;
/// What a topic takes is asked anew so seldom, however many records are too large for it.
const RAISE_PAUSE: Duration = Duration::from_secs(5);

/// Names the part of a transaction that is sent in several: 1, 2, ….
const PART_HEADER: &str = "walrelay.split";

/// Where the records of one topic go.
#[derive(Clone, Copy, Debug)]
struct Target {
    handle: TopicHandle,
    partitions: i32,
    record_bytes: usize,
    /// When it was last asked whether it takes more by now.
    asked: Option<Instant>,
}

/// The outlet of the encoder.
pub(super) struct Carrier {
    pub(super) producer: Producer,
    pub(super) topics: Topics,
    targets: HashMap<String, usize>,
    list: Vec<(String, Target)>,
    /// The target of the last record: mostly that of the next.
    last: usize,
    on_oversized: OnOversized,
    dead_letter_topic: String,
    deadline: Option<Instant>,
    /// No broker answered at some look since the limit was set.
    were_away: Cell<bool>,
    pub(super) dead_letters: u64,
    /// Of a transaction that is sent in parts: the number of the open one, as text.
    part: Option<String>,
    /// Partitions that records went to, where somebody wants to know them.
    touched: Option<BTreeSet<(usize, i32)>>,
    heartbeat: Heartbeat,
    feed: FeedCounts,
}

impl Carrier {
    pub(super) fn new(opening: &Opening, producer: Producer, topics: Topics) -> Self {
        let sink = &opening.sink;
        opening.feed.set_brokers_away(false);
        Self {
            producer,
            topics,
            targets: HashMap::new(),
            list: Vec::new(),
            last: 0,
            on_oversized: sink.on_oversized,
            dead_letter_topic: sink.dead_letter_topic_name(),
            deadline: None,
            were_away: Cell::new(false),
            dead_letters: 0,
            part: None,
            touched: (sink.apply_means == ApplyMeans::Readable).then(BTreeSet::new),
            heartbeat: opening.heartbeat.clone(),
            feed: opening.feed.clone(),
        }
    }

    /// Until when records may wait for room; `None`: as long as it takes.
    pub(super) fn set_limit(&mut self, limit: Option<Duration>) {
        self.deadline = limit.map(|limit| Instant::now() + limit);
        self.were_away.set(false);
    }

    /// The number of the part that records belong to from now on, which their header [`PART_HEADER`] names.
    pub(super) fn set_part(&mut self, number: Option<u64>) {
        self.part = number.map(|number| number.to_string());
    }

    /// Whether the limit is over.
    pub(super) fn is_late(&self) -> bool {
        self.deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }

    /// Whether the brokers, not the records, took the time since the limit was set: none answered at some look, or none does now. A limit
    /// shorter than the pause between two looks may be over before the first.
    pub(super) fn missed_brokers(&self) -> bool {
        self.were_away.get() || self.vanished(&[]).is_none()
    }

    /// Which of these topics are gone, and whether the brokers answer at all, which is noted.
    fn vanished(&self, names: &[&str]) -> Option<Vec<String>> {
        let answer = self.topics.vanished(names);
        self.feed.set_brokers_away(answer.is_none());
        if answer.is_none() {
            self.were_away.set(true);
            self.heartbeat.beat();
        }
        answer
    }

    /// Hands a record over as it is.
    pub(super) fn produce(&self, handle: TopicHandle, record: Outgoing<'_>) -> Result<(), SinkError> {
        let mut headway = Headway::default();
        loop {
            match self.producer.produce(handle, record, self.deadline) {
                Ok(()) => return Ok(()),
                Err(fault) if fault.code == Some(Code::QueueFull) => self.look(&mut headway)?,
                Err(fault) => return Err(self.failed(fault, "handing a record to the Kafka client")),
            }
        }
    }

    /// The client waits for a topic as long as a transaction may take, and longer where there is none: one that somebody deleted
    /// is seen here. So is a client that makes no headway although the brokers answer: another one begins anew. Brokers that are away are
    /// waited for, and that is no standstill of ours.
    pub(super) fn look(&self, headway: &mut Headway) -> Result<(), SinkError> {
        let names: Vec<&str> = self.list.iter().map(|(name, _)| name.as_str()).collect();
        let answer = self.vanished(&names);
        if headway.is_lost(self.producer.waiting(), answer.is_some()) {
            let context = "the brokers answer, but the Kafka client has delivered nothing for half a minute: another one begins anew";
            return Err(Fault::from(Code::OperationTimedOut).that_passes(context.to_owned()));
        }
        let vanished = answer.unwrap_or_default();
        if vanished.is_empty() {
            return Ok(());
        }
        let context = format!("records were on their way to {}, which somebody deleted", listed(&vanished));
        Err(Fault::from(Code::UnknownTopicOrPartition).while_doing(context, None))
    }

    /// An error with what the producer knows more.
    pub(super) fn failed(&self, fault: Fault, doing: &str) -> SinkError {
        let events = self.producer.events();
        match events.failed_delivery() {
            Some((topic, fault)) => {
                let context = format!("a record for the topic \"{topic}\" was not delivered");
                let is_too_large = fault.code == Some(Code::MessageSizeTooLarge);
                match is_too_large.then(|| self.topics.takes_less(&topic)).flatten() {
                    Some((before, now)) => fault.that_passes(format!(
                        "{context}: the topic takes less than when the feed began (max.message.bytes is {now}, was {before}), which begins \
                         anew with that"
                    )),
                    None if is_too_large => fault.while_doing(
                        format!(
                            "{context}: the broker takes smaller batches than the producer makes. Raise the topic's max.message.bytes to 1 MB, \
                             or set \"batch.size\" under [pipeline.sink.client] below what it is"
                        ),
                        events.connection(),
                    ),
                    None => fault.while_doing(context, events.connection()),
                }
            }
            None => fault.while_doing(doing, events.connection()),
        }
    }

    fn target(&mut self, topic: &str) -> Result<Target, SinkError> {
        if let Some((name, target)) = self.list.get(self.last)
            && name == topic
        {
            return Ok(*target);
        }
        if let Some(index) = self.targets.get(topic) {
            self.last = *index;
            return Ok(self.list[*index].1);
        }
        self.topics.ensure(&[topic.to_owned()])?;
        let (partitions, record_bytes) =
            self.topics.known(topic).map_or((1, usize::MAX), |facts| (facts.partitions, facts.record_bytes));
        let handle = self
            .producer
            .topic(topic)
            .map_err(|fault| fault.while_doing(format!("opening the topic \"{topic}\""), None))?;
        let target = Target { handle, partitions, record_bytes, asked: None };
        self.last = self.list.len();
        self.targets.insert(topic.to_owned(), self.last);
        self.list.push((topic.to_owned(), target));
        Ok(target)
    }

    /// What the topic that was looked up last takes: a record seems too large, and somebody may have raised it meanwhile.
    fn limit_now(&mut self) -> usize {
        let Some((name, target)) = self.list.get_mut(self.last) else { return 0 };
        if target.asked.is_none_or(|asked| asked.elapsed() >= RAISE_PAUSE) {
            if let Some(now) = self.topics.takes_more(name) {
                tracing::info!(
                    topic = name.as_str(),
                    before = target.record_bytes,
                    now,
                    "the topic takes larger records"
                );
                target.record_bytes = now;
            }
            target.asked = Some(Instant::now());
        }
        target.record_bytes
    }

    /// The partitions that records went to since this was asked.
    pub(super) fn take_touched(&mut self) -> Vec<(String, i32)> {
        let touched = self.touched.as_mut().map(std::mem::take).unwrap_or_default();
        touched.into_iter().map(|(target, partition)| (self.list[target].0.clone(), partition)).collect()
    }

    /// The next record goes to this partition of the topic that was looked up last.
    fn touch(&mut self, partition: i32) {
        if let Some(touched) = &mut self.touched {
            touched.insert((self.last, partition));
        }
    }

    fn oversized(&mut self, record: &Record<'_>, bytes: usize, limit: usize) -> Result<(), SinkError> {
        let Lsn(_) = record.lsn;
        if self.on_oversized == OnOversized::Stop {
            return Err(SinkError::Refused(format!(
                "a record of {bytes} bytes for the topic \"{topic}\" (change at {lsn}) is larger than the topic takes \
                 (max.message.bytes = {limit}): raise it with kafka-configs --alter --entity-type topics --entity-name {topic} \
                 --add-config max.message.bytes=…, or set on_oversized = \"dead_letter\"",
                topic = record.topic,
                lsn = record.lsn
            )));
        }
        let topic = std::mem::take(&mut self.dead_letter_topic);
        let target = self.target(&topic);
        self.dead_letter_topic = topic;
        let target = target?;
        self.dead_letters += 1;
        tracing::warn!(topic = record.topic, lsn = %record.lsn, bytes, limit, "an oversized record went to the dead letters");
        let (key, value) = letter(record, bytes, limit, target.record_bytes);
        let partition = partition_of(key, target.partitions);
        self.touch(partition);
        let letter =
            Outgoing { partition, key, value: Some(value.as_bytes()), headers: &[], timestamp_ms: record.timestamp_ms };
        self.produce(target.handle, letter)
    }
}

/// Key and value of what goes to the dead letters in a record's stead. Where the key is what is large, and the letter would be larger than
/// `most_bytes` with it, only its length is told.
fn letter<'a>(record: &Record<'a>, bytes: usize, limit: usize, most_bytes: usize) -> (Option<&'a [u8]>, String) {
    let mut value = serde_json::json!({
        "reason": format!("larger than max.message.bytes = {limit}"),
        "topic": record.topic,
        "key": record.key.map(String::from_utf8_lossy),
        "lsn": record.lsn.to_string(),
        "xid": record.xid,
        "bytes": bytes,
    });
    let text = value.to_string();
    let key_bytes = record.key.map_or(0, <[u8]>::len);
    if key_bytes == 0 || key_bytes + text.len() + RECORD_OVERHEAD_BYTES <= most_bytes {
        return (record.key, text);
    }
    value["key"] = serde_json::Value::Null;
    value["key_bytes"] = key_bytes.into();
    (None, value.to_string())
}

fn size_of(record: &Record<'_>) -> usize {
    let headers: usize =
        record.headers.iter().map(|header| header.name.len() + header.value.len() + HEADER_OVERHEAD_BYTES).sum();
    record.key.map_or(0, <[u8]>::len) + record.value.map_or(0, <[u8]>::len) + headers + RECORD_OVERHEAD_BYTES
}

impl Outlet for Carrier {
    fn send(&mut self, record: Record<'_>) -> Result<(), SinkError> {
        let Some(part) = self.part.take() else { return self.send_as_it_is(record) };
        let mut headers = record.headers.to_vec();
        headers.push(Header { name: PART_HEADER, value: part.as_bytes() });
        let sent = self.send_as_it_is(Record { headers: &headers, ..record });
        self.part = Some(part);
        sent
    }
}

impl Carrier {
    fn send_as_it_is(&mut self, record: Record<'_>) -> Result<(), SinkError> {
        let target = self.target(record.topic)?;
        let bytes = size_of(&record);
        if bytes > target.record_bytes {
            let limit = self.limit_now();
            if bytes > limit {
                return self.oversized(&record, bytes, limit);
            }
        }
        let partitions = match record.placement {
            Placement::ByKey => {
                let partition = partition_of(record.key, target.partitions);
                partition..partition + 1
            }
            Placement::EveryPartition => 0..target.partitions,
        };
        for partition in partitions {
            self.touch(partition);
            let outgoing = Outgoing {
                partition,
                key: record.key,
                value: record.value,
                headers: record.headers,
                timestamp_ms: record.timestamp_ms,
            };
            self.produce(target.handle, outgoing)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_letter_leaves_out_the_key_that_is_too_large_for_the_letter_itself() {
        let key = vec![b'k'; 1000];
        let record = Record {
            topic: "shop.public.t",
            placement: Placement::ByKey,
            key: Some(&key),
            value: Some(b"{}"),
            headers: &[],
            timestamp_ms: 0,
            lsn: Lsn(0x1f),
            xid: Some(7),
        };
        // It would hold the key twice.
        for (most_bytes, is_whole) in [(3000, true), (1500, false)] {
            let (found, value) = letter(&record, 1102, 1000, most_bytes);
            let value: serde_json::Value = serde_json::from_str(&value).unwrap();
            assert_eq!(found.is_some(), is_whole, "{most_bytes}");
            assert_eq!(value["key"].as_str().map(str::len), is_whole.then_some(1000), "{value}");
            assert_eq!(value["key_bytes"].as_u64(), (!is_whole).then_some(1000), "{value}");
            assert_eq!((value["topic"].as_str(), value["lsn"].as_str()), (Some("shop.public.t"), Some("0/1F")));
        }
        let (key, value) = letter(&Record { key: None, ..record }, 5000, 1000, 10);
        assert!(key.is_none() && !value.contains("key_bytes"), "{value}");
    }
}
