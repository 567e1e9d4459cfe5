//! What is measured and how: wall time, CPU of a process, its memory, medians. Starts nothing but what it is given.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

/// One run of a client process.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    pub wall_s: f64,
    /// User and system time of the process and of what it waited for.
    pub cpu_s: f64,
}

/// Runs a client to its end. The CPU is the growth of our children's, so nothing else may end meanwhile.
pub fn run(command: &mut Command) -> Run {
    let cpu_before = children_cpu();
    let began = Instant::now();
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let wall_s = began.elapsed().as_secs_f64();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Run { wall_s, cpu_s: (children_cpu() - cpu_before).as_secs_f64() }
}

/// CPU of the children that this program has waited for.
pub fn children_cpu() -> Duration {
    // SAFETY: rusage is plain numbers; getrusage fills it.
    let usage = unsafe {
        let mut usage = std::mem::zeroed::<libc::rusage>();
        libc::getrusage(libc::RUSAGE_CHILDREN, &mut usage);
        usage
    };
    let time = |value: libc::timeval| Duration::new(value.tv_sec as u64, value.tv_usec as u32 * 1000);
    time(usage.ru_utime) + time(usage.ru_stime)
}

/// CPU that a running process has used in all its threads, to the nanosecond (`/proc/PID/stat` counts in 10 ms).
pub fn process_cpu(process_id: u32) -> Duration {
    // A process may end while it is looked at.
    let tasks = fs::read_dir(format!("/proc/{process_id}/task")).into_iter().flatten().flatten();
    let nanoseconds = tasks.filter_map(|task| {
        let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(nanoseconds.sum())
}

/// CPU of the children that a process has outlived, to 10 ms: of a postmaster, its ended backends and walsenders.
pub fn ended_children_cpu_s(process_id: u32) -> f64 {
    // Fields 16 and 17 of proc(5): cutime and cstime.
    ticks_s(process_id, 13)
}

/// CPU of a running process with the threads that have ended, to 10 ms: a JVM's are many. 0 once it is gone.
pub fn whole_cpu_s(process_id: u32) -> f64 {
    // Fields 14 and 15: utime and stime.
    ticks_s(process_id, 11)
}

/// Two neighbouring times of `/proc/PID/stat`, in the 1/100 s that Linux shows to programs.
fn ticks_s(process_id: u32, at: usize) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{process_id}/stat")).unwrap_or_default();
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: u64 = after_name.split_whitespace().skip(at).take(2).map(|field| field.parse::<u64>().unwrap()).sum();
    ticks as f64 / 100.0
}

/// `VmRSS` (now) or `VmHWM` (peak) of a process, MB.
pub fn memory_mb(process_id: u32, field: &str) -> f64 {
    let status = fs::read_to_string(format!("/proc/{process_id}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
}

pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    percentile(values, 50)
}

pub fn percentile(values: impl IntoIterator<Item = f64>, percent: usize) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values[((values.len() - 1) * percent) / 100]
}

/// `ok` or `MISSED`, for a number that must be at most (or at least) a limit.
pub fn verdict(is_met: bool) -> &'static str {
    if is_met { "ok" } else { "MISSED" }
}

/// The machine in one line.
pub fn machine() -> String {
    let processors = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split_whitespace().next().unwrap_or("?").to_owned();
    format!("machine: {processors} processors, Linux {}, load {load} before the run", kernel.trim())
}
