//! Compares records with captured ones: every field, in its order; what differs from run to run by its kind only.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::harness::Record;

/// Numbers that differ from run to run.
const VOLATILE_NUMBERS: &[&str] =
    &["ts_ms", "ts_us", "ts_ns", "lsn", "txId", "timestamp", "__lsn", "__source_ts_ms", "__ts_ms"];
/// Texts that differ from run to run: positions, and what now() made.
const VOLATILE_TEXTS: &[&str] = &["sequence", "d_timestamptz"];
/// A type that Debezium sends as null, and walrelay as text.
const ON_PURPOSE: &str = "e_name";

/// A record of ours in the form of the file.
fn as_captured(record: &Record) -> Value {
    let headers: Vec<Value> = record
        .headers
        .iter()
        .filter(|(name, _)| !name.starts_with("walrelay."))
        .map(|(name, value)| json!([name, String::from_utf8(value.clone()).unwrap()]))
        .collect();
    json!({"topic": record.topic, "partition": record.partition, "key": record.key_json(), "value": record.json(), "headers": headers})
}

/// Replaces what differs from run to run by its kind, so that only its presence and type are compared. hstore and the counts of a
/// transaction come in the order of a Java hash table: their texts are put in order.
fn without_volatile(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, inner) in fields.iter_mut() {
                match name.as_str() {
                    name if VOLATILE_NUMBERS.contains(&name) => *inner = kind(inner),
                    name if VOLATILE_TEXTS.contains(&name) && inner.is_string() => *inner = json!(""),
                    "id" if inner.is_string() => *inner = json!("txid:lsn"),
                    ON_PURPOSE => *inner = Value::Null,
                    // Which table a copy begins and ends with depends on their order, and ours is not Debezium's.
                    "snapshot" if inner == "first" => *inner = json!("first_in_data_collection"),
                    "snapshot" if inner == "last" => *inner = json!("last_in_data_collection"),
                    "data_collections" => sort_collections(inner),
                    "c_hstore" if inner.is_string() => {
                        let map: BTreeMap<String, Value> = serde_json::from_str(inner.as_str().unwrap()).unwrap();
                        *inner = json!(map);
                    }
                    _ => without_volatile(inner),
                }
            }
        }
        Value::Array(items) => {
            if items.first().is_some_and(|name| name == "__debezium.context.runId") {
                items[1] = json!("");
            }
            items.iter_mut().for_each(without_volatile);
        }
        _ => {}
    }
}

fn kind(value: &Value) -> Value {
    json!(if value.is_i64() { "number" } else { "no number" })
}

fn sort_collections(value: &mut Value) {
    let Some(items) = value.as_array_mut() else { return };
    for item in items.iter_mut() {
        // Behind the @ stands a Java object's address.
        let name = item["data_collection"].as_str().unwrap().split('@').next().unwrap().to_owned();
        item["data_collection"] = json!(name);
    }
    items.sort_by_key(Value::to_string);
}

fn shown(mut value: Value) -> String {
    value.as_object_mut().unwrap().shift_remove("timestamp");
    without_volatile(&mut value);
    value.to_string()
}

/// Compares one topic's records; the first that differs is shown whole.
pub fn check_topic(topic: &str, expected: &[Value], found: &[Record], faults: &mut Vec<String>) {
    if expected.len() != found.len() {
        faults.push(format!("{topic}: {} records instead of {}", found.len(), expected.len()));
    }
    for (at, (expected, found)) in expected.iter().zip(found).enumerate() {
        let (expected, found) = (shown(expected.clone()), shown(as_captured(found)));
        if expected != found {
            faults.push(format!("{topic}, record {at}:\n  debezium {expected}\n  walrelay {found}"));
        }
    }
}
