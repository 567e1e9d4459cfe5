//! The way to a started stream towards Kafka. The order matters: own the pipeline, read the record without fencing anybody and
//! refuse a stranger's, only then take the producer over, read again, and stream from there.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::assemble::Spool;
use crate::config::{self, KafkaSink as SinkConfig};
use crate::model::{Lsn, Progress, QualifiedName, State};
use crate::sink::AnySink;
use crate::sink::kafka::transport::{CopiedTable, KafkaSink, Opening, Records, Start, mark_copied, read_records};
use crate::snapshot::{self, CopyProgress, ExportedSnapshot, KafkaCopy, Part, PreparedKafka};
use crate::source::{Additions, Publication, SnapshotUse, identify, slot_facts};

use super::again::Again;
use super::attempt::Attempt;
use super::coming::planned;
use super::feed_set::{left_out, note_set};
use super::ownership::{self, Ownership};
use super::primary::Primary;
use super::resume::Beginning;
use super::stream::Streaming;
use super::{PipelineError, create};

/// Few set more workers than these.
const MOST_COPY_PRODUCERS: usize = 8;

/// How many producers a copy may have had that was cut off: somebody may have set fewer workers since.
pub(super) fn copy_producers(pipeline: &config::Pipeline) -> usize {
    pipeline.copy_workers.max(MOST_COPY_PRODUCERS)
}

impl Attempt<'_> {
    /// Everything up to an open sink and a started stream; with tables that are to be sent again once the stream has come to an end
    /// before their snapshot.
    pub(super) async fn to_kafka(
        &self,
        sink: &SinkConfig,
        spool: Spool,
    ) -> Result<(Ownership, Streaming, Option<Again>), PipelineError> {
        let wants_copy = self.settings.pipeline.initial_copy;
        let mut primary = Primary::open(self.settings).await?;
        let slot = self.settings.pipeline.slot_name();
        let ownership =
            ownership::own_on_primary(&self.settings.primary, &primary.sql, self.name(), &slot, self.reporter).await?;
        self.reporter.state(State::Starting);
        self.refuse_used_slot(&primary).await?;
        let before = read_records(sink, self.name()).await?;
        // Asked again after the lock was waited for: the primary went on meanwhile.
        primary.identity = identify(&mut primary.replication).await?;
        let first_look = self.first_look(&mut primary, &before, wants_copy).await?;
        if !wants_copy && before.is_unfinished() && !before.is_undecided {
            return Err(self.refuse_unfinished(sink));
        }
        let additions = self.additions(&primary, first_look).await?;
        let (publication, coming) = self.publish_for_feed(&primary, sink, additions, &before).await?;
        let sent = before.copied.iter().filter(|(_, copied)| copied.is_finished() && !copied.left);
        self.refusals.note_ours(sent.map(|(table, _)| table.clone()));
        let left_copies = if before.may_have_left_copies() { copy_producers(&self.settings.pipeline) } else { 0 };
        let opening = Opening { left_copies, ..self.kafka_opening(sink, &publication) };
        let (mut opened, mut records) = KafkaSink::open(opening.clone()).await?;
        primary.identity = identify(&mut primary.replication).await?;
        let beginning = self.beginning(&mut primary, records.progress.as_ref(), wants_copy).await?;
        if beginning == Beginning::Fresh && records.has_finished() {
            return Err(self.refuse_leftovers(sink));
        }
        if !wants_copy && records.is_unfinished() {
            return Err(self.refuse_unfinished(sink));
        }
        let is_resumed = matches!(beginning, Beginning::Resume(_));
        if is_resumed && wants_copy && records.copied.is_empty() {
            self.plan_all(&mut opened, &mut records, &publication, &coming).await?;
        }
        if is_resumed {
            note_set(&primary.sql, &mut opened, &mut records, &publication, wants_copy).await?;
        }
        self.noticed.joined(&publication.tables);
        let copy = match is_resumed {
            // What is to be copied then goes between the changes.
            true => None,
            false => self.prepare_copy(&primary, &records, &publication).await?,
        };
        let progress = self
            .settle_kafka(&mut primary, &mut opened, beginning, &mut records, copy, (&opening, &publication))
            .await?;
        let again = match is_resumed {
            true => self.prepare_again(&primary, &opening, &publication, &records.copied).await?,
            false => None,
        };
        let start = Start {
            progress,
            skip_until: records.skip_until(),
            begun: again.as_ref().map(|again| again.begun(&records.copied)).unwrap_or_default(),
            tables: publication.tables.clone(),
        };
        let position = start.progress.lsn;
        opened.start(start).await?;
        let sink = AnySink::Kafka(Box::new(opened));
        let streaming = self.start_stream(primary, &publication.name, position, sink, spool, false).await?;
        let until = again.as_ref().map(Again::until);
        Ok((ownership, Streaming { until, ..streaming }, again))
    }

    /// What the rules say before anybody is fenced off. A position that stands in an open transaction, or in one that was aborted, may
    /// never have been reached: then only whose record it is counts, and the position is judged once it is decided.
    async fn first_look(
        &self,
        primary: &mut Primary,
        before: &Records,
        wants_copy: bool,
    ) -> Result<Beginning, PipelineError> {
        let timeline = primary.identity.timeline;
        let judged = before.progress.clone().map(|progress| match before.is_undecided {
            true => Progress { lsn: Lsn::ZERO, timeline, ..progress },
            false => progress,
        });
        self.beginning(primary, judged.as_ref(), wants_copy).await
    }

    /// Records, where tables were copied before, those that are about to come into the publication: it alone does not tell a partition
    /// that came with a new table from one of an old table, whose rows the stream has carried from the first on. One that has a record is
    /// another under its name, or was missing for a time, and is to be sent again: consumers hold its rows. One that has none may have streamed
    /// all the same, as a partition or under another name: it counts as one whose copy was cut off, so that deletes are told. Gives those
    /// that come.
    async fn publish_for_feed(
        &self,
        primary: &Primary,
        sink: &SinkConfig,
        additions: Additions,
        before: &Records,
    ) -> Result<(Publication, Vec<QualifiedName>), PipelineError> {
        let coming = self.coming(primary, &additions).await?;
        let additions = planned(&coming, additions, self.settings.pipeline.initial_copy);
        // What was sent of one before still counts, and its changes of the time between go out with the others.
        let mark = |table: &QualifiedName| match before.copied.get(table) {
            Some(earlier) if !earlier.is_unfinished() => CopiedTable { again: true, ..*earlier },
            _ => CopiedTable::default(),
        };
        let plan = async |tables: &[QualifiedName]| {
            if before.copied.is_empty() || tables.is_empty() {
                return Ok(());
            }
            mark_copied(sink, tables.iter().map(|table| (table.clone(), mark(table))).collect()).await
        };
        plan(&coming.leaves).await?;
        let mut publication = self.publication(primary, &additions).await?;
        let mut late = Vec::new();
        if additions.is_open() {
            late = self.late_leaves(primary, &coming, &[]).await?;
            plan(&late).await?;
            let later = self.commit_publication(primary, &mut publication, &coming, &late).await?;
            plan(&later).await?;
            late.extend(later);
        }
        Ok((publication, coming.leaves.into_iter().chain(late).collect()))
    }

    /// A feed that has streamed without a copy is to have one: all tables are marked before the first is sent, so that a copy that is cut off
    /// knows what is left. As if somebody asked for them again: consumers have had every change until now, and go on to; of those that only
    /// come they have had none.
    async fn plan_all(
        &self,
        opened: &mut KafkaSink,
        records: &mut Records,
        publication: &Publication,
        coming: &[QualifiedName],
    ) -> Result<(), PipelineError> {
        let Some(progress) = records.progress.clone() else { return Ok(()) };
        let tables = publication.tables.iter().filter(|table| table.schema != snapshot::OWN_SCHEMA);
        let asked_for = |table| CopiedTable { again: !coming.contains(table), ..CopiedTable::default() };
        let planned: Vec<_> = tables.map(|table| (table.clone(), asked_for(table))).collect();
        opened.record(progress, planned.clone()).await?;
        records.copied.extend(planned);
        Ok(())
    }

    /// A producer is taken over only from one that does not stream any more.
    async fn refuse_used_slot(&self, primary: &Primary) -> Result<(), PipelineError> {
        let slot = self.settings.pipeline.slot_name();
        match slot_facts(&primary.sql, &slot).await? {
            Some(facts) if facts.maker().is_some() => {
                create::refuse_knot(&primary.sql, self.name(), &slot, Duration::ZERO).await?;
                Err(PipelineError::NotYet(format!("the slot \"{slot}\" to be made, as an earlier start began")))
            }
            Some(facts) if facts.active => Err(PipelineError::NotYet(format!(
                "the slot \"{slot}\" to be free: the walsender process {} still uses it",
                facts.active_pid.unwrap_or(0)
            ))),
            _ => Ok(()),
        }
    }

    fn kafka_opening(&self, sink: &SinkConfig, publication: &Publication) -> Opening {
        let pipeline = &self.settings.pipeline;
        Opening {
            pipeline: pipeline.name.clone(),
            sink: sink.clone(),
            primary: self.settings.primary.clone(),
            memory_limit_bytes: pipeline.memory_limit_bytes,
            filter: self.filter(publication),
            tables: publication.tables.clone(),
            left_copies: 0,
            heartbeat: self.reporter.heartbeat().clone(),
            feed: self.reporter.feed().clone(),
        }
    }

    /// Finished tables would lack what was committed between their snapshot and a new slot.
    fn refuse_leftovers(&self, sink: &SinkConfig) -> PipelineError {
        PipelineError::Refused(format!(
            "tables of an earlier \"{name}\" were sent to Kafka (records in the topic \"{}\"), but its slot is gone: what was committed \
             since is missing. Start over: walrelay drop {name} --yes",
            sink.progress_topic,
            name = self.name()
        ))
    }

    /// Consumers hold parts of tables.
    fn refuse_unfinished(&self, sink: &SinkConfig) -> PipelineError {
        PipelineError::Refused(format!(
            "initial_copy = false, but the copy of \"{name}\" was begun and is not finished (records in the topic \"{}\"): rows were never \
             sent. Set initial_copy = true to finish it, or start over: walrelay drop {name} --yes",
            sink.progress_topic,
            name = self.name()
        ))
    }

    /// Locks for the initial copy, whose rows go before the stream, and where it tells how far it is; `None` where there is to be none.
    async fn prepare_copy(
        &self,
        primary: &Primary,
        records: &Records,
        publication: &Publication,
    ) -> Result<Option<(PreparedKafka, Arc<CopyProgress>)>, PipelineError> {
        if !self.settings.pipeline.initial_copy {
            return Ok(None);
        }
        let progress = Arc::new(CopyProgress::default());
        let copy = self.kafka_copy(primary, publication, &records.copied, Part::Initial, &progress);
        let prepared = self.reported(&progress, snapshot::prepare_kafka(copy)).await?;
        Ok(Some((prepared, progress)))
    }

    /// What a copy of this part is made of.
    pub(super) fn kafka_copy<'a>(
        &'a self,
        primary: &'a Primary,
        publication: &'a Publication,
        earlier: &'a HashMap<QualifiedName, CopiedTable>,
        part: Part,
        progress: &Arc<CopyProgress>,
    ) -> KafkaCopy<'a> {
        KafkaCopy {
            pipeline: &self.settings.pipeline,
            primary: &self.settings.primary,
            publication: &publication.name,
            tables: &publication.tables,
            identity: &primary.identity,
            earlier,
            part,
            smallest_range_pages: snapshot::SMALLEST_RANGE_PAGES,
            progress: Arc::clone(progress),
            cancel: self.stop.clone(),
        }
    }

    /// Makes what is missing: slot, record, copy. Returns where the stream begins; what was copied stands in `records` then.
    async fn settle_kafka(
        &self,
        primary: &mut Primary,
        opened: &mut KafkaSink,
        beginning: Beginning,
        records: &mut Records,
        copy: Option<(PreparedKafka, Arc<CopyProgress>)>,
        (opening, publication): (&Opening, &Publication),
    ) -> Result<Progress, PipelineError> {
        let (progress, exported) = match beginning {
            Beginning::Resume(_) => {
                let kept = records.progress.clone().unwrap_or_else(|| self.record(primary, Lsn::ZERO));
                (Progress { timeline: primary.identity.timeline, ..kept }, None)
            }
            Beginning::Adopt(lsn) | Beginning::Unrecorded(lsn) => (self.record(primary, lsn), None),
            Beginning::Fresh => {
                // At 0/0 while the slot is made: a start that is cut off here goes on instead of refusing.
                opened.record(self.record(primary, Lsn::ZERO), Vec::new()).await?;
                let snapshot = if copy.is_some() { SnapshotUse::Export } else { SnapshotUse::Nothing };
                let (lsn, name) = self.create_slot(primary, snapshot).await?;
                if copy.is_some() {
                    self.plan_again_for_newcomers(primary, publication).await?;
                }
                (self.record(primary, lsn), name.map(|name| ExportedSnapshot { name, lsn }))
            }
        };
        let is_recorded = matches!(beginning, Beginning::Resume(_));
        let Some((mut prepared, shown)) = copy else {
            if !is_recorded {
                opened.record(progress.clone(), Vec::new()).await?;
            }
            return Ok(progress);
        };
        let import = async {
            match &exported {
                Some(snapshot) => prepared.import(snapshot).await,
                None => prepared.import_own_snapshot().await,
            }
        };
        self.reported(&shown, import).await?;
        let (planned, snapshot_lsn) = (prepared.planned(), Some(prepared.snapshot_lsn()));
        // However the copy ends, one that comes into the set is known for one whose changes were left out.
        let left_out = if planned.is_empty() { Vec::new() } else { left_out(records, publication) };
        if !is_recorded || !planned.is_empty() {
            opened.record(progress.clone(), planned.iter().chain(&left_out).cloned().collect()).await?;
        }
        if !planned.is_empty() {
            self.reporter.state(State::Copying);
            self.reported(&shown, prepared.run(opening)).await?;
        }
        let finished = planned.into_iter().map(|(table, copied)| (table, CopiedTable { snapshot_lsn, ..copied }));
        records.copied.extend(finished.chain(left_out));
        Ok(progress)
    }
}
