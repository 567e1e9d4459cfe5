//! Hands the keys of rows that statements are about to change to the sessions that prefetch. Puts nothing into the pipeline, and changes
//! nothing of what is written: where keys cannot be given, rows are not prefetched.

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

impl Applier {
    /// The rows of a set cut into those of its statements, at most `most` each, or fewer where their rows are looked for ahead of them;
    /// with each what says that, if they are.
    pub(super) fn touched<'r>(
        &mut self,
        work: &Work<'_, '_>,
        rows: &'r [u32],
        most: usize,
        keys: Keys,
    ) -> impl Iterator<Item = (&'r [u32], Option<Ticket>)> + use<'r> {
        let each = self.touched_rows(work, rows.len()).unwrap_or(most).max(1);
        let mut tickets = self.touch(work, rows, each, keys).into_iter();
        rows.chunks(each).map(move |rows| (rows, tickets.next().flatten()))
    }

    /// Has these rows looked for, which statements of `each` rows will change: one ticket for each statement, in order, or fewer.
    pub(super) fn touch(&mut self, work: &Work<'_, '_>, rows: &[u32], each: usize, keys: Keys) -> Vec<Option<Ticket>> {
        let Some(prefetch) = self.prefetch.clone().filter(|_| self.touched_rows(work, rows.len()).is_some()) else {
            return Vec::new();
        };
        let mut tickets = Vec::new();
        let statement = Arc::new(touch_statement(&work.target));
        let key = key_columns(&work.target);
        let columns = Columns::in_turn(&work.target, &key);
        self.make_arrays(columns.count());
        let mut binder = Binder { work, key: &key, columns, keys, arrays: &mut self.arrays, out: BytesMut::new() };
        for rows in rows.chunks(each) {
            let Some(pieces) = binder.pieces(&prefetch, rows) else { break };
            tickets.push(prefetch.add(&statement, pieces));
        }
        tickets
    }

    /// Rows of one statement where they are looked for ahead of it; `None` where those of this table are not.
    fn touched_rows(&self, work: &Work<'_, '_>, rows: usize) -> Option<usize> {
        let prefetch = self.prefetch.as_ref().filter(|prefetch| prefetch.is_on())?;
        let is_keyed = matches!(work.folded, Folded::Keyed(_));
        (is_keyed && rows >= LEAST_ROWS).then(|| prefetch.statement_rows())
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
