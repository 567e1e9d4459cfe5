//! The client of the drain benchmark, run as a process of its own so that its CPU can be told: the relay's own source,
//! assembler and ledger, and nothing after them. Confirms what it received.

use walrelay::ack::Ledger;
use walrelay::assemble::{Arrival, Assembler, Spool};
use walrelay::config::{Environment, ServerUrl, parse_url};
use walrelay::model::{Applied, Durable, Lsn, MemoryBudget, PipelineName, SlotName, Transaction};
use walrelay::source::{Stream, StreamOptions};
use walrelay::wire::{Connection, Session};

/// The first argument that makes this program a drain client.
pub const VERB: &str = "drain-client";

/// Arguments: url, slot, publication, the position to reach, `adaptive` or `eager`, the number of rows to expect.
pub fn main(arguments: &[String]) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let [url, slot, publication, target, reading, rows] = arguments else { panic!("six arguments") };
    let (url, target): (String, Lsn) = (url.clone(), target.parse().unwrap());
    let options = StreamOptions {
        slot: SlotName::new(slot).unwrap(),
        publications: vec![publication.clone()],
        start: Lsn(0),
        binary: true,
        messages: false,
        adaptive_receive: reading == "adaptive",
    };
    // A task of its own, as a pipeline is one in the daemon: then a chunk wakes it on the thread that read it.
    let received = runtime.block_on(runtime.spawn(drain(url, options, target))).unwrap();
    assert_eq!(received.to_string(), *rows, "rows received and rows written");
    // Without waiting for the server to end the stream: pg_recvlogical does not wait either.
    std::process::exit(0);
}

async fn drain(url: String, options: StreamOptions, target: Lsn) -> u64 {
    let url = parse_url(&url, &Environment::default()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let spool = Spool::open(folder.path(), &PipelineName::new("drain").unwrap()).unwrap();
    let assembler = Assembler::new(MemoryBudget::new(64 << 20), spool);
    let mut rows = 0;
    receive(&url, &options, target, assembler, |transaction| rows += transaction.rows).await;
    rows
}

/// Receives everything before `target`, confirms it at once, and gives each transaction away.
pub async fn receive(
    url: &ServerUrl,
    options: &StreamOptions,
    target: Lsn,
    mut assembler: Assembler,
    mut each: impl FnMut(Transaction),
) {
    let connection = Connection::connect(url, &Session::replication("drain")).await.unwrap();
    let mut stream = Stream::start(connection, options).await.unwrap();
    let mut ledger = Ledger::new(options.start);
    let mut arrivals = Vec::new();
    loop {
        let chunk = stream.next(true).await.unwrap();
        assembler.push(chunk, &mut arrivals).unwrap();
        let mut received = Lsn(0);
        for arrival in arrivals.drain(..) {
            match arrival {
                Arrival::Transaction(transaction) => {
                    received = transaction.end_lsn;
                    ledger.transaction(received);
                    each(transaction);
                }
                Arrival::Keepalive { wal_end, .. } => {
                    ledger.keepalive(wal_end);
                    received = received.max(ledger.idle_position().unwrap_or(received));
                }
                Arrival::Message(_) => {}
            }
        }
        ledger.applied(Applied(received));
        ledger.durable(Durable(received));
        let now = ledger.positions();
        stream.confirm(now).await.unwrap();
        if now.write >= target {
            return;
        }
    }
}
