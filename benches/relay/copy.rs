//! The initial copy against `psql COPY TO (FORMAT binary) | psql COPY FROM`: one table, and four.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use walrelay::config::Environment;
use walrelay::throwaway::find_tool;

use super::harness::{Pair, Relay, eventually, value, values};
use super::measure::{median, verdict};
use super::pair;
use super::plan::Plan;

/// The aim of issue A: at least this part of the pipe's rate for one table; for four, more than the pipe's one after the other.
const AIM: f64 = 0.9;

fn table(number: usize) -> String {
    format!(
        "CREATE TABLE c{number} (id bigint PRIMARY KEY, a int, b bigint, at timestamptz, amount float8, filler text)"
    )
}

/// An empty database of its own for each run, gone after it.
async fn target(pair: &Pair) {
    values(&pair.standby, "postgres", "DROP DATABASE IF EXISTS run WITH (FORCE)").await;
    values(&pair.standby, "postgres", "CREATE DATABASE run TEMPLATE shop").await;
    values(&pair.standby, "postgres", "CHECKPOINT").await;
}

async fn check(pair: &Pair, tables: usize, rows: u64) {
    for number in 0..tables {
        let count = value(&pair.standby, "run", &format!("SELECT count(*) FROM c{number}")).await;
        assert_eq!(count, rows.to_string(), "rows of c{number}");
    }
}

/// Seconds for `tables` pipes of psql, one after the other or all at once.
async fn pipes(pair: &Pair, tables: usize, is_parallel: bool) -> f64 {
    target(pair).await;
    let psql = find_tool("psql", &Environment::of_process(), Path::new(env!("CARGO_MANIFEST_DIR")));
    let psql = psql.expect("psql: scripts/fetch-servers tools");
    let commands: Vec<String> = (0..tables)
        .map(|number| {
            format!(
                "\"{psql}\" -X -q -d {} -c 'COPY c{number} TO STDOUT (FORMAT binary)' | \
                 \"{psql}\" -X -q -d {} -c 'COPY c{number} FROM STDIN (FORMAT binary)'",
                pair.primary.url("shop"),
                pair.standby.url("run"),
                psql = psql.display()
            )
        })
        .collect();
    let script = if is_parallel { format!("{} & wait", commands.join(" & ")) } else { commands.join(" && ") };
    let began = Instant::now();
    let status = tokio::task::block_in_place(|| Command::new("sh").arg("-c").arg(&script).status());
    assert!(status.unwrap().success(), "{script}");
    began.elapsed().as_secs_f64()
}

/// Seconds from the start of the process to the end of its copy.
async fn relay(pair: &Pair, tables: usize) -> f64 {
    target(pair).await;
    let config = format!(
        "[primary]\nurl = \"{}\"\n[[pipeline]]\nname = \"standby1\"\ntables = [{}]\n[pipeline.sink]\ntype = \"postgres\"\nurl = \"{}\"\n",
        pair.primary.url("shop"),
        (0..tables).map(|number| format!("\"public.c{number}\"")).collect::<Vec<_>>().join(", "),
        pair.standby.url("run")
    );
    let began = Instant::now();
    let mut relay = Relay::start_with(&config, &[("WALRELAY__LOG__LEVEL", "info")]).await;
    let is_copied = |report: &serde_json::Value| {
        report["copy"]["tables_done"] == tables && matches!(report["state"].as_str(), Some("catching_up" | "streaming"))
    };
    relay.wait("standby1", "the copy is done", is_copied).await;
    let seconds = began.elapsed().as_secs_f64();
    relay.wait_state("streaming").await;
    relay.stop().await;
    eventually("the slot is free", || async {
        let sql = "SELECT count(*) FROM pg_replication_slots WHERE active";
        (value(&pair.primary, "shop", sql).await == "0").then_some(())
    })
    .await;
    pair.on_primary("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots").await;
    pair.on_primary("DROP PUBLICATION walrelay_standby1").await;
    seconds
}

/// One table, then four.
pub async fn run(plan: &Plan) {
    let pair = pair(plan.major).await;
    for number in 0..4 {
        pair.on_both(&table(number)).await;
        let fill = format!(
            "INSERT INTO c{number} SELECT i, i % 1000, i * 7, now() + i * interval '1 second', i / 3.0, repeat(md5(i::text), 4) \
             FROM generate_series(1, {}) i",
            plan.rows
        );
        pair.on_primary(&fill).await;
    }
    pair.on_primary("VACUUM FREEZE").await;
    values(&pair.primary, "postgres", "CHECKPOINT").await;
    println!("initial copy, tables of {} rows, medians of {} rounds:", plan.rows, plan.rounds);
    for tables in [1, 4] {
        let (mut own, mut serial, mut parallel) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..plan.rounds {
            serial.push(pipes(&pair, tables, false).await);
            check(&pair, tables, plan.rows).await;
            own.push(relay(&pair, tables).await);
            check(&pair, tables, plan.rows).await;
            if tables > 1 {
                parallel.push(pipes(&pair, tables, true).await);
                check(&pair, tables, plan.rows).await;
            }
        }
        let (own, serial) = (median(own), median(serial));
        let ratio = serial / own;
        let rate = tables as f64 * plan.rows as f64 / own;
        let aim = if tables == 1 { AIM } else { 1.0 };
        print!(
            "  {tables} table(s): psql | psql binary {serial:.2} s, walrelay {own:.2} s ({rate:.0} rows/s): {ratio:.2}x the rate (aim {aim}x: {})",
            verdict(ratio >= aim)
        );
        if tables > 1 {
            let parallel = median(parallel);
            print!("; four pipes at once {parallel:.2} s: {:.2}x", parallel / own);
        }
        println!();
    }
}
