//! The slower way: a batch that could not be written as sets is rolled back, with all that was sent behind it, and written row by
//! row in one go; if a row fails there too it is named, and what stands before its transaction is applied and recorded. Never
//! hides an error.

use std::collections::VecDeque;

use crate::model::Fallbacks;
use crate::wire::WireError;

use super::super::{Batch, Commit, SinkError};
use super::batch::{Applier, Around, Mode, prepare_progress};
use super::change::{ApplyError, Failure, Purpose, explain};
use super::detours::DETOUR_BATCHES;
use super::statements::rows_touched;

/// Classes of SQLSTATE that say nothing about the rows: conflicts with other sessions, resources, the server, the connection.
const PASSING: &[&str] = &["40001", "40P01", "55P03", "57", "53", "08", "58", "25006"];

impl Applier {
    pub(super) fn count_fallbacks_in(&mut self, fallbacks: Fallbacks) {
        self.detours.count_in(fallbacks);
    }

    /// Sends the batches one behind the other; what fails meanwhile is mended. After an error the session must be dropped.
    pub(super) async fn send(
        &mut self,
        around: &mut Around<'_>,
        mut waiting: VecDeque<Batch>,
    ) -> Result<(), SinkError> {
        while let Some(mut batch) = waiting.pop_front() {
            let mode = Mode::of(&batch);
            match self.write(around, &mut batch, mode).await {
                Ok(()) => self.detours.batch_done(),
                Err(error) => {
                    waiting.push_front(batch);
                    self.mend(around, error, &mut waiting).await?;
                }
            }
        }
        self.session.write_now().await.map_err(SinkError::wire("applying a batch on the standby"))
    }

    /// Deals with an error of the first batch that is not answered, or, if there is none, of the first that waits: that one goes
    /// the slower way, alone; all that were sent behind it wait again. After an error the session must be dropped.
    pub(super) async fn mend(
        &mut self,
        around: &mut Around<'_>,
        error: ApplyError,
        waiting: &mut VecDeque<Batch>,
    ) -> Result<(), SinkError> {
        let mut error = match error {
            failure @ ApplyError::Failure(_) => failure,
            // We found this one ourselves: what was sent before it decides first.
            own => self.session.settle_commits().await.map_or_else(ApplyError::from, |()| own),
        };
        let is_sent = self.session.has_unanswered();
        let is_folded = if is_sent { self.session.is_first_folded() } else { self.detours.is_folded() };
        if is_sent {
            self.reading_at = usize::MAX;
        }
        if is_about_rows(&error) {
            if is_folded || matches!(error, ApplyError::Unprovable(..)) {
                self.note_fallback(&error);
            }
            // What is written row by row already fails for good only when every table was looked up again: one may have changed.
            self.undo(around, waiting).await?;
            error = match self.write_alone(around, waiting, Mode::InOrder).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
        }
        if is_about_rows(&error) {
            self.apply_before(around, waiting, &error).await?;
        }
        Err(self.explain(error))
    }

    /// Writes the first that waits and waits for its answer.
    async fn write_alone(
        &mut self,
        around: &mut Around<'_>,
        waiting: &mut VecDeque<Batch>,
        mode: Mode,
    ) -> Result<(), ApplyError> {
        let Some(mut batch) = waiting.pop_front() else { return Ok(()) };
        if let Err(error) = self.write(around, &mut batch, mode).await {
            waiting.push_front(batch);
            return Err(error);
        }
        Ok(self.session.settle_commits().await?)
    }

    /// Applies what stands before the transaction that failed.
    async fn apply_before(
        &mut self,
        around: &mut Around<'_>,
        waiting: &mut VecDeque<Batch>,
        error: &ApplyError,
    ) -> Result<(), SinkError> {
        self.undo(around, waiting).await?;
        let Some(first) = waiting.front_mut() else { return Ok(()) };
        let transactions = &mut first.transactions;
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
        transactions.truncate(failed.filter(|at| *at < transactions.len()).unwrap_or(0));
        let Some(position) = transactions.last().map(|transaction| transaction.end_lsn) else { return Ok(()) };
        (first.position, first.commit) = (position, Commit::Durable);
        self.write_alone(around, waiting, Mode::InOrder).await.map_err(|error| self.explain(error))
    }

    /// Nothing that is not answered was ever sent; it waits again, before what waits.
    async fn undo(&mut self, around: &mut Around<'_>, waiting: &mut VecDeque<Batch>) -> Result<(), SinkError> {
        let context = "rolling a batch back on the standby";
        let batches = self.session.roll_back().await.map_err(SinkError::wire(context))?;
        batches.into_iter().rev().for_each(|batch| waiting.push_front(batch));
        self.sent = self.session.committed();
        self.commit = None;
        self.plans.clear();
        around.tables.undo_batches(self.sent);
        prepare_progress(&mut self.session).map_err(SinkError::wire(context))?;
        if self.is_shared {
            // What the session was told of the row's place was undone.
            self.look_for_progress().map_err(SinkError::wire(context))?;
        }
        Ok(())
    }

    fn note_fallback(&mut self, error: &ApplyError) {
        let (target, reason, detail) = match error {
            ApplyError::Unprovable(target, reason) => (Some(target), "unprovable", *reason),
            ApplyError::Failure(failure) => {
                let target = match &failure.purpose {
                    Some(Purpose::Set(target, _)) => Some(target),
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
        self.detours.add(target, reason);
    }

    pub(super) fn explain(&self, error: ApplyError) -> SinkError {
        match error {
            ApplyError::Failure(failure) => explain(*failure, &self.pipeline, self.session.committed()),
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
            let is_passing = error.code().is_none_or(|code| {
                // A limit of the configuration (temp_file_limit) that rows one by one may keep.
                code != "53400" && PASSING.iter().any(|class| code.starts_with(class))
            });
            is_server && !is_passing && !matches!(purpose, Some(Purpose::Progress))
        }
    }
}
