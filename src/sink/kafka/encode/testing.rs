//! What the encoder's tests share: an outlet that keeps records, settings from a few lines, captured streams, and sessions with a
//! made-up table.

use std::path::Path;

use crate::config::{Environment, KafkaSink, Sink, read};
use crate::decode::{Context, Message, decode};
use crate::model::{Lsn, PipelineName};

use super::super::super::SinkError;
use super::super::super::postgres::TableFilter;
use super::facts::plain_column;
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

/// A column of a made-up table: its type's OID, whether it belongs to the replica identity, whether it may be NULL.
pub(super) struct Made(pub(super) &'static str, pub(super) u32, pub(super) bool, pub(super) bool);

pub(super) const ID: Made = Made("id", 23, true, false);

/// A session with one table `public.t`.
pub(super) struct Session {
    pub(super) encoder: Encoder,
    pub(super) keeper: Keeper,
}

impl Session {
    pub(super) fn new(lines: &str, identity: u8, columns: &[Made], change: impl FnOnce(&mut TableFacts)) -> Session {
        let mut session = Session::empty(lines);
        session.describe("t", 1, identity, columns, change).unwrap();
        session
    }

    /// Without the table.
    pub(super) fn empty(lines: &str) -> Session {
        let mut session = Session { encoder: encoder("shop", lines), keeper: Keeper::default() };
        session.begin(7, 100);
        session
    }

    pub(super) fn begin(&mut self, xid: u32, commit: u64) {
        let mark = TransactionMark {
            xid,
            commit_lsn: Lsn(commit),
            end_lsn: Lsn(commit + 8),
            commit_time: Timestamp(0),
            origin: None,
        };
        self.encoder.begin(mark, &mut self.keeper).unwrap();
    }

    pub(super) fn describe(
        &mut self,
        name: &str,
        oid: u32,
        identity: u8,
        columns: &[Made],
        change: impl FnOnce(&mut TableFacts),
    ) -> Result<(), SinkError> {
        let payload = relation(name, oid, identity, columns);
        let mut facts = facts(name, oid, columns);
        change(&mut facts);
        match self.message(&payload)? {
            Step::Done => return Ok(()),
            Step::NeedFacts(wanted) => assert_eq!(wanted, facts.qualified_name()),
        }
        self.encoder.describe(facts);
        assert_eq!(self.message(&payload)?, Step::Done);
        Ok(())
    }

    pub(super) fn message(&mut self, payload: &[u8]) -> Result<Step, SinkError> {
        let message = decode(payload, Context::default()).unwrap();
        self.encoder.message(Lsn(90), &message, &mut self.keeper)
    }

    /// Rows are texts between commas: `~` is NULL, `^` an unchanged large value.
    pub(super) fn insert(&mut self, new: &str) -> Vec<Kept> {
        self.change(&insertion(new))
    }

    pub(super) fn update(&mut self, old: Option<(u8, &str)>, new: &str) -> Vec<Kept> {
        let mut payload = vec![b'U', 0, 0, 0, 1];
        if let Some((mark, old)) = old {
            payload.push(mark);
            payload.extend(tuple(old));
        }
        payload.push(b'N');
        payload.extend(tuple(new));
        self.change(&payload)
    }

    pub(super) fn delete(&mut self, mark: u8, old: &str) -> Vec<Kept> {
        self.change(&[&[b'D', 0, 0, 0, 1, mark], tuple(old).as_slice()].concat())
    }

    pub(super) fn change(&mut self, payload: &[u8]) -> Vec<Kept> {
        let step = self.message(payload).unwrap();
        assert_eq!(step, Step::Done);
        std::mem::take(&mut self.keeper.0)
    }
}

/// The Relation message of a table.
pub(super) fn relation(name: &str, oid: u32, identity: u8, columns: &[Made]) -> Vec<u8> {
    let mut payload = vec![b'R'];
    payload.extend(oid.to_be_bytes());
    payload.extend(format!("public\0{name}\0").bytes());
    payload.push(identity);
    payload.extend((columns.len() as u16).to_be_bytes());
    for Made(name, oid, is_key, _) in columns {
        payload.push(u8::from(*is_key));
        payload.extend(format!("{name}\0").bytes());
        payload.extend(oid.to_be_bytes());
        payload.extend((-1i32).to_be_bytes());
    }
    payload
}

/// An Insert message, see [`Session::insert`].
pub(super) fn insertion(new: &str) -> Vec<u8> {
    [&[b'I', 0, 0, 0, 1, b'N'], tuple(new).as_slice()].concat()
}

fn tuple(row: &str) -> Vec<u8> {
    let values: Vec<&str> = row.split(',').collect();
    let mut bytes = (values.len() as u16).to_be_bytes().to_vec();
    for value in values {
        match value {
            "~" => bytes.push(b'n'),
            "^" => bytes.push(b'u'),
            text => {
                bytes.push(b't');
                bytes.extend((text.len() as u32).to_be_bytes());
                bytes.extend(text.bytes());
            }
        }
    }
    bytes
}

/// What the catalog says of such a table; it has no key.
pub(super) fn facts(name: &str, oid: u32, columns: &[Made]) -> TableFacts {
    let columns = columns.iter().map(|Made(name, oid, _, is_nullable)| plain_column(name, *oid, !is_nullable));
    TableFacts {
        schema: "public".to_owned(),
        name: name.to_owned(),
        oid,
        replica_identity: String::new(),
        columns: columns.collect(),
        primary_key: Vec::new(),
        identity_index: Vec::new(),
        unique_indexes: Vec::new(),
    }
}

pub(super) fn names(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}
