//! A real Debezium, killed in the middle of a transaction under load, and walrelay that goes on from its slot: nothing is missing, keys
//! and partitions are those of before, the half-sent transaction comes again whole. What was written is told by a slot of
//! `test_decoding` beside both. `WALRELAY_NO_DEBEZIUM=1` says that there is none: then this shows nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use walrelay::config::Environment;
use walrelay::throwaway::{Connect, ConnectOptions, connector_settings, find_connect, settings};

use super::harness::{ACCOUNTS, Feed, LOAD_TABLES, Load, Record, Relay, Tables, eventually, streams, value};

/// Transactions a second of the load.
const RATE: u32 = 100;
/// Rows of the transaction in which the connector dies: seconds of its work.
const HALF_SENT_ROWS: usize = 60_000;
/// So many of them are in Kafka when it is killed, at least.
const SENT_BEFORE_DEATH: u64 = 3_000;
const CONNECTOR: &str = "shop-connector";
const TOPICS: [&str; 2] = ["shop.public.accounts", "shop.public.history"];
const SLOT: &str = "debezium";

/// A worker with a connector that streams from the slot.
async fn connector(feed: &Feed) -> Connect {
    let programs = find_connect(&Environment::of_process(), Path::new(env!("CARGO_MANIFEST_DIR")));
    let programs =
        programs.unwrap_or_else(|error| panic!("{error}, or set WALRELAY_NO_DEBEZIUM=1 where it cannot be had"));
    let flags = ["-Xmx768m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"];
    let options = ConnectOptions {
        brokers: feed.broker.address(),
        properties: settings(&[("offset.flush.interval.ms", "1000")]),
        java_flags: flags.map(str::to_owned).to_vec(),
    };
    let connect = Connect::distributed(&programs, options).await.unwrap();
    let mut connector = connector_settings(feed.primary.port(), "shop", SLOT, "walrelay_feed1");
    connector.extend(settings(&[
        ("snapshot.mode", "no_data"),
        ("provide.transaction.metadata", "true"),
        ("topic.creation.default.partitions", "3"),
    ]));
    connect.put(CONNECTOR, &connector).await.unwrap();
    let active = format!("SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{SLOT}' AND active");
    eventually("the connector streams", || async {
        (value(&feed.primary, "shop", &active).await == "1").then_some(())
    })
    .await;
    connect
}

/// Ends a connector while it sends a large transaction, and gives the number of the transaction.
async fn killed_midway(feed: &Feed, connect: &mut Connect) -> String {
    let history = TOPICS[1];
    let rows = format!(
        "INSERT INTO history (client, amount, filler) SELECT 99, i, 'half sent' FROM generate_series(1, {HALF_SENT_ROWS}) i"
    );
    let before = feed.reader().count(history).await;
    let transaction =
        feed.on_primary(&format!("WITH i AS ({rows} RETURNING 1) SELECT pg_current_xact_id() FROM i LIMIT 1")).await;
    eventually("a part of the large transaction is in Kafka", || async {
        (feed.reader().count(history).await > before + SENT_BEFORE_DEATH).then_some(())
    })
    .await;
    connect.kill9();
    let free = format!("SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{SLOT}' AND NOT active");
    eventually("the slot is free", || async { (value(&feed.primary, "shop", &free).await == "1").then_some(()) }).await;
    transaction[0][0].clone().unwrap()
}

/// The line `start_lsn = …` that `walrelay check` prints.
async fn start_lsn(feed: &Feed, topic: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("walrelay.toml");
    std::fs::write(&path, feed.config("initial_copy = false", "")).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_walrelay"));
    command.args(["check", "--debezium-offsets", topic, "--connector", CONNECTOR, "--config"]).arg(&path);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{output:?}");
    said.lines().next().unwrap().to_owned()
}

/// Changes of each transaction, as the server tells them.
async fn truth(feed: &Feed) -> BTreeMap<String, usize> {
    let sql = "SELECT xid::text, count(*)::text FROM pg_logical_slot_get_changes('truth', NULL, NULL) WHERE data LIKE 'table %' GROUP BY 1";
    let rows = feed.on_primary(sql).await;
    let text = |cell: &Option<String>| cell.clone().unwrap();
    rows.iter().map(|row| (text(&row[0]), text(&row[1]).parse().unwrap())).collect()
}

/// The changes of one writer: transaction, then position of the change, then key and partition of its events.
#[derive(Default)]
struct Written<'a>(BTreeMap<String, BTreeMap<u64, Events<'a>>>);

/// Key and partition of each.
type Events<'a> = BTreeSet<(&'a [u8], i32)>;

impl<'a> Written<'a> {
    fn take(&mut self, record: &'a Record, event: &Value) -> bool {
        let transaction = event["source"]["txId"].to_string();
        let position = event["source"]["lsn"].as_u64().unwrap();
        let key = record.key.as_deref().unwrap();
        self.0.entry(transaction).or_default().entry(position).or_default().insert((key, record.partition))
    }

    fn changes(&self, transaction: &str) -> usize {
        self.0.get(transaction).map_or(0, BTreeMap::len)
    }
}

/// Compares what both wrote with what was written; `ends`: where the connector's records end in each partition. Gives it in words.
async fn check(feed: &Feed, half_sent: &str, ends: &BTreeMap<(String, i32), i64>) -> String {
    let records = feed.reader().read(&TOPICS).await;
    let (mut theirs, mut ours) = (Written::default(), Written::default());
    let mut homes: BTreeMap<(&str, &[u8]), i32> = BTreeMap::new();
    for record in &records {
        let home = *homes.entry((&record.topic, record.key.as_deref().unwrap())).or_insert(record.partition);
        assert_eq!(home, record.partition, "a key has moved to another partition: {record:?}");
        if record.value.is_none() {
            continue;
        }
        let is_theirs = ends.get(&(record.topic.clone(), record.partition)).is_some_and(|end| record.offset < *end);
        let event = record.json();
        if is_theirs {
            theirs.take(record, &event);
        } else {
            assert!(ours.take(record, &event), "sent twice by walrelay: {record:?}");
        }
    }
    let truth = truth(feed).await;
    let repeated = ours.0.keys().filter(|transaction| theirs.0.contains_key(*transaction)).count();
    assert!(theirs.0.len() > 50 && ours.0.len() > 50, "both have work");
    for (transaction, changes) in &truth {
        let (by_them, by_us) = (theirs.changes(transaction), ours.changes(transaction));
        let is_whole = if by_us > 0 { by_us == *changes } else { by_them == *changes };
        assert!(is_whole, "transaction {transaction}: {changes} changes, {by_them} by Debezium, {by_us} by walrelay");
    }
    let (by_them, by_us) = (theirs.changes(half_sent), ours.changes(half_sent));
    assert!(by_them > 0 && by_them < HALF_SENT_ROWS, "Debezium has sent {by_them} of {HALF_SENT_ROWS}: not a part");
    assert_eq!(by_us, HALF_SENT_ROWS, "sent again whole");
    for (transaction, changes) in &ours.0 {
        for (position, events) in theirs.0.get(transaction).into_iter().flatten() {
            assert_eq!(Some(events), changes.get(position), "keys and partitions of {transaction} at {position}");
        }
    }
    // An event may repeat: the newest state of each row counts.
    let tables = Tables::of(&records);
    for topic in TOPICS {
        let table = topic.rsplit('.').next().unwrap();
        let source = feed.on_primary(&format!("SELECT row_to_json(t)::text FROM {table} t")).await;
        let mut source: Vec<Value> =
            source.iter().map(|row| serde_json::from_str(row[0].as_deref().unwrap()).unwrap()).collect();
        source.sort_by_key(Value::to_string);
        assert!(tables.rows(topic) == source, "{table} rebuilt from both differs from the source");
    }
    let (all, theirs, ours) = (truth.len(), theirs.0.len(), ours.0.len());
    format!("{all} transactions, {theirs} by Debezium, {ours} by walrelay, {repeated} by both")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_feed_goes_on_where_a_killed_debezium_stopped_in_the_middle_of_a_transaction() {
    if std::env::var_os("WALRELAY_NO_DEBEZIUM").is_some() {
        println!("WALRELAY_NO_DEBEZIUM is set: nothing is shown about a take-over from Debezium");
        return;
    }
    let feed = Feed::start().await;
    feed.on_primary(LOAD_TABLES).await;
    feed.on_primary("CREATE PUBLICATION walrelay_feed1 FOR TABLE accounts, history").await;
    feed.on_primary("SELECT pg_create_logical_replication_slot('truth', 'test_decoding')").await;
    let mut connect = connector(&feed).await;
    feed.on_primary(ACCOUNTS).await;
    let load = Load::start(&feed, RATE);
    load.goes_on(&feed, 300).await;
    let offsets = connect.offsets_topic();
    eventually("Connect has recorded an offset", || async { (feed.reader().count(offsets).await > 0).then_some(()) })
        .await;
    let half_sent = killed_midway(&feed, &mut connect).await;
    let start = start_lsn(&feed, offsets).await;
    // What the dead one had sent, the broker has by now.
    let ends: BTreeMap<(String, i32), i64> = feed.reader().ends(&TOPICS).await;
    load.goes_on(&feed, 100).await;
    let sink =
        format!("{start}\ntransaction_topic = true\ncreate_topics = {{ partitions = 3, replication_factor = 1 }}");
    let relay = Relay::start(&feed.config(&format!("initial_copy = false\nslot = \"{SLOT}\""), &sink)).await;
    streams(&relay).await;
    load.goes_on(&feed, 200).await;
    load.stop(&feed).await;
    feed.caught_up().await;
    println!("{}", check(&feed, &half_sent, &ends).await);
}
