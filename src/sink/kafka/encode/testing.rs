//! What the encoder's tests share: an outlet that keeps records, settings from a few lines, and captured streams.

use std::path::Path;

use crate::config::{Environment, KafkaSink, Sink, read};
use crate::decode::{Context, Message, decode};
use crate::model::{Lsn, PipelineName};

use super::super::super::SinkError;
use super::super::super::postgres::TableFilter;
use super::*;

/// A record, owned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Kept {
    pub(super) topic: String,
    pub(super) placement: Placement,
    pub(super) key: Option<String>,
    pub(super) value: Option<String>,
    pub(super) headers: Vec<(String, String)>,
    pub(super) lsn: Lsn,
}

impl Kept {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(header, _)| header == name).map(|(_, value)| value.as_str())
    }

    /// The value as JSON.
    pub(super) fn json(&self) -> serde_json::Value {
        self.value.as_deref().map_or(serde_json::Value::Null, |value| serde_json::from_str(value).unwrap())
    }
}

/// Keeps what it is sent.
#[derive(Debug, Default)]
pub(super) struct Keeper(pub(super) Vec<Kept>);

impl Outlet for Keeper {
    fn send(&mut self, record: Record<'_>) -> Result<(), SinkError> {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        self.0.push(Kept {
            topic: record.topic.to_owned(),
            placement: record.placement,
            key: record.key.map(text),
            value: record.value.map(text),
            headers: record.headers.iter().map(|header| (header.name.to_owned(), text(header.value))).collect(),
            lsn: record.lsn,
        });
        Ok(())
    }
}

/// The settings of a sink with these lines besides the necessary ones.
pub(super) fn settings(prefix: &str, lines: &str) -> KafkaSink {
    let text = format!(
        "[primary]\nurl = \"postgres://u@h/d\"\n[[pipeline]]\nname = \"feed1\"\n[pipeline.sink]\ntype = \"kafka\"\n\
         brokers = \"k:9092\"\ntopic_prefix = \"{prefix}\"\n{lines}\n"
    );
    let config = read(Path::new("walrelay.toml"), &text, &Environment::default()).unwrap();
    match config.pipelines.into_iter().next().map(|pipeline| pipeline.sink) {
        Some(Sink::Kafka(sink)) => *sink,
        other => panic!("{other:?}"),
    }
}

/// An encoder of these settings.
pub(super) fn encoder(prefix: &str, lines: &str) -> Encoder {
    let origin = Origin {
        pipeline: PipelineName::new("feed1").unwrap(),
        database: "dump".to_owned(),
        previous_end: None,
        tables: TableFilter::All,
    };
    Encoder::new(settings(prefix, lines), origin)
}

/// `position payload` lines.
pub(super) fn captured(text: &str) -> Vec<(Lsn, Vec<u8>)> {
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    text.lines()
        .map(|line| {
            let (lsn, payload) = line.split_once(' ').unwrap();
            (lsn.parse().unwrap(), payload.as_bytes().chunks(2).map(byte).collect())
        })
        .collect()
}

/// Feeds a captured stream, describing tables as they are asked for.
pub(super) fn feed(encoder: &mut Encoder, stream: &[(Lsn, Vec<u8>)], facts: &[TableFacts]) -> Vec<Kept> {
    let mut keeper = Keeper::default();
    let context = Context { in_stream: false, parallel: false };
    let commits: Vec<(Lsn, Lsn, crate::model::Timestamp)> = stream
        .iter()
        .filter_map(|(_, payload)| match decode(payload, context).unwrap() {
            Message::Commit { commit_lsn, end_lsn, commit_time } => Some((commit_lsn, end_lsn, commit_time)),
            _ => None,
        })
        .collect();
    let mut commits = commits.into_iter();
    for (lsn, payload) in stream {
        match decode(payload, context).unwrap() {
            Message::Begin { xid, .. } => {
                let (commit_lsn, end_lsn, commit_time) = commits.next().unwrap();
                let mark = TransactionMark { xid, commit_lsn, end_lsn, commit_time, origin: None };
                encoder.begin(mark, &mut keeper).unwrap();
            }
            Message::Commit { .. } => encoder.end(&mut keeper).unwrap(),
            Message::Logical(logical) if !logical.is_transactional => {
                encoder.outside_message(&logical, &mut keeper).unwrap();
            }
            message => {
                while let Step::NeedFacts(name) = encoder.message(*lsn, &message, &mut keeper).unwrap() {
                    match facts.iter().find(|facts| facts.qualified_name() == name) {
                        Some(facts) => encoder.describe(facts.clone()),
                        None => encoder.describe_missing(name),
                    }
                }
            }
        }
    }
    keeper.0
}
