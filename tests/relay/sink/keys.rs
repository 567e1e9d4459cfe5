//! Keys that are not on both sides what they seem: deferrable, wider or missing on the primary, and rows that only their bytes tell
//! apart. Whatever is not refused must end alike.

use super::Replay;
use crate::harness::{Pair, oldest_and_newest};

const FULL: &str = "ALTER TABLE t REPLICA IDENTITY FULL";

/// A transaction on rows that are on both sides. Refused with these words, or applied and equal.
async fn check(major: u32, primary: &str, standby: &str, rows: &str, work: &str, expected: Result<(), &str>) {
    let mut replay = Replay::unlike(Pair::start(major).await, primary, standby).await;
    replay.on_primary(rows).await;
    replay.relay().await.unwrap();
    let before = replay.found("SELECT * FROM t ORDER BY 1, 2").await;
    replay.on_primary(&format!("BEGIN; {work}; COMMIT")).await;
    match expected {
        Ok(()) => {
            replay.relay().await.unwrap();
            replay.equal("SELECT *, ctid IS NULL FROM t").await;
        }
        Err(words) => {
            replay.fails(&["public.t", words]).await;
            assert_eq!(replay.found("SELECT * FROM t ORDER BY 1, 2").await, before, "{work}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_rows_with_one_key_for_a_moment_are_never_taken_for_one() {
    let deferrable = format!("CREATE TABLE t (id int PRIMARY KEY DEFERRABLE, v text); {FULL}");
    let immediate = "CREATE TABLE t (id int PRIMARY KEY, v text)";
    let rows = "INSERT INTO t VALUES (1, 'a'), (2, 'b')";
    let (wide, narrow) =
        ("CREATE TABLE t (a int, b int, PRIMARY KEY (a, b))", "CREATE TABLE t (a int PRIMARY KEY, b int)");
    let shift = "UPDATE t SET id = id + 1";
    let replace = "SET CONSTRAINTS ALL DEFERRED; INSERT INTO t VALUES (1, 'new'); DELETE FROM t WHERE v = 'a'";
    for major in oldest_and_newest() {
        // The standby's key does not allow what the primary's allows: refused, and nothing of it stays.
        check(major, &deferrable, immediate, rows, shift, Err("23505")).await;
        check(major, &deferrable, immediate, rows, replace, Err("23505")).await;
        let work = "INSERT INTO t VALUES (1, 2); DELETE FROM t WHERE b = 1";
        check(major, wide, narrow, "INSERT INTO t VALUES (1, 1)", work, Err("23505")).await;
        // It does: rows are found by all they hold.
        check(major, &deferrable, &deferrable, rows, shift, Ok(())).await;
        check(major, &deferrable, &deferrable, rows, replace, Ok(())).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_transaction_did_to_a_table_stays_together_though_another_table_comes_up() {
    let tables = |timing: &str| {
        format!(
            "CREATE TABLE t (id int PRIMARY KEY, u int UNIQUE {timing}); CREATE TABLE b (id int PRIMARY KEY, x int)"
        )
    };
    let rows = "INSERT INTO t VALUES (1, 1), (2, 2)";
    // The session has not met b: the primary describes it in the middle of the swap.
    let swap = "UPDATE t SET u = 2 WHERE id = 1; INSERT INTO b VALUES (1, 1); UPDATE t SET u = 1 WHERE id = 2";
    for major in oldest_and_newest() {
        check(major, &tables("DEFERRABLE INITIALLY DEFERRED"), &tables(""), rows, swap, Ok(())).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_without_a_key_are_told_apart_by_their_bytes_and_keep_what_is_their_own() {
    let numeric = format!("CREATE TABLE t (n numeric, v int); CREATE INDEX ON t (n); {FULL}");
    let rows = "INSERT INTO t VALUES (1.0, 0), (1.00, 0), (7, 7)";
    for major in oldest_and_newest() {
        // Alone, and several of one transaction.
        check(major, &numeric, &numeric, rows, "UPDATE t SET n = 5 WHERE n::text = '1.00'", Ok(())).await;
        let two = "UPDATE t SET n = 5 WHERE n::text = '1.00'; DELETE FROM t WHERE v = 7";
        check(major, &numeric, &numeric, rows, two, Ok(())).await;
    }
    let standby = "CREATE TABLE t (a int, extra text); CREATE INDEX ON t (a)";
    let mut replay = Replay::unlike(Pair::start(18).await, &format!("CREATE TABLE t (a int); {FULL}"), standby).await;
    replay.on_primary("INSERT INTO t VALUES (0), (1), (2)").await;
    replay.relay().await.unwrap();
    replay.on_standby("UPDATE t SET extra = 'of ' || a").await;
    // Changed rows go to the first places, before those that are still to be looked for.
    replay.on_standby("VACUUM t").await;
    replay.on_primary("BEGIN; UPDATE t SET a = 3 WHERE a = 2; UPDATE t SET a = 2 WHERE a = 1; COMMIT").await;
    replay.relay().await.unwrap();
    assert_eq!(
        replay.found("SELECT a, extra FROM t ORDER BY a").await,
        replay.found("VALUES (0, 'of 0'), (2, 'of 1'), (3, 'of 2')").await
    );
}
