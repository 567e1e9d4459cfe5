//! Makes the slot of a new pipeline, watching that nobody waits for us meanwhile: slot creation waits for every running
//! transaction, and a commit that waits for a standby of our name would wait for the slot. That knot never comes undone.

use std::time::Duration;

use postgres_protocol::escape::escape_literal;
use tokio::time::{Instant, sleep};

use crate::model::{PipelineName, SlotName};
use crate::snapshot;
use crate::source::{CreatedSlot, SnapshotUse, SourceError, create_slot, lists_standby, without_standby};
use crate::wire::Connection;
use crate::wire::sql::SqlClient;

use super::PipelineError;
use super::reporter::Reporter;

/// How often it is looked who waits.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// A role that cannot see who waits takes a creation of this length, while our name is listed, for the knot.
const BLIND_LIMIT: Duration = Duration::from_secs(10);
/// A creation of this length is reported as waiting.
const REPORT_AFTER: Duration = Duration::from_secs(1);

/// Creates the slot, or refuses while commits wait for a standby of this name.
pub(super) async fn create_slot_safely(
    replication: &mut Connection,
    primary_sql: &SqlClient,
    pipeline: &PipelineName,
    slot: &SlotName,
    snapshot_use: SnapshotUse,
    reporter: &Reporter,
) -> Result<CreatedSlot, PipelineError> {
    refuse_knot(primary_sql, pipeline, slot, Duration::ZERO).await?;
    let began = Instant::now();
    let process_id = replication.process_id();
    let watch = async {
        loop {
            sleep(LOOK_EVERY).await;
            if let Err(error) = refuse_knot(primary_sql, pipeline, slot, began.elapsed()).await {
                break error;
            }
            if let Err(error) = snapshot::refuse_lock_knot(primary_sql, process_id, pipeline).await {
                break error.into();
            }
            if began.elapsed() > REPORT_AFTER {
                let what =
                    "the transactions now running on the primary to end: creating the replication slot waits for them";
                reporter.waiting_for(Some(what.to_owned()));
            }
        }
    };
    let created = tokio::select! {
        created = create_slot(replication, slot, snapshot_use, false) => created?,
        refused = watch => return Err(refused),
    };
    reporter.waiting_for(None);
    tracing::info!(%slot, lsn = %created.consistent_point, "created the replication slot");
    Ok(created)
}

/// The knot: our name is listed, and somebody waits for a synchronous standby.
pub(super) async fn refuse_knot(
    primary_sql: &SqlClient,
    pipeline: &PipelineName,
    slot: &SlotName,
    waited: Duration,
) -> Result<(), PipelineError> {
    let query = "SELECT pg_catalog.current_setting('synchronous_standby_names'), \
                        (SELECT pg_catalog.count(*) FROM pg_catalog.pg_stat_activity WHERE wait_event = 'SyncRep')";
    let row = primary_sql.query_one(query, &[]).await.map_err(SourceError::sql("reading synchronous_standby_names"))?;
    let (names, waiting): (String, i64) = (row.get(0), row.get(1));
    let is_listed = lists_standby(&names, pipeline.as_str());
    if !is_listed || (waiting == 0 && waited < BLIND_LIMIT) {
        return Ok(());
    }
    let remedy = match without_standby(&names, pipeline.as_str()) {
        Some(others) => format!(
            "run on the primary: ALTER SYSTEM SET synchronous_standby_names = {}; SELECT pg_reload_conf()",
            escape_literal(&others).trim_start()
        ),
        None => "take the name out of synchronous_standby_names on the primary".to_owned(),
    };
    Err(PipelineError::Refused(format!(
        "the slot \"{slot}\" is still to be made, and \"{pipeline}\" already stands in synchronous_standby_names ('{names}') while commits \
         wait for it: creating the slot would wait for them, and they for the slot, for ever. To undo it {remedy}; let walrelay start, and \
         list the name again once `walrelay status` says streaming"
    )))
}
