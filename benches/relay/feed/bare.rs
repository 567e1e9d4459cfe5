//! What no feed is faster than: a bare rdkafka producer that sends the bytes of our own feed with its settings, read from its topic
//! beforehand. Commits by the client's own function, because the crate's wrapper looks only every 100 ms.

use std::ffi::CStr;
use std::time::{Duration, Instant};

use rdkafka::bindings as native;
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::OwnedHeaders;
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer as _, ThreadedProducer};

use super::name::{bare_prefix, own_prefix, topic_of};
use super::receipt::Receipts;
use super::stage::Stage;
use super::topic::{Kept, id_of};
use crate::plan::Plan;

/// Pause while the client's queue is full.
const QUEUE_PAUSE: Duration = Duration::from_millis(1);
/// One call.
const CALL_LIMIT: Duration = Duration::from_secs(60);
/// As long as a progress record.
const PROGRESS: &[u8] = &[b'p'; 180];

/// What warms a broker up: so many transactions of so many records of that size.
const WARMING: (usize, usize, usize) = (2_000, 20, 700);

/// One run.
#[derive(Clone, Copy, Debug)]
pub struct Bare {
    /// Records.
    pub events: u64,
    /// From the first to the return of the last commit.
    pub seconds: f64,
}

impl Bare {
    /// Records a second.
    pub fn rate(&self) -> f64 {
        self.events as f64 / self.seconds
    }
}

type Producer = ThreadedProducer<DefaultProducerContext>;

/// As walrelay sets its producer by default; `memory_limit = "64MB"` gives the queue a quarter of it.
fn producer(address: &str, transactional_id: &str) -> Producer {
    let mut settings = ClientConfig::new();
    for (name, value) in [
        ("bootstrap.servers", address),
        ("transactional.id", transactional_id),
        ("compression.type", "lz4"),
        ("batch.size", "1000000"),
        ("linger.ms", "500"),
        ("queue.buffering.max.kbytes", "16384"),
        ("queue.buffering.max.messages", "100000"),
        ("message.max.bytes", "1000000000"),
        ("delivery.report.only.error", "true"),
    ] {
        settings.set(name, value);
    }
    let producer: Producer = settings.create().unwrap();
    producer.init_transactions(CALL_LIMIT).unwrap();
    producer
}

fn send(producer: &Producer, topic: &str, headers: &OwnedHeaders, (key, value): (&[u8], &[u8])) {
    let mut record = BaseRecord::to(topic).partition(0).key(key).payload(value).headers(headers.clone());
    while let Err((error, again)) = producer.send(record) {
        assert!(matches!(error, KafkaError::MessageProduction(Code::QueueFull)), "{error}");
        std::thread::sleep(QUEUE_PAUSE);
        record = again;
    }
}

fn commit(producer: &Producer) {
    // SAFETY: the client is alive; the error is the caller's and is read before it is destroyed.
    unsafe {
        let error = native::rd_kafka_commit_transaction(producer.client().native_ptr(), CALL_LIMIT.as_millis() as i32);
        if !error.is_null() {
            let said = CStr::from_ptr(native::rd_kafka_error_string(error)).to_string_lossy().into_owned();
            native::rd_kafka_error_destroy(error);
            panic!("the bare producer's commit: {said}");
        }
    }
}

/// A JVM that has just started compiles what it runs: whoever came first would pay for it.
pub async fn warm_up(stage: &Stage, plan: &Plan) {
    let topic = topic_of("warm");
    stage.make_topic(&topic).await;
    let address = stage.broker.address();
    let (transactions, records, bytes) = WARMING;
    let transactions = if plan.is_quick { transactions / 20 } else { transactions };
    let work = move || {
        let (producer, value) = (producer(&address, "warm"), vec![b'v'; bytes]);
        for _ in 0..transactions {
            producer.begin_transaction().unwrap();
            (0..records).for_each(|_| send(&producer, &topic, &OwnedHeaders::new(), (b"key", &value)));
            commit(&producer);
        }
    };
    tokio::task::spawn_blocking(work).await.unwrap();
}

/// Everything that our feed wrote in this round, in Kafka transactions of the same size.
pub async fn run(stage: &Stage, events_per_commit: f64, round: usize) -> Bare {
    let topic = topic_of(&bare_prefix(round));
    stage.make_topic(&topic).await;
    let (address, events) = (stage.broker.address(), stage.events);
    let source = topic_of(&own_prefix(round));
    let work = move || {
        let kept = Kept::of(&address, &source, events);
        let producer = producer(&address, "bare");
        let each = (events_per_commit.ceil() as usize).max(1);
        let began = Instant::now();
        producer.begin_transaction().unwrap();
        for (at, record) in kept.records().enumerate() {
            if at > 0 && at % each == 0 {
                commit(&producer);
                producer.begin_transaction().unwrap();
            }
            send(&producer, &topic, &kept.headers, record);
        }
        commit(&producer);
        Bare { events, seconds: began.elapsed().as_secs_f64() }
    };
    tokio::task::spawn_blocking(work).await.unwrap()
}

/// The same records as lone transactions at a steady pace, each with a record that stands for our progress record; the ages at their
/// arrival, from the begin of the transaction, ms: percentiles 50 and 99.
pub async fn lone(stage: &Stage, round: usize, records: u64, every: Duration) -> (f64, f64) {
    let prefix = bare_prefix(round);
    let (topic, progress) = (topic_of(&prefix), format!("{prefix}.progress"));
    stage.make_topic(&topic).await;
    stage.make_topic(&progress).await;
    let receipts = Receipts::start(&stage.broker.address(), &topic);
    let (address, source) = (stage.broker.address(), topic_of(&own_prefix(round)));
    let work = move || {
        let kept = Kept::of(&address, &source, records);
        let producer = producer(&address, "bare");
        let mut sent = Vec::new();
        let began = Instant::now();
        for (at, record) in (1u32..).zip(kept.records()) {
            std::thread::sleep((began + every * at).saturating_duration_since(Instant::now()));
            sent.push((id_of(record.0), Instant::now()));
            producer.begin_transaction().unwrap();
            send(&producer, &topic, &kept.headers, record);
            send(&producer, &progress, &OwnedHeaders::new(), (b"bare", PROGRESS));
            commit(&producer);
        }
        sent
    };
    let sent = tokio::task::spawn_blocking(work).await.unwrap();
    // The first ones are the warming up.
    receipts.ages(&sent[sent.len() / 3..]).await
}
