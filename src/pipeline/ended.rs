//! What it means that the task of the replication connection has ended. Decides nothing about another attempt.

use crate::source::SourceError;

use super::PipelineError;

/// What the end of the source's task means while its stream is wanted.
pub(super) fn ended_source(ended: Result<Result<(), SourceError>, tokio::task::JoinError>) -> PipelineError {
    match ended {
        Ok(Ok(())) => SourceError::Ended.into(),
        Ok(Err(error)) => error.into(),
        Err(error) => PipelineError::Task(error.to_string()),
    }
}

/// The same where an orderly end is no error.
pub(super) fn ended_well(ended: Result<Result<(), SourceError>, tokio::task::JoinError>) -> Result<(), PipelineError> {
    match ended {
        Ok(Ok(())) => Ok(()),
        ended => Err(ended_source(ended)),
    }
}
