//! What the primary says of us, asked on a SQL session: once a second while we stream (state, positions, lags, what the slot
//! retains), and now and then while we do not, for what the slot retains grows most when nobody reads it. Changes nothing anywhere.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::timeout;

use crate::backoff::every;
use crate::config::ServerUrl;
use crate::model::{Lsn, PipelineName, SlotName};
use crate::source::{SourceError, lists_standby};
use crate::wire::sql::{self, SqlClient};
use crate::wire::{Session, WireError};

use super::{PipelineError, Reporter, Settings};

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

/// A server that begins or ends takes no sessions: cannot_connect_now. One to which a stream still runs does not begin.
const TAKES_NO_SESSIONS: &str = "57P03";
/// Nothing more is confirmed for so long while a primary that shuts down waits for us: then it waits no longer.
const STALL_LIMIT: Duration = Duration::from_secs(10);
/// A keepalive takes its time on a primary where others write: a position that has not come for less than this is nothing to tell.
const UNSENT_AFTER: Duration = Duration::from_secs(3);
/// Most positions that are remembered, one a second.
const UNSENT_LIMIT: usize = 600;

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
    /// Whether it shuts down. Its walsender then waits until we have confirmed all that it sent.
    pub(super) is_leaving: bool,
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
            Ok(Err(error)) => {
                tracing::debug!(%error, "the primary's statistics cannot be read");
                let is_leaving =
                    matches!(&error, SourceError::Wire { source, .. } if source.code() == Some(TAKES_NO_SESSIONS));
                view.send_if_modified(|view| is_leaving && !std::mem::replace(&mut view.is_leaving, true));
            }
            Err(_) => tracing::debug!("the primary's statistics cannot be read within {ANSWER_LIMIT:?}"),
        }
        session = None;
        failures += 1;
        if failures >= FAILURES_LIMIT {
            view.send_if_modified(|old| {
                let unknown = View { is_leaving: old.is_leaving, ..View::unknown() };
                std::mem::replace(old, unknown.clone()) != unknown
            });
        }
    }
}

/// Whether a primary that shuts down is kept waiting. While the sink works it is, so that a switchover finds all of it there; what
/// waits for somebody else may do so for ever, and the slot sends again what was not confirmed.
#[derive(Debug)]
pub(super) struct Leaving {
    primary: String,
    /// What was confirmed, and since when that has not moved.
    stalled: Option<(Lsn, Instant)>,
}

impl Leaving {
    pub(super) fn new(primary: &ServerUrl) -> Self {
        Self { primary: primary.to_string(), stalled: None }
    }

    /// An error once the wait for `waiting_for` has held up for too long what is pending: nothing behind `flush` was confirmed.
    pub(super) fn look(
        &mut self,
        is_leaving: bool,
        flush: Lsn,
        waiting_for: Option<&str>,
        now: Instant,
    ) -> Result<(), PipelineError> {
        let Some(what) = waiting_for.filter(|_| is_leaving) else {
            self.stalled = None;
            return Ok(());
        };
        let since = self.stalled.filter(|(lsn, _)| *lsn == flush).map_or(now, |(_, since)| since);
        self.stalled = Some((flush, since));
        if now.duration_since(since) < STALL_LIMIT {
            return Ok(());
        }
        Err(PipelineError::NotYet(format!(
            "the primary {} to be there again: it shuts down, and was kept from it because what it sent waits for {what}. Nothing behind \
             {flush} was confirmed for {} s; the slot sends it again",
            self.primary,
            STALL_LIMIT.as_secs()
        )))
    }
}

/// The primary's positions that were seen and have not come here, oldest first. While the walsender decodes what is not published,
/// commits behind that wait too, and nothing that came tells of them.
#[derive(Debug, Default)]
pub(super) struct Unsent(VecDeque<(Lsn, Instant)>);

impl Unsent {
    /// The primary was seen at `current`; all up to `received` has come.
    pub(super) fn note(&mut self, current: Option<Lsn>, received: Lsn, now: Instant) {
        while self.0.front().is_some_and(|(lsn, _)| *lsn <= received) {
            self.0.pop_front();
        }
        let last = self.0.back().map_or(received, |(lsn, _)| *lsn);
        if let Some(current) = current.filter(|current| *current > last && self.0.len() < UNSENT_LIMIT) {
            self.0.push_back((current, now));
        }
    }

    /// For how long the oldest of them has not come, zero while that is not long.
    pub(super) fn seconds(&self, received: Lsn, now: Instant) -> f64 {
        let oldest = self.0.iter().find(|(lsn, _)| *lsn > received);
        let age = oldest.map_or(Duration::ZERO, |(_, seen)| now.saturating_duration_since(*seen));
        if age < UNSENT_AFTER { 0.0 } else { age.as_secs_f64() }
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
        is_leaving: false,
        is_hidden: row.get(13),
        is_named: lists_standby(row.get(14), pipeline.as_str()),
        is_unknown: false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_primary_that_leaves_waits_while_positions_move_and_not_for_what_waits_for_others() {
        let start = Instant::now();
        let mut leaving = Leaving { primary: "u@p:1/d".to_owned(), stalled: None };
        let lock = Some("a lock on the standby");
        // Seconds, whether the primary leaves, what is confirmed, what is waited for, and whether that is too long.
        for (seconds, is_leaving, flush, waiting_for, expected) in [
            (0, false, 10, lock, false),
            (20, true, 10, lock, false),
            (29, true, 10, lock, false),
            (30, true, 11, lock, false),
            (39, true, 11, lock, false),
            (40, true, 11, None, false),
            (41, true, 11, lock, false),
            (50, true, 11, lock, false),
            (51, true, 11, lock, true),
        ] {
            let now = start + Duration::from_secs(seconds);
            let error = leaving.look(is_leaving, Lsn(flush), waiting_for, now).err();
            assert_eq!(error.is_some(), expected, "{seconds}");
            let Some(error) = error.map(|error| error.to_string()) else { continue };
            assert!(
                error.contains("u@p:1/d") && error.contains("a lock on the standby") && error.contains("0/B"),
                "{error}"
            );
        }
    }

    #[test]
    fn what_was_seen_and_has_not_come_has_the_age_of_the_oldest() {
        let start = Instant::now();
        let mut unsent = Unsent::default();
        // Seconds, the primary's position, what has come, and the age.
        for (seconds, current, received, expected) in [
            (0, None, 10, 0.0),
            (1, Some(10), 10, 0.0),
            // On an idle primary what others write comes with the next keepalive.
            (2, Some(20), 10, 0.0),
            (3, Some(30), 20, 0.0),
            (4, Some(40), 30, 0.0),
            (5, Some(50), 30, 0.0),
            (9, Some(50), 30, 5.0),
            (10, None, 30, 6.0),
            // A walsender that works, but stays behind, stays so without a jump to zero.
            (11, Some(60), 40, 6.0),
            (12, Some(60), 59, 0.0),
            (13, Some(60), 60, 0.0),
        ] {
            let now = start + Duration::from_secs(seconds);
            unsent.note(current.map(Lsn), Lsn(received), now);
            assert_eq!(unsent.seconds(Lsn(received), now), expected, "{seconds}");
        }
        assert!(unsent.0.is_empty());
    }
}
