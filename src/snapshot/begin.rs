//! The first transaction of a copy on the standby: looks at what the tables hold, empties what may be emptied, and writes the
//! plan down. It happens whole or not at all, and before any row is copied.

use std::collections::HashMap;
use std::time::Duration;

use crate::config::OnExistingRows;
use crate::model::{PipelineName, QualifiedName};
use crate::wire::sql::SqlClient;

use super::blockers;
use super::error::{Side, SnapshotError, server};
use super::plan::{PageRange, PublishedTable, pieces};
use super::progress::CopyProgress;
use super::standby::{StandbyTable, non_empty};
use super::store::{TableState, leave_out, record_plan};

/// One attempt waits this long for a table's readers on the standby; whoever comes meanwhile waits behind us.
const PATIENCE: &str = "1s";
/// Pause between attempts.
const PAUSE: Duration = Duration::from_secs(1);

/// A table that is not finished.
#[derive(Clone, Debug)]
pub(super) struct Unfinished {
    pub(super) published: PublishedTable,
    pub(super) standby: StandbyTable,
    /// Marked `copying` by an earlier attempt: what it holds is ours.
    pub(super) is_ours: bool,
}

/// The pieces of each table.
pub(super) type Pieces = Vec<Vec<Option<PageRange>>>;

/// What this transaction needs to know.
#[derive(Clone, Copy)]
pub(super) struct Beginning<'a> {
    pub(super) pipeline: &'a PipelineName,
    pub(super) on_existing_rows: OnExistingRows,
    pub(super) workers: usize,
    pub(super) smallest_range_pages: u64,
    pub(super) tables: &'a [Unfinished],
    /// Published, and not of the set.
    pub(super) others: &'a [QualifiedName],
}

/// Refuses, with every table named, if rows are in the way that must not be there. Writes nothing.
pub(super) async fn refuse_existing_rows(client: &SqlClient, beginning: Beginning<'_>) -> Result<(), SnapshotError> {
    if beginning.on_existing_rows != OnExistingRows::Refuse {
        return Ok(());
    }
    let found = foreign_rows(client, beginning.tables).await?;
    if found.is_empty() { Ok(()) } else { Err(SnapshotError::NotEmpty(found)) }
}

/// Runs the transaction, again and again while a table on the standby is in use.
pub(super) async fn run(
    client: &SqlClient,
    beginning: Beginning<'_>,
    progress: &CopyProgress,
) -> Result<Pieces, SnapshotError> {
    loop {
        let result = attempt(client, beginning).await;
        if result.is_ok() {
            progress.set_waiting(None);
            return result;
        }
        // A connection that is gone has no transaction either; the first error is the one that counts.
        let _ = client.batch_execute("ROLLBACK").await;
        match result {
            Err(error) if error.code() == Some("55P03") => {}
            other => return other,
        }
        let oids: Vec<u32> = beginning.tables.iter().map(|table| table.standby.oid).collect();
        let users = blockers::of_table_users(client, &oids)
            .await
            .map_err(|error| server(Side::Standby, "read pg_locks", error))?;
        progress.set_waiting(Some(format!("the tables on the standby, used by {}", blockers::list(&users))));
        tokio::time::sleep(PAUSE).await;
    }
}

async fn attempt(client: &SqlClient, beginning: Beginning<'_>) -> Result<Pieces, SnapshotError> {
    let tables = beginning.tables;
    let start = format!("BEGIN; SET LOCAL lock_timeout = '{PATIENCE}'; SET LOCAL synchronous_commit = local");
    client.batch_execute(&start).await.map_err(|error| server(Side::Standby, "begin a transaction", error))?;
    let found = foreign_rows(client, tables).await?;
    let holds_foreign_rows = |table: &Unfinished| found.contains(&table.published.name);
    let is_kept = match beginning.on_existing_rows {
        OnExistingRows::Refuse if !found.is_empty() => return Err(SnapshotError::NotEmpty(found)),
        OnExistingRows::Refuse | OnExistingRows::Truncate => false,
        OnExistingRows::Keep => true,
    };
    let emptied = |table: &&Unfinished| table.is_ours || (holds_foreign_rows(table) && !is_kept);
    empty(client, &tables.iter().filter(emptied).collect::<Vec<_>>()).await?;
    let published: Vec<PublishedTable> = tables.iter().map(|table| table.published.clone()).collect();
    // A table with rows of others cannot be emptied if the copy fails: it gets its rows in one transaction.
    let must_be_whole = |index: usize| is_kept && holds_foreign_rows(&tables[index]);
    let pieces = pieces(&published, beginning.workers, beginning.smallest_range_pages, must_be_whole);
    let state = |pieces: &Vec<_>| if pieces.len() > 1 { TableState::Copying } else { TableState::Pending };
    let plan: Vec<(&QualifiedName, TableState)> =
        published.iter().zip(&pieces).map(|(table, pieces)| (&table.name, state(pieces))).collect();
    let failed = |error| server(Side::Standby, "write the plan into walrelay.copy", error);
    record_plan(client, beginning.pipeline, &plan).await.map_err(failed)?;
    // However the copy ends, one that comes into the set is known for one whose changes were left out.
    leave_out(client, beginning.pipeline, beginning.others).await.map_err(failed)?;
    client.batch_execute("COMMIT").await.map_err(failed)?;
    Ok(pieces)
}

/// The tables that hold rows which no earlier attempt of ours put there.
async fn foreign_rows(client: &SqlClient, tables: &[Unfinished]) -> Result<Vec<QualifiedName>, SnapshotError> {
    let foreign: Vec<(&QualifiedName, &StandbyTable)> =
        tables.iter().filter(|table| !table.is_ours).map(|table| (&table.published.name, &table.standby)).collect();
    non_empty(client, &foreign).await
}

/// Empties the tables: by one TRUNCATE where no foreign key of another table points at them, by DELETE otherwise, because
/// TRUNCATE refuses that even in replica role (`heap_truncate_check_FKs` in `src/backend/catalog/heap.c`).
async fn empty(client: &SqlClient, tables: &[&Unfinished]) -> Result<(), SnapshotError> {
    if tables.is_empty() {
        return Ok(());
    }
    let failed = |error| server(Side::Standby, "empty the tables", error);
    let oids: Vec<u32> = tables.iter().map(|table| table.standby.oid).collect();
    let members = client
        .query(
            "SELECT o.oid, o.oid FROM unnest($1::oid[]) AS o(oid) \
             UNION SELECT o.oid, t.relid::oid FROM unnest($1::oid[]) AS o(oid), pg_catalog.pg_partition_tree(o.oid) t",
            &[&oids],
        )
        .await
        .map_err(failed)?;
    let index_of: HashMap<u32, usize> = oids.iter().enumerate().map(|(index, oid)| (*oid, index)).collect();
    let members: HashMap<u32, usize> = members.iter().map(|row| (row.get(1), index_of[&row.get(0)])).collect();
    let references = client
        .query("SELECT confrelid, conrelid FROM pg_catalog.pg_constraint WHERE contype = 'f'", &[])
        .await
        .map_err(failed)?;
    let references: Vec<(u32, u32)> = references.iter().map(|row| (row.get(0), row.get(1))).collect();
    let truncatable = truncatable(tables.len(), &members, &references);
    let mut truncated = Vec::new();
    let mut script = String::new();
    for (table, is_truncated) in tables.iter().zip(truncatable) {
        let only = if table.standby.is_partitioned { "" } else { "ONLY " };
        let name = format!("{only}{}", table.published.name.sql());
        if is_truncated {
            truncated.push(name);
        } else {
            script.push_str(&format!("DELETE FROM {name};"));
        }
    }
    if !truncated.is_empty() {
        script.push_str(&format!("TRUNCATE {}", truncated.join(", ")));
    }
    client.batch_execute(&script).await.map_err(failed)
}

/// Which of `count` tables one TRUNCATE can take. `members` maps a table and its partitions to its index; a reference is
/// (referenced, referencing). A table left out may itself reference others, which then must stay out too.
fn truncatable(count: usize, members: &HashMap<u32, usize>, references: &[(u32, u32)]) -> Vec<bool> {
    let mut is_in = vec![true; count];
    loop {
        let is_taken = |oid: &u32, is_in: &[bool]| members.get(oid).is_some_and(|index| is_in[*index]);
        let blocked = references
            .iter()
            .find(|(referenced, referencing)| is_taken(referenced, &is_in) && !is_taken(referencing, &is_in));
        match blocked {
            Some((referenced, _)) => is_in[members[referenced]] = false,
            None => return is_in,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tables 0, 1, 2 have the OIDs 10, 20, 30; 21 is a partition of 1.
    fn check(references: &[(u32, u32)], expected: [bool; 3]) {
        let members = [(10, 0), (20, 1), (21, 1), (30, 2)].into();
        assert_eq!(truncatable(3, &members, references), expected, "{references:?}");
    }

    #[test]
    fn a_table_that_something_outside_refers_to_is_not_truncated_nor_what_it_refers_to() {
        check(&[], [true, true, true]);
        check(&[(10, 20), (20, 10), (10, 10)], [true, true, true]);
        check(&[(10, 99)], [false, true, true]);
        check(&[(21, 99)], [true, false, true]);
        check(&[(10, 99), (20, 10), (30, 20)], [false, false, false]);
        check(&[(99, 10)], [true, true, true]);
    }
}
