//! The SQL of one change. Pure text: names are quoted, values are parameters, operators are written with their schema.

use crate::decode::{Tuple, Value};
use crate::schema::{ColumnIdentity, ShapeColumn};

use postgres_protocol::escape::escape_identifier;

use super::target::{RowSearch, Target};

/// A statement's text and the types of its parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Statement {
    pub(super) sql: String,
    pub(super) types: Vec<u32>,
}

/// Which columns of a change take part, so that one text serves all changes of the same form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Operation {
    Insert,
    Update,
    Delete,
}

/// The form of a change: for each column whether it is set, and whether it is searched by value, by NULL, or not at all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Form {
    /// Columns of the new row that are written.
    pub(super) set: Vec<u16>,
    /// Columns of the old row compared with a value.
    pub(super) equal: Vec<u16>,
    /// Columns of the old row that are NULL.
    pub(super) null: Vec<u16>,
}

impl Form {
    /// The form of an INSERT: every column.
    pub(super) fn insert(&mut self, target: &Target) {
        self.clear();
        self.set.extend(0..target.columns.len() as u16);
    }

    /// The form of an UPDATE: what is sent is set, except identity columns that nobody may set.
    pub(super) fn update(&mut self, target: &Target, old: Tuple<'_>, new: Tuple<'_>) {
        self.clear();
        for (at, (value, column)) in new.iter().zip(&target.columns).enumerate() {
            if value != Value::Unchanged && column.identity != ColumnIdentity::Always {
                self.set.push(at as u16);
            }
        }
        self.search(target, old);
    }

    /// The form of a DELETE.
    pub(super) fn delete(&mut self, target: &Target, old: Tuple<'_>) {
        self.clear();
        self.search(target, old);
    }

    fn clear(&mut self) {
        self.set.clear();
        self.equal.clear();
        self.null.clear();
    }

    fn search(&mut self, target: &Target, old: Tuple<'_>) {
        for (at, value) in old.iter().enumerate() {
            let is_searched = match &target.search {
                RowSearch::Key(key) => key.contains(&at),
                RowSearch::WholeRow => true,
                RowSearch::None => false,
            };
            match value {
                _ if !is_searched => {}
                Value::Null => self.null.push(at as u16),
                Value::Unchanged => {}
                Value::Text(_) | Value::Binary(_) => self.equal.push(at as u16),
            }
        }
    }
}

/// The statement of a form.
pub(super) fn statement(target: &Target, operation: Operation, form: &Form) -> Statement {
    let mut types = Vec::new();
    let sql = match operation {
        Operation::Insert => insert(target, form, &mut types),
        Operation::Update => update(target, form, &mut types),
        Operation::Delete => {
            format!("DELETE FROM {} WHERE {}", target.shape.sql_only(), found(target, form, &mut types))
        }
    };
    Statement { sql, types }
}

fn column<'a>(target: &'a Target, at: &u16) -> &'a ShapeColumn {
    &target.columns[usize::from(*at)]
}

fn parameter(types: &mut Vec<u32>, column: &ShapeColumn) -> String {
    types.push(column.type_oid);
    format!("${}", types.len())
}

fn insert(target: &Target, form: &Form, types: &mut Vec<u32>) -> String {
    let table = target.shape.qualified_name().sql();
    if form.set.is_empty() {
        return format!("INSERT INTO {table} DEFAULT VALUES");
    }
    let names: Vec<String> = form.set.iter().map(|at| escape_identifier(&column(target, at).name)).collect();
    let values: Vec<String> = form.set.iter().map(|at| parameter(types, column(target, at))).collect();
    let overriding = if target.has_identity() { "OVERRIDING SYSTEM VALUE " } else { "" };
    format!("INSERT INTO {table} ({}) {overriding}VALUES ({})", names.join(","), values.join(","))
}

fn update(target: &Target, form: &Form, types: &mut Vec<u32>) -> String {
    let mut assignments: Vec<String> = Vec::with_capacity(form.set.len());
    for at in &form.set {
        let column = column(target, at);
        let parameter = parameter(types, column);
        assignments.push(format!("{}={parameter}", escape_identifier(&column.name)));
    }
    if assignments.is_empty() {
        // Nothing was sent that may be set: the row must still be there. A lock says so without writing a new version.
        return format!("SELECT FROM {} WHERE {} FOR UPDATE", target.shape.sql_only(), found(target, form, types));
    }
    format!("UPDATE {} SET {} WHERE {}", target.shape.sql_only(), assignments.join(","), found(target, form, types))
}

/// The search condition. Without a unique key, one of the equal rows is picked by its place.
fn found(target: &Target, form: &Form, types: &mut Vec<u32>) -> String {
    let mut conditions: Vec<String> = Vec::new();
    for at in &form.equal {
        let column = column(target, at);
        let name = escape_identifier(&column.name);
        let parameter = parameter(types, column);
        conditions.push(match &column.equality_schema {
            Some(schema) => format!("{name} OPERATOR({}.=) {parameter}", escape_identifier(schema)),
            // A type without equality is compared by its text.
            None => format!("{name}::text OPERATOR(pg_catalog.=) {parameter}::text"),
        });
    }
    conditions.extend(form.null.iter().map(|at| format!("{} IS NULL", escape_identifier(&column(target, at).name))));
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
        let table: Vec<(&str, &str)> = columns.iter().map(|(name, _, flags)| (*name, *flags)).collect();
        Target::new(relation(identity, &source), shape(&table, key)).unwrap()
    }

    fn form(set: &[u16], equal: &[u16], null: &[u16]) -> Form {
        Form { set: set.to_vec(), equal: equal.to_vec(), null: null.to_vec() }
    }

    #[test]
    fn each_change_has_its_statement() {
        use ReplicaIdentity::{Default, Full};
        let keyed = target(Default, &[("a", true, ""), ("b \"x", false, "")], &["a"]);
        let identity = target(Default, &[("a", true, "always"), ("b", false, "")], &["a"]);
        let full = target(Full, &[("a", true, ""), ("j", true, "json")], &[]);
        for (target, operation, form, expected) in [
            (
                &keyed,
                Operation::Insert,
                form(&[0, 1], &[], &[]),
                "INSERT INTO \"public\".\"t\" (\"a\",\"b \"\"x\") VALUES ($1,$2)",
            ),
            (
                &keyed,
                Operation::Update,
                form(&[1], &[0], &[]),
                "UPDATE ONLY \"public\".\"t\" SET \"b \"\"x\"=$1 WHERE \"a\" OPERATOR(\"pg_catalog\".=) $2",
            ),
            (
                &keyed,
                Operation::Delete,
                form(&[], &[0], &[]),
                "DELETE FROM ONLY \"public\".\"t\" WHERE \"a\" OPERATOR(\"pg_catalog\".=) $1",
            ),
            (
                &identity,
                Operation::Insert,
                form(&[0, 1], &[], &[]),
                "INSERT INTO \"public\".\"t\" (\"a\",\"b\") OVERRIDING SYSTEM VALUE VALUES ($1,$2)",
            ),
            (
                &full,
                Operation::Delete,
                form(&[], &[1], &[0]),
                "DELETE FROM ONLY \"public\".\"t\" WHERE ctid = (SELECT ctid FROM ONLY \"public\".\"t\" WHERE \
              \"j\"::text OPERATOR(pg_catalog.=) $1::text AND \"a\" IS NULL LIMIT 1)",
            ),
        ] {
            let made = statement(target, operation, &form);
            assert_eq!(made.sql, expected);
            assert_eq!(made.types.len(), expected.matches('$').count());
        }
        let none = target(Default, &[], &[]);
        assert_eq!(
            statement(&none, Operation::Insert, &Form::default()).sql,
            "INSERT INTO \"public\".\"t\" DEFAULT VALUES"
        );
        assert_eq!(
            truncate([&keyed, &full].into_iter(), true),
            "TRUNCATE ONLY \"public\".\"t\", ONLY \"public\".\"t\" RESTART IDENTITY"
        );
    }
}
