//! Replays bytes captured from real servers 14 to 18 (`examples/capture_pgoutput.rs`) through `decode`: every message decodes to
//! its last byte, every layout is there, and the values are those that were written. Needs no server.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use walrelay::assemble::{Arrival, Assembler, Spool};
use walrelay::decode::{Context, Message, OldTuple, Relations, Tag, Tuple, Value, decode};
use walrelay::model::{MemoryBudget, PipelineName};
use walrelay::wire::frame::frames;
use walrelay::wire::replication::{ReplicationMessage, parse};

fn files() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/pgoutput");
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "hex"));
    files.sort();
    files
}

fn bytes_of(line: &str) -> Vec<u8> {
    (0..line.len()).step_by(2).map(|at| u8::from_str_radix(&line[at..at + 2], 16).unwrap()).collect()
}

/// Walks a file and gives each message with the tag and a rendering.
fn replay(path: &Path) -> Vec<(Tag, String)> {
    let text = std::fs::read_to_string(path).unwrap();
    let parallel = text.lines().next().unwrap().contains("parallel");
    let mut in_stream = false;
    let mut relations = Relations::default();
    let mut seen = Vec::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let payload = bytes_of(line);
        let message = decode(&payload, Context { in_stream, parallel })
            .unwrap_or_else(|error| panic!("{}: {error}: {line}", path.display()));
        match &message {
            Message::StreamStart { .. } => in_stream = true,
            Message::StreamStop => in_stream = false,
            Message::Relation(body) => drop(relations.note(body)),
            _ => {}
        }
        seen.push((Tag::of(&payload).unwrap(), rendered(&message, &relations)));
    }
    seen
}

/// What is the same in every capture: no positions, times, transaction ids or OIDs.
fn rendered(message: &Message<'_>, relations: &Relations) -> String {
    let table = |oid: u32| relations.get(oid).unwrap().name.to_string();
    match message {
        Message::Relation(body) => {
            let relation = body.to_relation();
            let columns: Vec<String> =
                relation.columns.iter().map(|c| format!("{}{}", c.name, if c.is_key { "*" } else { "" })).collect();
            format!("relation {} {:?} ({})", relation.name, relation.replica_identity, columns.join(", "))
        }
        Message::Type { schema, name, .. } => {
            format!("type {}.{}", String::from_utf8_lossy(schema), String::from_utf8_lossy(name))
        }
        Message::Insert { relation_oid, new, .. } => format!("insert {} {}", table(*relation_oid), values(new)),
        Message::Update { relation_oid, old, new, .. } => {
            let old = match old {
                None => String::new(),
                Some(OldTuple::Key(tuple)) => format!("key {} ", values(tuple)),
                Some(OldTuple::Full(tuple)) => format!("old {} ", values(tuple)),
            };
            format!("update {} {old}new {}", table(*relation_oid), values(new))
        }
        Message::Delete { relation_oid, old: OldTuple::Key(tuple), .. } => {
            format!("delete {} key {}", table(*relation_oid), values(tuple))
        }
        Message::Delete { relation_oid, old: OldTuple::Full(tuple), .. } => {
            format!("delete {} old {}", table(*relation_oid), values(tuple))
        }
        Message::Truncate { relation_oids, cascade, restart_identity, .. } => {
            let mut tables: Vec<String> = relation_oids.iter().map(table).collect();
            tables.sort();
            format!("truncate {} cascade={cascade} restart_identity={restart_identity}", tables.join(", "))
        }
        Message::Logical(logical) => format!(
            "message transactional={} {}={}",
            logical.is_transactional,
            String::from_utf8_lossy(logical.prefix),
            String::from_utf8_lossy(logical.content)
        ),
        Message::Origin { name, .. } => format!("origin {}", String::from_utf8_lossy(name)),
        Message::StreamAbort { xid, subxid, at } => {
            format!("stream abort top={} position={}", xid == subxid, at.is_some())
        }
        Message::BeginPrepare(prepared) => format!("begin prepare {}", String::from_utf8_lossy(prepared.gid)),
        Message::Prepare(prepared) => format!("prepare {}", String::from_utf8_lossy(prepared.gid)),
        Message::CommitPrepared(prepared) => format!("commit prepared {}", String::from_utf8_lossy(prepared.gid)),
        Message::StreamPrepare(prepared) => format!("stream prepare {}", String::from_utf8_lossy(prepared.gid)),
        Message::RollbackPrepared { prepared, .. } => {
            format!("rollback prepared {}", String::from_utf8_lossy(prepared.gid))
        }
        Message::Begin { .. } => "begin".into(),
        Message::Commit { .. } => "commit".into(),
        Message::StreamStart { is_first, .. } => format!("stream start first={is_first}"),
        Message::StreamStop => "stream stop".into(),
        Message::StreamCommit { .. } => "stream commit".into(),
    }
}

fn values(tuple: &Tuple<'_>) -> String {
    let mut text = String::from("(");
    for (at, value) in tuple.iter().enumerate() {
        if at > 0 {
            text.push_str(", ");
        }
        match value {
            Value::Null => text.push_str("NULL"),
            Value::Unchanged => text.push_str("unchanged"),
            Value::Text(bytes) if bytes.len() > 60 => drop(write!(text, "text of {} bytes", bytes.len())),
            Value::Text(bytes) => drop(write!(text, "'{}'", String::from_utf8_lossy(bytes))),
            Value::Binary(bytes) if bytes.len() > 20 => drop(write!(text, "binary of {} bytes", bytes.len())),
            Value::Binary(bytes) => drop(write!(text, "{bytes:02x?}")),
        }
    }
    text.push(')');
    text
}

#[test]
fn every_layout_of_every_version_is_captured_and_decodes() {
    use Tag::*;
    let mut seen: BTreeMap<String, Vec<Tag>> = BTreeMap::new();
    for path in files() {
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        seen.insert(name, replay(&path).into_iter().map(|(tag, _)| tag).collect());
    }
    let rows = [Begin, Commit, Origin, Relation, Type, Insert, Update, Delete, Truncate, Logical];
    let streamed = [StreamStart, StreamStop, StreamCommit, StreamAbort];
    for major in 14..=18 {
        let mut required: Vec<(&str, Vec<Tag>)> = vec![
            ("plain", rows.to_vec()),
            ("streamed", [&rows[..], &streamed].concat()),
            ("binary", [&rows[..], &streamed].concat()),
        ];
        if major >= 15 {
            required.push(("two_phase", vec![BeginPrepare, Prepare, CommitPrepared, RollbackPrepared, StreamPrepare]));
        }
        if major >= 16 {
            required.push(("parallel", streamed.to_vec()));
        }
        for (name, tags) in required {
            let found = &seen[&format!("{major}-{name}")];
            for tag in tags {
                assert!(found.contains(&tag), "{major}-{name} has no {tag:?}");
            }
        }
    }
}

#[test]
fn the_values_are_those_that_were_written_and_the_same_on_every_version() {
    let plain = |major: u32| {
        let path = files().into_iter().find(|path| path.ends_with(format!("{major}-plain.hex"))).unwrap();
        let lines: Vec<String> = replay(&path).into_iter().map(|(_, line)| line).collect();
        // 14 sends the frame of a transaction that brings nothing; from 15 on it is left out.
        lines.join("\n").replace("begin\ncommit\n", "")
    };
    let newest = plain(18);
    for line in [
        "relation public.plain Default (id*, name, large, feeling, many, amount)",
        "type public.mood",
        "insert public.plain ('1', 'one', text of 6000 bytes, 'sad', '{sad,happy}', '5')",
        "insert public.plain ('2', NULL, '', 'happy', '{}', '7')",
        "update public.plain new ('1', 'uno', unchanged, 'sad', '{sad,happy}', '5')",
        "update public.plain key ('1', NULL, NULL, NULL, NULL, NULL) new ('3', 'uno', unchanged, 'sad', '{sad,happy}', '5')",
        "delete public.plain key ('2', NULL, NULL, NULL, NULL, NULL)",
        "update public.whole old ('1', 'x') new ('1', 'y')",
        "delete public.whole old (NULL, NULL)",
        "update public.whole old ('7', text of 2400 bytes) new ('8', unchanged)",
        "relation public.generated Default (a*)",
        "relation public.indexed Index (a*, b)",
        "update public.indexed key ('1', NULL) new ('2', 'x')",
        "truncate public.keyless cascade=false restart_identity=false",
        "truncate public.child, public.plain, public.whole cascade=true restart_identity=true",
        "message transactional=true walrelay=inside",
        "message transactional=false walrelay=outside",
        "origin elsewhere",
        "relation public.bulk Nothing (id, filler, added)",
    ] {
        assert!(newest.lines().any(|found| found == line), "not found: {line}\n{newest}");
    }
    for major in 14..18 {
        assert_eq!(plain(major), newest, "{major} differs from 18");
    }
}

#[test]
fn aborts_carry_a_position_only_with_parallel_streaming() {
    for path in files() {
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let is_parallel = name.ends_with("parallel");
        for (_, line) in replay(&path).iter().filter(|(tag, _)| *tag == Tag::StreamAbort) {
            assert!(line.ends_with(&format!("position={is_parallel}")), "{name}: {line}");
        }
    }
}

#[test]
fn every_capture_reads_as_recorded() {
    for path in files() {
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let lines: Vec<String> = replay(&path).into_iter().map(|(_, line)| line).collect();
        insta::with_settings!({ prepend_module_to_snapshot => false, omit_expression => true, snapshot_path => "data/pgoutput" }, {
            insta::assert_snapshot!(name, lines.join("\n"));
        });
    }
}

#[test]
fn every_kind_of_value_and_of_old_row_is_captured_on_every_version() {
    for major in 14..=18 {
        let text = |scenario: &str| -> String {
            let ending = format!("{major}-{scenario}.hex");
            let path = files().into_iter().find(|path| path.ends_with(&ending)).unwrap();
            replay(&path).into_iter().map(|(_, line)| line + "\n").collect()
        };
        for (scenario, part) in [
            ("plain", "NULL"),
            ("plain", "unchanged"),
            ("plain", "'uno'"),
            ("plain", " key ("),
            ("plain", " old ("),
            // The enum 'sad', an array of two of them, the domain's int4 5.
            ("binary", "[73, 61, 64], binary of 36 bytes, [00, 00, 00, 05])"),
            ("binary", "unchanged"),
            ("streamed", "stream start first=true"),
            ("streamed", "stream start first=false"),
            ("streamed", "stream abort top=true"),
            ("streamed", "stream abort top=false"),
        ] {
            assert!(text(scenario).contains(part), "{major}-{scenario} has no {part}");
        }
    }
}

#[test]
fn a_stored_generated_column_arrives_where_18_is_asked_to_publish_it() {
    let path = files().into_iter().find(|path| path.ends_with("18-generated.hex")).unwrap();
    let lines: Vec<String> = replay(&path).into_iter().map(|(_, line)| line).collect();
    for line in [
        "relation public.generated Default (a*, twice)",
        "insert public.generated ('1', '2')",
        "update public.generated key ('1', NULL) new ('2', '4')",
        "delete public.generated key ('2', NULL)",
    ] {
        assert!(lines.iter().any(|found| found == line), "not found: {line}\n{lines:#?}");
    }
}

/// What the assembler hands on for a file, decoded again, with a memory limit.
fn assembled(path: &Path, memory_limit_bytes: u64) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    let spool = Spool::open(folder.path(), &PipelineName::new("captured").unwrap()).unwrap();
    let mut assembler = Assembler::new(MemoryBudget::new(memory_limit_bytes), spool);
    let mut arrivals = Vec::new();
    for line in std::fs::read_to_string(path).unwrap().lines().filter(|line| !line.starts_with('#')) {
        let payload = bytes_of(line);
        let mut chunk = vec![b'd'];
        chunk.extend((4 + 25 + payload.len() as u32).to_be_bytes());
        chunk.push(b'w');
        chunk.extend([0; 24]);
        chunk.extend(payload);
        assembler.push(chunk.into(), &mut arrivals).unwrap();
    }
    assert_eq!(assembler.open_streams(), 0, "{}", path.display());
    let mut relations = Relations::default();
    let mut lines = Vec::new();
    for arrival in arrivals {
        let Arrival::Transaction(mut transaction) = arrival else { continue };
        let context = Context { in_stream: transaction.streamed, parallel: false };
        let mut rows = 0;
        while let Some(chunk) = transaction.next_chunk().unwrap() {
            for frame in frames(&chunk) {
                let ReplicationMessage::XLogData { payload, .. } = parse(frame.unwrap().body).unwrap() else {
                    panic!("not XLogData")
                };
                let message = decode(payload, context).unwrap();
                match &message {
                    Message::Relation(body) => drop(relations.note(body)),
                    Message::Insert { .. } | Message::Update { .. } | Message::Delete { .. } => rows += 1,
                    _ => {}
                }
                // The letter tells apart what was kept ('s', 't') from what was rolled back ('a', 'b').
                if let Message::Insert { new, .. } = &message
                    && let Some(Value::Text(filler) | Value::Binary(filler)) = new.iter().nth(1)
                    && filler.len() == 1500
                {
                    assert!(b"stp".contains(&filler[0]), "{}: a row rolled back arrived", path.display());
                }
                lines.push(rendered(&message, &relations));
            }
        }
        assert_eq!(rows, transaction.rows, "{}", path.display());
        lines.push(format!("end of a transaction, streamed={}", transaction.streamed));
    }
    lines
}

#[test]
fn captured_streams_become_the_same_transactions_in_memory_and_in_the_spool_folder() {
    for path in files() {
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        // Two-phase and parallel streaming are never asked for by the relay; the assembler refuses what only they bring.
        if name.ends_with("two_phase") || name.ends_with("parallel") {
            continue;
        }
        let in_memory = assembled(&path, 64 << 20);
        assert_eq!(assembled(&path, 1), in_memory, "{name}");
        let is_streamed = in_memory.iter().any(|line| line == "end of a transaction, streamed=true");
        assert_eq!(is_streamed, name.ends_with("streamed") || name.ends_with("binary"), "{name}");
    }
}
