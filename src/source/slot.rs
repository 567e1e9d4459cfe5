//! The replication slot: what the primary says of it, how it is made and dropped. Never re-creates one by itself.

use postgres_protocol::escape::escape_identifier;
use serde::Deserialize;

use crate::model::{Lsn, SlotName};
use crate::wire::Connection;
use crate::wire::sql::SqlClient;

use super::SourceError;

/// A row of `pg_replication_slots`, of any version from 14 to 18.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct SlotFacts {
    /// `physical` or `logical`.
    pub slot_type: String,
    /// Output plugin.
    pub plugin: Option<String>,
    /// Database of a logical slot.
    pub database: Option<String>,
    /// Dropped with its session.
    pub temporary: bool,
    /// Whether a walsender streams from it.
    pub active: bool,
    /// That walsender.
    pub active_pid: Option<i32>,
    /// Oldest WAL it keeps; gone once the slot is invalidated for it.
    pub restart_lsn: Option<String>,
    /// Everything below is confirmed and will not be sent again.
    pub confirmed_flush_lsn: Option<String>,
    /// `reserved`, `extended`, `unreserved`, `lost`.
    pub wal_status: Option<String>,
    /// Bytes that may still be written before it is in danger.
    pub safe_wal_size: Option<i64>,
    /// Whether prepared transactions are decoded at PREPARE.
    pub two_phase: bool,
    /// From 16 on: invalidated by a conflict with recovery.
    pub conflicting: Option<bool>,
    /// From 17 on: why it is invalid.
    pub invalidation_reason: Option<String>,
}

impl SlotFacts {
    /// `confirmed_flush_lsn` as a number.
    pub fn confirmed_flush(&self) -> Option<Lsn> {
        self.confirmed_flush_lsn.as_deref().and_then(|text| text.parse().ok())
    }

    /// The walsender that is still making it.
    pub fn maker(&self) -> Option<i32> {
        let is_unmade =
            self.slot_type == "logical" && self.confirmed_flush_lsn.is_none() && self.invalid_reason().is_none();
        self.active_pid.filter(|_| is_unmade)
    }

    /// Why nothing can be read from it any more, if so.
    pub fn invalid_reason(&self) -> Option<String> {
        if let Some(reason) = &self.invalidation_reason {
            return Some(reason.clone());
        }
        if self.wal_status.as_deref() == Some("lost") {
            return Some("wal_removed: the WAL it needs was removed (max_slot_wal_keep_size)".to_owned());
        }
        (self.conflicting == Some(true)).then(|| "a conflict with recovery".to_owned())
    }
}

/// Reads the slot's row; `None` when there is no such slot.
pub async fn slot_facts(sql: &SqlClient, slot: &SlotName) -> Result<Option<SlotFacts>, SourceError> {
    // As JSON, because each version has other columns.
    let query = "SELECT pg_catalog.to_jsonb(s)::text FROM pg_catalog.pg_replication_slots s WHERE slot_name = $1";
    let row = sql
        .query_opt(query, &[&slot.as_str()])
        .await
        .map_err(SourceError::sql(format!("reading pg_replication_slots for the slot \"{slot}\"")))?;
    let Some(row) = row else { return Ok(None) };
    let text: String = row.get(0);
    serde_json::from_str(&text)
        .map(Some)
        .map_err(|error| SourceError::Protocol(format!("pg_replication_slots with a row that cannot be read: {error}")))
}

/// Whether the new slot's snapshot is wanted for an initial copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotUse {
    /// Exported under a name; the connection must stay idle while others import it.
    Export,
    /// None; no data horizon is held back.
    Nothing,
}

/// What `CREATE_REPLICATION_SLOT` answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreatedSlot {
    /// Decoding starts here: the snapshot holds exactly what committed before.
    pub consistent_point: Lsn,
    /// Name of the exported snapshot.
    pub snapshot_name: Option<String>,
}

/// Creates a logical slot with pgoutput. Waits until every transaction that is running now has ended, in any database of
/// the server (`src/backend/replication/logical/snapbuild.c`).
pub async fn create_slot(
    connection: &mut Connection,
    slot: &SlotName,
    snapshot: SnapshotUse,
    is_temporary: bool,
) -> Result<CreatedSlot, SourceError> {
    let options = match (snapshot, connection.version_number() >= 150_000) {
        (SnapshotUse::Export, true) => "(SNAPSHOT 'export')",
        (SnapshotUse::Nothing, true) => "(SNAPSHOT 'nothing')",
        (SnapshotUse::Export, false) => "EXPORT_SNAPSHOT",
        (SnapshotUse::Nothing, false) => "NOEXPORT_SNAPSHOT",
    };
    let temporary = if is_temporary { "TEMPORARY " } else { "" };
    let name = escape_identifier(slot.as_str());
    let command = format!("CREATE_REPLICATION_SLOT {name} {temporary}LOGICAL pgoutput {options}");
    let results = connection
        .simple_query(&command)
        .await
        .map_err(SourceError::wire(format!("creating the replication slot \"{slot}\"")))?;
    let row = results.into_iter().flat_map(|result| result.rows).next().unwrap_or_default();
    let text =
        |index: usize| row.get(index).cloned().flatten().map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let consistent_point = text(1).and_then(|lsn| lsn.parse().ok());
    Ok(CreatedSlot {
        consistent_point: consistent_point
            .ok_or_else(|| SourceError::Protocol("CREATE_REPLICATION_SLOT without a consistent point".to_owned()))?,
        snapshot_name: text(2),
    })
}

/// Drops the slot; fails while a walsender uses it. One that is not there, or not of the kind that `create_slot` makes in this database,
/// is no error: gives whether it was.
pub async fn drop_slot(sql: &SqlClient, slot: &SlotName) -> Result<bool, SourceError> {
    let query = "SELECT pg_catalog.pg_drop_replication_slot(slot_name) FROM pg_catalog.pg_replication_slots \
                 WHERE slot_name = $1 AND slot_type = 'logical' AND plugin = 'pgoutput' \
                   AND database = pg_catalog.current_database()";
    let rows = sql
        .query(query, &[&slot.as_str()])
        .await
        .map_err(SourceError::sql(format!("dropping the replication slot \"{slot}\"")))?;
    Ok(!rows.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads a row as the server prints it and compares the reason why it is unusable.
    fn check(json: &str, expected: Option<&str>) {
        let facts: SlotFacts = serde_json::from_str(json).unwrap();
        let reason = facts.invalid_reason();
        assert_eq!(reason.as_deref().map(|reason| reason.split(':').next().unwrap()), expected, "{json}");
    }

    #[test]
    fn a_slot_row_of_each_version_tells_whether_it_is_usable() {
        check(
            r#"{"slot_type":"logical","plugin":"pgoutput","active":false,"wal_status":"reserved","two_phase":false}"#,
            None,
        );
        check(r#"{"slot_type":"logical","wal_status":"lost","restart_lsn":null}"#, Some("wal_removed"));
        check(
            r#"{"slot_type":"logical","wal_status":"reserved","conflicting":true}"#,
            Some("a conflict with recovery"),
        );
        check(
            r#"{"wal_status":"reserved","conflicting":false,"invalidation_reason":"idle_timeout"}"#,
            Some("idle_timeout"),
        );
        check(r#"{"wal_status":"unreserved","safe_wal_size":-1,"invalidation_reason":null,"failover":false}"#, None);
    }

    #[test]
    fn a_confirmed_position_is_read() {
        let facts: SlotFacts = serde_json::from_str(r#"{"confirmed_flush_lsn":"0/15D68C0"}"#).unwrap();
        assert_eq!(facts.confirmed_flush(), Some(Lsn(0x015D_68C0)));
    }
}
