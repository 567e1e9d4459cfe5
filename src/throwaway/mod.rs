//! Throw-away PostgreSQL servers, Kafka brokers and Connect workers for the demo, the tests and the benchmarks: found or fetched
//! programs, a data folder of their own, gone when dropped. Never touches a server that it did not start.

mod account;
mod broker;
mod connect;
mod error;
mod find;
mod process;
mod server;

pub use account::Account;
pub use broker::{Broker, BrokerOptions, SecureListeners};
pub use connect::{Connect, ConnectOptions, connector_settings, settings};
pub use error::ThrowawayError;
pub use find::{BrokerPrograms, ConnectPrograms, Programs, find_any, find_broker, find_connect, find_major, find_tool};
pub use server::{Options, Server, free_port};
