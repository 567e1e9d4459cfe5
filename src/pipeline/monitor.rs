//! What the primary says of us, asked on a SQL session: once a second while we stream (state, positions, lags, what the slot
//! retains), and now and then while we do not, for what the slot retains grows most when nobody reads it. Changes nothing anywhere.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

use crate::backoff::every;
use crate::config::ServerUrl;
use crate::model::{Lsn, PipelineName, SlotName};
use crate::source::{SourceError, lists_standby};
use crate::wire::sql::{self, SqlClient};
use crate::wire::{Session, WireError};

use super::{Reporter, Settings};

/// How often while we stream.
const EVERY: Duration = Duration::from_secs(1);
/// How often while we do not.
const EVERY_AWAY: Duration = Duration::from_secs(2);
/// Pause after an attempt that failed while we do not stream: a primary that refuses us must not be asked every moment.
const AFTER_FAILURE: Duration = Duration::from_secs(10);
/// An answer that takes longer is given up, and the session with it.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// So many looks in a row may fail before what was seen last counts no more.
const FAILURES_LIMIT: u32 = 3;

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
    /// Whether the primary lists our walsender, but hides what it says of it.
    is_hidden: bool,
    /// Whether `synchronous_standby_names` lists us.
    is_named: bool,
    /// Whether it could not be asked of late.
    is_unknown: bool,
}

impl View {
    /// Nothing of what was seen before is told as if it were now.
    fn unknown() -> Self {
        Self { is_unknown: true, ..Self::default() }
    }

    /// Whether commits may wait for us: a potential standby may become one at any moment, and where the role may not see what
    /// the primary made of us, the setting alone decides.
    pub(super) fn is_listed(&self) -> bool {
        match self.sync_state.as_deref() {
            Some(state) => matches!(state, "sync" | "quorum" | "potential"),
            None => self.is_named || self.is_unknown,
        }
    }
}

const QUERY: &str = "SELECT r.state, r.sync_state, r.sent_lsn::text, r.write_lsn::text, r.flush_lsn::text, r.replay_lsn::text,
  EXTRACT(epoch FROM r.write_lag)::float8, EXTRACT(epoch FROM r.flush_lag)::float8, EXTRACT(epoch FROM r.replay_lag)::float8,
  c.lsn::text, pg_catalog.pg_wal_lsn_diff(c.lsn, s.restart_lsn)::int8, s.wal_status, s.safe_wal_size,
  r.pid IS NOT NULL AND r.state IS NULL, pg_catalog.current_setting('synchronous_standby_names')
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
    let mut ticks = every(EVERY);
    let mut session = None;
    let mut is_told = false;
    let mut failures = 0;
    loop {
        ticks.tick().await;
        match timeout(ANSWER_LIMIT, look(primary, pipeline, slot, walsender_process_id, &mut session)).await {
            Ok(Ok(new)) => {
                if new.is_hidden && !std::mem::replace(&mut is_told, true) {
                    tracing::warn!(
                        "the role may not see pg_stat_replication: sync_state and sent_lsn stay unknown; on the primary: GRANT \
                         pg_read_all_stats TO {}",
                        postgres_protocol::escape::escape_identifier(&primary.user)
                    );
                }
                view.send_if_modified(|old| std::mem::replace(old, new.clone()) != new);
                failures = 0;
                continue;
            }
            Ok(Err(error)) => tracing::debug!(%error, "the primary's statistics cannot be read"),
            Err(_) => tracing::debug!("the primary's statistics cannot be read within {ANSWER_LIMIT:?}"),
        }
        session = None;
        failures += 1;
        if failures >= FAILURES_LIMIT {
            view.send_if_modified(|old| std::mem::replace(old, View::unknown()) != View::unknown());
        }
    }
}

/// While the pipeline does not stream: what the slot retains, and how far the standby falls behind. Runs until dropped.
pub(super) async fn watch_while_away(settings: &Settings, reporter: &Reporter) {
    let slot = settings.pipeline.slot_name();
    let mut session = None;
    loop {
        tokio::time::sleep(EVERY_AWAY).await;
        if reporter.is_in_stream() {
            session = None;
            continue;
        }
        let looking = look(&settings.primary, &settings.pipeline.name, &slot, 0, &mut session);
        let view = timeout(ANSWER_LIMIT, looking).await.ok().and_then(Result::ok);
        if !reporter.is_in_stream() {
            let view = view.as_ref();
            reporter.update(|report| {
                let current = view.and_then(|view| view.current_lsn);
                report.lag_bytes = current.zip(report.replay_lsn).map(|(current, replay)| current.bytes_since(replay));
                report.retained_wal_bytes = view.and_then(|view| view.retained_wal_bytes);
                report.safe_wal_size_bytes = view.and_then(|view| view.safe_wal_size_bytes);
                report.wal_status = view.and_then(|view| view.wal_status.clone());
            });
        }
        if view.is_none() {
            session = None;
            tokio::time::sleep(AFTER_FAILURE).await;
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
        is_hidden: row.get(13),
        is_named: lists_standby(row.get(14), pipeline.as_str()),
        is_unknown: false,
    })
}
