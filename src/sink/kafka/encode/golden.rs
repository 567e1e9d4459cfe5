//! Event by event against what a real Debezium wrote for the same SQL: `tests/data/debezium`. Volatile fields are skipped by value
//! and checked by relation.

use serde_json::Value;

use super::testing::{Kept, captured, encoder, feed};
use super::*;

const EVENTS: &str = include_str!("../../../../tests/data/debezium/events.jsonl");
const STREAM: &str = include_str!("../../../../tests/data/debezium/stream.hex");
const FACTS: &str = include_str!("../../../../tests/data/debezium/facts.jsonl");
/// Settings of the file's first line.
const SETTINGS: &str = "transaction_topic = true\nskipped_operations = []\ncontext_headers = true";

/// Debezium's records of one of the file's two blocks.
fn expected(is_second: bool) -> Vec<Value> {
    let lines: Vec<Value> = EVENTS.lines().skip(1).map(|line| serde_json::from_str(line).unwrap()).collect();
    let border = lines.iter().position(|line| line.get("about").is_some()).unwrap();
    let (first, second) = lines.split_at(border);
    if is_second { second[1..].to_vec() } else { first.to_vec() }
}

fn records(prefix: &str, more: &str) -> Vec<Kept> {
    let facts: Vec<TableFacts> = read_facts(FACTS.lines()).unwrap();
    feed(&mut encoder(prefix, &format!("{SETTINGS}\n{more}")), &captured(STREAM), &facts)
}

/// Without what differs from run to run; the order of fields stays.
pub(super) fn steady(value: &Value) -> Value {
    let volatile = ["ts_ms", "ts_us", "ts_ns", "lsn", "txId", "sequence"];
    match value {
        Value::Object(fields) => Value::Object(
            fields
                .iter()
                .map(|(name, value)| {
                    let is_transaction_id = name == "id" && value.as_str().is_some_and(|id| id.contains(':'));
                    let is_skipped = is_transaction_id || volatile.contains(&name.as_str()) && !value.is_object();
                    let value = match name.as_str() {
                        _ if is_skipped => Value::from("…"),
                        "data_collections" => counts(value),
                        _ => steady(value),
                    };
                    (name.clone(), value)
                })
                .collect(),
        ),
        Value::Array(values) => Value::Array(values.iter().map(steady).collect()),
        other => other.clone(),
    }
}

/// In order: Debezium's is that of a hash. Behind the name of messages stands an address in memory.
fn counts(collections: &Value) -> Value {
    let Some(collections) = collections.as_array() else { return Value::Null };
    let name = |one: &Value| one["data_collection"].as_str().unwrap().split('@').next().unwrap().to_owned();
    let mut counts: Vec<String> =
        collections.iter().map(|one| format!("{} {}", name(one), one["event_count"])).collect();
    counts.sort_unstable();
    Value::from(counts)
}

pub(super) fn parsed(text: Option<&str>) -> Value {
    text.map_or(Value::Null, |text| serde_json::from_str(text).unwrap())
}

/// Debezium's own headers, with the run's name left out.
pub(super) fn headers(pairs: impl Iterator<Item = (String, String)>) -> Vec<(String, String)> {
    pairs
        .filter(|(name, _)| !name.starts_with("walrelay."))
        .map(|(name, value)| if name.ends_with("runId") { (name, String::new()) } else { (name, value) })
        .collect()
}

fn same(expected: &Value, found: &Kept) {
    let pairs = expected["headers"].as_array().into_iter().flatten();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let expected_headers = headers(pairs.map(|pair| (text(&pair[0]), text(&pair[1]))));
    assert_eq!(steady(&parsed(found.key.as_deref())).to_string(), steady(&expected["key"]).to_string());
    assert_eq!(steady(&parsed(found.value.as_deref())).to_string(), steady(&expected["value"]).to_string());
    assert_eq!(headers(found.headers.iter().cloned()), expected_headers, "{expected}");
}

#[test]
fn the_events_are_those_of_debezium() {
    let (expected, found) = (expected(false), records("ev", ""));
    let mut topics: Vec<&str> = expected.iter().filter_map(|event| event["topic"].as_str()).collect();
    topics.dedup();
    assert_eq!(expected.len(), found.len());
    for topic in topics {
        let expected: Vec<&Value> = expected.iter().filter(|event| event["topic"] == topic).collect();
        let found: Vec<&Kept> = found.iter().filter(|record| record.topic == topic).collect();
        assert_eq!(expected.len(), found.len(), "{topic}");
        for (expected, found) in expected.iter().zip(found) {
            same(expected, found);
        }
    }
}

#[test]
fn keys_are_the_bytes_of_the_converter() {
    for record in records("ev", "").iter().filter(|record| record.topic == "ev.public.simple") {
        let key = record.key.as_deref();
        assert!(key.is_none_or(|key| key.starts_with("{\"id\":") && !key.contains(' ')), "{key:?}");
    }
}

#[test]
fn the_events_carry_the_schemas_of_debezium() {
    let found = records("evs", "schemas_key = true\nschemas_value = true");
    for expected in expected(true) {
        let fits = |record: &&Kept| {
            record.topic == expected["topic"].as_str().unwrap()
                && parsed(record.key.as_deref())["payload"] == expected["key"]["payload"]
                && parsed(record.value.as_deref())["payload"]["op"] == expected["value"]["payload"]["op"]
                && record.value.is_none() == expected["value"].is_null()
        };
        same(&expected, found.iter().find(fits).unwrap());
    }
}

/// The relations that hold between the volatile fields.
#[test]
fn positions_and_transactions_fit_together() {
    let found = records("ev", "");
    let mut previous_end: Option<u64> = None;
    let mut rest = found.as_slice();
    while let Some(begin) = rest.first() {
        let length = rest.iter().position(|record| record.json()["status"] == "END").unwrap();
        let (transaction, behind) = rest.split_at(length + 1);
        let id = begin.json()["id"].clone();
        let (mut last_lsn, mut order) = (0, 0);
        for record in &transaction[1..length] {
            let value = record.json();
            if value.is_null() {
                continue;
            }
            let source = &value["source"];
            let lsn = source["lsn"].as_u64().unwrap();
            order += 1;
            assert!(lsn >= last_lsn, "the position falls within a transaction");
            assert_eq!(value["transaction"]["id"], id);
            assert_eq!(value["transaction"]["total_order"], order);
            assert!(id.as_str().unwrap().starts_with(&format!("{}:", source["txId"])));
            let sequence: Value = serde_json::from_str(source["sequence"].as_str().unwrap()).unwrap();
            assert_eq!(sequence[0], previous_end.map_or(Value::Null, |end| Value::from(end.to_string())));
            assert_eq!(sequence[1], lsn.to_string());
            last_lsn = lsn;
        }
        let end = transaction[length].json();
        assert_eq!((&end["id"], &end["event_count"]), (&id, &Value::from(order)));
        // The commit record ends where the next transaction says that this one ended.
        previous_end = behind.iter().map(Kept::json).find_map(|value| {
            let sequence: Value = serde_json::from_str(value["source"]["sequence"].as_str()?).unwrap();
            sequence[0].as_str()?.parse().ok()
        });
        assert!(behind.is_empty() || previous_end.unwrap() > last_lsn);
        rest = behind;
    }
}

#[test]
fn what_debezium_keeps_silent_about_is_named() {
    let found = records("ev", "");
    let of = |topic: &str, op: &str| -> Vec<&Kept> {
        found.iter().filter(|record| record.topic == topic && record.json()["op"] == op).collect()
    };
    assert_eq!(of("ev.public.toast", "u")[0].header("walrelay.unchanged"), Some(r#"["doc"]"#));
    assert_eq!(of("ev.public.toast_full", "u")[0].header("walrelay.unchanged"), None);
    assert_eq!(of("ev.public.simple", "c")[0].header("walrelay.lossy"), None);
    let types = of("ev.public.types", "c");
    for (row, lossy) in [
        (0, Some(r#"["c_interval","c_varbit"]"#)),
        (1, None),
        (2, Some(r#"["c_numeric"]"#)),
        (3, None),
        (5, Some(r#"["c_interval","c_int4_array"]"#)),
    ] {
        assert_eq!(types[row].header("walrelay.lossy"), lossy, "{row}");
    }
}
