//! Reads the progress topic to its very end, as a `read_committed` consumer sees it. Writes nothing and fences nobody.

use std::time::{Duration, Instant};

use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::Message;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::config::KafkaSink;
use crate::config::kafka::Delivery;
use crate::model::PipelineName;

use super::client::{self, Events};
use super::fault::Fault;
use super::producer::Halt;
use super::progress::{Reading, Records};
use crate::sink::SinkError;

/// The topic has this one.
const PARTITION: i32 = 0;
/// One answer of a broker.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// Silence while it is read, and the wait for another pipeline's transaction that stands open in the topic.
const READ_LIMIT: Duration = Duration::from_secs(120);
/// The same for a mere look, which decides nothing: what a killed producer left open is settled only by its successor, who looks
/// first.
const LOOK_LIMIT: Duration = Duration::from_secs(1);
/// Pause while that is waited for.
const PAUSE: Duration = Duration::from_millis(50);

/// What the topic says of the pipeline, once its own transactions are decided. The topic exists.
///
/// A reader sees nothing behind the first open transaction in the partition, be it another pipeline's. So the reading
/// begins only when nothing is open below the end that the topic had when it was asked: a record of ours that was committed
/// before is then surely seen.
pub(super) fn read_records(sink: &KafkaSink, pipeline: &PipelineName, halt: &Halt) -> Result<Records, SinkError> {
    read(sink, pipeline, halt, Undecided::Waits)
}

/// The same before anybody was fenced off. Where a transaction stays open, its record counts as if it were committed: whoever
/// left it open may be dead, and its successor has to see whose it is before it settles it. Nothing when the topic does not exist.
pub(super) fn look_at_records(sink: &KafkaSink, pipeline: &PipelineName, halt: &Halt) -> Result<Records, SinkError> {
    read(sink, pipeline, halt, Undecided::Counts)
}

/// What a record in an open transaction means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Undecided {
    Waits,
    Counts,
}

fn read(sink: &KafkaSink, pipeline: &PipelineName, halt: &Halt, undecided: Undecided) -> Result<Records, SinkError> {
    let events = Events::default();
    let topic = sink.progress_topic.as_str();
    let failed =
        |fault: Fault| fault.while_doing(format!("reading the progress topic \"{topic}\""), events.connection());
    let open = |isolation| {
        BaseConsumer::from_config_and_context(&client::reader_settings(sink, isolation), events.clone())
            .map_err(Fault::from)
    };
    let committed = open("read_committed").map_err(failed)?;
    if !exists(&committed, topic).map_err(failed)? {
        return match undecided {
            // A broker that has not heard of it yet must not pass for one that holds no record: everything would be sent again.
            Undecided::Waits => Err(failed(Fault::from(Code::UnknownTopicOrPartition))),
            Undecided::Counts => Ok(Records::default()),
        };
    }
    let everything = open("read_uncommitted").map_err(failed)?;
    let (first, end) =
        everything.fetch_watermarks(topic, PARTITION, ANSWER_LIMIT).map_err(Fault::from).map_err(failed)?;
    let (consumer, is_undecided) = match undecided {
        Undecided::Waits => {
            wait_until_decided(&committed, topic, end, Instant::now() + READ_LIMIT, halt).map_err(failed)?;
            (committed, false)
        }
        Undecided::Counts => match wait_until_decided(&committed, topic, end, Instant::now() + LOOK_LIMIT, halt) {
            Ok(()) => (committed, false),
            Err(fault) if fault.code == Some(Code::OperationTimedOut) && !halt.is_halted() => (everything, true),
            Err(fault) => return Err(failed(fault)),
        },
    };
    let keeps_furthest = sink.delivery == Delivery::AtLeastOnce;
    let mut reading = Reading::new(pipeline, &sink.transactional_id, keeps_furthest);
    if first < end {
        read_to_end(&consumer, topic, end, halt, &mut reading, failed)?;
    }
    Ok(Records { is_undecided, ..reading.finish()? })
}

fn exists(consumer: &BaseConsumer<Events>, topic: &str) -> Result<bool, Fault> {
    let metadata = consumer.fetch_metadata(Some(topic), ANSWER_LIMIT).inspect_err(|_| client::listen(consumer))?;
    let Some(found) = metadata.topics().first() else { return Ok(false) };
    match found.error().map(Code::from) {
        None => Ok(!found.partitions().is_empty()),
        Some(Code::UnknownTopicOrPartition | Code::UnknownTopic) => Ok(false),
        Some(code) => Err(Fault::from(code)),
    }
}

fn wait_until_decided(
    committed: &BaseConsumer<Events>,
    topic: &str,
    end: i64,
    deadline: Instant,
    halt: &Halt,
) -> Result<(), Fault> {
    let mut is_told = false;
    loop {
        let (_, stable) = committed.fetch_watermarks(topic, PARTITION, ANSWER_LIMIT)?;
        if stable >= end {
            return Ok(());
        }
        if halt.is_halted() || Instant::now() >= deadline {
            return Err(Fault::from(Code::OperationTimedOut));
        }
        if !std::mem::replace(&mut is_told, true) {
            tracing::debug!(topic, "waiting for an open transaction in the progress topic to end");
        }
        std::thread::sleep(PAUSE);
    }
}

/// `end`: where the leader says that it ends. An end that a replica tells of says less: one that lags behind tells of it too early.
fn read_to_end(
    consumer: &BaseConsumer<Events>,
    topic: &str,
    end: i64,
    halt: &Halt,
    reading: &mut Reading<'_>,
    failed: impl Fn(Fault) -> SinkError,
) -> Result<(), SinkError> {
    let mut partition = TopicPartitionList::new();
    let assigned =
        partition.add_partition_offset(topic, PARTITION, Offset::Beginning).and_then(|()| consumer.assign(&partition));
    assigned.map_err(|error| failed(error.into()))?;
    let (mut reached, mut moved) = (0, Instant::now());
    loop {
        let now = match consumer.poll(PAUSE) {
            Some(Ok(record)) => {
                reading.take(record.key().unwrap_or_default(), record.payload());
                record.offset() + 1
            }
            Some(Err(KafkaError::PartitionEOF(_))) | None => position(consumer, topic).map_err(&failed)?,
            Some(Err(error)) if may_pass(&error) => reached,
            Some(Err(error)) => return Err(failed(error.into())),
        };
        if now > reached {
            (reached, moved) = (now, Instant::now());
        }
        if reached >= end {
            return Ok(());
        }
        if halt.is_halted() || moved.elapsed() >= READ_LIMIT {
            return Err(failed(Fault::from(Code::OperationTimedOut)));
        }
    }
}

/// Behind what was taken last, and behind the marks of transactions, which are no records; 0 before the first.
fn position(consumer: &BaseConsumer<Events>, topic: &str) -> Result<i64, Fault> {
    let positions = consumer.position()?;
    let offset = positions.find_partition(topic, PARTITION).map(|found| found.offset());
    Ok(if let Some(Offset::Offset(offset)) = offset { offset } else { 0 })
}

/// What the consumer mends by itself: it goes on fetching.
pub(super) fn may_pass(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            Code::BrokerTransportFailure
                | Code::AllBrokersDown
                | Code::Resolve
                | Code::OperationTimedOut
                // No group is joined, whether it is allowed or not.
                | Code::GroupAuthorizationFailed
        )
    )
}
