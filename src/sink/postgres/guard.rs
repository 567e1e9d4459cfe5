//! The SQL of the read-only guard. Pure text.
//!
//! On each replicated table of the standby stands a statement trigger that refuses every writer but the relay, superusers
//! too: it is silent under `session_replication_role = replica`. Each pipeline has a function of its own, owned by the
//! relay's role, so that its guards can go with it where that role does not own the tables (`DROP … CASCADE`). A statement
//! trigger fires only for the table a statement names, so partitions and the partitioned tables above are guarded one by one.

use std::fmt::Write as _;

use postgres_protocol::escape::{escape_identifier, escape_literal};
use sha2::{Digest, Sha256};

use crate::config::ServerUrl;
use crate::model::{PipelineName, QualifiedName};

/// Longest identifier, bytes (`NAMEDATALEN` - 1).
const IDENTIFIER_LIMIT_BYTES: usize = 63;

fn function_name(pipeline: &PipelineName) -> String {
    format!("guard_{pipeline}")
}

/// The pipeline's guard function, quoted, with its schema.
fn function_sql(pipeline: &PipelineName) -> String {
    format!("walrelay.{}", escape_identifier(&function_name(pipeline)))
}

/// Name of the trigger on each table: `walrelay_guard_NAME`, cut where that is too long, with a digest to stay unique.
pub fn trigger_name(pipeline: &PipelineName) -> String {
    let mut name = format!("walrelay_guard_{pipeline}");
    if name.len() > IDENTIFIER_LIMIT_BYTES {
        let digest = Sha256::digest(pipeline.as_str().as_bytes());
        name.truncate(IDENTIFIER_LIMIT_BYTES - 9);
        name.push('_');
        digest.iter().take(4).for_each(|byte| {
            let _ = write!(name, "{byte:02x}");
        });
    }
    name
}

/// The primary as the hint names it: hosts and database; neither role nor secret.
fn primary_text(url: &ServerUrl) -> String {
    let hosts: Vec<String> = url.hosts.iter().map(ToString::to_string).collect();
    format!("{}/{}", hosts.join(","), url.database)
}

/// The function's body. Everything in it is a literal or a variable of the trigger.
fn body(pipeline: &PipelineName, primary: &ServerUrl) -> String {
    // Whose primary is lost finds the way here.
    let hint = format!(
        "walrelay replicates it from the primary {}: write there. To mend a row here: SET session_replication_role = replica in your \
         session. After a failover to this server: stop walrelay, then {}",
        primary_text(primary),
        drop_sql(pipeline)
    );
    format!(
        "BEGIN RAISE EXCEPTION USING ERRCODE = '25006', MESSAGE = pg_catalog.format('cannot execute %s on the replicated table \
         %I.%I', TG_OP, TG_TABLE_SCHEMA, TG_TABLE_NAME), HINT = {}; END",
        escape_literal(&hint)
    )
}

/// One row if the function is there as `create_function_sql` makes it.
pub fn function_query(pipeline: &PipelineName, primary: &ServerUrl) -> String {
    format!(
        "SELECT 1 FROM pg_catalog.pg_proc f JOIN pg_catalog.pg_namespace n ON n.oid = f.pronamespace \
         JOIN pg_catalog.pg_language l ON l.oid = f.prolang WHERE n.nspname = 'walrelay' AND f.proname = {} AND f.pronargs = 0 \
         AND NOT f.prosecdef AND l.lanname = 'plpgsql' AND f.prosrc = {}",
        escape_literal(&function_name(pipeline)),
        escape_literal(&body(pipeline, primary))
    )
}

/// Makes or mends the function.
pub fn create_function_sql(pipeline: &PipelineName, primary: &ServerUrl) -> String {
    format!(
        "CREATE OR REPLACE FUNCTION {}() RETURNS trigger LANGUAGE plpgsql SECURITY INVOKER AS {}",
        function_sql(pipeline),
        escape_literal(&body(pipeline, primary))
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

/// The tables, everything below them and the partitioned tables above them: `family(relid)`.
fn family_sql(tables: &[QualifiedName]) -> String {
    let wanted: Vec<String> = tables
        .iter()
        .map(|table| format!("({},{})", escape_literal(&table.schema), escape_literal(&table.name)))
        .collect();
    let list = if wanted.is_empty() { "(NULL,NULL)".to_owned() } else { wanted.join(",") };
    format!(
        "WITH named AS MATERIALIZED (SELECT c.oid FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         WHERE c.relkind IN ('r','p') AND (n.nspname, c.relname) IN (VALUES {list})), \
         family AS MATERIALIZED (SELECT oid AS relid FROM named \
         UNION SELECT t.relid FROM named CROSS JOIN LATERAL pg_catalog.pg_partition_tree(named.oid) t \
         UNION SELECT a.relid FROM named CROSS JOIN LATERAL pg_catalog.pg_partition_ancestors(named.oid) a(relid))"
    )
}

/// Which of the tables and their families have no working guard: missing, of another function, not for all four operations,
/// conditional, or not enabled for ordinary sessions (or enabled for the relay too). One JSON text a table: `[schema, name]`.
pub fn unguarded_query(pipeline: &PipelineName, tables: &[QualifiedName]) -> String {
    // tgtype: 2 before, 4 insert, 8 delete, 16 update, 32 truncate; 1 would be row level (`catalog/pg_trigger.h`).
    format!(
        "{} SELECT pg_catalog.json_build_array(n.nspname, c.relname)::text FROM family JOIN pg_catalog.pg_class c ON c.oid = family.relid \
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r','p') AND NOT EXISTS ( \
         SELECT FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_proc f ON f.oid = t.tgfoid \
         JOIN pg_catalog.pg_namespace fn ON fn.oid = f.pronamespace \
         WHERE t.tgrelid = c.oid AND t.tgname = {} AND fn.nspname = 'walrelay' AND f.proname = {} AND t.tgtype = 62 \
         AND t.tgenabled = 'O' AND t.tgqual IS NULL AND t.tgattr::text = '')",
        family_sql(tables),
        escape_literal(&trigger_name(pipeline)),
        escape_literal(&function_name(pipeline)),
    )
}

/// Whether the trigger `t` is this pipeline's guard. Anybody may give a trigger of his own that name; ours calls our function, which
/// takes it along when it is dropped.
fn ours_sql(pipeline: &PipelineName) -> String {
    format!(
        "NOT t.tgisinternal AND t.tgname = {} AND EXISTS (SELECT FROM pg_catalog.pg_proc f \
         JOIN pg_catalog.pg_namespace fn ON fn.oid = f.pronamespace \
         WHERE f.oid = t.tgfoid AND fn.nspname = 'walrelay' AND f.proname = {})",
        escape_literal(&trigger_name(pipeline)),
        escape_literal(&function_name(pipeline))
    )
}

/// The tables that this pipeline's guard stands on. One JSON text a table: `[schema, name]`.
pub fn guarded_query(pipeline: &PipelineName) -> String {
    format!(
        "SELECT pg_catalog.json_build_array(n.nspname, c.relname)::text FROM pg_catalog.pg_trigger t \
         JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         WHERE {}",
        ours_sql(pipeline)
    )
}

/// One row if the pipeline's guard stands on a table outside the tables and their families.
pub fn superfluous_query(pipeline: &PipelineName, tables: &[QualifiedName]) -> String {
    format!(
        "{} SELECT 1 FROM pg_catalog.pg_trigger t WHERE {} AND t.tgrelid NOT IN (SELECT relid FROM family) LIMIT 1",
        family_sql(tables),
        ours_sql(pipeline)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(host: &str) -> ServerUrl {
        ServerUrl {
            hosts: vec![crate::config::Host::Tcp(host.to_owned(), 5432)],
            user: "walrelay".to_owned(),
            database: "shop".to_owned(),
            password: Some(crate::config::Secret::new("secret")),
            host_passwords: Vec::new(),
            ssl_mode: crate::config::SslMode::Prefer,
            ssl_root_certificate: None,
            ssl_certificate: None,
            ssl_key: None,
            channel_binding: crate::config::ChannelBinding::Prefer,
            target_session_attributes: crate::config::TargetSessionAttributes::Any,
            connect_timeout: std::time::Duration::from_secs(10),
        }
    }

    #[test]
    fn names_are_quoted_wherever_they_stand() {
        let pipeline = PipelineName::new("standby1").unwrap();
        let sql = create_trigger_sql(&pipeline, &QualifiedName::new("public", "odd\"name"));
        assert!(sql.contains("\"public\".\"odd\"\"name\"") && sql.contains("walrelay.\"guard_standby1\"()"), "{sql}");
        let sql = create_function_sql(&pipeline, &url("db's.example"));
        // A literal inside a literal: quotes doubled twice.
        assert!(sql.contains("db''''s.example:5432/shop"), "{sql}");
        let sql = unguarded_query(&pipeline, &[QualifiedName::new("public", "it's")]);
        assert!(sql.contains("('public','it''s')"), "{sql}");
    }

    #[test]
    fn a_long_pipeline_name_gives_a_unique_trigger_name_that_fits() {
        let [one, other] = ["a", "b"].map(|end| PipelineName::new(&format!("{}{end}", "x".repeat(53))).unwrap());
        assert_eq!(trigger_name(&one).len(), IDENTIFIER_LIMIT_BYTES);
        assert_ne!(trigger_name(&one), trigger_name(&other));
        assert_eq!(trigger_name(&PipelineName::new("standby1").unwrap()), "walrelay_guard_standby1");
    }
}
