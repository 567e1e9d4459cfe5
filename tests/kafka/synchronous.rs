//! The promise to the primary: a commit returns when Kafka has the events, and not before; and what passes by the feed moves its
//! position too.

use std::time::Duration;

use walrelay::throwaway::BrokerOptions;

use super::harness::{Feed, eventually, value, values};

const TABLES: &str = "CREATE TABLE orders (id int PRIMARY KEY, item text); CREATE TABLE hidden (id int PRIMARY KEY)";

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_waits_for_the_broker_and_returns_when_it_is_back() {
    let mut feed = Feed::start().await;
    feed.on_primary(TABLES).await;
    let relay = feed.relay("").await;
    feed.become_synchronous().await;
    for (id, level) in [(1, "on"), (2, "remote_apply"), (3, "remote_write")] {
        feed.on_primary(&format!("SET synchronous_commit = {level}; INSERT INTO orders VALUES ({id}, 'x')")).await;
        if level != "remote_write" {
            let records = feed.reader().read_count(&["shop.public.orders"], id).await;
            assert_eq!(records.len(), id, "{level}");
        }
    }
    feed.broker.stop().await;
    let mut commit = feed.in_background("SET synchronous_commit = on; INSERT INTO orders VALUES (4, 'waits')");
    let early = tokio::time::timeout(Duration::from_secs(3), &mut commit).await;
    assert!(early.is_err(), "a commit returned while the broker was down");
    feed.broker.start_again().await.unwrap();
    commit.await.unwrap();
    let records = feed.reader().read_count(&["shop.public.orders"], 4).await;
    let ids: Vec<String> = records.iter().map(|record| record.key_text()).collect();
    assert_eq!(ids, [r#"{"id":1}"#, r#"{"id":2}"#, r#"{"id":3}"#, r#"{"id":4}"#]);
    drop(relay);
}

#[tokio::test(flavor = "multi_thread")]
async fn commits_that_bring_nothing_to_kafka_do_not_hang() {
    let feed = Feed::start().await;
    feed.on_primary(TABLES).await;
    let _relay = feed.relay_with("initial_copy = false\ntables = [\"public.orders\"]", "").await;
    values(&feed.primary, "postgres", "CREATE DATABASE other").await;
    feed.become_synchronous().await;
    for (database, sql) in [
        ("shop", "INSERT INTO hidden VALUES (1)"),
        ("other", "CREATE TABLE t (a int)"),
        ("shop", "SET synchronous_commit = remote_apply; INSERT INTO hidden VALUES (2)"),
        ("shop", "TRUNCATE orders"),
    ] {
        let ran = tokio::time::timeout(Duration::from_secs(20), values(&feed.primary, database, sql)).await;
        assert!(ran.is_ok(), "hangs: {sql}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_waits_while_too_few_replicas_are_in_sync() {
    let feed = Feed::with(Default::default(), BrokerOptions::default()).await;
    feed.on_primary(TABLES).await;
    feed.create_topic("shop.public.orders", 1, &[("min.insync.replicas", "1")]).await;
    let relay = feed.relay("").await;
    feed.become_synchronous().await;
    feed.on_primary("INSERT INTO orders VALUES (1, 'x')").await;
    feed.set_topic("shop.public.orders", &[("min.insync.replicas", "2")]).await;
    let mut commit = feed.in_background("INSERT INTO orders VALUES (2, 'waits')");
    let early = tokio::time::timeout(Duration::from_secs(3), &mut commit).await;
    assert!(early.is_err(), "a commit returned although its topic wants two replicas");
    let status = relay.report("feed1").await.unwrap();
    assert_ne!(status["state"], "failed", "what may pass is retried: {status}");
    feed.set_topic("shop.public.orders", &[("min.insync.replicas", "1")]).await;
    commit.await.unwrap();
    let records = feed.reader().read_count(&["shop.public.orders"], 2).await;
    assert_eq!(records.len(), 2, "{records:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn readable_means_that_a_reader_sees_the_events_when_the_commit_returns() {
    let feed = Feed::start().await;
    feed.on_primary(TABLES).await;
    let _relay = feed.relay("apply_means = \"readable\"").await;
    feed.become_synchronous().await;
    for id in 1..=20 {
        feed.on_primary(&format!("SET synchronous_commit = remote_apply; INSERT INTO orders VALUES ({id}, 'x')")).await;
        let records = feed.reader().read_one("shop.public.orders").await;
        assert_eq!(records.len(), id, "the commit returned before a reader saw its event");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_position_is_recorded_before_it_is_confirmed_so_that_a_crash_restarts() {
    let feed = Feed::start().await;
    feed.on_primary(TABLES).await;
    let mut relay = feed.relay_with("initial_copy = false\ntables = [\"public.orders\"]", "").await;
    feed.on_primary("INSERT INTO orders VALUES (1, 'x')").await;
    // Foreign WAL moves the idle position again and again; a crash may come at any moment of it.
    for round in 0..5 {
        let table = format!("CREATE TABLE foreign_{round} AS SELECT generate_series(1, 20000) AS a");
        values(&feed.primary, "postgres", &table).await;
        if round % 2 == 0 {
            feed.caught_up().await;
        }
        relay.kill9();
        let confirmed = feed.confirmed().await;
        let progress = feed.progress().await;
        let recorded = progress[0].1["lsn"].as_str().unwrap().to_owned();
        let sql = format!("SELECT '{confirmed}'::pg_lsn <= '{recorded}'::pg_lsn");
        assert_eq!(value(&feed.primary, "shop", &sql).await, "t", "confirmed {confirmed}, recorded {recorded}");
        relay.start_again().await;
        super::harness::streams(&relay).await;
    }
    feed.on_primary("INSERT INTO orders VALUES (2, 'x')").await;
    feed.caught_up().await;
    let records = feed.reader().read_count(&["shop.public.orders"], 2).await;
    assert_eq!(records.len(), 2, "{records:?}");
    let record = &feed.progress().await[0];
    assert_eq!(record.0, "walrelay.shop.feed1");
    for field in ["system_identifier", "timeline", "database", "slot", "lsn", "commit_time", "version"] {
        assert!(record.1.get(field).is_some(), "{field} is not in the record: {}", record.1);
    }
}
