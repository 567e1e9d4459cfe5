//! What a feed of events has sent, what of it a consumer should know of, and whether its brokers are away. Shared; the counters only
//! grow.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// A feed in numbers, since its pipeline started. Only what was committed counts; what is sent again after that counts again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FeedReport {
    /// Records: events, tombstones, marks of transactions.
    pub records: u64,
    /// Bytes of their keys and values.
    pub bytes: u64,
    /// Values that the form of the events could not hold exactly; their columns are named in the header `walrelay.lossy`.
    pub lossy_values: u64,
    /// Records too large for their topic, told of in the dead-letter topic instead.
    pub dead_letters: u64,
    /// Truncated tables that made no event.
    pub skipped_truncates: u64,
}

/// The counters of one pipeline.
#[derive(Clone, Debug, Default)]
pub struct FeedCounts(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    records: AtomicU64,
    bytes: AtomicU64,
    lossy_values: AtomicU64,
    dead_letters: AtomicU64,
    skipped_truncates: AtomicU64,
    are_brokers_away: AtomicBool,
}

impl FeedCounts {
    /// So much more.
    pub fn add(&self, more: FeedReport) {
        let Counts { records, bytes, lossy_values, dead_letters, skipped_truncates, .. } = &*self.0;
        for (counter, more) in [
            (records, more.records),
            (bytes, more.bytes),
            (lossy_values, more.lossy_values),
            (dead_letters, more.dead_letters),
            (skipped_truncates, more.skipped_truncates),
        ] {
            counter.fetch_add(more, Ordering::Relaxed);
        }
    }

    /// The brokers do not answer, and what is under way waits for them; or they do again.
    pub fn set_brokers_away(&self, are_away: bool) {
        self.0.are_brokers_away.store(are_away, Ordering::Relaxed);
    }

    /// Whether work waits for brokers that do not answer.
    pub fn are_brokers_away(&self) -> bool {
        self.0.are_brokers_away.load(Ordering::Relaxed)
    }

    /// All of them.
    pub fn report(&self) -> FeedReport {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        FeedReport {
            records: read(&self.0.records),
            bytes: read(&self.0.bytes),
            lossy_values: read(&self.0.lossy_values),
            dead_letters: read(&self.0.dead_letters),
            skipped_truncates: read(&self.0.skipped_truncates),
        }
    }
}

impl FeedReport {
    /// What has come since `before`, which was read earlier from the same counters.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        Self {
            records: self.records.saturating_sub(before.records),
            bytes: self.bytes.saturating_sub(before.bytes),
            lossy_values: self.lossy_values.saturating_sub(before.lossy_values),
            dead_letters: self.dead_letters.saturating_sub(before.dead_letters),
            skipped_truncates: self.skipped_truncates.saturating_sub(before.skipped_truncates),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_since_is_added() {
        let (before, now) = (
            FeedReport { records: 2, ..FeedReport::default() },
            FeedReport { records: 5, lossy_values: 1, ..FeedReport::default() },
        );
        let counts = FeedCounts::default();
        counts.add(before);
        counts.clone().add(now.since(before));
        assert_eq!(counts.report(), now);
    }
}
