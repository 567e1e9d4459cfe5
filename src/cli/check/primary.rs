//! The doctor at the primary: version, settings, rights, slot, publication, tables.

use std::cell::Cell;

use postgres_protocol::escape::{escape_identifier, escape_literal};

use crate::config::{self, Config, Sink};
use crate::model::{PipelineName, QualifiedName};
use crate::source::{
    PublishableTable, SlotFacts, SourceError, all_operations_sql, coming_tables, create_publication_sql, lists_standby,
    missing_tables_sql, publishable_tables, published_tables, slot_facts, without_standby,
};
use crate::wire::sql::{self, SqlClient};

use super::finding::{Finding, Findings, Level};
use super::named::NAMED_TABLES;
use super::row_security;
use super::session::no_session;

/// Oldest minor version of each major one without known faults that lose data or hang.
const SOUND_MINORS: &[(u32, u32)] = &[(14, 19), (15, 14), (16, 10), (17, 6)];
const PLACE: &str = "primary";
/// How many more slots or walsenders than there are now are proposed where none is free.
const SPARE: i64 = 5;

/// A session on the primary and what it says of itself.
pub(super) struct Primary {
    pub(super) sql: SqlClient,
    pub(super) role: String,
    /// Whether nothing found here keeps a replication connection from being opened.
    pub(super) may_stream: bool,
    is_superuser: bool,
    /// Not yet promised to a pipeline.
    free_slots: Cell<i64>,
    max_slots: i64,
    standby_names: String,
}

/// A pipeline's tables, by the names under which their changes arrive.
#[derive(Debug, Default)]
pub(super) struct Tables {
    /// All of them.
    pub(super) all: Vec<QualifiedName>,
    /// Those that the next start brings into the publication.
    pub(super) coming: Vec<QualifiedName>,
}

impl Tables {
    fn new(mut all: Vec<QualifiedName>, coming: Vec<QualifiedName>) -> Self {
        let new: Vec<QualifiedName> = coming.iter().filter(|table| !all.contains(table)).cloned().collect();
        all.extend(new);
        Self { all, coming }
    }
}

/// What concerns every pipeline. `None`: nothing further can be asked.
pub(super) async fn examine_server(config: &Config, findings: &mut Findings) -> Option<Primary> {
    let sql = match sql::connect(&config.primary, &super::session()).await {
        Ok(sql) => sql,
        Err(error) => {
            findings.push(no_session(PLACE, &config.primary, "LOGIN REPLICATION", &error));
            return None;
        }
    };
    match facts(sql, findings).await {
        Ok(primary) => Some(primary),
        Err(error) => {
            findings.push(Finding::error(PLACE, error.to_string(), ""));
            None
        }
    }
}

async fn facts(sql: SqlClient, findings: &mut Findings) -> Result<Primary, SourceError> {
    let query = "SELECT current_setting('server_version_num')::int4, current_setting('wal_level'), r.rolreplication, r.rolsuper, r.rolname::text, \
                 current_setting('max_replication_slots')::int8 - (SELECT count(*) FROM pg_catalog.pg_replication_slots), \
                 current_setting('max_slot_wal_keep_size'), current_setting('synchronous_standby_names'), pg_catalog.pg_is_in_recovery(), \
                 current_setting('max_wal_senders')::int8 - (SELECT count(*) FROM pg_catalog.pg_stat_replication), \
                 current_setting('max_replication_slots')::int8, current_setting('max_wal_senders')::int8, \
                 pg_catalog.pg_has_role(current_user, 'pg_read_all_stats', 'USAGE') \
                 FROM pg_catalog.pg_roles r WHERE r.rolname = current_user";
    let row = sql.query_one(query, &[]).await.map_err(SourceError::sql("reading the primary's settings"))?;
    let (version, wal_level): (i32, String) = (row.get(0), row.get(1));
    let (may_replicate, is_superuser, role): (bool, bool, String) = (row.get(2), row.get(3), row.get(4));
    examine_version(version as u32, findings);
    if row.get::<_, bool>(8) {
        findings.push(Finding::error(
            PLACE,
            "the server is in recovery: it is a physical standby",
            "point [primary] url at the primary",
        ));
    }
    if wal_level != "logical" {
        let message = format!("wal_level is {wal_level}; logical replication needs logical");
        let sql = "ALTER SYSTEM SET wal_level = 'logical'".to_owned();
        findings.push(Finding::error(PLACE, message, "set it and restart the server").with_sql([sql]));
    }
    if !may_replicate && !is_superuser {
        let sql = format!("ALTER ROLE {} REPLICATION", escape_identifier(&role));
        findings.push(
            Finding::error(PLACE, format!("the role \"{role}\" may not replicate"), "give it the attribute")
                .with_sql([sql]),
        );
    }
    let has_walsender = row.get::<_, i64>(9) > 0;
    if !has_walsender {
        let message = "no walsender is free (max_wal_senders)".to_owned();
        let sql = format!("ALTER SYSTEM SET max_wal_senders = {}", row.get::<_, i64>(11) + SPARE);
        let remedy = "raise it and restart the server, or stop another replica";
        findings.push(Finding::error(PLACE, message, remedy).with_sql([sql]));
    }
    if !row.get::<_, bool>(12) {
        let message = format!(
            "the role \"{role}\" may not see what pg_stat_replication says of it: sync_state and sent_lsn stay unknown in /status"
        );
        let sql = format!("GRANT pg_read_all_stats TO {}", escape_identifier(&role));
        findings.push(Finding::warning(PLACE, message, "grant it").with_sql([sql]));
    }
    if row.get::<_, String>(6) == "-1" {
        let message = "max_slot_wal_keep_size is -1: while a standby is away, the slot may fill the disk".to_owned();
        let remedy = "set a limit that the disk can bear; walrelay shows what is left in safe_wal_size_bytes";
        findings.push(Finding::new(Level::Info, PLACE, message, remedy));
    }
    Ok(Primary {
        role,
        may_stream: has_walsender && (may_replicate || is_superuser),
        is_superuser,
        free_slots: Cell::new(row.get(5)),
        max_slots: row.get(10),
        standby_names: row.get(7),
        sql,
    })
}

fn examine_version(version: u32, findings: &mut Findings) {
    let (major, minor) = (version / 10_000, version % 10_000);
    if major < 14 {
        findings.push(Finding::error(
            PLACE,
            format!("version {major} is too old"),
            "walrelay needs PostgreSQL 14 or later",
        ));
    } else if major > 18 {
        findings.push(Finding::warning(
            PLACE,
            format!("version {major} is newer than this walrelay was tested with (14 to 18)"),
            "update walrelay",
        ));
    } else if let Some((_, sound)) = SOUND_MINORS.iter().find(|(of, sound)| *of == major && minor < *sound) {
        let message = format!("version {major}.{minor} has known faults in logical replication");
        findings.push(Finding::warning(PLACE, message, format!("update to {major}.{sound} or later")));
    }
}

/// What concerns one pipeline. Returns its tables.
pub(super) async fn examine_pipeline(
    primary: &Primary,
    config: &Config,
    pipeline: &config::Pipeline,
    findings: &mut Findings,
) -> Tables {
    match try_pipeline(primary, pipeline, findings).await {
        Ok(tables) => tables,
        Err(error) => {
            findings.push(Finding::error(PLACE, format!("{}: {error}", config.primary), ""));
            Tables::default()
        }
    }
}

async fn try_pipeline(
    primary: &Primary,
    pipeline: &config::Pipeline,
    findings: &mut Findings,
) -> Result<Tables, SourceError> {
    let slot = slot_facts(&primary.sql, &pipeline.slot_name()).await?;
    examine_slot(primary, pipeline, slot.as_ref(), findings);
    let published = publication(primary, pipeline, slot.is_some(), findings).await?;
    let tables = Tables::new(published, coming(primary, pipeline, slot.is_some()).await?);
    examine_tables(primary, pipeline, &tables.all, findings).await?;
    Ok(tables)
}

fn examine_slot(primary: &Primary, pipeline: &config::Pipeline, slot: Option<&SlotFacts>, findings: &mut Findings) {
    let name = pipeline.slot_name();
    let Some(slot) = slot else {
        primary.free_slots.set(primary.free_slots.get() - 1);
        let remedy = "raise it and restart the server, or drop a slot that nobody uses (pg_replication_slots)";
        let sql = format!("ALTER SYSTEM SET max_replication_slots = {}", primary.max_slots + SPARE);
        if primary.free_slots.get() < 0 {
            let message = format!("no replication slot is free for \"{name}\" (max_replication_slots)");
            findings.push(Finding::error(PLACE, message, remedy).with_sql([sql]));
        } else if primary.free_slots.get() == 0 && pipeline.initial_copy && !matches!(pipeline.sink, Sink::Stdout) {
            let message = format!(
                "no replication slot is left beside \"{name}\" (max_replication_slots): a copy that is cut off needs one more, for the \
                 seconds of its new snapshot, and so do tables that join later"
            );
            findings.push(Finding::warning(PLACE, message, remedy).with_sql([sql]));
        }
        if lists_standby(&primary.standby_names, pipeline.name.as_str()) {
            findings.push(listed_too_early(&pipeline.name, &primary.standby_names));
        }
        return;
    };
    if slot.active {
        let message = format!("the slot \"{name}\" is in use (process {})", slot.active_pid.unwrap_or(0));
        findings.push(Finding::new(
            Level::Info,
            PLACE,
            message,
            "a second walrelay of this pipeline waits as a hot spare",
        ));
    }
}

fn listed_too_early(name: &PipelineName, names: &str) -> Finding {
    let message = format!(
        "\"{name}\" already stands in synchronous_standby_names ('{names}') but its slot does not exist: commits wait for it, and \
         creating the slot would wait for those commits, for ever"
    );
    // Whoever else is listed stays, and is waited for as before.
    let Some(others) = without_standby(names, name.as_str()) else {
        let remedy = "take it out by hand (`*` stands for it as well, or fewer names would be left than commits wait for), let walrelay \
                      start, and list it again once `walrelay status` says streaming";
        return Finding::error(PLACE, message, remedy);
    };
    let set = format!("ALTER SYSTEM SET synchronous_standby_names = {}", escape_literal(&others));
    let remedy = "take it out, let walrelay start, and list it again once `walrelay status` says streaming";
    Finding::error(PLACE, message, remedy).with_sql([set, "SELECT pg_reload_conf()".to_owned()])
}

/// What the next start brings into a publication of ours, by the rules of a start: nothing that is to be copied while commits may wait
/// for the pipeline.
async fn coming(
    primary: &Primary,
    pipeline: &config::Pipeline,
    has_slot: bool,
) -> Result<Vec<QualifiedName>, SourceError> {
    let is_listed = lists_standby(&primary.standby_names, pipeline.name.as_str());
    if pipeline.publication.is_some() || (pipeline.initial_copy && has_slot && is_listed) {
        return Ok(Vec::new());
    }
    Ok(coming_tables(&primary.sql, &pipeline.publication_name(), &pipeline.tables).await?.leaves)
}

/// The publication: there, or to be made by us, or to be made by somebody with the rights.
async fn publication(
    primary: &Primary,
    pipeline: &config::Pipeline,
    has_slot: bool,
    findings: &mut Findings,
) -> Result<Vec<QualifiedName>, SourceError> {
    let name = pipeline.publication_name();
    let exists = "SELECT pg_catalog.pg_has_role(current_user, pubowner, 'USAGE'), pubinsert AND pubupdate AND pubdelete AND pubtruncate FROM pg_catalog.pg_publication WHERE pubname = $1";
    let row = primary.sql.query_opt(exists, &[&name]).await.map_err(SourceError::sql("reading pg_publication"))?;
    let is_managed = pipeline.publication.is_none();
    let wanted = if is_managed { publishable_tables(&primary.sql, &pipeline.tables).await? } else { Vec::new() };
    match row {
        None if !is_managed => {
            let tables = publishable_tables(&primary.sql, &pipeline.tables).await?;
            findings.push(
                Finding::error(
                    PLACE,
                    format!("the publication \"{name}\" does not exist"),
                    "create it, or leave out the key `publication` to have one managed",
                )
                .with_sql([create_publication_sql(&name, &tables)]),
            );
            Ok(Vec::new())
        }
        None => {
            let names: Vec<QualifiedName> = wanted.iter().map(|table| table.name.clone()).collect();
            if !may_publish(primary, &names).await? {
                let message = format!(
                    "the role \"{}\" may not create the publication \"{name}\": it needs CREATE on the database and to own every table",
                    primary.role
                );
                findings.push(
                    Finding::error(PLACE, message, "let a superuser create it; walrelay then uses it")
                        .with_sql([create_publication_sql(&name, &wanted)]),
                );
            }
            leaves_of(primary, &names).await
        }
        Some(row) => {
            if !row.get::<_, bool>(1) {
                // Somebody else's publication may leave them out on purpose.
                let level = if is_managed { Level::Error } else { Level::Warning };
                let message =
                    format!("the publication \"{name}\" does not publish every operation; a standby would miss some");
                let finding = Finding::new(level, PLACE, message, "let it publish all four");
                findings.push(finding.with_sql([all_operations_sql(&name)]));
            }
            if is_managed {
                refuse_empty_set(primary, &name, &wanted, findings).await?;
                let level = if has_slot { Level::Warning } else { Level::Error };
                examine_managed(primary, &name, row.get(0), (&wanted, level), findings).await?;
            }
            let mut published = published_tables(&primary.sql, &name).await?;
            let leaves = leaves_of(primary, &wanted.iter().map(|table| table.name.clone()).collect::<Vec<_>>()).await?;
            published.retain(|table| pipeline.tables.contains(table) || leaves.contains(table));
            Ok(published)
        }
    }
}

/// What a start refuses: a set that fits nothing, where tables are published.
async fn refuse_empty_set(
    primary: &Primary,
    name: &str,
    wanted: &[PublishableTable],
    findings: &mut Findings,
) -> Result<(), SourceError> {
    let published = if wanted.is_empty() { published_tables(&primary.sql, name).await? } else { Vec::new() };
    if let Some(first) = published.first() {
        let message = format!(
            "no table of the primary is of the set (tables, exclude), and the publication \"{name}\" holds {first} and {} more",
            published.len() - 1
        );
        findings.push(Finding::error(PLACE, message, "look for a misspelt pattern"));
    }
    Ok(())
}

/// A managed publication that is there already: all tables, or the right to add them. What already streams
/// goes on without tables that came later (`if_missing`).
async fn examine_managed(
    primary: &Primary,
    name: &str,
    is_owned: bool,
    (wanted, if_missing): (&[PublishableTable], Level),
    findings: &mut Findings,
) -> Result<(), SourceError> {
    let Some(sql) = missing_tables_sql(&primary.sql, name, wanted).await? else { return Ok(()) };
    let names: Vec<QualifiedName> = wanted.iter().map(|table| table.name.clone()).collect();
    if !is_owned || !owns(primary, &names).await? {
        let message = format!(
            "the publication \"{name}\" does not cover every table of the pipeline, and the role may not add them"
        );
        findings.push(Finding::new(if_missing, PLACE, message, "let its owner add them").with_sql([sql]));
    }
    Ok(())
}

async fn may_publish(primary: &Primary, tables: &[QualifiedName]) -> Result<bool, SourceError> {
    let query = "SELECT pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE')";
    let row = primary.sql.query_one(query, &[]).await.map_err(SourceError::sql("reading the role's rights"))?;
    Ok(row.get::<_, bool>(0) && owns(primary, tables).await?)
}

async fn owns(primary: &Primary, tables: &[QualifiedName]) -> Result<bool, SourceError> {
    if primary.is_superuser {
        return Ok(true);
    }
    let (schemas, names) = QualifiedName::parts(tables);
    let query = format!(
        "SELECT NOT EXISTS (SELECT FROM {NAMED_TABLES} WHERE NOT pg_catalog.pg_has_role(current_user, c.relowner, 'USAGE'))"
    );
    let row = primary
        .sql
        .query_one(&query, &[&schemas, &names])
        .await
        .map_err(SourceError::sql("reading the tables' owners"))?;
    Ok(row.get(0))
}

/// A partitioned table's changes arrive under its leaves' names.
async fn leaves_of(primary: &Primary, tables: &[QualifiedName]) -> Result<Vec<QualifiedName>, SourceError> {
    let (schemas, names) = QualifiedName::parts(tables);
    let query = format!(
        "SELECT ls.nspname::text, l.relname::text FROM {NAMED_TABLES} \
         CROSS JOIN LATERAL (SELECT relid FROM pg_catalog.pg_partition_tree(c.oid) WHERE isleaf \
                             UNION SELECT c.oid WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_partition_tree(c.oid))) p(relid) \
         JOIN pg_catalog.pg_class l ON l.oid = p.relid AND l.relkind = 'r' \
         JOIN pg_catalog.pg_namespace ls ON ls.oid = l.relnamespace ORDER BY 1, 2"
    );
    let rows = primary
        .sql
        .query(&query, &[&schemas, &names])
        .await
        .map_err(SourceError::sql("reading the primary's partitions"))?;
    Ok(rows.iter().map(|row| QualifiedName::new(row.get::<_, String>(0), row.get::<_, String>(1))).collect())
}

/// Replica identities, and the right to read for the copy.
async fn examine_tables(
    primary: &Primary,
    pipeline: &config::Pipeline,
    tables: &[QualifiedName],
    findings: &mut Findings,
) -> Result<(), SourceError> {
    if tables.is_empty() {
        let message = format!("no table of the primary belongs to the pipeline \"{}\"", pipeline.name);
        findings.push(Finding::warning(
            PLACE,
            message,
            "check `tables` and `exclude`: patterns are schema.table, case counts",
        ));
        return Ok(());
    }
    let (schemas, names) = QualifiedName::parts(tables);
    let query = format!(
        "SELECT pg_catalog.format('%I.%I', s.nspname, c.relname), c.relreplident = 'n' OR c.relreplident = 'd' AND NOT EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND i.indisprimary AND i.indimmediate AND i.indisvalid), \
                 pg_catalog.has_table_privilege(c.oid, 'SELECT'), pg_catalog.has_schema_privilege(c.relnamespace, 'USAGE'), s.nspname::text FROM {NAMED_TABLES}"
    );
    let rows =
        primary.sql.query(&query, &[&schemas, &names]).await.map_err(SourceError::sql("reading the tables' rights"))?;
    let role = escape_identifier(&primary.role);
    let is_copied = pipeline.initial_copy && !matches!(pipeline.sink, config::Sink::Stdout);
    if is_copied {
        let context = SourceError::wire("reading the primary's row security");
        row_security::examine(&primary.sql, PLACE, &primary.role, tables, findings).await.map_err(context)?;
    }
    for row in rows {
        let (table, lacks_identity): (String, bool) = (row.get(0), row.get(1));
        if lacks_identity {
            let message =
                format!("{table} has no replica identity: once published, the primary refuses UPDATE and DELETE on it");
            let sql = format!("ALTER TABLE {table} REPLICA IDENTITY FULL");
            findings.push(Finding::warning(PLACE, message, "add a primary key, or").with_sql([sql]));
        }
        if is_copied && !row.get::<_, bool>(3) {
            let schema: String = row.get(4);
            let sql = format!("GRANT USAGE ON SCHEMA {} TO {role}", escape_identifier(&schema));
            findings.push(
                Finding::error(
                    PLACE,
                    format!(
                        "the role \"{}\" may not use the schema {schema}, so nothing of it can be copied",
                        primary.role
                    ),
                    "grant it",
                )
                .with_sql([sql]),
            );
        }
        if is_copied && !row.get::<_, bool>(2) {
            let sql = format!("GRANT SELECT ON {table} TO {role}");
            findings.push(
                Finding::error(
                    PLACE,
                    format!("the role \"{}\" may not read {table}, so it cannot be copied", primary.role),
                    "grant it",
                )
                .with_sql([sql]),
            );
        }
    }
    Ok(())
}
