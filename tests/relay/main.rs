//! Tests with real servers: PostgreSQL 14 to 18, the built walrelay binary, real crashes. Each test starts what it needs and
//! leaves nothing behind. `scripts/fetch-servers all tools` brings the servers.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
// The harness offers more than each subject uses, and `pub` is plain inside one test program.
#![allow(dead_code, unused_imports, unreachable_pub)]

mod harness;

mod acceptance;
mod ahead;
mod bad_input;
mod beside;
mod binary;
mod check;
mod check_more;
mod connect;
mod copy;
mod copy_steps;
mod crash;
mod differential;
mod drift;
mod durability;
mod facts;
mod far;
mod first_steps;
mod hosts;
mod prefetch;
mod random_schema;
mod random_work;
mod returning;
mod rights;
mod safety;
mod servers;
mod service;
mod sink;
mod starting;
mod subscription;
mod synchronous;
mod table_set;
mod tail;
mod types;
