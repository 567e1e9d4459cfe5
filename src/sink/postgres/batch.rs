//! Applies a batch: each change becomes one prepared statement in the pipeline, the progress row is moved by compare-and-set
//! behind them, and one Sync commits it all.
//!
//! ```text
//! only inserts:      [ statements … progress ✓ Sync ]─▶ … ◀─[ answers, ReadyForQuery ]                one round trip
//! updates, deletes:  [ statements … Flush ]─▶ ◀─[ row counts: all 1? ] [ progress ✓ Sync ]─▶ ◀─[ … ]  two
//! any error:         the connection is dropped, the server rolls back, nothing is recorded
//! ```

use std::sync::Arc;

use bytes::Bytes;

use crate::decode::{Message, OldTuple, Tuple, Value};
use crate::model::{Applied, Durable, Heartbeat, Lsn, Progress, Timestamp, Transaction};

use super::super::walk::{messages, next_chunk};
use super::super::{Batch, Receipt, SinkError};
use super::change::{ApplyError, Change, Purpose, explain};
use super::form::{Form, Old, Operation};
use super::plans::Plans;
use super::session::Pipelined;
use super::statements::truncate;
use super::store::{MOVE_PROGRESS, MOVE_PROGRESS_TYPES};
use super::tables::{Disposition, Tables};
use super::target::Target;

/// Name of the prepared compare-and-set.
const PROGRESS_STATEMENT: &str = "progress";

/// A session that applies, with what it has prepared.
#[derive(Debug)]
pub(super) struct Applier {
    session: Pipelined,
    pipeline: String,
    plans: Plans,
    form: Form,
    /// Where the last move left the progress row (`ctid` as text).
    progress_place: Bytes,
}

/// The transaction under way.
#[derive(Clone, Copy)]
struct Source {
    commit_lsn: Lsn,
    is_streamed: bool,
}

/// What a batch came to.
#[derive(Default)]
struct Tally {
    rows: u64,
    /// Changes whose row count must be looked at before the commit.
    counted: u64,
}

impl Applier {
    pub(super) fn new(mut session: Pipelined, pipeline: &str, progress_place: Bytes) -> Result<Self, SinkError> {
        // Sent with the first batch.
        let prepared = session.parse(PROGRESS_STATEMENT, MOVE_PROGRESS, MOVE_PROGRESS_TYPES);
        prepared.map_err(SinkError::wire("preparing statements on the standby"))?;
        Ok(Self {
            session,
            pipeline: pipeline.to_owned(),
            plans: Plans::default(),
            form: Form::default(),
            progress_place,
        })
    }

    /// Applies the batch and moves the progress row on from `progress`. After an error the session must be dropped.
    pub(super) async fn apply(
        &mut self,
        tables: &mut Tables,
        progress: &Progress,
        heartbeat: &Heartbeat,
        batch: Batch,
    ) -> Result<Receipt, SinkError> {
        match self.apply_all(tables, progress, heartbeat, batch).await {
            Ok(receipt) => Ok(receipt),
            Err(ApplyError::Failure(failure)) => Err(explain(*failure, &self.pipeline, progress.lsn)),
            Err(ApplyError::Sink(error)) => Err(error),
        }
    }

    async fn apply_all(
        &mut self,
        tables: &mut Tables,
        progress: &Progress,
        heartbeat: &Heartbeat,
        batch: Batch,
    ) -> Result<Receipt, ApplyError> {
        let position = batch.position;
        let transactions = batch.transactions.len() as u64;
        let commit_time = batch.transactions.last().map(|transaction| transaction.commit_time);
        let mut tally = Tally::default();
        for transaction in batch.transactions {
            let commit_lsn = transaction.commit_lsn;
            let applied = self.transaction(tables, heartbeat, transaction, &mut tally).await;
            applied.map_err(|error| error.in_transaction(commit_lsn))?;
        }
        if tally.counted > 0 {
            self.session.settle().await?;
            if let Some(divergence) = self.session.take_divergence() {
                return Err(divergence.into());
            }
        }
        self.move_progress(progress, position, commit_time)?;
        self.session.sync().await?;
        if let Some(place) = self.session.take_progress_place() {
            self.progress_place = place;
        }
        let rows = tally.rows;
        Ok(Receipt { applied: Applied(position), durable: Durable(position), transactions, rows, commit_time })
    }

    fn move_progress(
        &mut self,
        progress: &Progress,
        position: Lsn,
        commit_time: Option<Timestamp>,
    ) -> Result<(), ApplyError> {
        let (position, from) = (position.0.to_be_bytes(), progress.lsn.0.to_be_bytes());
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
            Value::Text(&self.progress_place),
        ];
        Ok(self.session.execute(PROGRESS_STATEMENT, values.into_iter(), Purpose::Progress)?)
    }

    async fn transaction(
        &mut self,
        tables: &mut Tables,
        heartbeat: &Heartbeat,
        mut transaction: Transaction,
        tally: &mut Tally,
    ) -> Result<(), ApplyError> {
        let source = Source { commit_lsn: transaction.commit_lsn, is_streamed: transaction.streamed };
        loop {
            let (rest, chunk) = next_chunk(transaction).await?;
            let Some(chunk) = chunk else { return Ok(()) };
            heartbeat.beat();
            self.chunk(tables, source, &chunk, tally).await?;
            transaction = rest;
        }
    }

    async fn chunk(
        &mut self,
        tables: &mut Tables,
        source: Source,
        chunk: &Bytes,
        tally: &mut Tally,
    ) -> Result<(), ApplyError> {
        // Reused for every row, so that none allocates.
        let (mut new_values, mut old_values) = (Vec::new(), Vec::new());
        for message in messages(chunk, source.is_streamed) {
            let (payload, message) = message?;
            let (oid, old, new) = match message {
                Message::Insert { relation_oid, new, .. } => (relation_oid, None, Some(new)),
                Message::Update { relation_oid, old, new, .. } => (relation_oid, old, Some(new)),
                Message::Delete { relation_oid, old, .. } => (relation_oid, Some(old), None),
                Message::Relation(body) => {
                    if let Some(oid) = tables.note(&body) {
                        self.plans.forget(&mut self.session, oid)?;
                    }
                    continue;
                }
                Message::Truncate { relation_oids, restart_identity, .. } => {
                    let oids: Vec<u32> = relation_oids.iter().collect();
                    self.truncate(tables, source, &oids, restart_identity, chunk.slice_ref(payload)).await?;
                    continue;
                }
                // Types are known by the standby's own columns; logical messages are nobody's rows.
                _ => continue,
            };
            let Some(target) = self.target(tables, oid, source).await? else { continue };
            new_values.clear();
            old_values.clear();
            gather(&target, new, &mut new_values)?;
            gather(&target, old.map(|old| old.tuple()), &mut old_values)?;
            let is_insert = matches!(message, Message::Insert { .. });
            let old = match old {
                None => Old::Same,
                Some(OldTuple::Key(_)) => Old::Key(&old_values),
                Some(OldTuple::Full(_)) => Old::Full(&old_values),
            };
            match (is_insert, new) {
                (true, _) => self.form.insert(&target, &new_values)?,
                (false, Some(_)) => self.form.update(&target, old, &new_values)?,
                (false, None) => self.form.delete(&target, &old_values)?,
            }
            let is_counted = !is_insert && target.is_counted();
            let change = Change {
                payload: chunk.slice_ref(payload),
                target,
                commit_lsn: source.commit_lsn,
                is_streamed: source.is_streamed,
                is_counted,
            };
            self.send(change, &new_values, old.search_values(&new_values))?;
            tally.rows += 1;
            tally.counted += u64::from(is_counted);
            if self.session.is_full() {
                self.session.write().await?;
            }
        }
        Ok(())
    }

    /// Puts the change of `self.form` into the pipeline.
    fn send(&mut self, change: Change, new: &[Value<'_>], searched: &[Value<'_>]) -> Result<(), ApplyError> {
        let plan = self.plans.get(&mut self.session, &change.target, &self.form)?;
        debug_assert!(plan.form.operation != Operation::Insert || plan.form.equal.is_empty());
        let set = plan.form.set.iter().map(|at| new[usize::from(*at)]);
        let equal = plan.form.equal.iter().map(|at| searched[usize::from(*at)]);
        Ok(self.session.execute(&plan.name, set.chain(equal), Purpose::Change(change))?)
    }

    /// The table a change goes to; `None` if it is to be skipped.
    async fn target(
        &mut self,
        tables: &mut Tables,
        oid: u32,
        source: Source,
    ) -> Result<Option<Arc<Target>>, ApplyError> {
        loop {
            match tables.disposition(oid, source.commit_lsn)? {
                Disposition::Skip => return Ok(None),
                Disposition::Apply(target) => return Ok(Some(Arc::clone(target))),
                Disposition::Unresolved => {}
            }
            tables.resolve(&mut self.session, oid).await?;
        }
    }

    async fn truncate(
        &mut self,
        tables: &mut Tables,
        source: Source,
        oids: &[u32],
        restart_identity: bool,
        payload: Bytes,
    ) -> Result<(), ApplyError> {
        let mut targets = Vec::with_capacity(oids.len());
        for oid in oids {
            targets.extend(self.target(tables, *oid, source).await?);
        }
        let Some(first) = targets.first() else { return Ok(()) };
        let sql = truncate(targets.iter().map(Arc::as_ref), restart_identity);
        let change = Change {
            payload,
            target: Arc::clone(first),
            commit_lsn: source.commit_lsn,
            is_streamed: source.is_streamed,
            is_counted: false,
        };
        self.session.parse("", &sql, &[])?;
        Ok(self.session.execute("", std::iter::empty(), Purpose::Change(change))?)
    }
}

/// Lists a tuple's values; refuses binary ones that the standby's column would read as something else.
fn gather<'a>(target: &Target, tuple: Option<Tuple<'a>>, values: &mut Vec<Value<'a>>) -> Result<(), SinkError> {
    let Some(tuple) = tuple else { return Ok(()) };
    if tuple.len() != target.columns.len() {
        return Err(SinkError::Shape(format!(
            "the primary sent a row of {} with {} columns after describing {}; the replication session is not usable",
            target.relation.name,
            tuple.len(),
            target.columns.len()
        )));
    }
    for (at, value) in tuple.iter().enumerate() {
        if matches!(value, Value::Binary(_)) && !target.takes_binary.get(at).copied().unwrap_or(false) {
            return Err(
                target.refuse_column(at, "in binary form, which the standby's column of another type would misread")
            );
        }
        values.push(value);
    }
    Ok(())
}
