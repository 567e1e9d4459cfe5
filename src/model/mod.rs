//! The vocabulary of the house, in Postgres' own words. Plain values and leaf tools; imports nothing of ours and does no I/O.

mod copied;
mod fallbacks;
mod feed;
mod health;
mod heartbeat;
mod joined;
mod listed;
mod lsn;
mod memory;
mod name;
mod position;
mod prefetch;
mod progress;
mod relation;
mod report;
mod transaction;

pub use copied::Copied;
pub use fallbacks::Fallbacks;
pub use feed::{FeedCounts, FeedReport};
pub use health::{Retry, State};
pub use heartbeat::Heartbeat;
pub use joined::joined;
pub use listed::listed;
pub use lsn::{Lsn, LsnParseError, Timestamp};
pub use memory::{MemoryBudget, Reservation};
pub use name::{NameError, PipelineName, QualifiedName, SlotName};
pub use position::{Applied, Durable, Positions, Received};
pub use prefetch::{PrefetchReport, Prefetching};
pub use progress::{PrimaryIdentity, Progress};
pub use relation::{Column, Relation, ReplicaIdentity};
pub use report::{CopyReport, PipelineReport};
pub use transaction::{Body, SpooledChunks, Transaction};
