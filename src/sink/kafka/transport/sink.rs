//! The sink as the pipeline knows it: a batch in, a receipt out. The client's calls block, so they run on a thread of their own,
//! which ends with the sink.

use std::thread;

use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

use crate::config::KafkaSink as Settings;
use crate::config::kafka::ApplyMeans;
use crate::model::{Lsn, PipelineName, Progress, QualifiedName, Retry};

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

type Answer<T> = oneshot::Sender<Result<T, SinkError>>;

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
    working.await.unwrap_or_else(|error| Err(broken_down(error.to_string())))
}

impl KafkaSink {
    /// Makes missing topics, fences off every earlier producer, settles what it left in doubt, and reads the records again.
    /// The caller owns the pipeline, and nobody else's record stands under its transactional id.
    pub async fn open(opening: Opening) -> Result<(Self, Records), SinkError> {
        let (orders, incoming) = mpsc::channel(ORDERS_LIMIT);
        let (opened, wait) = oneshot::channel();
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
        let records = wait.await.unwrap_or_else(|_| Err(ended()))?;
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
        let (answer, wait) = oneshot::channel();
        self.orders.send(order(answer)).await.map_err(|_| ended())?;
        wait.await.unwrap_or_else(|_| Err(ended()))
    }
}

fn work(opening: Opening, runtime: Handle, halt: &Halt, opened: Answer<Records>, mut orders: mpsc::Receiver<Order>) {
    let catalog = Catalog::new(runtime.clone(), opening.primary.clone(), &opening.pipeline);
    let begun = open::open(&opening, runtime, halt).and_then(|open| {
        let records = reader::read_records(&opening.sink, &opening.pipeline, halt)?;
        if records.progress.is_none() {
            open::warn_of_foreign_records(&opening, &open.topics);
        }
        Ok((Session::new(opening, open, catalog, records.inside)?, records))
    });
    let mut session = match begun {
        Ok((session, records)) => {
            if opened.send(Ok(records)).is_err() {
                return;
            }
            session
        }
        Err(error) => {
            let _ = opened.send(Err(error));
            return;
        }
    };
    while let Some(order) = orders.blocking_recv() {
        let is_broken = match order {
            Order::Record(progress, planned, answer) => answered(session.record(&progress, &planned), answer),
            Order::Start(start, answer) => answered(session.start(*start), answer),
            Order::Apply(batch, answer) => answered(session.apply(batch), answer),
        };
        if is_broken {
            break;
        }
    }
}

fn answered<T>(result: Result<T, SinkError>, answer: Answer<T>) -> bool {
    let is_error = result.is_err();
    answer.send(result).is_err() || is_error
}

pub(super) fn ended() -> SinkError {
    broken_down("it ended without a word".to_owned())
}

pub(super) fn broken_down(reason: String) -> SinkError {
    SinkError::Kafka { context: "the Kafka client's thread".to_owned(), source: reason.into(), retry: Retry::Later }
}
