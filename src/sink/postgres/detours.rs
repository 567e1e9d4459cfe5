//! Tables that are written row by row for a while, since a set of their changes failed; and the count of rows that go one by one for
//! whatever reason. Pure; writes nothing.

use std::collections::HashMap;
use std::sync::Arc;

use crate::model::Fallbacks;

use super::target::Target;

/// For so many batches a table that could not be written as a set is written row by row.
pub(super) const DETOUR_BATCHES: u32 = 100;

/// Tables that go row by row for a while, and whether the batch under way was folded at all.
#[derive(Debug, Default)]
pub(super) struct Detours {
    left: HashMap<u32, u32>,
    is_folded: bool,
    counts: Fallbacks,
    /// A table and how many of its rows have gone one by one since another's did: counted together.
    in_order: Option<(Arc<Target>, u64)>,
}

impl Detours {
    pub(super) fn goes_in_order(&self, target: &Target) -> bool {
        !self.left.is_empty() && self.left.contains_key(&target.relation.oid)
    }

    /// A batch begins.
    pub(super) fn begin(&mut self) {
        self.is_folded = false;
    }

    /// Whether something of it was written as a set.
    pub(super) fn is_folded(&self) -> bool {
        self.is_folded
    }

    /// Something was written as a set.
    pub(super) fn folded(&mut self) {
        self.is_folded = true;
    }

    /// A batch is through.
    pub(super) fn batch_done(&mut self) {
        if !self.left.is_empty() {
            self.left.retain(|_, left| {
                *left -= 1;
                *left > 0
            });
        }
    }

    /// From now on the table goes row by row.
    pub(super) fn add(&mut self, target: &Target, reason: &'static str) {
        self.counts.count(&target.relation.name, reason);
        self.left.insert(target.relation.oid, DETOUR_BATCHES);
    }

    /// A row goes by itself though its batch is written as sets.
    pub(super) fn row_in_order(&mut self, target: &Arc<Target>) {
        match &mut self.in_order {
            Some((last, rows)) if Arc::ptr_eq(last, target) => *rows += 1,
            _ => {
                self.count_rows();
                self.in_order = Some((Arc::clone(target), 1));
            }
        }
    }

    /// Counts the rows that have gone so by now.
    pub(super) fn count_rows(&mut self) {
        if let Some((target, rows)) = self.in_order.take() {
            self.counts.count_rows_in_order(&target.relation.name, rows);
        }
    }

    /// Where it is counted.
    pub(super) fn count_in(&mut self, fallbacks: Fallbacks) {
        self.counts = fallbacks;
    }
}
