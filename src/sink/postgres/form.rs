//! The form of a change: which columns are written and which are compared. One prepared statement serves every change of
//! the same form; the values come from the change itself. Pure.

use crate::decode::Value;
use crate::schema::ColumnIdentity;

use super::super::SinkError;
use super::target::{RowSearch, Target};

/// What the statement does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) enum Operation {
    #[default]
    Insert,
    Update,
    /// An UPDATE that changes a `GENERATED ALWAYS` identity column, which no UPDATE may: delete and insert in one statement.
    Replace,
    Delete,
}

/// The form of a change. Columns are positions in the relation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Form {
    pub(super) operation: Operation,
    /// Columns of the new row that are written.
    pub(super) set: Vec<u16>,
    /// Columns compared with a value of the old row.
    pub(super) equal: Vec<u16>,
    /// Columns of the old row that are NULL.
    pub(super) null: Vec<u16>,
}

/// The old row of an UPDATE, as far as the primary sent it.
#[derive(Clone, Copy)]
pub(super) enum Old<'v, 'a> {
    /// No key column changed: the new row's key is the old one.
    Same,
    /// The key columns.
    Key(&'v [Value<'a>]),
    /// All columns.
    Full(&'v [Value<'a>]),
}

impl<'v, 'a> Old<'v, 'a> {
    /// Where the search values stand.
    pub(super) fn search_values(self, new: &'v [Value<'a>]) -> &'v [Value<'a>] {
        match self {
            Old::Same => new,
            Old::Key(values) | Old::Full(values) => values,
        }
    }
}

impl Form {
    /// Becomes the form of an INSERT: every column.
    pub(super) fn insert(&mut self, target: &Target, new: &[Value<'_>]) -> Result<(), SinkError> {
        self.clear(Operation::Insert);
        for (at, value) in new.iter().enumerate() {
            if *value == Value::Unchanged {
                return Err(target.refuse_column(
                    at,
                    "without its value in an INSERT (a row filter let an UPDATE of a large row in); set REPLICA IDENTITY FULL \
                     on the primary's table, or drop the row filter",
                ));
            }
            self.set.push(at as u16);
        }
        Ok(())
    }

    /// Becomes the form of an UPDATE: what was sent is set, unchanged large values are left alone.
    pub(super) fn update(&mut self, target: &Target, old: Old<'_, '_>, new: &[Value<'_>]) -> Result<(), SinkError> {
        let must_replace =
            target.columns.iter().enumerate().any(|(at, column)| {
                column.identity == ColumnIdentity::Always && may_have_changed(target, at, old, new)
            });
        self.clear(if must_replace { Operation::Replace } else { Operation::Update });
        for (at, (value, column)) in new.iter().zip(&target.columns).enumerate() {
            if *value != Value::Unchanged && (must_replace || column.identity != ColumnIdentity::Always) {
                self.set.push(at as u16);
            }
        }
        self.search(target, old.search_values(new))
    }

    /// Becomes the form of a DELETE.
    pub(super) fn delete(&mut self, target: &Target, old: &[Value<'_>]) -> Result<(), SinkError> {
        self.clear(Operation::Delete);
        self.search(target, old)
    }

    /// Becomes the form of what changes come to for one row, found by its old key.
    pub(super) fn net(
        &mut self,
        target: &Target,
        operation: Operation,
        new: &[Value<'_>],
        key: &[u16],
        is_moved: bool,
    ) {
        let is_always = |at: usize| target.columns[at].identity == ColumnIdentity::Always;
        let is_key = |at: usize| key.contains(&(at as u16));
        let is_update = operation == Operation::Update;
        // Whether an identity outside the key has changed is not known.
        let must_replace = is_update && (0..new.len()).any(|at| is_always(at) && (is_moved || !is_key(at)));
        self.clear(if must_replace { Operation::Replace } else { operation });
        if operation != Operation::Insert {
            self.equal.extend_from_slice(key);
        }
        if operation == Operation::Delete {
            return;
        }
        // The key too: equal keys may be different bytes.
        let is_set = |at: &usize| new[*at] != Value::Unchanged && (!is_update || must_replace || !is_always(*at));
        self.set.extend((0..new.len()).filter(is_set).map(|at| at as u16));
    }

    fn clear(&mut self, operation: Operation) {
        self.operation = operation;
        self.set.clear();
        self.equal.clear();
        self.null.clear();
    }

    fn search(&mut self, target: &Target, old: &[Value<'_>]) -> Result<(), SinkError> {
        let is_searched = |at: usize| match &target.search {
            RowSearch::Key(key) => key.contains(&at),
            RowSearch::WholeRow => true,
            RowSearch::None => false,
        };
        if target.search == RowSearch::None {
            return Err(SinkError::Shape(format!(
                "the primary sent an UPDATE or DELETE of {} without a key; give the table a primary key or REPLICA IDENTITY FULL \
                 on the primary",
                target.relation.name
            )));
        }
        for (at, value) in old.iter().enumerate().filter(|(at, _)| is_searched(*at)) {
            match value {
                Value::Null => self.null.push(at as u16),
                Value::Text(_) | Value::Binary(_) => self.equal.push(at as u16),
                Value::Unchanged => {
                    return Err(target.refuse_column(at, "without its value, though it is needed to find the row"));
                }
            }
        }
        Ok(())
    }
}

/// Whether the column's value may differ from the old row's: certain only if the old value was sent, or if it belongs to
/// the key and no key was sent.
fn may_have_changed(target: &Target, at: usize, old: Old<'_, '_>, new: &[Value<'_>]) -> bool {
    let is_key = target.relation.columns.get(at).is_some_and(|column| column.is_key);
    let new = new.get(at).copied().unwrap_or(Value::Unchanged);
    match old {
        _ if new == Value::Unchanged => false,
        Old::Full(old) => old.get(at) != Some(&new),
        Old::Key(old) if is_key => old.get(at) != Some(&new),
        Old::Same if is_key => false,
        Old::Key(_) | Old::Same => true,
    }
}

#[cfg(test)]
mod tests {
    use super::super::target::tests::{relation, shape};
    use super::*;
    use crate::model::ReplicaIdentity;

    const A: Value<'static> = Value::Text(b"a");
    const B: Value<'static> = Value::Text(b"b");
    const N: Value<'static> = Value::Null;
    const U: Value<'static> = Value::Unchanged;

    fn target(identity: ReplicaIdentity, columns: &[(&str, bool, &str)], key: &[&str]) -> Target {
        let source: Vec<(&str, bool)> = columns.iter().map(|(name, is_key, _)| (*name, *is_key)).collect();
        let table: Vec<(&str, &str)> = columns.iter().map(|(name, _, flags)| (*name, *flags)).collect();
        Target::new(relation(identity, &source), shape(&table, key)).unwrap()
    }

    /// Makes the form of an UPDATE and compares operation, set, equal and null.
    fn check(target: &Target, old: Old<'_, '_>, new: &[Value<'_>], expected: (Operation, &[u16], &[u16], &[u16])) {
        let mut form = Form::default();
        form.update(target, old, new).unwrap();
        let (operation, set, equal, null) = expected;
        assert_eq!(form, Form { operation, set: set.to_vec(), equal: equal.to_vec(), null: null.to_vec() });
    }

    #[test]
    fn an_update_sets_what_was_sent_and_finds_the_old_row() {
        use Operation::Update;
        use ReplicaIdentity::{Default, Full};
        let keyed = target(Default, &[("a", true, ""), ("b", false, "")], &["a"]);
        check(&keyed, Old::Same, &[A, N], (Update, &[0, 1], &[0], &[]));
        check(&keyed, Old::Same, &[A, U], (Update, &[0], &[0], &[]));
        check(&keyed, Old::Key(&[B, N]), &[A, U], (Update, &[0], &[0], &[]));
        let full = target(Full, &[("a", true, ""), ("b", true, "")], &[]);
        check(&full, Old::Full(&[A, N]), &[A, B], (Update, &[0, 1], &[0], &[1]));
    }

    #[test]
    fn a_changed_identity_column_is_replaced_with_its_row() {
        use Operation::{Replace, Update};
        let of_key = target(ReplicaIdentity::Default, &[("a", true, "always"), ("b", false, "")], &["a"]);
        check(&of_key, Old::Same, &[A, B], (Update, &[1], &[0], &[]));
        check(&of_key, Old::Key(&[B, N]), &[A, U], (Replace, &[0], &[0], &[]));
        let other = target(ReplicaIdentity::Default, &[("a", true, ""), ("b", false, "always")], &["a"]);
        check(&other, Old::Same, &[A, B], (Replace, &[0, 1], &[0], &[]));
        let full = target(ReplicaIdentity::Full, &[("a", true, ""), ("b", true, "always")], &["a"]);
        check(&full, Old::Full(&[A, B]), &[B, B], (Update, &[0], &[0], &[]));
        check(&full, Old::Full(&[A, A]), &[A, B], (Replace, &[0, 1], &[0], &[]));
    }

    #[test]
    fn a_change_that_cannot_be_done_truthfully_is_refused() {
        let keyed = target(ReplicaIdentity::Default, &[("a", true, ""), ("b", false, "")], &["a"]);
        let keyless = target(ReplicaIdentity::Nothing, &[("a", false, "")], &[]);
        let mut form = Form::default();
        for (error, text) in [
            (form.insert(&keyed, &[A, U]), "REPLICA IDENTITY FULL"),
            (form.update(&keyed, Old::Same, &[U, B]), "needed to find the row"),
            (form.delete(&keyless, &[A]), "without a key"),
        ] {
            let error = error.unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
    }
}
