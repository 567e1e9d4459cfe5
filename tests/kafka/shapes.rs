//! What a record looks like beyond Debezium's defaults: plain rows, routes, masks, keys of one's own, columns left out, no
//! tombstones.

use serde_json::{Value, json};

use super::harness::{Feed, Record, Relay, Tables};

/// Runs SQL against a pipeline of this name and these settings, on tables of its own, and gives the records of a topic.
async fn records(feed: &Feed, name: &str, sink: &str, sql: &[&str], topic: &str) -> Vec<Record> {
    let (tables, sql) = sql.split_first().unwrap();
    feed.on_primary("DROP SCHEMA public CASCADE; CREATE SCHEMA public").await;
    feed.on_primary(tables).await;
    let sink = format!("topic_prefix = \"{name}\"\n{sink}");
    let relay =
        Relay::start(&feed.config("initial_copy = false", &sink).replace("\"feed1\"", &format!("\"{name}\""))).await;
    relay.wait(name, "streaming", |report| report["state"] == "streaming").await;
    for statement in sql {
        feed.on_primary(statement).await;
    }
    feed.pipeline_caught_up(name).await;
    feed.reader().read_one(topic).await
}

fn keys_and_values(records: &[Record]) -> Vec<(Value, Value)> {
    records.iter().map(|record| (record.key_json(), record.json())).collect()
}

async fn plain_rows_are_what_extract_new_record_state_gives(feed: &Feed) {
    let sql = [
        "CREATE TABLE orders (id int PRIMARY KEY, item text, n bigint)",
        "INSERT INTO orders VALUES (1, 'one', 10)",
        "UPDATE orders SET n = 11 WHERE id = 1",
        "UPDATE orders SET id = 2 WHERE id = 1",
        "DELETE FROM orders WHERE id = 2",
    ];
    let found = records(feed, "plain", "format = \"plain\"", &sql, "plain.public.orders").await;
    assert_eq!(
        keys_and_values(&found),
        [
            (json!({"id": 1}), json!({"id": 1, "item": "one", "n": 10})),
            (json!({"id": 1}), json!({"id": 1, "item": "one", "n": 11})),
            (json!({"id": 1}), Value::Null),
            (json!({"id": 2}), json!({"id": 2, "item": "one", "n": 11})),
            (json!({"id": 2}), Value::Null),
        ]
    );
    assert!(found[2].value.is_none() && found[4].value.is_none(), "a delete is a real tombstone");
    let operations: Vec<_> = found.iter().map(|record| record.header("walrelay.op").unwrap_or_default()).collect();
    assert_eq!(operations, ["c", "u", "d", "c", "d"]);
    for header in ["walrelay.commit_lsn", "walrelay.seq", "walrelay.commit_time"] {
        assert!(found.iter().all(|record| record.header(header).is_some()), "{header} is missing: {found:?}");
    }
}

async fn plain_rows_can_carry_deletes_and_fields_of_the_envelope(feed: &Feed) {
    let sql = [
        "CREATE TABLE orders (id int PRIMARY KEY, item text)",
        "INSERT INTO orders VALUES (1, 'one')",
        "DELETE FROM orders WHERE id = 1",
    ];
    let sink = "format = \"plain\"\ndelete_handling = \"rewrite\"\nadd_fields = [\"op\", \"table\", \"lsn\"]";
    let found = records(feed, "rewrite", sink, &sql, "rewrite.public.orders").await;
    assert_eq!(found.len(), 2, "rewrite sends no tombstone: {found:?}");
    for (record, item, deleted, operation) in
        [(&found[0], json!("one"), "false", "c"), (&found[1], Value::Null, "true", "d")]
    {
        let value = record.json();
        let names: Vec<&String> = value.as_object().unwrap().keys().collect();
        assert_eq!(names, ["id", "item", "__deleted", "__op", "__table", "__lsn"], "{value}");
        assert_eq!((&value["item"], &value["__deleted"], &value["__op"]), (&item, &json!(deleted), &json!(operation)));
        assert!(value["__table"] == "orders" && value["__lsn"].is_i64(), "{value}");
    }
}

async fn routes_masks_keys_and_columns_shape_the_records(feed: &Feed) {
    let sink = "tombstones = false\ncolumn_exclude = [\"public.orders_*.secret\"]\n\
         message_key = { \"public.orders_*\" = [\"region\", \"id\"] }\n\
         [[pipeline.sink.route]]\ntables = [\"public.orders_*\"]\ntopic = \"{prefix}.orders\"\n\
         [[pipeline.sink.mask]]\ncolumns = [\"public.users.email\"]\nwith = \"hash\"\n\
         [[pipeline.sink.mask]]\ncolumns = [\"public.users.note\"]\nwith = \"truncate:3\"\n\
         [[pipeline.sink.mask]]\ncolumns = [\"public.users.code\"]\nwith = \"fixed:***\"";
    let sql = [
        "CREATE TABLE orders_eu (id int PRIMARY KEY, region text NOT NULL, secret text);
         CREATE TABLE orders_us (id int PRIMARY KEY, region text NOT NULL, secret text);
         CREATE TABLE users (id int PRIMARY KEY, email text, note text, code text);
         CREATE TABLE \"odd name\" (id int PRIMARY KEY)",
        "INSERT INTO orders_eu VALUES (1, 'eu', 'x')",
        "INSERT INTO orders_us VALUES (1, 'us', 'x')",
        "DELETE FROM orders_us WHERE id = 1",
        "INSERT INTO users VALUES (1, 'a@b.example', 'ééééé', '1234')",
        "INSERT INTO \"odd name\" VALUES (1)",
    ];
    let found = records(feed, "routed", sink, &sql, "routed.orders").await;
    let keys: Vec<String> = found.iter().map(Record::key_text).collect();
    assert_eq!(keys[..2], [r#"{"region":"eu","id":1}"#, r#"{"region":"us","id":1}"#]);
    assert_eq!(found.len(), 3, "no tombstone was wanted: {found:?}");
    assert_eq!(found[0].json()["after"], json!({"id": 1, "region": "eu"}));
    let tables: Vec<Value> = found.iter().map(|record| record.json()["source"]["table"].clone()).collect();
    assert_eq!(tables, ["orders_eu", "orders_us", "orders_us"]);
    let users = feed.reader().read_one("routed.public.users").await;
    let user = users[0].json()["after"].clone();
    assert_eq!((&user["note"], &user["code"]), (&json!("ééé"), &json!("***")));
    assert!(user["email"].as_str().is_some_and(|text| text.len() == 64 && !text.contains('@')), "{user}");
    assert_eq!(feed.reader().read_one("routed.public.odd_name").await.len(), 1);
}

async fn a_truncate_goes_to_every_partition_and_a_skipped_one_is_counted(feed: &Feed) {
    let sink = "skipped_operations = []\ncreate_topics = { partitions = 3, replication_factor = 1 }";
    let sql = [
        "CREATE TABLE orders (id int PRIMARY KEY)",
        "INSERT INTO orders SELECT generate_series(1, 30)",
        "TRUNCATE orders",
        "INSERT INTO orders VALUES (31)",
    ];
    let found = records(feed, "truncated", sink, &sql, "truncated.public.orders").await;
    let truncates: Vec<i32> =
        found.iter().filter(|record| record.json()["op"] == "t").map(|record| record.partition).collect();
    assert_eq!(truncates, [0, 1, 2]);
    let tables = Tables::of(&found);
    assert!(tables.faults.is_empty(), "{:?}", tables.faults);
    assert_eq!(tables.rows("truncated.public.orders"), [json!({"id": 31})]);
}

async fn an_outbox_row_becomes_a_message(feed: &Feed) {
    let sink = "[pipeline.sink.outbox]\ntable = \"public.outbox\"\nroute = \"outbox.event.{aggregatetype}\"\n\
         headers = [\"id\", \"type:eventType\"]";
    let id = "123e4567-e89b-12d3-a456-426614174000";
    let sql = [
        "CREATE TABLE outbox (id uuid PRIMARY KEY, aggregatetype text, aggregateid text, type text, payload jsonb)"
            .to_owned(),
        format!("INSERT INTO outbox VALUES ('{id}', 'order', '42', 'created', '{{\"a\": 1}}')"),
        "DELETE FROM outbox".to_owned(),
    ];
    let found = records(feed, "outbox", sink, &sql.each_ref().map(String::as_str), "outbox.event.order").await;
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].json(), json!({"a": 1}));
    assert_eq!(
        (found[0].header("id").as_deref(), found[0].header("eventType").as_deref()),
        (Some(id), Some("created"))
    );
    assert_eq!(found[0].key.as_deref(), Some(&b"42"[..]), "the key is the aggregate's id");
}

async fn bytes_come_whole_whatever_form_the_database_prints(feed: &Feed) {
    let sql = [
        "CREATE TABLE files (k bytea PRIMARY KEY, b bytea); ALTER DATABASE shop SET bytea_output = 'escape'",
        r"INSERT INTO files VALUES ('\x00ff', '\xdeadbeef'), ('\x5c01', '\x')",
    ];
    let found = records(feed, "bytes", "", &sql, "bytes.public.files").await;
    feed.on_primary("ALTER DATABASE shop RESET bytea_output").await;
    let rows: Vec<(Value, Value)> =
        found.iter().map(|record| (record.key_json(), record.json()["after"].clone())).collect();
    assert_eq!(
        rows,
        [
            (json!({"k": "AP8="}), json!({"k": "AP8=", "b": "3q2+7w=="})),
            (json!({"k": "XAE="}), json!({"k": "XAE=", "b": ""})),
        ]
    );
    assert!(found.iter().all(|record| record.header("walrelay.lossy").is_none()), "{found:?}");
}

async fn a_key_stored_out_of_line_is_known_where_it_did_not_change(feed: &Feed) {
    let sql = [
        "CREATE TABLE large (k text PRIMARY KEY, v int); ALTER TABLE large ALTER k SET STORAGE EXTERNAL",
        "INSERT INTO large VALUES (repeat('k', 2200), 1)",
        "UPDATE large SET v = 2",
    ];
    let found = records(feed, "large", "", &sql, "large.public.large").await;
    let key = "k".repeat(2200);
    let rows: Vec<(Value, Value, Value)> = found
        .iter()
        .map(|record| (record.key_json(), record.json()["op"].clone(), record.json()["after"].clone()))
        .collect();
    let row = |operation: &str, v: i32| (json!({"k": key}), json!(operation), json!({"k": key, "v": v}));
    assert_eq!(rows, [row("c", 1), row("u", 2)]);
    assert!(found.iter().all(|record| record.header("walrelay.unchanged").is_none()), "{found:?}");
}

/// Each with a pipeline and tables of its own, on one broker.
#[tokio::test(flavor = "multi_thread")]
async fn every_shape_comes_out_as_it_was_asked_for() {
    let feed = Feed::start().await;
    plain_rows_are_what_extract_new_record_state_gives(&feed).await;
    plain_rows_can_carry_deletes_and_fields_of_the_envelope(&feed).await;
    routes_masks_keys_and_columns_shape_the_records(&feed).await;
    a_truncate_goes_to_every_partition_and_a_skipped_one_is_counted(&feed).await;
    an_outbox_row_becomes_a_message(&feed).await;
    bytes_come_whole_whatever_form_the_database_prints(&feed).await;
    a_key_stored_out_of_line_is_known_where_it_did_not_change(&feed).await;
}
