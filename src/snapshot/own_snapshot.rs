//! The snapshot of a copy that begins again: a temporary slot that exports one, and whose consistent point is its position.
//! The slot lives only until the workers have imported the snapshot.

use std::time::{Duration, Instant};

use crate::config::ServerUrl;
use crate::model::{PipelineName, SlotName};
use crate::source::{CreatedSlot, SnapshotUse, create_slot, lists_standby};
use crate::wire::sql::SqlClient;
use crate::wire::{Connection, Session};

use super::blockers;
use super::command::temporary_slot_name;
use super::error::{Side, SnapshotError, server};
use super::progress::CopyProgress;
use super::session::application_name;

/// How often it is looked whether and by whom the creation is held up.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// What ends an attempt whose locks are in the way of a transaction that its snapshot waits for.
pub(super) const LOCK_KNOT: &str =
    "a transaction that the copy's snapshot waits for waits for a lock on a table that is copied, and gets it now";
/// A role that cannot see who waits takes a creation of this length, while our name is listed, for the knot.
const BLIND_LIMIT: Duration = Duration::from_secs(10);

/// An exported snapshot, valid for import as long as `connection` stays idle.
pub(super) struct OwnSnapshot {
    pub(super) created: CreatedSlot,
    pub(super) connection: Connection,
}

/// Creates the slot. That waits for every transaction that runs now; `observer` looks for whom. If it is a commit that waits
/// for us as its synchronous standby, we would wait for each other for ever: refused.
pub(super) async fn take(
    url: &ServerUrl,
    pipeline: &PipelineName,
    observer: &SqlClient,
    progress: &CopyProgress,
) -> Result<OwnSnapshot, SnapshotError> {
    let session = Session::replication(application_name(pipeline));
    let mut connection =
        Connection::connect(url, &session).await.map_err(|error| server(Side::Primary, "open a session", error))?;
    let process_id = connection.process_id();
    let name = SlotName::new(&temporary_slot_name(pipeline.as_str(), process_id))
        .map_err(|error| SnapshotError::Refused(error.to_string()))?;
    let created = {
        let creating = create_slot(&mut connection, &name, SnapshotUse::Export, true);
        tokio::pin!(creating);
        let began = Instant::now();
        loop {
            tokio::select! {
                created = &mut creating => break created?,
                () = tokio::time::sleep(LOOK_INTERVAL) => look(observer, process_id, pipeline, progress, began.elapsed()).await?,
            }
        }
    };
    progress.set_waiting(None);
    Ok(OwnSnapshot { created, connection })
}

async fn look(
    observer: &SqlClient,
    process_id: i32,
    pipeline: &PipelineName,
    progress: &CopyProgress,
    waited: Duration,
) -> Result<(), SnapshotError> {
    let failed = |error| server(Side::Primary, "read pg_stat_activity", error);
    if blockers::wait_for_copy(observer, process_id, &application_name(pipeline)).await.map_err(failed)? {
        return Err(SnapshotError::Disturbed(LOCK_KNOT.to_owned()));
    }
    let found = blockers::of_process(observer, process_id).await.map_err(failed)?;
    let is_blind = waited >= BLIND_LIMIT;
    if found.iter().any(|blocker| blocker.is_in_sync_wait() || (is_blind && blocker.is_hidden())) {
        let query = "SELECT pg_catalog.current_setting('synchronous_standby_names')";
        let setting: String = observer.query_one(query, &[]).await.map_err(failed)?.get(0);
        if lists_standby(&setting, pipeline.as_str()) {
            return Err(SnapshotError::Refused(format!(
                "synchronous_standby_names on the primary lists {pipeline} ('{setting}') and commits wait for it ({}), while \
                 its copy is not finished and needs a new snapshot, which waits for those commits: take {pipeline} out of \
                 synchronous_standby_names until the copy has ended",
                blockers::list(&found)
            )));
        }
    }
    progress.set_waiting((!found.is_empty()).then(|| format!("transactions to end: {}", blockers::list(&found))));
    Ok(())
}
