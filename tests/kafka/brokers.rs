//! The throw-away broker and the reader themselves: data survives a crash, an aborted transaction stays unseen, the secure
//! listeners take who has the password, and nothing is left behind.

use std::time::Duration;

use rdkafka::config::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use walrelay::throwaway::{BrokerOptions, SecureListeners};

use super::harness::certificates::Authority;
use super::harness::{Feed, PATIENCE, Reader, broker, broker_with};

fn producer(address: &str, more: &[(&str, &str)]) -> ThreadedProducer<DefaultProducerContext> {
    let mut settings = ClientConfig::new();
    settings.set("bootstrap.servers", address);
    for (name, value) in more {
        settings.set(*name, *value);
    }
    settings.create().unwrap()
}

fn send(producer: &ThreadedProducer<DefaultProducerContext>, partition: i32, value: &str) {
    let headers = OwnedHeaders::new().insert(Header { key: "h", value: Some("x") });
    let record = BaseRecord::to("t").partition(partition).key("k").payload(value).headers(headers);
    producer.send(record).map_err(|(error, _)| error).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_crashes_and_comes_back_with_its_data_and_leaves_nothing() {
    let mut feed = Feed::start().await;
    let reader = feed.reader();
    assert_eq!(reader.read(&["t", "never"]).await.len(), 0);
    feed.create_topic("t", 2, &[]).await;
    let plain = producer(&feed.broker.address(), &[]);
    send(&plain, 0, "one");
    send(&plain, 1, "two");
    plain.flush(PATIENCE).unwrap();
    feed.broker.kill9();
    feed.broker.start_again().await.unwrap();
    let transactional = producer(&feed.broker.address(), &[("transactional.id", "x")]);
    transactional.init_transactions(PATIENCE).unwrap();
    transactional.begin_transaction().unwrap();
    send(&transactional, 0, "aborted");
    transactional.flush(PATIENCE).unwrap();
    let open = reader.read_one("t").await;
    assert_eq!(open.len(), 2, "an open transaction is seen: {open:?}");
    transactional.abort_transaction(PATIENCE).unwrap();
    transactional.begin_transaction().unwrap();
    send(&transactional, 0, "committed");
    transactional.commit_transaction(PATIENCE).unwrap();
    feed.broker.stop().await;
    feed.broker.start_again().await.unwrap();
    let records = reader.read_until("three records", &["t"], |records| records.len() == 3).await;
    let found: Vec<(i32, String)> = records
        .iter()
        .map(|record| (record.partition, String::from_utf8(record.value.clone().unwrap()).unwrap()))
        .collect();
    assert_eq!(found, [(0, "one".to_owned()), (0, "committed".to_owned()), (1, "two".to_owned())]);
    assert_eq!((records[0].key_text(), records[0].header("h")), ("k".to_owned(), Some("x".to_owned())));
    let (folder, process) = (feed.broker.folder().to_path_buf(), feed.broker.process_id().unwrap());
    drop(feed);
    let is_left = folder.exists() || std::path::Path::new(&format!("/proc/{process}")).exists();
    assert!(!is_left, "something is left of the broker");
}
