//! The doctor at a standby: reachable, writable, rights, tables and columns, rows in the way.

use std::collections::BTreeSet;

use postgres_protocol::escape::escape_identifier;
use tokio_postgres::error::SqlState;

use crate::config::{Config, OnExistingRows, Pipeline, PostgresSink};
use crate::model::{Progress, QualifiedName, SlotName};
use crate::schema::{ShapeColumn, TableShape, catalog_query, read_shapes};
use crate::sink::postgres::{FLUSH_FUNCTION, flush_grant_sql, origin_grants_sql, replica_role_sql, store};
use crate::snapshot::store::{self as copy_record, TableState};
use crate::wire::WireError;
use crate::wire::sql::{self, SqlClient};

use super::beginning::Record;
use super::finding::{Finding, Findings, Level};
use super::missing::create_table_sql;
use super::named::NAMED_TABLES;
use super::owners;
use super::primary::{Primary, Tables};
use super::room::Room;
use super::row_security;
use super::session::no_session;
use super::statistics;
use super::store as own_store;

/// The primary sends no row again for a column's sake.
const ADD_COLUMN: &str =
    "add it as on the primary, with its DEFAULT: the rows that are there get it from this statement alone";
/// What an apply session does to a table.
const TABLE_RIGHTS: &[&str] = &["SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE"];

/// Whose standby is looked at.
#[derive(Clone, Copy)]
pub(super) struct Subject<'a> {
    pub(super) config: &'a Config,
    pub(super) pipeline: &'a Pipeline,
    pub(super) sink: &'a PostgresSink,
    /// As the primary has them.
    pub(super) tables: &'a Tables,
}

/// Examines the pipeline's standby, and adds what it needs of the server to the others'.
pub(super) async fn examine(
    primary: Option<&Primary>,
    subject: Subject<'_>,
    room: &mut Room,
    findings: &mut Findings,
) -> Record {
    let Subject { pipeline, sink, .. } = subject;
    let place = pipeline.name.as_str();
    let standby = match sql::connect(&sink.url, &super::session()).await {
        Ok(standby) => standby,
        Err(error) => {
            findings.push(no_session(place, &sink.url, "LOGIN", &error));
            return Record::Unknown;
        }
    };
    let look = Look { pipeline, sink, standby: &standby };
    match look.everything(primary, subject, room, findings).await {
        Ok(record) => record,
        Err(error) => {
            findings.push(Finding::error(place, error, ""));
            Record::Unknown
        }
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

    async fn everything(
        &self,
        primary: Option<&Primary>,
        Subject { config, pipeline, sink, tables }: Subject<'_>,
        room: &mut Room,
        findings: &mut Findings,
    ) -> Result<Record, String> {
        let say = |error: WireError| error.to_string();
        if !self.server(findings).await.map_err(say)? {
            return Ok(Record::Unknown);
        }
        // Those that are about to join, or come back, are copied whatever was copied before.
        let is_known = self.is_known().await.map_err(say)?;
        let mut to_copy = if is_known { tables.coming.clone() } else { tables.all.clone() };
        if is_known && pipeline.initial_copy {
            to_copy.extend(self.left_out(pipeline, &tables.all).await?);
        }
        room.look(self.standby, config, (pipeline, sink), to_copy.len()).await.map_err(say)?;
        if pipeline.initial_copy && !to_copy.is_empty() {
            self.copying(findings).await.map_err(say)?;
        }
        if let Some(primary) = primary {
            self.tables(primary, &tables.all, &to_copy, findings).await?;
        }
        self.record().await.map_err(say)
    }

    /// Rights and settings of server and database; whether it can be written at all.
    async fn server(&self, findings: &mut Findings) -> Result<bool, WireError> {
        let query = "SELECT current_setting('server_version_num')::int4, pg_catalog.pg_is_in_recovery(), current_setting('fsync') = 'on', r.rolsuper, r.rolname::text, \
                     pg_catalog.to_regnamespace('walrelay') IS NOT NULL, \
                     COALESCE(pg_catalog.has_schema_privilege(pg_catalog.to_regnamespace('walrelay')::oid, 'CREATE') \
                     AND pg_catalog.has_schema_privilege(pg_catalog.to_regnamespace('walrelay')::oid, 'USAGE'), false), \
                     pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE') \
                     , current_setting('synchronous_standby_names') FROM pg_catalog.pg_roles r WHERE r.rolname = current_user";
        let row = self.standby.query_one(query, &[]).await?;
        let version = row.get::<_, i32>(0) as u32;
        let (is_superuser, role): (bool, String) = (row.get(3), row.get(4));
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
            return Ok(false);
        }
        self.durability(row.get(2), row.get(8), findings);
        let (has_schema, may_create_in_it, may_create_schema): (bool, bool, bool) =
            (row.get(5), row.get(6), row.get(7));
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
        own_store::examine(self.standby, self.pipeline, &role, findings).await?;
        Ok(true)
    }

    /// What the primary may take as durable.
    fn durability(&self, is_synced: bool, own_standbys: &str, findings: &mut Findings) {
        if !is_synced {
            let message = "fsync is off: what it calls durable does not survive a power cut, and the primary would be told that it does";
            let (level, remedy) = match self.sink.allow_fsync_off {
                true => (Level::Warning, "turn it on"),
                false => (Level::Error, "turn it on, or, where rows may be lost, set allow_fsync_off = true"),
            };
            let sql = ["ALTER SYSTEM SET fsync = on".to_owned(), "SELECT pg_reload_conf()".to_owned()];
            findings.push(Finding::new(level, self.place(), message, remedy).with_sql(sql));
        }
        if !own_standbys.is_empty() {
            let message = format!(
                "the server has synchronous standbys of its own ({own_standbys}); walrelay does not wait for them: what it confirms to the \
                 primary is on this server's disk"
            );
            let remedy = "where it must be on theirs too, let the primary wait for them as well";
            findings.push(Finding::new(Level::Info, self.place(), message, remedy));
        }
    }

    /// Settings with which a copy writes more WAL than it must.
    async fn copying(&self, findings: &mut Findings) -> Result<(), WireError> {
        let query = "SELECT name, pg_catalog.current_setting(name), CASE WHEN name = 'max_wal_size' THEN '4GB' WHEN 'lz4' = ANY (enumvals) THEN 'lz4' ELSE 'on' END, \
                     CASE name WHEN 'max_wal_size' THEN 'a copy forces checkpoints, and after each one pages go whole into the WAL' ELSE 'pages that go whole into the WAL \
                     while rows are copied take all their room there' END FROM pg_catalog.pg_settings WHERE CASE name WHEN 'wal_compression' THEN setting = 'off' \
                     WHEN 'max_wal_size' THEN setting::int8 < 4096 END";
        for row in self.standby.query(query, &[]).await? {
            let text = |at: usize| row.get::<_, String>(at);
            let message = format!("{} is {}: {}", text(0), text(1), text(3));
            let set = format!("ALTER SYSTEM SET {} = '{}'", text(0), text(2));
            let finding = Finding::new(Level::Info, self.place(), message, "change it, at least for the copy");
            findings.push(finding.with_sql([set, "SELECT pg_reload_conf()".to_owned()]));
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
                     'pg_replication_origin_session_setup', 'pg_replication_origin_drop')";
        if !self.standby.query_one(query, &[]).await?.get::<_, bool>(0) {
            let message = format!("the role \"{role}\" may not use replication origins, which tag what it writes");
            findings.push(self.error(message, "grant the functions").with_sql(origin_grants_sql(role)));
            return Ok(());
        }
        let query = "SELECT pg_catalog.has_function_privilege($1, 'EXECUTE')";
        if !self.standby.query_one(query, &[&FLUSH_FUNCTION]).await?.get::<_, bool>(0) {
            let message = format!(
                "the role \"{role}\" may not call {FLUSH_FUNCTION}: no session flushes beside the work, and each batch waits for the disk"
            );
            findings.push(Finding::warning(self.place(), message, "grant it").with_sql([flush_grant_sql(role)]));
        }
        Ok(())
    }

    async fn tables(
        &self,
        primary: &Primary,
        tables: &[QualifiedName],
        to_copy: &[QualifiedName],
        findings: &mut Findings,
    ) -> Result<(), String> {
        let here = shapes(self.standby, tables).await?;
        let there = shapes(&primary.sql, tables).await?;
        self.missing(tables, &here, &there, findings);
        for shape in here.iter().filter(|shape| !matches!(shape.kind.as_str(), "r" | "p")) {
            let message = format!("{} is no ordinary table on the standby", shape.qualified_name());
            findings.push(self.error(message, "put a table in its place, or exclude it"));
        }
        for shape in &here {
            if let Some(source) = there.iter().find(|source| source.qualified_name() == shape.qualified_name()) {
                self.columns(source, shape, findings);
                self.extra_columns(source, shape, findings);
                self.key(source, shape, findings);
                self.deferrable_keys(shape, findings);
            }
        }
        let present: Vec<QualifiedName> = here.iter().map(TableShape::qualified_name).collect();
        self.table_rights(&present, &self.rights_on_tables(), findings).await.map_err(|error| error.to_string())?;
        let (place, role) = (self.place(), &self.sink.url.user);
        let policies = row_security::examine(self.standby, place, role, &present, findings).await;
        policies.map_err(|error| error.to_string())?;
        let families: BTreeSet<QualifiedName> = here.iter().flat_map(TableShape::family).collect();
        let families: Vec<QualifiedName> = families.into_iter().collect();
        let owners = owners::examine(self.standby, place, role, &families, findings).await;
        owners.map_err(|error| error.to_string())?;
        if self.sink.read_only {
            // The guard stands on partitions and on the partitioned tables above, too.
            let relatives: Vec<QualifiedName> = families.into_iter().filter(|name| !present.contains(name)).collect();
            self.table_rights(&relatives, &["TRIGGER"], findings).await.map_err(|error| error.to_string())?;
        }
        let to_copy: Vec<QualifiedName> = present.into_iter().filter(|table| to_copy.contains(table)).collect();
        if self.pipeline.initial_copy {
            let lacking = statistics::examine(self.standby, place, role, &to_copy, findings).await;
            lacking.map_err(|error| error.to_string())?;
        }
        self.rows_in_the_way(&to_copy, findings).await.map_err(|error| error.to_string())
    }

    /// Without a key there, each UPDATE and DELETE reads the whole table.
    fn key(&self, source: &TableShape, target: &TableShape, findings: &mut Findings) {
        let has_columns = source.key_columns.iter().all(|column| target.column(column).is_some());
        let has_key = !target.key_columns.is_empty() || !target.deferrable_keys.is_empty();
        if source.key_columns.is_empty() || has_key || !has_columns {
            return;
        }
        let name = target.qualified_name();
        let key: Vec<String> = source.key_columns.iter().map(|column| escape_identifier(column)).collect();
        let sql = format!("ALTER TABLE {} ADD PRIMARY KEY ({})", name.sql(), key.join(", "));
        let message =
            format!("{name} has no primary key on the standby: each UPDATE and DELETE may read the whole table");
        findings.push(Finding::warning(self.place(), message, "give it the primary's key").with_sql([sql]));
    }

    /// Under `session_replication_role = replica` nobody checks them.
    fn deferrable_keys(&self, target: &TableShape, findings: &mut Findings) {
        if target.deferrable_keys.is_empty() {
            return;
        }
        let (name, keys) = (target.qualified_name(), target.deferrable_keys.join(", "));
        let message = format!(
            "{name} has deferrable constraints on the standby ({keys}): nobody checks them for the rows that are applied, and no row is \
             found by them"
        );
        let remedy =
            "nothing to do where the primary checks them; a key that rows are to be found by must be NOT DEFERRABLE";
        findings.push(Finding::warning(self.place(), message, remedy));
    }

    /// Columns that only the standby has.
    fn extra_columns(&self, source: &TableShape, target: &TableShape, findings: &mut Findings) {
        let is_extra = |column: &&ShapeColumn| source.column(&column.name).is_none();
        let is_unfillable = |column: &&ShapeColumn| column.is_not_null && !column.has_default && !column.is_generated;
        for column in target.columns.iter().filter(is_extra).filter(is_unfillable) {
            let (name, column) = (target.qualified_name(), escape_identifier(&column.name));
            let sql = format!("ALTER TABLE {} ALTER COLUMN {column} DROP NOT NULL", name.sql());
            let message = format!(
                "{name}.{column} exists on the standby only, is NOT NULL and has no default: no row could be inserted"
            );
            findings.push(self.error(message, "let it be NULL, or give it a default").with_sql([sql]));
        }
    }

    fn rights_on_tables(&self) -> Vec<&'static str> {
        let mut rights = TABLE_RIGHTS.to_vec();
        rights.extend(self.sink.read_only.then_some("TRIGGER"));
        rights
    }

    fn missing(&self, tables: &[QualifiedName], here: &[TableShape], there: &[TableShape], findings: &mut Findings) {
        let is_here = |name: &QualifiedName| here.iter().any(|shape| shape.qualified_name() == *name);
        let missing: Vec<&QualifiedName> = tables.iter().filter(|name| !is_here(name)).collect();
        if missing.is_empty() {
            return;
        }
        let names: Vec<String> = missing.iter().map(ToString::to_string).collect();
        let shapes = there.iter().filter(|shape| missing.contains(&&shape.qualified_name()));
        let rights = self.rights_on_tables();
        let sql = shapes.filter_map(|shape| create_table_sql(shape, &self.sink.url.user, &rights)).flatten();
        let remedy = "rename those that were renamed on the primary; create the others as on the primary (pg_dump --schema-only … | psql … brings indexes, defaults and constraints), or \
                      exclude them; columns and key alone, where they are simple";
        let message = format!("these tables do not exist on the standby: {}", names.join(", "));
        findings.push(self.error(message, remedy).with_sql(sql));
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
                        self.error(format!("{name} lacks the column {} on the standby", column.name), ADD_COLUMN)
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
                        "values are converted as by an assignment there: one that does not fit stops the pipeline, a coarser type rounds or cuts, and a \
                         timestamp without a zone is read as UTC",
                    ));
                }
                Some(_) => {}
            }
        }
    }

    async fn table_rights(
        &self,
        tables: &[QualifiedName],
        rights: &[&str],
        findings: &mut Findings,
    ) -> Result<(), WireError> {
        let (schemas, names) = QualifiedName::parts(tables);
        let query = format!(
            "SELECT pg_catalog.format('%I.%I', s.nspname, c.relname), s.nspname::text, pg_catalog.has_schema_privilege(s.oid, 'USAGE'), \
                     ARRAY(SELECT r FROM pg_catalog.unnest($3::text[]) r WHERE NOT pg_catalog.has_table_privilege(c.oid, r)) \
                     FROM {NAMED_TABLES}"
        );
        let role = escape_identifier(&self.sink.url.user);
        for row in self.standby.query(&query, &[&schemas, &names, &rights]).await? {
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

    /// The relay's own tables that are there and can be read.
    async fn readable(&self) -> Result<Vec<String>, WireError> {
        own_store::readable(self.standby).await
    }

    /// Whether the standby has a record of this pipeline, or of its copy: then the rows are ours.
    async fn is_known(&self) -> Result<bool, WireError> {
        for table in self.readable().await? {
            let query =
                format!("SELECT EXISTS (SELECT FROM walrelay.{} WHERE pipeline = $1)", escape_identifier(&table));
            if self.standby.query_one(&query, &[&self.place()]).await?.get(0) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Those of the tables whose changes were left out until now.
    async fn left_out(&self, pipeline: &Pipeline, tables: &[QualifiedName]) -> Result<Vec<QualifiedName>, String> {
        if !self.readable().await.map_err(|error| error.to_string())?.iter().any(|table| table == "copy") {
            return Ok(Vec::new());
        }
        let copied = copy_record::load(self.standby, &pipeline.name).await.map_err(|error| error.to_string())?;
        let is_left = |table: &&QualifiedName| copied.tables.get(*table) == Some(&TableState::Left);
        Ok(tables.iter().filter(is_left).cloned().collect())
    }

    /// The pipeline's progress row.
    async fn record(&self) -> Result<Record, WireError> {
        let exists = "SELECT EXISTS (SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
                      WHERE n.nspname = 'walrelay' AND c.relname = 'progress')";
        if !self.standby.query_one(exists, &[]).await?.get::<_, bool>(0) {
            return Ok(Record::Read(None));
        }
        if !self.readable().await?.iter().any(|table| table == "progress") {
            return Ok(Record::Unknown);
        }
        let query =
            "SELECT system_identifier, timeline, database, slot, lsn::text FROM walrelay.progress WHERE pipeline = $1";
        let Some(row) = self.standby.query_opt(query, &[&self.place()]).await? else { return Ok(Record::Read(None)) };
        let (timeline, slot, lsn): (i64, String, String) = (row.get(1), row.get(3), row.get(4));
        let (Ok(timeline), Ok(slot), Ok(lsn)) = (timeline.try_into(), SlotName::new(&slot), lsn.parse()) else {
            return Ok(Record::Unknown);
        };
        let (system_identifier, database) = (row.get(0), row.get(2));
        Ok(Record::Read(Some(Progress { system_identifier, timeline, database, slot, lsn, commit_time: None })))
    }

    /// Rows that the initial copy of these tables would refuse.
    async fn rows_in_the_way(&self, tables: &[QualifiedName], findings: &mut Findings) -> Result<(), WireError> {
        if !self.pipeline.initial_copy || self.pipeline.on_existing_rows != OnExistingRows::Refuse {
            return Ok(());
        }
        let mut full = Vec::new();
        for table in tables {
            let query = format!("SELECT EXISTS (SELECT FROM {})", table.sql());
            match self.standby.query_one(&query, &[]).await {
                Ok(row) if row.get(0) => full.push(table.to_string()),
                Err(error) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => {
                    let message = format!("{table} is locked on the standby; whether it is empty could not be seen");
                    let remedy = "look again once the lock is gone; the copy waits for it";
                    findings.push(Finding::warning(self.place(), message, remedy));
                }
                // A right that is missing was found above.
                _ => {}
            }
        }
        if !full.is_empty() {
            let message = format!("these tables of the standby are not empty: {}", full.join(", "));
            findings.push(self.error(
                message,
                "empty them, or set on_existing_rows = \"truncate\", which does that. After a drop nothing else is right: \"keep\" leaves old \
                 rows standing, initial_copy = false never fetches what was written since",
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
