//! Whether a stream carries binary values: decided before it starts, from both servers' catalogs, for the whole of it. A stream that
//! then meets a column it cannot take ends, and the next one decides anew.
//!
//! ```text
//! catalogs agree ──▶ binary ──a column that does not──▶ look again ──▶ binary ──the same transaction again──▶ text, until past it
//! ```

use std::sync::{Mutex, PoisonError};

use crate::config::PostgresSink;
use crate::model::Lsn;
use crate::schema::binary::BinaryTypes;
use crate::sink::SinkError;
use crate::snapshot::agreement;
use crate::source::Publication;

use super::PipelineError;
use super::attempt::{Attempt, Primary};

/// Columns named in the log.
const SHOWN: usize = 3;

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
    fn need_text(&self, start: Lsn) -> bool {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.text_until.is_some_and(|lsn| start <= lsn)
    }
}

impl Attempt<'_> {
    /// The types of a stream of binary values, if this one can be such. `start` is where it begins, if that is known.
    pub(super) async fn binary_types(
        &self,
        primary: &Primary,
        sink: &PostgresSink,
        publication: &Publication,
        start: Option<Lsn>,
    ) -> Result<Option<BinaryTypes>, PipelineError> {
        if !sink.may_be_binary {
            return Ok(None);
        }
        if start.is_some_and(|start| self.refusals.need_text(start)) {
            tracing::info!("values travel as text: the stream holds a transaction of another time's types");
            return Ok(None);
        }
        let standby = (&sink.url, self.name());
        let version_number = primary.identity.version_number;
        let tables = &publication.tables;
        let agreement = agreement(&primary.sql, standby, &publication.name, tables, version_number).await?;
        if agreement.differing.is_empty() {
            return Ok(Some(agreement.types));
        }
        let columns: Vec<&str> = agreement.differing.iter().take(SHOWN).map(String::as_str).collect();
        tracing::info!(
            columns = agreement.differing.len(),
            "values travel as text, since not all types are alike on both sides: {}",
            columns.join("; ")
        );
        Ok(None)
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
