//! The read-only guard: on each replicated table of the standby a statement trigger that refuses every writer but the relay,
//! superusers too. It is silent under `session_replication_role = replica`. Each pipeline has a function of its own, owned by
//! the relay's role, so that its guards can go with it where that role does not own the tables.

use postgres_protocol::escape::{escape_identifier, escape_literal};

use crate::model::{PipelineName, QualifiedName};

/// Name of the pipeline's guard function, quoted, with its schema.
pub fn function_sql(pipeline: &PipelineName) -> String {
    format!("walrelay.{}", escape_identifier(&format!("guard_{pipeline}")))
}

/// Name of the trigger on each table.
pub fn trigger_name(pipeline: &PipelineName) -> String {
    format!("walrelay_guard_{pipeline}")
}

/// Makes or mends the function. `primary` names the primary for the hint: host and database, no secret.
pub fn create_function_sql(pipeline: &PipelineName, primary: &str) -> String {
    let hint = format!("It is replicated by walrelay from {primary}; write there.");
    // Inside the body everything is a literal or a catalog name: the table's name comes from the trigger's own variables.
    let body = format!(
        "BEGIN RAISE EXCEPTION USING ERRCODE = '25006', MESSAGE = pg_catalog.format('cannot execute %s on the replicated table %I.%I', \
         TG_OP, TG_TABLE_SCHEMA, TG_TABLE_NAME), HINT = {}; END",
        escape_literal(&hint).trim_start()
    );
    format!(
        "CREATE OR REPLACE FUNCTION {}() RETURNS trigger LANGUAGE plpgsql AS {}",
        function_sql(pipeline),
        escape_literal(&body)
    )
}

/// Puts the trigger on a table, or mends it. TRIGGER on the table is enough (`CREATE OR REPLACE TRIGGER`, 14 and later).
pub fn create_trigger_sql(pipeline: &PipelineName, table: &QualifiedName) -> String {
    format!(
        "CREATE OR REPLACE TRIGGER {} BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON {} FOR EACH STATEMENT EXECUTE FUNCTION {}()",
        escape_identifier(&trigger_name(pipeline)),
        table.sql(),
        function_sql(pipeline)
    )
}

/// Removes function and guards in one go, whoever owns the tables.
pub fn drop_sql(pipeline: &PipelineName) -> String {
    format!("DROP FUNCTION IF EXISTS {}() CASCADE", function_sql(pipeline))
}

/// Which of these tables have no working guard: missing, of another function, not for all four operations, or not enabled
/// for ordinary sessions. One row a table: schema and name.
pub fn unguarded_query(pipeline: &PipelineName, tables: &[QualifiedName]) -> String {
    let wanted: Vec<String> = tables
        .iter()
        .map(|table| format!("({},{})", escape_literal(&table.schema), escape_literal(&table.name)))
        .collect();
    // tgtype: 2 before, 4 insert, 8 delete, 16 update, 32 truncate; 1 would be row level.
    format!(
        "SELECT n.nspname::text, c.relname::text FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         WHERE c.relkind IN ('r','p') AND (n.nspname, c.relname) IN (VALUES {}) AND NOT EXISTS (SELECT FROM pg_catalog.pg_trigger t \
         JOIN pg_catalog.pg_proc f ON f.oid = t.tgfoid JOIN pg_catalog.pg_namespace fn ON fn.oid = f.pronamespace \
         WHERE t.tgrelid = c.oid AND t.tgname = {} AND fn.nspname = 'walrelay' AND f.proname = {} AND t.tgtype = 62 \
         AND t.tgenabled IN ('O','A') AND t.tgqual IS NULL)",
        if wanted.is_empty() { "(NULL,NULL)".to_owned() } else { wanted.join(",") },
        escape_literal(&trigger_name(pipeline)),
        escape_literal(&format!("guard_{pipeline}")),
    )
}

/// The tables that this pipeline's guard stands on: schema and name.
pub fn guarded_query(pipeline: &PipelineName) -> String {
    format!(
        "SELECT n.nspname::text, c.relname::text FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid \
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE NOT t.tgisinternal AND t.tgname = {}",
        escape_literal(&trigger_name(pipeline))
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted_wherever_they_stand() {
        let pipeline = PipelineName::new("standby1").unwrap();
        let sql = create_trigger_sql(&pipeline, &QualifiedName::new("public", "odd\"name"));
        assert!(sql.contains("\"public\".\"odd\"\"name\"") && sql.contains("walrelay.\"guard_standby1\"()"), "{sql}");
        let sql = create_function_sql(&pipeline, "db's.example/shop");
        // A literal inside a literal: quotes doubled twice.
        assert!(sql.contains("db''''s.example/shop"), "{sql}");
    }
}
