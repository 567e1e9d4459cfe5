//! The PostgreSQL frontend/backend protocol, built on `postgres-protocol`: connections, TLS, authentication, frames. Knows no pgoutput.

mod attempt;
mod certificate;
mod connect;
mod connection;
mod error;
pub mod frame;
mod pem;
pub mod replication;
pub mod sql;
mod sql_client;
mod startup;
mod tls;
mod transport;
mod verify;

pub use connection::{Connection, OwnedMessage, QueryResult, Session};
pub use error::{ServerError, WireError};
