//! The sink itself: an open apply session, where it stands, and the rule that after an error that cannot be mended it is good for
//! nothing.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};

use crate::config::{APPLY_CONNECTIONS_LIMIT, APPLY_DEPTH_LIMIT, ServerUrl};
use crate::model::{Fallbacks, Heartbeat, Lsn, Progress};
use crate::wire::{Connection, WireError};

use super::super::{Batch, Commit, Receipt, SinkError};
use super::ahead::AheadOpener;
use super::batch::{Applier, Around};
use super::beside::{Beside, Event};
use super::change::Failure;
use super::flusher::Flusher;
use super::looks::Looks;
use super::open::open_apply_session;
use super::opening::Opening;
use super::prefetch_session::PrefetchSessions;
use super::session::Pipelined;
use super::store;
use super::tables::Tables;
use super::unit::Unit;

/// How often a round trip is measured: the shortest counts.
const ROUND_TRIPS: usize = 3;

/// An apply session. It lives as long as one replication session; after an error it is opened anew.
#[derive(Debug)]
pub struct PostgresSink {
    /// Gone after an error, and while a batch is being sent: a batch that is given up half-way drops the connection, and the
    /// server rolls back.
    applier: Option<Applier>,
    /// What `mend` is to deal with, if it is of the batches at their turn.
    failure: Option<Option<Failure>>,
    /// Until it is taken.
    flusher: Option<Box<Flusher>>,
    ahead: AheadOpener,
    /// Until they are taken.
    receipts: Option<mpsc::Receiver<Receipt>>,
    /// Whether somebody took the flusher: only then a commit need not wait for the disk.
    is_flushed_elsewhere: bool,
    beside: Beside,
    tables: Tables,
    progress: Progress,
    heartbeat: Heartbeat,
    round_trip: Duration,
    depth: usize,
    /// Where pages may be read ahead.
    prefetch: Option<PrefetchSessions>,
}

/// What became of the batches under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::sink) enum Answer {
    /// One more is committed; its receipt is there.
    Committed,
    /// One failed: `mend` is to be called.
    Failed,
}

impl PostgresSink {
    /// Opens the session and reads the progress row durably. `None`: the standby has no record of this pipeline. The caller
    /// owns the pipeline: an earlier apply session of it is ended.
    pub async fn open(url: &ServerUrl, opening: Opening, heartbeat: Heartbeat) -> Result<Option<Self>, SinkError> {
        let mut connection = open_apply_session(url, &opening.pipeline).await?;
        let Some(progress) = store::durable_progress(&mut connection, &opening.pipeline).await? else {
            return Ok(None);
        };
        let unit = Unit::of(&mut connection).await?;
        let depth = opening.apply_depth.clamp(1, APPLY_DEPTH_LIMIT);
        let others = opening.apply_connections.clamp(1, APPLY_CONNECTIONS_LIMIT) - 1;
        let (sender, receipts) = mpsc::channel(APPLY_DEPTH_LIMIT + APPLY_CONNECTIONS_LIMIT);
        let told = (progress.lsn, &sender);
        let (beside, mut origins) = Beside::open(url, &opening.pipeline, &unit, others, told).await?;
        origins.push(opening.pipeline.owned_name());
        let flusher = Flusher::open(url, &opening.pipeline, &mut connection, &unit, &origins).await?;
        let prefetch = PrefetchSessions::start(url, &opening, &unit, &mut connection).await?;
        let ahead = AheadOpener {
            url: url.clone(),
            opening: opening.clone(),
            unit,
            progress: progress.clone(),
            heartbeat: heartbeat.clone(),
        };
        let measured = round_trip(&mut connection).await;
        let round_trip = measured.map_err(SinkError::wire("measuring the way to the standby"))?;
        let mut applier = Applier::new(Pipelined::new(connection, progress.lsn, sender), opening.pipeline.as_str())?;
        applier.is_shared = !beside.is_none();
        applier.prefetch = prefetch.as_ref().map(PrefetchSessions::prefetch);
        Ok(Some(Self {
            applier: Some(applier),
            failure: None,
            flusher,
            ahead,
            receipts: Some(receipts),
            is_flushed_elsewhere: false,
            beside,
            tables: Tables::new(opening),
            progress,
            heartbeat,
            round_trip,
            depth,
            prefetch,
        }))
    }

    /// What makes durable what was committed without waiting for the disk, if there is one. Who takes it uses it: from now on a
    /// batch may ask for such a commit.
    pub(in crate::sink) fn take_flusher(&mut self) -> Option<Box<Flusher>> {
        let flusher = self.flusher.take();
        self.is_flushed_elsewhere |= flusher.is_some();
        flusher
    }

    /// Opens the sessions that write a transaction while it is open on the primary.
    pub(in crate::sink) fn ahead(&self) -> AheadOpener {
        self.ahead.clone()
    }

    /// What is to be looked at beside the batches.
    pub fn looks(&self) -> Looks {
        let reads = self.prefetch.as_ref().map(PrefetchSessions::reads);
        Looks { drift: self.tables.drift().clone(), reads }
    }

    /// Where the receipts come, in order. Who takes it takes them, and sends no more than `depth` batches before that.
    pub(in crate::sink) fn take_receipts(&mut self) -> Option<mpsc::Receiver<Receipt>> {
        self.receipts.take()
    }

    /// Most batches that may be under way.
    pub fn depth(&self) -> usize {
        self.depth.max(self.connections())
    }

    /// Connections that apply.
    pub fn connections(&self) -> usize {
        1 + self.beside.count()
    }

    /// Where it is told, while the sink is in use, whether a session that applies waits for a lock.
    pub fn watch_locks(&mut self, lock_waits: watch::Receiver<bool>) {
        self.beside.watch_locks(lock_waits);
    }

    /// How long the way to the standby and back takes, as measured when the session was opened.
    pub fn round_trip(&self) -> Duration {
        self.round_trip
    }

    /// Where the record stands: it began with what the standby said, durably, and each batch moves it on.
    pub fn position(&self) -> Lsn {
        self.applier.as_ref().map_or(self.progress.lsn, |applier| applier.session.committed())
    }

    /// The primary's timeline for the records to come.
    pub fn set_timeline(&mut self, timeline: u32) {
        self.progress.timeline = timeline;
    }

    /// Where it is counted when changes that should go together are written row by row.
    pub fn count_fallbacks_in(&mut self, fallbacks: Fallbacks) {
        if let Some(applier) = &mut self.applier {
            applier.count_fallbacks_in(fallbacks);
        }
    }

    /// Sends a batch as one transaction, behind those that are under way; its receipt comes when it is visible, and on the standby's
    /// disk if that says so. One that was written ahead is committed on return, and its receipt is returned. After an error, or if
    /// the future is dropped, the sink is good for nothing, and the fate of what was under way is unknown: only the progress row,
    /// read durably by a new `open`, tells.
    pub(in crate::sink) async fn begin(&mut self, mut batch: Batch) -> Result<Option<Receipt>, SinkError> {
        if !self.is_flushed_elsewhere {
            batch.commit = Commit::Durable;
        }
        let mut applier = self.take_applier()?;
        if batch.position < applier.sent {
            return Err(misused("the batch ends before what is applied"));
        }
        let Self { beside, tables, progress, heartbeat, depth, .. } = self;
        let mut around = Around { tables, progress, heartbeat };
        let batch = match beside.is_none() {
            true => Some(batch),
            false => beside.begin(&mut applier, &mut around, batch, *depth).await?,
        };
        let mut receipt = None;
        if let Some(mut batch) = batch {
            receipt = applier.finish_ahead(&mut around, &mut batch).await?;
            if receipt.is_none() {
                applier.send(&mut around, VecDeque::from([batch])).await?;
            }
        }
        self.applier = Some(applier);
        Ok(receipt)
    }

    /// Waits for the next answer to a batch; for ever while none is under way. Cancel safe.
    pub(in crate::sink) async fn answer(&mut self) -> Result<Answer, SinkError> {
        let applier = self.applier.as_mut().ok_or_else(|| misused("it failed before"))?;
        match self.beside.event(applier, &self.progress).await? {
            Event::Committed => Ok(Answer::Committed),
            Event::Failed(failure) => {
                self.failure = Some(failure);
                Ok(Answer::Failed)
            }
        }
    }

    /// After `Answer::Failed`: the batch that failed goes the slower way, and what was sent behind it is sent again. After an error, or
    /// if the future is dropped, as with `begin`.
    pub(in crate::sink) async fn mend(&mut self) -> Result<(), SinkError> {
        let Some(failure) = self.failure.take() else { return Ok(()) };
        let mut applier = self.take_applier()?;
        let Self { beside, tables, progress, heartbeat, .. } = self;
        beside.mend(&mut applier, &mut Around { tables, progress, heartbeat }, failure).await?;
        self.applier = Some(applier);
        Ok(())
    }

    /// Applies a batch and waits for its receipt, for whoever has no other under way. After an error as with `begin`.
    pub async fn apply(&mut self, batch: Batch) -> Result<Receipt, SinkError> {
        if let Some(receipt) = self.begin(batch).await? {
            return Ok(receipt);
        }
        loop {
            if let Some(receipt) = self.receipts.as_mut().and_then(|receipts| receipts.try_recv().ok()) {
                return Ok(receipt);
            }
            if self.answer().await? == Answer::Failed {
                self.mend().await?;
            }
        }
    }

    fn take_applier(&mut self) -> Result<Applier, SinkError> {
        self.applier.take().ok_or_else(|| misused("it failed before"))
    }
}

/// The shortest of a few.
async fn round_trip(connection: &mut Connection) -> Result<Duration, WireError> {
    let mut shortest = Duration::MAX;
    for _ in 0..ROUND_TRIPS {
        let began = Instant::now();
        connection.simple_query("").await?;
        shortest = shortest.min(began.elapsed());
    }
    Ok(shortest)
}

/// The sink was used out of order: our own mistake, said instead of panicking.
fn misused(reason: &str) -> SinkError {
    SinkError::Refused(format!("the sink takes no batch: {reason}; this is a fault of walrelay, please report it"))
}
