//! When the sink is to make durable what it has applied without waiting for its disk. Pure: time is passed in.
//!
//! While the primary waits for us, or everything is to end: at once. Otherwise soon enough that the slot follows, and that a crash
//! of the sink costs little work.

use std::time::{Duration, Instant};

/// How long a batch may stay without a flush while nobody waits for it, …
const UNHURRIED: Duration = Duration::from_millis(100);
/// … and how much may gather until then, bytes as received.
const UNHURRIED_BYTES: u64 = 16 * 1024 * 1024;

/// The rhythm of flushes.
#[derive(Clone, Debug, Default)]
pub struct Flushes {
    is_waited_for: bool,
    is_ending: bool,
    /// When the first batch was applied that no flush covers.
    since: Option<Instant>,
    size_bytes: u64,
}

impl Flushes {
    /// Whether commits on the primary may wait for us (`sync`, `quorum` and `potential` count).
    pub fn set_waited_for(&mut self, is_waited_for: bool) {
        self.is_waited_for = is_waited_for;
    }

    /// The stream is being ended.
    pub fn end(&mut self) {
        self.is_ending = true;
    }

    /// A batch of this size was applied and is not durable.
    pub fn applied(&mut self, now: Instant, size_bytes: u64) {
        self.since.get_or_insert(now);
        self.size_bytes += size_bytes;
    }

    /// All that was applied is durable, or a flush began that makes it so.
    pub fn covered(&mut self) {
        self.since = None;
        self.size_bytes = 0;
    }

    /// When the next flush is due, if anything needs one: the past means at once.
    pub fn due(&self) -> Option<Instant> {
        let since = self.since?;
        let is_now = self.is_waited_for || self.is_ending || self.size_bytes >= UNHURRIED_BYTES;
        Some(if is_now { since } else { since + UNHURRIED })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flush_waits_only_while_nobody_waits_for_it_and_little_has_gathered() {
        let start = Instant::now();
        let later = start + Duration::from_millis(30);
        let mut flushes = Flushes::default();
        assert_eq!(flushes.due(), None, "nothing to make durable");
        flushes.applied(start, 10);
        flushes.applied(later, 10);
        assert_eq!(flushes.due(), Some(start + UNHURRIED), "the first one counts");
        flushes.set_waited_for(true);
        assert_eq!(flushes.due(), Some(start));
        flushes.covered();
        assert_eq!(flushes.due(), None);
        flushes.set_waited_for(false);
        flushes.applied(later, UNHURRIED_BYTES);
        assert_eq!(flushes.due(), Some(later));
        flushes.covered();
        flushes.end();
        flushes.applied(start, 0);
        assert_eq!(flushes.due(), Some(start));
    }
}
