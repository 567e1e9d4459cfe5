//! Hands the keys of rows that statements are about to change to the sessions that prefetch. Puts nothing into the pipeline, and changes
//! nothing of what is written: where keys cannot be given, rows are not prefetched.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use crate::decode::Value;

use super::arrays::ArrayParameter;
use super::batch::Applier;
use super::columns::{Columns, key_columns};
use super::folding::{Folded, Work};
use super::prefetch::{Prefetch, Ticket};
use super::session::bind;
use super::set_statements::touch_statement;

/// Fewer rows are not worth another session's waking.
const LEAST_ROWS: usize = 16;

/// Where the keys of rows come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keys {
    /// Rows that are there.
    Old,
    /// Rows to be inserted: their places in the index.
    New,
}

/// What goes with the statements of a set, in order: nothing where nothing is prefetched.
#[derive(Debug, Default)]
pub(super) struct Tickets(VecDeque<Option<Ticket>>);

impl Tickets {
    /// Of the next statement.
    pub(super) fn next(&mut self) -> Option<Ticket> {
        self.0.pop_front().flatten()
    }
}

impl Applier {
    /// Rows of one statement: at most `most`, fewer where their rows are read ahead of them. `None` where those of this table are not.
    pub(super) fn touched_rows(&self, work: &Work<'_, '_>, rows: usize) -> Option<usize> {
        let prefetch = self.prefetch.as_ref().filter(|prefetch| prefetch.is_on())?;
        let is_keyed = matches!(work.folded, Folded::Keyed(_));
        (is_keyed && rows >= LEAST_ROWS).then(|| prefetch.statement_rows())
    }

    /// Has these rows looked for, which statements of `each` rows will change.
    pub(super) fn touch(&mut self, work: &Work<'_, '_>, rows: &[u32], each: usize, keys: Keys) -> Tickets {
        let mut tickets = Tickets::default();
        let Some(prefetch) = self.prefetch.clone().filter(|_| self.touched_rows(work, rows.len()).is_some()) else {
            return tickets;
        };
        let statement = Arc::new(touch_statement(&work.target));
        let key = key_columns(&work.target);
        let columns = Columns::in_turn(&work.target, &key);
        self.make_arrays(columns.count());
        let mut binder = Binder { work, key: &key, columns, keys, arrays: &mut self.arrays, out: BytesMut::new() };
        for rows in rows.chunks(each) {
            let Some(pieces) = binder.pieces(&prefetch, rows) else { break };
            tickets.0.push_back(prefetch.add(&statement, pieces));
        }
        tickets
    }
}

/// Makes Binds of keys.
struct Binder<'b, 'n, 'a> {
    work: &'b Work<'n, 'a>,
    key: &'b [u16],
    columns: Columns<'b>,
    keys: Keys,
    arrays: &'b mut [ArrayParameter],
    out: BytesMut,
}

impl Binder<'_, '_, '_> {
    /// A statement's, of as many rows at most as are read ahead; `None` where keys cannot be given so.
    fn pieces(&mut self, prefetch: &Prefetch, rows: &[u32]) -> Option<Vec<(Bytes, usize)>> {
        let rows = &rows[..rows.len().min(prefetch.statement_rows())];
        rows.chunks(prefetch.piece_rows(rows.len())).map(|rows| Some((self.bind(rows)?, rows.len()))).collect()
    }

    fn bind(&mut self, rows: &[u32]) -> Option<Bytes> {
        let Folded::Keyed(net) = self.work.folded else { return None };
        let arrays = &mut self.arrays[..self.columns.count()];
        self.columns.start(arrays);
        let (mut values, mut keys) = (Vec::new(), Vec::new());
        for row in rows {
            keys.clear();
            if self.keys == Keys::Old {
                keys.extend(net.old_key(*row));
            } else {
                self.work.values(*row, &mut values);
                keys.extend(self.key.iter().map(|at| values[usize::from(*at)]));
            }
            self.columns.push(arrays, &keys).ok()?;
        }
        let parameters: Vec<Value<'_>> = arrays.iter_mut().map(ArrayParameter::finish).collect();
        if !self.columns.fit(&parameters) {
            return None;
        }
        bind("", parameters.iter().copied(), &mut self.out).ok()?;
        Some(self.out.split().freeze())
    }
}
