//! Opens an apply session on the standby: settings, the relay's own tables, the replication origin.

use postgres_protocol::escape::escape_literal;

use crate::config::ServerUrl;
use crate::model::PipelineName;
use crate::wire::{Connection, Session};

use super::super::SinkError;
use super::store::{ensure_store, first_row, is_read_only};

/// Settings of an apply session. Text values come from a publisher session with the same forms.
const SETTINGS: &[(&str, &str)] = &[
    ("search_path", ""),
    ("datestyle", "ISO"),
    ("intervalstyle", "postgres"),
    ("extra_float_digits", "3"),
    ("timezone", "UTC"),
    ("bytea_output", "hex"),
    ("xmloption", "content"),
    ("statement_timeout", "0"),
    ("lock_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
    ("idle_session_timeout", "0"),
    ("default_transaction_read_only", "off"),
    ("default_transaction_isolation", "read committed"),
    ("default_transaction_deferrable", "off"),
    ("row_security", "off"),
    ("jit", "off"),
    ("check_function_bodies", "off"),
    // Durable here, whatever the standby's own standbys do; a cycle of synchronous servers must not wait for itself.
    ("synchronous_commit", "local"),
];

/// A session on the standby under one of the relay's names, with the settings above and foreign keys and ordinary triggers
/// quiet (`session_replication_role = replica`).
pub async fn open_session(url: &ServerUrl, pipeline: &PipelineName, role: &str) -> Result<Connection, SinkError> {
    let mut session = Session::new(format!("walrelay {pipeline} {role}"));
    for (name, value) in SETTINGS {
        session = session.with(name, value);
    }
    let mut connection =
        Connection::connect(url, &session).await.map_err(SinkError::wire("connecting to the standby"))?;
    if connection.version_number() >= 170_000 {
        query(&mut connection, "SET transaction_timeout = 0", "setting transaction_timeout on the standby").await?;
    }
    if connection.parameter("in_hot_standby") == Some("on") {
        return Err(SinkError::Refused(format!(
            "the server {} is in recovery (a physical standby) and takes no writes; point the sink's url at a server of its own",
            connection.host()
        )));
    }
    match connection.simple_query("SET session_replication_role = replica").await {
        Ok(_) => Ok(connection),
        Err(error) if error.code() == Some("42501") => Err(SinkError::Refused(replica_role_remedy(url, &connection))),
        Err(error) => Err(SinkError::wire("setting session_replication_role on the standby")(error)),
    }
}

fn replica_role_remedy(url: &ServerUrl, connection: &Connection) -> String {
    let role = postgres_protocol::escape::escape_identifier(&url.user);
    let remedy = if connection.version_number() >= 150_000 {
        format!("let a superuser run there: GRANT SET ON PARAMETER session_replication_role TO {role}")
    } else {
        format!("before version 15 only a superuser may: ALTER ROLE {role} SUPERUSER")
    };
    format!(
        "the role \"{}\" may not set session_replication_role on the standby, so foreign keys and triggers would fire; {remedy}",
        url.user
    )
}

/// An apply session: the relay's tables are there, and its work is tagged with the origin `walrelay_NAME`.
pub(super) async fn open_apply_session(url: &ServerUrl, pipeline: &PipelineName) -> Result<Connection, SinkError> {
    let mut connection = open_session(url, pipeline, "apply").await?;
    ensure_store(&mut connection).await.map_err(explain_read_only)?;
    let name = escape_literal(&pipeline.owned_name());
    let name = name.trim_start();
    let sql = format!(
        "SELECT pg_catalog.pg_replication_origin_create({name}) WHERE pg_catalog.pg_replication_origin_oid({name}) IS NULL; \
         SELECT pg_catalog.pg_replication_origin_session_setup({name})"
    );
    match connection.simple_query(&sql).await {
        Ok(_) => Ok(connection),
        Err(error) if error.code() == Some("42501") => Err(SinkError::Refused(format!(
            "the replication origin cannot be used on the standby: {error}; let a superuser run there: {}",
            origin_grants_sql(&url.user).join("; ")
        ))),
        Err(error) => Err(SinkError::wire(format!("taking the replication origin {}", pipeline.owned_name()))(error)),
    }
}

/// The functions an apply session needs, and `drop` after it.
pub fn origin_grants_sql(role: &str) -> Vec<String> {
    let role = postgres_protocol::escape::escape_identifier(role);
    ["oid(text)", "create(text)", "session_setup(text)", "drop(text)", "progress(text, boolean)"]
        .iter()
        .map(|function| format!("GRANT EXECUTE ON FUNCTION pg_catalog.pg_replication_origin_{function} TO {role}"))
        .collect()
}

fn explain_read_only(error: SinkError) -> SinkError {
    match error {
        SinkError::Wire { source, .. } if is_read_only(&source) => SinkError::Refused(format!(
            "the standby takes no writes: {source}; point the sink's url at a server that can be written to"
        )),
        other => other,
    }
}

/// Runs a statement and gives the first row of the last result.
pub(super) async fn query(
    connection: &mut Connection,
    sql: &str,
    context: &str,
) -> Result<Vec<Option<String>>, SinkError> {
    connection.simple_query(sql).await.map(first_row).map_err(SinkError::wire(context))
}
