//! `cargo bench --bench stages`: the pure stages alone, on bytes made here: rows decoded, transactions assembled. Needs no server and
//! compares with nobody; what counts is a change between two versions.

#![allow(clippy::unwrap_used)]
#![allow(missing_docs)]

use std::hint::black_box;

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};

use walrelay::assemble::{Arrival, Assembler, Spool};
use walrelay::decode::{Context, Message, decode};
use walrelay::model::{MemoryBudget, PipelineName};
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

/// INSERT of a row of six binary columns, about 100 bytes.
fn insert(number: u64) -> Vec<u8> {
    let mut message = vec![b'I'];
    message.extend(RELATION.to_be_bytes());
    message.push(b'N');
    message.extend(6u16.to_be_bytes());
    let wide = number.to_be_bytes();
    let values: [&[u8]; 6] = [&wide, &wide[4..], &wide, &wide, &wide, b"a filler of forty bytes and a few more .."];
    for value in values {
        message.push(b'b');
        message.extend((value.len() as u32).to_be_bytes());
        message.extend(value);
    }
    message
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

criterion_group!(stages, decode_rows, assemble);
criterion_main!(stages);
