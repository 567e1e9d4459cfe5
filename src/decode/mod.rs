//! pgoutput, protocol 1 to 4: a pure, total function from bytes to borrowed messages. Does no I/O and never panics.
//!
//! Layouts: the manual's page "Logical Replication Message Formats" and `src/backend/replication/logical/proto.c`.

mod error;
mod message;
mod reader;
mod relations;
#[cfg(test)]
mod tests;
mod tuple;

pub use error::DecodeError;
pub use message::{Context, Logical, Message, OldTuple, Prepared, RelationBody, RelationOids, Tag, decode, stream_xid};
pub use relations::Relations;
pub use tuple::{Tuple, Value, Values};
