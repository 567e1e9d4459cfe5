//! `walrelay resync`: a table's rows go out again while everything is written on; a consumer has the table as the source has it, and
//! no other table is sent again.

use std::process::{Command, Output};

use serde_json::Value;

use super::harness::{ACCOUNTS, Feed, LOAD_TABLES, Load, Record, Relay, Tables, eventually, streams, value};

const SINK: &str = "create_topics = { partitions = 2, replication_factor = 1 }";

/// Runs the verb with this configuration; nobody else may write the file meanwhile.
pub(super) async fn resync(config: &str, arguments: &[&str]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("walrelay.toml");
    std::fs::write(&path, config).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_walrelay"));
    command.arg("resync").args(arguments).arg("--config").arg(&path);
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

pub(super) fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

pub(super) fn reads(records: &[Record]) -> usize {
    records.iter().filter(|record| record.json()["op"] == "r").count()
}

/// The record of a table in the progress topic.
pub(super) async fn table_record(feed: &Feed, table: &str) -> Value {
    let key = format!(r#"["walrelay.shop.feed1","public","{table}"]"#);
    feed.progress().await.into_iter().find(|(other, _)| *other == key).map_or(Value::Null, |(_, value)| value)
}

pub(super) async fn is_sent_again(feed: &Feed, relay: &Relay, table: &str, before: &str) {
    eventually(&format!("{table} is sent again, log:\n{}", relay.log()), || async {
        let record = table_record(feed, table).await;
        (record["resync"].is_null() && record["snapshot_lsn"].as_str()? != before).then_some(())
    })
    .await;
}

/// Rebuilds both tables, and compares them with the source.
async fn check_tables(feed: &Feed) {
    for table in ["accounts", "history"] {
        let records = feed.reader().read_one(&format!("shop.public.{table}")).await;
        let tables = Tables::of(&records);
        let sql = format!("SELECT row_to_json(t)::text FROM {table} t");
        let source = feed.on_primary(&sql).await;
        let mut source: Vec<Value> =
            source.iter().map(|row| serde_json::from_str(row[0].as_deref().unwrap()).unwrap()).collect();
        source.sort_by_key(Value::to_string);
        assert!(tables.faults.is_empty(), "{table}: {:?}", &tables.faults[..tables.faults.len().min(5)]);
        assert!(tables.rows(&format!("shop.public.{table}")) == source, "{table} differs");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_is_sent_again_while_it_is_written_and_no_other() {
    let feed = Feed::start().await;
    feed.on_primary(LOAD_TABLES).await;
    feed.on_primary(ACCOUNTS).await;
    feed.on_primary(
        "INSERT INTO history (client, amount, filler) SELECT 99, i, repeat('y', 50) FROM generate_series(1, 20000) i",
    )
    .await;
    let mut relay = feed.relay_with("initial_copy = true", SINK).await;
    let config = feed.config("initial_copy = true", SINK);
    let load = Load::start(&feed, 100);
    load.goes_on(&feed, 50).await;
    let first = table_record(&feed, "history").await["snapshot_lsn"].as_str().unwrap().to_owned();
    let output = resync(&config, &["feed1", "--table", "public.hist*"]).await;
    assert!(output.status.success(), "{}", said(&output));
    assert!(said(&output).contains("to be sent again: public.history"), "{}", said(&output));
    assert!(said(&output).contains("the daemon has begun"), "{}", said(&output));
    is_sent_again(&feed, &relay, "history", &first).await;
    load.goes_on(&feed, 50).await;
    // Once more, and killed in the midst of it.
    let second = table_record(&feed, "history").await["snapshot_lsn"].as_str().unwrap().to_owned();
    let output = resync(&config, &["feed1", "--table", "public.history"]).await;
    assert!(output.status.success(), "{}", said(&output));
    relay.wait("feed1", "copying", |report| report["state"] == "copying").await;
    relay.kill9();
    assert_eq!(table_record(&feed, "history").await["resync"], true);
    load.goes_on(&feed, 20).await;
    relay.start_again().await;
    is_sent_again(&feed, &relay, "history", &second).await;
    streams(&relay).await;
    load.goes_on(&feed, 50).await;
    load.stop(&feed).await;
    feed.caught_up().await;
    check_tables(&feed).await;
    let (history, accounts) = (
        reads(&feed.reader().read_one("shop.public.history").await),
        reads(&feed.reader().read_one("shop.public.accounts").await),
    );
    assert!(history >= 3 * 20_000, "{history}");
    assert_eq!(accounts, 50, "the other table was sent again");
    println!("{history} r events of history, {accounts} of accounts");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_initial_copy_and_without_a_daemon_the_next_start_sends_it() {
    let feed = Feed::start().await;
    feed.on_primary("CREATE TABLE orders (id int PRIMARY KEY); INSERT INTO orders VALUES (1), (2)").await;
    let mut relay = feed.relay("").await;
    feed.on_primary("INSERT INTO orders VALUES (3)").await;
    feed.caught_up().await;
    assert!(relay.stop().await.success());
    feed.on_primary("DELETE FROM orders WHERE id = 3; INSERT INTO orders VALUES (4)").await;
    let output = resync(&feed.config("initial_copy = false", ""), &["feed1", "--table", "public.orders"]).await;
    assert!(said(&output).contains("no daemon streams now"), "{}", said(&output));
    relay.start_again().await;
    let is_read = |records: &[Record]| reads(records) == 3;
    let records = feed.reader().read_until("the rows", &["shop.public.orders"], is_read).await;
    let ops: Vec<String> = records.iter().map(|it| it.json()["op"].as_str().unwrap_or("-").to_owned()).collect();
    assert_eq!(ops, ["c", "d", "-", "c", "r", "r", "r"], "what came before the snapshot goes out before the rows");
    streams(&relay).await;
    feed.on_primary("INSERT INTO orders VALUES (5)").await;
    feed.caught_up().await;
    assert_eq!(feed.reader().read_one("shop.public.orders").await.len(), 8);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_sent_again_is_refused_with_a_reason() {
    let feed = Feed::start().await;
    feed.on_primary("CREATE TABLE orders (id int PRIMARY KEY)").await;
    let config = feed.config("initial_copy = false", "");
    let check = async |config: &str, arguments: &[&str], code: i32, part: &str| {
        let output = resync(config, arguments).await;
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", said(&output));
        assert!(said(&output).contains(part), "{arguments:?}: {}", said(&output));
    };
    check(&config, &["feed1", "--table", "public.orders"], 5, "has not streamed yet").await;
    let relay = feed.relay("").await;
    check(&config, &["feed2", "--table", "public.orders"], 2, "no pipeline \"feed2\"; it has feed1").await;
    check(&config, &["feed1", "--table", "orders"], 2, "not a table pattern").await;
    check(&config, &["feed1"], 2, "--table").await;
    check(&config, &["feed1", "--table", "public.other"], 5, "its publication has public.orders").await;
    let standby = format!(
        "[primary]\nurl = \"{url}\"\n[[pipeline]]\nname = \"s1\"\n[pipeline.sink]\ntype = \"postgres\"\nurl = \"{url}\"\n",
        url = feed.primary.url("shop")
    );
    check(&standby, &["s1", "--table", "public.orders"], 5, "only tables of a feed to Kafka").await;
    feed.become_synchronous().await;
    check(&config, &["feed1", "--table", "public.orders"], 5, "Take it out").await;
    assert_eq!(value(&feed.primary, "shop", "SELECT count(*) FROM orders").await, "0");
    streams(&relay).await;
}
