//! How the rows of one table are written: its topic, its key, each column's form. Made of a Relation message, which wins, and of
//! what the catalog says besides; used for every row.

use crate::model::{QualifiedName, Relation, ReplicaIdentity};

use super::super::super::SinkError;
use super::column::{Knowledge, PlannedColumn, planned_column};
use super::json::push_string;
use super::schema::{key_schema, value_schema};
use super::topic::topic_of;

/// What rows of a table become.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) name: QualifiedName,
    pub(super) topic: String,
    pub(super) columns: Vec<PlannedColumn>,
    /// Places of the key's columns; empty: no key.
    pub(super) key: Vec<usize>,
    /// `"schema":…,"table":…,"txId":`.
    pub(super) source: Vec<u8>,
    /// Before the key and the value when they carry their schemas: `{"schema":…,"payload":`.
    pub(super) key_schema: Vec<u8>,
    pub(super) value_schema: Vec<u8>,
}

impl Plan {
    /// Refuses what cannot be sent as configured.
    pub(super) fn new(relation: &Relation, knowledge: &Knowledge<'_>) -> Result<Plan, SinkError> {
        let name = relation.name.clone();
        let settings = knowledge.settings;
        let columns: Result<Vec<_>, _> =
            relation.columns.iter().map(|column| planned_column(&name, column, knowledge)).collect();
        let mut source = b"\"schema\":".to_vec();
        let _ = push_string(name.schema.as_bytes(), &mut source);
        source.extend_from_slice(b",\"table\":");
        let _ = push_string(name.name.as_bytes(), &mut source);
        source.extend_from_slice(b",\"txId\":");
        let (columns, key) = (columns?, key_of(relation, knowledge));
        let plan = Plan {
            topic: topic_of(&name, settings),
            key_schema: key_schema(&name, key.iter().filter_map(|place| columns.get(*place)), settings),
            value_schema: value_schema(&name, &columns, settings),
            columns,
            key,
            source,
            name,
        };
        plan.say_what_the_key_shows();
        Ok(plan)
    }

    fn say_what_the_key_shows(&self) {
        for column in
            self.key.iter().filter_map(|place| self.columns.get(*place)).filter(|column| column.mask.is_some())
        {
            tracing::warn!(table = %self.name, column = column.name, "a mask does not cover the record's key: this column is part of it");
        }
    }
}

/// Primary key, else the replica identity's index, else a unique index; what the Relation message says wins.
fn key_of(relation: &Relation, knowledge: &Knowledge<'_>) -> Vec<usize> {
    let place = |name: &String| relation.columns.iter().position(|column| column.name == *name);
    let configured = knowledge.settings.message_key.iter().find(|(pattern, _)| pattern.matches(&relation.name));
    if let Some((_, names)) = configured {
        let places: Vec<usize> = names.iter().filter_map(place).collect();
        if places.len() == names.len() {
            return places;
        }
        tracing::warn!(table = %relation.name, "message_key names a column that the table does not have: its own key is used");
    }
    let places =
        |names: &[String]| names.iter().map(place).collect::<Option<Vec<usize>>>().filter(|places| !places.is_empty());
    let flagged: Vec<usize> =
        relation.columns.iter().enumerate().filter(|(_, column)| column.is_key).map(|(place, _)| place).collect();
    let facts = knowledge.facts;
    let is_same =
        |places: &Vec<usize>| places.len() == flagged.len() && flagged.iter().all(|place| places.contains(place));
    // The catalog knows the order of an index, the message which columns it has.
    let ordered = |names: &[String]| places(names).filter(is_same).unwrap_or_else(|| flagged.clone());
    let unique = || facts.and_then(|facts| facts.unique_indexes.iter().find_map(|index| places(&index.columns)));
    match relation.replica_identity {
        ReplicaIdentity::Index if !flagged.is_empty() => ordered(facts.map_or(&[], |facts| &facts.identity_index)),
        ReplicaIdentity::Default if !flagged.is_empty() => ordered(facts.map_or(&[], |facts| &facts.primary_key)),
        // The default identity leaves out a DEFERRABLE primary key, which is the key all the same: the copy has no other.
        _ => facts.and_then(|facts| places(&facts.primary_key)).or_else(unique).unwrap_or_default(),
    }
}
