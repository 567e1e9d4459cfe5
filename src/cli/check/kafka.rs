//! The doctor at a Kafka cluster: reachable, the topics as they must be, and whether what it acknowledges would survive. Changes
//! nothing there.

use std::time::Duration;

use crate::cli::Exit;
use crate::config::{KafkaSink, Pipeline};
use crate::model::{QualifiedName, Retry, listed};
use crate::sink::SinkError;
use crate::sink::kafka::transport::{Survey, TopicSurvey, survey};

use super::beginning::Record;
use super::finding::{Finding, Findings, Level};

/// Examines the pipeline's cluster.
pub(super) async fn examine(
    pipeline: &Pipeline,
    sink: &KafkaSink,
    tables: &[QualifiedName],
    findings: &mut Findings,
) -> Record {
    let place = pipeline.name.as_str();
    match survey(sink, &pipeline.name, tables).await {
        Ok(survey) => {
            for finding in judge(place, sink, &survey) {
                findings.push(finding);
            }
            // What stands in an open transaction is judged by a start alone.
            if !pipeline.initial_copy && survey.records.is_unfinished() && !survey.records.is_undecided {
                findings.push(unfinished(place, sink));
            }
            Record::Read(survey.records.progress)
        }
        Err(error @ SinkError::Refused(_)) => {
            findings.push(Finding::error(place, error.to_string(), ""));
            Record::Unknown
        }
        Err(error @ SinkError::ClientProperty { .. }) => {
            findings.push(Finding::error(place, error.to_string(), "").with_exit(Exit::Configuration));
            Record::Unknown
        }
        Err(error) => {
            let (said, exit) = match error.retry() {
                Retry::Never => ("a refusal by", Exit::Configuration),
                Retry::Later => ("no answer from", Exit::Unreachable),
            };
            let message = format!("{said} the Kafka brokers {}: {error}", sink.brokers);
            let remedy = "check brokers, network, [pipeline.sink.client] (security.protocol, sasl.*, ssl.*) and the rights (ACLs)";
            findings.push(Finding::error(place, message, remedy).with_exit(exit));
            Record::Unknown
        }
    }
}

/// A start that is to copy nothing refuses where a copy was begun.
fn unfinished(place: &str, sink: &KafkaSink) -> Finding {
    let message = format!(
        "initial_copy = false, but the copy of \"{place}\" was begun and is not finished (records in the topic \"{}\"): rows were never sent",
        sink.progress_topic
    );
    let remedy = format!("set initial_copy = true to finish it, or start over: walrelay drop {place} --yes");
    Finding::error(place, message, remedy)
}

/// What is wrong with what was found. Pure.
fn judge(place: &str, sink: &KafkaSink, survey: &Survey) -> Vec<Finding> {
    let mut findings = Vec::new();
    existence(place, sink, survey, &mut findings);
    promises(place, survey, &mut findings);
    if let Some(most) = setting(survey, "transaction.max.timeout.ms").map(Duration::from_millis)
        && most < sink.transaction_timeout
    {
        findings.push(Finding::warning(
            place,
            format!(
                "transaction_timeout is {} s, the brokers allow {} s (transaction.max.timeout.ms), which is used instead",
                sink.transaction_timeout.as_secs(),
                most.as_secs()
            ),
            "set a lower transaction_timeout, or raise transaction.max.timeout.ms on the brokers",
        ));
    }
    findings
}

fn existence(place: &str, sink: &KafkaSink, survey: &Survey, findings: &mut Vec<Finding>) {
    let is_progress = |name: &String| *name == sink.progress_topic;
    match &sink.create_topics {
        None => {
            let missing: Vec<&str> =
                survey.missing.iter().filter(|name| !is_progress(name)).map(String::as_str).collect();
            if !missing.is_empty() {
                let message = format!("create_topics = false, and {} not there", these(&missing));
                findings.push(Finding::error(place, message, "create them, or leave create_topics out"));
            }
        }
        Some(create) if create.partitions > 0 => {
            let differs = |topic: &&TopicSurvey| is_of_events(sink, topic) && topic.partitions != create.partitions;
            let names: Vec<&str> = survey.topics.iter().filter(differs).map(|topic| topic.name.as_str()).collect();
            if !names.is_empty() {
                let message = format!(
                    "create_topics.partitions is {}, but {} with another number of partitions; an existing topic is never changed",
                    create.partitions,
                    exist(&names)
                );
                findings.push(Finding::warning(
                    place,
                    message,
                    "keys stay where they are; make the number the same to be rid of this",
                ));
            }
        }
        Some(_) => {}
    }
    if let Some(progress) = survey.topics.iter().find(|topic| is_progress(&topic.name)) {
        progress_topic(place, progress, findings);
    }
    let holds_nothing = survey.records.progress.is_none();
    let existing: Vec<&str> =
        survey.topics.iter().filter(|topic| is_of_events(sink, topic)).map(|topic| topic.name.as_str()).collect();
    if holds_nothing && !existing.is_empty() {
        let message = format!(
            "there is no progress record yet, but {}: what they hold was sent by somebody else",
            exist(&existing)
        );
        let remedy = "expected when walrelay takes over from another connector; else choose another topic_prefix";
        findings.push(Finding::new(Level::Info, place, message, remedy));
    }
}

fn progress_topic(
    place: &str,
    TopicSurvey { name, partitions, cleanup_policy, .. }: &TopicSurvey,
    findings: &mut Vec<Finding>,
) {
    if *partitions != 1 {
        let message = format!("the progress topic \"{name}\" has {partitions} partitions, it must have 1");
        findings.push(Finding::error(place, message, "name another with progress_topic, or let walrelay create it"));
    }
    if let Some(policy) = cleanup_policy.as_deref().filter(|policy| *policy != "compact") {
        let message = format!(
            "the progress topic \"{name}\" has cleanup.policy = {policy}, so its records would be deleted in time"
        );
        let remedy = "kafka-configs --alter --entity-type topics --entity-name ";
        findings.push(Finding::error(place, message, format!("{remedy}{name} --add-config cleanup.policy=compact")));
    }
}

fn is_of_events(sink: &KafkaSink, topic: &TopicSurvey) -> bool {
    topic.name != sink.progress_topic && !topic.name.starts_with("__")
}

/// Whether what the cluster acknowledges survives the loss of a broker.
fn promises(place: &str, survey: &Survey, findings: &mut Vec<Finding>) {
    let mut warn = |is_hollow: &dyn Fn(&TopicSurvey) -> bool, what: &str, remedy: &str| {
        let names: Vec<&str> =
            survey.topics.iter().filter(|topic| is_hollow(topic)).map(|topic| topic.name.as_str()).collect();
        if !names.is_empty() {
            findings.push(Finding::warning(place, format!("{what}: {}", listed(&names)), remedy));
        }
    };
    warn(
        &|topic| topic.replicas < 2,
        "one replica only, so a broker that is lost takes with it what the primary was told is safe",
        "give the topics a replication factor of 3 (kafka-reassign-partitions), or create_topics.replication_factor = 3 for new ones",
    );
    warn(
        &|topic| topic.replicas >= 2 && topic.least_in_sync.is_some_and(|least| least < 2),
        "min.insync.replicas is 1, so a commit may be acknowledged by one broker alone",
        "set min.insync.replicas = 2 on the topics (kafka-configs) or on the brokers",
    );
    warn(
        &|topic| topic.replicas >= 2 && topic.least_in_sync.is_some_and(|least| least == topic.replicas),
        "min.insync.replicas equals the replication factor, so commits wait as soon as one broker is away",
        "one replica more, or min.insync.replicas one lower",
    );
    warn(
        &|topic| topic.least_in_sync.is_some_and(|least| least > topic.replicas),
        "min.insync.replicas is above the replication factor, so the topic takes no record",
        "add replicas, or lower min.insync.replicas",
    );
    warn(
        &|topic| topic.has_unclean_elections,
        "unclean.leader.election.enable is true, so acknowledged records may be lost",
        "set it to false on the topics or on the brokers",
    );
    let will_be_made = !survey.missing.is_empty();
    if will_be_made && setting(survey, "default.replication.factor").is_some_and(|factor| factor < 2) {
        findings.push(Finding::warning(
            place,
            "topics will be made with one replica (default.replication.factor of the brokers)",
            "set create_topics.replication_factor = 3, or the brokers' default",
        ));
    }
    let state = |name: &str| setting(survey, name).is_some_and(|count| count < 2);
    let is_seen = survey.topics.iter().any(|topic| topic.name.starts_with("__"));
    if !is_seen && state("transaction.state.log.replication.factor") {
        findings.push(Finding::warning(
            place,
            "the topic of the transaction state will have one replica (transaction.state.log.replication.factor)",
            "set it to 3 on the brokers before the first transaction",
        ));
    }
}

fn setting(survey: &Survey, name: &str) -> Option<u64> {
    survey.broker.get(name).and_then(|text| text.parse().ok())
}

fn these(names: &[&str]) -> String {
    format!("{} {}", listed(names), if names.len() == 1 { "is" } else { "are" })
}

fn exist(names: &[&str]) -> String {
    format!("{} exist{}", listed(names), if names.len() == 1 { "s" } else { "" })
}
