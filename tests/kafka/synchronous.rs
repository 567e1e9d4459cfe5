//! The promise to the primary: a commit returns when Kafka has the events in all in-sync replicas, and not before; what passes by
//! the feed does not hang.

use std::time::Duration;

use serde_json::Value;
use walrelay::throwaway::BrokerOptions;

use super::harness::{Feed, second_broker, values};

const TABLES: &str = "CREATE TABLE orders (id int PRIMARY KEY, item text); CREATE TABLE hidden (id int PRIMARY KEY);
    CREATE TABLE changing (id int PRIMARY KEY, at timestamptz DEFAULT now())";
const TOPIC: &str = "shop.public.orders";
/// A commit that does not return within this waits.
const A_WHILE: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_waits_for_the_broker_and_returns_when_it_is_back() {
    let mut feed = Feed::start().await;
    feed.on_primary(TABLES).await;
    let tables = "initial_copy = false\ntables = [\"public.orders\", \"public.changing\"]";
    let _relay = feed.relay_with(tables, "").await;
    values(&feed.primary, "postgres", "CREATE DATABASE other").await;
    feed.become_synchronous().await;
    for (database, sql) in [
        ("shop", "INSERT INTO hidden VALUES (1)"),
        ("other", "CREATE TABLE t (a int)"),
        ("shop", "SET synchronous_commit = remote_apply; INSERT INTO hidden VALUES (2)"),
        ("shop", "TRUNCATE orders"),
        // A commit that waits for us holds a lock on the table that the catalog is asked about; the first change of the table has
        // used up what was asked at the start.
        ("shop", "INSERT INTO changing VALUES (1)"),
        ("shop", "TRUNCATE changing"),
        ("shop", "INSERT INTO changing VALUES (2)"),
        ("shop", "BEGIN; ALTER TABLE changing ADD COLUMN n int; UPDATE changing SET n = 3; COMMIT"),
    ] {
        let ran = tokio::time::timeout(Duration::from_secs(20), values(&feed.primary, database, sql)).await;
        assert!(ran.is_ok(), "hangs: {sql}");
    }
    let changes = feed.reader().read_count(&["shop.public.changing"], 3).await;
    let rows: Vec<Value> = changes.iter().map(|record| record.json()["after"]["n"].clone()).collect();
    assert_eq!(rows, [Value::Null, Value::Null, Value::from(3)]);
    for (id, level) in [(1, "on"), (2, "remote_apply"), (3, "remote_write")] {
        feed.on_primary(&format!("SET synchronous_commit = {level}; INSERT INTO orders VALUES ({id}, 'x')")).await;
        if level != "remote_write" {
            assert_eq!(feed.reader().read_count(&[TOPIC], id).await.len(), id, "{level}");
        }
    }
    feed.broker.stop().await;
    let mut commit = feed.in_background("SET synchronous_commit = on; INSERT INTO orders VALUES (4, 'waits')");
    let early = tokio::time::timeout(A_WHILE, &mut commit).await;
    assert!(early.is_err(), "a commit returned while the broker was down");
    feed.broker.start_again().await.unwrap();
    commit.await.unwrap();
    let records = feed.reader().read_count(&[TOPIC], 4).await;
    let ids: Vec<String> = records.iter().map(|record| record.key_text()).collect();
    assert_eq!(ids, [r#"{"id":1}"#, r#"{"id":2}"#, r#"{"id":3}"#, r#"{"id":4}"#]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_waits_while_too_few_replicas_are_in_sync() {
    let feed = Feed::with(Default::default(), BrokerOptions::default()).await;
    let mut second = second_broker(&feed.broker).await;
    feed.on_primary(TABLES).await;
    let sink =
        "create_topics = { partitions = 1, replication_factor = 2, config = { \"min.insync.replicas\" = \"2\" } }";
    let relay = feed.relay(sink).await;
    feed.become_synchronous().await;
    feed.on_primary("INSERT INTO orders VALUES (1, 'x')").await;
    second.stop().await;
    let mut commit = feed.in_background("INSERT INTO orders VALUES (2, 'waits')");
    let early = tokio::time::timeout(A_WHILE, &mut commit).await;
    assert!(early.is_err(), "a commit returned although its topic wants two replicas");
    let status = relay.report("feed1").await.unwrap();
    assert_ne!(status["state"], "failed", "what may pass is retried: {status}");
    second.start_again().await.unwrap();
    commit.await.unwrap();
    let records = feed.reader().read_count(&[TOPIC], 2).await;
    assert_eq!(records.len(), 2, "{records:?}");
}
