//! What arrives, and how often: events of whole transactions, logical messages, an initial copy, a broker that goes and comes back.

use std::process::Command;

use rdkafka::config::ClientConfig;
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use serde_json::Value;
use walrelay::throwaway::{BrokerOptions, Options};

use super::harness::{Feed, PATIENCE, Record, Relay, Tables, eventually, fails_with, streams, value};

const TOPIC: &str = "shop.public.t";

async fn with_table(feed: &Feed) {
    feed.on_primary("CREATE TABLE t (id int PRIMARY KEY, v text)").await;
}

/// The rows of the feed are those of the table, and no event came twice or out of order.
async fn agrees(feed: &Feed) {
    let (_, Tables { faults, .. }) = rebuilt(feed).await;
    assert!(faults.is_empty(), "{:?}", &faults[..faults.len().min(5)]);
}

/// The rows of the feed are those of the table.
async fn rebuilt(feed: &Feed) -> (Vec<Record>, Tables) {
    feed.caught_up().await;
    let records = feed.reader().read_one(TOPIC).await;
    let tables = Tables::of(&records);
    let found = tables.rows(TOPIC);
    let query = "SELECT coalesce(json_agg(t), '[]')::text FROM (SELECT id, v FROM t) t";
    let text = value(&feed.primary, "shop", query).await;
    let mut expected: Vec<Value> = serde_json::from_str(&text).unwrap();
    expected.sort_by_key(Value::to_string);
    assert_eq!(found.len(), expected.len());
    assert_eq!(found, expected);
    (records, tables)
}

fn operations(records: &[Record]) -> Vec<String> {
    let events = records.iter().filter(|record| record.value.is_some());
    events.map(|record| record.json()["op"].as_str().unwrap_or("").to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_transaction_arrives_once_whatever_dies() {
    let mut feed = Feed::start().await;
    with_table(&feed).await;
    let mut relay = feed.relay("").await;
    for round in 0..4 {
        let writing = feed.in_background(&format!(
            "DO $$ BEGIN FOR i IN 1..400 LOOP \
             INSERT INTO t VALUES ({round} * 1000 + i, 'a'); UPDATE t SET v = v || 'b' WHERE id = {round} * 1000 + i; \
             IF i % 3 = 0 THEN DELETE FROM t WHERE id = {round} * 1000 + i; END IF; COMMIT; END LOOP; END $$"
        ));
        if round % 2 == 0 {
            eventually("some were applied", || async {
                let report = relay.report("feed1").await?;
                (report["transactions"].as_u64()? > 20).then_some(())
            })
            .await;
            relay.kill9();
            relay.start_again().await;
        } else {
            feed.broker.kill9();
            feed.broker.start_again().await.unwrap();
        }
        writing.await.unwrap();
        streams(&relay).await;
    }
    agrees(&feed).await;
    // An orderly stop in between loses and repeats nothing either.
    relay.stop().await;
    feed.on_primary("INSERT INTO t VALUES (-1, 'while away')").await;
    relay.start_again().await;
    agrees(&feed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_outside_transactions_arrives_once() {
    let feed = Feed::start().await;
    with_table(&feed).await;
    let mut relay = feed.relay("").await;
    for round in 0..6 {
        feed.on_primary(&format!("SELECT pg_logical_emit_message(false, 'mine', 'm{round}')")).await;
        if round % 2 == 1 {
            feed.on_primary(&format!("INSERT INTO t VALUES ({round}, 'x')")).await;
        }
        let count = round + 1;
        feed.reader().read_count(&["shop.message"], count).await;
        relay.kill9();
        relay.start_again().await;
        streams(&relay).await;
    }
    feed.caught_up().await;
    let records = feed.reader().read_one("shop.message").await;
    assert_eq!(records.len(), 6, "{records:?}");
    assert!(records.iter().all(|record| record.json()["op"] == "m"), "{records:?}");
    agrees(&feed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn existing_rows_are_sent_once_and_precede_the_stream() {
    let feed = Feed::start().await;
    with_table(&feed).await;
    feed.on_primary("INSERT INTO t SELECT i, 'row ' || i FROM generate_series(1, 20000) i").await;
    feed.on_primary(
        "CREATE TABLE empty (id int PRIMARY KEY); CREATE TABLE one (id int PRIMARY KEY); INSERT INTO one VALUES (1)",
    )
    .await;
    let writing = feed.in_background(
        "DO $$ BEGIN FOR i IN 1..300 LOOP UPDATE t SET v = 'changed' WHERE id = i * 7; COMMIT; END LOOP; END $$",
    );
    let mut relay = feed.relay_with("initial_copy = true\ncopy_workers = 2", "").await;
    writing.await.unwrap();
    let report = relay.report("feed1").await.unwrap();
    assert_eq!((&report["copy"]["tables_done"], &report["copy"]["tables_total"]), (&3.into(), &3.into()), "{report}");
    agrees(&feed).await;
    let records = feed.reader().read_one(TOPIC).await;
    let operations = operations(&records);
    let reads = operations.iter().filter(|operation| *operation == "r").count();
    assert_eq!(reads, 20_000);
    let mark = |record: &Record| record.json()["source"]["snapshot"].as_str().unwrap_or("").to_owned();
    let last = records.iter().rfind(|record| record.json()["op"] == "r").unwrap();
    assert!(["last_in_data_collection", "last"].contains(&mark(last).as_str()), "{}", mark(last));
    let one = feed.reader().read_one("shop.public.one").await;
    assert!(["last_in_data_collection", "last"].contains(&mark(&one[0]).as_str()), "{}", mark(&one[0]));
    // A restart repeats no finished table.
    relay.kill9();
    feed.on_primary("UPDATE t SET v = 'after' WHERE id = 1").await;
    relay.start_again().await;
    streams(&relay).await;
    agrees(&feed).await;
    let records = feed.reader().read_one(TOPIC).await;
    assert_eq!(records.iter().filter(|record| record.json()["op"] == "r").count(), 20_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_was_cut_off_begins_again_and_keeps_finished_tables() {
    let feed = Feed::start().await;
    with_table(&feed).await;
    feed.on_primary("CREATE TABLE a_small (id int PRIMARY KEY); INSERT INTO a_small SELECT generate_series(1, 10)")
        .await;
    feed.on_primary("INSERT INTO t SELECT i, repeat('x', 300) FROM generate_series(1, 250000) i").await;
    let mut relay = Relay::start(&feed.config("copy_workers = 2", "")).await;
    let is_half_done = |report: &Value| {
        report["copy"]["tables_done"].as_u64() >= Some(1) && report["copy"]["rows"].as_u64() >= Some(50_000)
    };
    relay.wait("feed1", "a table is done, another in work", is_half_done).await;
    // What is read is not yet committed: it goes on until some of it is.
    let sent = eventually("rows of t are there", || async {
        relay.signal(libc::SIGSTOP);
        let sent = feed.reader().read_one(TOPIC).await;
        if sent.len() <= 100 {
            relay.signal(libc::SIGCONT);
            return None;
        }
        Some(sent)
    })
    .await;
    relay.kill9();
    assert!(sent.len() < 250_000, "the copy was whole before it was cut off");
    // Of rows that consumers hold, some are no more when it begins again.
    let id = |record: &Record| record.key_json()["id"].to_string();
    let gone: Vec<String> = sent.iter().take(100).map(id).collect();
    feed.on_primary(&format!("DELETE FROM t WHERE id IN ({})", gone.join(", "))).await;
    feed.on_primary("UPDATE t SET v = 'changed' WHERE id <= 100; DELETE FROM t WHERE id > 249000").await;
    relay.start_again().await;
    streams(&relay).await;
    let (records, Tables { faults, .. }) = rebuilt(&feed).await;
    // Nobody knows which rows were sent before: some that a consumer never saw are taken away as well.
    let is_known = |fault: &String| {
        fault.contains("a delete of what is not there: {\"id\":249") || fault.contains("{\"id\":250000}")
    };
    assert!(faults.iter().all(is_known), "{:?}", &faults[..faults.len().min(5)]);
    // What was changed is in the rows alone.
    let is_row_or_delete = |operation: &String| ["r", "d"].contains(&operation.as_str());
    assert!(operations(&records).iter().all(is_row_or_delete), "changes were sent beside the rows");
    assert_eq!(feed.reader().read_one("shop.public.a_small").await.len(), 10, "a finished table was sent again");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_tells_what_makes_the_promise_hollow() {
    let feed =
        Feed::with(Options::default(), BrokerOptions::default().with("unclean.leader.election.enable", "true")).await;
    with_table(&feed).await;
    feed.create_topic(TOPIC, 3, &[]).await;
    let check = |pipeline: &str, sink: &str| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("walrelay.toml");
        std::fs::write(&path, feed.config(pipeline, sink)).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_walrelay"))
            .args(["check", "--json", "--config"])
            .arg(&path)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        serde_json::from_str::<Value>(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    };
    let found = check("initial_copy = false", "create_topics = { partitions = 6 }");
    let text = found["findings"].to_string();
    assert_eq!(found["ok"], true, "{text}");
    for part in ["one replica only", "unclean.leader.election.enable", "create_topics.partitions is 6", TOPIC] {
        assert!(text.contains(part), "\"{part}\" is not in {text}");
    }
    for (sink, part) in [("create_topics = false", "not there"), ("start_lsn = \"0/1\"", "adopts an existing slot")] {
        feed.on_primary("CREATE TABLE IF NOT EXISTS other (id int PRIMARY KEY)").await;
        let found = check("initial_copy = false", sink);
        assert_eq!(found["ok"], false, "{found}");
        assert!(found["findings"].to_string().contains(part), "{found}");
    }
    // Told, and done nothing about: an existing topic keeps its partitions. Nor is it silent that somebody else filled it.
    feed.on_primary("DROP TABLE other").await;
    let plain = ClientConfig::new()
        .set("bootstrap.servers", feed.broker.address())
        .create::<ThreadedProducer<DefaultProducerContext>>()
        .unwrap();
    plain
        .send(BaseRecord::<str, str>::to(TOPIC).partition(1).key("k").payload("{}"))
        .map_err(|(error, _)| error)
        .unwrap();
    tokio::task::spawn_blocking(move || plain.flush(PATIENCE).unwrap()).await.unwrap();
    let relay = feed.relay("create_topics = { partitions = 6 }").await;
    feed.on_primary("INSERT INTO t VALUES (1, 'x')").await;
    feed.caught_up().await;
    assert!(feed.reader().partitions().await.contains(&(TOPIC.to_owned(), 3)));
    let log = relay.log();
    assert!(log.lines().any(|line| line.contains(TOPIC) && line.contains("there is no progress record")), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_longer_than_its_time_stops_the_feed_and_shows_nothing() {
    let broker = BrokerOptions::default().with("transaction.max.timeout.ms", "2000");
    let feed = Feed::with(Options::default(), broker).await;
    with_table(&feed).await;
    let relay = feed.relay_with("initial_copy = false\nmemory_limit = \"1MB\"", "").await;
    assert!(relay.log().contains("longer than the broker allows"), "{}", relay.log());
    feed.on_primary("INSERT INTO t VALUES (-1, 'before')").await;
    feed.caught_up().await;
    feed.on_primary("INSERT INTO t SELECT i, repeat('x', 100) FROM generate_series(1, 2000000) i").await;
    fails_with(
        &relay,
        &[
            "too large for one Kafka transaction",
            "transaction_timeout (2 s)",
            "on_large_transaction = \"split\"",
            "nothing of it was published",
        ],
    )
    .await;
    assert_eq!(feed.reader().read_one(TOPIC).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_made_while_streaming_gets_its_topic_and_small_batches_where_it_takes_no_larger_ones() {
    let feed = Feed::start().await;
    let relay = feed.relay("create_topics = { partitions = 2, config = { \"max.message.bytes\" = \"5000\" } }").await;
    with_table(&feed).await;
    feed.on_primary("ALTER PUBLICATION walrelay_feed1 ADD TABLE t").await;
    feed.on_primary("INSERT INTO t SELECT i, repeat('x', 200) FROM generate_series(1, 500) i").await;
    agrees(&feed).await;
    assert!(feed.reader().partitions().await.contains(&(TOPIC.to_owned(), 2)));
    assert_eq!(relay.report("feed1").await.unwrap()["last_error"], Value::Null);
}
