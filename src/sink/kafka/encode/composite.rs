//! Values that have parts: arrays, hstore, geometric types. From Postgres' text to Debezium's JSON, without a tree.

use super::json::{Escaping, Fidelity, push_base64, push_string, push_string_as};
use super::number::{NumberRoom, push_double};
use crate::config::kafka::HstoreMode;

/// One element of an array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Element<'a> {
    Null,
    /// Quotation marks and escapes taken away.
    Text(&'a [u8]),
    /// An array itself, as it stands.
    Nested(&'a [u8]),
}

/// Walks the elements of `{1,NULL,"a b"}`; `None` for a text that is no array. `room` holds what had to be unescaped; `delimiter`
/// stands between elements where that is not the comma (`typdelim`). Says whether the bounds are those that every reader assumes.
pub(super) fn each_element(
    text: &[u8],
    delimiter: u8,
    room: &mut Vec<u8>,
    mut visit: impl FnMut(Element<'_>),
) -> Option<Fidelity> {
    // `[0:2]={…}`: JSON arrays have no bounds of their own.
    let (bounds, body) = match text.first() {
        Some(b'[') => (Fidelity::Lossy, text.splitn(2, |byte| *byte == b'=').nth(1)?),
        _ => (Fidelity::Exact, text),
    };
    let mut rest = body.strip_prefix(b"{")?;
    if rest == b"}" {
        return Some(bounds);
    }
    loop {
        rest = match rest.first()? {
            b'{' => {
                let length = nested_length(rest)?;
                visit(Element::Nested(rest.get(..length)?));
                rest.get(length..)?
            }
            b'"' => {
                let behind = unquote(rest, room)?;
                visit(Element::Text(room));
                behind
            }
            _ => {
                let behind = unescape(rest, delimiter, room)?;
                visit(if room.eq_ignore_ascii_case(b"NULL") { Element::Null } else { Element::Text(room) });
                behind
            }
        };
        match rest {
            [b'}'] => return Some(bounds),
            [byte, more @ ..] if is_between(*byte, delimiter) => rest = more,
            _ => return None,
        }
    }
}

fn is_between(byte: u8, delimiter: u8) -> bool {
    byte == b',' || byte == delimiter
}

/// Length of `{…}` at the beginning, with braces inside.
fn nested_length(text: &[u8]) -> Option<usize> {
    let (mut depth, mut is_quoted, mut is_escaped) = (0usize, false, false);
    for (at, byte) in text.iter().enumerate() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = true,
            b'"' => is_quoted = !is_quoted,
            b'{' if !is_quoted => depth += 1,
            b'}' if !is_quoted => {
                depth = depth.checked_sub(1)?;
                if depth == 0 {
                    return Some(at + 1);
                }
            }
            _ => {}
        }
    }
    None
}

/// The content of `"…"` with its escapes resolved; returns what stands behind.
fn unquote<'a>(text: &'a [u8], room: &mut Vec<u8>) -> Option<&'a [u8]> {
    room.clear();
    let mut bytes = text.iter().enumerate().skip(1);
    while let Some((at, byte)) = bytes.next() {
        match byte {
            b'"' => return text.get(at + 1..),
            b'\\' => room.push(*bytes.next()?.1),
            byte => room.push(*byte),
        }
    }
    None
}

/// An element without quotation marks.
fn unescape<'a>(text: &'a [u8], delimiter: u8, room: &mut Vec<u8>) -> Option<&'a [u8]> {
    room.clear();
    let mut bytes = text.iter().enumerate();
    while let Some((at, byte)) = bytes.next() {
        match byte {
            b'}' => return text.get(at..),
            byte if is_between(*byte, delimiter) => return text.get(at..),
            b'\\' => room.push(*bytes.next()?.1),
            byte => room.push(*byte),
        }
    }
    None
}

/// `"k"=>"v", "n"=>NULL` as an object, or as a text that holds one.
pub(super) fn push_hstore(
    mode: HstoreMode,
    text: &[u8],
    room: &mut Vec<u8>,
    inner: &mut Vec<u8>,
    out: &mut Vec<u8>,
) -> Fidelity {
    let start = out.len();
    let fidelity = match mode {
        HstoreMode::Map => push_pairs(text, Escaping::Converter, room, out),
        HstoreMode::Json => {
            inner.clear();
            push_pairs(text, Escaping::Characters, room, inner).map(|fidelity| fidelity | push_string(inner, out))
        }
    };
    fidelity.unwrap_or_else(|| {
        out.truncate(start);
        out.extend_from_slice(b"null");
        Fidelity::Lossy
    })
}

fn push_pairs(text: &[u8], escaping: Escaping, room: &mut Vec<u8>, out: &mut Vec<u8>) -> Option<Fidelity> {
    let mut fidelity = Fidelity::Exact;
    let mut rest = text;
    out.push(b'{');
    while !rest.is_empty() {
        rest = unquote(rest.starts_with(b"\"").then_some(rest)?, room)?;
        fidelity = fidelity | push_string_as(room, escaping, out);
        out.push(b':');
        rest = rest.strip_prefix(b"=>")?;
        rest = match rest.strip_prefix(b"NULL") {
            Some(behind) => {
                out.extend_from_slice(b"null");
                behind
            }
            None => {
                let behind = unquote(rest.starts_with(b"\"").then_some(rest)?, room)?;
                fidelity = fidelity | push_string_as(room, escaping, out);
                behind
            }
        };
        if let Some(more) = rest.strip_prefix(b", ") {
            out.push(b',');
            rest = more;
        }
    }
    out.push(b'}');
    Some(fidelity)
}

/// A geometric type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    Point,
    Segment,
    Box,
    Path,
    Polygon,
    Circle,
    Line,
}

/// Buffers of a geometric value.
#[derive(Clone, Debug, Default)]
pub(super) struct ShapeRoom {
    numbers: Vec<f64>,
    bytes: Vec<u8>,
}

const LINE_STRING: u32 = 2;
const POLYGON: u32 = 3;

/// Writes a geometric value.
pub(super) fn push_shape(
    shape: Shape,
    text: &[u8],
    room: &mut ShapeRoom,
    number: &mut NumberRoom,
    out: &mut Vec<u8>,
) -> Fidelity {
    room.numbers.clear();
    let words = text.split(|byte| matches!(byte, b'(' | b')' | b'[' | b']' | b'<' | b'>' | b'{' | b'}' | b','));
    for word in words.filter(|word| !word.is_empty()) {
        room.numbers.extend(std::str::from_utf8(word).ok().and_then(|word| word.parse::<f64>().ok()));
    }
    let is_closed = text.first() != Some(&b'[');
    match (shape, room.numbers.as_slice()) {
        (Shape::Point, &[x, y]) => push_point(x, y, &mut room.bytes, number, out),
        (Shape::Circle, &[x, y, radius]) => {
            out.extend_from_slice(b"{\"center\":");
            push_point(x, y, &mut room.bytes, number, out);
            out.extend_from_slice(b",\"radius\":");
            push_double(radius, number, out);
            out.push(b'}');
        }
        (Shape::Line, &[a, b, c]) => {
            for (label, value) in [(&b"{\"a\":"[..], a), (b",\"b\":", b), (b",\"c\":", c)] {
                out.extend_from_slice(label);
                push_double(value, number, out);
            }
            out.push(b'}');
        }
        (Shape::Segment, &[_, _, _, _]) => {
            push_geometry(LINE_STRING, room, r#"{"type":"lseg"}"#, out);
        }
        (Shape::Box, &[x1, y1, x2, y2]) => {
            room.numbers.clear();
            room.numbers.extend([x1, y1, x1, y2, x2, y2, x2, y1, x1, y1]);
            push_geometry(POLYGON, room, r#"{"type":"box"}"#, out);
        }
        (Shape::Path, numbers) if numbers.len() >= 2 => {
            let extensions =
                if is_closed { r#"{"type":"path","closed":"true"}"# } else { r#"{"type":"path","closed":"false"}"# };
            push_geometry(LINE_STRING, room, extensions, out);
        }
        (Shape::Polygon, &[x, y, .., last_x, last_y]) => {
            if x != last_x || y != last_y {
                room.numbers.extend([x, y]);
            }
            push_geometry(POLYGON, room, r#"{"type":"polygon"}"#, out);
        }
        _ => {
            out.extend_from_slice(b"null");
            return Fidelity::Lossy;
        }
    }
    Fidelity::Exact
}

/// `{"x":…,"y":…,"wkb":…,"srid":null}`.
pub(super) fn push_point(x: f64, y: f64, bytes: &mut Vec<u8>, number: &mut NumberRoom, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"x\":");
    push_double(x, number, out);
    out.extend_from_slice(b",\"y\":");
    push_double(y, number, out);
    bytes.clear();
    bytes.extend_from_slice(&[1, 1, 0, 0, 0]);
    bytes.extend_from_slice(&x.to_le_bytes());
    bytes.extend_from_slice(&y.to_le_bytes());
    out.extend_from_slice(b",\"wkb\":");
    push_base64(bytes, out);
    out.extend_from_slice(b",\"srid\":null}");
}

/// Well-known binary of a line or of one ring, little-endian, with what it cannot say in `extensions`.
fn push_geometry(kind: u32, room: &mut ShapeRoom, extensions: &str, out: &mut Vec<u8>) {
    room.bytes.clear();
    room.bytes.push(1);
    room.bytes.extend_from_slice(&kind.to_le_bytes());
    if kind == POLYGON {
        room.bytes.extend_from_slice(&1u32.to_le_bytes());
    }
    room.bytes.extend_from_slice(&((room.numbers.len() / 2) as u32).to_le_bytes());
    for number in &room.numbers {
        room.bytes.extend_from_slice(&number.to_le_bytes());
    }
    out.extend_from_slice(b"{\"wkb\":");
    push_base64(&room.bytes, out);
    out.extend_from_slice(b",\"srid\":null,\"extensions\":");
    out.extend_from_slice(extensions.as_bytes());
    out.push(b'}');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elements(text: &str) -> Option<(Vec<String>, Fidelity)> {
        elements_between(text, b',')
    }

    fn elements_between(text: &str, delimiter: u8) -> Option<(Vec<String>, Fidelity)> {
        let mut found = Vec::new();
        let fidelity = each_element(text.as_bytes(), delimiter, &mut Vec::new(), |element| {
            found.push(match element {
                Element::Null => "NULL".to_owned(),
                Element::Text(text) => format!("'{}'", String::from_utf8_lossy(text)),
                Element::Nested(text) => String::from_utf8_lossy(text).into_owned(),
            });
        })?;
        Some((found, fidelity))
    }

    #[test]
    fn an_array_is_taken_apart() {
        for (text, expected) in [
            ("{}", &[][..]),
            ("{1,NULL,3}", &["'1'", "NULL", "'3'"]),
            (r#"{a,"b c","NULL","q\"\\"}"#, &["'a'", "'b c'", "'NULL'", "'q\"\\'"]),
            (r#"{{1,2},{"}",4}}"#, &["{1,2}", r#"{"}",4}"#]),
            (r#"{""}"#, &["''"]),
        ] {
            let (found, fidelity) = elements(text).unwrap();
            assert_eq!(
                (found.iter().map(String::as_str).collect::<Vec<_>>().as_slice(), fidelity),
                (expected, Fidelity::Exact)
            );
        }
        assert_eq!(elements("[0:1]={1,2}").unwrap().1, Fidelity::Lossy);
        for text in ["", "1", "{1", "{1,2}x", "{\"a}", "{{1}"] {
            assert_eq!(elements(text), None, "{text}");
        }
    }

    #[test]
    fn a_type_may_have_a_delimiter_of_its_own() {
        for (text, expected) in [
            ("{01:NULL:02}", &["'01'", "NULL", "'02'"][..]),
            ("{{01:02}:{03:04}}", &["{01:02}", "{03:04}"]),
            ("{\"a:b\":c}", &["'a:b'", "'c'"]),
        ] {
            assert_eq!(elements_between(text, b':').unwrap().0, expected, "{text}");
        }
        assert_eq!(elements("{01:02}").unwrap().0, ["'01:02'"]);
    }

    #[test]
    fn hstore_is_an_object_or_a_text_that_holds_one() {
        for (mode, text, expected) in [
            (HstoreMode::Json, r#""k"=>"v", "n"=>NULL"#, r#""{\"k\":\"v\",\"n\":null}""#),
            (HstoreMode::Map, r#""k"=>"v", "n"=>NULL"#, r#"{"k":"v","n":null}"#),
            (HstoreMode::Json, "", r#""{}""#),
            (HstoreMode::Json, r#""q\"\\"=>"😀""#, "\"{\\\"q\\\\\\\"\\\\\\\\\\\":\\\"\\uD83D\\uDE00\\\"}\""),
            (HstoreMode::Map, "k=>v", "null"),
        ] {
            let mut out = Vec::new();
            let _ = push_hstore(mode, text.as_bytes(), &mut Vec::new(), &mut Vec::new(), &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn a_point_has_its_numbers_and_its_binary_form() {
        let mut out = Vec::new();
        let (mut room, mut number) = (ShapeRoom::default(), NumberRoom::default());
        let _ = push_shape(Shape::Point, b"(1.5,-2)", &mut room, &mut number, &mut out);
        let expected = r#"{"x":1.5,"y":-2.0,"wkb":"AQEAAAAAAAAAAAD4PwAAAAAAAADA","srid":null}"#;
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn shapes_have_geometries() {
        for (shape, text, parts) in [
            (Shape::Segment, "[(0,0),(1,0)]", &["{\"wkb\":\"AQIAAAACAAAA", "\"extensions\":{\"type\":\"lseg\"}"][..]),
            (Shape::Box, "(1,1),(0,0)", &["{\"wkb\":\"AQMAAAABAAAABQAAA", "{\"type\":\"box\"}"]),
            (Shape::Path, "[(0,0),(1,0)]", &["{\"type\":\"path\",\"closed\":\"false\"}"]),
            (Shape::Path, "((0,0),(1,0))", &["{\"type\":\"path\",\"closed\":\"true\"}"]),
            (Shape::Polygon, "((0,0),(1,0),(0,1))", &["{\"wkb\":\"AQMAAAABAAAABAAAA", "{\"type\":\"polygon\"}"]),
            (Shape::Circle, "<(1,2),3>", &["{\"center\":{\"x\":1.0,\"y\":2.0,", "\"radius\":3.0}"]),
            (Shape::Line, "{1,-1,0.5}", &["{\"a\":1.0,\"b\":-1.0,\"c\":0.5}"]),
            (Shape::Point, "()", &["null"]),
        ] {
            let mut out = Vec::new();
            let (mut room, mut number) = (ShapeRoom::default(), NumberRoom::default());
            let _ = push_shape(shape, text.as_bytes(), &mut room, &mut number, &mut out);
            let json = String::from_utf8(out).unwrap();
            assert!(parts.iter().all(|part| json.contains(part)), "{text}: {json}");
        }
    }
}
