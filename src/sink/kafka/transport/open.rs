//! From a configuration to a producer that may begin: topics made, earlier producers fenced off, what they left in doubt settled.

use std::collections::HashMap;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::error::RDKafkaErrorCode as Code;
use tokio::runtime::Handle;

use crate::config::KafkaSink;
use crate::config::kafka::{Delivery, OnOversized};

use super::client::{self, Events};
use super::fault::Fault;
use super::opening::Opening;
use super::producer::{Halt, Producer};
use super::topics::{Topics, listed};
use crate::model::{PipelineName, QualifiedName};
use crate::sink::SinkError;
use crate::sink::kafka::encode::{Encoder, Origin};
use crate::sink::postgres::TableFilter;

/// The brokers answer within this, or the attempt is over.
const INIT_LIMIT: Duration = Duration::from_secs(60);
const ANSWER_LIMIT: Duration = Duration::from_secs(15);
/// What a broker allows unless it says otherwise (`transaction.max.timeout.ms`).
const DEFAULT_MOST_TIMEOUT: Duration = Duration::from_secs(15 * 60);

/// An open producer.
pub(super) struct Opened {
    pub(super) producer: Producer,
    pub(super) topics: Topics,
    /// What the broker allows of `transaction_timeout`.
    pub(super) timeout: Duration,
}

/// Sees to the topics, then takes the producer over.
pub(super) fn open(opening: &Opening, runtime: Handle, halt: &Halt) -> Result<Opened, SinkError> {
    let sink = &opening.sink;
    let mut topics = Topics::new(sink, runtime.clone());
    topics.ensure_progress()?;
    topics.ensure(&topics_of(sink, &opening.pipeline, &opening.tables))?;
    let smallest = topics.smallest_record_bytes();
    if sink.delivery == Delivery::ExactlyOnce {
        let Transactional { producer, timeout } =
            transactional(sink, opening.memory_limit_bytes, smallest, &runtime, halt)?;
        fence_copies(sink, opening.left_copies, smallest, &runtime, halt)?;
        return Ok(Opened { producer, topics, timeout });
    }
    let mut settings = client::producer_settings(sink, opening.memory_limit_bytes, smallest);
    // A record waits for its brokers as long as it takes.
    settings.set("message.timeout.ms", "0");
    let producer = new_producer(&settings, halt)?;
    Ok(Opened { producer, topics, timeout: sink.transaction_timeout })
}

/// Says so where topics hold records that no progress record tells of.
pub(super) fn warn_of_foreign_records(opening: &Opening, topics: &Topics) {
    let names = topics_of(&opening.sink, &opening.pipeline, &opening.tables);
    match topics.holding_records(&names) {
        Ok(found) if !found.is_empty() => tracing::warn!(
            "{} already hold records, and there is no progress record: somebody else sent them, and consumers will find ours behind",
            listed(&found)
        ),
        Ok(_) => {}
        Err(fault) => tracing::debug!(%fault, "the topics could not be looked at"),
    }
}

/// Ends what the workers of a copy that was cut off have left open, and fences off those that may still write: else the progress topic
/// could not be read to its end before the brokers' time-out.
pub(super) fn fence_copies(
    sink: &KafkaSink,
    workers: usize,
    smallest_record_bytes: usize,
    runtime: &Handle,
    halt: &Halt,
) -> Result<(), SinkError> {
    for number in 0..workers {
        let sink = KafkaSink { transactional_id: copy_id(&sink.transactional_id, number), ..sink.clone() };
        transactional(&sink, 0, smallest_record_bytes, runtime, halt)?;
    }
    Ok(())
}

/// The transactional id of a worker of the copy.
pub(super) fn copy_id(transactional_id: &str, number: usize) -> String {
    format!("{transactional_id}.copy.{number}")
}

/// A producer that has fenced off every earlier one of its transactional id.
pub(super) struct Transactional {
    pub(super) producer: Producer,
    /// What the broker allows of `transaction_timeout`.
    pub(super) timeout: Duration,
}

/// Takes the transactional id over.
pub(super) fn transactional(
    sink: &KafkaSink,
    memory_limit_bytes: u64,
    smallest_record_bytes: usize,
    runtime: &Handle,
    halt: &Halt,
) -> Result<Transactional, SinkError> {
    let mut timeout = sink.transaction_timeout;
    loop {
        let mut settings = client::producer_settings(sink, memory_limit_bytes, smallest_record_bytes);
        let millis = timeout.as_millis().to_string();
        settings.set("transactional.id", &sink.transactional_id).set("transaction.timeout.ms", &millis);
        settings.set("message.timeout.ms", &millis);
        let producer = new_producer(&settings, halt)?;
        match producer.init_transactions(INIT_LIMIT) {
            Ok(()) => return Ok(Transactional { producer, timeout }),
            Err(fault) if fault.code == Some(Code::InvalidTransactionTimeout) => {
                let most = most_timeout(sink, runtime).filter(|most| *most < timeout).unwrap_or(timeout / 2);
                if most < Duration::from_secs(1) {
                    return Err(fault.while_doing("agreeing on transaction_timeout with the broker", None));
                }
                tracing::warn!(
                    wanted_seconds = timeout.as_secs(),
                    seconds = most.as_secs(),
                    "transaction_timeout is longer than the broker allows (transaction.max.timeout.ms): its limit is used"
                );
                timeout = most;
            }
            Err(fault) => {
                let doing = format!("taking over the transactional id \"{}\"", sink.transactional_id);
                return Err(fault.while_doing(doing, producer.events().connection()));
            }
        }
    }
}

fn new_producer(settings: &ClientConfig, halt: &Halt) -> Result<Producer, SinkError> {
    Producer::new(settings, Events::default(), halt.clone())
        .map_err(|fault| fault.while_doing("setting up the Kafka producer", None))
}

/// Topics that records will go to, as far as they can be known.
pub(super) fn topics_of(sink: &KafkaSink, pipeline: &PipelineName, tables: &[QualifiedName]) -> Vec<String> {
    let origin =
        Origin { pipeline: pipeline.clone(), database: String::new(), previous_end: None, tables: TableFilter::All };
    let encoder = Encoder::new(sink.clone(), origin);
    let is_outbox = |table: &QualifiedName| sink.outbox.as_ref().is_some_and(|outbox| outbox.table == *table);
    let mut names: Vec<String> =
        tables.iter().filter(|table| !is_outbox(table)).map(|table| encoder.topic_of(table)).collect();
    if sink.transaction_topic {
        names.push(sink.transaction_topic_name());
    }
    if sink.on_oversized == OnOversized::DeadLetter {
        names.push(sink.dead_letter_topic_name());
    }
    names.sort();
    names.dedup();
    names
}

/// `transaction.max.timeout.ms` of a broker, where it may be read.
fn most_timeout(sink: &KafkaSink, runtime: &Handle) -> Option<Duration> {
    let settings = broker_settings(sink, runtime).ok()?;
    let most = settings.get("transaction.max.timeout.ms").and_then(|text| text.parse().ok());
    most.map(Duration::from_millis).or(Some(DEFAULT_MOST_TIMEOUT))
}

/// The settings of one broker.
pub(super) fn broker_settings(sink: &KafkaSink, runtime: &Handle) -> Result<HashMap<String, String>, Fault> {
    let admin = AdminClient::from_config_and_context(&client::settings(sink), Events::default())?;
    let metadata = admin.inner().fetch_metadata(Some(&sink.progress_topic), ANSWER_LIMIT)?;
    let Some(broker) = metadata.brokers().first() else { return Ok(HashMap::new()) };
    let options = AdminOptions::new().request_timeout(Some(ANSWER_LIMIT));
    let wanted = [ResourceSpecifier::Broker(broker.id())];
    let resources = runtime.block_on(admin.describe_configs(&wanted, &options))?;
    let Some(resource) = resources.into_iter().next() else { return Ok(HashMap::new()) };
    Ok(resource?.entries.into_iter().filter_map(|entry| Some((entry.name, entry.value?))).collect())
}
