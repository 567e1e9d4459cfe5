//! Cases A and P: a backlog drained into the target by each contestant in turns, from its own copy of one slot.

use std::time::Duration;

use tokio::time::Instant;

use super::backlog::Backlog;
use super::comparison::{Comparison, Kind, each, with_spread};
use super::database::RUN;
use super::decode;
use super::from_memory;
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

/// What bounds walrelay, one of each in every round.
#[derive(Default)]
struct Bounds {
    /// R: its own decoding of the backlog with nothing behind it.
    decoded_s: Vec<f64>,
    /// T: the same batches from memory. None in case P.
    from_memory: Vec<Drain>,
}

impl Bounds {
    async fn measure(&mut self, backlog: &Backlog, plan: &Plan, workload: &Workload, report: &mut Report) {
        let case = workload.case;
        // Where sessions read ahead while the stream is decoded, from memory would be another piece of work.
        if workload.own == Peer::Relay {
            let from_memory = Drain::from(from_memory::turn(backlog, plan, workload.own).await);
            self.from_memory.push(from_memory);
            tell(report, case, self.from_memory.len(), from_memory::TITLE, &from_memory);
        }
        let decoded_s = decode::own(backlog, workload).await.client.wall_s;
        self.decoded_s.push(decoded_s);
        report.progress(&format!("{case} round {}: decode only {decoded_s:.2} s", self.decoded_s.len()));
    }

    /// No applier on one slot and one connection ends sooner: the stream must be decoded, the target must take the batches, and all of it
    /// must fit the processors.
    fn of_round(&self, round: usize, drain: &Drain) -> f64 {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as f64;
        let from_memory_s = self.from_memory.get(round).map_or(0.0, |from_memory| from_memory.wall_s);
        self.decoded_s[round].max(from_memory_s).max(drain.usage.sum_s() / processors)
    }

    fn compare(&self, workload: &Workload, own: &[Drain], report: &mut Report) {
        let ratios = own.iter().enumerate().map(|(round, drain)| drain.wall_s / self.of_round(round, drain)).collect();
        let is_disturbed = |round: &usize| {
            let from_memory = self.from_memory.get(*round);
            own[*round].usage.is_disturbed() || from_memory.is_some_and(|turn| turn.usage.is_disturbed())
        };
        let disturbed = (0..own.len()).filter(is_disturbed).count();
        // Where T is none, what bounds it is not known: it waits for reads.
        let aim = (!self.from_memory.is_empty()).then_some(BOUND_AIM);
        let alone = Comparison::absolute(workload.case, "wall / its bound", "×", ratios, aim);
        report.compare(Comparison { disturbed, ..alone });
    }
}

impl From<from_memory::Turn> for Drain {
    fn from(turn: from_memory::Turn) -> Self {
        let from_memory::Turn { wall_s, visible_s, usage } = turn;
        // Nothing is read meanwhile, and its memory is the backlog's.
        Self { wall_s, visible_s, usage, walsender_s: 0.0, peak_mb: 0.0, is_whole: true }
    }
}

fn tell(report: &Report, case: &str, round: usize, title: &str, drain: &Drain) {
    report.progress(&format!(
        "{case} round {round}: {title} {:.2} s{}{}",
        drain.wall_s,
        if drain.is_whole { "" } else { ", cut off" },
        if drain.usage.is_disturbed() { ", disturbed" } else { "" },
    ));
}

/// Every contestant of a workload in turns.
pub async fn run(backlog: &Backlog, plan: &Plan, workload: &Workload, report: &mut Report) {
    let mut peers = vec![(Peer::Native, workload.native_rounds), (workload.own, None)];
    peers.extend(workload.more_peers.iter().map(|peer| (*peer, None)));
    let mut drains: Vec<Vec<Drain>> = vec![Vec::new(); peers.len()];
    let mut bounds = Bounds::default();
    for round in 0..plan.rounds {
        for (at, (peer, rounds)) in peers.iter().enumerate() {
            if rounds.is_none_or(|rounds| round < rounds) {
                let drain = turn(backlog, plan, *peer).await;
                tell(report, workload.case, round + 1, peer.title(), &drain);
                drains[at].push(drain);
            }
        }
        bounds.measure(backlog, plan, workload, report).await;
    }
    let version = value(&backlog.pair.primary, "postgres", "SHOW server_version").await;
    report.case(workload.case, &format!("{} (PostgreSQL {version})", workload.title));
    for ((peer, _), drains) in peers.iter().zip(&drains) {
        report.cost(cost(workload, peer.title(), drains));
    }
    if !bounds.from_memory.is_empty() {
        report.cost(cost(workload, from_memory::TITLE, &bounds.from_memory));
    }
    compare(workload, &drains, report);
    bounds.compare(workload, &drains[1], report);
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
