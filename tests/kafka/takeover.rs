//! Who may write: the record and the slot at every beginning, a hot spare, a stranger's record, a record that is missing, `drop`.

use std::process::Command;
use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use serde_json::Value;
use walrelay::throwaway::{BrokerOptions, Options};

use super::harness::{Feed, PATIENCE, Relay, eventually, fails_with, streams, value};

const KEY: &str = "walrelay.shop.feed1";

/// The record under our key.
async fn record(feed: &Feed) -> Value {
    let records = feed.progress().await;
    records.into_iter().find(|(key, _)| key == KEY).map_or(Value::Null, |(_, record)| record)
}

/// Writes WAL that belongs to no table of the pipeline, in another database.
async fn foreign_commit(feed: &Feed) -> String {
    value(&feed.primary, "postgres", "SELECT pg_logical_emit_message(true, 'x', 'y')").await;
    value(&feed.primary, "postgres", "SELECT pg_current_wal_insert_lsn()").await
}

/// Somebody else's record under our key.
async fn write_record(feed: &Feed, key: &str, record: Option<&str>) {
    let mut settings = ClientConfig::new();
    settings.set("bootstrap.servers", feed.broker.address());
    let producer: ThreadedProducer<DefaultProducerContext> = settings.create().unwrap();
    let mut sent = BaseRecord::<str, str>::to("walrelay.progress").partition(0).key(key);
    if let Some(record) = record {
        sent = sent.payload(record);
    }
    producer.send(sent).map_err(|(error, _)| error).unwrap();
    tokio::task::spawn_blocking(move || producer.flush(PATIENCE).unwrap()).await.unwrap();
}

/// How long the feed stands idle: `WALRELAY_TEST_IDLE_SECONDS`.
fn idle_time() -> Duration {
    let seconds = std::env::var("WALRELAY_TEST_IDLE_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(10))
}

/// The brokers forget an idle producer meanwhile: that is a new producer, and no failure.
#[tokio::test(flavor = "multi_thread")]
async fn an_idle_position_is_recorded_before_it_is_confirmed_and_a_crash_loses_nothing() {
    let forgetful = BrokerOptions::default()
        .with("transactional.id.expiration.ms", "2000")
        .with("transaction.remove.expired.transaction.cleanup.interval.ms", "500")
        .with("producer.id.expiration.ms", "2000")
        .with("producer.id.expiration.check.interval.ms", "500");
    let feed = Feed::with(Options::default(), forgetful).await;
    feed.on_primary("CREATE TABLE t (id int PRIMARY KEY)").await;
    let mut relay = feed.relay_with("initial_copy = false\ntables = [\"public.t\"]", "").await;
    assert_eq!(relay.report("feed1").await.unwrap()["sink"], "kafka");
    feed.on_primary("INSERT INTO t VALUES (1)").await;
    let began = Instant::now();
    for round in 0.. {
        let target = foreign_commit(&feed).await;
        // A crash may come at any moment of it.
        if round % 2 == 0 {
            let confirmed = format!("SELECT confirmed_flush_lsn >= '{target}' FROM pg_replication_slots");
            eventually("the idle position is confirmed", || async {
                (value(&feed.primary, "postgres", &confirmed).await == "t").then_some(())
            })
            .await;
        }
        relay.kill9();
        let recorded = record(&feed).await["lsn"].as_str().unwrap().to_owned();
        let behind = format!("SELECT confirmed_flush_lsn <= '{recorded}' FROM pg_replication_slots");
        assert_eq!(value(&feed.primary, "postgres", &behind).await, "t", "confirmed beyond the record {recorded}");
        relay.start_again().await;
        streams(&relay).await;
        if began.elapsed() > idle_time() {
            break;
        }
    }
    feed.caught_up().await;
    // Long enough for the broker to forget the producer.
    tokio::time::sleep(Duration::from_secs(5)).await;
    feed.on_primary("INSERT INTO t VALUES (2)").await;
    feed.caught_up().await;
    let records = feed.reader().read_one("shop.public.t").await;
    let keys: Vec<String> = records.iter().map(|record| record.key_text()).collect();
    assert_eq!(keys, [r#"{"id":1}"#, r#"{"id":2}"#]);
    let found = record(&feed).await;
    assert_eq!(
        (&found["database"], &found["slot"], &found["version"]),
        (&"shop".into(), &"walrelay_feed1".into(), &1.into())
    );
    assert_eq!(found["timeline"], 1);
    assert!(found["system_identifier"].as_str().unwrap().len() > 10, "{found}");
    let partitions = feed.reader().partitions().await;
    assert!(partitions.contains(&("walrelay.progress".to_owned(), 1)), "{partitions:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spare_waits_and_takes_over() {
    let feed = Feed::start().await;
    let mut first = feed.relay("").await;
    let config = feed.config("initial_copy = false", "");
    let second = Relay::start(&config).await;
    let is_spare = |report: &Value| report["waiting_for"].as_str().is_some_and(|text| text.contains("hot spare"));
    second.wait("feed1", "hot spare", is_spare).await;
    foreign_commit(&feed).await;
    let before = record(&feed).await;
    assert_ne!(before, Value::Null);
    first.kill9();
    streams(&second).await;
    foreign_commit(&feed).await;
    feed.caught_up().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_have_lost_something_is_refused() {
    let feed = Feed::start().await;
    let mut relay = feed.relay("").await;
    feed.caught_up().await;
    relay.stop().await;
    let ours = record(&feed).await.to_string();
    let identifier = serde_json::from_str::<Value>(&ours).unwrap()["system_identifier"].as_str().unwrap().to_owned();
    let stranger = ours.replace(&identifier, "1234567890123456789");
    for (written, parts) in [
        (Some(stranger.as_str()), &["another cluster", "1234567890123456789"][..]),
        (Some(&ours.replace("\"shop\"", "\"other\"")), &["database \"other\""]),
        (Some(&ours.replace("walrelay_feed1", "mine")), &["belongs to the slot \"mine\""]),
        (Some("{}"), &["unreadable value"]),
        // The slot is there, and nobody knows how far Kafka is.
        (None, &["no progress record", "start_lsn"]),
    ] {
        write_record(&feed, KEY, written).await;
        relay.start_again().await;
        fails_with(&relay, parts).await;
        relay.kill9();
    }
    // The stranger was not fenced and nothing was written.
    assert_eq!(record(&feed).await, Value::Null);
    write_record(&feed, KEY, Some(&ours)).await;
    relay.start_again().await;
    streams(&relay).await;
    relay.stop().await;
    feed.on_primary("SELECT pg_drop_replication_slot('walrelay_feed1')").await;
    relay.start_again().await;
    fails_with(&relay, &["never re-creates a slot silently"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_is_adopted_only_where_its_position_is_named() {
    let feed = Feed::start().await;
    feed.on_primary("CREATE PUBLICATION walrelay_feed1").await;
    feed.on_primary("SELECT pg_create_logical_replication_slot('walrelay_feed1', 'pgoutput')").await;
    let confirmed = feed.confirmed().await;
    for (line, parts) in [
        ("", &["no progress record", "start_lsn ="][..]),
        ("start_lsn = \"0/1\"", &["lies before", "cannot be sent again"]),
        ("start_lsn = \"FF/0\"", &["behind the end of the primary's WAL"]),
    ] {
        let relay = Relay::start(&feed.config("initial_copy = false", line)).await;
        fails_with(&relay, parts).await;
    }
    let relay = feed.relay(&format!("start_lsn = \"{confirmed}\"")).await;
    foreign_commit(&feed).await;
    feed.caught_up().await;
    drop(relay);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drop_forgets_the_record_and_leaves_a_strangers() {
    let feed = Feed::start().await;
    let mut relay = feed.relay("").await;
    feed.caught_up().await;
    let drop_it = |relay: &Relay| {
        let output = Command::new(env!("CARGO_BIN_EXE_walrelay"))
            .args(["drop", "feed1", "--yes", "--config"])
            .arg(relay.config_path())
            .output()
            .unwrap();
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    };
    let text = drop_it(&relay);
    assert!(text.contains("in use"), "{text}");
    relay.stop().await;
    let ours = record(&feed).await.to_string();
    write_record(&feed, KEY, Some(&ours.replace("\"shop\"", "\"other\""))).await;
    let text = drop_it(&relay);
    assert!(text.contains("it is about the slot"), "{text}");
    assert_ne!(record(&feed).await, Value::Null);
    write_record(&feed, KEY, Some(&ours)).await;
    let text = drop_it(&relay);
    assert!(text.contains("removed the progress record"), "{text}");
    assert_eq!(record(&feed).await, Value::Null);
    relay.start_again().await;
    streams(&relay).await;
}
