//! What the project captured of a real Debezium itself (tests/data/debezium/captured): each mode's values, every kind of key,
//! defaults and NOT NULL with schemas on, a column added midway, partitions, plain rows. The settings of both sides are in the first
//! line of each file.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use serde_json::Value;
use walrelay::throwaway::Options;

use super::compare::check_topic;
use crate::harness::{Reader, Record, Relay, broker, config, eventually, start_server, value, values};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/debezium/captured");
/// What all captures have in common on our side: a NULL as JsonConverter sends it, and no type that Debezium drops.
const COMMON: &str = "replace_null_with_default = true\ninclude_unknown_types = false";

/// One connector's records.
struct Capture {
    name: String,
    /// Lines of the sink and of the pipeline.
    sink: String,
    pipeline: String,
    topics: BTreeMap<String, Vec<Value>>,
}

fn file(name: &str) -> String {
    fs::read_to_string(format!("{FOLDER}/{name}")).unwrap()
}

/// Under `message_key` an UPDATE of the primary key alone brings an old row without the message key's columns. Debezium takes their
/// filler for the old key and sends a delete of a row that never had that key; here it is a plain `u`, which this set skips.
fn is_key_that_never_was(line: &Value) -> bool {
    let is_pair = |header: &Value| {
        header[0] == "__debezium.newkey" || header[0] == "__debezium.oldkey" && header[1] == r#"{"email":""}"#
    };
    line["topic"] == "replaced.public.users" && line["headers"].as_array().unwrap().iter().any(is_pair)
}

fn capture(name: &str) -> Capture {
    let text = file(&format!("{name}.jsonl"));
    let mut lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let about = lines.next().unwrap();
    let mut topics: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for line in lines.filter(|line| !is_key_that_never_was(line)) {
        topics.entry(line["topic"].as_str().unwrap().to_owned()).or_default().push(line);
    }
    let lines = |key: &str| about[key].as_str().unwrap_or_default().to_owned();
    Capture { name: name.to_owned(), sink: lines("walrelay"), pipeline: lines("pipeline"), topics }
}

/// One pipeline for each capture.
fn configuration(captures: &[Capture], primary: &str, brokers: &str) -> String {
    let mut text = String::new();
    for capture in captures {
        let sink = format!("topic_prefix = \"{}\"\n{COMMON}\n{}", capture.name, capture.sink);
        let pipeline = format!("publication = \"pd\"\n{}", capture.pipeline);
        let one = config(primary, brokers, &pipeline, &sink).replace("\"feed1\"", &format!("\"{}\"", capture.name));
        let (head, tail) = one.split_once("[[pipeline]]").unwrap();
        if text.is_empty() {
            text.push_str(head);
        }
        text.push_str(&format!("[[pipeline]]{tail}"));
    }
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn every_event_that_the_project_captured_of_debezium_comes_out_the_same() {
    let names =
        ["defaults", "strings", "doubles", "nanoseconds", "schemas", "replaced", "plain", "rewrite", "snapshot"];
    let captures = names.map(capture);
    let (primary, broker) = (start_server(17, Options::default()).await, broker().await);
    values(&primary, "postgres", "CREATE DATABASE cap").await;
    values(&primary, "cap", &file("setup.sql")).await;
    let relay = Relay::start(&configuration(&captures, &primary.url("cap"), &broker.address())).await;
    for name in names {
        relay.wait(name, "streaming", |report| report["state"] == "streaming").await;
    }
    for line in file("work.sql").lines() {
        values(&primary, "cap", line).await;
    }
    let target = value(&primary, "cap", "SELECT pg_current_wal_insert_lsn()").await;
    eventually("every feed has everything", || async {
        let sql = format!("SELECT count(*) FROM pg_stat_replication WHERE replay_lsn >= '{target}'");
        (value(&primary, "cap", &sql).await == names.len().to_string()).then_some(())
    })
    .await;
    let reader = Reader::new(&broker.address());
    let mut faults = Vec::new();
    for capture in &captures {
        let mut found: BTreeMap<String, Vec<Record>> = BTreeMap::new();
        for record in reader.read_prefix(&format!("{}.", capture.name)).await {
            found.entry(record.topic.clone()).or_default().push(record);
        }
        let topics: BTreeSet<&String> = found.keys().chain(capture.topics.keys()).collect();
        for topic in topics {
            let expected = capture.topics.get(topic).map_or(&[][..], Vec::as_slice);
            check_topic(topic, expected, found.get(topic).map_or(&[][..], Vec::as_slice), &mut faults);
        }
    }
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}
