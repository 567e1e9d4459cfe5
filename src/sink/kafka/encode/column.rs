//! How one column of a table is written: its form, its default, what stands where a value is missing, its mask. Made of the
//! Relation message, which wins, and of what the catalog says besides. Knows no key and no topic.

use std::collections::HashMap;

use crate::config::KafkaSink;
use crate::config::kafka::{Mask, MaskWith};
use crate::model::{Column, QualifiedName};

use super::super::super::SinkError;
use super::default::default_json;
use super::facts::{ColumnFacts, TableFacts, TypeFacts};
use super::filler::{filler_of, unavailable_of};
use super::form::{Form, form_of};
use super::json::push_string;

/// One column of the Relation message.
#[derive(Clone, Debug)]
pub(super) struct PlannedColumn {
    pub(super) name: String,
    /// `"name":`.
    pub(super) label: Vec<u8>,
    pub(super) form: Form,
    /// Part of the row; a column may be left out of rows and stand in the key.
    pub(super) is_sent: bool,
    pub(super) is_nullable: bool,
    /// Part of the replica identity: its old value comes with a key.
    pub(super) is_identity: bool,
    /// What NULL is.
    pub(super) null: Vec<u8>,
    /// What stands where the old value did not come.
    pub(super) filler: Vec<u8>,
    /// What stands for a large value that did not change.
    pub(super) unavailable: Vec<u8>,
    pub(super) mask: Option<MaskWith>,
    pub(super) base: TypeFacts,
    pub(super) modifier: i32,
    /// The default as JSON, if it is known.
    pub(super) default: Option<Vec<u8>>,
}

/// What is known besides the Relation message.
pub(super) struct Knowledge<'a> {
    pub(super) settings: &'a KafkaSink,
    pub(super) facts: Option<&'a TableFacts>,
    /// Names of the base types behind OIDs, from Type messages.
    pub(super) types: &'a HashMap<u32, (String, String)>,
}

pub(super) fn planned_column(
    table: &QualifiedName,
    column: &Column,
    knowledge: &Knowledge<'_>,
) -> Result<PlannedColumn, SinkError> {
    let settings = knowledge.settings;
    let facts = knowledge.facts.and_then(|facts| facts.column(&column.name));
    let facts = facts.filter(|facts| facts.type_oid == column.type_oid);
    // The catalog may be ahead: a column that was renamed or dropped since has the type that another one of its kind has.
    let kin = || knowledge.facts?.columns.iter().find(|other| other.type_oid == column.type_oid);
    let (base, modifier) = base_type(column, facts.or_else(kin), knowledge.types);
    let form = form_of(&base, modifier, settings);
    let is_known = form.is_some();
    let form = form.unwrap_or(Form::Text);
    let mut label = Vec::new();
    let _ = push_string(column.name.as_bytes(), &mut label);
    label.push(b':');
    let is_nullable = facts.is_none_or(|facts| !facts.is_not_null);
    let default = facts.filter(|_| is_known).and_then(|facts| default_json(facts, &form));
    let null = default.clone().filter(|_| settings.replace_null_with_default && is_nullable);
    let mask = mask_of(table, &column.name, &form, settings)?;
    Ok(PlannedColumn {
        is_sent: (is_known || settings.include_unknown_types) && is_included(table, &column.name, settings),
        null: null.clone().unwrap_or_else(|| b"null".to_vec()),
        filler: match is_nullable {
            true => null.unwrap_or_else(|| b"null".to_vec()),
            false => default.clone().unwrap_or_else(|| filler_of(&form, modifier)),
        },
        unavailable: unavailable_of(&form, &base, modifier, is_nullable, settings),
        name: column.name.clone(),
        is_identity: column.is_key,
        label,
        form,
        is_nullable,
        mask,
        base,
        modifier,
        default,
    })
}

/// The type without its domains, and the modifier that holds for it; `facts` are of a column of that type.
fn base_type(column: &Column, facts: Option<&ColumnFacts>, types: &HashMap<u32, (String, String)>) -> (TypeFacts, i32) {
    if let Some(facts) = facts {
        let modifier = if column.type_modifier >= 0 { column.type_modifier } else { facts.base.modifier };
        return (facts.base.clone(), modifier);
    }
    let (schema, name) = types.get(&column.type_oid).cloned().unwrap_or_default();
    // The catalog has moved on: what the stream said must do. A domain over a built-in type bears that type's name.
    let oid = match schema.as_str() {
        "pg_catalog" => {
            BUILT_IN_NAMES.iter().find(|(known, _)| *known == name).map_or(column.type_oid, |(_, oid)| *oid)
        }
        _ => column.type_oid,
    };
    let base = TypeFacts { oid, schema, name, kind: "b".to_owned(), modifier: -1, labels: Vec::new(), element: None };
    (base, column.type_modifier)
}

const BUILT_IN_NAMES: &[(&str, u32)] = &[
    ("bool", 16),
    ("bytea", 17),
    ("int8", 20),
    ("int2", 21),
    ("int4", 23),
    ("text", 25),
    ("json", 114),
    ("xml", 142),
    ("float4", 700),
    ("float8", 701),
    ("money", 790),
    ("inet", 869),
    ("bpchar", 1042),
    ("varchar", 1043),
    ("date", 1082),
    ("time", 1083),
    ("timestamp", 1114),
    ("timestamptz", 1184),
    ("interval", 1186),
    ("timetz", 1266),
    ("numeric", 1700),
    ("uuid", 2950),
    ("jsonb", 3802),
];

/// Whether `column_include` and `column_exclude` let it out.
pub(super) fn is_included(table: &QualifiedName, column: &str, settings: &KafkaSink) -> bool {
    let is_listed = settings.column_include.is_empty()
        || settings.column_include.iter().any(|pattern| pattern.matches(table, column));
    is_listed && !settings.column_exclude.iter().any(|pattern| pattern.matches(table, column))
}

/// The first mask that names it.
pub(super) fn mask_over<'a>(table: &QualifiedName, column: &str, settings: &'a KafkaSink) -> Option<&'a Mask> {
    settings.masks.iter().find(|mask| mask.columns.iter().any(|pattern| pattern.matches(table, column)))
}

/// A mask that could not cover its column is refused: nobody would notice.
fn mask_of(
    table: &QualifiedName,
    column: &str,
    form: &Form,
    settings: &KafkaSink,
) -> Result<Option<MaskWith>, SinkError> {
    let Some(mask) = mask_over(table, column, settings) else { return Ok(None) };
    if *form != Form::Text {
        return Err(SinkError::Refused(format!(
            "a mask names the column {column} of {table}, which is no text: leave it out with column_exclude, or take it off \
             the mask"
        )));
    }
    Ok(Some(mask.with.clone()))
}
