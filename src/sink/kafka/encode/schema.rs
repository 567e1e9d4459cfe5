//! Embedded Connect schemas, as JsonConverter writes them before key and value. Made once a table, in JsonConverter's order of
//! fields: type, fields or items, optional, name, version, doc, parameters, default, field.

use crate::config::KafkaSink;
use crate::config::kafka::{BinaryMode, DecimalMode, HstoreMode, TimePrecision};
use crate::model::QualifiedName;

use super::column::PlannedColumn;
use super::composite::Shape;
use super::facts::TypeFacts;
use super::form::{Form, numeric_modifier};
use super::json::push_string;
use super::temporal::{Temporal, Unit};

const SOURCE: &str = r#"{"type":"struct","fields":[{"type":"string","optional":false,"field":"version"},{"type":"string","optional":false,"field":"connector"},{"type":"string","optional":false,"field":"name"},{"type":"int64","optional":false,"field":"ts_ms"},{"type":"string","optional":true,"name":"io.debezium.data.Enum","version":1,"parameters":{"allowed":"true,first,first_in_data_collection,last_in_data_collection,last,false,incremental"},"default":"false","field":"snapshot"},{"type":"string","optional":false,"field":"db"},{"type":"string","optional":true,"field":"sequence"},{"type":"int64","optional":true,"field":"ts_us"},{"type":"int64","optional":true,"field":"ts_ns"},{"type":"string","optional":false,"field":"schema"},{"type":"string","optional":false,"field":"table"},{"type":"int64","optional":true,"field":"txId"},{"type":"int64","optional":true,"field":"lsn"},{"type":"int64","optional":true,"field":"xmin"},{"type":"string","optional":true,"field":"origin"},{"type":"int64","optional":true,"field":"origin_lsn"}],"optional":false,"name":"io.debezium.connector.postgresql.Source","version":1,"field":"source"}"#;
const TRANSACTION: &str = r#"{"type":"struct","fields":[{"type":"string","optional":false,"field":"id"},{"type":"int64","optional":false,"field":"total_order"},{"type":"int64","optional":false,"field":"data_collection_order"}],"optional":true,"name":"event.block","version":1,"field":"transaction"}"#;
const TAIL: &str = r#"{"type":"string","optional":false,"field":"op"},{"type":"int64","optional":true,"field":"ts_ms"},{"type":"int64","optional":true,"field":"ts_us"},{"type":"int64","optional":true,"field":"ts_ns"}"#;

/// What stands before the key where its schema is wanted: `{"schema":…,"payload":`; else nothing.
pub(super) fn key_schema<'a>(
    table: &QualifiedName,
    key: impl Iterator<Item = &'a PlannedColumn>,
    settings: &KafkaSink,
) -> Vec<u8> {
    let fields: Vec<String> = key.map(|column| field(column, settings)).collect();
    if !settings.schemas_key || fields.is_empty() {
        return Vec::new();
    }
    let schema = structure(&fields, false, &schema_name(table, settings), "Key");
    format!("{{\"schema\":{schema}}},\"payload\":").into_bytes()
}

/// The same of the value: Debezium's envelope around the row.
pub(super) fn value_schema(table: &QualifiedName, columns: &[PlannedColumn], settings: &KafkaSink) -> Vec<u8> {
    if !settings.schemas_value {
        return Vec::new();
    }
    let name = schema_name(table, settings);
    let columns = columns.iter().filter(|column| column.is_sent);
    let fields: Vec<String> = columns.map(|column| field(column, settings)).collect();
    let row = structure(&fields, true, &name, "Value");
    let parts = format!("{row},\"field\":\"before\"}},{row},\"field\":\"after\"}},{SOURCE},{TRANSACTION},{TAIL}");
    let schema = structure(&[parts], false, &name, "Envelope");
    format!("{{\"schema\":{schema},\"version\":2}},\"payload\":").into_bytes()
}

fn schema_name(table: &QualifiedName, settings: &KafkaSink) -> String {
    format!("{}.{}.{}", settings.topic_prefix, table.schema, table.name)
}

/// A struct's schema up to its name, not closed.
fn structure(fields: &[String], is_optional: bool, name: &str, kind: &str) -> String {
    let name = json(&format!("{name}.{kind}"));
    format!("{{\"type\":\"struct\",\"fields\":[{}],\"optional\":{is_optional},\"name\":{name}", fields.join(","))
}

fn json(text: &str) -> String {
    let mut out = Vec::new();
    let _ = push_string(text.as_bytes(), &mut out);
    String::from_utf8_lossy(&out).into_owned()
}

/// A column's schema with its default and its name.
fn field(column: &PlannedColumn, settings: &KafkaSink) -> String {
    let mut text = schema_of(&column.form, &column.base, column.modifier, column.is_nullable, settings);
    if let Some(default) = &column.default {
        text.push_str(",\"default\":");
        text.push_str(&String::from_utf8_lossy(default));
    }
    format!("{text},\"field\":{}}}", json(&column.name))
}

/// What a schema is made of.
struct Parts<'a> {
    kind: &'a str,
    /// `"fields":[…]` or `"items":…`, with the comma before it.
    inside: String,
    /// `"name":…` and what follows it, with the comma before it.
    name: String,
}

impl<'a> Parts<'a> {
    fn bare(kind: &'a str) -> Self {
        Self { kind, inside: String::new(), name: String::new() }
    }

    fn named(kind: &'a str, name: &str, version: u32) -> Self {
        Self { kind, inside: String::new(), name: format!(",\"name\":\"{name}\",\"version\":{version}") }
    }

    fn doc(mut self, doc: &str) -> Self {
        self.name.push_str(&format!(",\"doc\":\"{doc}\""));
        self
    }

    fn parameters(mut self, parameters: &str) -> Self {
        self.name.push_str(&format!(",\"parameters\":{{{parameters}}}"));
        self
    }

    fn inside(mut self, inside: String) -> Self {
        self.inside = format!(",{inside}");
        self
    }
}

/// A type's schema, not closed.
fn schema_of(form: &Form, base: &TypeFacts, modifier: i32, is_optional: bool, settings: &KafkaSink) -> String {
    let Parts { kind, inside, name } = parts_of(form, base, modifier, settings);
    format!("{{\"type\":\"{kind}\"{inside},\"optional\":{is_optional}{name}")
}

fn parts_of(form: &Form, base: &TypeFacts, modifier: i32, settings: &KafkaSink) -> Parts<'static> {
    match form {
        Form::Boolean | Form::Bit => Parts::bare("boolean"),
        Form::Integer => Parts::bare(match base.oid {
            21 | 1005 => "int16",
            23 | 1007 => "int32",
            _ => "int64",
        }),
        Form::Float4 => Parts::bare("float"),
        Form::Float8 | Form::DecimalDouble | Form::Money(DecimalMode::Double) => Parts::bare("double"),
        Form::Decimal(scale) => {
            let precision = numeric_modifier(modifier).map_or(0, |(precision, _)| precision);
            let parameters = format!("\"scale\":\"{scale}\",\"connect.decimal.precision\":\"{precision}\"");
            Parts::named("bytes", "org.apache.kafka.connect.data.Decimal", 1).parameters(&parameters)
        }
        Form::Money(DecimalMode::Precise) => {
            Parts::named("bytes", "org.apache.kafka.connect.data.Decimal", 1).parameters("\"scale\":\"2\"")
        }
        Form::VariableDecimal => Parts::named("struct", "io.debezium.data.VariableScaleDecimal", 1)
            .doc("Variable scaled decimal")
            .inside(r#""fields":[{"type":"int32","optional":false,"field":"scale"},{"type":"bytes","optional":false,"field":"value"}]"#.to_owned()),
        Form::DecimalText | Form::Money(DecimalMode::String) => Parts::bare("string"),
        Form::Text => text_parts(base),
        Form::Binary(BinaryMode::Bytes) => Parts::bare("bytes"),
        Form::Binary(_) => Parts::bare("string"),
        Form::Bits { is_varying } => {
            let length = if *is_varying && modifier < 0 { i32::MAX } else { modifier };
            Parts::named("bytes", "io.debezium.data.Bits", 1).parameters(&format!("\"length\":\"{length}\""))
        }
        Form::Temporal(temporal) => temporal_parts(*temporal, settings.time_precision),
        Form::Hstore(HstoreMode::Json) => Parts::named("string", "io.debezium.data.Json", 1),
        Form::Hstore(HstoreMode::Map) => Parts::bare("map").inside(
            r#""keys":{"type":"string","optional":false},"values":{"type":"string","optional":true}"#.to_owned(),
        ),
        Form::Shape(shape) => shape_parts(*shape),
        Form::Spatial => geometry_parts(if base.name == "geography" { "Geography" } else { "Geometry" }),
        Form::Vector { is_half } => {
            let (item, name) = if *is_half { ("float", "FloatVector") } else { ("double", "DoubleVector") };
            Parts::named("array", &format!("io.debezium.data.{name}"), 1)
                .inside(format!("\"items\":{{\"type\":\"{item}\",\"optional\":false}}"))
        }
        Form::Array(element) => {
            let own = base.element.as_deref().unwrap_or(base);
            let items = schema_of(element, own, modifier, true, settings);
            Parts::bare("array").inside(format!("\"items\":{items}}}"))
        }
        Form::Differs(inner) => parts_of(inner, base, modifier, settings),
    }
}

fn text_parts(base: &TypeFacts) -> Parts<'static> {
    match base.oid {
        2950 | 2951 => Parts::named("string", "io.debezium.data.Uuid", 1),
        114 | 199 | 3802 | 3807 => Parts::named("string", "io.debezium.data.Json", 1),
        142 => Parts::named("string", "io.debezium.data.Xml", 1),
        3614 => Parts::named("string", "io.debezium.data.Tsvector", 1),
        _ if base.kind == "e" => {
            let allowed = json(&base.labels.join(","));
            Parts::named("string", "io.debezium.data.Enum", 1).parameters(&format!("\"allowed\":{allowed}"))
        }
        _ if base.name == "ltree" => Parts::named("string", "io.debezium.data.Ltree", 1),
        _ => Parts::bare("string"),
    }
}

fn temporal_parts(temporal: Temporal, precision: TimePrecision) -> Parts<'static> {
    let is_connect = precision == TimePrecision::Connect;
    let debezium = |kind, name: &str| Parts::named(kind, &format!("io.debezium.time.{name}"), 1);
    let connect = |kind, name: &str| Parts::named(kind, &format!("org.apache.kafka.connect.data.{name}"), 1);
    match temporal {
        Temporal::Days if is_connect => connect("int32", "Date"),
        Temporal::Days => debezium("int32", "Date"),
        Temporal::IsoDate => debezium("string", "IsoDate"),
        Temporal::Time(Unit::Millis) if is_connect => connect("int32", "Time"),
        Temporal::Time(Unit::Millis) => debezium("int32", "Time"),
        Temporal::Time(Unit::Micros) => debezium("int64", "MicroTime"),
        Temporal::Time(Unit::Nanos) => debezium("int64", "NanoTime"),
        Temporal::IsoTime => debezium("string", "IsoTime"),
        Temporal::TimeTz => debezium("string", "ZonedTime"),
        Temporal::Timestamp(Unit::Millis) if is_connect => connect("int64", "Timestamp"),
        Temporal::Timestamp(Unit::Millis) => debezium("int64", "Timestamp"),
        Temporal::Timestamp(Unit::Micros) => debezium("int64", "MicroTimestamp"),
        Temporal::Timestamp(Unit::Nanos) => debezium("int64", "NanoTimestamp"),
        Temporal::IsoTimestamp => debezium("string", "IsoTimestamp"),
        Temporal::TimestampTz(_) => debezium("string", "ZonedTimestamp"),
        Temporal::IntervalMicros => debezium("int64", "MicroDuration"),
        Temporal::IntervalIso => debezium("string", "Interval"),
    }
}

const POINT_FIELDS: &str = r#""fields":[{"type":"double","optional":false,"field":"x"},{"type":"double","optional":false,"field":"y"},{"type":"bytes","optional":true,"field":"wkb"},{"type":"int32","optional":true,"field":"srid"}]"#;

fn shape_parts(shape: Shape) -> Parts<'static> {
    let named = |name: &str, doc| Parts::named("struct", &format!("io.debezium.data.geometry.{name}"), 1).doc(doc);
    match shape {
        Shape::Point => named("Point", "Geometry (POINT)").inside(POINT_FIELDS.to_owned()),
        Shape::Circle => named("Circle", "Geometry (CIRCLE)").inside(format!(
            r#""fields":[{{"type":"struct",{POINT_FIELDS},"optional":false,"name":"io.debezium.data.geometry.Point","version":1,"doc":"Geometry (POINT)","field":"center"}},{{"type":"double","optional":false,"field":"radius"}}]"#
        )),
        Shape::Line => named("Line", "Geometry (LINE)").inside(
            r#""fields":[{"type":"double","optional":false,"field":"a"},{"type":"double","optional":false,"field":"b"},{"type":"double","optional":false,"field":"c"}]"#.to_owned(),
        ),
        Shape::Segment | Shape::Box | Shape::Path | Shape::Polygon => geometry_parts("Geometry"),
    }
}

fn geometry_parts(name: &str) -> Parts<'static> {
    Parts::named("struct", &format!("io.debezium.data.geometry.{name}"), 2).doc(if name == "Geometry" { "Geometry" } else { "Geography" }).inside(
        r#""fields":[{"type":"bytes","optional":false,"field":"wkb"},{"type":"int32","optional":true,"field":"srid"},{"type":"map","keys":{"type":"string","optional":false},"values":{"type":"string","optional":false},"optional":true,"field":"extensions"}]"#.to_owned(),
    )
}

/// Schemas of records that are about no table.
#[derive(Clone, Copy, Debug)]
pub(super) struct MetadataSchemas {
    in_key: bool,
    in_value: bool,
    binary: BinaryMode,
}

impl MetadataSchemas {
    pub(super) fn of(settings: &KafkaSink) -> Self {
        Self { in_key: settings.schemas_key, in_value: settings.schemas_value, binary: settings.binary }
    }

    /// Empties the key and begins it with its schema, where that is wanted.
    pub(super) fn open_key(&self, schema: fn(&Self) -> String, out: &mut Vec<u8>) {
        Self::open(self.in_key, || schema(self), out);
    }

    /// The same for the value.
    pub(super) fn open_value(&self, schema: fn(&Self) -> String, out: &mut Vec<u8>) {
        Self::open(self.in_value, || schema(self), out);
    }

    fn open(is_wanted: bool, schema: impl Fn() -> String, out: &mut Vec<u8>) {
        out.clear();
        if is_wanted {
            out.extend_from_slice(format!("{{\"schema\":{},\"payload\":", schema()).as_bytes());
        }
    }

    pub(super) fn close_key(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(if self.in_key { b"}" } else { b"" });
    }

    pub(super) fn close_value(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(if self.in_value { b"}" } else { b"" });
    }

    pub(super) fn transaction_key(&self) -> String {
        r#"{"type":"struct","fields":[{"type":"string","optional":false,"field":"id"}],"optional":false,"name":"io.debezium.connector.common.TransactionMetadataKey","version":1}"#.to_owned()
    }

    pub(super) fn transaction_value(&self) -> String {
        r#"{"type":"struct","fields":[{"type":"string","optional":false,"field":"status"},{"type":"string","optional":false,"field":"id"},{"type":"int64","optional":true,"field":"event_count"},{"type":"array","items":{"type":"struct","fields":[{"type":"string","optional":false,"field":"data_collection"},{"type":"int64","optional":false,"field":"event_count"}],"optional":false,"name":"event.collection","version":1},"optional":true,"field":"data_collections"},{"type":"int64","optional":false,"field":"ts_ms"}],"optional":false,"name":"io.debezium.connector.common.TransactionMetadataValue","version":1}"#.to_owned()
    }

    pub(super) fn message_key(&self) -> String {
        r#"{"type":"struct","fields":[{"type":"string","optional":true,"field":"prefix"}],"optional":false,"name":"io.debezium.connector.postgresql.MessageKey","version":1}"#.to_owned()
    }

    pub(super) fn message_value(&self) -> String {
        let content = if self.binary == BinaryMode::Bytes { "bytes" } else { "string" };
        format!(
            r#"{{"type":"struct","fields":[{{"type":"string","optional":false,"field":"op"}},{{"type":"int64","optional":true,"field":"ts_ms"}},{SOURCE},{TRANSACTION},{{"type":"struct","fields":[{{"type":"string","optional":true,"field":"prefix"}},{{"type":"{content}","optional":true,"field":"content"}}],"optional":false,"name":"io.debezium.connector.postgresql.Message","version":1,"field":"message"}}],"optional":false,"name":"io.debezium.connector.postgresql.MessageValue","version":1}}"#
        )
    }
}
