//! The result file: what was run on what, when; the tables. Written anew after each case, so that hours of measuring that are cut off
//! leave what they had. Measures nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::comparison::{Comparison, Kind};
use super::measure::machine;
use super::plan::Plan;
use super::plot::svg;
use super::report::Report;

/// A picture: its name, its title, which comparisons are in it.
type Plot = (&'static str, &'static str, fn(&Comparison) -> bool);

const PLOTS: [Plot; 3] = [
    ("wall", "Backlogs and copies: speed against the peer", |one| one.kind == Kind::Speed),
    ("cpu", "What it costs: the peer's CPU over ours", |one| one.kind == Kind::Share && one.measure.contains("CPU")),
    ("live", "Live: rates and latencies against the peer", |one| {
        one.kind == Kind::Rate || (one.kind == Kind::Share && !one.measure.contains("CPU"))
    }),
];

/// What stands above the tables.
pub fn head(plan: &Plan, version: &str) -> Vec<String> {
    let revision = said(Command::new("git").args(["describe", "--always", "--dirty"]));
    let changed: Vec<String> = std::env::vars()
        .filter(|(name, _)| name.starts_with("WALRELAY_BENCH"))
        .map(|(name, value)| format!("{name}={value:?}"))
        .collect();
    vec![
        format!(
            "walrelay {} ({revision}), {}",
            env!("CARGO_PKG_VERSION"),
            said(Command::new("date").args(["-u", "+%F %H:%M UTC"]))
        ),
        version.to_owned(),
        format!("{}, {}", machine(), processor()),
        format!(
            "rounds {}; settings: {}",
            plan.rounds,
            if changed.is_empty() { "none".to_owned() } else { changed.join(" ") }
        ),
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

/// The name of the files of a run that begins now.
pub fn stem() -> String {
    said(Command::new("date").args(["-u", "+%F-%H%M"]))
}

/// Writes what there is by now below `benches/results`; quick runs into `target`, where nobody quotes them from.
pub fn write(report: &Report) -> PathBuf {
    let mut text = report.text();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = root.join(if report.is_quick { "target/bench-quick" } else { "benches/results" });
    fs::create_dir_all(&folder).unwrap();
    for (name, title, is_in) in PLOTS {
        let chosen: Vec<_> = report.comparisons.iter().filter(|one| one.kind != Kind::Absolute && is_in(one)).collect();
        if !chosen.is_empty() {
            let file = format!("{}-{name}.svg", report.stem);
            fs::write(folder.join(&file), svg(title, &chosen)).unwrap();
            text.push_str(&format!("\n![{title}]({file})\n"));
        }
    }
    let file = folder.join(format!("{}.md", report.stem));
    fs::write(&file, &text).unwrap();
    file
}

/// Prints the tables, and where they were written.
pub fn finish(report: &Report) {
    println!("\n{}", report.text());
    println!("written to {}", write(report).display());
}
