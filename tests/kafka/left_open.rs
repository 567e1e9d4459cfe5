//! What a killed relay left open in Kafka: its successor settles it at once instead of waiting for its time-out, and publishes
//! nothing of it.

use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};

use super::harness::{Feed, PATIENCE, streams};

/// A transaction of this id that holds a record of the progress topic, and is never ended.
fn leave_open(address: &str, id: &str) -> ThreadedProducer<DefaultProducerContext> {
    let mut settings = ClientConfig::new();
    settings.set("bootstrap.servers", address).set("transactional.id", id).set("transaction.timeout.ms", "600000");
    let producer: ThreadedProducer<DefaultProducerContext> = settings.create().unwrap();
    producer.init_transactions(PATIENCE).unwrap();
    producer.begin_transaction().unwrap();
    let record = BaseRecord::to("walrelay.progress").partition(0).key("left open").payload("{}");
    producer.send(record).map_err(|(error, _)| error).unwrap();
    producer.flush(PATIENCE).unwrap();
    producer
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_left_open_by_a_killed_relay_does_not_hold_up_its_successor() {
    let feed = Feed::start().await;
    let mut relay = feed.relay("").await;
    feed.caught_up().await;
    relay.kill9();
    let address = feed.broker.address();
    let dead = tokio::task::spawn_blocking(move || leave_open(&address, "walrelay.shop.feed1")).await.unwrap();
    // Its client would abort at the end: it must look killed.
    std::mem::forget(dead);
    let began = Instant::now();
    relay.start_again().await;
    streams(&relay).await;
    assert!(began.elapsed() < Duration::from_secs(20), "it took {:?}", began.elapsed());
    let progress = feed.reader().read_one("walrelay.progress").await;
    assert!(progress.iter().all(|record| record.key_text() != "left open"), "{progress:?}");
}
