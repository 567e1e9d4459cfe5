//! Keys and partitions against the Java client: the bytes of JsonConverter and the partition of murmur2, as
//! tests/data/kafka/KeyVectors.java wrote them, so that both sides of a migration land on the same partition.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::harness::{Feed, Record, streams};

const VECTORS: &str = include_str!("../data/kafka/keys.jsonl");
const SINK: &str = "create_topics = { partitions = 6, replication_factor = 1 }";

fn vectors() -> Vec<Value> {
    VECTORS.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn text<'a>(vector: &'a Value, name: &str) -> &'a str {
    vector[name].as_str().unwrap()
}

/// Key and partition of every vector, as the feed has them now: from offset `after` on.
async fn check(feed: &Feed, key: &str, partition: &str, faults: &mut Vec<String>) {
    let mut by_table: BTreeMap<String, BTreeSet<(String, i32)>> = BTreeMap::new();
    for record in feed.reader().read_prefix("shop.public.k_").await {
        let table = record.topic.trim_start_matches("shop.public.").to_owned();
        by_table.entry(table).or_default().insert((record.key_text(), record.partition));
    }
    for vector in vectors() {
        let (table, wanted) = (text(&vector, "table"), text(&vector, key));
        let expected = (wanted.to_owned(), vector[partition].as_i64().unwrap() as i32);
        let found = by_table.get(table).cloned().unwrap_or_default();
        if !found.contains(&expected) {
            let near: Vec<_> = found.iter().filter(|(key, _)| key == wanted).collect();
            let shown = if near.is_empty() { format!("{found:?}") } else { format!("{near:?}") };
            faults.push(format!("{table} {}: {expected:?} is not among {shown}", text(&vector, "values")));
        }
    }
}

async fn insert_all(feed: &Feed) {
    for vector in vectors() {
        feed.on_primary(&format!("INSERT INTO {} VALUES ({})", text(&vector, "table"), text(&vector, "values"))).await;
    }
    feed.caught_up().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_key_has_the_bytes_and_the_partition_that_the_java_client_gives_it() {
    let feed = Feed::start().await;
    let tables: BTreeMap<String, (String, &str)> = vectors()
        .iter()
        .map(|vector| {
            let columns = text(vector, "columns").to_owned();
            let key = if text(vector, "table") == "k_composite" { "region, id" } else { "id" };
            (text(vector, "table").to_owned(), (columns, key))
        })
        .collect();
    for (table, (columns, key)) in &tables {
        feed.on_primary(&format!("CREATE TABLE {table} ({columns}, PRIMARY KEY ({key}))")).await;
    }
    feed.on_primary("CREATE TABLE nokey (a text)").await;
    let mut relay = feed.relay(SINK).await;
    feed.on_primary("INSERT INTO nokey SELECT g::text FROM generate_series(1, 50) g").await;
    insert_all(&feed).await;
    let mut faults = Vec::new();
    check(&feed, "key", "partition", &mut faults).await;
    let nokey = feed.reader().read_one("shop.public.nokey").await;
    let homes: BTreeSet<i32> = nokey.iter().map(|record| record.partition).collect();
    assert!(nokey.len() == 50 && homes.len() == 1 && nokey[0].key.is_none(), "{homes:?}");
    // The same rows again, with the schema in the key.
    assert!(relay.stop().await.success());
    for table in tables.keys() {
        feed.on_primary(&format!("TRUNCATE {table}")).await;
    }
    relay.rewrite_config(&feed.config("initial_copy = false", &format!("{SINK}\nschemas_key = true")));
    relay.start_again().await;
    streams(&relay).await;
    insert_all(&feed).await;
    check(&feed, "key_with_schema", "partition_with_schema", &mut faults).await;
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}
