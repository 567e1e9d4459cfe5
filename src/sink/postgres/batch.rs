//! Writes a batch: its changes are folded to their net effect table by table and written as statements for many rows (what
//! cannot be folded is written row by row in its place); the progress row is moved by compare-and-set behind them, and one Sync
//! commits it all. Every statement checks in the server that it found its rows, so a batch is one round trip; and the record's
//! move names where the batch before leaves it, so the next one is sent without waiting: where one fails, all behind it do.
//!
//! ```text
//! [ deletes ▸ updates ▸ inserts … progress 7→8 ✓ Sync ][ … progress 8→9 ✓ Sync ]─▶ … ◀─[ answers, ReadyForQuery ]
//! an error:  all are rolled back; the one that failed is read again and written row by row (`fallback`), which names the row
//! ```

use bytes::Bytes;

use crate::decode::{Message, Value};
use crate::model::{Applied, Durable, Heartbeat, Lsn, Progress, Timestamp, Transaction};
use crate::wire::WireError;

use super::super::walk::messages;
use super::super::{Batch, Commit, Receipt, SinkError};
use super::arrays::ArrayParameter;
use super::change::{ApplyError, Purpose, Sent};
use super::detours::Detours;
use super::folding::Nets;
use super::form::Form;
use super::plans::Plans;
use super::prefetch::Prefetch;
use super::reading::{Reader, Source};
use super::session::Pipelined;
use super::store::{MOVE_PROGRESS, MOVE_PROGRESS_TYPES, place_sql};
use super::tables::{Noted, Tables};
use super::target::Way;

/// Name of the prepared compare-and-set.
const PROGRESS_STATEMENT: &str = "progress";
/// Changes are folded in runs of about this size, so that a transaction of any length passes in bounded memory.
const RUN_BYTES: usize = 8 * 1024 * 1024;

/// How changes are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// Folded wherever that is proved to be the same.
    Sets,
    /// Each by itself, in order.
    InOrder,
}

impl Mode {
    /// At first.
    pub(super) fn of(batch: &Batch) -> Self {
        match &batch.transactions[..] {
            // One row has no net effect to find, and a commit that waits is in a hurry.
            [transaction] if transaction.rows == 1 => Mode::InOrder,
            _ => Mode::Sets,
        }
    }
}

/// Prepares the record's move; sent with the session's next batch.
pub(super) fn prepare_progress(session: &mut Pipelined) -> Result<(), WireError> {
    session.parse(PROGRESS_STATEMENT, MOVE_PROGRESS, MOVE_PROGRESS_TYPES)
}

/// What a batch is applied with.
pub(super) struct Around<'a> {
    pub(super) tables: &'a mut Tables,
    /// What the progress row says beside its position.
    pub(super) progress: &'a Progress,
    pub(super) heartbeat: &'a Heartbeat,
}

/// A session that applies, with what it has prepared.
#[derive(Debug)]
pub(super) struct Applier {
    pub(super) session: Pipelined,
    pub(super) pipeline: String,
    pub(super) plans: Plans,
    pub(super) form: Form,
    /// Room for array parameters, kept from statement to statement.
    pub(super) arrays: Vec<ArrayParameter>,
    pub(super) detours: Detours,
    /// Place in the batch of the transaction being read; behind the last one when all are.
    pub(super) reading_at: usize,
    /// Row changes of the batch so far.
    pub(super) rows: u64,
    /// Where the last batch that was sent leaves the record.
    pub(super) sent: Lsn,
    /// How the session's commits are set, behind all that was sent; `None` if that is not known.
    pub(super) commit: Option<Commit>,
    /// Whether other sessions move the record too.
    pub(super) is_shared: bool,
    /// Where rows that are changed together are read ahead.
    pub(super) prefetch: Option<Prefetch>,
}

impl Applier {
    pub(super) fn new(mut session: Pipelined, pipeline: &str) -> Result<Self, SinkError> {
        prepare_progress(&mut session).map_err(SinkError::wire("preparing statements on the standby"))?;
        Ok(Self {
            sent: session.committed(),
            session,
            pipeline: pipeline.to_owned(),
            plans: Plans::default(),
            form: Form::default(),
            arrays: Vec::new(),
            detours: Detours::default(),
            reading_at: 0,
            rows: 0,
            commit: None,
            is_shared: false,
            prefetch: None,
        })
    }

    /// Sends the batch whole; it is committed when it is answered. After an error nothing of it will be, `batch` is as it was, and
    /// the session must be rolled back or dropped.
    pub(super) async fn write(
        &mut self,
        around: &mut Around<'_>,
        batch: &mut Batch,
        mode: Mode,
    ) -> Result<(), ApplyError> {
        self.write_rows(around, batch, mode, false).await?;
        let commit_time = batch.transactions.last().map(|transaction| transaction.commit_time);
        self.move_progress(around.progress, (self.sent, batch.position), commit_time)?;
        let sent = self.take(batch);
        self.session.commit(sent);
        Ok(())
    }

    /// The first part of `write`: all but the record's move and the Sync. Beside batches on other connections nothing is looked up
    /// again.
    pub(super) async fn write_rows(
        &mut self,
        around: &mut Around<'_>,
        batch: &mut Batch,
        mode: Mode,
        is_beside: bool,
    ) -> Result<(), ApplyError> {
        around.tables.begin_batch(batch.position, self.session.committed());
        self.detours.begin();
        (self.rows, self.reading_at) = (0, 0);
        if !is_beside {
            self.look_again(around.tables).await?;
        }
        self.set_commit(batch.commit)?;
        if !batch.transactions.is_empty() {
            around.tables.drift().used();
        }
        self.write_transactions(around, &mut batch.transactions, mode).await?;
        self.reading_at = batch.transactions.len();
        Ok(())
    }

    /// Takes a batch whose rows were just written.
    pub(super) fn take(&mut self, batch: &mut Batch) -> Box<Sent> {
        let (applied, durable) = (Applied(batch.position), Durable(batch.position));
        let durable = (batch.commit == Commit::Durable).then_some(durable);
        let commit_time = batch.transactions.last().map(|transaction| transaction.commit_time);
        let transactions = batch.transactions.len() as u64;
        let receipt = Receipt { applied, durable, transactions, rows: self.rows, commit_time };
        self.sent = batch.position;
        let nothing = Batch { transactions: Vec::new(), position: batch.position, commit: batch.commit, ahead: None };
        let batch = std::mem::replace(batch, nothing);
        Box::new(Sent { batch, receipt, is_folded: self.detours.is_folded() })
    }

    async fn write_transactions(
        &mut self,
        around: &mut Around<'_>,
        transactions: &mut [Transaction],
        mode: Mode,
    ) -> Result<(), ApplyError> {
        let mut reader = Reader::new(transactions);
        let mut run: Vec<(Source, Bytes)> = Vec::new();
        let mut run_bytes = 0;
        while let Some((source, chunk)) = reader.next().await? {
            run_bytes += chunk.len();
            run.push((source, chunk));
            if run_bytes >= RUN_BYTES || mode == Mode::InOrder {
                self.run(around, &run, mode).await?;
                run.clear();
                run_bytes = 0;
            }
        }
        self.run(around, &run, mode).await
    }

    /// Within the batch's transaction: where that is undone, so is the setting.
    fn set_commit(&mut self, commit: Commit) -> Result<(), WireError> {
        if self.commit == Some(commit) {
            return Ok(());
        }
        self.commit = Some(commit);
        self.session.execute_once(match commit {
            Commit::Durable => "SET synchronous_commit = local",
            Commit::Visible => "SET synchronous_commit = off",
        })
    }

    pub(super) fn move_progress(
        &mut self,
        progress: &Progress,
        (from, position): (Lsn, Lsn),
        commit_time: Option<Timestamp>,
    ) -> Result<(), ApplyError> {
        let (position, from) = (position.0.to_be_bytes(), from.0.to_be_bytes());
        let commit_time = commit_time.map(|time| time.0.to_be_bytes());
        let timeline = i64::from(progress.timeline).to_be_bytes();
        let values = [
            Value::Binary(&position),
            commit_time.as_ref().map_or(Value::Null, |bytes| Value::Binary(bytes)),
            Value::Binary(&timeline),
            Value::Text(self.pipeline.as_bytes()),
            Value::Binary(&from),
            Value::Text(progress.system_identifier.as_bytes()),
            Value::Text(progress.slot.as_str().as_bytes()),
        ];
        Ok(self.session.execute(PROGRESS_STATEMENT, values.into_iter(), Purpose::Progress)?)
    }

    /// Lets the session find out where the progress row stands that another one has moved, or will not.
    pub(super) fn look_for_progress(&mut self) -> Result<(), WireError> {
        let sql = place_sql(&self.pipeline);
        self.session.execute_once(&sql)
    }

    /// Writes a run of chunks. Folded changes go out at its end, or where something must not be passed.
    pub(super) async fn run(
        &mut self,
        around: &mut Around<'_>,
        run: &[(Source, Bytes)],
        mode: Mode,
    ) -> Result<(), ApplyError> {
        let mut nets = Nets::default();
        for (source, chunk) in run {
            around.heartbeat.beat();
            self.reading_at = source.at;
            let chunk_done = self.chunk(around.tables, &mut nets, *source, chunk, mode).await;
            chunk_done.map_err(|error| error.in_transaction(source.commit_lsn))?;
        }
        self.detours.count_rows();
        self.write_nets(&mut nets).await
    }

    async fn chunk<'a>(
        &mut self,
        tables: &mut Tables,
        nets: &mut Nets<'a>,
        source: Source,
        chunk: &'a Bytes,
        mode: Mode,
    ) -> Result<(), ApplyError> {
        // Reused for every row, so that none allocates.
        let mut values = (Vec::new(), Vec::new());
        for message in messages(chunk, source.is_streamed) {
            let (payload, message) = message?;
            let oid = match message {
                Message::Insert { relation_oid, .. }
                | Message::Update { relation_oid, .. }
                | Message::Delete { relation_oid, .. } => relation_oid,
                Message::Relation(body) => {
                    if let Some(Noted { relation, is_first }) = tables.note(&body) {
                        // A table that this session has not met is in nobody's way: what a transaction did to the others stays together.
                        if !is_first || nets.holds(&relation.name) {
                            self.write_nets(nets).await?;
                            // What changes a table's shape or empties it goes behind nothing that may still fail.
                            self.session.settle_commits().await?;
                        }
                        self.plans.forget(&mut self.session, relation.oid)?;
                    }
                    continue;
                }
                Message::Truncate { relation_oids, restart_identity, .. } => {
                    self.write_nets(nets).await?;
                    self.session.settle_commits().await?;
                    let oids: Vec<u32> = relation_oids.iter().collect();
                    self.truncate(tables, source, &oids, restart_identity, own_part(chunk, payload)).await?;
                    continue;
                }
                // Types are known by the standby's own columns; logical messages are nobody's rows.
                _ => continue,
            };
            let Some(target) = self.target(tables, oid, source).await? else { continue };
            self.rows += 1;
            if mode == Mode::Sets && nets.must_precede(&target) {
                self.write_nets(nets).await?;
            }
            // A table whose triggers or rules may read others goes behind what was written of them, whatever went wrong with it before.
            let is_in_order = self.detours.goes_in_order(&target) && target.way != Way::InOrder;
            if mode == Mode::Sets && !is_in_order {
                if nets.fold(&target, &message)? {
                    continue;
                }
                // A change that cannot be folded comes behind what was.
                self.write_nets(nets).await?;
            }
            if mode == Mode::Sets {
                self.detours.row_in_order(&target);
            }
            self.row(target, source, &message, own_part(chunk, payload), &mut values)?;
            if self.session.is_full() {
                self.session.write().await?;
            }
        }
        Ok(())
    }

    /// Forgets what is known of tables of the standby that somebody has changed there.
    async fn look_again(&mut self, tables: &mut Tables) -> Result<(), ApplyError> {
        let drifted = tables.drift().take();
        if !drifted.is_empty() {
            self.session.settle_commits().await?;
        }
        for oid in drifted {
            tables.look_again(oid);
            self.plans.forget(&mut self.session, oid)?;
        }
        Ok(())
    }
}

/// A small part of a run that was read from the spool would keep all of it in memory until its row is answered.
fn own_part(run: &Bytes, part: &[u8]) -> Bytes {
    const SMALL: usize = 64;
    if part.len() < run.len() / SMALL { Bytes::copy_from_slice(part) } else { run.slice_ref(part) }
}
