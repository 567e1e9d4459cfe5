//! The slower way: a batch that could not be written as sets is rolled back and written row by row in one go; if a row fails
//! there too it is named, and what stands before its transaction is applied and recorded. Never hides an error.

use std::collections::HashMap;

use crate::model::{Fallbacks, Heartbeat, Lsn, Progress, Transaction};
use crate::wire::WireError;

use super::super::{Batch, Receipt, SinkError};
use super::ahead::{self, Unfinished};
use super::batch::{Applier, Around, Mode};
use super::change::{ApplyError, Purpose, explain};
use super::session::Failure;
use super::statements::rows_touched;
use super::tables::Tables;
use super::target::Target;

/// For so many batches a table that could not be written as a set is written row by row.
const DETOUR_BATCHES: u32 = 100;
/// Classes of SQLSTATE that say nothing about the rows: conflicts with other sessions, resources, the server, the connection.
const PASSING: &[&str] = &["40001", "40P01", "55P03", "57", "53", "08", "58", "25006"];

/// Tables that go row by row for a while, and whether the batch under way was folded at all.
#[derive(Debug, Default)]
pub(super) struct Detours {
    left: HashMap<u32, u32>,
    is_folded: bool,
    counts: Fallbacks,
}

impl Detours {
    pub(super) fn goes_in_order(&self, target: &Target) -> bool {
        !self.left.is_empty() && self.left.contains_key(&target.relation.oid)
    }

    /// Something was written as a set.
    pub(super) fn folded(&mut self) {
        self.is_folded = true;
    }

    fn batch_done(&mut self) {
        if !self.left.is_empty() {
            self.left.retain(|_, left| {
                *left -= 1;
                *left > 0
            });
        }
    }
}

impl Applier {
    pub(super) fn count_fallbacks_in(&mut self, fallbacks: Fallbacks) {
        self.detours.counts = fallbacks;
    }

    /// Applies the batch and moves the progress row on from `progress`. After an error the session must be dropped.
    pub(super) async fn apply(
        &mut self,
        tables: &mut Tables,
        progress: &Progress,
        heartbeat: &Heartbeat,
        mut batch: Batch,
    ) -> Result<Receipt, SinkError> {
        let mut around = Around { tables, progress, heartbeat, commit: batch.commit };
        around.tables.begin_batch();
        self.detours.is_folded = false;
        let (transactions, position) = (&mut batch.transactions[..], batch.position);
        // One row has no net effect to find, and a commit that waits is in a hurry.
        let mode = match &transactions[..] {
            [transaction] if transaction.rows == 1 => Mode::InOrder,
            _ => Mode::Sets,
        };
        let mut error = match self.write(&mut around, transactions, position, mode).await {
            Ok(receipt) => {
                self.detours.batch_done();
                return Ok(receipt);
            }
            Err(error) => error,
        };
        if self.detours.is_folded && is_about_rows(&error) || matches!(error, ApplyError::Unprovable(..)) {
            self.note_fallback(&error);
            self.undo(&mut around).await?;
            error = match self.write(&mut around, transactions, position, Mode::InOrder).await {
                Ok(receipt) => return Ok(receipt),
                Err(error) => error,
            };
        }
        if is_about_rows(&error) {
            self.apply_before(&mut around, transactions, &error).await?;
        }
        Err(self.explain(error, progress.lsn))
    }

    /// Commits a transaction that was written while it was open on the primary. `None` where there is none, or where nothing of it
    /// is left on the standby: then it is applied like any other.
    pub(super) async fn finish_ahead(
        &mut self,
        tables: &mut Tables,
        progress: &Progress,
        batch: &mut Batch,
    ) -> Result<Option<Receipt>, SinkError> {
        let (Some(written), [transaction]) = (batch.ahead.take(), &mut batch.transactions[..]) else { return Ok(None) };
        let place = self.progress_place.clone();
        let finished = written.ahead.finish(transaction, written.bytes, progress, batch.position, place).await;
        match finished {
            Ok((receipt, place, described)) => {
                self.progress_place = place;
                for oid in tables.adopt(&described) {
                    let forgotten = self.plans.forget(&mut self.session, oid);
                    forgotten.map_err(SinkError::wire("preparing statements on the standby"))?;
                }
                Ok(Some(receipt))
            }
            Err(Unfinished::Undone(error)) => {
                tracing::info!(
                    reason = ahead::reason(&error),
                    "what was written ahead is undone; the transaction is written anew"
                );
                Ok(None)
            }
            Err(Unfinished::Unknown(error)) => Err(self.explain(error, progress.lsn)),
        }
    }

    /// Applies what stands before the transaction that failed.
    async fn apply_before(
        &mut self,
        around: &mut Around<'_>,
        transactions: &mut [Transaction],
        error: &ApplyError,
    ) -> Result<(), SinkError> {
        let failed = match error {
            ApplyError::Failure(failure) => match &failure.purpose {
                Some(Purpose::Change(change)) => {
                    transactions.iter().position(|transaction| transaction.commit_lsn == change.commit_lsn)
                }
                _ => Some(self.reading_at),
            },
            _ => Some(self.reading_at),
        };
        // Behind the last one: the commit itself failed, and no transaction is known to be good.
        let failed = failed.filter(|at| *at < transactions.len()).unwrap_or(0);
        let Some((before, _)) = transactions.split_at_mut_checked(failed) else { return Ok(()) };
        let Some(position) = before.last().map(|transaction| transaction.end_lsn) else { return Ok(()) };
        self.undo(around).await?;
        match self.write(around, before, position, Mode::InOrder).await {
            Ok(_) => Ok(()),
            Err(error) => Err(self.explain(error, around.progress.lsn)),
        }
    }

    async fn undo(&mut self, around: &mut Around<'_>) -> Result<(), SinkError> {
        let context = "rolling a batch back on the standby";
        self.session.roll_back().await.map_err(SinkError::wire(context))?;
        self.plans.clear();
        around.tables.undo_batch();
        self.prepare_progress().map_err(SinkError::wire(context))
    }

    fn note_fallback(&mut self, error: &ApplyError) {
        let (target, reason, detail) = match error {
            ApplyError::Unprovable(target, reason) => (Some(target), "unprovable", *reason),
            ApplyError::Failure(failure) => {
                let target = match &failure.purpose {
                    Some(Purpose::Set(target)) => Some(target),
                    Some(Purpose::Change(change)) => Some(&change.target),
                    _ => None,
                };
                (target, reason_of(&failure.error), failure.error.code().unwrap_or("unknown"))
            }
            ApplyError::Sink(_) => return,
        };
        let Some(target) = target else { return };
        tracing::warn!(
            table = %target.relation.name,
            reason,
            detail,
            "changes of this table could not be written as sets; this batch is written row by row, and the table for the next \
             {DETOUR_BATCHES} batches"
        );
        self.detours.counts.count(&target.relation.name, reason);
        self.detours.left.insert(target.relation.oid, DETOUR_BATCHES);
    }

    fn explain(&self, error: ApplyError, expected: Lsn) -> SinkError {
        match error {
            ApplyError::Failure(failure) => explain(*failure, &self.pipeline, expected),
            ApplyError::Sink(error) => error,
            ApplyError::Unprovable(target, reason) => SinkError::Refused(format!(
                "changes of {} could not be written: {reason}; this is a fault of walrelay, please report it",
                target.relation.name
            )),
        }
    }
}

/// The kind of an error, for the count.
fn reason_of(error: &WireError) -> &'static str {
    match (error, error.code().unwrap_or("")) {
        (WireError::Server(error), _) if rows_touched(error).is_some() => "row_count",
        (_, code) if code.starts_with("23") => "constraint",
        (_, code) if code.starts_with("22") => "value",
        (_, code) if code.starts_with("42") => "schema",
        _ => "other",
    }
}

/// Whether the server has said that nothing of the batch is left: an error of it, not the end of the session, which may come
/// behind a commit.
pub(super) fn is_undone(error: &WireError) -> bool {
    const ENDS: &[&str] = &["57", "58", "53", "08", "XX"];
    error.code().is_some_and(|code| !ENDS.iter().any(|class| code.starts_with(class)))
}

/// Whether the rows or the tables are at fault, not the connection, the server or another session.
fn is_about_rows(error: &ApplyError) -> bool {
    match error {
        ApplyError::Unprovable(..) => true,
        ApplyError::Sink(error) => matches!(error, SinkError::Shape(_) | SinkError::Refused(_)),
        ApplyError::Failure(failure) => {
            let Failure { purpose, error } = &**failure;
            let is_server = matches!(error, WireError::Server(_));
            let is_passing = error.code().is_none_or(|code| PASSING.iter().any(|class| code.starts_with(class)));
            is_server && !is_passing && !matches!(purpose, Some(Purpose::Progress))
        }
    }
}
