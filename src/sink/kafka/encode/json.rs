//! JSON as Kafka Connect's JsonConverter writes it, byte for byte, straight into a buffer. Parses nothing and builds no tree.

use std::ops::BitOr;

use base64::engine::general_purpose::{STANDARD, URL_SAFE};

/// Whether a consumer can tell the value from what was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum Fidelity {
    Exact,
    /// The form cannot hold the value: its column is named in `walrelay.lossy`.
    Lossy,
}

impl BitOr for Fidelity {
    type Output = Fidelity;

    fn bitor(self, other: Fidelity) -> Fidelity {
        if self == Fidelity::Exact { other } else { Fidelity::Lossy }
    }
}

/// How a text is escaped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Escaping {
    /// As Jackson writes bytes: characters above U+FFFF as two escapes in upper case.
    Converter,
    /// As Jackson writes characters: those above U+FFFF stand raw.
    Characters,
    /// As SimpleHeaderConverter does: only the quotation mark and the backslash.
    Header,
}

/// `"text"`. Bytes that are no UTF-8 (a database in SQL_ASCII) become U+FFFD.
pub(super) fn push_string(text: &[u8], out: &mut Vec<u8>) -> Fidelity {
    push_string_as(text, Escaping::Converter, out)
}

/// The same in another manner.
pub(super) fn push_string_as(text: &[u8], escaping: Escaping, out: &mut Vec<u8>) -> Fidelity {
    out.push(b'"');
    let fidelity = push_escaped(text, escaping, out);
    out.push(b'"');
    fidelity
}

fn push_escaped(text: &[u8], escaping: Escaping, out: &mut Vec<u8>) -> Fidelity {
    if text.is_ascii() || std::str::from_utf8(text).is_ok() {
        push_valid(text, escaping, out);
        return Fidelity::Exact;
    }
    for chunk in text.utf8_chunks() {
        push_valid(chunk.valid().as_bytes(), escaping, out);
        if !chunk.invalid().is_empty() {
            out.extend_from_slice("\u{FFFD}".as_bytes());
        }
    }
    Fidelity::Lossy
}

fn push_valid(text: &[u8], escaping: Escaping, out: &mut Vec<u8>) {
    let special = match escaping {
        Escaping::Converter => &CONVERTER,
        Escaping::Characters => &CHARACTERS,
        Escaping::Header => &HEADER,
    };
    let mut rest = text;
    while let Some(at) = rest.iter().position(|byte| special[usize::from(*byte)]) {
        let (clean, behind) = rest.split_at(at);
        out.extend_from_slice(clean);
        let taken = push_escape(behind, out);
        rest = behind.get(taken..).unwrap_or(&[]);
    }
    out.extend_from_slice(rest);
}

/// Whether a byte begins an escape.
const CONVERTER: [bool; 256] = specials(0x20, 0xF0);
const CHARACTERS: [bool; 256] = specials(0x20, 256);
const HEADER: [bool; 256] = specials(0, 256);

const fn specials(below: usize, from: usize) -> [bool; 256] {
    let mut special = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        special[byte] = byte < below || byte >= from || byte == b'"' as usize || byte == b'\\' as usize;
        byte += 1;
    }
    special
}

/// Writes the escape of the first character and returns its length in bytes.
fn push_escape(text: &[u8], out: &mut Vec<u8>) -> usize {
    let Some(&byte) = text.first() else { return 0 };
    let short = match byte {
        b'"' => b'"',
        b'\\' => b'\\',
        b'\n' => b'n',
        b'\r' => b'r',
        b'\t' => b't',
        0x08 => b'b',
        0x0C => b'f',
        0xF0.. => {
            let [_, b, c, d, ..] = *text else { return text.len() };
            let bits = |byte: u8| u32::from(byte & 0x3F);
            let code = (u32::from(byte & 0x07) << 18 | bits(b) << 12 | bits(c) << 6 | bits(d)) - 0x1_0000;
            push_unicode(0xD800 + (code >> 10), out);
            push_unicode(0xDC00 + (code & 0x3FF), out);
            return 4;
        }
        _ => {
            push_unicode(u32::from(byte), out);
            return 1;
        }
    };
    out.extend_from_slice(&[b'\\', short]);
    1
}

fn push_unicode(code: u32, out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    out.extend_from_slice(b"\\u");
    out.extend((0..4).rev().map(|place| DIGITS[(code >> (4 * place) & 0xF) as usize]));
}

/// A whole number.
#[inline]
pub(super) fn push_integer(number: impl itoa::Integer, out: &mut Vec<u8>) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

/// Base64 with padding, in quotation marks.
pub(super) fn push_base64(bytes: &[u8], out: &mut Vec<u8>) {
    push_encoded(bytes, &STANDARD, out);
}

/// The alphabet that is safe in URLs, with padding.
pub(super) fn push_base64_url(bytes: &[u8], out: &mut Vec<u8>) {
    push_encoded(bytes, &URL_SAFE, out);
}

fn push_encoded(bytes: &[u8], engine: &impl base64::Engine, out: &mut Vec<u8>) {
    out.push(b'"');
    let start = out.len();
    out.resize(start + bytes.len().div_ceil(3) * 4, 0);
    let written = out.get_mut(start..).and_then(|room| engine.encode_slice(bytes, room).ok()).unwrap_or(0);
    out.truncate(start + written);
    out.push(b'"');
}

/// Hexadecimal digits, in quotation marks.
pub(super) fn push_hex(bytes: &[u8], out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    out.push(b'"');
    out.extend(bytes.iter().flat_map(|byte| [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 0xF)]]));
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_escaped_as_jackson_does() {
        for (text, expected) in [
            ("plain", r#""plain""#),
            ("é\u{2028}\u{7f}/", "\"é\u{2028}\u{7f}/\""),
            ("😀", r#""\uD83D\uDE00""#),
            ("a\"b\\c", r#""a\"b\\c""#),
            ("\n\r\t\u{8}\u{c}\u{1}\u{1f}", r#""\n\r\t\b\f\u0001\u001F""#),
            ("", r#""""#),
        ] {
            let mut out = Vec::new();
            assert_eq!(push_string(text.as_bytes(), &mut out), Fidelity::Exact);
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
    }

    #[test]
    fn a_header_escapes_quotation_marks_and_backslashes_only() {
        let mut out = Vec::new();
        let _ = push_string_as("😀\n\"\\".as_bytes(), Escaping::Header, &mut out);
        assert_eq!(String::from_utf8(out).unwrap(), "\"😀\n\\\"\\\\\"");
    }

    #[test]
    fn bytes_that_are_no_text_are_replaced_and_named() {
        let mut out = Vec::new();
        assert_eq!(push_string(b"a\xffb", &mut out), Fidelity::Lossy);
        assert_eq!(String::from_utf8(out).unwrap(), "\"a\u{FFFD}b\"");
    }

    #[test]
    fn bytes_are_written_in_three_alphabets() {
        let mut out = Vec::new();
        push_base64(&[0xfb, 0xff], &mut out);
        push_base64_url(&[0xfb, 0xff], &mut out);
        push_hex(&[0xfb, 0x0f], &mut out);
        assert_eq!(String::from_utf8(out).unwrap(), r#""+/8=""-_8=""fb0f""#);
    }
}
