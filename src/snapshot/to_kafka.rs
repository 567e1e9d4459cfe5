//! The initial copy to Kafka: the same locks, snapshot and pieces as to a standby, but rows are read in text form and go out as
//! events. A table is finished when its record says so; one in work is sent again by the next attempt.
//!
//! ```text
//! prepare_kafka ─▶ locks, what is left ─▶ import ─▶ run: pieces from one queue, a producer for each worker
//! ```

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use postgres_protocol::message::frontend;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::config::{Pipeline, ServerUrl};
use crate::model::{Lsn, PipelineName, PrimaryIdentity, QualifiedName, Timestamp, joined};
use crate::sink::kafka::encode::SnapshotPoint;
use crate::sink::kafka::transport::{CopiedTable, CopyWriter, FirstRow, Opening, Piece, PieceEnd};
use crate::wire::{Connection, ServerError, WireError, frame};

use super::error::{Side, SnapshotError, server};
use super::locks::{self, Locked, Wanted};
use super::plan::{PageRange, PublishedTable, pieces};
use super::progress::CopyProgress;
use super::{ExportedSnapshot, OWN_SCHEMA, command, own_snapshot, progress, published, session, until_cancelled};

/// What to copy.
#[derive(Clone, Debug)]
pub struct KafkaCopy<'a> {
    /// Name and workers.
    pub pipeline: &'a Pipeline,
    /// From here.
    pub primary: &'a ServerUrl,
    /// The publication.
    pub publication: &'a str,
    /// The tables wanted of it, by the names under which their changes arrive.
    pub tables: &'a [QualifiedName],
    /// The primary's version decides which catalog columns there are.
    pub identity: &'a PrimaryIdentity,
    /// What earlier attempts recorded.
    pub earlier: &'a HashMap<QualifiedName, CopiedTable>,
    /// Which of them.
    pub part: Part,
    /// A table is cut only into ranges of at least so many pages.
    pub smallest_range_pages: u64,
    /// Where to tell how far it is.
    pub progress: Arc<CopyProgress>,
    /// Ends every step as soon as possible; what is finished stays recorded.
    pub cancel: CancellationToken,
}

/// Which tables are copied, which decides where in the stream.
#[derive(Clone, Copy, Debug)]
pub enum Part {
    /// All that the initial copy has to send. Nothing was sent before: their rows go before the stream, which leaves out what the
    /// snapshot holds.
    Initial,
    /// Those of which consumers may hold something, because their copy was cut off, they streamed before they were copied, or `walrelay resync`
    /// has marked them: their rows go between their changes, so that what became of it is told. Those too that come into the publication
    /// now: they may have streamed, without a record, as a partition or under another name.
    Again,
    /// Of those only the first: where the others had better wait.
    CutOff,
}

/// Locks are held; nothing is sent yet.
pub struct PreparedKafka {
    pipeline: PipelineName,
    primary: ServerUrl,
    workers_limit: usize,
    smallest_range_pages: u64,
    database: String,
    progress: Arc<CopyProgress>,
    cancel: CancellationToken,
    locked: Option<Locked>,
    /// What is recorded of those that were sent, or begun, before.
    earlier: HashMap<QualifiedName, CopiedTable>,
    is_again: bool,
    snapshot_lsn: Lsn,
    snapshot_xid: Option<u32>,
}

/// Lists what is left to copy and takes the locks that must stand before the snapshot is made.
pub async fn prepare_kafka(copy: KafkaCopy<'_>) -> Result<PreparedKafka, SnapshotError> {
    let cancel = copy.cancel.clone();
    until_cancelled(&cancel, prepare_all(copy)).await
}

async fn prepare_all(copy: KafkaCopy<'_>) -> Result<PreparedKafka, SnapshotError> {
    let wanted = wanted(&copy).await?;
    let workers_limit = copy.pipeline.copy_workers.max(1);
    let locked = if wanted.is_empty() {
        None
    } else {
        let wanted = Wanted {
            url: copy.primary,
            pipeline: &copy.pipeline.name,
            publication: copy.publication,
            tables: &wanted,
            version_number: copy.identity.version_number,
            workers_limit,
            smallest_range_pages: copy.smallest_range_pages,
        };
        Some(locks::take(wanted, &copy.progress).await?).filter(|locked| !locked.tables.is_empty())
    };
    let prepared = PreparedKafka {
        earlier: copy.earlier.clone(),
        is_again: matches!(copy.part, Part::Again | Part::CutOff),
        pipeline: copy.pipeline.name.clone(),
        primary: copy.primary.clone(),
        workers_limit,
        smallest_range_pages: copy.smallest_range_pages,
        database: copy.identity.database.clone(),
        progress: copy.progress,
        cancel: copy.cancel,
        locked,
        snapshot_lsn: Lsn::ZERO,
        snapshot_xid: None,
    };
    prepared.begin_progress();
    Ok(prepared)
}

/// The tables to copy.
async fn wanted(copy: &KafkaCopy<'_>) -> Result<Vec<QualifiedName>, SnapshotError> {
    let recorded =
        |is_it: fn(&CopiedTable) -> bool| move |name: &QualifiedName| copy.earlier.get(name).is_some_and(is_it);
    let those =
        |is_it: &dyn Fn(&QualifiedName) -> bool| copy.tables.iter().filter(|name| is_it(name)).cloned().collect();
    let wants_copy = copy.pipeline.initial_copy;
    let wanted = match copy.part {
        Part::Initial => left(copy).await?,
        Part::CutOff => those(&|name| wants_copy && recorded(CopiedTable::is_unfinished)(name)),
        Part::Again => {
            let left = if wants_copy { left(copy).await? } else { Vec::new() };
            those(&|name| recorded(|copied| copied.again)(name) || left.contains(name))
        }
    };
    Ok(wanted)
}

/// What the initial copy has still to send.
async fn left(copy: &KafkaCopy<'_>) -> Result<Vec<QualifiedName>, SnapshotError> {
    let is_done = |name: &QualifiedName| copy.earlier.get(name).is_some_and(|copied| !copied.is_unfinished());
    let is_left = |name: &&QualifiedName| name.schema != OWN_SCHEMA && !is_done(name);
    let left: Vec<QualifiedName> = copy.tables.iter().filter(is_left).cloned().collect();
    if copy.earlier.is_empty() {
        return Ok(left);
    }
    let is_planned = |name: &QualifiedName| copy.earlier.contains_key(name);
    published::planned_or_named(copy.primary, &copy.pipeline.name, copy.publication, left, is_planned).await
}

impl PreparedKafka {
    /// The tables that will be copied, as they are recorded before.
    pub fn planned(&self) -> Vec<(QualifiedName, CopiedTable)> {
        let planned = |table: &PublishedTable| {
            let before = self.earlier.get(&table.name).copied().unwrap_or_default();
            let skip_until = if self.is_again { before.skip_until } else { self.snapshot_lsn };
            (table.name.clone(), CopiedTable { skip_until, oid: Some(table.oid), ..CopiedTable::default() })
        };
        self.locked.iter().flat_map(|locked| &locked.tables).map(planned).collect()
    }

    /// The position of the imported snapshot: it holds what was committed before.
    pub fn snapshot_lsn(&self) -> Lsn {
        self.snapshot_lsn
    }

    /// Brings all workers under the snapshot of the slot just created. Afterwards its connection may do other things.
    pub async fn import(&mut self, snapshot: &ExportedSnapshot) -> Result<(), SnapshotError> {
        let cancel = self.cancel.clone();
        until_cancelled(&cancel, self.import_all(snapshot)).await
    }

    /// The same with a snapshot of its own, at or after the slot's position: for a copy that begins again.
    pub async fn import_own_snapshot(&mut self) -> Result<(), SnapshotError> {
        let cancel = self.cancel.clone();
        until_cancelled(&cancel, async move {
            let Some(locked) = &self.locked else { return Ok(()) };
            let own = own_snapshot::take(&self.primary, &self.pipeline, &locked.observer, &self.progress).await?;
            let name = own.created.snapshot_name.clone().unwrap_or_default();
            let imported = self.import_all(&ExportedSnapshot { name, lsn: own.created.consistent_point }).await;
            drop(own.connection);
            imported
        })
        .await
    }

    async fn import_all(&mut self, snapshot: &ExportedSnapshot) -> Result<(), SnapshotError> {
        for worker in self.locked.iter_mut().flat_map(|locked| &mut locked.workers) {
            session::import(worker, &snapshot.name).await?;
            if self.snapshot_xid.is_none() {
                self.snapshot_xid = session::snapshot_xid(worker).await?;
            }
        }
        self.snapshot_lsn = snapshot.lsn;
        Ok(())
    }

    /// Sends everything that is left.
    pub async fn run(self, opening: &Opening) -> Result<(), SnapshotError> {
        let cancel = self.cancel.clone();
        let (shown, pipeline) = (Arc::clone(&self.progress), self.pipeline.clone());
        until_cancelled(&cancel, async move {
            tokio::select! {
                copied = self.run_all(opening) => copied,
                () = progress::show(&shown, &pipeline) => Err(SnapshotError::Cancelled),
            }
        })
        .await
    }

    async fn run_all(self, opening: &Opening) -> Result<(), SnapshotError> {
        let planned = self.planned();
        let Self {
            workers_limit, smallest_range_pages, database, progress, locked, snapshot_lsn, snapshot_xid, ..
        } = self;
        let Some(Locked { workers, tables, .. }) = locked else { return Ok(()) };
        let pieces = pieces(&tables, workers_limit, smallest_range_pages, |_| false);
        let queue = schedule(&tables, &pieces);
        tracing::info!(tables = tables.len(), pieces = queue.len(), %snapshot_lsn, "copying");
        let point = SnapshotPoint { lsn: snapshot_lsn, time: Timestamp::now(), xid: snapshot_xid };
        let tables = tables.into_iter().zip(planned).zip(&pieces);
        let tables: Vec<TableWork> =
            tables.map(|((table, (_, copied)), pieces)| TableWork::new(table, copied, pieces.len())).collect();
        let work = Arc::new(Work {
            tables_left: AtomicUsize::new(tables.len()),
            tables,
            queue: Mutex::new(queue),
            first_row: Arc::new(FirstRow::default()),
            snapshot_lsn,
            progress,
        });
        let mut opening = opening.clone();
        opening.memory_limit_bytes /= workers.len().max(1) as u64;
        let mut running = JoinSet::new();
        for (number, primary) in workers.into_iter().enumerate() {
            let writer = CopyWriter::open(&opening, number, database.clone(), point).await?;
            running.spawn(worker(primary, writer, Arc::clone(&work)).in_current_span());
        }
        while let Some(ended) = running.join_next().await {
            joined(ended).map_err(|error| SnapshotError::Refused(format!("a copy worker broke down: {error}")))??;
        }
        Ok(())
    }

    fn begin_progress(&self) {
        let is_done = |copied: &&CopiedTable| copied.snapshot_lsn.is_some() && !copied.left;
        let done: Vec<&CopiedTable> = self.earlier.values().filter(is_done).collect();
        let finished = crate::model::CopyReport {
            tables_total: 0,
            tables_done: done.len() as u64,
            rows: done.iter().map(|copied| copied.rows).sum(),
            bytes: 0,
        };
        let left = self.locked.iter().flat_map(|locked| &locked.tables);
        let (count, rows) = left.fold((0, 0), |(count, rows), table| (count + 1, rows + table.rows_estimated));
        self.progress.begin(finished.tables_done + count, finished, rows);
    }
}

/// Pieces, empty tables first and then large ones: the last one to end shall hold a row, which is marked as the last.
fn schedule(tables: &[PublishedTable], pieces: &[Vec<Option<PageRange>>]) -> VecDeque<(usize, Option<PageRange>)> {
    let mut queue: Vec<(u64, usize, Option<PageRange>)> = Vec::new();
    for (index, (table, ranges)) in tables.iter().zip(pieces).enumerate() {
        let size_pages = table.pages / ranges.len().max(1) as u64;
        queue.extend(ranges.iter().map(|range| (size_pages, index, *range)));
    }
    queue.sort_by_key(|(size_pages, ..)| (*size_pages > 0, std::cmp::Reverse(*size_pages)));
    queue.into_iter().map(|(_, index, range)| (index, range)).collect()
}

struct TableWork {
    published: PublishedTable,
    /// Its record until it is finished.
    planned: CopiedTable,
    /// Locked while a piece ends: the last one must know that all others are committed.
    pieces_left: tokio::sync::Mutex<usize>,
    first_row: Arc<FirstRow>,
    rows: AtomicU64,
}

impl TableWork {
    fn new(published: PublishedTable, planned: CopiedTable, pieces: usize) -> Self {
        Self {
            published,
            planned,
            pieces_left: tokio::sync::Mutex::new(pieces),
            first_row: Arc::new(FirstRow::default()),
            rows: AtomicU64::new(0),
        }
    }
}

struct Work {
    tables: Vec<TableWork>,
    tables_left: AtomicUsize,
    queue: Mutex<VecDeque<(usize, Option<PageRange>)>>,
    first_row: Arc<FirstRow>,
    snapshot_lsn: Lsn,
    progress: Arc<CopyProgress>,
}

impl Work {
    fn next(&self) -> Option<(usize, Option<PageRange>)> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }
}

async fn worker(mut primary: Connection, writer: CopyWriter, work: Arc<Work>) -> Result<(), SnapshotError> {
    while let Some((index, range)) = work.next() {
        let table = &work.tables[index];
        send_piece(&mut primary, &writer, table, range, &work).await?;
    }
    // The locks end with the session; that it says goodbye is a courtesy.
    frontend::terminate(primary.outgoing());
    let _ = primary.flush().await;
    Ok(())
}

async fn send_piece(
    primary: &mut Connection,
    writer: &CopyWriter,
    table: &TableWork,
    range: Option<PageRange>,
    work: &Work,
) -> Result<(), SnapshotError> {
    writer
        .begin(Piece {
            table: table.published.name.clone(),
            columns: table.published.columns.iter().map(|column| column.name.clone()).collect(),
            of_copy: Arc::clone(&work.first_row),
            of_table: Arc::clone(&table.first_row),
        })
        .await?;
    let sql = command::select_rows(&table.published, range);
    let read = read_rows(primary, &sql, writer, &work.progress).await;
    let failed = |error| server(Side::Primary, format!("read the rows of {}", table.published.name), error);
    match &read {
        // The writer failed: its own words count.
        Ok(()) | Err(WireError::Closed) => {}
        Err(_) => return read.map_err(failed),
    }
    let rows = writer.settle().await?;
    read.map_err(failed)?;
    table.rows.fetch_add(rows, Ordering::AcqRel);
    let mut pieces_left = table.pieces_left.lock().await;
    *pieces_left -= 1;
    if *pieces_left > 0 {
        return Ok(writer.end(PieceEnd::Inside).await?);
    }
    let rows = table.rows.load(Ordering::Acquire);
    let copied = CopiedTable { snapshot_lsn: Some(work.snapshot_lsn), rows, ..table.planned };
    let is_last = work.tables_left.fetch_sub(1, Ordering::AcqRel) == 1;
    writer.end(if is_last { PieceEnd::Copy(copied) } else { PieceEnd::Table(copied) }).await?;
    work.progress.table_done();
    tracing::info!(table = %table.published.name, rows, "copied");
    Ok(())
}

/// Runs the SELECT and hands its rows on, as runs of whole `DataRow` messages.
async fn read_rows(
    primary: &mut Connection,
    sql: &str,
    writer: &CopyWriter,
    progress: &CopyProgress,
) -> Result<(), WireError> {
    frontend::query(sql, primary.outgoing())?;
    primary.flush().await?;
    loop {
        let chunk = primary.read_chunk().await?;
        let (mut start, mut at, mut rows) = (0, 0, 0);
        for message in frame::frames(&chunk) {
            let message = message?;
            let end = at + frame::HEADER_BYTES + message.body.len();
            match message.tag {
                b'D' => {
                    rows += 1;
                    at = end;
                    continue;
                }
                b'T' | b'C' | b'N' | b'S' | b'Z' => {}
                b'E' => return Err(WireError::Server(Box::new(ServerError::parse(message.body)))),
                tag => return Err(WireError::Unexpected { tag, during: "reading a table" }),
            }
            hand_on(&chunk.slice(start..at), std::mem::take(&mut rows), writer, progress).await?;
            (start, at) = (end, end);
            if message.tag == b'Z' {
                return Ok(());
            }
        }
        hand_on(&chunk.slice(start..at), rows, writer, progress).await?;
    }
}

async fn hand_on(run: &bytes::Bytes, rows: u64, writer: &CopyWriter, progress: &CopyProgress) -> Result<(), WireError> {
    if run.is_empty() {
        return Ok(());
    }
    progress.add(rows, run.len() as u64);
    writer.rows(run.clone()).await.map_err(|_| WireError::Closed)
}
