//! `on_large_transaction = "split"`: a source transaction that is too large for one Kafka transaction goes out in several, its
//! parts. Pure bookkeeping: which changes were sent before, which part is open, when it is full. Sends nothing.
//!
//! ```text
//! part 1: changes 1..a, record {before, inside: a} ─▶ part 2: changes a+1..b, record {before, inside: b} ─▶ … ─▶ last: record {its end}
//! ```
//!
//! What counts are the changes as the primary sends them, not the records that they become: the same transaction comes again from
//! the slot with the same changes, whatever the settings of the encoder or the tables have become meanwhile.

use std::time::Duration;

use crate::decode::Message;
use crate::model::Lsn;

use crate::sink::SinkError;
use crate::sink::kafka::encode::{Outlet, Record};

/// A transaction is taken as too large beyond so many bytes, as received, for each second of `transaction_timeout`, and a part is
/// full then: even a slow cluster takes several times as much.
const BYTES_PER_SECOND: u64 = 1 << 20;
/// … and never below: a smaller transaction shares its Kafka transaction with others.
const LEAST_BYTES: u64 = 8 << 20;
/// A part is full when this part of `transaction_timeout` is over; the rest is for the delivery of what waits, and for the commit.
const TIME_PART: u32 = 2;

/// How far inside a transaction the record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inside {
    /// The transaction: start of its commit record.
    pub lsn: Lsn,
    /// Its changes that are sent; 0: none, but it is to be sent in parts.
    pub changes: u64,
    /// Where the last of them stands: it is the same change, or the transaction is not the same.
    pub at: Lsn,
    /// Its parts that are committed.
    pub parts: u64,
}

/// From how many bytes on a transaction goes out in parts, and a part is full.
pub(super) fn large_bytes(timeout: Duration) -> u64 {
    timeout.as_secs().saturating_mul(BYTES_PER_SECOND).max(LEAST_BYTES)
}

/// How long a part, or a transaction that is not in parts yet, may take until it is committed.
pub(super) fn time_limit(timeout: Duration) -> Duration {
    timeout / TIME_PART
}

/// A transaction on its way in parts.
#[derive(Debug)]
pub(super) struct Parts {
    before: Inside,
    now: Inside,
    /// Changes and bytes of the open part.
    part_changes: u64,
    part_bytes: u64,
}

impl Parts {
    /// Goes on behind what was sent.
    pub(super) fn after(inside: Inside) -> Self {
        Self { before: inside, now: Inside { changes: 0, at: Lsn::ZERO, ..inside }, part_changes: 0, part_bytes: 0 }
    }

    /// Begins a transaction.
    pub(super) fn of(lsn: Lsn) -> Self {
        Self::after(Inside { lsn, changes: 0, at: Lsn::ZERO, parts: 0 })
    }

    /// Whether its begin was sent before.
    pub(super) fn is_begun(&self) -> bool {
        self.before.changes > 0
    }

    /// The number of the open part, from 1.
    pub(super) fn number(&self) -> u64 {
        self.now.parts + 1
    }

    /// Takes the next message of the transaction; whether it was sent before.
    pub(super) fn was_sent(&mut self, message: &Message<'_>, lsn: Lsn, size_bytes: usize) -> Result<bool, SinkError> {
        if !is_change(message) {
            return Ok(false);
        }
        self.now.changes += 1;
        self.now.at = lsn;
        if self.now.changes > self.before.changes {
            self.part_changes += 1;
            self.part_bytes += size_bytes as u64;
            return Ok(false);
        }
        if self.now.changes == self.before.changes && self.before.at != lsn {
            return Err(self.another());
        }
        Ok(true)
    }

    /// All changes that were sent before have come by.
    pub(super) fn is_behind_sent(&self) -> bool {
        self.now.changes >= self.before.changes
    }

    /// Whether the open part is to be committed before more of the transaction is sent.
    pub(super) fn is_full(&self, most_bytes: u64, elapsed: Duration, time_limit: Duration) -> bool {
        self.part_changes > 0 && (self.part_bytes >= most_bytes || elapsed >= time_limit)
    }

    /// Ends the open part; what the record is to say with it.
    pub(super) fn end_part(&mut self) -> Inside {
        self.now.parts += 1;
        (self.part_changes, self.part_bytes) = (0, 0);
        self.now
    }

    /// The transaction ended; an error if it had fewer changes than were sent.
    pub(super) fn end(&self) -> Result<(), SinkError> {
        if self.is_behind_sent() { Ok(()) } else { Err(self.another()) }
    }

    fn another(&self) -> SinkError {
        SinkError::Refused(format!(
            "the transaction at {lsn} was sent in part, {changes} changes up to {at}, and comes again with other changes: it is read \
             through another publication than before. Set `publication` back until this transaction is through, or start over: walrelay \
             drop",
            lsn = self.before.lsn,
            changes = self.before.changes,
            at = self.before.at
        ))
    }
}

fn is_change(message: &Message<'_>) -> bool {
    matches!(
        message,
        Message::Insert { .. }
            | Message::Update { .. }
            | Message::Delete { .. }
            | Message::Truncate { .. }
            | Message::Logical(_)
    )
}

/// Takes records that were sent before: the encoder must count them, nobody else.
pub(super) struct SentBefore;

impl Outlet for SentBefore {
    fn send(&mut self, _: Record<'_>) -> Result<(), SinkError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::{Context, decode};

    const INSERT: &[u8] = b"I\0\0\0\x07N\0\0";
    const RELATION: &[u8] = b"R\0\0\0\x07public\0t\0d\0\0";

    /// Gives messages at these positions; which of them were sent before, or part of the refusal.
    fn check(inside: Inside, messages: &[(&[u8], u64)], expected: Result<&[bool], &str>) {
        let mut parts = Parts::after(inside);
        let mut found = Vec::new();
        for (payload, lsn) in messages {
            let message = decode(payload, Context::default()).unwrap();
            match parts.was_sent(&message, Lsn(*lsn), payload.len()) {
                Ok(was_sent) => found.push(was_sent),
                Err(error) => return assert!(error.to_string().contains(expected.unwrap_err()), "{error}"),
            }
        }
        match (parts.end(), expected) {
            (Ok(()), Ok(expected)) => assert_eq!(found, expected),
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
            (result, expected) => panic!("{result:?} instead of {expected:?}"),
        }
    }

    #[test]
    fn changes_are_counted_and_what_only_describes_them_is_not() {
        let inside = |changes, at| Inside { lsn: Lsn(90), changes, at: Lsn(at), parts: 1 };
        let all: &[(&[u8], u64)] = &[(RELATION, 0), (INSERT, 5), (RELATION, 0), (INSERT, 5), (INSERT, 7)];
        check(inside(0, 0), all, Ok(&[false; 5]));
        check(inside(1, 5), all, Ok(&[false, true, false, false, false]));
        check(inside(2, 5), all, Ok(&[false, true, false, true, false]));
        check(inside(3, 7), all, Ok(&[false, true, false, true, true]));
        check(inside(2, 7), all, Err("comes again with other changes"));
        check(inside(4, 8), all, Err("comes again with other changes"));
    }

    #[test]
    fn a_part_is_full_by_bytes_or_by_time_and_never_empty() {
        let (limit, short) = (Duration::from_secs(4), Duration::from_secs(1));
        let mut parts = Parts::of(Lsn(90));
        assert!(!parts.is_full(8, limit, limit));
        let insert = decode(INSERT, Context::default()).unwrap();
        assert!(!parts.was_sent(&insert, Lsn(5), INSERT.len()).unwrap());
        assert!(parts.is_full(8, short, limit) && !parts.is_full(80, short, limit) && parts.is_full(80, limit, limit));
        assert_eq!(parts.number(), 1);
        assert_eq!(parts.end_part(), Inside { lsn: Lsn(90), changes: 1, at: Lsn(5), parts: 1 });
        assert!(!parts.is_full(8, limit, limit));
        assert_eq!(parts.number(), 2);
    }

    #[test]
    fn what_is_large_grows_with_the_time_there_is() {
        assert_eq!(large_bytes(Duration::from_secs(1)), LEAST_BYTES);
        assert_eq!(large_bytes(Duration::from_secs(900)), 900 << 20);
    }
}
