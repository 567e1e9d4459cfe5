//! How often changes that should go together had to be written row by row, and why; and rows that went one by one beside sets. Shared;
//! plain counters.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::QualifiedName;

/// Pairs of table and reason that are counted apart, and tables; what comes later is counted under `*`.
const PAIRS_LIMIT: usize = 1000;

type Counts = BTreeMap<(String, &'static str), u64>;

/// The counts of one pipeline, by table and reason, and by table.
#[derive(Clone, Debug, Default)]
pub struct Fallbacks {
    batches: Arc<Mutex<Counts>>,
    rows_in_order: Arc<Mutex<BTreeMap<String, u64>>>,
}

/// Why a table's changes fell back: nothing that a stranger can make grow.
const REASONS: &[&str] = &["unprovable", "row_count", "constraint", "value", "schema", "other"];

impl Fallbacks {
    /// One more. A reason that is not known counts as `other`.
    pub fn count(&self, table: &QualifiedName, reason: &str) {
        let reason = REASONS.iter().copied().find(|known| *known == reason).unwrap_or("other");
        let mut counts = self.batches.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (table.to_string(), reason);
        let key = if counts.len() < PAIRS_LIMIT || counts.contains_key(&key) { key } else { ("*".to_owned(), reason) };
        *counts.entry(key).or_default() += 1;
    }

    /// All counts: table, reason, number.
    pub fn counts(&self) -> Vec<(String, &'static str, u64)> {
        let counts = self.batches.lock().unwrap_or_else(PoisonError::into_inner);
        counts.iter().map(|((table, reason), count)| (table.clone(), *reason, *count)).collect()
    }

    /// So many rows more of the table went one by one in batches that were written as sets.
    pub fn count_rows_in_order(&self, table: &QualifiedName, rows: u64) {
        let mut counts = self.rows_in_order.lock().unwrap_or_else(PoisonError::into_inner);
        let key = table.to_string();
        let key = if counts.len() < PAIRS_LIMIT || counts.contains_key(&key) { key } else { "*".to_owned() };
        *counts.entry(key).or_default() += rows;
    }

    /// Rows that went one by one in such batches: table, number.
    pub fn rows_in_order(&self) -> Vec<(String, u64)> {
        let counts = self.rows_in_order.lock().unwrap_or_else(PoisonError::into_inner);
        counts.iter().map(|(table, rows)| (table.clone(), *rows)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fallbacks_are_counted_by_table_and_reason_within_a_bound() {
        let fallbacks = Fallbacks::default();
        let table = |number: usize| QualifiedName::new("public", format!("t{number}"));
        fallbacks.count(&table(1), "row_count");
        fallbacks.clone().count(&table(1), "row_count");
        fallbacks.count(&table(1), "no such reason");
        let expected = vec![("public.t1".to_owned(), "other", 1), ("public.t1".to_owned(), "row_count", 2)];
        assert_eq!(fallbacks.counts(), expected);
        (0..2 * PAIRS_LIMIT).for_each(|number| fallbacks.count(&table(number), "value"));
        assert_eq!(fallbacks.counts().len(), PAIRS_LIMIT + 1);
    }

    #[test]
    fn rows_in_order_are_counted_by_table_within_a_bound() {
        let fallbacks = Fallbacks::default();
        let table = |number: usize| QualifiedName::new("public", format!("t{number}"));
        fallbacks.count_rows_in_order(&table(1), 2);
        fallbacks.clone().count_rows_in_order(&table(1), 3);
        assert_eq!(fallbacks.rows_in_order(), [("public.t1".to_owned(), 5)]);
        assert_eq!(fallbacks.counts(), []);
        (0..2 * PAIRS_LIMIT).for_each(|number| fallbacks.count_rows_in_order(&table(number), 1));
        assert_eq!(fallbacks.rows_in_order().len(), PAIRS_LIMIT + 1);
    }
}
