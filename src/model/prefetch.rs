//! Whether pages of the standby's tables are read ahead of the batches that need them, and what came of it. Shared; decides nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Prefetching in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PrefetchReport {
    /// Whether it is done now.
    pub is_on: bool,
    /// Rows looked for ahead of their change, since the pipeline started.
    pub rows: u64,
    /// Blocks that the standby's database read for each row change when that was last looked at; `None` before the first look.
    pub block_reads_per_row: Option<f64>,
}

/// The switch and the counters of one pipeline.
#[derive(Clone, Debug, Default)]
pub struct Prefetching(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    is_on: AtomicBool,
    rows: AtomicU64,
    /// The bits of a number, good once it is measured.
    block_reads_per_row: AtomicU64,
    is_measured: AtomicBool,
}

impl Prefetching {
    /// From now on it is done, or not.
    pub fn switch(&self, is_on: bool) {
        self.0.is_on.store(is_on, Ordering::Relaxed);
    }

    /// Whether it is done.
    pub fn is_on(&self) -> bool {
        self.0.is_on.load(Ordering::Relaxed)
    }

    /// So many rows more were looked for.
    pub fn add_rows(&self, rows: u64) {
        self.0.rows.fetch_add(rows, Ordering::Relaxed);
    }

    /// So many blocks are read for each row change.
    pub fn measured(&self, block_reads_per_row: f64) {
        self.0.block_reads_per_row.store(block_reads_per_row.to_bits(), Ordering::Relaxed);
        self.0.is_measured.store(true, Ordering::Release);
    }

    /// All of it.
    pub fn report(&self) -> PrefetchReport {
        let is_measured = self.0.is_measured.load(Ordering::Acquire);
        let reads = || f64::from_bits(self.0.block_reads_per_row.load(Ordering::Relaxed));
        PrefetchReport {
            is_on: self.is_on(),
            rows: self.0.rows.load(Ordering::Relaxed),
            block_reads_per_row: is_measured.then(reads),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_comes_back() {
        let prefetching = Prefetching::default();
        assert_eq!(prefetching.report(), PrefetchReport::default());
        prefetching.switch(true);
        prefetching.clone().add_rows(3);
        prefetching.measured(0.0);
        let expected = PrefetchReport { is_on: true, rows: 3, block_reads_per_row: Some(0.0) };
        assert_eq!(prefetching.report(), expected);
    }
}
