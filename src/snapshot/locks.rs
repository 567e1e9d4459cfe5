//! Keeps the primary's tables as they are while they are copied: each worker's session takes ACCESS SHARE locks on all of them
//! before the snapshot is made, and keeps them to its end. Never reads a row.
//!
//! It must be the worker's own session. A rewrite or a TRUNCATE that waits for a lock held elsewhere would stand before the
//! worker in the table's queue, and each would wait for the other without the server's seeing the knot.

use std::time::Duration;

use crate::config::ServerUrl;
use crate::model::{PipelineName, QualifiedName};
use crate::wire::Connection;
use crate::wire::sql::SqlClient;

use super::command::PATIENCE;
use super::error::{Side, SnapshotError, server};
use super::plan::PublishedTable;
use super::progress::CopyProgress;
use super::{blockers, command, published, session};

/// Pause between attempts, in which all locks are given back, so that who waits behind us gets through.
const PAUSE: Duration = Duration::from_secs(1);
/// `lock_not_available`.
const LOCK_NOT_AVAILABLE: &str = "55P03";
/// `out_of_memory`: the table of locks is full.
const LOCKS_EXHAUSTED: &str = "53200";
/// `undefined_table`, `invalid_schema_name` for names read a moment ago: dropped in between.
const GONE: &[&str] = &["42P01", "3F000"];

/// The tables as they are under the locks.
pub(super) struct Locked {
    /// A session without a transaction, for questions to the catalogs.
    pub(super) observer: SqlClient,
    /// One session for each worker, inside a transaction that holds the locks and has no snapshot yet.
    pub(super) workers: Vec<Connection>,
    pub(super) tables: Vec<PublishedTable>,
}

/// What is to be locked.
pub(super) struct Wanted<'a> {
    pub(super) url: &'a ServerUrl,
    pub(super) pipeline: &'a PipelineName,
    pub(super) publication: &'a str,
    pub(super) tables: &'a [QualifiedName],
    pub(super) version_number: u32,
    pub(super) workers_limit: usize,
    pub(super) smallest_range_pages: u64,
}

/// Lists the publication's tables among the wanted ones, locks them and lists them again until both lists agree. While someone
/// holds an ACCESS EXCLUSIVE lock it says who, and tries again.
pub(super) async fn take(mut wanted: Wanted<'_>, progress: &CopyProgress) -> Result<Locked, SnapshotError> {
    let observer = session::primary_sql(wanted.url, wanted.pipeline).await?;
    let set = format!("SET lock_timeout = '{PATIENCE}'");
    observer.batch_execute(&set).await.map_err(|error| server(Side::Primary, "set lock_timeout", error))?;
    let mut workers = Vec::new();
    loop {
        match attempt(&observer, &mut workers, &wanted).await {
            Ok(Some(tables)) => {
                progress.set_waiting(None);
                return Ok(Locked { observer, workers, tables });
            }
            Ok(None) => progress.set_waiting(Some("the published tables to stop changing".to_owned())),
            Err(error) if error.code() == Some(LOCK_NOT_AVAILABLE) => {
                give_back(&mut workers).await?;
                let found = blockers::of_tables(&observer).await;
                let found = found.map_err(|error| server(Side::Primary, "read pg_locks", error))?;
                if !found.is_empty() {
                    progress.set_waiting(Some(blockers::list(&found)));
                }
            }
            Err(error) if error.code() == Some(LOCKS_EXHAUSTED) && workers.len() > 1 => {
                wanted.workers_limit = workers.len() / 2;
                tracing::warn!(
                    workers = wanted.workers_limit,
                    "the primary has no room for the locks of so many copy workers: fewer are used (max_locks_per_transaction)"
                );
            }
            Err(error) if error.code().is_some_and(|code| GONE.contains(&code)) => {}
            Err(error) => return Err(error),
        }
        give_back(&mut workers).await?;
        tokio::time::sleep(PAUSE).await;
    }
}

/// `None`: the tables changed between listing and locking.
async fn attempt(
    observer: &SqlClient,
    workers: &mut Vec<Connection>,
    wanted: &Wanted<'_>,
) -> Result<Option<Vec<PublishedTable>>, SnapshotError> {
    let list = || published::tables(observer, wanted.publication, wanted.tables, wanted.version_number);
    let before = list().await?;
    let pieces = super::plan::pieces(&before, wanted.workers_limit, wanted.smallest_range_pages, |_| false);
    let count = pieces.iter().map(Vec::len).sum::<usize>().min(wanted.workers_limit);
    workers.truncate(count);
    while workers.len() < count {
        workers.push(session::primary_copy(wanted.url, wanted.pipeline).await?);
    }
    let lock = command::begin_and_lock(&before);
    for worker in workers.iter_mut() {
        worker.simple_query(&lock).await.map_err(|error| server(Side::Primary, "lock the published tables", error))?;
    }
    let after = list().await?;
    let identity = |tables: &[PublishedTable]| -> Vec<_> {
        tables.iter().map(|table| (table.oid, table.name.clone(), table.storage)).collect()
    };
    Ok((identity(&before) == identity(&after)).then_some(after))
}

async fn give_back(workers: &mut [Connection]) -> Result<(), SnapshotError> {
    for worker in workers {
        let ended = worker.simple_query("ROLLBACK").await;
        ended.map_err(|error| server(Side::Primary, "give the table locks back", error))?;
    }
    Ok(())
}
