//! The sessions to the primary: that they lead to one server, which is a primary. A url of several hosts may lead each of them elsewhere,
//! above all around a failover; what is asked of one server and done on another would be guarded by no rule. Changes nothing there.

use crate::config::ServerUrl;
use crate::model::{PipelineName, PrimaryIdentity};
use crate::source::{self, SourceError, identify};
use crate::wire::sql::{self, SqlClient};
use crate::wire::{Connection, Session};

use super::monitor::primary_session;
use super::ownership::first_value;
use super::{PipelineError, Settings};

/// What makes a server none to read from or to ask.
const IN_RECOVERY: &str = "it is in recovery (a physical standby)";
/// What mends a url that leads to the wrong one of its hosts.
const REMEDY: &str = "Among several hosts, target_session_attrs=read-write in the url picks the primary";

/// The sessions to the primary and who it is.
pub(super) struct Primary {
    pub(super) sql: SqlClient,
    pub(super) replication: Connection,
    pub(super) identity: PrimaryIdentity,
}

impl Primary {
    /// Opens both, and asks who it is.
    pub(super) async fn open(settings: &Settings) -> Result<Self, PipelineError> {
        let connecting = || SourceError::wire("connecting to the primary");
        let (url, name) = (&settings.primary, &settings.pipeline.name);
        let sql = sql::connect(url, &primary_session(name, "control")).await.map_err(connecting())?;
        let session = Session::replication(name.session_name("slot"));
        let mut replication = Connection::connect(url, &session).await.map_err(connecting())?;
        if replication.parameter("in_hot_standby") == Some("on") {
            return Err(PipelineError::NotYet(format!(
                "the server {} that [primary] url leads to to be promoted: {IN_RECOVERY}. {REMEDY}",
                replication.host()
            )));
        }
        let identity = identify(&mut replication).await?;
        refuse_two_servers(&sql, &mut replication).await?;
        refuse_wal_level(&sql).await?;
        Ok(Self { sql, replication, identity })
    }
}

/// A connection for the stream. The url may lead it to another server than the one over which the rules of resume ran (several hosts,
/// a failover meanwhile): then they run anew.
pub(super) async fn stream_connection(
    settings: &Settings,
    known: &PrimaryIdentity,
) -> Result<Connection, PipelineError> {
    let session = Session::replication(settings.pipeline.name.as_str());
    let mut connection = Connection::connect(&settings.primary, &session)
        .await
        .map_err(SourceError::wire("connecting to the primary"))?;
    let is_in_recovery = connection.parameter("in_hot_standby") == Some("on");
    let difference = if is_in_recovery {
        Some(IN_RECOVERY.to_owned())
    } else {
        source::identity_difference(known, &identify(&mut connection).await?)
    };
    let Some(difference) = difference else { return Ok(connection) };
    Err(PipelineError::NotYet(format!(
        "[primary] url to lead to one server: the stream's connection came to {}, which is not the server that was asked before: \
         {difference}. {REMEDY}",
        connection.host()
    )))
}

/// A SQL session for an errand, which waits for nothing. A standby knows neither the slot nor who streams from it: a guard that asks there
/// would let everything pass.
pub(super) async fn errand(url: &ServerUrl, name: &PipelineName, role: &str) -> Result<SqlClient, PipelineError> {
    let opened = sql::connect(url, &primary_session(name, role)).await;
    let sql = opened.map_err(SourceError::wire("connecting to the primary"))?;
    if sql.parameter("in_hot_standby") == Some("on") {
        return Err(PipelineError::Refused(format!(
            "the server that [primary] url ({url}) leads to is no primary: {IN_RECOVERY}. {REMEDY}"
        )));
    }
    Ok(sql)
}

async fn refuse_two_servers(sql: &SqlClient, replication: &mut Connection) -> Result<(), PipelineError> {
    if is_same_server(sql, replication).await? {
        return Ok(());
    }
    Err(PipelineError::NotYet(format!(
        "[primary] url to lead to one server: two connections came to different ones, one of them {}. {REMEDY}",
        replication.host()
    )))
}

/// The same for an errand's second session.
#[cfg(feature = "kafka")]
pub(super) async fn refuse_another(sql: &SqlClient, second: &mut Connection) -> Result<(), PipelineError> {
    if is_same_server(sql, second).await? {
        return Ok(());
    }
    Err(PipelineError::Refused(format!(
        "[primary] url must lead to one server: two connections came to different ones, one of them {}. {REMEDY}",
        second.host()
    )))
}

/// One server is told from another by when it was started.
async fn is_same_server(sql: &SqlClient, other: &mut Connection) -> Result<bool, PipelineError> {
    const STARTED: &str = "SELECT EXTRACT(epoch FROM pg_catalog.pg_postmaster_start_time())::text";
    const DOING: &str = "asking when the primary was started";
    let row = sql.query_one(STARTED, &[]).await.map_err(SourceError::sql(DOING))?;
    Ok(first_value(other, STARTED, DOING).await?.as_deref() == Some(row.get(0)))
}

async fn refuse_wal_level(sql: &SqlClient) -> Result<(), PipelineError> {
    let row = sql.query_one("SELECT pg_catalog.current_setting('wal_level')", &[]).await;
    let level: String = row.map_err(SourceError::sql("reading wal_level"))?.get(0);
    if level == "logical" {
        return Ok(());
    }
    Err(PipelineError::Refused(format!(
        "wal_level is {level} on the primary, logical replication needs logical: ALTER SYSTEM SET wal_level = 'logical', then restart \
         the server"
    )))
}
