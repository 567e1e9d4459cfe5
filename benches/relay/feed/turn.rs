//! One turn of one contestant on one backlog: what it took, from its start and from its first event, and what it cost whom. Verified
//! after the clock has stopped.

use std::time::{Duration, Instant};

use super::contestant::{Contestant, Running};
use super::name::topic_of;
use super::stage::{SLOT, Shape, Stage};
use super::topic::{Content, content};
use super::watch::{Watch, consumer, end_of};
use crate::harness::{client, values};
use crate::measure::{memory_mb, process_cpu, whole_cpu_s};
use crate::plan::Plan;
use crate::report::Report;
use crate::usage::Meter;

/// Between two looks whether the end is reached.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Between two looks whether the contestant has given up.
const LIVE_EVERY: u32 = 100;

/// See the module. Times in seconds.
#[derive(Clone, Copy, Debug)]
pub struct Turn {
    /// From the start of the process to the last event visible.
    pub whole_s: f64,
    /// From the first event in the log to the last one visible.
    pub flow_s: f64,
    /// From the moment at which its slot was in use to the last event visible.
    pub connected_s: f64,
    /// CPU of its process.
    pub cpu_s: f64,
    /// Of it, until the first event.
    pub start_cpu_s: f64,
    /// CPU of the primary.
    pub primary_s: f64,
    /// Of it, the walsender's; 0 for a copy.
    pub walsender_s: f64,
    /// CPU of the broker.
    pub broker_s: f64,
    /// Peak resident set.
    pub peak_mb: f64,
    /// Whether strangers took too much.
    pub is_disturbed: bool,
    /// What is in the topic.
    pub content: Content,
    /// Offsets in use that are no events: the marks of commits.
    pub commits: u64,
}

impl Turn {
    /// Events a second, first to last.
    pub fn rate(&self) -> f64 {
        self.content.events as f64 / self.flow_s
    }

    /// Events a second, from the start of the process.
    pub fn whole_rate(&self) -> f64 {
        self.content.events as f64 / self.whole_s
    }

    /// Seconds for a million events.
    pub fn per_million(&self, seconds: f64) -> f64 {
        seconds * 1e6 / self.content.events as f64
    }

    /// Key, value and headers.
    pub fn bytes_per_event(&self) -> f64 {
        self.content.bytes as f64 / self.content.events as f64
    }

    /// Events of one Kafka transaction.
    pub fn events_per_commit(&self) -> f64 {
        self.content.events as f64 / self.commits.max(1) as f64
    }
}

/// When the slot came into use; never, for a copy that makes its own.
async fn connected(stage: &Stage) -> Instant {
    let session = client(&stage.primary, "postgres").await;
    let sql = format!("SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{SLOT}' AND active");
    let query = session.prepare(&sql).await.unwrap();
    while session.query_one(&query, &[]).await.unwrap().get::<_, i64>(0) == 0 {
        tokio::time::sleep(LOOK_EVERY / 4).await;
    }
    Instant::now()
}

/// Whether everything is in Kafka, as far as the contestant tells; its last marks may still be on their way.
async fn is_done(stage: &Stage, running: &Running, end: i64) -> bool {
    if end < stage.events as i64 {
        return false;
    }
    match running {
        // It writes nothing but events.
        Running::Connect(_) => true,
        Running::Relay(_) if stage.shape == Shape::Copy => running.streams().await,
        Running::Relay(_) => {
            let sql = format!(
                "SELECT 1 FROM pg_replication_slots WHERE slot_name = '{SLOT}' AND confirmed_flush_lsn >= '{}'",
                stage.end_lsn
            );
            !values(&stage.primary, "postgres", &sql).await.is_empty()
        }
    }
}

async fn until_done(stage: &Stage, running: &mut Running, topic: &str, limit: Duration) {
    let address = stage.broker.address();
    let (committed, everything) = (consumer(&address, "read_committed"), consumer(&address, "read_uncommitted"));
    let began = Instant::now();
    for look in 1.. {
        let end = tokio::task::block_in_place(|| end_of(&committed, topic));
        if is_done(stage, running, end).await && end == tokio::task::block_in_place(|| end_of(&everything, topic)) {
            return;
        }
        if look % LIVE_EVERY == 0 {
            running.must_live().await;
            assert!(began.elapsed() < limit, "{topic}: {end} events after {limit:?}");
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn walsender_s(stage: &Stage) -> f64 {
    let sql = format!("SELECT active_pid FROM pg_replication_slots WHERE slot_name = '{SLOT}' AND active");
    let rows = values(&stage.primary, "postgres", &sql).await;
    let ids = rows.into_iter().flatten().flatten().filter_map(|text| text.parse().ok());
    ids.map(|id| process_cpu(id).as_secs_f64()).sum()
}

/// One turn.
pub async fn run(stage: &Stage, plan: &Plan, contestant: Contestant<'_>, round: usize, report: &Report) -> Turn {
    let prefix = contestant.prefix(round);
    let topic = topic_of(&prefix);
    let start_lsn = stage.prepare_slot().await;
    stage.make_topic(&topic).await;
    let broker = stage.broker.process_id().unwrap();
    let mut meter = Meter::start(&[&stage.primary], None);
    meter.also(broker);
    let broker_before_s = whole_cpu_s(broker);
    let address = stage.broker.address();
    let watch = Watch::start(&address, &topic);
    let began = Instant::now();
    let (mut running, connected) = match contestant {
        Contestant::Relay => tokio::join!(contestant.start(stage, plan, &prefix, &start_lsn), connected(stage)),
        // Between Connect's start and its slot lie many seconds in which nobody need ask.
        Contestant::Debezium { .. } => (contestant.start(stage, plan, &prefix, &start_lsn).await, began),
    };
    let process_id = running.process_id();
    watch.of_process(process_id);
    if matches!(running, Running::Connect(_)) {
        meter.also(process_id);
    }
    until_done(stage, &mut running, &topic, Duration::from_secs(plan.limit_seconds)).await;
    let is_relay = matches!(running, Running::Relay(_));
    let usage = meter.stop(is_relay.then_some(process_id));
    let (cpu_s, broker_s) = (whole_cpu_s(process_id), whole_cpu_s(broker) - broker_before_s);
    let (walsender_s, peak_mb) = (walsender_s(stage).await, memory_mb(process_id, "VmHWM"));
    let seen = tokio::task::block_in_place(|| watch.stop());
    running.end().await;
    stage.drop_slot().await;
    let ((first, start_cpu_s), (last, end)) = (seen.first.unwrap(), seen.last().unwrap());
    let content = tokio::task::block_in_place(|| content(&address, &topic, stage.events));
    content.must_be_whole(stage.events, contestant.title());
    assert!(stage.shape == Shape::Copy || content.last == stage.events, "the last key is {}", content.last);
    let since = |moment: Instant| last.saturating_duration_since(moment).as_secs_f64();
    let turn = Turn {
        whole_s: since(began),
        flow_s: since(first),
        connected_s: since(connected),
        cpu_s,
        start_cpu_s,
        primary_s: usage.primary_s,
        walsender_s,
        broker_s,
        peak_mb,
        is_disturbed: usage.is_disturbed(),
        content,
        commits: (end as u64).saturating_sub(content.events),
    };
    report.progress(&format!(
        "{} round {}: {} {:.0} events/s first to last ({:.2} s), {:.1} s from its start, CPU {:.1} s ({:.1} s to its first event), \
         walsender {:.1} s, broker {:.1} s, peak {:.0} MB, {} Kafka transactions{}",
        stage.shape.case(),
        round + 1,
        contestant.title(),
        turn.rate(),
        turn.flow_s,
        turn.whole_s,
        turn.cpu_s,
        turn.start_cpu_s,
        turn.walsender_s,
        turn.broker_s,
        turn.peak_mb,
        turn.commits,
        if turn.is_disturbed { ", disturbed" } else { "" }
    ));
    turn
}
