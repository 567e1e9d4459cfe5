//! Which of the stream's tables were copied, and as of when: by the OID that a table has on the primary, which a rename keeps, for another
//! may have its name by now. Asks no server.

use std::collections::{HashMap, HashSet};

use super::{Lsn, QualifiedName};

/// A copy that is whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Copy {
    snapshot_lsn: Lsn,
    oid: Option<u32>,
    standby_oid: Option<u32>,
}

/// What the standby's record says of finished copies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    tables: HashMap<QualifiedName, Copy>,
    names: HashMap<u32, QualifiedName>,
    /// Where the stream begins, …
    start: Lsn,
    /// … until where its names may be older than those of the record, …
    as_of: Lsn,
    /// … and the tables that the publication named one by one when it began.
    named: HashSet<QualifiedName>,
}

impl Copied {
    /// Notes a copy of the table, with its OIDs on the primary and on the standby if they are recorded.
    pub fn insert(&mut self, name: QualifiedName, oids: (Option<u32>, Option<u32>), snapshot_lsn: Lsn) {
        let (oid, standby_oid) = oids;
        if let Some(oid) = oid {
            self.names.insert(oid, name.clone());
        }
        self.tables.insert(name, Copy { snapshot_lsn, oid, standby_oid });
    }

    /// For a stream that begins at `start`, of a publication that names these tables one by one; the record's names are those that the
    /// primary had at `as_of` or later.
    #[must_use]
    pub fn at(self, start: Lsn, as_of: Lsn, named: impl IntoIterator<Item = QualifiedName>) -> Self {
        Self { start, as_of: as_of.max(self.last()), named: named.into_iter().collect(), ..self }
    }

    /// Changes of the relation that committed below are in its copy; zero if it was not copied.
    pub fn skip_until(&self, oid: u32, name: &QualifiedName) -> Lsn {
        let copy = self.names.get(&oid).and_then(|now| self.tables.get(now)).or_else(|| self.tables.get(name));
        copy.map_or(Lsn::ZERO, |copy| copy.snapshot_lsn)
    }

    /// The name in the record of a relation that comes under another one, the older of the two or the newer, and the OID of its table
    /// on the standby.
    pub fn renamed(&self, oid: u32, name: &QualifiedName) -> Option<(&QualifiedName, Option<u32>)> {
        let now = self.names.get(&oid).filter(|now| *now != name)?;
        Some((now, self.tables.get(now).and_then(|copy| copy.standby_oid)))
    }

    /// Whether a relation that a transaction describes whose commit record starts here may have got the name of the record since.
    pub fn is_before(&self, commit_lsn: Lsn) -> bool {
        commit_lsn < self.as_of
    }

    /// Whether the relation is another table than the one that was copied under its name, and that somebody has published since by its
    /// name: what came into it before is not in the stream.
    pub fn is_made_again(&self, oid: u32, name: &QualifiedName) -> bool {
        let is_another = |copy: &Copy| copy.oid.is_some_and(|copied| copied != oid) && copy.snapshot_lsn <= self.start;
        self.named.contains(name) && !self.names.contains_key(&oid) && self.tables.get(name).is_some_and(is_another)
    }

    /// From here on no change is in any copy.
    pub fn last(&self) -> Lsn {
        self.tables.values().map(|copy| copy.snapshot_lsn).max().unwrap_or(Lsn::ZERO)
    }

    /// How many tables are whole.
    pub fn len(&self) -> usize {
        self.tables.len()
    }

    /// Whether nothing was copied.
    pub fn is_empty(&self) -> bool {
        self.tables.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> QualifiedName {
        QualifiedName::new("public", name)
    }

    /// `log` became `log_1` and was made again, `a` and `b` changed their names, `old` is from before OIDs were recorded.
    fn copied() -> Copied {
        let mut copied = Copied::default();
        let copies = [
            ("log_1", Some(1), 10),
            ("log", Some(2), 30),
            ("a", Some(4), 10),
            ("b", Some(3), 15),
            ("old", None, 10),
            ("again", Some(5), 10),
        ];
        for (table, oid, lsn) in copies {
            copied.insert(name(table), (oid, oid.map(|oid| 100 + oid)), Lsn(lsn));
        }
        copied.at(Lsn(20), Lsn(25), [name("again"), name("log")])
    }

    #[test]
    fn a_relation_is_told_by_its_oid_and_not_by_a_name_that_is_anothers_now() {
        for (oid, table, skip_until, renamed, is_made_again) in [
            (1, "log", 10, Some("log_1"), false),
            (1, "log_1", 10, None, false),
            (2, "log", 30, None, false),
            (3, "a", 15, Some("b"), false),
            (4, "b", 10, Some("a"), false),
            (9, "old", 10, None, false),
            (9, "new", 0, None, false),
            (9, "again", 10, None, true),
            (5, "again", 10, None, false),
            // It was dropped before another was copied under its name.
            (9, "log", 30, None, false),
        ] {
            let (copied, table) = (copied(), name(table));
            assert_eq!(copied.skip_until(oid, &table), Lsn(skip_until), "{oid} {table}");
            let found = copied.renamed(oid, &table);
            assert_eq!(found, renamed.map(name).as_ref().map(|now| (now, Some(100 + oid))), "{oid} {table}");
            assert_eq!(copied.is_made_again(oid, &table), is_made_again, "{oid} {table}");
        }
        assert_eq!(copied().last(), Lsn(30));
        assert!(copied().is_before(Lsn(29)) && !copied().is_before(Lsn(30)));
    }
}
