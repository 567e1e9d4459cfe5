//! Whether the standby reads blocks for the rows that are applied there, which is what prefetching helps against: the rule, and the look
//! at the server's own counter, on another session beside the batches. Reads no table and changes nothing.

use std::sync::{Arc, Mutex, PoisonError};

use crate::model::Prefetching;
use crate::wire::Connection;

use super::super::SinkError;
use super::store::query_row;

/// From so many block reads a row on it is worth while, …
const WORTH_READS: f64 = 0.1;
/// … and below this no more, once so many looks in a row say so: reads are told of later than the rows that they were for.
const IDLE_READS: f64 = 0.05;
const IDLE_LOOKS: u32 = 3;
/// Fewer rows say little, and are not asked about.
const TELLING_ROWS: u64 = 1000;

/// Blocks that the database has read in all. A session tells of its own at the end of a transaction, once a second at most; what reads
/// for other reasons than ours counts too, since it fills the same memory.
const BLOCKS_READ: &str = "SELECT (pg_catalog.pg_stat_get_db_blocks_fetched(oid) - pg_catalog.pg_stat_get_db_blocks_hit(oid))::text \
    FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()";

/// How far the counters were at a look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counted {
    reads: u64,
    rows: u64,
}

/// Decides by what came between looks. It begins with prefetching on: the first batches of a stream may be its largest, and nothing
/// is known of them; where nothing is read they cost some lookups more, for a few looks.
#[derive(Debug, Default)]
struct Rule {
    last: Option<Counted>,
    /// Looks in a row that saw next to no reads.
    idle_looks: u32,
}

impl Rule {
    /// Whether enough rows came that another look may tell something.
    fn is_due(&self, rows: u64) -> bool {
        self.last.is_none_or(|last| rows.saturating_sub(last.rows) >= TELLING_ROWS)
    }

    /// Block reads a row since the last look; `None` at first.
    fn look(&mut self, now: Counted) -> Option<f64> {
        let last = self.last.replace(now)?;
        // A counter that was reset begins anew.
        let (reads, rows) = (now.reads.saturating_sub(last.reads), now.rows.saturating_sub(last.rows));
        Some(reads as f64 / rows.max(1) as f64)
    }

    /// Whether it is done from now on, by so many reads a row and what was.
    fn is_worth(&mut self, reads_per_row: f64, is_on: bool) -> bool {
        self.idle_looks = if reads_per_row < IDLE_READS { self.idle_looks + 1 } else { 0 };
        if is_on { self.idle_looks < IDLE_LOOKS } else { reads_per_row >= WORTH_READS }
    }
}

/// What is known of block reads, shared between looks.
#[derive(Clone, Debug)]
pub(super) struct Reads {
    prefetching: Prefetching,
    rule: Arc<Mutex<Rule>>,
}

impl Reads {
    pub(super) fn new(prefetching: Prefetching) -> Self {
        prefetching.switch(true);
        Self { prefetching, rule: Arc::default() }
    }

    /// Looks, if so many rows applied in all are reason for it, and switches prefetching by what is seen.
    pub(super) async fn look(&self, connection: &mut Connection, rows: u64) -> Result<(), SinkError> {
        let lock = || self.rule.lock().unwrap_or_else(PoisonError::into_inner);
        if !lock().is_due(rows) {
            return Ok(());
        }
        let answer = query_row(connection, BLOCKS_READ, "asking what the standby reads").await?;
        let Some(reads) = answer.into_iter().next().flatten().and_then(|text| text.parse().ok()) else { return Ok(()) };
        let Some(reads_per_row) = lock().look(Counted { reads, rows }) else { return Ok(()) };
        self.prefetching.measured(reads_per_row);
        let was_on = self.prefetching.is_on();
        let is_on = lock().is_worth(reads_per_row, was_on);
        if is_on != was_on {
            self.prefetching.switch(is_on);
            let what = if is_on { "begins to read" } else { "no longer reads" };
            tracing::info!(block_reads_per_row = %format_args!("{reads_per_row:.3}"), "the standby {what} pages ahead of the rows");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks with these totals of reads and rows; what each tells: whether a look was due, and whether it is on then.
    fn check(looks: &[(u64, u64, bool, bool)]) {
        let (mut rule, mut is_on) = (Rule::default(), true);
        for (at, (reads, rows, is_due, expected)) in looks.iter().enumerate() {
            assert_eq!(rule.is_due(*rows), *is_due, "look {at}");
            if *is_due && let Some(reads_per_row) = rule.look(Counted { reads: *reads, rows: *rows }) {
                is_on = rule.is_worth(reads_per_row, is_on);
            }
            assert_eq!(is_on, *expected, "look {at}");
        }
    }

    #[test]
    fn it_is_on_while_blocks_are_read() {
        // Nothing is read, by several looks; few rows tell nothing.
        let idle = [(500, 0, true, true), (500, 999, false, true), (510, 1000, true, true), (520, 2000, true, true)];
        check(&idle);
        check(&[&idle[..], &[(530, 3000, true, false), (9000, 3999, false, false), (9000, 4000, true, true)]].concat());
        // Told of late.
        let late = [(0, 0, true, true), (0, 1000, true, true), (0, 2000, true, true), (3000, 3000, true, true)];
        check(&[&late[..], &[(3000, 4000, true, true), (3000, 5000, true, true), (3000, 6000, true, false)]].concat());
    }

    #[test]
    fn between_its_bounds_it_stays_as_it_is() {
        let between = |last: u64, is_on: bool| (last * 70, last * 1000, true, is_on);
        check(&[(0, 0, true, true), between(1, true), between(2, true), between(3, true), between(4, true)]);
        let off = [(0, 0, true, true), (0, 1000, true, true), (0, 2000, true, true), (0, 3000, true, false)];
        check(&[&off[..], &[(70, 4000, true, false), (140, 5000, true, false), (240, 6000, true, true)]].concat());
        // A counter that was reset is none that ran backwards.
        check(&[(5000, 0, true, true), (0, 1000, true, true), (200, 2000, true, true)]);
    }
}
