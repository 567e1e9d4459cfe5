//! Log sequence numbers and Postgres timestamps, as the replication protocol carries them.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A position in the write-ahead log: a byte offset, "last byte + 1" wherever it stands for "everything before this".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl Lsn {
    /// `0/0`, which Postgres uses for "no position".
    pub const ZERO: Lsn = Lsn(0);

    /// Bytes from `earlier` to `self`, zero when `earlier` is not earlier.
    pub fn bytes_since(self, earlier: Lsn) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// Whether this is `0/0`, "no position".
    pub fn is_zero(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

/// A text that is not of the form `X/Y` with at most eight hexadecimal digits on each side.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a log sequence number: it must look like 16/B374D848")]
pub struct LsnParseError(pub String);

impl FromStr for Lsn {
    type Err = LsnParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || LsnParseError(text.to_owned());
        let (high, low) = text.split_once('/').ok_or_else(error)?;
        let part = |digits: &str| -> Result<u64, LsnParseError> {
            let is_hexadecimal = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
            if digits.is_empty() || digits.len() > 8 || !is_hexadecimal {
                return Err(error());
            }
            u64::from_str_radix(digits, 16).map_err(|_| error())
        };
        Ok(Lsn((part(high)? << 32) | part(low)?))
    }
}

/// Microseconds since 2000-01-01 00:00 UTC, Postgres' `TimestampTz`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// Seconds from the Unix epoch to the Postgres epoch.
    pub const POSTGRES_EPOCH_UNIX_SECONDS: u64 = 946_684_800;

    /// The system clock now.
    pub fn now() -> Timestamp {
        let epoch = UNIX_EPOCH + Duration::from_secs(Self::POSTGRES_EPOCH_UNIX_SECONDS);
        match SystemTime::now().duration_since(epoch) {
            Ok(since) => Timestamp(i64::try_from(since.as_micros()).unwrap_or(i64::MAX)),
            Err(before) => Timestamp(-i64::try_from(before.duration().as_micros()).unwrap_or(0)),
        }
    }

    /// Seconds from `self` until `later`, zero when `later` is not later.
    pub fn seconds_until(self, later: Timestamp) -> f64 {
        later.0.saturating_sub(self.0).max(0) as f64 / 1e6
    }

    /// Microseconds since the Unix epoch.
    pub fn unix_micros(self) -> i64 {
        self.0.saturating_add(Self::POSTGRES_EPOCH_UNIX_SECONDS as i64 * 1_000_000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_lsn_reads_and_prints_as_postgres_does() {
        for (text, value) in [("0/0", 0), ("16/B374D848", 0x16_B374_D848), ("FFFFFFFF/FFFFFFFF", u64::MAX)] {
            assert_eq!(text.parse(), Ok(Lsn(value)));
            assert_eq!(Lsn(value).to_string(), text);
        }
    }

    #[test]
    fn a_text_that_is_no_lsn_is_refused() {
        for text in ["", "/", "1", "1/", "/1", "1/2/3", "x/1", "1/+1", "123456789/0", " 1/2"] {
            assert!(text.parse::<Lsn>().is_err(), "{text}");
        }
    }
}
