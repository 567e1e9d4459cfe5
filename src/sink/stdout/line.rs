//! One change as one JSON object on one line: `lsn`, `op`, `schema`, `table`, `values` as text or null. An UPDATE that moved
//! its key or has its whole old row adds `old`; large values that an UPDATE did not touch are named in `unchanged`.

use serde_json::{Map, Value as Json, json};

use crate::decode::{DecodeError, Message, Relations, Tuple, Value};
use crate::model::{Lsn, Relation};

/// Appends the change's line; messages that are no change of a row or table add nothing.
pub(super) fn line_of(
    message: &Message<'_>,
    lsn: Lsn,
    relations: &Relations,
    out: &mut Vec<u8>,
) -> Result<(), DecodeError> {
    match message {
        Message::Insert { relation_oid, new, .. } => {
            push(change("insert", lsn, relations.get(*relation_oid)?, *new), out);
        }
        Message::Update { relation_oid, old, new, .. } => {
            let relation = relations.get(*relation_oid)?;
            let mut object = change("update", lsn, relation, *new);
            if let Some(old) = old {
                object.insert("old".to_owned(), Json::Object(values(relation, old.tuple()).0));
            }
            push(object, out);
        }
        Message::Delete { relation_oid, old, .. } => {
            push(change("delete", lsn, relations.get(*relation_oid)?, old.tuple()), out);
        }
        Message::Truncate { relation_oids, .. } => {
            for oid in relation_oids.iter() {
                push(head("truncate", lsn, relations.get(oid)?), out);
            }
        }
        _ => {}
    }
    Ok(())
}

fn push(object: Map<String, Json>, out: &mut Vec<u8>) {
    out.extend_from_slice(Json::Object(object).to_string().as_bytes());
    out.push(b'\n');
}

fn head(operation: &str, lsn: Lsn, relation: &Relation) -> Map<String, Json> {
    let mut object = Map::new();
    object.insert("lsn".to_owned(), json!(lsn.to_string()));
    object.insert("op".to_owned(), json!(operation));
    object.insert("schema".to_owned(), json!(relation.name.schema));
    object.insert("table".to_owned(), json!(relation.name.name));
    object
}

fn change(operation: &str, lsn: Lsn, relation: &Relation, tuple: Tuple<'_>) -> Map<String, Json> {
    let mut object = head(operation, lsn, relation);
    let (values, unchanged) = values(relation, tuple);
    object.insert("values".to_owned(), Json::Object(values));
    if !unchanged.is_empty() {
        object.insert("unchanged".to_owned(), json!(unchanged));
    }
    object
}

fn values(relation: &Relation, tuple: Tuple<'_>) -> (Map<String, Json>, Vec<String>) {
    let mut values = Map::new();
    let mut unchanged = Vec::new();
    for (column, value) in relation.columns.iter().zip(tuple.iter()) {
        let json = match value {
            Value::Null => Json::Null,
            Value::Text(bytes) => Json::String(String::from_utf8_lossy(bytes).into_owned()),
            // Never asked for by this sink; shown all the same.
            Value::Binary(bytes) => {
                Json::String(bytes.iter().fold("\\x".to_owned(), |text, byte| format!("{text}{byte:02x}")))
            }
            Value::Unchanged => {
                unchanged.push(column.name.clone());
                continue;
            }
        };
        values.insert(column.name.clone(), json);
    }
    (values, unchanged)
}
