//! Draining a backlog to nothing: the relay's source, assembler and ledger against `pg_recvlogical --file /dev/null`, both over
//! TCP, each from its own copy of one slot.

use std::process::Command;

use walrelay::throwaway::Server;

use super::backlog::tool;
use super::harness::{client, eventually, start_server, value, values};
use super::measure::{Run, ended_children_cpu_s, median, run, verdict};
use super::drain_client;
use super::plan::{Plan, options};

/// The aim of issue A: at least this much faster, …
const SPEED_AIM: f64 = 1.7;
/// … with at most this part of the client CPU, on backlogs of small inserts.
const CPU_AIM: f64 = 0.15;

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
    /// The walsender's CPU.
    pub walsender_cpu_s: f64,
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

/// One drain of a copy of the slot.
pub async fn run_one(source: &Source<'_>, reader: Reader) -> Drain {
    let Source { server, database, target, changes } = source;
    let copy = "SELECT pg_drop_replication_slot('run') FROM pg_replication_slots WHERE slot_name = 'run'; \
                SELECT pg_copy_logical_replication_slot('base', 'run')";
    values(server, database, copy).await;
    let url = server.url(database);
    let mut command = match reader {
        Reader::PgRecvlogical => {
            let mut command = Command::new(tool("pg_recvlogical"));
            command.args(["--start", "--no-loop", "--slot=run", "--file=/dev/null", "--plugin=pgoutput"]);
            command.args(["-o", "proto_version=4", "-o", "publication_names=bench", "-o", "streaming=on", "-o", "binary=true"]);
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
    let postmaster = server.process_id().unwrap();
    let cpu_before = ended_children_cpu_s(postmaster);
    let client = tokio::task::block_in_place(|| run(&mut command));
    walsender_ended(server).await;
    // A few short sessions of ours are in it too.
    Drain { client, walsender_cpu_s: ended_children_cpu_s(postmaster) - cpu_before }
}

async fn shape(plan: &Plan, rows_each: u64, rows: u64) {
    let server = start_server(plan.major, options()).await;
    let prepare = "CREATE TABLE backlog (id bigint PRIMARY KEY, a int, filler text); \
                   CREATE PUBLICATION bench FOR TABLE backlog";
    values(&server, "postgres", prepare).await;
    values(&server, "postgres", "SELECT pg_create_logical_replication_slot('base', 'pgoutput')").await;
    let transactions = rows / rows_each;
    let fill = format!(
        "SET synchronous_commit = off; DO $$ BEGIN FOR i IN 0..{} LOOP \
           INSERT INTO backlog SELECT i * {rows_each}::bigint + r, r, repeat('x', 20) FROM generate_series(1, {rows_each}) r; COMMIT; \
         END LOOP; END $$",
        transactions - 1
    );
    // DO may commit only outside a transaction block: one statement a message.
    let session = client(&server, "postgres").await;
    for statement in fill.splitn(2, "; ") {
        session.batch_execute(statement).await.unwrap();
    }
    values(&server, "postgres", "CHECKPOINT").await;
    let target = value(&server, "postgres", "SELECT pg_current_wal_lsn()").await;
    let source = Source { server: &server, database: "postgres", target: &target, changes: rows };
    let mut drains: [Vec<Drain>; 3] = Default::default();
    for _ in 0..plan.rounds {
        for (at, reader) in [Reader::PgRecvlogical, Reader::Eager, Reader::Relay].into_iter().enumerate() {
            drains[at].push(run_one(&source, reader).await);
        }
    }
    report(&format!("{rows} rows, {rows_each} a transaction"), &drains);
}

fn report(title: &str, drains: &[Vec<Drain>; 3]) {
    println!("  {title}:");
    let medians = drains.each_ref().map(|drains| {
        let of = |value: fn(&Drain) -> f64| median(drains.iter().map(value));
        [of(|drain| drain.client.wall_s), of(|drain| drain.client.cpu_s), of(|drain| drain.walsender_cpu_s)]
    });
    for (name, [wall, cpu, walsender]) in ["pg_recvlogical", "walrelay, eager", "walrelay"].iter().zip(medians) {
        println!("    {name:<16} {wall:>6.2} s, CPU of the client {cpu:>5.2} s, of the walsender {walsender:>5.2} s");
    }
    let [peer, _, own] = medians;
    let (speed, share) = (peer[0] / own[0], own[1] / peer[1]);
    println!(
        "    {speed:.2}x the speed (aim {SPEED_AIM}x: {}), {:.0} % of the client CPU (aim {:.0} %: {}), {:.2}x the walsender CPU",
        verdict(speed >= SPEED_AIM),
        share * 100.0,
        CPU_AIM * 100.0,
        verdict(share <= CPU_AIM),
        own[2] / peer[2],
    );
}

/// Backlogs of three shapes.
pub async fn run_shapes(plan: &Plan) {
    println!("drain of a backlog, medians of {} rounds:", plan.rounds);
    for (rows_each, rows) in [(10_000, plan.rows), (100, plan.rows), (1, plan.rows * 3 / 10)] {
        shape(plan, rows_each, rows / rows_each * rows_each).await;
    }
}
