//! How often changes that should go together had to be written row by row, and why. Shared; a plain counter.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::QualifiedName;

/// Pairs of table and reason that are counted apart; what comes later is counted under the reason alone.
const PAIRS_LIMIT: usize = 1000;

type Counts = BTreeMap<(String, &'static str), u64>;

/// The counts of one pipeline, by table and reason.
#[derive(Clone, Debug, Default)]
pub struct Fallbacks(Arc<Mutex<Counts>>);

/// Why a table's changes fell back: nothing that a stranger can make grow.
const REASONS: &[&str] = &["unprovable", "row_count", "constraint", "value", "schema", "other"];

impl Fallbacks {
    /// One more. A reason that is not known counts as `other`.
    pub fn count(&self, table: &QualifiedName, reason: &str) {
        let reason = REASONS.iter().copied().find(|known| *known == reason).unwrap_or("other");
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (table.to_string(), reason);
        let key = if counts.len() < PAIRS_LIMIT || counts.contains_key(&key) { key } else { ("*".to_owned(), reason) };
        *counts.entry(key).or_default() += 1;
    }

    /// All counts: table, reason, number.
    pub fn counts(&self) -> Vec<(String, &'static str, u64)> {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.iter().map(|((table, reason), count)| (table.clone(), *reason, *count)).collect()
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
}
