//! The doctor at a standby: reachable, writable, rights, tables and columns, rows in the way.

use postgres_protocol::escape::escape_identifier;

use crate::config::{OnExistingRows, Pipeline, PostgresSink};
use crate::model::QualifiedName;
use crate::schema::{TableShape, catalog_query, read_shapes};
use crate::sink::postgres::{origin_grants_sql, replica_role_sql, store};
use crate::wire::sql::{self, SqlClient};
use crate::wire::{Session, WireError};

use super::finding::{Finding, Findings, Level};
use super::primary::Primary;

/// What an apply session does to a table.
const TABLE_RIGHTS: &[&str] = &["SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE"];

/// Examines the pipeline's standby.
pub(super) async fn examine(
    primary: &Primary,
    pipeline: &Pipeline,
    sink: &PostgresSink,
    tables: &[QualifiedName],
    findings: &mut Findings,
) {
    let place = pipeline.name.as_str();
    let session = Session::new("walrelay check").with("search_path", "");
    let standby = match sql::connect(&sink.url, &session).await {
        Ok(standby) => standby,
        Err(error) => {
            let finding = Finding::error(
                place,
                format!("no session on {}: {error}", sink.url),
                "check url, network, pg_hba.conf and password",
            );
            findings.push(if error.code().is_none() { finding.unreachable() } else { finding });
            return;
        }
    };
    let look = Look { pipeline, sink, standby: &standby };
    if let Err(error) = look.server(findings).await {
        findings.push(Finding::error(place, error.to_string(), ""));
        return;
    }
    if let Err(error) = look.tables(primary, tables, findings).await {
        findings.push(Finding::error(place, error, ""));
    }
}

struct Look<'a> {
    pipeline: &'a Pipeline,
    sink: &'a PostgresSink,
    standby: &'a SqlClient,
}

impl Look<'_> {
    fn place(&self) -> &str {
        self.pipeline.name.as_str()
    }

    fn error(&self, message: String, remedy: &str) -> Finding {
        Finding::error(self.place(), message, remedy)
    }

    /// Rights and settings of server and database.
    async fn server(&self, findings: &mut Findings) -> Result<(), WireError> {
        let query = "SELECT current_setting('server_version_num')::int4, pg_catalog.pg_is_in_recovery(), current_setting('default_transaction_read_only') = 'on', \
                     current_setting('fsync') = 'on', r.rolsuper, r.rolname::text, \
                     pg_catalog.to_regnamespace('walrelay') IS NOT NULL, \
                     COALESCE(pg_catalog.has_schema_privilege(pg_catalog.to_regnamespace('walrelay')::oid, 'CREATE'), false), \
                     pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE') \
                     FROM pg_catalog.pg_roles r WHERE r.rolname = current_user";
        let row = self.standby.query_one(query, &[]).await?;
        let version = row.get::<_, i32>(0) as u32;
        let (is_superuser, role): (bool, String) = (row.get(4), row.get(5));
        if version < 140_000 {
            findings.push(
                self.error(format!("version {} is too old", version / 10_000), "walrelay needs PostgreSQL 14 or later"),
            );
        }
        if row.get(1) {
            findings.push(self.error(
                "the server is in recovery (a physical standby) and takes no writes".to_owned(),
                "point the sink's url at a server of its own",
            ));
            return Ok(());
        }
        if !row.get::<_, bool>(3) {
            let message = "fsync is off: what it calls durable does not survive a power cut, and the primary would be told that it does".to_owned();
            findings.push(
                Finding::warning(self.place(), message, "turn it on")
                    .with_sql(["ALTER SYSTEM SET fsync = on".to_owned(), "SELECT pg_reload_conf()".to_owned()]),
            );
        }
        let (has_schema, may_create_in_it, may_create_schema): (bool, bool, bool) =
            (row.get(6), row.get(7), row.get(8));
        if !has_schema && !may_create_schema {
            let message = format!("the role \"{role}\" may not create the schema walrelay, where its progress is kept");
            findings.push(self.error(message, "make it for the role").with_sql(store::grant_schema_sql(&role)));
        } else if has_schema && !may_create_in_it {
            let sql = format!("GRANT CREATE, USAGE ON SCHEMA walrelay TO {}", escape_identifier(&role));
            findings.push(
                self.error(format!("the role \"{role}\" may not use the schema walrelay"), "grant it").with_sql([sql]),
            );
        }
        if !is_superuser {
            self.rights(version, &role, findings).await?;
        }
        self.store_rights(&role, findings).await
    }

    /// The relay's own tables, which another role may have made.
    async fn store_rights(&self, role: &str, findings: &mut Findings) -> Result<(), WireError> {
        let query = "SELECT c.relname::text FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
                     WHERE n.nspname = 'walrelay' AND c.relkind = 'r' AND c.relname IN ('progress', 'copy') AND EXISTS ( \
                     SELECT FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) r WHERE NOT pg_catalog.has_table_privilege(c.oid, r))";
        for row in self.standby.query(query, &[]).await? {
            let table: String = row.get(0);
            let sql = format!(
                "GRANT SELECT, INSERT, UPDATE, DELETE ON walrelay.{} TO {}",
                escape_identifier(&table),
                escape_identifier(role)
            );
            let message =
                format!("the table walrelay.{table} was made by another role, and \"{role}\" may not write it");
            findings.push(self.error(message, "grant it").with_sql([sql]));
        }
        Ok(())
    }

    /// Rights that a superuser has anyway.
    async fn rights(&self, version: u32, role: &str, findings: &mut Findings) -> Result<(), WireError> {
        let may_set = version >= 150_000
            && self
                .standby
                .query_one("SELECT pg_catalog.has_parameter_privilege('session_replication_role', 'SET')", &[])
                .await?
                .get(0);
        if !may_set {
            let message = format!(
                "the role \"{role}\" may not set session_replication_role, so foreign keys and triggers would fire"
            );
            let remedy = if version >= 150_000 { "grant it" } else { "before version 15 only a superuser may" };
            findings.push(self.error(message, remedy).with_sql([replica_role_sql(role, version)]));
        }
        let query = "SELECT bool_and(pg_catalog.has_function_privilege(p.oid, 'EXECUTE')) FROM pg_catalog.pg_proc p \
                     WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.proname IN ('pg_replication_origin_oid', 'pg_replication_origin_create', \
                     'pg_replication_origin_session_setup', 'pg_replication_origin_drop', 'pg_replication_origin_progress')";
        if !self.standby.query_one(query, &[]).await?.get::<_, bool>(0) {
            let message = format!("the role \"{role}\" may not use replication origins, which tag what it writes");
            findings.push(self.error(message, "grant the functions").with_sql(origin_grants_sql(role)));
        }
        Ok(())
    }

    async fn tables(&self, primary: &Primary, tables: &[QualifiedName], findings: &mut Findings) -> Result<(), String> {
        let here = shapes(self.standby, tables).await?;
        let there = shapes(&primary.sql, tables).await?;
        let missing: Vec<String> = tables
            .iter()
            .filter(|name| !here.iter().any(|shape| shape.qualified_name() == **name))
            .map(ToString::to_string)
            .collect();
        if !missing.is_empty() {
            let message = format!("these tables do not exist on the standby: {}", missing.join(", "));
            findings.push(
                self.error(
                    message,
                    "create them as on the primary (pg_dump --schema-only … | psql …), or exclude them",
                ),
            );
        }
        for shape in &here {
            if let Some(source) = there.iter().find(|source| source.qualified_name() == shape.qualified_name()) {
                self.columns(source, shape, findings);
            }
        }
        let present: Vec<QualifiedName> = here.iter().map(TableShape::qualified_name).collect();
        self.table_rights(&present, findings).await.map_err(|error| error.to_string())?;
        self.rows_in_the_way(&present, findings).await.map_err(|error| error.to_string())
    }

    fn columns(&self, source: &TableShape, target: &TableShape, findings: &mut Findings) {
        let name = target.qualified_name();
        for column in source.columns.iter().filter(|column| !column.is_generated) {
            match target.column(&column.name) {
                None => {
                    let sql = format!(
                        "ALTER TABLE {} ADD COLUMN {} {}",
                        name.sql(),
                        escape_identifier(&column.name),
                        column.type_name
                    );
                    findings.push(
                        self.error(format!("{name} lacks the column {} on the standby", column.name), "add it")
                            .with_sql([sql]),
                    );
                }
                Some(here) if here.is_generated => {
                    let sql = format!(
                        "ALTER TABLE {} ALTER COLUMN {} DROP EXPRESSION",
                        name.sql(),
                        escape_identifier(&column.name)
                    );
                    let message = format!(
                        "{name}.{} is an ordinary column on the primary and generated on the standby",
                        column.name
                    );
                    findings.push(self.error(message, "make it an ordinary column").with_sql([sql]));
                }
                Some(here) if here.type_name != column.type_name => {
                    let message = format!(
                        "{name}.{} is {} on the primary and {} on the standby",
                        column.name, column.type_name, here.type_name
                    );
                    findings.push(Finding::new(
                        Level::Info,
                        self.place(),
                        message,
                        "values go over as text; one that does not fit stops the pipeline",
                    ));
                }
                Some(_) => {}
            }
        }
    }

    async fn table_rights(&self, tables: &[QualifiedName], findings: &mut Findings) -> Result<(), WireError> {
        let names: Vec<String> = tables.iter().map(QualifiedName::sql).collect();
        let mut rights: Vec<&str> = TABLE_RIGHTS.to_vec();
        rights.extend(self.sink.read_only.then_some("TRIGGER"));
        let query = "SELECT n, s.nspname::text, pg_catalog.has_schema_privilege(s.oid, 'USAGE'), \
                     ARRAY(SELECT r FROM unnest($2::text[]) r WHERE NOT pg_catalog.has_table_privilege(c.oid, r)) \
                     FROM unnest($1::text[]) n JOIN pg_catalog.pg_class c ON c.oid = n::regclass JOIN pg_catalog.pg_namespace s ON s.oid = c.relnamespace";
        let role = escape_identifier(&self.sink.url.user);
        for row in self.standby.query(query, &[&names, &rights]).await? {
            let (table, schema, may_use, lacking): (String, String, bool, Vec<String>) =
                (row.get(0), row.get(1), row.get(2), row.get(3));
            if !may_use {
                let sql = format!("GRANT USAGE ON SCHEMA {} TO {role}", escape_identifier(&schema));
                findings.push(
                    self.error(format!("the role may not use the schema {schema} on the standby"), "grant it")
                        .with_sql([sql]),
                );
            }
            if !lacking.is_empty() {
                let list = lacking.join(", ");
                let sql = format!("GRANT {list} ON {table} TO {role}");
                findings.push(
                    self.error(format!("the role lacks {list} on {table} on the standby"), "grant it").with_sql([sql]),
                );
            }
        }
        Ok(())
    }

    /// Whether the standby has a record of this pipeline, or of its copy: then the rows are ours.
    async fn is_known(&self) -> Result<bool, WireError> {
        let readable = "SELECT c.relname::text FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
                        WHERE n.nspname = 'walrelay' AND c.relname IN ('progress', 'copy') \
                          AND pg_catalog.has_schema_privilege(n.oid, 'USAGE') AND pg_catalog.has_table_privilege(c.oid, 'SELECT')";
        for row in self.standby.query(readable, &[]).await? {
            let table: String = row.get(0);
            let query =
                format!("SELECT EXISTS (SELECT FROM walrelay.{} WHERE pipeline = $1)", escape_identifier(&table));
            if self.standby.query_one(&query, &[&self.place()]).await?.get(0) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Rows that the initial copy would refuse; only before it was done.
    async fn rows_in_the_way(&self, tables: &[QualifiedName], findings: &mut Findings) -> Result<(), WireError> {
        if !self.pipeline.initial_copy || self.pipeline.on_existing_rows != OnExistingRows::Refuse {
            return Ok(());
        }
        if self.is_known().await? {
            return Ok(());
        }
        let mut full = Vec::new();
        for table in tables {
            let query = format!("SELECT EXISTS (SELECT FROM {})", table.sql());
            // A right that is missing was found above.
            if let Ok(row) = self.standby.query_one(&query, &[]).await
                && row.get(0)
            {
                full.push(table.to_string());
            }
        }
        if !full.is_empty() {
            let message = format!("these tables of the standby are not empty: {}", full.join(", "));
            findings.push(self.error(
                message,
                "empty them, or set on_existing_rows = \"truncate\" or \"keep\", or initial_copy = false",
            ));
        }
        Ok(())
    }
}

async fn shapes(client: &SqlClient, tables: &[QualifiedName]) -> Result<Vec<TableShape>, String> {
    let rows = client.query(&catalog_query(tables), &[]).await.map_err(|error| WireError::from(error).to_string())?;
    let texts: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    read_shapes(texts.iter().map(String::as_str)).map_err(|error| error.to_string())
}
