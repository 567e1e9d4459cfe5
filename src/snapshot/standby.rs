//! Looks at the tables on the standby: whether all are there with every published column, and which hold rows. Writes nothing.

use std::collections::HashMap;

use crate::model::QualifiedName;
use crate::schema::binary::{ColumnType, TYPE_PARTS};
use crate::wire::sql::SqlClient;

use super::error::{Side, SnapshotError, names, server};
use super::format::{self, Format};
use super::plan::{PublishedColumn, PublishedTable};
use super::published::column_type;

/// So many tables are looked into with one statement.
const ASKED_AT_ONCE: usize = 100;

/// One table of the standby.
#[derive(Clone, Debug)]
pub(super) struct StandbyTable {
    /// `pg_class.oid` there.
    pub(super) oid: u32,
    /// Whether it is partitioned there; else it is an ordinary table.
    pub(super) is_partitioned: bool,
    /// Its columns by name.
    columns: HashMap<String, StandbyColumn>,
}

#[derive(Clone, Debug)]
struct StandbyColumn {
    is_generated: bool,
    column_type: ColumnType,
}

impl StandbyTable {
    /// The type of its column of this name.
    pub(super) fn column_type(&self, name: &str) -> Option<&ColumnType> {
        self.columns.get(name).map(|column| &column.column_type)
    }

    /// Binary if all published columns allow it.
    pub(super) fn format(&self, published: &PublishedTable) -> Format {
        let pairs = published.columns.iter().filter_map(|column| {
            self.columns.get(&column.name).map(|theirs| (&column.column_type, &theirs.column_type))
        });
        format::choose(pairs)
    }
}

/// The standby's side of each table, in order; or one error that names everything that is missing.
pub(super) async fn tables(
    client: &SqlClient,
    published: &[PublishedTable],
) -> Result<Vec<StandbyTable>, SnapshotError> {
    fitting(client, published.iter().map(|table| (&table.name, table.columns.as_slice()))).await
}

/// The same for tables of these names and columns.
pub(super) async fn fitting<'a>(
    client: &SqlClient,
    tables: impl Iterator<Item = (&'a QualifiedName, &'a [PublishedColumn])> + Clone,
) -> Result<Vec<StandbyTable>, SnapshotError> {
    let names: Vec<&QualifiedName> = tables.clone().map(|(name, _)| name).collect();
    let found = read(client, &names).await?;
    let faults: Vec<String> = tables
        .zip(&found)
        .flat_map(|((name, columns), found)| faults(name, columns, found.as_ref().map(|(kind, table)| (*kind, table))))
        .collect();
    if !faults.is_empty() {
        return Err(SnapshotError::Unfit(faults));
    }
    Ok(found.into_iter().flatten().map(|(_, table)| table).collect())
}

/// Which of the tables hold a row. `ONLY`: children by inheritance are tables of their own.
pub(super) async fn non_empty(
    client: &SqlClient,
    tables: &[(&QualifiedName, &StandbyTable)],
) -> Result<Vec<QualifiedName>, SnapshotError> {
    let mut full = Vec::new();
    for tables in tables.chunks(ASKED_AT_ONCE) {
        let exists = tables.iter().map(|(name, table)| {
            let only = if table.is_partitioned { "" } else { "ONLY " };
            format!("EXISTS (SELECT FROM {only}{})", name.sql())
        });
        let query = format!("SELECT ARRAY[{}]", exists.collect::<Vec<_>>().join(", "));
        let asked: Vec<QualifiedName> = tables.iter().map(|(name, _)| (*name).clone()).collect();
        let row = client.query_one(&query, &[]).await;
        let row = row.map_err(|error| server(Side::Standby, format!("look for rows in {}", names(&asked)), error))?;
        let answers: Vec<bool> = row.get(0);
        full.extend(asked.into_iter().zip(answers).filter(|(_, is_full)| *is_full).map(|(name, _)| name));
    }
    Ok(full)
}

/// Those that hold no row, and those that hold some; a table that is not there is neither.
pub(super) async fn empty_and_full(
    client: &SqlClient,
    tables: &[QualifiedName],
) -> Result<(Vec<QualifiedName>, Vec<QualifiedName>), SnapshotError> {
    let found = read(client, &tables.iter().collect::<Vec<_>>()).await?;
    let there = tables.iter().zip(&found).filter_map(|(name, found)| match found {
        Some((b'r' | b'p', table)) => Some((name, table)),
        _ => None,
    });
    let there: Vec<_> = there.collect();
    let full = non_empty(client, &there).await?;
    let empty = there.into_iter().map(|(name, _)| name).filter(|name| !full.contains(name)).cloned().collect();
    Ok((empty, full))
}

pub(super) type Found = Option<(u8, StandbyTable)>;

/// `relkind` and the table, if there is one, for each of the names.
pub(super) async fn read(client: &SqlClient, tables: &[&QualifiedName]) -> Result<Vec<Found>, SnapshotError> {
    let failed = |error| server(Side::Standby, "read the table shapes", error);
    let schemas: Vec<&str> = tables.iter().map(|table| table.schema.as_str()).collect();
    let names: Vec<&str> = tables.iter().map(|table| table.name.as_str()).collect();
    let rows = client
        .query(
            "SELECT w.place, c.oid, c.relkind \
             FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS w(schema_name, table_name, place) \
             JOIN pg_catalog.pg_namespace n ON n.nspname = w.schema_name \
             JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = w.table_name",
            &[&schemas, &names],
        )
        .await
        .map_err(failed)?;
    let mut found: Vec<Found> = tables.iter().map(|_| None).collect();
    let mut places: HashMap<u32, usize> = HashMap::new();
    for row in &rows {
        let (place, oid, kind) = (row.get::<_, i64>(0), row.get(1), row.get::<_, i8>(2) as u8);
        let Some(place) = usize::try_from(place).ok().and_then(|place| place.checked_sub(1)) else { continue };
        places.insert(oid, place);
        found[place] = Some((kind, StandbyTable { oid, is_partitioned: kind == b'p', columns: HashMap::new() }));
    }
    let oids: Vec<u32> = places.keys().copied().collect();
    let query = format!(
        "SELECT a.attrelid, a.attname, a.attgenerated <> '', {TYPE_PARTS} \
         FROM pg_catalog.pg_attribute a \
         JOIN pg_catalog.pg_type t ON t.oid = a.atttypid \
         WHERE a.attrelid = ANY ($1) AND a.attnum > 0 AND NOT a.attisdropped"
    );
    for row in &client.query(&query, &[&oids]).await.map_err(failed)? {
        let column = StandbyColumn { is_generated: row.get(2), column_type: column_type(row, 3)? };
        if let Some((_, table)) = places.get(&row.get(0)).and_then(|place| found[*place].as_mut()) {
            table.columns.insert(row.get(1), column);
        }
    }
    Ok(found)
}

/// Every reason why the table cannot take the published rows.
fn faults(name: &QualifiedName, columns: &[PublishedColumn], found: Option<(u8, &StandbyTable)>) -> Vec<String> {
    let Some((kind, table)) = found else {
        return vec![format!("table {name} is missing")];
    };
    if !matches!(kind, b'r' | b'p') {
        return vec![format!("{name} is not a table (pg_class.relkind is \"{}\")", kind as char)];
    }
    let fault = |column: &str| match table.columns.get(column) {
        None => Some(format!("column \"{column}\" of {name} is missing")),
        Some(found) if found.is_generated => {
            Some(format!("column \"{column}\" of {name} is generated there, but the primary publishes its values"))
        }
        Some(_) => None,
    };
    columns.iter().filter_map(|column| fault(&column.name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number() -> ColumnType {
        crate::schema::binary::tests::builtin(23)
    }

    #[test]
    fn everything_the_standby_lacks_is_named() {
        let column = |name: &str| PublishedColumn { name: name.to_owned(), column_type: number(), is_generated: false };
        let (name, columns) = (QualifiedName::new("public", "t"), ["a", "b", "c"].map(column));
        let standby = |names: &[(&str, bool)]| StandbyTable {
            oid: 1,
            is_partitioned: false,
            columns: names
                .iter()
                .map(|(name, is_generated)| {
                    ((*name).to_owned(), StandbyColumn { is_generated: *is_generated, column_type: number() })
                })
                .collect(),
        };
        let whole = standby(&[("x", true), ("c", false), ("b", false), ("a", false)]);
        let partial = standby(&[("b", true), ("c", false)]);
        for (found, expected) in [
            (None, &["table public.t is missing"][..]),
            (Some((b'v', &whole)), &["public.t is not a table (pg_class.relkind is \"v\")"]),
            (Some((b'p', &whole)), &[]),
            (
                Some((b'r', &partial)),
                &[
                    "column \"a\" of public.t is missing",
                    "column \"b\" of public.t is generated there, but the primary publishes its values",
                ],
            ),
        ] {
            assert_eq!(faults(&name, &columns, found), expected);
        }
    }
}
