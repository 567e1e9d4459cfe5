//! `apply_means = "readable"`: a commit that waits for *apply* returns when a `read_committed` reader sees its events; one that waits
//! for *flush* alone does not wait for readers.

use std::time::Duration;

use rdkafka::config::ClientConfig;
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};

use super::harness::{Feed, PATIENCE};

#[tokio::test(flavor = "multi_thread")]
async fn readers_see_the_events_when_the_commit_returns() {
    let feed = Feed::start().await;
    feed.on_primary("CREATE TABLE orders (id int PRIMARY KEY, item text); CREATE TABLE other (id int PRIMARY KEY)")
        .await;
    let sink = "apply_means = \"readable\"\ncreate_topics = { partitions = 3, replication_factor = 1 }";
    let mut relay = feed.relay(sink).await;
    feed.become_synchronous().await;
    for id in 1..=10 {
        let insert = format!("INSERT INTO orders VALUES ({id}, 'x'); INSERT INTO other VALUES ({id})");
        feed.on_primary(&format!("SET synchronous_commit = remote_apply; BEGIN; {insert}; COMMIT")).await;
        let records = feed.reader().read(&["shop.public.orders", "shop.public.other"]).await;
        assert_eq!(records.len(), 2 * id, "the commit returned before a reader saw its events");
    }
    // What brings no event waits for nobody.
    feed.on_primary("SET synchronous_commit = remote_apply; CREATE TABLE unpublished AS SELECT 1 AS a").await;
    relay.kill9();
    relay.start_again().await;
    feed.on_primary("SET synchronous_commit = remote_apply; INSERT INTO orders VALUES (100, 'x')").await;
    assert_eq!(feed.reader().read(&["shop.public.orders"]).await.len(), 11);
}

/// Somebody's transaction that stands open behind a record of this topic.
async fn open_transaction(feed: &Feed, topic: &'static str) -> ThreadedProducer<DefaultProducerContext> {
    let address = feed.broker.address();
    let begin = move || {
        let mut settings = ClientConfig::new();
        settings.set("bootstrap.servers", address).set("transactional.id", "somebody else");
        settings.set("transaction.timeout.ms", "600000");
        let stranger: ThreadedProducer<DefaultProducerContext> = settings.create().unwrap();
        stranger.init_transactions(PATIENCE).unwrap();
        stranger.begin_transaction().unwrap();
        stranger.send(BaseRecord::<str, str>::to(topic).key("k").payload("{}")).map_err(|(error, _)| error).unwrap();
        stranger.flush(PATIENCE).unwrap();
        stranger
    };
    tokio::task::spawn_blocking(begin).await.unwrap()
}

/// Nothing known beforehand leads to these topics: rows and messages name them.
#[tokio::test(flavor = "multi_thread")]
async fn a_restart_does_not_hide_what_went_to_the_topics_of_an_outbox_or_of_messages() {
    let feed = Feed::start().await;
    feed.on_primary("CREATE TABLE outbox (id int PRIMARY KEY, aggregatetype text, aggregateid text, payload text)")
        .await;
    let sink = "apply_means = \"readable\"\n[pipeline.sink.outbox]\ntable = \"public.outbox\"\nheaders = []";
    let mut relay = feed.relay(sink).await;
    feed.become_synchronous().await;
    let cases = [
        ("outbox.event.order", "INSERT INTO outbox VALUES (NUMBER, 'order', '42', 'x')", 0),
        ("shop.message", "SELECT pg_logical_emit_message(true, 'mine', 'mNUMBER')", 10),
    ];
    for (topic, change, id) in cases {
        let change = |number: u32| change.replace("NUMBER", &number.to_string());
        // The first makes the topic.
        feed.on_primary(&format!("SET synchronous_commit = remote_apply; {}", change(id))).await;
        let stranger = open_transaction(&feed, topic).await;
        let mut waiting = feed.in_background(&format!("SET synchronous_commit = remote_apply; {}", change(id + 1)));
        let early = tokio::time::timeout(Duration::from_secs(2), &mut waiting).await;
        assert!(early.is_err(), "{topic}: the commit returned while no reader could see its event");
        // What it waits for is behind the record, so that it is not sent again.
        feed.on_primary(&format!("SET synchronous_commit = on; {}", change(id + 2))).await;
        relay.kill9();
        relay.start_again().await;
        super::harness::streams(&relay).await;
        let early = tokio::time::timeout(Duration::from_secs(2), &mut waiting).await;
        assert!(early.is_err(), "{topic}: the commit returned with the restart");
        tokio::task::spawn_blocking(move || stranger.abort_transaction(PATIENCE).unwrap()).await.unwrap();
        tokio::time::timeout(PATIENCE, waiting).await.unwrap().unwrap();
        assert_eq!(feed.reader().read(&[topic]).await.len(), 3, "{topic}");
    }
}

/// What readers shall see is gone: nobody waits for it any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_made_anew_does_not_hold_apply_back_for_ever() {
    const TOPIC: &str = "shop.public.orders";
    let feed = Feed::start().await;
    feed.on_primary("CREATE TABLE orders (id int PRIMARY KEY, item text)").await;
    let relay = feed.relay("apply_means = \"readable\"").await;
    feed.become_synchronous().await;
    feed.on_primary("SET synchronous_commit = remote_apply; INSERT INTO orders VALUES (1, 'x')").await;
    let stranger = open_transaction(&feed, TOPIC).await;
    let mut waiting = feed.in_background("SET synchronous_commit = remote_apply; INSERT INTO orders VALUES (2, 'x')");
    let early = tokio::time::timeout(Duration::from_secs(2), &mut waiting).await;
    assert!(early.is_err(), "the commit returned while no reader could see its event");
    // Behind this both are written, and their ends are known at the next look.
    feed.on_primary("SET synchronous_commit = on; INSERT INTO orders VALUES (3, 'x')").await;
    let early = tokio::time::timeout(Duration::from_secs(2), &mut waiting).await;
    assert!(early.is_err(), "the commit returned while no reader could see its event");
    feed.delete_topics(&[TOPIC]).await;
    feed.create_topic(TOPIC, 1, &[]).await;
    tokio::time::timeout(PATIENCE, waiting).await.expect("the commit waits for what is gone").unwrap();
    assert!(relay.log().contains("ends before what was written there"), "{}", relay.log());
    // Its client would end its transaction in a topic that it does not know.
    std::mem::forget(stranger);
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_elses_open_transaction_holds_apply_back_and_not_flush() {
    let feed = Feed::start().await;
    feed.on_primary("CREATE TABLE orders (id int PRIMARY KEY, item text)").await;
    let mut relay = feed.relay("apply_means = \"readable\"").await;
    feed.become_synchronous().await;
    let stranger = open_transaction(&feed, "shop.public.orders").await;
    feed.on_primary("SET synchronous_commit = on; INSERT INTO orders VALUES (1, 'x')").await;
    let mut waiting = feed.in_background("SET synchronous_commit = remote_apply; INSERT INTO orders VALUES (2, 'x')");
    let early = tokio::time::timeout(Duration::from_secs(2), &mut waiting).await;
    assert!(early.is_err(), "the commit returned while no reader could see its event");
    // Who waits for less is not held up by who waits for readers, nor is what brings no event.
    for id in 3..=12 {
        let insert = format!("SET synchronous_commit = on; INSERT INTO orders VALUES ({id}, 'x')");
        tokio::time::timeout(Duration::from_secs(5), feed.on_primary(&insert)).await.expect("flush waits for readers");
    }
    let unpublished = feed.on_primary("SET synchronous_commit = on; CREATE TABLE unpublished AS SELECT 1 AS a");
    tokio::time::timeout(Duration::from_secs(5), unpublished).await.expect("an idle position waits for readers");
    assert!(!waiting.is_finished());
    // Nor does a restart make them visible.
    relay.kill9();
    relay.start_again().await;
    super::harness::streams(&relay).await;
    feed.on_primary("SET synchronous_commit = on; INSERT INTO orders VALUES (13, 'x')").await;
    let early = tokio::time::timeout(Duration::from_secs(2), &mut waiting).await;
    assert!(early.is_err(), "the commit returned with the restart");
    stranger.abort_transaction(PATIENCE).unwrap();
    tokio::time::timeout(PATIENCE, waiting).await.unwrap().unwrap();
    assert_eq!(feed.reader().read(&["shop.public.orders"]).await.len(), 13);
}
