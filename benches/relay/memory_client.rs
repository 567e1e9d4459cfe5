//! The client of "from memory", run as a process of its own so that its CPU can be told: holds a backlog, whole, before the clock starts,
//! and then does what walrelay's pipeline does with it while it is behind and nobody waits for it, by the relay's own Postgres sink. Reads
//! nothing from the primary while the clock runs.

use std::collections::VecDeque;
use std::io::stdin;
use std::path::Path;
use std::time::{Duration, Instant};

use tokio::task::block_in_place;
use walrelay::ack::Flushes;
use walrelay::assemble::{Assembler, Spool};
use walrelay::backoff::moment;
use walrelay::config::{self, Config, Environment, Pipeline, PostgresSink as SinkConfig, Sink};
use walrelay::model::{Heartbeat, Lsn, MemoryBudget, PipelineName, Prefetching, Progress, QualifiedName, Transaction};
use walrelay::schema::binary::BinaryTypes;
use walrelay::sink::postgres::{Opening, PostgresSink, TableFilter, ensure_guards, open_session, store};
use walrelay::sink::worker::{Outcome, Worker};
use walrelay::sink::{AnySink, Batch, Commit};
use walrelay::snapshot::agreement;
use walrelay::source::StreamOptions;
use walrelay::wire::Session;
use walrelay::wire::sql::{SqlClient, connect};

use super::drain_client::receive;

/// The first argument that makes this program such a client.
pub const VERB: &str = "memory-client";

/// A batch takes no further transaction beyond this size: `src/pipeline/batching.rs`, which keeps it to itself.
const BYTES_LIMIT: u64 = 8 * 1024 * 1024;
/// More than this is no backlog to hold.
const MEMORY_LIMIT_BYTES: u64 = 4 << 30;

/// Arguments: walrelay's configuration, the end of the backlog. Says `ready` when it holds all of it, begins when it is sent a line, says the
/// seconds until all was durable and until all was visible, and ends when its input does.
pub fn main(arguments: &[String]) {
    let [text, target] = arguments else { panic!("two arguments") };
    let (text, target): (String, Lsn) = (text.clone(), target.parse().unwrap());
    // As many as walrelay has.
    let workers = std::thread::available_parallelism().map_or(1, std::num::NonZero::get).div_ceil(2);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build().unwrap();
    // A task of its own, as a pipeline is one in the daemon.
    runtime.block_on(runtime.spawn(run(text, target))).unwrap();
    std::process::exit(0);
}

async fn run(text: String, target: Lsn) {
    let config = config::read(Path::new("walrelay.toml"), &text, &Environment::default()).unwrap();
    let pipeline = &config.pipelines[0];
    let Sink::Postgres(sink) = &pipeline.sink else { panic!("the sink of this configuration is no Postgres standby") };
    let primary = connect(&config.primary, &Session::new("walrelay bench")).await.unwrap();
    let tables = published(&primary, &pipeline.publication_name()).await;
    let types = binary_types(&primary, pipeline, sink, &tables).await;
    drop(primary);
    let folder = tempfile::tempdir().unwrap();
    let waiting = read_backlog(&config, pipeline, target, types.is_some(), folder.path()).await;
    let sink = open(&config, pipeline, sink, &tables, types).await;
    println!("ready");
    wait_for_line();
    let (durable, visible) = apply(sink, waiting).await;
    println!("{} {}", durable.as_secs_f64(), visible.as_secs_f64());
    // Whoever asks for the CPU of this process finds it alive.
    wait_for_line();
}

/// A line, or the end of the input.
fn wait_for_line() {
    block_in_place(|| stdin().read_line(&mut String::new())).unwrap();
}

async fn published(primary: &SqlClient, publication: &str) -> Vec<QualifiedName> {
    let sql = "SELECT schemaname, tablename FROM pg_publication_tables WHERE pubname = $1";
    let rows = primary.query(sql, &[&publication]).await.unwrap();
    rows.iter().map(|row| QualifiedName::new(row.get::<_, &str>(0), row.get::<_, &str>(1))).collect()
}

/// As walrelay decides whether values travel in binary form.
async fn binary_types(
    primary: &SqlClient,
    pipeline: &Pipeline,
    sink: &SinkConfig,
    tables: &[QualifiedName],
) -> Option<BinaryTypes> {
    if !sink.may_be_binary {
        return None;
    }
    let agreement = agreement(primary, (&sink.url, &pipeline.name), tables).await.unwrap();
    agreement.differing.is_empty().then_some(agreement.types)
}

/// The whole of it, by the relay's own source and assembler.
async fn read_backlog(
    config: &Config,
    pipeline: &Pipeline,
    target: Lsn,
    is_binary: bool,
    spool_dir: &Path,
) -> VecDeque<Transaction> {
    let options = StreamOptions {
        slot: pipeline.slot_name(),
        publications: vec![pipeline.publication_name()],
        start: Lsn(0),
        binary: is_binary,
        messages: false,
        adaptive_receive: true,
    };
    let budget = MemoryBudget::new(MEMORY_LIMIT_BYTES);
    // Nothing goes there before the memory is full.
    let spool = Spool::open(spool_dir, &PipelineName::new("memory").unwrap()).unwrap();
    let assembler = Assembler::new(budget.clone(), spool);
    let mut waiting = VecDeque::new();
    receive(&config.primary, &options, target, assembler, |transaction| {
        assert!(
            !budget.is_over(),
            "the backlog takes more than {} MB: make it smaller (WALRELAY_BENCH_…, benches/README.md)",
            MEMORY_LIMIT_BYTES >> 20
        );
        waiting.push_back(transaction);
    })
    .await;
    waiting
}

/// The sink as walrelay opens it, on a standby that has no record yet.
async fn open(
    config: &Config,
    pipeline: &Pipeline,
    sink: &SinkConfig,
    tables: &[QualifiedName],
    binary: Option<BinaryTypes>,
) -> PostgresSink {
    let mut control = open_session(&sink.url, &pipeline.name, "control").await.unwrap();
    store::ensure_store(&mut control).await.unwrap();
    let progress = Progress {
        // Compared with nothing but itself here.
        system_identifier: "1".to_owned(),
        timeline: 1,
        database: config.primary.database.clone(),
        slot: pipeline.slot_name(),
        lsn: Lsn(1),
        commit_time: None,
    };
    store::write_first_progress(&mut control, &pipeline.name, &progress).await.unwrap();
    if sink.read_only {
        ensure_guards(&mut control, &pipeline.name, &config.primary, tables).await.unwrap();
    }
    let opening = Opening {
        pipeline: pipeline.name.clone(),
        filter: TableFilter::All,
        guard_for: sink.read_only.then(|| config.primary.clone()),
        copied: Default::default(),
        apply_depth: sink.apply_depth,
        apply_connections: sink.apply_connections,
        prefetch_connections: sink.prefetch_connections,
        prefetching: Prefetching::default(),
        binary,
    };
    PostgresSink::open(&sink.url, opening, Heartbeat::default()).await.unwrap().unwrap()
}

/// From the first batch that is handed over: until all was durable, and until all was visible.
async fn apply(sink: PostgresSink, mut waiting: VecDeque<Transaction>) -> (Duration, Duration) {
    let sink = AnySink::Postgres(Box::new(sink));
    let (depth, most_transactions) = (sink.depth(), sink.batch_limit());
    let mut worker = Worker::new(sink);
    let last = waiting.back().unwrap().end_lsn;
    let mut sizes_bytes = VecDeque::new();
    let mut flushes = Flushes::default();
    let (mut durable, mut visible) = (Lsn::ZERO, Duration::ZERO);
    let began = Instant::now();
    while durable < last {
        if worker.may_flush() && flushes.due().is_some_and(|due| due <= Instant::now()) {
            flushes.covered();
            worker.flush().await;
        }
        while worker.is_ready() && sizes_bytes.len() < depth {
            let Some(batch) = next_batch(&mut waiting, most_transactions) else { break };
            sizes_bytes.push_back(batch.size_bytes());
            worker.begin(batch).await;
        }
        let due = flushes.due().filter(|_| worker.may_flush());
        tokio::select! {
            biased;
            outcome = worker.outcome() => match outcome.unwrap() {
                Outcome::Durable(position) => durable = position.0,
                Outcome::Applied(receipt) => {
                    let size_bytes = sizes_bytes.pop_front().unwrap();
                    if let Some(position) = receipt.durable {
                        durable = position.0;
                        flushes.covered();
                    } else {
                        flushes.applied(Instant::now(), size_bytes);
                    }
                    if receipt.applied.0 >= last {
                        visible = began.elapsed();
                        // Nothing comes any more: the last flush waits for nobody.
                        flushes.end();
                    }
                }
                Outcome::Sent => {}
            },
            () = moment(due) => {}
        }
    }
    (began.elapsed(), visible)
}

/// Taken as the pipeline takes one while it is behind and nobody waits for it: full.
fn next_batch(waiting: &mut VecDeque<Transaction>, most_transactions: usize) -> Option<Batch> {
    let (mut count, mut size_bytes) = (0, 0);
    for transaction in waiting.iter() {
        let next_bytes = size_bytes + transaction.size_bytes;
        if count > 0 && (count >= most_transactions || next_bytes > BYTES_LIMIT) {
            break;
        }
        size_bytes = next_bytes;
        count += 1;
    }
    let transactions: Vec<Transaction> = waiting.drain(..count).collect();
    let position = transactions.last()?.end_lsn;
    Some(Batch { transactions, position, commit: Commit::Visible, ahead: None })
}
