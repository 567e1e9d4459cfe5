//! One pipeline from configuration to a running stream, supervised: the only place, with `snapshot`, that knows several stages.
//!
//! ```text
//!            ┌───────────────── a fault that may pass: back off ────────────────┐
//!            ▼                                                                  │
//!  own ─▶ identify both sides ─▶ rules of resume ─▶ [create, copy] ─▶ open the sink ─▶ stream ─▶ stop: drain, last confirm
//!   │                                 │
//!   └─ another daemon owns it: wait   └─ refused: failed, until a person acts
//! ```

mod adoption;
#[cfg(feature = "kafka")]
mod again;
mod ahead;
mod attempt;
mod batching;
mod clock_offset;
mod coming;
mod create;
mod durability;
mod error;
#[cfg(feature = "kafka")]
mod feed_set;
#[cfg(feature = "kafka")]
mod forget_kafka;
mod joining;
mod monitor;
mod origin;
mod ownership;
mod primary;
mod refusals;
mod removal;
mod removed;
mod reporter;
mod resume;
#[cfg(feature = "kafka")]
mod resync;
mod stream;
mod tail;
#[cfg(feature = "kafka")]
mod to_kafka;
mod under_way;
mod value_form;

use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::backoff::Backoff;
use crate::config;
use crate::config::ServerUrl;
use crate::model::{PipelineReport, Retry, State};

pub use adoption::adoption;
pub use error::PipelineError;
pub use ownership::standby_roles;
pub use removal::remove;
pub use removed::Removed;
pub use resume::{Beginning, Facts, Holder, beginning};
#[cfg(feature = "kafka")]
pub use resync::resync;
pub use tail::tail;

use attempt::Attempt;
use joining::Noticed;
use refusals::Refusals;
use reporter::Reporter;

/// Built without the Kafka client, there is no feed to ask.
#[cfg(not(feature = "kafka"))]
pub async fn resync(
    _: &config::Config,
    _: &config::Pipeline,
    _: &[config::TablePattern],
) -> Result<Vec<String>, PipelineError> {
    Err(PipelineError::Refused(attempt::NO_KAFKA.to_owned()))
}

/// An attempt that lasted this long, or applied anything, was a success: the next fault starts the backoff anew.
const HEALTHY_AFTER: Duration = Duration::from_secs(10);

/// What a pipeline needs.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The pipeline itself.
    pub pipeline: config::Pipeline,
    /// The primary.
    pub primary: ServerUrl,
    /// Where open transactions beyond the memory limit go.
    pub spool_dir: PathBuf,
}

/// A running pipeline.
#[derive(Debug)]
pub struct Running {
    /// Its report, always current.
    pub report: watch::Receiver<PipelineReport>,
    /// Asks it to stop: drain, confirm, end.
    pub stop: CancellationToken,
    /// Ends when it has stopped.
    pub task: JoinHandle<()>,
}

/// Starts a pipeline in a task of its own. It never ends by itself: a failed one waits to be stopped.
pub fn start(settings: Settings) -> Running {
    let name = settings.pipeline.name.clone();
    let mut report = PipelineReport::new(name.clone(), settings.pipeline.sink.kind(), settings.pipeline.slot_name());
    report.feed = matches!(settings.pipeline.sink, config::Sink::Kafka(_)).then(Default::default);
    report.prefetch = settings.pipeline.sink.may_prefetch().then(Default::default);
    let (reporter, receiver) = Reporter::new(report);
    let stop = CancellationToken::new();
    let span = tracing::info_span!("pipeline", pipeline = %name);
    let token = stop.clone();
    let life = async move {
        tokio::select! {
            () = supervise(&settings, &reporter, token) => {}
            () = monitor::watch_while_away(&settings, &reporter) => {}
        }
    };
    let task = tokio::spawn(life.instrument(span));
    Running { report: receiver, stop, task }
}

/// Attempts until stopped.
async fn supervise(settings: &Settings, reporter: &Reporter, stop: CancellationToken) {
    let mut backoff = Backoff::default();
    let (noticed, refusals) = (Noticed::default(), Refusals::default());
    let mut has_streamed = false;
    while !stop.is_cancelled() {
        let began = tokio::time::Instant::now();
        let applied_before = reporter.transactions();
        let attempt = Attempt { settings, reporter, stop: &stop, noticed: &noticed, refusals: &refusals, has_streamed };
        let error = match survive(Box::pin(attempt.run())).await {
            Ok(()) | Err(PipelineError::Stopped) => break,
            Err(error) => error,
        };
        if stop.is_cancelled() {
            break;
        }
        has_streamed |= reporter.is_in_stream();
        if began.elapsed() > HEALTHY_AFTER || reporter.transactions() > applied_before {
            backoff.reset();
        }
        if refusals.note(&error) {
            tracing::info!(%error, "the stream begins again");
            reporter.interrupted();
            continue;
        }
        if error.retry() == Retry::Never && !(has_streamed && error.may_be_failover()) {
            tracing::error!(%error, "the pipeline stops: it needs a person");
            fail(reporter, &error);
            stop.cancelled().await;
            break;
        }
        wait_after(reporter, &error, backoff.next_delay(), &stop).await;
    }
}

/// A panic ends the attempt, whose connections end with it, and is told like any error: a report that stands still would go on
/// saying that all is well.
async fn survive(attempt: impl Future<Output = Result<(), PipelineError>>) -> Result<(), PipelineError> {
    // Nothing of the attempt is looked at again.
    AssertUnwindSafe(attempt).catch_unwind().await.unwrap_or(Err(PipelineError::Fault))
}

fn fail(reporter: &Reporter, error: &PipelineError) {
    reporter.fault(error);
    reporter.interrupted();
    // Last: who sees it, sees why.
    reporter.state(State::Failed);
}

async fn wait_after(reporter: &Reporter, error: &PipelineError, delay: Duration, stop: &CancellationToken) {
    let what = match error {
        PipelineError::NotYet(what) => {
            tracing::info!(waiting_for = %what, "waiting");
            what.clone()
        }
        error => {
            tracing::warn!(%error, retry_in_ms = delay.as_millis() as u64, "the pipeline was interrupted and tries again");
            reporter.fault(error);
            format!("another attempt after: {error}")
        }
    };
    reporter.update(|report| report.waiting_for = Some(what));
    reporter.interrupted();
    reporter.state(State::Waiting);
    tokio::select! {
        () = stop.cancelled() => {}
        () = tokio::time::sleep(delay) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_an_error_that_needs_a_person_and_tells_no_value() {
        let secret = String::from("a row's value");
        let error = survive(async { panic!("{secret}") }).await.unwrap_err();
        assert_eq!(error.retry(), Retry::Never);
        let text = error.to_string();
        assert!(text.contains("please report it") && !text.contains(&secret), "{text}");
    }
}
