//! A reader on the standby that keeps one snapshot open for long, as regional readers do: what a commit costs must not grow with the
//! versions of the progress row that the snapshot keeps alive. Counted in blocks touched, not in time.

use walrelay::model::Transaction;
use walrelay::sink::worker::Outcome;
use walrelay::sink::{Batch, Commit};
use walrelay::throwaway::Options;

use super::{Replay, outcome};
use crate::harness::{Pair, client, eventually, from_environment};

const TABLE: &str = "CREATE TABLE t (a int PRIMARY KEY)";
const WINDOW: usize = 1000;
/// Blocks of the progress row and of the table, found in memory or read.
const BLOCKS: &str = "SELECT sum(heap_blks_hit + heap_blks_read + idx_blks_hit + idx_blks_read)::int8 \
    FROM pg_statio_user_tables WHERE relid IN ('t'::regclass, 'walrelay.progress'::regclass)";

/// Applies each transaction in a commit of its own, in a session of its own.
async fn apply(replay: &mut Replay, transactions: Vec<Transaction>) {
    let mut worker = replay.worker().await;
    for transaction in transactions {
        let position = transaction.end_lsn;
        worker.begin(Batch { transactions: vec![transaction], position, commit: Commit::Visible, ahead: None }).await;
        assert!(matches!(outcome(&mut worker).await.unwrap(), Outcome::Applied(_)));
    }
    drop(worker);
    // A session gives its counts away when it ends.
    eventually("its sessions are gone", || async {
        let sessions = "SELECT 1 FROM pg_stat_activity WHERE application_name ~ '^walrelay standby1 '";
        replay.found(sessions).await.is_empty().then_some(())
    })
    .await;
}

/// Blocks that so many commits touch, without what opening the session does.
async fn blocks(replay: &mut Replay, transactions: Vec<Transaction>) -> i64 {
    let mut counts = Vec::new();
    for transactions in [Vec::new(), transactions] {
        let before = total(replay).await;
        apply(replay, transactions).await;
        counts.push(total(replay).await - before);
    }
    counts[1] - counts[0]
}

async fn total(replay: &Replay) -> i64 {
    // A snapshot of the counts is kept for a transaction only; each query here is one.
    replay.standby.query_one(BLOCKS, &[]).await.unwrap().get(0)
}

/// Single-row transactions `from..=to`, as a session of the slot gives them.
async fn captured(replay: &Replay, from: usize, to: usize) -> Vec<Transaction> {
    replay.on_primary("SET synchronous_commit = off").await;
    let work = format!("BEGIN FOR i IN {from} + 1..{to} LOOP INSERT INTO t VALUES (i); COMMIT; END LOOP; END");
    replay.on_primary(&format!("DO $$ {work} $$")).await;
    // One that waits has the others before it on disk, where the slot finds them.
    replay.on_primary("SET synchronous_commit = on").await;
    replay.on_primary(&format!("INSERT INTO t VALUES ({from})")).await;
    let transactions = replay.capture().await;
    assert_eq!(transactions.len(), to + 1 - from);
    transactions
}

#[tokio::test(flavor = "multi_thread")]
async fn commits_cost_the_same_under_a_long_reader() {
    let commits = from_environment("WALRELAY_TEST_COMMITS", 30_000) as usize;
    let quiet = || Options::default().with("autovacuum", "off");
    let mut replay = Replay::unlike(Pair::with(18, quiet(), 18, quiet()).await, TABLE, TABLE).await;
    apply(&mut replay, Vec::new()).await;
    let reader = client(&replay._pair.standby, "shop").await;
    let look = "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM walrelay.progress";
    reader.batch_execute(look).await.unwrap();
    let transactions = captured(&replay, 1, WINDOW).await;
    let first = blocks(&mut replay, transactions).await;
    let transactions = captured(&replay, WINDOW + 1, commits - WINDOW).await;
    apply(&mut replay, transactions).await;
    let transactions = captured(&replay, commits - WINDOW + 1, commits).await;
    let last = blocks(&mut replay, transactions).await;
    println!("{WINDOW} commits touched {first} blocks at first, {last} after {commits}");
    assert!(first > WINDOW as i64, "the count shows nothing: {first}");
    assert!(last * 2 <= first * 3, "the last {WINDOW} commits touched {last} blocks, the first {first}");
    assert_eq!(replay.equal("SELECT count(*) FROM t").await, 1);
    reader.batch_execute("COMMIT").await.unwrap();
}
