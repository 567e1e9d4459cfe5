//! Several batches under way on one connection: they overlap, an error in their midst leaves exactly what stands before it and names its
//! row, what was sent behind it is sent again, and a crash with all of them under way loses and repeats nothing.

use std::collections::VecDeque;

use walrelay::model::{Body, Lsn, Transaction};
use walrelay::sink::worker::{Outcome, Worker};
use walrelay::sink::{Batch, Commit, SinkError};
use walrelay::throwaway::Options;

use super::{Replay, outcome};
use crate::harness::{Pair, oldest_and_newest};
use crate::random_work::{Dice, IN_ORDER, SHAPES, columns, schema, statement};

const DEPTH: usize = 4;

/// The same transaction once more.
pub(super) fn twin(transaction: &Transaction) -> Transaction {
    let Body::Memory(chunks) = &transaction.body else { panic!("a captured transaction is in memory") };
    Transaction { origin: None, body: Body::Memory(chunks.clone()), reservation: None, ..*transaction }
}

pub(super) fn batch(transactions: Vec<Transaction>) -> Batch {
    let position = transactions.last().unwrap().end_lsn;
    Batch { transactions, position, commit: Commit::Visible, ahead: None }
}

/// Begins a batch as soon as the worker is ready; receipts that come before are of others.
pub(super) async fn begin(worker: &mut Worker, batch: Batch, receipts: &mut Vec<Lsn>) -> Result<(), SinkError> {
    while !worker.is_ready() {
        receipt(worker.outcome().await?, receipts);
    }
    worker.begin(batch).await;
    Ok(())
}

pub(super) fn receipt(outcome: Outcome, receipts: &mut Vec<Lsn>) {
    if let Outcome::Applied(receipt) = outcome {
        receipts.push(receipt.applied.0);
    }
}

/// Sends the batches with up to `depth` under way and gives their receipts, until an error.
pub(super) async fn send(worker: &mut Worker, batches: Vec<Batch>, depth: usize) -> (Vec<Lsn>, Result<(), SinkError>) {
    let (count, mut begun, mut receipts) = (batches.len(), 0, Vec::new());
    let mut batches = VecDeque::from(batches);
    while receipts.len() < count {
        if worker.is_ready() && begun - receipts.len() < depth && !batches.is_empty() {
            worker.begin(batches.pop_front().unwrap()).await;
            begun += 1;
            continue;
        }
        match worker.outcome().await {
            Ok(outcome) => receipt(outcome, &mut receipts),
            Err(error) => return (receipts, Err(error)),
        }
    }
    (receipts, Ok(()))
}

/// Sends each transaction as a batch of its own while the standby holds the first one back, so that all are under way together.
async fn send_at_once(
    replay: &mut Replay,
    transactions: Vec<Transaction>,
    on_standby: &str,
    what: &str,
) -> (Vec<Lsn>, Result<(), SinkError>) {
    let mut worker = replay.worker().await;
    let mut receipts = Vec::new();
    // Relations are known: the first transaction of a session that names one waits for its description.
    let mut transactions = VecDeque::from(transactions);
    let first = batch(vec![transactions.pop_front().unwrap()]);
    worker.begin(first).await;
    receipt(outcome(&mut worker).await.unwrap(), &mut receipts);
    replay.on_standby(on_standby).await;
    replay.on_standby("BEGIN; LOCK TABLE gate").await;
    for transaction in transactions {
        begin(&mut worker, batch(vec![transaction]), &mut receipts).await.unwrap();
    }
    assert_eq!(receipts.len(), 1, "a batch passed the gate");
    replay.on_standby("COMMIT").await;
    let error = loop {
        let next = tokio::time::timeout(std::time::Duration::from_secs(20), outcome(&mut worker)).await;
        let after = receipts.len();
        match next.unwrap_or_else(|_| panic!("{what}: nothing comes behind {after} receipts; {worker:?}")) {
            Ok(next) => receipt(next, &mut receipts),
            Err(error) => break Err(error),
        }
        if receipts.len() == 1 + DEPTH {
            break Ok(());
        }
    };
    (receipts, error)
}

const TABLES: &str = "CREATE TABLE gate (a int PRIMARY KEY, b int); CREATE TABLE t (a int PRIMARY KEY, b int); CREATE TABLE u (a int PRIMARY KEY);
    INSERT INTO gate VALUES (0, 0); INSERT INTO t SELECT i, 0 FROM generate_series(1, 20) i";
/// Names every relation.
const FIRST: &str = "UPDATE gate SET b = 1; UPDATE t SET b = 1 WHERE a = 20; INSERT INTO u VALUES (0)";

/// What is done on the standby when it knows the tables, the four transactions, parts of the error (none: they all succeed), the receipts beside the
/// first one's, and rows of the standby at the end.
type Case = (
    &'static str,
    &'static str,
    [&'static str; DEPTH],
    &'static [&'static str],
    usize,
    &'static [(&'static str, &'static str, u64)],
    (&'static str, &'static [&'static str]),
);

const HELD: &str = "UPDATE gate SET b = 2";
const CASES: &[Case] = &[
    (
        "nothing is wrong",
        "",
        [HELD, "INSERT INTO u VALUES (1), (2)", "UPDATE t SET b = 2 WHERE a < 3", "DELETE FROM t WHERE a > 3"],
        &[],
        4,
        &[],
        ("SELECT (SELECT count(*) FROM u), (SELECT sum(b) FROM t)", &["(3,4)"]),
    ),
    (
        "a row is missing in the second",
        "DELETE FROM t WHERE a = 5",
        [HELD, "UPDATE t SET b = 7 WHERE a IN (4, 5, 6)", "INSERT INTO u VALUES (1)", "UPDATE t SET b = 8"],
        &["UPDATE on public.t (a=5)", "touched 0 rows"],
        1,
        &[("public.t", "row_count", 1)],
        ("SELECT (SELECT count(*) FROM u), (SELECT sum(b) FROM t)", &["(1,1)"]),
    ),
    (
        "a single row is missing in the third",
        "DELETE FROM t WHERE a = 5",
        [HELD, "INSERT INTO u VALUES (1)", "UPDATE t SET b = 7 WHERE a = 5", "UPDATE t SET b = 8"],
        &["UPDATE on public.t (a=5)", "touched 0 rows"],
        2,
        &[],
        ("SELECT (SELECT count(*) FROM u), (SELECT sum(b) FROM t)", &["(2,1)"]),
    ),
    (
        "a row is there already in the second, and another is missing in the fourth",
        "INSERT INTO u VALUES (2); DELETE FROM t WHERE a = 5",
        [HELD, "INSERT INTO u VALUES (1), (2), (3)", "INSERT INTO u VALUES (4)", "UPDATE t SET b = 7"],
        &["INSERT on public.u (a=2)", "23505"],
        1,
        &[("public.u", "constraint", 1)],
        ("SELECT (SELECT count(*) FROM u), (SELECT sum(b) FROM t)", &["(2,1)"]),
    ),
    (
        "a set is refused in the second that its rows in turn are not",
        "CREATE UNIQUE INDEX ON t (b) WHERE b > 1",
        [
            HELD,
            "UPDATE t SET b = a * 10 WHERE a < 3",
            "UPDATE t SET b = 30 WHERE a = 1; UPDATE t SET b = 10 WHERE a = 2; UPDATE t SET b = 20 WHERE a = 1",
            "INSERT INTO u VALUES (1)",
        ],
        &[],
        4,
        &[("public.t", "constraint", 1)],
        ("SELECT (SELECT count(*) FROM u), (SELECT sum(b) FROM t)", &["(2,31)"]),
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn batches_overlap_and_an_error_among_them_leaves_what_stands_before_it() {
    // On several connections too; but there one that shares a row waits outside the gate, so that a fourth would not be begun.
    let on_several = CASES.iter().filter(|case| !case.0.contains("refused")).map(|case| (4, case));
    for (connections, case) in CASES.iter().map(|case| (1, case)).chain(on_several) {
        let (what, on_standby, transactions, parts, answered, fallbacks, (query, rows)) = case;
        let mut replay = Replay::new(18, TABLES).await;
        (replay.apply_depth, replay.apply_connections) = (DEPTH, connections);
        replay.on_primary(FIRST).await;
        for transaction in transactions {
            replay.on_primary(transaction).await;
        }
        let mut captured = replay.capture().await;
        // So few go row by row without an attempt as sets.
        captured.iter_mut().for_each(|transaction| transaction.rows = u64::from(what.contains("single")));
        let ends: Vec<Lsn> = captured.iter().map(|transaction| transaction.end_lsn).collect();
        assert_eq!(ends.len(), 1 + DEPTH, "{what}");
        let what = format!("{what}, {connections} connections");
        let (receipts, result) = send_at_once(&mut replay, captured, on_standby, &what).await;
        let text = result.err().map_or_else(String::new, |error| error.to_string());
        assert!(parts.iter().all(|part| text.contains(part)) && text.is_empty() == parts.is_empty(), "{what}: {text}");
        assert_eq!(receipts, ends[..1 + answered], "{what}: {text}");
        let fallbacks: Vec<_> = fallbacks.iter().map(|(table, reason, n)| ((*table).to_owned(), *reason, *n)).collect();
        assert_eq!(replay.fallbacks.counts(), fallbacks, "{what}");
        assert_eq!(replay.found(query).await, *rows, "{what}");
        let record = format!("SELECT lsn = '{}' FROM walrelay.progress", ends[*answered]);
        assert_eq!(replay.found(&record).await, ["(t)"], "{what}: the record");
    }
}

/// What a committed batch said of a table stays known when one behind it fails, though something was under way all the time.
#[tokio::test(flavor = "multi_thread")]
async fn a_failure_forgets_nothing_that_a_committed_batch_described() {
    let tables = "CREATE TABLE gate (a int PRIMARY KEY, b int); CREATE TABLE t (a int PRIMARY KEY, b int, c int); \
        CREATE TABLE u (a int PRIMARY KEY, b int); INSERT INTO gate VALUES (0, 0); \
        INSERT INTO t SELECT i, i, 0 FROM generate_series(1, 20) i; INSERT INTO u SELECT i, i * 10 FROM generate_series(1, 20) i";
    // Two columns change names: a row read by the old description would be written with their values exchanged.
    let swap = "ALTER TABLE t RENAME b TO old; ALTER TABLE t RENAME c TO b; ALTER TABLE t RENAME old TO c";
    let mut replay = Replay::new(18, tables).await;
    replay.apply_depth = DEPTH;
    replay.on_primary("UPDATE gate SET b = 1; UPDATE t SET c = 1 WHERE a = 20; UPDATE u SET b = 1 WHERE a = 20").await;
    replay.on_primary(swap).await;
    replay.on_primary("UPDATE t SET c = 7 WHERE a < 3; UPDATE gate SET b = 2").await;
    // Refused as a set, not row by row.
    let exchange = "UPDATE u SET b = 0 WHERE a = 1; UPDATE u SET b = 10 WHERE a = 2; UPDATE u SET b = 20 WHERE a = 1";
    replay.on_primary(&format!("UPDATE t SET c = 9 WHERE a = 3; {exchange}")).await;
    let mut batches = replay.capture().await.into_iter().map(|transaction| batch(vec![transaction]));
    let mut worker = replay.worker().await;
    let mut receipts = Vec::new();
    worker.begin(batches.next().unwrap()).await;
    receipt(outcome(&mut worker).await.unwrap(), &mut receipts);
    replay.on_standby(&format!("{swap}; CREATE UNIQUE INDEX ON u (b)")).await;
    replay.on_standby("BEGIN; LOCK TABLE gate").await;
    for batch in batches {
        begin(&mut worker, batch, &mut receipts).await.unwrap();
    }
    assert_eq!(receipts.len(), 1, "a batch passed the gate");
    replay.on_standby("COMMIT").await;
    while receipts.len() < 3 {
        receipt(outcome(&mut worker).await.unwrap(), &mut receipts);
    }
    assert_eq!(replay.fallbacks.counts(), [("public.u".to_owned(), "constraint", 1)]);
    replay.equal("SELECT a, b, c FROM t").await;
    replay.equal("SELECT * FROM u").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn random_work_ends_alike_at_every_depth_without_a_fallback() {
    let mut dice = Dice::new();
    for major in oldest_and_newest() {
        // One after the other is the same on every version.
        let depths = if major == 18 { &[1, DEPTH][..] } else { &[DEPTH] };
        for depth in depths.iter().copied() {
            let mut replay = Replay::unlike(Pair::start(major).await, &schema(false), &schema(true)).await;
            replay.apply_depth = depth;
            let mut worker = replay.worker().await;
            for round in 0..4 {
                // As the assembler counts them, and as if no transaction were a single row.
                replay.counts_rows = round % 2 == 0;
                for transaction in 0..60 {
                    let count = 1 + dice.roll(4);
                    let statements: Vec<String> =
                        (0..count).map(|at| statement(&mut dice, round * 1000 + transaction * 10 + at)).collect();
                    replay.on_primary(&statements.join("; ")).await;
                    if dice.roll(30) == 0 {
                        replay.on_primary("TRUNCATE t_int, t_text").await;
                    }
                }
                let mut transactions = VecDeque::from(replay.capture().await);
                let mut batches = Vec::new();
                while !transactions.is_empty() {
                    let count = (1 + dice.roll(4) as usize).min(transactions.len());
                    batches.push(batch(transactions.drain(..count).collect()));
                }
                let ends: Vec<Lsn> = batches.iter().map(|batch| batch.position).collect();
                let (receipts, result) = send(&mut worker, batches, depth).await;
                result.unwrap();
                assert_eq!(receipts, ends, "{major}, depth {depth}");
                for shape in SHAPES {
                    replay.equal(&format!("SELECT {} FROM {}", columns(shape), shape.0)).await;
                }
            }
            replay.all_went_as_sets(IN_ORDER, &format!("{major}, depth {depth}"));
        }
    }
}

/// The standby dies with batches under way: its record, read with a flush, says where to go on, and what is done again from there fits.
#[tokio::test(flavor = "multi_thread")]
async fn a_crash_with_batches_under_way_loses_and_repeats_nothing() {
    let lazy = Options::default().with("wal_writer_delay", "10s").with("wal_writer_flush_after", "1GB");
    let tables =
        "CREATE TABLE t (a int PRIMARY KEY); CREATE TABLE s (a int PRIMARY KEY, n int); INSERT INTO s VALUES (1, 0)";
    let mut replay = Replay::unlike(Pair::with(18, Options::default(), 18, lazy).await, tables, tables).await;
    replay.apply_depth = DEPTH;
    let mut undone = 0;
    for round in 0..6 {
        // Rows that would be refused if they came twice, and sums that would differ.
        for at in 0..60 {
            let key = round * 1000 + at;
            replay.on_primary(&format!("INSERT INTO t VALUES ({key}); UPDATE s SET n = n + 1")).await;
        }
        let captured = replay.capture().await;
        let ends: Vec<Lsn> = captured.iter().map(|transaction| transaction.end_lsn).collect();
        let again: Vec<Transaction> = captured.iter().map(twin).collect();
        let mut worker = replay.worker().await;
        let mut transactions = VecDeque::from(captured);
        let mut receipts = Vec::new();
        let died = loop {
            let begun = ends.len() - transactions.len();
            if begun == 20 + round as usize * 5 {
                replay._pair.standby.kill9();
            }
            let next = if worker.is_ready() && begun - receipts.len() < DEPTH {
                worker.begin(batch(vec![transactions.pop_front().unwrap()])).await;
                continue;
            } else {
                worker.outcome().await
            };
            match next {
                Ok(next) => receipt(next, &mut receipts),
                Err(error) => break error,
            }
        };
        assert!(matches!(died, SinkError::Wire { .. }), "{died}");
        drop(worker);
        replay._pair.standby.start_again().await.unwrap();
        replay.standby = crate::harness::client(&replay._pair.standby, "shop").await;
        replay.open().await.unwrap();
        let record = replay.sink.take().unwrap().position();
        undone += receipts.iter().filter(|end| **end > record).count();
        // The same again, from where the record stands.
        let rest: Vec<Transaction> = again.into_iter().filter(|transaction| transaction.end_lsn > record).collect();
        let mut worker = replay.worker().await;
        let (_, result) = send(&mut worker, rest.into_iter().map(|one| batch(vec![one])).collect(), DEPTH).await;
        result.unwrap();
        drop(worker);
        assert_eq!(replay.equal("SELECT * FROM t").await, 60 * (round as usize + 1));
        replay.equal("SELECT * FROM s").await;
        assert_eq!(replay.fallbacks.counts(), []);
    }
    println!("{undone} batches that were visible were lost by crashes and applied again");
}
