//! `apply_means = "readable"`: how far a `read_committed` reader can see what was committed. The commit of a Kafka transaction
//! returns when its outcome is irrevocable; the marks that show it to readers follow, and a transaction of somebody else that stands
//! open before our records hides them too. One look at a time, so that nothing else waits for readers. Writes nothing.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::RDKafkaErrorCode as Code;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::config::KafkaSink;
use crate::model::Lsn;

use super::client::{self, Events};
use super::fault::Fault;
use super::producer::Halt;

/// One answer of the brokers.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// Brokers that do not answer for so long end the attempt.
const SILENCE_LIMIT: Duration = Duration::from_secs(60);
/// First and longest pause before another look: mostly the marks are there at the first or the second.
const PAUSES: (Duration, Duration) = (Duration::from_micros(500), Duration::from_millis(20));
/// After so many looks in vain it is asked whether there is still anything to be seen: mostly the next look finds the marks.
const VAIN_LOOKS_LIMIT: u32 = 8;
/// More batches that readers do not see are taken as one.
const UNREAD_LIMIT: usize = 64;

/// A partition of a topic.
type Partition = (String, i32);

/// A batch that readers do not see yet.
struct Unread {
    position: Lsn,
    partitions: BTreeSet<Partition>,
    /// Where they ended when it was first looked for.
    ends: Option<Vec<i64>>,
}

/// Two readers that are asked for ends only.
pub(super) struct Readability {
    /// Its ends are those of decided transactions.
    committed: BaseConsumer<Events>,
    /// Its ends are those of all records.
    everything: BaseConsumer<Events>,
    halt: Halt,
    /// In order.
    unread: VecDeque<Unread>,
    /// Everything up to here can be read.
    readable: Lsn,
    pause: Duration,
    /// Looks for the first of the unread since it was asked whether there is still anything to be seen.
    in_vain: u32,
    silent_since: Option<Instant>,
}

impl Readability {
    pub(super) fn new(sink: &KafkaSink, halt: Halt) -> Result<Self, Fault> {
        let open = |isolation| {
            let settings = client::reader_settings(sink, isolation);
            BaseConsumer::from_config_and_context(&settings, Events::default()).map_err(Fault::from)
        };
        Ok(Self {
            committed: open("read_committed")?,
            everything: open("read_uncommitted")?,
            halt,
            unread: VecDeque::new(),
            readable: Lsn::ZERO,
            pause: Duration::ZERO,
            in_vain: 0,
            silent_since: None,
        })
    }

    /// A batch up to this position was committed, with records in these partitions. It counts as read once those before it do.
    pub(super) fn committed(&mut self, position: Lsn, partitions: Vec<Partition>) {
        self.pause = Duration::ZERO;
        if self.unread.is_empty() && partitions.is_empty() {
            self.readable = position;
            return;
        }
        let is_full = self.unread.len() >= UNREAD_LIMIT;
        match self.unread.back_mut().filter(|_| is_full || partitions.is_empty()) {
            Some(last) => {
                last.position = position;
                if !partitions.is_empty() {
                    last.partitions.extend(partitions);
                    last.ends = None;
                }
            }
            None => {
                self.unread.push_back(Unread { position, partitions: partitions.into_iter().collect(), ends: None })
            }
        }
    }

    /// Everything up to here can be read.
    pub(super) fn readable(&self) -> Lsn {
        self.readable
    }

    /// Whether there is something that readers do not see.
    pub(super) fn is_behind(&self) -> bool {
        !self.unread.is_empty()
    }

    /// Looks once, after the pause that is due. Brokers that do not answer are asked again with the next look, within the limit.
    pub(super) fn look(&mut self) -> Result<(), Fault> {
        std::thread::sleep(self.pause);
        self.pause = (self.pause * 2).clamp(PAUSES.0, PAUSES.1);
        if self.halt.is_halted() {
            return Err(Fault::from(Code::PurgeQueue));
        }
        match self.look_now() {
            Ok(()) => self.silent_since = None,
            Err(fault) if self.silent_since.get_or_insert_with(Instant::now).elapsed() > SILENCE_LIMIT => {
                return Err(fault);
            }
            Err(_) => {}
        }
        // Serves what the clients have to say, which would gather otherwise.
        let _ = (self.committed.poll(Duration::ZERO), self.everything.poll(Duration::ZERO));
        Ok(())
    }

    fn look_now(&mut self) -> Result<(), Fault> {
        for unread in self.unread.iter_mut().filter(|unread| unread.ends.is_none()) {
            unread.ends = Some(ends(&self.everything, &unread.partitions)?);
        }
        while let Some(Unread { position, partitions, ends: Some(written) }) = self.unread.front_mut() {
            let seen = ends(&self.committed, partitions)?;
            if written.iter().zip(&seen).any(|(written, seen)| seen < written) {
                self.in_vain += 1;
                if self.in_vain >= VAIN_LOOKS_LIMIT {
                    self.in_vain = 0;
                    cut(written, partitions, &ends(&self.everything, partitions)?);
                }
                break;
            }
            self.readable = *position;
            self.unread.pop_front();
            self.in_vain = 0;
        }
        Ok(())
    }
}

/// A partition that ends before what was written there was deleted meanwhile, and made anew: its records are gone, and nobody waits for
/// them any more.
fn cut(written: &mut [i64], partitions: &BTreeSet<Partition>, ends: &[i64]) {
    for ((written, end), (topic, partition)) in written.iter_mut().zip(ends).zip(partitions) {
        if *end < *written {
            tracing::warn!(
                topic,
                partition,
                written = *written,
                end,
                "the topic ends before what was written there: somebody has deleted it, and made it anew; its records are not waited for"
            );
            *written = *end;
        }
    }
}

/// The ends of the partitions, in their order, as this reader sees them.
fn ends(reader: &BaseConsumer<Events>, partitions: &BTreeSet<Partition>) -> Result<Vec<i64>, Fault> {
    let mut list = TopicPartitionList::with_capacity(partitions.len());
    for (topic, partition) in partitions {
        list.add_partition_offset(topic, *partition, Offset::End)?;
    }
    let answered = reader.offsets_for_times(list, ANSWER_LIMIT)?;
    let of = |(topic, partition): &Partition| {
        let found = answered.find_partition(topic, *partition).ok_or_else(|| Fault::from(Code::UnknownPartition))?;
        found.error()?;
        match found.offset() {
            Offset::Offset(offset) => Ok(offset),
            _ => Err(Fault::from(Code::OffsetOutOfRange)),
        }
    };
    partitions.iter().map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_topic_does_not_hold_any_more_is_not_waited_for() {
        let partitions: BTreeSet<Partition> = (0..3).map(|partition| ("t".to_owned(), partition)).collect();
        let mut written = [5, 7, 9];
        cut(&mut written, &partitions, &[6, 0, 9]);
        assert_eq!(written, [5, 0, 9]);
    }
}
