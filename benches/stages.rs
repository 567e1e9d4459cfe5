//! `cargo bench --bench stages`: the pure stages alone, on bytes made here: rows decoded, transactions assembled, batches folded to their
//! net effect, events written as JSON. Needs no server and compares with nobody; what counts is a change between two versions.

#![allow(clippy::unwrap_used)]
#![allow(missing_docs)]

use std::hint::black_box;
use std::path::Path;

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};

use walrelay::assemble::{Arrival, Assembler, Spool};
use walrelay::config::{Environment, KafkaSink, Sink, read};
use walrelay::decode::{Context, Message, OldTuple, decode};
use walrelay::model::{Lsn, MemoryBudget, PipelineName, QualifiedName, Timestamp};
use walrelay::sink::SinkError;
use walrelay::sink::kafka::encode::{Encoder, Origin, Outlet, Record, Step, TransactionMark};
use walrelay::sink::postgres::TableFilter;
use walrelay::sink::postgres::net::Net;
use walrelay::wire::frame::frames;
use walrelay::wire::replication::{ReplicationMessage, parse};

/// Rows of one measurement.
const ROWS: u64 = 10_000;
/// The sizes of transactions that the benchmark of backlogs has.
const ROWS_EACH: [u64; 3] = [1, 100, 10_000];
const RELATION: u32 = 16_384;

/// One CopyData message with a replication message inside.
fn framed(payload: &[u8], out: &mut Vec<u8>) {
    out.push(b'd');
    out.extend((4 + 25 + payload.len() as u32).to_be_bytes());
    out.push(b'w');
    out.extend([0; 24]);
    out.extend(payload);
}

const FILLER: &[u8] = b"a filler of forty bytes and a few more ..";

/// A change (`I`, `U`, `D`) with one tuple (`N` new, `K` key), whose values are all of one form (`b` binary, `t` text).
fn change(kind: u8, tuple: u8, form: u8, values: &[&[u8]]) -> Vec<u8> {
    let mut message = vec![kind];
    message.extend(RELATION.to_be_bytes());
    message.push(tuple);
    message.extend((values.len() as u16).to_be_bytes());
    for value in values {
        message.push(form);
        message.extend((value.len() as u32).to_be_bytes());
        message.extend(*value);
    }
    message
}

/// A row of six binary columns, about 100 bytes.
fn binary_row(kind: u8, number: u64) -> Vec<u8> {
    let wide = number.to_be_bytes();
    change(kind, b'N', b'b', &[&wide, &wide[4..], &wide, &wide, &wide, FILLER])
}

fn insert(number: u64) -> Vec<u8> {
    binary_row(b'I', number)
}

/// Whole transactions as one chunk.
fn chunk(rows_each: u64) -> Bytes {
    let mut out = Vec::new();
    for transaction in 0..ROWS / rows_each {
        let (commit, end) = (((transaction + 1) * 1000).to_be_bytes(), ((transaction + 1) * 1000 + 8).to_be_bytes());
        let begin = [&b"B"[..], &commit, &[0; 8], &(transaction as u32 + 700).to_be_bytes()].concat();
        framed(&begin, &mut out);
        for row in 0..rows_each {
            framed(&insert(transaction * rows_each + row), &mut out);
        }
        framed(&[&b"C\0"[..], &commit, &end, &[0; 8]].concat(), &mut out);
    }
    out.into()
}

/// Frames, messages, columns: everything a sink looks at.
fn decode_rows(criterion: &mut Criterion) {
    let bytes = chunk(ROWS);
    let mut group = criterion.benchmark_group("decode");
    group.throughput(Throughput::Elements(ROWS));
    group.bench_function("insert of six columns", |bencher| {
        bencher.iter(|| {
            let mut columns = 0;
            for frame in frames(black_box(&bytes)) {
                let ReplicationMessage::XLogData { payload, .. } = parse(frame.unwrap().body).unwrap() else {
                    continue;
                };
                if let Message::Insert { new, .. } = decode(payload, Context::default()).unwrap() {
                    columns += new.iter().map(black_box).count();
                }
            }
            assert_eq!(columns as u64, ROWS * 6);
        });
    });
    group.finish();
}

fn assemble(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().unwrap();
    let name = PipelineName::new("stages").unwrap();
    let mut group = criterion.benchmark_group("assemble");
    group.throughput(Throughput::Elements(ROWS));
    for rows_each in ROWS_EACH {
        let bytes = chunk(rows_each);
        group.bench_function(format!("{rows_each} rows a transaction"), |bencher| {
            bencher.iter_batched(
                || Assembler::new(MemoryBudget::new(64 << 20), Spool::open(folder.path(), &name).unwrap()),
                |mut assembler| {
                    let mut arrivals = Vec::new();
                    assembler.push(bytes.clone(), &mut arrivals).unwrap();
                    let is_transaction = |arrival: &&Arrival| matches!(arrival, Arrival::Transaction(_));
                    assert_eq!(arrivals.iter().filter(is_transaction).count() as u64, ROWS / rows_each);
                    arrivals
                },
                BatchSize::LargeInput,
            );
        });
    }
    group.finish();
}

/// The rows of a batch by the key of the first column: read, folded, ordered.
fn net_effect(criterion: &mut Criterion) {
    let key_only = |number: u64| change(b'D', b'K', b'b', &[&number.to_be_bytes(), b"", b"", b"", b"", b""]);
    let scattered = |at: u64| at.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 20;
    // A batch, and how many rows it comes to.
    let cases: [(&str, Vec<Vec<u8>>, u64); 4] = [
        ("inserts", (0..ROWS).map(insert).collect(), ROWS),
        ("updates at random", (0..ROWS).map(|at| binary_row(b'U', scattered(at))).collect(), ROWS),
        ("updates of 100 hot keys", (0..ROWS).map(|at| binary_row(b'U', at % 100)).collect(), 100),
        (
            "inserts, half of them deleted",
            (0..ROWS / 3 * 2).map(insert).chain((0..ROWS / 3).map(key_only)).collect(),
            ROWS / 3,
        ),
    ];
    let mut group = criterion.benchmark_group("net effect");
    for (name, batch, expected) in cases {
        group.throughput(Throughput::Elements(batch.len() as u64));
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let mut net = Net::new(&[0]);
                for payload in black_box(&batch) {
                    match decode(payload, Context::default()).unwrap() {
                        Message::Insert { new, .. } => net.insert(new).unwrap(),
                        Message::Update { old, new, .. } => {
                            net.update(old.map(|old: OldTuple<'_>| old.tuple()), new).unwrap()
                        }
                        Message::Delete { old, .. } => net.delete(old.tuple()).unwrap(),
                        other => unreachable!("{other:?}"),
                    }
                }
                let effect = net.effect();
                let rows = effect.inserts.len() + effect.updates.len() + effect.moves.len() + effect.deletes.len();
                assert_eq!(rows as u64, expected);
                effect
            });
        });
    }
    group.finish();
}

/// Adds up the sizes of records.
#[derive(Default)]
struct Scales {
    records: u64,
    bytes: u64,
}

impl Outlet for Scales {
    fn send(&mut self, record: Record<'_>) -> Result<(), SinkError> {
        self.records += 1;
        self.bytes += (black_box(record.value).map_or(0, <[u8]>::len) + record.key.map_or(0, <[u8]>::len)) as u64;
        Ok(())
    }
}

fn kafka_sink(lines: &str) -> KafkaSink {
    let text = format!(
        "[primary]\nurl = \"postgres://u@h/d\"\n[[pipeline]]\nname = \"stages\"\n[pipeline.sink]\ntype = \"kafka\"\n\
         brokers = \"k:9092\"\ntopic_prefix = \"stages\"\n{lines}\n"
    );
    let config = read(Path::new("stages.toml"), &text, &Environment::default()).unwrap();
    match config.pipelines.into_iter().next().map(|pipeline| pipeline.sink) {
        Some(Sink::Kafka(sink)) => *sink,
        other => unreachable!("{other:?}"),
    }
}

/// Relation message of a table with a key and these columns: name, type.
fn relation(columns: &[(&str, u32)]) -> Vec<u8> {
    let mut message = vec![b'R'];
    message.extend(RELATION.to_be_bytes());
    message.extend(b"public\0history\0d");
    message.extend((columns.len() as u16).to_be_bytes());
    for (at, (name, type_oid)) in columns.iter().enumerate() {
        message.push(u8::from(at == 0));
        message.extend(name.as_bytes());
        message.push(0);
        message.extend(type_oid.to_be_bytes());
        message.extend((-1i32).to_be_bytes());
    }
    message
}

/// Rows of six text values become records.
fn encode_json(criterion: &mut Criterion) {
    let context = Context::default();
    let columns = [("id", 20), ("account", 23), ("delta", 23), ("amount", 1700), ("at", 1184), ("filler", 25)];
    let relation = relation(&columns);
    let row = |kind: u8, number: u64| {
        let (id, small) = (number.to_string(), (number % 1000).to_string());
        let amount = format!("{}.{:02}", number, number % 100);
        let values: [&[u8]; 6] =
            [id.as_bytes(), small.as_bytes(), b"-17", amount.as_bytes(), b"2026-01-02 03:04:05.678901+00", FILLER];
        change(kind, b'N', b't', &values)
    };
    let mut group = criterion.benchmark_group("json");
    group.throughput(Throughput::Elements(ROWS));
    for (name, kind, lines) in [
        ("Debezium's envelope with its schema, insert", b'I', "schemas_value = true"),
        ("Debezium's envelope, insert", b'I', ""),
        ("Debezium's envelope, update", b'U', ""),
        ("plain rows, insert", b'I', "format = \"plain\""),
    ] {
        let origin = Origin {
            pipeline: PipelineName::new("stages").unwrap(),
            database: "shop".to_owned(),
            previous_end: None,
            tables: TableFilter::All,
        };
        let mut encoder = Encoder::new(kafka_sink(lines), origin);
        encoder.describe_missing(QualifiedName::new("public", "history"));
        let described = encoder.note(&decode(&relation, context).unwrap()).unwrap();
        assert_eq!(described, Step::Done);
        let rows: Vec<Vec<u8>> = (0..ROWS).map(|number| row(kind, number)).collect();
        let (commit_lsn, end_lsn) = (Lsn(1_000_000), Lsn(1_000_008));
        let mark = TransactionMark { xid: 700, commit_lsn, end_lsn, commit_time: Timestamp(0), origin: None };
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let mut scales = Scales::default();
                encoder.begin(mark, &mut scales).unwrap();
                for (at, payload) in black_box(&rows).iter().enumerate() {
                    let message = decode(payload, context).unwrap();
                    assert_eq!(encoder.message(Lsn(at as u64), &message, &mut scales).unwrap(), Step::Done);
                }
                encoder.end(&mut scales).unwrap();
                assert_eq!(scales.records, ROWS);
                scales.bytes
            });
        });
    }
    group.finish();
}

criterion_group!(stages, decode_rows, assemble, net_effect, encode_json);
criterion_main!(stages);
