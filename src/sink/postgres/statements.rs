//! The SQL of one change. Pure text: names are quoted, values are parameters of the standby's own column types, operators are
//! written with their schema, so that an empty search_path and any extension's types are right.

use postgres_protocol::escape::escape_identifier;

use crate::schema::ShapeColumn;
use crate::wire::ServerError;

use super::form::{Form, Operation};
use super::oids::is_exact;
use super::target::{RowSearch, Target};

/// A statement's text and the types of its parameters: first the values of `Form::set`, then those of `Form::equal`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Statement {
    pub(super) sql: String,
    pub(super) types: Vec<u32>,
}

/// The statement of a form.
pub(super) fn statement(target: &Target, form: &Form) -> Statement {
    let types = form.set.iter().chain(&form.equal).map(|at| column(target, at).type_oid).collect();
    let table = target.shape.sql_only();
    let sql = match form.operation {
        Operation::Insert => insert(target, form),
        Operation::Delete => counted(target, &format!("DELETE FROM {table} WHERE {}", found(target, form))),
        Operation::Replace => replace(target, form),
        // Nothing was sent that may be set: the row must still be there. A lock says so without writing a new version.
        Operation::Update if form.set.is_empty() => {
            let select = format!("SELECT 1 FROM {table} WHERE {} FOR UPDATE", found(target, form));
            if target.is_counted() { checked_one(&format!("z AS ({select})"), "z") } else { select }
        }
        Operation::Update => {
            let assignment = |(place, at): (usize, &u16)| format!("{}=${}", name(target, at), place + 1);
            let assignments: Vec<String> = form.set.iter().enumerate().map(assignment).collect();
            counted(target, &format!("UPDATE {table} SET {} WHERE {}", assignments.join(","), found(target, form)))
        }
    };
    Statement { sql, types }
}

/// What the server says, in a failing cast, when a statement did not touch the rows it must.
const TOUCHED: &str = "walrelay touched ";

/// Runs the parts of a WITH and fails in the server, naming both numbers, unless `found` is `expected`.
pub(super) fn checked(parts: &str, found: &str, expected: &str) -> String {
    format!(
        "WITH {parts} SELECT CASE WHEN c.found = {expected} THEN 1 \
         ELSE ('{TOUCHED}' || c.found || ' rows of ' || {expected})::int4 END FROM (SELECT {found} AS found) c"
    )
}

fn checked_one(parts: &str, name: &str) -> String {
    checked(parts, &format!("(SELECT pg_catalog.count(*) FROM {name})"), "1")
}

/// The number of rows touched, from the words of the server that a statement of `checked` failed with.
pub(super) fn rows_touched(error: &ServerError) -> Option<u64> {
    let (_, rest) = error.message.split_once(TOUCHED).filter(|_| error.code == "22P02")?;
    rest.split(' ').next()?.parse().ok()
}

/// The statement, failing unless it touches one row; not where the standby's own triggers or rules have their say.
fn counted(target: &Target, change: &str) -> String {
    if target.is_counted() { checked_one(&format!("z AS ({change} RETURNING 1)"), "z") } else { change.to_owned() }
}

fn column<'a>(target: &'a Target, at: &u16) -> &'a ShapeColumn {
    &target.columns[usize::from(*at)]
}

fn name(target: &Target, at: &u16) -> String {
    escape_identifier(&column(target, at).name)
}

/// What an INSERT that gives identity columns their values must say.
pub(super) fn overriding(target: &Target) -> &'static str {
    if target.has_identity() { "OVERRIDING SYSTEM VALUE " } else { "" }
}

fn insert(target: &Target, form: &Form) -> String {
    let table = target.shape.qualified_name().sql();
    if form.set.is_empty() {
        return format!("INSERT INTO {table} DEFAULT VALUES");
    }
    let names: Vec<String> = form.set.iter().map(|at| name(target, at)).collect();
    let values: Vec<String> = (1..=form.set.len()).map(|place| format!("${place}")).collect();
    format!("INSERT INTO {table} ({}) {}VALUES ({})", names.join(","), overriding(target), values.join(","))
}

/// Deletes the row and inserts it anew; what was not sent (large values left unchanged, columns that only the standby has)
/// is carried over.
fn replace(target: &Target, form: &Form) -> String {
    let mut names: Vec<String> = form.set.iter().map(|at| name(target, at)).collect();
    let mut values: Vec<String> = (1..=form.set.len()).map(|place| format!("${place}")).collect();
    let mut carried: Vec<String> = Vec::new();
    for column in target.shape.columns.iter().filter(|column| !column.is_generated) {
        let column = escape_identifier(&column.name);
        if !names.contains(&column) {
            values.push(format!("gone.{column}"));
            carried.push(column);
        }
    }
    names.extend(carried.iter().cloned());
    let returned = if carried.is_empty() { "1".to_owned() } else { carried.join(",") };
    let gone =
        format!("gone AS (DELETE FROM {} WHERE {} RETURNING {returned})", target.shape.sql_only(), found(target, form));
    let made = format!(
        "INSERT INTO {} ({}) {}SELECT {} FROM gone",
        target.shape.qualified_name().sql(),
        names.join(","),
        overriding(target),
        values.join(",")
    );
    if target.is_counted() {
        checked_one(&format!("{gone}, made AS ({made})"), "gone")
    } else {
        format!("WITH {gone} {made}")
    }
}

/// The search condition. Without a unique key, one of the equal rows is picked by its place, of those most alike.
fn found(target: &Target, form: &Form) -> String {
    let mut conditions: Vec<String> = Vec::new();
    let mut likeness: Vec<String> = Vec::new();
    for (place, at) in form.equal.iter().enumerate() {
        let name = name(target, at);
        let parameter = place + form.set.len() + 1;
        let column = column(target, at);
        let as_text = || {
            format!(
                "{name}::pg_catalog.text COLLATE \"C\" OPERATOR(pg_catalog.=) ${parameter}::pg_catalog.text COLLATE \"C\""
            )
        };
        if column.equality_schema.is_some() && !is_exact(column) {
            likeness.push(as_text());
        }
        conditions.push(match (&column.equality_schema, &target.search) {
            (Some(schema), _) => format!("{name} OPERATOR({}.=) ${parameter}", escape_identifier(schema)),
            // An index stands on it, so there is an operator for it or for what it is binary coercible to.
            (None, RowSearch::Key(_)) => format!("{name} OPERATOR(pg_catalog.=) ${parameter}"),
            // A type without equality (json, xml, point …) is compared by its text.
            (None, _) => as_text(),
        });
    }
    // Of a row of nothing but NULLs IS NULL is true as well.
    conditions.extend(form.null.iter().map(|at| format!("{} IS NOT DISTINCT FROM NULL", name(target, at))));
    let condition = if conditions.is_empty() { "true".to_owned() } else { conditions.join(" AND ") };
    if target.search != RowSearch::WholeRow {
        return condition;
    }
    // Of rows that are equal, the one with the bytes that were sent, if there is one: 1.0 is not 1.00.
    let order =
        if likeness.is_empty() { String::new() } else { format!(" ORDER BY ({}) DESC", likeness.join(" AND ")) };
    let table = target.shape.sql_only();
    if target.shape.is_partitioned() {
        format!("(tableoid, ctid) = (SELECT tableoid, ctid FROM {table} WHERE {condition}{order} LIMIT 1)")
    } else {
        format!("ctid = (SELECT ctid FROM {table} WHERE {condition}{order} LIMIT 1)")
    }
}

/// One TRUNCATE for all tables of one message, never CASCADE (`apply_handle_truncate` in `worker.c`).
pub(super) fn truncate<'a>(targets: impl Iterator<Item = &'a Target>, restart_identity: bool) -> String {
    let tables: Vec<String> = targets.map(|target| target.shape.sql_only()).collect();
    let identity = if restart_identity { " RESTART IDENTITY" } else { "" };
    format!("TRUNCATE {}{identity}", tables.join(", "))
}

#[cfg(test)]
mod tests {
    use super::super::target::tests::{relation, shape};
    use super::*;
    use crate::model::ReplicaIdentity;

    fn target(identity: ReplicaIdentity, columns: &[(&str, bool, &str)], key: &[&str]) -> Target {
        let source: Vec<(&str, bool)> = columns.iter().map(|(name, is_key, _)| (*name, *is_key)).collect();
        let mut table: Vec<(&str, &str)> = columns.iter().map(|(name, _, flags)| (*name, *flags)).collect();
        table.extend([("extra", ""), ("computed", "generated")]);
        Target::new(relation(identity, &source), shape(&table, key)).unwrap()
    }

    /// A statement that fails unless it touched one row.
    fn one(change: &str, counted: &str) -> String {
        format!(
            "WITH {change} SELECT CASE WHEN c.found = 1 THEN 1 ELSE ('walrelay touched ' || c.found || ' rows of ' || 1)::int4 END \
             FROM (SELECT (SELECT pg_catalog.count(*) FROM {counted}) AS found) c"
        )
    }

    /// Compares the text of a form and the number of its parameters.
    fn check(target: &Target, operation: Operation, columns: [&[u16]; 3], expected: &str) {
        let [set, equal, null] = columns.map(<[u16]>::to_vec);
        let made = statement(target, &Form { operation, set, equal, null });
        assert_eq!(made.sql, expected);
        assert_eq!(made.types.len(), expected.matches('$').count());
    }

    #[test]
    fn each_change_of_a_keyed_table_has_its_statement() {
        use Operation::{Delete, Insert, Replace, Update};
        let keyed = target(ReplicaIdentity::Default, &[("a", true, ""), ("b \"x", false, "")], &["a"]);
        let insert = r#"INSERT INTO "public"."t" ("a","b ""x") VALUES ($1,$2)"#;
        check(&keyed, Insert, [&[0, 1], &[], &[]], insert);
        let update =
            r#"z AS (UPDATE ONLY "public"."t" SET "b ""x"=$1 WHERE "a" OPERATOR("pg_catalog".=) $2 RETURNING 1)"#;
        check(&keyed, Update, [&[1], &[0], &[]], &one(update, "z"));
        let delete = r#"z AS (DELETE FROM ONLY "public"."t" WHERE "a" OPERATOR("pg_catalog".=) $1 RETURNING 1)"#;
        check(&keyed, Delete, [&[], &[0], &[]], &one(delete, "z"));
        let locked = r#"z AS (SELECT 1 FROM ONLY "public"."t" WHERE "a" OPERATOR("pg_catalog".=) $1 FOR UPDATE)"#;
        check(&keyed, Update, [&[], &[0], &[]], &one(locked, "z"));
        let identity = target(ReplicaIdentity::Default, &[("a", true, "always"), ("b", false, "")], &["a"]);
        let insert = r#"INSERT INTO "public"."t" ("a","b") OVERRIDING SYSTEM VALUE VALUES ($1,$2)"#;
        check(&identity, Insert, [&[0, 1], &[], &[]], insert);
        let replace = concat!(
            r#"gone AS (DELETE FROM ONLY "public"."t" WHERE "a" OPERATOR("pg_catalog".=) $2 RETURNING "b","extra"), made AS ("#,
            r#"INSERT INTO "public"."t" ("a","b","extra") OVERRIDING SYSTEM VALUE SELECT $1,gone."b",gone."extra" FROM gone)"#
        );
        check(&identity, Replace, [&[0], &[0], &[]], &one(replace, "gone"));
    }

    #[test]
    fn the_servers_words_tell_the_rows_touched() {
        let words = |code: &str, message: &str| {
            rows_touched(&ServerError { code: code.to_owned(), message: message.to_owned(), ..ServerError::default() })
        };
        let message = "invalid input syntax for type integer: \"walrelay touched 3 rows of 5\"";
        assert_eq!(words("22P02", message), Some(3));
        assert_eq!(words("22P03", message), None);
        assert_eq!(words("22P02", "invalid input syntax for type integer: \"x\""), None);
    }

    #[test]
    fn a_row_without_a_key_is_found_by_all_it_holds() {
        let full = target(ReplicaIdentity::Full, &[("a", true, ""), ("j", true, "json")], &[]);
        let delete = concat!(
            r#"z AS (DELETE FROM ONLY "public"."t" WHERE ctid = (SELECT ctid FROM ONLY "public"."t" WHERE "#,
            r#""j"::pg_catalog.text COLLATE "C" OPERATOR(pg_catalog.=) $1::pg_catalog.text COLLATE "C" AND "a" IS NOT DISTINCT FROM NULL LIMIT 1) RETURNING 1)"#
        );
        check(&full, Operation::Delete, [&[], &[1], &[0]], &one(delete, "z"));
    }

    #[test]
    fn tables_without_columns_and_truncations_have_theirs() {
        let none = target(ReplicaIdentity::Default, &[], &[]);
        check(&none, Operation::Insert, [&[], &[], &[]], r#"INSERT INTO "public"."t" DEFAULT VALUES"#);
        let truncated = truncate([&none, &none].into_iter(), true);
        assert_eq!(truncated, r#"TRUNCATE ONLY "public"."t", ONLY "public"."t" RESTART IDENTITY"#);
        assert_eq!(truncate([&none].into_iter(), false), r#"TRUNCATE ONLY "public"."t""#);
    }
}
