//! Writes a streamed transaction while it is still open on the primary: in a session and a transaction of its own, which commits in
//! its turn, or is thrown away with nothing lost, since the spool holds the transaction until then. Never commits before the
//! primary did; never names an error: what fails here is written again from the spool, and that way says what is wrong.
//!
//! ```text
//! opened ─write─▶ … ─write─▶ finished: the rest ▸ progress ✓ Sync ─▶ committed
//!    └──────────────┴──────────────────┴── an error, or dropped ─▶ rolled back by the server
//! ```

use bytes::Bytes;
use postgres_protocol::escape::escape_literal;
use tokio::sync::mpsc;

use crate::config::ServerUrl;
use crate::model::{Applied, Durable, Heartbeat, Lsn, Progress, Transaction};

use super::super::{Batch, Receipt, SinkError};
use super::batch::{Applier, Around, Mode};
use super::change::ApplyError;
use super::fallback::is_undone;
use super::open::{open_session, take_origin};
use super::opening::Opening;
use super::reading::{Reader, Source};
use super::roles::{AHEAD_ROLE, origin_name};
use super::session::Pipelined;
use super::store::query_row;
use super::tables::{AHEAD_OF_COMMIT, Tables};
use super::unit::Unit;

/// Longest wait for a lock: who holds it may wait for us. Less than `deadlock_timeout` (1 s), so that it is we who give up.
const LOCK_TIMEOUT: &str = "500ms";

/// What is needed to open such sessions.
#[derive(Clone, Debug)]
pub struct AheadOpener {
    pub(super) url: ServerUrl,
    pub(super) opening: Opening,
    pub(super) unit: Unit,
    pub(super) progress: Progress,
    pub(super) heartbeat: Heartbeat,
}

/// A session with a part of an open transaction in it.
#[derive(Debug)]
pub struct Ahead {
    applier: Applier,
    tables: Tables,
    progress: Progress,
    heartbeat: Heartbeat,
}

/// Why a transaction is not committed this way.
#[derive(Debug)]
pub(super) enum Unfinished {
    /// Nothing of it is left on the standby.
    Undone(ApplyError),
    /// The commit may have happened.
    Unknown(ApplyError),
}

impl AheadOpener {
    /// Whether no transaction that commits behind `received` can be in the initial copy: its changes are skipped, and where it
    /// commits is not known yet.
    pub fn may_begin(&self, received: Lsn) -> bool {
        self.opening.copied.last() <= received
    }

    /// Opens a session.
    pub async fn open(self) -> Result<Box<Ahead>, SinkError> {
        let Self { url, opening, unit, progress, heartbeat } = self;
        let mut connection = open_session(&url, &opening.pipeline, AHEAD_ROLE).await?;
        unit.admit(&mut connection).await?;
        let origin = origin_name(&opening.pipeline, AHEAD_ROLE);
        take_origin(&mut connection, &url, &opening.pipeline, &origin, &[AHEAD_ROLE]).await?;
        let lock_timeout = format!("SET lock_timeout = {}", escape_literal(LOCK_TIMEOUT));
        query_row(&mut connection, &lock_timeout, "setting lock_timeout on the standby").await?;
        // It commits once, at its end, and gives that receipt itself.
        let session = Pipelined::new(connection, progress.lsn, mpsc::channel(1).0);
        let applier = Applier::new(session, opening.pipeline.as_str())?;
        Ok(Box::new(Ahead { applier, tables: Tables::new(opening), progress, heartbeat }))
    }
}

impl Ahead {
    /// Writes runs of whole messages behind what is written. They are on their way when this returns; an error of theirs may come
    /// with a later call. The error is an SQLSTATE or a word: a message might show a row.
    pub async fn write(mut self: Box<Self>, runs: Vec<Bytes>) -> Result<Box<Self>, String> {
        // It commits behind everything that is known now.
        let source = Source { at: 0, commit_lsn: AHEAD_OF_COMMIT, is_streamed: true };
        let runs: Vec<_> = runs.into_iter().map(|run| (source, run)).collect();
        let written = match self.run(&runs).await {
            Ok(()) => self.applier.session.write().await.map_err(ApplyError::from),
            Err(error) => Err(error),
        };
        written.map(|()| self).map_err(|error| reason(&error))
    }

    /// Waits until the session is of no more use: somebody ended it, or a statement has failed. Gives the reason. Cancel safe.
    pub async fn lost(&mut self) -> String {
        reason(&self.applier.session.lost().await.into())
    }

    async fn run(&mut self, runs: &[(Source, Bytes)]) -> Result<(), ApplyError> {
        let Self { applier, tables, progress, heartbeat } = self;
        let mut around = Around { tables, progress, heartbeat };
        applier.run(&mut around, runs, Mode::Sets).await
    }

    /// Writes what is left of the transaction, moves the progress row on from `before`, and commits, durably. Gives the tables that
    /// the transaction described.
    async fn finish(
        mut self,
        transaction: &mut Transaction,
        written_bytes: u64,
        progress: &Progress,
        (before, position): (Lsn, Lsn),
    ) -> Result<(Receipt, Tables), Unfinished> {
        let (rows, commit_time) = (transaction.rows, transaction.commit_time);
        self.rest(transaction, written_bytes).await.map_err(Unfinished::Undone)?;
        self.applier.look_for_progress().map_err(|error| Unfinished::Undone(error.into()))?;
        self.applier.move_progress(progress, (before, position), Some(commit_time)).map_err(Unfinished::Undone)?;
        if let Err(failure) = self.applier.session.sync().await {
            // Answers come in order: an error in the place of a statement's came before the commit.
            let is_undone = failure.purpose.is_some() || is_undone(&failure.error);
            let error = ApplyError::from(failure);
            return Err(if is_undone { Unfinished::Undone(error) } else { Unfinished::Unknown(error) });
        }
        let (applied, durable) = (Applied(position), Some(Durable(position)));
        let receipt = Receipt { applied, durable, transactions: 1, rows, commit_time: Some(commit_time) };
        Ok((receipt, self.tables))
    }

    async fn rest(&mut self, transaction: &mut Transaction, written_bytes: u64) -> Result<(), ApplyError> {
        let (mut reader, mut offset) = Reader::behind(transaction, written_bytes);
        while let Some((source, chunk)) = reader.next().await? {
            let start = written_bytes.saturating_sub(offset).min(chunk.len() as u64) as usize;
            offset += chunk.len() as u64;
            if start < chunk.len() {
                self.run(&[(source, chunk.slice(start..))]).await?;
            }
        }
        Ok(())
    }
}

impl Applier {
    /// Commits a transaction that was written while it was open on the primary. `None` where there is none, or where nothing of it
    /// is left on the standby: then it is applied like any other.
    pub(super) async fn finish_ahead(
        &mut self,
        around: &mut Around<'_>,
        batch: &mut Batch,
    ) -> Result<Option<Receipt>, SinkError> {
        let (Some(written), [transaction]) = (batch.ahead.take(), &mut batch.transactions[..]) else { return Ok(None) };
        // It goes behind nothing that may still fail.
        if self.session.has_unanswered() {
            return Ok(None);
        }
        let positions = (self.sent, batch.position);
        match written.ahead.finish(transaction, written.bytes, around.progress, positions).await {
            Ok((receipt, described)) => {
                let context = "going on behind a transaction that was written ahead";
                for oid in around.tables.adopt(&described) {
                    self.plans.forget(&mut self.session, oid).map_err(SinkError::wire(context))?;
                }
                self.sent = batch.position;
                self.look_for_progress().map_err(SinkError::wire(context))?;
                let answered = self.session.sync().await;
                answered.map_err(|failure| SinkError::wire(context)(failure.error))?;
                self.session.committed_elsewhere(batch.position);
                Ok(Some(receipt))
            }
            Err(Unfinished::Undone(error)) => {
                let reason = reason(&error);
                tracing::info!(reason, "what was written ahead is undone; the transaction is written anew");
                Ok(None)
            }
            Err(Unfinished::Unknown(error)) => Err(self.explain(error)),
        }
    }
}

/// For the log, without anything of a row.
fn reason(error: &ApplyError) -> String {
    match error {
        ApplyError::Failure(failure) => failure.error.code().unwrap_or("connection").to_owned(),
        ApplyError::Sink(_) => "the table's shape".to_owned(),
        ApplyError::Unprovable(_, reason) => (*reason).to_owned(),
    }
}
