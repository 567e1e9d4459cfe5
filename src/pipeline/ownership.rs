//! Who runs a pipeline: one daemon at a time, by an advisory lock on the standby, or on the primary where the sink is no Postgres
//! server. A second one waits as a hot spare.
//!
//! The lock alone decides who works; the progress row's compare-and-set decides what counts. A daemon that is frozen keeps its
//! lock, but loses its slot when the primary gives up on it; a spare that sees the slot idle for long ends its sessions.

use std::sync::atomic::Ordering::Relaxed;
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
/// Doubled at each eviction by us, so often at most: a start may take longer, and two daemons must not end each other's for ever.
const DOUBLINGS_LIMIT: u32 = 5;

/// The session that holds the lock, kept for as long as the attempt lasts.
#[derive(Debug)]
pub(super) struct Ownership {
    pub(super) connection: Connection,
}

/// What the sessions of a stream were seen at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    /// One that applies waits for a lock, other than that for a table's next page, which passes by itself.
    WaitsForLock,
    /// One is at a statement, and waits neither for what we send nor for us to read.
    Works,
    Nothing,
}

impl Ownership {
    /// What the server is at for us; an error if the owner's session is gone, and the lock with it.
    async fn look(&mut self, pipeline: &PipelineName) -> Result<Seen, PipelineError> {
        let sql = format!(
            "SELECT CASE WHEN pg_catalog.bool_or(application_name IN ({}) AND wait_event_type = 'Lock' AND wait_event <> 'extend') THEN 'waits' \
             WHEN pg_catalog.bool_or(usename = current_user AND state = 'active' AND wait_event_type IS DISTINCT FROM 'Client') THEN 'works' END \
             FROM pg_catalog.pg_stat_activity WHERE application_name IN ({}) AND datname = pg_catalog.current_database()",
            session_names(pipeline, applying_roles()),
            session_names(pipeline, streaming_roles())
        );
        let seen = first_value(&mut self.connection, &sql, "looking after the pipeline's lock").await?;
        Ok(match seen.as_deref() {
            Some("waits") => Seen::WaitsForLock,
            Some("works") => Seen::Works,
            _ => Seen::Nothing,
        })
    }
}

/// Keeps the lock's session alive while the pipeline streams, says whether the apply session waits for a lock, counts it as work that the
/// server is at a statement of ours, which may take long, and looks at what else the sink wants looked at. Ends only with an error:
/// without the session the lock is gone, and another daemon may work. Without an owner there is nothing to keep.
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
            Ok(seen) => {
                let waits = seen == Seen::WaitsForLock;
                waits_for_lock.send_if_modified(|before| std::mem::replace(before, waits) != waits);
                if seen == Seen::Works {
                    reporter.heartbeat().beat();
                }
            }
            Err(error) => return error,
        }
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
        if is_active {
            reporter.evictions().store(0, Relaxed);
        }
        let idle_limit = SLOT_IDLE_LIMIT * (1u32 << reporter.evictions().load(Relaxed).min(DOUBLINGS_LIMIT));
        if is_active || is_copying(&mut connection, pipeline).await? || is_starting(&mut connection, &claim).await? {
            slot_idle_since = None;
        } else if slot_idle_since.get_or_insert_with(Instant::now).elapsed() > idle_limit {
            tracing::warn!("the daemon that owns this pipeline does not use its slot any more; its sessions are ended");
            evict(&mut connection, &claim).await?;
            reporter.evictions().fetch_add(1, Relaxed);
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

/// The session that holds the lock, as `a`.
fn holder(name: &str) -> String {
    // An advisory lock shows its key in two halves.
    format!(
        "FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid \
         JOIN pg_catalog.pg_database d ON d.oid = l.database AND d.datname = pg_catalog.current_database() \
         WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 \
         AND ((l.classid::int8 << 32) | l.objid::int8) = pg_catalog.hashtextextended({}, 0)",
        escape_literal(name)
    )
}

/// Whether the owner is at work before its stream: its session was used since our last looks, or is at a statement, and no session that
/// applies is there yet. With one, the session is used also by an owner that does not reach the primary any more.
async fn is_starting(connection: &mut Connection, claim: &Claim<'_>) -> Result<bool, PipelineError> {
    let sql = format!(
        "SELECT EXISTS (SELECT {} AND a.usename = current_user AND (a.state_change > pg_catalog.clock_timestamp() - interval '2 seconds' \
         OR a.state = 'active' AND a.wait_event_type IS DISTINCT FROM 'Client')) \
         AND NOT EXISTS (SELECT FROM pg_catalog.pg_stat_activity WHERE application_name IN ({}) AND usename = current_user \
         AND datname = pg_catalog.current_database())",
        holder(&claim.lock),
        session_names(claim.pipeline, applying_roles())
    );
    Ok(first_value(connection, &sql, "looking whether the pipeline's owner starts").await?.as_deref() == Some("t"))
}

/// Who holds the lock, where that is no walrelay of this role: anybody who may connect can take it, and only a person can end that.
async fn stranger(connection: &mut Connection, name: &str) -> Result<Option<String>, PipelineError> {
    let sql = format!(
        "SELECT pg_catalog.format('the pipeline''s lock, which the process %s of the role \"%s\" holds, no walrelay of ours: SELECT \
         pg_terminate_backend(%s) there', a.pid, a.usename, a.pid) {} AND a.usename <> current_user LIMIT 1",
        holder(name)
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
    let sql = format!(
        "SELECT pg_catalog.count(pg_catalog.pg_terminate_backend(pid)) FROM pg_catalog.pg_stat_activity \
         WHERE application_name IN ({}) AND pid <> pg_catalog.pg_backend_pid() AND usename = current_user \
           AND datname = pg_catalog.current_database()",
        session_names(claim.pipeline, claim.roles.iter().copied())
    );
    first_value(connection, &sql, "ending stale sessions").await.map(drop)
}

/// What the sessions of these roles are called, as literals of a list.
fn session_names<'a>(pipeline: &PipelineName, roles: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<String> = roles.map(|role| escape_literal(&pipeline.session_name(role))).collect();
    names.join(", ")
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
