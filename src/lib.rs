//! walrelay: a logical replication relay from a PostgreSQL primary to standbys that the primary can wait for by name.
//!
//! The rooms, in the order in which a change passes through them:
//!
//! ```text
//!  primary                                                                             standby
//!  WAL ──CopyBoth──▶ source ──frames──▶ decode ──messages──▶ assemble ──transactions──▶ sink
//!                      ▲                                                                 │
//!                      └──────── status(write, flush, apply) ◀──── ack ◀──── receipts ───┘
//! ```
//!
//! The invariants, asserted in code and tested with real crashes:
//!
//! 1. *Confirm after durable.* No flush position exceeds what every gating sink reported durable. `ack` computes, `source` sends.
//! 2. *Whole transactions, in commit order, per sink.* A sink sees a transaction once complete.
//! 3. *Idle means current.* With nothing open, queued or pending, the received keepalive position is recorded durably
//!    (progress only) and confirmed at once.
//! 4. *Restart is replay.* After a crash we resume at the sink's own durable position; nothing is lost, nothing is applied twice.
//! 5. *Bytes cannot hurt.* `wire` and `decode` return errors for any input; lengths are bounded before allocation.
//! 6. *Everything is bounded.* Every queue, batch, frame and wait has a named limit.
//!
//! `ARCHITECTURE.md` holds the map and the reasons.

pub mod backoff;
pub mod model;
pub mod shutdown;

pub mod config;

pub mod decode;
pub mod schema;
pub mod telemetry;
pub mod wire;

pub mod ack;
pub mod assemble;
pub mod sink;
pub mod source;

pub mod snapshot;

pub mod pipeline;
pub mod status;

pub mod daemon;

pub mod throwaway;

pub mod cli;
