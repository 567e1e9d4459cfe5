//! kill -9 of relay and broker at random moments under load: what a `read_committed` consumer rebuilds equals the source, every
//! transaction is there once and whole, every key keeps its order. `WALRELAY_TEST_KILLS` and `WALRELAY_TEST_SEED` set the run.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::Value;
use walrelay::config::ServerUrl;
use walrelay::throwaway::{BrokerOptions, Options};
use walrelay::wire::Session;
use walrelay::wire::sql::connect;

use super::harness::{Feed, Record, Relay, Tables, config, eventually, streams, value};

const CLIENTS: u64 = 4;
const TABLES: &str = "CREATE TABLE accounts (id int PRIMARY KEY, balance bigint NOT NULL);
    CREATE TABLE history (id bigint PRIMARY KEY, client int NOT NULL, amount int NOT NULL, filler text)";
const SINK: &str =
    "transaction_topic = true\nskipped_operations = []\ncreate_topics = { partitions = 3, replication_factor = 1 }";

fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// What the clients share.
struct Load {
    primary: ServerUrl,
    stop: AtomicBool,
    commits: AtomicU64,
}

impl Load {
    fn start(feed: &Feed, seed: u64) -> (Arc<Self>, Vec<tokio::task::JoinHandle<()>>) {
        let primary = feed.primary.server_url("shop").unwrap();
        let load = Arc::new(Self { primary, stop: AtomicBool::new(false), commits: AtomicU64::new(0) });
        let clients = (1..=CLIENTS).map(|id| tokio::spawn(client(Arc::clone(&load), id, seed))).collect();
        (load, clients)
    }

    async fn goes_on(&self, more: u64) {
        let before = self.commits.load(Ordering::Relaxed);
        let has_grown = || async { (self.commits.load(Ordering::Relaxed) > before + more).then_some(()) };
        eventually("commits go on", has_grown).await;
    }
}

/// One pgbench-like client: transactions of five changes, every twentieth one rolled back, with a savepoint that is undone.
async fn client(load: Arc<Load>, client: u64, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed ^ client);
    let mut next_id = client * 1_000_000_000;
    let session = connect(&load.primary, &Session::new("load")).await.unwrap();
    while !load.stop.load(Ordering::Relaxed) {
        next_id += 1;
        let (account, amount) = (random.random_range(1..=50), random.random_range(-50..50));
        let end = if next_id.is_multiple_of(20) { "ROLLBACK" } else { "COMMIT" };
        let sql = format!(
            "BEGIN; UPDATE accounts SET balance = balance + {amount} WHERE id = {account}; \
             INSERT INTO history VALUES ({next_id}, {client}, {amount}, repeat('x', {})); \
             SAVEPOINT s; UPDATE accounts SET balance = 0 WHERE id = {account}; ROLLBACK TO s; \
             DELETE FROM history WHERE client = {client} AND id = {} AND id % 2 = 1; \
             UPDATE history SET id = id + 500000000 WHERE client = {client} AND id = {}; \
             UPDATE history SET amount = 0 WHERE client = {client} AND id = {}; {end}",
            random.random_range(0..200),
            next_id - 4,
            next_id - 5,
            next_id - 2
        );
        session.batch_execute(&sql).await.unwrap();
        load.commits.fetch_add(1, Ordering::Relaxed);
    }
}

/// Whole transactions, once each: BEGIN, its rows counted through, END with their number.
fn check_transactions(records: &[Record], faults: &mut Vec<String>) -> usize {
    let mut rows: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    let mut markers: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for record in records {
        let event = record.json();
        if record.topic == "shop.transaction" {
            markers.entry(event["id"].as_str().unwrap().to_owned()).or_default().push(event);
        } else if let Some(id) = event["transaction"]["id"].as_str() {
            rows.entry(id.to_owned()).or_default().push(event["transaction"]["total_order"].as_i64().unwrap());
        }
    }
    for (id, markers) in &markers {
        let mut orders = rows.remove(id).unwrap_or_default();
        orders.sort();
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

/// Within a key, and so within a partition, positions never fall.
fn check_order(records: &[Record], faults: &mut Vec<String>) {
    let mut last: BTreeMap<(String, i32), i64> = BTreeMap::new();
    let mut homes: BTreeMap<(String, Option<Vec<u8>>), i32> = BTreeMap::new();
    for record in records.iter().filter(|record| record.topic != "shop.transaction") {
        let home = *homes.entry((record.topic.clone(), record.key.clone())).or_insert(record.partition);
        if home != record.partition && record.key.is_some() {
            faults.push(format!("{} is in partitions {home} and {}", record.key_text(), record.partition));
        }
        let Some(lsn) = record.json()["source"]["lsn"].as_i64() else { continue };
        let before = last.insert((record.topic.clone(), record.partition), lsn).unwrap_or(0);
        if lsn < before {
            faults.push(format!("{}/{}@{}: {lsn} after {before}", record.topic, record.partition, record.offset));
        }
    }
}

/// Everything that was written compared with the source.
async fn check_feed(feed: &Feed) {
    feed.caught_up().await;
    let records = feed.reader().read(&["shop.public.accounts", "shop.public.history", "shop.transaction"]).await;
    let events: Vec<Record> = records.iter().filter(|record| record.topic != "shop.transaction").cloned().collect();
    let tables = Tables::of(&events);
    let mut faults = tables.faults.clone();
    let transactions = check_transactions(&records, &mut faults);
    check_order(&records, &mut faults);
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
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_kills_under_load_lose_nothing_and_repeat_nothing() {
    let kills = from_environment("WALRELAY_TEST_KILLS", 20);
    let seed = from_environment("WALRELAY_TEST_SEED", rand::random_range(0..1_000_000));
    println!("seed {seed} (WALRELAY_TEST_SEED), {kills} kills");
    let mut random = StdRng::seed_from_u64(seed);
    let mut feed = Feed::with(Options::default().with("wal_sender_timeout", "5s"), BrokerOptions::default()).await;
    feed.on_primary(TABLES).await;
    let mut relay = feed.relay(SINK).await;
    feed.on_primary("INSERT INTO accounts SELECT i, 0 FROM generate_series(1, 50) i").await;
    let (load, clients) = Load::start(&feed, seed);
    for round in 0..kills {
        load.goes_on(20).await;
        tokio::time::sleep(Duration::from_millis(random.random_range(0..400))).await;
        let victim = ["relay", "relay", "broker crash", "broker stop"][random.random_range(0..4)];
        match victim {
            "relay" => {
                relay.kill9();
                relay.start_again().await;
            }
            "broker crash" => {
                feed.broker.kill9();
                feed.broker.start_again().await.unwrap();
            }
            _ => {
                feed.broker.stop().await;
                feed.broker.start_again().await.unwrap();
            }
        }
        // Most kills hit a relay at work, some one that is still settling the last.
        if random.random_range(0..3) > 0 {
            let before = feed.confirmed().await;
            let sql = format!("SELECT confirmed_flush_lsn > '{before}' FROM pg_replication_slots");
            eventually("events go on", || async { (value(&feed.primary, "shop", &sql).await == "t").then_some(()) })
                .await;
        }
        println!("round {round}: {victim} after {} commits", load.commits.load(Ordering::Relaxed));
    }
    load.goes_on(20).await;
    load.stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    streams(&relay).await;
    check_feed(&feed).await;
}

/// A relay that is frozen, replaced by a second one, and wakes up again.
#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_wakes_up_after_another_took_over_writes_nothing() {
    let feed = Feed::with(Options::default().with("wal_sender_timeout", "2s"), BrokerOptions::default()).await;
    feed.on_primary(TABLES).await;
    let frozen = feed.relay(SINK).await;
    feed.on_primary("INSERT INTO accounts SELECT i, 0 FROM generate_series(1, 50) i").await;
    let (load, clients) = Load::start(&feed, 1);
    load.goes_on(50).await;
    frozen.signal(libc::SIGSTOP);
    let second = Relay::start(&feed.config("initial_copy = false", SINK)).await;
    streams(&second).await;
    load.goes_on(50).await;
    frozen.signal(libc::SIGCONT);
    load.goes_on(100).await;
    load.stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    check_feed(&feed).await;
    assert_ne!(second.report("feed1").await.unwrap()["state"], "failed");
}

/// A second relay beside a healthy one waits, and takes over when the first dies.
#[tokio::test(flavor = "multi_thread")]
async fn a_hot_spare_waits_without_fencing_and_takes_over() {
    let feed = Feed::start().await;
    feed.on_primary(TABLES).await;
    let mut first = feed.relay(SINK).await;
    feed.on_primary("INSERT INTO accounts SELECT i, 0 FROM generate_series(1, 50) i").await;
    let spare = Relay::start(&feed.config("initial_copy = false", SINK)).await;
    let (load, clients) = Load::start(&feed, 2);
    load.goes_on(100).await;
    assert_eq!(first.report("feed1").await.unwrap()["state"], "streaming", "the spare fenced the first one");
    assert_ne!(spare.report("feed1").await.unwrap()["state"], "streaming");
    first.kill9();
    streams(&spare).await;
    load.goes_on(50).await;
    load.stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    check_feed(&feed).await;
}
