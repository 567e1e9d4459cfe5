//! The SQL texts of the copy, for both sides. Pure: every identifier is quoted, no value of a row gets in.

use postgres_protocol::escape::{escape_identifier, escape_literal};

use crate::model::QualifiedName;

use super::format::Format;
use super::plan::{PageRange, PublishedTable, Storage};

/// One attempt at the locks waits this long: less than `deadlock_timeout` (1 s), so that it is never someone else's DDL that
/// the deadlock detector ends because of us.
pub(super) const PATIENCE: &str = "500ms";

/// `COPY … TO STDOUT` on the primary.
///
/// A plain COPY of the table where that is possible, since it spares the executor; a COPY of a SELECT for a page range, a row
/// filter, a partitioned root and published generated columns. A regular table is read without its inheritance children,
/// which are published under their own names (`copy_table` in `src/backend/replication/logical/tablesync.c`).
pub(super) fn copy_out(table: &PublishedTable, range: Option<PageRange>, format: Format) -> String {
    let is_plain = table.storage != Storage::Partitioned
        && table.filter.is_none()
        && range.is_none()
        && !table.columns.iter().any(|column| column.is_generated);
    let columns = column_list(table);
    let what = if is_plain {
        format!("{} ({columns})", table.name.sql())
    } else {
        format!("(SELECT {columns} FROM {}{})", from_item(table), condition(table, range))
    };
    format!("COPY {what} TO STDOUT WITH (FORMAT {})", format.sql())
}

/// A SELECT of the published rows, in text form by the session's settings.
#[cfg(feature = "kafka")]
pub(super) fn select_rows(table: &PublishedTable, range: Option<PageRange>) -> String {
    format!("SELECT {} FROM {}{}", column_list(table), from_item(table), condition(table, range))
}

/// `COPY … FROM STDIN` on the standby, with the columns in the primary's order.
pub(super) fn copy_in(table: &PublishedTable, format: Format) -> String {
    format!("COPY {} ({}) FROM STDIN WITH (FORMAT {})", table.name.sql(), column_list(table), format.sql())
}

/// Counts the rows of a table that publishes no column: COPY has no words for such rows.
pub(super) fn count_rows(table: &PublishedTable, range: Option<PageRange>) -> String {
    format!("SELECT count(*) FROM {}{}", from_item(table), condition(table, range))
}

/// Inserts `rows` rows of nothing but defaults.
pub(super) fn insert_empty_rows(table: &QualifiedName, rows: u64) -> String {
    format!("INSERT INTO {} SELECT FROM pg_catalog.generate_series(1, {rows})", table.sql())
}

/// Begins a worker's transaction with the locks that keep the tables from being rewritten, truncated or dropped between the
/// snapshot and the COPY, which a snapshot cannot see (section 5.2 of the reference). A partitioned root is locked with all
/// below it. No snapshot is taken yet.
pub(super) fn begin_and_lock(tables: &[PublishedTable]) -> String {
    let names: Vec<String> = tables.iter().map(from_item).collect();
    format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL lock_timeout = '{}'; LOCK TABLE {} IN ACCESS SHARE MODE",
        PATIENCE,
        names.join(", ")
    )
}

/// Brings that transaction under an exported snapshot. All table locks are there: nothing it waits for later is cut short.
pub(super) fn import_snapshot(snapshot: &str) -> String {
    format!("SET TRANSACTION SNAPSHOT {}; SET LOCAL lock_timeout = 0", escape_literal(snapshot).trim_start())
}

/// The name of the temporary slot, at most 63 bytes: a long pipeline name is cut;
/// the id of the server's process behind the session keeps it unique.
pub(super) fn temporary_slot_name(pipeline: &str, process_id: i32) -> String {
    let suffix = format!("_copy_{process_id}");
    let kept = pipeline.len().min(63 - "walrelay_".len() - suffix.len());
    format!("walrelay_{}{suffix}", &pipeline[..kept])
}

fn column_list(table: &PublishedTable) -> String {
    let names: Vec<String> = table.columns.iter().map(|column| escape_identifier(&column.name)).collect();
    names.join(", ")
}

fn from_item(table: &PublishedTable) -> String {
    match table.storage {
        Storage::Partitioned => table.name.sql(),
        Storage::Heap | Storage::OtherMethod => format!("ONLY {}", table.name.sql()),
    }
}

fn condition(table: &PublishedTable, range: Option<PageRange>) -> String {
    let mut parts = Vec::new();
    if let Some(PageRange { first, end }) = range {
        parts.push(format!("ctid >= '({first},0)'::pg_catalog.tid"));
        parts.extend(end.map(|end| format!("ctid < '({end},0)'::pg_catalog.tid")));
    }
    parts.extend(table.filter.as_ref().map(|filter| format!("({filter})")));
    if parts.is_empty() { String::new() } else { format!(" WHERE {}", parts.join(" AND ")) }
}

#[cfg(test)]
mod tests {
    use super::super::plan::{PublishedColumn, tests::table};
    use super::*;

    fn column(name: &str, is_generated: bool) -> PublishedColumn {
        let column_type = crate::schema::binary::tests::builtin(23);
        PublishedColumn { name: name.to_owned(), column_type, is_generated }
    }

    fn with_columns(names: &[&str]) -> PublishedTable {
        PublishedTable { columns: names.iter().map(|name| column(name, false)).collect(), ..table("t", 0) }
    }

    #[test]
    fn the_primary_is_read_by_the_simplest_command_that_gives_the_published_rows() {
        let plain = with_columns(&["a", "B \"b"]);
        let range = |first, end| Some(PageRange { first, end });
        for (table, range, expected) in [
            (plain.clone(), None, r#"COPY "public"."t" ("a", "B ""b") TO STDOUT WITH (FORMAT binary)"#),
            (
                plain.clone(),
                range(0, Some(9)),
                r#"COPY (SELECT "a", "B ""b" FROM ONLY "public"."t" WHERE ctid >= '(0,0)'::pg_catalog.tid AND ctid < '(9,0)'::pg_catalog.tid) TO STDOUT WITH (FORMAT binary)"#,
            ),
            (
                PublishedTable { filter: Some("a > 1".to_owned()), ..plain.clone() },
                range(9, None),
                r#"COPY (SELECT "a", "B ""b" FROM ONLY "public"."t" WHERE ctid >= '(9,0)'::pg_catalog.tid AND (a > 1)) TO STDOUT WITH (FORMAT binary)"#,
            ),
            (
                PublishedTable { storage: Storage::Partitioned, ..plain.clone() },
                None,
                r#"COPY (SELECT "a", "B ""b" FROM "public"."t") TO STDOUT WITH (FORMAT binary)"#,
            ),
            (
                PublishedTable { columns: vec![column("g", true)], ..plain },
                None,
                r#"COPY (SELECT "g" FROM ONLY "public"."t") TO STDOUT WITH (FORMAT binary)"#,
            ),
        ] {
            assert_eq!(copy_out(&table, range, Format::Binary), expected);
        }
    }

    #[test]
    fn the_standby_is_written_by_column_name() {
        let expected = r#"COPY "public"."t" ("a", "b") FROM STDIN WITH (FORMAT text)"#;
        assert_eq!(copy_in(&with_columns(&["a", "b"]), Format::Text), expected);
    }

    #[test]
    fn a_lock_takes_what_is_below_a_partitioned_root_and_not_what_inherits() {
        let tables = [table("a", 0), PublishedTable { storage: Storage::Partitioned, ..table("b", 0) }];
        let sql = begin_and_lock(&tables);
        assert!(sql.ends_with(r#"; LOCK TABLE ONLY "public"."a", "public"."b" IN ACCESS SHARE MODE"#), "{sql}");
    }

    #[test]
    fn a_temporary_slot_is_named_within_63_bytes() {
        let longest = "x".repeat(54);
        for name in ["a", &longest] {
            let slot = temporary_slot_name(name, i32::MAX);
            assert!(slot.len() <= 63 && slot.ends_with("_copy_2147483647"), "{slot}");
        }
    }
}
