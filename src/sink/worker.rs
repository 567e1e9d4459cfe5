//! Gives a sink one batch at a time: a small one within the caller's own task, so that nobody has to be woken between the
//! primary's socket and the sink's; a large one in a task of its own, beside the caller. After an error the sink is gone.

use std::fmt;
use std::future::{pending, poll_fn};
use std::pin::Pin;
use std::task::Poll;

use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

use super::{AnySink, Batch, Receipt, SinkError};

/// Batches up to this size are small: writing one takes less time than waking another task.
const SMALL_BYTES: u64 = 64 * 1024;

type Work = Pin<Box<dyn Future<Output = (AnySink, Result<Receipt, SinkError>)> + Send>>;

/// A sink and the batch it works on.
pub struct Worker {
    state: State,
}

/// ```text
/// Idle ──begin──▶ Busy ──receipt──▶ Idle
///                   └───error─────▶ Gone
/// ```
enum State {
    Idle(AnySink),
    Busy(Work),
    Gone,
}

impl fmt::Debug for Worker {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self.state {
            State::Idle(_) => "Worker(idle)",
            State::Busy(_) => "Worker(busy)",
            State::Gone => "Worker(gone)",
        })
    }
}

impl Worker {
    /// A worker that waits for its first batch.
    pub fn new(sink: AnySink) -> Self {
        Self { state: State::Idle(sink) }
    }

    /// Begins a batch. A small one is on its way to the sink when this returns.
    ///
    /// # Panics
    /// In debug builds, when the last batch has no receipt yet: that one is then given up.
    pub async fn begin(&mut self, batch: Batch) {
        let State::Idle(mut sink) = std::mem::replace(&mut self.state, State::Gone) else {
            debug_assert!(false, "a batch for a sink that is busy or gone");
            return;
        };
        let is_small = batch.size_bytes() <= SMALL_BYTES;
        let work = async move {
            let result = sink.apply(batch).await;
            (sink, result)
        };
        let mut work: Work = if is_small { Box::pin(work) } else { beside(work) };
        if is_small {
            // The first step writes; a batch that is done by then is asked for its outcome again by `receipt`.
            if let Some(done) = poll_fn(|context| match work.as_mut().poll(context) {
                Poll::Ready(done) => Poll::Ready(Some(done)),
                Poll::Pending => Poll::Ready(None),
            })
            .await
            {
                work = Box::pin(std::future::ready(done));
            }
        }
        self.state = State::Busy(work);
    }

    /// Waits for the receipt of the batch under way; for ever while there is none. Cancel safe.
    pub async fn receipt(&mut self) -> Result<Receipt, SinkError> {
        let State::Busy(work) = &mut self.state else { return pending().await };
        let (sink, result) = work.as_mut().await;
        self.state = if result.is_ok() { State::Idle(sink) } else { State::Gone };
        result
    }
}

/// Runs the work in a task that ends with its future.
fn beside(work: impl Future<Output = (AnySink, Result<Receipt, SinkError>)> + Send + 'static) -> Work {
    let task = AbortOnDropHandle::new(tokio::spawn(work.in_current_span()));
    Box::pin(async move {
        match task.await {
            Ok(done) => done,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // Only a runtime that shuts down ends it: nobody asks any more.
                Err(_) => pending().await,
            },
        }
    })
}
