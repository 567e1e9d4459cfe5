//! What is on the standby's disk when the sink says so: commits that do not wait for it, the flusher beside them, and the loss of
//! either session.

use walrelay::model::Durable;
use walrelay::sink::worker::{Outcome, Worker};
use walrelay::sink::{Batch, Commit, SinkError};
use walrelay::throwaway::Options;

use super::{Replay, outcome};
use crate::harness::{Pair, eventually, major_versions};

const TABLE: &str = "CREATE TABLE t (a int PRIMARY KEY)";
/// What the origin knows of the last commit, and whether that is on disk.
const IS_FLUSHED: &str = "SELECT local_lsn <= pg_current_wal_flush_lsn() FROM pg_show_replication_origin_status()";

/// A standby whose own WAL writer comes too late for any test.
async fn replay(major: u32) -> Replay {
    let lazy = Options::default().with("wal_writer_delay", "10s").with("wal_writer_flush_after", "1GB");
    Replay::unlike(Pair::with(major, Options::default(), major, lazy).await, TABLE, TABLE).await
}

/// A worker whose sink has one transaction to apply.
async fn begin(replay: &mut Replay, commit: Commit) -> Worker {
    let mut worker = replay.worker().await;
    next_batch(replay, &mut worker, commit).await;
    worker
}

async fn next_batch(replay: &Replay, worker: &mut Worker, commit: Commit) {
    replay.on_primary("INSERT INTO t SELECT COALESCE(max(a), 0) + 1 FROM t").await;
    let transactions = replay.capture().await;
    let position = transactions.last().unwrap().end_lsn;
    worker.begin(Batch { transactions, position, commit, ahead: None }).await;
}

/// Waits for the batch's end: its position, and what the receipt says of it.
async fn applied(worker: &mut Worker) -> (walrelay::model::Lsn, Option<Durable>) {
    match outcome(worker).await.unwrap() {
        Outcome::Applied(receipt) => (receipt.applied.0, receipt.durable),
        other => panic!("{other:?} before the batch was applied"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_does_not_wait_is_visible_first_and_durable_with_a_flush() {
    for major in major_versions() {
        let mut replay = replay(major).await;
        let mut worker = begin(&mut replay, Commit::Visible).await;
        let (mut first, durable) = applied(&mut worker).await;
        assert_eq!(durable, None, "{major}");
        assert_eq!(replay.found("SELECT * FROM t").await, ["(1)"]);
        // The WAL writer may have come by.
        let mut tries = 0;
        while replay.found(IS_FLUSHED).await != ["(f)"] {
            tries += 1;
            assert!(tries < 5, "{major}: the test shows nothing");
            next_batch(&replay, &mut worker, Commit::Visible).await;
            first = applied(&mut worker).await.0;
        }
        // What is committed while the flush is under way is not covered by it.
        worker.flush().await;
        assert!(!worker.may_flush());
        next_batch(&replay, &mut worker, Commit::Visible).await;
        let mut told = Vec::new();
        for _ in 0..2 {
            match outcome(&mut worker).await.unwrap() {
                Outcome::Durable(durable) => told.push(durable),
                Outcome::Applied(receipt) => assert_eq!(receipt.durable, None),
                Outcome::Sent => {}
            }
        }
        assert_eq!(told, [Durable(first)], "{major}");
        assert!(worker.may_flush());
        worker.flush().await;
        assert!(matches!(outcome(&mut worker).await.unwrap(), Outcome::Durable(durable) if durable.0 > first));
        assert_eq!(replay.found(IS_FLUSHED).await, ["(t)"], "{major}");
        // One that waits has all before it on disk too, and the setting is as it was.
        next_batch(&replay, &mut worker, Commit::Visible).await;
        applied(&mut worker).await;
        next_batch(&replay, &mut worker, Commit::Durable).await;
        let (last, durable) = applied(&mut worker).await;
        assert_eq!(durable, Some(Durable(last)));
        assert_eq!(replay.found(IS_FLUSHED).await, ["(t)"], "{major}");
        assert!(!worker.may_flush(), "nothing is left to flush");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_loss_of_either_session_ends_both() {
    let mut replay = replay(18).await;
    for role in ["flush", "apply"] {
        let mut worker = begin(&mut replay, Commit::Visible).await;
        applied(&mut worker).await;
        let end = format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'walrelay standby1 {role}'"
        );
        assert_eq!(replay.found(&end).await, ["(t)"]);
        next_batch(&replay, &mut worker, Commit::Visible).await;
        worker.flush().await;
        let error = loop {
            match outcome(&mut worker).await {
                Ok(Outcome::Durable(_)) if role == "apply" => {}
                Ok(Outcome::Applied(_)) if role == "flush" => {}
                Ok(outcome) => panic!("{outcome:?} without the {role} session"),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, SinkError::Wire { .. }), "{error}");
        drop(worker);
        eventually("its sessions are gone", || async {
            let sessions =
                "SELECT 1 FROM pg_stat_activity WHERE application_name ~ '^walrelay standby1 (apply|flush)$'";
            replay.found(sessions).await.is_empty().then_some(())
        })
        .await;
        // What was visible counts only once it is read anew, with a flush.
        replay.open().await.unwrap();
        assert_eq!(replay.found(IS_FLUSHED).await, ["(t)"], "{role}");
        replay.sink = None;
        replay.on_primary("TRUNCATE t").await;
        replay.relay().await.unwrap();
        replay.sink = None;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_right_to_flush_each_commit_waits() {
    let mut replay = replay(18).await;
    replay.on_standby("CREATE ROLE relay LOGIN; CREATE SCHEMA walrelay AUTHORIZATION relay").await;
    replay.on_standby("GRANT SET ON PARAMETER session_replication_role TO relay; GRANT ALL ON t TO relay").await;
    replay
        .on_standby(
            "GRANT EXECUTE ON FUNCTION pg_replication_origin_oid(text), pg_replication_origin_create(text), \
             pg_replication_origin_session_setup(text) TO relay",
        )
        .await;
    replay.standby_url.user = "relay".to_owned();
    let mut worker = begin(&mut replay, Commit::Visible).await;
    let (position, durable) = applied(&mut worker).await;
    assert_eq!(durable, Some(Durable(position)));
    assert_eq!(replay.found(IS_FLUSHED).await, ["(t)"]);
}
