//! Records on their way: topics, the producer and its transactions, the progress record. Blocks only on a thread of its own;
//! knows nothing of what stands in a record.
//!
//! ```text
//! read_records (fences nobody) ─▶ KafkaSink::open (topics, init_transactions, records again) ─▶ record ─▶ start ─▶ apply …
//! ```
//!
//! The record in the progress topic is the truth, as the progress row is on a standby: part of the same Kafka transaction as the
//! events, read `read_committed` to the end, and by the one producer that has fenced off all others.

mod answer;
mod carrier;
mod catalog;
mod client;
mod copy;
mod debezium;
mod fault;
mod headway;
mod mark;
mod open;
mod opening;
mod parts;
mod producer;
mod progress;
mod readable;
mod reader;
mod remove;
mod sending;
mod session;
mod sink;
mod skipping;
mod survey;
mod topics;

pub use copy::{CopyWriter, FirstRow, Piece, PieceEnd};
pub use debezium::{DebeziumOffset, DebeziumOffsets, debezium_offsets};
pub use mark::mark_copied;
pub use opening::Opening;
pub use parts::Inside;
pub use progress::{CopiedTable, Records};
pub use remove::remove;
pub use session::Start;
pub use sink::{KafkaSink, read_records};
pub use survey::{Survey, TopicSurvey, survey};
