//! Case B: pgbench on the primary while a contestant follows: what the source loses, what a transaction costs both ends, how old the
//! target's rows are.

use std::time::Duration;

use tokio::time::Instant;

use super::comparison::{Comparison, Kind, each};
use super::database::RUN;
use super::harness::client;
use super::measure::percentile;
use super::peer::{Origin, Peer, attach, prepare};
use super::plan::Plan;
use super::report::Report;
use super::stage::{Load, Stage, read_load};
use super::usage::{Meter, Usage};

const CLIENTS: [usize; 2] = [8, 32];
/// Nobody, and those who follow. The order is that of `Turns`.
const FOLLOWERS: [Option<Peer>; 4] = [None, Some(Peer::Native), Some(Peer::Relay), Some(Peer::RelayNoDelay)];
/// Between two heartbeats.
const BEAT_EVERY: Duration = Duration::from_millis(100);
/// Between two looks for one: what they cost the target counts as its own, and the more the later it comes.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// Our cost of a transaction over native's, at most.
const CPU_AIM: f64 = 0.8;
/// 99th percentile of the age of a row when it appears, at most.
const LAG_AIM_MS: f64 = 50.0;

/// One turn.
struct Turn {
    load: Load,
    usage: Usage,
    /// CPU of what follows: walsender, target, walrelay.
    following_s: f64,
    lag_p99_ms: f64,
}

impl Turn {
    fn following_us(&self) -> f64 {
        self.following_s * 1e6 / self.load.transactions
    }

    fn cpu_us(&self) -> f64 {
        self.usage.sum_s() * 1e6 / self.load.transactions
    }
}

/// Inserts heartbeats and waits for each on the target, until the load is over; gives their ages in ms.
async fn beats<T>(stage: &Stage, load: &tokio::task::JoinHandle<T>) -> Vec<f64> {
    let primary = client(&stage.pair.primary, RUN).await;
    let target = client(&stage.pair.standby, RUN).await;
    let insert = primary.prepare("INSERT INTO bench_beats VALUES ($1)").await.unwrap();
    let look = target.prepare("SELECT count(*) FROM bench_beats WHERE id = $1").await.unwrap();
    let mut ages = Vec::new();
    for number in 0i32.. {
        if load.is_finished() {
            break;
        }
        primary.execute(&insert, &[&number]).await.unwrap();
        let committed = Instant::now();
        while target.query_one(&look, &[&number]).await.unwrap().get::<_, i64>(0) == 0 {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        ages.push(committed.elapsed().as_secs_f64() * 1000.0);
        tokio::time::sleep_until(committed + BEAT_EVERY).await;
    }
    ages
}

async fn turn(stage: &Stage, plan: &Plan, follower: Option<Peer>, clients: usize) -> Turn {
    let pair = &stage.pair;
    let links = follower.map_or(&[][..], Peer::links);
    stage.reset(links).await;
    let origin = Origin { database: RUN, port: pair.primary.port() };
    let mut attached = None;
    if let Some(peer) = follower {
        prepare(pair, plan, origin, peer).await;
        attached = Some(attach(pair, plan, origin, peer).await.0);
    }
    let own = attached.as_ref().and_then(|attached| attached.process_id());
    let folder = tempfile::tempdir().unwrap();
    let mut command = stage.load("tpcb-like", clients, plan.live_seconds, folder.path(), "on");
    let meter = Meter::start(&[&pair.primary, &pair.standby], own);
    let load = tokio::task::spawn_blocking(move || command.output());
    let ages = if follower.is_some() { beats(stage, &load).await } else { vec![0.0] };
    let output = load.await.unwrap().unwrap();
    assert!(output.status.success(), "pgbench: {}", String::from_utf8_lossy(&output.stderr));
    if let Some((name, _)) = links.first() {
        stage.wait_applied(name).await;
    }
    let usage = meter.stop(own);
    let load = read_load(&String::from_utf8_lossy(&output.stdout), folder.path());
    let mut walsender_s = 0.0;
    if let Some(attached) = attached {
        walsender_s = attached.walsender_s(pair).await;
        attached.must_live().await;
        attached.detach(pair, true).await;
        stage.verify(follower.map_or("", Peer::title)).await;
    }
    let following_s = walsender_s + usage.target_s + usage.own_s;
    Turn { load, usage, following_s, lag_p99_ms: percentile(ages, 99) }
}

/// Every follower at each number of clients, in turns.
pub async fn run(plan: &Plan, report: &mut Report) {
    let stage = Stage::open(plan).await;
    report.case(
        "b",
        &format!("live: pgbench TPC-B for {} s a turn, lag by heartbeats every {BEAT_EVERY:?}", plan.live_seconds),
    );
    for clients in CLIENTS {
        let mut turns: [Vec<Turn>; 4] = Default::default();
        for round in 0..plan.rounds {
            for (follower, turns) in FOLLOWERS.iter().zip(&mut turns) {
                if follower.is_some_and(|peer| !peer.is_known()) {
                    continue;
                }
                let turn = turn(&stage, plan, *follower, clients).await;
                let who = follower.map_or("nobody", Peer::title);
                let (tps, cost, lag) = (turn.load.tps, turn.cpu_us(), turn.lag_p99_ms);
                report.progress(&format!(
                    "b round {}, {clients} clients: {who} {tps:.0} tps, {cost:.0} µs of CPU a transaction, lag p99 {lag:.1} ms",
                    round + 1
                ));
                turns.push(turn);
            }
        }
        compare(report, clients, &turns);
    }
}

fn compare(report: &mut Report, clients: usize, turns: &[Vec<Turn>; 4]) {
    let [nobody, native, own, eager] = turns;
    let case = format!("b {clients}");
    let line = |measure: &str, unit, kind, value: fn(&Turn) -> f64, own: &[Turn], peer: (&str, &[Turn]), aim| {
        let disturbed = own.iter().chain(peer.1).filter(|turn| turn.usage.is_disturbed()).count();
        let alone = Comparison::absolute(&case, measure, unit, each(own, value), aim);
        alone.against(kind, peer.0, each(peer.1, value), disturbed)
    };
    let tps: fn(&Turn) -> f64 = |turn| turn.load.tps;
    let cpu: fn(&Turn) -> f64 = Turn::cpu_us;
    report.compare(line("source TPS", "tps", Kind::Rate, tps, own, ("native", native), Some(1.0)));
    report.compare(line("source TPS", "tps", Kind::Rate, tps, own, ("nobody", nobody), None));
    report.compare(line("CPU a transaction", "µs", Kind::Share, cpu, own, ("native", native), Some(CPU_AIM)));
    report.compare(line("CPU a transaction", "µs", Kind::Share, cpu, own, ("nobody", nobody), None));
    let eager_name = "CPU a transaction, batch_delay = 0";
    let following: fn(&Turn) -> f64 = Turn::following_us;
    let name = "of it walsender, target, walrelay";
    report.compare(line(name, "µs", Kind::Share, following, own, ("native", native), None));
    if !eager.is_empty() {
        report.compare(line(eager_name, "µs", Kind::Share, cpu, eager, ("native", native), None));
    }
    let lag: fn(&Turn) -> f64 = |turn| turn.lag_p99_ms;
    report.compare(line("lag p99", "ms", Kind::Share, lag, own, ("native", native), None));
    report.compare(Comparison::absolute(&case, "lag p99", "ms", each(own, lag), Some(LAG_AIM_MS)));
}
