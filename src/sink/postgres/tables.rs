//! From a relation of the stream to a table of the standby: which relations are ours, which changes the initial copy already
//! holds, and, once a row comes, the table's shape and guard.

use std::collections::HashMap;
use std::sync::Arc;

use crate::decode::{DecodeError, RelationBody, Relations};
use crate::model::{Lsn, QualifiedName, Relation};
use crate::schema::{TableShape, catalog_query, read_shapes};

use super::super::SinkError;
use super::change::ApplyError;
use super::drift::Drift;
use super::guard::{create_function_sql, create_trigger_sql, function_query, unguarded_query};
use super::opening::{Opening, Wanted};
use super::readonly;
use super::session::Pipelined;
use super::target::Target;

/// Stands for the commit of a transaction that is written ahead of it: behind everything that is known.
pub(super) const AHEAD_OF_COMMIT: Lsn = Lsn(u64::MAX);

/// What to do with a change of a relation.
#[derive(Debug)]
pub(super) enum Disposition<'a> {
    /// Not of this pipeline, or already in the initial copy.
    Skip,
    /// Ours, and its table was not looked at yet.
    Unresolved,
    /// Ours.
    Apply(&'a Arc<Target>),
}

#[derive(Debug)]
struct Known {
    wanted: Wanted,
    skip_until: Lsn,
    target: Option<Arc<Target>>,
}

/// The relations of one replication session.
#[derive(Debug)]
pub(super) struct Tables {
    opening: Opening,
    relations: Relations,
    known: HashMap<u32, Known>,
    /// Where the batch that is being written leaves the record, …
    position: Lsn,
    /// … and what was known of the relations that batches under way describe anew, before they did, in order, with their positions.
    before: Vec<(Lsn, u32, Option<Arc<Relation>>)>,
    drift: Drift,
    /// Grows whenever statements that were prepared for some table may be void.
    generation: u64,
}

/// A Relation message that says something new.
#[derive(Debug)]
pub(super) struct Noted {
    pub(super) relation: Arc<Relation>,
    /// Whether nothing was known of the relation.
    pub(super) is_first: bool,
}

impl Tables {
    pub(super) fn new(opening: Opening) -> Self {
        Self {
            opening,
            relations: Relations::default(),
            known: HashMap::new(),
            position: Lsn::ZERO,
            before: Vec::new(),
            generation: 0,
            drift: Drift::default(),
        }
    }

    /// What the tables were seen to be, for who looks whether they still are.
    pub(super) fn drift(&self) -> &Drift {
        &self.drift
    }

    /// The standby's table of a relation is not what it was: it is looked up again with its next row.
    pub(super) fn look_again(&mut self, oid: u32) {
        let Some(known) = self.known.get_mut(&oid) else { return };
        if let Some(target) = known.target.take() {
            self.generation += 1;
            tracing::info!(table = %target.relation.name, "a table of the standby has changed; what is known of it is read again");
        }
    }

    /// A batch begins that leaves the record at `position`; what is committed by now is not undone any more.
    pub(super) fn begin_batch(&mut self, position: Lsn, committed: Lsn) {
        self.position = position;
        self.before.retain(|(position, ..)| *position > committed);
    }

    /// Knows no more than what is committed: the batches behind that are read again. All tables are looked up again: guards were rolled
    /// back, and what was wrong may be that a table has changed.
    pub(super) fn undo_batches(&mut self, committed: Lsn) {
        self.generation += 1;
        self.before.retain(|(position, ..)| *position > committed);
        while let Some((_, oid, before)) = self.before.pop() {
            match before {
                Some(relation) => {
                    self.known.insert(oid, self.unresolved(&relation));
                    self.relations.put_back(relation);
                }
                None => {
                    self.relations.forget(oid);
                    self.known.remove(&oid);
                }
            }
        }
        self.known.values_mut().for_each(|known| known.target = None);
    }

    /// Knows what a transaction described that was applied elsewhere: the primary does not describe it again. Returns the OIDs of the
    /// relations that are not what they were.
    pub(super) fn adopt(&mut self, described: &Tables) -> Vec<u32> {
        let is_new = |relation: &&Arc<Relation>| self.relations.get(relation.oid).ok() != Some(*relation);
        let new: Vec<Arc<Relation>> = described.relations.all().filter(is_new).cloned().collect();
        for relation in &new {
            self.known.insert(relation.oid, self.unresolved(relation));
            self.relations.put_back(Arc::clone(relation));
        }
        self.generation += u64::from(!new.is_empty());
        new.iter().map(|relation| relation.oid).collect()
    }

    /// While it stays the same, so does what statements were prepared for.
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether a Relation message says something new.
    pub(super) fn is_news(&self, body: &RelationBody<'_>) -> bool {
        self.relations.get(body.oid).ok().is_none_or(|known| **known != body.to_relation())
    }

    fn unresolved(&self, relation: &Relation) -> Known {
        let Opening { filter, copied, .. } = &self.opening;
        Known {
            wanted: filter.wants(&relation.name),
            skip_until: copied.skip_until(relation.oid, &relation.name),
            target: None,
        }
    }

    /// Notes a Relation message, if it says something new: what was made from the old description is void.
    pub(super) fn note(&mut self, body: &RelationBody<'_>) -> Option<Noted> {
        let before = self.relations.get(body.oid).ok().cloned();
        let relation = self.relations.note(body)?;
        let is_first = before.is_none();
        self.before.push((self.position, relation.oid, before));
        self.generation += 1;
        self.known.insert(relation.oid, self.unresolved(&relation));
        Some(Noted { relation, is_first })
    }

    /// What to do with a change of the relation in the transaction whose commit record starts at `commit_lsn`. A snapshot
    /// holds every commit whose record starts below its position.
    pub(super) fn disposition(&self, oid: u32, commit_lsn: Lsn) -> Result<Disposition<'_>, DecodeError> {
        let known = self.known.get(&oid).ok_or(DecodeError::UnknownRelation(oid))?;
        Ok(match &known.target {
            _ if known.wanted == Wanted::No || commit_lsn < known.skip_until => Disposition::Skip,
            None => Disposition::Unresolved,
            Some(target) => Disposition::Apply(target),
        })
    }

    /// Looks the relation's table up on the standby, inside the transaction under way, and puts its guard there: it stands
    /// before the first row is visible.
    pub(super) async fn resolve(
        &mut self,
        session: &mut Pipelined,
        oid: u32,
        commit_lsn: Lsn,
    ) -> Result<(), ApplyError> {
        let relation = Arc::clone(self.relations.get(oid)?);
        let copied = &self.opening.copied;
        // What was made again before the record was looked at is planned, or came back.
        let is_new = copied.is_made_again(oid, &relation.name) && !copied.is_before(commit_lsn);
        if is_new || self.known.get(&oid).is_some_and(|known| known.wanted == Wanted::Unknown) {
            return Err(SinkError::NewTable(relation.name.clone()).into());
        }
        let (relation, shape) = self.find(session, relation, commit_lsn).await?;
        let shape = shape.ok_or_else(|| {
            SinkError::Shape(format!(
                "the table {} does not exist on the standby; if it was renamed on the primary, rename it there too (ALTER TABLE … RENAME TO: it \
                 is not copied again); else create it like the one on the primary (pg_dump --schema-only), or exclude it; then systemctl reload \
                 walrelay: it goes on from here",
                relation.name
            ))
        })?;
        self.drift.seen(oid, &relation.name, &shape.fingerprint);
        let mut target = Target::new(Arc::clone(&relation), shape)?;
        if let Some(types) = &self.opening.binary {
            target = target.in_binary(types).map_err(|column| SinkError::NeedsText { column, commit_lsn })?;
        }
        self.put_guards(session, &relation.name).await?;
        if let Some(known) = self.known.get_mut(&oid) {
            known.target = Some(Arc::new(target));
        }
        Ok(())
    }

    /// The relation's table on the standby. A name from before the record's may be another table's by now, on the standby too, if somebody
    /// has renamed it there as well. One from behind is what the standby's table is to be called.
    async fn find(
        &self,
        session: &mut Pipelined,
        relation: Arc<Relation>,
        commit_lsn: Lsn,
    ) -> Result<(Arc<Relation>, Option<TableShape>), ApplyError> {
        let copied = &self.opening.copied;
        let Some((now, standby_oid)) = copied.renamed(relation.oid, &relation.name) else {
            let shape = shape(session, &relation.name).await?;
            return Ok((relation, shape));
        };
        if commit_lsn == AHEAD_OF_COMMIT {
            let reason = format!(
                "{} has another name in the record, and which is the later one is known at the commit",
                relation.name
            );
            return Err(SinkError::Shape(reason).into());
        }
        let before = shape(session, &relation.name).await?;
        let is_it = |shape: &TableShape| Some(shape.oid) == standby_oid;
        if !copied.is_before(commit_lsn) || before.as_ref().is_some_and(is_it) {
            return Ok((relation, before));
        }
        // Also where neither is the one that was noted: somebody has made it anew there, under the name of now.
        match shape(session, now).await? {
            Some(shape) => {
                tracing::info!(table = %relation.name, %now, "written to the table that has another name by now");
                Ok((Arc::new(Relation { name: now.clone(), ..Relation::clone(&relation) }), Some(shape)))
            }
            None => Ok((relation, before)),
        }
    }

    async fn put_guards(&self, session: &mut Pipelined, name: &QualifiedName) -> Result<(), ApplyError> {
        let Some(primary) = &self.opening.guard_for else { return Ok(()) };
        let pipeline = &self.opening.pipeline;
        let unguarded = session.query_texts(&unguarded_query(pipeline, std::slice::from_ref(name))).await?;
        if unguarded.is_empty() {
            return Ok(());
        }
        if session.query_texts(&function_query(pipeline, primary)).await?.is_empty() {
            let made = session.query_texts(&create_function_sql(pipeline, primary)).await;
            made.map_err(|failure| readonly::explain(failure.error, None))?;
        }
        for text in unguarded {
            let table = readonly::read_name(&text)?;
            let put_up = session.query_texts(&create_trigger_sql(pipeline, &table)).await;
            put_up.map_err(|failure| readonly::explain(failure.error, Some(&table)))?;
            tracing::info!(%table, "a table of the standby now refuses every writer but the relay");
        }
        Ok(())
    }
}

async fn shape(session: &mut Pipelined, name: &QualifiedName) -> Result<Option<TableShape>, ApplyError> {
    let texts = session.query_texts(&catalog_query([name])).await?;
    Ok(read_shapes(texts.iter().map(String::as_str)).map_err(SinkError::from)?.pop())
}
