//! The record of a copied table follows it by its OID on the primary, which a rename keeps: else it would be a new table, whose rows are in
//! the way. Copies nothing.

use crate::model::PipelineName;
use crate::wire::sql::SqlClient;

use super::error::{Side, SnapshotError, server};

/// Gives what is recorded of a table that was renamed its new name, and notes the OIDs of those of which none is noted yet. Whether there
/// is such a record. Reads catalogs only on the primary, so no lock on a table holds it up.
pub(super) async fn follow(
    primary: &SqlClient,
    standby: &mut SqlClient,
    pipeline: &PipelineName,
) -> Result<bool, SnapshotError> {
    let failed = |error: tokio_postgres::Error| server(Side::Standby, "follow renamed tables in walrelay.copy", error);
    if !has_columns(standby).await? {
        return Ok(false);
    }
    let recorded = "SELECT schema_name, table_name, COALESCE(relation_oid, 0) FROM walrelay.copy WHERE pipeline = $1";
    let recorded = standby.query(recorded, &[&pipeline.as_str()]).await.map_err(failed)?;
    let text = |at: usize| recorded.iter().map(|row| row.get(at)).collect::<Vec<String>>();
    let oids: Vec<i64> = recorded.iter().map(|row| row.get(2)).collect();
    let now = "SELECT n.nspname::text, c.relname::text, c.oid::int8 FROM pg_catalog.pg_class c \
               JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
               WHERE c.oid = ANY ($3::int8[]::oid[]) OR (n.nspname, c.relname) IN (SELECT * FROM unnest($1::text[], $2::text[]))";
    let now = primary.query(now, &[&text(0), &text(1), &oids]).await;
    let now = now.map_err(|error| server(Side::Primary, "read the names of the copied tables", error))?;
    let text = |at: usize| now.iter().map(|row| row.get(at)).collect::<Vec<String>>();
    let (schemas, names) = (text(0), text(1));
    let oids: Vec<i64> = now.iter().map(|row| row.get(2)).collect();
    let transaction = standby.client_mut().transaction().await.map_err(failed)?;
    for statement in [DROP_OVERTAKEN, MOVE, NOTE] {
        let done =
            transaction.execute(statement, &[&pipeline.as_str(), &schemas, &names, &oids]).await.map_err(failed)?;
        if statement == MOVE && done > 0 {
            tracing::info!(tables = done, "tables were renamed since they were copied; their record follows them");
        }
    }
    transaction.execute(NOTE_STANDBY, &[&pipeline.as_str()]).await.map_err(failed)?;
    transaction.commit().await.map_err(failed)?;
    Ok(true)
}

/// Whether there is a record, with what walrelay keeps there since it follows names: its columns are added where they are missing.
async fn has_columns(standby: &SqlClient) -> Result<bool, SnapshotError> {
    let failed = |error: tokio_postgres::Error| server(Side::Standby, "look at walrelay.copy", error);
    let query = "SELECT pg_catalog.pg_has_role(c.relowner, 'USAGE'), EXISTS (SELECT FROM pg_catalog.pg_attribute a \
                 WHERE a.attrelid = c.oid AND a.attname = 'standby_oid' AND NOT a.attisdropped) FROM pg_catalog.pg_class c \
                 WHERE c.oid = pg_catalog.to_regclass('walrelay.copy')";
    let Some(facts) = standby.query_opt(query, &[]).await.map_err(failed)? else { return Ok(false) };
    let (is_owned, has_columns): (bool, bool) = (facts.get(0), facts.get(1));
    if !has_columns && is_owned {
        // Whoever reads the record waits behind us: not for long, and the next attempt tries again.
        let add = "BEGIN; SET LOCAL lock_timeout = '2s'; ALTER TABLE walrelay.copy ADD COLUMN IF NOT EXISTS relation_oid int8, \
                   ADD COLUMN IF NOT EXISTS has_left bool NOT NULL DEFAULT false, ADD COLUMN IF NOT EXISTS standby_oid int8; COMMIT";
        standby
            .batch_execute(add)
            .await
            .map_err(|error| server(Side::Standby, "add columns to walrelay.copy, made by an older walrelay", error))?;
    } else if !has_columns {
        tracing::warn!(
            "walrelay.copy is somebody else's and was made by an older walrelay: tables that are renamed or leave the set are not followed"
        );
    }
    Ok(has_columns || is_owned)
}

/// What is recorded under a name that a recorded table has now, of one that is there no more.
const DROP_OVERTAKEN: &str = "DELETE FROM walrelay.copy c USING unnest($2::text[], $3::text[], $4::int8[]) AS p(s, t, o) \
     WHERE c.pipeline = $1 AND (c.schema_name, c.table_name) = (p.s, p.t) AND c.relation_oid IS DISTINCT FROM p.o \
     AND COALESCE(c.relation_oid <> ALL ($4::int8[]), true) \
     AND EXISTS (SELECT FROM walrelay.copy m WHERE m.pipeline = $1 AND m.relation_oid = p.o)";

/// Sorted, so that all are deleted before the first is inserted: two may have changed their names. What is in the standby's table of the new
/// name need not be ours.
const MOVE: &str = "WITH moved AS (DELETE FROM walrelay.copy c USING unnest($2::text[], $3::text[], $4::int8[]) AS p(s, t, o) \
     WHERE c.pipeline = $1 AND c.relation_oid = p.o AND (c.schema_name, c.table_name) <> (p.s, p.t) \
     RETURNING p.s, p.t, p.o, c.state, c.snapshot_lsn, c.rows, c.bytes, c.has_left, c.standby_oid) \
     INSERT INTO walrelay.copy (pipeline, schema_name, table_name, relation_oid, state, snapshot_lsn, rows, bytes, has_left, standby_oid) \
     SELECT $1, s, t, o, CASE state WHEN 'copying' THEN 'pending' ELSE state END, snapshot_lsn, rows, bytes, has_left, standby_oid \
     FROM moved ORDER BY s, t";

/// One that is to be copied is another than the one that had its name.
const NOTE: &str = "UPDATE walrelay.copy c SET relation_oid = p.o FROM unnest($2::text[], $3::text[], $4::int8[]) AS p(s, t, o) \
     WHERE c.pipeline = $1 AND (c.schema_name, c.table_name) = (p.s, p.t) \
     AND (c.relation_oid IS NULL OR (c.relation_oid <> p.o AND c.state <> 'done'))";

/// Which table of the standby it is, by the name that it has there as long as nobody has renamed either of both. One that is made again on the
/// standby is known by its name anew.
const NOTE_STANDBY: &str = "UPDATE walrelay.copy c SET standby_oid = k.oid::int8 FROM pg_catalog.pg_class k \
     JOIN pg_catalog.pg_namespace n ON n.oid = k.relnamespace \
     WHERE c.pipeline = $1 AND (n.nspname, k.relname) = (c.schema_name, c.table_name) AND c.standby_oid IS DISTINCT FROM k.oid::int8 \
     AND (c.state <> 'done' OR NOT EXISTS (SELECT FROM pg_catalog.pg_class t WHERE t.oid::int8 = c.standby_oid))";
