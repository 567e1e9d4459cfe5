//! The session that keeps the primary's tables as they are while they are copied. It holds one transaction with ACCESS SHARE
//! locks from before the snapshot until the end; it never reads a row.

use std::time::Duration;

use crate::model::QualifiedName;
use crate::wire::sql::SqlClient;

use super::blockers;
use super::command;
use super::error::{Side, SnapshotError, server};
use super::plan::PublishedTable;
use super::progress::CopyProgress;
use super::published;

/// One attempt at the locks waits this long: less than `deadlock_timeout` (1 s), so that it is never someone else's DDL that
/// the deadlock detector ends because of us.
const PATIENCE: &str = "500ms";
/// Pause between attempts, in which all locks are given back, so that who waits behind us gets through.
const PAUSE: Duration = Duration::from_secs(1);
/// `lock_not_available`.
const LOCK_NOT_AVAILABLE: &str = "55P03";
/// `undefined_table`, `undefined_object` with OIDs read a moment ago: dropped in between.
const GONE: &[&str] = &["42P01", "3F000"];

/// The locks; dropping them ends the session.
pub(super) struct Locks {
    client: SqlClient,
}

/// The locks and the tables as they are under them.
pub(super) struct Locked {
    pub(super) locks: Locks,
    pub(super) tables: Vec<PublishedTable>,
}

/// Lists the publication's tables among `wanted`, locks them and lists them again until both lists agree. While someone
/// holds an ACCESS EXCLUSIVE lock it says who, and tries again.
pub(super) async fn take(
    client: SqlClient,
    publication: &str,
    wanted: &[QualifiedName],
    version_number: u32,
    progress: &CopyProgress,
) -> Result<Locked, SnapshotError> {
    let set = format!("SET lock_timeout = '{PATIENCE}'");
    client.batch_execute(&set).await.map_err(|error| server(Side::Primary, "set lock_timeout", error))?;
    loop {
        match attempt(&client, publication, wanted, version_number).await {
            Ok(Some(tables)) => {
                progress.set_waiting(None);
                return Ok(Locked { locks: Locks { client }, tables });
            }
            Ok(None) => progress.set_waiting(Some("the published tables to stop changing".to_owned())),
            Err(error) if error.code() == Some(LOCK_NOT_AVAILABLE) => {
                rollback(&client).await?;
                let found = blockers::of_tables(&client)
                    .await
                    .map_err(|error| server(Side::Primary, "read pg_locks", error))?;
                if !found.is_empty() {
                    progress.set_waiting(Some(blockers::list(&found)));
                }
            }
            Err(error) if error.code().is_some_and(|code| GONE.contains(&code)) => {}
            Err(error) => return Err(error),
        }
        rollback(&client).await?;
        tokio::time::sleep(PAUSE).await;
    }
}

/// `None`: the tables changed between listing and locking.
async fn attempt(
    client: &SqlClient,
    publication: &str,
    wanted: &[QualifiedName],
    version_number: u32,
) -> Result<Option<Vec<PublishedTable>>, SnapshotError> {
    let before = published::tables(client, publication, wanted, version_number).await?;
    let script = match before.as_slice() {
        [] => "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY".to_owned(),
        tables => format!("BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY; {}", command::lock_tables(tables)),
    };
    client.batch_execute(&script).await.map_err(|error| server(Side::Primary, "lock the published tables", error))?;
    let after = published::tables(client, publication, wanted, version_number).await?;
    let identity = |tables: &[PublishedTable]| -> Vec<_> {
        tables.iter().map(|table| (table.oid, table.name.clone(), table.storage)).collect()
    };
    Ok((identity(&before) == identity(&after)).then_some(after))
}

async fn rollback(client: &SqlClient) -> Result<(), SnapshotError> {
    client.batch_execute("ROLLBACK").await.map_err(|error| server(Side::Primary, "give the table locks back", error))
}

impl Locks {
    /// The session, for questions to the catalogs.
    pub(super) fn client(&self) -> &SqlClient {
        &self.client
    }

    /// An error if the session ended: then a table may have been rewritten or truncated without the snapshot's noticing, and
    /// nothing copied since may be called whole.
    pub(super) async fn still_held(&self) -> Result<(), SnapshotError> {
        self.client
            .batch_execute("")
            .await
            .map_err(|error| server(Side::Primary, "keep the locks on the published tables", error))
    }
}
