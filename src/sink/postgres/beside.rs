//! Batches beside each other: one that shares nothing with those under way is written on a connection of its own while they are
//! worked on, and commits when all before it have: only then is its move of the progress row sent, so neither order nor a
//! failure before it is ever in doubt. One that shares a row goes behind them on their connection. Never commits a part of a
//! batch, and never one whose predecessor is not committed.
//!
//! ```text
//! first connection:  [ n: rows … progress ✓ ]
//! another:           [ n+1: rows … ]·····held·····[ progress ✓ ]      it is the first connection now
//! another:           [ n+2: rows … ]·····held······················[ progress ✓ ]
//! an error of one held, or a lock that the first waits for: the held ones are rolled back and go behind the first, one after another
//! ```

use std::collections::VecDeque;
use std::future::pending;
use std::mem::swap;

use futures_util::future::{select_all, try_join_all};
use postgres_protocol::escape::escape_literal;
use tokio::sync::{mpsc, watch};

use crate::config::ServerUrl;
use crate::model::{Lsn, PipelineName, Progress};
use crate::wire::WireError;

use super::super::{Batch, Commit, Receipt, SinkError};
use super::batch::{Applier, Around, Mode, prepare_progress};
use super::change::{Failure, Sent};
use super::footprint::Footprint;
use super::open::{open_session, take_origin};
use super::plans::Plans;
use super::roles::{BESIDE_ROLES, origin_name};
use super::session::Pipelined;
use super::unit::Unit;

/// After batches beside each other had to be rolled back, so many go one behind the other.
const ALONE_BATCHES: u32 = 100;
const ROLLING_BACK: &str = "rolling a batch back on the standby";

/// A connection beside the applier's own. What is here is exchanged with the applier's to write on it.
#[derive(Debug)]
struct Side {
    session: Pipelined,
    plans: Plans,
    commit: Option<Commit>,
    /// Of the tables, when its plans were last known to be good.
    generation: u64,
}

/// A batch whose rows are written, and whose turn has not come.
#[derive(Debug)]
struct Held {
    side: Side,
    footprint: Footprint,
    /// Where the batch before it leaves the record.
    from: Lsn,
    sent: Box<Sent>,
}

/// All connections but the one whose batches are at their turn, which is the applier's.
#[derive(Debug)]
pub(super) struct Beside {
    free: Vec<Side>,
    /// In order.
    held: VecDeque<Held>,
    /// What was held on them is being rolled back.
    recovering: Vec<Side>,
    /// Of the batches on the applier's connection; longer, until it is looked at, by those that were answered.
    first: VecDeque<Footprint>,
    /// So many batches go one behind the other.
    alone: u32,
    /// Whether a session that applies waits for a lock, if somebody looks.
    lock_waits: Option<watch::Receiver<bool>>,
}

/// What came while batches were under way.
#[derive(Debug)]
pub(super) enum Event {
    /// One more is committed; its receipt is there.
    Committed,
    /// `mend` is to be called, with what the first connection failed with, if it did.
    Failed(Option<Failure>),
}

impl Beside {
    /// Opens so many connections, with the names of their origins. Where there is no room for all there are fewer, with a warning.
    pub(super) async fn open(
        url: &ServerUrl,
        pipeline: &PipelineName,
        unit: &Unit,
        count: usize,
        (committed, receipts): (Lsn, &mpsc::Sender<Receipt>),
    ) -> Result<(Self, Vec<String>), SinkError> {
        let (mut free, mut origins) = (Vec::new(), Vec::new());
        for role in BESIDE_ROLES.iter().take(count) {
            let mut connection = match open_session(url, pipeline, role).await {
                Err(SinkError::Wire { source, .. }) if source.code() == Some("53300") => {
                    tracing::warn!(
                        error = %source,
                        connections = free.len() + 1,
                        "the standby has no room for all apply_connections; raise max_connections, or the role's CONNECTION LIMIT"
                    );
                    break;
                }
                opened => opened?,
            };
            unit.admit(&mut connection).await?;
            let origin = origin_name(pipeline, role);
            take_origin(&mut connection, url, pipeline, &origin, &[role]).await?;
            origins.push(origin);
            let session = Pipelined::new(connection, committed, receipts.clone());
            let mut side = Side { session, plans: Plans::default(), commit: None, generation: 0 };
            side.prepare().map_err(SinkError::wire("preparing statements on the standby"))?;
            free.push(side);
        }
        let (held, first) = (VecDeque::new(), VecDeque::new());
        Ok((Self { free, held, recovering: Vec::new(), first, alone: 0, lock_waits: None }, origins))
    }

    /// Whether there is no other connection: then nothing of this is needed.
    pub(super) fn is_none(&self) -> bool {
        self.count() == 0
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.free.len() + self.held.len() + self.recovering.len()
    }

    pub(super) fn watch_locks(&mut self, lock_waits: watch::Receiver<bool>) {
        self.lock_waits = Some(lock_waits);
    }

    /// Writes a batch beside those under way if it may go there; else waits until it may go behind them on the applier's connection,
    /// and gives it back. After an error the sessions must be dropped.
    pub(super) async fn begin(
        &mut self,
        applier: &mut Applier,
        around: &mut Around<'_>,
        mut batch: Batch,
        depth: usize,
    ) -> Result<Option<Batch>, SinkError> {
        let footprint = Footprint::of(around.tables, &batch);
        let mut may_go_beside = self.alone == 0;
        self.alone = self.alone.saturating_sub(1);
        loop {
            while self.first.len() > applier.session.unanswered() {
                self.first.pop_front();
            }
            let mut under_way = self.first.iter().chain(self.held.iter().map(|held| &held.footprint));
            // What is being rolled back may hold the same rows.
            may_go_beside &= self.recovering.is_empty();
            if may_go_beside && applier.session.has_unanswered() && !under_way.any(|other| other.meets(&footprint)) {
                if let Some(side) = self.free.pop() {
                    match self.write(applier, around, &mut batch, side).await? {
                        Some((side, from, sent)) => {
                            self.held.push_back(Held { side, footprint, from, sent });
                            return Ok(None);
                        }
                        // It is written again behind the others, where it tells what is wrong.
                        None => may_go_beside = false,
                    }
                    continue;
                }
            } else if self.held.is_empty() && self.recovering.is_empty() && applier.session.unanswered() < depth {
                // What is being rolled back may be an attempt of its own, with the rows that it needs.
                self.first.push_back(footprint);
                return Ok(Some(batch));
            }
            if let Event::Failed(failure) = self.event(applier, around.progress).await? {
                self.mend(applier, around, failure).await?;
            }
        }
    }

    /// Writes a batch's rows on a connection of its own. `None` if that went wrong: it is rolled back, and the batch is as it was.
    async fn write(
        &mut self,
        applier: &mut Applier,
        around: &mut Around<'_>,
        batch: &mut Batch,
        mut side: Side,
    ) -> Result<Option<(Side, Lsn, Box<Sent>)>, SinkError> {
        let context = || SinkError::wire("applying a batch on the standby");
        if side.generation != around.tables.generation() {
            side.plans.close_all(&mut side.session).map_err(context())?;
            side.generation = around.tables.generation();
        }
        side.exchange(applier);
        let is_written = tokio::select! {
            biased;
            written = applier.write_rows(around, batch, Mode::of(batch), true) => written.is_ok(),
            // Until it is written nobody reads the others' answers or gives those held their turn, and who holds the lock may wait for them.
            () = lock_wait(&mut self.lock_waits) => false,
        };
        let sent = is_written.then(|| (applier.sent, applier.take(batch)));
        let gone_out = applier.session.write_now().await;
        side.exchange(applier);
        gone_out.map_err(context())?;
        if let Some((from, sent)) = sent {
            applier.detours.batch_done();
            return Ok(Some((side, from, sent)));
        }
        side.session.begin_roll_back().map_err(context())?;
        self.recovering.push(side);
        self.alone = ALONE_BATCHES;
        Ok(None)
    }

    /// Waits for what comes next, and gives the next batch its turn; for ever while nothing is under way. Cancel safe.
    pub(super) async fn event(&mut self, applier: &mut Applier, progress: &Progress) -> Result<Event, SinkError> {
        let (has_first, has_held) = (applier.session.has_unanswered(), !self.held.is_empty());
        let held = self.held.iter_mut().map(|held| Box::pin(held.side.session.next_commit())).collect();
        let is_recovering = !self.recovering.is_empty();
        tokio::select! {
            biased;
            answered = applier.session.next_commit(), if has_first => {
                if let Err(failure) = answered {
                    return Ok(Event::Failed(Some(failure)));
                }
                if !applier.session.has_unanswered() {
                    self.give_turn(applier, progress).await?;
                }
                Ok(Event::Committed)
            }
            (_, failed) = first_of(held) => {
                // What is no error of a statement is the loss of the session.
                if let Err(Failure { error: error @ (WireError::Io(_) | WireError::Closed), .. }) = failed {
                    return Err(SinkError::wire("applying a batch on the standby")(error));
                }
                Ok(Event::Failed(None))
            }
            recovered = recovered(&mut self.recovering), if is_recovering => {
                self.free.push(recovered?);
                Ok(Event::Committed)
            }
            // Who holds the lock may wait for what a held batch holds, and the server cannot know that this one waits for the first.
            () = lock_wait(&mut self.lock_waits), if has_held => {
                tracing::info!("a session that applies waits for a lock: batches go one behind the other for a while");
                Ok(Event::Failed(None))
            }
        }
    }

    /// The first one held goes on on its connection, which is the applier's from now on.
    async fn give_turn(&mut self, applier: &mut Applier, progress: &Progress) -> Result<(), SinkError> {
        let Some(Held { mut side, footprint, from, sent }) = self.held.pop_front() else { return Ok(()) };
        let context = || SinkError::wire("applying a batch on the standby");
        let (place, committed) = (applier.session.place().to_owned(), applier.session.committed());
        side.exchange(applier);
        self.free.push(side);
        self.first = VecDeque::from([footprint]);
        applier.session.committed_elsewhere(committed);
        let place =
            format!("SELECT pg_catalog.set_config('walrelay.progress_place', {}, false)", escape_literal(&place));
        applier.session.execute_once(&place).map_err(context())?;
        let moved = applier.move_progress(progress, (from, sent.receipt.applied.0), sent.receipt.commit_time);
        moved.map_err(|error| applier.explain(error))?;
        applier.session.commit(sent);
        applier.session.write_now().await.map_err(context())
    }

    /// What is held is rolled back, and goes behind what the applier's connection has, one after another; so does what failed there.
    /// After an error the sessions must be dropped.
    pub(super) async fn mend(
        &mut self,
        applier: &mut Applier,
        around: &mut Around<'_>,
        failure: Option<Failure>,
    ) -> Result<(), SinkError> {
        let mut waiting = VecDeque::new();
        if let Some(first) = self.held.front() {
            applier.sent = first.from;
            self.alone = ALONE_BATCHES;
        }
        for Held { mut side, sent, .. } in self.held.drain(..) {
            side.session.begin_roll_back().map_err(SinkError::wire(ROLLING_BACK))?;
            waiting.push_back(sent.batch);
            self.recovering.push(side);
        }
        let work = async {
            if let Some(failure) = failure {
                applier.mend(around, failure.into(), &mut waiting).await?;
            }
            applier.send(around, waiting).await
        };
        // Beside it: it may need the very rows that were held.
        let rolled_back = async {
            match try_join_all(self.recovering.iter_mut().map(|side| side.session.rolled_back())).await {
                Ok(_) => pending().await,
                Err(error) => error,
            }
        };
        tokio::select! {
            biased;
            done = work => done?,
            error = rolled_back => return Err(SinkError::wire(ROLLING_BACK)(error)),
        }
        self.first = (0..applier.session.unanswered()).map(|_| Footprint::All).collect();
        Ok(())
    }
}

impl Side {
    /// What is forgotten with a rollback.
    fn prepare(&mut self) -> Result<(), WireError> {
        self.plans.clear();
        self.commit = None;
        prepare_progress(&mut self.session)
    }

    /// Exchanges its connection, and what belongs to it, with the applier's.
    fn exchange(&mut self, applier: &mut Applier) {
        swap(&mut self.session, &mut applier.session);
        swap(&mut self.plans, &mut applier.plans);
        swap(&mut self.commit, &mut applier.commit);
    }
}

/// The first of them that is as good as new, taken out; for ever where there is none. Cancel safe.
async fn recovered(recovering: &mut Vec<Side>) -> Result<Side, SinkError> {
    let rollbacks = recovering.iter_mut().map(|side| Box::pin(side.session.rolled_back())).collect();
    let (at, rolled_back) = first_of(rollbacks).await;
    rolled_back.map_err(SinkError::wire(ROLLING_BACK))?;
    let mut side = recovering.swap_remove(at);
    side.prepare().map_err(SinkError::wire("preparing statements on the standby"))?;
    Ok(side)
}

/// The first that is done, and its place; for ever where there is none.
async fn first_of<F: Future + Unpin>(futures: Vec<F>) -> (usize, F::Output) {
    if futures.is_empty() {
        return pending().await;
    }
    let (output, at, _) = select_all(futures).await;
    (at, output)
}

/// Waits until a session that applies waits for a lock; for ever where nobody looks.
async fn lock_wait(lock_waits: &mut Option<watch::Receiver<bool>>) {
    if let Some(lock_waits) = lock_waits
        && lock_waits.wait_for(|waits| *waits).await.is_ok()
    {
        return;
    }
    pending().await
}
