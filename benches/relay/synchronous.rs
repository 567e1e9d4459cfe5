//! Case C: what a commit costs while the primary waits for a standby: clients × levels of synchronous_commit × standbys, each alone
//! and in turns; and the same with a network or a slow disk between.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use walrelay::throwaway::Server;

use super::comparison::{Comparison, Kind, each};
use super::database::RUN;
use super::harness::distance::proxy;
use super::harness::{eventually, value, values};
use super::measure::median;
use super::peer::{Attached, Origin, Peer, attach, prepare};
use super::physical;
use super::plan::{Plan, setting};
use super::program::output;
use super::report::Report;
use super::stage::{Load, Stage, read_load};
use super::usage::{Meter, Usage};

const LEVELS: [&str; 3] = ["remote_write", "on", "remote_apply"];
/// The network that is shown beside.
const ROUND_TRIP: Duration = Duration::from_millis(1);
/// The flush that is shown beside, µs.
const FLUSH_US: u32 = 2000;

/// Whom the primary waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standby {
    Nobody,
    Physical,
    Follower(Peer),
}

const STANDBYS: [Standby; 5] = [
    Standby::Nobody,
    Standby::Physical,
    Standby::Follower(Peer::NativeDurable),
    Standby::Follower(Peer::Native),
    Standby::Follower(Peer::Relay),
];

impl Standby {
    fn name(self) -> &'static str {
        match self {
            Standby::Nobody => "",
            Standby::Physical => physical::NAME,
            Standby::Follower(peer) => peer.links()[0].0,
        }
    }

    fn title(self) -> &'static str {
        match self {
            Standby::Nobody => "nobody",
            Standby::Physical => "physical",
            Standby::Follower(peer) => peer.title(),
        }
    }
}

/// What lies between the primary and its standbys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Between {
    Nothing,
    Network,
    SlowFlush,
}

impl Between {
    fn of_word(word: &str) -> Self {
        match word {
            "plain" => Between::Nothing,
            "network" => Between::Network,
            "flush" => Between::SlowFlush,
            _ => panic!("WALRELAY_BENCH_BETWEEN names \"{word}\"; it may be plain, network, flush"),
        }
    }

    fn title(self) -> &'static str {
        match self {
            Between::Nothing => "",
            Between::Network => ", 1 ms round trip",
            Between::SlowFlush => ", 2 ms flush",
        }
    }

    /// How many clients at a time.
    fn clients(self) -> Vec<usize> {
        let default = if self == Between::Nothing { "1,8,32" } else { "1,32" };
        let text = setting("CLIENTS", default.to_owned());
        text.split(',')
            .map(|count| count.trim().parse().expect("WALRELAY_BENCH_CLIENTS: numbers with commas"))
            .collect()
    }

    /// Levels and numbers of clients: beside the plain matrix only what the bar is about.
    fn cells(self, standby: Standby) -> Vec<(&'static str, usize)> {
        // A subscription that waits for its writer process takes what it takes.
        let has_levels = !matches!(standby, Standby::Nobody | Standby::Follower(Peer::Native));
        let levels = if self == Between::Nothing && has_levels { &LEVELS[..] } else { &LEVELS[1..2] };
        let clients = self.clients();
        levels.iter().flat_map(|level| clients.iter().map(|count| (*level, *count))).collect()
    }
}

/// The measurements of each standby, level and number of clients, one a round.
type Cells = BTreeMap<(&'static str, &'static str, usize), Vec<(Load, Usage)>>;

struct Scene {
    stage: Stage,
    physical: Server,
    /// The primary, 1 ms away.
    far_port: u16,
}

impl Scene {
    async fn open(plan: &Plan) -> Self {
        let mut stage = Stage::open(plan).await;
        let physical = physical::make(&mut stage.pair.primary, plan.major).await;
        let far_port = proxy(stage.pair.primary.port(), ROUND_TRIP);
        Self { stage, physical, far_port }
    }

    /// The primary waits for this standby only, which has caught up; or for nobody.
    async fn list(&self, name: &str) {
        let primary = &self.stage.pair.primary;
        if !name.is_empty() {
            let end = value(primary, "postgres", "SELECT pg_current_wal_insert_lsn()").await;
            let sql = format!(
                "SELECT count(*) FROM pg_stat_replication WHERE application_name = '{name}' AND flush_lsn >= '{end}'"
            );
            self.wait(&format!("{name} has caught up"), &sql, "1").await;
        }
        values(primary, "postgres", &format!("ALTER SYSTEM SET synchronous_standby_names = '{name}'")).await;
        values(primary, "postgres", "SELECT pg_reload_conf()").await;
        let sql = format!(
            "SELECT (current_setting('synchronous_standby_names') = '{name}')::text || \
             (SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync')"
        );
        self.wait(&format!("the primary waits for \"{name}\""), &sql, &format!("true{}", u8::from(!name.is_empty())))
            .await;
    }

    async fn wait(&self, what: &str, sql: &str, expected: &str) {
        let primary = &self.stage.pair.primary;
        eventually(what, || async { (value(primary, "postgres", sql).await == expected).then_some(()) }).await;
    }

    async fn slow_flush(&self, is_slow: bool) {
        let (delay, siblings) = if is_slow { (FLUSH_US, 0) } else { (0, 5) };
        let target = &self.stage.pair.standby;
        values(target, "postgres", &format!("ALTER SYSTEM SET commit_delay = {delay}")).await;
        values(target, "postgres", &format!("ALTER SYSTEM SET commit_siblings = {siblings}")).await;
        values(target, "postgres", "SELECT pg_reload_conf()").await;
    }

    async fn cells(
        &self,
        plan: &Plan,
        between: Between,
        standby: Standby,
        attached: Option<&Attached>,
        out: &mut Cells,
    ) {
        let pair = &self.stage.pair;
        let servers = [&pair.primary, &pair.standby, &self.physical];
        let running = if standby == Standby::Physical { &servers[..] } else { &servers[..2] };
        self.list(standby.name()).await;
        if let Some(attached) = attached {
            attached.knows_listed().await;
        }
        let own = attached.and_then(Attached::process_id);
        for (level, clients) in between.cells(standby) {
            let folder = tempfile::tempdir().unwrap();
            let mut command = self.stage.load("simple-update", clients, plan.cell_seconds, folder.path(), level);
            let meter = Meter::start(running, own);
            let printed = output(&mut command);
            let usage = meter.stop(own);
            let load = read_load(&printed, folder.path());
            out.entry((standby.title(), level, clients)).or_default().push((load, usage));
        }
        self.list("").await;
    }

    async fn turn(&mut self, plan: &Plan, between: Between, standby: Standby, out: &mut Cells) {
        let port = if between == Between::Network { self.far_port } else { self.stage.pair.primary.port() };
        match standby {
            Standby::Nobody => {
                self.stage.reset(&[]).await;
                self.cells(plan, between, standby, None, out).await;
            }
            Standby::Physical => {
                self.stage.reset(&[]).await;
                physical::start(&mut self.physical, port).await;
                self.cells(plan, between, standby, None, out).await;
                // At remote_write and on, the last rows may be replayed after the last commit.
                let end = value(&self.stage.pair.primary, "postgres", "SELECT pg_current_wal_flush_lsn()").await;
                physical::wait_replayed(&self.physical, &end).await;
                self.stage.verify_on(&self.physical, standby.title()).await;
                self.physical.stop_fast();
            }
            Standby::Follower(peer) => {
                self.stage.reset(peer.links()).await;
                let origin = Origin { database: RUN, port };
                prepare(&self.stage.pair, plan, origin, peer).await;
                let (attached, _) = attach(&self.stage.pair, plan, origin, peer).await;
                self.cells(plan, between, standby, Some(&attached), out).await;
                // At remote_write and for a subscription that is not durable, the last rows come after the last commit.
                self.stage.wait_applied(standby.name()).await;
                attached.must_live().await;
                attached.detach(&self.stage.pair, true).await;
                self.stage.verify(standby.title()).await;
            }
        }
    }
}

/// The whole matrix, then the network and the slow flush.
pub async fn run(plan: &Plan, report: &mut Report) {
    let mut scene = Scene::open(plan).await;
    report.case("c", &format!("synchronous commit: pgbench simple-update, {} s a cell", plan.cell_seconds));
    for word in setting("BETWEEN", "plain,network,flush".to_owned()).split(',') {
        let between = Between::of_word(word.trim());
        scene.slow_flush(between == Between::SlowFlush).await;
        let mut cells = Cells::new();
        for round in 0..plan.rounds {
            for standby in STANDBYS {
                scene.turn(plan, between, standby, &mut cells).await;
                report.progress(&format!("c{} round {}: {}", between.title(), round + 1, standby.title()));
            }
        }
        compare(report, between, &cells);
        report.section(format!(
            "## Synchronous commit{}\n\nMedians: tps, p50 / p99 in ms.\n\n{}\n\
             µs of processor time a transaction (primary + standby + walrelay), and how much of the machine was idle.\n\n{}",
            between.title(),
            matrix(between, &cells, speed),
            matrix(between, &cells, cost)
        ));
    }
}

fn compare(report: &mut Report, between: Between, cells: &Cells) {
    let (own, durable) = (Peer::Relay.title(), Peer::NativeDurable.title());
    let physical = Standby::Physical.title();
    let is_far = between != Between::Nothing;
    for (level, clients) in between.cells(Standby::Physical) {
        let case = format!("c {level} {clients}{}", between.title());
        let of =
            |who: &'static str, value: fn(&Load) -> f64| each(&cells[&(who, level, clients)], |(load, _)| value(load));
        let disturbed =
            |who: &'static str| cells[&(who, level, clients)].iter().filter(|(_, usage)| usage.is_disturbed()).count();
        let mut line = |measure: &str, unit, kind, value: fn(&Load) -> f64, peer: &'static str, aim| {
            let alone = Comparison::absolute(&case, measure, unit, of(own, value), Some(aim));
            report.compare(alone.against(kind, peer, of(peer, value), disturbed(own) + disturbed(peer)));
        };
        match (clients, is_far) {
            (1, false) => line("p50", "ms", Kind::Share, |load| load.p50_ms, durable, 1.15),
            (8, false) => line("TPS", "tps", Kind::Rate, |load| load.tps, durable, 1.1),
            (_, false) => {
                line("TPS", "tps", Kind::Rate, |load| load.tps, durable, 1.2);
                line("TPS", "tps", Kind::Rate, |load| load.tps, physical, 1.0);
            }
            (32, true) => line("TPS", "tps", Kind::Rate, |load| load.tps, durable, 2.0),
            (_, true) => {}
        }
    }
}

/// TPS, p50 / p99.
fn speed(cells: &[(Load, Usage)]) -> String {
    let middle = |value: fn(&Load) -> f64| median(cells.iter().map(|(load, _)| value(load)));
    let (tps, p50, p99) = (middle(|load| load.tps), middle(|load| load.p50_ms), middle(|load| load.p99_ms));
    format!("{tps:.0}, {p50:.2} / {p99:.1}")
}

/// Whose processors a transaction took, and what was left of them.
fn cost(cells: &[(Load, Usage)]) -> String {
    let middle =
        |value: fn(&Usage) -> f64| median(cells.iter().map(|(load, usage)| value(usage) / load.transactions)) * 1e6;
    let idle = median(cells.iter().map(|(_, usage)| usage.idle)) * 100.0;
    let (primary, target, own) =
        (middle(|usage| usage.primary_s), middle(|usage| usage.target_s), middle(|usage| usage.own_s));
    format!("{primary:.0} + {target:.0} + {own:.0}, {idle:.0} %")
}

/// A line for each standby and level, a column for each number of clients.
fn matrix(between: Between, cells: &Cells, show: fn(&[(Load, Usage)]) -> String) -> String {
    let clients = between.clients();
    let heads: Vec<String> = clients.iter().map(|count| format!("{count} client(s)")).collect();
    let mut text = format!("| standby | synchronous_commit | {} |\n", heads.join(" | "));
    let _ = writeln!(text, "| --- | --- | {} |", vec!["---"; clients.len()].join(" | "));
    for standby in STANDBYS {
        for level in LEVELS {
            let found = clients.iter().filter_map(|count| cells.get(&(standby.title(), level, *count)));
            let row: Vec<String> = found.map(|cells| show(cells)).collect();
            if !row.is_empty() {
                let _ = writeln!(text, "| {} | {level} | {} |", standby.title(), row.join(" | "));
            }
        }
    }
    text
}
