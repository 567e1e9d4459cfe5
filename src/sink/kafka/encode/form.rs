//! The form that a type's values take, and the writing of one value. Chosen once a table, used for every row.

use crate::config::KafkaSink;
use crate::config::kafka::{BinaryMode, DecimalMode, HstoreMode, IntervalMode, TimePrecision};

use super::composite::{Element, Shape, ShapeRoom, each_element, push_hstore, push_shape};
use super::facts::TypeFacts;
use super::json::{
    Escaping, Fidelity, push_base64, push_base64_url, push_hex, push_integer, push_string, push_string_as,
};
use super::number::{
    NumberRoom, is_special, push_decimal, push_decimal_double, push_float, push_java_decimal, push_variable_decimal,
};
use super::temporal::{Temporal, Unit, push_temporal};

/// Digits of money behind the point, Debezium's default.
const MONEY_SCALE: u32 = 2;

/// How values of a column are written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Boolean,
    /// The digits as they stand.
    Integer,
    Float4,
    Float8,
    Decimal(u32),
    VariableDecimal,
    DecimalText,
    DecimalDouble,
    Money(DecimalMode),
    Text,
    Binary(BinaryMode),
    /// `bit(1)`.
    Bit,
    /// `bit(n)`, and `varbit`, which loses its length.
    Bits {
        is_varying: bool,
    },
    Temporal(Temporal),
    Hstore(HstoreMode),
    Shape(Shape),
    /// PostGIS.
    Spatial,
    /// pgvector.
    Vector {
        is_half: bool,
    },
    Array(Box<Form>),
    /// Debezium sends something wrong here; this is right, and named in `walrelay.lossy` all the same.
    Differs(Box<Form>),
}

/// Buffers that are used again for every value.
#[derive(Clone, Debug, Default)]
pub(super) struct Room {
    pub(super) number: NumberRoom,
    shape: ShapeRoom,
    element: Vec<u8>,
    inner: Vec<u8>,
    bytes: Vec<u8>,
}

/// Type OIDs of `pg_type.dat` that have a form.
mod oid {
    pub(super) const NUMERIC: u32 = 1700;
    /// Element, and its array.
    pub(super) const ARRAYS: &[(u32, u32)] = &[
        (16, 1000),
        (17, 1001),
        (18, 1002),
        (20, 1016),
        (21, 1005),
        (23, 1007),
        (25, 1009),
        (26, 1028),
        (114, 199),
        (650, 651),
        (700, 1021),
        (701, 1022),
        (774, 775),
        (829, 1040),
        (869, 1041),
        (1042, 1014),
        (1043, 1015),
        (1082, 1182),
        (1083, 1183),
        (1114, 1115),
        (1184, 1185),
        (1266, 1270),
        (1700, 1231),
        (2950, 2951),
        (3802, 3807),
        (3904, 3905),
        (3906, 3907),
        (3908, 3909),
        (3910, 3911),
        (3912, 3913),
        (3926, 3927),
    ];
}

/// The element of a built-in array, if Debezium knows the array.
pub(super) fn array_element(array: u32) -> Option<u32> {
    oid::ARRAYS.iter().find(|(_, known)| *known == array).map(|(element, _)| *element)
}

/// The form of a type; `None` for what Debezium drops.
pub(super) fn form_of(facts: &TypeFacts, modifier: i32, settings: &KafkaSink) -> Option<Form> {
    if facts.oid < 16_384
        && let Some(form) = built_in(facts.oid, modifier, settings)
    {
        return Some(form);
    }
    if let Some(element) = array_element(facts.oid) {
        return built_in(element, modifier, settings).map(|form| Form::Array(Box::new(form)));
    }
    if let Some(element) = &facts.element {
        return match (element.kind.as_str(), element.name.as_str()) {
            // Debezium's values are null here.
            ("e", _) => Some(Form::Differs(Box::new(Form::Array(Box::new(Form::Text))))),
            ("b", "hstore" | "citext" | "ltree" | "geometry" | "geography") => {
                form_of(element, -1, settings).map(|form| Form::Array(Box::new(form)))
            }
            _ => None,
        };
    }
    match (facts.kind.as_str(), facts.name.as_str()) {
        ("e", _) => Some(Form::Text),
        ("b", "citext" | "ltree" | "isbn") => Some(Form::Text),
        ("b", "hstore") => Some(Form::Hstore(settings.hstore)),
        ("b", "geometry" | "geography") => Some(Form::Spatial),
        ("b", "vector") => Some(Form::Vector { is_half: false }),
        ("b", "halfvec") => Some(Form::Vector { is_half: true }),
        _ => None,
    }
}

fn built_in(oid: u32, modifier: i32, settings: &KafkaSink) -> Option<Form> {
    Some(match oid {
        16 => Form::Boolean,
        17 => Form::Binary(settings.binary),
        20 | 21 | 23 | 26 => Form::Integer,
        18 | 25 | 114 | 142 | 650 | 774 | 829 | 869 | 1042 | 1043 | 2950 | 3614 | 3802 => Form::Text,
        3904 | 3906 | 3908 | 3910 | 3912 | 3926 => Form::Text,
        19 => Form::Differs(Box::new(Form::Text)),
        600 => Form::Shape(Shape::Point),
        601 => Form::Shape(Shape::Segment),
        602 => Form::Shape(Shape::Path),
        603 => Form::Shape(Shape::Box),
        604 => Form::Shape(Shape::Polygon),
        628 => Form::Shape(Shape::Line),
        718 => Form::Shape(Shape::Circle),
        700 => Form::Float4,
        701 => Form::Float8,
        790 => Form::Money(settings.decimal),
        oid::NUMERIC => numeric(modifier, settings.decimal),
        1560 | 1562 if modifier == 1 => Form::Bit,
        1560 => Form::Bits { is_varying: false },
        1562 => Form::Bits { is_varying: true },
        1186 => Form::Temporal(match settings.interval {
            IntervalMode::Numeric => Temporal::IntervalMicros,
            IntervalMode::String => Temporal::IntervalIso,
        }),
        1082 => Form::Temporal(match settings.time_precision {
            TimePrecision::IsoString => Temporal::IsoDate,
            _ => Temporal::Days,
        }),
        1083 => Form::Temporal(time(modifier, settings.time_precision)),
        1114 => Form::Temporal(timestamp(modifier, settings.time_precision)),
        1184 => Form::Temporal(Temporal::TimestampTz(u8::try_from(modifier).unwrap_or(6).min(6))),
        1266 => Form::Temporal(Temporal::TimeTz),
        _ => return None,
    })
}

/// Precision and scale of `atttypmod`; a scale may be negative since 15 (`numeric_typmod_scale` in `numeric.c`).
pub(super) fn numeric_modifier(modifier: i32) -> Option<(i32, i32)> {
    let bits = modifier.checked_sub(4).filter(|bits| *bits >= 0)?;
    Some((bits >> 16 & 0xFFFF, ((bits & 0x7FF) ^ 1024) - 1024))
}

fn numeric(modifier: i32, mode: DecimalMode) -> Form {
    let scale = numeric_modifier(modifier).map(|(_, scale)| u32::try_from(scale));
    match (mode, scale) {
        // What Debezium makes of a negative scale is no number.
        (_, Some(Err(_))) => Form::Differs(Box::new(Form::DecimalText)),
        (DecimalMode::String, _) => Form::DecimalText,
        (DecimalMode::Double, _) => Form::DecimalDouble,
        (DecimalMode::Precise, Some(Ok(scale))) => Form::Decimal(scale),
        (DecimalMode::Precise, None) => Form::VariableDecimal,
    }
}

fn time(modifier: i32, precision: TimePrecision) -> Temporal {
    match precision {
        TimePrecision::Adaptive if (0..=3).contains(&modifier) => Temporal::Time(Unit::Millis),
        TimePrecision::Connect => Temporal::Time(Unit::Millis),
        TimePrecision::Nanoseconds => Temporal::Time(Unit::Nanos),
        TimePrecision::IsoString => Temporal::IsoTime,
        TimePrecision::Adaptive | TimePrecision::AdaptiveTimeMicroseconds | TimePrecision::Microseconds => {
            Temporal::Time(Unit::Micros)
        }
    }
}

fn timestamp(modifier: i32, precision: TimePrecision) -> Temporal {
    let is_coarse = (0..=3).contains(&modifier);
    match precision {
        TimePrecision::Adaptive | TimePrecision::AdaptiveTimeMicroseconds if is_coarse => {
            Temporal::Timestamp(Unit::Millis)
        }
        TimePrecision::Connect => Temporal::Timestamp(Unit::Millis),
        TimePrecision::Nanoseconds => Temporal::Timestamp(Unit::Nanos),
        TimePrecision::IsoString => Temporal::IsoTimestamp,
        TimePrecision::Adaptive | TimePrecision::AdaptiveTimeMicroseconds | TimePrecision::Microseconds => {
            Temporal::Timestamp(Unit::Micros)
        }
    }
}

/// Writes one value that is not NULL.
#[inline]
pub(super) fn push_value(form: &Form, text: &[u8], room: &mut Room, out: &mut Vec<u8>) -> Fidelity {
    match form {
        Form::Integer => push_digits(text, out),
        Form::Text => push_string(text, out),
        _ => push_other(form, text, room, out),
    }
}

fn push_other(form: &Form, text: &[u8], room: &mut Room, out: &mut Vec<u8>) -> Fidelity {
    match form {
        Form::Integer => push_digits(text, out),
        Form::Text => push_string(text, out),
        Form::Boolean => push_truth(text == b"t", out),
        Form::Float4 => push_float(text, true, &mut room.number, out),
        Form::Float8 => push_float(text, false, &mut room.number, out),
        Form::Decimal(scale) => push_decimal(text, *scale, &mut room.number, out),
        Form::VariableDecimal => push_variable_decimal(text, &mut room.number, out),
        Form::DecimalText => push_string(special_name(text).unwrap_or(text), out),
        Form::DecimalDouble => push_decimal_double(text, &mut room.number, out),
        Form::Money(mode) => push_money(*mode, text, room, out),
        Form::Binary(mode) => push_binary(*mode, text, &mut room.bytes, out),
        Form::Bit => push_truth(text.contains(&b'1'), out),
        Form::Bits { is_varying } => {
            push_bits(text, &mut room.bytes, out);
            if *is_varying { Fidelity::Lossy } else { Fidelity::Exact }
        }
        Form::Temporal(temporal) => push_temporal(*temporal, text, out),
        Form::Hstore(mode) => push_hstore(*mode, text, &mut room.element, &mut room.inner, out),
        Form::Shape(shape) => push_shape(*shape, text, &mut room.shape, &mut room.number, out),
        Form::Spatial => push_spatial(text, &mut room.bytes, out),
        Form::Vector { is_half } => push_vector(*is_half, text, room, out),
        Form::Array(element) => push_array(element, text, room, out),
        Form::Differs(inner) => {
            let _ = push_other(inner, text, room, out);
            Fidelity::Lossy
        }
    }
}

fn push_null(out: &mut Vec<u8>) -> Fidelity {
    out.extend_from_slice(b"null");
    Fidelity::Lossy
}

fn push_digits(text: &[u8], out: &mut Vec<u8>) -> Fidelity {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return push_null(out);
    }
    out.extend_from_slice(text);
    Fidelity::Exact
}

fn push_truth(is_true: bool, out: &mut Vec<u8>) -> Fidelity {
    out.extend_from_slice(if is_true { b"true" } else { b"false" });
    Fidelity::Exact
}

/// Debezium's words for what is no number.
fn special_name(text: &[u8]) -> Option<&'static [u8]> {
    Some(match text {
        b"NaN" => b"NAN",
        b"Infinity" => b"POSITIVE_INFINITY",
        b"-Infinity" => b"NEGATIVE_INFINITY",
        _ => return None,
    })
}

/// `-$1,234.50`: the session's `lc_monetary` is C; the last two digits stand behind the point.
fn push_money(mode: DecimalMode, text: &[u8], room: &mut Room, out: &mut Vec<u8>) -> Fidelity {
    let mut plain = std::mem::take(&mut room.element);
    plain.clear();
    if text.iter().any(|byte| matches!(byte, b'-' | b'(')) {
        plain.push(b'-');
    }
    plain.extend(text.iter().copied().filter(|byte| byte.is_ascii_digit() || *byte == b'.'));
    let fidelity = match mode {
        DecimalMode::Precise => push_decimal(&plain, MONEY_SCALE, &mut room.number, out),
        DecimalMode::String => push_string(&plain, out),
        DecimalMode::Double => push_decimal_double(&plain, &mut room.number, out),
    };
    room.element = plain;
    fidelity
}

/// `\xdeadbeef`.
fn push_binary(mode: BinaryMode, text: &[u8], bytes: &mut Vec<u8>, out: &mut Vec<u8>) -> Fidelity {
    if !decode_hex(text.strip_prefix(b"\\x").unwrap_or(b"?"), bytes) {
        return push_null(out);
    }
    push_bytes(mode, bytes, out);
    Fidelity::Exact
}

/// Bytes in the form of the mode.
pub(super) fn push_bytes(mode: BinaryMode, bytes: &[u8], out: &mut Vec<u8>) {
    match mode {
        BinaryMode::Bytes | BinaryMode::Base64 => push_base64(bytes, out),
        BinaryMode::Base64UrlSafe => push_base64_url(bytes, out),
        BinaryMode::Hex => push_hex(bytes, out),
    }
}

/// The bytes of hexadecimal digits; false where the text is anything else.
pub(super) fn decode_hex(text: &[u8], bytes: &mut Vec<u8>) -> bool {
    bytes.clear();
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    let (pairs, rest) = text.as_chunks::<2>();
    for [high, low] in pairs {
        match (digit(*high), digit(*low)) {
            (Some(high), Some(low)) => bytes.push(high << 4 | low),
            _ => return false,
        }
    }
    rest.is_empty()
}

/// The last bit is the lowest of the first byte; zero bytes at the end are dropped.
fn push_bits(text: &[u8], bytes: &mut Vec<u8>, out: &mut Vec<u8>) {
    bytes.clear();
    for group in text.rchunks(8) {
        bytes.push(group.iter().fold(0, |byte, bit| byte << 1 | u8::from(*bit == b'1')));
    }
    while bytes.last() == Some(&0) {
        bytes.pop();
    }
    push_base64(bytes, out);
}

/// PostGIS prints its own binary form in hexadecimal digits; the fifth byte's flag says that an SRID follows.
fn push_spatial(text: &[u8], bytes: &mut Vec<u8>, out: &mut Vec<u8>) -> Fidelity {
    const HAS_SRID: u32 = 0x2000_0000;
    if !decode_hex(text, bytes) {
        return push_null(out);
    }
    let word = |at: usize| {
        let word = bytes.get(at..).and_then(<[u8]>::first_chunk::<4>)?;
        Some(if bytes.first() == Some(&1) { u32::from_le_bytes(*word) } else { u32::from_be_bytes(*word) })
    };
    let srid = word(1).filter(|kind| kind & HAS_SRID != 0).and_then(|_| word(5));
    out.extend_from_slice(b"{\"wkb\":");
    push_base64(bytes, out);
    out.extend_from_slice(b",\"srid\":");
    match srid {
        Some(srid) => push_integer(srid, out),
        None => out.extend_from_slice(b"null"),
    }
    out.extend_from_slice(b",\"extensions\":null}");
    Fidelity::Exact
}

/// `[1,2.5,3]`.
fn push_vector(is_half: bool, text: &[u8], room: &mut Room, out: &mut Vec<u8>) -> Fidelity {
    let mut fidelity = Fidelity::Exact;
    let inner = text.strip_prefix(b"[").and_then(|text| text.strip_suffix(b"]")).unwrap_or(b"");
    out.push(b'[');
    for (at, number) in inner.split(|byte| *byte == b',').filter(|number| !number.is_empty()).enumerate() {
        if at > 0 {
            out.push(b',');
        }
        fidelity = fidelity | push_float(number, is_half, &mut room.number, out);
    }
    out.push(b']');
    fidelity
}

/// Of more dimensions than one, texts stay right as array literals; everything else is null, as Debezium has it.
fn push_array(form: &Form, text: &[u8], room: &mut Room, out: &mut Vec<u8>) -> Fidelity {
    let start = out.len();
    let mut element_room = std::mem::take(&mut room.inner);
    let mut fidelity = Fidelity::Exact;
    out.push(b'[');
    // PostGIS says `delimiter = ':'` of its types.
    let delimiter = if *form == Form::Spatial { b':' } else { b',' };
    let bounds = each_element(text, delimiter, &mut element_room, |element| {
        if out.last() != Some(&b'[') || out.len() > start + 1 {
            out.push(b',');
        }
        match element {
            Element::Null => out.extend_from_slice(b"null"),
            Element::Text(text) => fidelity = fidelity | push_value(form, text, room, out),
            Element::Nested(text) => {
                if *form == Form::Text {
                    let _ = push_string(text, out);
                } else {
                    out.extend_from_slice(b"null");
                }
                fidelity = Fidelity::Lossy;
            }
        }
    });
    room.inner = element_room;
    match bounds {
        Some(bounds) => {
            out.push(b']');
            bounds | fidelity
        }
        None => {
            out.truncate(start);
            push_null(out)
        }
    }
}

/// A value in the header of a changed key: decimals as numbers, what is no number bare, texts hardly escaped.
pub(super) fn push_header_value(form: &Form, text: &[u8], room: &mut Room, out: &mut Vec<u8>) {
    let _ = match form {
        Form::Text | Form::DecimalText => push_string_as(
            special_name(text).filter(|_| *form == Form::DecimalText).unwrap_or(text),
            Escaping::Header,
            out,
        ),
        Form::Decimal(_) if !is_special(text) => {
            push_java_decimal(text, out);
            Fidelity::Exact
        }
        Form::Float4 | Form::Float8 | Form::DecimalDouble if is_special(text) => {
            out.extend_from_slice(text);
            Fidelity::Exact
        }
        _ => push_value(form, text, room, out),
    };
}
