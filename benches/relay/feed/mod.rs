//! Cases K and K2: from a primary's WAL to a topic of one partition. K sets walrelay, with Kafka transactions on, against a tuned
//! Debezium on the same backlogs; K2 against what bounds it: a bare producer of the same bytes, and draining to nothing. Without Java
//! there is no broker and no case; without Debezium walrelay runs alone.

mod bare;
mod compare;
mod contestant;
mod latency;
mod name;
mod peer;
mod receipt;
mod stage;
mod topic;
mod turn;
mod watch;

use std::path::Path;

use walrelay::config::Environment;
use walrelay::throwaway::find_broker;

use super::drain::{Drain, Reader, Source, run_one};
use super::plan::Plan;
use super::report::Report;
use compare::Grouped;
use contestant::Contestant;
use peer::Peer;
use stage::{Shape, Stage};
use turn::Turn;

/// Debezium needs a minute for a turn, whatever the size: a quick run shows it only in these cases.
const QUICK_CASES: [&str; 1] = ["k 1000"];
const LEFT_OUT: &str = "Debezium: not in a quick run";
/// Rounds of Debezium with the one large transaction: each takes minutes.
const LARGE_ROUNDS: usize = 2;

/// Both cases, as far as they are wanted.
pub async fn run(plan: &Plan, report: &mut Report) {
    if let Err(error) = find_broker(&Environment::of_process(), Path::new(env!("CARGO_MANIFEST_DIR"))) {
        report.case("k", &format!("not measured: {error}"));
        return;
    }
    let peer = Peer::find();
    for shape in Shape::wanted(plan) {
        match shape {
            Shape::Live => live(plan, &peer, report).await,
            _ => backlog(plan, shape, &peer, report).await,
        }
    }
}

/// The stage, with a broker that is warm.
async fn open(plan: &Plan, shape: Shape) -> Stage {
    let stage = Stage::open(plan, shape).await;
    bare::warm_up(&stage, plan).await;
    stage
}

/// The ages of live events.
async fn live(plan: &Plan, peer: &Peer, report: &mut Report) {
    let stage = open(plan, Shape::Live).await;
    let ages = latency::run(&stage, plan, peer, report).await;
    compare::ages(plan, peer, &ages, report);
}

/// Every contestant of one shape, in turns.
async fn backlog(plan: &Plan, shape: Shape, peer: &Peer, report: &mut Report) {
    let case = shape.case();
    report.progress(&format!("{case}: writing {}", shape.title(plan)));
    let stage = open(plan, shape).await;
    let is_peer_wanted = plan.wants("k") && (!plan.is_quick || QUICK_CASES.contains(&case));
    let (mut theirs, mut own): (Vec<Turn>, Vec<Turn>) = Default::default();
    let (mut bare, mut drained): (Vec<bare::Bare>, Vec<Drain>) = Default::default();
    for round in 0..plan.rounds {
        if let Some(programs) = peer.programs()
            && is_peer_wanted
            && (shape != Shape::Large || round < LARGE_ROUNDS)
        {
            let contestant = Contestant::Debezium { programs, is_tuned: true };
            theirs.push(turn::run(&stage, plan, contestant, round, report).await);
        }
        own.push(turn::run(&stage, plan, Contestant::Relay, round, report).await);
        if plan.wants("k2") && shape == Shape::Grouped {
            let sent = bare::run(&stage, own.last().map_or(1.0, Turn::events_per_commit), round).await;
            report.progress(&format!("{case} round {}: bare producer {:.0} events/s", round + 1, sent.rate()));
            bare.push(sent);
        }
        if plan.wants("k2") && shape == Shape::Single {
            drained.push(drain(&stage).await);
        }
        stage.forget(round).await;
    }
    report.case(case, &stage.described(plan, own.last().map_or(0.0, Turn::bytes_per_event)));
    if plan.wants("k") {
        let is_left_out = theirs.is_empty() && peer.programs().is_some();
        let peer_name = if is_left_out { LEFT_OUT.to_owned() } else { peer.name(", tuned") };
        let turns = Grouped { case, own: &own, peer_name: &peer_name, theirs: &theirs };
        compare::with_debezium(&turns, report);
    }
    compare::with_bound(&own, &bare, &drained, report);
}

/// The same backlog with nothing behind source, assembler and ledger.
async fn drain(stage: &Stage) -> Drain {
    stage.drop_slot().await;
    let (server, target) = (&stage.primary, stage.end_lsn.as_str());
    let source = Source { server, database: "shop", target, changes: stage.events };
    run_one(&source, Reader::Relay).await
}
