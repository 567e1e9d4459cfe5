//! Gives a sink its batches: a small one is sent within the caller's own task, so that nobody has to be woken between the
//! primary's socket and the sink's; a large one in a task of its own, beside the caller. Beside the batches the sink's flusher makes
//! durable what was committed without waiting for the disk. After an error of either the sink is gone: they are one unit.

use std::fmt;
use std::future::{pending, poll_fn, ready};
use std::pin::Pin;
use std::task::Poll;

use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

use super::postgres::{Answer, Flusher};
use super::{AnySink, Batch, Receipt, SinkError};
use crate::model::{Applied, Durable};

/// Batches up to this size are small: writing one takes less time than waking another task.
const SMALL_BYTES: u64 = 64 * 1024;

/// With the receipt, if that is not to come later.
type Done = (AnySink, Result<Option<Receipt>, SinkError>);
type Work = Pin<Box<dyn Future<Output = Done> + Send>>;
type FlushWork = Pin<Box<dyn Future<Output = (Box<Flusher>, Result<(), SinkError>)> + Send>>;

/// What became of the work.
#[derive(Debug)]
pub enum Outcome {
    /// The batch that was being sent is on its way: it is ready for another.
    Sent,
    /// The first of the batches under way is applied.
    Applied(Receipt),
    /// The flush under way is done: what was applied when it began is durable.
    Durable(Durable),
}

/// A sink with the batches it works on, and its flusher.
pub struct Worker {
    state: State,
    receipts: mpsc::Receiver<Receipt>,
    flusher: FlusherState,
    /// The last batch that was applied and is not durable, and that no flush under way covers.
    unflushed: Option<Applied>,
}

/// ```text
///   ┌──answers──┐
/// Ready ◀───────┘
/// Ready ──begin──▶ Sending ──sent──▶ Ready
///   └──failure──▶ Sending (mends) ──▶ Ready, or ──error──▶ Gone
/// ```
enum State {
    /// Takes a batch, and waits for answers to those under way.
    Ready(AnySink),
    /// A batch is being sent, or one that failed mended.
    Sending(Work),
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
            State::Ready(_) => "Worker(ready)",
            State::Sending(_) => "Worker(sending)",
            State::Gone => "Worker(gone)",
        })
    }
}

impl Worker {
    /// A worker that waits for its first batch.
    pub fn new(mut sink: AnySink) -> Self {
        let flusher = sink.take_flusher().map_or(FlusherState::None, FlusherState::Idle);
        // Without a sender it is closed at once, and never asked again.
        let receipts = sink.take_receipts().unwrap_or_else(|| mpsc::channel(1).1);
        Self { state: State::Ready(sink), receipts, flusher, unflushed: None }
    }

    /// Whether it takes a batch now. How many may be under way is the caller's to count.
    pub fn is_ready(&self) -> bool {
        matches!(self.state, State::Ready(_))
    }

    /// Begins a batch, behind those under way. A small one is on its way to the sink when this returns.
    ///
    /// # Panics
    /// In debug builds, when it is not ready: the sink is then given up.
    pub async fn begin(&mut self, batch: Batch) {
        let State::Ready(mut sink) = std::mem::replace(&mut self.state, State::Gone) else {
            debug_assert!(false, "a batch for a sink that is busy or gone");
            return;
        };
        let is_small = batch.size_bytes() <= SMALL_BYTES && !sink.may_block();
        let work = async move {
            let result = sink.begin(batch).await;
            (sink, result)
        };
        self.state = if !is_small {
            State::Sending(beside(work))
        } else {
            let mut work: Work = Box::pin(work);
            match first_step(&mut work).await {
                Some((sink, Ok(None))) => State::Ready(sink),
                Some(done) => State::Sending(Box::pin(ready(done))),
                None => State::Sending(work),
            }
        };
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
        let mut work: FlushWork = Box::pin(flusher.flush());
        if let Some(done) = first_step(&mut work).await {
            work = Box::pin(ready(done));
        }
        self.flusher = FlusherState::Busy(work, covered);
    }

    /// Waits for what comes next of the batches or of the flush under way; for ever while there is neither. Cancel safe.
    pub async fn outcome(&mut self) -> Result<Outcome, SinkError> {
        let receipt = loop {
            // A sink that is ready gives receipts only while it is asked here: to wait for them too would wake this very task once more.
            if let Ok(receipt) = self.receipts.try_recv() {
                break receipt;
            }
            let is_sending = matches!(self.state, State::Sending(_));
            tokio::select! {
                biased;
                durable = flushed(&mut self.flusher) => return Ok(Outcome::Durable(durable?)),
                Some(receipt) = self.receipts.recv(), if is_sending => break receipt,
                advanced = advance(&mut self.state) => match advanced? {
                    Advanced::Answered => {}
                    Advanced::Sent => return Ok(Outcome::Sent),
                    Advanced::Done(receipt) => break receipt,
                }
            }
        };
        // A commit that waited for the disk has all before it there too.
        self.unflushed = receipt.durable.is_none().then_some(receipt.applied);
        Ok(Outcome::Applied(receipt))
    }
}

enum Advanced {
    /// Receipts may have come.
    Answered,
    Sent,
    /// With its receipt, which comes nowhere else.
    Done(Receipt),
}

/// Waits until the state is another one, or an answer came. Cancel safe.
async fn advance(state: &mut State) -> Result<Advanced, SinkError> {
    let result = match state {
        State::Ready(sink) => match sink.answer().await {
            Ok(Answer::Committed) => return Ok(Advanced::Answered),
            Ok(Answer::Failed) => {
                mend(state);
                return Ok(Advanced::Answered);
            }
            Err(error) => Err(error),
        },
        State::Sending(work) => match work.as_mut().await {
            (sink, Ok(receipt)) => {
                *state = State::Ready(sink);
                return Ok(receipt.map_or(Advanced::Sent, Advanced::Done));
            }
            (_, Err(error)) => Err(error),
        },
        State::Gone => return pending().await,
    };
    *state = State::Gone;
    result
}

/// The batch that failed goes the slower way, and those behind it are sent again.
fn mend(state: &mut State) {
    if let State::Ready(mut sink) = std::mem::replace(state, State::Gone) {
        *state = State::Sending(beside(async move {
            let result = sink.mend().await;
            (sink, result.map(|()| None))
        }));
    }
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

/// Takes a first step, which writes; what came of it if the work is done by then.
async fn first_step<T: Send + 'static>(work: &mut Pin<Box<dyn Future<Output = T> + Send>>) -> Option<T> {
    poll_fn(|context| match work.as_mut().poll(context) {
        Poll::Ready(done) => Poll::Ready(Some(done)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

/// Runs the work in a task that ends with its future.
fn beside(work: impl Future<Output = Done> + Send + 'static) -> Work {
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
