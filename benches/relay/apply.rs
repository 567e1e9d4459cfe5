//! Cases A and P: a backlog drained into the target by each contestant in turns, from its own copy of one slot.

use std::time::Duration;

use tokio::time::Instant;

use super::backlog::Backlog;
use super::comparison::{Comparison, Kind, each, with_spread};
use super::database::RUN;
use super::decode;
use super::harness::{client, value};
use super::measure::{median, memory_mb};
use super::peer::{Attached, Origin, Peer, attach, prepare};
use super::plan::Plan;
use super::report::{Cost, Report};
use super::usage::{Meter, Usage};
use super::workload::Workload;

/// How often it is looked whether the end is reached.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Between two looks whether walrelay has given up.
const LIVE_EVERY: u32 = 50;

/// Our wall time over its bound, at most.
const BOUND_AIM: f64 = 1.2;

/// One drain.
#[derive(Clone, Copy, Debug)]
pub struct Drain {
    /// From both sides connected to the last row visible and the slot confirmed past it.
    pub wall_s: f64,
    /// From the same moment to the last row visible.
    pub visible_s: f64,
    /// CPU.
    pub usage: Usage,
    /// Of it, the walsenders'.
    pub walsender_s: f64,
    /// walrelay's peak resident set.
    pub peak_mb: f64,
    /// False if it was cut off at the limit: then the times are what was reached.
    pub is_whole: bool,
}

/// Waits for the end; gives the moments of "visible" and "confirmed".
async fn until_done(backlog: &Backlog, attached: &Attached, peer: Peer, limit: Duration) -> Option<(Instant, Instant)> {
    let target = client(&backlog.pair.standby, RUN).await;
    let primary = client(&backlog.pair.primary, "postgres").await;
    let visible = target.prepare("SELECT count(*) FROM bench_marker").await.unwrap();
    let names: Vec<&str> = peer.links().iter().map(|(name, _)| *name).collect();
    let sql = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = ANY ($1::text[]) AND confirmed_flush_lsn >= $2::text::pg_lsn";
    let confirmed = primary.prepare(sql).await.unwrap();
    let began = Instant::now();
    let mut visible_at = None;
    for look in 1.. {
        if visible_at.is_none() && target.query_one(&visible, &[]).await.unwrap().get::<_, i64>(0) == 1 {
            visible_at = Some(Instant::now());
        }
        if let Some(visible_at) = visible_at {
            let count: i64 = primary.query_one(&confirmed, &[&names, &backlog.target_lsn]).await.unwrap().get(0);
            if count as usize == names.len() {
                return Some((visible_at, Instant::now()));
            }
        }
        if look % LIVE_EVERY == 0 {
            attached.must_live().await;
            if began.elapsed() > limit {
                return None;
            }
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    None
}

/// One turn of one contestant.
pub async fn turn(backlog: &Backlog, plan: &Plan, peer: Peer) -> Drain {
    let pair = &backlog.pair;
    let origin = Origin { database: "shop", port: backlog.port };
    backlog.reset_target(plan).await;
    for (name, _) in peer.links() {
        backlog.copy_slot(name).await;
    }
    prepare(pair, plan, origin, peer).await;
    let meter = Meter::start(&[&pair.primary, &pair.standby], None);
    let (attached, connected) = attach(pair, plan, origin, peer).await;
    let done = until_done(backlog, &attached, peer, Duration::from_secs(plan.limit_seconds)).await;
    let usage = meter.stop(attached.process_id());
    let walsender_s = attached.walsender_s(pair).await;
    let peak_mb = attached.process_id().map_or(0.0, |id| memory_mb(id, "VmHWM"));
    let (visible, confirmed) = done.unwrap_or((Instant::now(), Instant::now()));
    attached.detach(pair, done.is_some()).await;
    if done.is_some() {
        backlog.verify(peer.title()).await;
    }
    Drain {
        wall_s: confirmed.duration_since(connected).as_secs_f64(),
        visible_s: visible.duration_since(connected).as_secs_f64(),
        usage,
        walsender_s,
        peak_mb,
        is_whole: done.is_some(),
    }
}

/// Every contestant of a workload in turns.
pub async fn run(backlog: &Backlog, plan: &Plan, workload: &Workload, report: &mut Report) {
    let mut peers = vec![(Peer::Native, workload.native_rounds), (workload.own, None)];
    peers.extend(workload.more_peers.iter().map(|peer| (*peer, None)));
    let mut drains: Vec<Vec<Drain>> = vec![Vec::new(); peers.len()];
    let mut decoded_s = Vec::new();
    for round in 0..plan.rounds {
        for (at, (peer, rounds)) in peers.iter().enumerate() {
            if rounds.is_none_or(|rounds| round < rounds) {
                let drain = turn(backlog, plan, *peer).await;
                report.progress(&format!(
                    "{} round {}: {} {:.2} s{}{}",
                    workload.case,
                    round + 1,
                    peer.title(),
                    drain.wall_s,
                    if drain.is_whole { "" } else { ", cut off" },
                    if drain.usage.is_disturbed() { ", disturbed" } else { "" },
                ));
                drains[at].push(drain);
            }
        }
        decoded_s.push(decode::own(backlog, workload).await.client.wall_s);
    }
    let version = value(&backlog.pair.primary, "postgres", "SHOW server_version").await;
    report.case(workload.case, &format!("{} (PostgreSQL {version})", workload.title));
    for ((peer, _), drains) in peers.iter().zip(&drains) {
        report.cost(cost(workload, peer.title(), drains));
    }
    compare(workload, &drains, report);
    let ratios = drains[1]
        .iter()
        .zip(&decoded_s)
        .map(|(drain, decoded_s)| drain.wall_s / bound_s(drain, *decoded_s, workload.own));
    let name = "wall / its bound";
    report.compare(Comparison::absolute(workload.case, name, "×", ratios.collect(), Some(BOUND_AIM)));
}

/// No applier on one slot and one connection ends sooner: the stream must be decoded, the target's backend must do its work, and all of
/// it must fit the processors. The target's CPU stands for the time that the same batches would take from memory, which is not less; where
/// sessions read ahead it is that of several backends, and bounds nothing.
fn bound_s(drain: &Drain, decoded_s: f64, own: Peer) -> f64 {
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as f64;
    let target_s = if own == Peer::RelayPrefetch { 0.0 } else { drain.usage.target_s };
    decoded_s.max(target_s).max(drain.usage.sum_s() / processors)
}

/// What one contestant cost, in medians.
fn cost(workload: &Workload, title: &str, drains: &[Drain]) -> Cost {
    let middle = |value: fn(&Drain) -> f64| median(drains.iter().map(value));
    let seconds = |value: fn(&Drain) -> f64| format!("{:.2}", middle(value));
    let peak = middle(|drain| drain.peak_mb);
    [
        workload.case.to_owned(),
        title.to_owned(),
        with_spread(&each(drains, |drain| drain.wall_s), "s"),
        seconds(|drain| drain.visible_s),
        format!("{:.0} {}/s", workload.units as f64 / middle(|drain| drain.wall_s), workload.unit),
        format!("{} ({})", seconds(|drain| drain.usage.primary_s), seconds(|drain| drain.walsender_s)),
        seconds(|drain| drain.usage.target_s),
        seconds(|drain| drain.usage.own_s),
        seconds(|drain| drain.usage.sum_s()),
        if peak > 0.0 { format!("{peak:.0} MB") } else { String::new() },
    ]
}

fn compare(workload: &Workload, drains: &[Vec<Drain>], report: &mut Report) {
    let (native, own) = (&drains[0], &drains[1]);
    let comparison = |measure: &str, kind, value: fn(&Drain) -> f64, peer: &[Drain], peer_name: &str, aim| {
        let disturbed = own.iter().chain(peer).filter(|drain| drain.usage.is_disturbed()).count();
        let cut_off = own.iter().chain(peer).filter(|drain| !drain.is_whole).count();
        let alone = Comparison::absolute(workload.case, measure, "s", each(own, value), aim);
        Comparison { cut_off, ..alone.against(kind, peer_name, each(peer, value), disturbed) }
    };
    let (wall, cpu) = (|drain: &Drain| drain.wall_s, |drain: &Drain| drain.usage.sum_s());
    report.compare(comparison("wall", Kind::Speed, wall, native, "native", workload.aims.speed));
    report.compare(comparison("sum of CPU", Kind::Share, cpu, native, "native", workload.aims.cpu));
    let walsender = |drain: &Drain| drain.walsender_s;
    report.compare(comparison("walsender CPU", Kind::Share, walsender, native, "native", None));
    for (peer, drains) in workload.more_peers.iter().zip(&drains[2..]) {
        let aim = workload.aims.durable_speed.filter(|_| *peer == Peer::NativeDurable);
        report.compare(comparison("wall", Kind::Speed, wall, drains, peer.title(), aim));
    }
    let peak = each(own, |drain| drain.peak_mb);
    report.compare(Comparison::absolute(workload.case, "peak resident set", "MB", peak, workload.aims.memory_mb));
}
