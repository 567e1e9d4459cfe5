//! The ledger of one replication session: what arrived, in arrival order, and how much of it the sink's own record covers.
//! Pure: it reads no clock and sends nothing.
//!
//! The rule is section "safe confirm" of Postgres' own apply worker (`get_flush_position` and `send_feedback` in
//! `src/backend/replication/logical/worker.c`), made stricter: an idle position counts only once the sink has *recorded* it,
//! so that a slot ahead of our record always means a foreign consumer or a restored target.

use std::collections::VecDeque;

use crate::model::{Applied, Durable, Lsn, Positions, Received};

/// What to do with a transaction that arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrived {
    /// It is new: hand it to the sink.
    New,
    /// The sink's record already covers it (a primary that lost its last confirmed position sends it again): drop it.
    AlreadyRecorded,
}

/// Received, applied and durable positions of one session.
///
/// ```text
/// arrival order ──▶   T  T  T  M  T  M       T: end of a transaction, M: a keepalive's position
///                     ▲  ▲        ▲  ▲
///          durable ───┘  │        │  └─ write: everything up to here was received whole
///          applied ──────┘        └──── the newest M is recorded as soon as every T before it is applied
/// ```
#[derive(Clone, Debug)]
pub struct Ledger {
    /// Ends of the transactions received and not yet durable, ascending.
    pending: VecDeque<Lsn>,
    /// The newest keepalive position; everything that ends at or below it was received before it.
    mark: Lsn,
    received: Received,
    applied: Applied,
    durable: Durable,
}

impl Ledger {
    /// A session that starts where the sink's durable record stands.
    pub fn new(resume: Lsn) -> Self {
        Self {
            pending: VecDeque::new(),
            mark: resume,
            received: Received(resume),
            applied: Applied(resume),
            durable: Durable(resume),
        }
    }

    /// The same with a sink whose readers may not see yet all that its record covers.
    pub fn unread(resume: Lsn) -> Self {
        Self { applied: Applied(Lsn::ZERO), ..Self::new(resume) }
    }

    /// A transaction was received whole; `end_lsn` is the first byte after its commit record.
    pub fn transaction(&mut self, end_lsn: Lsn) -> Arrived {
        if end_lsn <= self.recorded() || self.pending.back().is_some_and(|last| end_lsn <= *last) {
            return Arrived::AlreadyRecorded;
        }
        self.pending.push_back(end_lsn);
        self.received = self.received.max(Received(end_lsn));
        Arrived::New
    }

    /// A keepalive arrived: every transaction that ends at or below `wal_end` and will ever be sent was sent before it.
    pub fn keepalive(&mut self, wal_end: Lsn) {
        self.mark = self.mark.max(wal_end);
        self.received = self.received.max(Received(self.mark));
    }

    /// What the record may say once every transaction up to `end_lsn` is in the sink: `end_lsn` itself, or the newest
    /// keepalive's position if nothing else is pending before it.
    pub fn record_after(&self, end_lsn: Lsn) -> Lsn {
        let is_last = self.pending.back().is_none_or(|last| *last <= end_lsn);
        if is_last { self.mark.max(end_lsn) } else { end_lsn }
    }

    /// The idle position that the sink's record does not cover yet, if every transaction received is in the sink.
    pub fn idle_position(&self) -> Option<Lsn> {
        let is_idle = self.pending.back().is_none_or(|last| *last <= self.recorded());
        (is_idle && self.mark > self.recorded()).then_some(self.mark)
    }

    /// The sink has applied everything up to here. Positions never go back.
    pub fn applied(&mut self, applied: Applied) {
        debug_assert!(applied.0 <= self.received.0, "a receipt for {} beyond what was received", applied.0);
        self.applied = self.applied.max(applied);
    }

    /// The sink has made everything up to here durable. Positions never go back.
    pub fn durable(&mut self, durable: Durable) {
        debug_assert!(durable.0 <= self.received.0, "a receipt for {} beyond what was received", durable.0);
        self.durable = self.durable.max(durable);
        while self.pending.front().is_some_and(|first| *first <= self.durable.0) {
            self.pending.pop_front();
        }
    }

    /// Whether everything applied is durable.
    pub fn is_durable(&self) -> bool {
        self.applied.0 <= self.durable.0
    }

    /// End of the last transaction that arrived; everything so far is in the sink once its record has come there.
    pub fn last_arrived(&self) -> Lsn {
        self.pending.back().copied().unwrap_or_else(|| self.recorded())
    }

    /// How far the sink's record has come, durable or not.
    pub fn recorded(&self) -> Lsn {
        self.applied.0.max(self.durable.0)
    }

    /// What the primary may be told now.
    pub fn positions(&self) -> Positions {
        let positions =
            Positions { write: self.received.0, flush: self.durable.0, apply: self.applied.0.min(self.durable.0) };
        assert!(positions.apply <= positions.flush && positions.flush <= positions.write, "{positions:?}");
        positions
    }

    /// Transactions received and not yet durable.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::{Arrived, Ledger};
    use crate::model::{self, Lsn};

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Transaction(u64),
        Keepalive(u64),
        Applied(u64),
        Durable(u64),
    }
    use Step::{Applied, Durable, Keepalive, Transaction};

    /// Runs the steps and compares write, flush, apply and the idle position.
    fn check(steps: &[Step], expected: (u64, u64, u64, Option<u64>)) {
        let mut ledger = Ledger::new(Lsn(10));
        for step in steps {
            match *step {
                Transaction(end) => drop(ledger.transaction(Lsn(end))),
                Keepalive(end) => ledger.keepalive(Lsn(end)),
                Applied(lsn) => ledger.applied(model::Applied(Lsn(lsn))),
                Durable(lsn) => ledger.durable(model::Durable(Lsn(lsn))),
            }
        }
        let positions = ledger.positions();
        let seen = (positions.write.0, positions.flush.0, positions.apply.0, ledger.idle_position().map(|lsn| lsn.0));
        assert_eq!(seen, expected, "{steps:?}");
    }

    #[test]
    fn positions_follow_what_was_received_recorded_and_applied() {
        check(&[], (10, 10, 10, None));
        // Received is not durable.
        check(&[Transaction(20)], (20, 10, 10, None));
        // Visible is not durable, and what is not durable is not told.
        check(&[Transaction(20), Applied(20)], (20, 10, 10, None));
        check(&[Transaction(20), Applied(20), Durable(20)], (20, 20, 20, None));
        // Two batches, and a flush that covers the first.
        check(&[Transaction(20), Transaction(30), Applied(20), Applied(30), Durable(20)], (30, 20, 20, None));
        // Durable but not visible: apply lags.
        check(&[Transaction(20), Durable(20)], (20, 20, 10, None));
        // An idle position is received at once, confirmed only once recorded.
        check(&[Keepalive(30)], (30, 10, 10, Some(30)));
        check(&[Keepalive(30), Applied(30)], (30, 10, 10, None));
        check(&[Keepalive(30), Applied(30), Durable(30)], (30, 30, 30, None));
        // A keepalive behind a pending transaction waits for it.
        check(&[Transaction(20), Keepalive(30)], (30, 10, 10, None));
        check(&[Transaction(20), Keepalive(30), Applied(20)], (30, 10, 10, Some(30)));
        check(&[Transaction(20), Keepalive(30), Applied(20), Durable(20)], (30, 20, 20, Some(30)));
        // A keepalive inside an open transaction is below its end.
        check(&[Keepalive(15), Transaction(20)], (20, 10, 10, None));
        // Nothing goes back.
        check(&[Keepalive(30), Keepalive(25), Applied(30), Durable(30), Keepalive(20)], (30, 30, 30, None));
        check(&[Keepalive(30), Applied(30), Durable(30), Durable(20)], (30, 30, 30, None));
    }

    #[test]
    fn a_transaction_that_the_record_covers_is_dropped() {
        let mut ledger = Ledger::new(Lsn(10));
        assert_eq!(ledger.transaction(Lsn(10)), Arrived::AlreadyRecorded);
        assert_eq!(ledger.transaction(Lsn(11)), Arrived::New);
        assert_eq!(ledger.transaction(Lsn(11)), Arrived::AlreadyRecorded);
        assert_eq!(ledger.pending(), 1);
    }

    #[test]
    fn a_record_reaches_the_keepalive_only_behind_the_last_transaction() {
        let mut ledger = Ledger::new(Lsn(10));
        ledger.transaction(Lsn(20));
        ledger.transaction(Lsn(30));
        ledger.keepalive(Lsn(40));
        assert_eq!(ledger.record_after(Lsn(20)), Lsn(20));
        assert_eq!(ledger.record_after(Lsn(30)), Lsn(40));
    }

    proptest! {
        /// A naive model: a list of events, the transactions that wait for the sink, and those it has not made durable. Whatever
        /// the order, the flush position never passes a transaction that is not durable, and never goes back.
        #[test]
        fn no_position_passes_what_is_not_durable(choices in prop::collection::vec((0u8..5, 1u64..50), 1..200)) {
            let mut ledger = Ledger::new(Lsn(100));
            let mut next = 100;
            let mut waiting: VecDeque<u64> = VecDeque::new();
            let mut volatile: VecDeque<u64> = VecDeque::new();
            let mut recorded = Lsn(100);
            let mut previous = ledger.positions();
            for (choice, step) in choices {
                match choice {
                    0 => {
                        next += step;
                        waiting.push_back(next);
                        ledger.transaction(Lsn(next));
                    }
                    1 => {
                        next += step;
                        ledger.keepalive(Lsn(next));
                    }
                    2 => {
                        let count = (step as usize).min(waiting.len());
                        volatile.extend(waiting.iter().take(count));
                        if let Some(end) = waiting.drain(..count).next_back() {
                            recorded = ledger.record_after(Lsn(end));
                            ledger.applied(model::Applied(recorded));
                        }
                    }
                    3 => {
                        ledger.durable(model::Durable(recorded));
                        volatile.clear();
                    }
                    _ => {
                        if let Some(idle) = ledger.idle_position() {
                            prop_assert!(waiting.is_empty());
                            recorded = idle;
                            ledger.applied(model::Applied(recorded));
                        }
                    }
                }
                let positions = ledger.positions();
                if let Some(first) = volatile.front().or(waiting.front()) {
                    prop_assert!(positions.flush.0 < *first && positions.apply.0 < *first);
                }
                prop_assert!(positions.write.0 <= next.max(100));
                prop_assert!(positions.write >= previous.write);
                prop_assert!(positions.flush >= previous.flush);
                prop_assert!(positions.apply >= previous.apply);
                prop_assert_eq!(ledger.is_durable(), positions.flush == recorded);
                prop_assert_eq!(ledger.pending(), waiting.len() + volatile.len());
                previous = positions;
            }
        }
    }
}
