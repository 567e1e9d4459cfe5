//! What can stop an initial copy. Every text names the server, the thing and the remedy; row values never get in.

use std::fmt;

use crate::model::{QualifiedName, Retry};
use crate::sink::SinkError;
use crate::source::SourceError;
use crate::wire::{ServerError, WireError};

/// Which server an error came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The server copied from.
    Primary,
    /// The server copied to.
    Standby,
}

impl fmt::Display for Side {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Side::Primary => "primary",
            Side::Standby => "standby",
        })
    }
}

/// An error of the initial copy.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// A connection or a server.
    #[error("initial copy: could not {doing} on the {side}: {source}{}", remedy(*side, source))]
    Server {
        /// Where.
        side: Side,
        /// What was being done, as "could not …" goes on.
        doing: String,
        /// The server's or the socket's words, without row values.
        #[source]
        source: WireError,
    },
    /// The slot that gives the snapshot.
    #[error("initial copy: {0}")]
    Slot(#[from] SourceError),
    /// The sink.
    #[error("initial copy: {0}")]
    Sink(#[from] SinkError),
    /// Tables on the standby that cannot take the rows: every fault, one by one.
    #[error(
        "initial copy: the standby cannot take the published tables: {}. Create them there as they are on the primary \
         (pg_dump --schema-only), or leave them out with `exclude`",
        .0.join("; ")
    )]
    Unfit(Vec<String>),
    /// Tables on the standby that hold rows, while `on_existing_rows = "refuse"`.
    #[error(
        "initial copy: these tables of the standby are not empty: {}. Nothing was written. Empty them, or set \
         on_existing_rows = \"truncate\" (empties them); \"keep\" copies beside what is there, which is wrong for rows of an earlier copy",
        names(.0)
    )]
    NotEmpty(Vec<QualifiedName>),
    /// We refuse to go on; the text holds the remedy.
    #[error("initial copy: {0}")]
    Refused(String),
    /// Something moved under us; the next attempt reads it anew.
    #[error("initial copy: {0}; it begins again, finished tables are kept")]
    Disturbed(String),
    /// The caller cancelled. What is finished is recorded.
    #[error("initial copy: stopped before its end; finished tables are kept")]
    Cancelled,
}

impl SnapshotError {
    /// Whether waiting may mend it.
    pub fn retry(&self) -> Retry {
        match self {
            SnapshotError::Server { source, .. } => source.retry(),
            SnapshotError::Slot(source) => source.retry(),
            SnapshotError::Sink(source) => source.retry(),
            SnapshotError::Unfit(_) | SnapshotError::NotEmpty(_) | SnapshotError::Refused(_) => Retry::Never,
            SnapshotError::Disturbed(_) | SnapshotError::Cancelled => Retry::Later,
        }
    }

    /// SQLSTATE, if a server spoke.
    pub(super) fn code(&self) -> Option<&str> {
        match self {
            SnapshotError::Server { source, .. } => source.code(),
            _ => None,
        }
    }
}

/// Says what was being done, and takes row values out of the server's words.
pub(super) fn server(side: Side, doing: impl Into<String>, source: impl Into<WireError>) -> SnapshotError {
    let source = match source.into() {
        WireError::Server(error) => WireError::Server(Box::new(without_row_values(*error))),
        other => other,
    };
    SnapshotError::Server { side, doing: doing.into(), source }
}

/// Data exceptions (class 22) quote the value in their message, integrity violations (class 23) quote the row in their
/// detail; the line of a COPY and its column are kept.
fn without_row_values(mut error: ServerError) -> ServerError {
    let is_data_exception = error.code.starts_with("22");
    if !is_data_exception && !error.code.starts_with("23") {
        return error;
    }
    let place = error.context.as_deref().and_then(copy_place);
    error.detail = place.map(|place| format!("at {place}"));
    error.context = None;
    if is_data_exception {
        error.message = "a value cannot be read as the column's type".to_owned();
    }
    error
}

/// `COPY t, line 3, column x: "value"` without the value.
fn copy_place(context: &str) -> Option<&str> {
    let line = context.lines().find(|line| line.starts_with("COPY "))?;
    Some(line.split_once(": \"").map_or(line, |(place, _)| place))
}

pub(super) fn names(tables: &[QualifiedName]) -> String {
    tables.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// What a person can do about the SQLSTATE; begins with a separator, or is empty.
fn remedy(side: Side, error: &WireError) -> &'static str {
    match (side, error.code().unwrap_or_default()) {
        (Side::Primary, "42501") => {
            ". Grant the relay's role SELECT on the published tables and USAGE on their schemas"
        }
        (Side::Standby, "42501") => {
            ". Grant the relay's role SELECT, INSERT, UPDATE, DELETE and TRUNCATE on the replicated tables, USAGE on their \
             schemas, and SET on the parameter session_replication_role (superuser on 14)"
        }
        (Side::Primary, "53200") => ". Raise max_locks_per_transaction on the primary",
        (Side::Standby, "25006") => {
            ". The standby must be an ordinary read-write server, not a physical standby in recovery"
        }
        (Side::Standby, "23505") => {
            ". The rows on the standby are in the way: empty the table, or set on_existing_rows = \"truncate\""
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(side: Side, error: ServerError, expected: &str, retry: Retry) {
        let error = server(side, "copy public.t", WireError::Server(Box::new(error)));
        assert_eq!(error.to_string(), expected);
        assert_eq!(error.retry(), retry);
    }

    fn said(code: &str, message: &str) -> ServerError {
        ServerError { code: code.to_owned(), message: message.to_owned(), ..ServerError::default() }
    }

    #[test]
    fn an_error_names_server_cause_and_remedy_and_no_row_value() {
        check(
            Side::Primary,
            said("42501", "permission denied for table t"),
            "initial copy: could not copy public.t on the primary: permission denied for table t (SQLSTATE 42501). Grant the \
             relay's role SELECT on the published tables and USAGE on their schemas",
            Retry::Never,
        );
        check(
            Side::Standby,
            ServerError {
                context: Some("COPY t, line 3, column a: \"secret\"".to_owned()),
                ..said("22P02", "invalid input syntax for type integer: \"secret\"")
            },
            "initial copy: could not copy public.t on the standby: a value cannot be read as the column's type (SQLSTATE \
             22P02); at COPY t, line 3, column a",
            Retry::Never,
        );
        check(
            Side::Standby,
            ServerError {
                detail: Some("Failing row contains (secret).".to_owned()),
                context: Some("COPY t, line 7: \"secret\"".to_owned()),
                ..said("23502", "null value in column \"a\" violates not-null constraint")
            },
            "initial copy: could not copy public.t on the standby: null value in column \"a\" violates not-null constraint \
             (SQLSTATE 23502); at COPY t, line 7",
            Retry::Never,
        );
        check(
            Side::Standby,
            said("57P01", "terminating connection"),
            "initial copy: could not copy public.t on the standby: terminating connection (SQLSTATE 57P01)",
            Retry::Later,
        );
    }

    #[test]
    fn a_refusal_names_every_table() {
        let tables = vec![QualifiedName::new("public", "a"), QualifiedName::new("sales", "b")];
        let text = SnapshotError::NotEmpty(tables).to_string();
        assert!(text.contains("public.a, sales.b") && text.contains("on_existing_rows"), "{text}");
    }
}
