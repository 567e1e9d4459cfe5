//! Whole transactions in commit order out of the stream of messages; open ones beyond the memory limit go to the spool folder. Decodes no rows.
//!
//! ```text
//!  chunks of CopyData ─▶ Assembler ─▶ arrivals: transactions, messages, keepalives
//!                          │   ▲
//!                          ▼   │ while the memory budget is over: the largest open transaction
//!                         Spool
//! ```
//!
//! No relation is remembered here: inside a streamed block a Relation message describes uncommitted DDL. It stays in its
//! transaction's body, and who applies the bodies in commit order notes the relations as they pass.

mod arrival;
mod assembler;
mod body;
mod descriptions;
mod error;
mod ordinary;
mod places;
mod spill;
mod spool;
mod stream;
mod subtransactions;
#[cfg(test)]
mod tests;

pub use arrival::{Arrival, LogicalMessage};
pub use assembler::{Assembler, OpenStream};
pub use error::{AssembleError, SpoolError};
pub use spool::Spool;
