//! The SQL that changes many rows of a table without a key. Pure text. The rows that change are a multiset: each kind of row is
//! looked for once, all in one scan of the table; of the rows found that are equal as many are changed as are wanted, by their
//! place; the server counts them.

use postgres_protocol::escape::escape_identifier;

use super::columns::Columns;
use super::oids::{BOOL_ARRAY, EXACT_TYPES, INT8};
use super::statements::{Statement, checked};
use super::target::Target;

const INT8_ARRAY: u32 = 1016;

/// The settings under which the statement is planned: a scan and hashes, never a loop over all rows for each.
pub(super) const SCAN_SETTINGS: &str = "SELECT pg_catalog.set_config('enable_seqscan', 'on', true), \
     pg_catalog.set_config('enable_hashjoin', 'on', true), pg_catalog.set_config('enable_nestloop', 'off', true)";
/// And back.
pub(super) const KEY_SETTINGS: &str = "SELECT pg_catalog.set_config('enable_seqscan', 'off', true), \
     pg_catalog.set_config('enable_hashjoin', 'off', true), pg_catalog.set_config('enable_nestloop', 'on', true)";

/// Parameters, an array each: all columns of the old rows, those of the new rows and whether a row is deleted (these only
/// where some are not), the kind of old row by number, the row's number among those of its kind from 1; then how many they are.
pub(super) fn bag_statement(target: &Target, is_delete: bool) -> Statement {
    let columns = 0..target.columns.len() as u16;
    let all: Vec<u16> = columns.clone().collect();
    let values = Columns::of_relation(target, &all);
    let (mut types, mut names) = (Vec::new(), Vec::new());
    values.types(&mut types);
    values.names('o', &mut names);
    if !is_delete {
        values.types(&mut types);
        types.push(BOOL_ARRAY);
        values.names('n', &mut names);
        names.push("x".to_owned());
    }
    types.extend([INT8_ARRAY, INT8_ARRAY, INT8]);
    names.extend(["g".to_owned(), "p".to_owned()]);
    let parameters: Vec<String> = (1..types.len()).map(|place| format!("${place}")).collect();
    let table = target.shape.sql_only();
    let equal: Vec<String> = columns.clone().map(|at| equal(target, at)).collect();
    let wanted = if is_delete { String::new() } else { ", u.*".to_owned() };
    let found = format!(
        "u AS MATERIALIZED (SELECT * FROM unnest({}) AS u({})), \
         m AS MATERIALIZED (SELECT t.ctid AS place, t.tableoid AS part, u.g AS kind, row_number() OVER (PARTITION BY u.g) AS number \
         FROM {table} AS t JOIN u ON u.p = 1 AND {}), \
         w AS MATERIALIZED (SELECT m.place, m.part{wanted} FROM m JOIN u ON u.g = m.kind AND u.p = m.number)",
        parameters.join(","),
        names.join(","),
        equal.join(" AND ")
    );
    let is_it = "t.ctid = w.place AND t.tableoid = w.part";
    let expected = format!("${}", types.len());
    let sql = if is_delete {
        let delete = format!("z AS (DELETE FROM {table} AS t USING w WHERE {is_it} RETURNING 1)");
        checked(&format!("{found}, {delete}"), "(SELECT pg_catalog.count(*) FROM z)", &expected)
    } else {
        let assignment = |at: u16| format!("{}={}", name(target, at), value(target, "w", 'n', at));
        let set: Vec<String> = columns.map(assignment).collect();
        let delete = format!("z AS (DELETE FROM {table} AS t USING w WHERE {is_it} AND w.x RETURNING 1)");
        let set = set.join(",");
        let update = format!("y AS (UPDATE {table} AS t SET {set} FROM w WHERE {is_it} AND NOT w.x RETURNING 1)");
        let counts = "(SELECT pg_catalog.count(*) FROM z) + (SELECT pg_catalog.count(*) FROM y)";
        checked(&format!("{found}, {delete}, {update}"), counts, &expected)
    };
    Statement { sql, types }
}

fn name(target: &Target, at: u16) -> String {
    escape_identifier(&target.column(at).name)
}

fn value(target: &Target, of: &str, prefix: char, at: u16) -> String {
    let column = target.column(at);
    match column.array_type_oid {
        0 if !target.travels_in_row(at) => format!("{of}.{prefix}{at}::{}", column.base_type_name),
        _ => format!("{of}.{prefix}{at}"),
    }
}

/// Always an equality that can be hashed: of types with loose equality, or without any, by the text form.
fn equal(target: &Target, at: u16) -> String {
    let column = target.column(at);
    let (ours, theirs) = (format!("t.{}", name(target, at)), value(target, "u", 'o', at));
    match (column.is_not_null, EXACT_TYPES.contains(&column.type_oid)) {
        (true, true) => format!("{ours} = {theirs}"),
        (true, false) => format!("{ours}::text COLLATE \"C\" = ({theirs})::text COLLATE \"C\""),
        (false, _) => format!(
            "COALESCE({ours}::text, '') COLLATE \"C\" = COALESCE(({theirs})::text, '') COLLATE \"C\" AND ({ours} IS NULL) = ({theirs} IS NULL)"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::target::Way;
    use super::super::target::tests::{relation, shape};
    use super::*;
    use crate::model::ReplicaIdentity;

    #[test]
    fn rows_without_a_key_are_found_in_one_scan_by_kind_and_number() {
        let source = [("a", true), ("c", true)];
        let shape = shape(&[("a", ""), ("c", "array")], &[]);
        let mut target = Target::new(relation(ReplicaIdentity::Full, &source), shape).unwrap();
        target.columns[0].is_not_null = true;
        assert_eq!(target.way, Way::Bag);
        let found = concat!(
            r#"JOIN u ON u.p = 1 AND t."a" = u.o0 AND "#,
            r#"COALESCE(t."c"::text, '') COLLATE "C" = COALESCE((u.o1::integer[])::text, '') COLLATE "C" "#,
            r#"AND (t."c" IS NULL) = (u.o1::integer[] IS NULL))"#
        );
        let delete = bag_statement(&target, true);
        assert!(
            delete.sql.contains("unnest($1,$2,$3,$4) AS u(o0,o1,g,p)") && delete.sql.contains(found),
            "{}",
            delete.sql
        );
        assert_eq!(delete.types, [1007, 1009, 1016, 1016, 20]);
        let change = bag_statement(&target, false);
        assert!(change.sql.contains(r#"SET "a"=w.n0,"c"=w.n1::integer[] FROM w WHERE"#), "{}", change.sql);
        assert!(change.sql.contains("c.found = $8 ") && change.sql.contains(found), "{}", change.sql);
        assert_eq!(change.types, [1007, 1009, 1007, 1009, 1000, 1016, 1016, 20]);
    }
}
