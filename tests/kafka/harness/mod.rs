//! What the tests with a Kafka broker share: a feed (primary, broker, relay), a reader of topics, tables rebuilt from events.

mod feed;
mod reader;
mod rebuild;

#[path = "../../relay/harness/mod.rs"]
mod servers;

pub use feed::{Feed, broker, broker_with, config, fails_with, streams, waits_with};
pub use reader::{Reader, Record};
pub use rebuild::Tables;
pub use servers::{
    PATIENCE, Relay, Rows, certificates, client, eventually, rows, start_server, try_run, value, values,
};
