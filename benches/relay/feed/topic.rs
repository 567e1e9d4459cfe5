//! Reads a topic of one partition from its beginning to its committed end: to see that a run was right, and to keep its records for a
//! bare producer. Outside of every clock.

use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{BorrowedMessage, Headers as _, Message as _, OwnedHeaders};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::watch::{consumer, end_of};

/// Without a record for so long the reading has failed.
const STILL_LIMIT: Duration = Duration::from_secs(30);

/// What a topic holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Content {
    /// Committed records.
    pub events: u64,
    /// Bytes of keys, values and headers.
    pub bytes: u64,
    /// The sum of the ids in the keys.
    pub sum: u64,
    /// The id in the last key.
    pub last: u64,
}

impl Content {
    /// What correct events of the rows 1 to `events` add up to, whatever their bytes.
    pub fn must_be_whole(&self, events: u64, who: &str) {
        let expected = (events, events * (events + 1) / 2);
        assert_eq!((self.events, self.sum), expected, "{who}: events and the sum of their keys");
        // A copy may come in any order.
        assert!(self.last > 0, "{who}: the last key");
    }
}

/// The id in `{"id":N}`.
pub fn id_of(key: &[u8]) -> u64 {
    key.iter().filter(|byte| byte.is_ascii_digit()).fold(0, |id, byte| id * 10 + u64::from(byte - b'0'))
}

/// A consumer that stands at the beginning of the partition.
pub fn from_beginning(address: &str, topic: &str) -> BaseConsumer {
    let consumer = consumer(address, "read_committed");
    let mut assignment = TopicPartitionList::new();
    assignment.add_partition_offset(topic, 0, Offset::Beginning).unwrap();
    consumer.assign(&assignment).unwrap();
    consumer
}

/// Gives each committed record to `take`.
fn each(address: &str, topic: &str, events: u64, mut take: impl FnMut(&BorrowedMessage<'_>)) {
    let consumer = from_beginning(address, topic);
    let end = end_of(&consumer, topic);
    let (mut count, mut last) = (0, Instant::now());
    while count < events && last.elapsed() < STILL_LIMIT {
        if let Some(message) = consumer.poll(Duration::from_millis(100)) {
            take(&message.unwrap());
            (count, last) = (count + 1, Instant::now());
        }
    }
    // One too many shows here; what stands behind it is a mark of a commit.
    while let Some(message) = consumer.poll(Duration::from_millis(300)) {
        let message = message.unwrap();
        assert!(message.offset() < end, "{topic} still grows");
        take(&message);
    }
}

/// Counts them.
pub fn content(address: &str, topic: &str, events: u64) -> Content {
    let mut content = Content::default();
    each(address, topic, events, |message| {
        let (key, value) = (message.key().unwrap_or_default(), message.payload().unwrap_or_default());
        let headers = message.headers().into_iter().flat_map(|headers| headers.iter());
        let headers: usize = headers.map(|header| header.key.len() + header.value.map_or(0, <[u8]>::len)).sum();
        content.events += 1;
        content.bytes += (key.len() + value.len() + headers) as u64;
        content.last = id_of(key);
        content.sum += content.last;
    });
    content
}

/// Records kept in one piece of memory.
#[derive(Default)]
pub struct Kept {
    bytes: Vec<u8>,
    /// Where each key and each value ends.
    ends: Vec<(usize, usize)>,
    /// Sent with every record: a feed's headers do not differ.
    pub headers: OwnedHeaders,
}

impl Kept {
    /// Those of a topic.
    pub fn of(address: &str, topic: &str, events: u64) -> Self {
        let mut kept = Self::default();
        each(address, topic, events, |message| {
            if kept.ends.is_empty() {
                kept.headers = message.headers().map(|headers| headers.detach()).unwrap_or_default();
            }
            kept.bytes.extend_from_slice(message.key().unwrap_or_default());
            let key_end = kept.bytes.len();
            kept.bytes.extend_from_slice(message.payload().unwrap_or_default());
            kept.ends.push((key_end, kept.bytes.len()));
        });
        assert_eq!(kept.ends.len() as u64, events, "records of {topic}");
        kept
    }

    /// Key and value of each, in their order.
    pub fn records(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let begins = std::iter::once(0).chain(self.ends.iter().map(|(_, end)| *end));
        begins
            .zip(&self.ends)
            .map(|(begin, (key_end, end))| (&self.bytes[begin..*key_end], &self.bytes[*key_end..*end]))
    }
}
