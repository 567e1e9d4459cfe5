//! One error for one pipeline: whatever room it came from, its text is whole and says whether waiting may mend it.

use crate::assemble::{AssembleError, SpoolError};
use crate::model::Retry;
use crate::sink::SinkError;
use crate::snapshot::SnapshotError;
use crate::source::SourceError;

/// Why an attempt of a pipeline ended.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    /// The primary.
    #[error("primary: {0}")]
    Source(#[from] SourceError),
    /// The sink.
    #[error("{0}")]
    Sink(#[from] SinkError),
    /// The initial copy.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The spool folder.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// The stream cannot be put together to transactions.
    #[error(transparent)]
    Assemble(#[from] AssembleError),
    /// We refuse to go on; the text holds the numbers and the remedy.
    #[error("{0}")]
    Refused(String),
    /// Somebody else runs the pipeline, or something is not there yet.
    #[error("{0}")]
    NotYet(String),
    /// A panic in the pipeline's task. Without its text, which may hold a row's value.
    #[error(
        "a fault of walrelay itself ended the pipeline (its log says where): please report it; a reload (SIGHUP) starts it again"
    )]
    Fault,
    /// We were asked to stop.
    #[error("stopped")]
    Stopped,
}

impl PipelineError {
    /// Whether it is what a pipeline meets that has streamed before, while another server takes its standby's place.
    pub(super) fn may_be_failover(&self) -> bool {
        matches!(self, PipelineError::Sink(SinkError::TakesNoWrites(_)))
    }

    /// Whether waiting may mend it.
    pub fn retry(&self) -> Retry {
        match self {
            PipelineError::Source(error) => error.retry(),
            PipelineError::Sink(error) => error.retry(),
            PipelineError::Snapshot(error) => error.retry(),
            PipelineError::Assemble(error) => error.retry(),
            PipelineError::Spool(_) | PipelineError::NotYet(_) | PipelineError::Stopped => Retry::Later,
            PipelineError::Refused(_) | PipelineError::Fault => Retry::Never,
        }
    }
}
