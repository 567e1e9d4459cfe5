//! Changes by themselves, in order: each becomes one prepared statement in the pipeline, with enough kept to name it if it
//! fails. TRUNCATE too, and how a relation of the stream finds its table.

use std::sync::Arc;

use bytes::Bytes;

use crate::decode::{Message, OldTuple, Tuple, Value};

use super::super::SinkError;
use super::batch::Applier;
use super::change::{ApplyError, Change, Purpose};
use super::form::{Old, Operation};
use super::reading::Source;
use super::statements::truncate;
use super::tables::{Disposition, Tables};
use super::target::Target;

impl Applier {
    /// Puts a row's change into the pipeline. `values` is room for the new and the old row.
    pub(super) fn row<'a>(
        &mut self,
        target: Arc<Target>,
        source: Source,
        message: &Message<'a>,
        payload: Bytes,
        values: &mut (Vec<Value<'a>>, Vec<Value<'a>>),
    ) -> Result<(), ApplyError> {
        let (old, new) = match *message {
            Message::Insert { new, .. } => (None, Some(new)),
            Message::Update { old, new, .. } => (old, Some(new)),
            Message::Delete { old, .. } => (Some(old), None),
            _ => return Ok(()),
        };
        let (new_values, old_values) = values;
        new_values.clear();
        old_values.clear();
        gather(&target, new, new_values)?;
        gather(&target, old.map(|old| old.tuple()), old_values)?;
        let old = match old {
            None => Old::Same,
            Some(OldTuple::Key(_)) => Old::Key(old_values),
            Some(OldTuple::Full(_)) => Old::Full(old_values),
        };
        match message {
            Message::Insert { .. } => self.form.insert(&target, new_values)?,
            Message::Update { .. } => self.form.update(&target, old, new_values)?,
            _ => self.form.delete(&target, old_values)?,
        }
        let change = Change { payload, target, commit_lsn: source.commit_lsn, is_streamed: source.is_streamed };
        self.send_row(change, new_values, old.search_values(new_values))
    }

    /// Puts the change of `self.form` into the pipeline.
    fn send_row(&mut self, change: Change, new: &[Value<'_>], searched: &[Value<'_>]) -> Result<(), ApplyError> {
        let plan = self.plans.get(&mut self.session, &change.target, &self.form)?;
        debug_assert!(plan.form.operation != Operation::Insert || plan.form.equal.is_empty());
        let set = plan.form.set.iter().map(|at| new[usize::from(*at)]);
        let equal = plan.form.equal.iter().map(|at| searched[usize::from(*at)]);
        Ok(self.session.execute(&plan.name, set.chain(equal), Purpose::Change(change))?)
    }

    /// The table a change goes to; `None` if it is to be skipped.
    pub(super) async fn target(
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
            tables.resolve(&mut self.session, oid, source.commit_lsn).await?;
        }
    }

    pub(super) async fn truncate(
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
        let (target, commit_lsn, is_streamed) = (Arc::clone(first), source.commit_lsn, source.is_streamed);
        let change = Change { payload, target, commit_lsn, is_streamed };
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
