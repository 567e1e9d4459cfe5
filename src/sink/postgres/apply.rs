//! The sink itself: an open apply session, where it stands, and the rule that after any error it is good for nothing.

use crate::config::ServerUrl;
use crate::model::{Fallbacks, Heartbeat, Lsn, Progress};

use super::super::{Batch, Commit, Receipt, SinkError};
use super::ahead::AheadOpener;
use super::batch::Applier;
use super::flusher::Flusher;
use super::open::open_apply_session;
use super::opening::Opening;
use super::session::Pipelined;
use super::store;
use super::tables::Tables;
use super::unit::Unit;

/// An apply session. It lives as long as one replication session; after an error it is opened anew.
#[derive(Debug)]
pub struct PostgresSink {
    /// Gone after an error, and while a batch is under way: a batch that is given up half-way drops the connection, and the
    /// server rolls back.
    applier: Option<Applier>,
    /// Until it is taken.
    flusher: Option<Box<Flusher>>,
    ahead: AheadOpener,
    /// Whether somebody took the flusher: only then a commit need not wait for the disk.
    is_flushed_elsewhere: bool,
    tables: Tables,
    progress: Progress,
    heartbeat: Heartbeat,
}

impl PostgresSink {
    /// Opens the session and reads the progress row durably. `None`: the standby has no record of this pipeline. The caller
    /// owns the pipeline: an earlier apply session of it is ended.
    pub async fn open(url: &ServerUrl, opening: Opening, heartbeat: Heartbeat) -> Result<Option<Self>, SinkError> {
        let mut connection = open_apply_session(url, &opening.pipeline).await?;
        let Some((progress, place)) = store::durable_row(&mut connection, &opening.pipeline).await? else {
            return Ok(None);
        };
        let unit = Unit::of(&mut connection).await?;
        let flusher = Flusher::open(url, &opening.pipeline, &mut connection, &unit).await?;
        let ahead = AheadOpener {
            url: url.clone(),
            opening: opening.clone(),
            unit,
            progress: progress.clone(),
            heartbeat: heartbeat.clone(),
        };
        let applier = Applier::new(Pipelined::new(connection), opening.pipeline.as_str(), place.into())?;
        Ok(Some(Self {
            applier: Some(applier),
            flusher,
            ahead,
            is_flushed_elsewhere: false,
            tables: Tables::new(opening),
            progress,
            heartbeat,
        }))
    }

    /// What makes durable what was committed without waiting for the disk, if there is one. Who takes it uses it: from now on a
    /// batch may ask for such a commit.
    pub(in crate::sink) fn take_flusher(&mut self) -> Option<Box<Flusher>> {
        let flusher = self.flusher.take();
        self.is_flushed_elsewhere |= flusher.is_some();
        flusher
    }

    /// Opens the sessions that write a transaction while it is open on the primary.
    pub(in crate::sink) fn ahead(&self) -> AheadOpener {
        self.ahead.clone()
    }

    /// Where the record stands: it began with what the standby said, durably, and each batch moves it on.
    pub fn position(&self) -> Lsn {
        self.progress.lsn
    }

    /// The primary's timeline for the records to come.
    pub fn set_timeline(&mut self, timeline: u32) {
        self.progress.timeline = timeline;
    }

    /// Where it is counted when changes that should go together are written row by row.
    pub fn count_fallbacks_in(&mut self, fallbacks: Fallbacks) {
        if let Some(applier) = &mut self.applier {
            applier.count_fallbacks_in(fallbacks);
        }
    }

    /// Applies a batch as one transaction; on return it is visible, and on the standby's disk if the receipt says so. After an error, or if the
    /// future is dropped, nothing of it was recorded, or its fate is unknown (a connection lost during the commit): only the
    /// progress row, read durably by a new `open`, tells.
    pub async fn apply(&mut self, mut batch: Batch) -> Result<Receipt, SinkError> {
        if batch.position < self.progress.lsn {
            return Err(misused("the batch ends before what is applied"));
        }
        if !self.is_flushed_elsewhere {
            batch.commit = Commit::Durable;
        }
        let mut applier = self.applier.take().ok_or_else(|| misused("it failed before"))?;
        let receipt = match applier.finish_ahead(&mut self.tables, &self.progress, &mut batch).await? {
            Some(receipt) => receipt,
            None => applier.apply(&mut self.tables, &self.progress, &self.heartbeat, batch).await?,
        };
        self.applier = Some(applier);
        self.progress.lsn = receipt.applied.0;
        self.progress.commit_time = receipt.commit_time.or(self.progress.commit_time);
        Ok(receipt)
    }
}

/// The sink was used out of order: our own mistake, said instead of panicking.
fn misused(reason: &str) -> SinkError {
    SinkError::Refused(format!("the sink takes no batch: {reason}; this is a fault of walrelay, please report it"))
}
