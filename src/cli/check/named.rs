//! Tables that are asked for by their names. Asks nothing itself.

/// Joins the tables of the parameters $1 (schemas) and $2 (names, `QualifiedName::parts`) as `c`, with their schema `s`. Not by regclass,
/// which fails where the role may not use a schema.
pub(super) const NAMED_TABLES: &str = "unnest($1::text[], $2::text[]) w(s, t) JOIN pg_catalog.pg_namespace s ON s.nspname = w.s \
     JOIN pg_catalog.pg_class c ON c.relnamespace = s.oid AND c.relname = w.t";
