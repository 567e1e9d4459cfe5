//! The sink as the pipeline knows it: a batch in, a receipt out. The client's calls block, so they run on a thread of their own,
//! which ends with the sink.

use std::thread;

use tokio::runtime::Handle;
use tokio::sync::mpsc;

use crate::config::KafkaSink as Settings;
use crate::config::kafka::ApplyMeans;
use crate::model::{Lsn, PipelineName, Progress, QualifiedName, joined};

use super::answer::{Answer, attempt, awaited, broken_down, ended};
use super::catalog::Catalog;
use super::open;
use super::opening::Opening;
use super::producer::Halt;
use super::progress::{CopiedTable, Records};
use super::reader;
use super::session::{Session, Start};
use crate::sink::{Batch, Receipt, SinkError};

/// Orders that may wait; each is answered before the next is given.
const ORDERS_LIMIT: usize = 1;

enum Order {
    Record(Progress, Vec<(QualifiedName, CopiedTable)>, Answer<()>),
    Start(Box<Start>, Answer<()>),
    Apply(Batch, Answer<Receipt>),
}

/// A producer on its thread. It lives as long as one replication session; after an error it is opened anew.
#[derive(Debug)]
pub struct KafkaSink {
    orders: mpsc::Sender<Order>,
    position: Lsn,
    waits_for_readers: bool,
    halt: Halt,
}

impl Drop for KafkaSink {
    fn drop(&mut self) {
        self.halt.halt();
    }
}

/// Halts what it guards when the waiting future is dropped.
struct HaltOnDrop(Halt);

impl Drop for HaltOnDrop {
    fn drop(&mut self) {
        self.0.halt();
    }
}

/// Reads what the progress topic says of a pipeline, without fencing anybody.
pub async fn read_records(settings: &Settings, pipeline: &PipelineName) -> Result<Records, SinkError> {
    let (settings, pipeline) = (settings.clone(), pipeline.clone());
    in_background(move |halt| reader::look_at_records(&settings, &pipeline, halt)).await
}

/// Runs what blocks where that is allowed; it is told to halt when nobody waits for it any more.
pub(super) async fn in_background<T: Send + 'static>(
    work: impl FnOnce(&Halt) -> Result<T, SinkError> + Send + 'static,
) -> Result<T, SinkError> {
    let guard = HaltOnDrop(Halt::default());
    let halt = guard.0.clone();
    let span = tracing::Span::current();
    let working = tokio::task::spawn_blocking(move || span.in_scope(|| work(&halt)));
    joined(working.await).map_err(broken_down)?
}

impl KafkaSink {
    /// Makes missing topics, fences off every earlier producer, settles what it left in doubt, and reads the records again.
    /// The caller owns the pipeline, and nobody else's record stands under its transactional id.
    pub async fn open(opening: Opening) -> Result<(Self, Records), SinkError> {
        let (orders, incoming) = mpsc::channel(ORDERS_LIMIT);
        let (opened, wait) = awaited();
        let halt = Halt::default();
        let waits_for_readers = opening.sink.apply_means == ApplyMeans::Readable;
        let sink = Self { orders, position: Lsn::ZERO, waits_for_readers, halt: halt.clone() };
        let runtime = Handle::current();
        let span = tracing::Span::current();
        let started = thread::Builder::new().name("walrelay-kafka".to_owned()).spawn(move || {
            let _entered = span.enter();
            work(opening, runtime, &halt, opened, incoming);
        });
        started.map_err(|error| broken_down(error.to_string()))?;
        let records = wait.given().await?;
        Ok((sink, records))
    }

    /// Writes a record that no event belongs to, durably, together with the plan of a copy.
    pub async fn record(
        &mut self,
        progress: Progress,
        planned: Vec<(QualifiedName, CopiedTable)>,
    ) -> Result<(), SinkError> {
        self.order(|answer| Order::Record(progress, planned, answer)).await
    }

    /// Makes it ready for batches behind this record.
    pub async fn start(&mut self, start: Start) -> Result<(), SinkError> {
        self.position = start.progress.lsn;
        self.order(|answer| Order::Start(Box::new(start), answer)).await
    }

    /// `apply_means = "readable"`.
    pub fn waits_for_readers(&self) -> bool {
        self.waits_for_readers
    }

    /// Where the durable record stands.
    pub fn position(&self) -> Lsn {
        self.position
    }

    /// Sends a batch; on return its outcome is irrevocable and in the logs of all in-sync replicas. After an error nothing of it
    /// was published, or its fate is unknown: only the record, read by the next `open`, tells.
    pub async fn apply(&mut self, batch: Batch) -> Result<Receipt, SinkError> {
        let receipt = self.order(|answer| Order::Apply(batch, answer)).await?;
        self.position = receipt.applied.0;
        Ok(receipt)
    }

    async fn order<T>(&self, order: impl FnOnce(Answer<T>) -> Order) -> Result<T, SinkError> {
        let (answer, wait) = awaited();
        self.orders.send(order(answer)).await.map_err(|_| ended())?;
        wait.given().await
    }
}

fn work(opening: Opening, runtime: Handle, halt: &Halt, opened: Answer<Records>, mut orders: mpsc::Receiver<Order>) {
    let (session, records) = match attempt(|| begin(opening, runtime, halt)) {
        Ok((session, records)) => (Some(session), Ok(records)),
        Err(failure) => (None, Err(failure)),
    };
    let is_over = opened.give(records);
    let Some(mut session) = session.filter(|_| !is_over) else { return };
    while let Some(order) = orders.blocking_recv() {
        let is_over = match order {
            Order::Record(progress, planned, answer) => answer.give(attempt(|| session.record(&progress, &planned))),
            Order::Start(start, answer) => answer.give(attempt(|| session.start(*start))),
            Order::Apply(batch, answer) => answer.give(attempt(|| session.apply(batch))),
        };
        if is_over {
            break;
        }
    }
}

fn begin(opening: Opening, runtime: Handle, halt: &Halt) -> Result<(Session, Records), SinkError> {
    let catalog = Catalog::new(runtime.clone(), opening.primary.clone(), &opening.pipeline);
    let open = open::open(&opening, runtime, halt)?;
    let records = reader::read_records(&opening.sink, &opening.pipeline, halt)?;
    if records.progress.is_none() {
        open::warn_of_foreign_records(&opening, &open.topics);
    }
    Ok((Session::new(opening, open, catalog, records.inside)?, records))
}

#[cfg(test)]
mod tests {
    use std::panic::AssertUnwindSafe;

    use futures_util::FutureExt;

    use super::*;

    fn breaks(_: &Halt) -> Result<(), SinkError> {
        panic!("secret")
    }

    #[tokio::test]
    async fn a_panic_in_the_background_is_no_error_whose_text_is_told() {
        assert!(AssertUnwindSafe(in_background(breaks)).catch_unwind().await.is_err());
    }
}
