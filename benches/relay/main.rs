//! `make bench`: speed, CPU and memory of the relay as ratios against its peers (`pg_recvlogical`, the native subscription, a physical
//! standby, `psql COPY | psql COPY`, Debezium), measured in one run on throw-away servers. `benches/README.md` explains the cases and
//! their parameters. Judges nothing but what it prints.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]
#![allow(unreachable_pub)]

// The same servers and the same relay process as in the tests; the benchmarks need only a part of it.
#[allow(dead_code, unused_imports)]
#[path = "../../tests/relay/harness/mod.rs"]
mod harness;

mod apply;
mod backlog;
mod bare_standby;
mod commit;
mod comparison;
mod copy;
mod database;
mod decode;
mod drain;
mod drain_client;
mod feed;
mod from_memory;
mod live;
mod measure;
mod memory_client;
mod peer;
mod physical;
mod plan;
mod plot;
mod program;
mod report;
mod resident;
mod results;
mod servers;
mod stage;
mod synchronous;
mod usage;
mod workload;

use harness::value;
use plan::{CASES, Plan};
use report::Report;
use servers::options;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if arguments.get(1).map(String::as_str) == Some(drain_client::VERB) {
        return drain_client::main(&arguments[2..]);
    }
    if arguments.get(1).map(String::as_str) == Some(memory_client::VERB) {
        return memory_client::main(&arguments[2..]);
    }
    let plan = Plan::of_environment();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    // Servers end with the thread that starts them: this one.
    runtime.block_on(run(&plan));
}

async fn run(plan: &Plan) {
    let server = harness::start_server(plan.major, options()).await;
    let version = value(&server, "postgres", "SELECT version()").await;
    drop(server);
    let mut report = Report::new(results::stem(), results::head(plan, &version), plan.is_quick);
    for line in &report.head {
        println!("{line}");
    }
    backlogs(plan, &mut report).await;
    // Each case is kept as soon as it is over.
    for case in CASES {
        if plan.wants(case) && live_case(case, plan, &mut report).await {
            results::write(&report);
        }
    }
    results::finish(&report);
}

/// A case that has no backlog; false where this is none.
async fn live_case(case: &str, plan: &Plan, report: &mut Report) -> bool {
    match case {
        "b" => live::run(plan, report).await,
        "c" => synchronous::run(plan, report).await,
        "d" => copy::run(plan, report).await,
        "k" => feed::run(plan, report).await,
        "k2" if !plan.wants("k") => feed::run(plan, report).await,
        "drain" => decode::run_shapes(plan, report).await,
        "commit" => commit::run(plan, report).await,
        "idle" => resident::idle(plan, report).await,
        "large" => resident::large(plan, report).await,
        _ => return false,
    }
    true
}

/// Cases A and P, and R on the backlogs of A1 and A3.
async fn backlogs(plan: &Plan, report: &mut Report) {
    for workload in workload::all(plan) {
        let is_decoded = plan.wants("r") && matches!(workload.case, "a1" | "a3");
        if !is_decoded && !plan.wants(workload.case) {
            continue;
        }
        report.progress(&format!("{}: writing {}", workload.case, workload.title));
        let backlog = backlog::Backlog::write(plan, &workload).await;
        if is_decoded {
            decode::run(&backlog, plan, &workload, report).await;
        }
        if plan.wants(workload.case) {
            apply::run(&backlog, plan, &workload, report).await;
        }
        results::write(report);
    }
}
