//! Applies batches: one target transaction each, the progress row moved in it. After any error the session is thrown away.

use std::collections::HashMap;

use bytes::Bytes;

use crate::config::{ServerUrl, TableSet};
use crate::model::{Applied, Durable, Heartbeat, Lsn, PipelineName, Progress, QualifiedName, Transaction};
use crate::wire::frame::frames;
use crate::wire::replication::{ReplicationMessage, parse};

use super::super::{Batch, Receipt, SinkError};
use super::change::{Purpose, explain};
use super::open::open_apply_session;
use super::session::{Parameter, Pipelined};
use super::store::{self, MOVE_PROGRESS, MOVE_PROGRESS_TYPES};
use super::writer::{Origin, WriteError, Writer};

/// Which relations of the stream are applied.
#[derive(Clone, Debug)]
pub enum TableFilter {
    /// Whatever the publication sends: it is ours.
    All,
    /// Somebody else's publication: only these tables, and those of the set.
    Only {
        /// The pipeline's patterns.
        set: TableSet,
        /// Published names that belong to it for another reason: partitions of a wanted table.
        names: Vec<QualifiedName>,
    },
}

impl TableFilter {
    /// Whether the relation's changes are applied.
    pub fn contains(&self, name: &QualifiedName) -> bool {
        match self {
            TableFilter::All => true,
            TableFilter::Only { set, names } => set.contains(name) || names.contains(name),
        }
    }
}

/// What a sink is opened for.
#[derive(Clone, Debug)]
pub struct Opening {
    /// The pipeline.
    pub pipeline: PipelineName,
    /// Which relations.
    pub filter: TableFilter,
    /// The primary to name in the guards' hint; `None` when the standby's tables are not read-only.
    pub guard_for: Option<ServerUrl>,
    /// Changes of a table in transactions whose commit record starts below this are already in its copy.
    pub skip_until: HashMap<QualifiedName, Lsn>,
}

/// An apply session.
#[derive(Debug)]
pub struct PostgresSink {
    writer: Writer,
    opening: Opening,
    progress: Progress,
    heartbeat: Heartbeat,
}

/// Names of the statements prepared at the start.
const BEGIN: &str = "walrelay_begin";
const COMMIT: &str = "walrelay_commit";
const MOVE: &str = "walrelay_move";

impl PostgresSink {
    /// Opens the session and reads the progress row durably. `None`: the standby has no record of this pipeline.
    pub async fn open(url: &ServerUrl, opening: Opening, heartbeat: Heartbeat) -> Result<Option<Self>, SinkError> {
        let mut connection = open_apply_session(url, &opening.pipeline).await?;
        let Some(progress) = store::durable_progress(&mut connection, &opening.pipeline).await? else {
            return Ok(None);
        };
        let mut pipelined = Pipelined::new(connection);
        for (name, sql, types) in
            [(BEGIN, "BEGIN", &[][..]), (COMMIT, "COMMIT", &[]), (MOVE, MOVE_PROGRESS, MOVE_PROGRESS_TYPES)]
        {
            pipelined.parse(name, sql, types).map_err(SinkError::wire("preparing statements on the standby"))?;
        }
        let mut sink = Self { writer: Writer::new(pipelined), opening, progress, heartbeat };
        sink.writer.sync().await.map_err(|error| sink.explain(error))?;
        Ok(Some(sink))
    }

    /// Where the durable record stands: it began with what the standby said, and each batch moves it on.
    pub fn position(&self) -> Lsn {
        self.progress.lsn
    }

    /// The primary's timeline for the records to come.
    pub fn set_timeline(&mut self, timeline: u32) {
        self.progress.timeline = timeline;
    }

    /// Applies a batch and commits it durably.
    pub async fn apply(&mut self, batch: Batch) -> Result<Receipt, SinkError> {
        match self.apply_batch(batch).await {
            Ok(receipt) => Ok(receipt),
            Err(error) => Err(self.explain(error)),
        }
    }

    fn explain(&self, error: WriteError) -> SinkError {
        match error {
            WriteError::Failure(failure) => explain(*failure, self.opening.pipeline.as_str(), self.progress.lsn),
            WriteError::Sink(error) => error,
        }
    }

    async fn apply_batch(&mut self, mut batch: Batch) -> Result<Receipt, WriteError> {
        let context = || SinkError::wire("applying a batch on the standby");
        self.writer.pipelined.execute(BEGIN, std::iter::empty(), Purpose::Control).map_err(context())?;
        let mut rows = 0;
        for transaction in &mut batch.transactions {
            rows += transaction.rows;
            self.apply_transaction(transaction).await?;
        }
        if self.writer.take_counted() {
            self.writer.settle().await?;
        }
        let commit_time = batch.transactions.last().map(|transaction| transaction.commit_time);
        self.move_progress(batch.position, commit_time.map(|time| time.0.to_be_bytes()))?;
        self.writer.pipelined.execute(COMMIT, std::iter::empty(), Purpose::Control).map_err(context())?;
        self.writer.sync().await?;
        self.progress.lsn = batch.position;
        self.progress.commit_time = commit_time.or(self.progress.commit_time);
        Ok(Receipt {
            applied: Applied(batch.position),
            durable: Durable(batch.position),
            transactions: batch.transactions.len() as u64,
            rows,
            commit_time,
        })
    }

    async fn apply_transaction(&mut self, transaction: &mut Transaction) -> Result<(), WriteError> {
        let origin = Origin { commit_lsn: transaction.commit_lsn, is_streamed: transaction.streamed };
        while let Some(chunk) = transaction.next_chunk().map_err(SinkError::Spool)? {
            self.heartbeat.beat();
            for frame in frames(&chunk) {
                let frame = frame.map_err(SinkError::wire("reading a received transaction"))?;
                let message = parse(frame.body).map_err(SinkError::wire("reading a received transaction"))?;
                if let ReplicationMessage::XLogData { payload, .. } = message {
                    let payload: Bytes = chunk.slice_ref(payload);
                    self.writer.write(&payload, origin, &self.opening).await?;
                }
            }
        }
        Ok(())
    }

    fn move_progress(&mut self, position: Lsn, commit_time: Option<[u8; 8]>) -> Result<(), WriteError> {
        let (new, old) = (position.0.to_be_bytes(), self.progress.lsn.0.to_be_bytes());
        let timeline = i64::from(self.progress.timeline).to_be_bytes();
        let parameters = [
            Parameter::Binary(&new),
            commit_time.as_ref().map_or(Parameter::Null, |time| Parameter::Binary(time)),
            Parameter::Text(self.opening.pipeline.as_str().as_bytes()),
            Parameter::Binary(&old),
            Parameter::Text(self.progress.system_identifier.as_bytes()),
            Parameter::Text(self.progress.slot.as_str().as_bytes()),
            Parameter::Binary(&timeline),
        ];
        let moved = self.writer.pipelined.execute(MOVE, parameters.into_iter(), Purpose::Progress);
        Ok(moved.map_err(SinkError::wire("moving the progress row"))?)
    }
}
