//! The T of the bound: the same batches from memory into the target, by walrelay's own sink in a process that has read the whole backlog
//! before. Measures only that; the process itself is `memory_client`.

use std::io::{BufRead, BufReader, Write as _};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};

use tokio::task::block_in_place;

use super::backlog::Backlog;
use super::memory_client;
use super::peer::{Origin, Peer, config, prepare};
use super::plan::Plan;
use super::usage::{Meter, Usage};

/// In the tables.
pub const TITLE: &str = "walrelay, from memory";

/// One turn.
#[derive(Clone, Copy, Debug)]
pub struct Turn {
    /// From the first batch handed over to the last one durable.
    pub wall_s: f64,
    /// From the same moment to the last one visible.
    pub visible_s: f64,
    /// CPU between.
    pub usage: Usage,
}

/// Applies the backlog, read from a slot of its own before the clock, to a target made anew; the tables must be equal then.
pub async fn turn(backlog: &Backlog, plan: &Plan, own: Peer) -> Turn {
    let pair = &backlog.pair;
    let origin = Origin { database: "shop", port: backlog.port };
    let (slot, _) = own.links()[0];
    backlog.reset_target(plan).await;
    backlog.copy_slot(slot).await;
    prepare(pair, plan, origin, own).await;
    let text = config(pair, plan, origin, own);
    let turn = block_in_place(|| measure(backlog, &text));
    backlog.drop_slot(slot).await;
    backlog.verify(TITLE).await;
    turn
}

fn measure(backlog: &Backlog, text: &str) -> Turn {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([memory_client::VERB, text, &backlog.target_lsn]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut input: ChildStdin = child.stdin.take().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    assert_eq!(line(&mut output), "ready", "{TITLE}: it has read no backlog; its reason stands above");
    let meter = Meter::start(&[&backlog.pair.primary, &backlog.pair.standby], Some(child.id()));
    input.write_all(b"\n").unwrap();
    let told = line(&mut output);
    let usage = meter.stop(None);
    let seconds: Vec<f64> = told.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let [wall_s, visible_s] = seconds[..] else {
        panic!("{TITLE}: it has ended with \"{told}\" in place of two times; its reason stands above")
    };
    // The end of its input ends it.
    drop(input);
    let status = child.wait().unwrap();
    assert!(status.success(), "{TITLE}: {status}");
    Turn { wall_s, visible_s, usage }
}

fn line(output: &mut BufReader<ChildStdout>) -> String {
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    line.trim_end().to_owned()
}
