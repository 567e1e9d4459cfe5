//! What a stream could not take: transactions for binary values, and changes of tables that came since they were listed. What they make of
//! the next stream. Asks no server.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use crate::model::{Lsn, QualifiedName};
use crate::sink::SinkError;

use super::PipelineError;

/// So many tables are sought at once; where new ones come all the time, the attempts are paced.
const SOUGHT_AT_ONCE: usize = 16;

/// What streams could not take.
#[derive(Debug, Default)]
pub(super) struct Refusals(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    last: Option<Lsn>,
    /// Met twice: the catalogs of now say nothing of it.
    text_until: Option<Lsn>,
    /// Tables for which the publication's were listed again.
    sought: BTreeSet<QualifiedName>,
    /// Tables that were of the set by the record of an attempt.
    ours: BTreeSet<QualifiedName>,
}

impl Refusals {
    /// Notes the error if it is one; then another attempt may go better at once.
    pub(super) fn note(&self, error: &PipelineError) -> bool {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let commit_lsn = match error {
            PipelineError::Sink(SinkError::NeedsText { commit_lsn, .. }) => commit_lsn,
            PipelineError::Sink(SinkError::NewTable(name)) => {
                return state.sought.insert(name.clone()) && state.sought.len() <= SOUGHT_AT_ONCE;
            }
            _ => return false,
        };
        if state.last.replace(*commit_lsn) == Some(*commit_lsn) {
            state.text_until = Some(*commit_lsn);
        }
        true
    }

    /// Tables that were sought and are not among the listed ones: gone, or none of ours. Those that are found are forgotten: another may come
    /// under such a name.
    pub(super) fn sought_in_vain(&self, listed: &[QualifiedName]) -> Vec<QualifiedName> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.sought.retain(|name| !listed.contains(name));
        state.sought.iter().cloned().collect()
    }

    /// These are recorded as of the set: old changes of one are, though it is published no more.
    pub(super) fn note_ours(&self, recorded: impl IntoIterator<Item = QualifiedName>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).ours.extend(recorded);
    }

    /// Whether it was so recorded.
    pub(super) fn was_ours(&self, name: &QualifiedName) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).ours.contains(name)
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
    fn a_table_is_sought_once() {
        let (refusals, name) = (Refusals::default(), QualifiedName::new("public", "t"));
        let error = PipelineError::from(SinkError::NewTable(name.clone()));
        assert!(refusals.note(&error) && refusals.sought_in_vain(&[]) == [name.clone()]);
        assert!(!refusals.note(&error), "met again: no reason to begin anew at once");
        assert!(refusals.sought_in_vain(&[name]).is_empty());
        assert!(refusals.note(&error), "found, and another one now");
    }

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
