//! Positions as promises: what was received, applied and made durable are different numbers and different types.

use super::Lsn;

/// Every transaction that ends at or below this position was received whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Received(pub Lsn);

/// Every transaction that ends at or below this position is visible in the sink.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Applied(pub Lsn);

/// Every transaction that ends at or below this position survives a crash of the sink, and so does the record that says so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Durable(pub Lsn);

/// What a standby status update tells the primary. Only `ack` makes one; `source` sends it.
///
/// Invariant: `apply <= flush <= write`. The server releases `remote_apply` waiters by `apply` alone, without looking at
/// `flush` (`src/backend/replication/syncrep.c`), so an apply position that is not durable would break the promise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Positions {
    /// Received whole; releases `remote_write`.
    pub write: Lsn,
    /// Durable in the sink; releases `on`, and moves the slot's `confirmed_flush_lsn`.
    pub flush: Lsn,
    /// Durable and visible in the sink; releases `remote_apply`.
    pub apply: Lsn,
}
