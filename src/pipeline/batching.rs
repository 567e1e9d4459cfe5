//! How much of what waits goes into one batch, and when it goes behind another that is not answered. Pure: it starts nothing and reads
//! no clock.

use std::collections::VecDeque;
use std::time::Duration;

use crate::model::{Timestamp, Transaction};

/// A batch takes no further transaction beyond this size.
pub(super) const BYTES_LIMIT: u64 = 8 * 1024 * 1024;
/// Most transactions of a batch while commits wait for it.
const WAITED_TRANSACTIONS_LIMIT: usize = 500;
/// Work that a batch should hold at most while commits wait for it: the last of them waits for two.
const WAITED_WORK: Duration = Duration::from_millis(10);
/// Rows of such a batch before anything was measured, and the bounds of what measuring makes of it.
const WAITED_ROWS: u64 = 2_000;
const WAITED_ROWS_LEAST: u64 = 200;
const WAITED_ROWS_MOST: u64 = 50_000;
/// Smaller batches say little about the work of a row.
const TELLING_ROWS: u64 = 50;

/// With a longer round trip the sink is far: it is idle while an answer is on its way, and gathering meanwhile gains nothing. Measured
/// with 8 and 32 clients: at 1 ms smaller batches cost what following gains, from 3 ms on they do not.
const FAR: Duration = Duration::from_millis(2);

/// Complete transactions that wait for the sink.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    transactions: VecDeque<Transaction>,
    rows: u64,
    size_bytes: u64,
}

impl Waiting {
    pub(super) fn push(&mut self, transaction: Transaction) {
        self.rows += transaction.rows;
        self.size_bytes += transaction.size_bytes;
        self.transactions.push_back(transaction);
    }

    pub(super) fn len(&self) -> usize {
        self.transactions.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.transactions.is_empty()
    }

    /// In order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Transaction> {
        self.transactions.iter()
    }

    pub(super) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    pub(super) fn oldest(&self) -> Option<Timestamp> {
        self.transactions.front().map(Transaction::waits_since)
    }
}

/// The rule of one stream.
#[derive(Debug)]
pub(super) struct Batching {
    /// Most transactions of any batch: the sink's own limit.
    most_transactions: usize,
    is_far: bool,
    /// Whether commits on the primary may wait for this sink.
    is_waited_for: bool,
    waited_rows: u64,
}

impl Batching {
    /// For a sink that takes so many transactions and is so far away.
    pub(super) fn new(most_transactions: usize, round_trip: Duration) -> Self {
        Self { most_transactions, is_far: round_trip > FAR, is_waited_for: false, waited_rows: WAITED_ROWS }
    }

    pub(super) fn set_waited_for(&mut self, is_waited_for: bool) {
        self.is_waited_for = is_waited_for;
    }

    pub(super) fn is_waited_for(&self) -> bool {
        self.is_waited_for
    }

    /// A batch of so many rows took this long.
    pub(super) fn measured(&mut self, rows: u64, elapsed: Duration) {
        if rows < TELLING_ROWS {
            return;
        }
        let fitting = (u128::from(rows) * WAITED_WORK.as_nanos() / elapsed.as_nanos().max(1)) as u64;
        // Half of what is new, so that one slow batch does not decide.
        self.waited_rows = ((self.waited_rows + fitting) / 2).clamp(WAITED_ROWS_LEAST, WAITED_ROWS_MOST);
    }

    /// Whether batches follow each other unanswered before they are full.
    pub(super) fn is_hurried(&self) -> bool {
        self.is_waited_for && self.is_far
    }

    /// Whether what waits goes behind batches that are not answered: where it makes a full batch; or where the sink is far, commits
    /// wait, and it is due, that is, the sink will be idle by the time it arrives. Elsewhere the sink is at work until it answers,
    /// and what gathers meanwhile costs it less.
    pub(super) fn may_follow(&self, waiting: &Waiting, is_due: bool) -> bool {
        let (most_transactions, most_rows) = self.limits();
        let is_full =
            waiting.len() >= most_transactions || waiting.rows >= most_rows || waiting.size_bytes >= BYTES_LIMIT;
        is_full || is_due && self.is_hurried()
    }

    /// Takes the next batch off the front, at most so many and at least one transaction if there is one.
    pub(super) fn take(&self, waiting: &mut Waiting, most: usize) -> Vec<Transaction> {
        let (most_transactions, most_rows) = self.limits();
        let most_transactions = most_transactions.min(most);
        let (mut rows, mut size_bytes) = (0, 0);
        let mut count = 0;
        for transaction in &waiting.transactions {
            let (next_rows, next_bytes) = (rows + transaction.rows, size_bytes + transaction.size_bytes);
            if count > 0 && (count >= most_transactions || next_rows > most_rows || next_bytes > BYTES_LIMIT) {
                break;
            }
            (rows, size_bytes) = (next_rows, next_bytes);
            count += 1;
        }
        waiting.rows -= rows;
        waiting.size_bytes -= size_bytes;
        waiting.transactions.drain(..count).collect()
    }

    /// Most transactions and rows of a batch.
    fn limits(&self) -> (usize, u64) {
        if self.is_waited_for {
            (WAITED_TRANSACTIONS_LIMIT.min(self.most_transactions), self.waited_rows)
        } else {
            (self.most_transactions, u64::MAX)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Body, Lsn};

    fn transaction(rows: u64, size_bytes: u64) -> Transaction {
        Transaction {
            xid: 1,
            commit_lsn: Lsn(1),
            end_lsn: Lsn(2),
            commit_time: Timestamp(0),
            origin: None,
            streamed: false,
            taken_back: 0,
            rows,
            size_bytes,
            body: Body::Memory(VecDeque::new()),
            reservation: None,
        }
    }

    /// Compares how many of equal transactions make the first batch.
    fn check(batching: &Batching, count: usize, rows: u64, size_bytes: u64, expected: usize) {
        let mut waiting = Waiting::default();
        (0..count).for_each(|_| waiting.push(transaction(rows, size_bytes)));
        assert_eq!(
            batching.take(&mut waiting, usize::MAX).len(),
            expected,
            "{count} of {rows} rows, {size_bytes} bytes"
        );
        let rest = count - expected;
        let left = (rest, rest as u64 * rows, rest as u64 * size_bytes);
        assert_eq!((waiting.len(), waiting.rows, waiting.size_bytes), left);
    }

    #[test]
    fn what_waits_follows_where_it_fills_a_batch_or_where_the_sink_is_far_and_commits_wait() {
        let (near, far) = (Duration::from_millis(1), Duration::from_millis(5));
        // Round trip, whether commits wait, transactions, rows and bytes of each, and whether they follow.
        let cases = [
            (near, false, 1, 1, 100, false),
            (far, false, 40_000, 1, 100, false),
            (near, false, 50_000, 1, 100, true),
            (near, false, 3, 1, 3 << 20, true),
            (near, true, 499, 1, 100, false),
            (near, true, 500, 1, 100, true),
            (near, true, 2, 1_000, 100, true),
            (far, true, 1, 1, 100, true),
        ];
        for (round_trip, is_waited_for, count, rows, size_bytes, expected) in cases {
            let mut batching = Batching::new(50_000, round_trip);
            batching.set_waited_for(is_waited_for);
            let mut waiting = Waiting::default();
            (0..count).for_each(|_| waiting.push(transaction(rows, size_bytes)));
            let case = (round_trip, is_waited_for, count, rows, size_bytes);
            assert_eq!(batching.may_follow(&waiting, true), expected, "{case:?}");
            assert_eq!(batching.may_follow(&waiting, false), expected && !batching.is_hurried(), "{case:?}");
        }
    }

    #[test]
    fn a_batch_is_large_unless_commits_wait_for_it() {
        let mut batching = Batching::new(50_000, Duration::ZERO);
        check(&batching, 0, 1, 100, 0);
        check(&batching, 60_000, 1, 100, 50_000);
        check(&batching, 10, 1, 3 << 20, 2);
        check(&batching, 2, 1, 100 << 20, 1);
        batching.set_waited_for(true);
        check(&batching, 60_000, 1, 100, 500);
        check(&batching, 1_000, 100, 100, 20);
        check(&batching, 3, 1_000_000, 100, 1);
    }

    #[test]
    fn work_that_was_measured_bounds_a_batch_that_is_waited_for() {
        let mut batching = Batching::new(50_000, Duration::ZERO);
        batching.set_waited_for(true);
        // Too few rows to tell.
        batching.measured(10, Duration::from_secs(1));
        check(&batching, 1_000, 100, 100, 20);
        // 100 µs a row: a hundred rows would fit, the least is 200.
        (0..20).for_each(|_| batching.measured(1_000, Duration::from_millis(100)));
        check(&batching, 1_000, 100, 100, 2);
        // 1 µs a row.
        (0..20).for_each(|_| batching.measured(10_000, Duration::from_millis(10)));
        check(&batching, 1_000, 100, 100, 99);
    }
}
