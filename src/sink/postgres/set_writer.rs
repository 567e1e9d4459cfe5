//! Writes the net effect of a run: of all tables first what is deleted, then what is updated, then what is inserted. Every
//! subset of a valid state is valid, so no row can be in another's way, and an error means that the standby differs.

use std::collections::HashMap;
use std::sync::Arc;

use crate::decode::{Message, Tuple, Value};
use crate::schema::ColumnIdentity;

use super::arrays::{ArrayParameter, MixedForms, push_copy_row};
use super::batch::Applier;
use super::change::{ApplyError, Purpose};
use super::form::Operation;
use super::net::{Effect, Net, Unprovable};
use super::set_statements::{SetForm, SetOperation, key_columns};
use super::target::{Target, Way};

/// Rows of one statement.
const SET_ROWS: usize = 5000;
/// From so many rows on, or so many bytes, inserts go by COPY.
const COPY_ROWS: usize = 50;
const COPY_BYTES: usize = 1024 * 1024;
/// A larger row goes alone, so that an array stays far below what one value may hold.
const LARGE_ROW_BYTES: usize = 4 * 1024 * 1024;
/// Rows of a COPY gather to messages of about this size.
const COPY_DATA_BYTES: usize = 32 * 1024;

/// Room for array parameters, kept from statement to statement.
pub(super) type Arrays = Vec<ArrayParameter>;

/// The folded changes of one table.
#[derive(Debug)]
enum Folded<'a> {
    Keyed(Net<'a>),
    Inserts(Vec<Tuple<'a>>),
}

/// The folded changes of a run.
#[derive(Debug, Default)]
pub(super) struct Nets<'a> {
    tables: Vec<(Arc<Target>, Folded<'a>)>,
    by_oid: HashMap<u32, usize>,
    /// The table of the last change: the next one often is of it too.
    last: Option<(u32, usize)>,
}

impl<'a> Nets<'a> {
    /// Takes a change in; `false` if it cannot be folded and must be made by itself, behind these.
    pub(super) fn fold(&mut self, target: &Arc<Target>, message: &Message<'a>) -> Result<bool, ApplyError> {
        let is_insert = matches!(message, Message::Insert { .. });
        if target.columns.is_empty() || target.way == Way::InOrder || target.way == Way::Inserts && !is_insert {
            return Ok(false);
        }
        let unprovable = |reason: Unprovable| ApplyError::Unprovable(Arc::clone(target), reason.0);
        let columns = target.columns.len();
        let fits = |tuple: &Tuple<'_>| tuple.len() == columns;
        let folded = match (self.table(target), message) {
            (Folded::Keyed(net), Message::Insert { new, .. }) if fits(new) => net.insert(*new),
            (Folded::Keyed(net), Message::Update { old, new, .. }) if fits(new) => {
                net.update(old.map(|old| old.tuple()), *new)
            }
            (Folded::Keyed(net), Message::Delete { old, .. }) if fits(&old.tuple()) => net.delete(old.tuple()),
            (Folded::Inserts(rows), Message::Insert { new, .. }) if fits(new) => {
                rows.push(*new);
                Ok(())
            }
            _ => Err(Unprovable("a row has another number of columns than its table")),
        };
        folded.map(|()| true).map_err(unprovable)
    }

    fn table(&mut self, target: &Arc<Target>) -> &mut Folded<'a> {
        let oid = target.relation.oid;
        let at = match self.last {
            Some((last, at)) if last == oid => at,
            _ => *self.by_oid.entry(oid).or_insert_with(|| {
                let folded = match target.way {
                    Way::Keyed => Folded::Keyed(Net::new(&target.key())),
                    Way::Inserts | Way::InOrder => Folded::Inserts(Vec::new()),
                };
                self.tables.push((Arc::clone(target), folded));
                self.tables.len() - 1
            }),
        };
        self.last = Some((oid, at));
        &mut self.tables[at].1
    }
}

/// What is written of one table.
struct Work<'n, 'a> {
    target: Arc<Target>,
    folded: &'n Folded<'a>,
    effect: Effect,
    /// Rows of `effect.moves` and `effect.updates` that are written together, since they might be in each other's way.
    carried: Vec<u32>,
}

impl<'n, 'a> Work<'n, 'a> {
    fn new(target: &Arc<Target>, folded: &'n Folded<'a>) -> Self {
        let (effect, carried) = match folded {
            Folded::Keyed(net) => (net.effect(), Vec::new()),
            Folded::Inserts(rows) => {
                (Effect { inserts: (0..rows.len() as u32).collect(), ..Effect::default() }, Vec::new())
            }
        };
        let mut work = Self { target: Arc::clone(target), folded, effect, carried };
        work.arrange();
        work
    }

    /// Decides which rows are carried. A moved row of which all is known is deleted and inserted.
    fn arrange(&mut self) {
        let Folded::Keyed(net) = self.folded else { return };
        let effect = &mut self.effect;
        let mut values = Vec::new();
        let mut is_partial = |row: &u32| {
            net.values(*row, &mut values);
            values.contains(&Value::Unchanged)
        };
        let must_carry = !self.target.extra.is_empty() || effect.moves.iter().any(&mut is_partial);
        if effect.moves.len() > 1 && !must_carry {
            effect.inserts.extend_from_slice(&effect.moves);
            effect.deletes.append(&mut effect.moves);
            net.sort(&mut effect.deletes);
        }
        if effect.updates.len() + effect.moves.len() == 1 || (effect.moves.is_empty() && self.target.touchy.is_empty())
        {
            return;
        }
        self.carried.append(&mut effect.moves);
        if !self.target.touchy.is_empty() {
            self.carried.append(&mut effect.updates);
            net.sort(&mut self.carried);
        }
    }

    fn values(&self, row: u32, values: &mut Vec<Value<'a>>) {
        match self.folded {
            Folded::Keyed(net) => net.values(row, values),
            Folded::Inserts(rows) => {
                values.clear();
                values.extend(rows[row as usize].iter());
            }
        }
    }

    fn unprovable(&self, reason: &'static str) -> ApplyError {
        ApplyError::Unprovable(Arc::clone(&self.target), reason)
    }

    fn mixed(&self) -> impl Fn(MixedForms) -> ApplyError + use<'_, 'n, 'a> {
        |_| self.unprovable("a column's values come in two forms")
    }
}

/// Which columns rows have values for.
#[derive(Default)]
struct Sent {
    /// In some row.
    any: Vec<bool>,
    /// Not in every row.
    missing: Vec<bool>,
    has_binary: bool,
    size_bytes: usize,
}

impl Sent {
    fn look<'a>(&mut self, values: &[Value<'a>]) -> usize {
        self.any.resize(values.len(), false);
        self.missing.resize(values.len(), false);
        let mut row_bytes = 0;
        for (at, value) in values.iter().enumerate() {
            match value {
                Value::Unchanged => self.missing[at] = true,
                Value::Null => self.any[at] = true,
                Value::Text(bytes) => {
                    self.any[at] = true;
                    row_bytes += bytes.len();
                }
                Value::Binary(bytes) => {
                    self.any[at] = true;
                    self.has_binary = true;
                    row_bytes += bytes.len();
                }
            }
        }
        self.size_bytes += row_bytes;
        row_bytes
    }
}

impl Applier {
    /// Writes what was folded and begins anew.
    pub(super) async fn write_nets(&mut self, nets: &mut Nets<'_>) -> Result<(), ApplyError> {
        if nets.tables.is_empty() {
            return Ok(());
        }
        let nets = std::mem::take(nets);
        let works: Vec<Work<'_, '_>> = nets.tables.iter().map(|(target, folded)| Work::new(target, folded)).collect();
        self.detours.folded();
        for work in &works {
            self.deletes(work).await?;
        }
        for work in &works {
            self.updates(work).await?;
        }
        for work in &works {
            self.inserts(work).await?;
        }
        Ok(())
    }

    async fn deletes(&mut self, work: &Work<'_, '_>) -> Result<(), ApplyError> {
        for rows in work.effect.deletes.chunks(SET_ROWS) {
            match rows {
                [row] => self.one(work, *row, Operation::Delete)?,
                _ => {
                    let form = SetForm { operation: SetOperation::Delete, ..SetForm::default() };
                    self.set(work, rows, &form)?;
                }
            }
            self.session.write_if_full().await?;
        }
        Ok(())
    }

    async fn updates(&mut self, work: &Work<'_, '_>) -> Result<(), ApplyError> {
        if !work.carried.is_empty() {
            let mut sent = Sent::default();
            let mut values = Vec::new();
            for row in &work.carried {
                work.values(*row, &mut values);
                sent.look(&values);
            }
            let operation = if work.target.touchy.is_empty() { SetOperation::Move } else { SetOperation::Carry };
            self.set(work, &work.carried, &set_form(work, operation, &sent))?;
            self.session.write_if_full().await?;
        }
        for row in &work.effect.moves {
            self.one(work, *row, Operation::Update)?;
        }
        let mut large = Vec::new();
        for rows in work.effect.updates.chunks(SET_ROWS) {
            self.update_set(work, rows, &mut large)?;
            self.session.write_if_full().await?;
        }
        for row in large {
            self.one(work, row, Operation::Update)?;
            self.session.write_if_full().await?;
        }
        Ok(())
    }

    fn update_set(&mut self, work: &Work<'_, '_>, rows: &[u32], large: &mut Vec<u32>) -> Result<(), ApplyError> {
        if let [row] = rows {
            return self.one(work, *row, Operation::Update);
        }
        let mut sent = Sent::default();
        let mut values = Vec::new();
        let mut kept: Vec<u32> = Vec::with_capacity(rows.len());
        for row in rows {
            work.values(*row, &mut values);
            if sent.look(&values) > LARGE_ROW_BYTES { large.push(*row) } else { kept.push(*row) }
        }
        if kept.is_empty() {
            return Ok(());
        }
        self.set(work, &kept, &set_form(work, SetOperation::Update, &sent))
    }

    async fn inserts(&mut self, work: &Work<'_, '_>) -> Result<(), ApplyError> {
        let rows = &work.effect.inserts;
        if let [row] = rows[..] {
            return self.one(work, row, Operation::Insert);
        }
        let mut sent = Sent::default();
        let mut values = Vec::new();
        for row in rows {
            work.values(*row, &mut values);
            sent.look(&values);
        }
        if sent.missing.contains(&true) {
            return Err(work.unprovable("a row to insert lacks a value"));
        }
        if !sent.has_binary && (rows.len() >= COPY_ROWS || sent.size_bytes > COPY_BYTES) {
            return self.copy(work, rows, &set_form(work, SetOperation::Copy, &sent)).await;
        }
        for rows in rows.chunks(SET_ROWS) {
            self.set(work, rows, &set_form(work, SetOperation::Insert, &sent))?;
            self.session.write_if_full().await?;
        }
        Ok(())
    }

    /// Puts one statement for these rows into the pipeline.
    fn set(&mut self, work: &Work<'_, '_>, rows: &[u32], form: &SetForm) -> Result<(), ApplyError> {
        let target = &work.target;
        let plan = self.plans.get_set(&mut self.session, target, form)?;
        let key = if form.is_counted() { key_columns(target) } else { Vec::new() };
        let count = key.len() + form.columns.len() + form.kept.len();
        if self.arrays.len() < count {
            self.arrays.resize_with(count, ArrayParameter::default);
        }
        let (old, rest) = self.arrays.split_at_mut(key.len());
        let (new, rest) = rest.split_at_mut(form.columns.len());
        let flags = &mut rest[..form.kept.len()];
        for (array, at) in old.iter_mut().zip(&key).chain(new.iter_mut().zip(&form.columns)) {
            let column = &target.columns[usize::from(*at)];
            array.start(column.array_delimiter, column.type_oid);
        }
        flags.iter_mut().for_each(|array| array.start(',', 0));
        let mut values = Vec::new();
        for row in rows {
            if let (Folded::Keyed(net), false) = (work.folded, key.is_empty()) {
                for (array, value) in old.iter_mut().zip(net.old_key(*row)) {
                    array.push(value).map_err(work.mixed())?;
                }
            }
            if form.columns.is_empty() {
                continue;
            }
            work.values(*row, &mut values);
            for (array, at) in new.iter_mut().zip(&form.columns) {
                array.push(values[usize::from(*at)]).map_err(work.mixed())?;
            }
            for (array, at) in flags.iter_mut().zip(&form.kept) {
                let is_kept = values[usize::from(*at)] == Value::Unchanged;
                array.push(Value::Text(if is_kept { b"t" } else { b"f" })).map_err(work.mixed())?;
            }
        }
        let expected = (rows.len() as i64).to_be_bytes();
        let mut parameters: Vec<Value<'_>> = self.arrays[..count].iter_mut().map(ArrayParameter::finish).collect();
        for (value, at) in parameters.iter().zip(key.iter().chain(&form.columns)) {
            // A cast reads text.
            let at = usize::from(*at);
            if matches!(value, Value::Binary(_)) && (target.columns[at].array_type_oid == 0 || !target.takes_binary[at])
            {
                return Err(work.unprovable("a binary value cannot travel in an array"));
            }
        }
        if form.is_counted() {
            parameters.push(Value::Binary(&expected));
        }
        let purpose = Purpose::Set(Arc::clone(target));
        Ok(self.session.execute(&plan.name, parameters.iter().copied(), purpose)?)
    }

    async fn copy(&mut self, work: &Work<'_, '_>, rows: &[u32], form: &SetForm) -> Result<(), ApplyError> {
        let plan = self.plans.get_set(&mut self.session, &work.target, form)?;
        self.session.begin_copy(&plan.name, Purpose::Set(Arc::clone(&work.target)))?;
        let mut values = Vec::new();
        let mut rows = rows.iter().peekable();
        while rows.peek().is_some() {
            self.session.copy_data(|out| {
                let limit_bytes = out.len() + COPY_DATA_BYTES;
                while out.len() < limit_bytes {
                    let Some(row) = rows.next() else { break };
                    work.values(*row, &mut values);
                    push_copy_row(values.iter().copied(), out).map_err(work.mixed())?;
                }
                Ok::<(), ApplyError>(())
            })?;
            self.session.write_if_full().await?;
        }
        self.session.end_copy();
        Ok(())
    }

    /// Puts the change of one row into the pipeline.
    fn one(&mut self, work: &Work<'_, '_>, row: u32, operation: Operation) -> Result<(), ApplyError> {
        let target = &work.target;
        let mut new = Vec::new();
        work.values(row, &mut new);
        let key = key_columns(target);
        let old: Vec<Value<'_>> = match (work.folded, operation) {
            (Folded::Keyed(net), Operation::Update | Operation::Delete) => net.old_key(row).collect(),
            _ => Vec::new(),
        };
        let is_moved = operation == Operation::Update && work.effect.moves.contains(&row);
        self.form.net(target, operation, &new, &key, is_moved);
        if operation == Operation::Insert && new.contains(&Value::Unchanged) {
            return Err(work.unprovable("a row to insert lacks a value"));
        }
        for (at, value) in new.iter().enumerate() {
            if matches!(value, Value::Binary(_)) && !target.takes_binary[at] {
                return Err(work.unprovable("a binary value means another one here"));
            }
        }
        let plan = self.plans.get(&mut self.session, target, &self.form)?;
        let set = plan.form.set.iter().map(|at| new[usize::from(*at)]);
        Ok(self.session.execute(&plan.name, set.chain(old.iter().copied()), Purpose::Set(Arc::clone(target)))?)
    }
}

fn set_form(work: &Work<'_, '_>, operation: SetOperation, sent: &Sent) -> SetForm {
    let key = key_columns(&work.target);
    let is_written = |at: &u16| {
        let column = &work.target.columns[usize::from(*at)];
        // In place, the key stays, and an identity that changes is carried.
        operation != SetOperation::Update || !key.contains(at) && column.identity != ColumnIdentity::Always
    };
    let places = || (0..sent.any.len() as u16).filter(is_written);
    let columns: Vec<u16> = places().filter(|at| sent.any[usize::from(*at)]).collect();
    let kept = columns.iter().copied().filter(|at| sent.missing[usize::from(*at)]).collect();
    SetForm { operation, columns, kept }
}
