//! The relay's own objects on the standby: the schema `walrelay` and the progress row, moved by compare-and-set in the same
//! transaction as the rows. One row a pipeline; nothing else decides where a restart begins.

use postgres_protocol::escape::{escape_identifier, escape_literal};

use crate::model::{Lsn, PipelineName, Progress, SlotName, Timestamp};
use crate::wire::{Connection, QueryResult};

use super::super::SinkError;
use super::change::read_only_refusal;

/// Version of the row's layout: a daemon does not touch a row that another version wrote.
pub const LAYOUT_VERSION: i32 = 1;

/// Serializes the creation among pipelines that share a standby ("walrelay" read as a number; `snapshot` uses it too).
const CREATION_LOCK: i64 = 0x7761_6c72_656c_6179;

/// Without an index: whenever the row moves to another page, a unique one looks at every version that an open snapshot on the
/// standby keeps alive, more with every commit. The pipeline's lock stands for its uniqueness. The replica identity is for a standby
/// that publishes all its tables.
const CREATE_PROGRESS: &str = "CREATE TABLE IF NOT EXISTS walrelay.progress (
  pipeline text NOT NULL, system_identifier text NOT NULL, timeline int8 NOT NULL, database text NOT NULL,
  slot text NOT NULL, lsn pg_lsn NOT NULL, commit_time timestamptz, version int4 NOT NULL,
  updated_at timestamptz NOT NULL DEFAULT pg_catalog.now()
) WITH (fillfactor = 10, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
ALTER TABLE walrelay.progress REPLICA IDENTITY FULL";

/// The compare-and-set. No row moved is a division by zero in the server, which undoes the batch sent in the same breath.
/// The row is found by the place where the last move left it: by its key every version of it would be looked at that an open
/// snapshot on the standby keeps alive. The session itself remembers the place, in a setting of its own that is undone with the
/// transaction that made it: who sends the next batch behind one that is not answered could not know it. A row that moved by itself
/// (VACUUM FULL) is found again by its name at the next start.
/// Parameters: new position, commit time, timeline, pipeline, old position, system identifier, slot.
pub(super) const MOVE_PROGRESS: &str = "WITH moved AS (UPDATE walrelay.progress \
    SET lsn = $1, commit_time = COALESCE($2, commit_time), timeline = $3, updated_at = pg_catalog.now() \
    WHERE ctid = pg_catalog.current_setting('walrelay.progress_place')::pg_catalog.tid \
    AND pipeline = $4 AND lsn = $5 AND system_identifier = $6 AND slot = $7 RETURNING ctid) \
    SELECT pg_catalog.set_config('walrelay.progress_place', pg_catalog.max(ctid)::text, false), 1 / pg_catalog.count(*) FROM moved";
/// Types of its parameters: pg_lsn, timestamptz, int8, text, pg_lsn, text, text.
pub(super) const MOVE_PROGRESS_TYPES: &[u32] = &[3220, 1184, 20, 25, 3220, 25, 25];
/// Lets a session find out where the row stands, by its name: dear under a reader that keeps its versions alive.
pub(super) fn place_sql(pipeline: &str) -> String {
    format!(
        "SELECT pg_catalog.set_config('walrelay.progress_place', ctid::text, false) FROM walrelay.progress WHERE pipeline = {}",
        escape_literal(pipeline)
    )
}

/// What a superuser runs once where the relay's role may not create a schema.
pub fn grant_schema_sql(role: &str) -> Vec<String> {
    vec![format!("CREATE SCHEMA IF NOT EXISTS walrelay AUTHORIZATION {}", escape_identifier(role))]
}

/// Whether the role with this OID may be trusted with what runs with the rights of the session's role: a superuser, that role
/// itself, or one whose member it is. Where that role is a superuser, membership says nothing: it counts as a member of every role.
pub fn trusted_owner_sql(owner: &str) -> String {
    format!(
        "EXISTS (SELECT FROM pg_catalog.pg_roles holder JOIN pg_catalog.pg_roles mine ON mine.rolname = current_user \
         WHERE holder.oid = {owner} AND (holder.rolsuper OR holder.oid = mine.oid \
         OR NOT mine.rolsuper AND pg_catalog.pg_has_role(mine.oid, holder.oid, 'USAGE')))"
    )
}

/// The relay's own objects that somebody made who is not to be trusted: a trigger of his there would run with the relay's rights.
/// What it is (`SCHEMA walrelay`), and its owner.
pub fn foreign_objects_query() -> String {
    format!(
        "SELECT thing.object, owner.rolname::text FROM (SELECT 'SCHEMA walrelay'::text AS object, nspowner AS owner \
         FROM pg_catalog.pg_namespace WHERE nspname = 'walrelay' UNION ALL SELECT 'TABLE walrelay.' || c.relname::text, c.relowner \
         FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         WHERE n.nspname = 'walrelay' AND c.relname IN ('progress', 'copy')) thing \
         JOIN pg_catalog.pg_roles owner ON owner.oid = thing.owner WHERE NOT {} ORDER BY 1",
        trusted_owner_sql("thing.owner")
    )
}

/// What the owner of such an object, or a superuser, runs once it is looked through.
pub fn hand_over_sql(object: &str, role: &str) -> String {
    format!("ALTER {object} OWNER TO {}", escape_identifier(role))
}

async fn refuse_foreign_objects(connection: &mut Connection) -> Result<(), SinkError> {
    let sql = format!("SELECT found.*, current_user::text FROM ({}) found", foreign_objects_query());
    let row = query_row(connection, &sql, "looking who owns the schema walrelay on the standby").await?;
    let [Some(object), Some(owner), Some(role)] = &row[..] else { return Ok(()) };
    Err(SinkError::Refused(format!(
        "the {} on the standby belongs to the role \"{owner}\", and its triggers would run with the rights of \"{role}\": look through \
         its triggers, rules and defaults, then hand it over ({}; `walrelay check` lists all that there are); where another pipeline's role \
         made it, and you trust that role, GRANT {} TO {} instead; where no pipeline needs it, DROP SCHEMA walrelay CASCADE",
        object.to_lowercase(),
        hand_over_sql(object, role),
        escape_identifier(owner),
        escape_identifier(role)
    )))
}

/// Makes schema and table where they are missing; refuses those of somebody who is not to be trusted with the relay's rights.
pub async fn ensure_store(connection: &mut Connection) -> Result<(), SinkError> {
    refuse_foreign_objects(connection).await?;
    let exists = "SELECT pg_catalog.to_regnamespace('walrelay') IS NOT NULL, \
                  pg_catalog.to_regclass('walrelay.progress') IS NOT NULL, current_user::text";
    let row = query_row(connection, exists, "looking for the schema walrelay on the standby").await?;
    let is_there = |at: usize| row.get(at).is_some_and(|value| value.as_deref() == Some("t"));
    if is_there(1) {
        return Ok(());
    }
    let schema = if is_there(0) { "" } else { "CREATE SCHEMA IF NOT EXISTS walrelay;" };
    let script =
        format!("BEGIN; SELECT pg_catalog.pg_advisory_xact_lock({CREATION_LOCK}); {schema} {CREATE_PROGRESS}; COMMIT");
    let Err(error) = connection.simple_query(&script).await else { return Ok(()) };
    if let Some(refusal) = read_only_refusal(&error) {
        return Err(refusal);
    }
    if error.code() == Some("42501") {
        let role = row.get(2).cloned().flatten().unwrap_or_default();
        return Err(SinkError::Refused(format!(
            "the relay's own tables cannot be made on the standby: {error}; let a superuser run there: {}",
            grant_schema_sql(&role).join("; ")
        )));
    }
    Err(SinkError::wire("making the schema walrelay on the standby")(error))
}

/// The pipeline's row, durable: the row is touched and committed with a flush, so that everything before it is on disk too.
/// A row that was merely read could still be lost with an earlier transaction that committed without waiting. (An UPDATE
/// always writes WAL and so always flushes at its commit.)
pub async fn durable_progress(
    connection: &mut Connection,
    pipeline: &PipelineName,
) -> Result<Option<Progress>, SinkError> {
    // The session remembers the row's place: its first move needs it.
    let name = escape_literal(pipeline.as_str());
    let sql = format!(
        "SET synchronous_commit = local; UPDATE walrelay.progress SET updated_at = pg_catalog.clock_timestamp() \
         WHERE pipeline = {name} RETURNING system_identifier, timeline::text, database, slot, lsn::text, \
         (EXTRACT(epoch FROM commit_time - '2000-01-01 00:00:00+00'::timestamptz) * 1000000)::int8::text, version::text, \
         pg_catalog.set_config('walrelay.progress_place', ctid::text, false)"
    );
    let row = query_row(connection, &sql, "reading the progress row on the standby").await?;
    if row.is_empty() {
        return Ok(None);
    }
    Ok(Some(read_progress(pipeline, &row)?))
}

fn read_progress(pipeline: &PipelineName, row: &[Option<String>]) -> Result<Progress, SinkError> {
    let unreadable = |what: &str| {
        SinkError::Refused(format!(
            "the progress row of \"{pipeline}\" on the standby (table walrelay.progress) has an unreadable {what}; it was changed \
             by hand. Restore it, or start over with `walrelay drop {pipeline} --yes`"
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

/// Writes the first row, durably, for the one who holds the pipeline's lock. An existing row is replaced only where it still stands
/// at `0/0` (a start that was cut off).
pub async fn write_first_progress(
    connection: &mut Connection,
    pipeline: &PipelineName,
    progress: &Progress,
) -> Result<(), SinkError> {
    let sql = format!(
        "SET synchronous_commit = local; WITH mine (pipeline, system_identifier, timeline, database, slot, lsn, version) AS \
         (VALUES ({}, {}, {}::int8, {}, {}, '{}'::pg_lsn, {LAYOUT_VERSION})), \
         again AS (UPDATE walrelay.progress p SET system_identifier = m.system_identifier, timeline = m.timeline, \
         database = m.database, slot = m.slot, lsn = m.lsn, updated_at = pg_catalog.now() \
         FROM mine m WHERE p.pipeline = m.pipeline AND p.lsn = '0/0' RETURNING 1), \
         first AS (INSERT INTO walrelay.progress (pipeline, system_identifier, timeline, database, slot, lsn, version) \
         SELECT * FROM mine m WHERE NOT EXISTS (SELECT FROM walrelay.progress p WHERE p.pipeline = m.pipeline) RETURNING 1) \
         SELECT 1 FROM again UNION ALL SELECT 1 FROM first",
        escape_literal(pipeline.as_str()),
        escape_literal(&progress.system_identifier),
        progress.timeline,
        escape_literal(&progress.database),
        escape_literal(progress.slot.as_str()),
        progress.lsn,
    );
    let row = query_row(connection, &sql, "writing the progress row on the standby").await?;
    if row.is_empty() {
        return Err(SinkError::ProgressMoved { pipeline: pipeline.to_string(), expected: Lsn::ZERO });
    }
    Ok(())
}

/// Runs simple statements and gives the first row of the last result that has one, as text; empty when none has.
pub(super) async fn query_row(
    connection: &mut Connection,
    sql: &str,
    context: &str,
) -> Result<Vec<Option<String>>, SinkError> {
    let results = connection.simple_query(sql).await.map_err(|error| match read_only_refusal(&error) {
        Some(refusal) => refusal,
        None => SinkError::wire(context)(error),
    })?;
    let row = results.into_iter().filter_map(|result: QueryResult| result.rows.into_iter().next()).next_back();
    let text = |value: Option<bytes::Bytes>| value.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    Ok(row.unwrap_or_default().into_iter().map(text).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(row: [Option<&str>; 7], expected: Result<Lsn, &str>) {
        let row: Vec<Option<String>> = row.into_iter().map(|value| value.map(str::to_owned)).collect();
        match (read_progress(&PipelineName::new("standby1").unwrap(), &row), expected) {
            (Ok(progress), Ok(lsn)) => assert_eq!(progress.lsn, lsn),
            (Err(error), Err(text)) => assert!(error.to_string().contains(text), "{error}"),
            (read, expected) => panic!("{read:?} instead of {expected:?}"),
        }
    }

    #[test]
    fn a_progress_row_is_read_or_refused_by_name() {
        let row = [Some("7"), Some("1"), Some("shop"), Some("s"), Some("0/A"), None, Some("1")];
        check(row, Ok(Lsn(10)));
        let mut other = row;
        other[6] = Some("2");
        check(other, Err("layout version 2"));
        for (at, what) in [(0, "system identifier"), (1, "timeline"), (3, "slot"), (4, "lsn")] {
            let mut other = row;
            other[at] = None;
            check(other, Err(what));
        }
    }
}
