//! Binary values of the types that keys have, as a person reads them. For errors only: what is written never passes here.

use std::fmt::Write as _;

use crate::schema::ShapeColumn;

/// Days from 1970-01-01 to Postgres' epoch, 2000-01-01.
const EPOCH_DAYS: i64 = 10_957;
const DAY_MICROS: i64 = 86_400_000_000;

/// The value's text; `None` for a type that has no easy one, and for bytes that are none of its values.
pub(super) fn legible(column: &ShapeColumn, bytes: &[u8]) -> Option<String> {
    let is_text = column.is_enum || column.base_type_name.ends_with("citext");
    match column.base_type_oid {
        16 => Some(if *bytes == [1] { "t" } else { "f" }.to_owned()),
        17 => Some(format!("\\x{}", bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>())),
        20 => bytes.try_into().ok().map(|bytes| i64::from_be_bytes(bytes).to_string()),
        21 => bytes.try_into().ok().map(|bytes| i16::from_be_bytes(bytes).to_string()),
        23 => bytes.try_into().ok().map(|bytes| i32::from_be_bytes(bytes).to_string()),
        26 => bytes.try_into().ok().map(|bytes| u32::from_be_bytes(bytes).to_string()),
        700 => bytes.try_into().ok().map(|bytes| f32::from_be_bytes(bytes).to_string()),
        701 => bytes.try_into().ok().map(|bytes| f64::from_be_bytes(bytes).to_string()),
        1082 => date(i64::from(i32::from_be_bytes(bytes.try_into().ok()?))),
        1114 => timestamp(i64::from_be_bytes(bytes.try_into().ok()?)),
        1184 => timestamp(i64::from_be_bytes(bytes.try_into().ok()?)).map(|text| text + "+00"),
        1700 => numeric(bytes),
        2950 => uuid(bytes),
        // "char", name, text, json, xml, char(n), varchar.
        18 | 19 | 25 | 114 | 142 | 1042 | 1043 => std::str::from_utf8(bytes).ok().map(str::to_owned),
        // jsonb: a version, then the text.
        3802 => std::str::from_utf8(bytes.get(1..)?).ok().map(str::to_owned),
        _ if is_text => std::str::from_utf8(bytes).ok().map(str::to_owned),
        _ => None,
    }
}

/// Year, month, day of a day since 2000-01-01, in the proleptic Gregorian calendar (eras of 400 years that begin in March).
fn date(day: i64) -> Option<String> {
    if day == i64::from(i32::MAX) || day == i64::from(i32::MIN) {
        return Some(if day > 0 { "infinity" } else { "-infinity" }.to_owned());
    }
    let shifted = day + EPOCH_DAYS + 719_468;
    let (era, of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    Some(match year {
        ..=0 => format!("{:04}-{month:02}-{day:02} BC", 1 - year),
        _ => format!("{year:04}-{month:02}-{day:02}"),
    })
}

fn timestamp(micros: i64) -> Option<String> {
    if micros == i64::MAX || micros == i64::MIN {
        return Some(if micros > 0 { "infinity" } else { "-infinity" }.to_owned());
    }
    let (date, of_day) = (date(micros.div_euclid(DAY_MICROS))?, micros.rem_euclid(DAY_MICROS));
    let (seconds, micros) = (of_day / 1_000_000, of_day % 1_000_000);
    let mut text = format!("{date} {:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
    if micros > 0 {
        let _ = write!(text, ".{}", format!("{micros:06}").trim_end_matches('0'));
    }
    Some(text)
}

fn uuid(bytes: &[u8]) -> Option<String> {
    let bytes: &[u8; 16] = bytes.try_into().ok()?;
    let mut text = String::with_capacity(36);
    for (at, byte) in bytes.iter().enumerate() {
        if matches!(at, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        let _ = write!(text, "{byte:02x}");
    }
    Some(text)
}

/// `numeric_send`: number of digits of base 10,000, weight of the first, sign, digits behind the point; then the digits.
fn numeric(bytes: &[u8]) -> Option<String> {
    let words: Vec<i32> = bytes.chunks_exact(2).map(|pair| i32::from(u16::from_be_bytes([pair[0], pair[1]]))).collect();
    let [count, weight, sign, scale, digits @ ..] = &words[..] else { return None };
    let (weight, scale) = (*weight as u16 as i16 as i32, *scale as usize);
    match *sign {
        0xc000 => return Some("NaN".to_owned()),
        0xd000 => return Some("Infinity".to_owned()),
        0xf000 => return Some("-Infinity".to_owned()),
        _ if *count as usize != digits.len() => return None,
        _ => {}
    }
    let digit = |place: i32| usize::try_from(weight - place).ok().and_then(|at| digits.get(at)).copied().unwrap_or(0);
    let whole: String = (0..=weight.max(0)).rev().map(|place| format!("{:04}", digit(place))).collect();
    let mut text = if *sign == 0x4000 { "-".to_owned() } else { String::new() };
    text.push_str(match whole.trim_start_matches('0') {
        "" => "0",
        whole => whole,
    });
    if scale > 0 {
        let groups = scale.div_ceil(4) as i32;
        let fraction: String = (1..=groups).map(|place| format!("{:04}", digit(-place))).collect();
        let _ = write!(text, ".{}", &fraction[..scale]);
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::super::target::tests::shape;
    use super::*;

    fn check(type_oid: u32, bytes: &[u8], expected: Option<&str>) {
        let mut column = shape(&[("a", "")], &[]).columns.remove(0);
        column.base_type_oid = type_oid;
        assert_eq!(legible(&column, bytes).as_deref(), expected, "{type_oid}");
    }

    #[test]
    fn keys_are_read_as_postgres_prints_them() {
        check(23, &(-7i32).to_be_bytes(), Some("-7"));
        check(20, b"short", None);
        check(16, b"\x01", Some("t"));
        check(17, b"\0\xff", Some("\\x00ff"));
        check(25, "Grüße".as_bytes(), Some("Grüße"));
        check(3802, b"\x01{}", Some("{}"));
        check(2950, &[0xa0; 16], Some("a0a0a0a0-a0a0-a0a0-a0a0-a0a0a0a0a0a0"));
        check(1082, &0i32.to_be_bytes(), Some("2000-01-01"));
        check(1082, &8825i32.to_be_bytes(), Some("2024-02-29"));
        check(1082, &(-746_117i32).to_be_bytes(), Some("0044-03-15 BC"));
        check(1082, &i32::MAX.to_be_bytes(), Some("infinity"));
        check(1114, &(-1_500_000i64).to_be_bytes(), Some("1999-12-31 23:59:58.5"));
        check(1184, &86_400_000_000i64.to_be_bytes(), Some("2000-01-02 00:00:00+00"));
        check(600, &[0; 16], None);
    }

    #[test]
    fn numbers_of_any_length_are_read() {
        let made = |words: &[u16]| words.iter().flat_map(|word| word.to_be_bytes()).collect::<Vec<u8>>();
        for (words, expected) in [
            (&[0u16, 0, 0, 0][..], Some("0")),
            (&[0, 0, 0, 2], Some("0.00")),
            (&[2, 1, 0, 0, 12, 3456], Some("123456")),
            (&[1, 2, 0x4000, 0, 5], Some("-500000000")),
            (&[2, 0, 0, 2, 1, 2500], Some("1.25")),
            (&[1, 0xffff, 0, 4, 5], Some("0.0005")),
            (&[1, 0xfffe, 0, 8, 5], Some("0.00000005")),
            (&[0, 0, 0xc000, 0], Some("NaN")),
            (&[3, 0, 0, 0, 1], None),
        ] {
            check(1700, &made(words), expected);
        }
    }
}
