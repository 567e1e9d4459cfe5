//! The tables of one replication session: what Relation messages and the catalog said, and the plan made of both. Asks nobody.

use std::collections::HashMap;

use crate::config::KafkaSink;
use crate::decode::{DecodeError, RelationBody};
use crate::model::{Column, QualifiedName, Relation};

use super::super::super::SinkError;
use super::super::super::postgres::Wanted;
use super::column::Knowledge;
use super::facts::TableFacts;
use super::outbox::OutboxPlan;
use super::plan::Plan;
use super::topic::{is_routed, topic_of};
use super::{Origin, Step};

/// What becomes of a table's changes.
#[derive(Debug)]
pub(super) enum Target {
    /// It is not one of the pipeline's tables.
    Unwanted,
    /// It may be one: it came since they were listed.
    Unlisted,
    Rows(Box<Plan>),
    Outbox(Box<OutboxPlan>),
}

#[derive(Debug)]
struct Known {
    relation: Relation,
    target: Target,
}

/// What the catalog said, whether a Relation message has used it already, and whether it differs from what it said before.
#[derive(Debug)]
struct Described {
    facts: Option<TableFacts>,
    is_fresh: bool,
    is_changed: bool,
}

impl Described {
    /// Whether the catalog knew all that a Relation message names: else the table was changed between the one and the other. Of a
    /// table that it did not know at all, the message must do.
    fn agrees_with(&self, relation: &Relation) -> bool {
        self.facts.as_ref().is_none_or(|facts| {
            let is_known =
                |column: &Column| facts.column(&column.name).is_some_and(|known| known.type_oid == column.type_oid);
            facts.oid == relation.oid && relation.columns.iter().all(is_known)
        })
    }
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Tables {
    known: HashMap<u32, Known>,
    described: HashMap<QualifiedName, Described>,
    /// The table that the last Relation message asked for.
    asked: Option<QualifiedName>,
    types: HashMap<u32, (String, String)>,
    /// Topics that belong to one table alone.
    owners: HashMap<String, QualifiedName>,
}

impl Tables {
    pub(super) fn describe(&mut self, name: QualifiedName, facts: Option<TableFacts>) {
        let is_changed = self.described.get(&name).is_none_or(|before| before.facts != facts);
        self.described.insert(name, Described { facts, is_fresh: true, is_changed });
    }

    pub(super) fn note_type(&mut self, oid: u32, schema: &[u8], name: &[u8]) {
        let schema =
            if schema.is_empty() { "pg_catalog".to_owned() } else { String::from_utf8_lossy(schema).into_owned() };
        self.types.insert(oid, (schema, String::from_utf8_lossy(name).into_owned()));
    }

    /// Notes a Relation message. The server sends one first, and again after the table's description in its caches was
    /// invalidated: each needs the catalog's answer of after it was read, since defaults, unique indexes, or a primary key beside
    /// REPLICA IDENTITY FULL do not show in it. What was told before the first one does instead, as far as it agrees. The answer to a
    /// message's own question is taken as it is, so there is one: the catalog may be ahead of the stream, or behind a commit that waits.
    pub(super) fn note_relation(
        &mut self,
        body: &RelationBody<'_>,
        settings: &KafkaSink,
        origin: &Origin,
    ) -> Result<Step, SinkError> {
        let relation = body.to_relation();
        let other = match origin.tables.wants(&relation.name) {
            Wanted::Yes => None,
            Wanted::No => Some(Target::Unwanted),
            Wanted::Unknown => Some(Target::Unlisted),
        };
        if let Some(target) = other {
            self.known.insert(relation.oid, Known { relation, target });
            return Ok(Step::Done);
        }
        let is_answered = self.asked.take().is_some_and(|asked| asked == relation.name);
        let is_usable =
            |described: &&mut Described| described.is_fresh && (is_answered || described.agrees_with(&relation));
        let Some(described) = self.described.get_mut(&relation.name).filter(is_usable) else {
            self.asked = Some(relation.name.clone());
            return Ok(Step::NeedFacts(relation.name));
        };
        described.is_fresh = false;
        let is_known = self.known.get(&relation.oid).is_some_and(|known| known.relation == relation);
        if is_known && !described.is_changed {
            return Ok(Step::Done);
        }
        let target = self.target_of(&relation, settings)?;
        self.known.insert(relation.oid, Known { relation, target });
        Ok(Step::Done)
    }

    fn target_of(&mut self, relation: &Relation, settings: &KafkaSink) -> Result<Target, SinkError> {
        let facts = self.described.get(&relation.name).and_then(|described| described.facts.as_ref());
        // Another table of the same name: it was dropped and made anew meanwhile.
        let facts = facts.filter(|facts| facts.oid == relation.oid);
        let target = planned(relation, &Knowledge { settings, facts, types: &self.types })?;
        self.claimed(relation, target, settings)
    }

    /// What becomes of a table's rows in a snapshot, of which no Relation message tells.
    pub(super) fn snapshot_target(
        &mut self,
        relation: &Relation,
        facts: &TableFacts,
        settings: &KafkaSink,
    ) -> Result<Target, SinkError> {
        let target = planned(relation, &Knowledge { settings, facts: Some(facts), types: &HashMap::new() })?;
        self.claimed(relation, target, settings)
    }

    fn claimed(&mut self, relation: &Relation, target: Target, settings: &KafkaSink) -> Result<Target, SinkError> {
        if matches!(target, Target::Rows(_)) {
            self.claim(&relation.name, settings)?;
        }
        Ok(target)
    }

    /// Two tables meet in one topic only where a route says so.
    pub(super) fn claim(&mut self, name: &QualifiedName, settings: &KafkaSink) -> Result<(), SinkError> {
        let topic = topic_of(name, settings);
        if is_routed(name, settings) {
            return Ok(());
        }
        match self.owners.get(&topic) {
            Some(owner) if owner != name => Err(SinkError::Refused(format!(
                "the tables {owner} and {name} would both go to the topic \"{topic}\": give one of them a topic of its own with \
                 [[pipeline.sink.route]], or route both there"
            ))),
            Some(_) => Ok(()),
            None => {
                self.owners.insert(topic, name.clone());
                Ok(())
            }
        }
    }

    /// What becomes of a change.
    #[inline]
    pub(super) fn target(&self, oid: u32) -> Result<&Target, SinkError> {
        let known = self.known.get(&oid).ok_or(DecodeError::UnknownRelation(oid))?;
        match known.target {
            Target::Unlisted => Err(SinkError::NewTable(known.relation.name.clone())),
            _ => Ok(&known.target),
        }
    }

    /// The name behind an OID of this session.
    pub(super) fn name(&self, oid: u32) -> Result<&QualifiedName, SinkError> {
        Ok(&self.known.get(&oid).ok_or(DecodeError::UnknownRelation(oid))?.relation.name)
    }
}

fn planned(relation: &Relation, knowledge: &Knowledge<'_>) -> Result<Target, SinkError> {
    let outbox = knowledge.settings.outbox.as_ref().filter(|outbox| outbox.table == relation.name);
    Ok(match outbox {
        Some(outbox) => Target::Outbox(Box::new(OutboxPlan::new(relation, outbox, knowledge.settings)?)),
        None => Target::Rows(Box::new(Plan::new(relation, knowledge)?)),
    })
}
