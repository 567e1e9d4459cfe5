//! Waiting: one backoff for every retry of the daemon, exponential from 0.1 s to 30 s, with jitter; timers, and moments that need not come.
//! Decides nothing about what may be retried.

use std::future::pending;
use std::time::{Duration, Instant};

use tokio::time::{Interval, MissedTickBehavior, interval, sleep_until};

/// First delay.
const FIRST: Duration = Duration::from_millis(100);
/// Longest delay.
const LONGEST: Duration = Duration::from_secs(30);

/// The delays between attempts.
#[derive(Clone, Debug, Default)]
pub struct Backoff {
    attempts: u32,
}

impl Backoff {
    /// The next delay: doubles from 0.1 s to 30 s, drawn between half and the whole of that, so that many clients of one
    /// server do not come back at the same moment.
    pub fn next_delay(&mut self) -> Duration {
        let whole = FIRST.saturating_mul(1u32.checked_shl(self.attempts).unwrap_or(u32::MAX)).min(LONGEST);
        self.attempts = (self.attempts + 1).min(16);
        whole.mul_f64(rand::random_range(0.5..=1.0))
    }

    /// Begin anew after a success.
    pub fn reset(&mut self) {
        self.attempts = 0;
    }
}

/// A timer, due at once and then every `period`, that does not make up for what it missed.
pub fn every(period: Duration) -> Interval {
    let mut timer = interval(period);
    timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    timer
}

/// Waits until then; for ever where there is no such moment. Cancel safe.
pub async fn moment(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due.into()).await,
        None => pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_with_jitter_and_stay_within_half_a_minute() {
        let mut backoff = Backoff::default();
        for attempt in 0..40 {
            let whole = (0.1 * 2f64.powi(attempt)).min(30.0);
            let delay = backoff.next_delay().as_secs_f64();
            assert!(delay >= whole / 2.0 - 1e-9 && delay <= whole + 1e-9, "attempt {attempt}: {delay}");
        }
        backoff.reset();
        assert!(backoff.next_delay() <= FIRST);
    }
}
