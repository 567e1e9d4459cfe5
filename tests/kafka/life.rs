//! Deliveries and their change, big transactions, schema changes: what a feed does over its life.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use walrelay::throwaway::{BrokerOptions, Options};

use super::harness::{Feed, Record, Relay, Tables, eventually, fails_with, streams, value, values};

const TABLES: &str = "CREATE TABLE orders (id int PRIMARY KEY, item text)";

fn ids(records: &[Record]) -> Vec<i64> {
    records.iter().filter_map(|record| record.json()["after"]["id"].as_i64()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn at_least_once_loses_nothing_and_the_delivery_can_be_switched_in_place() {
    let mut feed = Feed::start().await;
    feed.on_primary(TABLES).await;
    let mut relay = feed.relay("delivery = \"at_least_once\"").await;
    for round in 0..4 {
        let from = round * 100;
        let sql = format!("INSERT INTO orders SELECT g, 'x' FROM generate_series({}, {}) g", from + 1, from + 100);
        feed.on_primary(&sql).await;
        match round % 2 {
            0 => {
                relay.kill9();
                relay.start_again().await;
            }
            _ => {
                feed.broker.kill9();
                feed.broker.start_again().await.unwrap();
            }
        }
        streams(&relay).await;
    }
    feed.caught_up().await;
    let mut found = ids(&feed.reader().read_one("shop.public.orders").await);
    let all = found.len();
    found.sort();
    found.dedup();
    assert_eq!(found, (1..=400).collect::<Vec<_>>());
    let mut expected = all;
    for (delivery, id) in [("exactly_once", 401), ("at_least_once", 402), ("exactly_once", 403)] {
        assert!(relay.stop().await.success());
        feed.on_primary(&format!("INSERT INTO orders VALUES ({id}, 'x')")).await;
        relay.rewrite_config(&feed.config("initial_copy = false", &format!("delivery = \"{delivery}\"")));
        relay.start_again().await;
        streams(&relay).await;
        feed.caught_up().await;
        expected += 1;
        let found = feed.reader().read_one("shop.public.orders").await;
        assert_eq!(found.len(), expected, "{delivery}: the position was not kept");
    }
}

/// What `/proc` says of a process's peak, in KiB.
pub(super) fn peak_kib(process_id: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process_id}/status")).unwrap();
    let peak = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    peak.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// `WALRELAY_TEST_BIG_ROWS` sets its size: 5000000 is the promise, the default fits a small machine. `WALRELAY_TEST_BIG_SINK` adds
/// lines to the sink.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_transaction_is_sent_whole_in_bounded_memory() {
    let rows: u64 = std::env::var("WALRELAY_TEST_BIG_ROWS").ok().and_then(|text| text.parse().ok()).unwrap_or(200_000);
    let options = Options::default().with("logical_decoding_work_mem", "1MB").with("max_wal_size", "4GB");
    let feed = Feed::with(options, BrokerOptions::default()).await;
    feed.on_primary("CREATE TABLE big (id bigint PRIMARY KEY, filler text)").await;
    let sink = std::env::var("WALRELAY_TEST_BIG_SINK").unwrap_or_default();
    let relay = feed.relay_with("initial_copy = false\nmemory_limit = \"32MB\"", &sink).await;
    let began = Instant::now();
    let sql = format!(
        "BEGIN; INSERT INTO big SELECT i, repeat('r', 60) FROM generate_series(1, {rows}) i; SAVEPOINT s; \
         INSERT INTO big SELECT -i, 'undone' FROM generate_series(1, {}) i; ROLLBACK TO s; COMMIT",
        rows / 10
    );
    feed.on_primary(&sql).await;
    let committed = began.elapsed();
    let target = value(&feed.primary, "postgres", "SELECT pg_current_wal_insert_lsn()").await;
    let sql = format!("SELECT coalesce(bool_or(replay_lsn >= '{target}'), false) FROM pg_stat_replication");
    // Millions of rows take longer than a test's patience: it is enough that nothing fails.
    while value(&feed.primary, "postgres", &sql).await != "t" {
        let report = relay.report("feed1").await.unwrap();
        assert!(report["last_error"].is_null(), "{report}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let peak = peak_kib(relay.process_id());
    println!(
        "{rows} rows in one transaction: committed after {committed:?}, in Kafka after {:?}, peak {peak} KiB",
        began.elapsed()
    );
    assert!(peak < 150 * 1024, "the relay grew to {peak} KiB");
    feed.caught_up().await;
    assert_eq!(feed.reader().count("shop.public.big").await, rows);
}

#[tokio::test(flavor = "multi_thread")]
async fn schema_changes_flow_on_also_with_ten_thousand_transactions_behind_them() {
    let feed = Feed::start().await;
    feed.on_primary("CREATE TABLE orders (id int PRIMARY KEY, a int, b text)").await;
    let mut relay = feed.relay("").await;
    feed.on_primary("INSERT INTO orders VALUES (1, 1, 'x')").await;
    feed.on_primary("ALTER TABLE orders ADD COLUMN c int DEFAULT 7; INSERT INTO orders VALUES (2, 2, 'y', 8)").await;
    feed.on_primary("ALTER TABLE orders DROP COLUMN a; INSERT INTO orders VALUES (3, 'z', 9)").await;
    feed.caught_up().await;
    assert!(relay.stop().await.success());
    // All of this waits in the slot while the catalog has long moved on.
    let client = super::harness::client(&feed.primary, "shop").await;
    client.batch_execute("SET synchronous_commit = off").await.unwrap();
    client.batch_execute("ALTER TABLE orders DROP CONSTRAINT orders_pkey, ADD PRIMARY KEY (b, id)").await.unwrap();
    client.batch_execute("INSERT INTO orders VALUES (4, 'k', 10)").await.unwrap();
    for batch in 0..100 {
        let inserts: String = (0..100)
            .map(|at| format!("BEGIN; INSERT INTO orders VALUES ({}, 'm', 1); COMMIT;", 1000 + batch * 100 + at))
            .collect();
        client.batch_execute(&inserts).await.unwrap();
    }
    client.batch_execute("ALTER TABLE orders RENAME COLUMN c TO d").await.unwrap();
    client.batch_execute("ALTER TABLE orders DROP CONSTRAINT orders_pkey, ADD PRIMARY KEY (id)").await.unwrap();
    client.batch_execute("INSERT INTO orders VALUES (5, 'last', 11)").await.unwrap();
    relay.start_again().await;
    streams(&relay).await;
    feed.caught_up().await;
    let records = feed.reader().read_one("shop.public.orders").await;
    assert_eq!(records.len(), 3 + 1 + 10_000 + 1);
    let shown = |at: usize| (records[at].key_text(), records[at].json()["after"].to_string());
    let pair = |key: &str, after: &str| (key.to_owned(), after.to_owned());
    assert_eq!(shown(0), pair(r#"{"id":1}"#, r#"{"id":1,"a":1,"b":"x"}"#));
    assert_eq!(shown(1), pair(r#"{"id":2}"#, r#"{"id":2,"a":2,"b":"y","c":8}"#));
    assert_eq!(shown(2), pair(r#"{"id":3}"#, r#"{"id":3,"b":"z","c":9}"#));
    assert_eq!(shown(3).1, r#"{"id":4,"b":"k","c":10}"#);
    let key: Value = serde_json::from_str(&shown(3).0).unwrap();
    assert_eq!((&key["id"], &key["b"]), (&json!(4), &json!("k")), "the Relation message's key counts: {key}");
    assert_eq!(shown(10_004), pair(r#"{"id":5}"#, r#"{"id":5,"b":"last","d":11}"#));
}
