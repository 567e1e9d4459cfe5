//! The way to a started stream towards Kafka. The order matters: own the pipeline, read the record without fencing anybody and
//! refuse a stranger's, only then take the producer over, read again, and stream from there.

use std::sync::Arc;

use crate::assemble::Spool;
use crate::config::KafkaSink as SinkConfig;
use crate::model::{Lsn, Progress, State};
use crate::sink::AnySink;
use crate::sink::kafka::transport::{CopiedTable, KafkaSink, Opening, Records, Start, mark_copied, read_records};
use crate::sink::postgres::TableFilter;
use crate::snapshot::{self, CopyProgress, ExportedSnapshot, KafkaCopy, PreparedKafka};
use crate::source::{Additions, Publication, SnapshotUse, identify, slot_facts};

use super::PipelineError;
use super::again::Again;
use super::attempt::{Attempt, Primary};
use super::ownership::{self, Ownership};
use super::resume::Beginning;
use super::stream::Streaming;

impl Attempt<'_> {
    /// Everything up to an open sink and a started stream; with tables that are to be sent again once the stream has come to an end
    /// before their snapshot.
    pub(super) async fn to_kafka(
        &self,
        sink: &SinkConfig,
        spool: Spool,
    ) -> Result<(Ownership, Streaming, Option<Again>), PipelineError> {
        let wants_copy = self.settings.pipeline.initial_copy;
        let mut primary = self.primary().await?;
        let slot = self.settings.pipeline.slot_name();
        let ownership =
            ownership::own_on_primary(&self.settings.primary, &primary.sql, self.name(), &slot, self.reporter).await?;
        self.reporter.state(State::Starting);
        self.refuse_used_slot(&primary).await?;
        let before = read_records(sink, self.name()).await?;
        // Asked again after the lock was waited for: the primary went on meanwhile.
        primary.identity = identify(&mut primary.replication).await?;
        let first_look = self.beginning(&mut primary, before.progress.as_ref(), wants_copy).await?;
        let additions = self.additions(&primary, first_look).await?;
        self.plan_coming_events(&primary, sink, additions, &before).await?;
        let publication = self.publication(&primary, additions).await?;
        let opening = self.kafka_opening(sink, &publication);
        let (mut opened, records) = KafkaSink::open(opening.clone()).await?;
        primary.identity = identify(&mut primary.replication).await?;
        let beginning = self.beginning(&mut primary, records.progress.as_ref(), wants_copy).await?;
        let copied = records.copied.clone();
        let start = self.settle_kafka(&mut primary, &mut opened, beginning, records, &opening, &publication).await?;
        let again = self.prepare_again(&primary, &opening, &publication, &copied).await?;
        let position = start.progress.lsn;
        opened.start(start).await?;
        let sink = AnySink::Kafka(Box::new(opened));
        let streaming = self.start_stream(primary, &publication.name, position, sink, spool, false).await?;
        let until = again.as_ref().map(Again::until);
        Ok((ownership, Streaming { until, ..streaming }, again))
    }

    /// Records, where tables were copied before, those that are about to come into the publication: it alone does not tell a partition
    /// that came with a new table from one of an old table, whose rows the stream has carried from the first on.
    async fn plan_coming_events(
        &self,
        primary: &Primary,
        sink: &SinkConfig,
        additions: Additions,
        before: &Records,
    ) -> Result<(), PipelineError> {
        if before.copied.is_empty() {
            return Ok(());
        }
        let coming = self.coming(primary, additions).await?.into_iter();
        let planned = CopiedTable { snapshot_lsn: None, rows: 0, again: false };
        let new = coming.filter(|table| !before.copied.contains_key(table)).map(|table| (table, planned));
        let new: Vec<_> = new.collect();
        if !new.is_empty() {
            mark_copied(sink, new).await?;
        }
        Ok(())
    }

    /// A producer is taken over only from one that does not stream any more.
    async fn refuse_used_slot(&self, primary: &Primary) -> Result<(), PipelineError> {
        let slot = self.settings.pipeline.slot_name();
        match slot_facts(&primary.sql, &slot).await? {
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
            filter: if publication.is_managed {
                TableFilter::All
            } else {
                TableFilter::Only { set: pipeline.tables.clone(), names: publication.tables.clone() }
            },
            tables: publication.tables.clone(),
            heartbeat: self.reporter.heartbeat().clone(),
            feed: self.reporter.feed().clone(),
        }
    }

    /// Makes what is missing: slot, record, copy. Returns where the stream begins.
    async fn settle_kafka(
        &self,
        primary: &mut Primary,
        opened: &mut KafkaSink,
        beginning: Beginning,
        records: Records,
        opening: &Opening,
        publication: &Publication,
    ) -> Result<Start, PipelineError> {
        let is_fresh = beginning == Beginning::Fresh;
        if is_fresh && !records.skip_until().is_empty() {
            return Err(PipelineError::Refused(format!(
                "tables of an earlier \"{name}\" were sent to Kafka (records in the topic \"{}\"), but its slot is gone: what was committed \
                 since is missing. Start over: walrelay drop {name}",
                opening.sink.progress_topic,
                name = self.name()
            )));
        }
        let copy_progress = Arc::new(CopyProgress::default());
        let identity = primary.identity.clone();
        let mut prepared = match self.settings.pipeline.initial_copy {
            false => None,
            true => {
                let copy = KafkaCopy {
                    pipeline: &self.settings.pipeline,
                    primary: &self.settings.primary,
                    publication: &publication.name,
                    tables: &publication.tables,
                    identity: &identity,
                    earlier: &records.copied,
                    again: false,
                    smallest_range_pages: snapshot::SMALLEST_RANGE_PAGES,
                    progress: Arc::clone(&copy_progress),
                    cancel: self.stop.clone(),
                };
                Some(self.reported(&copy_progress, snapshot::prepare_kafka(copy)).await?)
            }
        };
        let planned = prepared.as_ref().map(PreparedKafka::tables).unwrap_or_default();
        let (progress, exported) = match beginning {
            Beginning::Resume(_) => {
                let kept = records.progress.clone().unwrap_or_else(|| self.record(primary, Lsn::ZERO));
                (Progress { timeline: primary.identity.timeline, ..kept }, None)
            }
            Beginning::Adopt(lsn) | Beginning::Unrecorded(lsn) => (self.record(primary, lsn), None),
            Beginning::Fresh => {
                // At 0/0 while the slot is made: a start that is cut off here goes on instead of refusing.
                opened.record(self.record(primary, Lsn::ZERO), Vec::new()).await?;
                let snapshot = if prepared.is_some() { SnapshotUse::Export } else { SnapshotUse::Nothing };
                let (lsn, name) = self.create_slot(primary, snapshot).await?;
                (self.record(primary, lsn), name.map(|name| ExportedSnapshot { name, lsn }))
            }
        };
        if let Some(prepared) = prepared.as_mut() {
            self.reported(&copy_progress, async {
                match &exported {
                    Some(snapshot) => prepared.import(snapshot).await,
                    None => prepared.import_own_snapshot().await,
                }
            })
            .await?;
        }
        if !matches!(beginning, Beginning::Resume(_)) || !planned.is_empty() {
            opened.record(progress.clone(), planned.clone()).await?;
        }
        let mut skip_until = records.skip_until();
        if let Some(prepared) = prepared.filter(|_| !planned.is_empty()) {
            self.reporter.state(State::Copying);
            skip_until.extend(self.reported(&copy_progress, prepared.run(opening)).await?);
        }
        Ok(Start { progress, skip_until, tables: publication.tables.clone() })
    }
}
