//! `walrelay resync` of a table while a large transaction on it is sent in parts (`on_large_transaction = "split"`): each change once and
//! in order, the rows between them as they stand there, whatever is killed meanwhile.

use std::collections::BTreeMap;

use serde_json::Value;
use walrelay::throwaway::{BrokerOptions, Options};

use super::harness::{Feed, Record, Tables, streams};
use super::large::{parts_told, progress, tells_of_more};
use super::resync::{is_sent_again, reads, resync, said, table_record};

const ROWS: u64 = 8_000;
/// Changes of the large transaction to each row.
const ROUNDS: u64 = 6;
const PIPELINE: &str = "initial_copy = true\nmemory_limit = \"32MB\"";
const SINK: &str = "on_large_transaction = \"split\"\ntransaction_timeout = \"4s\"\n\
                    create_topics = { partitions = 1, replication_factor = 1 }";
const TOPIC: &str = "shop.public.big";

/// One transaction: every row changes several times, some go, some come.
fn large_transaction(new: u64) -> String {
    format!(
        "DO $$ BEGIN FOR i IN 1..{ROUNDS} LOOP UPDATE big SET n = n + 1, filler = repeat(md5(id::text || i), 30); END LOOP; \
         DELETE FROM big WHERE id IN (SELECT id FROM big ORDER BY id DESC LIMIT 100); \
         INSERT INTO big SELECT i, 0, 'new' FROM generate_series({new}, {new} + 99) i; END $$"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_asked_for_inside_a_half_sent_transaction_is_sent_again_behind_it() {
    let options = Options::default().with("logical_decoding_work_mem", "1MB").with("max_wal_size", "4GB");
    let feed = Feed::with(options, BrokerOptions::default()).await;
    feed.on_primary("CREATE TABLE big (id int PRIMARY KEY, n int NOT NULL, filler text)").await;
    feed.on_primary(&format!("INSERT INTO big SELECT i, 0, 'before' FROM generate_series(1, {ROWS}) i")).await;
    let mut relay = feed.relay_with(PIPELINE, SINK).await;
    let config = feed.config(PIPELINE, SINK);
    let first = snapshot(&feed).await;
    let writing = feed.in_background(&large_transaction(30_001));
    tells_of_more(&relay, 0).await;
    relay.kill9();
    let half_sent = progress(&feed).await;
    let seen = half_sent["inside"]["rows"].as_u64().expect("it is half sent");
    let output = resync(&config, &["feed1", "--table", "public.big"]).await;
    assert!(said(&output).contains("no daemon streams now"), "{}", said(&output));
    assert_eq!(progress(&feed).await, half_sent, "asking touches no position");
    // It goes on inside the transaction, …
    let told = parts_told(&relay);
    relay.start_again().await;
    tells_of_more(&relay, told).await;
    relay.kill9();
    let further = progress(&feed).await;
    assert!(further["inside"]["rows"].as_u64().is_some_and(|rows| rows > seen), "{further}");
    assert_eq!((&further["lsn"], &further["inside"]["lsn"]), (&half_sent["lsn"], &half_sent["inside"]["lsn"]));
    feed.on_primary("UPDATE big SET n = n + 1 WHERE id <= 50; DELETE FROM big WHERE id BETWEEN 51 AND 60").await;
    relay.start_again().await;
    // … and once that is through, the rows go out.
    relay.wait("feed1", "copying", |report| report["state"] == "copying").await;
    relay.kill9();
    writing.await.unwrap();
    is_behind(&feed, &half_sent).await;
    assert_eq!(table_record(&feed, "big").await["resync"], true);
    feed.on_primary("UPDATE big SET n = n + 1 WHERE id <= 50").await;
    relay.start_again().await;
    is_sent_again(&feed, &relay, "big", &first).await;
    streams(&relay).await;
    feed.caught_up().await;
    println!("{}", check_rows(&feed).await);
    // Asked while the daemon is at it: whether it notices inside the transaction is a matter of its speed.
    let second = snapshot(&feed).await;
    let told = parts_told(&relay);
    let writing = feed.in_background(&large_transaction(40_001));
    tells_of_more(&relay, told).await;
    let output = resync(&config, &["feed1", "--table", "public.big"]).await;
    assert!(said(&output).contains("the daemon has begun"), "{}", said(&output));
    println!("the daemon noticed at {}", progress(&feed).await);
    is_sent_again(&feed, &relay, "big", &second).await;
    writing.await.unwrap();
    streams(&relay).await;
    feed.caught_up().await;
    println!("{}", check_rows(&feed).await);
    is_behind(&feed, &half_sent).await;
}

async fn snapshot(feed: &Feed) -> String {
    table_record(feed, "big").await["snapshot_lsn"].as_str().unwrap().to_owned()
}

/// The position record is behind the half-sent transaction, inside none, and never behind what the primary was told.
async fn is_behind(feed: &Feed, half_sent: &Value) {
    let record = progress(feed).await;
    assert!(record["inside"].is_null() && record["version"] == 1, "{record}");
    let (lsn, inside) = (record["lsn"].as_str().unwrap(), half_sent["inside"]["lsn"].as_str().unwrap());
    let sql = format!(
        "SELECT '{lsn}'::pg_lsn > '{inside}' AND bool_and(confirmed_flush_lsn <= '{lsn}') FROM pg_replication_slots"
    );
    assert_eq!(super::harness::value(&feed.primary, "shop", &sql).await, "t", "{record}");
}

/// Each change follows the one before it, each row sent again is what the changes before it made, the whole equals the source. Gives
/// what was seen.
async fn check_rows(feed: &Feed) -> String {
    let records = feed.reader().read_one(TOPIC).await;
    let mut rows: BTreeMap<u64, Value> = BTreeMap::new();
    let mut last_part = (0, 0);
    for record in &records {
        let event = record.json();
        let (Some(op), Some(id)) = (event["op"].as_str(), record.key_json()["id"].as_u64()) else { continue };
        let (before, after) = (rows.get(&id), &event["after"]);
        match op {
            "r" => assert!(before.is_none_or(|row| row == after), "not the row that was: {before:?} {event}"),
            "u" => assert_eq!(
                Some(after["n"].as_u64().unwrap()),
                before.map(|row| row["n"].as_u64().unwrap() + 1),
                "{event}"
            ),
            _ => {}
        }
        if op == "d" {
            drop(rows.remove(&id))
        } else {
            drop(rows.insert(id, after.clone()))
        }
        follows(record, &event, &mut last_part);
    }
    let tables = Tables::of(&records);
    assert!(tables.faults.is_empty(), "{:?}", &tables.faults[..tables.faults.len().min(5)]);
    let source = feed.on_primary("SELECT row_to_json(t)::text FROM big t").await;
    let mut source: Vec<Value> =
        source.iter().map(|row| serde_json::from_str(row[0].as_deref().unwrap()).unwrap()).collect();
    source.sort_by_key(Value::to_string);
    assert!(tables.rows(TOPIC) == source, "the rebuilt table differs");
    assert!(reads(&records) as u64 > ROWS + ROWS / 2, "{}", reads(&records));
    format!("{} records, {} of them rows sent again, the last part was {}", records.len(), reads(&records), last_part.1)
}

/// Parts of one transaction come in their order, and nothing else comes between them.
fn follows(record: &Record, event: &Value, last: &mut (u64, u64)) {
    let Some(part) = record.header("walrelay.split") else { return };
    let (transaction, part) = (event["source"]["txId"].as_u64().unwrap(), part.parse::<u64>().unwrap());
    let is_next = if transaction == last.0 { part == last.1 || part == last.1 + 1 } else { part == 1 };
    assert!(is_next, "part {part} after {last:?}: {event}");
    *last = (transaction, part);
}
