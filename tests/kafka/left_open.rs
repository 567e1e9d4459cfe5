//! Producers of one transactional id: what a killed relay left open in Kafka is settled by its successor at once instead of at its
//! time-out, and published in no part; one that somebody fences off begins again.

use std::process::Command;
use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};

use serde_json::Value;

use super::harness::{Feed, PATIENCE, Relay, eventually, fails_with, streams};

/// The transactional id of the feed, and the key of its progress record.
const KEY: &str = "walrelay.shop.feed1";

/// A transaction of this id that holds a record of the progress topic, and is never ended.
async fn leave_open(feed: &Feed, id: &'static str, key: &'static str, value: String) {
    let address = feed.broker.address();
    let dead = tokio::task::spawn_blocking(move || left_open(&address, id, key, &value)).await.unwrap();
    // Its client would abort at the end: it must look killed.
    std::mem::forget(dead);
}

fn left_open(address: &str, id: &str, key: &str, value: &str) -> ThreadedProducer<DefaultProducerContext> {
    let mut settings = ClientConfig::new();
    settings.set("bootstrap.servers", address).set("transactional.id", id).set("transaction.timeout.ms", "600000");
    let producer: ThreadedProducer<DefaultProducerContext> = settings.create().unwrap();
    producer.init_transactions(PATIENCE).unwrap();
    producer.begin_transaction().unwrap();
    let record = BaseRecord::to("walrelay.progress").partition(0).key(key).payload(value);
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
    leave_open(&feed, KEY, "left open", "{}".to_owned()).await;
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
    leave_open(&feed, "walrelay.shop.feed1.copy.1", "left open", "{}".to_owned()).await;
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

/// The key of a table's record, and a value that says that the table was sent whole.
const TABLE: &str = r#"["walrelay.shop.feed1","public","t"]"#;
const FINISHED: &str =
    r#"{"schema":"public","table":"t","snapshot_lsn":"0/1","skip_until":"0/1","rows":1,"version":1}"#;

/// The record of the last table says that all is finished, and stands in the very transaction that was left open.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_was_killed_in_its_last_commit_does_not_hold_up_the_next_start() {
    let feed = Feed::start().await;
    feed.on_primary("CREATE TABLE t (id int PRIMARY KEY, v text)").await;
    feed.on_primary("INSERT INTO t SELECT i, repeat('x', 300) FROM generate_series(1, 60000) i").await;
    let mut relay = Relay::start(&feed.config("copy_workers = 1", "")).await;
    let is_begun = |report: &Value| report["copy"]["rows"].as_u64() >= Some(20_000);
    relay.wait("feed1", "a part is sent", is_begun).await;
    relay.kill9();
    leave_open(&feed, "walrelay.shop.feed1.copy.0", TABLE, FINISHED.to_owned()).await;
    let began = Instant::now();
    relay.start_again().await;
    streams(&relay).await;
    assert!(began.elapsed() < Duration::from_secs(60), "it took {:?}", began.elapsed());
    // What was never committed does not count: the table is sent whole.
    let sent = eventually("the table is recorded as finished", || async {
        let records = feed.progress().await;
        let (_, record) = records.into_iter().find(|(key, _)| key == TABLE)?;
        record["snapshot_lsn"].as_str().map(str::to_owned)
    })
    .await;
    assert_ne!(sent, "0/1", "the open transaction was committed");
    assert!(feed.reader().count("shop.public.t").await >= 60_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_was_killed_in_its_last_commit_does_not_hold_up_a_drop() {
    let feed = Feed::start().await;
    feed.on_primary("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)").await;
    let mut relay = feed.relay_with("copy_workers = 1", "").await;
    feed.caught_up().await;
    relay.stop().await;
    leave_open(&feed, "walrelay.shop.feed1.copy.0", TABLE, FINISHED.to_owned()).await;
    let began = Instant::now();
    let mut command = Command::new(env!("CARGO_BIN_EXE_walrelay"));
    command.args(["drop", "feed1", "--yes", "--config"]).arg(relay.config_path());
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("removed the progress record"), "{text}");
    assert!(began.elapsed() < Duration::from_secs(60), "it took {:?}", began.elapsed());
    feed.reader().settled().await;
    let left: Vec<_> = feed.progress().await.into_iter().filter(|(_, record)| !record.is_null()).collect();
    assert!(left.is_empty(), "{left:?}");
}

/// It would be refused, and the refusal would stay when nothing is left of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_position_that_was_never_committed_does_not_stop_the_feed() {
    let feed = Feed::start().await;
    feed.on_primary("CREATE TABLE t (id int PRIMARY KEY)").await;
    let mut relay = feed.relay("").await;
    feed.on_primary("INSERT INTO t VALUES (1)").await;
    feed.caught_up().await;
    relay.kill9();
    let record = async || feed.progress().await.into_iter().find(|(key, _)| key == KEY).unwrap().1;
    let mut ahead = record().await;
    ahead["lsn"] = "FFFF/0".into();
    leave_open(&feed, KEY, KEY, ahead.to_string()).await;
    relay.start_again().await;
    streams(&relay).await;
    feed.on_primary("INSERT INTO t VALUES (2)").await;
    feed.caught_up().await;
    let keys: Vec<String> =
        feed.reader().read_one("shop.public.t").await.iter().map(|record| record.key_text()).collect();
    assert_eq!(keys, [r#"{"id":1}"#, r#"{"id":2}"#]);
    assert_ne!(record().await["lsn"], "FFFF/0");
    // Whose record it is counts at once: nobody is fenced off for a stranger.
    relay.kill9();
    let mut strange = record().await;
    strange["system_identifier"] = "1".into();
    leave_open(&feed, "somebody else", KEY, strange.to_string()).await;
    relay.start_again().await;
    fails_with(&relay, &["another cluster", "walrelay drop feed1"]).await;
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
