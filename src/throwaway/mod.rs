//! Throw-away PostgreSQL servers for the demo, the tests and the benchmarks: found or fetched programs, a data folder of their own,
//! gone when dropped. Never touches a server that it did not start.

mod account;
mod error;
mod find;
mod server;

pub use account::Account;
pub use error::ThrowawayError;
pub use find::{Programs, find_any, find_major, find_tool};
pub use server::{Options, Server};
