//! Whether a column's binary form means the same on both servers: the rule of the initial copy and of the stream, over what
//! each server says its types are made of. Pure; asks no server itself.

use std::collections::HashSet;

use serde::Deserialize;
use tokio_postgres::types::{Kind, Type};

/// OIDs below this are assigned by hand and never change (`FirstGenbkiObjectId` in `src/include/access/transam.h`).
const FIRST_UNSTABLE_OID: u32 = 10_000;
/// `reg*` types: their binary form is the OID of an object, which is another object on the other server.
const OBJECT_REFERENCES: &[u32] = &[24, 2202, 2203, 2204, 2205, 2206, 3734, 3769, 4089, 4096, 4191];
/// Types without a binary input or output function: aclitem, gtsvector, pg_node_tree, pg_ndistinct, pg_dependencies,
/// pg_mcv_list, pg_brin_bloom_summary, pg_brin_minmax_multi_summary, pg_ddl_command.
const WITHOUT_BINARY_FORM: &[u32] = &[1033, 3642, 194, 3361, 3402, 5017, 4600, 4601, 32];
/// tsquery: `tsqueryrecv` refuses the empty one that `tsquerysend` writes (seen in 14 to 18).
const UNFAITHFUL: &[u32] = &[3615];

/// SQL: what the type of the `pg_type` row `t` is made of, as the JSON text of a list of [`TypePart`], the type itself first.
/// Built-in types are not looked into.
pub const TYPE_PARTS: &str = "(WITH RECURSIVE reached(oid) AS (
    SELECT t.oid
    UNION SELECT p.oid FROM reached r JOIN pg_catalog.pg_type x ON x.oid = r.oid AND x.oid >= 10000
    CROSS JOIN LATERAL (
      SELECT x.typbasetype
      UNION ALL SELECT x.typelem WHERE x.typtype = 'b' AND x.typoutput = 'pg_catalog.array_out'::pg_catalog.regproc
      UNION ALL SELECT a.atttypid FROM pg_catalog.pg_attribute a
        WHERE x.typtype = 'c' AND a.attrelid = x.typrelid AND a.attnum > 0 AND NOT a.attisdropped
      UNION ALL SELECT g.rngsubtype FROM pg_catalog.pg_range g WHERE g.rngtypid = x.oid
      UNION ALL SELECT g.rngtypid FROM pg_catalog.pg_range g WHERE g.rngmultitypid = x.oid) AS p(oid)
    WHERE p.oid <> 0)
  SELECT pg_catalog.json_agg(pg_catalog.json_build_object(
    'oid', x.oid::int8, 'name', pg_catalog.quote_ident(xn.nspname) || '.' || pg_catalog.quote_ident(x.typname),
    'kind', CASE WHEN x.typtype = 'b' AND x.typoutput = 'pg_catalog.array_out'::pg_catalog.regproc THEN 'a'
      ELSE x.typtype::text END,
    'is_sent', x.typsend <> 0, 'is_received', x.typreceive <> 0,
    'extension', (SELECT e.extname || ' ' || e.extversion FROM pg_catalog.pg_depend d
      JOIN pg_catalog.pg_extension e ON e.oid = d.refobjid
      WHERE x.oid >= 10000 AND d.classid = 'pg_catalog.pg_type'::pg_catalog.regclass AND d.objid = x.oid AND d.deptype = 'e'
        AND d.refclassid = 'pg_catalog.pg_extension'::pg_catalog.regclass),
    'form', CASE WHEN x.oid IN (1186, 1187) AND pg_catalog.current_setting('server_version_num')::int4 >= 170000 THEN 'infinite' END,
    'parts', COALESCE((SELECT pg_catalog.json_agg(o.oid::int8 ORDER BY o.place) FROM (
        SELECT 0 AS place, x.typbasetype AS oid
        UNION ALL SELECT 0, x.typelem
          WHERE x.typtype = 'b' AND x.typoutput = 'pg_catalog.array_out'::pg_catalog.regproc
        UNION ALL SELECT a.attnum, a.atttypid FROM pg_catalog.pg_attribute a
          WHERE x.typtype = 'c' AND a.attrelid = x.typrelid AND a.attnum > 0 AND NOT a.attisdropped
        UNION ALL SELECT 0, g.rngsubtype FROM pg_catalog.pg_range g WHERE g.rngtypid = x.oid
        UNION ALL SELECT 0, g.rngtypid FROM pg_catalog.pg_range g WHERE g.rngmultitypid = x.oid) o
      WHERE o.oid <> 0 AND x.oid >= 10000), '[]'::json)
  ) ORDER BY x.oid <> t.oid, x.oid)::text
  FROM reached r JOIN pg_catalog.pg_type x ON x.oid = r.oid
  JOIN pg_catalog.pg_namespace xn ON xn.oid = x.typnamespace)";

/// One type as a server's `pg_type` has it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct TypePart {
    oid: u32,
    /// Schema and name, quoted where they must be.
    name: String,
    /// `typtype`; `a` for an array.
    kind: char,
    /// `typsend` is there.
    is_sent: bool,
    /// `typreceive` is there.
    is_received: bool,
    /// Name and version of the extension that it belongs to.
    #[serde(default)]
    extension: Option<String>,
    /// What not every version knows of its binary form: from 17 on an interval may be infinite, which an older server takes for a number.
    #[serde(default)]
    form: Option<String>,
    /// A domain's base, an array's element, a composite's columns, a range's subtype, a multirange's range.
    parts: Vec<u32>,
}

/// A column's type with everything that it is made of.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct ColumnType(Vec<TypePart>);

impl ColumnType {
    /// Reads the text of `TYPE_PARTS`.
    pub fn read(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text)
    }

    /// The type's OID, 0 if nothing is known of it.
    pub fn oid(&self) -> u32 {
        self.0.first().map_or(0, |part| part.oid)
    }

    /// Schema and name.
    pub fn name(&self) -> &str {
        self.0.first().map_or("", |part| &part.name)
    }

    /// Whether bytes of this type of the primary mean the same to a column of that type of the standby.
    pub fn is_alike(&self, theirs: &ColumnType) -> bool {
        self.is_same(self.oid(), theirs, theirs.oid())
    }

    /// Whether two parts have the same binary form. OIDs of user types inside arrays and composites differ: from 14 on the
    /// receive functions complain of an unlike OID only where both are built in (`array_recv`, `record_recv`).
    fn is_same(&self, oid: u32, theirs: &ColumnType, their_oid: u32) -> bool {
        let find = |of: &'_ ColumnType, oid: u32| of.0.iter().position(|part| part.oid == oid);
        if oid < FIRST_UNSTABLE_OID || their_oid < FIRST_UNSTABLE_OID {
            let form = |of: &ColumnType, oid: u32| find(of, oid).and_then(|at| of.0[at].form.clone());
            return oid == their_oid && is_portable(oid) && form(self, oid) == form(theirs, their_oid);
        }
        let (Some(ours_at), Some(theirs_at)) = (find(self, oid), find(theirs, their_oid)) else { return false };
        let (ours, other) = (&self.0[ours_at], &theirs.0[theirs_at]);
        let is_alike = ours.kind == other.kind
            && ours.extension == other.extension
            && ours.is_sent
            && other.is_received
            // Arrays are called after their elements, mostly.
            && (ours.kind == 'a' || ours.name == other.name)
            && ours.parts.len() == other.parts.len();
        let is_known = match ours.kind {
            // Its binary form is the label.
            'e' => ours.parts.is_empty(),
            // Known to its extension alone.
            'b' => ours.extension.is_some(),
            'a' | 'd' | 'r' | 'm' => ours.parts.len() == 1,
            'c' => true,
            _ => false,
        };
        let mut pairs = ours.parts.iter().zip(&other.parts);
        is_alike && is_known && pairs.all(|(part, other)| self.is_same(*part, theirs, *other))
    }
}

/// Whether a built-in type of this OID has the same binary form on every server.
fn is_portable(oid: u32) -> bool {
    let is_excepted = [OBJECT_REFERENCES, WITHOUT_BINARY_FORM, UNFAITHFUL].iter().any(|list| list.contains(&oid));
    if oid >= FIRST_UNSTABLE_OID || is_excepted {
        return false;
    }
    match Type::from_oid(oid).as_ref().map(Type::kind) {
        Some(Kind::Simple) => true,
        Some(Kind::Array(inner) | Kind::Range(inner) | Kind::Multirange(inner)) => is_portable(inner.oid()),
        _ => false,
    }
}

/// What both servers' catalogs agreed on before a stream began: user types of the same binary form, by the primary's OID and the
/// standby's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BinaryTypes(HashSet<(u32, u32)>);

impl BinaryTypes {
    /// Takes in what a pair of columns says: whether they are alike.
    pub fn note(&mut self, ours: &ColumnType, theirs: &ColumnType) -> bool {
        let is_alike = ours.is_alike(theirs);
        if is_alike && ours.oid() >= FIRST_UNSTABLE_OID {
            self.0.insert((ours.oid(), theirs.oid()));
        }
        is_alike
    }

    /// Whether bytes of the primary's type mean the same to the standby's; of user types that were not looked at nothing is known.
    pub fn are_alike(&self, our_oid: u32, their_oid: u32) -> bool {
        our_oid == their_oid && is_portable(our_oid) || self.0.contains(&(our_oid, their_oid))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A built-in type.
    pub(crate) fn builtin(oid: u32) -> ColumnType {
        ColumnType(vec![TypePart {
            oid,
            name: format!("pg_catalog.t{oid}"),
            kind: 'b',
            is_sent: true,
            is_received: true,
            extension: None,
            form: None,
            parts: Vec::new(),
        }])
    }

    /// A user's type with what it is made of.
    fn user(oid: u32, kind: char, name: &str, parts: &[&ColumnType]) -> ColumnType {
        let own = TypePart {
            oid,
            name: format!("public.{name}"),
            kind,
            is_sent: true,
            is_received: true,
            extension: None,
            form: None,
            parts: parts.iter().map(|part| part.oid()).collect(),
        };
        ColumnType(std::iter::once(own).chain(parts.iter().flat_map(|part| part.0.clone())).collect())
    }

    fn of_extension(oid: u32, name: &str, extension: &str) -> ColumnType {
        let mut made = user(oid, 'b', name, &[]);
        made.0[0].extension = Some(extension.to_owned());
        made
    }

    /// As a server from 17 on says it.
    fn infinite(oid: u32) -> ColumnType {
        let mut made = builtin(oid);
        made.0[0].form = Some("infinite".to_owned());
        made
    }

    #[test]
    fn binary_is_taken_only_where_the_bytes_mean_the_same() {
        let (binary, differs) = (true, false);
        let mood = |oid| user(oid, 'e', "mood", &[]);
        let array = |oid, of: &ColumnType| user(oid, 'a', "_x", &[of]);
        let pair = |oid, second: &ColumnType| user(oid, 'c', "pair", &[&builtin(23), second]);
        for (what, ours, theirs, expected) in [
            ("int4", builtin(23), builtin(23), binary),
            ("numeric[]", builtin(1231), builtin(1231), binary),
            ("int4range", builtin(3904), builtin(3904), binary),
            ("int4multirange", builtin(4451), builtin(4451), binary),
            ("jsonb", builtin(3802), builtin(3802), binary),
            ("money", builtin(790), builtin(790), binary),
            ("xml", builtin(142), builtin(142), binary),
            ("int4 to int8", builtin(23), builtin(20), differs),
            ("regclass", builtin(2205), builtin(2205), differs),
            ("interval", infinite(1186), infinite(1186), binary),
            ("interval to 16", infinite(1186), builtin(1186), differs),
            ("interval[] from 16", builtin(1187), infinite(1187), differs),
            ("composite to 16", pair(16400, &infinite(1186)), pair(16500, &builtin(1186)), differs),
            ("regclass[]", builtin(2210), builtin(2210), differs),
            ("aclitem", builtin(1033), builtin(1033), differs),
            ("aclitem[]", builtin(1034), builtin(1034), differs),
            ("pg_type row", builtin(71), builtin(71), differs),
            ("tsquery", builtin(3615), builtin(3615), differs),
            ("enum", mood(16400), mood(16500), binary),
            ("another enum", mood(16400), user(16400, 'e', "mode", &[]), differs),
            ("enum to text", mood(16400), builtin(25), differs),
            ("enum[]", array(16401, &mood(16400)), array(16501, &mood(16500)), binary),
            ("domain", user(16400, 'd', "zip", &[&builtin(25)]), user(16500, 'd', "zip", &[&builtin(25)]), binary),
            (
                "domain of another base",
                user(16400, 'd', "z", &[&builtin(25)]),
                user(16400, 'd', "z", &[&builtin(23)]),
                differs,
            ),
            (
                "domain of an enum",
                user(16401, 'd', "d", &[&mood(16400)]),
                user(16501, 'd', "d", &[&mood(16500)]),
                binary,
            ),
            ("domain to its base", user(16400, 'd', "zip", &[&builtin(25)]), builtin(25), differs),
            ("composite", pair(16400, &mood(16390)), pair(16500, &mood(16490)), binary),
            ("composite of other columns", pair(16400, &builtin(25)), pair(16500, &builtin(1043)), differs),
            ("composite with a reference", pair(16400, &builtin(2205)), pair(16400, &builtin(2205)), differs),
            ("composite[]", array(2, &builtin(23)), array(2, &builtin(23)), differs),
            (
                "range of an enum",
                user(16401, 'r', "r", &[&mood(16400)]),
                user(16501, 'r', "r", &[&mood(16500)]),
                binary,
            ),
            (
                "hstore",
                of_extension(16400, "hstore", "hstore 1.8"),
                of_extension(16500, "hstore", "hstore 1.8"),
                binary,
            ),
            (
                "another hstore",
                of_extension(16400, "hstore", "hstore 1.8"),
                of_extension(16500, "hstore", "hstore 1.7"),
                differs,
            ),
            ("somebody's own", user(16400, 'b', "own", &[]), user(16400, 'b', "own", &[]), differs),
        ] {
            assert_eq!(ours.is_alike(&theirs), expected, "{what}");
        }
    }

    #[test]
    fn a_stream_knows_the_types_that_were_looked_at() {
        let mut known = BinaryTypes::default();
        known.note(&user(16400, 'e', "mood", &[]), &user(16500, 'e', "mood", &[]));
        for (ours, theirs, expected) in [
            (23, 23, true),
            (23, 20, false),
            (1033, 1033, false),
            (16400, 16500, true),
            (16500, 16400, false),
            (16400, 16400, false),
        ] {
            assert_eq!(known.are_alike(ours, theirs), expected, "{ours} to {theirs}");
        }
    }

    #[test]
    fn the_catalogs_text_is_read() {
        let text = r#"[{"oid":16400,"name":"public.mood","kind":"e","is_sent":true,"is_received":true,"extension":null,"parts":[]}]"#;
        let read = ColumnType::read(text).unwrap();
        assert_eq!((read.oid(), read.name()), (16400, "public.mood"));
        assert!(ColumnType::read("{}").is_err());
    }
}
