//! When an idle position is worth a write to the sink. Pure: time is passed in.
//!
//! While the primary waits for us, a foreign commit (another database, an unpublished table) hangs until its position is
//! recorded: at once. Otherwise nobody waits, and one record a second is enough to let the slot move.

use std::time::{Duration, Instant};

/// How often idle positions are recorded while nobody waits.
const UNHURRIED: Duration = Duration::from_secs(1);

/// The rhythm of progress-only records.
#[derive(Clone, Debug, Default)]
pub struct IdleRecords {
    is_hurried: bool,
    last_record: Option<Instant>,
}

impl IdleRecords {
    /// Whether the primary lists us as synchronous (`sync`, `quorum` and `potential` count), and the sink is another
    /// server: a sink on the primary itself would make new WAL, and a new idle position, with every record.
    pub fn set_hurried(&mut self, is_hurried: bool) {
        self.is_hurried = is_hurried;
    }

    /// When an idle position that waits may be recorded: now or earlier means at once.
    pub fn due(&self, now: Instant) -> Instant {
        match self.last_record {
            Some(last) if !self.is_hurried => last + UNHURRIED,
            _ => now,
        }
    }

    /// A record (of a batch or of a mere position) was handed to the sink.
    pub fn recorded(&mut self, now: Instant) {
        self.last_record = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_position_waits_only_while_nobody_waits_for_it() {
        let start = Instant::now();
        let mut records = IdleRecords::default();
        assert_eq!(records.due(start), start, "the first one goes at once");
        records.recorded(start);
        assert_eq!(records.due(start), start + UNHURRIED);
        records.set_hurried(true);
        assert_eq!(records.due(start), start);
    }
}
