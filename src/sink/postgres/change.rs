//! What each statement of a batch is for, and what its failure means to a person.

use std::fmt::Write as _;
use std::sync::Arc;

use bytes::Bytes;

use crate::decode::{Context, Message, Tuple, Value, decode};
use crate::model::Lsn;
use crate::wire::WireError;

use super::super::{ChangePlace, SinkError};
use super::session::{Failure, rows_of};
use super::store::{PROGRESS_MOVED, is_read_only};
use super::target::{RowSearch, Target};

/// Longest part of a key value that an error shows, characters.
const KEY_VALUE_LIMIT: usize = 100;

/// One change under way: enough to name it if it fails.
#[derive(Debug)]
pub(super) struct Change {
    pub(super) payload: Bytes,
    pub(super) target: Arc<Target>,
    pub(super) commit_lsn: Lsn,
    pub(super) is_streamed: bool,
    /// Whether exactly one row must be touched.
    pub(super) is_counted: bool,
}

/// What an Execute is for.
#[derive(Debug)]
pub(super) enum Purpose {
    /// BEGIN, COMMIT and the like.
    Control,
    /// A row change.
    Change(Change),
    /// The compare-and-set of the progress row.
    Progress,
}

impl Change {
    /// Table, key and position.
    pub(super) fn place(&self) -> ChangePlace {
        let context = Context { in_stream: self.is_streamed, parallel: false };
        let (operation, tuple) = match decode(&self.payload, context) {
            Ok(Message::Insert { new, .. }) => ("INSERT", Some(new)),
            Ok(Message::Update { old, new, .. }) => ("UPDATE", Some(old.map_or(new, |old| old.tuple()))),
            Ok(Message::Delete { old, .. }) => ("DELETE", Some(old.tuple())),
            Ok(Message::Truncate { .. }) => ("TRUNCATE", None),
            _ => ("a change", None),
        };
        ChangePlace {
            operation,
            table: self.target.relation.name.clone(),
            key: tuple.map_or_else(String::new, |tuple| key_text(&self.target, tuple)),
            commit_lsn: self.commit_lsn,
        }
    }
}

/// The key's columns and values, shortened; nothing where a row has no key.
fn key_text(target: &Target, tuple: Tuple<'_>) -> String {
    let RowSearch::Key(key) = &target.search else { return String::new() };
    let mut text = String::new();
    for (at, value) in tuple.iter().enumerate().filter(|(at, _)| key.contains(at)) {
        let Some(column) = target.relation.columns.get(at) else { continue };
        let shown: String = match value {
            Value::Text(bytes) => String::from_utf8_lossy(bytes).chars().take(KEY_VALUE_LIMIT).collect(),
            Value::Binary(bytes) => {
                format!("\\x{}", bytes.iter().take(32).map(|b| format!("{b:02x}")).collect::<String>())
            }
            Value::Null => "NULL".to_owned(),
            Value::Unchanged => "(unchanged)".to_owned(),
        };
        let separator = if text.is_empty() { "" } else { ", " };
        let _ = write!(text, "{separator}{}={shown}", column.name);
    }
    text
}

/// Checks a finished statement; notes the first change that did not touch one row.
pub(super) fn check_count(purpose: Purpose, tag: &str, divergence: &mut Option<SinkError>) {
    if let Purpose::Change(change) = purpose
        && change.is_counted
        && divergence.is_none()
        && rows_of(tag) != 1
    {
        *divergence = Some(SinkError::RowCount { place: Box::new(change.place()), found: rows_of(tag) });
    }
}

/// Names what failed.
pub(super) fn explain(failure: Failure<Purpose>, pipeline: &str, expected: Lsn) -> SinkError {
    let Failure { purpose, error } = failure;
    match purpose {
        _ if is_read_only(&error) => SinkError::Refused(format!(
            "the standby takes no writes: {error}; it is in recovery (a physical standby) or default_transaction_read_only is on. \
             Point the sink's url at a server that can be written to"
        )),
        Some(Purpose::Progress) if error.code() == Some(PROGRESS_MOVED) => {
            SinkError::ProgressMoved { pipeline: pipeline.to_owned(), expected }
        }
        Some(Purpose::Change(change)) => {
            let remedy = remedy(&error);
            SinkError::Change { place: Box::new(change.place()), source: without_values(error), remedy }
        }
        _ => SinkError::wire("applying a batch on the standby")(error),
    }
}

/// The server's detail may hold whole rows ("Failing row contains …"): such a detail does not leave this process.
fn without_values(error: WireError) -> WireError {
    match error {
        WireError::Server(mut error) => {
            if error.detail.as_deref().is_some_and(|detail| detail.starts_with("Failing row contains")) {
                error.detail = None;
            }
            error.context = None;
            WireError::Server(error)
        }
        other => other,
    }
}

fn remedy(error: &WireError) -> &'static str {
    match error.code().unwrap_or("") {
        "23505" => {
            "A row with this key is already there: somebody wrote to the standby, or the copy overlapped. Compare and remove it, \
             then walrelay goes on"
        }
        "23P01" | "23514" | "23502" => {
            "The standby has a constraint that the primary's rows do not meet; drop or change it there, then walrelay goes on"
        }
        "42P01" | "42703" | "42804" => {
            "Make the table on the standby like the one on the primary, then walrelay goes on"
        }
        "42501" => {
            "Grant the missing right to the relay's role on the standby (`walrelay check` prints the statements)"
        }
        code if code.starts_with("22") => {
            "The value does not fit the column's type on the standby; make the column like the one on the primary"
        }
        _ => "Mend the standby; nothing beyond was acknowledged, and walrelay goes on from here",
    }
}
