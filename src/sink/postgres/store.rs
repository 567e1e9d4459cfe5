//! The relay's own objects on the standby: the schema `walrelay` and the progress row, moved by compare-and-set in the same
//! transaction as the rows. One row a pipeline; nothing else decides where a restart begins.

use postgres_protocol::escape::escape_literal;

use crate::model::{Lsn, PipelineName, Progress, SlotName, Timestamp};
use crate::wire::{Connection, QueryResult, WireError};

use super::super::SinkError;

/// Version of the tables' layout; a newer daemon refuses to run on an older one's without migrating, and the other way.
pub const LAYOUT_VERSION: i32 = 1;

/// What a superuser runs once where the relay's role may not create a schema.
pub fn grant_schema_sql(role: &str) -> Vec<String> {
    vec![format!(
        "CREATE SCHEMA IF NOT EXISTS walrelay AUTHORIZATION {}",
        postgres_protocol::escape::escape_identifier(role)
    )]
}

const CREATE_PROGRESS: &str = "CREATE TABLE IF NOT EXISTS walrelay.progress (
  pipeline text PRIMARY KEY, system_identifier text NOT NULL, timeline int8 NOT NULL, database text NOT NULL,
  slot text NOT NULL, lsn pg_lsn NOT NULL, commit_time timestamptz, version int4 NOT NULL,
  updated_at timestamptz NOT NULL DEFAULT pg_catalog.now()
) WITH (fillfactor = 10, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000)";

/// Makes schema and table where they are missing.
pub async fn ensure_store(connection: &mut Connection) -> Result<(), SinkError> {
    let exists = "SELECT pg_catalog.to_regnamespace('walrelay') IS NOT NULL, \
                  pg_catalog.to_regclass('walrelay.progress') IS NOT NULL, current_user::text";
    let context = || SinkError::wire("looking for the schema walrelay on the standby");
    let row = first_row(connection.simple_query(exists).await.map_err(context())?);
    let is_there = |at: usize| row.get(at).is_some_and(|value| value.as_deref() == Some("t"));
    if !is_there(0) {
        run(connection, "CREATE SCHEMA walrelay", &row[2]).await?;
    }
    if !is_there(1) {
        run(connection, CREATE_PROGRESS, &row[2]).await?;
    }
    Ok(())
}

async fn run(connection: &mut Connection, sql: &str, role: &Option<String>) -> Result<(), SinkError> {
    match connection.simple_query(sql).await {
        Ok(_) => Ok(()),
        Err(error) if error.code() == Some("42501") => Err(SinkError::Refused(format!(
            "the relay's own tables cannot be made on the standby: {error}; let a superuser run there: {}",
            grant_schema_sql(role.as_deref().unwrap_or("walrelay")).join("; ")
        ))),
        Err(error) => Err(SinkError::wire("making the schema walrelay on the standby")(error)),
    }
}

/// The pipeline's row, durable: the row is touched and committed with a flush, so that everything before it is on disk too.
/// A row that was merely read could still be lost with an earlier transaction that committed without waiting.
pub async fn durable_progress(
    connection: &mut Connection,
    pipeline: &PipelineName,
) -> Result<Option<Progress>, SinkError> {
    let name = escape_literal(pipeline.as_str());
    let sql = format!(
        "SET synchronous_commit = local; UPDATE walrelay.progress SET updated_at = pg_catalog.clock_timestamp() WHERE pipeline = {name} \
         RETURNING system_identifier, timeline::text, database, slot, lsn::text, \
         (EXTRACT(epoch FROM commit_time - '2000-01-01 00:00:00+00'::timestamptz) * 1000000)::int8::text, version::text"
    );
    let results =
        connection.simple_query(&sql).await.map_err(SinkError::wire("reading the progress row on the standby"))?;
    let row = first_row(results);
    if row.is_empty() {
        return Ok(None);
    }
    read_progress(pipeline, &row).map(Some)
}

fn read_progress(pipeline: &PipelineName, row: &[Option<String>]) -> Result<Progress, SinkError> {
    let unreadable = |what: &str| {
        SinkError::Refused(format!(
            "the progress row of \"{pipeline}\" on the standby (table walrelay.progress) has an unreadable {what}; it was changed \
             by hand. Restore it, or start over with `walrelay drop {pipeline}`"
        ))
    };
    let text = |at: usize, what: &str| row.get(at).cloned().flatten().ok_or_else(|| unreadable(what));
    let version = text(6, "version")?;
    if version != LAYOUT_VERSION.to_string() {
        return Err(SinkError::Refused(format!(
            "the table walrelay.progress on the standby has the layout version {version}, this walrelay writes {LAYOUT_VERSION}: \
             use the walrelay that made it"
        )));
    }
    Ok(Progress {
        system_identifier: text(0, "system identifier")?,
        timeline: text(1, "timeline")?.parse().map_err(|_| unreadable("timeline"))?,
        database: text(2, "database")?,
        slot: SlotName::new(&text(3, "slot")?).map_err(|_| unreadable("slot"))?,
        lsn: text(4, "lsn")?.parse().map_err(|_| unreadable("lsn"))?,
        commit_time: row.get(5).cloned().flatten().and_then(|micros| micros.parse().ok()).map(Timestamp),
    })
}

/// Writes the first row, durably. An existing row is replaced only where it still stands at `0/0` (a start that was cut off).
pub async fn write_first_progress(
    connection: &mut Connection,
    pipeline: &PipelineName,
    progress: &Progress,
) -> Result<(), SinkError> {
    let sql = format!(
        "SET synchronous_commit = local; INSERT INTO walrelay.progress AS p (pipeline, system_identifier, timeline, database, slot, lsn, version) \
         VALUES ({}, {}, {}, {}, {}, '{}'::pg_lsn, {LAYOUT_VERSION}) \
         ON CONFLICT (pipeline) DO UPDATE SET system_identifier = EXCLUDED.system_identifier, timeline = EXCLUDED.timeline, \
         database = EXCLUDED.database, slot = EXCLUDED.slot, lsn = EXCLUDED.lsn, updated_at = pg_catalog.now() \
         WHERE p.lsn = '0/0' RETURNING 1",
        escape_literal(pipeline.as_str()),
        escape_literal(&progress.system_identifier),
        progress.timeline,
        escape_literal(&progress.database),
        escape_literal(progress.slot.as_str()),
        progress.lsn,
    );
    let results =
        connection.simple_query(&sql).await.map_err(SinkError::wire("writing the progress row on the standby"))?;
    if first_row(results).is_empty() {
        return Err(SinkError::ProgressMoved { pipeline: pipeline.to_string(), expected: Lsn::ZERO });
    }
    Ok(())
}

/// The compare-and-set: parameters are new position, commit time, pipeline, old position, system identifier, slot. No row
/// moved is a division by zero in the server, which undoes the batch that was sent in the same breath.
pub(super) const MOVE_PROGRESS: &str = "WITH moved AS (UPDATE walrelay.progress \
    SET lsn = $1, commit_time = COALESCE($2, commit_time), timeline = $7, updated_at = pg_catalog.now() \
    WHERE pipeline = $3 AND lsn = $4 AND system_identifier = $5 AND slot = $6 RETURNING 1) \
    SELECT 1 / pg_catalog.count(*) FROM moved";

/// Types of its parameters: pg_lsn, timestamptz, text, pg_lsn, text, text, int8.
pub(super) const MOVE_PROGRESS_TYPES: &[u32] = &[3220, 1184, 25, 3220, 25, 25, 20];

/// SQLSTATE of the division by zero.
pub(super) const PROGRESS_MOVED: &str = "22012";

/// The first row of the last result that has one, as text.
pub(super) fn first_row(results: Vec<QueryResult>) -> Vec<Option<String>> {
    let row = results.into_iter().filter_map(|result| result.rows.into_iter().next()).next_back().unwrap_or_default();
    row.into_iter().map(|value| value.map(|bytes| String::from_utf8_lossy(&bytes).into_owned())).collect()
}

/// Whether an error says that the standby takes no writes.
pub(super) fn is_read_only(error: &WireError) -> bool {
    error.code() == Some("25006")
}
