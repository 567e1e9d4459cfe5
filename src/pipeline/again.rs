//! Tables of a running feed that are sent again, because somebody asked for it (`walrelay resync`) or because their initial copy was cut
//! off: where the stream must stand before their rows go out, and the copy itself. What is to be sent stands in the progress topic.
//!
//! ```text
//! locks, snapshot at S ─▶ the stream goes on to S and no further ─▶ rows as of S ─▶ record "sent, as of S" ─▶ the stream goes on
//! ```
//!
//! So a consumer sees every change, deletes too, and between them the rows as they were at S. A restart begins again with a new S.

use std::collections::HashMap;
use std::sync::Arc;

use crate::model::{Lsn, QualifiedName, State};
use crate::sink::kafka::transport::{CopiedTable, Opening};
use crate::snapshot::{self, CopyProgress, Part, PreparedKafka};
use crate::source::{Publication, lists_standby, synchronous_standby_names};

use super::PipelineError;
use super::attempt::Attempt;
use super::primary::Primary;

/// A copy whose snapshot is made.
pub(super) struct Again {
    prepared: PreparedKafka,
    progress: Arc<CopyProgress>,
    opening: Opening,
}

impl Again {
    /// Its snapshot holds what was committed before.
    pub(super) fn until(&self) -> Lsn {
        self.prepared.snapshot_lsn()
    }

    /// Those of which a part was sent: of what comes before `until` consumers need to hear only what became of rows that they may hold. Not
    /// an outbox: what was put in, and may be gone by then, is the message.
    pub(super) fn begun(&self, copied: &HashMap<QualifiedName, CopiedTable>) -> HashMap<QualifiedName, Lsn> {
        let planned = self.prepared.planned().into_iter().map(|(table, _)| table);
        let is_outbox =
            |table: &QualifiedName| self.opening.sink.outbox.as_ref().is_some_and(|outbox| outbox.table == *table);
        let begun =
            planned.filter(|table| copied.get(table).is_some_and(CopiedTable::is_unfinished) && !is_outbox(table));
        begun.map(|table| (table, self.until())).collect()
    }
}

impl Attempt<'_> {
    /// Locks and snapshot of the tables that are to be sent again, or whose initial copy was cut off, if there are any.
    pub(super) async fn prepare_again(
        &self,
        primary: &Primary,
        opening: &Opening,
        publication: &Publication,
        copied: &HashMap<QualifiedName, CopiedTable>,
    ) -> Result<Option<Again>, PipelineError> {
        // The snapshot waits for running transactions, and those would wait for us: only a copy that was cut off is worth that.
        let is_listed = lists_standby(&synchronous_standby_names(&primary.sql).await?, self.name().as_str());
        if is_listed && copied.values().any(|table| table.again) {
            tracing::warn!(
                "tables are sent again once this pipeline does not stand in synchronous_standby_names, and starts anew"
            );
        }
        let progress = Arc::new(CopyProgress::default());
        let part = if is_listed { Part::CutOff } else { Part::Again };
        let copy = self.kafka_copy(primary, publication, copied, part, &progress);
        let prepared = self
            .reported(&progress, async {
                let mut prepared = snapshot::prepare_kafka(copy).await?;
                prepared.import_own_snapshot().await?;
                Ok(prepared)
            })
            .await?;
        let tables = prepared.planned().len();
        if tables == 0 {
            return Ok(None);
        }
        tracing::info!(tables, lsn = %prepared.snapshot_lsn(), "tables will be sent again, as of here");
        Ok(Some(Again { prepared, progress, opening: opening.clone() }))
    }

    /// Sends them. The next attempt streams on.
    pub(super) async fn send_again(&self, again: Again) -> Result<PipelineError, PipelineError> {
        let Again { prepared, progress, opening } = again;
        self.reporter.state(State::Copying);
        let tables = prepared.planned().len();
        self.reported(&progress, prepared.run(&opening)).await?;
        Ok(PipelineError::NotYet(format!("the stream to go on: {tables} tables were sent again")))
    }
}
