//! A record that its topic would refuse: stopped with numbers and remedy, or into the dead letter topic; never dropped silently.

use serde_json::json;

use super::harness::{Feed, fails_with, streams};

/// A row whose event is about 20 kB however it is compressed; the topic takes 10 kB.
const LARGE_ROW: &str = "INSERT INTO docs SELECT 2, string_agg(md5(g::text), '') FROM generate_series(1, 640) g";

async fn feed() -> Feed {
    let feed = Feed::start().await;
    feed.on_primary("CREATE TABLE docs (id int PRIMARY KEY, doc text)").await;
    feed.create_topic("shop.public.docs", 2, &[("max.message.bytes", "10000")]).await;
    feed
}

#[tokio::test(flavor = "multi_thread")]
async fn an_oversized_record_stops_the_feed_and_passes_once_the_topic_takes_it() {
    let feed = feed().await;
    let relay = feed.relay("").await;
    feed.on_primary("INSERT INTO docs VALUES (1, 'small')").await;
    feed.on_primary(&format!("BEGIN; INSERT INTO docs VALUES (10, 'first'); {LARGE_ROW}; COMMIT")).await;
    feed.on_primary("INSERT INTO docs VALUES (3, 'small')").await;
    fails_with(&relay, &["shop.public.docs", "max.message.bytes", "10000", "on_oversized"]).await;
    let keys = |records: Vec<super::harness::Record>| records.iter().map(|it| it.key_text()).collect::<Vec<_>>();
    let records = feed.reader().read_one("shop.public.docs").await;
    assert_eq!(keys(records), [r#"{"id":1}"#], "a part of the transaction is seen");
    feed.set_topic("shop.public.docs", &[("max.message.bytes", "100000")]).await;
    relay.signal(libc::SIGHUP);
    streams(&relay).await;
    let mut all = keys(feed.reader().read_count(&["shop.public.docs"], 4).await);
    all.sort();
    assert_eq!(all, [r#"{"id":10}"#, r#"{"id":1}"#, r#"{"id":2}"#, r#"{"id":3}"#]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_oversized_record_goes_to_the_dead_letter_topic_in_the_same_transaction() {
    let feed = feed().await;
    let _relay = feed.relay("on_oversized = \"dead_letter\"").await;
    feed.on_primary(&format!("BEGIN; INSERT INTO docs VALUES (1, 'before'); {LARGE_ROW}; COMMIT")).await;
    feed.on_primary("INSERT INTO docs VALUES (3, 'after')").await;
    feed.caught_up().await;
    let records = feed.reader().read_one("shop.public.docs").await;
    let mut ids: Vec<i64> = records.iter().map(|record| record.json()["after"]["id"].as_i64().unwrap()).collect();
    ids.sort();
    assert_eq!(ids, [1, 3]);
    let dead = feed.reader().read_one("shop.dead_letter").await;
    assert_eq!(dead.len(), 1, "{dead:?}");
    assert_eq!(dead[0].key_json(), json!({"id": 2}));
    let letter = dead[0].json();
    assert_eq!(letter["topic"], "shop.public.docs");
    assert!(letter["bytes"].as_u64().unwrap() > 20_000, "{letter}");
    for field in ["reason", "key", "lsn", "xid"] {
        assert!(!letter[field].is_null(), "{field} is not in {letter}");
    }
}
