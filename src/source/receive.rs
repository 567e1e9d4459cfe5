//! How eagerly the stream is read. Pure: bytes and time in, a low-water mark out.
//!
//! A walsender makes one `send()` per message, and on a fast link each one wakes an eager reader at the *sender's* cost.
//! While much is coming, `SO_RCVLOWAT` lets the kernel gather before it wakes us; a timer bounds how long that may take,
//! and one short read ends it, so that a lone synchronous commit is never held back. While we are behind, nobody notices the
//! timer's milliseconds, and much less counts as much: a backlog of tiny transactions, read eagerly, trickles.

use std::time::{Duration, Instant};

/// While hot, the kernel wakes us at this many bytes.
const HOT_BYTES: u32 = 512 * 1024;
/// Cold becomes hot when this much arrives within `WINDOW`; hot becomes cold at a read that is shorter.
const BUSY_BYTES: usize = 192 * 1024;
/// The same while behind.
const BEHIND_BUSY_BYTES: usize = 16 * 1024;
/// Behind is who receives a transaction this long after its commit.
const BEHIND_AFTER: Duration = Duration::from_millis(100);
/// Rows of an open transaction are nobody's loss if they come a little later. But where a commit came fresh within this time, the next
/// one may be among them.
const LULL: Duration = Duration::from_secs(1);
/// The window in which a cold reader counts.
const WINDOW: Duration = Duration::from_millis(10);
/// While hot, this long after the last read we look anyway: keepalives must be seen.
const HOT_TIMEOUT: Duration = Duration::from_millis(5);

/// The same while behind. Nobody sees the difference then, but each early look costs the walsender the merging of
/// small sends: up to three times its CPU on a backlog of single-row transactions.
const BEHIND_HOT_TIMEOUT: Duration = Duration::from_millis(20);

/// While behind, the socket is left alone for so long after each read, so that its small buffer (`RESTING_BUFFER_BYTES`) fills and
/// the walsender's messages join its queue instead of going out one by one: half of its CPU for single-row transactions. A larger
/// buffer is not full by then, and stays the dear way for ever.
const REST: Duration = Duration::from_millis(10);
/// The kernel's receive buffer while there are rests.
const RESTING_BUFFER_BYTES: usize = 64 * 1024;
/// The same when no longer behind: in a small one little is left of the window, and then the kernel wakes us whatever the mark is. A
/// buffer that once was set grows by itself no more, and has at most `net.core.rmem_max`.
const LIVE_BUFFER_BYTES: usize = 1024 * 1024;
/// A read of so much is no trickle: a rest after it would throttle it.
const FULL_BYTES: usize = 1024 * 1024;
/// Over a longer round trip a small buffer would throttle, and messages gather by themselves.
const NEAR: Duration = Duration::from_micros(500);

/// The adaptive receive policy of one connection.
#[derive(Debug)]
pub struct ReceivePolicy {
    is_enabled: bool,
    is_near: bool,
    is_hot: bool,
    is_behind: bool,
    /// The kernel's receive buffer, once there was a rest.
    buffer_bytes: Option<usize>,
    /// When a transaction was received soon after its commit.
    last_fresh: Option<Instant>,
    window_start: Instant,
    window_bytes: usize,
    last_read: Instant,
}

impl ReceivePolicy {
    /// Starts cold. A disabled policy stays cold. Without a round trip (a Unix socket) there is no rest.
    pub fn new(is_enabled: bool, round_trip: Option<Duration>, now: Instant) -> Self {
        let is_near = round_trip.is_some_and(|round_trip| round_trip < NEAR);
        Self {
            is_enabled,
            is_near,
            is_hot: false,
            is_behind: false,
            buffer_bytes: None,
            last_fresh: None,
            window_start: now,
            window_bytes: 0,
            last_read: now,
        }
    }

    /// The newest transaction that begins in what was read was sent this long after its commit, by the primary's own clock.
    pub fn sent_after_commit(&mut self, age: Duration, now: Instant) {
        self.is_behind = age >= BEHIND_AFTER;
        if !self.is_behind {
            self.last_fresh = Some(now);
            self.buffer_bytes = self.buffer_bytes.map(|_| LIVE_BUFFER_BYTES);
        }
    }

    /// What was read ends with rows of a transaction that is still open.
    pub fn sent_before_commit(&mut self, now: Instant) {
        self.is_behind = self.last_fresh.is_none_or(|fresh| now.duration_since(fresh) >= LULL);
    }

    /// A read brought `bytes`.
    pub fn read(&mut self, bytes: usize, now: Instant) {
        self.last_read = now;
        if !self.is_enabled {
            return;
        }
        let busy_bytes = if self.is_behind { BEHIND_BUSY_BYTES } else { BUSY_BYTES };
        if self.is_hot {
            if bytes < busy_bytes {
                self.cool(now);
            }
            return;
        }
        if now.duration_since(self.window_start) > WINDOW {
            self.window_start = now;
            self.window_bytes = 0;
        }
        self.window_bytes += bytes;
        self.is_hot = self.window_bytes >= busy_bytes;
    }

    /// Whether much is coming.
    pub fn is_hot(&self) -> bool {
        self.is_hot
    }

    /// The low-water mark: nobody is woken for little while much is coming, or for what he would not read yet.
    pub fn low_water(&self, is_left_alone: bool) -> u32 {
        if self.is_hot || self.is_enabled && is_left_alone { HOT_BYTES } else { 1 }
    }

    /// How long the socket may be left alone after a read of `bytes`.
    pub fn rest(&mut self, bytes: usize) -> Option<Duration> {
        let rest = (self.is_near && self.is_hot && self.is_behind && bytes < FULL_BYTES).then_some(REST);
        if rest.is_some() {
            self.buffer_bytes = Some(RESTING_BUFFER_BYTES);
        }
        rest
    }

    /// How large the kernel's receive buffer should be; `None` while it may make of it what it likes.
    pub fn buffer_bytes(&self) -> Option<usize> {
        self.buffer_bytes
    }

    /// When the low-water mark must be lowered to 1 to see what has gathered; `None` while cold.
    pub fn look_at(&self) -> Option<Instant> {
        let limit = if self.is_behind { BEHIND_HOT_TIMEOUT } else { HOT_TIMEOUT };
        self.is_hot.then(|| self.last_read + limit)
    }

    /// A read was short, or none came in time. The next one decides whether it gets hot again.
    pub fn cool(&mut self, now: Instant) {
        self.is_hot = false;
        self.window_start = now;
        self.window_bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compares the low-water mark after a read.
    fn check(policy: &mut ReceivePolicy, bytes: usize, now: Instant, expected: u32) {
        policy.read(bytes, now);
        assert_eq!(policy.low_water(false), expected, "{bytes} bytes");
    }

    #[test]
    fn a_flood_makes_it_hot_and_a_short_read_cold() {
        let start = Instant::now();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        let mut policy = ReceivePolicy::new(true, Some(Duration::from_micros(40)), start);
        check(&mut policy, 100 * 1024, at(1), 1);
        assert_eq!((policy.look_at(), policy.low_water(true)), (None, HOT_BYTES));
        check(&mut policy, 100 * 1024, at(2), HOT_BYTES);
        assert_eq!(policy.look_at(), Some(at(7)));
        check(&mut policy, 600 * 1024, at(6), HOT_BYTES);
        check(&mut policy, 100, at(9), 1);
        assert_eq!(policy.look_at(), None);
        // A trickle never makes it hot.
        for millisecond in 10..500 {
            check(&mut policy, 10 * 1024, at(millisecond), 1);
        }
    }

    #[test]
    fn while_behind_a_trickle_is_gathered_too() {
        let start = Instant::now();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        let mut policy = ReceivePolicy::new(true, Some(Duration::from_micros(40)), start);
        policy.sent_after_commit(Duration::from_secs(5), start);
        check(&mut policy, 10 * 1024, at(1), 1);
        check(&mut policy, 10 * 1024, at(2), HOT_BYTES);
        assert_eq!(policy.look_at(), Some(at(22)));
        policy.cool(at(22));
        check(&mut policy, 150 * 1024, at(22), HOT_BYTES);
        assert_eq!((policy.rest(300_000), policy.rest(FULL_BYTES)), (Some(REST), None));
        assert_eq!(policy.buffer_bytes(), Some(RESTING_BUFFER_BYTES));
        policy.is_near = false;
        assert_eq!(policy.rest(300_000), None);
        policy.is_near = true;
        // The last one of the backlog, then a fresh one: eager again.
        policy.sent_after_commit(Duration::from_millis(2), at(24));
        check(&mut policy, 20 * 1024, at(24), 1);
        assert_eq!((policy.rest(20 * 1024), policy.buffer_bytes()), (None, Some(LIVE_BUFFER_BYTES)));
        check(&mut policy, 20 * 1024, at(25), 1);
        // A commit alone is never held back, however old it says it is.
        policy.sent_after_commit(Duration::from_secs(5), at(25));
        for second in 1..10 {
            check(&mut policy, 200, at(second * 1000), 1);
        }
    }

    #[test]
    fn rows_of_an_open_transaction_are_gathered_unless_commits_come_between_them() {
        let start = Instant::now();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        let mut policy = ReceivePolicy::new(true, Some(Duration::from_micros(40)), start);
        policy.sent_before_commit(at(1));
        assert_eq!(policy.buffer_bytes(), None);
        check(&mut policy, 20 * 1024, at(1), HOT_BYTES);
        assert_eq!((policy.rest(300_000), policy.look_at()), (Some(REST), Some(at(21))));
        policy.sent_after_commit(Duration::from_millis(2), at(2));
        assert_eq!(policy.rest(300_000), None);
        policy.sent_before_commit(at(500));
        assert_eq!(policy.rest(300_000), None);
        policy.sent_before_commit(at(1_100));
        assert_eq!(policy.rest(300_000), Some(REST));
    }

    #[test]
    fn a_disabled_policy_never_touches_the_socket() {
        let start = Instant::now();
        let mut policy = ReceivePolicy::new(false, None, start);
        check(&mut policy, 10 << 20, start, 1);
        assert_eq!(policy.look_at(), None);
        assert_eq!(policy.low_water(true), 1);
    }
}
