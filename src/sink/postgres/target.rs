//! How the rows of one relation of the primary fit a table of the standby: which column goes where, and how a row is found.
//! Pure; the native apply worker's rules (`src/backend/replication/logical/relation.c`), stated more fully where it is silent.

use std::sync::Arc;

use crate::model::{Relation, ReplicaIdentity};
use crate::schema::binary::BinaryTypes;
use crate::schema::{ColumnIdentity, ShapeColumn, TableShape};

use super::super::SinkError;

/// How an UPDATE or DELETE finds its row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RowSearch {
    /// By these columns (positions in the relation), which are unique on the standby.
    Key(Vec<usize>),
    /// By the whole old row; of equal rows, one is changed.
    WholeRow,
    /// Not at all: the primary sends no old row.
    None,
}

/// How a batch's changes of the table are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Folded to their net effect by the key, which an index of the standby holds unique: one statement for many rows.
    Keyed,
    /// Folded by all that rows hold, of which equal ones are as good as each other; many are found in one scan.
    Bag,
    /// Inserts together; without such a key each other change by itself.
    Inserts,
    /// Each change by itself, in order: the standby's triggers or rules have their say.
    InOrder,
}

/// A relation joined with its table.
#[derive(Clone, Debug)]
pub(super) struct Target {
    /// As the primary describes it.
    pub(super) relation: Arc<Relation>,
    /// As the standby has it.
    pub(super) shape: TableShape,
    /// For each column of the relation: its column on the standby.
    pub(super) columns: Vec<ShapeColumn>,
    /// How rows are found.
    pub(super) search: RowSearch,
    /// For each column of the relation: whether its values come in binary form, which means the same on the standby.
    pub(super) takes_binary: Vec<bool>,
    /// How changes are written.
    pub(super) way: Way,
    /// Columns (positions in the relation) outside the key that an UPDATE must not change beside other rows': some unique or
    /// exclusion index looks at them, or they are `GENERATED ALWAYS` identities.
    pub(super) touchy: Vec<u16>,
    /// Names of the standby's columns that the primary does not send and that can be written.
    pub(super) extra: Vec<String>,
}

impl Target {
    /// Joins them by column name.
    pub(super) fn new(relation: Arc<Relation>, shape: TableShape) -> Result<Self, SinkError> {
        let name = &relation.name;
        if !matches!(shape.kind.as_str(), "r" | "p") {
            return Err(SinkError::Shape(format!(
                "{name} is not a table on the standby but a relation of kind \"{}\"; replace it by a table, or exclude it",
                shape.kind
            )));
        }
        let find = |column: &crate::model::Column| shape.column(&column.name).cloned();
        let missing: Vec<&str> = relation
            .columns
            .iter()
            .filter(|column| find(column).is_none())
            .map(|column| column.name.as_str())
            .collect();
        if !missing.is_empty() {
            return Err(SinkError::Shape(format!(
                "the table {name} on the standby lacks the column{} {}: add with ALTER TABLE {} ADD COLUMN …, as on the primary, \
                 with its DEFAULT (no row that is there comes again); then systemctl reload walrelay: it goes on from here",
                if missing.len() == 1 { "" } else { "s" },
                missing.join(", "),
                name.sql()
            )));
        }
        let columns: Vec<ShapeColumn> = relation.columns.iter().filter_map(find).collect();
        let generated: Vec<&str> =
            columns.iter().filter(|column| column.is_generated).map(|c| c.name.as_str()).collect();
        if !generated.is_empty() {
            return Err(SinkError::Shape(format!(
                "the column {} of {name} is published but generated on the standby; make it an ordinary column there \
                 (ALTER TABLE {} ALTER COLUMN … DROP EXPRESSION), or leave it out of the publication",
                generated.join(", "),
                name.sql()
            )));
        }
        let set_key = set_key(&relation, &shape);
        let is_keyed = set_key.is_some();
        let search = set_key.map_or_else(|| row_search(&relation, &shape), RowSearch::Key);
        let touchy = touchy_columns(&shape, &columns, &search);
        let extra = extra_columns(&relation, &shape);
        let way = match shape.has_replica_actions {
            true => Way::InOrder,
            false if is_keyed => Way::Keyed,
            false if search == RowSearch::WholeRow && touchy.is_empty() => Way::Bag,
            false => Way::Inserts,
        };
        let takes_binary = vec![false; columns.len()];
        Ok(Self { relation, shape, columns, search, takes_binary, way, touchy, extra })
    }

    /// For a stream of binary values. `Err` names the first column of which they would mean something else here, or might.
    pub(super) fn in_binary(mut self, types: &BinaryTypes) -> Result<Self, String> {
        for (at, (ours, theirs)) in self.relation.columns.iter().zip(&self.columns).enumerate() {
            let has_way = theirs.array_type_oid != 0 || self.shape.row_array_type_oid != 0;
            if !types.are_alike(ours.type_oid, theirs.type_oid) || !has_way {
                return Err(format!(
                    "{}, column \"{}\" (type {} on the primary, {} on the standby)",
                    self.relation.name, ours.name, ours.type_oid, theirs.type_name
                ));
            }
            self.takes_binary[at] = true;
        }
        Ok(self)
    }

    /// Whether values of this column travel to a statement for many rows inside a row: they come in binary form, and an array of
    /// them would be taken apart too far.
    pub(super) fn travels_in_row(&self, at: u16) -> bool {
        self.takes_binary[usize::from(at)] && self.column(at).array_type_oid == 0
    }

    /// The standby's column of a column of the relation.
    pub(super) fn column(&self, at: u16) -> &ShapeColumn {
        &self.columns[usize::from(at)]
    }

    /// Positions of the columns by which a row is found, if it is found by a key.
    pub(super) fn key(&self) -> Vec<usize> {
        match &self.search {
            RowSearch::Key(key) => key.clone(),
            RowSearch::WholeRow | RowSearch::None => Vec::new(),
        }
    }

    /// Whether the primary names a row by this column, for each column; empty where it names rows by the key alone.
    pub(super) fn named_by(&self) -> Vec<bool> {
        let is_full = self.relation.replica_identity == ReplicaIdentity::Full;
        let named: Vec<bool> = self.relation.columns.iter().map(|column| is_full || column.is_key).collect();
        let key = self.key();
        let is_wider = named.iter().enumerate().any(|(at, is_named)| *is_named && !key.contains(&at));
        if is_wider { named } else { Vec::new() }
    }

    /// Whether any column is an identity column: then INSERT must override it.
    pub(super) fn has_identity(&self) -> bool {
        self.shape.columns.iter().any(|column| column.identity != ColumnIdentity::None)
    }

    /// Whether an UPDATE or DELETE must touch exactly one row: not where the standby's own triggers or rules have their say.
    pub(super) fn is_counted(&self) -> bool {
        !self.shape.has_replica_actions
    }

    /// A refusal that names a column of this table.
    pub(super) fn refuse_column(&self, at: usize, what: &str) -> SinkError {
        let column = self.relation.columns.get(at).map_or("?", |column| column.name.as_str());
        SinkError::Shape(format!("the primary sent column \"{column}\" of {} {what}", self.relation.name))
    }
}

/// A key by which sets of rows are found: an index of the standby holds it unique, not deferrable, without NULLs, and the primary
/// sends all its columns with the old row. Then "rows touched = rows named" proves that each was found.
fn set_key(relation: &Relation, shape: &TableShape) -> Option<Vec<usize>> {
    let is_full = relation.replica_identity == ReplicaIdentity::Full;
    let position =
        |name: &String| relation.columns.iter().position(|column| column.name == *name && (is_full || column.is_key));
    let is_own = |key: &&Vec<String>| **key == shape.key_columns;
    let own = shape.unique_keys.iter().filter(is_own);
    let mut keys = own.chain(&shape.unique_keys).filter_map(|key| key.iter().map(position).collect::<Option<Vec<_>>>());
    keys.find(|key| !key.is_empty())
}

fn touchy_columns(shape: &TableShape, columns: &[ShapeColumn], search: &RowSearch) -> Vec<u16> {
    let is_constrained = |name: &String| shape.constrained_columns.contains(name);
    // What a generated column is made of is not known here.
    let is_any = shape.is_constrained_whole
        || shape.columns.iter().any(|column| column.is_generated && is_constrained(&column.name));
    let is_key = |at: usize| matches!(search, RowSearch::Key(key) if key.contains(&at));
    let is_touchy = |(at, column): &(usize, &ShapeColumn)| {
        !is_key(*at) && (is_any || is_constrained(&column.name) || column.identity == ColumnIdentity::Always)
    };
    columns.iter().enumerate().filter(is_touchy).map(|(at, _)| at as u16).collect()
}

fn extra_columns(relation: &Relation, shape: &TableShape) -> Vec<String> {
    let is_sent = |column: &ShapeColumn| relation.columns.iter().any(|sent| sent.name == column.name);
    let extra = shape.columns.iter().filter(|column| !column.is_generated && !is_sent(column));
    extra.map(|column| column.name.clone()).collect()
}

/// The standby's own replica identity or primary key, if the primary sends all its columns; else the primary's identity.
fn row_search(relation: &Relation, shape: &TableShape) -> RowSearch {
    let is_full = relation.replica_identity == ReplicaIdentity::Full;
    let position =
        |name: &String| relation.columns.iter().position(|column| column.name == *name && (is_full || column.is_key));
    let target_key: Option<Vec<usize>> = shape.key_columns.iter().map(position).collect();
    if let Some(key) = target_key.filter(|key| !key.is_empty()) {
        return RowSearch::Key(key);
    }
    if is_full {
        return RowSearch::WholeRow;
    }
    let key: Vec<usize> = (0..relation.columns.len()).filter(|at| relation.columns[*at].is_key).collect();
    if key.is_empty() { RowSearch::None } else { RowSearch::Key(key) }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::model::{Column, QualifiedName};

    pub(crate) fn relation(identity: ReplicaIdentity, columns: &[(&str, bool)]) -> Arc<Relation> {
        Arc::new(Relation {
            oid: 1,
            name: QualifiedName::new("public", "t"),
            replica_identity: identity,
            columns: columns
                .iter()
                .map(|(name, is_key)| Column {
                    name: (*name).to_owned(),
                    type_oid: 23,
                    type_modifier: -1,
                    is_key: *is_key,
                })
                .collect(),
        })
    }

    /// Columns by name and flags (`generated`, `always`, `json`, `array`, `unique`); the key is unique where all is well.
    pub(crate) fn shape(columns: &[(&str, &str)], key: &[&str]) -> TableShape {
        let constrained: Vec<&str> = columns
            .iter()
            .filter(|(_, flags)| *flags == "unique")
            .map(|(name, _)| *name)
            .chain(key.iter().copied())
            .collect();
        let keys: Vec<&[&str]> = if key.is_empty() { Vec::new() } else { vec![key] };
        let columns: Vec<serde_json::Value> = columns
            .iter()
            .map(|(name, flags)| {
                serde_json::json!({
                    "name": name, "type_oid": 23, "type_name": "integer", "is_not_null": key.contains(name),
                    "is_generated": *flags == "generated", "identity": if *flags == "always" { "a" } else { "" },
                    "has_default": false, "equality_schema": if *flags == "json" { None } else { Some("pg_catalog") },
                    "base_type_name": if *flags == "array" { "integer[]" } else { "integer" },
                    "array_type_oid": if *flags == "array" { 0 } else { 1007 }
                })
            })
            .collect();
        serde_json::from_value(serde_json::json!({
            "schema": "public", "name": "t", "oid": 5, "kind": "r", "replica_identity": "d", "columns": columns,
            "key_columns": key, "unique_keys": keys, "constrained_columns": constrained, "partitions": [], "ancestors": [], "has_replica_actions": false
        }))
        .unwrap()
    }

    /// A table `public.t (a primary key, b)`.
    pub(crate) fn keyed() -> Arc<Target> {
        let relation = relation(ReplicaIdentity::Default, &[("a", true), ("b", false)]);
        Arc::new(Target::new(relation, shape(&[("a", ""), ("b", "")], &["a"])).unwrap())
    }

    /// Joins and compares how rows are found, or a part of the refusal.
    fn check(
        identity: ReplicaIdentity,
        source: &[(&str, bool)],
        target: &[(&str, &str)],
        key: &[&str],
        expected: Result<RowSearch, &str>,
    ) {
        match (Target::new(relation(identity, source), shape(target, key)), expected) {
            (Ok(target), Ok(search)) => assert_eq!(target.search, search),
            (Err(error), Err(text)) => assert!(error.to_string().contains(text), "{error}"),
            (Ok(target), Err(text)) => panic!("{:?} instead of {text}", target.search),
            (Err(error), Ok(_)) => panic!("{error}"),
        }
    }

    #[test]
    fn a_row_is_found_by_the_standbys_key_if_the_primary_sends_it() {
        use ReplicaIdentity::{Default, Full, Nothing};
        let source = [("a", true), ("b", false)];
        let plain = [("b", ""), ("a", ""), ("extra", "")];
        check(Default, &source, &plain, &["a"], Ok(RowSearch::Key(vec![0])));
        // Another key on the standby, which the primary does not send with the old row.
        check(Default, &source, &plain, &["b"], Ok(RowSearch::Key(vec![0])));
        check(Default, &source, &plain, &[], Ok(RowSearch::Key(vec![0])));
        check(Full, &[("a", true), ("b", true)], &plain, &["b"], Ok(RowSearch::Key(vec![1])));
        check(Full, &[("a", true), ("b", true)], &plain, &[], Ok(RowSearch::WholeRow));
        check(Full, &[("a", true), ("b", true)], &plain, &["extra"], Ok(RowSearch::WholeRow));
        check(Nothing, &[("a", false)], &plain, &["a"], Ok(RowSearch::None));
    }

    #[test]
    fn columns_that_do_not_fit_are_named() {
        let source = [("a", true), ("b", false), ("c", false)];
        check(ReplicaIdentity::Default, &source, &[("a", "")], &["a"], Err("lacks the columns b, c"));
        let generated = [("a", ""), ("b", "generated"), ("c", "")];
        check(
            ReplicaIdentity::Default,
            &source,
            &generated,
            &["a"],
            Err("column b of public.t is published but generated"),
        );
    }
}
