//! Event by event against what a real Debezium wrote in each of its modes: `tests/data/debezium/captured`. Where walrelay differs
//! on purpose, the difference is named here.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::config::TablePattern;
use crate::config::TableSet;

use super::super::super::postgres::{TableFilter, Wanted};
use super::golden::{headers, parsed, steady};
use super::testing::{Keeper, Kept, captured, encoder, feed};
use super::*;

const STREAM: &str = include_str!("../../../../tests/data/debezium/captured/stream.hex");
const FACTS: &str = include_str!("../../../../tests/data/debezium/captured/facts.jsonl");

macro_rules! events {
    ($name:literal) => {
        ($name, include_str!(concat!("../../../../tests/data/debezium/captured/", $name, ".jsonl")))
    };
}

/// What walrelay sends otherwise: the converter's change of data and Debezium's dropped types are asked for here.
const AS_DEBEZIUM: &str = "include_unknown_types = false\nreplace_null_with_default = true";

/// Columns that differ on purpose, or hold the time at which they were made.
const OTHER_COLUMNS: &[&str] = &["e_name", "d_timestamptz"];

fn without_others(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields.iter_mut() {
                if OTHER_COLUMNS.contains(&name.as_str()) || name == "__lsn" || name == "__source_ts_ms" {
                    *value = Value::from("…");
                } else {
                    without_others(value);
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(without_others),
        _ => {}
    }
}

fn comparable(value: &Value) -> String {
    let mut value = steady(value);
    without_others(&mut value);
    value.to_string()
}

/// Replays the stream with the settings of the file's first line and compares topic by topic; all differences are shown.
fn check((name, text): (&str, &str)) {
    let mut lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let about = lines.next().unwrap();
    let expected: Vec<Value> = lines.collect();
    let facts = read_facts(FACTS.lines()).unwrap();
    let mut encoder = encoder(name, &format!("{AS_DEBEZIUM}\n{}", about["walrelay"].as_str().unwrap()));
    encoder.origin.database = "cap".to_owned();
    if about["pipeline"].as_str().unwrap().contains("public.fillers") {
        let include = vec![TablePattern::new("*.*").unwrap()];
        let exclude = vec![TablePattern::new("public.fillers").unwrap()];
        let (set, names, others) = (TableSet { include, exclude }, Vec::new(), Vec::new());
        encoder.origin.tables = TableFilter::Listed { set, names, others, newcomers: Wanted::No };
    }
    let found = feed(&mut encoder, &captured(STREAM), &facts);
    // Under a key that is not the primary one Debezium takes a new primary key for a new key, from "" to the same as before.
    let is_wrong = |topic: &Value| topic == "replaced.public.users";
    let is_copied = |event: &&Value| event["value"]["op"] == "r";
    let expected: Vec<&Value> =
        expected.iter().filter(|event| !is_copied(event) && !is_wrong(&event["topic"])).collect();
    let found: Vec<Kept> = found.into_iter().filter(|record| !is_wrong(&Value::from(record.topic.as_str()))).collect();
    compare(&expected, &found);
}

fn compare(expected: &[&Value], found: &[Kept]) {
    let mut differences = Vec::new();
    let topic_of = |event: &Value| event["topic"].as_str().unwrap().to_owned();
    let topics: BTreeSet<String> =
        expected.iter().map(|event| topic_of(event)).chain(found.iter().map(|record| record.topic.clone())).collect();
    for topic in topics {
        let expected: Vec<&&Value> = expected.iter().filter(|event| event["topic"] == topic.as_str()).collect();
        let found: Vec<&Kept> = found.iter().filter(|record| record.topic == topic).collect();
        if expected.len() != found.len() {
            differences.push(format!("{topic}: {} events instead of {}", found.len(), expected.len()));
        }
        for (expected, found) in expected.iter().zip(found) {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let pairs = expected["headers"].as_array().unwrap().iter().map(|pair| (text(&pair[0]), text(&pair[1])));
            for (expected, found) in [
                (comparable(&expected["key"]), comparable(&parsed(found.key.as_deref()))),
                (comparable(&expected["value"]), comparable(&parsed(found.value.as_deref()))),
                (format!("{:?}", headers(pairs)), format!("{:?}", headers(found.headers.iter().cloned()))),
            ] {
                if expected != found {
                    let same = expected.bytes().zip(found.bytes()).take_while(|(one, other)| one == other).count();
                    let part = |text: &str| text.chars().skip(same.saturating_sub(40)).take(160).collect::<String>();
                    differences.push(format!("{topic}\n  debezium …{}\n  walrelay …{}", part(&expected), part(&found)));
                }
            }
        }
    }
    assert!(differences.is_empty(), "{} differences:\n{}", differences.len(), differences.join("\n"));
}

#[test]
fn defaults() {
    check(events!("defaults"));
}

#[test]
fn decimals_times_and_intervals_as_text() {
    check(events!("strings"));
}

#[test]
fn decimals_as_doubles_and_connect_times() {
    check(events!("doubles"));
}

#[test]
fn nanoseconds() {
    check(events!("nanoseconds"));
}

#[test]
fn other_keys_fewer_columns_skipped_operations() {
    check(events!("replaced"));
}

#[test]
fn embedded_schemas() {
    check(events!("schemas"));
}

#[test]
fn plain_rows() {
    check(events!("plain"));
}

#[test]
fn plain_rows_with_rewritten_deletes() {
    check(events!("rewrite"));
}

#[test]
fn changes_after_a_snapshot() {
    check(events!("snapshot"));
}

/// The rows that `setup.sql` inserts.
#[test]
fn rows_of_a_snapshot() {
    let (name, text) = events!("snapshot");
    let lines: Vec<Value> = text.lines().skip(1).map(|line| serde_json::from_str(line).unwrap()).collect();
    let expected: Vec<&Value> = lines.iter().filter(|event| event["value"]["op"] == "r").collect();
    let facts = read_facts(FACTS.lines()).unwrap();
    let find = |table: &str| facts.iter().find(|facts| facts.name == table).unwrap().clone();
    let point = SnapshotPoint { lsn: Lsn(7), time: Timestamp(0), xid: Some(9) };
    let mut encoder = encoder(name, AS_DEBEZIUM);
    encoder.origin.database = "cap".to_owned();
    let mut keeper = Keeper::default();
    let copied = encoder.snapshot_table(find("copied"), &["id", "a", "n", "ts"]).unwrap();
    let one = encoder.snapshot_table(find("copied_one"), &["id"]).unwrap();
    let row = |texts: &[&'static str]| -> Vec<crate::decode::Value<'static>> {
        let value = |text: &&'static str| match *text {
            "" => crate::decode::Value::Null,
            text => crate::decode::Value::Text(text.as_bytes()),
        };
        texts.iter().map(value).collect()
    };
    for (table, mark, values) in [
        (copied, SnapshotMark::First, row(&["1", "one", "1.25", "2024-02-29 11:14:15.123456+00"])),
        (copied, SnapshotMark::Inside, row(&["2", "", "", ""])),
        (copied, SnapshotMark::LastInTable, row(&["3", "é😀", "-1.00", "2000-01-01 00:00:00+00"])),
        (one, SnapshotMark::Last, row(&["7"])),
    ] {
        encoder.snapshot_row(table, point, mark, values.into_iter(), &mut keeper).unwrap();
    }
    let unmarked = |text: String| {
        ["first_in_data_collection", "last_in_data_collection", "first", "last"]
            .iter()
            .fold(text, |text, word| text.replace(&format!("\"snapshot\":\"{word}\""), "\"snapshot\":\"true\""))
    };
    let expected: Vec<String> = expected.iter().map(|event| unmarked(comparable(&event["value"]))).collect();
    let found: Vec<String> = keeper.0.iter().map(|record| unmarked(comparable(&record.json()))).collect();
    assert_eq!(found, expected);
    let marks: Vec<Value> = keeper.0.iter().map(|record| record.json()["source"]["snapshot"].clone()).collect();
    assert_eq!(marks, ["first", "true", "last_in_data_collection", "last"]);
}
