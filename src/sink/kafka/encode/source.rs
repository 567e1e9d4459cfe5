//! The parts of an event that are the same for a whole transaction, written once: everything in `source` but the table and the
//! position, and the transaction's own name.

use crate::config::KafkaSink;
use crate::model::{Lsn, Timestamp};

use super::json::{push_integer, push_string};

/// The version whose form the events have.
pub(super) const VERSION: &str = "3.7.0.Final";

/// Bytes around the table's and the row's own parts of `source`.
#[derive(Clone, Debug, Default)]
pub(super) struct SourceParts {
    /// `"source":{"version":…,"sequence":"[…,\"`.
    head: Vec<u8>,
    /// `\"]","ts_us":…,"ts_ns":…,`.
    times: Vec<u8>,
    /// `1771,"lsn":`.
    xid: Vec<u8>,
    /// `,"xmin":null,"origin":…}`.
    tail: Vec<u8>,
    pub(super) unix_micros: i64,
    pub(super) xid_number: Option<u32>,
    pub(super) snapshot: &'static str,
    pub(super) database: String,
    previous_end: Option<Lsn>,
}

/// What the parts say.
pub(super) struct SourceFacts<'a> {
    pub(super) snapshot: &'static str,
    pub(super) time: Timestamp,
    pub(super) xid: Option<u32>,
    pub(super) previous_end: Option<Lsn>,
    pub(super) origin: Option<&'a str>,
}

impl SourceParts {
    /// Writes them anew, into the same buffers.
    pub(super) fn fill(&mut self, settings: &KafkaSink, database: &str, facts: &SourceFacts<'_>) {
        let micros = facts.time.unix_micros();
        self.unix_micros = micros;
        self.xid_number = facts.xid;
        self.snapshot = facts.snapshot;
        self.previous_end = facts.previous_end;
        self.database.clear();
        self.database.push_str(database);
        let head = &mut self.head;
        head.clear();
        head.extend_from_slice(b"\"source\":{\"version\":\"");
        head.extend_from_slice(VERSION.as_bytes());
        head.extend_from_slice(b"\",\"connector\":\"postgresql\",\"name\":");
        let _ = push_string(settings.topic_prefix.as_bytes(), head);
        head.extend_from_slice(b",\"ts_ms\":");
        push_integer(micros.div_euclid(1000), head);
        head.extend_from_slice(b",\"snapshot\":\"");
        head.extend_from_slice(facts.snapshot.as_bytes());
        head.extend_from_slice(b"\",\"db\":");
        let _ = push_string(database.as_bytes(), head);
        head.extend_from_slice(b",\"sequence\":\"[");
        match facts.previous_end {
            Some(end) => {
                head.extend_from_slice(b"\\\"");
                push_integer(end.0, head);
                head.extend_from_slice(b"\\\"");
            }
            None => head.extend_from_slice(b"null"),
        }
        head.extend_from_slice(b",\\\"");
        self.times.clear();
        self.times.extend_from_slice(b"\\\"]\",\"ts_us\":");
        push_integer(micros, &mut self.times);
        self.times.extend_from_slice(b",\"ts_ns\":");
        push_integer(micros.saturating_mul(1000), &mut self.times);
        self.times.push(b',');
        self.xid.clear();
        match facts.xid {
            Some(xid) => push_integer(xid, &mut self.xid),
            None => self.xid.extend_from_slice(b"null"),
        }
        self.xid.extend_from_slice(b",\"lsn\":");
        self.tail.clear();
        self.tail.extend_from_slice(b",\"xmin\":null,\"origin\":");
        match facts.origin {
            Some(origin) => {
                let _ = push_string(origin.as_bytes(), &mut self.tail);
            }
            None => self.tail.extend_from_slice(b"null"),
        }
        self.tail.extend_from_slice(b",\"origin_lsn\":null}");
    }

    /// `["…","…"]`, as the field's text.
    pub(super) fn sequence(&self, lsn: Lsn) -> String {
        match self.previous_end {
            Some(end) => format!("[\"{}\",\"{}\"]", end.0, lsn.0),
            None => format!("[null,\"{}\"]", lsn.0),
        }
    }

    /// The whole `"source":{…}`; `table` is `"schema":…,"table":…,"txId":`.
    #[inline]
    pub(super) fn push(&self, table: &[u8], lsn: Lsn, out: &mut Vec<u8>) {
        let mut buffer = itoa::Buffer::new();
        let digits = buffer.format(lsn.0).as_bytes();
        for part in [&self.head, digits, &self.times, table, &self.xid, digits, &self.tail] {
            out.extend_from_slice(part);
        }
    }
}
