//! Who the primary is, and how far a sink has come with it: the record that a restart trusts.

use super::{Lsn, SlotName, Timestamp};

/// What `IDENTIFY_SYSTEM` and a few settings tell about the server at the other end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrimaryIdentity {
    /// `system_identifier` of `pg_control`, decimal as the server prints it.
    pub system_identifier: String,
    /// Current timeline.
    pub timeline: u32,
    /// Flushed WAL position at the time of asking.
    pub flushed_lsn: Lsn,
    /// Database the session is in.
    pub database: String,
    /// `server_version_num`, e.g. 180004.
    pub version_number: u32,
}

/// A sink's own durable record of how far it has come, written in the same target transaction as the rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Of the primary the rows came from.
    pub system_identifier: String,
    /// The primary's timeline then.
    pub timeline: u32,
    /// The primary's database.
    pub database: String,
    /// The slot the rows came through.
    pub slot: SlotName,
    /// Everything that ends at or below is in the sink.
    pub lsn: Lsn,
    /// Commit time of the last transaction applied, by the primary's clock; `None` while only positions were recorded.
    pub commit_time: Option<Timestamp>,
}
