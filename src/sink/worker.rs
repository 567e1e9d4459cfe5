//! Runs a sink in a task of its own: batches in, receipts out, in order. The first error ends it; the sink goes with it.

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::Instrument;

use super::{AnySink, Batch, Receipt, SinkError};

/// Batches that may wait for the sink while it works on one. One keeps batches as large as what waited.
const DEPTH: usize = 1;

/// The two ends of a running sink.
#[derive(Debug)]
pub struct Worker {
    /// Takes batches.
    pub batches: mpsc::Sender<Batch>,
    /// Gives a receipt for each, in order; an error is the last.
    pub receipts: mpsc::Receiver<Result<Receipt, SinkError>>,
    /// The task.
    pub task: JoinHandle<()>,
}

/// Starts it.
pub fn start(mut sink: AnySink) -> Worker {
    let (batches, mut incoming) = mpsc::channel::<Batch>(DEPTH);
    let (outgoing, receipts) = mpsc::channel(DEPTH + 1);
    let work = async move {
        while let Some(batch) = incoming.recv().await {
            let result = sink.apply(batch).await;
            let is_error = result.is_err();
            if outgoing.send(result).await.is_err() || is_error {
                break;
            }
        }
    };
    let task = tokio::spawn(work.in_current_span());
    Worker { batches, receipts, task }
}
