//! Producers of one transactional id: what a killed relay left open in Kafka is settled by its successor at once instead of at its
//! time-out, and published in no part; one that somebody fences off begins again.

use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};

use serde_json::Value;

use super::harness::{Feed, PATIENCE, Relay, eventually, fails_with, streams};

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

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_worker_of_the_copy_left_open_does_not_hold_up_the_next_start() {
    let feed = Feed::start().await;
    feed.on_primary("CREATE TABLE t (id int PRIMARY KEY, v text)").await;
    feed.on_primary("INSERT INTO t SELECT i, repeat('x', 300) FROM generate_series(1, 250000) i").await;
    let mut relay = Relay::start(&feed.config("copy_workers = 2", "")).await;
    let is_begun = |report: &Value| report["copy"]["rows"].as_u64() >= Some(20_000);
    relay.wait("feed1", "a part is sent", is_begun).await;
    relay.kill9();
    let address = feed.broker.address();
    let dead = tokio::task::spawn_blocking(move || leave_open(&address, "walrelay.shop.feed1.copy.1")).await.unwrap();
    std::mem::forget(dead);
    // Consumers hold a part of the table.
    relay.rewrite_config(&feed.config("initial_copy = false", ""));
    relay.start_again().await;
    fails_with(&relay, &["initial_copy = false, but the copy of \"feed1\" was begun", "walrelay drop feed1"]).await;
    relay.stop().await;
    relay.rewrite_config(&feed.config("copy_workers = 2", ""));
    let began = Instant::now();
    relay.start_again().await;
    streams(&relay).await;
    assert!(began.elapsed() < Duration::from_secs(60), "it took {:?}", began.elapsed());
}

/// Somebody takes the transactional id over, and goes away.
fn fence_off(address: &str) {
    let mut settings = ClientConfig::new();
    settings.set("bootstrap.servers", address).set("transactional.id", "walrelay.shop.feed1");
    let producer: ThreadedProducer<DefaultProducerContext> = settings.create().unwrap();
    producer.init_transactions(PATIENCE).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_that_is_fenced_off_begins_again_and_sends_nothing_twice() {
    let feed = Feed::start().await;
    feed.on_primary("CREATE TABLE t (id int PRIMARY KEY)").await;
    let relay = feed.relay("").await;
    let rows = 3_000;
    let writing = feed.in_background(&format!(
        "DO $$ BEGIN FOR i IN 1..{rows} LOOP INSERT INTO t VALUES (i); COMMIT; PERFORM pg_sleep(0.002); END LOOP; END $$"
    ));
    for round in 1..=3 {
        let address = feed.broker.address();
        tokio::task::spawn_blocking(move || fence_off(&address)).await.unwrap();
        // Noticed with the next commit, even if the writer has ended.
        feed.on_primary(&format!("INSERT INTO t VALUES ({})", rows + round as u64)).await;
        eventually(&format!("it was fenced off {round} times, log:\n{}", relay.log()), || async {
            (relay.log().matches("fenced").count() >= round).then_some(())
        })
        .await;
        streams(&relay).await;
    }
    writing.await.unwrap();
    feed.caught_up().await;
    let records = feed.reader().read_one("shop.public.t").await;
    let ids: Vec<u64> = records.iter().map(|record| record.key_json()["id"].as_u64().unwrap()).collect();
    let of_writer: Vec<u64> = ids.iter().copied().filter(|id| *id <= rows).collect();
    assert_eq!(of_writer, (1..=rows).collect::<Vec<_>>());
    assert_eq!(ids.len() as u64, rows + 3);
}
