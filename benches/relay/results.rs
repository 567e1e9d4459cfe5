//! The result file: what was run on what, when; the tables. Written once, at the end.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::measure::machine;
use super::plan::Plan;
use super::report::Report;

/// What stands above the tables.
pub fn head(plan: &Plan, version: &str) -> Vec<String> {
    let revision = said(Command::new("git").args(["describe", "--always", "--dirty"]));
    let changed: Vec<String> = std::env::vars()
        .filter(|(name, _)| name.starts_with("WALRELAY_BENCH"))
        .map(|(name, value)| format!("{name}={value:?}"))
        .collect();
    vec![
        format!("walrelay {} ({revision}), {}", env!("CARGO_PKG_VERSION"), said(Command::new("date").args(["-u", "+%F %H:%M UTC"]))),
        version.to_owned(),
        format!("{}, {}", machine(), processor()),
        format!("rounds {}; settings: {}", plan.rounds, if changed.is_empty() { "none".to_owned() } else { changed.join(" ") }),
    ]
}

fn said(command: &mut Command) -> String {
    let output = command.output().map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    output.unwrap_or_default()
}

fn processor() -> String {
    let information = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = information.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kilobytes = memory.lines().next().and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    format!("{}, {} GB", model.map_or("processor unknown", |(_, model)| model), kilobytes.unwrap_or_default() >> 20)
}

/// Prints the tables and writes them below `benches/results`; quick runs into `target`, where nobody quotes them from.
pub fn finish(report: &Report) {
    let text = report.text();
    println!("\n{text}");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = root.join(if report.is_quick { "target/bench-quick" } else { "benches/results" });
    let stem = said(Command::new("date").args(["-u", "+%F-%H%M"]));
    fs::create_dir_all(&folder).unwrap();
    let file = folder.join(format!("{stem}.md"));
    fs::write(&file, &text).unwrap();
    println!("written to {}", file.display());
}
