//! Turns row changes into statements on the pipelined session: finds the table, picks or prepares the statement, binds the
//! values as they came. Decides nothing about batches or positions.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;

use crate::decode::{Context, Message, OldTuple, RelationOids, Relations, Tuple, Value, decode};
use crate::model::{Lsn, Relation};
use crate::schema::{ColumnIdentity, catalog_query, read_shapes};

use super::super::SinkError;
use super::apply::Opening;
use super::change::{Change, Purpose, check_count};
use super::readonly::{ensure_guards_in, texts_of};
use super::session::{Failure, Parameter, Pipelined};
use super::statements::{Form, Operation, statement, truncate};
use super::target::{RowSearch, Target};

/// Prepared statements kept on the session; beyond it all are forgotten and made anew as they are needed.
const STATEMENT_LIMIT: usize = 1000;

/// Why a change could not be written: the server's failure, or ours.
#[derive(Debug)]
pub(super) enum WriteError {
    Failure(Box<Failure<Purpose>>),
    Sink(SinkError),
}

impl From<Failure<Purpose>> for WriteError {
    fn from(failure: Failure<Purpose>) -> Self {
        WriteError::Failure(Box::new(failure))
    }
}

impl<E: Into<SinkError>> From<E> for WriteError {
    fn from(error: E) -> Self {
        WriteError::Sink(error.into())
    }
}

/// The transaction a change belongs to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Origin {
    pub(super) commit_lsn: Lsn,
    pub(super) is_streamed: bool,
}

/// A table with its prepared statements, by form.
#[derive(Debug)]
struct Entry {
    target: Arc<Target>,
    statements: HashMap<(Operation, Form), String>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Writer {
    pub(super) pipelined: Pipelined<Purpose>,
    relations: Relations,
    entries: HashMap<u32, Entry>,
    form: Form,
    statements_made: u64,
    statements_kept: usize,
    divergence: Option<SinkError>,
    has_counted: bool,
}

impl Writer {
    pub(super) fn new(pipelined: Pipelined<Purpose>) -> Self {
        Self {
            pipelined,
            relations: Relations::default(),
            entries: HashMap::new(),
            form: Form::default(),
            statements_made: 0,
            statements_kept: 0,
            divergence: None,
            has_counted: false,
        }
    }

    /// Whether statements were sent whose row counts decide: then they must be seen before the batch may commit.
    pub(super) fn take_counted(&mut self) -> bool {
        std::mem::take(&mut self.has_counted)
    }

    /// Waits for every answer, then tells the first change that did not touch exactly one row.
    pub(super) async fn settle(&mut self) -> Result<(), WriteError> {
        let divergence = &mut self.divergence;
        self.pipelined.settle(&mut |purpose, tag| check_count(purpose, tag, divergence)).await?;
        self.divergence()
    }

    /// Sends Sync and waits for the end.
    pub(super) async fn sync(&mut self) -> Result<(), WriteError> {
        let divergence = &mut self.divergence;
        self.pipelined.sync(&mut |purpose, tag| check_count(purpose, tag, divergence)).await?;
        self.divergence()
    }

    fn divergence(&mut self) -> Result<(), WriteError> {
        self.divergence.take().map_or(Ok(()), |error| Err(WriteError::Sink(error)))
    }

    /// Writes one message of a transaction.
    pub(super) async fn write(&mut self, payload: &Bytes, origin: Origin, opening: &Opening) -> Result<(), WriteError> {
        let message = decode(payload, Context { in_stream: origin.is_streamed, parallel: false })?;
        match message {
            Message::Insert { relation_oid, new, .. } => {
                let Some(target) = self.target(relation_oid, origin, opening).await? else { return Ok(()) };
                self.form.insert(&target);
                self.change(&target, Operation::Insert, None, Some(new), payload, origin)?;
            }
            Message::Update { relation_oid, old, new, .. } => {
                let Some(target) = self.target(relation_oid, origin, opening).await? else { return Ok(()) };
                self.update(&target, old, new, payload, origin)?;
            }
            Message::Delete { relation_oid, old, .. } => {
                let Some(target) = self.target(relation_oid, origin, opening).await? else { return Ok(()) };
                self.form.delete(&target, old.tuple());
                self.change(&target, Operation::Delete, Some(old.tuple()), None, payload, origin)?;
            }
            Message::Truncate { relation_oids, restart_identity, .. } => {
                self.truncate(relation_oids, restart_identity, payload, origin, opening).await?;
            }
            Message::Relation(body) => {
                if self.relations.note(&body).is_some() {
                    self.forget(body.oid)?;
                }
            }
            Message::Type { .. } | Message::Logical(_) | Message::Origin { .. } => {}
            _ => {
                return Err(WriteError::Sink(SinkError::Refused(
                    "a transaction holds a message that does not belong into it; this is a fault of walrelay, please report it".into(),
                )));
            }
        }
        if self.pipelined.is_full() {
            let divergence = &mut self.divergence;
            self.pipelined.write(&mut |purpose, tag| check_count(purpose, tag, divergence)).await?;
        }
        Ok(())
    }

    /// The table of a relation, or `None` if its changes are to be left out: not in the table set, or already in the copy.
    async fn target(&mut self, oid: u32, origin: Origin, opening: &Opening) -> Result<Option<Arc<Target>>, WriteError> {
        if !self.entries.contains_key(&oid) {
            let relation = Arc::clone(self.relations.get(oid)?);
            let target = if opening.filter.contains(&relation.name) {
                self.settle().await?;
                self.look_up(relation, opening).await?
            } else {
                // Kept as a target that no change reaches: see below.
                return Ok(None);
            };
            self.entries.insert(oid, Entry { target: Arc::new(target), statements: HashMap::new() });
        }
        let Some(entry) = self.entries.get(&oid) else { return Ok(None) };
        let is_in_copy =
            opening.skip_until.get(&entry.target.relation.name).is_some_and(|lsn| origin.commit_lsn < *lsn);
        Ok((!is_in_copy).then(|| Arc::clone(&entry.target)))
    }

    /// Reads the table's shape from the standby, within the batch's own transaction, and puts up its guard.
    async fn look_up(&mut self, relation: Arc<Relation>, opening: &Opening) -> Result<Target, WriteError> {
        let query = catalog_query([&relation.name]);
        let results = self
            .pipelined
            .idle_connection()
            .simple_query(&query)
            .await
            .map_err(SinkError::wire("reading the standby's catalog"))?;
        let texts = texts_of(results);
        let shape = read_shapes(texts.iter().map(String::as_str))?.into_iter().next();
        let Some(shape) = shape else {
            return Err(WriteError::Sink(SinkError::Shape(format!(
                "the table {} does not exist on the standby; create it there as on the primary (walrelay goes on by itself), or \
                 exclude it",
                relation.name
            ))));
        };
        if let Some(primary) = &opening.guard_for {
            ensure_guards_in(&mut self.pipelined, &opening.pipeline, primary, &shape).await?;
        }
        Ok(Target::new(relation, shape)?)
    }

    /// The relation has changed: its table is looked up anew, its statements are of no use any more.
    fn forget(&mut self, oid: u32) -> Result<(), WriteError> {
        let Some(entry) = self.entries.remove(&oid) else { return Ok(()) };
        self.statements_kept -= entry.statements.len();
        for name in entry.statements.values() {
            self.pipelined.close(name).map_err(SinkError::wire("closing a statement on the standby"))?;
        }
        Ok(())
    }

    fn update(
        &mut self,
        target: &Arc<Target>,
        old: Option<OldTuple<'_>>,
        new: Tuple<'_>,
        payload: &Bytes,
        origin: Origin,
    ) -> Result<(), WriteError> {
        let searched = old.map_or(new, |old| old.tuple());
        if changes_identity_always(target, old, new) {
            // Nobody may set such a column, not even to its own value: the row is replaced instead.
            if new.iter().any(|value| value == Value::Unchanged) {
                return Err(WriteError::Sink(SinkError::Shape(format!(
                    "an UPDATE of {} in the transaction at {} changes a GENERATED ALWAYS identity column and leaves a large value \
                     unsent, which cannot be replayed; on the standby: ALTER TABLE {} ALTER COLUMN … SET GENERATED BY DEFAULT",
                    target.relation.name,
                    origin.commit_lsn,
                    target.relation.name.sql()
                ))));
            }
            self.form.delete(target, searched);
            self.change(target, Operation::Delete, Some(searched), None, payload, origin)?;
            self.form.insert(target);
            return self.change(target, Operation::Insert, None, Some(new), payload, origin);
        }
        self.form.update(target, searched, new);
        self.change(target, Operation::Update, Some(searched), Some(new), payload, origin)
    }

    /// Binds one statement of the form in `self.form`.
    fn change(
        &mut self,
        target: &Arc<Target>,
        operation: Operation,
        old: Option<Tuple<'_>>,
        new: Option<Tuple<'_>>,
        payload: &Bytes,
        origin: Origin,
    ) -> Result<(), WriteError> {
        let is_counted = operation != Operation::Insert;
        if is_counted && target.search == RowSearch::None {
            return Err(WriteError::Sink(SinkError::Shape(format!(
                "{} has no replica identity on the primary, so no row of the standby can be found; give it a primary key or \
                 ALTER TABLE {} REPLICA IDENTITY FULL",
                target.relation.name,
                target.relation.name.sql()
            ))));
        }
        self.has_counted |= is_counted;
        let change = Change {
            payload: payload.clone(),
            target: Arc::clone(target),
            commit_lsn: origin.commit_lsn,
            is_streamed: origin.is_streamed,
            is_counted,
        };
        let name = self.prepared(target, operation)?;
        let form = &self.form;
        let set = new.into_iter().flat_map(|tuple| chosen(tuple, &form.set));
        let equal = old.into_iter().flat_map(|tuple| chosen(tuple, &form.equal));
        self.pipelined
            .execute(&name, set.chain(equal), Purpose::Change(change))
            .map_err(SinkError::wire("applying a change"))?;
        Ok(())
    }

    /// The name of the prepared statement for the form; prepared in the same breath if it is new.
    fn prepared(&mut self, target: &Arc<Target>, operation: Operation) -> Result<String, WriteError> {
        let context = || SinkError::wire("preparing a statement on the standby");
        if self.statements_kept >= STATEMENT_LIMIT {
            let kept = self.entries.values_mut().flat_map(|entry| entry.statements.drain());
            for (_, name) in kept {
                self.pipelined.close(&name).map_err(context())?;
            }
            self.statements_kept = 0;
        }
        let key = (operation, std::mem::take(&mut self.form));
        let entry = self.entries.get_mut(&target.relation.oid);
        let known = entry.as_ref().and_then(|entry| entry.statements.get(&key).cloned());
        self.form = key.1;
        if let Some(name) = known {
            return Ok(name);
        }
        self.statements_made += 1;
        self.statements_kept += 1;
        let name = format!("walrelay_{}", self.statements_made);
        let made = statement(target, operation, &self.form);
        self.pipelined.parse(&name, &made.sql, &made.types).map_err(context())?;
        if let Some(entry) = entry {
            entry.statements.insert((operation, self.form.clone()), name.clone());
        }
        Ok(name)
    }

    async fn truncate(
        &mut self,
        oids: RelationOids<'_>,
        restart_identity: bool,
        payload: &Bytes,
        origin: Origin,
        opening: &Opening,
    ) -> Result<(), WriteError> {
        let mut targets = Vec::new();
        for oid in oids.iter() {
            targets.extend(self.target(oid, origin, opening).await?);
        }
        let Some(first) = targets.first() else { return Ok(()) };
        let sql = truncate(targets.iter().map(Arc::as_ref), restart_identity);
        let change = Change {
            payload: payload.clone(),
            target: Arc::clone(first),
            commit_lsn: origin.commit_lsn,
            is_streamed: origin.is_streamed,
            is_counted: false,
        };
        self.pipelined.parse("", &sql, &[]).map_err(SinkError::wire("preparing a TRUNCATE on the standby"))?;
        self.pipelined
            .execute("", std::iter::empty(), Purpose::Change(change))
            .map_err(SinkError::wire("applying a TRUNCATE"))?;
        Ok(())
    }
}

/// The values at these positions, ascending.
fn chosen<'a>(tuple: Tuple<'a>, positions: &'a [u16]) -> impl Iterator<Item = Parameter<'a>> + Clone {
    let mut wanted = positions.iter().copied().peekable();
    tuple.iter().enumerate().filter_map(move |(at, value)| {
        wanted.next_if_eq(&(at as u16))?;
        Some(match value {
            Value::Text(bytes) => Parameter::Text(bytes),
            Value::Binary(bytes) => Parameter::Binary(bytes),
            Value::Null | Value::Unchanged => Parameter::Null,
        })
    })
}

/// Whether an UPDATE gives another value to a column that is GENERATED ALWAYS AS IDENTITY on the standby. Such a column is
/// NOT NULL and usually the key, so a change of it comes with the old value.
fn changes_identity_always(target: &Target, old: Option<OldTuple<'_>>, new: Tuple<'_>) -> bool {
    let Some(old) = old else { return false };
    let both = old.tuple().iter().zip(new.iter()).zip(&target.columns);
    both.filter(|(_, column)| column.identity == ColumnIdentity::Always)
        .any(|((old, new), _)| old != Value::Null && new != Value::Unchanged && old != new)
}
