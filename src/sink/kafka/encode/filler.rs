//! What stands where a value did not come: Debezium's fillers of NOT NULL columns and its placeholders of unchanged large values.
//! Never a value of a row.

use sha2::{Digest as _, Sha256};

use crate::config::KafkaSink;
use crate::config::kafka::{BinaryMode, HstoreMode};

use super::facts::TypeFacts;
use super::form::{Form, Room, numeric_modifier, push_value};
use super::json::{push_base64, push_string};

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
