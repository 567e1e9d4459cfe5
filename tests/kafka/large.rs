//! `on_large_transaction = "split"`: a transaction too large for one Kafka transaction goes out in several, each row once, whatever
//! is killed meanwhile, and its position is confirmed with the last of them.

use serde_json::Value;
use walrelay::throwaway::{BrokerOptions, Options};

use super::harness::{Feed, Record, Relay, eventually, streams, value};

const ROWS: u64 = 300_000;
const SINK: &str = "on_large_transaction = \"split\"\ntransaction_topic = true\ntransaction_timeout = \"4s\"\n\
                    create_topics = { partitions = 1, replication_factor = 1 }";

/// The newest progress record.
pub(super) async fn progress(feed: &Feed) -> Value {
    feed.progress().await.into_iter().find(|(key, _)| key == "walrelay.shop.feed1").unwrap().1
}

/// Parts that the relay has told of, by its log.
pub(super) fn parts_told(relay: &Relay) -> usize {
    relay.log().matches("a part of a large transaction is in Kafka").count()
}

/// Waits until it tells of one more than so many: sooner than a reader of the topic would see it, and the rest is still to come.
pub(super) async fn tells_of_more(relay: &Relay, told: usize) {
    eventually("one more part of the large transaction", || async { (parts_told(relay) > told).then_some(()) }).await;
}

/// The rows of the large transaction, each once and in order, counted through; returns the parts seen.
fn check_rows(records: &[Record]) -> Vec<u64> {
    let mut parts: Vec<u64> = Vec::new();
    let (mut large, mut first_order) = (0, None);
    for record in records {
        let event = record.json();
        let id = event["after"]["id"].as_u64().unwrap();
        let Some(part) = record.header("walrelay.split") else {
            assert!(id > ROWS, "row {id} of the large transaction has no header");
            continue;
        };
        large += 1;
        assert_eq!(id, large, "each row once, in order");
        let order = event["transaction"]["total_order"].as_u64().unwrap();
        assert_eq!(order, *first_order.get_or_insert(order) + large - 1, "{event}");
        let part: u64 = part.parse().unwrap();
        if parts.last() != Some(&part) {
            parts.push(part);
        }
    }
    assert_eq!(large, ROWS);
    parts
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_transaction_goes_out_in_parts_each_row_once_through_crashes() {
    let options = Options::default().with("logical_decoding_work_mem", "1MB").with("max_wal_size", "4GB");
    let feed = Feed::with(options, BrokerOptions::default()).await;
    feed.on_primary("CREATE TABLE big (id bigint PRIMARY KEY, filler text); CREATE TABLE other (id int PRIMARY KEY)")
        .await;
    let mut relay = feed.relay_with("initial_copy = false\nmemory_limit = \"32MB\"", SINK).await;
    feed.on_primary(&format!("INSERT INTO big VALUES ({}, 'before')", ROWS + 1)).await;
    feed.caught_up().await;
    let before = feed.confirmed().await;
    let sql = format!(
        "BEGIN; INSERT INTO other SELECT generate_series(1, 50000); INSERT INTO big SELECT i, repeat('r', 90) FROM \
         generate_series(1, {ROWS}) i; SAVEPOINT s; INSERT INTO big SELECT -i, 'undone' FROM generate_series(1, 20000) i; \
         ROLLBACK TO s; DELETE FROM other; COMMIT; ALTER TABLE big ADD COLUMN later int; \
         INSERT INTO big VALUES ({}, 'behind', 1)",
        ROWS + 2
    );
    let writing = feed.in_background(&sql);
    let (mut seen, mut told) = (0, 0);
    for round in 0..3 {
        tells_of_more(&relay, told).await;
        relay.kill9();
        told = parts_told(&relay);
        let record = progress(&feed).await;
        assert!(record["inside"]["rows"].as_u64().is_some_and(|rows| rows > seen), "{record}, {seen} changes before");
        seen = record["inside"]["rows"].as_u64().unwrap();
        assert_eq!(record["version"], 2, "{record}");
        let sql = format!(
            "SELECT confirmed_flush_lsn < '{}' FROM pg_replication_slots",
            record["inside"]["lsn"].as_str().unwrap()
        );
        assert_eq!(
            value(&feed.primary, "shop", &sql).await,
            "t",
            "confirmed beyond what is in Kafka; before: {before}"
        );
        // Other settings change how many records a change becomes, and how large they are; not how many changes were sent.
        let more = ["\nschemas_value = true", "\ntombstones = false\ncontext_headers = true", ""][round];
        relay.rewrite_config(&feed.config("initial_copy = false\nmemory_limit = \"32MB\"", &format!("{SINK}{more}")));
        relay.start_again().await;
        streams_or_catches_up(&relay).await;
    }
    writing.await.unwrap();
    feed.caught_up().await;
    let records: Vec<Record> = feed.reader().read_one("shop.public.big").await;
    let plain: Vec<Record> = records.into_iter().map(unwrapped).collect();
    let parts = check_rows(&plain);
    assert!(parts.len() >= 4 && parts.windows(2).all(|pair| pair[0] < pair[1]), "{parts:?}");
    println!("{ROWS} rows in the parts {parts:?}, killed behind {seen} changes at last");
    let record = progress(&feed).await;
    assert!(record["inside"].is_null() && record["version"] == 1, "{record}");
    check_frames(&feed).await;
    let others = feed.reader().read_one("shop.public.other").await;
    for op in ["c", "d"] {
        let events = others.iter().filter(|record| record.value.is_some()).cloned().map(unwrapped);
        let ids = events.filter_map(|record| {
            let event = record.json();
            let row = if op == "c" { &event["after"] } else { &event["before"] };
            (event["op"] == op).then(|| row["id"].as_u64().unwrap())
        });
        assert!(ids.eq(1..=50_000), "the other table's \"{op}\" events are not each once and in order");
    }
}

/// The value without its embedded schema.
fn unwrapped(record: Record) -> Record {
    let json = record.json();
    match json.get("payload") {
        Some(payload) => Record { value: Some(payload.to_string().into_bytes()), ..record },
        None => record,
    }
}

async fn streams_or_catches_up(relay: &Relay) {
    let is_at_work = |report: &Value| matches!(report["state"].as_str(), Some("streaming" | "catching_up"));
    relay.wait("feed1", "at work", is_at_work).await;
}

/// One BEGIN and one END of each transaction, and the END counts all of it.
async fn check_frames(feed: &Feed) {
    let frames: Vec<Value> =
        feed.reader().read_one("shop.transaction").await.into_iter().map(|it| unwrapped(it).json()).collect();
    let large: Vec<&Value> = frames
        .iter()
        .filter(|frame| {
            frames.iter().any(|other| other["id"] == frame["id"] && other["event_count"].as_u64() > Some(1000))
        })
        .collect();
    let words: Vec<&str> = large.iter().filter_map(|frame| frame["status"].as_str()).collect();
    assert_eq!(words, ["BEGIN", "END"], "{large:?}");
    assert_eq!(large[1]["event_count"].as_u64(), Some(ROWS + 100_000), "{large:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_turns_out_too_slow_is_given_up_and_sent_in_parts() {
    // Too small to be foreseen as large, too much for half of a second of a debug build.
    let feed = Feed::start().await;
    feed.on_primary("CREATE TABLE big (id bigint PRIMARY KEY, filler text)").await;
    let sink = "on_large_transaction = \"split\"\ntransaction_timeout = \"1s\"";
    let relay = feed.relay_with("initial_copy = false\nmemory_limit = \"32MB\"", sink).await;
    feed.on_primary("BEGIN; INSERT INTO big SELECT i, repeat('r', 20) FROM generate_series(1, 80000) i; COMMIT").await;
    feed.caught_up().await;
    let records = feed.reader().read_one("shop.public.big").await;
    let ids: Vec<u64> = records.iter().map(|record| record.json()["after"]["id"].as_u64().unwrap()).collect();
    assert_eq!(ids, (1..=80_000).collect::<Vec<_>>());
    let parts: Vec<Option<String>> = records.iter().map(|record| record.header("walrelay.split")).collect();
    // A fast machine sends it whole; whatever it does, it is the same for all its events.
    assert!(parts.iter().all(|part| part.is_some() == parts[0].is_some()));
    println!("{:?} … {:?}; {}", parts[0], parts.last(), relay.log().contains("it is sent again, in several"));
}

#[tokio::test(flavor = "multi_thread")]
async fn at_least_once_needs_no_parts_and_finishes_those_that_were_begun() {
    let options = Options::default().with("logical_decoding_work_mem", "1MB");
    let feed = Feed::with(options, BrokerOptions::default()).await;
    feed.on_primary("CREATE TABLE big (id bigint PRIMARY KEY, filler text)").await;
    let mut relay = feed.relay_with("initial_copy = false\nmemory_limit = \"32MB\"", SINK).await;
    let insert = format!("INSERT INTO big SELECT i, repeat('r', 90) FROM generate_series(1, {ROWS}) i");
    let writing = feed.in_background(&insert);
    tells_of_more(&relay, 0).await;
    relay.kill9();
    let inside = progress(&feed).await["inside"]["rows"].as_u64().unwrap();
    let sink = format!("{SINK}\ndelivery = \"at_least_once\"");
    relay.rewrite_config(&feed.config("initial_copy = false\nmemory_limit = \"32MB\"", &sink));
    relay.start_again().await;
    writing.await.unwrap();
    eventually("all is confirmed", || async {
        let record = progress(&feed).await;
        (record["inside"].is_null() && relay.report("feed1").await?["state"] == "streaming").then_some(())
    })
    .await;
    feed.caught_up().await;
    let parts = check_rows(&feed.reader().read_one("shop.public.big").await);
    assert!(parts.len() >= 2 && parts.windows(2).all(|pair| pair[0] + 1 == pair[1]), "{parts:?}, {inside} rows");
    streams(&relay).await;
    feed.on_primary("UPDATE big SET filler = repeat('y', 90) WHERE id <= 100000").await;
    feed.caught_up().await;
    let records = feed.reader().read_one("shop.public.big").await;
    let updates: Vec<&Record> = records.iter().filter(|record| record.json()["op"] == "u").collect();
    assert_eq!(updates.len(), 100_000);
    assert!(updates.iter().all(|record| record.header("walrelay.split").is_none()));
}
