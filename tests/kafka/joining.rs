//! A table made while the feed runs joins it by itself: with its rows as `r` events before its changes, or, without an initial copy,
//! with what is written from then on.

use super::harness::{Feed, Record, eventually, value};

/// Operation and id of each event.
fn events(records: &[Record]) -> Vec<(String, i64)> {
    let event = |record: &Record| {
        let json = record.json();
        Some((json["op"].as_str()?.to_owned(), json["after"]["id"].as_i64()?))
    };
    records.iter().filter_map(event).collect()
}

/// Operation and id of a record; a tombstone's is `-`.
fn told(record: &Record) -> String {
    format!("{} {}", record.json()["op"].as_str().unwrap_or("-"), record.key_json()["id"])
}

async fn is_published(feed: &Feed, table: &str) {
    let sql = format!("SELECT count(*) FROM pg_publication_tables WHERE tablename = '{table}'");
    eventually(&format!("{table} is published"), || async {
        (value(&feed.primary, "shop", &sql).await == "1").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rows_of_a_new_table_come_before_its_changes() {
    let feed = Feed::start().await;
    feed.on_primary("CREATE TABLE orders (id int PRIMARY KEY); INSERT INTO orders VALUES (1)").await;
    let mut relay = feed.relay_with("initial_copy = true", "").await;
    feed.on_primary("CREATE TABLE later (id int PRIMARY KEY); INSERT INTO later VALUES (1), (2)").await;
    // Written all the while: each is in the copy or in the stream, never in both.
    for id in 10..200 {
        feed.on_primary(&format!("INSERT INTO later VALUES ({id}); INSERT INTO orders VALUES ({id})")).await;
        tokio::time::sleep(std::time::Duration::from_millis(40)).await;
    }
    is_published(&feed, "later").await;
    feed.caught_up().await;
    let records = feed.reader().read_count(&["shop.public.later"], 192).await;
    let found = events(&records);
    let mut ids: Vec<i64> = found.iter().map(|(_, id)| *id).collect();
    ids.sort_unstable();
    assert_eq!(ids, [1, 2].into_iter().chain(10..200).collect::<Vec<_>>(), "each row once");
    let copied = found.iter().take_while(|(op, _)| op == "r").count();
    assert!(copied >= 2 && found[copied..].iter().all(|(op, _)| op == "c"), "{found:?}");
    assert!(copied < found.len(), "nothing was streamed after the copy");
    let orders = feed.reader().read_count(&["shop.public.orders"], 191).await;
    let orders = events(&orders);
    assert_eq!(orders.len(), 191, "the other table's events go on, each once");
    // A restart repeats nothing of it.
    relay.kill9();
    relay.start_again().await;
    feed.on_primary("INSERT INTO later VALUES (900)").await;
    let is_last = |records: &[Record]| events(records).last() == Some(&("c".to_owned(), 900));
    assert_eq!(feed.reader().read_until("the last", &["shop.public.later"], is_last).await.len(), 193);
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_of_a_new_table_are_copied_and_a_new_one_of_an_old_table_is_streamed() {
    let feed = Feed::start().await;
    let partition = |of: &str, from: u32| {
        format!("CREATE TABLE {of}{from} PARTITION OF {of} FOR VALUES FROM ({from}) TO ({});", from + 100)
    };
    let parted = |of: &str| format!("CREATE TABLE {of} (id int PRIMARY KEY) PARTITION BY RANGE (id);");
    feed.on_primary(&format!("{}{}", parted("orders"), partition("orders", 0))).await;
    feed.on_primary("INSERT INTO orders VALUES (1)").await;
    let _relay = feed.relay_with("initial_copy = true", "").await;
    // Before the feed looks for new tables: an old table's partition brings its rows in the stream.
    feed.on_primary(&partition("orders", 100)).await;
    feed.on_primary("INSERT INTO orders VALUES (101)").await;
    let new = [parted("later"), partition("later", 0), partition("later", 100)].concat();
    feed.on_primary(&format!("BEGIN; {new} INSERT INTO later VALUES (1), (101); COMMIT")).await;
    // The copy has them both.
    feed.reader().read_count(&["shop.public.later0", "shop.public.later100"], 2).await;
    feed.on_primary("INSERT INTO later VALUES (2), (102)").await;
    for (topic, expected) in [
        ("later0", [("r", 1), ("c", 2)].as_slice()),
        ("later100", &[("r", 101), ("c", 102)]),
        ("orders0", &[("r", 1)]),
        ("orders100", &[("c", 101)]),
    ] {
        let topic = format!("shop.public.{topic}");
        let found = events(&feed.reader().read_count(&[&topic], expected.len()).await);
        let found: Vec<(&str, i64)> = found.iter().map(|(op, id)| (op.as_str(), *id)).collect();
        assert_eq!(found, expected, "{topic}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_was_dropped_and_made_again_joins_again_each_time() {
    let feed = Feed::start().await;
    feed.on_primary(
        "CREATE TABLE orders (id int PRIMARY KEY); CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)",
    )
    .await;
    let mut relay = feed.relay_with("initial_copy = true", "").await;
    let mut expected = vec![("r".to_owned(), 1)];
    for round in 1..=2 {
        let ids = (round * 10, round * 10 + 1);
        feed.on_primary(&format!(
            "DROP TABLE t; CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES ({})",
            ids.0
        ))
        .await;
        is_published(&feed, "t").await;
        feed.reader().read_count(&["shop.public.t"], expected.len() + 1).await;
        feed.on_primary(&format!("INSERT INTO t VALUES ({})", ids.1)).await;
        expected.extend([("r".to_owned(), ids.0), ("c".to_owned(), ids.1)]);
        assert_eq!(events(&feed.reader().read_count(&["shop.public.t"], expected.len()).await), expected);
    }
    // While nobody listens: what was written to the old one is told all the same.
    relay.stop().await;
    feed.on_primary("INSERT INTO t VALUES (30)").await;
    feed.on_primary("DROP TABLE t; CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (40)").await;
    relay.start_again().await;
    expected.extend([("c".to_owned(), 30), ("r".to_owned(), 40)]);
    assert_eq!(events(&feed.reader().read_count(&["shop.public.t"], expected.len()).await), expected);
}

/// What was deleted while it was on its way out is told before its rows come again.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_was_out_of_the_publication_for_a_time_is_sent_again_between_its_changes() {
    let feed = Feed::start().await;
    feed.on_primary("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1), (2)").await;
    let mut relay = feed.relay_with("initial_copy = true", "").await;
    relay.stop().await;
    feed.on_primary(
        "DELETE FROM t WHERE id = 1; ALTER PUBLICATION walrelay_feed1 DROP TABLE t; INSERT INTO t VALUES (3)",
    )
    .await;
    relay.start_again().await;
    // Two rows, a delete with its tombstone, two rows.
    let records = feed.reader().read_count(&["shop.public.t"], 6).await;
    let told: Vec<String> = records.iter().map(told).collect();
    assert_eq!(told[2..4], ["d 1", "- 1"], "{told:?}");
    assert_eq!(told[4..], ["r 2", "r 3"], "{told:?}");
}

/// A feed that streamed without a copy gets one: consumers may hold anything of its tables.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_is_asked_for_later_sends_every_table_between_its_changes() {
    let feed = Feed::start().await;
    feed.on_primary(
        "CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE u (id int PRIMARY KEY); INSERT INTO t VALUES (1)",
    )
    .await;
    let mut relay = feed.relay("").await;
    feed.on_primary("INSERT INTO t VALUES (2), (3); INSERT INTO u VALUES (7)").await;
    feed.caught_up().await;
    relay.stop().await;
    feed.on_primary("DELETE FROM t WHERE id = 3; INSERT INTO t VALUES (4)").await;
    relay.rewrite_config(&feed.config("initial_copy = true", ""));
    relay.start_again().await;
    // Two inserts, a delete with its tombstone, an insert, three rows.
    let records = feed.reader().read_count(&["shop.public.t"], 8).await;
    let told: Vec<String> = records.iter().map(told).collect();
    assert_eq!(told, ["c 2", "c 3", "d 3", "- 3", "c 4", "r 1", "r 2", "r 4"]);
    assert_eq!(
        events(&feed.reader().read_count(&["shop.public.u"], 2).await),
        [("c".to_owned(), 7), ("r".to_owned(), 7)]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_copy_a_new_table_joins_with_what_is_written_from_then_on() {
    let feed = Feed::start().await;
    feed.on_primary("CREATE TABLE orders (id int PRIMARY KEY)").await;
    let relay = feed.relay("").await;
    let transactions = relay.report("feed1").await.unwrap()["transactions"].clone();
    feed.on_primary("CREATE TABLE later (id int PRIMARY KEY); INSERT INTO later VALUES (1)").await;
    is_published(&feed, "later").await;
    feed.on_primary("INSERT INTO later VALUES (2)").await;
    let records = feed.reader().read_count(&["shop.public.later"], 1).await;
    assert_eq!(events(&records), [("c".to_owned(), 2)]);
    let report = relay.report("feed1").await.unwrap();
    assert!(report["transactions"].as_u64() > transactions.as_u64() && report["last_error"].is_null(), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_leaves_the_set_and_comes_back_is_sent_again() {
    let feed = Feed::start().await;
    feed.on_primary(
        "CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE u (id int PRIMARY KEY); INSERT INTO t VALUES (1)",
    )
    .await;
    let mut relay = feed.relay_with("initial_copy = true", "").await;
    feed.caught_up().await;
    relay.stop().await;
    relay.rewrite_config(&feed.config("initial_copy = true\nexclude = [\"public.t\"]", ""));
    relay.start_again().await;
    feed.on_primary("INSERT INTO t VALUES (2); INSERT INTO u VALUES (1)").await;
    feed.caught_up().await;
    relay.stop().await;
    relay.rewrite_config(&feed.config("initial_copy = true", ""));
    relay.start_again().await;
    let records = feed.reader().read_count(&["shop.public.t"], 3).await;
    let told: Vec<String> = records.iter().map(told).collect();
    assert_eq!(told, ["r 1", "r 1", "r 2"]);
    feed.on_primary("INSERT INTO t VALUES (3)").await;
    feed.reader().read_count(&["shop.public.t"], 4).await;
    assert_eq!(events(&feed.reader().read_one("shop.public.u").await), [("c".to_owned(), 1)]);
}

/// What somebody's publication holds beside the set is known from the first start on.
#[tokio::test(flavor = "multi_thread")]
async fn a_set_made_wider_within_somebodys_publication_sends_what_was_left_out() {
    let feed = Feed::start().await;
    feed.on_primary(
        "CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE u (id int PRIMARY KEY); INSERT INTO t VALUES (1); \
         CREATE PUBLICATION mine FOR ALL TABLES",
    )
    .await;
    let narrow = "initial_copy = true\npublication = \"mine\"\ntables = [\"public.u\"]";
    let mut relay = feed.relay_with(narrow, "").await;
    feed.on_primary("INSERT INTO t VALUES (2); INSERT INTO u VALUES (1)").await;
    feed.caught_up().await;
    relay.stop().await;
    relay.rewrite_config(&feed.config("initial_copy = true\npublication = \"mine\"", ""));
    relay.start_again().await;
    let records = feed.reader().read_count(&["shop.public.t"], 2).await;
    assert_eq!(records.iter().map(told).collect::<Vec<_>>(), ["r 1", "r 2"]);
    feed.on_primary("INSERT INTO t VALUES (3)").await;
    feed.reader().read_count(&["shop.public.t"], 3).await;
    assert_eq!(events(&feed.reader().read_one("shop.public.u").await), [("c".to_owned(), 1)]);
}

/// Somebody's publication: what is another table now, or was out of it for a time, is known by its OID and by the record.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_of_somebodys_publication_that_was_made_again_or_taken_out_is_sent_again() {
    let feed = Feed::start().await;
    feed.on_primary(
        "CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE u (id int PRIMARY KEY); INSERT INTO t VALUES (1); \
         INSERT INTO u VALUES (1)",
    )
    .await;
    feed.on_primary("CREATE PUBLICATION mine FOR TABLE t, u").await;
    let mut relay = feed.relay_with("initial_copy = true\npublication = \"mine\"", "").await;
    feed.caught_up().await;
    relay.stop().await;
    feed.on_primary("INSERT INTO t VALUES (2)").await;
    feed.on_primary("DROP TABLE t; CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (3)").await;
    feed.on_primary("ALTER PUBLICATION mine ADD TABLE t").await;
    feed.on_primary("INSERT INTO t VALUES (4)").await;
    feed.on_primary("ALTER PUBLICATION mine DROP TABLE u").await;
    relay.start_again().await;
    let found = events(&feed.reader().read_count(&["shop.public.t"], 5).await);
    let found: Vec<(&str, i64)> = found.iter().map(|(op, id)| (op.as_str(), *id)).collect();
    assert_eq!(found, [("r", 1), ("c", 2), ("c", 4), ("r", 3), ("r", 4)]);
    feed.caught_up().await;
    relay.stop().await;
    feed.on_primary("INSERT INTO u VALUES (2)").await;
    feed.on_primary("ALTER PUBLICATION mine ADD TABLE u").await;
    relay.start_again().await;
    let found = events(&feed.reader().read_count(&["shop.public.u"], 3).await);
    assert_eq!(found, [("r".to_owned(), 1), ("r".to_owned(), 1), ("r".to_owned(), 2)]);
    // What was sent again is not another any more.
    feed.caught_up().await;
    relay.stop().await;
    relay.start_again().await;
    feed.on_primary("INSERT INTO t VALUES (5)").await;
    let found = events(&feed.reader().read_count(&["shop.public.t"], 6).await);
    assert_eq!(found[5..], [("c".to_owned(), 5)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_takes_the_name_of_one_that_was_sent_is_sent_under_it() {
    let feed = Feed::start().await;
    feed.on_primary(
        "CREATE TABLE prices (id int PRIMARY KEY); CREATE TABLE prices_new (id int PRIMARY KEY); \
         INSERT INTO prices VALUES (1); INSERT INTO prices_new VALUES (10)",
    )
    .await;
    let mut relay = feed.relay_with("initial_copy = true", "").await;
    feed.caught_up().await;
    relay.stop().await;
    feed.on_primary("DROP TABLE prices; ALTER TABLE prices_new RENAME TO prices").await;
    relay.start_again().await;
    let found = events(&feed.reader().read_count(&["shop.public.prices"], 2).await);
    assert_eq!(found, [("r".to_owned(), 1), ("r".to_owned(), 10)]);
}

/// The catalog is asked for the table that was written to, not for the one that has its name by now.
#[tokio::test(flavor = "multi_thread")]
async fn old_changes_of_a_renamed_table_keep_its_key() {
    let feed = Feed::start().await;
    feed.on_primary("CREATE TABLE k (a int, b int, PRIMARY KEY (b, a))").await;
    let mut relay = feed.relay("").await;
    feed.caught_up().await;
    relay.stop().await;
    feed.on_primary("INSERT INTO k VALUES (1, 2)").await;
    feed.on_primary("ALTER TABLE k RENAME TO k_old; CREATE TABLE k (a int, b int)").await;
    relay.start_again().await;
    let records = feed.reader().read_count(&["shop.public.k"], 1).await;
    assert_eq!(records[0].key_text(), r#"{"b":2,"a":1}"#);
}
