//! `apply_means = "readable"`: waits until a `read_committed` reader can see what was committed. The commit of a Kafka transaction
//! returns when its outcome is irrevocable; the marks that show it to readers follow. Writes nothing.

use std::time::{Duration, Instant};

use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::RDKafkaErrorCode as Code;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::config::KafkaSink;

use super::client::{self, Events};
use super::fault::Fault;
use super::producer::Halt;

/// One answer of the brokers.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// Brokers that do not answer for so long end the attempt.
const SILENCE_LIMIT: Duration = Duration::from_secs(60);
/// First and longest pause between two looks: mostly the marks are there at the first or the second.
const PAUSES: (Duration, Duration) = (Duration::from_micros(500), Duration::from_millis(20));

/// Two readers that are asked for ends only.
pub(super) struct Readability {
    /// Its ends are those of decided transactions.
    committed: BaseConsumer<Events>,
    /// Its ends are those of all records.
    everything: BaseConsumer<Events>,
    halt: Halt,
}

impl Readability {
    pub(super) fn new(sink: &KafkaSink, halt: Halt) -> Result<Self, Fault> {
        let open = |isolation| {
            let settings = client::reader_settings(sink, isolation);
            BaseConsumer::from_config_and_context(&settings, Events::default()).map_err(Fault::from)
        };
        Ok(Self { committed: open("read_committed")?, everything: open("read_uncommitted")?, halt })
    }

    /// Waits until everything that these partitions hold now can be read. A transaction of somebody else that stands open before our
    /// records hides them too: then it waits for its end.
    pub(super) fn wait(&self, partitions: &[(String, i32)], beat: impl Fn()) -> Result<(), Fault> {
        if partitions.is_empty() {
            return Ok(());
        }
        let ends = self.patiently(&beat, || ends(&self.everything, partitions))?;
        let mut pause = PAUSES.0;
        loop {
            let readable = self.patiently(&beat, || self::ends(&self.committed, partitions))?;
            if ends.iter().zip(&readable).all(|(end, readable)| readable >= end) {
                // Serves what the clients have to say, which would gather otherwise.
                let _ = (self.committed.poll(Duration::ZERO), self.everything.poll(Duration::ZERO));
                return Ok(());
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    /// Asks again while the brokers do not answer, within the limit.
    fn patiently<T>(&self, beat: &impl Fn(), ask: impl Fn() -> Result<T, Fault>) -> Result<T, Fault> {
        let began = Instant::now();
        loop {
            beat();
            if self.halt.is_halted() {
                return Err(Fault::from(Code::PurgeQueue));
            }
            match ask() {
                Err(fault) if began.elapsed() > SILENCE_LIMIT => return Err(fault),
                Err(_) => std::thread::sleep(PAUSES.1),
                answer => return answer,
            }
        }
    }
}

/// The ends of the partitions, in their order, as this reader sees them.
fn ends(reader: &BaseConsumer<Events>, partitions: &[(String, i32)]) -> Result<Vec<i64>, Fault> {
    let mut list = TopicPartitionList::with_capacity(partitions.len());
    for (topic, partition) in partitions {
        list.add_partition_offset(topic, *partition, Offset::End)?;
    }
    let answered = reader.offsets_for_times(list, ANSWER_LIMIT)?;
    let of = |(topic, partition): &(String, i32)| {
        let found = answered.find_partition(topic, *partition).ok_or_else(|| Fault::from(Code::UnknownPartition))?;
        found.error()?;
        match found.offset() {
            Offset::Offset(offset) => Ok(offset),
            _ => Err(Fault::from(Code::OffsetOutOfRange)),
        }
    };
    partitions.iter().map(of).collect()
}
