//! The SQL that writes many rows of one table at once. Pure text, like `statements`: values are parameters, one array a column.
//! Whatever must find its rows counts them in the server and fails there, so that nobody waits for the count.
//!
//! ```text
//! insert  INSERT … SELECT … FROM unnest($1, $2, …)
//! delete  DELETE … USING unnest(old keys) , counted
//! update  UPDATE … FROM unnest(old keys, new values) , counted
//! carry   rows whose key or another constrained column changes: deleted, all of them, then inserted anew with what was not
//!         sent; the others: updated. One statement, so that no row is in another's way; counted
//! ```

use postgres_protocol::escape::escape_identifier;

use crate::schema::{ColumnIdentity, ShapeColumn};

use super::bag_statements::bag_statement;
use super::columns::{Columns, key_columns};
use super::oids::{BOOL_ARRAY, EXACT_TYPES, INT8, is_exact};
use super::statements::{Statement, checked, overriding};
use super::target::Target;

/// What a statement for many rows does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) enum SetOperation {
    #[default]
    Insert,
    /// `COPY … FROM STDIN`, text format.
    Copy,
    /// The same in binary format.
    CopyBinary,
    Update,
    Delete,
    /// Updates rows, but deletes and inserts those whose key or constrained columns change.
    Carry,
    /// Carry where every row's key changes.
    Move,
    /// Deletes rows that are found by all they hold.
    BagDelete,
    /// Deletes such rows, or makes others of them.
    BagChange,
}

/// The form of a statement for many rows. Columns are positions in the relation. Its parameters, an array each: the old keys'
/// columns, `columns`, one boolean for each of `kept`; then the number of rows, where they are counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct SetForm {
    pub(super) operation: SetOperation,
    /// Columns whose new values are given.
    pub(super) columns: Vec<u16>,
    /// Those of them that keep their value in rows where the boolean says so.
    pub(super) kept: Vec<u16>,
}

impl SetForm {
    /// Whether the old rows' keys are given and the rows counted.
    pub(super) fn is_counted(&self) -> bool {
        !matches!(self.operation, SetOperation::Insert | SetOperation::Copy | SetOperation::CopyBinary)
    }
}

/// The statement of a form.
pub(super) fn set_statement(target: &Target, form: &SetForm) -> Statement {
    if matches!(form.operation, SetOperation::BagDelete | SetOperation::BagChange) {
        return bag_statement(target, form.operation == SetOperation::BagDelete);
    }
    let set = Set { target, form, key: key_columns(target) };
    let sql = match form.operation {
        SetOperation::Insert => set.insert(),
        SetOperation::Copy => set.copy(""),
        SetOperation::CopyBinary => set.copy(" WITH (FORMAT binary)"),
        SetOperation::Delete => set.delete(),
        SetOperation::Update => set.update(),
        SetOperation::Carry | SetOperation::Move => set.carry(),
        SetOperation::BagDelete | SetOperation::BagChange => String::new(),
    };
    Statement { sql, types: set.types() }
}

/// Looks for rows by their keys, and changes nothing.
pub(super) fn touch_statement(target: &Target) -> Statement {
    let form = SetForm { operation: SetOperation::Delete, ..SetForm::default() };
    let set = Set { target, form: &form, key: key_columns(target) };
    let mut types = Vec::new();
    set.old().types(&mut types);
    let (rows, table) = (set.rows(), target.shape.sql_only());
    Statement { sql: format!("SELECT pg_catalog.count(*) FROM {rows}, {table} AS t WHERE {}", set.found()), types }
}

struct Set<'a> {
    target: &'a Target,
    form: &'a SetForm,
    key: Vec<u16>,
}

impl Set<'_> {
    fn column(&self, at: u16) -> &ShapeColumn {
        &self.target.columns[usize::from(at)]
    }

    fn name(&self, at: u16) -> String {
        escape_identifier(&self.column(at).name)
    }

    /// Commas between.
    fn names(&self) -> String {
        self.form.columns.iter().map(|at| self.name(*at)).collect::<Vec<_>>().join(",")
    }

    fn types(&self) -> Vec<u32> {
        let mut types = Vec::new();
        if matches!(self.form.operation, SetOperation::Copy | SetOperation::CopyBinary) {
            return types;
        }
        self.old().types(&mut types);
        Columns::of_relation(self.target, &self.form.columns).types(&mut types);
        types.extend(self.form.kept.iter().map(|_| BOOL_ARRAY));
        types.extend(self.form.is_counted().then_some(INT8));
        types
    }

    /// The old keys, where they are given.
    fn old(&self) -> Columns<'_> {
        Columns::in_turn(self.target, if self.form.is_counted() { &self.key } else { &[] })
    }

    /// `unnest($1,$2) AS u(o0,n0)`.
    fn rows(&self) -> String {
        let mut names: Vec<String> = Vec::new();
        let new = Columns::of_relation(self.target, &self.form.columns);
        self.old().names('o', &mut names);
        new.names('n', &mut names);
        names.extend(self.form.kept.iter().map(|at| format!("k{at}")));
        let count = self.old().count() + new.count() + self.form.kept.len();
        let parameters: Vec<String> = (1..=count).map(|place| format!("${place}")).collect();
        format!("unnest({}) AS u({})", parameters.join(","), names.join(","))
    }

    /// Place of the number of rows.
    fn count(&self) -> usize {
        self.types().len()
    }

    /// A parameter's column as a value of the column's base type.
    fn value(&self, prefix: char, at: u16) -> String {
        let column = self.column(at);
        match column.array_type_oid {
            0 if !self.target.travels_in_row(at) => format!("u.{prefix}{at}::{}", column.base_type_name),
            _ => format!("u.{prefix}{at}"),
        }
    }

    /// The row's new value, or its old one where it is kept.
    fn new_value(&self, at: u16) -> String {
        let value = self.value('n', at);
        if self.form.kept.contains(&at) {
            format!("CASE WHEN u.k{at} THEN t.{} ELSE {value} END", self.name(at))
        } else {
            value
        }
    }

    fn found(&self) -> String {
        let equal = |at: &u16| {
            // An index stands on it, so there is an operator for it or for what it is binary coercible to.
            let schema = self.column(*at).equality_schema.as_deref().unwrap_or("pg_catalog");
            format!("t.{} OPERATOR({}.=) {}", self.name(*at), escape_identifier(schema), self.value('o', *at))
        };
        self.key.iter().map(equal).collect::<Vec<_>>().join(" AND ")
    }

    fn insert(&self) -> String {
        let values: Vec<String> = self.form.columns.iter().map(|at| self.value('n', *at)).collect();
        format!(
            "INSERT INTO {} ({}) {}SELECT {} FROM {}",
            self.target.shape.qualified_name().sql(),
            self.names(),
            overriding(self.target),
            values.join(","),
            self.rows()
        )
    }

    fn copy(&self, format: &str) -> String {
        format!("COPY {} ({}) FROM STDIN{format}", self.target.shape.qualified_name().sql(), self.names())
    }

    fn delete(&self) -> String {
        let table = self.target.shape.sql_only();
        let delete = format!("DELETE FROM {table} AS t USING {} WHERE {} RETURNING 1", self.rows(), self.found());
        checked(&format!("z AS ({delete})"), "(SELECT pg_catalog.count(*) FROM z)", &format!("${}", self.count()))
    }

    /// `None` where there is nothing to set. Where equal keys may be different bytes, the standby's key takes the primary's.
    fn assignments(&self) -> Option<String> {
        let is_writable = |at: &&u16| self.column(**at).identity != ColumnIdentity::Always;
        let is_loose =
            |at: &&u16| !EXACT_TYPES.contains(&self.column(**at).type_oid) && !self.form.columns.contains(at);
        let key = self.key.iter().filter(is_writable).filter(is_loose);
        let key = key.map(|at| format!("{}={}", self.name(*at), self.value('o', *at)));
        let set = self.form.columns.iter().filter(is_writable);
        let set: Vec<String> = key.chain(set.map(|at| format!("{}={}", self.name(*at), self.new_value(*at)))).collect();
        (!set.is_empty()).then(|| set.join(","))
    }

    fn update(&self) -> String {
        let update = self.update_where(&self.found());
        checked(&format!("z AS ({update})"), "(SELECT pg_catalog.count(*) FROM z)", &format!("${}", self.count()))
    }

    fn update_where(&self, condition: &str) -> String {
        let (table, rows) = (self.target.shape.sql_only(), self.rows());
        match self.assignments() {
            Some(set) => format!("UPDATE {table} AS t SET {set} FROM {rows} WHERE {condition} RETURNING 1"),
            // Nothing was sent that may be set: the row must still be there.
            None => format!("SELECT 1 FROM {table} AS t, {rows} WHERE {condition} FOR UPDATE OF t"),
        }
    }

    /// Whether the row cannot simply be updated beside others. A column is looked at by its text where its equality is not that of
    /// its bytes, which an index may look at: a finer distinction only moves a row that might have been updated.
    fn is_touched(&self) -> String {
        let is_looked_at = |at: &&u16| self.key.contains(at) || self.target.touchy.contains(at);
        let distinct = |at: &u16| {
            let (name, new) = (self.name(*at), self.value('n', *at));
            let distinct = if is_exact(self.column(*at)) {
                format!("t.{name} IS DISTINCT FROM {new}")
            } else {
                let text = "::pg_catalog.text COLLATE \"C\"";
                format!("t.{name}{text} IS DISTINCT FROM ({new}){text}")
            };
            if self.form.kept.contains(at) { format!("(NOT u.k{at} AND {distinct})") } else { distinct }
        };
        let conditions: Vec<String> = self.form.columns.iter().filter(is_looked_at).map(distinct).collect();
        if conditions.is_empty() { "false".to_owned() } else { conditions.join(" OR ") }
    }

    fn carry(&self) -> String {
        let (target, found, touched) = (self.target, self.found(), self.is_touched());
        let mut names: Vec<String> = self.form.columns.iter().map(|at| self.name(*at)).collect();
        let mut values: Vec<String> = self.form.columns.iter().map(|at| self.new_value(*at)).collect();
        for column in target.shape.columns.iter().filter(|column| !column.is_generated) {
            let name = escape_identifier(&column.name);
            if !names.contains(&name) {
                values.push(format!("t.{name}"));
                names.push(name);
            }
        }
        let returned: Vec<String> = values.iter().enumerate().map(|(at, value)| format!("{value} AS v{at}")).collect();
        let inserted: Vec<String> = (0..values.len()).map(|at| format!("d.v{at}")).collect();
        let sorted = |at: &u16| names.iter().position(|name| *name == self.name(*at)).map(|at| format!("d.v{at}"));
        let order: Vec<String> = self.key.iter().filter_map(sorted).collect();
        let is_move = self.form.operation == SetOperation::Move;
        let condition = if is_move { found.clone() } else { format!("{found} AND ({touched})") };
        let delete = format!(
            "d AS (DELETE FROM {} AS t USING {} WHERE {condition} RETURNING {}), \
             i AS (INSERT INTO {} ({}) {}SELECT {} FROM d ORDER BY {})",
            target.shape.sql_only(),
            self.rows(),
            returned.join(","),
            target.shape.qualified_name().sql(),
            names.join(","),
            overriding(target),
            inserted.join(","),
            order.join(",")
        );
        let expected = format!("${}", self.count());
        if is_move {
            return checked(&delete, "(SELECT pg_catalog.count(*) FROM d)", &expected);
        }
        let update = self.update_where(&format!("{found} AND NOT ({touched})"));
        let counts = "(SELECT pg_catalog.count(*) FROM d) + (SELECT pg_catalog.count(*) FROM z)";
        checked(&format!("{delete}, z AS ({update})"), counts, &expected)
    }
}

#[cfg(test)]
mod tests {
    use super::super::target::tests::{relation, shape};
    use super::*;
    use crate::model::ReplicaIdentity;

    fn target(columns: &[(&str, bool, &str)], extra: &[(&str, &str)], key: &[&str]) -> Target {
        let source: Vec<(&str, bool)> = columns.iter().map(|(name, is_key, _)| (*name, *is_key)).collect();
        let mut table: Vec<(&str, &str)> = columns.iter().map(|(name, _, flags)| (*name, *flags)).collect();
        table.extend(extra);
        Target::new(relation(ReplicaIdentity::Default, &source), shape(&table, key)).unwrap()
    }

    /// Compares the text of a form and the types of its parameters.
    fn check(target: &Target, operation: SetOperation, columns: &[u16], kept: &[u16], sql: &str, types: &[u32]) {
        let form = SetForm { operation, columns: columns.to_vec(), kept: kept.to_vec() };
        let made = set_statement(target, &form);
        assert_eq!(made.sql, sql);
        assert_eq!(made.types, types);
    }

    #[test]
    fn many_rows_of_a_keyed_table_have_their_statements() {
        use SetOperation::{Copy, Delete, Insert, Update};
        let keyed = target(&[("a", true, ""), ("b", false, ""), ("c", false, "array")], &[], &["a"]);
        let insert = r#"INSERT INTO "public"."t" ("a","c") SELECT u.n0,u.n2::integer[] FROM unnest($1,$2) AS u(n0,n2)"#;
        check(&keyed, Insert, &[0, 2], &[], insert, &[1007, 1009]);
        check(&keyed, Copy, &[0, 1, 2], &[], r#"COPY "public"."t" ("a","b","c") FROM STDIN"#, &[]);
        let delete = concat!(
            r#"WITH z AS (DELETE FROM ONLY "public"."t" AS t USING unnest($1) AS u(o0) "#,
            r#"WHERE t."a" OPERATOR("pg_catalog".=) u.o0 RETURNING 1) "#,
            "SELECT CASE WHEN c.found = $2 THEN 1 ELSE ('walrelay touched ' || c.found || ' rows of ' || $2)::int4 END ",
            "FROM (SELECT (SELECT pg_catalog.count(*) FROM z) AS found) c"
        );
        check(&keyed, Delete, &[], &[], delete, &[1007, 20]);
        let touch = r#"SELECT pg_catalog.count(*) FROM unnest($1) AS u(o0), ONLY "public"."t" AS t WHERE t."a" OPERATOR("pg_catalog".=) u.o0"#;
        assert_eq!(touch_statement(&keyed), Statement { sql: touch.to_owned(), types: vec![1007] });
        let update = concat!(
            r#"WITH z AS (UPDATE ONLY "public"."t" AS t SET "b"=u.n1,"c"=CASE WHEN u.k2 THEN t."c" ELSE u.n2::integer[] END "#,
            r#"FROM unnest($1,$2,$3,$4) AS u(o0,n1,n2,k2) WHERE t."a" OPERATOR("pg_catalog".=) u.o0 RETURNING 1) "#,
            "SELECT CASE WHEN c.found = $5 THEN 1 ELSE ('walrelay touched ' || c.found || ' rows of ' || $5)::int4 END ",
            "FROM (SELECT (SELECT pg_catalog.count(*) FROM z) AS found) c"
        );
        check(&keyed, Update, &[1, 2], &[2], update, &[1007, 1007, 1009, 1000, 20]);
    }

    #[test]
    fn a_key_whose_equal_values_may_be_other_bytes_is_set_too() {
        let mut loose = target(&[("a", true, ""), ("b", false, "")], &[], &["a"]);
        loose.columns[0].type_oid = 25;
        let form = SetForm { operation: SetOperation::Update, columns: vec![1], kept: Vec::new() };
        let sql = set_statement(&loose, &form).sql;
        assert!(sql.contains(r#"SET "a"=u.o0,"b"=u.n1 FROM"#), "{sql}");
    }

    #[test]
    fn rows_that_change_what_is_constrained_are_all_deleted_before_any_is_inserted() {
        let columns = [("a", true, ""), ("b", false, "unique"), ("j", false, "json")];
        let table = target(&columns, &[("extra", ""), ("computed", "generated")], &["a"]);
        let carry = concat!(
            r#"WITH d AS (DELETE FROM ONLY "public"."t" AS t USING unnest($1,$2,$3,$4) AS u(o0,n0,n1,k1) "#,
            r#"WHERE t."a" OPERATOR("pg_catalog".=) u.o0 AND (t."a" IS DISTINCT FROM u.n0 OR (NOT u.k1 AND t."b" IS DISTINCT FROM u.n1)) "#,
            r#"RETURNING u.n0 AS v0,CASE WHEN u.k1 THEN t."b" ELSE u.n1 END AS v1,t."j" AS v2,t."extra" AS v3), "#,
            r#"i AS (INSERT INTO "public"."t" ("a","b","j","extra") SELECT d.v0,d.v1,d.v2,d.v3 FROM d ORDER BY d.v0), "#,
            r#"z AS (UPDATE ONLY "public"."t" AS t SET "a"=u.n0,"b"=CASE WHEN u.k1 THEN t."b" ELSE u.n1 END "#,
            r#"FROM unnest($1,$2,$3,$4) AS u(o0,n0,n1,k1) WHERE t."a" OPERATOR("pg_catalog".=) u.o0 AND NOT "#,
            r#"(t."a" IS DISTINCT FROM u.n0 OR (NOT u.k1 AND t."b" IS DISTINCT FROM u.n1)) RETURNING 1) "#,
            "SELECT CASE WHEN c.found = $5 THEN 1 ELSE ('walrelay touched ' || c.found || ' rows of ' || $5)::int4 END ",
            "FROM (SELECT (SELECT pg_catalog.count(*) FROM d) + (SELECT pg_catalog.count(*) FROM z) AS found) c"
        );
        check(&table, SetOperation::Carry, &[0, 1], &[1], carry, &[1007, 1007, 1007, 1000, 20]);
        let identity = target(&[("a", true, "always"), ("b", false, "")], &[], &["a"]);
        let moved = concat!(
            r#"WITH d AS (DELETE FROM ONLY "public"."t" AS t USING unnest($1,$2) AS u(o0,n0) "#,
            r#"WHERE t."a" OPERATOR("pg_catalog".=) u.o0 RETURNING u.n0 AS v0,t."b" AS v1), "#,
            r#"i AS (INSERT INTO "public"."t" ("a","b") OVERRIDING SYSTEM VALUE SELECT d.v0,d.v1 FROM d ORDER BY d.v0) "#,
            "SELECT CASE WHEN c.found = $3 THEN 1 ELSE ('walrelay touched ' || c.found || ' rows of ' || $3)::int4 END ",
            "FROM (SELECT (SELECT pg_catalog.count(*) FROM d) AS found) c"
        );
        check(&identity, SetOperation::Move, &[0], &[], moved, &[1007, 1007, 20]);
    }
}
