//! The transaction whose events are written: its name and its counts. Writes no record.

use std::collections::HashMap;

use crate::model::{Lsn, QualifiedName};

use super::json::push_integer;

/// A transaction between `begin` and `end`.
#[derive(Clone, Debug)]
pub(super) struct Transaction {
    pub(super) xid: u32,
    pub(super) commit_lsn: Lsn,
    pub(super) end_lsn: Lsn,
    /// `txid:commit lsn`, the same in BEGIN, END and every row.
    pub(super) id: String,
    /// Events so far: of all, and of the table of the last.
    pub(super) total: u64,
    of_last: u64,
    /// In the order of their first event; only where the transaction topic wants them.
    pub(super) collections: Vec<(String, u64)>,
    places: HashMap<QualifiedName, usize>,
}

impl Transaction {
    pub(super) fn new(xid: u32, commit_lsn: Lsn, end_lsn: Lsn) -> Self {
        Self {
            xid,
            commit_lsn,
            end_lsn,
            id: format!("{xid}:{}", commit_lsn.0),
            total: 0,
            of_last: 0,
            collections: Vec::new(),
            places: HashMap::new(),
        }
    }

    /// Counts one event.
    pub(super) fn count(&mut self, table: &QualifiedName, is_detailed: bool) {
        self.total += 1;
        if !is_detailed {
            return;
        }
        let place = match self.places.get(table) {
            Some(place) => *place,
            None => {
                self.places.insert(table.clone(), self.collections.len());
                self.collections.push((table.to_string(), 0));
                self.collections.len() - 1
            }
        };
        if let Some((_, events)) = self.collections.get_mut(place) {
            *events += 1;
            self.of_last = *events;
        }
    }

    /// `{"id":…,"total_order":…,"data_collection_order":…}` of the event counted last.
    pub(super) fn push_block(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"id\":\"");
        out.extend_from_slice(self.id.as_bytes());
        out.extend_from_slice(b"\",\"total_order\":");
        push_integer(self.total, out);
        out.extend_from_slice(b",\"data_collection_order\":");
        push_integer(self.of_last, out);
        out.push(b'}');
    }
}

/// `,"transaction":…` and the comma behind.
pub(super) fn push_transaction(transaction: Option<&Transaction>, is_wanted: bool, out: &mut Vec<u8>) {
    out.extend_from_slice(b",\"transaction\":");
    match transaction.filter(|_| is_wanted) {
        Some(transaction) => transaction.push_block(out),
        None => out.extend_from_slice(b"null"),
    }
}
