//! The way to a started stream towards Kafka. The order matters: own the pipeline, read the record without fencing anybody and
//! refuse a stranger's, only then take the producer over, read again, and stream from there.

use std::collections::HashMap;

use crate::assemble::Spool;
use crate::config::KafkaSink as SinkConfig;
use crate::model::{Lsn, Progress};
use crate::sink::AnySink;
use crate::sink::kafka::transport::{KafkaSink, Opening, Records, Start, read_records, refuse_unfinished};
use crate::sink::postgres::TableFilter;
use crate::source::{Publication, SnapshotUse, identify, slot_facts};

use super::PipelineError;
use super::attempt::{Attempt, Primary};
use super::ownership::{self, Ownership};
use super::resume::Beginning;
use super::stream::Streaming;

impl Attempt<'_> {
    /// Everything up to an open sink and a started stream.
    pub(super) async fn to_kafka(
        &self,
        sink: &SinkConfig,
        spool: Spool,
    ) -> Result<(Ownership, Streaming), PipelineError> {
        refuse_unfinished(sink)?;
        let mut primary = self.primary().await?;
        let slot = self.settings.pipeline.slot_name();
        let ownership =
            ownership::own_on_primary(&self.settings.primary, &primary.sql, self.name(), &slot, self.reporter).await?;
        self.reporter.state(crate::model::State::Starting);
        self.refuse_used_slot(&primary).await?;
        let before = read_records(sink, self.name()).await?;
        // Asked again after the lock was waited for: the primary went on meanwhile.
        primary.identity = identify(&mut primary.replication).await?;
        let first_look = self.kafka_beginning(&mut primary, before.progress.as_ref(), sink).await?;
        let publication = self.publication(&primary, self.additions(&primary, first_look).await?).await?;
        let (mut opened, records) = KafkaSink::open(self.kafka_opening(sink, &publication)).await?;
        primary.identity = identify(&mut primary.replication).await?;
        let beginning = self.kafka_beginning(&mut primary, records.progress.as_ref(), sink).await?;
        let start = self.settle_kafka(&mut primary, &mut opened, beginning, records, &publication).await?;
        let position = start.progress.lsn;
        opened.start(start).await?;
        let sink = AnySink::Kafka(Box::new(opened));
        let streaming = self.start_stream(&primary, &publication.name, position, sink, spool).await?;
        Ok((ownership, streaming))
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
        }
    }

    /// The rules of resume, and that a slot is adopted only where the position is named.
    async fn kafka_beginning(
        &self,
        primary: &mut Primary,
        progress: Option<&Progress>,
        sink: &SinkConfig,
    ) -> Result<Beginning, PipelineError> {
        let beginning = self.beginning(primary, progress, self.settings.pipeline.initial_copy).await?;
        let (name, slot) = (self.name(), self.settings.pipeline.slot_name());
        let refused = |text: String| Err(PipelineError::Refused(text));
        match (beginning, sink.start_lsn) {
            (Beginning::Adopt(confirmed), None) => refused(format!(
                "the slot \"{slot}\" exists on the primary (confirmed to {confirmed}), but the topic \"{}\" has no progress record of \
                 \"{name}\". To adopt the slot, say from where on with start_lsn = \"{confirmed}\" (or the position where its former \
                 reader stopped); to start over: walrelay drop {name}",
                sink.progress_topic
            )),
            (Beginning::Adopt(confirmed), Some(start)) if start < confirmed => refused(format!(
                "start_lsn = \"{start}\" lies before {confirmed}, up to which the slot \"{slot}\" is confirmed: what is between cannot \
                 be sent again. Name a position from {confirmed} on"
            )),
            (Beginning::Adopt(_), Some(start)) if start > primary.identity.flushed_lsn => refused(format!(
                "start_lsn = \"{start}\" lies behind the end of the primary's WAL ({}): what it writes next would be passed over",
                primary.identity.flushed_lsn
            )),
            (Beginning::Adopt(_), Some(start)) => Ok(Beginning::Adopt(start)),
            (Beginning::Fresh, Some(start)) if progress.is_none() => refused(format!(
                "start_lsn = \"{start}\" adopts an existing slot, and the slot \"{slot}\" does not exist: name the slot with `slot`, or \
                 leave start_lsn out"
            )),
            (beginning, _) => Ok(beginning),
        }
    }

    /// Makes what is missing: slot, record. Returns where the stream begins.
    async fn settle_kafka(
        &self,
        primary: &mut Primary,
        opened: &mut KafkaSink,
        beginning: Beginning,
        records: Records,
        publication: &Publication,
    ) -> Result<Start, PipelineError> {
        let progress = match beginning {
            Beginning::Resume(_) => {
                let kept = records.progress.unwrap_or_else(|| self.record(primary, Lsn::ZERO));
                Progress { timeline: primary.identity.timeline, ..kept }
            }
            Beginning::Adopt(lsn) | Beginning::Unrecorded(lsn) => {
                let progress = self.record(primary, lsn);
                opened.record(progress.clone()).await?;
                progress
            }
            Beginning::Fresh if self.settings.pipeline.initial_copy => {
                return Err(PipelineError::Refused(format!(
                    "the initial copy to Kafka is not done by this version of walrelay: set initial_copy = false for \"{}\"",
                    self.name()
                )));
            }
            Beginning::Fresh => {
                // At 0/0 while the slot is made: a start that is cut off here goes on instead of refusing.
                opened.record(self.record(primary, Lsn::ZERO)).await?;
                let (lsn, _) = self.create_slot(primary, SnapshotUse::Nothing).await?;
                let progress = self.record(primary, lsn);
                opened.record(progress.clone()).await?;
                progress
            }
        };
        let skip_until: HashMap<_, _> =
            records.copied.into_iter().map(|(table, copied)| (table, copied.snapshot_lsn)).collect();
        Ok(Start { progress, skip_until, tables: publication.tables.clone() })
    }
}
