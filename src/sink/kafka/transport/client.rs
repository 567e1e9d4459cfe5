//! The settings of every Kafka client of a pipeline, and what its clients say in the log. Opens no connection by itself.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::ProducerContext;

use crate::config::KafkaSink;

use super::fault::Fault;

/// The part of `memory_limit` that a producer may hold in records that are not acknowledged: it counts keys and values, and as
/// much again lies around them (headers, its own notes, the requests on their way).
const QUEUE_PART: u64 = 4;
/// Least and most of it, KiB: one large batch on its way must fit, and more than the last gains nothing.
const QUEUE_LEAST_KIB: u64 = 8 * 1024;
const QUEUE_MOST_KIB: u64 = 256 * 1024;
/// Records that may wait for their acknowledgement: the client spends some 250 bytes on each beside its content.
const QUEUE_RECORDS_LIMIT: &str = "100000";
/// The largest record that the client takes; what the topic takes is checked before.
const RECORD_LIMIT_BYTES: &str = "1000000000";
/// `batch.size` unless a topic takes less.
const BATCH_BYTES: usize = 1_000_000;
/// `linger.ms`: records wait for a full batch, for each batch of ours ends with a flush, and a full queue is flushed too. The client
/// has one batch of a partition on its way, and does nothing but ask the time while older records than this wait for the answer. Less
/// than the least `transaction_timeout`.
const LINGER_MS: &str = "500";
/// Longest pause before a broker is tried again.
const RECONNECT_MOST_MS: &str = "1000";

/// Brokers, credentials and whatever `[pipeline.sink.client]` says.
pub(super) fn settings(sink: &KafkaSink) -> ClientConfig {
    let mut settings = ClientConfig::new();
    settings.set("bootstrap.servers", &sink.brokers).set("client.id", "walrelay");
    // Commits may wait for a broker that comes back: it is found soon.
    settings.set("reconnect.backoff.ms", "50").set("reconnect.backoff.max.ms", RECONNECT_MOST_MS);
    for (name, value) in &sink.client.0 {
        settings.set(name, value);
    }
    if let Some(password) = &sink.password {
        settings.set("sasl.password", password.reveal());
    }
    // Never by the broker's auto-creation.
    settings.set("allow.auto.create.topics", "false");
    settings
}

/// Settings of a producer. `smallest_topic_bytes`: the least `max.message.bytes` of its topics, which a batch must respect.
pub(super) fn producer_settings(
    sink: &KafkaSink,
    memory_limit_bytes: u64,
    smallest_topic_bytes: usize,
) -> ClientConfig {
    let queue_kib = (memory_limit_bytes / QUEUE_PART / 1024).clamp(QUEUE_LEAST_KIB, QUEUE_MOST_KIB);
    let batch_bytes = BATCH_BYTES.min(smallest_topic_bytes);
    let mut settings = settings(sink);
    if !sink.client.0.contains_key("batch.size") {
        settings.set("batch.size", batch_bytes.to_string());
    }
    if !["linger.ms", "queue.buffering.max.ms"].iter().any(|name| sink.client.0.contains_key(*name)) {
        settings.set("linger.ms", LINGER_MS);
    }
    settings
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("queue.buffering.max.kbytes", queue_kib.to_string())
        .set("queue.buffering.max.messages", QUEUE_RECORDS_LIMIT)
        .set("message.max.bytes", RECORD_LIMIT_BYTES)
        // Who succeeds is not asked for: a commit or a flush tells of all at once, and a failure is always told.
        .set("delivery.report.only.error", "true");
    settings
}

/// Settings of a consumer that reads one partition to its end and joins no group.
pub(super) fn reader_settings(sink: &KafkaSink, isolation: &str) -> ClientConfig {
    let mut settings = settings(sink);
    settings
        .set("group.id", format!("{}.reader", sink.transactional_id))
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "earliest")
        .set("enable.partition.eof", "true")
        .set("isolation.level", isolation)
        .set("fetch.wait.max.ms", "10");
    // With a rack it would read from a follower, which may not have the newest records yet.
    settings.remove("client.rack");
    settings
}

/// What the clients of one pipeline said last.
#[derive(Clone, Default)]
pub(super) struct Events {
    shared: Arc<Mutex<Said>>,
}

#[derive(Default)]
struct Said {
    connection: Option<String>,
    delivery: Option<(String, Fault)>,
}

impl Events {
    /// The last word about its connections.
    pub(super) fn connection(&self) -> Option<String> {
        self.said(|said| said.connection.clone())
    }

    /// The first record that could not be delivered: its topic and why.
    pub(super) fn failed_delivery(&self) -> Option<(String, Fault)> {
        self.said(|said| said.delivery.clone())
    }

    fn said<T>(&self, look: impl FnOnce(&mut Said) -> T) -> T {
        look(&mut self.shared.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl ClientContext for Events {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        match level {
            // A producer's property on a reader, and the like.
            _ if facility == "CONFWARN" => tracing::debug!(facility, "Kafka client: {text}"),
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical | RDKafkaLogLevel::Error => {
                tracing::warn!(facility, "Kafka client: {text}");
                if facility == "FAIL" {
                    self.said(|said| said.connection = Some(without_thread(text).to_owned()));
                }
            }
            RDKafkaLogLevel::Warning | RDKafkaLogLevel::Notice => tracing::info!(facility, "Kafka client: {text}"),
            RDKafkaLogLevel::Info | RDKafkaLogLevel::Debug => tracing::debug!(facility, "Kafka client: {text}"),
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "Kafka client");
        let says_why = error.rdkafka_error_code() != Some(Code::AllBrokersDown);
        let word = if reason.is_empty() { error.to_string() } else { reason.to_owned() };
        self.said(|said| {
            if says_why || said.connection.is_none() {
                said.connection = Some(word);
            }
        });
    }
}

/// A consumer tells what happened to its connections only when it is polled: done where a call of it failed.
pub(super) fn listen(consumer: &BaseConsumer<Events>) {
    const WORDS_LIMIT: usize = 100;
    for _ in 0..WORDS_LIMIT {
        if consumer.poll(Duration::ZERO).is_none() {
            break;
        }
    }
}

/// The client's words begin with the name of one of its threads.
fn without_thread(text: &str) -> &str {
    let rest = text.strip_prefix("[thrd:").and_then(|text| text.split_once("]: "));
    rest.map_or(text, |(_, rest)| rest)
}

impl ConsumerContext for Events {}

impl ProducerContext for Events {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, _: ()) {
        if let Err((error, record)) = result {
            let failed = (record.topic().to_owned(), Fault::from(error.clone()));
            self.said(|said| {
                said.delivery.get_or_insert(failed);
            });
        }
    }
}
