//! Reads from the primary what its publication holds: tables, columns, filters, sizes. Writes nothing; locks nothing.

use std::collections::{HashMap, HashSet};

use tokio_postgres::Row;

use crate::config::ServerUrl;
use crate::model::{PipelineName, QualifiedName};
use crate::schema::binary::{ColumnType, TYPE_PARTS};
use crate::source::named_tables;
use crate::wire::sql::SqlClient;

use super::error::{Side, SnapshotError, server};
use super::plan::{PublishedColumn, PublishedTable, Storage};
use super::session;

/// Bytes of a row where no one ever analyzed the table: only for the estimate that a person sees.
const GUESSED_ROW_BYTES: u64 = 100;

/// The publication's tables among `wanted`, in the order of their names.
///
/// A table whose partitioned ancestor is published too is left out: its rows come with the ancestor. (14 lists both when
/// both were named; later versions do this themselves: `filter_partitions` in `src/backend/catalog/pg_publication.c`.)
pub(super) async fn tables(
    client: &SqlClient,
    publication: &str,
    wanted: &[QualifiedName],
    version_number: u32,
) -> Result<Vec<PublishedTable>, SnapshotError> {
    let doing = || format!("read the tables of publication \"{publication}\"");
    let rows = client
        .query(&table_query(version_number), &[&publication])
        .await
        .map_err(|error| server(Side::Primary, doing(), error))?;
    let wanted: HashSet<&QualifiedName> = wanted.iter().collect();
    let mut tables: Vec<PublishedTable> = rows.iter().map(table).filter(|table| wanted.contains(&table.name)).collect();
    let oids: Vec<u32> = tables.iter().map(|table| table.oid).collect();
    let rows = client
        .query(&column_query(version_number), &[&publication, &oids])
        .await
        .map_err(|error| server(Side::Primary, doing(), error))?;
    let mut columns: HashMap<u32, Vec<PublishedColumn>> = HashMap::new();
    for row in &rows {
        columns.entry(row.get(0)).or_default().push(column(row)?);
    }
    for table in &mut tables {
        table.columns = columns.remove(&table.oid).unwrap_or_default();
    }
    Ok(tables)
}

/// Every column of these tables with its type, in the order of the tables. Reads catalogs only, so no lock on a table holds it up:
/// who holds one may wait for this very pipeline.
pub(super) async fn column_types(
    client: &SqlClient,
    tables: &[QualifiedName],
) -> Result<Vec<Vec<PublishedColumn>>, SnapshotError> {
    let schemas: Vec<&str> = tables.iter().map(|table| table.schema.as_str()).collect();
    let names: Vec<&str> = tables.iter().map(|table| table.name.as_str()).collect();
    let query = format!(
        "SELECT w.place, a.attname, a.attgenerated <> '', {TYPE_PARTS} \
         FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS w(schema_name, table_name, place) \
         JOIN pg_catalog.pg_namespace n ON n.nspname = w.schema_name \
         JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = w.table_name \
         JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped \
         JOIN pg_catalog.pg_type t ON t.oid = a.atttypid ORDER BY w.place, a.attnum"
    );
    let failed = |error| server(Side::Primary, "read the column types", error);
    let rows = client.query(&query, &[&schemas, &names]).await.map_err(failed)?;
    let mut types: Vec<Vec<_>> = tables.iter().map(|_| Vec::new()).collect();
    for row in &rows {
        let place = usize::try_from(row.get::<_, i64>(0) - 1).ok();
        if let Some(columns) = place.and_then(|place| types.get_mut(place)) {
            columns.push(column(row)?);
        }
    }
    Ok(types)
}

/// What is left of a copy that was begun: what was planned, and what the publication names since. A table that came with a schema, an
/// old partitioned parent or the database was made while the stream carried its rows from the first on.
///
/// Where all was planned the primary is not asked at all: on a restart, a lock there may wait for us as its standby.
pub(super) async fn planned_or_named(
    primary: &ServerUrl,
    pipeline: &PipelineName,
    publication: &str,
    mut left: Vec<QualifiedName>,
    is_planned: impl Fn(&QualifiedName) -> bool,
) -> Result<Vec<QualifiedName>, SnapshotError> {
    if !left.iter().all(&is_planned) {
        let client = session::primary_sql(primary, pipeline).await?;
        let named = named_tables(&client, publication).await?;
        left.retain(|name| named.contains_key(name) || is_planned(name));
    }
    Ok(left)
}

/// Behind a first field: its name, whether it is generated, its type.
fn column(row: &Row) -> Result<PublishedColumn, SnapshotError> {
    Ok(PublishedColumn { name: row.get(1), is_generated: row.get(2), column_type: column_type(row, 3)? })
}

/// Reads the text of `TYPE_PARTS` in this column.
pub(super) fn column_type(row: &Row, at: usize) -> Result<ColumnType, SnapshotError> {
    ColumnType::read(row.get(at)).map_err(|error| {
        SnapshotError::Refused(format!("a server's catalog answered column types that cannot be read: {error}"))
    })
}

/// `relid`, `attrs`, `qual` of every published relation; 14 knows neither column lists nor row filters.
fn published(version_number: u32) -> &'static str {
    if version_number >= 150_000 {
        "SELECT relid, attrs, qual FROM pg_catalog.pg_get_publication_tables($1)"
    } else {
        "SELECT relid, NULL::pg_catalog.int2vector AS attrs, NULL::pg_catalog.pg_node_tree AS qual \
         FROM pg_catalog.pg_get_publication_tables($1)"
    }
}

fn table_query(version_number: u32) -> String {
    format!(
        "WITH p AS ({}) \
         SELECT c.oid, n.nspname, c.relname, c.relkind, coalesce(am.amname = 'heap', false), \
                pg_catalog.pg_get_expr(p.qual, p.relid), \
                coalesce(s.bytes, 0)::int8, pg_catalog.current_setting('block_size')::int8, coalesce(s.tuples, -1)::float8 \
         FROM p \
         JOIN pg_catalog.pg_class c ON c.oid = p.relid \
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         LEFT JOIN pg_catalog.pg_am am ON am.oid = c.relam \
         LEFT JOIN LATERAL ( \
             SELECT sum(pg_catalog.pg_relation_size(l.oid)) AS bytes, \
                    CASE WHEN min(l.reltuples) < 0 THEN -1 ELSE sum(l.reltuples) END AS tuples \
             FROM pg_catalog.pg_class l \
             WHERE l.oid = c.oid AND c.relkind = 'r' \
                OR c.relkind = 'p' AND l.relkind = 'r' \
                   AND l.oid IN (SELECT t.relid FROM pg_catalog.pg_partition_tree(c.oid) t WHERE t.isleaf) \
         ) s ON true \
         WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_partition_ancestors(c.oid) a \
                           JOIN p q ON q.relid = a.relid WHERE a.relid <> c.oid) \
         ORDER BY 2, 3",
        published(version_number)
    )
}

/// Without a list, every column but the generated ones is published.
fn column_query(version_number: u32) -> String {
    format!(
        "WITH p AS ({}) \
         SELECT a.attrelid, a.attname, a.attgenerated <> '', {TYPE_PARTS} \
         FROM p \
         JOIN pg_catalog.pg_attribute a ON a.attrelid = p.relid AND a.attnum > 0 AND NOT a.attisdropped \
         JOIN pg_catalog.pg_type t ON t.oid = a.atttypid \
         WHERE a.attrelid = ANY ($2) \
           AND CASE WHEN p.attrs IS NULL THEN a.attgenerated = '' ELSE a.attnum = ANY (p.attrs) END \
         ORDER BY a.attrelid, a.attnum",
        published(version_number)
    )
}

fn table(row: &Row) -> PublishedTable {
    let storage = match (row.get::<_, i8>(3) as u8, row.get(4)) {
        (b'p', _) => Storage::Partitioned,
        (_, true) => Storage::Heap,
        (_, false) => Storage::OtherMethod,
    };
    let bytes = u64::try_from(row.get::<_, i64>(6)).unwrap_or(0);
    let block_bytes = u64::try_from(row.get::<_, i64>(7)).unwrap_or(8192).max(1);
    let tuples: f64 = row.get(8);
    PublishedTable {
        oid: row.get(0),
        name: QualifiedName::new(row.get::<_, String>(1), row.get::<_, String>(2)),
        storage,
        columns: Vec::new(),
        filter: row.get(5),
        pages: bytes / block_bytes,
        rows_estimated: if tuples < 0.0 { bytes / GUESSED_ROW_BYTES } else { tuples as u64 },
    }
}
