//! Case R: a backlog received, put together and confirmed, with nothing behind it: walrelay's source, assembler and ledger against
//! `pg_recvlogical`, and what each makes the walsender pay.

use super::backlog::Backlog;
use super::drain::{Drain, Reader, Source, run_one};
use super::plan::Plan;
use super::report::{Comparison, Kind, Report};
use super::workload::Workload;

/// pg_recvlogical's wall time over ours, at least.
const SPEED_AIM: f64 = 1.7;
/// Our client CPU over its own, at most.
const CLIENT_AIM: f64 = 0.2;
/// The walsender's CPU under us over that under it, at most.
const WALSENDER_AIM: f64 = 0.65;

fn source<'a>(backlog: &'a Backlog, plan: &Plan, workload: &Workload) -> Source<'a> {
    Source {
        server: &backlog.pair.primary,
        database: "shop",
        target: &backlog.target_lsn,
        // And the marker.
        changes: workload.changes + 1,
        major: plan.major,
    }
}

/// On a backlog of case A.
pub async fn run(backlog: &Backlog, plan: &Plan, workload: &Workload, report: &mut Report) {
    let case = format!("r {}", workload.case);
    report.case(&case, &format!("decode only, {}", workload.title));
    turns(&source(backlog, plan, workload), plan, &case, report).await;
}

/// walrelay's alone: what no applier can be faster than.
pub async fn own(backlog: &Backlog, plan: &Plan, workload: &Workload) -> Drain {
    run_one(&source(backlog, plan, workload), Reader::Relay).await
}

/// The readers in turns; the eager one shows what the adaptive reading gains.
pub async fn turns(source: &Source<'_>, plan: &Plan, case: &str, report: &mut Report) {
    let mut drains: [Vec<Drain>; 3] = Default::default();
    for round in 0..plan.rounds {
        for (reader, drains) in [Reader::PgRecvlogical, Reader::Eager, Reader::Relay].into_iter().zip(&mut drains) {
            let drain = run_one(source, reader).await;
            report.progress(&format!("{case} round {}: {reader:?} {:.2} s", round + 1, drain.client.wall_s));
            drains.push(drain);
        }
    }
    let [peer, eager, own] = &drains;
    let of = |drains: &[Drain], value: fn(&Drain) -> f64| drains.iter().map(value).collect::<Vec<f64>>();
    let mut compare = |measure: &str, kind, value: fn(&Drain) -> f64, peer: (&str, &[Drain]), aim| {
        report.compare(Comparison {
            case: case.to_owned(),
            measure: measure.to_owned(),
            unit: "s",
            kind,
            own: of(own, value),
            peer_name: peer.0.to_owned(),
            peer: of(peer.1, value),
            aim,
            disturbed: own.iter().chain(peer.1).filter(|drain| drain.is_disturbed).count(),
            cut_off: 0,
        });
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
