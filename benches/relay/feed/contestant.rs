//! Who feeds the topic: walrelay, or Debezium on a Connect worker of its own. Started and ended here; measured elsewhere.

use walrelay::throwaway::{Connect, ConnectOptions, ConnectPrograms, connector_settings, settings};

use super::name::{own_prefix, peer_prefix};
use super::stage::{SLOT, Shape, Stage};
use crate::harness::Relay;
use crate::plan::Plan;

/// The pipeline.
pub const PIPELINE: &str = "feed";
/// Debezium's heap.
const HEAP: &str = "-Xmx2G";
/// What its documentation advises for throughput: larger queues, fewer and larger requests.
const TUNED_CONNECTOR: [(&str, &str); 3] =
    [("max.batch.size", "16384"), ("max.queue.size", "65536"), ("poll.interval.ms", "100")];
const TUNED_WORKER: [(&str, &str); 3] =
    [("producer.batch.size", "524288"), ("producer.linger.ms", "20"), ("producer.buffer.memory", "134217728")];
/// What serves latency instead.
const QUICK_CONNECTOR: [(&str, &str); 1] = [("poll.interval.ms", "10")];
const QUICK_WORKER: [(&str, &str); 1] = [("producer.linger.ms", "0")];

/// A contestant.
#[derive(Clone, Copy, Debug)]
pub enum Contestant<'a> {
    /// walrelay, exactly once.
    Relay,
    /// Debezium, at least once, as it comes by default.
    Debezium {
        /// Its programs.
        programs: &'a ConnectPrograms,
        /// Whether it is tuned for what is measured.
        is_tuned: bool,
    },
}

/// A contestant at work.
pub enum Running {
    /// walrelay.
    Relay(Relay),
    /// Debezium.
    Connect(Box<Connect>),
}

impl Contestant<'_> {
    /// In the progress and the tables.
    pub fn title(self) -> &'static str {
        match self {
            Contestant::Relay => "walrelay",
            Contestant::Debezium { is_tuned: true, .. } => "Debezium, tuned",
            Contestant::Debezium { is_tuned: false, .. } => "Debezium",
        }
    }

    /// Of its topics in a round.
    pub fn prefix(self, round: usize) -> String {
        match self {
            Contestant::Relay => own_prefix(round),
            Contestant::Debezium { .. } => peer_prefix(round),
        }
    }

    /// Starts it; walrelay's is over when it listens, Debezium's at once.
    pub async fn start(self, stage: &Stage, plan: &Plan, prefix: &str, start_lsn: &str) -> Running {
        match self {
            Contestant::Relay => {
                let text = configuration(stage, plan, prefix, start_lsn);
                Running::Relay(Relay::start_with(&text, &[("WALRELAY__LOG__LEVEL", "info")]).await)
            }
            Contestant::Debezium { programs, is_tuned } => {
                let (options, connector) = debezium(stage, prefix, is_tuned);
                Running::Connect(Box::new(Connect::standalone(programs, options, &connector).unwrap()))
            }
        }
    }
}

fn configuration(stage: &Stage, plan: &Plan, prefix: &str, start_lsn: &str) -> String {
    let is_copy = stage.shape == Shape::Copy;
    let start = if is_copy { String::new() } else { format!("start_lsn = \"{start_lsn}\"\n") };
    format!(
        "[primary]\nurl = \"{}\"\n[[pipeline]]\nname = \"{PIPELINE}\"\nslot = \"{SLOT}\"\npublication = \"bench\"\n\
         initial_copy = {is_copy}\n{}\n[pipeline.sink]\ntype = \"kafka\"\nbrokers = \"{}\"\ntopic_prefix = \"{prefix}\"\n\
         context_headers = true\n{start}{}\n[pipeline.sink.client]\n\"compression.type\" = \"lz4\"\n",
        stage.primary.url("shop"),
        plan.lines,
        stage.broker.address(),
        plan.sink_lines,
    )
}

fn debezium(stage: &Stage, prefix: &str, is_tuned: bool) -> (ConnectOptions, Vec<(String, String)>) {
    let is_live = stage.shape == Shape::Live;
    let snapshot = if stage.shape == Shape::Copy { "initial" } else { "no_data" };
    let mut connector = connector_settings(stage.primary.port(), prefix, SLOT, "bench");
    connector.extend(settings(&[
        ("name", "debezium"),
        ("snapshot.mode", snapshot),
        ("topic.creation.default.partitions", "1"),
    ]));
    let mut properties = settings(&[("producer.compression.type", "lz4")]);
    if is_tuned {
        connector.extend(if is_live { settings(&QUICK_CONNECTOR) } else { settings(&TUNED_CONNECTOR) });
        properties.extend(if is_live { settings(&QUICK_WORKER) } else { settings(&TUNED_WORKER) });
    }
    (ConnectOptions { brokers: stage.broker.address(), properties, java_flags: vec![HEAP.to_owned()] }, connector)
}

impl Running {
    /// Its process.
    pub fn process_id(&self) -> u32 {
        match self {
            Running::Relay(relay) => relay.process_id(),
            Running::Connect(connect) => connect.process_id().unwrap(),
        }
    }

    /// Panics with the reason if it has given up.
    pub async fn must_live(&mut self) {
        match self {
            Running::Relay(relay) => {
                let Some(report) = relay.report(PIPELINE).await else {
                    panic!("walrelay does not answer:\n{}", relay.log())
                };
                assert_ne!(report["state"], "failed", "walrelay has stopped: {}", report["last_error"]);
            }
            Running::Connect(connect) => {
                assert!(!connect.has_ended(), "Kafka Connect has ended:\n{}", connect.log_tail(40));
                // A task that has failed leaves its worker running.
                let log = connect.log();
                let failed = log.lines().find(|line| line.contains("Task is being killed"));
                assert!(failed.is_none(), "Debezium has stopped:\n{}", connect.log_tail(40));
            }
        }
    }

    /// Whether walrelay streams: its copy is over.
    pub async fn streams(&self) -> bool {
        match self {
            Running::Relay(relay) => relay.report(PIPELINE).await.is_some_and(|report| report["state"] == "streaming"),
            Running::Connect(_) => false,
        }
    }

    /// Ends it.
    pub async fn end(self) {
        match self {
            Running::Relay(mut relay) => drop(relay.stop().await),
            Running::Connect(mut connect) => connect.kill9(),
        }
    }
}
