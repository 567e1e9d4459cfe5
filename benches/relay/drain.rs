//! Draining a backlog to nothing: the relay's source, assembler and ledger against `pg_recvlogical --file /dev/null`, both over
//! TCP, each from its own copy of one slot.

use std::process::Command;

use walrelay::throwaway::Server;

use super::drain_client;
use super::harness::{eventually, value, values};
use super::measure::{Run, run};
use super::program::tool;
use super::usage::Meter;

/// Who reads.
#[derive(Clone, Copy, Debug)]
pub enum Reader {
    /// The client that comes with PostgreSQL.
    PgRecvlogical,
    /// The relay with `SO_RCVLOWAT` left alone.
    Eager,
    /// The relay.
    Relay,
}

/// What is read: a backlog behind the slot `base`, published as `bench`.
pub struct Source<'a> {
    /// Where.
    pub server: &'a Server,
    /// Its database.
    pub database: &'a str,
    /// The end of the backlog.
    pub target: &'a str,
    /// Row changes in it.
    pub changes: u64,
}

/// What one drain took, and what it cost the primary.
#[derive(Clone, Copy)]
pub struct Drain {
    /// The reader.
    pub client: Run,
    /// The primary's CPU: next to nothing but the walsender's.
    pub walsender_cpu_s: f64,
    /// Whether strangers took too much.
    pub is_disturbed: bool,
}

/// The walsender of the last run notices the end of its client a moment later.
async fn walsender_ended(server: &Server) {
    eventually("the slot of the last run is free", || async {
        let sql = "SELECT (SELECT count(*) FROM pg_replication_slots WHERE active) + \
                   (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'walsender')";
        (value(server, "postgres", sql).await == "0").then_some(())
    })
    .await;
}

/// The newest protocol that the server offers: what walrelay's own source asks for. Each of them streams open transactions, and
/// has values in binary form.
async fn protocol(server: &Server) -> String {
    let version: u32 = value(server, "postgres", "SHOW server_version_num").await.parse().unwrap();
    let number = match version {
        ..150_000 => 2,
        150_000..160_000 => 3,
        160_000.. => 4,
    };
    format!("proto_version={number}")
}

/// One drain of a copy of the slot.
pub async fn run_one(source: &Source<'_>, reader: Reader) -> Drain {
    let Source { server, database, target, changes } = source;
    let copy = "SELECT pg_drop_replication_slot('run') FROM pg_replication_slots WHERE slot_name = 'run'; \
                SELECT pg_copy_logical_replication_slot('base', 'run')";
    values(server, database, copy).await;
    let url = server.url(database);
    let protocol = protocol(server).await;
    let mut command = match reader {
        Reader::PgRecvlogical => {
            let mut command = Command::new(tool("pg_recvlogical"));
            command.args(["--start", "--no-loop", "--slot=run", "--file=/dev/null", "--plugin=pgoutput"]);
            for option in [protocol.as_str(), "publication_names=bench", "streaming=on", "binary=true"] {
                command.args(["-o", option]);
            }
            command.arg(format!("--endpos={target}")).arg(format!("--dbname={url}"));
            command
        }
        Reader::Eager | Reader::Relay => {
            let mut command = Command::new(std::env::current_exe().unwrap());
            let reading = if matches!(reader, Reader::Relay) { "adaptive" } else { "eager" };
            command.args([drain_client::VERB, &url, "run", "bench", target, reading, &changes.to_string()]);
            command
        }
    };
    let meter = Meter::start(&[server], None);
    let client = tokio::task::block_in_place(|| run(&mut command));
    walsender_ended(server).await;
    let usage = meter.stop(None);
    Drain { client, walsender_cpu_s: usage.primary_s, is_disturbed: usage.is_disturbed() }
}
