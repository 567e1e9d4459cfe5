//! One attempt: from nothing connected to a stream that ends. All safety checks run anew, with the record read anew from the
//! sink: either server may have been replaced since the last one.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::assemble::Spool;
use crate::config::{self, PostgresSink as SinkConfig};
use crate::model::{Copied, Lsn, Progress, State};
use crate::sink::AnySink;
use crate::sink::postgres::{self, Opening, PostgresSink, store};
use crate::sink::stdout::StdoutSink;
use crate::snapshot::{self, Copy, CopyProgress, ExportedSnapshot};
use crate::source::{
    self, Additions, Publication, SlotFacts, SnapshotUse, SourceError, ensure_publication, identify, slot_facts,
    timeline_switch_point,
};
use crate::wire::Connection;

use super::adoption::adoption;
use super::durability::check_durability;
use super::joining::Noticed;
use super::origin;
use super::ownership::{self, Ownership};
use super::primary::{Primary, stream_connection};
use super::refusals::Refusals;
use super::resume::{Beginning, Facts, Holder, beginning};
use super::stream::{self, Streaming};
use super::{PipelineError, Reporter, Settings, create};

/// One attempt of a pipeline.
pub(super) struct Attempt<'a> {
    pub(super) settings: &'a Settings,
    pub(super) reporter: &'a Reporter,
    pub(super) stop: &'a CancellationToken,
    pub(super) noticed: &'a Noticed,
    pub(super) refusals: &'a Refusals,
    /// Whether an earlier one came to a stream.
    pub(super) has_streamed: bool,
}

/// Built with `--no-default-features`.
#[cfg(not(feature = "kafka"))]
pub(super) const NO_KAFKA: &str =
    "this walrelay was built without its Kafka client: build it with the cargo feature \"kafka\" (on by default)";

impl Attempt<'_> {
    /// Runs until stopped (`Ok`) or an error. Before the stream begins, a stop ends it at once: nothing is under way.
    pub(super) async fn run(&self) -> Result<(), PipelineError> {
        self.reporter.state(State::Starting);
        let spool = Spool::open(&self.settings.spool_dir, self.name())?;
        match &self.settings.pipeline.sink {
            config::Sink::Postgres(sink) => {
                let (mut ownership, streaming) = self.unless_stopped(self.to_postgres(sink, spool)).await?;
                Box::pin(stream::run(streaming, Some(&mut ownership), self.reporter, self.stop, self.noticed)).await
            }
            #[cfg(feature = "kafka")]
            config::Sink::Kafka(sink) => {
                let (mut ownership, streaming, again) = self.unless_stopped(self.to_kafka(sink, spool)).await?;
                Box::pin(stream::run(streaming, Some(&mut ownership), self.reporter, self.stop, self.noticed)).await?;
                match again.filter(|_| !self.stop.is_cancelled()) {
                    Some(again) => Err(self.unless_stopped(self.send_again(again)).await?),
                    None => Ok(()),
                }
            }
            #[cfg(not(feature = "kafka"))]
            config::Sink::Kafka(_) => Err(PipelineError::Refused(NO_KAFKA.to_owned())),
            config::Sink::Stdout => {
                let streaming = self.unless_stopped(self.to_stdout(spool)).await?;
                Box::pin(stream::run(streaming, None, self.reporter, self.stop, self.noticed)).await
            }
        }
    }

    async fn unless_stopped<T>(
        &self,
        work: impl Future<Output = Result<T, PipelineError>>,
    ) -> Result<T, PipelineError> {
        // So much happens in there that it would fill a good part of a worker's stack.
        let work = Box::pin(work);
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Err(PipelineError::Stopped),
            result = work => result,
        }
    }

    pub(super) fn name(&self) -> &crate::model::PipelineName {
        &self.settings.pipeline.name
    }

    pub(super) async fn publication(
        &self,
        primary: &Primary,
        additions: &Additions,
    ) -> Result<Publication, PipelineError> {
        let pipeline = &self.settings.pipeline;
        let is_managed = pipeline.publication.is_none();
        let name = pipeline.publication_name();
        match ensure_publication(&primary.sql, &name, is_managed, &pipeline.tables, additions).await {
            // It fitted a while ago: its tables may have other names for a moment.
            Err(SourceError::EmptySet(reason)) if self.has_streamed => {
                Err(PipelineError::NotYet(format!("a table of the set to be there again: {reason}")))
            }
            ensured => Ok(ensured?),
        }
    }

    /// Everything up to an open sink and a started stream.
    async fn to_postgres(&self, sink: &SinkConfig, spool: Spool) -> Result<(Ownership, Streaming), PipelineError> {
        let mut primary = Primary::open(self.settings).await?;
        let slot_name = self.settings.pipeline.slot_name();
        let mut ownership = ownership::own(&sink.url, &primary.sql, self.name(), &slot_name, self.reporter).await?;
        self.reporter.state(State::Starting);
        origin::check_origin(&mut ownership.connection, sink, self.name()).await?;
        check_durability(&mut ownership.connection, sink, self.name()).await?;
        store::ensure_store(&mut ownership.connection).await?;
        let progress = store::durable_progress(&mut ownership.connection, self.name()).await?;
        // Asked again after the record was read: a spare has waited meanwhile, and the primary went on.
        primary.identity = identify(&mut primary.replication).await?;
        let beginning = self.beginning(&mut primary, progress.as_ref(), self.settings.pipeline.initial_copy).await?;
        let additions = self.additions(&primary, beginning).await?;
        let publication = self.publish_for_standby(&primary, sink, additions).await?;
        let ready = Box::pin(self.make_ready(&mut primary, &mut ownership, sink, &publication, beginning));
        let copied = ready.await?;
        let is_read_only = sink.read_only;
        let recorded = progress.as_ref().map(|progress| progress.lsn);
        let binary = Box::pin(self.binary_types(&primary, sink, &publication, recorded)).await?;
        let is_binary = binary.is_some();
        let opening = Opening {
            pipeline: self.name().clone(),
            filter: self.filter(&publication),
            guard_for: is_read_only.then(|| self.settings.primary.clone()),
            copied: self.copied(copied, recorded, &primary, &publication),
            apply_depth: sink.apply_depth,
            apply_connections: sink.apply_connections,
            prefetch_connections: sink.prefetch_connections,
            prefetching: self.reporter.prefetching().clone(),
            binary,
        };
        let opened = PostgresSink::open(&sink.url, opening, self.reporter.heartbeat().clone()).await?;
        let mut opened = opened.ok_or_else(|| {
            PipelineError::Refused(format!(
                "the progress record of \"{}\" vanished from the standby while starting",
                self.name()
            ))
        })?;
        opened.set_timeline(primary.identity.timeline);
        opened.count_fallbacks_in(self.reporter.fallbacks().clone());
        let start = opened.position();
        let is_same_server =
            target_identifier(&mut ownership.connection).await?.as_deref() == Some(&primary.identity.system_identifier);
        let streaming = self
            .start_stream(primary, &publication.name, start, AnySink::Postgres(Box::new(opened)), spool, is_binary)
            .await?;
        Ok((ownership, Streaming { may_hurry: !is_same_server, ..streaming }))
    }

    /// Changes as JSON lines: no record is kept, so each start begins at the slot's confirmed position.
    async fn to_stdout(&self, spool: Spool) -> Result<Streaming, PipelineError> {
        let mut primary = Primary::open(self.settings).await?;
        let beginning = self.beginning(&mut primary, None, false).await?;
        let publication = self.publication(&primary, &Additions::Now).await?;
        let start = match beginning {
            Beginning::Fresh => self.create_slot(&mut primary, SnapshotUse::Nothing).await?.0,
            Beginning::Unrecorded(lsn) | Beginning::Adopt(lsn) | Beginning::Resume(lsn) => lsn,
        };
        let sink = AnySink::Stdout(StdoutSink::new());
        self.start_stream(primary, &publication.name, start, sink, spool, false).await
    }

    /// The rules of resume, over what both servers say now.
    pub(super) async fn beginning(
        &self,
        primary: &mut Primary,
        progress: Option<&Progress>,
        initial_copy: bool,
    ) -> Result<Beginning, PipelineError> {
        let slot_name = self.settings.pipeline.slot_name();
        let slot = slot_facts(&primary.sql, &slot_name).await?;
        if let Some(process_id) = slot.as_ref().and_then(SlotFacts::maker) {
            // An earlier start was cut off, and its walsender has not noticed.
            create::refuse_knot(&primary.sql, self.name(), &slot_name, Duration::ZERO).await?;
            return Err(PipelineError::NotYet(format!(
                "the replication slot \"{slot_name}\" to be made: the walsender process {process_id} waits for the transactions that ran \
                 when it began"
            )));
        }
        let current = primary.identity.timeline;
        let switch_point = match progress {
            Some(progress) if progress.timeline < current => {
                timeline_switch_point(&mut primary.replication, current, progress.timeline).await?
            }
            _ => None,
        };
        let facts = Facts {
            pipeline: self.name(),
            identity: &primary.identity,
            slot_name: &slot_name,
            slot: slot.as_ref(),
            progress,
            initial_copy,
            holder: Holder::of(&self.settings.pipeline.sink),
            switch_point,
        };
        let begun = beginning(&facts).and_then(|begun| match &self.settings.pipeline.sink {
            config::Sink::Kafka(sink) => adoption(&facts, begun, sink.start_lsn),
            config::Sink::Postgres(_) | config::Sink::Stdout => Ok(begun),
        });
        begun.map_err(PipelineError::Refused)
    }

    /// Makes what is missing: slot, record, guards, copy. Returns what the copy already holds.
    async fn make_ready(
        &self,
        primary: &mut Primary,
        ownership: &mut Ownership,
        sink: &SinkConfig,
        publication: &Publication,
        beginning: Beginning,
    ) -> Result<Copied, PipelineError> {
        let pipeline = &self.settings.pipeline;
        let progress = Arc::new(CopyProgress::default());
        let identity = primary.identity.clone();
        let copy = Copy {
            pipeline,
            primary: &self.settings.primary,
            sink,
            publication: &publication.name,
            tables: &publication.tables,
            others: &publication.others,
            identity: &identity,
            smallest_range_pages: snapshot::SMALLEST_RANGE_PAGES,
            progress: Arc::clone(&progress),
            cancel: self.stop.clone(),
        };
        let is_fresh = beginning == Beginning::Fresh;
        let prepared = if pipeline.initial_copy {
            let prepared = self.reported(&progress, Box::pin(snapshot::prepare(copy))).await?;
            if is_fresh && !prepared.earlier().tables.is_empty() {
                return Err(PipelineError::Refused(format!(
                    "the standby has copied tables of an earlier \"{name}\" (table walrelay.copy), but its slot is gone: what was \
                     committed since is missing. Start over: walrelay drop {name} --yes",
                    name = self.name()
                )));
            }
            Some(prepared)
        } else {
            None
        };
        self.guard(ownership, sink, publication).await?;
        let snapshot = self.settle_beginning(primary, ownership, beginning, prepared.is_some()).await?;
        let Some(prepared) = prepared else { return self.copied_before(sink).await };
        if is_fresh {
            self.plan_again_for_newcomers(primary, publication).await?;
        }
        if prepared.tables().next().is_some() {
            self.reporter.state(State::Copying);
        }
        let outcome = self
            .reported(&progress, async {
                let imported = match &snapshot {
                    Some(snapshot) => prepared.import(snapshot).await?,
                    None => prepared.import_own_snapshot().await?,
                };
                Box::pin(imported.run()).await
            })
            .await?;
        Ok(outcome.copied)
    }

    /// What an earlier copy holds, where there is to be none now.
    async fn copied_before(&self, sink: &SinkConfig) -> Result<Copied, PipelineError> {
        let state = snapshot::copied_before(&sink.url, self.name()).await?;
        if state.is_unfinished() {
            return Err(PipelineError::Refused(format!(
                "initial_copy = false, but the copy of \"{name}\" was begun and is not finished (table walrelay.copy on the standby): rows \
                 are missing there. Set initial_copy = true to finish it, or start over: walrelay drop {name} --yes",
                name = self.name()
            )));
        }
        Ok(state.copied())
    }

    /// Puts the read-only guards up, or takes them away.
    async fn guard(
        &self,
        ownership: &mut Ownership,
        sink: &SinkConfig,
        publication: &Publication,
    ) -> Result<(), PipelineError> {
        let connection = &mut ownership.connection;
        if sink.read_only {
            postgres::ensure_guards(connection, self.name(), &self.settings.primary, &publication.tables).await?;
        } else if postgres::remove_guards(connection, self.name()).await? > 0 {
            tracing::info!("read_only = false: the standby's tables take other writers again");
        }
        Ok(())
    }

    /// Creates the slot if it is to be made, and writes the record durably before anything is streamed. The record stands at
    /// 0/0 while the slot is made, so that a start that is cut off here goes on instead of refusing.
    async fn settle_beginning(
        &self,
        primary: &mut Primary,
        ownership: &mut Ownership,
        beginning: Beginning,
        is_copy_wanted: bool,
    ) -> Result<Option<ExportedSnapshot>, PipelineError> {
        let (lsn, snapshot) = match beginning {
            Beginning::Resume(_) => return Ok(None),
            Beginning::Adopt(lsn) | Beginning::Unrecorded(lsn) => (lsn, None),
            Beginning::Fresh => {
                let snapshot = if is_copy_wanted { SnapshotUse::Export } else { SnapshotUse::Nothing };
                let record = self.record(primary, Lsn::ZERO);
                store::write_first_progress(&mut ownership.connection, self.name(), &record).await?;
                let (lsn, name) = self.create_slot(primary, snapshot).await?;
                (lsn, name.map(|name| ExportedSnapshot { name, lsn }))
            }
        };
        let record = self.record(primary, lsn);
        store::write_first_progress(&mut ownership.connection, self.name(), &record).await?;
        Ok(snapshot)
    }

    pub(super) fn record(&self, primary: &Primary, lsn: Lsn) -> Progress {
        Progress {
            system_identifier: primary.identity.system_identifier.clone(),
            timeline: primary.identity.timeline,
            database: primary.identity.database.clone(),
            slot: self.settings.pipeline.slot_name(),
            lsn,
            commit_time: None,
        }
    }

    pub(super) async fn create_slot(
        &self,
        primary: &mut Primary,
        snapshot: SnapshotUse,
    ) -> Result<(Lsn, Option<String>), PipelineError> {
        let slot = self.settings.pipeline.slot_name();
        let Primary { sql, replication, .. } = primary;
        let created = create::create_slot_safely(replication, sql, self.name(), &slot, snapshot, self.reporter).await?;
        Ok((created.consistent_point, created.snapshot_name))
    }

    /// Shows the copy's numbers while it works.
    pub(super) async fn reported<T>(
        &self,
        progress: &CopyProgress,
        work: impl Future<Output = Result<T, snapshot::SnapshotError>>,
    ) -> Result<T, PipelineError> {
        let show = || {
            self.reporter.heartbeat().beat();
            self.reporter.update(|report| report.copy = progress.report());
            self.reporter.waiting_for(progress.waiting_for());
        };
        let mut ticks = tokio::time::interval(std::time::Duration::from_millis(500));
        tokio::pin!(work);
        let result = loop {
            tokio::select! {
                result = &mut work => break result,
                _ = ticks.tick() => show(),
            }
        };
        show();
        Ok(result?)
    }

    pub(super) async fn start_stream(
        &self,
        primary: Primary,
        publication: &str,
        start: Lsn,
        sink: AnySink,
        spool: Spool,
        is_binary: bool,
    ) -> Result<Streaming, PipelineError> {
        let takes_messages = sink.takes_messages();
        // Its walsender must not be the one too many where only one is free (max_wal_senders).
        let Primary { replication, identity, sql } = primary;
        replication.close().await;
        drop(sql);
        let connection = stream_connection(self.settings, &identity).await?;
        let options = source::StreamOptions {
            slot: self.settings.pipeline.slot_name(),
            publications: vec![publication.to_owned()],
            start,
            binary: is_binary,
            messages: takes_messages,
            adaptive_receive: true,
        };
        let stream = source::Stream::start(connection, &options).await?;
        tracing::info!(lsn = %start, slot = %options.slot, binary = is_binary, "streaming from the primary");
        Ok(Streaming {
            settings: self.settings.clone(),
            stream,
            start,
            target: identity.flushed_lsn,
            sink,
            spool,
            may_hurry: true,
            until: None,
        })
    }
}

async fn target_identifier(connection: &mut Connection) -> Result<Option<String>, PipelineError> {
    // Readable by everyone from 14 on; where it is not, the standby is taken as another server.
    let sql = "SELECT system_identifier::text FROM pg_catalog.pg_control_system()";
    ownership::first_value(connection, sql, "reading the standby's system identifier").await
}
