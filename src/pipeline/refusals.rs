//! Transactions that a stream of binary values could not take: what they make of the next stream. Asks no server.

use std::sync::{Mutex, PoisonError};

use crate::model::Lsn;
use crate::sink::SinkError;

use super::PipelineError;

/// Transactions that streams of binary values could not take.
#[derive(Debug, Default)]
pub(super) struct Refusals(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    last: Option<Lsn>,
    /// Met twice: the catalogs of now say nothing of it.
    text_until: Option<Lsn>,
}

impl Refusals {
    /// Notes the error if it is one; then another attempt may go better at once.
    pub(super) fn note(&self, error: &PipelineError) -> bool {
        let PipelineError::Sink(SinkError::NeedsText { commit_lsn, .. }) = error else { return false };
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.last.replace(*commit_lsn) == Some(*commit_lsn) {
            state.text_until = Some(*commit_lsn);
        }
        true
    }

    /// Whether a stream that begins here would meet such a transaction.
    pub(super) fn need_text(&self, start: Lsn) -> bool {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.text_until.is_some_and(|lsn| start <= lsn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_met_twice_is_read_as_text_until_it_is_passed() {
        let refusals = Refusals::default();
        let error = |lsn| PipelineError::from(SinkError::NeedsText { column: "t".to_owned(), commit_lsn: Lsn(lsn) });
        assert!(!refusals.note(&PipelineError::Stopped));
        assert!(refusals.note(&error(5)));
        assert!(!refusals.need_text(Lsn(3)));
        assert!(refusals.note(&error(5)));
        for (start, expected) in [(3, true), (5, true), (6, false)] {
            assert_eq!(refusals.need_text(Lsn(start)), expected, "{start}");
        }
        assert!(refusals.note(&error(9)));
        assert!(!refusals.need_text(Lsn(6)));
    }
}
