//! A Kafka sink's section is read whole or refused with one error that names everything.

use std::path::Path;
use std::time::Duration;

use super::kafka::*;
use super::*;
use crate::model::{Lsn, QualifiedName};

const SMALLEST: &str = r#"
[primary]
url = "postgres://walrelay@db.eu.example/shop"
[[pipeline]]
name = "feed1"
initial_copy = false
[pipeline.sink]
type = "kafka"
brokers = "kafka1:9093,kafka2:9093"
topic_prefix = "shop"
"#;

fn read_with(more: &str, variables: &[(&str, &str)]) -> Result<KafkaSink, String> {
    let mut pairs = vec![("USER", "me")];
    pairs.extend_from_slice(variables);
    let text = format!("{SMALLEST}{more}");
    let config = read(Path::new("walrelay.toml"), &text, &Environment::from_pairs(pairs)).map_err(|e| e.to_string())?;
    match config.pipelines.into_iter().next().map(|pipeline| pipeline.sink) {
        Some(Sink::Kafka(sink)) => Ok(*sink),
        other => panic!("{other:?}"),
    }
}

#[test]
fn three_lines_are_enough() {
    let sink = read_with("", &[]).unwrap();
    assert_eq!(sink.topic, "{prefix}.{schema}.{table}");
    assert_eq!(sink.transactional_id, "walrelay.shop.feed1");
    assert_eq!(sink.progress_topic, "walrelay.progress");
    assert_eq!(sink.transaction_timeout, Duration::from_secs(900));
    assert_eq!(sink.create_topics, Some(CreateTopics::default()));
    assert_eq!(sink.format, KafkaFormat::Debezium);
    assert!(sink.delivery == Delivery::ExactlyOnce && sink.apply_means == ApplyMeans::Committed);
    assert!(sink.tombstones && sink.include_unknown_types && sink.skipped_operations.truncate);
    assert!(!sink.transaction_topic && !sink.context_headers && !sink.skipped_operations.delete);
    assert_eq!(sink.unavailable_value, "__debezium_unavailable_value");
    assert_eq!(sink.transaction_topic_name(), "shop.transaction");
}

/// The commented part of the annotated example, with its marks taken off.
#[test]
fn the_annotated_example_holds_and_names_every_key() {
    let text = include_str!("../../config/walrelay.toml");
    let (_, kafka) = text.split_once("# [[pipeline]]").unwrap();
    let kafka: String = kafka.lines().map(|line| format!("{}\n", line.strip_prefix("# ").unwrap_or(""))).collect();
    let kafka = kafka
        .replace("initial_copy = true", "initial_copy = false")
        .replace("format = \"debezium\"", "format = \"plain\"")
        .replace("column_include", "# column_include")
        .replace("password_file", "# password_file")
        .replace("salt_file", "# salt_file");
    let text = format!("[primary]\nurl = \"postgres://walrelay@db/shop\"\n[[pipeline]]{kafka}");
    let config = read(Path::new("walrelay.toml"), &text, &Environment::from_pairs([("USER", "me")])).unwrap();
    assert_eq!(config.pipelines[0].sink.kind(), "kafka");
    for key in super::kafka_read::KAFKA_SINK {
        let is_there = ["route", "mask", "outbox", "client"].contains(key) || text.contains(&format!("{key} = "));
        assert!(is_there, "{key} is not explained");
    }
}

#[test]
fn the_whole_contract_is_read() {
    let sink = read_with(
        r#"
delivery = "at_least_once"
create_topics = { partitions = 6, replication_factor = 3, config = { "cleanup.policy" = "compact", retention = 5 } }
skipped_operations = []
message_key = { "public.orders" = ["region", "id"] }
column_exclude = ["public.users.pass*"]
start_lsn = "16/B374D848"
[[pipeline.sink.route]]
tables = ["public.orders_*"]
topic = "shop.orders"
[[pipeline.sink.mask]]
columns = ["public.users.email"]
with = "truncate:20"
[pipeline.sink.outbox]
table = "public.outbox"
headers = ["id", "type:eventType"]
[pipeline.sink.client]
security.protocol = "SASL_SSL"
"compression.type" = "lz4"
"linger.ms" = 5
"#,
        &[
            ("WALRELAY__PIPELINE__FEED1__SINK__CLIENT__COMPRESSION_TYPE", "zstd"),
            ("WALRELAY__PIPELINE__FEED1__SINK__TOPIC_PREFIX", "other"),
            ("WALRELAY__PIPELINE__FEED1__SINK__CREATE_TOPICS__PARTITIONS", "12"),
        ],
    )
    .unwrap();
    let topics = sink.create_topics.unwrap();
    assert_eq!((topics.partitions, topics.replication_factor), (12, 3));
    assert_eq!(topics.config["retention"], "5");
    assert_eq!(sink.transactional_id, "walrelay.other.feed1");
    assert!(!sink.skipped_operations.truncate && sink.start_lsn == Some(Lsn(0x16_B374_D848)));
    let users = QualifiedName::new("public", "users");
    assert!(sink.column_exclude[0].matches(&users, "password") && !sink.column_exclude[0].matches(&users, "email"));
    assert_eq!(sink.message_key[0].1, ["region", "id"]);
    assert_eq!(sink.masks[0].with, MaskWith::Truncate(20));
    let outbox = sink.outbox.unwrap();
    assert_eq!((outbox.key.as_str(), outbox.payload.as_str()), ("aggregateid", "payload"));
    assert_eq!(outbox.headers[1], ("type".to_owned(), "eventType".to_owned()));
    let client = &sink.client.0;
    assert_eq!((client["security.protocol"].as_str(), client["compression.type"].as_str()), ("SASL_SSL", "zstd"));
    assert_eq!(client["linger.ms"], "5");
    assert!(read_with("create_topics = false", &[]).unwrap().create_topics.is_none());
}

/// Looks for every part in the error's text.
fn check(more: &str, parts: &[&str]) {
    let error = read_with(more, &[]).unwrap_err();
    for part in parts {
        assert!(error.contains(part), "\"{part}\" is not in: {error}");
    }
}

#[test]
fn debezium_names_get_an_error_that_names_ours() {
    for (key, ours) in [
        ("\"topic.prefix\"", "topic_prefix"),
        ("\"decimal.handling.mode\"", "walrelay's is decimal"),
        ("\"snapshot.mode\"", "initial_copy"),
        ("\"slot.name\"", "slot of the [[pipeline]]"),
        ("\"table.include.list\"", "tables of the [[pipeline]]"),
        ("table_include_list", "tables of the [[pipeline]]"),
        ("decimal_handling_mode", "walrelay's is decimal"),
        ("\"provide.transaction.metadata\"", "transaction_topic"),
        ("\"value.converter.schemas.enable\"", "schemas_value"),
        ("\"linger.ms\"", "[pipeline.sink.client]"),
        ("decimal.handling.mode", "decimal.handling.mode: is Debezium's name; walrelay's is decimal"),
        ("topic.prefix", "walrelay's is topic_prefix"),
        ("database.hostname", "url of [primary]"),
    ] {
        check(&format!("{key} = \"x\""), &["pipeline.feed1.sink", ours]);
    }
    for (name, ours) in super::kafka_refused::DEBEZIUM {
        check(&format!("\"{name}\" = \"x\""), &["pipeline.feed1.sink", ours]);
        let underscored = name.replace('.', "_");
        let own = super::kafka_read::KAFKA_SINK;
        if !own.contains(&underscored.as_str()) {
            check(&format!("{underscored} = \"x\""), &["pipeline.feed1.sink", ours]);
        }
        let key = ours.split([' ', '.', ',']).next().unwrap_or_default();
        let is_elsewhere =
            ["nothing:", "[[pipeline", "[pipeline", "[primary]"].iter().any(|place| ours.contains(place));
        assert!(own.contains(&key) || is_elsewhere, "{name}: there is no key {key}");
    }
    for key in ["snapshot.mode", "\"slot.name\"", "table.include.list"] {
        let text = SMALLEST.replace("initial_copy = false", &format!("{key} = \"x\""));
        let error = read(Path::new("walrelay.toml"), &text, &Environment::default()).unwrap_err().to_string();
        assert!(error.contains("is Debezium's name") && error.contains("of the [[pipeline]]"), "{error}");
    }
}

#[test]
fn properties_that_exactness_or_memory_depend_on_are_refused_with_the_reason() {
    for (property, reason) in [
        ("transactional.id", "transactional_id"),
        ("enable.idempotence", "write twice"),
        ("acks", "always all"),
        ("max.in.flight", "order"),
        ("partitioner", "murmur2"),
        ("message.timeout.ms", "lost"),
        ("queue.buffering.max.kbytes", "memory_limit"),
        ("transaction.timeout.ms", "transaction_timeout"),
        ("bootstrap.servers", "brokers"),
        ("isolation.level", "read_committed"),
    ] {
        let error = format!("client.\"{property}\"");
        check(&format!("[pipeline.sink.client]\n\"{property}\" = \"s3cret\""), &[&error, reason]);
    }
}

#[test]
fn one_error_names_place_key_value_rule_and_nearest_key() {
    for (more, parts) in [
        ("tombstone = true", &["walrelay.toml line 11", "sink.tombstone", "did you mean \"tombstones\"?"][..]),
        ("delivery = \"exactly-once\"", &["delivery = \"exactly-once\"", "did you mean \"exactly_once\"?"]),
        ("decimal = \"precice\"", &["decimal = \"precice\"", "\"precise\", \"string\", \"double\""]),
        ("topic = \"{prefix}.all\"", &["must hold {table}", "[[pipeline.sink.route]]"]),
        ("topic = \"{prefix}.{tabel}\"", &["topic = \"{prefix}.{tabel}\"", "{schema}"]),
        ("progress_topic = \"a b\"", &["progress_topic = \"a b\"", "249"]),
        ("add_fields = [\"op\"]", &["add_fields", "format = \"plain\""]),
        ("format = \"plain\"\nadd_fields = [\"lns\"]", &["add_fields = \"lns\"", "did you mean \"lsn\"?"]),
        ("format = \"plain\"\nschemas_value = true", &["schemas_value = true", "format = \"debezium\""]),
        ("skipped_operations = [\"x\"]", &["skipped_operations = \"x\""]),
        ("column_include = [\"email\"]", &["column_include = \"email\"", "schema.table.column"]),
        ("column_include = []\ncolumn_exclude = []", &["cannot stand together"]),
        ("message_key = { orders = [\"id\"] }", &["message_key", "schema.table"]),
        ("message_key = { \"public.orders\" = [] }", &["message_key", "region"]),
        ("start_lsn = \"x\"", &["start_lsn = \"x\"", "16/B374D848"]),
        ("create_topics = { partitions = 0 }", &["create_topics.partitions = 0", "-1 for the broker's default"]),
        ("transaction_timeout = \"10ms\"", &["transaction_timeout", "at least \"1s\""]),
        ("transactional_id = \"{name}\"", &["transactional_id = \"{name}\"", "{pipeline}"]),
        ("[[pipeline.sink.route]]\ntopic = \"x\"", &["pipeline.feed1.sink.route[0].tables"]),
        (
            "[[pipeline.sink.mask]]\ncolumns = [\"a.b.c\"]\nwith = \"rot13\"",
            &["sink.mask[0].with = \"rot13\"", "truncate"],
        ),
        ("[pipeline.sink.outbox]\ntable = \"public.*\"", &["sink.outbox.table", "without *"]),
        ("[pipeline.sink.outbox]\nbody = \"x\"", &["sink.outbox.body", "payload"]),
        ("password_file = \"x\"\n[pipeline.sink.client]\n\"sasl.password\" = \"s\"", &["password_file", "twice"]),
    ] {
        check(more, parts);
    }
    let brokers = read_with("", &[("WALRELAY__PIPELINE__FEED1__SINK__BROKERS", "kafka:port")]).unwrap_err();
    assert!(brokers.contains("brokers = \"kafka:port\""), "{brokers}");
    let with_rows = SMALLEST.replace("initial_copy = false", "on_existing_rows = \"keep\"");
    let error = read(Path::new("walrelay.toml"), &with_rows, &Environment::default()).unwrap_err().to_string();
    assert!(error.contains("on_existing_rows") && error.contains("type postgres"), "{error}");
    let with_copy = SMALLEST.replace("initial_copy = false", "") + "start_lsn = \"0/1\"";
    let error = read(Path::new("walrelay.toml"), &with_copy, &Environment::default()).unwrap_err().to_string();
    assert!(error.contains("initial_copy = false"), "{error}");
}
