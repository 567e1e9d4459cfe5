//! What can go wrong between us and the primary, with the server's own words kept.

use crate::model::Retry;
use crate::wire::WireError;

/// An error of the replication connection or of the SQL sessions beside it.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The connection or the server.
    #[error("{context}: {source}")]
    Wire {
        /// What was being done.
        context: String,
        /// The server's or the socket's words.
        #[source]
        source: WireError,
    },
    /// The server ended the stream by itself: a shutdown, a restart.
    #[error("the primary ended the replication stream (it is shutting down, or the walsender was terminated)")]
    Ended,
    /// Nothing arrived for too long, and a ping was not answered.
    #[error(
        "nothing was received from the primary for {0} s, and it did not answer a ping; the connection is taken as lost"
    )]
    Silent(u64),
    /// The server warned that it skips what it should send.
    #[error(
        "the primary skips changes: {0}. A standby that misses changes must not confirm them: create the publication anew, \
         then start over with `walrelay drop` and a fresh copy if changes were lost"
    )]
    Skipping(String),
    /// The server answered something that the protocol does not allow here.
    #[error("the primary answered {0}")]
    Protocol(String),
    /// No table is of the set, and others are published.
    #[error("{0}")]
    EmptySet(String),
    /// We refuse to go on; the text holds the numbers and the remedy.
    #[error("{0}")]
    Refused(String),
}

impl SourceError {
    /// Names what was being done when `source` happened.
    pub fn wire(context: impl Into<String>) -> impl FnOnce(WireError) -> SourceError {
        let context = context.into();
        move |source| SourceError::Wire { context, source }
    }

    /// The same for an error of a SQL session.
    pub fn sql(context: impl Into<String>) -> impl FnOnce(tokio_postgres::Error) -> SourceError {
        let context = context.into();
        move |source| SourceError::Wire { context, source: WireError::from(source) }
    }

    /// SQLSTATE, if a server spoke.
    pub(super) fn code(&self) -> Option<&str> {
        match self {
            SourceError::Wire { source, .. } => source.code(),
            _ => None,
        }
    }

    /// Whether waiting may mend it.
    pub fn retry(&self) -> Retry {
        match self {
            SourceError::Wire { source, .. } => source.retry(),
            SourceError::Ended | SourceError::Silent(_) => Retry::Later,
            SourceError::Skipping(_)
            | SourceError::Protocol(_)
            | SourceError::EmptySet(_)
            | SourceError::Refused(_) => Retry::Never,
        }
    }
}
