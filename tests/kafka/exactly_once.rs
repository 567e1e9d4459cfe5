//! Crashes of relay and broker, and two relays in turn, under load: what a `read_committed` consumer rebuilds equals the source, every transaction is there once and
//! whole, every key keeps its order.

use std::collections::BTreeMap;

use serde_json::Value;
use walrelay::throwaway::{BrokerOptions, Options};

use super::harness::{ACCOUNTS, Feed, LOAD_TABLES, Load, Record, Relay, Tables, eventually, streams, value};

/// Transactions a second: enough that every kill hits work, few enough that the feed is read in seconds.
const RATE: u32 = 120;
const SINK: &str = "transaction_topic = true\ncreate_topics = { partitions = 3, replication_factor = 1 }";

/// Whole transactions, once each: BEGIN, its rows counted through, END with their number.
fn check_transactions(records: &[(&Record, Value)], faults: &mut Vec<String>) -> usize {
    let mut rows: BTreeMap<&str, Vec<i64>> = BTreeMap::new();
    let mut markers: BTreeMap<&str, Vec<&Value>> = BTreeMap::new();
    for (record, event) in records {
        if record.topic == "shop.transaction" {
            markers.entry(event["id"].as_str().unwrap()).or_default().push(event);
        } else if let Some(id) = event["transaction"]["id"].as_str() {
            rows.entry(id).or_default().push(event["transaction"]["total_order"].as_i64().unwrap());
        }
    }
    for (id, markers) in &markers {
        let mut orders = rows.remove(id).unwrap_or_default();
        orders.sort_unstable();
        let is_whole = markers.len() == 2
            && markers[0]["status"] == "BEGIN"
            && markers[1]["event_count"] == orders.len()
            && orders.iter().copied().eq(1..=orders.len() as i64);
        if !is_whole {
            faults.push(format!("transaction {id}: {markers:?}, rows {orders:?}"));
        }
    }
    faults.extend(rows.keys().map(|id| format!("rows of {id} without BEGIN and END")));
    markers.len()
}

/// In a partition commits never fall; a key has one partition, and its changes follow each other as they were made.
fn check_order(records: &[(&Record, Value)], faults: &mut Vec<String>) {
    let mut last_commit: BTreeMap<(&str, i32), u64> = BTreeMap::new();
    let mut last_change: BTreeMap<(&str, &[u8]), (i32, u64)> = BTreeMap::new();
    for (record, event) in records {
        let (Some(key), Some(id)) = (record.key.as_deref(), event["transaction"]["id"].as_str()) else { continue };
        let commit: u64 = id.split_once(':').unwrap().1.parse().unwrap();
        let change = event["source"]["lsn"].as_u64().unwrap();
        let place = (record.topic.as_str(), record.partition);
        let commit_before = last_commit.insert(place, commit).unwrap_or(0);
        let (home, change_before) =
            last_change.insert((&record.topic, key), (record.partition, change)).unwrap_or((record.partition, 0));
        if commit < commit_before || change < change_before || home != record.partition {
            faults.push(format!(
                "{}/{}@{}: {} {commit} {change} after {commit_before} {change_before} in {home}",
                record.topic,
                record.partition,
                record.offset,
                record.key_text()
            ));
        }
    }
}

/// Everything that was written compared with the source. Gives the number of transactions and events.
async fn check_feed(feed: &Feed) -> (usize, usize) {
    feed.caught_up().await;
    let records = feed.reader().read(&["shop.public.accounts", "shop.public.history", "shop.transaction"]).await;
    let parsed: Vec<(&Record, Value)> = records.iter().map(|record| (record, record.json())).collect();
    let events: Vec<Record> = records.iter().filter(|record| record.topic != "shop.transaction").cloned().collect();
    let tables = Tables::of(&events);
    let mut faults = tables.faults.clone();
    let transactions = check_transactions(&parsed, &mut faults);
    check_order(&parsed, &mut faults);
    assert!(transactions > 50 && events.len() > transactions, "{} events, {transactions} transactions", events.len());
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults[..faults.len().min(20)].join("\n"));
    for table in ["accounts", "history"] {
        let source = feed.on_primary(&format!("SELECT row_to_json(t)::text FROM {table} t")).await;
        let mut source: Vec<Value> =
            source.iter().map(|row| serde_json::from_str(row[0].as_deref().unwrap()).unwrap()).collect();
        source.sort_by_key(Value::to_string);
        let rebuilt = tables.rows(&format!("shop.public.{table}"));
        assert_eq!(rebuilt.len(), source.len(), "{table}");
        assert!(rebuilt == source, "{table} differs");
    }
    (transactions, events.len())
}

/// Ends of relay and broker in one run, in the order below, again and again.
const CRASHES: usize = 24;

/// `kill -9` of the relay and of the broker, and restarts of the broker, while pgbench writes: at work, while beginning, and while
/// the other is away.
#[tokio::test(flavor = "multi_thread")]
async fn twenty_four_crashes_of_relay_and_broker_lose_and_repeat_nothing() {
    let mut feed = Feed::start().await;
    feed.on_primary(LOAD_TABLES).await;
    let mut relay = feed.relay(SINK).await;
    feed.on_primary(ACCOUNTS).await;
    let load = Load::start(&feed, RATE);
    let (mut relay_kills, mut broker_kills, mut broker_restarts) = (0, 0, 0);
    for crash in 0..CRASHES {
        match crash % 6 {
            // The broker is gone while the relay is at work.
            2 => {
                feed.broker.kill9();
                feed.broker.start_again().await.unwrap();
                broker_kills += 1;
            }
            // Both are gone; the relay comes first and has to wait.
            4 if crash % 12 == 4 => {
                feed.broker.stop().await;
                relay.kill9();
                relay.start_again().await;
                feed.broker.start_again().await.unwrap();
                (relay_kills, broker_restarts) = (relay_kills + 1, broker_restarts + 1);
            }
            // In the middle of its work, …
            0 | 3 | 4 => {
                streams(&relay).await;
                load.goes_on(&feed, 20 + 10 * (crash as u64 % 5)).await;
                relay.kill9();
                relay.start_again().await;
                relay_kills += 1;
            }
            // … and while it begins, wherever that has come to.
            _ => {
                load.goes_on(&feed, 3 * (crash as u64 % 7)).await;
                relay.kill9();
                relay.start_again().await;
                relay_kills += 1;
            }
        }
    }
    streams(&relay).await;
    load.goes_on(&feed, 100).await;
    load.stop(&feed).await;
    let (transactions, events) = check_feed(&feed).await;
    println!(
        "{relay_kills} kills of the relay, {broker_kills} of the broker, {broker_restarts} restarts of the broker; {transactions} \
         transactions, {events} events"
    );
    assert!(relay_kills + broker_kills + broker_restarts >= CRASHES);
}

/// Two relays in turn: one waits beside a healthy one and fences nobody, takes over from it when it is frozen, and the frozen one,
/// awake again, writes nothing and becomes the spare.
#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_relay_is_replaced_and_writes_nothing_when_it_wakes_up() {
    let feed = Feed::with(Options::default().with("wal_sender_timeout", "2s"), BrokerOptions::default()).await;
    feed.on_primary(LOAD_TABLES).await;
    let mut working = feed.relay(SINK).await;
    feed.on_primary(ACCOUNTS).await;
    let mut spare = Relay::start(&feed.config("initial_copy = false", SINK)).await;
    let is_spare = |report: &Value| report["waiting_for"].as_str().is_some_and(|text| text.contains("hot spare"));
    let load = Load::start(&feed, RATE);
    for _ in 0..3 {
        spare.wait("feed1", "hot spare", is_spare).await;
        load.goes_on(&feed, 50).await;
        assert_eq!(working.report("feed1").await.unwrap()["state"], "streaming", "the spare fenced it");
        working.signal(libc::SIGSTOP);
        streams(&spare).await;
        load.goes_on(&feed, 50).await;
        working.signal(libc::SIGCONT);
        std::mem::swap(&mut working, &mut spare);
    }
    spare.wait("feed1", "hot spare", is_spare).await;
    assert_eq!(working.report("feed1").await.unwrap()["state"], "streaming");
    load.stop(&feed).await;
    let (transactions, events) = check_feed(&feed).await;
    println!("{transactions} transactions, {events} events");
}
