//! Gives a sink one batch at a time: a small one within the caller's own task, so that nobody has to be woken between the
//! primary's socket and the sink's; a large one in a task of its own, beside the caller. Beside the batches the sink's flusher makes
//! durable what was committed without waiting for the disk. After an error of either the sink is gone: they are one unit.

use std::fmt;
use std::future::{pending, poll_fn};
use std::pin::Pin;
use std::task::Poll;

use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

use super::postgres::Flusher;
use super::{AnySink, Batch, Receipt, SinkError};
use crate::model::{Applied, Durable};

/// Batches up to this size are small: writing one takes less time than waking another task.
const SMALL_BYTES: u64 = 64 * 1024;

type Work = Pin<Box<dyn Future<Output = (AnySink, Result<Receipt, SinkError>)> + Send>>;
type FlushWork = Pin<Box<dyn Future<Output = (Box<Flusher>, Result<(), SinkError>)> + Send>>;

/// What became of the work.
#[derive(Debug)]
pub enum Outcome {
    /// The batch under way is applied.
    Applied(Receipt),
    /// The flush under way is done: what was applied when it began is durable.
    Durable(Durable),
}

/// A sink with the batch it works on, and its flusher.
pub struct Worker {
    state: State,
    flusher: FlusherState,
    /// The last batch that was applied and is not durable, and that no flush under way covers.
    unflushed: Option<Applied>,
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

/// ```text
/// Idle ──flush──▶ Busy ──done──▶ Idle
///                   └──error──▶ None
/// ```
enum FlusherState {
    Idle(Box<Flusher>),
    /// With what it covers.
    Busy(FlushWork, Applied),
    /// The sink needs none.
    None,
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
    pub fn new(mut sink: AnySink) -> Self {
        let flusher = sink.take_flusher().map_or(FlusherState::None, FlusherState::Idle);
        Self { state: State::Idle(sink), flusher, unflushed: None }
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
            work = first_step(work).await;
        }
        self.state = State::Busy(work);
    }

    /// Whether something is applied and not durable that no flush under way covers, and the flusher is free.
    pub fn may_flush(&self) -> bool {
        self.unflushed.is_some() && matches!(self.flusher, FlusherState::Idle(_))
    }

    /// Begins to make durable what is applied, if there is such a thing and no flush is under way. The call is on its way to the
    /// sink when this returns.
    pub async fn flush(&mut self) {
        let Some(covered) = self.unflushed.filter(|_| self.may_flush()) else { return };
        let FlusherState::Idle(flusher) = std::mem::replace(&mut self.flusher, FlusherState::None) else { return };
        self.unflushed = None;
        self.flusher = FlusherState::Busy(first_step(Box::pin(flusher.flush())).await, covered);
    }

    /// Waits for the end of the batch or of the flush under way; for ever while there is neither. Cancel safe.
    pub async fn outcome(&mut self) -> Result<Outcome, SinkError> {
        tokio::select! {
            biased;
            durable = flushed(&mut self.flusher) => Ok(Outcome::Durable(durable?)),
            receipt = received(&mut self.state) => {
                let receipt = receipt?;
                // A commit that waited for the disk has all before it there too.
                self.unflushed = receipt.durable.is_none().then_some(receipt.applied);
                Ok(Outcome::Applied(receipt))
            }
        }
    }
}

async fn received(state: &mut State) -> Result<Receipt, SinkError> {
    let State::Busy(work) = state else { return pending().await };
    let (sink, result) = work.as_mut().await;
    *state = if result.is_ok() { State::Idle(sink) } else { State::Gone };
    result
}

async fn flushed(state: &mut FlusherState) -> Result<Durable, SinkError> {
    let (work, covered) = match state {
        FlusherState::Busy(work, covered) => (work, *covered),
        FlusherState::Idle(flusher) => return Err(flusher.lost().await),
        FlusherState::None => return pending().await,
    };
    let (flusher, result) = work.as_mut().await;
    *state = if result.is_ok() { FlusherState::Idle(flusher) } else { FlusherState::None };
    result.map(|()| Durable(covered.0))
}

/// Takes a first step, which writes. Work that is done by then gives its outcome again.
async fn first_step<T: Send + 'static>(
    mut work: Pin<Box<dyn Future<Output = T> + Send>>,
) -> Pin<Box<dyn Future<Output = T> + Send>> {
    let done = poll_fn(|context| match work.as_mut().poll(context) {
        Poll::Ready(done) => Poll::Ready(Some(done)),
        Poll::Pending => Poll::Ready(None),
    });
    match done.await {
        Some(done) => Box::pin(std::future::ready(done)),
        None => work,
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
