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

/// The two readers in turns.
pub async fn run(backlog: &Backlog, plan: &Plan, workload: &Workload, report: &mut Report) {
    let source = Source {
        server: &backlog.pair.primary,
        database: "shop",
        target: &backlog.target_lsn,
        // And the marker.
        changes: workload.changes + 1,
    };
    let (mut peer, mut own) = (Vec::new(), Vec::new());
    for _ in 0..plan.rounds {
        peer.push(run_one(&source, Reader::PgRecvlogical).await);
        own.push(run_one(&source, Reader::Relay).await);
    }
    let case = format!("r {}", workload.case);
    report.case(&case, &format!("decode only, {}", workload.title));
    let of = |drains: &[Drain], value: fn(&Drain) -> f64| drains.iter().map(value).collect::<Vec<f64>>();
    let mut compare = |measure: &str, kind, value: fn(&Drain) -> f64, aim| {
        report.compare(Comparison {
            case: case.clone(),
            measure: measure.to_owned(),
            unit: "s",
            kind,
            own: of(&own, value),
            peer_name: "pg_recvlogical".to_owned(),
            peer: of(&peer, value),
            aim: Some(aim),
            disturbed: 0,
            cut_off: 0,
        });
    };
    compare("wall", Kind::Speed, |drain| drain.client.wall_s, SPEED_AIM);
    compare("CPU of the client", Kind::Share, |drain| drain.client.cpu_s, CLIENT_AIM);
    compare("walsender CPU", Kind::Share, |drain| drain.walsender_cpu_s, WALSENDER_AIM);
}
