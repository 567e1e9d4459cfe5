//! Writes the net effect of a run: of all tables first what is deleted, then what is updated, then what is inserted. Every
//! subset of a valid state is valid, so no row can be in another's way, and an error means that the standby differs.

use std::sync::Arc;

use crate::decode::Value;
use crate::schema::ColumnIdentity;

use super::arrays::{ArrayParameter, COPY_BINARY_END, COPY_BINARY_HEADER, push_binary_copy_row, push_copy_row};
use super::batch::Applier;
use super::change::{ApplyError, Purpose};
use super::columns::{Columns, key_columns};
use super::folding::{Folded, Nets, Work};
use super::form::Operation;
use super::prefetch::Ticket;
use super::set_statements::{SetForm, SetOperation};
use super::touch::Keys;

/// Rows of one statement.
const SET_ROWS: usize = 5000;
/// From so many rows on, or so many bytes, inserts go by COPY.
const COPY_ROWS: usize = 50;
const COPY_BYTES: usize = 1024 * 1024;
/// The server takes no message above 1 GiB; a row that is sent by itself has no more than its values.
const MESSAGE_LIMIT_BYTES: usize = 512 * 1024 * 1024;
/// A larger row goes alone, so that an array stays far below what one value may hold.
const LARGE_ROW_BYTES: usize = 4 * 1024 * 1024;
/// Rows of a COPY gather to messages of about this size.
const COPY_DATA_BYTES: usize = 32 * 1024;

/// Which columns rows have values for.
#[derive(Default)]
struct Sent {
    /// In some row.
    any: Vec<bool>,
    /// Not in every row.
    missing: Vec<bool>,
    has_text: bool,
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
                    self.has_text = true;
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
        if nets.is_empty() {
            return Ok(());
        }
        let nets = std::mem::take(nets);
        let works = nets.works();
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
        for (rows, ticket) in self.touched(work, &work.effect.deletes, SET_ROWS, Keys::Old) {
            match rows {
                [row] => self.one(work, *row, Operation::Delete)?,
                _ => {
                    let form = SetForm { operation: SetOperation::Delete, ..SetForm::default() };
                    self.set(work, rows, &form, ticket)?;
                }
            }
            self.session.write_if_full().await?;
        }
        Ok(())
    }

    async fn updates(&mut self, work: &Work<'_, '_>) -> Result<(), ApplyError> {
        if let Folded::Bag(bag) = work.folded {
            return self.change_bag(work, bag).await;
        }
        if !work.carried.is_empty() {
            let mut sent = Sent::default();
            let mut values = Vec::new();
            for row in &work.carried {
                work.values(*row, &mut values);
                sent.look(&values);
            }
            let operation = if work.target.touchy.is_empty() { SetOperation::Move } else { SetOperation::Carry };
            let ticket = self.touch(work, &work.carried, work.carried.len(), Keys::Old).pop().flatten();
            self.set(work, &work.carried, &set_form(work, operation, &sent), ticket)?;
            self.session.write_if_full().await?;
        }
        for row in &work.effect.moves {
            self.one(work, *row, Operation::Update)?;
        }
        let mut large = Vec::new();
        for (rows, ticket) in self.touched(work, &work.effect.updates, SET_ROWS, Keys::Old) {
            self.update_set(work, rows, &mut large, ticket)?;
            self.session.write_if_full().await?;
        }
        for row in large {
            self.one(work, row, Operation::Update)?;
            self.session.write_if_full().await?;
        }
        Ok(())
    }

    fn update_set(
        &mut self,
        work: &Work<'_, '_>,
        rows: &[u32],
        large: &mut Vec<u32>,
        ticket: Option<Ticket>,
    ) -> Result<(), ApplyError> {
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
        self.set(work, &kept, &set_form(work, SetOperation::Update, &sent), ticket)
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
        // Values of both forms cannot stand in one COPY.
        if !(sent.has_text && sent.has_binary) && (rows.len() >= COPY_ROWS || sent.size_bytes > COPY_BYTES) {
            let operation = if sent.has_binary { SetOperation::CopyBinary } else { SetOperation::Copy };
            return self.copies(work, rows, &set_form(work, operation, &sent)).await;
        }
        for (rows, ticket) in self.touched(work, rows, SET_ROWS, Keys::New) {
            self.set(work, rows, &set_form(work, SetOperation::Insert, &sent), ticket)?;
            self.session.write_if_full().await?;
        }
        Ok(())
    }

    /// Makes sure that there is room for so many arrays.
    pub(super) fn make_arrays(&mut self, count: usize) {
        if self.arrays.len() < count {
            self.arrays.resize_with(count, ArrayParameter::default);
        }
    }

    /// Puts one statement for these rows into the pipeline.
    fn set(
        &mut self,
        work: &Work<'_, '_>,
        rows: &[u32],
        form: &SetForm,
        ticket: Option<Ticket>,
    ) -> Result<(), ApplyError> {
        let target = &work.target;
        let plan = self.plans.get_set(&mut self.session, target, form)?;
        let key = if form.is_counted() { key_columns(target) } else { Vec::new() };
        let (old_columns, new_columns) = (Columns::in_turn(target, &key), Columns::of_relation(target, &form.columns));
        let count = old_columns.count() + new_columns.count() + form.kept.len();
        self.make_arrays(count);
        let (old, rest) = self.arrays.split_at_mut(old_columns.count());
        let (new, rest) = rest.split_at_mut(new_columns.count());
        let flags = &mut rest[..form.kept.len()];
        old_columns.start(old);
        new_columns.start(new);
        flags.iter_mut().for_each(|array| array.start(',', 0));
        let (mut values, mut keys) = (Vec::new(), Vec::new());
        for row in rows {
            if let (Folded::Keyed(net), false) = (work.folded, key.is_empty()) {
                keys.clear();
                keys.extend(net.old_key(*row));
                old_columns.push(old, &keys).map_err(work.mixed())?;
            }
            if form.columns.is_empty() {
                continue;
            }
            work.values(*row, &mut values);
            new_columns.push(new, &values).map_err(work.mixed())?;
            for (array, at) in flags.iter_mut().zip(&form.kept) {
                let is_kept = values[usize::from(*at)] == Value::Unchanged;
                array.push(Value::Text(if is_kept { b"t" } else { b"f" })).map_err(work.mixed())?;
            }
        }
        let expected = form.is_counted().then_some(rows.len());
        self.execute_set(&plan.name, work, &[&old_columns, &new_columns], count, (expected, ticket))
    }

    /// Puts a statement with the first `count` arrays into the pipeline; `groups` are what the first of them hold.
    pub(super) fn execute_set(
        &mut self,
        name: &str,
        work: &Work<'_, '_>,
        groups: &[&Columns<'_>],
        count: usize,
        (expected, ticket): (Option<usize>, Option<Ticket>),
    ) -> Result<(), ApplyError> {
        let expected = expected.map(|rows| (rows as i64).to_be_bytes());
        let mut parameters: Vec<Value<'_>> = self.arrays[..count].iter_mut().map(ArrayParameter::finish).collect();
        let mut rest = &parameters[..];
        for columns in groups {
            if !columns.fit(rest) {
                return Err(work.unprovable("a binary value cannot travel in an array"));
            }
            rest = &rest[columns.count()..];
        }
        let size = |value: &Value<'_>| match value {
            Value::Text(bytes) | Value::Binary(bytes) => bytes.len(),
            Value::Null | Value::Unchanged => 0,
        };
        let size_bytes: usize = parameters.iter().map(size).sum();
        if size_bytes > MESSAGE_LIMIT_BYTES {
            return Err(work.unprovable("its values are too large for one statement"));
        }
        parameters.extend(expected.as_ref().map(|bytes| Value::Binary(bytes)));
        let purpose = Purpose::Set(Arc::clone(&work.target), ticket);
        Ok(self.session.execute(name, parameters.iter().copied(), purpose)?)
    }

    /// One COPY, or several where they are to follow what is read ahead of them.
    async fn copies(&mut self, work: &Work<'_, '_>, rows: &[u32], form: &SetForm) -> Result<(), ApplyError> {
        for (rows, ticket) in self.touched(work, rows, rows.len(), Keys::New) {
            self.copy(work, rows, form, ticket).await?;
        }
        Ok(())
    }

    async fn copy(
        &mut self,
        work: &Work<'_, '_>,
        rows: &[u32],
        form: &SetForm,
        ticket: Option<Ticket>,
    ) -> Result<(), ApplyError> {
        let is_binary = form.operation == SetOperation::CopyBinary;
        if is_binary && work.target.takes_binary.contains(&false) {
            return Err(work.unprovable("a binary value may mean another one here"));
        }
        let plan = self.plans.get_set(&mut self.session, &work.target, form)?;
        self.session.begin_copy(&plan.name, Purpose::Set(Arc::clone(&work.target), ticket))?;
        let mut values = Vec::new();
        let mut rows = rows.iter().peekable();
        let mut before = if is_binary { COPY_BINARY_HEADER } else { b"" };
        while rows.peek().is_some() {
            self.session.copy_data(|out| {
                out.extend_from_slice(std::mem::take(&mut before));
                let limit_bytes = out.len() + COPY_DATA_BYTES;
                while out.len() < limit_bytes {
                    let Some(row) = rows.next() else { break };
                    work.values(*row, &mut values);
                    let pushed = match is_binary {
                        true => push_binary_copy_row(&values, out),
                        false => push_copy_row(values.iter().copied(), out),
                    };
                    pushed.map_err(work.mixed())?;
                }
                if is_binary && rows.peek().is_none() {
                    out.extend_from_slice(COPY_BINARY_END);
                }
                Ok::<(), ApplyError>(())
            })?;
            self.session.write_if_full().await?;
        }
        self.session.end_copy();
        if is_binary {
            self.check_types(work)?;
        }
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
        Ok(self.session.execute(&plan.name, set.chain(old.iter().copied()), Purpose::Set(Arc::clone(target), None))?)
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
