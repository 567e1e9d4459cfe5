//! How old an event is when a `read_committed` consumer has it: single-row transactions at a steady pace, from the moment at which the
//! client sends its commit (the flush of the primary's WAL is part of it).

use std::time::{Duration, Instant};

use tokio::time::MissedTickBehavior;

use super::bare;
use super::contestant::{Contestant, Running};
use super::name::topic_of;
use super::peer::Peer;
use super::receipt::Receipts;
use super::stage::Stage;
use crate::harness::{client, eventually, value};
use crate::measure::whole_cpu_s;
use crate::plan::Plan;
use crate::report::Report;
use crate::usage::Meter;
use crate::workload::WIDE_ROW;

/// Pauses of the load: 400 a second to warm up, 200 measured.
const WARM_EVERY: Duration = Duration::from_micros(2_500);
const EVERY: Duration = Duration::from_millis(5);
/// A contestant's first event: a JVM starts meanwhile.
const FIRST_LIMIT: Duration = Duration::from_secs(120);
/// Ids of a turn begin behind those of the last one.
const IDS: u64 = 1_000_000;

/// One turn: percentiles of the ages in ms, and what the process took a second.
#[derive(Clone, Copy, Debug)]
pub struct Ages {
    /// Half of them are younger.
    pub p50_ms: f64,
    /// Of a hundred, one is older.
    pub p99_ms: f64,
    /// The median from the commit's answer instead.
    pub answered_p50_ms: f64,
    /// CPU of the contestant's process, percent of a core.
    pub cpu_percent: f64,
    /// Whether strangers took too much.
    pub is_disturbed: bool,
}

impl Ages {
    /// How many turns were disturbed.
    pub fn disturbed(turns: &[Ages]) -> usize {
        turns.iter().filter(|turn| turn.is_disturbed).count()
    }
}

/// Those of all turns.
#[derive(Default)]
pub struct AllAges {
    /// walrelay's, Debezium's by default, Debezium's tuned.
    pub contestants: [Vec<Ages>; 3],
    /// The medians of bare transactions.
    pub bare_ms: Vec<f64>,
}

/// Single-row transactions; gives the moments before and after each.
async fn load(stage: &Stage, first: u64, count: u64, every: Duration) -> [Vec<(u64, Instant)>; 2] {
    let session = client(&stage.primary, "shop").await;
    let insert = format!("INSERT INTO wide SELECT {WIDE_ROW} FROM (SELECT $1::bigint AS i) one");
    let insert = session.prepare(&insert).await.unwrap();
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut sent, mut answered) = (Vec::new(), Vec::new());
    for id in first..first + count {
        let _ = ticks.tick().await;
        sent.push((id, Instant::now()));
        session.execute(&insert, &[&(id as i64)]).await.unwrap();
        answered.push((id, Instant::now()));
    }
    [sent, answered]
}

/// How many of a pace fit.
fn count_of(seconds: u64, every: Duration) -> u64 {
    (Duration::from_secs(seconds).as_nanos() / every.as_nanos()) as u64
}

async fn turn(stage: &Stage, plan: &Plan, contestant: Contestant<'_>, round: usize, number: u64) -> Ages {
    let prefix = contestant.prefix(round);
    let topic = topic_of(&prefix);
    let start_lsn = stage.prepare_slot().await;
    stage.make_topic(&topic).await;
    let receipts = Receipts::start(&stage.broker.address(), &topic);
    let mut running: Running = contestant.start(stage, plan, &prefix, &start_lsn).await;
    let process_id = running.process_id();
    let first = number * IDS;
    let _ = load(stage, first, 1, EVERY).await;
    receipts.wait(first, FIRST_LIMIT).await;
    let warm = count_of(plan.live_seconds.div_ceil(2), WARM_EVERY);
    let [warmed, _] = load(stage, first + 1, warm, WARM_EVERY).await;
    receipts.ages(&warmed).await;
    let own = matches!(running, Running::Relay(_)).then_some(process_id);
    let mut meter = Meter::start(&[&stage.primary], own);
    meter.also(stage.broker.process_id().unwrap());
    if own.is_none() {
        meter.also(process_id);
    }
    let (cpu_before_s, began) = (whole_cpu_s(process_id), Instant::now());
    let measured = count_of(plan.live_seconds, EVERY);
    let [sent, answered] = load(stage, first + 1 + warm, measured, EVERY).await;
    let cpu_percent = (whole_cpu_s(process_id) - cpu_before_s) / began.elapsed().as_secs_f64() * 100.0;
    let is_disturbed = meter.stop(own).is_disturbed();
    let (p50_ms, p99_ms) = receipts.ages(&sent).await;
    let (answered_p50_ms, _) = receipts.ages(&answered).await;
    running.must_live().await;
    running.end().await;
    stage.drop_slot().await;
    Ages { p50_ms, p99_ms, answered_p50_ms, cpu_percent, is_disturbed }
}

/// Nobody may be left from the last turn who still writes WAL of its own.
async fn is_quiet(stage: &Stage) {
    eventually("no walsender is left", || async {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'walsender'";
        (value(&stage.primary, "postgres", sql).await == "0").then_some(())
    })
    .await;
}

/// Everybody in turns.
pub async fn run(stage: &Stage, plan: &Plan, peer: &Peer, report: &mut Report) -> AllAges {
    let case = stage.shape.case();
    let mut ages = AllAges::default();
    let mut number = 0;
    for round in 0..plan.rounds {
        let programs = peer.programs().filter(|_| plan.wants("k"));
        let debezium = |is_tuned| programs.map(|programs| Contestant::Debezium { programs, is_tuned });
        // A quick run has time for one of the two.
        let by_default = if plan.is_quick { None } else { debezium(false) };
        for (at, contestant) in [Some(Contestant::Relay), by_default, debezium(true)].into_iter().enumerate() {
            let Some(contestant) = contestant else { continue };
            number += 1;
            let turn = turn(stage, plan, contestant, round, number).await;
            report.progress(&format!(
                "{case} round {}: {} p50 {:.2} ms ({:.2} ms from the answer), p99 {:.2} ms, {:.1} % of a core",
                round + 1,
                contestant.title(),
                turn.p50_ms,
                turn.answered_p50_ms,
                turn.p99_ms,
                turn.cpu_percent
            ));
            ages.contestants[at].push(turn);
            is_quiet(stage).await;
            if plan.wants("k2") && at == 0 {
                let records =
                    1 + count_of(plan.live_seconds.div_ceil(2), WARM_EVERY) + count_of(plan.live_seconds, EVERY);
                let (p50_ms, p99_ms) = bare::lone(stage, round, records, EVERY).await;
                report.progress(&format!(
                    "{case} round {}: bare producer p50 {p50_ms:.2} ms, p99 {p99_ms:.2} ms",
                    round + 1
                ));
                ages.bare_ms.push(p50_ms);
            }
            if at == 1 {
                // The next contestant has the same topic.
                stage.forget(round).await;
            }
        }
        stage.forget(round).await;
    }
    let title = format!(
        "age of an event at a read_committed consumer, from the sending of its commit; 200 single-row transactions a second for {} s",
        plan.live_seconds
    );
    report.case(case, &title);
    ages
}
