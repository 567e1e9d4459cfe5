//! Opens an apply session on the standby: settings, the relay's own tables, the replication origin that tags its work.

use std::time::Duration;

use postgres_protocol::escape::{escape_identifier, escape_literal};

use crate::config::ServerUrl;
use crate::model::PipelineName;
use crate::wire::{Connection, Session, WireError};

use super::super::SinkError;
use super::roles::{APPLY_ROLE, streaming_roles};
use super::store::{ensure_store, query_row};

/// Settings of an apply session. Text values come from a publisher session with the same forms; plans are made once and for
/// keys, since a plan made on an empty table must not stay a scan when it has grown.
const SETTINGS: &[(&str, &str)] = &[
    ("search_path", ""),
    ("datestyle", "ISO"),
    ("intervalstyle", "postgres"),
    ("extra_float_digits", "3"),
    ("timezone", "UTC"),
    ("lc_monetary", "C"),
    ("bytea_output", "hex"),
    ("xmloption", "content"),
    ("transform_null_equals", "off"),
    ("array_nulls", "on"),
    ("statement_timeout", "0"),
    ("lock_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
    ("idle_session_timeout", "0"),
    ("default_transaction_read_only", "off"),
    ("default_transaction_isolation", "read committed"),
    ("default_transaction_deferrable", "off"),
    ("row_security", "off"),
    ("jit", "off"),
    // More than a batch's rows take: a sort of them, or a scan's rows, must not go through the disk.
    ("work_mem", "64MB"),
    ("plan_cache_mode", "force_generic_plan"),
    ("enable_seqscan", "off"),
    ("enable_hashjoin", "off"),
    ("enable_mergejoin", "off"),
    // Durable here, whatever the standby's own standbys do; a cycle of synchronous servers must not wait for itself.
    ("synchronous_commit", "local"),
];

/// How long an earlier apply session of this pipeline may take to end.
pub(super) const TAKE_OVER_TIMEOUT: Duration = Duration::from_secs(5);
/// How often it is looked whether it has.
pub(super) const TAKE_OVER_INTERVAL: Duration = Duration::from_millis(50);

/// A session on the standby named `walrelay NAME ROLE`, with the settings above, and with foreign keys, ordinary triggers
/// and the guard quiet (`session_replication_role = replica`).
pub async fn open_session(url: &ServerUrl, pipeline: &PipelineName, role: &str) -> Result<Connection, SinkError> {
    let session = Session::new(pipeline.session_name(role));
    let session = SETTINGS.iter().fold(session, |session, (name, value)| session.with(name, value));
    let mut connection =
        Connection::connect(url, &session).await.map_err(SinkError::wire("connecting to the standby"))?;
    if connection.version_number() >= 170_000 {
        // Not known to servers before 17, so it cannot stand among the start-up settings.
        query_row(&mut connection, "SET transaction_timeout = 0", "setting transaction_timeout on the standby").await?;
    }
    if connection.parameter("in_hot_standby") == Some("on") {
        return Err(SinkError::TakesNoWrites(format!(
            "the server {} is in recovery (a physical standby) and takes no writes; point the sink's url at a server of its own",
            connection.host()
        )));
    }
    match connection.simple_query("SET session_replication_role = replica").await {
        Ok(_) => Ok(connection),
        Err(error) if error.code() == Some("42501") => Err(SinkError::Refused(format!(
            "the role \"{}\" may not set session_replication_role on the standby, so foreign keys and triggers would fire; {}",
            url.user,
            replica_role_sql(&url.user, connection.version_number())
        ))),
        Err(error) => Err(SinkError::wire("setting session_replication_role on the standby")(error)),
    }
}

/// What a superuser runs so that `role` may set session_replication_role on a server of this version.
pub fn replica_role_sql(role: &str, version_number: u32) -> String {
    let role = escape_identifier(role);
    if version_number >= 150_000 {
        format!("GRANT SET ON PARAMETER session_replication_role TO {role}")
    } else {
        format!("ALTER ROLE {role} SUPERUSER")
    }
}

/// An apply session: the relay's tables are there, and its work is tagged with the origin `walrelay_NAME`, which only one
/// session can hold. Who calls this owns the pipeline (no other daemon streams its slot), so an apply session that still
/// holds the origin belongs to a daemon that is frozen or gone, and may sit on locks: it is ended.
pub(super) async fn open_apply_session(url: &ServerUrl, pipeline: &PipelineName) -> Result<Connection, SinkError> {
    let mut connection = open_session(url, pipeline, APPLY_ROLE).await?;
    ensure_store(&mut connection).await?;
    let roles: Vec<&str> = streaming_roles().collect();
    take_origin(&mut connection, url, pipeline, &pipeline.owned_name(), &roles).await?;
    Ok(connection)
}

/// Another database of the server into which a pipeline of this name writes now: it uses the same origins. A session may call itself
/// what it likes, so only those of our own role count; a pipeline of another role shows when it is at work and we take the origin.
pub async fn database_of_namesake(
    connection: &mut Connection,
    pipeline: &PipelineName,
) -> Result<Option<String>, SinkError> {
    let sql = format!(
        "SELECT datname FROM pg_catalog.pg_stat_activity WHERE application_name = {} \
         AND usename = current_user AND datname <> pg_catalog.current_database()",
        escape_literal(&pipeline.session_name(APPLY_ROLE))
    );
    let row = query_row(connection, &sql, "looking who uses the replication origin on the standby").await?;
    Ok(row.into_iter().next().flatten())
}

/// Tags the session's work with the origin, which is made where it is missing. Sessions of these roles that were left behind go if
/// one of them holds it.
pub(super) async fn take_origin(
    connection: &mut Connection,
    url: &ServerUrl,
    pipeline: &PipelineName,
    origin: &str,
    roles: &[&str],
) -> Result<(), SinkError> {
    let name = escape_literal(origin);
    let create = format!(
        "SELECT pg_catalog.pg_replication_origin_create({name}) WHERE pg_catalog.pg_replication_origin_oid({name}) IS NULL"
    );
    connection.simple_query(&create).await.map_err(|error| explain_origin(error, url, origin))?;
    let set_up = format!("SELECT pg_catalog.pg_replication_origin_session_setup({name})");
    let deadline = tokio::time::Instant::now() + TAKE_OVER_TIMEOUT;
    loop {
        match connection.simple_query(&set_up).await {
            Ok(_) => return Ok(()),
            Err(error) if error.code() == Some("55006") && tokio::time::Instant::now() < deadline => {
                end_other_sessions(connection, pipeline, roles).await?;
                tokio::time::sleep(TAKE_OVER_INTERVAL).await;
            }
            Err(error) => return Err(explain_origin(error, url, origin)),
        }
    }
}

async fn end_other_sessions(
    connection: &mut Connection,
    pipeline: &PipelineName,
    roles: &[&str],
) -> Result<(), SinkError> {
    let names: Vec<String> = roles.iter().map(|role| escape_literal(&pipeline.session_name(role))).collect();
    // What the server made of this session's name, if it was too long.
    let sql = format!(
        "SELECT pg_catalog.count(pg_catalog.pg_terminate_backend(pid))::text FROM pg_catalog.pg_stat_activity \
               WHERE application_name IN (pg_catalog.current_setting('application_name'), {}) AND usename = current_user \
               AND datname = pg_catalog.current_database() AND pid <> pg_catalog.pg_backend_pid()",
        names.join(", ")
    );
    let ended = query_row(connection, &sql, "ending earlier sessions on the standby").await?;
    tracing::info!(sessions = ended.first().cloned().flatten(), "ended earlier sessions of this pipeline");
    Ok(())
}

fn explain_origin(error: WireError, url: &ServerUrl, origin: &str) -> SinkError {
    match error.code() {
        Some("42501") => SinkError::Refused(format!(
            "the replication origin {origin} cannot be used on the standby: {error}; let a superuser run there: {}",
            origin_grants_sql(&url.user).join("; ")
        )),
        Some("53400" | "55000") => SinkError::Refused(format!(
            "the replication origin {origin} cannot be used on the standby: {error}; raise max_replication_slots there (from 18 \
             on max_active_replication_origins) and restart that server"
        )),
        _ => SinkError::wire(format!("taking the replication origin {origin} on the standby"))(error),
    }
}

/// What a superuser runs so that `role` may use replication origins, and `drop` remove them.
pub fn origin_grants_sql(role: &str) -> Vec<String> {
    let role = escape_identifier(role);
    ["oid(text)", "create(text)", "session_setup(text)", "drop(text)", "progress(text, boolean)"]
        .iter()
        .map(|function| format!("GRANT EXECUTE ON FUNCTION pg_catalog.pg_replication_origin_{function} TO {role}"))
        .collect()
}
