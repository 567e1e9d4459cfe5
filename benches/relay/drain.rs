//! Draining a backlog to nothing: the relay's source, assembler and ledger against `pg_recvlogical --file /dev/null`, both over
//! TCP, each from its own copy of one slot.

use std::path::Path;
use std::process::Command;

use walrelay::config::Environment;
use walrelay::throwaway::{Server, find_tool};

use super::harness::{client, eventually, start_server, value, values};
use super::measure::{Run, median, run, verdict};
use super::{Plan, drain_client, options};

/// The aim of issue A: at least this much faster, …
const SPEED_AIM: f64 = 1.7;
/// … with at most this part of the client CPU, on backlogs of small inserts.
const CPU_AIM: f64 = 0.15;

#[derive(Clone, Copy, Debug)]
enum Reader {
    PgRecvlogical,
    /// The relay with `SO_RCVLOWAT` left alone.
    Eager,
    Relay,
}

async fn run_one(server: &Server, reader: Reader, target: &str, rows: u64) -> Run {
    // The walsender of the last run notices the end of its client a moment later.
    eventually("the slot of the last run is free", || async {
        let active = "SELECT count(*) FROM pg_replication_slots WHERE active";
        (value(server, "postgres", active).await == "0").then_some(())
    })
    .await;
    let copy = "SELECT pg_drop_replication_slot('run') FROM pg_replication_slots WHERE slot_name = 'run'; \
                SELECT pg_copy_logical_replication_slot('base', 'run')";
    values(server, "postgres", copy).await;
    let url = server.url("postgres");
    let mut command = match reader {
        Reader::PgRecvlogical => {
            let program =
                find_tool("pg_recvlogical", &Environment::of_process(), Path::new(env!("CARGO_MANIFEST_DIR")));
            let mut command = Command::new(program.expect("pg_recvlogical: scripts/fetch-servers tools"));
            command.args(["--start", "--no-loop", "--slot=run", "--file=/dev/null", "--plugin=pgoutput"]);
            command.args(["-o", "proto_version=4", "-o", "publication_names=bench", "-o", "streaming=on"]);
            command.arg(format!("--endpos={target}")).arg(format!("--dbname={url}"));
            command
        }
        Reader::Eager | Reader::Relay => {
            let mut command = Command::new(std::env::current_exe().unwrap());
            let reading = if matches!(reader, Reader::Relay) { "adaptive" } else { "eager" };
            command.args([drain_client::VERB, &url, "run", "bench", target, reading, &rows.to_string()]);
            command
        }
    };
    tokio::task::block_in_place(|| run(&mut command))
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
    let mut runs: [Vec<Run>; 3] = Default::default();
    for _ in 0..plan.rounds {
        for (at, reader) in [Reader::PgRecvlogical, Reader::Eager, Reader::Relay].into_iter().enumerate() {
            runs[at].push(run_one(&server, reader, &target, rows).await);
        }
    }
    let wall = runs.each_ref().map(|runs| median(runs.iter().map(|run| run.wall_s)));
    let cpu = runs.each_ref().map(|runs| median(runs.iter().map(|run| run.cpu_s)));
    let (speed, share) = (wall[0] / wall[2], cpu[2] / cpu[0]);
    println!(
        "  {rows} rows, {rows_each:>5} a transaction: pg_recvlogical {:.2} s, CPU {:.2} s | walrelay {:.2} s, CPU {:.2} s (eager reading: {:.2} s, CPU {:.2} s) \
         | {speed:.2}x the speed (aim {SPEED_AIM}x: {}), {:.0} % of the CPU (aim {:.0} %: {})",
        wall[0],
        cpu[0],
        wall[2],
        cpu[2],
        wall[1],
        cpu[1],
        verdict(speed >= SPEED_AIM),
        share * 100.0,
        CPU_AIM * 100.0,
        verdict(share <= CPU_AIM),
    );
}

/// Backlogs of three shapes.
pub async fn run_shapes(plan: &Plan) {
    println!("drain of a backlog, medians of {} rounds:", plan.rounds);
    for (rows_each, rows) in [(10_000, plan.rows), (100, plan.rows), (1, plan.rows * 3 / 10)] {
        shape(plan, rows_each, rows / rows_each * rows_each).await;
    }
}
