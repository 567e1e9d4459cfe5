//! The pipeline's own page of the status: written here, read by `status`. Decides nothing.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Instant;

use tokio::sync::watch;

use crate::model::{Fallbacks, FeedCounts, Heartbeat, Lsn, PipelineReport, Prefetching, State};

use super::PipelineError;

/// Over this long a rate is averaged.
const RATE_SECONDS: f64 = 3.0;

/// Behind by more than this, a streaming pipeline is catching up again.
const BEHIND_SECONDS: f64 = 10.0;
/// Closer than this, it streams again.
const CURRENT_SECONDS: f64 = 2.0;

/// Publishes the report.
#[derive(Clone, Debug)]
pub(super) struct Reporter {
    report: Arc<watch::Sender<PipelineReport>>,
    heartbeat: Heartbeat,
    fallbacks: Fallbacks,
    feed: FeedCounts,
    prefetching: Prefetching,
    evictions: Arc<AtomicU32>,
}

impl Reporter {
    pub(super) fn new(report: PipelineReport) -> (Self, watch::Receiver<PipelineReport>) {
        let (sender, receiver) = watch::channel(report);
        let (heartbeat, fallbacks, feed) = (Heartbeat::default(), Fallbacks::default(), FeedCounts::default());
        let (prefetching, evictions) = (Prefetching::default(), Arc::default());
        (Self { report: Arc::new(sender), heartbeat, fallbacks, feed, prefetching, evictions }, receiver)
    }

    /// What beats whenever work is done.
    pub(super) fn heartbeat(&self) -> &Heartbeat {
        &self.heartbeat
    }

    /// Where the sink counts what it had to write row by row.
    pub(super) fn fallbacks(&self) -> &Fallbacks {
        &self.fallbacks
    }

    /// Where the sink counts what it sent to Kafka.
    pub(super) fn feed(&self) -> &FeedCounts {
        &self.feed
    }

    /// Where the sink tells what it reads ahead.
    pub(super) fn prefetching(&self) -> &Prefetching {
        &self.prefetching
    }

    /// How many owners this daemon, as a spare, has evicted since it saw one stream.
    pub(super) fn evictions(&self) -> &AtomicU32 {
        &self.evictions
    }

    /// Changes the report.
    pub(super) fn update(&self, change: impl FnOnce(&mut PipelineReport)) {
        let heartbeat = self.heartbeat.beats();
        self.report.send_modify(|report| {
            report.heartbeat = heartbeat;
            report.apply_fallbacks = self.fallbacks.counts();
            report.apply_rows_in_order = self.fallbacks.rows_in_order();
            if let Some(feed) = &mut report.feed {
                *feed = self.feed.report();
            }
            if let Some(prefetch) = &mut report.prefetch {
                *prefetch = self.prefetching.report();
            }
            change(report);
        });
    }

    /// Enters a state; a change of it is progress.
    pub(super) fn state(&self, state: State) {
        if self.report.borrow().state != state {
            tracing::info!(state = state.as_str(), "state");
            self.heartbeat.beat();
        }
        self.update(|report| {
            report.state = state;
            if state == State::Streaming {
                report.last_error = None;
            }
            if !matches!(state, State::Waiting | State::Starting) {
                report.waiting_for = None;
            }
        });
    }

    /// How far a stream is behind, and whether it has come to where the primary was at its beginning.
    pub(super) fn lags(&self, lag_seconds: f64, is_reached: bool) {
        match self.current_state() {
            State::Streaming if lag_seconds > BEHIND_SECONDS => self.state(State::CatchingUp),
            State::CatchingUp if lag_seconds < CURRENT_SECONDS && is_reached => self.state(State::Streaming),
            _ => {}
        }
    }

    /// Says what is being waited for.
    pub(super) fn waiting_for(&self, what: Option<String>) {
        if self.report.borrow().waiting_for != what {
            if let Some(what) = &what {
                tracing::info!(waiting_for = %what, "waiting");
            }
            self.update(|report| report.waiting_for = what);
        }
    }

    /// Says what a stream waits for, if that has a name, and gives it.
    pub(super) fn stream_waits(&self, waits_for_lock: bool) -> Option<&'static str> {
        let what = match () {
            () if waits_for_lock => Some("a lock on the standby"),
            () if self.feed().are_brokers_away() => Some("the Kafka brokers, which do not answer"),
            () => None,
        };
        self.waiting_for(what.map(str::to_owned));
        what
    }

    /// A line in the log where the primary begins or ends to wait for us, by what it now says (`lsn`: what is confirmed) and last said.
    pub(super) fn listed(&self, sync_state: Option<&str>, lsn: Lsn) {
        let before = self.report.borrow().sync_state.clone();
        let was_waited_for = matches!(before.as_deref(), Some("sync" | "quorum"));
        match sync_state {
            same if same == before.as_deref() => {}
            Some("sync" | "quorum") => tracing::info!(%lsn, "the primary now waits for this standby"),
            Some(sync_state) if was_waited_for => {
                tracing::info!(%lsn, sync_state, "the primary no longer waits for this standby");
            }
            _ => {}
        }
    }

    /// Transactions applied since the pipeline started.
    pub(super) fn transactions(&self) -> u64 {
        self.report.borrow().transactions
    }

    /// Row changes applied since the pipeline started.
    pub(super) fn rows(&self) -> u64 {
        self.report.borrow().rows
    }

    /// Whether a stream runs, which tells its own numbers.
    pub(super) fn is_in_stream(&self) -> bool {
        matches!(self.current_state(), State::CatchingUp | State::Streaming)
    }

    /// What ended the stream, or an attempt to begin it.
    pub(super) fn fault(&self, error: &PipelineError) {
        self.update(|report| {
            report.last_error = Some(error.to_string());
            report.interruptions += 1;
        });
    }

    /// What only a stream knows is unknown from now on; what the standby holds stays.
    pub(super) fn interrupted(&self) {
        self.update(|report| {
            report.sync_state = None;
            report.sent_lsn = None;
            report.lag_bytes = None;
            report.lag_seconds = None;
            report.server_lags_seconds = [None; 3];
            report.transactions_per_second = 0.0;
            report.rows_per_second = 0.0;
            report.memory_bytes = 0;
            report.spool_bytes = 0;
            report.is_busy = false;
        });
    }

    /// Current state.
    pub(super) fn current_state(&self) -> State {
        self.report.borrow().state
    }
}

/// Counts over the last seconds.
#[derive(Clone, Debug)]
pub(super) struct Rate {
    since: Instant,
    transactions: u64,
    rows: u64,
}

impl Rate {
    pub(super) fn new(now: Instant) -> Self {
        Self { since: now, transactions: 0, rows: 0 }
    }

    /// Writes the rates when a window has passed.
    pub(super) fn tick(&mut self, report: &mut PipelineReport, now: Instant) {
        let seconds = now.duration_since(self.since).as_secs_f64();
        if seconds < RATE_SECONDS {
            return;
        }
        report.transactions_per_second = (report.transactions - self.transactions) as f64 / seconds;
        report.rows_per_second = (report.rows - self.rows) as f64 / seconds;
        *self = Self { since: now, transactions: report.transactions, rows: report.rows };
    }
}
