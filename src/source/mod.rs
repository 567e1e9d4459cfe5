//! The replication connection to the primary: publication, slot, the stream and the status messages. Never interprets a row.

mod error;
mod identity;
mod passing_publications;
mod publication;
mod read;
mod receive;
mod slot;
mod standby_names;
mod stream;
mod tables;

pub use error::SourceError;
pub use identity::{identify, identity_difference, timeline_switch_point};
pub use passing_publications::PassingPublications;
pub use publication::{
    Additions, Coming, Publication, all_operations_sql, coming_tables, commit_publication, create_publication_sql,
    drop_publication, ensure_publication, joining_tables, list_again, missing_tables_sql, named_tables,
};
pub use receive::ReceivePolicy;
pub use slot::{CreatedSlot, SlotFacts, SnapshotUse, create_slot, drop_slot, slot_facts};
pub use standby_names::{lists_standby, synchronous_standby_names, without_standby};
pub use stream::{Stream, StreamOptions};
pub use tables::{PublishableTable, leaves, partitioned_above, publishable_tables, published_tables};
