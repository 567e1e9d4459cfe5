//! `walrelay check --debezium-offsets TOPIC --connector NAME`: where to go on in place of a Debezium connector. Reads Kafka Connect's
//! offsets topic on the brokers of a pipeline; changes nothing.
#![allow(clippy::print_stdout)]

use crate::config::{Config, KafkaSink, Pipeline, Sink};
use crate::sink::SinkError;
use crate::sink::kafka::transport::{DebeziumOffset, debezium_offsets};

use crate::cli::{Exit, complain};

/// Prints the `start_lsn`.
pub(super) async fn show(config: &Config, topic: &str, connector: &str) -> Exit {
    let feeds: Vec<(&Pipeline, &KafkaSink)> = config
        .pipelines
        .iter()
        .filter_map(|pipeline| match &pipeline.sink {
            Sink::Kafka(sink) => Some((pipeline, &**sink)),
            Sink::Postgres(_) | Sink::Stdout => None,
        })
        .collect();
    let Some((_, sink)) = feeds.first() else {
        complain(&"the configuration has no pipeline with a sink of type \"kafka\", whose brokers could be asked");
        return Exit::Configuration;
    };
    let offsets = match debezium_offsets(sink, topic, connector).await {
        Ok(offsets) => offsets,
        Err(error @ SinkError::Refused(_)) => {
            complain(&error);
            return Exit::Refused;
        }
        Err(error) => {
            complain(&error);
            return Exit::Unreachable;
        }
    };
    let Some(offset) = offsets.found else {
        let others: Vec<String> = offsets.others.iter().map(|name| format!("\"{name}\"")).collect();
        let there = if others.is_empty() { "none at all".to_owned() } else { others.join(", ") };
        complain(&format!(
            "the topic \"{topic}\" holds no offset of the connector \"{connector}\"; it holds those of: {there}. Look up \
             offset.storage.topic of the Connect workers, and the connector's name"
        ));
        return Exit::Refused;
    };
    print!("{}", advice(&feeds, connector, &offset));
    Exit::Done
}

/// What to write where.
fn advice(feeds: &[(&Pipeline, &KafkaSink)], connector: &str, offset: &DebeziumOffset) -> String {
    let DebeziumOffset { server, start_lsn } = offset;
    let mut text = format!("start_lsn = \"{start_lsn}\"\n\n");
    match feeds.iter().find(|(_, sink)| sink.topic_prefix == *server) {
        Some((pipeline, _)) => text.push_str(&format!(
            "Write it into [pipeline.sink] of \"{name}\", with initial_copy = false, and slot = the slot.name of \"{connector}\" in its \
             [[pipeline]].\n",
            name = pipeline.name
        )),
        None => text.push_str(&format!(
            "No pipeline of the configuration has topic_prefix = \"{server}\", as \"{connector}\" has: its topics would be others.\n"
        )),
    }
    text.push_str(&format!(
        "It holds only once \"{connector}\" is stopped. The transaction behind it is sent whole, also where \"{connector}\" had sent a part of \
         it, or all of it and not recorded that yet: nothing is skipped.\n"
    ));
    text
}
