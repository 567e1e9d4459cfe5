//! Asks a server's catalog for table shapes: one statement for many tables, one JSON object a table, the same for every
//! version from 14 to 18 and for either kind of session.

use postgres_protocol::escape::escape_literal;

use crate::model::QualifiedName;

use super::shape::{ShapeError, TableShape};

/// A trigger `g` that fires for us too. One that came to a partition with its parent's counts on 14 as the server's own, as those of foreign
/// keys do.
macro_rules! replica_trigger {
    () => {
        "(NOT g.tgisinternal OR g.tgparentid <> 0 AND g.tgconstraint = 0) AND g.tgenabled IN ('R', 'A')"
    };
}

/// The shape of a table `c` in schema `n`, as JSON. Names are those of `TableShape`. An array of rows is no way for values where a column
/// left NULL in it is refused.
const SHAPE: &str = concat!("pg_catalog.json_build_object(
  'schema', n.nspname, 'name', c.relname, 'oid', c.oid::int8, 'kind', c.relkind, 'row_type_oid', c.reltype::int8,
  'row_array_type_oid', (SELECT t.typarray::int8 FROM pg_catalog.pg_type t WHERE t.oid = c.reltype AND NOT EXISTS (
    SELECT FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type x ON x.oid = a.atttypid
    WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND (x.typreceive = 0
      OR x.typnotnull OR EXISTS (SELECT FROM pg_catalog.pg_type b WHERE b.oid = x.typbasetype AND b.typnotnull)))), 'replica_identity', c.relreplident,
  'columns', COALESCE((
    SELECT pg_catalog.json_agg(pg_catalog.json_build_object(
      'name', a.attname, 'type_oid', a.atttypid::int8, 'type_name', pg_catalog.format_type(a.atttypid, a.atttypmod),
      'is_not_null', a.attnotnull, 'is_generated', a.attgenerated <> '', 'identity', a.attidentity,
      'has_default', a.atthasdef OR a.attidentity <> '',
      'equality_schema', CASE
          WHEN t.typtype IN ('e', 'r', 'm') OR t.oid IN (1043, 650) THEN 'pg_catalog'
          WHEN t.typtype = 'c' THEN NULL
          WHEN t.typelem <> 0 AND t.typlen = -1 AND t.typoutput = 'pg_catalog.array_out'::pg_catalog.regproc THEN
            CASE WHEN EXISTS (SELECT FROM pg_catalog.pg_type e WHERE e.oid = t.typelem AND (e.typtype IN ('e', 'r', 'm')
                   OR e.oid IN (1043, 650)
                   OR EXISTS (SELECT FROM pg_catalog.pg_operator o WHERE o.oprname = '=' AND o.oprleft = e.oid AND o.oprright = e.oid
                              AND (o.oprcanhash OR o.oprcanmerge)))) THEN 'pg_catalog' END
          ELSE (SELECT os.nspname::text FROM pg_catalog.pg_operator o JOIN pg_catalog.pg_namespace os ON os.oid = o.oprnamespace
                WHERE o.oprname = '=' AND o.oprleft = t.oid AND o.oprright = t.oid AND (o.oprcanhash OR o.oprcanmerge) LIMIT 1)
        END,
      'is_deterministic', COALESCE((
        SELECT k.collisdeterministic FROM pg_catalog.pg_collation k WHERE k.oid = a.attcollation), true),
      'base_type_oid', t.oid::int8, 'is_enum', t.typtype = 'e',
      'base_type_name', pg_catalog.format_type(t.oid, -1), 'array_delimiter', t.typdelim,
      'array_type_oid', CASE WHEN t.typtype = 'c' OR (t.typelem <> 0 AND t.typlen = -1
        AND t.typoutput = 'pg_catalog.array_out'::pg_catalog.regproc) THEN 0 ELSE t.typarray::int8 END
    ) ORDER BY a.attnum)
    FROM pg_catalog.pg_attribute a
    LEFT JOIN LATERAL (
      WITH RECURSIVE base(type_oid, of_oid) AS (
        SELECT d.oid, d.typbasetype FROM pg_catalog.pg_type d WHERE d.oid = a.atttypid
        UNION ALL SELECT d.oid, d.typbasetype FROM base b JOIN pg_catalog.pg_type d ON d.oid = b.of_oid)
      SELECT type_oid FROM base WHERE of_oid = 0) b ON true
    LEFT JOIN pg_catalog.pg_type t ON t.oid = b.type_oid
    WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped), '[]'::json),
  'key_columns', COALESCE((
    SELECT pg_catalog.json_agg(a.attname ORDER BY k.place)
    FROM pg_catalog.pg_index i
    CROSS JOIN LATERAL pg_catalog.unnest(i.indkey::pg_catalog.int2[]) WITH ORDINALITY AS k(attnum, place)
    JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.attnum
    WHERE k.place <= i.indnkeyatts AND i.indexrelid = COALESCE(
      (SELECT r.indexrelid FROM pg_catalog.pg_index r WHERE r.indrelid = c.oid AND r.indisreplident AND c.relreplident = 'i'),
      (SELECT r.indexrelid FROM pg_catalog.pg_index r WHERE r.indrelid = c.oid AND r.indisprimary))
      AND i.indimmediate AND i.indisvalid), '[]'::json),
  'unique_keys', COALESCE((
    SELECT pg_catalog.json_agg((
      SELECT pg_catalog.json_agg(a.attname ORDER BY k.place)
      FROM pg_catalog.unnest(i.indkey::pg_catalog.int2[]) WITH ORDINALITY AS k(attnum, place)
      JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.attnum WHERE k.place <= i.indnkeyatts
    ) ORDER BY i.indisprimary DESC, i.indisreplident DESC, i.indnkeyatts, i.indexrelid)
    FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND i.indisunique AND NOT i.indisexclusion AND i.indimmediate
      AND i.indisvalid AND i.indislive AND i.indpred IS NULL AND i.indexprs IS NULL AND NOT EXISTS (
        SELECT FROM pg_catalog.unnest(i.indkey::pg_catalog.int2[]) WITH ORDINALITY AS k(attnum, place)
        JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.attnum
        WHERE k.place <= i.indnkeyatts AND NOT a.attnotnull)), '[]'::json),
  'has_plain_index', EXISTS (SELECT FROM pg_catalog.pg_index i
    WHERE i.indrelid = c.oid AND i.indisvalid AND i.indpred IS NULL AND i.indkey[0] <> 0),
  'constrained_columns', COALESCE((
    SELECT pg_catalog.json_agg(DISTINCT a.attname)
    FROM (SELECT c.oid UNION SELECT p.relid FROM pg_catalog.pg_partition_tree(c.oid) p) f(oid)
    JOIN pg_catalog.pg_index i ON i.indrelid = f.oid AND (i.indisunique OR i.indisexclusion) AND i.indimmediate
    JOIN pg_catalog.pg_attribute a ON a.attrelid = f.oid AND a.attnum > 0 AND (
      a.attnum = ANY (i.indkey::pg_catalog.int2[]) OR EXISTS (
        SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objid = i.indexrelid
        AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.refobjid = f.oid AND d.refobjsubid = a.attnum))),
    '[]'::json),
  'constraints', (
    SELECT pg_catalog.count(DISTINCT COALESCE(pg_catalog.pg_partition_root(i.indexrelid)::pg_catalog.oid, i.indexrelid))
    FROM (SELECT c.oid UNION SELECT p.relid FROM pg_catalog.pg_partition_tree(c.oid) p) f(oid)
    JOIN pg_catalog.pg_index i ON i.indrelid = f.oid AND (i.indisunique OR i.indisexclusion) AND i.indimmediate),
  'deferrable_keys', COALESCE((
    SELECT pg_catalog.json_agg(x.relname ORDER BY x.relname)
    FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid
    WHERE i.indrelid = c.oid AND (i.indisunique OR i.indisexclusion) AND NOT i.indimmediate), '[]'::json),
  'is_constrained_whole', EXISTS (
    SELECT FROM (SELECT c.oid UNION SELECT p.relid FROM pg_catalog.pg_partition_tree(c.oid) p) f(oid)
    JOIN pg_catalog.pg_index i ON i.indrelid = f.oid AND (i.indisunique OR i.indisexclusion) AND i.indimmediate
    WHERE i.indexprs::pg_catalog.text LIKE '%:varattno 0 %' OR i.indpred::pg_catalog.text LIKE '%:varattno 0 %'),
  'partitions', COALESCE((
    SELECT pg_catalog.json_agg(pg_catalog.json_build_array(pn.nspname, pc.relname) ORDER BY p.level, pn.nspname, pc.relname)
    FROM pg_catalog.pg_partition_tree(c.oid) p JOIN pg_catalog.pg_class pc ON pc.oid = p.relid
    JOIN pg_catalog.pg_namespace pn ON pn.oid = pc.relnamespace WHERE p.relid <> c.oid), '[]'::json),
  'ancestors', COALESCE((
    SELECT pg_catalog.json_agg(pg_catalog.json_build_array(pn.nspname, pc.relname))
    FROM pg_catalog.pg_partition_ancestors(c.oid) p(relid) JOIN pg_catalog.pg_class pc ON pc.oid = p.relid
    JOIN pg_catalog.pg_namespace pn ON pn.oid = pc.relnamespace WHERE p.relid <> c.oid), '[]'::json),
  'has_replica_actions', EXISTS (
    SELECT FROM (SELECT c.oid UNION SELECT p.relid FROM pg_catalog.pg_partition_tree(c.oid) p) f(oid)
    WHERE EXISTS (SELECT FROM pg_catalog.pg_trigger g WHERE g.tgrelid = f.oid AND ",
    replica_trigger!(),
    ")
       OR EXISTS (SELECT FROM pg_catalog.pg_rewrite w WHERE w.ev_class = f.oid AND w.ev_enabled IN ('R', 'A')))");

/// Another text once anything is that the shape of a table `c` is made of: of the table and what is below it, which rows of the catalog
/// there are, and which transaction wrote each. Costs a few index scans and takes no lock on any table (`pg_partition_tree` would).
/// The relay's own guard, an ordinary trigger, makes no difference. Row security is no part of the shape, but an apply session's
/// statements fail where it holds for the role; what the policies say is not looked at.
const FINGERPRINT: &str = concat!(
    "pg_catalog.md5(pg_catalog.concat_ws(' ', c.oid, c.reltype, c.relkind, c.relreplident, c.relispartition, c.relrowsecurity, c.relforcerowsecurity, (
  WITH RECURSIVE family(oid) AS (
    SELECT c.oid UNION SELECT h.inhrelid FROM family JOIN pg_catalog.pg_inherits h ON h.inhparent = family.oid)
  SELECT pg_catalog.string_agg(pg_catalog.concat_ws(' ', family.oid,
    (SELECT pg_catalog.string_agg(pg_catalog.concat_ws(' ', a.attnum, a.xmin), ',' ORDER BY a.attnum)
       FROM pg_catalog.pg_attribute a WHERE a.attrelid = family.oid AND a.attnum > 0),
    (SELECT pg_catalog.string_agg(pg_catalog.concat_ws(' ', i.indexrelid, i.xmin), ',' ORDER BY i.indexrelid)
       FROM pg_catalog.pg_index i WHERE i.indrelid = family.oid),
    (SELECT pg_catalog.string_agg(pg_catalog.concat_ws(' ', g.oid, g.xmin), ',' ORDER BY g.oid)
       FROM pg_catalog.pg_trigger g WHERE g.tgrelid = family.oid AND ",
    replica_trigger!(),
    "),
    (SELECT pg_catalog.string_agg(pg_catalog.concat_ws(' ', w.oid, w.xmin), ',' ORDER BY w.oid)
       FROM pg_catalog.pg_rewrite w WHERE w.ev_class = family.oid AND w.ev_enabled IN ('R', 'A'))),
    ';' ORDER BY family.oid) FROM family)))"
);

/// The tables as a list for `(n.nspname, c.relname) IN (VALUES …)`: literals, never identifiers.
pub fn name_list<'a>(tables: impl IntoIterator<Item = &'a QualifiedName>) -> String {
    let wanted: Vec<String> = tables
        .into_iter()
        .map(|table| format!("({},{})", escape_literal(&table.schema), escape_literal(&table.name)))
        .collect();
    if wanted.is_empty() { "(NULL,NULL)".to_owned() } else { wanted.join(",") }
}

/// A statement that returns one row with one JSON text for each of the tables that exists.
pub fn catalog_query<'a>(tables: impl IntoIterator<Item = &'a QualifiedName>) -> String {
    format!(
        "SELECT {SHAPE}, 'fingerprint', {FINGERPRINT})::text FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         WHERE c.relkind IN ('r','p','v','m','f') AND (n.nspname, c.relname) IN (VALUES {}) ORDER BY n.nspname, c.relname",
        name_list(tables)
    )
}

/// A statement that returns schema, name and fingerprint of each of the tables that exists.
pub fn fingerprint_query<'a>(tables: impl IntoIterator<Item = &'a QualifiedName>) -> String {
    format!(
        "SELECT n.nspname, c.relname, {FINGERPRINT} FROM pg_catalog.pg_class c \
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE (n.nspname, c.relname) IN (VALUES {})",
        name_list(tables)
    )
}

/// Reads the texts of `catalog_query`.
pub fn read_shapes<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<Vec<TableShape>, ShapeError> {
    texts.into_iter().map(|text| serde_json::from_str(text).map_err(ShapeError::from)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::ColumnIdentity;

    #[test]
    fn names_are_literals_in_the_query() {
        let query = catalog_query(&[QualifiedName::new("public", "it's")]);
        assert!(query.contains("('public','it''s')"), "{query}");
    }

    #[test]
    fn a_shape_is_read_from_its_json() {
        let text = r#"{"schema":"public","name":"t","oid":16400,"kind":"r","replica_identity":"d","columns":[
            {"name":"id","type_oid":23,"type_name":"integer","is_not_null":true,"is_generated":false,"identity":"a",
             "has_default":true,"equality_schema":"pg_catalog"},
            {"name":"j","type_oid":114,"type_name":"json","is_not_null":false,"is_generated":false,"identity":"",
             "has_default":false,"equality_schema":null}],"key_columns":["id"],"partitions":[["public","t_1"]],"ancestors":[],
             "has_replica_actions":false}"#;
        let shapes = read_shapes([text]).unwrap();
        assert_eq!(shapes[0].sql_only(), "ONLY \"public\".\"t\"");
        assert_eq!(shapes[0].column("id").unwrap().identity, ColumnIdentity::Always);
        assert_eq!(shapes[0].column("j").unwrap().equality_schema, None);
        assert_eq!(shapes[0].family().len(), 2);
        assert!(read_shapes(["{}"]).is_err());
    }
}
