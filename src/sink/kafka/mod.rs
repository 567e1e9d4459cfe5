//! Kafka: changes become records that are written exactly once. Never confirms anything to the primary.

pub mod encode;
pub mod partition;
#[cfg(feature = "kafka")]
pub mod transport;
