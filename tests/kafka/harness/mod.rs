//! What the tests with a Kafka broker share: a feed (primary, broker, relay), a reader of topics, tables rebuilt from events.

mod acl;
mod feed;
mod load;
mod reader;
mod rebuild;
mod trickle;

#[path = "../../relay/harness/mod.rs"]
mod servers;

pub use acl::Acl;
pub use feed::{Feed, broker, broker_with, config, fails_with, second_broker, streams, waits_with};
pub use load::{ACCOUNTS, Load, TABLES as LOAD_TABLES};
pub use reader::{Reader, Record};
pub use rebuild::Tables;
pub use servers::{
    PATIENCE, Relay, Rows, certificates, client, eventually, rows, start_server, try_run, value, values,
};
pub use trickle::trickle;
