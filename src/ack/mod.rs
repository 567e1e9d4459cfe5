//! The only maker of a flush position: a pure ledger of what was received, applied and made durable. Sends nothing itself.

mod flush;
mod idle;
mod ledger;

pub use flush::Flushes;
pub use idle::IdleRecords;
pub use ledger::{Arrived, Ledger};
