//! A record that its topic would refuse: stopped with numbers and remedy, or into the dead letter topic; never dropped silently.

use serde_json::json;

use super::harness::{Feed, Record, eventually, fails_with, streams};

const TOPIC: &str = "shop.public.docs";
/// A row whose event is about 20 kB however it is compressed; the topic takes 10 kB.
const LARGE_ROW: &str = "SELECT string_agg(md5(g::text), '') FROM generate_series(1, 640) g";

fn ids(records: &[Record]) -> Vec<i64> {
    let mut ids: Vec<i64> = records.iter().map(|record| record.key_json()["id"].as_i64().unwrap()).collect();
    ids.sort_unstable();
    ids
}

#[tokio::test(flavor = "multi_thread")]
async fn an_oversized_record_stops_the_feed_or_goes_to_the_dead_letters_with_its_transaction() {
    let feed = Feed::start().await;
    feed.on_primary("CREATE TABLE docs (id int PRIMARY KEY, doc text)").await;
    feed.create_topic(TOPIC, 2, &[("max.message.bytes", "10000")]).await;
    let mut relay = feed.relay("").await;
    feed.on_primary("INSERT INTO docs VALUES (1, 'small')").await;
    feed.caught_up().await;
    feed.on_primary(&format!("BEGIN; INSERT INTO docs VALUES (2, 'first'), (3, ({LARGE_ROW})), (4, 'last'); COMMIT"))
        .await;
    feed.on_primary("INSERT INTO docs VALUES (5, 'small')").await;
    fails_with(&relay, &[TOPIC, "max.message.bytes = 10000", "on_oversized"]).await;
    assert_eq!(ids(&feed.reader().read_one(TOPIC).await), [1], "a part of the transaction is seen");
    // The topic takes more: a reload goes on.
    feed.set_topic(TOPIC, &[("max.message.bytes", "100000")]).await;
    relay.signal(libc::SIGHUP);
    streams(&relay).await;
    feed.caught_up().await;
    assert_eq!(ids(&feed.reader().read_one(TOPIC).await), [1, 2, 3, 4, 5]);
    // The topic takes less again, and the record goes elsewhere.
    feed.set_topic(TOPIC, &[("max.message.bytes", "10000")]).await;
    relay.stop().await;
    relay.rewrite_config(&feed.config("initial_copy = false", "on_oversized = \"dead_letter\""));
    feed.on_primary(&format!("BEGIN; INSERT INTO docs VALUES (6, 'first'), (7, ({LARGE_ROW})), (8, 'last'); COMMIT"))
        .await;
    relay.start_again().await;
    streams(&relay).await;
    feed.caught_up().await;
    assert_eq!(ids(&feed.reader().read_one(TOPIC).await), [1, 2, 3, 4, 5, 6, 8]);
    let dead = feed.reader().read_one("shop.dead_letter").await;
    assert_eq!(dead.len(), 1, "{dead:?}");
    assert_eq!(dead[0].key_json(), json!({"id": 7}));
    let letter = dead[0].json();
    assert_eq!((letter["topic"].as_str(), letter["key"].as_str()), (Some(TOPIC), Some("{\"id\":7}")));
    assert!(letter["bytes"].as_u64().unwrap() > 20_000 && letter["xid"].as_u64().is_some(), "{letter}");
    assert!(letter["reason"].is_string() && letter["lsn"].is_string(), "{letter}");
    // The topic takes more, and the feed that runs sees it soon.
    feed.set_topic(TOPIC, &[("max.message.bytes", "100000")]).await;
    eventually("a large row goes to its topic", || async {
        feed.on_primary(&format!("INSERT INTO docs SELECT max(id) + 1, ({LARGE_ROW}) FROM docs")).await;
        feed.caught_up().await;
        (ids(&feed.reader().read_one(TOPIC).await).len() > 7).then_some(())
    })
    .await;
}

/// The feed has read what the topic takes when it began: what changes since, the broker says.
#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_takes_less_than_it_did_when_the_feed_began() {
    let feed = Feed::start().await;
    feed.on_primary("CREATE TABLE docs (id int PRIMARY KEY, doc text)").await;
    feed.create_topic(TOPIC, 1, &[("max.message.bytes", "100000")]).await;
    let mut relay = feed.relay("").await;
    let mut sent = 0;
    for delivery in ["exactly_once", "at_least_once"] {
        assert!(relay.stop().await.success());
        relay.rewrite_config(&feed.config("initial_copy = false", &format!("delivery = \"{delivery}\"")));
        relay.start_again().await;
        streams(&relay).await;
        feed.on_primary(&format!("INSERT INTO docs VALUES ({}, 'small')", sent + 1)).await;
        feed.caught_up().await;
        feed.set_topic(TOPIC, &[("max.message.bytes", "10000")]).await;
        // Too much for one batch of its records, and not for any of them: it goes on by itself.
        let rows = format!("SELECT {sent} + g, repeat('x', 500) FROM generate_series(2, 200) g");
        feed.on_primary(&format!("INSERT INTO docs {rows}")).await;
        streams(&relay).await;
        feed.caught_up().await;
        feed.set_topic(TOPIC, &[("max.message.bytes", "100000")]).await;
        assert!(relay.stop().await.success());
        relay.start_again().await;
        streams(&relay).await;
        feed.set_topic(TOPIC, &[("max.message.bytes", "10000")]).await;
        feed.on_primary(&format!("INSERT INTO docs VALUES ({}, ({LARGE_ROW}))", sent + 201)).await;
        fails_with(&relay, &[TOPIC, "max.message.bytes = 10000", "on_oversized"]).await;
        feed.set_topic(TOPIC, &[("max.message.bytes", "100000")]).await;
        relay.signal(libc::SIGHUP);
        streams(&relay).await;
        feed.caught_up().await;
        sent += 201;
        let mut found = ids(&feed.reader().read_one(TOPIC).await);
        assert!(delivery == "at_least_once" || found.len() == sent, "{delivery}: {} events", found.len());
        found.dedup();
        assert_eq!(found, (1..=sent as i64).collect::<Vec<_>>(), "{delivery}");
    }
}
