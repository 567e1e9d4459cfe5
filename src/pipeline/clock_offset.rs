//! How far the primary's clock is before ours, by what its keepalives say. Each says too little by the time that passed before it was read:
//! on the way, in buffers, while the stream was not read at all. So the largest of the last minute or two counts. Pure: time is passed in.

use std::time::{Duration, Instant};

use crate::model::Timestamp;

/// A smaller offset is believed where nothing larger was said for one to two of these, and never by the first keepalive after a pause.
const WINDOW: Duration = Duration::from_secs(60);

/// The samples of the current window.
#[derive(Clone, Copy, Debug)]
struct Window {
    began: Instant,
    largest_micros: i64,
}

/// The primary's clock minus ours; zero until it has said something.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ClockOffset {
    current: Option<Window>,
    /// The largest of the window before, which ended with the first sample behind it: a stream that was not read for long must not
    /// forget what it knew with the first late keepalive.
    before_micros: Option<i64>,
}

impl ClockOffset {
    /// The primary's clock showed `theirs`, and ours shows `ours` as that is read.
    pub(super) fn note(&mut self, theirs: Timestamp, ours: Timestamp, now: Instant) {
        let micros = theirs.0.saturating_sub(ours.0);
        match &mut self.current {
            Some(window) if now.saturating_duration_since(window.began) < WINDOW => {
                window.largest_micros = window.largest_micros.max(micros);
            }
            current => {
                self.before_micros = current.map(|window| window.largest_micros);
                *current = Some(Window { began: now, largest_micros: micros });
            }
        }
    }

    /// What the primary's clock shows when ours shows `ours`.
    pub(super) fn theirs(&self, ours: Timestamp) -> Timestamp {
        let current_micros = self.current.map(|window| window.largest_micros);
        Timestamp(ours.0.saturating_add(current_micros.max(self.before_micros).unwrap_or(0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Notes each sample, a second and an offset in seconds, and compares what is believed after it.
    fn check(samples: &[(u64, i64, i64)]) {
        let (began, ours) = (Instant::now(), Timestamp(1_000_000_000_000));
        let mut offset = ClockOffset::default();
        assert_eq!(offset.theirs(ours), ours);
        for &(second, sample, believed) in samples {
            let theirs = |seconds: i64| Timestamp(ours.0 + seconds * 1_000_000);
            offset.note(theirs(sample), ours, began + Duration::from_secs(second));
            assert_eq!(offset.theirs(ours), theirs(believed), "after {second} s of {samples:?}");
        }
    }

    #[test]
    fn a_keepalive_that_was_read_late_says_nothing() {
        check(&[(0, 0, 0), (1, -5, 0), (30, 0, 0), (31, -20, 0)]);
        // Nothing was read for ten minutes; then what had waited so long comes first.
        check(&[(0, 0, 0), (600, -600, 0), (600, -570, 0), (601, -1, 0), (602, 0, 0), (661, 0, 0), (722, -3, 0)]);
    }

    #[test]
    fn a_clock_that_is_behind_or_before_ours_is_believed_at_once() {
        check(&[(0, -3600, -3600), (1, -3601, -3600)]);
        check(&[(0, 3600, 3600), (1, 3595, 3600)]);
        check(&[(0, 0, 0), (1, 7, 7), (2, 0, 7)]);
    }

    #[test]
    fn a_clock_that_was_set_back_is_believed_after_the_window() {
        check(&[(0, 0, 0), (10, -600, 0), (59, -600, 0), (60, -600, 0), (119, -600, 0), (120, -600, -600)]);
        // However rarely it speaks: at its second word.
        check(&[(0, 0, 0), (900, -600, 0), (1800, -600, -600)]);
    }
}
