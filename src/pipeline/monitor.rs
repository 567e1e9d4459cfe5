//! What the primary says of us, asked once a second on a SQL session: state, positions, lags, what the slot retains. Also
//! whether the apply session waits for a lock on the standby. Changes nothing anywhere.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::config::ServerUrl;
use crate::model::{Lsn, PipelineName, SlotName};
use crate::source::SourceError;
use crate::wire::sql::{self, SqlClient};
use crate::wire::{Session, WireError};

/// How often.
const EVERY: Duration = Duration::from_secs(1);
/// An answer that takes longer is given up, and the session with it.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// The primary's words.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct View {
    pub(super) walsender_state: Option<String>,
    pub(super) sync_state: Option<String>,
    pub(super) sent_lsn: Option<Lsn>,
    pub(super) write_lsn: Option<Lsn>,
    pub(super) flush_lsn: Option<Lsn>,
    pub(super) replay_lsn: Option<Lsn>,
    pub(super) lags_seconds: [Option<f64>; 3],
    pub(super) current_lsn: Option<Lsn>,
    pub(super) retained_wal_bytes: Option<u64>,
    pub(super) wal_status: Option<String>,
    pub(super) safe_wal_size_bytes: Option<i64>,
}

impl View {
    /// Whether commits may wait for us: a potential standby may become one at any moment.
    pub(super) fn is_listed(&self) -> bool {
        matches!(self.sync_state.as_deref(), Some("sync" | "quorum" | "potential"))
    }
}

const QUERY: &str = "SELECT r.state, r.sync_state, r.sent_lsn::text, r.write_lsn::text, r.flush_lsn::text, r.replay_lsn::text,
  EXTRACT(epoch FROM r.write_lag)::float8, EXTRACT(epoch FROM r.flush_lag)::float8, EXTRACT(epoch FROM r.replay_lag)::float8,
  c.lsn::text, pg_catalog.pg_wal_lsn_diff(c.lsn, s.restart_lsn)::int8, s.wal_status, s.safe_wal_size
  FROM (SELECT pg_catalog.pg_current_wal_lsn() AS lsn) c
  LEFT JOIN pg_catalog.pg_stat_replication r ON r.pid = $1
  LEFT JOIN pg_catalog.pg_replication_slots s ON s.slot_name = $2";

/// Settings of every SQL session to the primary. Our own commits there must never wait for ourselves.
pub(super) fn primary_session(pipeline: &PipelineName, role: &str) -> Session {
    Session::new(pipeline.session_name(role))
        .with("synchronous_commit", "local")
        .with("search_path", "")
        .with("statement_timeout", "0")
        .with("lock_timeout", "0")
        .with("idle_session_timeout", "0")
        .with("default_transaction_read_only", "off")
}

/// Runs until dropped; a lost session is opened again.
pub(super) async fn watch_primary(
    primary: &ServerUrl,
    pipeline: &PipelineName,
    slot: &SlotName,
    walsender_process_id: i32,
    view: &watch::Sender<View>,
) {
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut session = None;
    loop {
        ticks.tick().await;
        match timeout(ANSWER_LIMIT, look(primary, pipeline, slot, walsender_process_id, &mut session)).await {
            Ok(Ok(new)) => {
                view.send_if_modified(|old| std::mem::replace(old, new.clone()) != new);
            }
            Ok(Err(error)) => {
                tracing::debug!(%error, "the primary's statistics cannot be read");
                session = None;
            }
            Err(_) => session = None,
        }
    }
}

struct Asking {
    client: SqlClient,
    statement: tokio_postgres::Statement,
}

async fn look(
    primary: &ServerUrl,
    pipeline: &PipelineName,
    slot: &SlotName,
    walsender_process_id: i32,
    session: &mut Option<Asking>,
) -> Result<View, SourceError> {
    let context = || SourceError::sql("reading pg_stat_replication");
    let asking = match session {
        Some(asking) => asking,
        None => {
            let lost = |source: WireError| SourceError::Wire { context: "opening a session".into(), source };
            let client = sql::connect(primary, &primary_session(pipeline, "monitor")).await.map_err(lost)?;
            let statement = client.prepare(QUERY).await.map_err(context())?;
            session.insert(Asking { client, statement })
        }
    };
    let row =
        asking.client.query_one(&asking.statement, &[&walsender_process_id, &slot.as_str()]).await.map_err(context())?;
    let lsn = |at: usize| row.get::<_, Option<String>>(at).and_then(|text| text.parse().ok());
    Ok(View {
        walsender_state: row.get(0),
        sync_state: row.get(1),
        sent_lsn: lsn(2),
        write_lsn: lsn(3),
        flush_lsn: lsn(4),
        replay_lsn: lsn(5),
        lags_seconds: [row.get(6), row.get(7), row.get(8)],
        current_lsn: lsn(9),
        retained_wal_bytes: row.get::<_, Option<i64>>(10).map(|bytes| bytes.max(0) as u64),
        wal_status: row.get(11),
        safe_wal_size_bytes: row.get(12),
    })
}
