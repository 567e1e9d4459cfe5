//! The CPU of whole clusters, of our process, of brokers and of strangers between two moments, read from /proc. Changes nothing.

use std::fs;
use std::time::Instant;

use walrelay::throwaway::Server;

use super::measure::{children_cpu, ended_children_cpu_s, process_cpu, whole_cpu_s};

/// More than this part of the machine taken by others makes a run a disturbed one.
pub const FOREIGN_LIMIT: f64 = 0.15;
/// Linux shows /proc/stat in 1/100 s.
const TICKS_PER_SECOND: f64 = 100.0;

/// What one run took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// Every process of the primary's cluster, walsender included.
    pub primary_s: f64,
    /// Every process of the target's cluster, and of a further one.
    pub target_s: f64,
    /// walrelay.
    pub own_s: f64,
    /// The part of the machine that others used.
    pub foreign: f64,
    /// The part of the machine that nobody used.
    pub idle: f64,
}

impl Usage {
    /// Both clusters and walrelay.
    pub fn sum_s(&self) -> f64 {
        self.primary_s + self.target_s + self.own_s
    }

    /// Whether others took too much for the run to be believed.
    pub fn is_disturbed(&self) -> bool {
        self.foreign > FOREIGN_LIMIT
    }
}

/// The clusters of a run, from here on: the primary, the target, and others that are no strangers.
pub struct Meter {
    postmasters: Vec<u32>,
    programs: Vec<(u32, f64)>,
    own: Option<u32>,
    began: Instant,
    clusters_s: Vec<f64>,
    own_s: f64,
    bench_s: f64,
    machine_s: f64,
}

fn own_s(process_id: Option<u32>) -> f64 {
    process_id.map_or(0.0, |process_id| process_cpu(process_id).as_secs_f64())
}

impl Meter {
    /// Begins. A walrelay that is not yet running counts from its birth.
    pub fn start(servers: &[&Server], own: Option<u32>) -> Self {
        let postmasters: Vec<u32> = servers.iter().map(|server| server.process_id().unwrap()).collect();
        let clusters_s = postmasters.iter().map(|postmaster| cluster_cpu_s(*postmaster)).collect();
        let (bench_s, machine_s) = (bench_cpu_s(), machine_cpu_s());
        let (programs, began) = (Vec::new(), Instant::now());
        Self { postmasters, programs, own, began, clusters_s, own_s: own_s(own), bench_s, machine_s }
    }

    /// One more program that is no stranger: a broker, a peer that is no cluster.
    pub fn also(&mut self, process_id: u32) {
        self.programs.push((process_id, whole_cpu_s(process_id)));
    }

    /// What was used since.
    pub fn stop(&self, own: Option<u32>) -> Usage {
        let used = self.postmasters.iter().zip(&self.clusters_s);
        let clusters_s: Vec<f64> = used.map(|(postmaster, before)| cluster_cpu_s(*postmaster) - before).collect();
        let own_s = own_s(own.or(self.own)) - self.own_s;
        let programs_s: f64 = self.programs.iter().map(|(id, before)| whole_cpu_s(*id) - before).sum();
        let known = clusters_s.iter().sum::<f64>() + own_s + programs_s + bench_cpu_s() - self.bench_s;
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as f64;
        let whole = self.began.elapsed().as_secs_f64() * processors;
        let machine_s = machine_cpu_s() - self.machine_s;
        let foreign = ((machine_s - known) / whole).max(0.0);
        let idle = (1.0 - machine_s / whole).max(0.0);
        let (primary_s, target_s) = (clusters_s.iter().take(1).sum(), clusters_s.iter().skip(1).sum());
        Usage { primary_s, target_s, own_s, foreign, idle }
    }
}

/// CPU seconds of a postmaster, its living children and the ended ones.
pub fn cluster_cpu_s(postmaster: u32) -> f64 {
    let living = std::iter::once(postmaster).chain(children_of(postmaster));
    let living: f64 = living.map(|process_id| process_cpu(process_id).as_secs_f64()).sum();
    living + ended_children_cpu_s(postmaster)
}

/// The direct children of a process.
fn children_of(parent: u32) -> Vec<u32> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let parent = parent.to_string();
    let is_child = |id: &u32| {
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        // pid (name) state parent: the name may hold blanks and brackets.
        let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        after_name.split_whitespace().nth(1) == Some(&parent)
    };
    ids.filter(is_child).collect()
}

/// This program and what it started and saw end (pgbench).
fn bench_cpu_s() -> f64 {
    process_cpu(std::process::id()).as_secs_f64() + children_cpu().as_secs_f64()
}

/// Everything that ran on the machine, and what its host took from it.
fn machine_cpu_s() -> f64 {
    let stat = fs::read_to_string("/proc/stat").unwrap();
    let fields = stat.lines().next().unwrap().split_whitespace().skip(1);
    let fields: Vec<f64> = fields.map(|field| field.parse().unwrap()).collect();
    // user nice system idle iowait irq softirq steal: proc(5).
    let idle = fields[3] + fields[4];
    (fields.iter().take(8).sum::<f64>() - idle) / TICKS_PER_SECOND
}
