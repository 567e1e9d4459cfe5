//! Cases R and `drain`: a backlog received, put together and confirmed, with nothing behind it: walrelay's source, assembler and ledger
//! against `pg_recvlogical`, and what each makes the walsender pay.

use super::backlog::Backlog;
use super::comparison::{Comparison, Kind, each};
use super::drain::{Drain, Reader, Source, run_one};
use super::harness::{client, start_server, value, values};
use super::plan::Plan;
use super::report::Report;
use super::servers::options;
use super::workload::Workload;

/// pg_recvlogical's wall time over ours, at least.
const SPEED_AIM: f64 = 1.7;
/// Our client CPU over its own, at most.
const CLIENT_AIM: f64 = 0.2;
/// The walsender's CPU under us over that under it, at most.
const WALSENDER_AIM: f64 = 0.65;

fn source<'a>(backlog: &'a Backlog, workload: &Workload) -> Source<'a> {
    Source {
        server: &backlog.pair.primary,
        database: "shop",
        target: &backlog.target_lsn,
        // And the marker.
        changes: workload.changes + 1,
    }
}

/// On a backlog of case A.
pub async fn run(backlog: &Backlog, plan: &Plan, workload: &Workload, report: &mut Report) {
    let case = format!("r {}", workload.case);
    report.case(&case, &format!("decode only, {}", workload.title));
    turns(&source(backlog, workload), plan, &case, report).await;
}

/// walrelay's alone: what no applier can be faster than.
pub async fn own(backlog: &Backlog, workload: &Workload) -> Drain {
    run_one(&source(backlog, workload), Reader::Relay).await
}

async fn shape(plan: &Plan, rows_each: u64, rows: u64, report: &mut Report) {
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
    turns(&source, plan, &format!("drain {rows_each}"), report).await;
}

/// Backlogs of three shapes.
pub async fn run_shapes(plan: &Plan, report: &mut Report) {
    for (rows_each, rows) in [(10_000, plan.rows), (100, plan.rows), (1, plan.rows * 3 / 10)] {
        let rows = rows / rows_each * rows_each;
        report.case(&format!("drain {rows_each}"), &format!("decode only, {rows} rows, {rows_each} a transaction"));
        shape(plan, rows_each, rows, report).await;
    }
}

/// The readers in turns; the eager one shows what the adaptive reading gains.
async fn turns(source: &Source<'_>, plan: &Plan, case: &str, report: &mut Report) {
    let mut drains: [Vec<Drain>; 3] = Default::default();
    for round in 0..plan.rounds {
        for (reader, drains) in [Reader::PgRecvlogical, Reader::Eager, Reader::Relay].into_iter().zip(&mut drains) {
            let drain = run_one(source, reader).await;
            report.progress(&format!("{case} round {}: {reader:?} {:.2} s", round + 1, drain.client.wall_s));
            drains.push(drain);
        }
    }
    let [peer, eager, own] = &drains;
    let mut compare = |measure: &str, kind, value: fn(&Drain) -> f64, (peer_name, peer): (&str, &[Drain]), aim| {
        let disturbed = own.iter().chain(peer).filter(|drain| drain.is_disturbed).count();
        let alone = Comparison::absolute(case, measure, "s", each(own, value), aim);
        report.compare(alone.against(kind, peer_name, each(peer, value), disturbed));
    };
    let wall = |drain: &Drain| drain.client.wall_s;
    let client = |drain: &Drain| drain.client.cpu_s;
    let walsender = |drain: &Drain| drain.walsender_cpu_s;
    let (peer, eager) = (("pg_recvlogical", &peer[..]), ("walrelay, reading eagerly", &eager[..]));
    compare("wall", Kind::Speed, wall, peer, Some(SPEED_AIM));
    compare("CPU of the client", Kind::Share, client, peer, Some(CLIENT_AIM));
    compare("walsender CPU", Kind::Share, walsender, peer, Some(WALSENDER_AIM));
    compare("wall", Kind::Speed, wall, eager, None);
    compare("walsender CPU", Kind::Share, walsender, eager, None);
}
