//! The record of the copy on the standby, `walrelay.copy`: one row a pipeline and table. A table is `done` in the very
//! transaction that makes its last rows visible; nothing else says that a table is whole.
//!
//! ```text
//! (no row) ──plan──▶ pending ──copied in one transaction──────────────▶ done
//!              └───▶ copying ──last piece committed, then this record──▶ done
//!                       └─ begins again: emptied first (what is in it is ours alone)
//! ```

use std::collections::BTreeMap;

use crate::model::{Copied, CopyReport, Lsn, PipelineName, QualifiedName};
use crate::wire::sql::SqlClient;

use super::OWN_SCHEMA;
use super::error::{Side, SnapshotError, server};

/// Serializes the creation of the table among pipelines that share a standby ("walrelay" read as a number).
const CREATION_LOCK: i64 = 0x7761_6c72_656c_6179;

const CREATE: &str = "CREATE TABLE IF NOT EXISTS walrelay.copy ( \
     pipeline text NOT NULL, \
     schema_name text NOT NULL, \
     table_name text NOT NULL, \
     state text NOT NULL CHECK (state IN ('pending', 'copying', 'done')), \
     snapshot_lsn pg_catalog.pg_lsn, \
     rows bigint NOT NULL DEFAULT 0, \
     bytes bigint NOT NULL DEFAULT 0, \
     updated_at timestamptz NOT NULL DEFAULT pg_catalog.now(), \
     relation_oid int8, \
     standby_oid int8, \
     has_left bool NOT NULL DEFAULT false, \
     PRIMARY KEY (pipeline, schema_name, table_name))";

/// How far one table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableState {
    /// To be copied in one transaction; holds nothing of ours.
    Pending,
    /// Is copied in several transactions; may hold a part.
    Copying,
    /// Not of the set: its changes are left out.
    Left,
    /// Copied whole.
    Done {
        /// Changes that committed below are in the copy.
        snapshot_lsn: Lsn,
        /// Rows copied.
        rows: u64,
        /// Bytes of COPY data.
        bytes: u64,
        /// The table's OID on the primary, if that is recorded, …
        relation_oid: Option<u32>,
        /// … and on the standby.
        standby_oid: Option<u32>,
    },
}

impl TableState {
    /// The word in the record.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            TableState::Pending => "pending",
            TableState::Copying => "copying",
            TableState::Left | TableState::Done { .. } => "done",
        }
    }
}

/// What the standby remembers of a pipeline's initial copy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CopyState {
    /// Every table that was ever planned.
    pub tables: BTreeMap<QualifiedName, TableState>,
}

impl CopyState {
    /// Whether a copy was begun and is not at its end.
    pub fn is_unfinished(&self) -> bool {
        self.tables.values().any(|state| matches!(state, TableState::Pending | TableState::Copying))
    }

    /// The finished tables, with the positions of their snapshots.
    pub fn copied(&self) -> Copied {
        let mut copied = Copied::default();
        for (name, state) in &self.tables {
            if let TableState::Done { snapshot_lsn, relation_oid, standby_oid, .. } = state {
                copied.insert(name.clone(), (*relation_oid, *standby_oid), *snapshot_lsn);
            }
        }
        copied
    }

    /// The finished tables in numbers.
    pub fn report(&self) -> CopyReport {
        let mut report = CopyReport::default();
        for state in self.tables.values().filter(|state| **state != TableState::Left) {
            report.tables_total += 1;
            if let TableState::Done { rows, bytes, .. } = state {
                report.tables_done += 1;
                report.rows += rows;
                report.bytes += bytes;
            }
        }
        report
    }
}

/// Reads the record; empty when there is none. What it says is visible, and was durable before it was visible.
pub async fn load(client: &SqlClient, pipeline: &PipelineName) -> Result<CopyState, SnapshotError> {
    let failed = |error: tokio_postgres::Error| server(Side::Standby, "read walrelay.copy", error);
    let exists = client.query_one("SELECT pg_catalog.to_regclass('walrelay.copy') IS NOT NULL", &[]).await;
    if !exists.map_err(failed)?.get::<_, bool>(0) {
        return Ok(CopyState::default());
    }
    let rows = client
        .query(
            // Its last columns are missing in a record of an older walrelay.
            "SELECT schema_name, table_name, state, snapshot_lsn::text, rows, bytes, \
                    COALESCE((pg_catalog.to_jsonb(c) ->> 'has_left')::bool, false), \
                    (pg_catalog.to_jsonb(c) ->> 'relation_oid')::int8, (pg_catalog.to_jsonb(c) ->> 'standby_oid')::int8 FROM walrelay.copy c WHERE pipeline = $1",
            &[&pipeline.as_str()],
        )
        .await
        .map_err(failed)?;
    let mut tables = BTreeMap::new();
    for row in &rows {
        let name = QualifiedName::new(row.get::<_, String>(0), row.get::<_, String>(1));
        let lsn: Option<Lsn> = row.get::<_, Option<&str>>(3).and_then(|text| text.parse().ok());
        let state = match (row.get::<_, &str>(2), lsn) {
            _ if row.get(6) => TableState::Left,
            ("pending", _) => TableState::Pending,
            ("copying", _) => TableState::Copying,
            ("done", Some(snapshot_lsn)) => {
                let count = |at: usize| u64::try_from(row.get::<_, i64>(at)).unwrap_or(0);
                let oid = |at: usize| row.get::<_, Option<i64>>(at).and_then(|oid| u32::try_from(oid).ok());
                let (relation_oid, standby_oid) = (oid(7), oid(8));
                TableState::Done { snapshot_lsn, rows: count(4), bytes: count(5), relation_oid, standby_oid }
            }
            (state, _) => {
                return Err(SnapshotError::Refused(format!(
                    "walrelay.copy on the standby says \"{state}\" without a usable position for {name}, which this version \
                     does not write: run `walrelay drop {pipeline} --yes` and copy anew"
                )));
            }
        };
        tables.insert(name, state);
    }
    Ok(CopyState { tables })
}

/// Makes the table where it is missing.
pub async fn ensure(client: &SqlClient) -> Result<(), SnapshotError> {
    let failed = |error: tokio_postgres::Error| server(Side::Standby, "create the table walrelay.copy", error);
    let facts = client
        .query_one(
            "SELECT pg_catalog.to_regnamespace('walrelay') IS NOT NULL, pg_catalog.to_regclass('walrelay.copy') IS NOT NULL",
            &[],
        )
        .await
        .map_err(failed)?;
    let (has_schema, has_table): (bool, bool) = (facts.get(0), facts.get(1));
    if has_table {
        return Ok(());
    }
    let schema = if has_schema { "" } else { "CREATE SCHEMA IF NOT EXISTS walrelay;" };
    let script = format!("BEGIN; SELECT pg_catalog.pg_advisory_xact_lock({CREATION_LOCK}); {schema} {CREATE}; COMMIT");
    if let Err(error) = client.batch_execute(&script).await {
        // Leave the failed transaction; the error that counts is the first one.
        let _ = client.batch_execute("ROLLBACK").await;
        return Err(failed(error));
    }
    Ok(())
}

/// Writes down tables that come beside the others. One that was copied before is another under its name, or was missing for a time.
pub(super) async fn plan_more(
    client: &SqlClient,
    pipeline: &PipelineName,
    tables: &[QualifiedName],
) -> Result<(), tokio_postgres::Error> {
    let (schemas, names) = QualifiedName::parts(tables);
    let sql = "INSERT INTO walrelay.copy (pipeline, schema_name, table_name, state) \
               SELECT $1, s, t, 'pending' FROM unnest($2::text[], $3::text[]) AS p(s, t) \
               ON CONFLICT (pipeline, schema_name, table_name) DO UPDATE \
               SET state = 'pending', snapshot_lsn = NULL, rows = 0, bytes = 0, updated_at = pg_catalog.now() \
               WHERE walrelay.copy.state = 'done'";
    client.execute(sql, &[&pipeline.as_str(), &schemas, &names]).await.map(drop)
}

/// Marks published tables that are not of the set. Whatever the copy of one had come to when it left counts for nothing. Gives how many
/// were not marked before.
pub(super) async fn leave_out(
    client: &SqlClient,
    pipeline: &PipelineName,
    others: &[QualifiedName],
) -> Result<u64, tokio_postgres::Error> {
    let others = others.iter().filter(|table| table.schema != OWN_SCHEMA);
    let (schemas, tables) = QualifiedName::parts(others);
    let insert = "INSERT INTO walrelay.copy AS c (pipeline, schema_name, table_name, state, snapshot_lsn, has_left) \
                  SELECT $1, s, t, 'done', '0/0', true FROM unnest($2::text[], $3::text[]) AS p(s, t) \
                  ON CONFLICT (pipeline, schema_name, table_name) DO UPDATE \
                  SET state = 'done', snapshot_lsn = '0/0', has_left = true, updated_at = pg_catalog.now() WHERE NOT c.has_left";
    client.execute(insert, &[&pipeline.as_str(), &schemas, &tables]).await
}

/// Marks copied tables that are not published any more. One whose copy the stream has not passed yet is still to be told from what the copy
/// holds: another start marks it. Gives how many were marked.
pub(super) async fn leave_passed(
    client: &SqlClient,
    pipeline: &PipelineName,
    unpublished: &[QualifiedName],
) -> Result<u64, tokio_postgres::Error> {
    if unpublished.is_empty() {
        return Ok(0);
    }
    let (schemas, tables) = QualifiedName::parts(unpublished);
    let update = "UPDATE walrelay.copy c SET snapshot_lsn = '0/0', has_left = true, updated_at = pg_catalog.now() \
                  FROM walrelay.progress p WHERE c.pipeline = $1 AND p.pipeline = $1 AND c.state = 'done' AND NOT c.has_left \
                  AND c.snapshot_lsn <= p.lsn AND (c.schema_name, c.table_name) IN (SELECT * FROM unnest($2::text[], $3::text[]))";
    client.execute(update, &[&pipeline.as_str(), &schemas, &tables]).await
}

/// Inside a transaction: forgets unfinished tables that are not planned any more, and writes down the plan.
pub(super) async fn record_plan(
    client: &SqlClient,
    pipeline: &PipelineName,
    plan: &[(&QualifiedName, TableState)],
) -> Result<(), tokio_postgres::Error> {
    client.execute("DELETE FROM walrelay.copy WHERE pipeline = $1 AND state <> 'done'", &[&pipeline.as_str()]).await?;
    let schemas: Vec<&str> = plan.iter().map(|(name, _)| name.schema.as_str()).collect();
    let names: Vec<&str> = plan.iter().map(|(name, _)| name.name.as_str()).collect();
    let states: Vec<&str> = plan.iter().map(|(_, state)| state.as_str()).collect();
    client
        .execute(
            "INSERT INTO walrelay.copy (pipeline, schema_name, table_name, state) \
             SELECT $1, s, t, state FROM unnest($2::text[], $3::text[], $4::text[]) AS p(s, t, state)",
            &[&pipeline.as_str(), &schemas, &names, &states],
        )
        .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_finished_tables_are_skipped_and_counted() {
        let done = |lsn| TableState::Done {
            snapshot_lsn: Lsn(lsn),
            rows: 10,
            bytes: 100,
            relation_oid: None,
            standby_oid: None,
        };
        let name = |name: &str| QualifiedName::new("public", name);
        let mut state = CopyState {
            tables: [
                (name("a"), done(1)),
                (name("b"), done(2)),
                (name("c"), TableState::Pending),
                (name("d"), TableState::Copying),
                (name("e"), TableState::Left),
            ]
            .into(),
        };
        assert!(state.is_unfinished());
        let copied = state.copied();
        assert_eq!(copied.len(), 2);
        assert_eq!((copied.skip_until(0, &name("a")), copied.skip_until(0, &name("b"))), (Lsn(1), Lsn(2)));
        assert_eq!(state.report(), CopyReport { tables_total: 4, tables_done: 2, rows: 20, bytes: 200 });
        state.tables.retain(|_, state| matches!(state, TableState::Left | TableState::Done { .. }));
        assert!(!state.is_unfinished());
        assert!(!CopyState::default().is_unfinished());
    }
}
