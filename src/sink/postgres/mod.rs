//! The Postgres sink: batches of whole transactions become one target transaction each, with the progress row moved in it.
//! Never confirms anything; never writes outside the relay's own schema and the replicated tables.
//!
//! ```text
//! batch ─▶ BEGIN ─▶ rows (pipelined, answers read while writing) ─▶ counts checked ─▶ progress compare-and-set ─▶ COMMIT ─▶ receipt
//! ```

mod apply;
mod change;
pub mod guard;
mod open;
mod readonly;
mod session;
mod statements;
pub mod store;
mod target;
mod writer;

pub use apply::{Opening, PostgresSink, TableFilter};
pub use open::{open_session, origin_grants_sql};
pub use readonly::{ensure_guards, remove_guards};
