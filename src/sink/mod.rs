//! What takes whole transactions and gives receipts. Never confirms anything to the primary.

mod error;
pub mod kafka;
pub mod postgres;
pub mod stdout;
mod walk;
pub mod worker;

pub use error::{ChangePlace, SinkError};

use std::future::pending;
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use crate::model::{Applied, Durable, Lsn, Timestamp, Transaction};

/// Complete transactions that waited, in commit order, to be written as one unit; or a mere position.
#[derive(Debug)]
pub struct Batch {
    /// May be empty: then only the position is recorded.
    pub transactions: Vec<Transaction>,
    /// What the progress record says after this batch: at least the last transaction's end, further if an idle position
    /// was received behind it.
    pub position: Lsn,
    /// Whether its commit waits for the sink's disk.
    pub commit: Commit,
    /// The beginning of its only transaction is written already.
    pub ahead: Option<WrittenAhead>,
}

/// What was written of a transaction while it was open on the primary.
#[derive(Debug)]
pub struct WrittenAhead {
    /// The session that it is in.
    pub ahead: Box<postgres::Ahead>,
    /// How much of its body.
    pub bytes: u64,
}

/// Whether a commit waits for the sink's disk. A sink that knows only durable commits makes every one durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Commit {
    /// It does: the receipt says that the batch is durable.
    Durable,
    /// It does not: the batch is visible first, and durable with a later flush, beside the next batches.
    Visible,
}

impl Batch {
    /// Bytes of its transactions, as received.
    pub fn size_bytes(&self) -> u64 {
        self.transactions.iter().map(|transaction| transaction.size_bytes).sum()
    }
}

/// What a sink promises after a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// Visible to readers of the sink. Where that is behind `durable`, the same position without transactions waits for it.
    pub applied: Applied,
    /// Survives a crash of the sink, and so does the record that says so. `None`: that is for a later flush to say.
    pub durable: Option<Durable>,
    /// Transactions of the batch.
    pub transactions: u64,
    /// Row changes of the batch.
    pub rows: u64,
    /// Commit time of the last transaction of the batch, if it had one.
    pub commit_time: Option<Timestamp>,
}

/// A sink of any kind.
#[derive(Debug)]
pub enum AnySink {
    /// A Postgres standby.
    Postgres(Box<postgres::PostgresSink>),
    /// A Kafka cluster.
    #[cfg(feature = "kafka")]
    Kafka(Box<kafka::transport::KafkaSink>),
    /// JSON lines.
    Stdout(stdout::StdoutSink),
}

impl AnySink {
    /// Most transactions of one batch. A Kafka transaction costs the same however many it holds; what a batch of Postgres
    /// folds to shrinks with its length where keys come again.
    pub fn batch_limit(&self) -> usize {
        match self {
            #[cfg(feature = "kafka")]
            AnySink::Kafka(_) => 20_000,
            // Smaller ones, so that there are some to write beside each other.
            AnySink::Postgres(sink) if sink.connections() > 1 => 5_000,
            AnySink::Postgres(_) => 50_000,
            AnySink::Stdout(_) => 1000,
        }
    }

    /// Whether logical messages mean something to it.
    pub fn takes_messages(&self) -> bool {
        match self {
            #[cfg(feature = "kafka")]
            AnySink::Kafka(_) => true,
            AnySink::Postgres(_) | AnySink::Stdout(_) => false,
        }
    }

    /// Whether *applied* means that readers see it, of which its record says nothing: that is to be looked at first.
    pub fn waits_for_readers(&self) -> bool {
        match self {
            #[cfg(feature = "kafka")]
            AnySink::Kafka(sink) => sink.waits_for_readers(),
            AnySink::Postgres(_) | AnySink::Stdout(_) => false,
        }
    }

    /// What makes durable what was committed without waiting for the disk, if the sink has it. Once.
    pub(in crate::sink) fn take_flusher(&mut self) -> Option<Box<postgres::Flusher>> {
        match self {
            AnySink::Postgres(sink) => sink.take_flusher(),
            #[cfg(feature = "kafka")]
            AnySink::Kafka(_) => None,
            AnySink::Stdout(_) => None,
        }
    }

    /// Where it is told whether a session that applies waits for a lock, if that matters to the sink.
    pub fn watch_locks(&mut self, lock_waits: watch::Receiver<bool>) {
        if let AnySink::Postgres(sink) = self {
            sink.watch_locks(lock_waits);
        }
    }

    /// Opens sessions that write a transaction while it is open on the primary, if the sink can do that.
    pub fn ahead(&self) -> Option<postgres::AheadOpener> {
        match self {
            AnySink::Postgres(sink) => Some(sink.ahead()),
            #[cfg(feature = "kafka")]
            AnySink::Kafka(_) => None,
            AnySink::Stdout(_) => None,
        }
    }

    /// What is to be looked at on its server beside the batches, if there is something.
    pub fn looks(&self) -> Option<postgres::Looks> {
        match self {
            AnySink::Postgres(sink) => Some(sink.looks()),
            #[cfg(feature = "kafka")]
            AnySink::Kafka(_) => None,
            AnySink::Stdout(_) => None,
        }
    }

    /// Where the receipts come that `begin` does not return. Once.
    pub(in crate::sink) fn take_receipts(&mut self) -> Option<mpsc::Receiver<Receipt>> {
        match self {
            AnySink::Postgres(sink) => sink.take_receipts(),
            #[cfg(feature = "kafka")]
            AnySink::Kafka(_) => None,
            AnySink::Stdout(_) => None,
        }
    }

    /// Most batches that may be under way.
    pub fn depth(&self) -> usize {
        match self {
            AnySink::Postgres(sink) => sink.depth(),
            #[cfg(feature = "kafka")]
            AnySink::Kafka(_) => 1,
            AnySink::Stdout(_) => 1,
        }
    }

    /// How long the way to the sink and back takes, if batches follow each other on it.
    pub fn round_trip(&self) -> Duration {
        match self {
            AnySink::Postgres(sink) => sink.round_trip(),
            #[cfg(feature = "kafka")]
            AnySink::Kafka(_) => Duration::ZERO,
            AnySink::Stdout(_) => Duration::ZERO,
        }
    }

    /// Whether a small batch may hold up its caller, who has others to answer: a pipe may have a reader that rests.
    pub(in crate::sink) fn may_block(&self) -> bool {
        matches!(self, AnySink::Stdout(_))
    }

    /// Begins a batch. Without a receipt it is on its way, and the receipt comes later.
    pub(in crate::sink) async fn begin(&mut self, batch: Batch) -> Result<Option<Receipt>, SinkError> {
        match self {
            AnySink::Postgres(sink) => sink.begin(batch).await,
            #[cfg(feature = "kafka")]
            AnySink::Kafka(sink) => sink.apply(batch).await.map(Some),
            AnySink::Stdout(sink) => tokio::task::block_in_place(|| sink.apply(batch)).map(Some),
        }
    }

    /// Waits for the next answer to batches that were begun; for ever while there is none. Cancel safe.
    pub(in crate::sink) async fn answer(&mut self) -> Result<postgres::Answer, SinkError> {
        match self {
            AnySink::Postgres(sink) => sink.answer().await,
            #[cfg(feature = "kafka")]
            AnySink::Kafka(_) => pending().await,
            AnySink::Stdout(_) => pending().await,
        }
    }

    /// Deals with a batch that failed.
    pub(in crate::sink) async fn mend(&mut self) -> Result<(), SinkError> {
        match self {
            AnySink::Postgres(sink) => sink.mend().await,
            #[cfg(feature = "kafka")]
            AnySink::Kafka(_) => Ok(()),
            AnySink::Stdout(_) => Ok(()),
        }
    }
}
