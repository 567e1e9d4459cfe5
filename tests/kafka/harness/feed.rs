//! A primary with a database `shop`, a broker, and a relay with the pipeline `feed1` between them.

use std::path::Path;

use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use serde_json::Value;
use walrelay::config::Environment;
use walrelay::throwaway::{Broker, BrokerOptions, Options, Server, find_broker};

use super::{Reader, Relay, eventually, start_server, try_run, value, values};

/// A broker with the usual options.
pub async fn broker() -> Broker {
    broker_with(BrokerOptions::default()).await
}

pub async fn broker_with(options: BrokerOptions) -> Broker {
    let programs = find_broker(&Environment::of_process(), Path::new(env!("CARGO_MANIFEST_DIR"))).unwrap();
    Broker::start(&programs, options).await.unwrap()
}

/// A second node of a running broker's cluster.
pub async fn second_broker(first: &Broker) -> Broker {
    broker_with(BrokerOptions { joins: Some(first.controller_port()), ..BrokerOptions::default() }).await
}

/// See the module.
pub struct Feed {
    pub primary: Server,
    pub broker: Broker,
}

impl Feed {
    /// PostgreSQL 18 and a broker, both with the usual options.
    pub async fn start() -> Self {
        Self::with(Options::default(), BrokerOptions::default()).await
    }

    pub async fn with(primary: Options, broker: BrokerOptions) -> Self {
        let feed = Self { primary: start_server(18, primary).await, broker: broker_with(broker).await };
        values(&feed.primary, "postgres", "CREATE DATABASE shop").await;
        feed
    }

    pub async fn on_primary(&self, sql: &str) -> super::Rows {
        values(&self.primary, "shop", sql).await
    }

    /// A configuration of the one pipeline: `pipeline` are lines of its table, `sink` of its sink's, sub-tables last.
    pub fn config(&self, pipeline: &str, sink: &str) -> String {
        config(&self.primary.url("shop"), &self.broker.address(), pipeline, sink)
    }

    /// A relay that streams only what comes from now on.
    pub async fn relay(&self, sink: &str) -> Relay {
        self.relay_with("initial_copy = false", sink).await
    }

    /// A relay that streams, with lines of its pipeline.
    pub async fn relay_with(&self, pipeline: &str, sink: &str) -> Relay {
        let relay = Relay::start(&self.config(pipeline, sink)).await;
        streams(&relay).await;
        relay
    }

    pub fn reader(&self) -> Reader {
        Reader::new(&self.broker.address())
    }

    /// Waits until the primary has heard that everything committed on it up to now is in Kafka, and readers see it.
    pub async fn caught_up(&self) {
        self.pipeline_caught_up("feed1").await;
    }

    /// The same of a pipeline of another name.
    pub async fn pipeline_caught_up(&self, name: &str) {
        let target = value(&self.primary, "postgres", "SELECT pg_current_wal_insert_lsn()").await;
        let sql = format!("SELECT replay_lsn >= '{target}' FROM pg_stat_replication WHERE application_name = '{name}'");
        eventually(&format!("{name} has confirmed {target}"), || async {
            (value(&self.primary, "postgres", &sql).await == "t").then_some(())
        })
        .await;
        self.reader().settled().await;
    }

    /// Makes the primary wait for the feed.
    pub async fn become_synchronous(&self) {
        values(&self.primary, "postgres", "ALTER SYSTEM SET synchronous_standby_names = 'feed1'").await;
        values(&self.primary, "postgres", "SELECT pg_reload_conf()").await;
        eventually("feed1 is synchronous", || async {
            let sql = "SELECT sync_state FROM pg_stat_replication WHERE application_name = 'feed1'";
            (value(&self.primary, "postgres", sql).await == "sync").then_some(())
        })
        .await;
    }

    /// A topic made by somebody else than walrelay.
    pub async fn create_topic(&self, name: &str, partitions: i32, config: &[(&str, &str)]) {
        let mut topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
        for (key, value) in config {
            topic = topic.set(key, value);
        }
        let made = self.admin().create_topics([&topic], &AdminOptions::new()).await.unwrap();
        made.into_iter().for_each(|outcome| drop(outcome.unwrap()));
    }

    /// One with its only partition on this broker.
    pub async fn create_topic_on(&self, name: &str, broker: i32) {
        let replicas = [broker];
        let assignment = [&replicas[..]];
        let topic = NewTopic::new(name, 1, TopicReplication::Variable(&assignment));
        let made = self.admin().create_topics([&topic], &AdminOptions::new()).await.unwrap();
        made.into_iter().for_each(|outcome| drop(outcome.unwrap()));
    }

    /// Changes settings of a topic while it is in use; what is not named goes back to its default.
    pub async fn set_topic(&self, name: &str, config: &[(&str, &str)]) {
        let mut change = AlterConfig::new(ResourceSpecifier::Topic(name));
        for (key, value) in config {
            change = change.set(key, value);
        }
        let changed = self.admin().alter_configs([&change], &AdminOptions::new()).await.unwrap();
        changed.into_iter().for_each(|outcome| drop(outcome.unwrap()));
        eventually("the settings count", || async {
            let found = self.admin().describe_configs(&[ResourceSpecifier::Topic(name)], &AdminOptions::new()).await;
            let found = found.ok()?.into_iter().next()?.ok()?;
            let is_set =
                |(key, value): &(&str, &str)| found.get(key).and_then(|entry| entry.value.as_deref()) == Some(*value);
            config.iter().all(is_set).then_some(())
        })
        .await;
    }

    pub async fn delete_topics(&self, names: &[&str]) {
        let deleted = self.admin().delete_topics(names, &AdminOptions::new()).await.unwrap();
        deleted.into_iter().for_each(|outcome| drop(outcome.unwrap()));
        // The controller has answered; the broker follows. Somebody may make them again before this is seen.
        let gone = eventually("the topics are gone", || async {
            let there = self.reader().topics().await;
            names.iter().all(|name| !there.contains(*name)).then_some(())
        });
        let _ = tokio::time::timeout(std::time::Duration::from_secs(2), gone).await;
    }

    pub fn admin(&self) -> AdminClient<DefaultClientContext> {
        ClientConfig::new().set("bootstrap.servers", self.broker.address()).create().unwrap()
    }

    /// The position that the slot has been told.
    pub async fn confirmed(&self) -> String {
        value(&self.primary, "shop", "SELECT confirmed_flush_lsn FROM pg_replication_slots").await
    }

    /// The newest progress record of each transactional id.
    pub async fn progress(&self) -> Vec<(String, Value)> {
        let mut newest: Vec<(String, Value)> = Vec::new();
        for record in self.reader().read_one("walrelay.progress").await {
            let key = record.key_text();
            newest.retain(|(other, _)| *other != key);
            newest.push((key, record.json()));
        }
        newest
    }

    /// Runs statements in a session of their own, meanwhile.
    pub fn in_background(&self, sql: &str) -> tokio::task::JoinHandle<()> {
        let url = self.primary.server_url("shop").unwrap();
        let sql = sql.to_owned();
        tokio::spawn(async move {
            let client = walrelay::wire::sql::connect(&url, &walrelay::wire::Session::new("writer")).await.unwrap();
            client.batch_execute(&sql).await.unwrap();
        })
    }

    /// A statement that may fail.
    pub async fn try_on_primary(&self, sql: &str) -> Result<super::Rows, tokio_postgres::Error> {
        try_run(&self.primary, "shop", sql).await
    }
}

/// The text of a configuration file.
pub fn config(primary: &str, brokers: &str, pipeline: &str, sink: &str) -> String {
    let prefix = if sink.contains("topic_prefix") { "" } else { "topic_prefix = \"shop\"\n" };
    format!(
        "[primary]\nurl = \"{primary}\"\n[[pipeline]]\nname = \"feed1\"\n{pipeline}\n\
         [pipeline.sink]\ntype = \"kafka\"\nbrokers = \"{brokers}\"\n{prefix}{sink}\n"
    )
}

/// Waits until `feed1` streams.
pub async fn streams(relay: &Relay) -> Value {
    relay.wait("feed1", "streaming", |report| report["state"] == "streaming").await
}

/// A refusal: state `failed`, with all these parts in `last_error`.
pub async fn fails_with(relay: &Relay, parts: &[&str]) -> String {
    ends_up("failed", relay, parts).await
}

/// A trouble that may pass: state `waiting`, with all these parts in `last_error`.
pub async fn waits_with(relay: &Relay, parts: &[&str]) -> String {
    ends_up("waiting", relay, parts).await
}

async fn ends_up(state: &str, relay: &Relay, parts: &[&str]) -> String {
    let is_there =
        |report: &Value| report["state"] == state && report["last_error"].as_str().is_some_and(|text| !text.is_empty());
    let report = relay.wait("feed1", state, is_there).await;
    let error = report["last_error"].as_str().unwrap_or("").to_owned();
    for part in parts {
        assert!(error.contains(part), "\"{part}\" is not in last_error: {error}");
    }
    error
}
