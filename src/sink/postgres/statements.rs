//! The SQL of one change. Pure text: names are quoted, values are parameters of the standby's own column types, operators are
//! written with their schema, so that an empty search_path and any extension's types are right.

use postgres_protocol::escape::escape_identifier;

use crate::schema::ShapeColumn;

use super::form::{Form, Operation};
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
        Operation::Delete => format!("DELETE FROM {table} WHERE {}", found(target, form)),
        Operation::Replace => replace(target, form),
        // Nothing was sent that may be set: the row must still be there. A lock says so without writing a new version.
        Operation::Update if form.set.is_empty() => {
            format!("SELECT FROM {table} WHERE {} FOR UPDATE", found(target, form))
        }
        Operation::Update => {
            let assignment = |(place, at): (usize, &u16)| format!("{}=${}", name(target, at), place + 1);
            let assignments: Vec<String> = form.set.iter().enumerate().map(assignment).collect();
            format!("UPDATE {table} SET {} WHERE {}", assignments.join(","), found(target, form))
        }
    };
    Statement { sql, types }
}

fn column<'a>(target: &'a Target, at: &u16) -> &'a ShapeColumn {
    &target.columns[usize::from(*at)]
}

fn name(target: &Target, at: &u16) -> String {
    escape_identifier(&column(target, at).name)
}

fn overriding(target: &Target) -> &'static str {
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
    format!(
        "WITH gone AS (DELETE FROM {} WHERE {} RETURNING {returned}) INSERT INTO {} ({}) {}SELECT {} FROM gone",
        target.shape.sql_only(),
        found(target, form),
        target.shape.qualified_name().sql(),
        names.join(","),
        overriding(target),
        values.join(",")
    )
}

/// The search condition. Without a unique key, one of the equal rows is picked by its place.
fn found(target: &Target, form: &Form) -> String {
    let mut conditions: Vec<String> = Vec::new();
    for (place, at) in form.equal.iter().enumerate() {
        let name = name(target, at);
        let parameter = place + form.set.len() + 1;
        conditions.push(match (&column(target, at).equality_schema, &target.search) {
            (Some(schema), _) => format!("{name} OPERATOR({}.=) ${parameter}", escape_identifier(schema)),
            // An index stands on it, so there is an operator for it or for what it is binary coercible to.
            (None, RowSearch::Key(_)) => format!("{name} OPERATOR(pg_catalog.=) ${parameter}"),
            // A type without equality (json, xml, point …) is compared by its text.
            (None, _) => format!("{name}::pg_catalog.text OPERATOR(pg_catalog.=) ${parameter}::pg_catalog.text"),
        });
    }
    conditions.extend(form.null.iter().map(|at| format!("{} IS NULL", name(target, at))));
    let condition = if conditions.is_empty() { "true".to_owned() } else { conditions.join(" AND ") };
    if target.search != RowSearch::WholeRow {
        return condition;
    }
    let table = target.shape.sql_only();
    if target.shape.is_partitioned() {
        format!("(tableoid, ctid) = (SELECT tableoid, ctid FROM {table} WHERE {condition} LIMIT 1)")
    } else {
        format!("ctid = (SELECT ctid FROM {table} WHERE {condition} LIMIT 1)")
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
        let update = r#"UPDATE ONLY "public"."t" SET "b ""x"=$1 WHERE "a" OPERATOR("pg_catalog".=) $2"#;
        check(&keyed, Update, [&[1], &[0], &[]], update);
        let delete = r#"DELETE FROM ONLY "public"."t" WHERE "a" OPERATOR("pg_catalog".=) $1"#;
        check(&keyed, Delete, [&[], &[0], &[]], delete);
        let locked = r#"SELECT FROM ONLY "public"."t" WHERE "a" OPERATOR("pg_catalog".=) $1 FOR UPDATE"#;
        check(&keyed, Update, [&[], &[0], &[]], locked);
        let identity = target(ReplicaIdentity::Default, &[("a", true, "always"), ("b", false, "")], &["a"]);
        let insert = r#"INSERT INTO "public"."t" ("a","b") OVERRIDING SYSTEM VALUE VALUES ($1,$2)"#;
        check(&identity, Insert, [&[0, 1], &[], &[]], insert);
        let replace = concat!(
            r#"WITH gone AS (DELETE FROM ONLY "public"."t" WHERE "a" OPERATOR("pg_catalog".=) $2 RETURNING "b","extra") "#,
            r#"INSERT INTO "public"."t" ("a","b","extra") OVERRIDING SYSTEM VALUE SELECT $1,gone."b",gone."extra" FROM gone"#
        );
        check(&identity, Replace, [&[0], &[0], &[]], replace);
    }

    #[test]
    fn a_row_without_a_key_is_found_by_all_it_holds() {
        let full = target(ReplicaIdentity::Full, &[("a", true, ""), ("j", true, "json")], &[]);
        let delete = concat!(
            r#"DELETE FROM ONLY "public"."t" WHERE ctid = (SELECT ctid FROM ONLY "public"."t" WHERE "#,
            r#""j"::pg_catalog.text OPERATOR(pg_catalog.=) $1::pg_catalog.text AND "a" IS NULL LIMIT 1)"#
        );
        check(&full, Operation::Delete, [&[], &[1], &[0]], delete);
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
