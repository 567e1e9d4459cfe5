//! `walrelay check --debezium-offsets`: from Kafka Connect's own record of a connector to a feed that goes on in its place. The record
//! is written as Connect writes it; the slot is left where a connector left it.

use std::process::{Command, Output};

use rdkafka::config::ClientConfig;
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};

use super::harness::{Feed, PATIENCE, Relay, streams, value};

async fn check(feed: &Feed, arguments: &[&str]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("walrelay.toml");
    std::fs::write(&path, feed.config("initial_copy = false", "")).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_walrelay"));
    command.arg("check").args(arguments).arg("--config").arg(&path);
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_feed_goes_on_where_connect_says_that_a_connector_stopped() {
    let feed = Feed::start().await;
    feed.on_primary("CREATE TABLE orders (id int PRIMARY KEY)").await;
    feed.on_primary("CREATE PUBLICATION walrelay_feed1 FOR TABLE orders").await;
    value(&feed.primary, "shop", "SELECT lsn FROM pg_create_logical_replication_slot('debezium', 'pgoutput')").await;
    let mut ends: Vec<String> = Vec::new();
    for id in 1..=3 {
        feed.on_primary(&format!("INSERT INTO orders VALUES ({id})")).await;
        ends.push(value(&feed.primary, "shop", "SELECT pg_current_wal_insert_lsn() - '0/0'").await);
    }
    // The connector has sent the first transaction whole, and of the second a part.
    feed.create_topic("connect-offsets", 5, &[("cleanup.policy", "compact")]).await;
    let mut settings = ClientConfig::new();
    settings.set("bootstrap.servers", feed.broker.address());
    let producer: ThreadedProducer<DefaultProducerContext> = settings.create().unwrap();
    for (connector, lsn_commit) in [("other", "1"), ("shop-connector", "1"), ("shop-connector", ends[0].as_str())] {
        let key = format!(r#"["{connector}",{{"server":"shop"}}]"#);
        let record = format!(
            r#"{{"transaction_id":null,"lsn_proc":{lsn_commit},"messageType":"INSERT","lsn_commit":{lsn_commit},"lsn":{},"txId":7,"ts_usec":1}}"#,
            ends[1]
        );
        producer.send(BaseRecord::<str, str>::to("connect-offsets").key(&key).payload(&record)).unwrap();
    }
    producer.flush(PATIENCE).unwrap();
    let unknown = check(&feed, &["--debezium-offsets", "connect-offsets", "--connector", "mine"]).await;
    let said = String::from_utf8_lossy(&unknown.stderr).into_owned();
    assert!(unknown.status.code() == Some(5) && said.contains("\"other\", \"shop-connector\""), "{said}");
    let missing = check(&feed, &["--debezium-offsets", "no-such-topic", "--connector", "mine"]).await;
    assert_eq!(missing.status.code(), Some(4), "{missing:?}");
    let found = check(&feed, &["--debezium-offsets", "connect-offsets", "--connector", "shop-connector"]).await;
    let said = String::from_utf8_lossy(&found.stdout).into_owned();
    assert!(found.status.success() && said.contains("into [pipeline.sink] of \"feed1\""), "{found:?}");
    let start_lsn = said.lines().next().unwrap();
    let pipeline = "initial_copy = false\nslot = \"debezium\"";
    let relay = Relay::start(&feed.config(pipeline, start_lsn)).await;
    streams(&relay).await;
    feed.on_primary("INSERT INTO orders VALUES (4)").await;
    let records = feed.reader().read_count(&["shop.public.orders"], 3).await;
    let mut ids: Vec<i64> = records.iter().filter_map(|record| record.json()["after"]["id"].as_i64()).collect();
    ids.sort_unstable();
    assert_eq!(ids, [2, 3, 4], "the first was sent by the connector, the second is sent whole");
}
