//! The running stream: chunks in, batches to the sink, receipts into the ledger, positions out. One loop with numbered
//! priorities; a stop is the same loop without intake.
//!
//! ```text
//! source ─chunks─▶ assembler ─arrivals─▶ ledger ─▶ waiting ─batch─▶ sink
//!    ▲                                     │ ▲                       │
//!    └──────────── positions ──────────────┘ └─ applied ∙ durable ───┘
//! ```

use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::watch;
use tokio::task::block_in_place;
use tokio_util::sync::CancellationToken;

use crate::ack::{Arrived, Flushes, IdleRecords, Ledger};
use crate::assemble::{Arrival, Assembler, Spool};
use crate::backoff::{every, moment};
use crate::model::{Durable, Lsn, MemoryBudget, State, Timestamp, Transaction};
use crate::sink::worker::{Outcome, Worker};
use crate::sink::{AnySink, Batch, Commit, Receipt, WrittenAhead};
use crate::source::Stream;

use super::ahead::Lead;
use super::batching::{BYTES_LIMIT, Batching, Waiting};
use super::clock_offset::ClockOffset;
use super::joining::{self, Noticed};
use super::monitor::{self, Leaving, Unsent, View};
use super::ownership::{self, Ownership};
use super::reporter::{Rate, Reporter};
use super::under_way::UnderWay;
use super::{PipelineError, Settings};

/// Most complete transactions that wait for the sink, and no further ones beyond so many bytes: two batches.
const WAITING_LIMIT: usize = 50_000;
const WAITING_BYTES_LIMIT: u64 = 2 * BYTES_LIMIT;
/// How often the report is brought up to date.
const TICK: Duration = Duration::from_secs(1);

/// What a stream is made of.
pub(super) struct Streaming {
    pub(super) settings: Settings,
    pub(super) stream: Stream,
    pub(super) start: Lsn,
    /// The primary's position when the attempt began: reached, the pipeline has caught up.
    pub(super) target: Lsn,
    pub(super) sink: AnySink,
    pub(super) spool: Spool,
    /// Whether idle positions may be recorded at once while the primary waits for us.
    pub(super) may_hurry: bool,
    /// Ends, drained, before the first transaction whose commit record starts here or behind.
    pub(super) until: Option<Lsn>,
}

/// Runs until a stop has drained, or all before `until` (`Ok`); or an error.
pub(super) async fn run(
    streaming: Streaming,
    ownership: Option<&mut Ownership>,
    reporter: &Reporter,
    stop: &CancellationToken,
    noticed: &Noticed,
) -> Result<(), PipelineError> {
    let Streaming { settings, stream, start, target, mut sink, spool, may_hurry, until } = streaming;
    let process_id = stream.process_id();
    let batch_delay = settings.pipeline.sink.batch_delay();
    let is_unread = sink.waits_for_readers();
    let ledger = if is_unread { Ledger::unread(start) } else { Ledger::new(start) };
    let (view_in, view) = watch::channel(View::default());
    let (lock_in, standby_lock) = watch::channel(false);
    sink.watch_locks(standby_lock.clone());
    let budget = MemoryBudget::new(settings.pipeline.memory_limit_bytes);
    let looks = sink.looks();
    let mut flow = Flow {
        stream,
        ledger,
        assembler: Assembler::new(budget.clone(), spool.clone()),
        spool,
        budget,
        arrivals: Vec::new(),
        waiting: Waiting::default(),
        under_way: UnderWay::new(sink.round_trip()),
        depth: sink.depth(),
        is_unread,
        looks_next: false,
        batching: Batching::new(sink.batch_limit(), sink.round_trip()),
        batch_delay,
        idle: IdleRecords::default(),
        flushes: Flushes::default(),
        lead: Lead::new(sink.ahead(), settings.pipeline.memory_limit_bytes),
        worker: Worker::new(sink),
        reporter,
        target,
        may_hurry,
        until,
        is_over: until.is_some_and(|until| start >= until),
        clock_offset: ClockOffset::default(),
        rate: Rate::new(Instant::now()),
        leaving: Leaving::new(&settings.primary),
        unsent: Unsent::default(),
        view,
        standby_lock,
    };
    let slot = settings.pipeline.slot_name();
    reporter.state(State::CatchingUp);
    let ended = tokio::select! {
        biased;
        ended = flow.run(stop) => ended,
        error = joining::watch(&settings, noticed), if until.is_none() => Err(error),
        error = ownership::keep(ownership, &settings.pipeline.name, &lock_in, looks, reporter) => Err(error),
        () = monitor::watch_primary(&settings.primary, &settings.pipeline.name, &slot, process_id, &view_in) => Ok(()),
    };
    flow.stream.finish().await;
    ended
}

/// The loop's state.
struct Flow<'a> {
    stream: Stream,
    ledger: Ledger,
    assembler: Assembler,
    spool: Spool,
    budget: std::sync::Arc<MemoryBudget>,
    arrivals: Vec<Arrival>,
    waiting: Waiting,
    under_way: UnderWay,
    /// Most batches under way.
    depth: usize,
    /// Whether something is durable, and readers do not see it yet; and whether it is looked for before the next batch.
    is_unread: bool,
    looks_next: bool,
    batching: Batching,
    /// How long changes gather while nobody waits for them.
    batch_delay: Duration,
    idle: IdleRecords,
    flushes: Flushes,
    worker: Worker,
    /// What is written of a transaction that is still open on the primary.
    lead: Lead,
    reporter: &'a Reporter,
    target: Lsn,
    may_hurry: bool,
    until: Option<Lsn>,
    /// Everything before `until` was received; what came behind it is left to the next stream.
    is_over: bool,
    /// The primary's clock minus ours.
    clock_offset: ClockOffset,
    rate: Rate,
    leaving: Leaving,
    unsent: Unsent,
    view: watch::Receiver<View>,
    /// Whether the apply session waits for a lock on the standby.
    standby_lock: watch::Receiver<bool>,
}

impl Flow<'_> {
    async fn run(&mut self, stop: &CancellationToken) -> Result<(), PipelineError> {
        let mut ticks = every(TICK);
        // Before anything else is told.
        self.confirm().await?;
        loop {
            let is_draining = stop.is_cancelled() || self.is_over;
            if is_draining && self.is_drained() {
                break;
            }
            let may_take = !is_draining && self.may_take();
            let (idle_due, wake_due) = (self.idle_due(), self.flush_due().into_iter().chain(self.follow_due()).min());
            tokio::select! {
                biased;
                // 1. What is durable is confirmed before anything else, and with it what came meanwhile.
                outcome = self.worker.outcome() => match outcome? {
                    Outcome::Durable(durable) => {
                        let resumed = self.resume(may_take);
                        self.durable(durable).await?;
                        resumed?;
                    }
                    Outcome::Applied(receipt) => {
                        let resumed = self.resume(may_take);
                        self.promise(&receipt).await?;
                        resumed?;
                        self.receipt(receipt);
                    }
                    // There is room for the next one.
                    Outcome::Sent => {}
                },
                () = self.lead.done() => {}
                // 2. A stop ends the intake.
                () = stop.cancelled(), if !is_draining => {
                    tracing::info!(waiting = self.waiting.len(), "draining");
                    self.flushes.end();
                }
                // 3. An idle position is recorded when it is due.
                () = moment(idle_due) => self.record_idle().await,
                () = moment(wake_due) => {}
                // 4. What the primary says of us.
                _ = self.view.changed() => self.viewed(),
                _ = ticks.tick() => self.tick()?,
                // 5. More work, while there is room for it. A lost connection ends everything that was pending.
                chunk = self.stream.next(may_take) => self.take(chunk?)?,
                () = self.budget.released(), if !is_draining && !may_take => {}
            }
            // The sink gets its work before the primary is told of what arrived: a commit that waits for the sink gains by it.
            self.flush_if_due().await;
            self.dispatch(is_draining).await;
            if !is_draining {
                self.lead.advance(&mut self.assembler, &self.ledger)?;
            }
            self.confirm().await?;
        }
        let lsn = self.ledger.positions().flush;
        match self.until.filter(|_| self.is_over) {
            Some(until) => tracing::info!(%lsn, %until, "paused; everything before is applied and confirmed"),
            None => tracing::info!(%lsn, "stopped; everything received is applied and confirmed"),
        }
        Ok(())
    }

    /// Nothing is under way, waiting, unrecorded or not durable.
    fn is_drained(&self) -> bool {
        self.under_way.is_empty()
            && self.waiting.is_empty()
            && self.ledger.idle_position().is_none()
            && self.ledger.is_durable()
    }

    /// Whether the next chunk may be taken: not while what only the sink can free is over the limits.
    fn may_take(&self) -> bool {
        let has_room = self.waiting.len() < WAITING_LIMIT && self.waiting.size_bytes() < WAITING_BYTES_LIMIT;
        has_room && !self.assembler.must_wait()
    }

    /// Takes what came while the sink was at work, so that its receipts go along with the promise: only from memory to memory, and a
    /// fault in it is for after the promise.
    fn resume(&mut self, may_take: bool) -> Result<(), PipelineError> {
        let is_quick = may_take && !self.budget.is_over();
        self.stream.resume(is_quick)?.map_or(Ok(()), |chunk| self.take(chunk))
    }

    fn take(&mut self, chunk: Bytes) -> Result<(), PipelineError> {
        self.reporter.heartbeat().beat();
        if self.budget.is_over() {
            // This may write to the spool folder.
            block_in_place(|| self.assembler.push(chunk, &mut self.arrivals))?;
        } else {
            self.assembler.push(chunk, &mut self.arrivals)?;
        }
        for arrival in self.arrivals.drain(..) {
            let is_behind = |lsn: Lsn| self.until.is_some_and(|until| lsn >= until);
            match arrival {
                _ if self.is_over => break,
                Arrival::Transaction(transaction) if is_behind(transaction.commit_lsn) => self.is_over = true,
                Arrival::Transaction(transaction) => match self.ledger.transaction(transaction.end_lsn) {
                    Arrived::New => {
                        self.lead.arrived(&transaction);
                        self.waiting.push(transaction);
                    }
                    Arrived::AlreadyRecorded => {
                        tracing::debug!(lsn = %transaction.end_lsn, "already recorded; dropped")
                    }
                },
                Arrival::Keepalive { wal_end, time, .. } => {
                    self.clock_offset.note(time, Timestamp::now(), Instant::now());
                    self.ledger.keepalive(wal_end);
                    self.is_over = is_behind(wal_end);
                }
                // Sent only to a sink that asked for them.
                Arrival::Message(message) => {
                    let received = self.clock_offset.theirs(Timestamp::now());
                    let unit = message.into_unit(received);
                    if is_behind(unit.end_lsn) {
                        self.is_over = true;
                    } else if self.ledger.transaction(unit.end_lsn) == Arrived::New {
                        self.waiting.push(unit);
                    }
                }
            }
        }
        Ok(())
    }

    /// Hands the sink what waits, if it has nothing to do, or if that may follow what it has to do. Who is about to end does not wait for
    /// readers: all is durable without them.
    async fn dispatch(&mut self, is_draining: bool) {
        if self.under_way.is_empty() && self.is_unread && self.worker.is_ready() && !is_draining {
            let is_idle_overdue = self.idle_due().is_some_and(|due| due <= Instant::now());
            let is_free = self.waiting.is_empty() && !is_idle_overdue;
            if std::mem::take(&mut self.looks_next) || is_free {
                return self.look().await;
            }
            if self.waiting.is_empty() {
                return self.record_idle().await;
            }
        }
        while self.may_send() {
            let Some((transactions, ahead)) = self.next_batch() else { return };
            let Some(last) = transactions.last() else { return };
            let position = self.ledger.record_after(last.end_lsn);
            let commit = self.commit();
            self.hand_over(Batch { transactions, position, commit, ahead }).await;
        }
    }

    /// The same position again: its receipt tells how far readers see by now. Between two looks there is room for a batch.
    async fn look(&mut self) {
        let position = self.ledger.positions().flush;
        self.hand_over(Batch { transactions: Vec::new(), position, commit: Commit::Durable, ahead: None }).await;
    }

    fn may_send(&self) -> bool {
        !self.waiting.is_empty()
            && self.worker.is_ready()
            && match self.under_way.len() {
                0 => true,
                count => {
                    let is_due = self.under_way.next_due().is_some_and(|due| due <= Instant::now());
                    count < self.depth && self.batching.may_follow(&self.waiting, is_due)
                }
            }
    }

    /// When what waits may follow what is under way.
    fn follow_due(&self) -> Option<Instant> {
        let may = self.batching.is_hurried() && !self.waiting.is_empty() && self.under_way.len() < self.depth;
        // What was written ahead goes behind nothing that is not answered.
        let may = may && self.lead.place_in(self.waiting.iter()) != Some(0);
        self.under_way.next_due().filter(|_| may && self.worker.is_ready())
    }

    /// What goes into the next batch. A transaction of which something is written already goes alone and with that, behind nothing that
    /// is not answered; `None` while that is not so.
    fn next_batch(&mut self) -> Option<(Vec<Transaction>, Option<WrittenAhead>)> {
        let (most, ahead) = match self.lead.place_in(self.waiting.iter()) {
            None => (usize::MAX, None),
            Some(0) if self.lead.is_busy() || !self.under_way.is_empty() => return None,
            Some(0) => (1, self.lead.take()),
            Some(place) => (place, None),
        };
        Some((self.batching.take(&mut self.waiting, most), ahead))
    }

    async fn record_idle(&mut self) {
        if let Some(position) = self.ledger.idle_position() {
            let commit = self.commit();
            self.hand_over(Batch { transactions: Vec::new(), position, commit, ahead: None }).await;
        }
    }

    /// A batch behind which nothing waits has its promise soonest by a commit that waits for the disk: the flusher's way is one more,
    /// and only one flush is under way. Behind another, whose work takes longer than that, or while nobody waits at all, the flusher
    /// does it beside the next batch.
    fn commit(&self) -> Commit {
        if self.batching.is_waited_for() && self.waiting.is_empty() { Commit::Durable } else { Commit::Visible }
    }

    async fn flush_if_due(&mut self) {
        if self.flush_due().is_some_and(|due| due <= Instant::now()) {
            self.flushes.covered();
            self.worker.flush().await;
        }
    }

    async fn hand_over(&mut self, batch: Batch) {
        let now = Instant::now();
        if batch.position > self.ledger.positions().flush {
            self.idle.recorded(now);
        }
        let first_commit_time = batch.transactions.first().map(Transaction::waits_since);
        self.under_way.begin(now, first_commit_time, batch.size_bytes(), batch.ahead.is_some());
        self.worker.begin(batch).await;
        if !self.batching.is_hurried() {
            self.stream.pause();
        }
    }

    /// When the idle position, if there is one and nothing is under way, is to be recorded.
    fn idle_due(&self) -> Option<Instant> {
        let is_idle = self.under_way.is_empty() && self.waiting.is_empty() && self.ledger.idle_position().is_some();
        (is_idle && self.worker.is_ready()).then(|| self.idle.due(Instant::now()))
    }

    /// When what is applied is to be made durable, if that needs a flush and none is under way.
    fn flush_due(&self) -> Option<Instant> {
        self.flushes.due().filter(|_| self.worker.may_flush())
    }

    /// What a receipt promises is told before anything else is thought of.
    async fn promise(&mut self, receipt: &Receipt) -> Result<(), PipelineError> {
        self.ledger.applied(receipt.applied);
        let flush = self.ledger.positions().flush;
        self.looks_next = receipt.durable.is_some_and(|durable| durable.0 > flush);
        receipt.durable.into_iter().for_each(|durable| self.ledger.durable(durable));
        self.confirm().await
    }

    fn receipt(&mut self, receipt: Receipt) {
        let now = Instant::now();
        let Some(ended) = self.under_way.end(now) else { return };
        self.is_unread = receipt.durable.is_some_and(|durable| durable.0 > receipt.applied.0);
        if let Some(work) = ended.work {
            self.batching.measured(receipt.rows, work);
        }
        self.reporter.heartbeat().beat();
        self.reporter.update(|report| {
            report.transactions += receipt.transactions;
            report.rows += receipt.rows;
        });
        match receipt.durable {
            Some(_) => {
                self.flushes.covered();
                self.look_whether_caught_up();
            }
            None => self.flushes.applied(now, ended.size_bytes),
        }
    }

    async fn durable(&mut self, durable: Durable) -> Result<(), PipelineError> {
        self.ledger.durable(durable);
        self.confirm().await?;
        self.reporter.heartbeat().beat();
        self.look_whether_caught_up();
        Ok(())
    }

    fn look_whether_caught_up(&self) {
        if self.reporter.current_state() == State::CatchingUp {
            self.reporter.lags(self.lag_seconds(), self.is_target_reached());
        }
    }

    /// Whether it has come to where the primary was at its beginning; not while rows are to be sent before it goes on.
    fn is_target_reached(&self) -> bool {
        self.until.is_none() && self.ledger.positions().flush >= self.target
    }

    /// Tells the primary what is promised since.
    async fn confirm(&mut self) -> Result<(), PipelineError> {
        Ok(self.stream.confirm(self.ledger.positions()).await?)
    }

    /// Age of the oldest transaction that is not applied, by the primary's clock, or of what did not come, if that is older.
    fn lag_seconds(&self) -> f64 {
        let oldest = self.under_way.oldest().or_else(|| self.waiting.oldest());
        let now = self.clock_offset.theirs(Timestamp::now());
        let unsent = self.unsent.seconds(self.ledger.positions().write, Instant::now());
        oldest.map_or(0.0, |oldest| oldest.seconds_until(now)).max(unsent)
    }

    fn viewed(&mut self) {
        let view = self.view.borrow_and_update().clone();
        self.idle.set_hurried(view.is_listed() && self.may_hurry);
        self.batching.set_waited_for(view.is_listed());
        self.flushes.set_waited_for(view.is_listed());
        // Where nobody says whether commits wait, they might.
        let is_free = view.sync_state.as_deref() == Some("async");
        self.stream.gather_for(if is_free { self.batch_delay } else { Duration::ZERO });
        self.reporter.listed(view.sync_state.as_deref(), self.ledger.positions().flush);
        self.show(&view);
    }

    fn tick(&mut self) -> Result<(), PipelineError> {
        let waits_for_lock = *self.standby_lock.borrow();
        if waits_for_lock {
            // What is written ahead might hold it.
            self.lead.make_way();
        }
        let waiting_for = self.reporter.stream_waits(waits_for_lock);
        self.reporter.lags(self.lag_seconds(), self.is_target_reached());
        let view = self.view.borrow().clone();
        self.show(&view);
        let held_up_by = waiting_for.filter(|_| !self.is_drained());
        self.leaving.look(view.is_leaving, self.ledger.positions().flush, held_up_by, Instant::now())
    }

    fn show(&mut self, view: &View) {
        let own = self.ledger.positions();
        self.unsent.note(view.current_lsn, own.write, Instant::now());
        let lag_seconds = self.lag_seconds();
        let is_busy = !self.under_way.is_empty() || !self.waiting.is_empty();
        let (memory_bytes, spool_bytes) = (self.budget.used_bytes(), self.spool.used_bytes());
        let rate = &mut self.rate;
        self.reporter.update(|report| {
            report.sync_state = view.sync_state.clone();
            report.sent_lsn = view.sent_lsn;
            report.write_lsn = view.write_lsn.or(Some(own.write));
            report.flush_lsn = view.flush_lsn.or(Some(own.flush));
            report.replay_lsn = view.replay_lsn.or(Some(own.apply));
            report.lag_bytes = view.current_lsn.map(|current| current.bytes_since(own.apply));
            report.lag_seconds = Some(lag_seconds);
            report.server_lags_seconds = view.lags_seconds;
            report.retained_wal_bytes = view.retained_wal_bytes;
            report.safe_wal_size_bytes = view.safe_wal_size_bytes;
            report.wal_status = view.wal_status.clone();
            report.memory_bytes = memory_bytes;
            report.spool_bytes = spool_bytes;
            report.is_busy = is_busy;
            rate.tick(report, Instant::now());
        });
    }
}
