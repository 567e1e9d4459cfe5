//! What the primary's catalog says about a table, for the form of its events: one statement for many tables, one JSON object a
//! table, the same for every version from 14 to 18. Never asks by itself.

use serde::Deserialize;

use crate::model::{Column, QualifiedName, Relation, ReplicaIdentity};
use crate::schema::{ShapeError, name_list};

use super::super::super::SinkError;

/// One table.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct TableFacts {
    /// `nspname`.
    pub schema: String,
    /// `relname`.
    pub name: String,
    /// `pg_class.oid`.
    pub oid: u32,
    /// `relreplident`: d, n, f, i.
    #[serde(default)]
    pub replica_identity: String,
    /// In the table's order, dropped ones left out.
    pub columns: Vec<ColumnFacts>,
    /// Columns of the primary key in the key's own order; empty if there is none.
    pub primary_key: Vec<String>,
    /// Columns of the replica identity's index, if one is set.
    pub identity_index: Vec<String>,
    /// The other unique indexes by name, partial ones too, as Debezium takes them; none over expressions.
    pub unique_indexes: Vec<IndexFacts>,
}

/// One unique index.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct IndexFacts {
    /// `relname` of the index.
    pub name: String,
    /// In the index's order.
    pub columns: Vec<String>,
}

/// One column.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ColumnFacts {
    /// `attname`.
    pub name: String,
    /// `atttypid`.
    pub type_oid: u32,
    /// `atttypmod`.
    pub type_modifier: i32,
    /// `attnotnull`, or a domain's.
    pub is_not_null: bool,
    /// The default as SQL, if there is one.
    pub default: Option<String>,
    /// Serial or identity: its default counts up.
    pub is_counting: bool,
    /// Its type, or a domain's base type.
    #[serde(rename = "type")]
    pub base: TypeFacts,
}

/// One type, domains resolved.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct TypeFacts {
    /// Of the base type.
    pub oid: u32,
    /// `nspname`.
    pub schema: String,
    /// `typname`.
    pub name: String,
    /// `typtype`: b base, c composite, e enum, m multirange, p pseudo, r range.
    pub kind: String,
    /// The modifier that a domain gives its base type, -1 for none.
    pub modifier: i32,
    /// Labels of an enum (or of an array's enum) in order.
    #[serde(default)]
    pub labels: Vec<String>,
    /// Of an array.
    pub element: Option<Box<TypeFacts>>,
}

impl TableFacts {
    /// Schema and name.
    pub fn qualified_name(&self) -> QualifiedName {
        QualifiedName::new(self.schema.clone(), self.name.clone())
    }

    /// The column of this name.
    pub fn column(&self, name: &str) -> Option<&ColumnFacts> {
        self.columns.iter().find(|column| column.name == name)
    }
}

impl TableFacts {
    /// As a Relation message would describe it, with only these columns.
    pub(super) fn to_relation(&self, columns: &[&str]) -> Result<Relation, SinkError> {
        let key = if self.identity_index.is_empty() { &self.primary_key } else { &self.identity_index };
        let column = |name: &&str| {
            let facts = self.column(name).ok_or_else(|| {
                SinkError::Shape(format!("the table {} has no column \"{name}\"", self.qualified_name()))
            })?;
            let is_key = key.contains(&facts.name);
            Ok(Column {
                name: facts.name.clone(),
                type_oid: facts.type_oid,
                type_modifier: facts.type_modifier,
                is_key,
            })
        };
        let columns: Result<Vec<_>, SinkError> = columns.iter().map(column).collect();
        let has_index = !self.identity_index.is_empty();
        Ok(Relation {
            oid: self.oid,
            name: self.qualified_name(),
            replica_identity: if has_index { ReplicaIdentity::Index } else { ReplicaIdentity::Default },
            columns: columns?,
        })
    }
}

/// A column of a plain base type, for tests of rules that look at little else.
#[cfg(test)]
pub(super) fn plain_column(name: &str, type_oid: u32, is_not_null: bool) -> ColumnFacts {
    ColumnFacts {
        name: name.to_owned(),
        type_oid,
        type_modifier: -1,
        is_not_null,
        default: None,
        is_counting: false,
        base: TypeFacts {
            oid: type_oid,
            schema: "pg_catalog".to_owned(),
            name: String::new(),
            kind: "b".to_owned(),
            modifier: -1,
            labels: Vec::new(),
            element: None,
        },
    }
}

/// A statement that returns one row with one JSON text for each of the tables that exists.
pub fn catalog_query<'a>(tables: impl IntoIterator<Item = &'a QualifiedName>) -> String {
    format!(
        "SELECT {FACTS}::text FROM {FROM} WHERE (n.nspname, c.relname) IN (VALUES {}) ORDER BY n.nspname, c.relname",
        name_list(tables)
    )
}

/// The same for the table of this OID, whatever its name is.
pub fn catalog_query_of(oid: u32) -> String {
    format!("SELECT {FACTS}::text FROM {FROM} WHERE c.oid = {oid}")
}

/// Reads the texts of `catalog_query`.
pub fn read_facts<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<Vec<TableFacts>, ShapeError> {
    texts.into_iter().map(|text| serde_json::from_str(text).map_err(ShapeError::from)).collect()
}

const FROM: &str = "pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace";

/// The facts of a table `c` in schema `n`, as JSON. Names are those of `TableFacts`. Nothing in it may lock a table: a commit that
/// waits for us may hold it exclusively. Hence `pg_get_expr` without a relation, which it would open: a default names no column,
/// and expressions of generated columns, which do, are left out.
const FACTS: &str = "pg_catalog.json_build_object(
  'schema', n.nspname, 'name', c.relname, 'oid', c.oid::int8, 'replica_identity', c.relreplident,
  'columns', COALESCE((
    SELECT pg_catalog.json_agg(pg_catalog.json_build_object(
      'name', a.attname, 'type_oid', a.atttypid::int8, 'type_modifier', a.atttypmod,
      'is_not_null', a.attnotnull OR b.not_null, 'default', pg_catalog.pg_get_expr(d.adbin, 0),
      'is_counting', a.attidentity <> '' OR COALESCE(pg_catalog.pg_get_expr(d.adbin, 0), '') LIKE 'nextval(%',
      'type', pg_catalog.json_build_object(
        'oid', t.oid::int8, 'schema', tn.nspname, 'name', t.typname, 'kind', t.typtype, 'modifier', b.modifier,
        'labels', COALESCE((SELECT pg_catalog.json_agg(l.enumlabel ORDER BY l.enumsortorder) FROM pg_catalog.pg_enum l
                            WHERE l.enumtypid = t.oid), '[]'::json),
        'element', (
          SELECT pg_catalog.json_build_object(
            'oid', e.oid::int8, 'schema', en.nspname, 'name', e.typname, 'kind', e.typtype, 'modifier', -1,
            'labels', COALESCE((SELECT pg_catalog.json_agg(l.enumlabel ORDER BY l.enumsortorder) FROM pg_catalog.pg_enum l
                                WHERE l.enumtypid = e.oid), '[]'::json),
            'element', NULL)
          FROM pg_catalog.pg_type e JOIN pg_catalog.pg_namespace en ON en.oid = e.typnamespace
          WHERE e.oid = t.typelem AND t.typlen = -1 AND t.typoutput = 'pg_catalog.array_out'::pg_catalog.regproc))
    ) ORDER BY a.attnum)
    FROM pg_catalog.pg_attribute a
    LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum AND a.attgenerated = ''
    CROSS JOIN LATERAL (
      WITH RECURSIVE base(oid, of_oid, modifier, not_null) AS (
        SELECT y.oid, y.typbasetype, CASE WHEN y.typtype = 'd' THEN y.typtypmod ELSE -1 END, y.typnotnull
        FROM pg_catalog.pg_type y WHERE y.oid = a.atttypid
        UNION ALL
        SELECT y.oid, y.typbasetype, CASE WHEN base.modifier >= 0 OR y.typtype <> 'd' THEN base.modifier ELSE y.typtypmod END,
               base.not_null OR y.typnotnull
        FROM base JOIN pg_catalog.pg_type y ON y.oid = base.of_oid)
      SELECT oid, modifier, not_null FROM base WHERE of_oid = 0) b
    JOIN pg_catalog.pg_type t ON t.oid = b.oid
    JOIN pg_catalog.pg_namespace tn ON tn.oid = t.typnamespace
    WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped), '[]'::json),
  'primary_key', COALESCE((
    SELECT pg_catalog.json_agg(a.attname ORDER BY k.place)
    FROM pg_catalog.pg_index i
    CROSS JOIN LATERAL pg_catalog.unnest(i.indkey::pg_catalog.int2[]) WITH ORDINALITY AS k(attnum, place)
    JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.attnum
    WHERE i.indrelid = c.oid AND i.indisprimary AND k.place <= i.indnkeyatts), '[]'::json),
  'identity_index', COALESCE((
    SELECT pg_catalog.json_agg(a.attname ORDER BY k.place)
    FROM pg_catalog.pg_index i
    CROSS JOIN LATERAL pg_catalog.unnest(i.indkey::pg_catalog.int2[]) WITH ORDINALITY AS k(attnum, place)
    JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.attnum
    WHERE i.indrelid = c.oid AND i.indisreplident AND c.relreplident = 'i' AND k.place <= i.indnkeyatts), '[]'::json),
  'unique_indexes', COALESCE((
    SELECT pg_catalog.json_agg(pg_catalog.json_build_object('name', x.relname, 'columns', (
      SELECT pg_catalog.json_agg(a.attname ORDER BY k.place)
      FROM pg_catalog.unnest(i.indkey::pg_catalog.int2[]) WITH ORDINALITY AS k(attnum, place)
      JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.attnum
      WHERE k.place <= i.indnkeyatts)) ORDER BY x.relname)
    FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid
    WHERE i.indrelid = c.oid AND i.indisunique AND NOT i.indisprimary AND i.indisvalid
      AND i.indexprs IS NULL), '[]'::json))";
