//! Writes a row, and a record's key, as JSON objects: column by column, straight into a buffer.

use sha2::{Digest as _, Sha256};

use crate::config::kafka::MaskWith;
use crate::decode::Value;

use super::column::PlannedColumn;
use super::form::{Room, push_header_value, push_value};
use super::json::{Fidelity, push_hex, push_string};
use super::plan::Plan;

/// A row's values in the order of its Relation message, and how much of them came.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row<V> {
    pub(super) values: V,
    /// Only the replica identity's columns are known, the others came as NULL.
    pub(super) is_key_only: bool,
}

/// What has to be said about the columns of a record besides their values.
#[derive(Clone, Debug, Default)]
pub(super) struct Notes {
    /// Places of columns whose form could not hold the value.
    pub(super) lossy: Vec<usize>,
    /// Places of large values that did not come.
    pub(super) unchanged: Vec<usize>,
}

impl Notes {
    pub(super) fn clear(&mut self) {
        self.lossy.clear();
        self.unchanged.clear();
    }

    fn note(&mut self, fidelity: Fidelity, place: usize) {
        if fidelity == Fidelity::Lossy && !self.lossy.contains(&place) {
            self.lossy.push(place);
        }
    }
}

/// `{"a":1,…` without the closing brace, so that fields can be added. `old` is the old row, as much of it as came: the value of a
/// column that did not change stands there.
pub(super) fn push_open_row<'v, V: Iterator<Item = Value<'v>> + Clone>(
    plan: &Plan,
    row: &Row<V>,
    old: Option<&Row<V>>,
    notes: &mut Notes,
    room: &mut Room,
    out: &mut Vec<u8>,
) {
    out.push(b'{');
    let mut is_first = true;
    for (place, (column, value)) in plan.columns.iter().zip(row.values.clone()).enumerate() {
        if !column.is_sent {
            continue;
        }
        if !is_first {
            out.push(b',');
        }
        is_first = false;
        out.extend_from_slice(&column.label);
        match resolved(column, value, old, place) {
            Value::Text(text) => {
                let fidelity = push_masked(column, text, room, out);
                notes.note(fidelity, place);
            }
            Value::Null if row.is_key_only && !column.is_identity => out.extend_from_slice(&column.filler),
            Value::Null => out.extend_from_slice(&column.null),
            Value::Unchanged => {
                out.extend_from_slice(&column.unavailable);
                notes.unchanged.push(place);
            }
            // Never asked for: `binary` is not among the options of the stream.
            Value::Binary(_) => {
                out.extend_from_slice(b"null");
                notes.note(Fidelity::Lossy, place);
            }
        }
    }
}

/// What did not change stands in the old row. Of one that has only the identity's columns, these: the primary sends them, changed or
/// not, where one of them is stored out of line.
#[inline]
fn resolved<'v, V: Iterator<Item = Value<'v>> + Clone>(
    column: &PlannedColumn,
    value: Value<'v>,
    old: Option<&Row<V>>,
    place: usize,
) -> Value<'v> {
    match (value, old) {
        (Value::Unchanged, Some(old)) if !old.is_key_only || column.is_identity => {
            old.values.clone().nth(place).unwrap_or(value)
        }
        _ => value,
    }
}

#[inline]
fn push_masked(column: &PlannedColumn, text: &[u8], room: &mut Room, out: &mut Vec<u8>) -> Fidelity {
    match &column.mask {
        None => push_value(&column.form, text, room, out),
        Some(MaskWith::Fixed(fixed)) => push_string(fixed.as_bytes(), out),
        Some(MaskWith::Truncate(count)) => {
            let text = String::from_utf8_lossy(text);
            let end = text.char_indices().nth(*count).map_or(text.len(), |(at, _)| at);
            push_string(text.get(..end).unwrap_or("").as_bytes(), out)
        }
        Some(MaskWith::Hash { salt }) => {
            let mut digest = Sha256::new();
            digest.update(salt.as_ref().map_or("", |salt| salt.reveal()));
            digest.update(text);
            push_hex(&digest.finalize(), out);
            Fidelity::Exact
        }
    }
}

/// The key of a row, with its schema where that is wanted; false for a table without key. Where an old row has only the
/// identity's columns, those outside it are taken from `new`: they are not known to have changed.
pub(super) fn push_key<'v, V: Iterator<Item = Value<'v>> + Clone>(
    plan: &Plan,
    row: &Row<V>,
    new: Option<&V>,
    old: Option<&Row<V>>,
    notes: &mut Notes,
    room: &mut Room,
    out: &mut Vec<u8>,
) -> bool {
    out.clear();
    if plan.key.is_empty() {
        return false;
    }
    out.extend_from_slice(&plan.key_schema);
    for (at, (place, column)) in key_columns(plan).enumerate() {
        out.push(if at == 0 { b'{' } else { b',' });
        out.extend_from_slice(&column.label);
        match key_value(column, place, row, new, old) {
            Value::Text(text) => {
                let fidelity = push_value(&column.form, text, room, out);
                notes.note(fidelity, place);
            }
            Value::Unchanged => out.extend_from_slice(&column.unavailable),
            Value::Null if row.is_key_only && !column.is_identity => out.extend_from_slice(&column.filler),
            Value::Null | Value::Binary(_) => out.extend_from_slice(&column.null),
        }
    }
    out.push(b'}');
    if !plan.key_schema.is_empty() {
        out.push(b'}');
    }
    true
}

/// The key as the headers of a changed key have it.
pub(super) fn push_header_key<'v, V: Iterator<Item = Value<'v>> + Clone>(
    plan: &Plan,
    row: &Row<V>,
    new: Option<&V>,
    old: Option<&Row<V>>,
    room: &mut Room,
    out: &mut Vec<u8>,
) {
    out.clear();
    for (at, (place, column)) in key_columns(plan).enumerate() {
        out.push(if at == 0 { b'{' } else { b',' });
        out.extend_from_slice(&column.label);
        match key_value(column, place, row, new, old) {
            Value::Text(text) => push_header_value(&column.form, text, room, out),
            _ => out.extend_from_slice(b"null"),
        }
    }
    out.push(b'}');
}

fn key_columns(plan: &Plan) -> impl Iterator<Item = (usize, &PlannedColumn)> {
    plan.key.iter().filter_map(|place| plan.columns.get(*place).map(|column| (*place, column)))
}

fn key_value<'v, V: Iterator<Item = Value<'v>> + Clone>(
    column: &PlannedColumn,
    place: usize,
    row: &Row<V>,
    new: Option<&V>,
    old: Option<&Row<V>>,
) -> Value<'v> {
    let from = match new {
        Some(new) if row.is_key_only && !column.is_identity => new,
        _ => &row.values,
    };
    resolved(column, from.clone().nth(place).unwrap_or(Value::Null), old, place)
}

/// `["a","b"]` of columns' names.
pub(super) fn push_names(plan: &Plan, places: &[usize], out: &mut Vec<u8>) {
    out.clear();
    for (at, column) in places.iter().filter_map(|place| plan.columns.get(*place)).enumerate() {
        out.push(if at == 0 { b'[' } else { b',' });
        let _ = push_string(column.name.as_bytes(), out);
    }
    out.push(b']');
}
