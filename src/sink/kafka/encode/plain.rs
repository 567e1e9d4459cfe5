//! The plain form: what ExtractNewRecordState adds to a row, and the headers that stand for the envelope.

use crate::config::KafkaSink;
use crate::config::kafka::{AddedField, PlainFormat};
use crate::model::{Lsn, QualifiedName};

use super::json::{push_integer, push_string};
use super::open_transaction::Transaction;
use super::source::{SourceParts, VERSION};

/// Headers of a plain record; an empty one is left out.
pub(super) const HEADER_NAMES: [&str; 4] =
    ["walrelay.op", "walrelay.commit_lsn", "walrelay.seq", "walrelay.commit_time"];

/// The values of [`HEADER_NAMES`]: the letter, the commit record's position as Postgres prints it, the event's place in its
/// transaction from 1, the commit's time in microseconds since 1970.
pub(super) fn header_values(op: u8, source: &SourceParts, transaction: Option<&Transaction>) -> [String; 4] {
    [
        char::from(op).to_string(),
        transaction.map(|transaction| transaction.commit_lsn.to_string()).unwrap_or_default(),
        transaction.map(|transaction| transaction.total.to_string()).unwrap_or_default(),
        source.unix_micros.to_string(),
    ]
}

/// What added fields are taken from.
pub(super) struct PlainFacts<'a> {
    pub(super) op: u8,
    pub(super) lsn: Lsn,
    pub(super) now_nanos: i64,
    pub(super) table: &'a QualifiedName,
    pub(super) source: &'a SourceParts,
    pub(super) transaction: Option<&'a Transaction>,
    pub(super) settings: &'a KafkaSink,
}

/// Closes an open row with `__deleted` and the added fields.
pub(super) fn push_added(format: &PlainFormat, facts: &PlainFacts<'_>, out: &mut Vec<u8>) {
    let comma = |out: &mut Vec<u8>| {
        if out.last() != Some(&b'{') {
            out.push(b',');
        }
    };
    if format.rewrite_deletes {
        comma(out);
        let is_deleted = facts.op == b'd';
        out.extend_from_slice(if is_deleted { b"\"__deleted\":\"true\"" } else { b"\"__deleted\":\"false\"" });
    }
    for (name, field) in &format.add_fields {
        comma(out);
        let _ = push_string(name.as_bytes(), out);
        out.push(b':');
        push_field(*field, facts, out);
    }
    out.push(b'}');
}

fn push_field(field: AddedField, facts: &PlainFacts<'_>, out: &mut Vec<u8>) {
    let micros = facts.source.unix_micros;
    let text = |text: &str, out: &mut Vec<u8>| {
        let _ = push_string(text.as_bytes(), out);
    };
    match field {
        AddedField::Op => text(&char::from(facts.op).to_string(), out),
        AddedField::TsMs => push_integer(facts.now_nanos / 1_000_000, out),
        AddedField::TsUs => push_integer(facts.now_nanos / 1000, out),
        AddedField::TsNs => push_integer(facts.now_nanos, out),
        AddedField::SourceTsMs => push_integer(micros.div_euclid(1000), out),
        AddedField::SourceTsUs => push_integer(micros, out),
        AddedField::SourceTsNs => push_integer(micros.saturating_mul(1000), out),
        AddedField::Lsn => push_integer(facts.lsn.0, out),
        AddedField::TxId => match facts.source.xid_number {
            Some(xid) => push_integer(xid, out),
            None => out.extend_from_slice(b"null"),
        },
        AddedField::Schema => text(&facts.table.schema, out),
        AddedField::Table => text(&facts.table.name, out),
        AddedField::Db => text(&facts.source.database, out),
        AddedField::Sequence => text(&facts.source.sequence(facts.lsn), out),
        AddedField::Snapshot => text(facts.source.snapshot, out),
        AddedField::Name => text(&facts.settings.topic_prefix, out),
        AddedField::Connector => text("postgresql", out),
        AddedField::Version => text(VERSION, out),
        AddedField::TransactionId => match facts.transaction.filter(|_| facts.settings.transaction_topic) {
            Some(transaction) => text(&transaction.id, out),
            None => out.extend_from_slice(b"null"),
        },
    }
}
