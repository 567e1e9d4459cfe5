//! What can go wrong in a sink, and whether it may pass. Names tables, keys and positions; other row values never.

use std::fmt;
use std::io;

use crate::decode::DecodeError;
use crate::model::{Lsn, QualifiedName, Retry};
use crate::schema::ShapeError;
use crate::wire::WireError;

/// Which change could not be applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangePlace {
    /// `INSERT`, `UPDATE`, `DELETE`, `TRUNCATE`.
    pub operation: &'static str,
    /// The table, by its name on the primary.
    pub table: QualifiedName,
    /// The replica identity's columns and values, e.g. `id=7`; empty when there is none.
    pub key: String,
    /// Start of the transaction's commit record.
    pub commit_lsn: Lsn,
}

impl fmt::Display for ChangePlace {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} on {}", self.operation, self.table)?;
        if !self.key.is_empty() {
            write!(formatter, " ({})", self.key)?;
        }
        write!(formatter, " in the transaction at {}", self.commit_lsn)
    }
}

/// An error of a sink.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// The connection or the server.
    #[error("{context}: {source}")]
    Wire {
        /// What was being done.
        context: String,
        /// The server's or the socket's words.
        #[source]
        source: WireError,
    },
    /// The target refused one change.
    #[error("{place} failed on the standby: {text}. {remedy}", text = source.to_string().trim_end_matches('.'))]
    Change {
        /// Which.
        place: Box<ChangePlace>,
        /// The server's words.
        #[source]
        source: WireError,
        /// What to do.
        remedy: &'static str,
    },
    /// An UPDATE or DELETE did not find exactly one row.
    #[error(
        "{place} touched {found} rows on the standby instead of 1: the standby differs from the primary. Somebody wrote to \
         it, or it was not a whole copy; compare the table and mend the row there (SET session_replication_role = replica lets your session past \
         the guard), then systemctl reload walrelay; or start over: walrelay drop NAME --yes, empty its tables, systemctl reload walrelay"
    )]
    RowCount {
        /// Which.
        place: Box<ChangePlace>,
        /// Rows touched.
        found: u64,
    },
    /// The progress row was moved by somebody else.
    #[error(
        "the progress row of the pipeline \"{pipeline}\" on the standby no longer says {expected}: another daemon runs this \
         pipeline, or the row was changed by hand. Nothing of this batch was applied"
    )]
    ProgressMoved {
        /// The pipeline.
        pipeline: String,
        /// Where it stood for us.
        expected: Lsn,
    },
    /// The second session on the standby met another server than the first.
    #[error(
        "two sessions on the standby met two servers, or one that was started anew in between (the second is on {host}): what one \
         writes the other cannot flush. Let the sink's url lead to one server"
    )]
    TwoServers {
        /// Of the second session.
        host: String,
    },
    /// The table or its columns do not fit.
    #[error("{0}")]
    Shape(String),
    /// A change of a table that came into the publication since its tables were listed: another stream begins with it.
    #[error("{0} came into the publication since its tables were listed; they are listed again")]
    NewTable(QualifiedName),
    /// A stream of binary values met a column whose types are not known to agree; the same values can be read as text.
    #[error("values of {column} in the transaction at {commit_lsn} cannot be taken in binary form")]
    NeedsText {
        /// Table, column and types.
        column: String,
        /// Start of the transaction's commit record.
        commit_lsn: Lsn,
    },
    /// The target is in recovery, or its transactions are read-only: a wrong url, or a failover that is not over.
    #[error("{0}")]
    TakesNoWrites(String),
    /// A refusal, with the remedy.
    #[error("{0}")]
    Refused(String),
    /// The target's catalog cannot be read.
    #[error(transparent)]
    Catalog(#[from] ShapeError),
    /// The primary's bytes cannot be decoded.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// A spooled transaction cannot be read back.
    #[error("a spooled transaction cannot be read back: {0}")]
    Spool(#[source] io::Error),
    /// The Kafka client or a broker.
    #[error("{context}: {source}")]
    Kafka {
        /// What was being done.
        context: String,
        /// The client's words.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
        /// Whether waiting may mend it.
        retry: Retry,
    },
    /// A property for the Kafka client that it does not take.
    #[error(
        "[pipeline.sink.client]: the Kafka client refuses \"{property}\": {reason} (librdkafka's CONFIGURATION.md lists its properties)"
    )]
    ClientProperty {
        /// Its name.
        property: String,
        /// The client's words, without the value.
        reason: String,
    },
    /// Standard output.
    #[error("writing to standard output: {0}")]
    Output(#[source] io::Error),
}

impl SinkError {
    /// Names what was being done when `source` happened.
    pub fn wire(context: impl Into<String>) -> impl FnOnce(WireError) -> SinkError {
        let context = context.into();
        move |source| SinkError::Wire { context, source }
    }

    /// Whether waiting may mend it.
    pub fn retry(&self) -> Retry {
        match self {
            SinkError::Wire { source, .. } | SinkError::Change { source, .. } => source.retry(),
            SinkError::Kafka { retry, .. } => *retry,
            // The resume position is read anew; if another daemon really runs, the lock says so.
            SinkError::ProgressMoved { .. }
            | SinkError::TwoServers { .. }
            | SinkError::NeedsText { .. }
            | SinkError::NewTable(_)
            | SinkError::Spool(_) => Retry::Later,
            _ => Retry::Never,
        }
    }
}
