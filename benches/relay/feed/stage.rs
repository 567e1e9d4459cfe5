//! A primary with a table and, behind a slot that nobody reads, a backlog of one shape; a broker beside it. Every contestant reads its
//! own copy of the slot and writes a topic of its own.

use std::path::Path;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use walrelay::config::Environment;
use walrelay::throwaway::{Broker, BrokerOptions, Server, find_broker};

use super::name::{bare_prefix, own_prefix, peer_prefix, topic_of};
use crate::backlog::{self, BASE};
use crate::database;
use crate::harness::{start_server, value, values};
use crate::plan::{Plan, setting};
use crate::servers::options;
use crate::workload::{Fill, WIDE, WIDE_ROW, filled, transactions};

/// The slot of a turn.
pub const SLOT: &str = "run";
/// Rows of a transaction of the first shape.
const GROUP: u64 = 1_000;
/// The broker of a benchmark is compiled as one in production is, and has memory for it.
const JAVA_FLAGS: [&str; 2] = ["-Xmx1g", "-XX:TieredStopAtLevel=4"];

/// What is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Transactions of 1,000 rows.
    Grouped,
    /// Transactions of one row.
    Single,
    /// One transaction.
    Large,
    /// Nothing: the rows are there, and are copied.
    Copy,
    /// Nothing yet: the rows come live.
    Live,
}

impl Shape {
    const ALL: [Shape; 5] = [Shape::Grouped, Shape::Single, Shape::Large, Shape::Copy, Shape::Live];

    /// Those that the plan's cases have, and of them what `WALRELAY_BENCH_FEED` names: words as in "k live", parted by commas.
    pub fn wanted(plan: &Plan) -> Vec<Self> {
        let word = |shape: Shape| shape.case().trim_start_matches("k ");
        let all: Vec<&str> = Self::ALL.into_iter().map(word).collect();
        let text: String = setting("FEED", all.join(","));
        let named: Vec<&str> = text.split(',').collect();
        for word in &named {
            assert!(all.contains(word), "WALRELAY_BENCH_FEED names \"{word}\"; it may be {}", all.join(", "));
        }
        let has_bound = |shape: Shape| !matches!(shape, Shape::Large | Shape::Copy);
        let is_wanted = |shape: &Shape| named.contains(&word(*shape)) && (plan.wants("k") || has_bound(*shape));
        Self::ALL.into_iter().filter(is_wanted).collect()
    }

    /// In the tables.
    pub fn case(self) -> &'static str {
        match self {
            Shape::Grouped => "k 1000",
            Shape::Single => "k 1",
            Shape::Large => "k large",
            Shape::Copy => "k copy",
            Shape::Live => "k live",
        }
    }

    /// Events of it.
    fn events(self, plan: &Plan) -> u64 {
        match self {
            Shape::Grouped => plan.size("FEED_ROWS", 1_000_000).next_multiple_of(GROUP),
            Shape::Copy => plan.size("FEED_ROWS", 1_000_000),
            Shape::Single => plan.size("FEED_SINGLE", 200_000),
            Shape::Large => plan.big_rows,
            Shape::Live => 0,
        }
    }

    /// In words.
    pub fn title(self, plan: &Plan) -> String {
        let events = self.events(plan);
        match self {
            Shape::Grouped => format!("{events} rows in transactions of {GROUP}"),
            Shape::Single => format!("{events} single-row transactions"),
            Shape::Large => format!("one transaction of {events} rows"),
            Shape::Copy => format!("the initial copy of {events} rows"),
            Shape::Live => "live single-row transactions".to_owned(),
        }
    }

    fn fill(self, events: u64) -> Fill {
        let grouped = format!(
            "INSERT INTO wide SELECT {WIDE_ROW} FROM generate_series(k * {GROUP}::bigint + 1, (k + 1) * {GROUP}::bigint) i"
        );
        match self {
            Shape::Grouped => transactions(events / GROUP, &grouped),
            Shape::Single => transactions(
                events,
                &format!("INSERT INTO wide SELECT {WIDE_ROW} FROM (SELECT k::bigint + 1 AS i) one"),
            ),
            Shape::Large | Shape::Copy => Fill::Statements(vec![filled(events)]),
            Shape::Live => Fill::Statements(Vec::new()),
        }
    }
}

/// See the module.
pub struct Stage {
    /// Its database `shop` holds the table `wide`.
    pub primary: Server,
    /// The broker.
    pub broker: Broker,
    /// What is written.
    pub shape: Shape,
    /// Events to expect.
    pub events: u64,
    /// The end of the backlog.
    pub end_lsn: String,
}

impl Stage {
    /// Starts both and writes the backlog.
    pub async fn open(plan: &Plan, shape: Shape) -> Self {
        let programs = find_broker(&Environment::of_process(), Path::new(env!("CARGO_MANIFEST_DIR"))).unwrap();
        let java_flags = JAVA_FLAGS.map(str::to_owned).to_vec();
        let broker = BrokerOptions { java_flags, ..BrokerOptions::default() };
        let broker = Broker::start(&programs, broker).await.unwrap();
        let primary = start_server(plan.major, options()).await;
        let events = shape.events(plan);
        values(&primary, "postgres", "CREATE DATABASE shop").await;
        values(&primary, "shop", &format!("CREATE TABLE wide {WIDE}")).await;
        values(&primary, "shop", "CREATE PUBLICATION bench FOR TABLE wide").await;
        let slot = format!("SELECT pg_create_logical_replication_slot('{BASE}', 'pgoutput')");
        values(&primary, "shop", &slot).await;
        backlog::fill(&primary, &shape.fill(events)).await;
        values(&primary, "shop", "VACUUM (FREEZE, ANALYZE)").await;
        let end_lsn = value(&primary, "shop", "SELECT pg_current_wal_lsn()").await;
        values(&primary, "postgres", "CHECKPOINT").await;
        Self { primary, broker, shape, events, end_lsn }
    }

    /// A slot of the turn's own, unless the contestant makes it. Gives its position.
    pub async fn prepare_slot(&self) -> String {
        self.drop_slot().await;
        let make = match self.shape {
            Shape::Copy => return String::new(),
            Shape::Live => format!("SELECT pg_create_logical_replication_slot('{SLOT}', 'pgoutput')"),
            _ => format!("SELECT pg_copy_logical_replication_slot('{BASE}', '{SLOT}')"),
        };
        values(&self.primary, "shop", &make).await;
        let position = format!("SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = '{SLOT}'");
        value(&self.primary, "shop", &position).await
    }

    /// Once nobody reads it.
    pub async fn drop_slot(&self) {
        database::drop_slot(&self.primary, SLOT).await;
    }

    /// The client that makes and removes topics.
    fn admin(&self) -> AdminClient<DefaultClientContext> {
        ClientConfig::new().set("bootstrap.servers", self.broker.address()).create().unwrap()
    }

    /// An empty topic of one partition.
    pub async fn make_topic(&self, name: &str) {
        let topic = NewTopic::new(name, 1, TopicReplication::Fixed(1));
        let made = self.admin().create_topics([&topic], &AdminOptions::new()).await.unwrap();
        made.into_iter().for_each(|outcome| drop(outcome.unwrap()));
    }

    /// Removes the topics of a round: they are large.
    pub async fn forget(&self, round: usize) {
        let names = [own_prefix(round), peer_prefix(round), bare_prefix(round)];
        let names = names.map(|prefix| topic_of(&prefix));
        // What was not there answers with an error.
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let _ = self.admin().delete_topics(&names, &AdminOptions::new()).await;
    }

    /// For the report; with the bytes of an event.
    pub fn described(&self, plan: &Plan, bytes: f64) -> String {
        format!(
            "to Kafka, one partition, lz4: {} (PostgreSQL {}, walrelay's events {bytes:.0} bytes with key and headers)",
            self.shape.title(plan),
            plan.major
        )
    }
}
