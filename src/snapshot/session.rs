//! The sessions of a copy: text forms that do not depend on either server's settings, no time-outs, replica role on the
//! standby. Opens connections; sends nothing but settings.

use crate::config::ServerUrl;
use crate::model::PipelineName;
use crate::wire::sql::{self, SqlClient};
use crate::wire::{Connection, Session, WireError};

use super::command;
use super::error::{Side, SnapshotError, server};
use super::ownership;

/// What both sides must agree on for text to mean the same, and no end by a clock (section 1.1 of the reference). The
/// monetary locale and `xmloption` decide how money and xml are read.
const COMMON: &[(&str, &str)] = &[
    ("search_path", ""),
    ("datestyle", "ISO"),
    ("intervalstyle", "postgres"),
    ("extra_float_digits", "3"),
    ("bytea_output", "hex"),
    ("timezone", "UTC"),
    ("lc_monetary", "C"),
    ("xmloption", "content"),
    ("statement_timeout", "0"),
    ("lock_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
    ("idle_session_timeout", "0"),
    // A peer whose machine is gone is noticed by the server too, and its locks end: nothing on a Unix socket.
    ("tcp_keepalives_idle", "30"),
    ("tcp_keepalives_interval", "10"),
    ("tcp_keepalives_count", "3"),
    // A policy that hides rows becomes an error: an incomplete copy would not be noticed.
    ("row_security", "off"),
];
/// A commit on the primary must never wait for the standby that is being made.
const PRIMARY: &[(&str, &str)] = &[("synchronous_commit", "local")];
/// Only the commit that records a table as done is flushed; a standby kept read-only by a default still takes our rows.
const STANDBY: &[(&str, &str)] = &[("synchronous_commit", "off"), ("default_transaction_read_only", "off")];

/// Foreign keys, ordinary triggers and the read-only guard are silent in this role.
const REPLICA_ROLE: &str = "SET session_replication_role = replica";
/// Known from 17 on, so it cannot stand among the start-up settings.
const NO_TRANSACTION_TIMEOUT: &str = "SET transaction_timeout = 0";
/// What 14 to 16 and later versions say of the name of a snapshot that is not exported any more.
const SNAPSHOT_GONE: &[&str] = &["22023", "42704"];

/// What the sessions of a copy are called, on both sides.
pub const COPY_ROLE: &str = "copy";

/// `walrelay NAME copy`, never equal to a pipeline's name, so that no copy session is taken for the standby.
pub(super) fn application_name(pipeline: &PipelineName) -> String {
    pipeline.session_name(COPY_ROLE)
}

fn session(pipeline: &PipelineName, settings: &[(&str, &str)]) -> Session {
    let session = Session::new(application_name(pipeline));
    COMMON.iter().chain(settings).fold(session, |session, (name, value)| session.with(name, value))
}

/// The primary's SQL session.
pub(super) async fn primary_sql(url: &ServerUrl, pipeline: &PipelineName) -> Result<SqlClient, SnapshotError> {
    let failed = |error| server(Side::Primary, "open a session", error);
    let client = sql::connect(url, &session(pipeline, PRIMARY)).await.map_err(failed)?;
    without_transaction_timeout_sql(&client).await.map_err(|error| failed(error.into()))?;
    Ok(client)
}

/// The standby's SQL session.
pub(super) async fn standby_sql(url: &ServerUrl, pipeline: &PipelineName) -> Result<SqlClient, SnapshotError> {
    let client = sql::connect(url, &session(pipeline, STANDBY))
        .await
        .map_err(|error| server(Side::Standby, "open a session", error))?;
    let failed = |error: tokio_postgres::Error| server(Side::Standby, "set session_replication_role", error);
    client.batch_execute(REPLICA_ROLE).await.map_err(failed)?;
    without_transaction_timeout_sql(&client).await.map_err(failed)?;
    Ok(client)
}

/// A COPY session on the primary.
pub(super) async fn primary_copy(url: &ServerUrl, pipeline: &PipelineName) -> Result<Connection, SnapshotError> {
    let failed = |error| server(Side::Primary, "open a session", error);
    let mut connection = Connection::connect(url, &session(pipeline, PRIMARY)).await.map_err(failed)?;
    without_transaction_timeout(&mut connection).await.map_err(failed)?;
    Ok(connection)
}

/// Brings its transaction, which holds the locks, under the exported snapshot.
pub(super) async fn import(primary: &mut Connection, snapshot: &str) -> Result<(), SnapshotError> {
    match primary.simple_query(&command::import_snapshot(snapshot)).await {
        Ok(_) => Ok(()),
        Err(error) if error.code().is_some_and(|code| SNAPSHOT_GONE.contains(&code)) => Err(SnapshotError::Disturbed(
            format!("the session on the primary that exported the snapshot \"{snapshot}\" has ended"),
        )),
        Err(error) => Err(server(Side::Primary, format!("import the snapshot \"{snapshot}\""), error)),
    }
}

/// The first transaction that the imported snapshot does not see; none is begun for the question. Only a feed names it.
#[cfg(feature = "kafka")]
pub(super) async fn snapshot_xid(primary: &mut Connection) -> Result<Option<u32>, SnapshotError> {
    let sql = "SELECT pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())";
    let results = primary.simple_query(sql).await;
    let results = results.map_err(|error| server(Side::Primary, "ask for the snapshot's transaction id", error))?;
    let value =
        results.into_iter().flat_map(|result| result.rows).next().and_then(|row| row.into_iter().next().flatten());
    // Without its epoch, as pgoutput sends it.
    Ok(value.and_then(|text| std::str::from_utf8(&text).ok()?.parse::<u64>().ok()).map(|xid| xid as u32))
}

/// A COPY session on the standby.
pub(super) async fn standby_copy(url: &ServerUrl, pipeline: &PipelineName) -> Result<Connection, SnapshotError> {
    let failed = |error| server(Side::Standby, "open a session", error);
    let mut connection = Connection::connect(url, &session(pipeline, STANDBY)).await.map_err(failed)?;
    without_transaction_timeout(&mut connection).await.map_err(failed)?;
    connection
        .simple_query(REPLICA_ROLE)
        .await
        .map_err(|error| server(Side::Standby, "set session_replication_role", error))?;
    ownership::join(&mut connection, pipeline)
        .await
        .map_err(|error| server(Side::Standby, "share the advisory lock of the copy", error))?;
    Ok(connection)
}

async fn without_transaction_timeout(connection: &mut Connection) -> Result<(), WireError> {
    if connection.version_number() >= 170_000 {
        connection.simple_query(NO_TRANSACTION_TIMEOUT).await?;
    }
    Ok(())
}

async fn without_transaction_timeout_sql(client: &SqlClient) -> Result<(), tokio_postgres::Error> {
    let row = client.query_one("SELECT pg_catalog.current_setting('server_version_num')::int4", &[]).await?;
    if row.get::<_, i32>(0) >= 170_000 {
        client.batch_execute(NO_TRANSACTION_TIMEOUT).await?;
    }
    Ok(())
}
