//! Numbers in Java's forms: doubles as `Double.toString`, decimals as the bytes of a `BigInteger`. From Postgres' text, where
//! the digits stand already; nothing is rounded that need not be.

use std::io::Write as _;

use super::json::{Fidelity, push_base64, push_integer};

/// A decimal number taken apart: its digits without leading and trailing zeros, and where the point stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Parts {
    is_negative: bool,
    digits: Vec<u8>,
    /// The number is 0.DIGITS × 10^exponent.
    exponent: i64,
}

/// Buffers that are used again for every number.
#[derive(Clone, Debug, Default)]
pub(super) struct NumberRoom {
    parts: Parts,
    other: Parts,
    text: Vec<u8>,
    limbs: Vec<u32>,
    bytes: Vec<u8>,
}

impl Parts {
    /// Reads `-12.50`, `1e+20`, `.5`; false for anything else.
    fn read(&mut self, text: &[u8]) -> bool {
        let (is_negative, text) = match text.split_first() {
            Some((b'-', rest)) => (true, rest),
            Some((b'+', rest)) => (false, rest),
            _ => (false, text),
        };
        let (mantissa, exponent) = match text.iter().position(|byte| matches!(byte, b'e' | b'E')) {
            Some(at) => {
                let exponent = text.get(at + 1..).and_then(|text| std::str::from_utf8(text).ok());
                let Some(exponent) = exponent.and_then(|text| text.parse::<i32>().ok()) else { return false };
                (text.get(..at).unwrap_or(&[]), i64::from(exponent))
            }
            None => (text, 0),
        };
        self.digits.clear();
        self.is_negative = is_negative;
        let mut before_point = 0;
        let mut is_fraction = false;
        for byte in mantissa {
            match byte {
                b'0'..=b'9' => {
                    self.digits.push(*byte);
                    before_point += i64::from(!is_fraction);
                }
                b'.' if !is_fraction => is_fraction = true,
                _ => return false,
            }
        }
        if self.digits.is_empty() {
            return false;
        }
        let zeros = self.digits.iter().take_while(|digit| **digit == b'0').count();
        self.digits.drain(..zeros);
        while self.digits.last() == Some(&b'0') {
            self.digits.pop();
        }
        self.exponent = if self.digits.is_empty() { 0 } else { exponent + before_point - zeros as i64 };
        true
    }

    /// `Double.toString` and `Float.toString`: plain from 10^-3 up to below 10^7, else with an exponent.
    fn push_java(&self, out: &mut Vec<u8>) {
        if self.is_negative {
            out.push(b'-');
        }
        if self.digits.is_empty() {
            out.extend_from_slice(b"0.0");
            return;
        }
        let padded =
            |digits: &[u8], out: &mut Vec<u8>| out.extend_from_slice(if digits.is_empty() { b"0" } else { digits });
        if (-2..=0).contains(&self.exponent) {
            out.extend_from_slice(b"0.");
            out.extend(std::iter::repeat_n(b'0', self.exponent.unsigned_abs() as usize));
            out.extend_from_slice(&self.digits);
        } else if (1..=7).contains(&self.exponent) {
            let whole = self.exponent as usize;
            let (before, behind) = self.digits.split_at(whole.min(self.digits.len()));
            out.extend_from_slice(before);
            out.extend(std::iter::repeat_n(b'0', whole - before.len()));
            out.push(b'.');
            padded(behind, out);
        } else {
            let (first, behind) = self.digits.split_at(1);
            out.extend_from_slice(first);
            out.push(b'.');
            padded(behind, out);
            out.push(b'E');
            push_integer(self.exponent - 1, out);
        }
    }
}

/// `float8`, or `float4`, from Postgres' shortest text. Java writes at least two digits, which differ for the smallest numbers.
pub(super) fn push_float(text: &[u8], is_single: bool, room: &mut NumberRoom, out: &mut Vec<u8>) -> Fidelity {
    if matches!(text, b"NaN" | b"Infinity" | b"-Infinity") {
        out.push(b'"');
        out.extend_from_slice(text);
        out.push(b'"');
        return Fidelity::Exact;
    }
    if !room.parts.read(text) {
        out.extend_from_slice(b"null");
        return Fidelity::Lossy;
    }
    // Below these a single digit is not always the nearest number of two digits.
    let smallest = if is_single { -41 } else { -318 };
    if room.parts.digits.len() == 1 && room.parts.exponent < smallest {
        let text = std::str::from_utf8(text).unwrap_or("0");
        room.text.clear();
        let _ = match is_single {
            true => write!(room.text, "{:.1e}", text.parse::<f32>().unwrap_or(0.0)),
            false => write!(room.text, "{:.1e}", text.parse::<f64>().unwrap_or(0.0)),
        };
        let text = std::mem::take(&mut room.text);
        room.parts.read(&text);
        room.text = text;
    }
    room.parts.push_java(out);
    Fidelity::Exact
}

/// A double that was computed.
pub(super) fn push_double(number: f64, room: &mut NumberRoom, out: &mut Vec<u8>) {
    room.text.clear();
    let _ = match number.is_finite() {
        true => write!(room.text, "{number:e}"),
        false if number.is_nan() => write!(room.text, "NaN"),
        false => write!(room.text, "{}Infinity", if number < 0.0 { "-" } else { "" }),
    };
    let text = std::mem::take(&mut room.text);
    let _ = push_float(&text, false, room, out);
    room.text = text;
}

/// `decimal = "double"`: lossy where the double has other digits.
pub(super) fn push_decimal_double(text: &[u8], room: &mut NumberRoom, out: &mut Vec<u8>) -> Fidelity {
    if is_special(text) {
        return push_float(text, false, room, out);
    }
    let number = std::str::from_utf8(text).ok().and_then(|text| text.parse::<f64>().ok());
    let Some(number) = number.filter(|_| room.other.read(text)) else {
        out.extend_from_slice(b"null");
        return Fidelity::Lossy;
    };
    push_double(number, room, out);
    let is_exact =
        number.is_finite() && room.parts.digits == room.other.digits && room.parts.exponent == room.other.exponent;
    if is_exact { Fidelity::Exact } else { Fidelity::Lossy }
}

/// `NaN`, `Infinity`, `-Infinity`.
pub(super) fn is_special(text: &[u8]) -> bool {
    matches!(text, b"NaN" | b"Infinity" | b"-Infinity")
}

/// Base64 of the unscaled integer of a decimal with this scale.
pub(super) fn push_decimal(text: &[u8], scale: u32, room: &mut NumberRoom, out: &mut Vec<u8>) -> Fidelity {
    let fidelity = match unscaled(text, scale as usize, room) {
        Some(fidelity) => fidelity,
        None => {
            out.extend_from_slice(b"null");
            return Fidelity::Lossy;
        }
    };
    push_base64(&room.bytes, out);
    fidelity
}

/// `{"scale":…,"value":…}` of a decimal whose scale is its own.
pub(super) fn push_variable_decimal(text: &[u8], room: &mut NumberRoom, out: &mut Vec<u8>) -> Fidelity {
    let fraction = text.iter().position(|byte| *byte == b'.').and_then(|at| text.get(at + 1..)).unwrap_or(&[]);
    let scale = fraction.len() - fraction.iter().rev().take_while(|digit| **digit == b'0').count();
    let Some(fidelity) = unscaled(text, scale, room) else {
        out.extend_from_slice(b"null");
        return Fidelity::Lossy;
    };
    out.extend_from_slice(b"{\"scale\":");
    push_integer(scale, out);
    out.extend_from_slice(b",\"value\":");
    push_base64(&room.bytes, out);
    out.push(b'}');
    fidelity
}

/// `BigDecimal.toString`: plain unless more than six zeros follow the point.
pub(super) fn push_java_decimal(text: &[u8], out: &mut Vec<u8>) {
    let fraction = text.iter().position(|byte| *byte == b'.').map_or(0, |at| text.len() - at - 1);
    let digits = || text.iter().copied().filter(u8::is_ascii_digit).skip_while(|digit| *digit == b'0');
    let precision = digits().count().max(1);
    let adjusted = precision as i64 - 1 - fraction as i64;
    if adjusted >= -6 {
        out.extend_from_slice(text);
        return;
    }
    if text.first() == Some(&b'-') {
        out.push(b'-');
    }
    for (at, digit) in digits().chain(std::iter::repeat_n(b'0', usize::from(digits().next().is_none()))).enumerate() {
        if at == 1 {
            out.push(b'.');
        }
        out.push(digit);
    }
    out.push(b'E');
    push_integer(adjusted, out);
}

/// Puts the bytes of `BigInteger.toByteArray` into the room.
fn unscaled(text: &[u8], scale: usize, room: &mut NumberRoom) -> Option<Fidelity> {
    let is_negative = text.first() == Some(&b'-');
    let text = text.strip_prefix(b"-").unwrap_or(text);
    let at = text.iter().position(|byte| *byte == b'.').unwrap_or(text.len());
    let (whole, fraction) = text.split_at(at);
    let fraction = fraction.strip_prefix(b".").unwrap_or(fraction);
    let kept = fraction.get(..scale.min(fraction.len())).unwrap_or(&[]);
    let digits = || whole.iter().chain(kept).copied().chain(std::iter::repeat_n(b'0', scale - kept.len()));
    if whole.is_empty() || !digits().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    room.bytes.clear();
    if whole.len() + scale <= 38 {
        let number = digits().fold(0i128, |number, digit| number * 10 + i128::from(digit - b'0'));
        push_small(if is_negative { -number } else { number }, &mut room.bytes);
    } else {
        push_large(digits(), is_negative, &mut room.limbs, &mut room.bytes);
    }
    let is_cut = fraction.iter().skip(scale).any(|digit| *digit != b'0');
    Some(if is_cut { Fidelity::Lossy } else { Fidelity::Exact })
}

fn push_small(number: i128, bytes: &mut Vec<u8>) {
    let all = number.to_be_bytes();
    // As few bytes as keep the sign.
    let surplus = (if number < 0 { (!number).leading_zeros() } else { number.leading_zeros() } as usize - 1) / 8;
    bytes.extend_from_slice(all.get(surplus.min(15)..).unwrap_or(&all));
}

fn push_large(digits: impl Iterator<Item = u8>, is_negative: bool, limbs: &mut Vec<u32>, bytes: &mut Vec<u8>) {
    limbs.clear();
    for digit in digits {
        let mut carry = u64::from(digit - b'0');
        for limb in limbs.iter_mut() {
            let product = u64::from(*limb) * 10 + carry;
            *limb = product as u32;
            carry = product >> 32;
        }
        if carry > 0 {
            limbs.push(carry as u32);
        }
    }
    bytes.push(0);
    bytes.extend(limbs.iter().rev().flat_map(|limb| limb.to_be_bytes()));
    if is_negative {
        let mut carry = true;
        for byte in bytes.iter_mut().rev() {
            let (negated, is_over) = (!*byte).overflowing_add(u8::from(carry));
            *byte = negated;
            carry = is_over;
        }
    }
    let fill = if is_negative { 0xFF } else { 0 };
    let has_sign = |byte: u8| (byte & 0x80 != 0) == is_negative;
    let surplus = bytes.windows(2).take_while(|pair| pair[0] == fill && has_sign(pair[1])).count();
    bytes.drain(..surplus);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(write: impl Fn(&mut NumberRoom, &mut Vec<u8>) -> Fidelity) -> (String, Fidelity) {
        let mut out = Vec::new();
        let fidelity = write(&mut NumberRoom::default(), &mut out);
        (String::from_utf8(out).unwrap(), fidelity)
    }

    #[test]
    fn a_double_is_written_as_java_does() {
        for (text, is_single, expected) in [
            ("0", false, "0.0"),
            ("-0", false, "-0.0"),
            ("1", false, "1.0"),
            ("10000000000", false, "1.0E10"),
            ("1e+20", false, "1.0E20"),
            ("9999999", false, "9999999.0"),
            ("10000000", false, "1.0E7"),
            ("12345678.9", false, "1.23456789E7"),
            ("0.001", false, "0.001"),
            ("0.000999", false, "9.99E-4"),
            ("1.5", true, "1.5"),
            ("2.718281828459045", false, "2.718281828459045"),
            ("1.7976931348623157e+308", false, "1.7976931348623157E308"),
            ("2.2250738585072014e-308", false, "2.2250738585072014E-308"),
            ("5e-324", false, "4.9E-324"),
            ("1e-323", false, "9.9E-324"),
            ("1e-45", true, "1.4E-45"),
            ("3e-45", true, "2.8E-45"),
            ("3.4028235e+38", true, "3.4028235E38"),
            ("1e-40", true, "1.0E-40"),
            ("100", false, "100.0"),
            ("-123456.789", false, "-123456.789"),
            ("NaN", false, "\"NaN\""),
            ("-Infinity", true, "\"-Infinity\""),
        ] {
            let (json, _) = written(|room, out| push_float(text.as_bytes(), is_single, room, out));
            assert_eq!(json, expected, "{text}");
        }
    }

    #[test]
    fn a_decimal_is_its_unscaled_integer() {
        for (text, scale, expected) in [
            ("12345678.90", 2, "\"SZYC0g==\""),
            ("0", 2, "\"AA==\""),
            ("0.00", 2, "\"AA==\""),
            ("1.28", 2, "\"AIA=\""),
            ("-1.28", 2, "\"gA==\""),
            ("-1.29", 2, "\"/38=\""),
            ("-0.01", 2, "\"/w==\""),
            ("12.34", 2, "\"BNI=\""),
            ("170141183460469231731687303715884105728", 0, "\"AIAAAAAAAAAAAAAAAAAAAAA=\""),
            ("-170141183460469231731687303715884105728", 0, "\"gAAAAAAAAAAAAAAAAAAAAA==\""),
            ("-1000000000000000000000000000000000000000", 0, "\"/Q+vAWx2vFM7oJqpgAAAAAA=\""),
        ] {
            let (json, fidelity) = written(|room, out| push_decimal(text.as_bytes(), scale, room, out));
            assert_eq!((json.as_str(), fidelity), (expected, Fidelity::Exact), "{text}");
        }
        let (json, fidelity) = written(|room, out| push_decimal(b"NaN", 2, room, out));
        assert_eq!((json.as_str(), fidelity), ("null", Fidelity::Lossy));
    }

    #[test]
    fn a_decimal_as_text_is_that_of_java() {
        for (text, expected) in [
            ("1.29", "1.29"),
            ("0.000001", "0.000001"),
            ("0.0000001", "1E-7"),
            ("-0.00000012", "-1.2E-7"),
            ("0.00000000", "0E-8"),
        ] {
            let mut out = Vec::new();
            push_java_decimal(text.as_bytes(), &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
    }

    #[test]
    fn a_decimal_without_scale_brings_its_own() {
        for (text, expected) in [
            ("12345678901234567890.123456789", r#"{"scale":9,"value":"J+QbMka+ybFuOYEV"}"#),
            ("1000000000000000000000000000000", r#"{"scale":0,"value":"DJ8snNBGdO3qQAAAAA=="}"#),
            ("1.50", r#"{"scale":1,"value":"Dw=="}"#),
            ("0.00", r#"{"scale":0,"value":"AA=="}"#),
        ] {
            let (json, _) = written(|room, out| push_variable_decimal(text.as_bytes(), room, out));
            assert_eq!(json, expected, "{text}");
        }
    }

    #[test]
    fn a_decimal_as_double_says_when_digits_are_lost() {
        for (text, expected, fidelity) in [
            ("1.25", "1.25", Fidelity::Exact),
            ("100", "100.0", Fidelity::Exact),
            ("12345678901234567890.1", "1.2345678901234567E19", Fidelity::Lossy),
            ("NaN", "\"NaN\"", Fidelity::Exact),
        ] {
            let (json, found) = written(|room, out| push_decimal_double(text.as_bytes(), room, out));
            assert_eq!((json.as_str(), found), (expected, fidelity), "{text}");
        }
    }
}
