//! One change as one JSON object on one line: `lsn`, `op`, `schema`, `table`, `values` as text or null. An UPDATE that moved
//! its key or has its whole old row adds `old`; large values that an UPDATE did not touch are named in `unchanged`.

use serde_json::{Map, Value as Json, json};

use crate::decode::{DecodeError, Message, OldTuple, Relations, Tuple, Value};
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
                object.insert("old".to_owned(), Json::Object(old_values(relation, old)));
            }
            push(object, out);
        }
        Message::Delete { relation_oid, old, .. } => {
            let relation = relations.get(*relation_oid)?;
            let mut object = head("delete", lsn, relation);
            object.insert("values".to_owned(), Json::Object(old_values(relation, old)));
            push(object, out);
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

/// The old row as far as it was sent: of a key tuple the other columns are not NULL but unknown, and do not appear.
fn old_values(relation: &Relation, old: &OldTuple<'_>) -> Map<String, Json> {
    let (mut values, _) = values(relation, old.tuple());
    if matches!(old, OldTuple::Key(_)) {
        let is_key = |name: &str| relation.columns.iter().any(|column| column.is_key && column.name == name);
        values.retain(|name, _| is_key(name));
    }
    values
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::{Context, decode};

    const RELATION: &[u8] =
        b"R\0\0\0\x07public\0t\0d\0\x02\x01id\0\0\0\0\x17\xff\xff\xff\xff\0v\0\0\0\0\x19\xff\xff\xff\xff";

    /// Prints one message of the table `public.t (id primary key, v)`.
    fn check(payload: &[u8], expected: &str) {
        let mut relations = Relations::default();
        let Message::Relation(body) = decode(RELATION, Context::default()).unwrap() else { panic!("no Relation") };
        relations.note(&body);
        let mut out = Vec::new();
        line_of(&decode(payload, Context::default()).unwrap(), Lsn(0x1f), &relations, &mut out).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), format!("{{\"lsn\":\"0/1F\",{expected}}}\n"));
    }

    #[test]
    fn each_change_is_one_line() {
        check(
            b"I\0\0\0\x07N\0\x02t\0\0\0\x011n",
            r#""op":"insert","schema":"public","table":"t","values":{"id":"1","v":null}"#,
        );
        check(
            b"U\0\0\0\x07K\0\x02t\0\0\0\x011nN\0\x02t\0\0\0\x012u",
            r#""op":"update","schema":"public","table":"t","values":{"id":"2"},"unchanged":["v"],"old":{"id":"1"}"#,
        );
        check(b"D\0\0\0\x07K\0\x02t\0\0\0\x011n", r#""op":"delete","schema":"public","table":"t","values":{"id":"1"}"#);
        check(b"T\0\0\0\x01\0\0\0\0\x07", r#""op":"truncate","schema":"public","table":"t""#);
    }
}
