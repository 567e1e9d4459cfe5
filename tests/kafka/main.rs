//! Tests with a real Kafka broker: Apache Kafka, PostgreSQL, the built walrelay binary, real crashes; a configuration text in,
//! records of a topic out. Each test starts what it needs and leaves nothing behind. `scripts/fetch-kafka` and
//! `scripts/fetch-servers` bring the servers.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
// The harness offers more than each subject uses, and `pub` is plain inside one test program.
#![allow(dead_code, unused_imports, unreachable_pub)]

mod harness;

mod brokers;
mod counters;
mod debezium_offsets;
mod debezium_takeover;
mod delivery;
mod exactly_once;
mod example;
mod golden;
mod joining;
mod keys;
mod large;
mod left_open;
mod life;
mod oversized;
mod readable;
mod resync;
mod resync_in_parts;
mod resync_partitions;
mod shapes;
mod slow;
mod synchronous;
mod takeover;
mod trouble;
