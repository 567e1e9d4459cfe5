//! `walrelay resync` of a partitioned table that is written meanwhile, rows that move between partitions among it: published by its
//! partitions, and through its root.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::harness::{Feed, Record, Tables, streams};
use super::resync::{is_sent_again, reads, resync, said, table_record};

/// Rows before the feed, half of them in a partition that is partitioned itself.
const ROWS: usize = 16_000;
const TABLES: &str =
    "CREATE TABLE orders (id int, region text, note text, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
    CREATE TABLE orders_eu PARTITION OF orders FOR VALUES IN ('eu');
    CREATE TABLE orders_us PARTITION OF orders FOR VALUES IN ('us') PARTITION BY RANGE (id);
    CREATE TABLE orders_us_low PARTITION OF orders_us FOR VALUES FROM (MINVALUE) TO (8000);
    CREATE TABLE orders_us_high PARTITION OF orders_us FOR VALUES FROM (8000) TO (MAXVALUE);
    CREATE TABLE other (id int PRIMARY KEY);
    INSERT INTO other VALUES (1), (2)";
/// Inserts, updates, deletes and moves, a transaction each, for some seconds.
const WRITES: &str = "DO $$ BEGIN FOR i IN 1..400 LOOP
    INSERT INTO orders VALUES (100000 + i, 'eu', 'new');
    UPDATE orders SET note = 'changed' WHERE id = i * 13;
    UPDATE orders SET region = CASE region WHEN 'eu' THEN 'us' ELSE 'eu' END WHERE id = i * 29;
    UPDATE orders SET id = id + 1000000 WHERE id = i * 37;
    DELETE FROM orders WHERE id = i * 31;
    COMMIT; PERFORM pg_sleep(0.01); END LOOP; END $$";

/// How the partitioned table is published, and what comes of it.
struct Case {
    via_root: bool,
    /// The names under which its rows come.
    tables: &'static [&'static str],
    /// What else can be asked for, and the tables that this means.
    part: (&'static str, &'static [&'static str]),
    /// What cannot.
    refused: &'static str,
}

fn topic(table: &str) -> String {
    format!("shop.public.{table}")
}

/// Asks, and returns what was said.
async fn ask(config: &str, pattern: &str) -> String {
    let output = resync(config, &["feed1", "--table", pattern]).await;
    assert!(output.status.success(), "{}", said(&output));
    said(&output)
}

/// What each table's record says of its snapshot.
async fn snapshots(feed: &Feed, tables: &[&str]) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for table in tables {
        let record = table_record(feed, table).await;
        found.insert((*table).to_owned(), record["snapshot_lsn"].as_str().unwrap_or_default().to_owned());
    }
    found
}

async fn check(case: Case) {
    let feed = Feed::start().await;
    feed.on_primary(TABLES).await;
    feed.on_primary(&format!(
        "INSERT INTO orders SELECT i, CASE i % 2 WHEN 0 THEN 'eu' ELSE 'us' END, repeat('r', 60) FROM generate_series(1, {ROWS}) i"
    ))
    .await;
    let mut pipeline = "initial_copy = true\ntables = [\"public.orders\", \"public.other\"]".to_owned();
    if case.via_root {
        feed.on_primary("CREATE PUBLICATION own FOR TABLE orders, other WITH (publish_via_partition_root = true)")
            .await;
        pipeline.push_str("\npublication = \"own\"");
    }
    let mut relay = feed.relay_with(&pipeline, "").await;
    let config = feed.config(&pipeline, "");
    let writing = feed.in_background(WRITES);
    let refused = resync(&config, &["feed1", "--table", case.refused]).await;
    assert_eq!(refused.status.code(), Some(5), "{}", said(&refused));
    let first = snapshots(&feed, case.tables).await;
    let heard = ask(&config, "public.orders").await;
    for table in case.tables {
        assert!(heard.contains(&format!("public.{table}")), "{table}: {heard}");
        is_sent_again(&feed, &relay, table, &first[*table]).await;
    }
    // A part of it again, killed in the midst.
    let second = snapshots(&feed, case.tables).await;
    let (pattern, meant) = case.part;
    ask(&config, pattern).await;
    relay.wait("feed1", "copying", |report| report["state"] == "copying").await;
    relay.kill9();
    for table in case.tables {
        assert_eq!(table_record(&feed, table).await["resync"] == true, meant.contains(table), "{table}");
    }
    relay.start_again().await;
    for table in meant {
        is_sent_again(&feed, &relay, table, &second[*table]).await;
    }
    streams(&relay).await;
    writing.await.unwrap();
    check_rows(&feed, &case, &second).await;
}

/// The table as a consumer has it equals the source; what was not meant was not sent again.
async fn check_rows(feed: &Feed, case: &Case, second: &BTreeMap<String, String>) {
    feed.caught_up().await;
    let records = feed.reader().read_prefix("shop.public.orders").await;
    let topics: BTreeSet<&str> = records.iter().map(|record| record.topic.as_str()).collect();
    let expected: Vec<String> = case.tables.iter().map(|table| topic(table)).collect();
    assert_eq!(topics, expected.iter().map(String::as_str).collect());
    let tables = Tables::of(&records);
    assert!(tables.faults.is_empty(), "{:?}", &tables.faults[..tables.faults.len().min(5)]);
    let mut rebuilt: Vec<Value> = expected.iter().flat_map(|topic| tables.rows(topic)).collect();
    rebuilt.sort_by_key(Value::to_string);
    let source = feed.on_primary("SELECT row_to_json(t)::text FROM orders t").await;
    let mut source: Vec<Value> =
        source.iter().map(|row| serde_json::from_str(row[0].as_deref().unwrap()).unwrap()).collect();
    source.sort_by_key(Value::to_string);
    assert_eq!(rebuilt.len(), source.len());
    assert!(rebuilt == source, "the rebuilt table differs");
    let (_, meant) = case.part;
    for (table, snapshot) in snapshots(feed, case.tables).await {
        assert_eq!(snapshot != second[&table], meant.contains(&table.as_str()), "{table}");
    }
    assert!(reads(&records) > 2 * ROWS, "{}", reads(&records));
    let other: Vec<Record> = feed.reader().read_one("shop.public.other").await;
    assert_eq!(reads(&other), 2, "another table was sent again");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_partitions_of_a_table_are_sent_again_by_its_name_or_by_a_part_of_it() {
    check(Case {
        via_root: false,
        tables: &["orders_eu", "orders_us_high", "orders_us_low"],
        part: ("public.orders_us", &["orders_us_high", "orders_us_low"]),
        refused: "public.orders_asia",
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_published_through_its_root_is_sent_again_under_the_root_alone() {
    check(Case {
        via_root: true,
        tables: &["orders"],
        part: ("public.ord*", &["orders"]),
        refused: "public.orders_eu",
    })
    .await;
}
