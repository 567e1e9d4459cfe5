//! The net effect of a run of changes on a table without a key, whose rows are found by all they hold: which rows go, which
//! become others, which come. Of equal rows any one is as good. Pure; rows compare as the bytes received.

use std::hash::BuildHasher;

use hashbrown::hash_table::Entry;
use hashbrown::{DefaultHashBuilder, HashTable};

use crate::decode::{Tuple, Value};

use super::{Unprovable, append_value};

/// A row that was touched.
#[derive(Debug)]
struct Row<'a> {
    /// As it was before the run; `None` if it was not there.
    origin: Option<Tuple<'a>>,
    /// As it is now; `None` once it is deleted.
    now: Option<Box<[Value<'a>]>>,
    /// The next row that is equal to it now.
    next: u32,
}

/// Rows that are equal now: a list through `Row::next`.
#[derive(Debug)]
struct Equals {
    start: u32,
    end: u32,
    /// Place of its first row in `firsts`.
    at: u32,
}

/// The end of a list.
const NONE: u32 = u32::MAX;

/// The changes of a table without a key, folded as they come.
#[derive(Debug, Default)]
pub(in super::super) struct Bag<'a> {
    hasher: DefaultHashBuilder,
    places: HashTable<Equals>,
    /// The bytes of all rows met.
    bytes: Vec<u8>,
    rows: Vec<Row<'a>>,
    /// First rows of the lists of `Equals`.
    firsts: Vec<u32>,
}

/// What a run comes to; numbers are rows of the bag.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in super::super) struct BagEffect {
    /// Rows that go or become others; equal ones stand together.
    pub(in super::super) changed: Vec<u32>,
    pub(in super::super) inserts: Vec<u32>,
}

impl<'a> Bag<'a> {
    /// A new row.
    pub(in super::super) fn insert(&mut self, new: Tuple<'a>) -> Result<(), Unprovable> {
        self.rows.push(Row { origin: None, now: None, next: NONE });
        self.becomes(self.rows.len() as u32 - 1, new.iter().collect())
    }

    /// A row becomes another; what the new one leaves out it has from the old one.
    pub(in super::super) fn update(&mut self, old: Tuple<'a>, new: Tuple<'a>) -> Result<(), Unprovable> {
        let row = self.take(old)?;
        let whole = |(new, old)| if new == Value::Unchanged { old } else { new };
        self.becomes(row, new.iter().zip(old.iter()).map(whole).collect())
    }

    /// A row goes.
    pub(in super::super) fn delete(&mut self, old: Tuple<'a>) -> Result<(), Unprovable> {
        self.take(old).map(|_| ())
    }

    /// What the changes come to.
    pub(in super::super) fn effect(&self) -> BagEffect {
        let mut effect = BagEffect::default();
        for (at, row) in self.rows.iter().enumerate() {
            match (&row.origin, &row.now) {
                (Some(_), _) => effect.changed.push(at as u32),
                (None, Some(_)) => effect.inserts.push(at as u32),
                (None, None) => {}
            }
        }
        effect.changed.sort_by_cached_key(|row| self.origin(*row).map(Tuple::bytes));
        effect
    }

    /// The row as it was before the run.
    pub(in super::super) fn origin(&self, row: u32) -> Option<&Tuple<'a>> {
        self.rows[row as usize].origin.as_ref()
    }

    /// The row as it is now; `None` if it goes.
    pub(in super::super) fn now(&self, row: u32) -> Option<&[Value<'a>]> {
        self.rows[row as usize].now.as_deref()
    }

    /// Takes one of the rows that are equal to `old` now; one that the run has not touched, if there is none.
    fn take(&mut self, old: Tuple<'a>) -> Result<u32, Unprovable> {
        let (at, place) = self.equals(old.iter())?;
        if at == NONE {
            self.rows.push(Row { origin: Some(old), now: None, next: NONE });
            return Ok(self.rows.len() as u32 - 1);
        }
        let row = &mut self.rows[at as usize];
        self.firsts[place] = row.next;
        row.now = None;
        Ok(at)
    }

    fn becomes(&mut self, row: u32, values: Box<[Value<'a>]>) -> Result<(), Unprovable> {
        let (_, place) = self.equals(values.iter().copied())?;
        let next = std::mem::replace(&mut self.firsts[place], row);
        let row = &mut self.rows[row as usize];
        row.next = next;
        row.now = Some(values);
        Ok(())
    }

    /// The first row that is equal to these values now, and the place in `firsts` that says so.
    fn equals<'v>(&mut self, values: impl Iterator<Item = Value<'v>>) -> Result<(u32, usize), Unprovable> {
        let bytes = &mut self.bytes;
        let start = bytes.len();
        for value in values {
            append_value(value, bytes)?;
        }
        let end = bytes.len();
        let hash = self.hasher.hash_one(&bytes[start..]);
        let of = |place: &Equals| place.start as usize..place.end as usize;
        let is_equal = |place: &Equals| bytes[of(place)] == bytes[start..end];
        let hash_of = |place: &Equals| self.hasher.hash_one(&bytes[of(place)]);
        let at = match self.places.entry(hash, is_equal, hash_of) {
            Entry::Vacant(vacant) => {
                let at = self.firsts.len() as u32;
                self.firsts.push(NONE);
                vacant.insert(Equals { start: start as u32, end: end as u32, at });
                at
            }
            Entry::Occupied(occupied) => {
                bytes.truncate(start);
                occupied.get().at
            }
        };
        Ok((self.firsts[at as usize], at as usize))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::decode::{Context, Message, decode};

    type Counted = BTreeMap<Vec<u8>, u32>;

    fn tuple(row: u8) -> Vec<u8> {
        let value = |value: u8| [&[b't', 0, 0, 0, 1][..], &[value]].concat();
        let second = if row.is_multiple_of(3) { vec![b'n'] } else { value(b'a' + row % 3) };
        [&[0, 2][..], &value(b'0' + row / 3), &second].concat()
    }

    /// Deletes (no new row), inserts (no old row) and updates, by number.
    fn messages(changes: &[(Option<u8>, Option<u8>)]) -> Vec<Vec<u8>> {
        let part = |kind: u8, row: Option<u8>| row.map_or(Vec::new(), |row| [&[kind][..], &tuple(row)].concat());
        let tag = |old: bool, new: bool| {
            if old && new {
                b'U'
            } else if old {
                b'D'
            } else {
                b'I'
            }
        };
        let message = |(old, new): &(Option<u8>, Option<u8>)| {
            [&[tag(old.is_some(), new.is_some()), 0, 0, 0, 1][..], &part(b'O', *old), &part(b'N', *new)].concat()
        };
        changes.iter().map(message).collect()
    }

    fn fold(messages: &[Vec<u8>]) -> Bag<'_> {
        let mut bag = Bag::default();
        for message in messages {
            match decode(message, Context::default()).unwrap() {
                Message::Insert { new, .. } => bag.insert(new),
                Message::Update { old, new, .. } => bag.update(old.unwrap().tuple(), new),
                Message::Delete { old, .. } => bag.delete(old.tuple()),
                message => panic!("{message:?}"),
            }
            .unwrap();
        }
        bag
    }

    fn bytes<'v>(values: impl Iterator<Item = Value<'v>>) -> Vec<u8> {
        let mut bytes = Vec::new();
        values.for_each(|value| append_value(value, &mut bytes).unwrap());
        bytes
    }

    fn add(table: &mut Counted, row: Vec<u8>) {
        *table.entry(row).or_default() += 1;
    }

    fn remove(table: &mut Counted, row: &[u8]) {
        let count = table.get_mut(row).filter(|count| **count > 0).expect("a row that is there");
        *count -= 1;
    }

    proptest! {
        #[test]
        fn the_net_effect_ends_as_each_change_in_turn(
            before in prop::collection::vec(0u8..9, 0..12),
            wanted in prop::collection::vec((any::<usize>(), 0u8..9, 0u8..3), 0..40),
        ) {
            let mut rows = before.clone();
            let mut changes = Vec::new();
            for (pick, row, kind) in wanted {
                match (kind, rows.len()) {
                    (0, _) | (_, 0) => {
                        rows.push(row);
                        changes.push((None, Some(row)));
                    }
                    (1, count) => changes.push((Some(rows.remove(pick % count)), None)),
                    (_, count) => changes.push((Some(std::mem::replace(&mut rows[pick % count], row)), Some(row))),
                }
            }
            let messages = messages(&changes);
            let bag = fold(&messages);
            let row_bytes = |row: &u8| {
                let message = &super::tests::messages(&[(None, Some(*row))])[0];
                let Ok(Message::Insert { new, .. }) = decode(message, Context::default()) else { panic!("no insert") };
                bytes(new.iter())
            };
            let mut table = Counted::new();
            before.iter().for_each(|row| add(&mut table, row_bytes(row)));
            let effect = bag.effect();
            for row in &effect.changed {
                remove(&mut table, &bytes(bag.origin(*row).unwrap().iter()));
            }
            for row in effect.changed.iter().chain(&effect.inserts) {
                bag.now(*row).into_iter().for_each(|values| add(&mut table, bytes(values.iter().copied())));
            }
            table.retain(|_, count| *count > 0);
            let mut in_turn = Counted::new();
            rows.iter().for_each(|row| add(&mut in_turn, row_bytes(row)));
            prop_assert_eq!(table, in_turn);
        }
    }
}
