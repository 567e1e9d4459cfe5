//! Which tables of the primary can be published, and which a publication publishes.

use std::collections::BTreeMap;

use crate::config::TableSet;
use crate::model::QualifiedName;
use crate::wire::sql::SqlClient;

use super::SourceError;

/// An ordinary or partitioned permanent table outside the system schemas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishableTable {
    /// Its name.
    pub name: QualifiedName,
    /// Whether it is partitioned: then its partitions are published with it.
    pub is_partitioned: bool,
    /// The partitioned tables above it, nearest first.
    pub ancestors: Vec<QualifiedName>,
}

/// The tables of the set, as the catalog has them now, without partitions of a table that is itself in the set.
pub async fn publishable_tables(sql: &SqlClient, tables: &TableSet) -> Result<Vec<PublishableTable>, SourceError> {
    // What is_publishable_class in src/backend/catalog/pg_publication.c allows.
    let query = "SELECT n.nspname::text, c.relname::text, c.relkind = 'p', \
                        ARRAY(SELECT an.nspname::text FROM pg_catalog.pg_partition_ancestors(c.oid) WITH ORDINALITY a(relid, depth) \
                              JOIN pg_catalog.pg_class ac ON ac.oid = a.relid JOIN pg_catalog.pg_namespace an ON an.oid = ac.relnamespace \
                              WHERE a.relid <> c.oid ORDER BY depth), \
                        ARRAY(SELECT ac.relname::text FROM pg_catalog.pg_partition_ancestors(c.oid) WITH ORDINALITY a(relid, depth) \
                              JOIN pg_catalog.pg_class ac ON ac.oid = a.relid WHERE a.relid <> c.oid ORDER BY depth) \
                 FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
                 WHERE c.relkind IN ('r', 'p') AND c.relpersistence = 'p' AND c.oid >= 16384 \
                   AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast', 'walrelay') \
                 ORDER BY 1, 2";
    let rows = sql.query(query, &[]).await.map_err(SourceError::sql("listing the primary's tables"))?;
    let all = rows.iter().map(|row| {
        let schemas: Vec<String> = row.get(3);
        let names: Vec<String> = row.get(4);
        PublishableTable {
            name: QualifiedName::new(row.get::<_, String>(0), row.get::<_, String>(1)),
            is_partitioned: row.get(2),
            ancestors: schemas.into_iter().zip(names).map(|(schema, name)| QualifiedName::new(schema, name)).collect(),
        }
    });
    let is_wanted = |table: &PublishableTable| {
        tables.contains(&table.name) && !table.ancestors.iter().any(|ancestor| tables.contains(ancestor))
    };
    Ok(all.filter(is_wanted).collect())
}

/// The names under which changes of these arrive where each is published as itself: their partitions'. From the catalogs alone.
pub async fn leaves(sql: &SqlClient, tables: &[QualifiedName]) -> Result<Vec<QualifiedName>, SourceError> {
    if tables.is_empty() {
        return Ok(Vec::new());
    }
    let (schemas, names) = QualifiedName::parts(tables);
    let query = "WITH RECURSIVE covered AS ( \
                     SELECT c.oid FROM unnest($1::text[], $2::text[]) w(s, t) JOIN pg_catalog.pg_namespace n ON n.nspname = w.s \
                     JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = w.t \
                     UNION SELECT i.inhrelid FROM covered v JOIN pg_catalog.pg_class c ON c.oid = v.oid AND c.relkind = 'p' \
                     JOIN pg_catalog.pg_inherits i ON i.inhparent = v.oid) \
                 SELECT n.nspname::text, c.relname::text FROM covered v JOIN pg_catalog.pg_class c ON c.oid = v.oid \
                 JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'r' ORDER BY 1, 2";
    let rows = sql.query(query, &[&schemas, &names]).await.map_err(SourceError::sql("listing partitions"))?;
    Ok(rows.iter().map(|row| QualifiedName::new(row.get::<_, String>(0), row.get::<_, String>(1))).collect())
}

/// The partitioned tables above each partition.
pub async fn partitioned_above(sql: &SqlClient) -> Result<BTreeMap<QualifiedName, Vec<QualifiedName>>, SourceError> {
    // pg_partition_tree would lock every partition.
    let query = "SELECT rn.nspname::text, r.relname::text, pn.nspname::text, p.relname::text \
                 FROM pg_catalog.pg_class p JOIN pg_catalog.pg_namespace pn ON pn.oid = p.relnamespace \
                 CROSS JOIN LATERAL pg_catalog.pg_partition_ancestors(p.oid) a JOIN pg_catalog.pg_class r ON r.oid = a.relid \
                 JOIN pg_catalog.pg_namespace rn ON rn.oid = r.relnamespace WHERE p.relispartition AND a.relid <> p.oid";
    let rows = sql.query(query, &[]).await.map_err(SourceError::sql("listing the primary's partitions"))?;
    let name = |row: &tokio_postgres::Row, at: usize| {
        QualifiedName::new(row.get::<_, String>(at), row.get::<_, String>(at + 1))
    };
    let mut above: BTreeMap<QualifiedName, Vec<QualifiedName>> = BTreeMap::new();
    for row in &rows {
        above.entry(name(row, 2)).or_default().push(name(row, 0));
    }
    Ok(above)
}

/// The names under which the publication publishes changes: partitions, unless it publishes through the root.
///
/// What `pg_publication_tables` says, from the catalogs alone. From 15 on that view opens every table, and so waits behind an
/// ACCESS EXCLUSIVE lock; the transaction that holds it may wait for us as its synchronous standby (`pg_get_publication_tables`
/// and `GetAllTablesPublicationRelations` in `src/backend/catalog/pg_publication.c`).
pub async fn published_tables(sql: &SqlClient, publication: &str) -> Result<Vec<QualifiedName>, SourceError> {
    let context = || SourceError::sql(format!("listing the tables of the publication \"{publication}\""));
    let version = "SELECT pg_catalog.current_setting('server_version_num')::int4";
    let has_schemas = sql.query_one(version, &[]).await.map_err(context())?.get::<_, i32>(0) >= 150_000;
    let of_schemas = "UNION SELECT c.oid FROM pg_catalog.pg_publication_namespace s JOIN p ON s.pnpubid = p.oid \
                      JOIN publishable c ON c.relnamespace = s.pnnspid";
    let query = format!(
        "WITH RECURSIVE p AS (SELECT oid, puballtables, pubviaroot FROM pg_catalog.pg_publication WHERE pubname = $1), \
         publishable AS (SELECT oid, relnamespace FROM pg_catalog.pg_class \
                         WHERE relkind IN ('r', 'p') AND relpersistence = 'p' AND oid >= 16384), \
         named AS (SELECT r.prrelid AS oid FROM pg_catalog.pg_publication_rel r JOIN p ON r.prpubid = p.oid \
                   UNION SELECT c.oid FROM publishable c JOIN p ON p.puballtables {}), \
         covered AS (SELECT oid FROM named \
                     UNION SELECT i.inhrelid FROM covered v JOIN p ON NOT p.pubviaroot \
                           JOIN pg_catalog.pg_class c ON c.oid = v.oid AND c.relkind = 'p' \
                           JOIN pg_catalog.pg_inherits i ON i.inhparent = v.oid) \
         SELECT n.nspname::text, c.relname::text FROM covered v JOIN pg_catalog.pg_class c ON c.oid = v.oid \
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace CROSS JOIN p \
         WHERE CASE WHEN NOT p.pubviaroot THEN c.relkind = 'r' \
                    ELSE NOT EXISTS (SELECT FROM pg_catalog.pg_partition_ancestors(c.oid) a JOIN named m ON m.oid = a.relid \
                                     WHERE a.relid <> c.oid) END \
         ORDER BY 1, 2",
        if has_schemas { of_schemas } else { "" }
    );
    let rows = sql.query(&query, &[&publication]).await.map_err(context())?;
    Ok(rows.iter().map(|row| QualifiedName::new(row.get::<_, String>(0), row.get::<_, String>(1))).collect())
}
