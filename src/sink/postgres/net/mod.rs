//! The net effect of a run of changes on one table with a key: what is to be deleted, updated, moved to another key and
//! inserted so that the table stands as if each change had been made in turn. Pure; keys compare as the bytes received, values
//! are never copied.
//!
//! ```text
//! insert, update → insert of the latest values        insert, delete → nothing
//! update, update → one update of all columns sent     delete, insert → both: all deletes run before any insert
//! a change of the key → the row moves; a column that was never sent stays what it is
//! ```

mod bag;
#[cfg(test)]
mod tests;

pub(super) use bag::{Bag, BagEffect};

use std::ops::Range;

use hashbrown::hash_table::Entry;
use hashbrown::{DefaultHashBuilder, HashTable};
use std::hash::BuildHasher;

use crate::decode::{Tuple, Value};

/// The changes do not fit each other as changes of one table with this key must: they cannot be folded, only made in turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unprovable(pub &'static str);

/// Bytes of a key: for each key column its kind, length and value, as in a tuple.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key {
    start: u32,
    end: u32,
}

impl Key {
    fn range(self) -> Range<usize> {
        self.start as usize..self.end as usize
    }
}

/// A row's newest values.
#[derive(Debug)]
enum Values<'a> {
    /// As one message sent them.
    Sent(Tuple<'a>),
    /// Put together of several messages, since the later left large values out.
    Merged(Box<[Value<'a>]>),
}

/// A row that was touched.
#[derive(Debug)]
pub(super) struct Row<'a> {
    /// Its key before the run; `None` if it was not there.
    origin: Option<Key>,
    /// Its key now.
    key: Key,
    /// `None` once it is deleted.
    values: Option<Values<'a>>,
}

/// Where a key is: at a row, or known to be free.
#[derive(Debug)]
struct Place {
    key: Key,
    row: u32,
}

/// No row has this key now.
const FREE: u32 = u32::MAX;

/// What a run comes to. Numbers are rows of the net; deletes, updates and moves are ordered by their old keys, inserts as
/// they came.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Effect {
    /// Gone.
    pub deletes: Vec<u32>,
    /// The key stays.
    pub updates: Vec<u32>,
    /// The key changes.
    pub moves: Vec<u32>,
    /// New.
    pub inserts: Vec<u32>,
}

/// The changes of a table with a key, folded as they come.
#[derive(Debug)]
pub struct Net<'a> {
    /// Positions of the key's columns, ascending.
    columns: Vec<usize>,
    /// Whether the primary names a row by this column too, for each column; empty where it names rows by the key alone.
    named_by: Vec<bool>,
    hasher: DefaultHashBuilder,
    places: HashTable<Place>,
    /// The bytes of all keys.
    keys: Vec<u8>,
    rows: Vec<Row<'a>>,
}

/// Writes a value so that equal values, and only they, are equal bytes.
fn append_value(value: Value<'_>, out: &mut Vec<u8>) -> Result<(), Unprovable> {
    let (kind, bytes) = match value {
        Value::Text(bytes) => (b't', bytes),
        Value::Binary(bytes) => (b'b', bytes),
        Value::Null => {
            out.push(b'n');
            return Ok(());
        }
        Value::Unchanged => return Err(Unprovable("a row lacks a value")),
    };
    out.push(kind);
    out.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
    out.extend_from_slice(bytes);
    Ok(())
}

impl<'a> Net<'a> {
    /// Of a table with this key: positions of its columns.
    pub fn new(key: &[usize]) -> Self {
        let mut columns = key.to_vec();
        columns.sort_unstable();
        Self {
            columns,
            named_by: Vec::new(),
            hasher: DefaultHashBuilder::default(),
            places: HashTable::new(),
            keys: Vec::new(),
            rows: Vec::new(),
        }
    }

    /// Where the primary names rows by more than this key, which only the standby holds unique: these columns too must fit a row that was
    /// touched before. On the primary another row may have had its key for a moment (a deferrable constraint, or none).
    pub fn named_by(mut self, is_named_by: Vec<bool>) -> Self {
        self.named_by = is_named_by;
        self
    }

    /// A new row.
    pub fn insert(&mut self, new: Tuple<'a>) -> Result<(), Unprovable> {
        let key = self.read_key(new, None)?;
        let row = self.rows.len() as u32;
        let (key, before) = self.put(key, row);
        if before.is_some_and(|before| before != FREE) {
            return Err(Unprovable("a row is inserted twice"));
        }
        self.rows.push(Row { origin: None, key, values: Some(Values::Sent(new)) });
        Ok(())
    }

    /// A row changes; `old` is what was sent of it before.
    pub fn update(&mut self, old: Option<Tuple<'a>>, new: Tuple<'a>) -> Result<(), Unprovable> {
        let from = self.read_key(old.unwrap_or(new), None)?;
        let next = self.rows.len() as u32;
        let (from, row) = match self.place(from, next) {
            (_, Some(FREE)) => return Err(Unprovable("a row is updated after it was deleted")),
            (key, Some(row)) => {
                self.must_be(row, old.unwrap_or(new))?;
                (key, row)
            }
            (key, None) => {
                self.rows.push(Row { origin: Some(key), key, values: None });
                (key, next)
            }
        };
        self.merge(row, new)?;
        let Some(old) = old else { return Ok(()) };
        let to = self.read_key(new, Some(old))?;
        if self.keys[to.range()] == self.keys[from.range()] {
            self.keys.truncate(to.start as usize);
            return Ok(());
        }
        self.put(from, FREE);
        let (to, before) = self.put(to, row);
        if before.is_some_and(|before| before != FREE) {
            return Err(Unprovable("a row takes a key that another one has"));
        }
        self.rows[row as usize].key = to;
        Ok(())
    }

    /// A row goes.
    pub fn delete(&mut self, old: Tuple<'a>) -> Result<(), Unprovable> {
        let key = self.read_key(old, None)?;
        let (key, before) = self.put(key, FREE);
        match before {
            Some(FREE) => return Err(Unprovable("a row is deleted twice")),
            Some(row) => {
                self.must_be(row, old)?;
                self.rows[row as usize].values = None;
            }
            None => self.rows.push(Row { origin: Some(key), key, values: None }),
        }
        Ok(())
    }

    /// What the changes come to.
    pub fn effect(&self) -> Effect {
        let mut effect = Effect::default();
        for (at, row) in self.rows.iter().enumerate() {
            let list = match (row.origin, &row.values) {
                (None, Some(_)) => &mut effect.inserts,
                (None, None) => continue,
                (Some(_), None) => &mut effect.deletes,
                (Some(origin), Some(_)) if self.keys[origin.range()] == self.keys[row.key.range()] => {
                    &mut effect.updates
                }
                (Some(_), Some(_)) => &mut effect.moves,
            };
            list.push(at as u32);
        }
        for list in [&mut effect.deletes, &mut effect.updates, &mut effect.moves] {
            self.sort(list);
        }
        effect
    }

    /// Orders rows by their old keys. A key begins with its length, so that numbers come in numeric order, in text form too.
    pub(super) fn sort(&self, rows: &mut [u32]) {
        rows.sort_unstable_by(|one, other| self.old_key_bytes(*one).cmp(self.old_key_bytes(*other)));
    }

    fn old_key_bytes(&self, row: u32) -> &[u8] {
        let row = &self.rows[row as usize];
        &self.keys[row.origin.unwrap_or(row.key).range()]
    }

    /// The key's values before the run, in the order of `columns`.
    pub(super) fn old_key(&self, row: u32) -> impl Iterator<Item = Value<'_>> {
        let mut rest = self.old_key_bytes(row);
        std::iter::from_fn(move || {
            let (kind, after) = rest.split_first()?;
            let (length, after) = after.split_first_chunk::<4>()?;
            let (value, after) = after.split_at_checked(u32::from_be_bytes(*length) as usize)?;
            rest = after;
            Some(if *kind == b't' { Value::Text(value) } else { Value::Binary(value) })
        })
    }

    /// Puts the row's newest values in place of `values`, `Unchanged` where none was sent.
    pub(super) fn values(&self, row: u32, values: &mut Vec<Value<'a>>) {
        values.clear();
        match &self.rows[row as usize].values {
            Some(Values::Sent(tuple)) => values.extend(tuple.iter()),
            Some(Values::Merged(merged)) => values.extend_from_slice(merged),
            None => {}
        }
    }

    /// The row with this key must be the one that the primary names.
    fn must_be(&self, row: u32, named: Tuple<'a>) -> Result<(), Unprovable> {
        if self.named_by.is_empty() {
            return Ok(());
        }
        let is_other = |(at, (own, named)): (usize, (Value<'_>, Value<'_>))| {
            let is_known = own != Value::Unchanged && named != Value::Unchanged;
            self.named_by.get(at).is_some_and(|is_named_by| *is_named_by) && is_known && own != named
        };
        let is_another = match &self.rows[row as usize].values {
            Some(Values::Sent(tuple)) => tuple.iter().zip(named.iter()).enumerate().any(is_other),
            Some(Values::Merged(merged)) => merged.iter().copied().zip(named.iter()).enumerate().any(is_other),
            None => false,
        };
        if is_another {
            return Err(Unprovable("two rows have one key for a moment"));
        }
        Ok(())
    }

    fn merge(&mut self, row: u32, new: Tuple<'a>) -> Result<(), Unprovable> {
        let values = &mut self.rows[row as usize].values;
        let is_unchanged = |value: Value<'_>| value == Value::Unchanged;
        if values.is_none() || !new.iter().any(is_unchanged) {
            *values = Some(Values::Sent(new));
            return Ok(());
        }
        let mut merged: Box<[Value<'a>]> = match values.take() {
            Some(Values::Sent(before)) => before.iter().collect(),
            Some(Values::Merged(merged)) => merged,
            None => Box::default(),
        };
        if merged.len() != new.len() {
            return Err(Unprovable("a row changes its number of columns"));
        }
        for (value, new) in merged.iter_mut().zip(new.iter()).filter(|(_, new)| !is_unchanged(*new)) {
            *value = new;
        }
        *values = Some(Values::Merged(merged));
        Ok(())
    }

    /// Writes a tuple's key behind the others. A large value that the new row leaves out is the old row's.
    fn read_key(&mut self, tuple: Tuple<'a>, old: Option<Tuple<'a>>) -> Result<Key, Unprovable> {
        let start = self.keys.len() as u32;
        let mut wanted = self.columns.iter().copied().peekable();
        for (at, value) in tuple.iter().enumerate() {
            let Some(next) = wanted.peek() else { break };
            if *next != at {
                continue;
            }
            wanted.next();
            let value = match value {
                Value::Unchanged => old.and_then(|old| old.iter().nth(at)).unwrap_or(value),
                value => value,
            };
            if matches!(value, Value::Null | Value::Unchanged) {
                return Err(Unprovable("a key column has no value"));
            }
            append_value(value, &mut self.keys)?;
        }
        if wanted.peek().is_some() {
            return Err(Unprovable("a row has fewer columns than its key"));
        }
        Ok(Key { start, end: self.keys.len() as u32 })
    }

    /// Says that the key, the last one read or one kept, is at `row`; gives the kept key and what was there before.
    fn put(&mut self, key: Key, row: u32) -> (Key, Option<u32>) {
        let (key, place) = self.find(key, row);
        let before = place.map(|place| std::mem::replace(&mut place.row, row));
        (key, before)
    }

    /// Where the key is; if it was not met before, it is now at `row`.
    fn place(&mut self, key: Key, row: u32) -> (Key, Option<u32>) {
        let (key, place) = self.find(key, row);
        (key, place.map(|place| place.row))
    }

    /// The place of a key met before; else makes one at `row` and gives none.
    fn find(&mut self, key: Key, row: u32) -> (Key, Option<&mut Place>) {
        let keys = &mut self.keys;
        let hash = self.hasher.hash_one(&keys[key.range()]);
        let is_equal = |place: &Place| keys[place.key.range()] == keys[key.range()];
        let hash_of = |place: &Place| self.hasher.hash_one(&keys[place.key.range()]);
        match self.places.entry(hash, is_equal, hash_of) {
            Entry::Vacant(vacant) => {
                vacant.insert(Place { key, row });
                (key, None)
            }
            Entry::Occupied(occupied) => {
                let place = occupied.into_mut();
                if place.key != key && key.end as usize == keys.len() {
                    keys.truncate(key.start as usize);
                }
                (place.key, Some(place))
            }
        }
    }
}
