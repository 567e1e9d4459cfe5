//! Through what a table came into a publication: by its own name, with a partitioned parent, with a schema. Tells tables that have streamed
//! from their first row on from those that somebody has brought in with all their rows. Reads catalogs only.

use crate::model::QualifiedName;
use crate::wire::sql::SqlClient;

use super::error::{Side, SnapshotError, server};

/// The tables among `others`, none of which the publication names itself, that came with a parent or schema through which none of the
/// `known` tables came: it is new to the publication, so that its tables may be older. A known table that is published by
/// another way too tells nothing.
pub(super) async fn without_a_known_way(
    primary: &SqlClient,
    publication: &str,
    known: &[QualifiedName],
    others: &[QualifiedName],
) -> Result<Vec<QualifiedName>, SnapshotError> {
    if others.is_empty() {
        return Ok(Vec::new());
    }
    let failed =
        |error| server(Side::Primary, format!("read how tables came into the publication \"{publication}\""), error);
    let version = "SELECT pg_catalog.current_setting('server_version_num')::int4";
    let has_schemas = primary.query_one(version, &[]).await.map_err(failed)?.get::<_, i32>(0) >= 150_000;
    let (schemas, tables) = QualifiedName::parts(known.iter().chain(others));
    let is_known = std::iter::repeat_n(true, known.len()).chain(std::iter::repeat_n(false, others.len()));
    let is_known: Vec<bool> = is_known.collect();
    let rows =
        primary.query(&query(has_schemas), &[&publication, &schemas, &tables, &is_known]).await.map_err(failed)?;
    Ok(rows.iter().map(|row| QualifiedName::new(row.get::<_, String>(0), row.get::<_, String>(1))).collect())
}

fn query(has_schemas: bool) -> String {
    let of_schemas = "UNION SELECT g.place, 'schema ' || s.pnnspid FROM lineage g JOIN pg_catalog.pg_class c ON c.oid = g.above \
                      JOIN pg_catalog.pg_publication_namespace s ON s.pnnspid = c.relnamespace JOIN p ON p.oid = s.pnpubid";
    format!(
        "WITH p AS (SELECT oid, puballtables FROM pg_catalog.pg_publication WHERE pubname = $1), \
         given AS (SELECT * FROM unnest($2::text[], $3::text[], $4::bool[]) WITH ORDINALITY AS g(s, t, is_known, place)), \
         lineage AS (SELECT g.place, a.relid AS above FROM given g JOIN pg_catalog.pg_namespace n ON n.nspname = g.s \
                     JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = g.t \
                     CROSS JOIN LATERAL (SELECT c.oid UNION SELECT r.relid FROM pg_catalog.pg_partition_ancestors(c.oid) r) a(relid)), \
         way AS (SELECT g.place, 'table ' || r.prrelid AS way FROM lineage g \
                 JOIN pg_catalog.pg_publication_rel r ON r.prrelid = g.above JOIN p ON p.oid = r.prpubid {}), \
         known AS (SELECT min(w.way) AS way FROM way w JOIN given g USING (place) WHERE g.is_known GROUP BY w.place HAVING count(*) = 1) \
         SELECT g.s, g.t FROM given g CROSS JOIN p WHERE NOT g.is_known AND NOT p.puballtables \
         AND NOT EXISTS (SELECT FROM way w JOIN known k USING (way) WHERE w.place = g.place) ORDER BY 1, 2",
        if has_schemas { of_schemas } else { "" }
    )
}

/// Of these copied tables those that are there on the primary and not published any more, neither they nor a table above them.
pub(crate) async fn unpublished(
    primary: &SqlClient,
    published: &[&QualifiedName],
    copied: &[QualifiedName],
) -> Result<Vec<QualifiedName>, SnapshotError> {
    let (schemas, tables) = QualifiedName::parts(copied);
    let (published_schemas, published_tables) = QualifiedName::parts(published.iter().copied());
    let query = "SELECT n.nspname::text, c.relname::text FROM unnest($1::text[], $2::text[]) w(s, t) \
                 JOIN pg_catalog.pg_namespace n ON n.nspname = w.s \
                 JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = w.t AND c.relkind IN ('r', 'p') \
                 WHERE NOT EXISTS (SELECT FROM (SELECT c.oid UNION SELECT r.relid FROM pg_catalog.pg_partition_ancestors(c.oid) r) l(relid) \
                     JOIN pg_catalog.pg_class a ON a.oid = l.relid JOIN pg_catalog.pg_namespace an ON an.oid = a.relnamespace \
                     JOIN unnest($3::text[], $4::text[]) p(s, t) ON (p.s, p.t) = (an.nspname, a.relname)) \
                 AND NOT EXISTS (SELECT FROM pg_catalog.pg_inherits i WHERE c.relkind = 'p' AND i.inhparent = c.oid) ORDER BY 1, 2";
    let rows = primary.query(query, &[&schemas, &tables, &published_schemas, &published_tables]).await;
    let rows = rows.map_err(|error| server(Side::Primary, "look for tables that are not published any more", error))?;
    Ok(rows.iter().map(|row| QualifiedName::new(row.get::<_, String>(0), row.get::<_, String>(1))).collect())
}
