//! The initial copy as `r` events: every row once with Debezium's snapshot markers, then the stream; a crash in the middle repeats
//! no finished table; changes meanwhile are neither lost nor seen twice.

use std::collections::BTreeMap;

use serde_json::Value;

use super::harness::{Feed, Record, Relay, Tables, eventually, streams};

const TABLES: &str = "CREATE TABLE one (id int PRIMARY KEY); CREATE TABLE three (id int PRIMARY KEY, n int);
    CREATE TABLE empty (id int PRIMARY KEY); INSERT INTO one VALUES (1); INSERT INTO three SELECT g, g FROM generate_series(1, 3) g";

fn marks(records: &[Record]) -> Vec<String> {
    records.iter().map(|record| record.json()["source"]["snapshot"].as_str().unwrap_or("").to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_come_first_with_their_markers_and_then_the_stream() {
    let feed = Feed::start().await;
    feed.on_primary(TABLES).await;
    let _relay = feed.relay_with("copy_workers = 1", "").await;
    feed.on_primary("INSERT INTO three VALUES (4, 4); UPDATE one SET id = id; INSERT INTO empty VALUES (1)").await;
    feed.caught_up().await;
    let one = feed.reader().read_one("shop.public.one").await;
    let three = feed.reader().read_one("shop.public.three").await;
    let operations: Vec<Value> = one.iter().chain(&three).map(|record| record.json()["op"].clone()).collect();
    assert_eq!(operations, ["r", "u", "r", "r", "r", "c"]);
    let mut copied = marks(&one[..1]);
    copied.extend(marks(&three[..3]));
    let count = |mark: &str| copied.iter().filter(|found| *found == mark).count();
    assert_eq!((count("first"), count("last")), (1, 1), "{copied:?}");
    assert_eq!((marks(&one[1..]), marks(&three[3..])), (vec!["false".to_owned()], vec!["false".to_owned()]));
    assert_eq!(feed.reader().read_one("shop.public.empty").await.len(), 1, "an empty table has only its stream");
    for record in &three[..3] {
        let event = record.json();
        assert!(
            event["before"].is_null() && event["source"]["lsn"].is_i64() && event["transaction"].is_null(),
            "{event}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_amid_the_copy_repeats_no_finished_table_and_loses_no_change() {
    let feed = Feed::start().await;
    feed.on_primary(
        "CREATE TABLE small (id int PRIMARY KEY, n int); INSERT INTO small SELECT g, 0 FROM generate_series(1, 1000) g;
        CREATE TABLE large (id int PRIMARY KEY, n int, filler text);
        INSERT INTO large SELECT g, 0, repeat('x', 200) FROM generate_series(1, 200000) g",
    )
    .await;
    let mut relay = Relay::start(&feed.config("copy_workers = 1", "")).await;
    let reader = feed.reader();
    eventually("the large table is under way", || async {
        (reader.count("shop.public.large").await > 0).then_some(())
    })
    .await;
    relay.kill9();
    let small_before = reader.count("shop.public.small").await;
    feed.on_primary("UPDATE small SET n = 1 WHERE id <= 10; UPDATE large SET n = 1 WHERE id <= 10; DELETE FROM large WHERE id > 199990").await;
    relay.start_again().await;
    feed.on_primary("UPDATE small SET n = 2 WHERE id <= 5; UPDATE large SET n = 2 WHERE id <= 5").await;
    streams(&relay).await;
    feed.caught_up().await;
    let small = reader.read_one("shop.public.small").await;
    if small_before >= 1000 {
        let copied = small.iter().filter(|record| record.json()["op"] == "r").count();
        assert_eq!(copied, 1000, "a finished table was sent again");
    }
    let large = reader.read_one("shop.public.large").await;
    for (table, records) in [("small", &small), ("large", &large)] {
        let tables = Tables::of(records);
        assert!(tables.faults.is_empty(), "{:?}", &tables.faults[..tables.faults.len().min(5)]);
        let source = feed.on_primary(&format!("SELECT row_to_json(t)::text FROM {table} t")).await;
        let mut source: Vec<Value> =
            source.iter().map(|row| serde_json::from_str(row[0].as_deref().unwrap()).unwrap()).collect();
        source.sort_by_key(Value::to_string);
        assert!(tables.rows(&format!("shop.public.{table}")) == source, "{table} differs");
        // r before stream events, for every key.
        let mut streamed: BTreeMap<&[u8], bool> = BTreeMap::new();
        for record in records.iter().filter(|record| record.value.is_some()) {
            let key = record.key.as_deref().unwrap();
            let is_read = record.json()["op"] == "r";
            assert!(!(is_read && streamed.contains_key(key)), "{table}: r after the stream of {}", record.key_text());
            if !is_read {
                streamed.insert(key, true);
            }
        }
    }
}
