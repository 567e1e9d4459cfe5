//! Tables rebuilt from a feed of Debezium events, as a strict consumer would: an insert of what is there, an update or delete of
//! what is not, a tombstone for a living row are faults. One state for each partition, so a TRUNCATE, which goes to every
//! partition, clears what stands before it there.

use std::collections::BTreeMap;

use serde_json::Value;

use super::Record;

/// See the module.
#[derive(Debug, Default)]
pub struct Tables {
    rows: BTreeMap<(String, i32), BTreeMap<Vec<u8>, Value>>,
    /// What no correct feed shows.
    pub faults: Vec<String>,
}

impl Tables {
    /// From records in the order of their partitions.
    pub fn of(records: &[Record]) -> Self {
        let mut tables = Self::default();
        for record in records {
            tables.take(record);
        }
        tables
    }

    fn take(&mut self, record: &Record) {
        let rows = self.rows.entry((record.topic.clone(), record.partition)).or_default();
        let key = record.key.clone().unwrap_or_default();
        let event = record.json();
        let is_there = rows.contains_key(&key);
        let after = || event["after"].clone();
        let fault = match event["op"].as_str() {
            None if record.value.is_none() => is_there.then_some("a tombstone for a living row"),
            Some("c") => rows.insert(key, after()).map(|_| "an insert of what is there"),
            Some("r") => rows.insert(key, after()).and(None),
            Some("u") => rows.insert(key, after()).is_none().then_some("an update of what is not there"),
            Some("d") => rows.remove(&key).is_none().then_some("a delete of what is not there"),
            Some("t") => {
                rows.clear();
                None
            }
            _ => Some("no event"),
        };
        if let Some(fault) = fault {
            let Record { topic, partition, offset, .. } = record;
            self.faults.push(format!("{topic}/{partition}@{offset}: {fault}: {} {event}", record.key_text()));
        }
    }

    /// The rows of one topic, sorted by their text.
    pub fn rows(&self, topic: &str) -> Vec<Value> {
        let partitions = self.rows.iter().filter(|((name, _), _)| name == topic);
        let mut rows: Vec<Value> = partitions.flat_map(|(_, rows)| rows.values().cloned()).collect();
        rows.sort_by_key(Value::to_string);
        rows
    }
}
