//! The changes of a run as they are folded, table by table, and what of them is written together. Sends nothing.

use std::collections::HashMap;
use std::sync::Arc;

use crate::decode::{Message, OldTuple, Tuple, Value};
use crate::model::QualifiedName;

use super::arrays::MixedForms;
use super::change::ApplyError;
use super::net::{Bag, BagEffect, Effect, Net, Unprovable};
use super::target::{Target, Way};

/// The folded changes of one table.
#[derive(Debug)]
pub(super) enum Folded<'a> {
    Keyed(Net<'a>),
    Inserts(Vec<Tuple<'a>>),
    /// Of a table without a key: from the first UPDATE or DELETE on.
    Bag(Bag<'a>),
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
        let table = self.table(target);
        if let (Folded::Inserts(rows), false) = (&mut *table, is_insert) {
            let mut bag = Bag::default();
            rows.drain(..).try_for_each(|row| bag.insert(row)).map_err(unprovable)?;
            *table = Folded::Bag(bag);
        }
        let folded = match (table, message) {
            (Folded::Bag(bag), Message::Insert { new, .. }) if fits(new) => bag.insert(*new),
            (Folded::Bag(bag), Message::Update { old: Some(OldTuple::Full(old)), new, .. })
                if fits(new) && fits(old) =>
            {
                bag.update(*old, *new)
            }
            (Folded::Bag(bag), Message::Delete { old: OldTuple::Full(old), .. }) if fits(old) => bag.delete(*old),
            (Folded::Keyed(net), Message::Insert { new, .. }) if fits(new) => net.insert(*new),
            (Folded::Keyed(net), Message::Update { old, new, .. }) if fits(new) => {
                net.update(old.map(|old| old.tuple()), *new)
            }
            (Folded::Keyed(net), Message::Delete { old, .. }) if fits(&old.tuple()) => net.delete(old.tuple()),
            (Folded::Inserts(rows), Message::Insert { new, .. }) if fits(new) => {
                rows.push(*new);
                Ok(())
            }
            _ => Err(Unprovable("a row does not fit its table's description")),
        };
        folded.map(|()| true).map_err(unprovable)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.tables.is_empty()
    }

    /// Whether a table of this name is among them.
    pub(super) fn holds(&self, name: &QualifiedName) -> bool {
        self.tables.iter().any(|(target, _)| target.relation.name == *name)
    }

    /// Whether these must be written before a row of this table: it is not among them, but one is that holds the same rows on the
    /// standby, where one of the two is a partition of the other. The primary sends both where it attaches or detaches the partition
    /// in between. Costs nothing for a table that is among them.
    pub(super) fn must_precede(&mut self, target: &Target) -> bool {
        let oid = target.relation.oid;
        if self.last.is_some_and(|(last, _)| last == oid) {
            return false;
        }
        if let Some(at) = self.by_oid.get(&oid) {
            self.last = Some((oid, *at));
            return false;
        }
        let shape = &target.shape;
        let is_alone = shape.ancestors.is_empty() && !shape.is_partitioned();
        !is_alone && self.tables.iter().any(|(held, _)| is_above(held, target) || is_above(target, held))
    }

    /// What is to be written, table by table.
    pub(super) fn works(&self) -> Vec<Work<'_, 'a>> {
        self.tables.iter().map(|(target, folded)| Work::new(target, folded)).collect()
    }

    fn table(&mut self, target: &Arc<Target>) -> &mut Folded<'a> {
        let oid = target.relation.oid;
        let at = match self.last {
            Some((last, at)) if last == oid => at,
            _ => *self.by_oid.entry(oid).or_insert_with(|| {
                let folded = match target.way {
                    Way::Keyed => Folded::Keyed(Net::new(&target.key()).named_by(target.named_by())),
                    Way::Bag | Way::Inserts | Way::InOrder => Folded::Inserts(Vec::new()),
                };
                self.tables.push((Arc::clone(target), folded));
                self.tables.len() - 1
            }),
        };
        self.last = Some((oid, at));
        &mut self.tables[at].1
    }
}

/// Whether all rows of the second are rows of the first, which stands above it on the standby.
fn is_above(upper: &Target, lower: &Target) -> bool {
    let name = &upper.relation.name;
    let is_name = |(schema, table): &(String, String)| *schema == name.schema && *table == name.name;
    upper.shape.is_partitioned() && lower.shape.ancestors.iter().any(is_name)
}

/// What is written of one table.
pub(super) struct Work<'n, 'a> {
    pub(super) target: Arc<Target>,
    pub(super) folded: &'n Folded<'a>,
    pub(super) effect: Effect,
    /// Rows of `effect.moves` and `effect.updates` that are written together, since they might be in each other's way; rows
    /// of a bag that change.
    pub(super) carried: Vec<u32>,
}

impl<'n, 'a> Work<'n, 'a> {
    fn new(target: &Arc<Target>, folded: &'n Folded<'a>) -> Self {
        let (effect, carried) = match folded {
            Folded::Keyed(net) => (net.effect(), Vec::new()),
            Folded::Inserts(rows) => {
                (Effect { inserts: (0..rows.len() as u32).collect(), ..Effect::default() }, Vec::new())
            }
            Folded::Bag(bag) => {
                let BagEffect { changed, inserts } = bag.effect();
                (Effect { inserts, ..Effect::default() }, changed)
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

    pub(super) fn values(&self, row: u32, values: &mut Vec<Value<'a>>) {
        match self.folded {
            Folded::Keyed(net) => net.values(row, values),
            Folded::Inserts(rows) => {
                values.clear();
                values.extend(rows[row as usize].iter());
            }
            Folded::Bag(bag) => {
                values.clear();
                values.extend_from_slice(bag.now(row).unwrap_or_default());
            }
        }
    }

    pub(super) fn unprovable(&self, reason: &'static str) -> ApplyError {
        ApplyError::Unprovable(Arc::clone(&self.target), reason)
    }

    pub(super) fn mixed(&self) -> impl Fn(MixedForms) -> ApplyError + use<'_, 'n, 'a> {
        |_| self.unprovable("a column's values come in two forms")
    }
}
