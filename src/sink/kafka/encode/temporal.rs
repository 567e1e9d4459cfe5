//! Dates, times and intervals, from Postgres' ISO text to Debezium's forms. Proleptic Gregorian calendar, years before 1 as ISO
//! counts them; knows no time zones but the offset in the text.

use super::json::{Fidelity, push_integer};

const MICROS_PER_SECOND: i64 = 1_000_000;
const MICROS_PER_DAY: i64 = 86_400 * MICROS_PER_SECOND;
/// 30.4375 days, Debezium's month.
const SECONDS_PER_MONTH: i64 = 2_629_800;
/// What Debezium sends for infinite dates.
const DATE_INFINITY: i64 = 2_146_033_979;
const DATE_MINUS_INFINITY: i64 = -2_147_472_691;

/// The unit of a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    Millis,
    Micros,
    Nanos,
}

/// How a temporal value is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Temporal {
    /// Days since 1970.
    Days,
    /// `2024-02-29Z`.
    IsoDate,
    /// Since midnight.
    Time(Unit),
    /// `13:14:15.5Z`.
    IsoTime,
    /// Moved to UTC, with the fewest digits.
    TimeTz,
    /// Since 1970.
    Timestamp(Unit),
    /// With the fewest digits.
    IsoTimestamp,
    /// In UTC, with this many digits.
    TimestampTz(u8),
    /// Microseconds.
    IntervalMicros,
    /// `P1Y2M3DT4H5M6.789S`.
    IntervalIso,
}

/// Writes a value; what cannot be read or held is null and lossy.
pub(super) fn push_temporal(form: Temporal, text: &[u8], out: &mut Vec<u8>) -> Fidelity {
    let start = out.len();
    let fidelity = match form {
        Temporal::Days | Temporal::IsoDate => push_date(form, text, out),
        Temporal::Time(unit) => push_time(unit, text, out),
        Temporal::IsoTime | Temporal::TimeTz => push_iso_time(form, text, out),
        Temporal::Timestamp(unit) => push_timestamp(unit, text, out),
        Temporal::IsoTimestamp => push_iso_timestamp(None, text, out),
        Temporal::TimestampTz(digits) => push_iso_timestamp(Some(digits), text, out),
        Temporal::IntervalMicros | Temporal::IntervalIso => push_interval(form, text, out),
    };
    fidelity.unwrap_or_else(|| {
        out.truncate(start);
        out.extend_from_slice(b"null");
        Fidelity::Lossy
    })
}

fn push_date(form: Temporal, text: &[u8], out: &mut Vec<u8>) -> Option<Fidelity> {
    if let Some(fidelity) = push_infinity(form == Temporal::Days, DATE_MINUS_INFINITY, DATE_INFINITY, text, out) {
        return Some(fidelity);
    }
    let days = Moment::read(text)?.days;
    if form == Temporal::Days {
        push_integer(days, out);
    } else {
        out.push(b'"');
        push_iso_days(days, out);
        out.extend_from_slice(b"Z\"");
    }
    Some(Fidelity::Exact)
}

/// `infinity` and `-infinity` as numbers, or as their words where the form is a text.
fn push_infinity(is_number: bool, least: i64, most: i64, text: &[u8], out: &mut Vec<u8>) -> Option<Fidelity> {
    let number = match text {
        b"infinity" => most,
        b"-infinity" => least,
        _ => return None,
    };
    if is_number {
        push_integer(number, out);
    } else {
        out.push(b'"');
        out.extend_from_slice(text);
        out.push(b'"');
    }
    Some(Fidelity::Exact)
}

fn push_time(unit: Unit, text: &[u8], out: &mut Vec<u8>) -> Option<Fidelity> {
    let (micros, rest) = read_time(text)?;
    rest.is_empty().then(|| push_in_unit(unit, micros, out))?
}

fn push_in_unit(unit: Unit, micros: i64, out: &mut Vec<u8>) -> Option<Fidelity> {
    let is_cut = unit == Unit::Millis && micros % 1000 != 0;
    let number = match unit {
        Unit::Millis => micros.div_euclid(1000),
        Unit::Micros => micros,
        Unit::Nanos => micros.checked_mul(1000)?,
    };
    push_integer(number, out);
    Some(if is_cut { Fidelity::Lossy } else { Fidelity::Exact })
}

fn push_iso_time(form: Temporal, text: &[u8], out: &mut Vec<u8>) -> Option<Fidelity> {
    let (micros, rest) = read_time(text)?;
    let offset = if form == Temporal::TimeTz { read_offset(rest)? } else { 0 };
    let is_boundary = micros == MICROS_PER_DAY && offset == 0;
    let utc = (micros - offset * MICROS_PER_SECOND).rem_euclid(MICROS_PER_DAY);
    out.push(b'"');
    match form {
        Temporal::TimeTz if is_boundary => out.extend_from_slice(b"24:00:00"),
        _ => push_clock(utc, None, out),
    }
    out.extend_from_slice(b"Z\"");
    // Java's time of day knows no 24:00.
    Some(if is_boundary && form == Temporal::IsoTime { Fidelity::Lossy } else { Fidelity::Exact })
}

fn push_timestamp(unit: Unit, text: &[u8], out: &mut Vec<u8>) -> Option<Fidelity> {
    if let Some(fidelity) = push_infinity(true, i64::MIN, i64::MAX, text, out) {
        return Some(fidelity);
    }
    push_in_unit(unit, Moment::read(text)?.unix_micros()?, out)
}

fn push_iso_timestamp(digits: Option<u8>, text: &[u8], out: &mut Vec<u8>) -> Option<Fidelity> {
    if let Some(fidelity) = push_infinity(false, 0, 0, text, out) {
        return Some(fidelity);
    }
    let moment = Moment::read(text)?;
    out.push(b'"');
    push_iso_days(moment.days, out);
    out.push(b'T');
    push_clock(moment.micros, digits.filter(|digits| *digits > 0), out);
    out.extend_from_slice(b"Z\"");
    Some(Fidelity::Exact)
}

/// A point in time: days since 1970 and microseconds of the day, both in UTC.
struct Moment {
    days: i64,
    micros: i64,
}

impl Moment {
    /// `2024-02-29`, `0044-03-15 12:00:00.5+01:30 BC` and everything between.
    fn read(text: &[u8]) -> Option<Moment> {
        let (text, is_before_christ) = match text.strip_suffix(b" BC") {
            Some(text) => (text, true),
            None => (text, false),
        };
        let (year, rest) = read_number(text)?;
        let (month, rest) = read_number(rest.strip_prefix(b"-")?)?;
        let (day, rest) = read_number(rest.strip_prefix(b"-")?)?;
        if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
            return None;
        }
        // ISO has a year 0, which is 1 BC.
        let year = if is_before_christ { 1 - year } else { year };
        let days = days_of(year, month, day);
        let Some(rest) = rest.strip_prefix(b" ") else {
            return rest.is_empty().then_some(Moment { days, micros: 0 });
        };
        let (micros, rest) = read_time(rest)?;
        let micros = micros - read_offset(rest)? * MICROS_PER_SECOND;
        Some(Moment { days: days + micros.div_euclid(MICROS_PER_DAY), micros: micros.rem_euclid(MICROS_PER_DAY) })
    }

    fn unix_micros(&self) -> Option<i64> {
        self.days.checked_mul(MICROS_PER_DAY)?.checked_add(self.micros)
    }
}

/// Most digits of a number in a date, a time or an interval: so that nothing that is made of it can overflow.
const MOST_DIGITS: usize = 11;

/// Digits up to the first other byte.
fn read_number(text: &[u8]) -> Option<(i64, &[u8])> {
    let length = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (digits, rest) = text.split_at(length);
    if digits.is_empty() || digits.len() > MOST_DIGITS {
        return None;
    }
    Some((digits.iter().fold(0, |number, digit| number * 10 + i64::from(digit - b'0')), rest))
}

/// `HH:MM:SS` with up to six more digits; hours may be many.
fn read_time(text: &[u8]) -> Option<(i64, &[u8])> {
    let (hours, rest) = read_number(text)?;
    let (minutes, rest) = read_number(rest.strip_prefix(b":")?)?;
    let (seconds, rest) = read_number(rest.strip_prefix(b":")?)?;
    let mut micros = hours.checked_mul(3600)?.checked_add(minutes * 60 + seconds)?.checked_mul(MICROS_PER_SECOND)?;
    let Some(fraction) = rest.strip_prefix(b".") else { return Some((micros, rest)) };
    let (number, rest) = read_number(fraction)?;
    let digits = u32::try_from(fraction.len() - rest.len()).ok().filter(|digits| *digits <= 6)?;
    micros += number * 10i64.pow(6 - digits);
    Some((micros, rest))
}

/// `+02`, `-05:30`, `+00:19:32`, or nothing: seconds east of Greenwich.
fn read_offset(text: &[u8]) -> Option<i64> {
    let (sign, text) = match text.split_first() {
        None => return Some(0),
        Some((b'+', rest)) => (1, rest),
        Some((b'-', rest)) => (-1, rest),
        Some(_) => return None,
    };
    let (mut seconds, mut rest) = read_number(text).map(|(hours, rest)| (hours * 3600, rest))?;
    for unit in [60, 1] {
        if let Some(more) = rest.strip_prefix(b":") {
            let (number, behind) = read_number(more)?;
            seconds += number * unit;
            rest = behind;
        }
    }
    (rest.is_empty() && seconds < 100 * 3600).then_some(sign * seconds)
}

/// Days since 1970 of a date; H. Hinnant's formula over eras of 400 years that begin in March.
fn days_of(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// The inverse.
fn date_of(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

/// `2024-02-29`, `+20000-01-01`, `-0043-03-15`.
fn push_iso_days(days: i64, out: &mut Vec<u8>) {
    let (year, month, day) = date_of(days);
    match year {
        10_000.. => out.push(b'+'),
        ..0 => out.push(b'-'),
        _ => {}
    }
    push_padded(year.unsigned_abs(), 4, out);
    out.push(b'-');
    push_padded(month.unsigned_abs(), 2, out);
    out.push(b'-');
    push_padded(day.unsigned_abs(), 2, out);
}

/// `HH:MM:SS` with this many further digits, or with the fewest.
fn push_clock(micros: i64, digits: Option<u8>, out: &mut Vec<u8>) {
    let seconds = micros / MICROS_PER_SECOND;
    push_padded((seconds / 3600).unsigned_abs(), 2, out);
    out.push(b':');
    push_padded((seconds / 60 % 60).unsigned_abs(), 2, out);
    out.push(b':');
    push_padded((seconds % 60).unsigned_abs(), 2, out);
    let fraction = (micros % MICROS_PER_SECOND).unsigned_abs();
    if digits.is_none() && fraction == 0 {
        return;
    }
    out.push(b'.');
    push_padded(fraction, 6, out);
    match digits {
        Some(digits) => out.truncate(out.len() - (6 - usize::from(digits.min(6)))),
        None => {
            while out.last() == Some(&b'0') {
                out.pop();
            }
        }
    }
}

fn push_padded(number: u64, width: usize, out: &mut Vec<u8>) {
    let mut buffer = itoa::Buffer::new();
    let digits = buffer.format(number).as_bytes();
    out.extend(std::iter::repeat_n(b'0', width.saturating_sub(digits.len())));
    out.extend_from_slice(digits);
}

/// The parts of an interval as Postgres prints it.
#[derive(Default)]
struct Interval {
    years: i64,
    months: i64,
    days: i64,
    micros: i64,
}

impl Interval {
    /// `1 year -2 mons +3 days -04:05:06.789`.
    fn read(text: &[u8]) -> Option<Interval> {
        let mut interval = Interval::default();
        let mut words = text.split(|byte| *byte == b' ').filter(|word| !word.is_empty());
        while let Some(word) = words.next() {
            let (sign, word) = match word.split_first()? {
                (b'-', rest) => (-1, rest),
                (b'+', rest) => (1, rest),
                _ => (1, word),
            };
            if word.contains(&b':') {
                let (micros, rest) = read_time(word)?;
                interval.micros = rest.is_empty().then_some(sign * micros)?;
                continue;
            }
            let (number, rest) = read_number(word)?;
            let part = match words.next()? {
                b"year" | b"years" => &mut interval.years,
                b"mon" | b"mons" => &mut interval.months,
                b"day" | b"days" => &mut interval.days,
                _ => return None,
            };
            *part = rest.is_empty().then_some(sign * number)?;
        }
        Some(interval)
    }
}

fn push_interval(form: Temporal, text: &[u8], out: &mut Vec<u8>) -> Option<Fidelity> {
    let interval = Interval::read(text).filter(|_| !text.is_empty())?;
    if form == Temporal::IntervalMicros {
        let months = interval.years.checked_mul(12)?.checked_add(interval.months)?;
        let seconds = months.checked_mul(SECONDS_PER_MONTH)?.checked_add(interval.days.checked_mul(86_400)?)?;
        push_integer(seconds.checked_mul(MICROS_PER_SECOND)?.checked_add(interval.micros)?, out);
        // A month is no number of days, and a day no number of hours.
        return Some(if seconds == 0 { Fidelity::Exact } else { Fidelity::Lossy });
    }
    let (micros, seconds) = (interval.micros, interval.micros / MICROS_PER_SECOND);
    for (before, number, behind) in [
        (&b"\"P"[..], interval.years, &b"Y"[..]),
        (b"", interval.months, b"M"),
        (b"", interval.days, b"DT"),
        (b"", seconds / 3600, b"H"),
        (b"", seconds / 60 % 60, b"M"),
    ] {
        out.extend_from_slice(before);
        push_integer(number, out);
        out.extend_from_slice(behind);
    }
    if micros < 0 && micros % (60 * MICROS_PER_SECOND) != 0 {
        out.push(b'-');
    }
    push_integer((seconds % 60).unsigned_abs(), out);
    let fraction = (micros % MICROS_PER_SECOND).unsigned_abs();
    if fraction != 0 {
        out.push(b'.');
        push_padded(fraction, 6, out);
        while out.last() == Some(&b'0') {
            out.pop();
        }
    }
    out.extend_from_slice(b"S\"");
    Some(Fidelity::Exact)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(form: Temporal, text: &str, expected: &str, fidelity: Fidelity) {
        let mut out = Vec::new();
        let found = push_temporal(form, text.as_bytes(), &mut out);
        assert_eq!((String::from_utf8(out).unwrap().as_str(), found), (expected, fidelity), "{form:?} {text}");
    }

    #[test]
    fn dates_and_times_have_debezium_forms() {
        use Temporal::*;
        for (form, text, expected) in [
            (Days, "2024-02-29", "19782"),
            (Days, "0044-03-15 BC", "-735160"),
            (Days, "infinity", "2146033979"),
            (Days, "-infinity", "-2147472691"),
            (Days, "1969-12-31", "-1"),
            (IsoDate, "2024-02-29", "\"2024-02-29Z\""),
            (IsoDate, "20000-01-01", "\"+20000-01-01Z\""),
            (Time(Unit::Micros), "13:14:15.123456", "47655123456"),
            (Time(Unit::Micros), "24:00:00", "86400000000"),
            (Time(Unit::Millis), "13:14:15.5", "47655500"),
            (Time(Unit::Nanos), "00:00:01", "1000000000"),
            (IsoTime, "13:14:15.500000", "\"13:14:15.5Z\""),
            (IsoTime, "13:14:15", "\"13:14:15Z\""),
            (TimeTz, "13:14:15.123456+02", "\"11:14:15.123456Z\""),
            (TimeTz, "01:00:00+05:30", "\"19:30:00Z\""),
            (TimeTz, "24:00:00+00", "\"24:00:00Z\""),
            (Timestamp(Unit::Micros), "2024-02-29 13:14:15.123456", "1709212455123456"),
            (Timestamp(Unit::Millis), "2024-02-29 13:14:15.5", "1709212455500"),
            (Timestamp(Unit::Micros), "0044-03-15 12:00:00 BC", "-63517780800000000"),
            (Timestamp(Unit::Micros), "infinity", "9223372036854775807"),
            (Timestamp(Unit::Micros), "-infinity", "-9223372036854775808"),
            (IsoTimestamp, "2024-02-29 13:14:15.120000", "\"2024-02-29T13:14:15.12Z\""),
            (TimestampTz(6), "2024-02-29 11:14:15.123456+00", "\"2024-02-29T11:14:15.123456Z\""),
            (TimestampTz(6), "2024-02-29 13:14:15+02", "\"2024-02-29T11:14:15.000000Z\""),
            (TimestampTz(3), "2024-02-29 11:14:15.5+00", "\"2024-02-29T11:14:15.500Z\""),
            (TimestampTz(0), "2024-02-29 11:14:15+00", "\"2024-02-29T11:14:15Z\""),
            (TimestampTz(6), "20000-01-01 00:00:00+00", "\"+20000-01-01T00:00:00.000000Z\""),
            (TimestampTz(6), "0044-03-15 12:00:00+00 BC", "\"-0043-03-15T12:00:00.000000Z\""),
            (TimestampTz(6), "2000-01-01 00:00:00+00:19:32", "\"1999-12-31T23:40:28.000000Z\""),
            (TimestampTz(6), "infinity", "\"infinity\""),
        ] {
            check(form, text, expected, Fidelity::Exact);
        }
    }

    #[test]
    fn an_interval_has_two_forms() {
        use Temporal::*;
        check(IntervalMicros, "1 year 2 mons 3 days 04:05:06.789", "37091106789000", Fidelity::Lossy);
        check(IntervalMicros, "-1 days -00:00:01", "-86401000000", Fidelity::Lossy);
        check(IntervalMicros, "00:00:01.5", "1500000", Fidelity::Exact);
        check(IntervalIso, "1 year 2 mons -3 days +04:05:06.789", "\"P1Y2M-3DT4H5M6.789S\"", Fidelity::Exact);
        check(IntervalIso, "-1 mons", "\"P0Y-1M0DT0H0M0S\"", Fidelity::Exact);
        check(IntervalIso, "-00:00:00.5", "\"P0Y0M0DT0H0M-0.5S\"", Fidelity::Exact);
        check(IntervalIso, "100:00:00", "\"P0Y0M0DT100H0M0S\"", Fidelity::Exact);
    }

    #[test]
    fn what_a_form_cannot_hold_is_null_or_cut_and_named() {
        use Temporal::*;
        for (form, text, expected) in [
            (Timestamp(Unit::Nanos), "9999-12-31 00:00:00", "null"),
            (Timestamp(Unit::Nanos), "0044-03-15 12:00:00 BC", "null"),
            (Timestamp(Unit::Millis), "2024-02-29 13:14:15.123456", "1709212455123"),
            (Time(Unit::Millis), "13:14:15.123456", "47655123"),
            (IsoTime, "24:00:00", "\"00:00:00Z\""),
            (IntervalMicros, "infinity", "null"),
            (Days, "29.02.2024", "null"),
            (TimestampTz(6), "", "null"),
        ] {
            check(form, text, expected, Fidelity::Lossy);
        }
    }
}
