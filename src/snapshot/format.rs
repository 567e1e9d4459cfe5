//! Which COPY format a table can take: binary only where the bytes certainly mean the same on both servers. Pure.

use tokio_postgres::types::{Kind, Type};

use crate::model::QualifiedName;

/// OIDs below this are assigned by hand and never change (`FirstGenbkiObjectId` in `src/include/access/transam.h`).
const FIRST_UNSTABLE_OID: u32 = 10_000;

/// `reg*` types: their binary form is the OID of an object, which is another object on the other server.
const OBJECT_REFERENCES: &[u32] = &[24, 2202, 2203, 2204, 2205, 2206, 3734, 3769, 4089, 4096, 4191];
/// Types without a binary input or output function: aclitem, gtsvector, pg_node_tree, pg_ndistinct, pg_dependencies,
/// pg_mcv_list, pg_brin_bloom_summary, pg_brin_minmax_multi_summary, pg_ddl_command.
const WITHOUT_BINARY_FORM: &[u32] = &[1033, 3642, 194, 3361, 3402, 5017, 4600, 4601, 32];

/// A column's type as one server's `pg_type` has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ColumnType {
    /// `pg_type.oid`.
    pub(super) oid: u32,
    /// `pg_type.typtype`: `b`ase, `c`omposite, `d`omain, `e`num, `r`ange, `m`ultirange.
    pub(super) kind: u8,
    /// Schema and name.
    pub(super) name: QualifiedName,
    /// A domain's base type, else 0.
    pub(super) base_oid: u32,
}

/// `FORMAT` of a COPY.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// The types' own send and receive functions.
    Binary,
    /// Through the types' text, which any target type that can read it takes.
    Text,
}

impl Format {
    /// The word in a COPY command.
    pub(super) fn sql(self) -> &'static str {
        match self {
            Format::Binary => "binary",
            Format::Text => "text",
        }
    }
}

/// Binary if every pair of (primary's, standby's) column types allows it.
pub(super) fn choose<'a>(mut pairs: impl Iterator<Item = (&'a ColumnType, &'a ColumnType)>) -> Format {
    if pairs.all(|(ours, theirs)| is_same_in_binary(ours, theirs)) { Format::Binary } else { Format::Text }
}

/// Built-in types by OID; an enum by its qualified name, since its binary form is the label; a domain by its qualified name
/// and a built-in base, since its binary form is the base's. Composites, ranges and arrays of user types, and types of
/// extensions carry OIDs or private layouts: text.
fn is_same_in_binary(ours: &ColumnType, theirs: &ColumnType) -> bool {
    match (ours.kind, theirs.kind) {
        (b'e', b'e') => ours.name == theirs.name,
        (b'd', b'd') => {
            ours.name == theirs.name && ours.base_oid == theirs.base_oid && is_portable_builtin(ours.base_oid)
        }
        _ => ours.oid == theirs.oid && is_portable_builtin(ours.oid),
    }
}

fn is_portable_builtin(oid: u32) -> bool {
    if oid >= FIRST_UNSTABLE_OID || OBJECT_REFERENCES.contains(&oid) || WITHOUT_BINARY_FORM.contains(&oid) {
        return false;
    }
    match Type::from_oid(oid).as_ref().map(Type::kind) {
        Some(Kind::Simple) => true,
        Some(Kind::Array(inner) | Kind::Range(inner) | Kind::Multirange(inner)) => is_portable_builtin(inner.oid()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn builtin(oid: u32) -> ColumnType {
        ColumnType { oid, kind: b'b', name: QualifiedName::new("pg_catalog", "x"), base_oid: 0 }
    }

    fn user(oid: u32, kind: u8, name: &str, base_oid: u32) -> ColumnType {
        ColumnType { oid, kind, name: QualifiedName::new("public", name), base_oid }
    }

    #[test]
    fn binary_is_chosen_only_where_the_bytes_mean_the_same() {
        use Format::{Binary, Text};
        for (what, ours, theirs, expected) in [
            ("int4", builtin(23), builtin(23), Binary),
            ("numeric[]", builtin(1231), builtin(1231), Binary),
            ("int4range", builtin(3904), builtin(3904), Binary),
            ("int4multirange", builtin(4451), builtin(4451), Binary),
            ("jsonb", builtin(3802), builtin(3802), Binary),
            ("money", builtin(790), builtin(790), Binary),
            ("xml", builtin(142), builtin(142), Binary),
            ("int4 to int8", builtin(23), builtin(20), Text),
            ("regclass", builtin(2205), builtin(2205), Text),
            ("regclass[]", builtin(2210), builtin(2210), Text),
            ("aclitem", builtin(1033), builtin(1033), Text),
            ("aclitem[]", builtin(1034), builtin(1034), Text),
            ("pg_type row", builtin(71), builtin(71), Text),
            ("enum", user(16400, b'e', "mood", 0), user(16500, b'e', "mood", 0), Binary),
            ("another enum", user(16400, b'e', "mood", 0), user(16400, b'e', "mode", 0), Text),
            ("enum to text", user(16400, b'e', "mood", 0), builtin(25), Text),
            ("domain", user(16400, b'd', "zip", 25), user(16500, b'd', "zip", 25), Binary),
            ("domain of another base", user(16400, b'd', "zip", 25), user(16500, b'd', "zip", 23), Text),
            ("domain of an enum", user(16400, b'd', "d", 16390), user(16400, b'd', "d", 16390), Text),
            ("domain to its base", user(16400, b'd', "zip", 25), builtin(25), Text),
            ("composite", user(16400, b'c', "pair", 0), user(16400, b'c', "pair", 0), Text),
            ("hstore", user(16400, b'b', "hstore", 0), user(16400, b'b', "hstore", 0), Text),
            ("range of a user type", user(16400, b'r', "r", 0), user(16400, b'r', "r", 0), Text),
        ] {
            assert_eq!(choose([(&ours, &theirs)].into_iter()), expected, "{what}");
        }
    }

    #[test]
    fn one_column_that_needs_text_makes_the_table_text() {
        let (number, reference) = (builtin(23), builtin(2205));
        assert_eq!(choose([(&number, &number), (&reference, &reference)].into_iter()), Format::Text);
        assert_eq!(choose(std::iter::empty()), Format::Binary);
    }
}
