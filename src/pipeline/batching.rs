//! How much of what waits goes into one batch. Pure: it starts nothing and reads no clock.

use std::collections::VecDeque;
use std::time::Duration;

use crate::model::Transaction;

/// A batch takes no further transaction beyond this size.
const BYTES_LIMIT: u64 = 8 * 1024 * 1024;
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

/// The rule of one stream.
#[derive(Debug)]
pub(super) struct Batching {
    /// Most transactions of any batch: the sink's own limit.
    most_transactions: usize,
    /// Whether commits on the primary may wait for this sink.
    is_waited_for: bool,
    waited_rows: u64,
}

impl Batching {
    pub(super) fn new(most_transactions: usize) -> Self {
        Self { most_transactions, is_waited_for: false, waited_rows: WAITED_ROWS }
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

    /// Takes the next batch off the front, at least one transaction if there is one.
    pub(super) fn take(&self, waiting: &mut VecDeque<Transaction>) -> Vec<Transaction> {
        let (most_transactions, most_rows) = if self.is_waited_for {
            (WAITED_TRANSACTIONS_LIMIT.min(self.most_transactions), self.waited_rows)
        } else {
            (self.most_transactions, u64::MAX)
        };
        let (mut rows, mut size_bytes) = (0, 0);
        let mut count = 0;
        for transaction in waiting.iter() {
            rows += transaction.rows;
            size_bytes += transaction.size_bytes;
            if count > 0 && (count >= most_transactions || rows > most_rows || size_bytes > BYTES_LIMIT) {
                break;
            }
            count += 1;
        }
        waiting.drain(..count).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Body, Lsn, Timestamp};

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
        let mut waiting: VecDeque<_> = (0..count).map(|_| transaction(rows, size_bytes)).collect();
        assert_eq!(batching.take(&mut waiting).len(), expected, "{count} of {rows} rows, {size_bytes} bytes");
        assert_eq!(waiting.len(), count - expected);
    }

    #[test]
    fn a_batch_is_large_unless_commits_wait_for_it() {
        let mut batching = Batching::new(50_000);
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
        let mut batching = Batching::new(50_000);
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
