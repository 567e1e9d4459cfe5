//! Whether a stream carries binary values: decided before it starts, from both servers' catalogs, for the whole of it. A stream that
//! then meets a column it cannot take ends, and the next one decides anew.
//!
//! ```text
//! catalogs agree ──▶ binary ──a column that does not──▶ look again ──▶ binary ──the same transaction again──▶ text, until past it
//! ```

use crate::config::PostgresSink;
use crate::model::Lsn;
use crate::schema::binary::BinaryTypes;
use crate::snapshot::agreement;
use crate::source::Publication;

use super::PipelineError;
use super::attempt::Attempt;
use super::primary::Primary;

/// Columns named in the log.
const SHOWN: usize = 3;

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
        let agreement = agreement(&primary.sql, standby, &publication.tables).await?;
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
