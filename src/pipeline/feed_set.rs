//! Which tables a feed has sent, against what the publication holds now: what left the set, came back, or is another under its name.
//! Sends none of them.

use std::collections::{BTreeMap, HashMap, HashSet};

use tokio_postgres::Row;

use crate::model::{Lsn, QualifiedName};
use crate::sink::kafka::transport::{CopiedTable, KafkaSink, Records};
use crate::snapshot;
use crate::source::{Publication, SourceError};
use crate::wire::sql::SqlClient;

use super::PipelineError;

/// Records which published tables are not of the set, before their changes are left out: one that comes into it lacks them, and is to be sent
/// again. So is one that is another than the one that was sent under its name. Without a record nothing was copied, and all that is published
/// is of one kind.
pub(super) async fn note_set(
    sql: &SqlClient,
    opened: &mut KafkaSink,
    records: &mut Records,
    publication: &Publication,
    is_copied: bool,
) -> Result<(), PipelineError> {
    let Some(progress) = records.progress.clone().filter(|_| !records.copied.is_empty()) else { return Ok(()) };
    let set = SetOfNow::look(sql, &records.copied, publication, is_copied).await?;
    let noted = records.copied.iter().map(|(table, copied)| (table, copied, set.noted(table, *copied)));
    let noted = noted.filter(|(_, before, noted)| *before != noted);
    let is_moved = |before: &CopiedTable, noted: &CopiedTable| (before.left, before.again) != (noted.left, noted.again);
    let (mut moved, mut changed) = (0, Vec::new());
    for (table, before, noted) in noted {
        moved += usize::from(is_moved(before, &noted));
        changed.push((table.clone(), noted));
    }
    let left_out = left_out(records, publication);
    moved += left_out.len();
    changed.extend(left_out);
    if moved > 0 {
        tracing::info!(tables = moved, "tables have left the set, or come into it and are sent again");
    }
    if !changed.is_empty() {
        opened.record(progress, changed.clone()).await?;
        records.copied.extend(changed);
    }
    Ok(())
}

/// What the primary holds now of the tables that are recorded.
struct SetOfNow<'a> {
    wanted: HashSet<&'a QualifiedName>,
    others: HashSet<&'a QualifiedName>,
    named: &'a BTreeMap<QualifiedName, u32>,
    /// Sent before, there, and not published any more: what is written to them is not in the stream.
    unpublished: HashSet<QualifiedName>,
    oids: HashMap<QualifiedName, u32>,
    /// Under which name an OID is recorded; under several after a table was renamed.
    recorded: HashMap<u32, Vec<&'a QualifiedName>>,
    is_copied: bool,
}

impl<'a> SetOfNow<'a> {
    async fn look(
        sql: &SqlClient,
        copied: &'a HashMap<QualifiedName, CopiedTable>,
        publication: &'a Publication,
        is_copied: bool,
    ) -> Result<Self, PipelineError> {
        let (wanted, others) = (publication.tables.iter().collect(), publication.others.iter().collect());
        let published: HashSet<&QualifiedName> = publication.tables.iter().chain(&publication.others).collect();
        let is_missing = |(table, copied): &(&QualifiedName, &CopiedTable)| {
            copied.is_finished() && !copied.left && !published.contains(table)
        };
        let missing: Vec<_> = copied.iter().filter(is_missing).map(|(table, _)| table.clone()).collect();
        let unpublished = match missing.is_empty() {
            true => missing,
            false => snapshot::unpublished(sql, &published.into_iter().collect::<Vec<_>>(), &missing).await?,
        };
        let mut recorded: HashMap<u32, Vec<&QualifiedName>> = HashMap::new();
        for (table, copied) in copied {
            copied.oid.into_iter().for_each(|oid| recorded.entry(oid).or_default().push(table));
        }
        Ok(Self {
            wanted,
            others,
            named: &publication.named,
            unpublished: unpublished.into_iter().collect(),
            oids: oids_of(sql, copied.keys()).await?,
            recorded,
            is_copied,
        })
    }

    /// What is to be recorded of it.
    fn noted(&self, table: &QualifiedName, before: CopiedTable) -> CopiedTable {
        let is_sent = self.is_copied && self.wanted.contains(table);
        let is_out = self.others.contains(table) || self.unpublished.contains(table);
        let is_back = is_sent && before.left && !before.is_unfinished();
        let mut noted = CopiedTable { left: is_out || (before.left && !is_sent), ..before };
        noted.again |= is_back;
        let now = self.oids.get(table).copied();
        match (before.oid, now) {
            (None, Some(_)) if before.is_finished() => noted.oid = now,
            // Where the publication was listed with yet another, the next start sees to it.
            (Some(sent), Some(now)) if sent != now && is_sent && self.is_named(table, now).unwrap_or(true) => {
                noted.oid = Some(now);
                noted.again |=
                    before.is_finished() && (self.is_named(table, now).is_some() || self.was_sent(table, now));
            }
            // Planned, and gone before it was sent: nothing is left to send.
            (_, None) if self.is_copied && before.is_unfinished() && !is_sent && !is_out => {
                noted = CopiedTable { snapshot_lsn: Some(Lsn::ZERO), left: true, ..before };
            }
            _ => {}
        }
        noted
    }

    /// Whether the publication names this very table one by one; `None`: it came with a parent, a schema or the database, and has streamed
    /// from its first row on.
    fn is_named(&self, table: &QualifiedName, oid: u32) -> Option<bool> {
        self.named.get(table).map(|named| *named == oid)
    }

    /// Whether its rows were sent, to another topic: it had another name.
    fn was_sent(&self, table: &QualifiedName, oid: u32) -> bool {
        self.recorded.get(&oid).is_some_and(|names| names.iter().any(|name| *name != table))
    }
}

/// The OIDs on the primary of those tables that are there.
async fn oids_of<'a>(
    sql: &SqlClient,
    tables: impl Iterator<Item = &'a QualifiedName>,
) -> Result<HashMap<QualifiedName, u32>, PipelineError> {
    let (schemas, names) = QualifiedName::parts(tables);
    let query = "SELECT n.nspname::text, c.relname::text, c.oid FROM unnest($1::text[], $2::text[]) w(s, t) \
                 JOIN pg_catalog.pg_namespace n ON n.nspname = w.s \
                 JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = w.t";
    let rows = sql.query(query, &[&schemas, &names]).await;
    let rows = rows.map_err(SourceError::sql("reading the OIDs of the tables that were sent"))?;
    let named = |row: &Row| (QualifiedName::new(row.get::<_, String>(0), row.get::<_, String>(1)), row.get(2));
    Ok(rows.iter().map(named).collect())
}

/// What is to be recorded of published tables that are not of the set and of which nothing is recorded.
pub(super) fn left_out(records: &Records, publication: &Publication) -> Vec<(QualifiedName, CopiedTable)> {
    let nothing = CopiedTable { snapshot_lsn: Some(Lsn::ZERO), left: true, ..CopiedTable::default() };
    let is_new = |table: &&QualifiedName| table.schema != snapshot::OWN_SCHEMA && !records.copied.contains_key(table);
    publication.others.iter().filter(is_new).map(|table| (table.clone(), nothing)).collect()
}
