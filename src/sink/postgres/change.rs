//! What each statement of a batch is for, and what its failure means to a person.

use std::fmt::Write as _;
use std::sync::Arc;

use bytes::Bytes;

use crate::decode::{Context, DecodeError, Message, Tuple, Value, decode};
use crate::model::Lsn;
use crate::wire::{ServerError, WireError};

use super::super::{Batch, ChangePlace, Receipt, SinkError};
use super::legible::legible;
use super::prefetch::Ticket;
use super::statements::rows_touched;
use super::target::{RowSearch, Target};

/// Longest part of a key value that an error shows, characters.
const KEY_VALUE_LIMIT: usize = 100;

/// SQLSTATE of a compare-and-set of the progress row that found no such row: a division by zero.
const PROGRESS_MOVED: &str = "22012";

/// One change under way: enough to name it if it fails.
#[derive(Clone, Debug)]
pub(super) struct Change {
    /// The pgoutput message.
    pub(super) payload: Bytes,
    pub(super) target: Arc<Target>,
    pub(super) commit_lsn: Lsn,
    pub(super) is_streamed: bool,
}

/// What went wrong, with the purpose of the statement that failed, if it was one of ours.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) purpose: Option<Purpose>,
    pub(super) error: WireError,
}

impl From<WireError> for Failure {
    fn from(error: WireError) -> Self {
        Self { purpose: None, error }
    }
}

/// Why a change could not be applied: the session's failure, to be named with its change, or ours.
#[derive(Debug)]
pub(super) enum ApplyError {
    Failure(Box<Failure>),
    Sink(SinkError),
    /// The changes of this table cannot be folded.
    Unprovable(Arc<Target>, &'static str),
}

impl ApplyError {
    /// Names the transaction where the error does not yet.
    pub(super) fn in_transaction(self, commit_lsn: Lsn) -> Self {
        match self {
            Self::Sink(SinkError::Shape(text)) => {
                Self::Sink(SinkError::Shape(format!("{text} (needed by the transaction at {commit_lsn})")))
            }
            other => other,
        }
    }
}

impl From<Failure> for ApplyError {
    fn from(failure: Failure) -> Self {
        Self::Failure(Box::new(failure))
    }
}

impl From<WireError> for ApplyError {
    fn from(error: WireError) -> Self {
        Failure::from(error).into()
    }
}

impl From<SinkError> for ApplyError {
    fn from(error: SinkError) -> Self {
        Self::Sink(error)
    }
}

impl From<DecodeError> for ApplyError {
    fn from(error: DecodeError) -> Self {
        Self::Sink(error.into())
    }
}

/// What an Execute is for.
#[derive(Debug)]
pub(super) enum Purpose {
    /// A catalog query or a guard inside the batch.
    Query,
    /// A row change or a TRUNCATE.
    Change(Change),
    /// Rows of this table, many at once; while it is under way they may be read ahead.
    Set(Arc<Target>, Option<Ticket>),
    /// The compare-and-set of the progress row.
    Progress,
    /// The Sync that commits the batch.
    Commit(Box<Sent>),
}

/// A batch that was sent whole. It is kept until it is answered: if one before it fails, it fails too, and is sent again.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) batch: Batch,
    /// Given when it is committed.
    pub(super) receipt: Receipt,
    /// Whether something of it was written as a set.
    pub(super) is_folded: bool,
}

impl Purpose {
    /// Whether somebody wants to know soon that it is done.
    pub(super) fn is_awaited(&self) -> bool {
        matches!(self, Purpose::Set(_, Some(_)))
    }

    /// Bytes it keeps alive.
    pub(super) fn size_bytes(&self) -> usize {
        match self {
            Purpose::Change(change) => change.payload.len(),
            Purpose::Query | Purpose::Set(..) | Purpose::Progress | Purpose::Commit(_) => 0,
        }
    }
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
            Value::Binary(bytes) => match target.columns.get(at).and_then(|column| legible(column, bytes)) {
                Some(text) => text.chars().take(KEY_VALUE_LIMIT).collect(),
                None => format!(
                    "(in binary form) {}",
                    bytes.iter().take(32).map(|b| format!("{b:02x}")).collect::<String>()
                ),
            },
            Value::Null => "NULL".to_owned(),
            Value::Unchanged => "(unchanged)".to_owned(),
        };
        let separator = if text.is_empty() { "" } else { ", " };
        let _ = write!(text, "{separator}{}={shown}", column.name);
    }
    text
}

/// Names what failed.
pub(super) fn explain(failure: Failure, pipeline: &str, expected: Lsn) -> SinkError {
    let Failure { purpose, error } = failure;
    if let Some(refusal) = read_only_refusal(&error) {
        return refusal;
    }
    match purpose {
        Some(Purpose::Change(change)) if found(&error).is_some() => {
            SinkError::RowCount { place: Box::new(change.place()), found: found(&error).unwrap_or(0) }
        }
        Some(Purpose::Progress) if error.code() == Some(PROGRESS_MOVED) => {
            SinkError::ProgressMoved { pipeline: pipeline.to_owned(), expected }
        }
        // A session that was ended says nothing about the statement it was at.
        Some(Purpose::Change(change)) if !is_about_session(&error) => {
            let remedy = remedy(&error);
            SinkError::Change { place: Box::new(change.place()), source: without_values(error), remedy }
        }
        _ => SinkError::wire("applying a batch on the standby")(without_values(error)),
    }
}

/// Rows touched, where that is what failed.
fn found(error: &WireError) -> Option<u64> {
    match error {
        WireError::Server(error) => rows_touched(error),
        _ => None,
    }
}

/// The connection, or the server as a whole (classes 08, 57 and 58 of the manual's appendix A).
fn is_about_session(error: &WireError) -> bool {
    error.code().is_none_or(|code| ["08", "57P", "58"].iter().any(|class| code.starts_with(class)))
}

/// A target that takes no writes, named with its remedy.
pub(super) fn read_only_refusal(error: &WireError) -> Option<SinkError> {
    (error.code() == Some("25006")).then(|| {
        SinkError::TakesNoWrites(format!(
            "the standby takes no writes: {error}; it is in recovery (a physical standby) or its transactions are read-only. \
             Point the sink's url at a server that can be written to"
        ))
    })
}

/// The server's words without row values. Whoever writes them, in whatever language: the message of a data exception (class 22) quotes
/// the value, the detail of an integrity violation (class 23) a key or the whole row. As in a copy (`snapshot/error.rs`).
fn without_values(error: WireError) -> WireError {
    let WireError::Server(error) = error else { return error };
    let mut error = ServerError { context: None, ..*error };
    if error.code.starts_with("22") {
        error.detail = None;
        error.message = refused_value(&error);
    } else if error.code.starts_with("23") {
        error.detail = None;
        if let Some(name) = error.constraint.as_deref().filter(|name| !error.message.contains(*name)) {
            error.message = format!("{} (constraint {name})", error.message);
        }
    }
    WireError::Server(Box::new(error))
}

/// What stands in place of a data exception's message; the SQLSTATE, which follows it, says which kind it is.
fn refused_value(error: &ServerError) -> String {
    if let Some(found) = rows_touched(error) {
        return format!("{found} rows were touched, which is not as many as were to be changed");
    }
    let names: Vec<&str> = [&error.table, &error.column].into_iter().flatten().map(String::as_str).collect();
    let place = if names.is_empty() { String::new() } else { format!(" at {}", names.join(".")) };
    format!("a value was refused{place} (the server's words quote it and are not shown)")
}

fn remedy(error: &WireError) -> &'static str {
    match error.code().unwrap_or("") {
        "23505" => {
            "A row with this key is already there: somebody wrote to the standby, or the copy overlapped. Compare and remove it \
             (SET session_replication_role = replica lets your session past the guard), then systemctl reload walrelay: it goes on from here"
        }
        "23P01" | "23514" | "23502" => {
            "The standby has a constraint that the primary's rows do not meet; drop or change it there, then systemctl reload \
             walrelay: it goes on from here"
        }
        "42P01" | "42703" | "42804" => {
            "Make the table on the standby like the one on the primary, then systemctl reload walrelay: it goes on from here"
        }
        "42501" => {
            "Grant the missing right to the relay's role on the standby (`walrelay check` prints the statements), then systemctl reload walrelay"
        }
        "22P05" | "22021" => {
            "The standby's encoding cannot hold this text; only a standby with the primary's encoding (best UTF8) can"
        }
        code if code.starts_with("22") => {
            "The value does not fit the column's type on the standby; make the column like the one on the primary, then systemctl \
             reload walrelay"
        }
        _ => "Mend the standby; nothing beyond was acknowledged, and the pipeline goes on from here",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Retry;

    fn server(code: &str, message: &str, detail: Option<&str>) -> WireError {
        let detail = detail.map(str::to_owned);
        let (code, message) = (code.to_owned(), message.to_owned());
        WireError::Server(Box::new(ServerError { code, message, detail, ..ServerError::default() }))
    }

    /// Explains a failed change and compares its text.
    fn check(error: WireError, contains: &[&str], lacks: &str) {
        let target = super::super::target::tests::keyed();
        let payload = Bytes::from_static(b"I\0\0\0\x01N\0\x02t\0\0\0\x017t\0\0\0\x06secret");
        let change = Change { payload, target, commit_lsn: Lsn(0xab), is_streamed: false };
        let failure = Failure { purpose: Some(Purpose::Change(change)), error };
        let text = explain(failure, "standby1", Lsn(1)).to_string();
        for part in contains.iter().chain(&["INSERT on public.t (a=7)", "0/AB"]) {
            assert!(text.contains(part), "{text}");
        }
        assert!(!text.contains(lacks), "{text}");
    }

    #[test]
    fn a_failed_change_names_table_key_position_and_remedy_but_no_other_value() {
        for (code, message, detail, kept) in [
            ("23505", "duplicate key", Some("Key (a)=(7) already exists."), &["duplicate key", "23505", "Compare"][..]),
            (
                "23505",
                "duplicate key value violates unique constraint \"t_b_key\"",
                Some("Key (b)=(secret) already exists."),
                &["t_b_key"],
            ),
            ("23514", "violates check", Some("Failing row contains (7, secret)."), &["violates check", "constraint"]),
            (
                "23502",
                "NULL-Wert in Spalte »c« von Relation »t« verletzt Not-Null-Constraint",
                Some("Fehlgeschlagene Zeile enthält (7, secret, null)."),
                &["Spalte »c«"],
            ),
            ("22P02", "invalid input syntax for type integer: \"secret\"", None, &["22P02", "does not fit"]),
            ("22P02", "ungültige Eingabesyntax für Typ integer: »secret«", None, &["22P02"]),
            ("22003", "value \"secret\" is out of range for type integer", None, &["22003"]),
            ("22P02", "malformed array literal: \"{\"", Some("Unexpected \"secret\"."), &["22P02"]),
        ] {
            check(server(code, message, detail), kept, "secret");
            // The same where nobody knows which change it was.
            let failure = Failure { purpose: None, error: server(code, message, detail) };
            let text = explain(failure, "standby1", Lsn(1)).to_string();
            assert!(text.contains(code) && !text.contains("secret"), "{text}");
        }
    }

    #[test]
    fn a_constraint_is_named_from_its_own_field_where_the_message_does_not_name_it() {
        let said = |message: &str| {
            let (code, constraint) = ("23514".to_owned(), Some("t_check".to_owned()));
            let error = ServerError { code, message: message.to_owned(), constraint, ..ServerError::default() };
            without_values(WireError::Server(Box::new(error))).to_string()
        };
        assert!(said("refused").contains("refused (constraint t_check)"), "{}", said("refused"));
        assert_eq!(said("violates \"t_check\"").matches("t_check").count(), 1);
    }

    #[test]
    fn a_moved_progress_row_is_named_and_looked_at_again() {
        let failure = Failure { purpose: Some(Purpose::Progress), error: server("22012", "division by zero", None) };
        let error = explain(failure, "standby1", Lsn(1));
        assert!(error.to_string().contains("another daemon") && error.retry() == Retry::Later, "{error}");
    }

    #[test]
    fn a_session_that_was_ended_blames_no_row() {
        let target = super::super::target::tests::keyed();
        let payload = Bytes::from_static(b"I\0\0\0\x01N\0\x02t\0\0\0\x017n");
        let change = Change { payload, target, commit_lsn: Lsn(0xab), is_streamed: false };
        let failure = Failure { purpose: Some(Purpose::Change(change)), error: server("57P01", "terminating", None) };
        let error = explain(failure, "standby1", Lsn(1));
        assert!(!error.to_string().contains("public.t") && error.retry() == Retry::Later, "{error}");
    }
}
