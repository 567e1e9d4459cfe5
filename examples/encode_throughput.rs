//! How many rows a second one core makes into Kafka records, without a broker: `cargo run --release --example encode_throughput`.
//! Prints figures; touches nothing.
#![allow(clippy::print_stdout)]

use std::error::Error;
use std::path::Path;
use std::time::Instant;

use walrelay::config::{Environment, Sink, read};
use walrelay::decode::{Context, Message, decode};
use walrelay::model::{Lsn, PipelineName, QualifiedName, Timestamp};
use walrelay::sink::SinkError;
use walrelay::sink::kafka::encode::{Encoder, Origin, Outlet, Record, Step, TableFacts, TransactionMark, read_facts};
use walrelay::sink::postgres::TableFilter;

const ROWS: u32 = 2_000_000;
const ROWS_IN_TRANSACTION: u32 = 1000;
const STREAM: &str = include_str!("../tests/data/debezium/stream.hex");
const FACTS: &str = include_str!("../tests/data/debezium/facts.jsonl");

/// Counts, and looks at a byte of each record so that nothing is optimised away.
#[derive(Default)]
struct Counting {
    records: u64,
    bytes: u64,
    last: u8,
}

impl Outlet for Counting {
    fn send(&mut self, record: Record<'_>) -> Result<(), SinkError> {
        let value = record.value.unwrap_or(b"");
        self.records += 1;
        self.bytes += (record.key.map_or(0, <[u8]>::len) + value.len()) as u64;
        self.last ^= value.last().copied().unwrap_or(0);
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    for (name, lines, table) in [
        ("simple rows, debezium", "", "simple"),
        ("simple rows, debezium, transaction block", "transaction_topic = true", "simple"),
        ("simple rows, plain", "format = \"plain\"", "simple"),
        ("rows of 37 types, debezium", "", "types"),
    ] {
        measure(name, lines, table)?;
    }
    Ok(())
}

fn measure(name: &str, lines: &str, table: &str) -> Result<(), Box<dyn Error>> {
    let text = format!(
        "[primary]\nurl = \"postgres://u@h/d\"\n[[pipeline]]\nname = \"feed1\"\n[pipeline.sink]\ntype = \"kafka\"\n\
         brokers = \"k:9092\"\ntopic_prefix = \"shop\"\n{lines}\n"
    );
    let config = read(Path::new("walrelay.toml"), &text, &Environment::default())?;
    let Some(Sink::Kafka(settings)) = config.pipelines.into_iter().next().map(|pipeline| pipeline.sink) else {
        return Err("no sink".into());
    };
    let origin = Origin {
        pipeline: PipelineName::new("feed1")?,
        database: "shop".to_owned(),
        previous_end: None,
        tables: TableFilter::All,
    };
    let mut encoder = Encoder::new(*settings, origin);
    let facts = read_facts(FACTS.lines())?;
    let find = |name: &QualifiedName| -> Result<TableFacts, String> {
        facts.iter().find(|facts| facts.qualified_name() == *name).cloned().ok_or_else(|| format!("no facts of {name}"))
    };
    let mut outlet = Counting::default();
    let mut insert = None;
    let mut wanted = 0;
    for line in STREAM.lines() {
        let hex = line.split_once(' ').map_or("", |(_, hex)| hex);
        let payload: Vec<u8> =
            (0..hex.len() / 2).filter_map(|at| u8::from_str_radix(hex.get(2 * at..2 * at + 2)?, 16).ok()).collect();
        match decode(&payload, Context::default())? {
            message @ (Message::Relation(_) | Message::Type { .. }) => {
                if let Message::Relation(body) = &message
                    && body.name == table
                {
                    wanted = body.oid;
                }
                while let Step::NeedFacts(name) = encoder.note(&message)? {
                    encoder.describe(find(&name)?);
                }
            }
            Message::Insert { relation_oid, .. } if relation_oid == wanted && insert.is_none() => {
                insert = Some(payload)
            }
            _ => {}
        }
    }
    let insert = insert.ok_or("no row of the table")?;
    let begin = Instant::now();
    for transaction in 0..ROWS / ROWS_IN_TRANSACTION {
        let at = u64::from(transaction) << 20;
        let mark = TransactionMark {
            xid: transaction,
            commit_lsn: Lsn(at + (1 << 19)),
            end_lsn: Lsn(at + (1 << 19) + 48),
            commit_time: Timestamp(i64::from(transaction)),
            origin: None,
        };
        encoder.begin(mark, &mut outlet)?;
        for row in 0..ROWS_IN_TRANSACTION {
            let message = decode(&insert, Context::default())?;
            let step = encoder.message(Lsn(at + u64::from(row) * 64), &message, &mut outlet)?;
            assert_eq!(step, Step::Done);
        }
        encoder.end(&mut outlet)?;
    }
    let seconds = begin.elapsed().as_secs_f64();
    println!(
        "{name}: {:.2} million rows/s, {:.0} MB/s, {} bytes a record ({})",
        f64::from(ROWS) / seconds / 1e6,
        outlet.bytes as f64 / seconds / 1e6,
        outlet.bytes / outlet.records.max(1),
        outlet.last
    );
    Ok(())
}
