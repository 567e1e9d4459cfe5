//! What stops a sink, what it says, and that nothing of a failed batch stays.

use walrelay::model::{Durable, QualifiedName, Retry};
use walrelay::sink::{Batch, Commit};

use super::Replay;
use crate::harness::{Pair, major_versions};

#[tokio::test(flavor = "multi_thread")]
async fn a_fault_names_table_key_position_and_remedy_and_leaves_nothing() {
    let primary = "CREATE TABLE t (a int PRIMARY KEY, b text); CREATE TABLE u (a int PRIMARY KEY, b int)";
    let standby =
        "CREATE TABLE t (a int PRIMARY KEY, b text CHECK (b <> 'bad')); CREATE TABLE u (a int PRIMARY KEY, b int)";
    let mut replay = Replay::unlike(Pair::start(18).await, primary, standby).await;
    replay.on_primary("INSERT INTO t VALUES (1, 'x')").await;
    replay.relay().await.unwrap();
    let position = replay.found("SELECT lsn FROM walrelay.progress").await;
    // What is done on the standby, then on the primary, and what the error says.
    let cases: &[(&str, &str, &[&str])] = &[
        (
            "DELETE FROM t",
            "INSERT INTO u VALUES (5, 5); UPDATE t SET b = 'y' WHERE a = 1",
            &["UPDATE on public.t (a=1)", "touched 0 rows", "transaction at 0/"],
        ),
        ("", "DELETE FROM t WHERE a = 1", &["DELETE on public.t (a=1)", "touched 0 rows"]),
        (
            "INSERT INTO t VALUES (7, 'mine')",
            "INSERT INTO t VALUES (7, 'secret')",
            &["INSERT on public.t (a=7)", "23505", "Compare"],
        ),
        ("", "INSERT INTO t VALUES (8, 'bad')", &["(a=8)", "23514", "t_b_check", "constraint"]),
        ("ALTER TABLE t ALTER b SET NOT NULL", "INSERT INTO t VALUES (9, NULL)", &["(a=9)", "23502", "constraint"]),
        (
            "ALTER TABLE u DROP b",
            "INSERT INTO u VALUES (9, 9)",
            &["public.u", "lacks the column b", "transaction at 0/"],
        ),
        ("DROP TABLE u", "INSERT INTO u VALUES (10, 9)", &["public.u does not exist", "transaction at 0/"]),
        (
            "CREATE TABLE u (a int PRIMARY KEY, b date)",
            "INSERT INTO u VALUES (11, 4711)",
            &["INSERT on public.u (a=11)", "22007", "like the one on the primary"],
        ),
        ("DROP TABLE u; CREATE VIEW u AS SELECT 1 AS a, 2 AS b", "INSERT INTO u VALUES (12, 1)", &["not a table"]),
    ];
    for (standby, primary, parts) in cases {
        replay.on_standby(standby).await;
        replay.on_primary(primary).await;
        let error = replay.fails(parts).await;
        assert_eq!(error.retry(), Retry::Never, "{error}");
        assert!(!["secret", "4711", "mine"].iter().any(|value| error.to_string().contains(value)), "{error}");
        assert_eq!(replay.found("SELECT lsn FROM walrelay.progress").await, position);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_without_a_large_value_is_refused_where_it_must_be_inserted() {
    let schema = "CREATE TABLE t (a int PRIMARY KEY, b text, c int); ALTER TABLE t ALTER b SET STORAGE EXTERNAL";
    let mut replay = Replay::new(18, schema).await;
    replay.on_primary("INSERT INTO t VALUES (1, repeat('x', 50000), 0)").await;
    replay.relay().await.unwrap();
    // The row is not there: an UPDATE that leaves the large value out must not make half a row of it.
    replay.on_standby("DELETE FROM t").await;
    replay.on_primary("UPDATE t SET c = 1").await;
    replay.fails(&["UPDATE on public.t (a=1)", "touched 0 rows"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_sinks_never_apply_twice() {
    for major in major_versions() {
        let mut replay = Replay::new(major, "CREATE TABLE t (a int)").await;
        replay.on_primary("INSERT INTO t VALUES (1)").await;
        let first = replay.capture().await;
        replay.open().await.unwrap();
        // Another daemon moves the row behind our back.
        replay.on_standby("UPDATE walrelay.progress SET lsn = '0/5'").await;
        let error = replay.apply(first).await.unwrap_err();
        assert!(error.to_string().contains("another daemon"), "{error}");
        assert_eq!(error.retry(), Retry::Later);
        assert!(replay.found("SELECT * FROM t").await.is_empty());
        // A second opening takes over from the first, wherever that one is.
        replay.open().await.unwrap();
        let frozen = replay.sink.take();
        replay.on_primary("INSERT INTO t VALUES (2)").await;
        replay.relay().await.unwrap();
        replay.on_primary("INSERT INTO t VALUES (3)").await;
        let late = replay.capture().await;
        replay.sink = frozen;
        assert_eq!(replay.apply(late).await.unwrap_err().retry(), Retry::Later);
        assert_eq!(replay.found("SELECT * FROM t").await, ["(2)"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_given_up_half_way_leaves_nothing() {
    let mut replay = Replay::new(18, "CREATE TABLE t (a int PRIMARY KEY)").await;
    replay.on_primary("INSERT INTO t SELECT generate_series(1, 50000)").await;
    let transactions = replay.capture().await;
    replay.open().await.unwrap();
    // Somebody holds the table, so that the batch waits in the middle.
    replay.on_standby("BEGIN; LOCK TABLE t").await;
    let apply = tokio::time::timeout(std::time::Duration::from_millis(300), replay.apply(transactions));
    assert!(apply.await.is_err(), "the batch did not wait");
    replay.on_standby("COMMIT").await;
    replay.open().await.unwrap();
    assert!(replay.found("SELECT * FROM t").await.is_empty());
    assert_eq!(replay.sink.as_ref().unwrap().position().0, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_standby_is_tried_again_and_the_batch_applied_once() {
    let mut replay = Replay::new(18, "CREATE TABLE t (a int PRIMARY KEY)").await;
    replay.on_primary("INSERT INTO t VALUES (1)").await;
    replay.relay().await.unwrap();
    let ended =
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'walrelay standby1 apply'";
    replay.on_standby(ended).await;
    replay.on_primary("INSERT INTO t VALUES (2)").await;
    assert_eq!(replay.fails(&[]).await.retry(), Retry::Later);
    replay.on_primary("INSERT INTO t VALUES (3)").await;
    replay.relay().await.unwrap();
    assert_eq!(replay.found("SELECT * FROM t").await, ["(1)", "(3)"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_that_the_copy_holds_are_skipped() {
    let schema = "CREATE TABLE t (a int PRIMARY KEY); CREATE TABLE u (a int PRIMARY KEY)";
    let mut replay = Replay::new(18, schema).await;
    replay.on_primary("INSERT INTO t VALUES (1); INSERT INTO u VALUES (1)").await;
    replay.on_primary("INSERT INTO t VALUES (2)").await;
    let transactions = replay.capture().await;
    replay.copied.insert(QualifiedName::new("public", "t"), (None, None), transactions[1].commit_lsn);
    let receipt = replay.apply(transactions).await.unwrap();
    assert_eq!((receipt.transactions, receipt.rows), (2, 2));
    assert_eq!(replay.found("SELECT * FROM t").await, ["(2)"]);
    assert_eq!(replay.found("SELECT * FROM u").await, ["(1)"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_position_alone_is_recorded() {
    let mut replay = Replay::new(18, "CREATE TABLE t (a int PRIMARY KEY)").await;
    replay.open().await.unwrap();
    let sink = replay.sink.as_mut().unwrap();
    let position = walrelay::model::Lsn(0x10);
    let batch = Batch { transactions: Vec::new(), position, commit: Commit::Durable, ahead: None };
    let receipt = sink.apply(batch).await.unwrap();
    assert_eq!((receipt.transactions, receipt.durable), (0, Some(Durable(position))));
    assert_eq!(replay.found("SELECT lsn, commit_time FROM walrelay.progress").await, ["(0/10,)"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_transaction_of_many_forms_arrives() {
    let columns: Vec<String> = (1..=12).map(|at| format!("c{at} int")).collect();
    let schema = format!("CREATE TABLE w (a int, {}); ALTER TABLE w REPLICA IDENTITY FULL", columns.join(", "));
    let mut replay = Replay::new(18, &schema).await;
    // Each pattern of NULLs is a statement of its own: more than are kept prepared.
    let values: Vec<String> = (0..12).map(|at| format!("CASE WHEN i >> {at} & 1 = 1 THEN i END")).collect();
    replay.on_primary(&format!("INSERT INTO w SELECT i, {} FROM generate_series(1, 4096) i", values.join(", "))).await;
    replay.on_primary("DELETE FROM w WHERE a % 2 = 0; UPDATE w SET a = -a WHERE a % 3 = 0").await;
    replay.relay().await.unwrap();
    assert_eq!(replay.equal("SELECT * FROM w").await, 2048);
}
