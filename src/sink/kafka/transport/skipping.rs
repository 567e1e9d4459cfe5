//! Which changes of the stream the copied tables hold already. Pure; keeps the relations it needs, sends nothing.

use std::collections::HashMap;

use crate::decode::Message;
use crate::model::{Lsn, QualifiedName};

/// What of a message is in a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Skip {
    Nothing,
    Whole,
    /// A TRUNCATE that also concerns tables which do not hold it: this one is left, without a transaction id.
    Part(Vec<u8>),
}

/// Up to where changes of a table are skipped.
#[derive(Clone, Copy, Debug, Default)]
struct Until {
    all: Lsn,
    /// All but those that take a row away: consumers may hold it.
    additions: Lsn,
}

/// See the file.
#[derive(Debug)]
pub(super) struct Skipping {
    until: HashMap<QualifiedName, Until>,
    /// Relations whose table stands in `until`, with it.
    relations: HashMap<u32, Until>,
    /// Nothing is skipped from here on.
    over: Lsn,
}

impl Skipping {
    /// Changes in transactions whose commit record starts below a table's position in `all` are skipped, and inserts and updates of one
    /// in `additions`, which will be sent as of there.
    pub(super) fn new(all: &HashMap<QualifiedName, Lsn>, additions: &HashMap<QualifiedName, Lsn>) -> Self {
        let mut until: HashMap<QualifiedName, Until> = HashMap::new();
        all.iter().for_each(|(table, lsn)| until.entry(table.clone()).or_default().all = *lsn);
        additions.iter().for_each(|(table, lsn)| until.entry(table.clone()).or_default().additions = *lsn);
        let over = all.values().chain(additions.values()).copied().max().unwrap_or(Lsn::ZERO);
        Self { until, relations: HashMap::new(), over }
    }

    /// Judges one message of the transaction; Relation messages are noted and never skipped.
    #[inline]
    pub(super) fn skip(&mut self, message: &Message<'_>, commit_lsn: Lsn) -> Skip {
        if self.over <= commit_lsn { Skip::Nothing } else { self.judge(message, commit_lsn) }
    }

    fn judge(&mut self, message: &Message<'_>, commit_lsn: Lsn) -> Skip {
        let until = |oid: u32| self.relations.get(&oid).copied().unwrap_or_default();
        let whole_if = |is_held: bool| if is_held { Skip::Whole } else { Skip::Nothing };
        match message {
            Message::Relation(body) => {
                let relation = body.to_relation();
                match self.until.get(&relation.name) {
                    Some(until) => self.relations.insert(relation.oid, *until),
                    None => self.relations.remove(&relation.oid),
                };
                Skip::Nothing
            }
            Message::Insert { relation_oid, .. } | Message::Update { relation_oid, old: None, .. } => {
                let until = until(*relation_oid);
                whole_if(commit_lsn < until.all.max(until.additions))
            }
            // An old row stands where the key may have changed.
            Message::Update { relation_oid, .. } | Message::Delete { relation_oid, .. } => {
                whole_if(commit_lsn < until(*relation_oid).all)
            }
            Message::Truncate { relation_oids, cascade, restart_identity, .. } => {
                let left: Vec<u32> = relation_oids.iter().filter(|oid| until(*oid).all <= commit_lsn).collect();
                if left.len() == relation_oids.iter().count() {
                    return Skip::Nothing;
                }
                if left.is_empty() {
                    return Skip::Whole;
                }
                let mut payload = vec![b'T'];
                payload.extend_from_slice(&(left.len() as u32).to_be_bytes());
                payload.push(u8::from(*cascade) | (u8::from(*restart_identity) << 1));
                payload.extend(left.iter().flat_map(|oid| oid.to_be_bytes()));
                Skip::Part(payload)
            }
            _ => Skip::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::{Context, decode};

    const COPIED: &[u8] = b"R\0\0\0\x07public\0copied\0d\0\0";
    const OTHER: &[u8] = b"R\0\0\0\x08public\0other\0d\0\0";
    const BEGUN: &[u8] = b"R\0\0\0\x09public\0begun\0d\0\0";

    /// With `public.copied` (7) copied up to 100, `public.other` (8) not at all, and `public.begun` (9) to be copied as of 100.
    fn check(payload: &[u8], commit_lsn: u64, expected: Skip) {
        let table = |name: &str| HashMap::from([(QualifiedName::new("public", name), Lsn(100))]);
        let mut skipping = Skipping::new(&table("copied"), &table("begun"));
        for relation in [COPIED, OTHER, BEGUN] {
            let message = decode(relation, Context::default()).unwrap();
            assert_eq!(skipping.skip(&message, Lsn(1)), Skip::Nothing);
        }
        let message = decode(payload, Context::default()).unwrap();
        assert_eq!(skipping.skip(&message, Lsn(commit_lsn)), expected);
    }

    #[test]
    fn a_change_below_its_tables_snapshot_is_skipped() {
        let (insert, other) = (&b"I\0\0\0\x07N\0\0"[..], &b"I\0\0\0\x08N\0\0"[..]);
        check(insert, 99, Skip::Whole);
        check(insert, 100, Skip::Nothing);
        check(insert, 101, Skip::Nothing);
        check(other, 99, Skip::Nothing);
    }

    #[test]
    fn of_a_table_in_work_only_what_takes_rows_away_is_sent_before_its_rows() {
        check(b"I\0\0\0\x09N\0\0", 99, Skip::Whole);
        check(b"I\0\0\0\x09N\0\0", 100, Skip::Nothing);
        check(b"U\0\0\0\x09N\0\0", 99, Skip::Whole);
        check(b"U\0\0\0\x09K\0\0N\0\0", 99, Skip::Nothing);
        check(b"D\0\0\0\x09K\0\0", 99, Skip::Nothing);
        check(b"T\0\0\0\x01\0\0\0\0\x09", 99, Skip::Nothing);
    }

    #[test]
    fn a_truncate_is_left_for_the_tables_that_do_not_hold_it() {
        let both = b"T\0\0\0\x02\x03\0\0\0\x07\0\0\0\x08";
        check(both, 99, Skip::Part(b"T\0\0\0\x01\x03\0\0\0\x08".to_vec()));
        check(both, 100, Skip::Nothing);
        check(b"T\0\0\0\x01\0\0\0\0\x07", 99, Skip::Whole);
    }
}
