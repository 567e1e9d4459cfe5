//! One copier at a time: while no one streams, the slot does not keep a second daemon of the same pipeline away. Advisory locks
//! on the standby do, and they end with their sessions, however a daemon dies.
//!
//! The control session of a copy owns the first lock. Each worker session shares the second one, so that whoever comes next
//! starts only when the last worker of a daemon that was cut off or frozen is gone too.

use std::time::Duration;

use postgres_protocol::escape::escape_literal;

use crate::model::PipelineName;
use crate::wire::sql::SqlClient;
use crate::wire::{Connection, WireError};

use super::error::{Side, SnapshotError, server};
use super::progress::CopyProgress;

/// Pause between attempts.
const PAUSE: Duration = Duration::from_secs(1);

fn owner_key(pipeline: &PipelineName) -> String {
    format!("walrelay copy of {pipeline}")
}

fn worker_key(pipeline: &PipelineName) -> String {
    format!("walrelay copy workers of {pipeline}")
}

/// Makes this session the copier; waits while there is another, and says so.
pub(super) async fn take(
    client: &SqlClient,
    pipeline: &PipelineName,
    progress: &CopyProgress,
) -> Result<(), SnapshotError> {
    let failed = |error: tokio_postgres::Error| server(Side::Standby, "take the advisory lock of the copy", error);
    let (owner, worker) = (owner_key(pipeline), worker_key(pipeline));
    // Taken again while waiting for the second, the first is only counted up; the session's end releases it whole.
    let attempt = "SELECT pg_catalog.pg_try_advisory_lock(pg_catalog.hashtextextended($1, 0)) \
                      AND pg_catalog.pg_try_advisory_lock(pg_catalog.hashtextextended($2, 0))";
    while !client.query_one(attempt, &[&owner, &worker]).await.map_err(failed)?.get::<_, bool>(0) {
        progress.set_waiting(Some(format!("another walrelay that copies {pipeline}, or its sessions on the standby")));
        tokio::time::sleep(PAUSE).await;
    }
    progress.set_waiting(None);
    let release = "SELECT pg_catalog.pg_advisory_unlock(pg_catalog.hashtextextended($1, 0))";
    client.execute(release, &[&worker]).await.map_err(failed).map(drop)
}

/// Counts a worker's session in.
pub(super) async fn join(standby: &mut Connection, pipeline: &PipelineName) -> Result<(), WireError> {
    let key = escape_literal(&worker_key(pipeline));
    let sql = format!("SELECT pg_catalog.pg_advisory_lock_shared(pg_catalog.hashtextextended({key}, 0))");
    standby.simple_query(&sql).await.map(drop)
}
