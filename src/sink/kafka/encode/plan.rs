//! How the rows of one table are written: its topic, its key, each column's form. Made of a Relation message, which wins, and of
//! what the catalog says besides; used for every row.

use std::collections::HashMap;

use sha2::{Digest as _, Sha256};

use crate::config::KafkaSink;
use crate::config::kafka::{BinaryMode, HstoreMode, MaskWith};
use crate::model::{Column, QualifiedName, Relation, ReplicaIdentity};

use super::super::super::SinkError;
use super::default::default_json;
use super::facts::{ColumnFacts, TableFacts, TypeFacts};
use super::form::{Form, Room, form_of, numeric_modifier, push_value};
use super::json::{push_base64, push_string};
use super::topic::topic_of;

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

/// What rows of a table become.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) name: QualifiedName,
    pub(super) topic: String,
    pub(super) columns: Vec<PlannedColumn>,
    /// Places of the key's columns; empty: no key.
    pub(super) key: Vec<usize>,
    /// `"schema":…,"table":…,"txId":`.
    pub(super) source: Vec<u8>,
    /// Before the key and the value when they carry their schemas: `{"schema":…,"payload":`.
    pub(super) key_schema: Vec<u8>,
    pub(super) value_schema: Vec<u8>,
}

/// What is known besides the Relation message.
pub(super) struct Knowledge<'a> {
    pub(super) settings: &'a KafkaSink,
    pub(super) facts: Option<&'a TableFacts>,
    /// Names of the base types behind OIDs, from Type messages.
    pub(super) types: &'a HashMap<u32, (String, String)>,
}

impl Plan {
    /// Refuses what cannot be sent as configured.
    pub(super) fn new(relation: &Relation, knowledge: &Knowledge<'_>) -> Result<Plan, SinkError> {
        let name = relation.name.clone();
        let settings = knowledge.settings;
        let columns: Result<Vec<_>, _> =
            relation.columns.iter().map(|column| planned_column(&name, column, knowledge)).collect();
        let mut source = b"\"schema\":".to_vec();
        let _ = push_string(name.schema.as_bytes(), &mut source);
        source.extend_from_slice(b",\"table\":");
        let _ = push_string(name.name.as_bytes(), &mut source);
        source.extend_from_slice(b",\"txId\":");
        let mut plan = Plan {
            topic: topic_of(&name, settings),
            columns: columns?,
            key: key_of(relation, knowledge),
            source,
            key_schema: Vec::new(),
            value_schema: Vec::new(),
            name,
        };
        plan.say_what_the_key_shows();
        super::schema::add_schemas(&mut plan, settings);
        Ok(plan)
    }

    fn say_what_the_key_shows(&self) {
        for column in
            self.key.iter().filter_map(|place| self.columns.get(*place)).filter(|column| column.mask.is_some())
        {
            tracing::warn!(table = %self.name, column = column.name, "a mask does not cover the record's key: this column is part of it");
        }
    }
}

fn planned_column(
    table: &QualifiedName,
    column: &Column,
    knowledge: &Knowledge<'_>,
) -> Result<PlannedColumn, SinkError> {
    let settings = knowledge.settings;
    let facts = knowledge.facts.and_then(|facts| facts.column(&column.name));
    let facts = facts.filter(|facts| facts.type_oid == column.type_oid);
    let (base, modifier) = base_type(column, facts, knowledge.types);
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

/// The type without its domains, and the modifier that holds for it.
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

fn is_included(table: &QualifiedName, column: &str, settings: &KafkaSink) -> bool {
    let is_listed = settings.column_include.is_empty()
        || settings.column_include.iter().any(|pattern| pattern.matches(table, column));
    is_listed && !settings.column_exclude.iter().any(|pattern| pattern.matches(table, column))
}

/// A mask that could not cover its column is refused: nobody would notice.
fn mask_of(
    table: &QualifiedName,
    column: &str,
    form: &Form,
    settings: &KafkaSink,
) -> Result<Option<MaskWith>, SinkError> {
    let covers = |mask: &&crate::config::kafka::Mask| mask.columns.iter().any(|pattern| pattern.matches(table, column));
    let Some(mask) = settings.masks.iter().find(covers) else { return Ok(None) };
    if *form != Form::Text {
        return Err(SinkError::Refused(format!(
            "a mask names the column {column} of {table}, which is no text: leave it out with column_exclude, or take it off \
             the mask"
        )));
    }
    Ok(Some(mask.with.clone()))
}

/// Primary key, else the replica identity's index, else a unique index; what the Relation message says wins.
fn key_of(relation: &Relation, knowledge: &Knowledge<'_>) -> Vec<usize> {
    let place = |name: &String| relation.columns.iter().position(|column| column.name == *name);
    let configured = knowledge.settings.message_key.iter().find(|(pattern, _)| pattern.matches(&relation.name));
    if let Some((_, names)) = configured {
        let places: Vec<usize> = names.iter().filter_map(place).collect();
        if places.len() == names.len() {
            return places;
        }
        tracing::warn!(table = %relation.name, "message_key names a column that the table does not have: its own key is used");
    }
    let places =
        |names: &[String]| names.iter().map(place).collect::<Option<Vec<usize>>>().filter(|places| !places.is_empty());
    let flagged: Vec<usize> =
        relation.columns.iter().enumerate().filter(|(_, column)| column.is_key).map(|(place, _)| place).collect();
    let facts = knowledge.facts;
    let is_same =
        |places: &Vec<usize>| places.len() == flagged.len() && flagged.iter().all(|place| places.contains(place));
    // The catalog knows the order of an index, the message which columns it has.
    let ordered = |names: &[String]| places(names).filter(is_same).unwrap_or_else(|| flagged.clone());
    let unique = || facts.and_then(|facts| facts.unique_indexes.iter().find_map(|index| places(&index.columns)));
    match relation.replica_identity {
        ReplicaIdentity::Index if !flagged.is_empty() => ordered(facts.map_or(&[], |facts| &facts.identity_index)),
        ReplicaIdentity::Default if !flagged.is_empty() => ordered(facts.map_or(&[], |facts| &facts.primary_key)),
        ReplicaIdentity::Default => unique().unwrap_or_default(),
        _ => facts.and_then(|facts| places(&facts.primary_key)).or_else(unique).unwrap_or_default(),
    }
}

/// What Debezium puts where a NOT NULL column's old value did not come.
pub(super) fn filler_of(form: &Form, modifier: i32) -> Vec<u8> {
    use super::composite::Shape;
    use super::temporal::Temporal;
    let text: &[u8] = match form {
        Form::Boolean | Form::Bit => b"f",
        Form::Integer | Form::Float4 | Form::Float8 | Form::VariableDecimal | Form::DecimalDouble => b"0",
        Form::Decimal(_) => b"0",
        Form::DecimalText => match numeric_modifier(modifier).and_then(|(_, scale)| usize::try_from(scale).ok()) {
            Some(scale @ 1..) => return format!("\"0.{:0>scale$}\"", 0).into_bytes(),
            _ => b"0",
        },
        Form::Money(_) => b"0.00",
        Form::Text | Form::Bits { .. } | Form::Hstore(_) => b"",
        Form::Binary(_) => b"\\x",
        Form::Temporal(Temporal::Days | Temporal::IsoDate) => b"1970-01-01",
        Form::Temporal(Temporal::Time(_) | Temporal::IsoTime | Temporal::TimeTz) => b"00:00:00",
        Form::Temporal(Temporal::Timestamp(_) | Temporal::IsoTimestamp) => b"1970-01-01 00:00:00",
        Form::Temporal(Temporal::TimestampTz(_)) => return b"\"1970-01-01T00:00:00Z\"".to_vec(),
        Form::Temporal(Temporal::IntervalMicros | Temporal::IntervalIso) => b"00:00:00",
        Form::Shape(Shape::Point) => b"(0,0)",
        Form::Shape(Shape::Segment | Shape::Path) => b"[(0,0),(1,0)]",
        Form::Shape(Shape::Box) => b"(0,0),(1,1)",
        Form::Shape(Shape::Polygon) => b"((0,0),(1,0),(0,1))",
        Form::Shape(Shape::Circle) => b"<(0,0),0>",
        Form::Shape(Shape::Line) => b"{0,1,0}",
        // An empty collection.
        Form::Spatial => b"010700000000000000",
        Form::Vector { .. } => b"[]",
        Form::Array(_) => b"{}",
        Form::Differs(inner) => return filler_of(inner, modifier),
    };
    let mut out = Vec::new();
    let _ = push_value(form, text, &mut Room::default(), &mut out);
    out
}

/// Debezium's placeholder in the form of the type.
pub(super) fn unavailable_of(
    form: &Form,
    base: &TypeFacts,
    modifier: i32,
    is_nullable: bool,
    settings: &KafkaSink,
) -> Vec<u8> {
    let placeholder = settings.unavailable_value.as_bytes();
    let mut out = Vec::new();
    match form {
        Form::Text => {
            let _ = push_string(placeholder, &mut out);
        }
        Form::Binary(BinaryMode::Bytes) => push_base64(placeholder, &mut out),
        Form::Binary(BinaryMode::Hex) => {
            let _ = push_string(placeholder, &mut out);
        }
        Form::Hstore(mode) => {
            let mut pair = b"{".to_vec();
            let _ = push_string(placeholder, &mut pair);
            pair.push(b':');
            let _ = push_string(placeholder, &mut pair);
            pair.push(b'}');
            match mode {
                HstoreMode::Map => out = pair,
                HstoreMode::Json => {
                    let _ = push_string(&pair, &mut out);
                }
            }
        }
        Form::Array(element) => match **element {
            Form::Text if base.oid == UUID_ARRAY => out.extend(format!("[\"{}\"]", name_uuid(placeholder)).bytes()),
            Form::Text => {
                out.push(b'[');
                let _ = push_string(placeholder, &mut out);
                out.push(b']');
            }
            Form::Binary(_) => {
                out.push(b'[');
                push_base64(placeholder, &mut out);
                out.push(b']');
            }
            Form::Integer => {
                let codes: Vec<String> = placeholder.iter().map(|byte| (*byte as i8).to_string()).collect();
                out.extend(format!("[{}]", codes.join(",")).bytes());
            }
            _ if is_nullable => out.extend_from_slice(b"null"),
            _ => out.extend_from_slice(b"[]"),
        },
        _ if is_nullable => out.extend_from_slice(b"null"),
        _ => out = filler_of(form, modifier),
    }
    out
}

const UUID_ARRAY: u32 = 2951;

/// A UUID that stands for the placeholder. Java makes it with MD5; nobody compares it, `walrelay.unchanged` is what counts.
fn name_uuid(name: &[u8]) -> String {
    let digest = Sha256::digest(name);
    let hex: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    let part = |from: usize, to: usize| hex.get(from..to).unwrap_or("").to_owned();
    format!("{}-{}-3{}-8{}-{}", part(0, 8), part(8, 12), part(13, 16), part(17, 20), part(20, 32))
}
