//! The topics as the brokers have them: how many partitions, how large a record may be. Makes what is missing before the first
//! record goes there; never changes a topic that exists.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::RDKafkaErrorCode as Code;
use tokio::runtime::Handle;

use crate::config::KafkaSink;
use crate::model;

use super::client::{self, Events};
use super::fault::Fault;
use crate::sink::SinkError;

/// One answer of a broker.
const ANSWER_LIMIT: Duration = Duration::from_secs(15);
/// A topic just made has its leaders by then.
const CREATION_LIMIT: Duration = Duration::from_secs(60);
/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(20);
/// More topics than this are looked up all at once.
const SINGLE_LOOKUPS_LIMIT: usize = 16;
/// The brokers' own topics.
const INTERNAL_PREFIX: &str = "__";
/// What a broker takes unless it says otherwise (`message.max.bytes`).
const DEFAULT_RECORD_BYTES: usize = 1_048_588;

/// The progress topic: compacted, in segments small enough to be compacted soon.
const PROGRESS_SETTINGS: &[(&str, &str)] = &[
    ("cleanup.policy", "compact"),
    ("segment.bytes", "1048576"),
    ("segment.ms", "600000"),
    ("min.cleanable.dirty.ratio", "0.1"),
];

/// One topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TopicFacts {
    pub(super) partitions: i32,
    pub(super) replicas: usize,
    /// `max.message.bytes`.
    pub(super) record_bytes: usize,
    pub(super) settings: HashMap<String, String>,
}

/// Topics that cannot be used yet.
#[derive(Debug, Default)]
struct Unready {
    absent: Vec<String>,
    /// There, but some partition has no leader: its brokers are away.
    leaderless: Vec<String>,
}

/// What is known of the topics. Its clients live only while they are asked: one that nobody serves would gather what it has to
/// say about its connections.
pub(super) struct Topics {
    sink: KafkaSink,
    events: Events,
    runtime: Handle,
    known: HashMap<String, TopicFacts>,
}

impl Topics {
    pub(super) fn new(sink: &KafkaSink, runtime: Handle) -> Self {
        Self { sink: sink.clone(), events: Events::default(), runtime, known: HashMap::new() }
    }

    fn reader(&self) -> Result<BaseConsumer<Events>, Fault> {
        let settings = client::reader_settings(&self.sink, "read_committed");
        Ok(BaseConsumer::from_config_and_context(&settings, self.events.clone())?)
    }

    fn admin(&self) -> Result<AdminClient<Events>, SinkError> {
        let admin = AdminClient::from_config_and_context(&client::settings(&self.sink), self.events.clone());
        admin.map_err(|error| Fault::from(error).while_doing("setting up the Kafka client", None))
    }

    /// What was found or made.
    pub(super) fn known(&self, name: &str) -> Option<&TopicFacts> {
        self.known.get(name)
    }

    /// All partitions of the known topics that hold events.
    pub(super) fn partitions(&self) -> Vec<(String, i32)> {
        let of_events = self.known.iter().filter(|(name, _)| **name != self.sink.progress_topic);
        of_events.flat_map(|(name, facts)| (0..facts.partitions).map(move |at| (name.clone(), at))).collect()
    }

    /// The partitions of every topic that fits, as one answer of the brokers tells them; without those that have no leader and the topics that hold
    /// no events. Notes nothing.
    pub(super) fn fitting(&self, fits: impl Fn(&str) -> bool) -> Result<Vec<(String, i32)>, Fault> {
        let reader = self.reader()?;
        let metadata = reader.fetch_metadata(None, ANSWER_LIMIT).inspect_err(|_| client::listen(&reader))?;
        let holds_events = |name: &str| !name.starts_with(INTERNAL_PREFIX) && name != self.sink.progress_topic;
        let topics = metadata.topics().iter().filter(|topic| holds_events(topic.name()) && fits(topic.name()));
        let partitions = topics.flat_map(|topic| {
            let led = topic.partitions().iter().filter(|partition| partition.leader() >= 0);
            led.map(move |partition| (topic.name().to_owned(), partition.id()))
        });
        Ok(partitions.collect())
    }

    /// The least `max.message.bytes` among the known topics and those that will be made later.
    pub(super) fn smallest_record_bytes(&self) -> usize {
        let made = self.sink.create_topics.as_ref().and_then(|create| create.config.get("max.message.bytes"));
        let made = made.and_then(|text| text.parse().ok());
        self.known.values().map(|facts| facts.record_bytes).chain(made).min().unwrap_or(DEFAULT_RECORD_BYTES)
    }

    /// Looks the topics up, without making any; gives the names that do not exist. One without a leader does: it is waited for.
    pub(super) fn absent(&mut self, names: &[String]) -> Result<Vec<String>, SinkError> {
        let Unready { absent, leaderless } = self.look_up(names)?;
        if leaderless.is_empty() {
            return Ok(absent);
        }
        let context = format!("looking up {}: not every partition has a leader", listed(&leaderless));
        Err(Fault::from(Code::LeaderNotAvailable).while_doing(context, self.events.connection()))
    }

    /// Notes those that can be used.
    fn look_up(&mut self, names: &[String]) -> Result<Unready, SinkError> {
        let new: Vec<String> = names.iter().filter(|name| !self.known.contains_key(*name)).cloned().collect();
        if new.is_empty() {
            return Ok(Unready::default());
        }
        let context = || format!("looking up {}", listed(&new));
        let found = self.counts(&new).map_err(|fault| fault.while_doing(context(), self.events.connection()))?;
        let present: Vec<&String> = new.iter().filter(|name| matches!(found.get(*name), Some(Some(_)))).collect();
        let mut settings = self.settings_of(&present)?;
        for name in present {
            let (partitions, replicas) = found.get(name).copied().flatten().unwrap_or((1, 1));
            let settings = settings.remove(name).unwrap_or_default();
            let record_bytes = record_bytes(&settings).unwrap_or(DEFAULT_RECORD_BYTES);
            self.known.insert(name.clone(), TopicFacts { partitions, replicas, record_bytes, settings });
        }
        let unready = new.into_iter().filter(|name| !self.known.contains_key(name));
        let (leaderless, absent) = unready.partition(|name| found.contains_key(name));
        Ok(Unready { absent, leaderless })
    }

    /// Sees to it that topics for events exist.
    pub(super) fn ensure(&mut self, names: &[String]) -> Result<(), SinkError> {
        let missing = self.absent(names)?;
        if missing.is_empty() {
            return Ok(());
        }
        let Some(create) = self.sink.create_topics.clone() else {
            return Err(SinkError::Refused(format!(
                "{} not exist and create_topics = false: create {}, or leave create_topics out",
                if missing.len() == 1 {
                    format!("{} does", listed(&missing))
                } else {
                    format!("{} do", listed(&missing))
                },
                if missing.len() == 1 { "it" } else { "them" },
            )));
        };
        let settings: Vec<(&str, &str)> =
            create.config.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        self.create(&missing, create.partitions, create.replication_factor, &settings)
    }

    /// Which of the topics that were known are gone, or were made anew with fewer partitions. `None` where the brokers do not answer.
    pub(super) fn vanished(&self, names: &[&str]) -> Option<Vec<String>> {
        let all = self.sink.progress_topic.as_str();
        let metadata = self.reader().ok()?.fetch_metadata(None, ANSWER_LIMIT).ok()?;
        let count = |name: &str| {
            metadata.topics().iter().find(|topic| topic.name() == name).map(|topic| topic.partitions().len())
        };
        let is_gone = |name: &&&str| match (count(name), self.known(name)) {
            (Some(now), Some(known)) => (now as i32) < known.partitions,
            (None, Some(_)) => true,
            (_, None) => false,
        };
        Some(names.iter().chain(&[all]).filter(is_gone).map(|name| (*name).to_owned()).collect())
    }

    /// Whether a topic takes less by now than it did when it was looked up: as it was told, and as it is.
    pub(super) fn takes_less(&self, name: &String) -> Option<(usize, usize)> {
        self.limits(name).filter(|(before, now)| now < before)
    }

    /// What a topic takes by now, where that is more than before; from now on it is what is known.
    pub(super) fn takes_more(&mut self, name: &String) -> Option<usize> {
        let (_, now) = self.limits(name).filter(|(before, now)| now > before)?;
        self.known.get_mut(name)?.record_bytes = now;
        Some(now)
    }

    /// `max.message.bytes` as it is known, and as it is; nothing where it may not be read, or nobody answers.
    fn limits(&self, name: &String) -> Option<(usize, usize)> {
        let before = self.known(name)?.record_bytes;
        let now = record_bytes(self.settings_of(&[name]).ok()?.get(name)?)?;
        Some((before, now))
    }

    /// Which of the known topics hold a record; only some are looked at.
    pub(super) fn holding_records(&self, names: &[String]) -> Result<Vec<String>, Fault> {
        let reader = self.reader()?;
        let holds = |name: &String| -> Result<bool, Fault> {
            for partition in 0..self.known(name).map_or(0, |facts| facts.partitions) {
                let (first, end) = reader.fetch_watermarks(name, partition, ANSWER_LIMIT)?;
                if first < end {
                    return Ok(true);
                }
            }
            Ok(false)
        };
        let mut found = Vec::new();
        for name in names.iter().take(SINGLE_LOOKUPS_LIMIT) {
            if holds(name)? {
                found.push(name.clone());
            }
        }
        Ok(found)
    }

    /// Sees to it that the progress topic exists, with one partition.
    pub(super) fn ensure_progress(&mut self) -> Result<(), SinkError> {
        let name = self.sink.progress_topic.clone();
        let missing = self.absent(std::slice::from_ref(&name))?;
        if !missing.is_empty() {
            let replication = self.sink.create_topics.as_ref().map_or(-1, |create| create.replication_factor);
            self.create(&missing, 1, replication, PROGRESS_SETTINGS)?;
        }
        let partitions = self.known(&name).map_or(1, |facts| facts.partitions);
        if partitions != 1 {
            return Err(SinkError::Refused(format!(
                "the progress topic \"{name}\" has {partitions} partitions; it must have 1, compacted, because its records are one \
                 sequence. Name another with progress_topic, or let walrelay create it"
            )));
        }
        let policy = self.known(&name).and_then(|facts| facts.settings.get("cleanup.policy"));
        if let Some(policy) = policy.filter(|policy| *policy != "compact") {
            return Err(SinkError::Refused(format!(
                "the progress topic \"{name}\" has cleanup.policy = {policy}, so that its records would be deleted in time, and tables sent \
                 again: kafka-configs --alter --entity-type topics --entity-name {name} --add-config cleanup.policy=compact"
            )));
        }
        Ok(())
    }

    fn create(
        &mut self,
        names: &[String],
        partitions: i32,
        replication_factor: i32,
        settings: &[(&str, &str)],
    ) -> Result<(), SinkError> {
        let context = || format!("creating {}", listed(names));
        let topics: Vec<NewTopic<'_>> = names
            .iter()
            .map(|name| NewTopic {
                name,
                num_partitions: partitions,
                replication: TopicReplication::Fixed(replication_factor),
                config: settings.to_vec(),
            })
            .collect();
        let options = AdminOptions::new().request_timeout(Some(ANSWER_LIMIT)).operation_timeout(Some(ANSWER_LIMIT));
        let failed = |fault: Fault| fault.while_doing(context(), self.events.connection());
        let admin = self.admin()?;
        let results = self.runtime.block_on(admin.create_topics(&topics, &options));
        for result in results.map_err(|error| failed(error.into()))? {
            match result {
                Ok(name) => tracing::info!(topic = name, "created the topic"),
                Err((_, Code::TopicAlreadyExists)) => {}
                Err((name, code)) => {
                    return Err(Fault::from(code).while_doing(format!("creating the topic \"{name}\""), None));
                }
            }
        }
        let deadline = Instant::now() + CREATION_LIMIT;
        loop {
            let Unready { absent, leaderless } = self.look_up(names)?;
            if absent.is_empty() && leaderless.is_empty() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(Fault::from(Code::OperationTimedOut).while_doing(context(), self.events.connection()));
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Partitions and replicas of those that exist; `None` where partitions have no leader.
    fn counts(&self, names: &[String]) -> Result<HashMap<String, Option<(i32, usize)>>, Fault> {
        let reader = self.reader()?;
        let mut found = HashMap::new();
        let mut note = |topic: &rdkafka::metadata::MetadataTopic| -> Result<(), Fault> {
            match topic.error().map(Code::from) {
                None | Some(Code::LeaderNotAvailable) => {}
                Some(Code::UnknownTopicOrPartition | Code::UnknownTopic) => return Ok(()),
                Some(code) => return Err(Fault::from(code)),
            }
            let partitions = topic.partitions();
            let is_led = !partitions.is_empty() && partitions.iter().all(|partition| partition.leader() >= 0);
            let replicas = partitions.iter().map(|partition| partition.replicas().len()).min().unwrap_or(0);
            found.insert(topic.name().to_owned(), is_led.then_some((partitions.len() as i32, replicas)));
            Ok(())
        };
        if names.len() > SINGLE_LOOKUPS_LIMIT {
            let metadata = reader.fetch_metadata(None, ANSWER_LIMIT).inspect_err(|_| client::listen(&reader))?;
            for topic in metadata.topics().iter().filter(|topic| names.iter().any(|name| name == topic.name())) {
                note(topic)?;
            }
        } else {
            for name in names {
                let metadata =
                    reader.fetch_metadata(Some(name), ANSWER_LIMIT).inspect_err(|_| client::listen(&reader))?;
                metadata.topics().iter().try_for_each(&mut note)?;
            }
        }
        Ok(found)
    }

    /// The settings of topics that exist. Where they may not be read, a default is assumed, and said.
    fn settings_of(&self, names: &[&String]) -> Result<HashMap<String, HashMap<String, String>>, SinkError> {
        if names.is_empty() {
            return Ok(HashMap::new());
        }
        let wanted: Vec<ResourceSpecifier<'_>> = names.iter().map(|name| ResourceSpecifier::Topic(name)).collect();
        let options = AdminOptions::new().request_timeout(Some(ANSWER_LIMIT));
        let context = || "reading the topics' settings".to_owned();
        let admin = self.admin()?;
        let results = self.runtime.block_on(admin.describe_configs(&wanted, &options));
        let results = results.map_err(|error| Fault::from(error).while_doing(context(), self.events.connection()))?;
        let mut settings = HashMap::new();
        for result in results {
            match result {
                Ok(resource) => {
                    let rdkafka::admin::OwnedResourceSpecifier::Topic(name) = resource.specifier else { continue };
                    let entries = resource.entries.into_iter().filter_map(|entry| Some((entry.name, entry.value?)));
                    settings.insert(name, entries.collect());
                }
                Err(Code::TopicAuthorizationFailed | Code::ClusterAuthorizationFailed) => tracing::warn!(
                    "the role may not read the topics' settings (DescribeConfigs): records up to {DEFAULT_RECORD_BYTES} bytes are sent"
                ),
                // Made a moment ago: another broker does not know it yet.
                Err(Code::UnknownTopicOrPartition) => {}
                Err(code) => return Err(Fault::from(code).while_doing(context(), self.events.connection())),
            }
        }
        Ok(settings)
    }
}

/// `max.message.bytes`.
fn record_bytes(settings: &HashMap<String, String>) -> Option<usize> {
    settings.get("max.message.bytes").and_then(|text| text.parse().ok())
}

/// `the topic "a"`, `the topics "a", "b" and 3 more`.
pub(super) fn listed(names: &[String]) -> String {
    let noun = if names.len() == 1 { "the topic" } else { "the topics" };
    let quoted: Vec<String> = names.iter().map(|name| format!("\"{name}\"")).collect();
    format!("{noun} {}", model::listed(&quoted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_topics_are_listed_shortly() {
        let names = |count: usize| (0..count).map(|index| format!("t{index}")).collect::<Vec<_>>();
        assert_eq!(listed(&names(1)), "the topic \"t0\"");
        assert_eq!(listed(&names(2)), "the topics \"t0\", \"t1\"");
        assert!(listed(&names(7)).ends_with("\"t4\" and 2 more"));
    }
}
