//! Who runs a pipeline: one daemon at a time, by an advisory lock on the standby, or on the primary where the sink is no Postgres
//! server. A second one waits as a hot spare.
//!
//! The lock alone decides who works; the progress row's compare-and-set decides what counts. A daemon that is frozen keeps its
//! lock, but loses its slot when the primary gives up on it; a spare that sees the slot idle for long ends its sessions.

use std::time::Duration;

use postgres_protocol::escape::escape_literal;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::config::ServerUrl;
use crate::model::{PipelineName, SlotName};
use crate::sink::SinkError;
use crate::sink::postgres::{CONTROL_ROLE, Looks, applying_roles, open_session, streaming_roles};
use crate::snapshot::COPY_ROLE;
#[cfg(feature = "kafka")]
use crate::source::SourceError;
use crate::source::slot_facts;
use crate::wire::Connection;
use crate::wire::sql::SqlClient;

use super::PipelineError;
#[cfg(feature = "kafka")]
use super::monitor::primary_session;
use super::reporter::Reporter;

/// Role of the session that holds a lock on the primary.
#[cfg(feature = "kafka")]
pub(super) const OWNER_ROLE: &str = "owner";
/// Pause between attempts of a spare.
const PAUSE: Duration = Duration::from_secs(1);
/// A daemon that holds the lock, copies nothing and has not used its slot for this long is taken as dead or frozen.
const SLOT_IDLE_LIMIT: Duration = Duration::from_secs(8);

/// The session that holds the lock, kept for as long as the attempt lasts.
#[derive(Debug)]
pub(super) struct Ownership {
    pub(super) connection: Connection,
}

impl Ownership {
    /// Whether a session that applies waits for a lock, other than that for a table's next page, which passes by itself; an error if the
    /// owner's session is gone, and the lock with it.
    async fn look(&mut self, pipeline: &PipelineName) -> Result<bool, PipelineError> {
        let names: Vec<String> = applying_roles().map(|role| escape_literal(&pipeline.session_name(role))).collect();
        let sql = format!(
            "SELECT EXISTS (SELECT FROM pg_catalog.pg_stat_activity WHERE application_name IN ({}) AND wait_event_type = 'Lock' \
             AND wait_event <> 'extend' AND datname = pg_catalog.current_database())",
            names.join(", ")
        );
        Ok(first_value(&mut self.connection, &sql, "looking after the pipeline's lock").await?.as_deref() == Some("t"))
    }
}

/// Keeps the lock's session alive while the pipeline streams, says whether the apply session waits for a lock, and looks at what else
/// the sink wants looked at. Ends only with an error: without the session the lock is gone, and another daemon may work.
/// Without an owner there is nothing to keep.
pub(super) async fn keep(
    ownership: Option<&mut Ownership>,
    pipeline: &PipelineName,
    waits_for_lock: &watch::Sender<bool>,
    looks: Option<Looks>,
    reporter: &Reporter,
) -> PipelineError {
    let Some(ownership) = ownership else { return std::future::pending().await };
    loop {
        match ownership.look(pipeline).await {
            Ok(waits) => waits_for_lock.send_if_modified(|before| std::mem::replace(before, waits) != waits),
            Err(error) => return error,
        };
        if let Some(looks) = &looks
            && let Err(error) = looks.look(&mut ownership.connection, reporter.rows()).await
        {
            return error.into();
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// All sessions of a pipeline on its standby.
pub fn standby_roles() -> impl Iterator<Item = &'static str> {
    streaming_roles().chain([CONTROL_ROLE, COPY_ROLE])
}

/// Takes the lock, waiting as a spare while another daemon holds it.
pub(super) async fn own(
    sink: &ServerUrl,
    primary_sql: &SqlClient,
    pipeline: &PipelineName,
    slot: &SlotName,
    reporter: &Reporter,
) -> Result<Ownership, PipelineError> {
    let connection = open_session(sink, pipeline, CONTROL_ROLE).await?;
    let roles: Vec<&str> = standby_roles().collect();
    let claim = Claim { pipeline, lock: standby_lock(pipeline), roles: &roles };
    take(connection, claim, primary_sql, slot, reporter).await
}

/// The same for a sink that is no Postgres server: the lock stands on the primary.
#[cfg(feature = "kafka")]
pub(super) async fn own_on_primary(
    primary: &ServerUrl,
    primary_sql: &SqlClient,
    pipeline: &PipelineName,
    slot: &SlotName,
    reporter: &Reporter,
) -> Result<Ownership, PipelineError> {
    let connection = Connection::connect(primary, &primary_session(pipeline, OWNER_ROLE))
        .await
        .map_err(SourceError::wire("connecting to the primary"))?;
    let claim = Claim { pipeline, lock: primary_lock(pipeline), roles: &[OWNER_ROLE, COPY_ROLE] };
    take(connection, claim, primary_sql, slot, reporter).await
}

/// What is claimed, and whose sessions go with it.
struct Claim<'a> {
    pipeline: &'a PipelineName,
    lock: String,
    /// Roles of the sessions that an owner who is gone may have left on the server of the lock.
    roles: &'a [&'a str],
}

async fn take(
    mut connection: Connection,
    claim: Claim<'_>,
    primary_sql: &SqlClient,
    slot: &SlotName,
    reporter: &Reporter,
) -> Result<Ownership, PipelineError> {
    let pipeline = claim.pipeline;
    let mut slot_idle_since: Option<Instant> = None;
    while !try_lock(&mut connection, &claim.lock).await? {
        let stranger = stranger(&mut connection, &claim.lock).await?;
        reporter.waiting_for(Some(
            stranger.unwrap_or_else(|| "another walrelay that runs this pipeline (this one is a hot spare)".to_owned()),
        ));
        reporter.state(crate::model::State::Waiting);
        let is_active = slot_facts(primary_sql, slot).await?.is_none_or(|facts| facts.active);
        if is_active || is_copying(&mut connection, pipeline).await? {
            slot_idle_since = None;
        } else if slot_idle_since.get_or_insert_with(Instant::now).elapsed() > SLOT_IDLE_LIMIT {
            tracing::warn!("the daemon that owns this pipeline does not use its slot any more; its sessions are ended");
            evict(&mut connection, &claim).await?;
            slot_idle_since = None;
        }
        tokio::time::sleep(PAUSE).await;
    }
    // What a dead owner left behind must not hold the origin or a row lock against us.
    evict(&mut connection, &claim).await?;
    reporter.waiting_for(None);
    Ok(Ownership { connection })
}

/// Name of the lock on a standby.
pub(super) fn standby_lock(pipeline: &PipelineName) -> String {
    format!("walrelay pipeline {pipeline}")
}

/// Name of the lock on the primary. A pipeline of another daemon may have the same name and this server as its standby.
#[cfg(feature = "kafka")]
pub(super) fn primary_lock(pipeline: &PipelineName) -> String {
    format!("walrelay pipeline {pipeline} of the primary")
}

pub(super) async fn try_lock(connection: &mut Connection, name: &str) -> Result<bool, PipelineError> {
    let key = escape_literal(name);
    let sql = format!("SELECT pg_catalog.pg_try_advisory_lock(pg_catalog.hashtextextended({key}, 0))");
    Ok(first_value(connection, &sql, "taking the pipeline's lock").await?.as_deref() == Some("t"))
}

/// Who holds the lock, where that is no walrelay of this role: anybody who may connect can take it, and only a person can end that.
async fn stranger(connection: &mut Connection, name: &str) -> Result<Option<String>, PipelineError> {
    let key = escape_literal(name);
    // An advisory lock shows its key in two halves.
    let sql = format!(
        "SELECT pg_catalog.format('the pipeline''s lock, which the process %s of the role \"%s\" holds, no walrelay of ours: SELECT \
         pg_terminate_backend(%s) there', a.pid, a.usename, a.pid) \
         FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid \
         JOIN pg_catalog.pg_database d ON d.oid = l.database AND d.datname = pg_catalog.current_database() \
         WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 AND a.usename <> current_user \
         AND ((l.classid::int8 << 32) | l.objid::int8) = pg_catalog.hashtextextended({key}, 0) LIMIT 1"
    );
    first_value(connection, &sql, "asking who holds the pipeline's lock").await
}

/// Whether the owner may be in its initial copy, when the slot is idle for a good reason. Anybody's session may have that name: those
/// count that `evict` would end.
async fn is_copying(connection: &mut Connection, pipeline: &PipelineName) -> Result<bool, PipelineError> {
    let name = escape_literal(&pipeline.session_name(COPY_ROLE));
    let sql = format!(
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_stat_activity WHERE application_name = {name} AND usename = current_user \
         AND datname = pg_catalog.current_database())"
    );
    Ok(first_value(connection, &sql, "looking for a running copy").await?.as_deref() == Some("t"))
}

/// Ends every other session of this pipeline on the database of the lock. They are the same role's, which may do so.
async fn evict(connection: &mut Connection, claim: &Claim<'_>) -> Result<(), PipelineError> {
    let names: Vec<String> =
        claim.roles.iter().map(|role| escape_literal(&claim.pipeline.session_name(role))).collect();
    let sql = format!(
        "SELECT pg_catalog.count(pg_catalog.pg_terminate_backend(pid)) FROM pg_catalog.pg_stat_activity \
         WHERE application_name IN ({}) AND pid <> pg_catalog.pg_backend_pid() AND usename = current_user \
           AND datname = pg_catalog.current_database()",
        names.join(",")
    );
    first_value(connection, &sql, "ending stale sessions").await.map(drop)
}

/// The first column of the first row.
pub(super) async fn first_value(
    connection: &mut Connection,
    sql: &str,
    doing: &str,
) -> Result<Option<String>, PipelineError> {
    let results = connection.simple_query(sql).await.map_err(SinkError::wire(doing))?;
    let row = results.into_iter().flat_map(|result| result.rows).next();
    let value = row.and_then(|row| row.into_iter().next().flatten());
    Ok(value.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
}
