//! Batches beside each other on several connections: whatever the work, they end like one behind the other; and one that holds what
//! somebody waits for whom the first waits for makes way.

use std::collections::VecDeque;

use tokio::sync::watch;
use walrelay::model::Lsn;
use walrelay::sink::AnySink;
use walrelay::sink::worker::Worker;

use super::depth::{batch, begin, receipt, send};
use super::{Replay, outcome};
use crate::harness::{Pair, client, eventually, oldest_and_newest};
use crate::random_work::{Dice, IN_ORDER, SHAPES, columns, schema, statement};

const CONNECTIONS: usize = 4;

/// Connections whose origin has committed something.
const USED: &str = "SELECT count(*) FROM pg_replication_origin_status WHERE local_lsn <> '0/0'";

#[tokio::test(flavor = "multi_thread")]
async fn random_work_ends_alike_on_several_connections_without_a_fallback() {
    let mut dice = Dice::new();
    for major in oldest_and_newest() {
        let mut replay = Replay::unlike(Pair::start(major).await, &schema(false), &schema(true)).await;
        replay.apply_connections = CONNECTIONS;
        let mut worker = replay.worker().await;
        for round in 0..4 {
            replay.counts_rows = round % 2 == 0;
            for transaction in 0..80 {
                let statements: Vec<String> = (0..1 + dice.roll(3))
                    .map(|at| statement(&mut dice, round * 1000 + transaction * 10 + at))
                    .collect();
                replay.on_primary(&statements.join("; ")).await;
                if dice.roll(40) == 0 {
                    replay.on_primary("TRUNCATE t_int, t_text").await;
                }
            }
            let mut transactions = VecDeque::from(replay.capture().await);
            let mut batches = Vec::new();
            while !transactions.is_empty() {
                let count = (1 + dice.roll(3) as usize).min(transactions.len());
                batches.push(batch(transactions.drain(..count).collect()));
            }
            let ends: Vec<Lsn> = batches.iter().map(|batch| batch.position).collect();
            let (receipts, result) = send(&mut worker, batches, CONNECTIONS).await;
            result.unwrap();
            assert_eq!(receipts, ends, "{major}");
            for shape in SHAPES {
                replay.equal(&format!("SELECT {} FROM {}", columns(shape), shape.0)).await;
            }
        }
        replay.all_went_as_sets(IN_ORDER, &major.to_string());
        assert_ne!(replay.found(USED).await, ["(1)"], "{major}: all went on one connection");
    }
}

/// Whether a session of the standby whose name ends so waits for a lock.
pub(super) async fn lock_wait(replay: &Replay, name: &str) -> Option<()> {
    let sql =
        format!("SELECT 1 FROM pg_stat_activity WHERE application_name LIKE '%{name}' AND wait_event_type = 'Lock'");
    (!replay.standby.query(&sql, &[]).await.unwrap().is_empty()).then_some(())
}

/// The first waits for a user's lock, the user for what the batch beside it holds, and that one for the first, of which the server
/// knows nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_beside_makes_way_for_who_holds_up_the_first() {
    let tables = "CREATE TABLE t (a int PRIMARY KEY, b int); INSERT INTO t SELECT i, 0 FROM generate_series(1, 20) i";
    let mut replay = Replay::new(18, tables).await;
    replay.apply_connections = CONNECTIONS;
    for key in [20, 1, 2] {
        replay.on_primary(&format!("UPDATE t SET b = 7 WHERE a = {key}")).await;
    }
    let captured = replay.capture().await;
    let ends: Vec<Lsn> = captured.iter().map(|transaction| transaction.end_lsn).collect();
    replay.open().await.unwrap();
    let mut sink = AnySink::Postgres(Box::new(replay.sink.take().unwrap()));
    let (lock_waits, receiver) = watch::channel(false);
    sink.watch_locks(receiver);
    let mut worker = Worker::new(sink);
    let mut receipts = Vec::new();
    let mut batches = captured.into_iter().map(|transaction| batch(vec![transaction]));
    begin(&mut worker, batches.next().unwrap(), &mut receipts).await.unwrap();
    receipt(outcome(&mut worker).await.unwrap(), &mut receipts);
    let user = client(&replay._pair.standby, "shop").await;
    user.batch_execute("BEGIN; UPDATE public.t SET b = 0 WHERE a = 1").await.unwrap();
    for batch in batches {
        begin(&mut worker, batch, &mut receipts).await.unwrap();
    }
    eventually("the first waits for the user", || lock_wait(&replay, " apply")).await;
    let held = "SELECT 1 FROM pg_stat_activity a JOIN pg_locks l USING (pid) WHERE application_name LIKE '% apply%' \
                AND relation = 'public.t'::regclass AND l.granted AND mode = 'RowExclusiveLock'";
    eventually("both have begun", || async {
        (replay.standby.query(held, &[]).await.unwrap().len() == 2).then_some(())
    })
    .await;
    let task = tokio::spawn(async move {
        user.batch_execute("SET application_name = 'the user'; UPDATE public.t SET b = 0 WHERE a = 2; COMMIT").await
    });
    eventually("the user waits for the batch beside it", || lock_wait(&replay, "the user")).await;
    lock_waits.send_replace(true);
    while receipts.len() < ends.len() {
        receipt(outcome(&mut worker).await.unwrap(), &mut receipts);
    }
    assert_eq!(receipts, ends);
    task.await.unwrap().unwrap();
    replay.equal("SELECT * FROM t").await;
}
