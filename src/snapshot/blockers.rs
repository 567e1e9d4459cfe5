//! Who holds a lock or a transaction that the copy waits for, in words for status and log. Reads catalogs; ends no one.

use std::fmt;

use tokio_postgres::Row;

use crate::wire::sql::SqlClient;

/// More blockers than this are only counted.
const SHOWN_LIMIT: usize = 5;

/// One session that is in the way. No query text: it may hold row values.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Blocker {
    /// What it holds, if that is a table's lock.
    table: Option<String>,
    /// 0: a prepared transaction.
    process_id: i32,
    application_name: String,
    state: String,
    is_in_sync_wait: bool,
    transaction_seconds: f64,
}

impl Blocker {
    /// Whether it is a commit that waits for a synchronous standby.
    pub(super) fn is_in_sync_wait(&self) -> bool {
        self.is_in_sync_wait
    }

    /// Whether the role may not see what it does (without `pg_read_all_stats`).
    pub(super) fn is_hidden(&self) -> bool {
        self.process_id != 0 && self.state.is_empty()
    }

    fn new(row: &Row) -> Self {
        Self {
            table: row.get(0),
            process_id: row.get(1),
            application_name: row.get(2),
            state: row.get(3),
            is_in_sync_wait: row.get(4),
            transaction_seconds: row.get(5),
        }
    }
}

impl fmt::Display for Blocker {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(table) = &self.table {
            write!(formatter, "an ACCESS EXCLUSIVE lock on {table} of ")?;
        }
        if self.process_id == 0 {
            return formatter.write_str("a prepared transaction");
        }
        write!(formatter, "process {}", self.process_id)?;
        let mut facts = Vec::new();
        if !self.application_name.is_empty() {
            facts.push(format!("\"{}\"", self.application_name));
        }
        if !self.state.is_empty() {
            facts.push(format!("{} for {:.0} s", self.state, self.transaction_seconds));
        }
        if self.is_in_sync_wait {
            facts.push("its commit waits for a synchronous standby".to_owned());
        }
        if facts.is_empty() { Ok(()) } else { write!(formatter, " ({})", facts.join(", ")) }
    }
}

/// Whether somebody that the process waits for waits, himself or through others, for the copy's own locks: then neither ever ends, and the
/// server does not know, since the copy's sessions wait for nothing in it.
pub(super) async fn wait_for_copy(
    client: &SqlClient,
    process_id: i32,
    application_name: &str,
) -> Result<bool, tokio_postgres::Error> {
    let query = "WITH RECURSIVE waited_for(pid) AS (SELECT unnest(pg_catalog.pg_blocking_pids($1)) \
                 UNION SELECT unnest(pg_catalog.pg_blocking_pids(w.pid)) FROM waited_for w) \
                 SELECT EXISTS (SELECT FROM waited_for w JOIN pg_catalog.pg_stat_activity a ON a.pid = w.pid \
                 WHERE a.application_name = $2)";
    Ok(client.query_one(query, &[&process_id, &application_name]).await?.get(0))
}

/// `a; b; and 3 more`.
pub(super) fn list(blockers: &[Blocker]) -> String {
    let mut parts: Vec<String> = blockers.iter().take(SHOWN_LIMIT).map(ToString::to_string).collect();
    if blockers.len() > SHOWN_LIMIT {
        parts.push(format!("and {} more", blockers.len() - SHOWN_LIMIT));
    }
    parts.join("; ")
}

const SESSION_FACTS: &str = "coalesce(a.application_name, ''), coalesce(a.state, ''), \
     coalesce(a.wait_event = 'SyncRep', false), \
     coalesce(extract(epoch FROM pg_catalog.clock_timestamp() - a.xact_start), 0)::float8";

/// Whoever holds an ACCESS EXCLUSIVE lock on a user's table of this database, or waits in the queue for one.
pub(super) async fn of_tables(client: &SqlClient) -> Result<Vec<Blocker>, tokio_postgres::Error> {
    let query = format!(
        "SELECT pg_catalog.format('%s.%s', n.nspname, c.relname), coalesce(l.pid, 0), {SESSION_FACTS} \
         FROM pg_catalog.pg_locks l \
         JOIN pg_catalog.pg_class c ON c.oid = l.relation AND c.oid >= 16384 AND c.relkind IN ('r', 'p') \
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         JOIN pg_catalog.pg_database d ON d.oid = l.database AND d.datname = pg_catalog.current_database() \
         LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid \
         WHERE l.locktype = 'relation' AND l.mode = 'AccessExclusiveLock' ORDER BY l.granted DESC, 1"
    );
    Ok(client.query(&query, &[]).await?.iter().map(Blocker::new).collect())
}

/// Whoever any of the tables' locks belongs to, on a server where we want the strongest one.
pub(super) async fn of_table_users(client: &SqlClient, oids: &[u32]) -> Result<Vec<Blocker>, tokio_postgres::Error> {
    let query = format!(
        "SELECT DISTINCT NULL::text, coalesce(l.pid, 0), {SESSION_FACTS} \
         FROM pg_catalog.pg_locks l \
         JOIN pg_catalog.pg_database d ON d.oid = l.database AND d.datname = pg_catalog.current_database() \
         LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid \
         WHERE l.locktype = 'relation' AND l.relation = ANY ($1) AND l.pid IS DISTINCT FROM pg_catalog.pg_backend_pid() \
         ORDER BY 2"
    );
    Ok(client.query(&query, &[&oids]).await?.iter().map(Blocker::new).collect())
}

/// Whoever the process waits for. `pg_stat_activity` is frozen inside a transaction unless the snapshot is cleared.
pub(super) async fn of_process(client: &SqlClient, process_id: i32) -> Result<Vec<Blocker>, tokio_postgres::Error> {
    client.execute("SELECT pg_catalog.pg_stat_clear_snapshot()", &[]).await?;
    let query = format!(
        "SELECT DISTINCT NULL::text, b.pid, {SESSION_FACTS} \
         FROM pg_catalog.unnest(pg_catalog.pg_blocking_pids($1)) AS b(pid) \
         LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = b.pid ORDER BY 2"
    );
    Ok(client.query(&query, &[&process_id]).await?.iter().map(Blocker::new).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocker(process_id: i32) -> Blocker {
        Blocker {
            table: None,
            process_id,
            application_name: "psql".to_owned(),
            state: "idle in transaction".to_owned(),
            is_in_sync_wait: false,
            transaction_seconds: 11.6,
        }
    }

    #[test]
    fn a_blocker_is_told_in_words() {
        for (blocker, expected) in [
            (blocker(7), "process 7 (\"psql\", idle in transaction for 12 s)"),
            (
                Blocker {
                    table: Some("public.t".to_owned()),
                    is_in_sync_wait: true,
                    state: "active".to_owned(),
                    ..blocker(7)
                },
                "an ACCESS EXCLUSIVE lock on public.t of process 7 (\"psql\", active for 12 s, its commit waits for a \
                 synchronous standby)",
            ),
            (Blocker { application_name: String::new(), state: String::new(), ..blocker(7) }, "process 7"),
            (blocker(0), "a prepared transaction"),
        ] {
            assert_eq!(blocker.to_string(), expected);
        }
        let many: Vec<_> = (1..=7).map(blocker).collect();
        assert!(list(&many).ends_with("; and 2 more"), "{}", list(&many));
    }
}
