//! The events of a real Debezium (tests/data/debezium), replayed: the same SQL, the settings of the file's first line, and every
//! event compared with what comes out of the broker. What is volatile is compared by its relations.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use serde_json::Value;
use walrelay::throwaway::Options;

use super::compare::check_topic;
use crate::harness::{Reader, Record, Relay, broker, config, eventually, start_server, value, values};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/debezium");

fn file(name: &str) -> String {
    fs::read_to_string(format!("{FOLDER}/{name}")).unwrap()
}

/// The captured records of one prefix, by topic, in the order of the file.
fn captured(prefix: &str) -> BTreeMap<String, Vec<Value>> {
    let lines = file("events.jsonl").lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<Value>>();
    let mut topics: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for line in lines {
        if let Some(topic) = line["topic"].as_str().filter(|topic| topic.starts_with(prefix)) {
            topics.entry(topic.to_owned()).or_default().push(line.clone());
        }
    }
    topics
}

/// The two pipelines that the captured records belong to: without schemas and with.
fn configuration(primary: &str, brokers: &str) -> String {
    let sink = |prefix: &str, more: &str| {
        format!(
            "topic_prefix = \"{prefix}\"\ntransaction_topic = true\nskipped_operations = []\ncontext_headers = true\n{more}"
        )
    };
    let pipeline = "initial_copy = false\npublication = \"pd\"";
    let first = config(primary, brokers, pipeline, &sink("ev", ""));
    let second = config(primary, brokers, pipeline, &sink("evs", "schemas_key = true\nschemas_value = true"));
    let second = second.split_once("[[pipeline]]").unwrap().1.replace("\"feed1\"", "\"feed2\"");
    format!("{first}\n[[pipeline]]{second}")
}

/// The events of both pipelines for the captured SQL.
async fn replay() -> (BTreeMap<String, Vec<Record>>, BTreeMap<String, Vec<Record>>) {
    let (primary, broker) = (start_server(17, Options::default()).await, broker().await);
    values(&primary, "postgres", "CREATE DATABASE dump").await;
    values(&primary, "dump", &file("setup.sql")).await;
    let relay = Relay::start(&configuration(&primary.url("dump"), &broker.address())).await;
    for name in ["feed1", "feed2"] {
        relay.wait(name, "streaming", |report| report["state"] == "streaming").await;
    }
    for statement in statements(&file("work.sql")) {
        values(&primary, "dump", &statement).await;
    }
    let target = value(&primary, "dump", "SELECT pg_current_wal_insert_lsn()").await;
    eventually("both feeds have everything", || async {
        let sql = format!("SELECT count(*) FROM pg_stat_replication WHERE replay_lsn >= '{target}'");
        (value(&primary, "dump", &sql).await == "2").then_some(())
    })
    .await;
    let reader = Reader::new(&broker.address());
    let mut by_prefix = [BTreeMap::new(), BTreeMap::new()];
    for (topics, prefix) in by_prefix.iter_mut().zip(["ev.", "evs."]) {
        for record in reader.read_prefix(prefix).await {
            topics.entry(record.topic.clone()).or_insert_with(Vec::new).push(record);
        }
    }
    by_prefix.into()
}

/// One line is one transaction; a line that begins with a blank goes on with the one before.
fn statements(text: &str) -> Vec<String> {
    let mut statements: Vec<String> = Vec::new();
    for line in text.lines() {
        match statements.last_mut() {
            Some(last) if line.starts_with(' ') => last.push_str(line),
            _ => statements.push(line.to_owned()),
        }
    }
    statements
}

#[tokio::test(flavor = "multi_thread")]
async fn every_captured_event_of_debezium_comes_out_the_same() {
    let (found, with_schemas) = replay().await;
    let mut faults = Vec::new();
    let expected = captured("ev.");
    let names = |topics: BTreeSet<&String>| topics.into_iter().cloned().collect::<Vec<_>>();
    assert_eq!(names(found.keys().collect()), names(expected.keys().collect()), "topics");
    for (topic, expected) in &expected {
        check_topic(topic, expected, &found[topic], &mut faults);
    }
    // Of the records with schemas the file holds some: the first insert, a delete with its tombstone, a row of every type.
    for (topic, expected) in &captured("evs.") {
        let records = &with_schemas[topic];
        let chosen: Vec<Record> = match topic.as_str() {
            "evs.public.simple" => [0, 3, 4].map(|at| records[at].clone()).to_vec(),
            _ => records[..1].to_vec(),
        };
        check_topic(topic, expected, &chosen, &mut faults);
    }
    check_relations(&found, &mut faults);
    check_own_headers(&found, &mut faults);
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

/// What the volatile fields of one transaction must say about each other.
fn check_relations(found: &BTreeMap<String, Vec<Record>>, faults: &mut Vec<String>) {
    let markers: Vec<Value> = found["ev.transaction"].iter().map(Record::json).collect();
    let mut transactions: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for record in found.values().flatten() {
        let event = record.json();
        if let Some(id) = event["transaction"]["id"].as_str() {
            transactions.entry(id.to_owned()).or_default().push(event.clone());
        }
    }
    let mut last_end = 0;
    for pair in markers.chunks(2) {
        let id = pair[0]["id"].as_str().unwrap();
        let mut rows = transactions.remove(id).unwrap_or_default();
        rows.sort_by_key(|row| row["transaction"]["total_order"].as_i64());
        let mut expect = |is_met: bool, what: &str| {
            if !is_met {
                faults.push(format!("transaction {id}: {what}: {pair:?} {rows:?}"));
            }
        };
        expect(pair[0]["status"] == "BEGIN" && pair[1]["status"] == "END", "BEGIN and END");
        expect(pair[1]["id"] == id, "one id in BEGIN and END");
        expect(pair[1]["event_count"] == rows.len(), "event_count");
        let orders: Vec<i64> = rows.iter().filter_map(|row| row["transaction"]["total_order"].as_i64()).collect();
        expect(orders == (1..=rows.len() as i64).collect::<Vec<_>>(), "total_order counts the rows");
        let (xid, commit) = id.split_once(':').unwrap();
        let (xid, commit): (i64, i64) = (xid.parse().unwrap(), commit.parse().unwrap());
        let lsns: Vec<i64> = rows.iter().filter_map(|row| row["source"]["lsn"].as_i64()).collect();
        expect(lsns.is_sorted() && lsns.iter().all(|lsn| *lsn <= commit), "lsn falls");
        expect(rows.iter().all(|row| row["source"]["txId"] == xid), "txId is the xid");
        let sequences: Vec<Vec<Option<String>>> =
            rows.iter().map(|row| serde_json::from_str(row["source"]["sequence"].as_str().unwrap()).unwrap()).collect();
        for (sequence, lsn) in sequences.iter().zip(&lsns) {
            expect(sequence[1].as_deref() == Some(&lsn.to_string()), "sequence[1] is the lsn");
            expect(sequence[0] == sequences[0][0], "sequence[0] is one");
            let before: i64 = sequence[0].as_deref().map_or(0, |text| text.parse().unwrap());
            expect(last_end == 0 || (before >= last_end && before <= *lsn), "sequence[0] is the end before");
        }
        for times in rows.iter().flat_map(|row| [row, &row["source"]]).filter(|times| !times["ts_us"].is_null()) {
            let [ms, us, ns] = ["ts_ms", "ts_us", "ts_ns"].map(|unit| times[unit].as_i64().unwrap());
            expect(us / 1000 == ms && ns / 1000 == us, "ts_ms, ts_us, ts_ns");
        }
        last_end = commit;
    }
    if !transactions.is_empty() {
        faults.push(format!("rows without BEGIN and END: {transactions:?}"));
    }
}

/// walrelay's own headers name what Debezium loses or leaves out.
fn check_own_headers(found: &BTreeMap<String, Vec<Record>>, faults: &mut Vec<String>) {
    for (topic, at, header, expected) in [
        ("ev.public.toast", 0, "walrelay.unchanged", None),
        ("ev.public.toast", 1, "walrelay.unchanged", Some("[\"doc\"]")),
        ("ev.public.toast_full", 1, "walrelay.unchanged", None),
        ("ev.public.types", 1, "walrelay.lossy", None),
        ("ev.public.types", 2, "walrelay.lossy", Some("[\"c_numeric\"]")),
        ("ev.public.types", 3, "walrelay.lossy", None),
        ("ev.public.simple", 0, "walrelay.lossy", None),
    ] {
        let header_found = found[topic][at].header(header);
        if header_found.as_deref() != expected {
            faults.push(format!("{topic}, record {at}: {header} is {header_found:?} instead of {expected:?}"));
        }
    }
    let lossy = found["ev.public.types"][5].header("walrelay.lossy").unwrap_or_default();
    if !lossy.contains("c_int4_array") {
        faults.push(format!("an array of two dimensions is not named: {lossy}"));
    }
}
