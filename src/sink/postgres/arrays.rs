//! Many values of one column, or many rows, as an array parameter, and rows for COPY: the bytes as they were received, escaped
//! where they are text. Pure; knows no tables and sends nothing.

use bytes::{BufMut, BytesMut};

use crate::decode::Value;

/// Values of one column came in two forms, which one array cannot hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MixedForms;

/// An array parameter under way.
#[derive(Debug, Default)]
pub(super) struct ArrayParameter {
    bytes: BytesMut,
    delimiter: u8,
    element_type: u32,
    count: u32,
    is_binary: bool,
    has_value: bool,
    has_null: bool,
}

/// Of a binary array of one dimension: dimensions, whether it has NULLs, element type, length, lower bound.
const BINARY_HEADER_BYTES: usize = 20;

impl ArrayParameter {
    /// Begins anew.
    pub(super) fn start(&mut self, delimiter: char, element_type: u32) {
        let bytes = std::mem::take(&mut self.bytes);
        *self = Self { bytes, delimiter: u8::try_from(delimiter).unwrap_or(b','), element_type, ..Self::default() };
        self.bytes.clear();
    }

    /// Appends a value; `Unchanged` stands for one that is not looked at.
    #[inline]
    pub(super) fn push(&mut self, value: Value<'_>) -> Result<(), MixedForms> {
        match value {
            Value::Null | Value::Unchanged => self.has_null = true,
            Value::Text(_) if self.is_binary => return Err(MixedForms),
            Value::Text(bytes) => {
                self.has_value = true;
                self.separate();
                push_element(bytes, self.delimiter, &mut self.bytes);
                self.count += 1;
                return Ok(());
            }
            Value::Binary(bytes) => {
                self.begin_binary()?;
                self.bytes.put_u32(bytes.len() as u32);
                self.bytes.put_slice(bytes);
                self.count += 1;
                return Ok(());
            }
        }
        if self.is_binary {
            self.bytes.put_i32(-1);
        } else {
            self.separate();
            self.bytes.put_slice(b"NULL");
        }
        self.count += 1;
        Ok(())
    }

    /// Appends a row in binary form: for each column of its type the type's OID and the value.
    pub(super) fn push_row<'v>(
        &mut self,
        columns: impl ExactSizeIterator<Item = (u32, Value<'v>)>,
    ) -> Result<(), MixedForms> {
        self.begin_binary()?;
        let start = self.bytes.len();
        self.bytes.put_u32(0);
        self.bytes.put_u32(columns.len() as u32);
        for (type_oid, value) in columns {
            self.bytes.put_u32(type_oid);
            push_binary(value, &mut self.bytes)?;
        }
        let length = (self.bytes.len() - start - 4) as u32;
        self.bytes[start..start + 4].copy_from_slice(&length.to_be_bytes());
        self.count += 1;
        Ok(())
    }

    fn separate(&mut self) {
        self.bytes.put_u8(if self.count == 0 { b'{' } else { self.delimiter });
    }

    /// The first value tells the form: NULLs before it are written again.
    fn begin_binary(&mut self) -> Result<(), MixedForms> {
        if self.is_binary {
            return Ok(());
        }
        if self.has_value {
            return Err(MixedForms);
        }
        self.is_binary = true;
        self.has_value = true;
        self.bytes.clear();
        self.bytes.put_bytes(0, BINARY_HEADER_BYTES);
        (0..self.count).for_each(|_| self.bytes.put_i32(-1));
        Ok(())
    }

    /// The finished parameter.
    pub(super) fn finish(&mut self) -> Value<'_> {
        if self.is_binary {
            let header = [1, u32::from(self.has_null), self.element_type, self.count, 1];
            for (place, number) in self.bytes.chunks_exact_mut(4).zip(header) {
                place.copy_from_slice(&number.to_be_bytes());
            }
            return Value::Binary(&self.bytes);
        }
        if self.count == 0 {
            self.bytes.put_u8(b'{');
        }
        self.bytes.put_u8(b'}');
        Value::Text(&self.bytes)
    }
}

/// An element of an array's text form: quoted unless it is certain to mean itself.
fn push_element(bytes: &[u8], delimiter: u8, out: &mut BytesMut) {
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'+' | b':' | b'_');
    if bytes.is_empty() || bytes.len() == 4 && bytes.eq_ignore_ascii_case(b"null") || !bytes.iter().all(is_plain) {
        out.reserve(bytes.len() + 2);
        out.put_u8(b'"');
        let mut rest = bytes;
        while let Some(at) = memchr::memchr2(b'"', b'\\', rest) {
            out.put_slice(&rest[..at]);
            out.put_slice(&[b'\\', rest[at]]);
            rest = &rest[at + 1..];
        }
        out.put_slice(rest);
        out.put_u8(b'"');
    } else {
        debug_assert!(!is_plain(&delimiter));
        out.put_slice(bytes);
    }
}

/// A length and the bytes; NULL for what is not looked at.
fn push_binary(value: Value<'_>, out: &mut BytesMut) -> Result<(), MixedForms> {
    match value {
        Value::Binary(bytes) => {
            out.put_u32(bytes.len() as u32);
            out.put_slice(bytes);
        }
        Value::Null | Value::Unchanged => out.put_i32(-1),
        Value::Text(_) => return Err(MixedForms),
    }
    Ok(())
}

/// What stands before the rows in COPY's binary format: its signature, no flags, no extension.
pub(super) const COPY_BINARY_HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// And what stands behind them.
pub(super) const COPY_BINARY_END: &[u8] = b"\xff\xff";

/// Appends a row in COPY's binary format.
pub(super) fn push_binary_copy_row(values: &[Value<'_>], out: &mut BytesMut) -> Result<(), MixedForms> {
    out.put_u16(values.len() as u16);
    for value in values {
        if *value == Value::Unchanged {
            return Err(MixedForms);
        }
        push_binary(*value, out)?;
    }
    Ok(())
}

/// Appends a row in COPY's text format.
pub(super) fn push_copy_row<'a>(values: impl Iterator<Item = Value<'a>>, out: &mut BytesMut) -> Result<(), MixedForms> {
    for (at, value) in values.enumerate() {
        if at > 0 {
            out.put_u8(b'\t');
        }
        match value {
            Value::Text(bytes) => push_copy_value(bytes, out),
            Value::Null => out.put_slice(b"\\N"),
            Value::Binary(_) | Value::Unchanged => return Err(MixedForms),
        }
    }
    out.put_u8(b'\n');
    Ok(())
}

fn push_copy_value(bytes: &[u8], out: &mut BytesMut) {
    let is_special = |byte: &u8| matches!(byte, b'\\' | b'\n' | b'\r' | b'\t');
    let mut rest = bytes;
    while let Some(at) = rest.iter().position(is_special) {
        out.put_slice(&rest[..at]);
        let escaped = match rest[at] {
            b'\n' => b'n',
            b'\r' => b'r',
            b'\t' => b't',
            byte => byte,
        };
        out.put_slice(&[b'\\', escaped]);
        rest = &rest[at + 1..];
    }
    out.put_slice(rest);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(values: &[Value<'_>], expected: Result<Value<'_>, MixedForms>) {
        let mut array = ArrayParameter::default();
        for _ in 0..2 {
            array.start(',', 23);
            let pushed = values.iter().try_for_each(|value| array.push(*value));
            assert_eq!(pushed.map(|()| array.finish()), expected);
        }
    }

    #[test]
    fn an_array_holds_the_values_as_they_came() {
        use Value::{Binary, Null, Text, Unchanged};
        check(&[], Ok(Text(b"{}")));
        check(&[Text(b"1"), Null, Text(b"-2.5e+3"), Unchanged], Ok(Text(b"{1,NULL,-2.5e+3,NULL}")));
        let odd = [Text(b""), Text(b"NuLL"), Text(b"a b"), Text(b"\"\\"), Text(b"{,}"), Text("ü".as_bytes())];
        check(&odd, Ok(Text("{\"\",\"NuLL\",\"a b\",\"\\\"\\\\\",\"{,}\",\"ü\"}".as_bytes())));
        check(&[Null], Ok(Text(b"{NULL}")));
        let binary = b"\0\0\0\x01\0\0\0\x01\0\0\0\x17\0\0\0\x03\0\0\0\x01\xff\xff\xff\xff\0\0\0\x02ab\xff\xff\xff\xff";
        check(&[Null, Binary(b"ab"), Null], Ok(Binary(binary)));
        check(&[Text(b"1"), Binary(b"ab")], Err(MixedForms));
        check(&[Binary(b"ab"), Text(b"1")], Err(MixedForms));
    }

    #[test]
    fn rows_travel_with_the_types_of_their_columns() {
        let mut array = ArrayParameter::default();
        array.start(',', 300);
        array.push_row([(23, Value::Binary(b"ab")), (25, Value::Null)].into_iter()).unwrap();
        let expected = b"\0\0\0\x01\0\0\0\0\0\0\x01\x2c\0\0\0\x01\0\0\0\x01\0\0\0\x16\0\0\0\x02\
            \0\0\0\x17\0\0\0\x02ab\0\0\0\x19\xff\xff\xff\xff";
        assert_eq!(array.finish(), Value::Binary(expected));
        assert_eq!(array.push_row([(23, Value::Text(b"1"))].into_iter()), Err(MixedForms));
    }

    #[test]
    fn a_binary_copy_row_has_its_lengths() {
        use Value::{Binary, Null, Text, Unchanged};
        for (values, expected) in [
            (&[Binary(b"ab"), Null][..], Ok(&b"\0\x02\0\0\0\x02ab\xff\xff\xff\xff"[..])),
            (&[], Ok(b"\0\0")),
            (&[Text(b"a")], Err(MixedForms)),
            (&[Unchanged], Err(MixedForms)),
        ] {
            let mut out = BytesMut::new();
            assert_eq!(push_binary_copy_row(values, &mut out).map(|()| &out[..]), expected);
        }
        assert_eq!(COPY_BINARY_HEADER.len(), 19);
    }

    #[test]
    fn a_copy_row_is_escaped() {
        use Value::{Binary, Null, Text};
        for (values, expected) in [
            (&[Text(b"a"), Null, Text(b"")][..], Ok(&b"a\t\\N\t\n"[..])),
            (&[Text(b"\\N\t\r\n\\")], Ok(b"\\\\N\\t\\r\\n\\\\\n")),
            (&[], Ok(b"\n")),
            (&[Binary(b"a")], Err(MixedForms)),
        ] {
            let mut out = BytesMut::new();
            let pushed = push_copy_row(values.iter().copied(), &mut out);
            assert_eq!(pushed.map(|()| &out[..]), expected);
        }
    }
}
