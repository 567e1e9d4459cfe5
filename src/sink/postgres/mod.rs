//! The Postgres sink: batches of whole transactions become one target transaction each, with the progress row moved in it.
//! Never confirms anything; never writes outside the relay's own schema and the replicated tables.
//!
//! ```text
//! batch ─▶ rows (pipelined, answers read while writing) ─▶ counts checked ─▶ progress compare-and-set ─▶ Sync (commits) ─▶ receipt
//! the next batches behind it, unanswered                the flusher, beside the next batches ─▶ durable
//! ```

mod ahead;
mod apply;
mod arrays;
mod bag_statements;
mod bag_writer;
mod batch;
mod beside;
mod change;
mod columns;
mod detours;
mod drift;
mod fallback;
mod flusher;
mod folding;
mod footprint;
mod form;
pub mod guard;
mod legible;
mod looks;
pub mod net;
mod oids;
mod open;
mod opening;
mod plans;
mod prefetch;
mod prefetch_session;
mod reading;
mod readonly;
mod reads;
mod remove;
mod roles;
mod rows;
mod session;
mod set_statements;
mod set_writer;
mod statements;
pub mod store;
mod tables;
mod target;
mod touch;
mod type_check;
mod unit;

pub use ahead::{Ahead, AheadOpener};
pub(in crate::sink) use apply::Answer;
pub use apply::PostgresSink;
pub use flusher::{FLUSH_FUNCTION, Flusher, flush_grant_sql};
pub use looks::Looks;
pub use open::{database_of_namesake, open_session, origin_grants_sql, replica_role_sql};
pub use opening::{Opening, TableFilter, Wanted};
pub use readonly::{ensure_guards, remove_guards};
pub use remove::remove;
pub use roles::{CONTROL_ROLE, Need, applying_roles, origin_names, origins_needed, sessions_needed, streaming_roles};
