//! What a batch touches on the standby, as far as another must not: by that it is decided whether two may be written beside each other.
//! Rather says that they may not. Pure; writes nothing.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::decode::{Message, Tuple, Value};
use crate::model::{Body, Lsn};

use super::super::Batch;
use super::super::walk::messages;
use super::tables::{Disposition, Tables};
use super::target::{Target, Way};

/// A larger batch goes alone: to look at it takes long, and what it touches would fill memory.
const BYTES_LIMIT: u64 = 16 * 1024 * 1024;

/// Types whose equal values have equal bytes, in the stream's text form too: bool, bytea, int8, int2, int4, oid, date, timestamp,
/// timestamptz, uuid.
const PLAIN_TYPES: &[u32] = &[16, 17, 20, 21, 23, 26, 1082, 1114, 1184, 2950];
/// text, varchar: so too, with a deterministic collation.
const TEXT_TYPES: &[u32] = &[25, 1043];

/// See the file.
#[derive(Debug)]
pub(super) enum Footprint {
    /// Whatever there is.
    All,
    Some(Marks),
}

/// Tables and keys are hashed: a collision only keeps two batches apart that might go together.
#[derive(Debug, Default)]
pub(super) struct Marks {
    /// Rows by table and key.
    keys: HashSet<u64>,
    /// Tables that rows are added to, which are in nobody's way.
    added: HashSet<u64>,
    /// Tables of which any row may be touched.
    whole: HashSet<u64>,
}

impl Footprint {
    /// Of a batch, by what is known of its tables now.
    pub(super) fn of(tables: &Tables, batch: &Batch) -> Self {
        if batch.ahead.is_some() || batch.size_bytes() > BYTES_LIMIT || tables.drift().is_drifted() {
            return Footprint::All;
        }
        Marks::of(tables, batch).map_or(Footprint::All, Footprint::Some)
    }

    /// Whether the two must not be written beside each other.
    pub(super) fn meets(&self, other: &Self) -> bool {
        let (Footprint::Some(one), Footprint::Some(other)) = (self, other) else { return true };
        !one.whole.is_disjoint(&other.whole)
            || !one.whole.is_disjoint(&other.added)
            || !one.added.is_disjoint(&other.whole)
            || !one.keys.is_disjoint(&other.keys)
    }
}

impl Marks {
    /// `None`: whatever there is.
    fn of(tables: &Tables, batch: &Batch) -> Option<Self> {
        let mut marks = Self::default();
        let mut reaches = HashMap::new();
        for transaction in &batch.transactions {
            let Body::Memory(chunks) = &transaction.body else { return None };
            for chunk in chunks {
                for message in messages(chunk, transaction.streamed) {
                    marks.note(tables, &mut reaches, transaction.commit_lsn, &message.ok()?.1)?;
                }
            }
        }
        Some(marks)
    }

    fn note(
        &mut self,
        tables: &Tables,
        reaches: &mut HashMap<u32, Reach>,
        commit_lsn: Lsn,
        message: &Message<'_>,
    ) -> Option<()> {
        let (oid, old, new) = match *message {
            Message::Insert { relation_oid, new, .. } => (relation_oid, None, Some(new)),
            Message::Update { relation_oid, old, new, .. } => (relation_oid, old, Some(new)),
            Message::Delete { relation_oid, old, .. } => (relation_oid, Some(old), None),
            Message::Relation(body) => return (!tables.is_news(&body)).then_some(()),
            Message::Truncate { .. } => return None,
            _ => return Some(()),
        };
        let target = match tables.disposition(oid, commit_lsn).ok()? {
            Disposition::Skip => return Some(()),
            Disposition::Unresolved => return None,
            Disposition::Apply(target) => target,
        };
        let Reach { table, way } = reaches.entry(oid).or_insert_with(|| Reach::of(target));
        let is_insert = matches!(message, Message::Insert { .. });
        match way {
            ReachWay::All => return None,
            ReachWay::Rows if is_insert => drop(self.added.insert(*table)),
            ReachWay::Rows | ReachWay::Table => drop(self.whole.insert(*table)),
            ReachWay::Keys(key) => {
                for tuple in old.map(|old| old.tuple()).into_iter().chain(new) {
                    self.keys.insert(key_mark(*table, key, tuple)?);
                }
            }
        }
        Some(())
    }
}

/// How far changes of a table reach.
struct Reach {
    table: u64,
    way: ReachWay,
}

enum ReachWay {
    /// The standby's own triggers or rules do who knows what.
    All,
    /// To no other row's values: nothing is unique. An added row is in nobody's way.
    Rows,
    /// To the row of the same key, by these columns: nothing else is unique.
    Keys(Vec<usize>),
    /// To other rows: the primary does not send the old values of other unique columns; or keys may be equal that do not look so.
    Table,
}

impl Reach {
    fn of(target: &Target) -> Self {
        let shape = &target.shape;
        let way = match (shape.constraints, shape.has_replica_actions) {
            (_, true) => ReachWay::All,
            (0, false) => ReachWay::Rows,
            (1, false) if target.way == Way::Keyed && target.key().iter().all(|at| is_plain(target, *at)) => {
                ReachWay::Keys(target.key())
            }
            (_, false) => ReachWay::Table,
        };
        // A partition's rows are also those of the table above.
        let own = shape.qualified_name();
        let root = shape.ancestors.last().map_or((&own.schema, &own.name), |(schema, name)| (schema, name));
        let mut hasher = DefaultHasher::new();
        root.hash(&mut hasher);
        Self { table: hasher.finish(), way }
    }
}

/// Whether equal values of the column, as they are received, have equal bytes.
fn is_plain(target: &Target, at: usize) -> bool {
    let (Some(sent), Some(column)) = (target.relation.columns.get(at), target.columns.get(at)) else { return false };
    let base = column.base_type_oid;
    column.is_enum
        || (TEXT_TYPES.contains(&base) && column.is_deterministic)
        || (PLAIN_TYPES.contains(&base) && sent.type_oid == base)
}

/// `None` where a value of the key was not sent.
fn key_mark(table: u64, key: &[usize], tuple: Tuple<'_>) -> Option<u64> {
    let mut hasher = DefaultHasher::new();
    table.hash(&mut hasher);
    let mut found = 0;
    for (at, value) in tuple.iter().enumerate().filter(|(at, _)| key.contains(at)) {
        match value {
            Value::Text(bytes) | Value::Binary(bytes) => (at, bytes).hash(&mut hasher),
            Value::Null | Value::Unchanged => return None,
        }
        found += 1;
    }
    (found == key.len()).then(|| hasher.finish())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::target::tests::{relation, shape};
    use super::*;
    use crate::model::ReplicaIdentity;

    /// What kind of reach a table `(a, b)` has with this key, so many constraints, and the key column's type on both sides.
    fn check(key: &[&str], constraints: u64, (sent, stored, is_deterministic): (u32, u32, bool), expected: &str) {
        let mut relation = relation(ReplicaIdentity::Default, &[("a", true), ("b", false)]);
        Arc::get_mut(&mut relation).unwrap().columns[0].type_oid = sent;
        let mut shape = shape(&[("a", ""), ("b", "")], key);
        (shape.columns[0].base_type_oid, shape.columns[0].is_deterministic) = (stored, is_deterministic);
        shape.constraints = constraints;
        let found = match Reach::of(&Target::new(relation, shape).unwrap()).way {
            ReachWay::All => "all",
            ReachWay::Rows => "rows",
            ReachWay::Keys(_) => "keys",
            ReachWay::Table => "table",
        };
        assert_eq!(found, expected, "{key:?}, {constraints}, {sent}, {stored}");
    }

    #[test]
    fn a_change_reaches_further_than_its_key_unless_nothing_else_is_unique_and_equal_keys_look_alike() {
        check(&["a"], 1, (23, 23, true), "keys");
        check(&["a"], 1, (25, 25, true), "keys");
        check(&["a"], 1, (25, 1043, true), "keys");
        check(&["a"], 1, (25, 25, false), "table");
        check(&["a"], 1, (1700, 1700, true), "table");
        check(&["a"], 1, (25, 23, true), "table");
        check(&["a"], 2, (23, 23, true), "table");
        check(&[], 1, (23, 23, true), "table");
        check(&[], 0, (23, 23, true), "rows");
    }

    #[test]
    fn batches_meet_in_a_key_or_in_a_table_that_one_of_them_touches_as_a_whole() {
        let of = |keys: &[u64], added: &[u64], whole: &[u64]| {
            let set = |marks: &[u64]| marks.iter().copied().collect();
            Footprint::Some(Marks { keys: set(keys), added: set(added), whole: set(whole) })
        };
        let cases = [
            (of(&[1, 2], &[], &[]), of(&[3], &[], &[]), false),
            (of(&[1, 2], &[], &[]), of(&[3, 2], &[], &[]), true),
            (of(&[], &[7], &[]), of(&[], &[7], &[]), false),
            (of(&[], &[7], &[]), of(&[], &[], &[7]), true),
            (of(&[], &[], &[7]), of(&[], &[], &[7]), true),
            (of(&[], &[], &[7]), of(&[], &[], &[8]), false),
            (of(&[], &[], &[]), Footprint::All, true),
        ];
        for (one, other, expected) in cases {
            assert_eq!(one.meets(&other), expected, "{one:?} {other:?}");
            assert_eq!(other.meets(&one), expected, "{other:?} {one:?}");
        }
    }
}
