//! The initial copy: existing rows from the primary to a Postgres standby, under the snapshot that belongs to a slot's
//! position, parallel and resumable. Never streams a change and never moves a progress record.
//!
//! ```text
//! prepare ──▶ locks on the primary, what is left, what is in the way        (the caller creates the slot)
//!    │
//!    ▼
//! import ──▶ every worker is inside the snapshot                            (the slot's connection is free again)
//!    │
//!    ▼
//! run ──▶ one transaction empties and writes the plan ──▶ pieces, COPY to COPY ──▶ each table `done` with its last rows
//! ```
//!
//! A copy that did not end begins again with `prepare`; finished tables stay, the others get a new snapshot through
//! `import_own_snapshot`. Each finished table remembers its snapshot's position: `CopyOutcome::copied`.

mod agreement;
mod begin;
mod blockers;
mod coming;
mod command;
mod error;
mod format;
mod locks;
mod members;
mod own_snapshot;
mod ownership;
mod plan;
mod progress;
mod published;
mod pump;
mod renamed;
mod session;
mod standby;
pub mod store;
#[cfg(feature = "kafka")]
mod to_kafka;
mod worker;

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::future::Future;
use std::sync::{Arc, Mutex};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::config::{OnExistingRows, Pipeline, PostgresSink, ServerUrl};
use crate::model::{Copied, CopyReport, Lsn, PipelineName, PrimaryIdentity, QualifiedName, joined};
use crate::wire::Connection;
use crate::wire::sql::SqlClient;

use begin::{Beginning, Unfinished};
use locks::{Locked, Wanted};
use plan::PageRange;
use store::{CopyState, TableState};
use worker::{Finished, Sessions, TableWork, Work};

pub use agreement::{Agreement, agreement};
pub use coming::{Noted, Published, Returning, note_set, plan_coming, plan_published};
pub use error::{Side, SnapshotError};
#[cfg(feature = "kafka")]
pub(crate) use members::unpublished;
pub use plan::SMALLEST_RANGE_PAGES;
pub use progress::CopyProgress;
pub use session::COPY_ROLE;
#[cfg(feature = "kafka")]
pub use to_kafka::{KafkaCopy, Part, PreparedKafka, prepare_kafka};
pub use worker::MAY_ANALYZE;

/// Fails where a transaction that the process waits for, a walsender that makes a slot, waits for the locks of this pipeline's copy.
pub async fn refuse_lock_knot(sql: &SqlClient, process_id: i32, pipeline: &PipelineName) -> Result<(), SnapshotError> {
    let failed = |error| error::server(Side::Primary, "look who waits for whom", error);
    match blockers::wait_for_copy(sql, process_id, &session::application_name(pipeline)).await.map_err(failed)? {
        true => Err(SnapshotError::Disturbed(own_snapshot::LOCK_KNOT.to_owned())),
        false => Ok(()),
    }
}

/// What the standby remembers of the pipeline's copy.
pub async fn copied_before(url: &ServerUrl, pipeline: &PipelineName) -> Result<CopyState, SnapshotError> {
    store::load(&session::standby_sql(url, pipeline).await?, pipeline).await
}

/// Where walrelay keeps its own records on a standby. A primary that is itself some relay's standby has it too; copying it
/// would overwrite the records of the relay that writes here.
pub const OWN_SCHEMA: &str = "walrelay";

/// What to copy, from where to where.
#[derive(Clone, Debug)]
pub struct Copy<'a> {
    /// Name, workers, what to do with existing rows.
    pub pipeline: &'a Pipeline,
    /// From here.
    pub primary: &'a ServerUrl,
    /// To here.
    pub sink: &'a PostgresSink,
    /// The publication.
    pub publication: &'a str,
    /// The tables wanted of it, by the names under which their changes arrive.
    pub tables: &'a [QualifiedName],
    /// Those that are not, whose changes will be left out.
    pub others: &'a [QualifiedName],
    /// The primary's version decides which catalog columns there are.
    pub identity: &'a PrimaryIdentity,
    /// A table is cut only into ranges of at least so many pages: `SMALLEST_RANGE_PAGES`, less in tests.
    pub smallest_range_pages: u64,
    /// Where to tell how far it is.
    pub progress: Arc<CopyProgress>,
    /// Ends every step as soon as possible; what is finished stays recorded.
    pub cancel: CancellationToken,
}

/// The snapshot that belongs to a slot just created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportedSnapshot {
    /// Its name; importable while the connection that created the slot stays idle.
    pub name: String,
    /// The slot's consistent point: the snapshot holds exactly what committed below it.
    pub lsn: Lsn,
}

/// What a finished copy tells the stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CopyOutcome {
    /// Changes of a table whose transaction's `commit_lsn` is below its position are in the copy and must be skipped. A table
    /// that is not named here was never copied.
    pub copied: Copied,
    /// All finished tables in numbers, those of earlier attempts too.
    pub report: CopyReport,
}

/// Locks are held, the standby is looked at; nothing is written yet.
pub struct Prepared {
    pipeline: PipelineName,
    workers: usize,
    smallest_range_pages: u64,
    on_existing_rows: OnExistingRows,
    primary: ServerUrl,
    sink: ServerUrl,
    progress: Arc<CopyProgress>,
    cancel: CancellationToken,
    earlier: CopyState,
    unfinished: Vec<Unfinished>,
    others: Vec<QualifiedName>,
    standby: SqlClient,
    /// None of both when nothing is left.
    observer: Option<SqlClient>,
    workers_locked: Vec<Connection>,
}

/// Waits until no other walrelay copies this pipeline, takes the locks that must stand before the snapshot is made, lists what
/// is left to copy and looks whether the standby can take it. Refuses before anything is written, on either server.
pub async fn prepare(copy: Copy<'_>) -> Result<Prepared, SnapshotError> {
    let cancel = copy.cancel.clone();
    until_cancelled(&cancel, prepare_all(copy)).await
}

async fn prepare_all(copy: Copy<'_>) -> Result<Prepared, SnapshotError> {
    let pipeline = &copy.pipeline.name;
    let standby = session::standby_sql(&copy.sink.url, pipeline).await?;
    ownership::take(&standby, pipeline, &copy.progress).await?;
    let earlier = store::load(&standby, pipeline).await?;
    let wanted = left(&copy, &earlier).await?;
    let workers = copy.pipeline.copy_workers.max(1);
    let locked = if wanted.is_empty() {
        None
    } else {
        let wanted = Wanted {
            url: copy.primary,
            pipeline,
            publication: copy.publication,
            tables: &wanted,
            version_number: copy.identity.version_number,
            workers_limit: workers,
            smallest_range_pages: copy.smallest_range_pages,
        };
        Some(locks::take(wanted, &copy.progress).await?)
    };
    let (observer, workers_locked, tables) = match locked {
        Some(Locked { observer, workers, tables }) => (Some(observer), workers, tables),
        None => (None, Vec::new(), Vec::new()),
    };
    let found = standby::tables(&standby, &tables).await?;
    let unfinished = tables.into_iter().zip(found).map(|(published, standby)| {
        let is_ours = matches!(earlier.tables.get(&published.name), Some(TableState::Copying));
        Unfinished { published, standby, is_ours }
    });
    let unfinished = unfinished.collect();
    let prepared = Prepared {
        pipeline: pipeline.clone(),
        workers,
        smallest_range_pages: copy.smallest_range_pages,
        on_existing_rows: copy.pipeline.on_existing_rows,
        primary: copy.primary.clone(),
        sink: copy.sink.url.clone(),
        progress: copy.progress,
        cancel: copy.cancel,
        earlier,
        unfinished,
        others: copy.others.to_vec(),
        standby,
        observer,
        workers_locked,
    };
    begin::refuse_existing_rows(&prepared.standby, prepared.beginning()).await?;
    prepared.begin_progress();
    Ok(prepared)
}

/// The tables to copy.
async fn left(copy: &Copy<'_>, earlier: &CopyState) -> Result<Vec<QualifiedName>, SnapshotError> {
    let is_left = |name: &&QualifiedName| {
        let is_copied = matches!(earlier.tables.get(name), Some(TableState::Left | TableState::Done { .. }));
        name.schema != OWN_SCHEMA && !is_copied
    };
    let left: Vec<QualifiedName> = copy.tables.iter().filter(is_left).cloned().collect();
    if earlier.tables.is_empty() {
        return Ok(left);
    }
    let is_planned = |name: &QualifiedName| earlier.tables.contains_key(name);
    published::planned_or_named(copy.primary, &copy.pipeline.name, copy.publication, left, is_planned).await
}

impl Prepared {
    /// The tables that will be copied.
    pub fn tables(&self) -> impl Iterator<Item = &QualifiedName> {
        self.unfinished.iter().map(|table| &table.published.name)
    }

    /// What earlier attempts recorded. With a slot that did not exist a moment ago it must be empty: finished tables would
    /// lack what was committed between their snapshot and that slot.
    pub fn earlier(&self) -> &CopyState {
        &self.earlier
    }

    /// Opens all workers under the snapshot of the slot just created. Afterwards its connection may do other things.
    pub async fn import(self, snapshot: &ExportedSnapshot) -> Result<Imported, SnapshotError> {
        let cancel = self.cancel.clone();
        until_cancelled(&cancel, self.import_all(snapshot)).await
    }

    /// The same with a snapshot of its own, at or after the slot's position: for a copy that begins again.
    pub async fn import_own_snapshot(self) -> Result<Imported, SnapshotError> {
        let cancel = self.cancel.clone();
        until_cancelled(&cancel, async move {
            let Some(observer) = self.observer.as_ref().filter(|_| !self.unfinished.is_empty()) else {
                return Ok(Imported { prepared: self, snapshot_lsn: Lsn::ZERO, workers: Vec::new() });
            };
            let own = own_snapshot::take(&self.primary, &self.pipeline, observer, &self.progress).await?;
            let name = own.created.snapshot_name.clone().unwrap_or_default();
            let imported = self.import_all(&ExportedSnapshot { name, lsn: own.created.consistent_point }).await;
            drop(own.connection);
            imported
        })
        .await
    }

    async fn import_all(mut self, snapshot: &ExportedSnapshot) -> Result<Imported, SnapshotError> {
        let mut workers = Vec::new();
        for mut primary in std::mem::take(&mut self.workers_locked) {
            session::import(&mut primary, &snapshot.name).await?;
            let standby = session::standby_copy(&self.sink, &self.pipeline).await?;
            workers.push(Sessions { primary, standby });
        }
        Ok(Imported { prepared: self, snapshot_lsn: snapshot.lsn, workers })
    }

    fn beginning(&self) -> Beginning<'_> {
        Beginning {
            pipeline: &self.pipeline,
            on_existing_rows: self.on_existing_rows,
            workers: self.workers,
            smallest_range_pages: self.smallest_range_pages,
            tables: &self.unfinished,
            others: &self.others,
        }
    }

    fn begin_progress(&self) {
        let finished = self.earlier.report();
        let rows_estimated = self.unfinished.iter().map(|table| table.published.rows_estimated).sum();
        self.progress.begin(finished.tables_done + self.unfinished.len() as u64, finished, rows_estimated);
    }
}

/// Every worker is inside the snapshot; nothing is written yet.
pub struct Imported {
    prepared: Prepared,
    snapshot_lsn: Lsn,
    workers: Vec<Sessions>,
}

impl Imported {
    /// Copies everything that is left. Shows its progress on a terminal or in the log.
    pub async fn run(self) -> Result<CopyOutcome, SnapshotError> {
        let cancel = self.prepared.cancel.clone();
        let progress = Arc::clone(&self.prepared.progress);
        let pipeline = self.prepared.pipeline.clone();
        until_cancelled(&cancel, async move {
            tokio::select! {
                outcome = self.run_all() => outcome,
                () = progress::show(&progress, &pipeline) => Err(SnapshotError::Cancelled),
            }
        })
        .await
    }

    async fn run_all(self) -> Result<CopyOutcome, SnapshotError> {
        let Imported { prepared, snapshot_lsn, workers } = self;
        if prepared.unfinished.is_empty() && !prepared.earlier.is_unfinished() {
            return Ok(outcome(&prepared.earlier));
        }
        store::ensure(&prepared.standby).await?;
        let pieces = begin::run(&prepared.standby, prepared.beginning(), &prepared.progress).await?;
        let (tables, queue) = schedule(&prepared.unfinished, &pieces);
        let Prepared { pipeline, observer, progress, mut standby, cancel, .. } = prepared;
        if let Some(observer) = observer {
            // Notes which tables these are.
            renamed::follow(&observer, &mut standby, &pipeline).await?;
        }
        if !tables.is_empty() {
            tracing::info!(tables = tables.len(), pieces = queue.len(), %snapshot_lsn, "copying");
            let queue = Mutex::new(queue);
            let work = Work { pipeline: pipeline.clone(), snapshot_lsn, tables, queue, progress };
            if let Some(Finished { standby, tables }) = work_off(work, workers).await? {
                let analyzing = worker::analyze(standby, tables);
                tokio::spawn(cancel.run_until_cancelled_owned(analyzing).in_current_span());
            }
        }
        Ok(outcome(&store::load(&standby, &pipeline).await?))
    }
}

fn outcome(state: &CopyState) -> CopyOutcome {
    CopyOutcome { copied: state.copied(), report: state.report() }
}

/// The tables with their formats, and their pieces: large ones first, so that the last ones to end are small.
fn schedule(
    unfinished: &[Unfinished],
    pieces: &[Vec<Option<PageRange>>],
) -> (Vec<TableWork>, VecDeque<(usize, Option<PageRange>)>) {
    let mut queue: Vec<(u64, usize, Option<PageRange>)> = Vec::new();
    let mut tables = Vec::new();
    for (index, (table, ranges)) in unfinished.iter().zip(pieces).enumerate() {
        let size_pages = table.published.pages / ranges.len().max(1) as u64;
        queue.extend(ranges.iter().map(|range| (size_pages, index, *range)));
        let format = table.standby.format(&table.published);
        tables.push(TableWork::new(table.published.clone(), format, ranges.len()));
    }
    queue.sort_by_key(|(size_pages, ..)| Reverse(*size_pages));
    (tables, queue.into_iter().map(|(_, index, range)| (index, range)).collect())
}

/// Runs the workers; returns all tables, with a session to gather their statistics. That begins when nothing is left to copy, for it
/// reads the tables again, and is not waited for: the rows are there, and streaming may begin. The first error ends all workers: their
/// sessions are dropped, and what they had not committed is gone.
async fn work_off(work: Work, workers: Vec<Sessions>) -> Result<Option<Finished>, SnapshotError> {
    let work = Arc::new(work);
    let mut running = JoinSet::new();
    for sessions in workers {
        running.spawn(worker::run(sessions, Arc::clone(&work)).in_current_span());
    }
    let mut all: Option<Finished> = None;
    while let Some(ended) = running.join_next().await {
        let mut finished =
            joined(ended).map_err(|error| SnapshotError::Refused(format!("a copy worker broke down: {error}")))??;
        if let Some(earlier) = all.take() {
            finished.tables.extend(earlier.tables);
            worker::close(earlier.standby).await;
        }
        all = Some(finished);
    }
    Ok(all)
}

async fn until_cancelled<T>(
    cancel: &CancellationToken,
    work: impl Future<Output = Result<T, SnapshotError>>,
) -> Result<T, SnapshotError> {
    tokio::select! {
        biased;
        () = cancel.cancelled() => Err(SnapshotError::Cancelled),
        result = work => result,
    }
}
