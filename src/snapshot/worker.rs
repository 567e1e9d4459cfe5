//! One worker: a session on each side, and pieces of tables from the shared queue until it is empty. A table is recorded
//! `done` together with its last rows.

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use postgres_protocol::escape::{escape_identifier, escape_literal};
use postgres_protocol::message::frontend;

use crate::model::{Lsn, PipelineName, QualifiedName, listed};
use crate::schema::name_list;
use crate::wire::{Connection, QueryResult, WireError};

use super::command;
use super::error::{Side, SnapshotError, server};
use super::format::Format;
use super::plan::{PageRange, PublishedTable};
use super::progress::CopyProgress;
use super::pump::{Passed, pass_through};

/// ANALYZE gives up on a table that others hold; statistics come with autovacuum too.
const ANALYZE_LOCK_TIMEOUT: &str = "5s";
/// SQL: true where the session's role may ANALYZE the table `c`; `walrelay check` asks the same.
pub const MAY_ANALYZE: &str = include_str!("may_analyze.sql");

/// One table and what is left of it.
pub(super) struct TableWork {
    published: PublishedTable,
    format: Format,
    piece_count: usize,
    pieces_left: AtomicUsize,
    rows: AtomicU64,
    bytes: AtomicU64,
}

impl TableWork {
    pub(super) fn new(published: PublishedTable, format: Format, piece_count: usize) -> Self {
        Self {
            published,
            format,
            piece_count,
            pieces_left: AtomicUsize::new(piece_count),
            rows: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        }
    }
}

/// What all workers share.
pub(super) struct Work {
    pub(super) pipeline: PipelineName,
    pub(super) snapshot_lsn: Lsn,
    pub(super) tables: Vec<TableWork>,
    pub(super) queue: Mutex<VecDeque<(usize, Option<PageRange>)>>,
    pub(super) progress: Arc<CopyProgress>,
}

impl Work {
    fn next(&self) -> Option<(usize, Option<PageRange>)> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }
}

/// The two sessions of a worker. The primary's is inside a transaction that holds the locks, under the imported snapshot.
pub(super) struct Sessions {
    pub(super) primary: Connection,
    pub(super) standby: Connection,
}

/// What a worker leaves.
pub(super) struct Finished {
    pub(super) standby: Connection,
    /// Those of which it brought the last piece.
    pub(super) tables: Vec<QualifiedName>,
}

/// Copies until nothing is left.
pub(super) async fn run(mut sessions: Sessions, work: Arc<Work>) -> Result<Finished, SnapshotError> {
    let mut tables = Vec::new();
    while let Some((index, range)) = work.next() {
        let table = &work.tables[index];
        if copy_piece(&mut sessions, table, range, &work).await? {
            tables.push(table.published.name.clone());
        }
    }
    close(sessions.primary).await;
    Ok(Finished { standby: sessions.standby, tables })
}

/// Returns whether this piece was the table's last.
async fn copy_piece(
    sessions: &mut Sessions,
    table: &TableWork,
    range: Option<PageRange>,
    work: &Work,
) -> Result<bool, SnapshotError> {
    let is_whole_table = table.piece_count == 1;
    if is_whole_table {
        execute(&mut sessions.standby, table, "BEGIN").await?;
    }
    let passed = if table.published.columns.is_empty() {
        copy_empty_rows(sessions, table, range, work).await?
    } else {
        let out = command::copy_out(&table.published, range, table.format);
        let into = command::copy_in(&table.published, table.format);
        pass_through((&mut sessions.primary, &out), (&mut sessions.standby, &into), &work.progress)
            .await
            .map_err(|(side, error)| failed(side, table, error))?
    };
    table.rows.fetch_add(passed.rows, Ordering::AcqRel);
    table.bytes.fetch_add(passed.bytes, Ordering::AcqRel);
    // Each worker lowers the counter after its piece was committed: who brings it to zero knows that all others were.
    if table.pieces_left.fetch_sub(1, Ordering::AcqRel) > 1 {
        return Ok(false);
    }
    let (rows, bytes) = (table.rows.load(Ordering::Acquire), table.bytes.load(Ordering::Acquire));
    if !is_whole_table {
        execute(&mut sessions.standby, table, "BEGIN").await?;
    }
    record_done(&mut sessions.standby, table, work, (rows, bytes)).await?;
    work.progress.table_done();
    tracing::info!(table = %table.published.name, rows, bytes, pieces = table.piece_count, "copied");
    Ok(true)
}

/// The record and the commit. Its flush makes the table's earlier pieces durable too, since they lie before it in the WAL.
async fn record_done(
    standby: &mut Connection,
    table: &TableWork,
    work: &Work,
    (rows, bytes): (u64, u64),
) -> Result<(), SnapshotError> {
    let name = &table.published.name;
    let update = format!(
        "SET LOCAL synchronous_commit = local; \
         UPDATE walrelay.copy SET state = 'done', snapshot_lsn = '{}', rows = {rows}, bytes = {bytes}, updated_at = pg_catalog.now() \
         WHERE pipeline = {} AND schema_name = {} AND table_name = {}",
        work.snapshot_lsn,
        escape_literal(work.pipeline.as_str()),
        escape_literal(&name.schema),
        escape_literal(&name.name),
    );
    let results = execute(standby, table, &update).await?;
    if results.last().is_none_or(|result| result.tag != "UPDATE 1") {
        return Err(SnapshotError::Disturbed(format!(
            "the row of {name} in walrelay.copy on the standby vanished during the copy"
        )));
    }
    execute(standby, table, "COMMIT").await.map(drop)
}

/// Rows of a table that publishes no column: only their number can be copied.
async fn copy_empty_rows(
    sessions: &mut Sessions,
    table: &TableWork,
    range: Option<PageRange>,
    work: &Work,
) -> Result<Passed, SnapshotError> {
    let query = command::count_rows(&table.published, range);
    let results = sessions.primary.simple_query(&query).await.map_err(|error| failed(Side::Primary, table, error))?;
    let value = results.first().and_then(|result| result.rows.first()?.first()?.as_ref());
    let rows = value.and_then(|value| std::str::from_utf8(value).ok()?.parse().ok()).unwrap_or(0);
    if rows > 0 {
        execute(&mut sessions.standby, table, &command::insert_empty_rows(&table.published.name, rows)).await?;
    }
    work.progress.add(rows, 0);
    Ok(Passed { rows, bytes: 0 })
}

/// Statistics for the standby's own planner. A failure is only noted: autovacuum gathers them too.
pub(super) async fn analyze(mut standby: Connection, tables: Vec<QualifiedName>) {
    let gathered = gather_statistics(&mut standby, &tables).await;
    match gathered {
        Ok(()) => close(standby).await,
        Err(error) => tracing::info!(%error, "the session that gathers statistics was lost"),
    }
}

async fn gather_statistics(standby: &mut Connection, tables: &[QualifiedName]) -> Result<(), WireError> {
    noted(standby, "SELECT pg_catalog.pg_advisory_unlock_all()").await?;
    noted(standby, &format!("SET lock_timeout = '{ANALYZE_LOCK_TIMEOUT}'")).await?;
    let denied = denied(standby, tables).await?;
    for table in tables {
        if !denied.contains(table) {
            noted(standby, &format!("ANALYZE {}", table.sql())).await?;
        }
    }
    Ok(())
}

/// Those that the role may not ANALYZE. The server would skip each of them with a warning that nobody reads.
async fn denied(standby: &mut Connection, tables: &[QualifiedName]) -> Result<Vec<QualifiedName>, WireError> {
    let query = format!(
        "SELECT n.nspname, c.relname, current_user, pg_catalog.current_setting('server_version_num')::int4 >= 170000 \
         FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         WHERE (n.nspname, c.relname) IN (VALUES {}) AND NOT ({MAY_ANALYZE}) ORDER BY 1, 2",
        name_list(tables)
    );
    let results = noted(standby, &query).await?;
    let rows: Vec<Vec<String>> = results
        .iter()
        .flat_map(|result| &result.rows)
        .map(|row| {
            let text = |value: Option<&[u8]>| String::from_utf8_lossy(value.unwrap_or_default()).into_owned();
            row.iter().map(|value| text(value.as_deref())).collect()
        })
        .collect();
    let table = |row: &Vec<String>| match &row[..] {
        [schema, name, ..] => Some(QualifiedName::new(schema, name)),
        _ => None,
    };
    let denied: Vec<QualifiedName> = rows.iter().filter_map(table).collect();
    if let Some([_, _, role, has_right]) = rows.first().map(Vec::as_slice) {
        warn_of_denied(&denied, role, has_right == "t");
    }
    Ok(denied)
}

/// The right of its own, MAINTAIN, came with version 17.
fn warn_of_denied(tables: &[QualifiedName], role: &str, has_right: bool) {
    let role = escape_identifier(role);
    let schemas: BTreeSet<String> = tables.iter().map(|table| escape_identifier(&table.schema)).collect();
    let remedy = if has_right {
        let schemas = schemas.into_iter().collect::<Vec<_>>().join(", ");
        format!("GRANT MAINTAIN ON ALL TABLES IN SCHEMA {schemas} TO {role}")
    } else {
        format!("let {role} own them")
    };
    tracing::warn!(
        tables = listed(tables),
        "the role may not ANALYZE these tables of the standby: they have no statistics until autovacuum gathers them; run ANALYZE as \
         their owner, and for the next copy: {remedy}"
    );
}

/// The answer to a command that nothing depends on: a refusal is only noted.
async fn noted(standby: &mut Connection, command: &str) -> Result<Vec<QueryResult>, WireError> {
    match standby.simple_query(command).await {
        Err(error @ WireError::Server(_)) => {
            tracing::info!(%error, command, "no statistics for a copied table");
            Ok(Vec::new())
        }
        answer => answer,
    }
}

/// Says goodbye, so that the server logs no lost connection. Nothing depends on it.
pub(super) async fn close(mut connection: Connection) {
    frontend::terminate(connection.outgoing());
    if let Err(error) = connection.flush().await {
        tracing::debug!(%error, "a copy session was lost at its end");
    }
}

async fn execute(standby: &mut Connection, table: &TableWork, sql: &str) -> Result<Vec<QueryResult>, SnapshotError> {
    standby.simple_query(sql).await.map_err(|error| failed(Side::Standby, table, error))
}

fn failed(side: Side, table: &TableWork, error: WireError) -> SnapshotError {
    server(side, format!("copy the table {}", table.published.name), error)
}
