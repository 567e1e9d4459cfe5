//! The batches that the sink works on, oldest first; how much of the time each of them took was its own; and from that, when the next
//! one should go. Pure: time is passed in.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::model::Timestamp;

/// What is remembered of a batch until its receipt comes.
#[derive(Clone, Copy, Debug)]
struct Begun {
    /// Commit time of its first transaction; `None` for a mere position.
    first_commit_time: Option<Timestamp>,
    at: Instant,
    size_bytes: u64,
    is_ahead: bool,
}

/// A batch whose receipt came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ended {
    pub(super) size_bytes: u64,
    /// How long the sink worked on it: not while it was at the one before, nor while the batch was on its way. `None` where most of
    /// it was written before.
    pub(super) work: Option<Duration>,
}

/// All of them. Receipts come in order.
#[derive(Debug)]
pub(super) struct UnderWay {
    batches: VecDeque<Begun>,
    /// When the last receipt came.
    answered: Option<Instant>,
    /// What a batch's work is about to be.
    expected_work: Duration,
    round_trip: Duration,
}

impl UnderWay {
    /// None, for a sink that is so far away.
    pub(super) fn new(round_trip: Duration) -> Self {
        Self { batches: VecDeque::new(), answered: None, expected_work: Duration::ZERO, round_trip }
    }

    pub(super) fn len(&self) -> usize {
        self.batches.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    /// A batch begins, of which perhaps most was written before.
    pub(super) fn begin(
        &mut self,
        now: Instant,
        first_commit_time: Option<Timestamp>,
        size_bytes: u64,
        is_ahead: bool,
    ) {
        self.batches.push_back(Begun { first_commit_time, at: now, size_bytes, is_ahead });
    }

    /// The receipt of the oldest one came.
    pub(super) fn end(&mut self, now: Instant) -> Option<Ended> {
        let begun = self.batches.pop_front()?;
        let start = self.start(&begun, self.answered);
        self.answered = Some(now);
        let work = (!begun.is_ahead).then(|| now.saturating_duration_since(start));
        // Half of what is new, so that one slow batch does not decide.
        self.expected_work = work.map_or(self.expected_work, |work| (self.expected_work + work) / 2);
        Some(Ended { size_bytes: begun.size_bytes, work })
    }

    /// When the next batch should be sent to arrive as the sink finishes what is under way, by what batches took so far. `None`
    /// while nothing is.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let mut free = self.answered;
        for batch in &self.batches {
            free = Some(self.start(batch, free) + self.expected_work);
        }
        free.filter(|_| !self.is_empty()).and_then(|free| free.checked_sub(self.round_trip))
    }

    /// When the sink begins a batch, by the time at which the answer would come here if it took no time.
    fn start(&self, batch: &Begun, free: Option<Instant>) -> Instant {
        let arrived = batch.at + self.round_trip;
        free.map_or(arrived, |free| free.max(arrived))
    }

    /// Commit time of the oldest transaction.
    pub(super) fn oldest(&self) -> Option<Timestamp> {
        self.batches.iter().find_map(|batch| batch.first_commit_time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_s_work_is_what_neither_the_way_nor_the_batch_before_took() {
        let start = Instant::now();
        let at = |millis: u64| start + Duration::from_millis(millis);
        let mut under_way = UnderWay::new(Duration::from_millis(10));
        // Begun and ended at, size, and work, milliseconds: alone, then three behind each other, the last one late.
        let cases = [(0, 13, 3), (20, 35, 5), (21, 42, 7), (22, 45, 3), (44, 58, 4)];
        let mut begun = cases.iter();
        let mut begin = |under_way: &mut UnderWay, count| {
            for (size_bytes, (began, ..)) in begun.by_ref().take(count).enumerate() {
                under_way.begin(at(*began), Some(Timestamp(*began as i64)), size_bytes as u64, false);
            }
        };
        begin(&mut under_way, 1);
        assert_eq!((under_way.len(), under_way.oldest()), (1, Some(Timestamp(0))));
        for (index, (_, ended, work)) in cases.into_iter().enumerate() {
            let expected = Duration::from_millis(work);
            assert_eq!(under_way.end(at(ended)).and_then(|ended| ended.work), Some(expected), "{index}");
            if index == 0 {
                assert!(under_way.is_empty());
                begin(&mut under_way, 4);
            }
        }
        assert_eq!(under_way.end(at(60)), None);
    }

    #[test]
    fn the_next_batch_goes_so_that_it_arrives_as_the_sink_finishes() {
        let start = Instant::now();
        let at = |millis: u64| start + Duration::from_millis(millis);
        let mut under_way = UnderWay::new(Duration::from_millis(10));
        let begin = |under_way: &mut UnderWay, millis| under_way.begin(at(millis), None, 0, false);
        assert_eq!(under_way.next_due(), None);
        begin(&mut under_way, 0);
        assert_eq!(under_way.next_due(), Some(at(0)), "nothing was measured: at once");
        under_way.end(at(18));
        assert_eq!(under_way.next_due(), None);
        // Eight milliseconds of work: half of it is believed.
        begin(&mut under_way, 20);
        assert_eq!(under_way.next_due(), Some(at(24)));
        begin(&mut under_way, 24);
        assert_eq!(under_way.next_due(), Some(at(28)));
        begin(&mut under_way, 40);
        assert_eq!(under_way.next_due(), Some(at(44)), "the sink was idle before");
    }
}
