//! Whole batches written as sets: random work over tables of many shapes ends alike on both sides, without a single fallback;
//! what cannot be written as a set is written row by row and named.

use walrelay::model::Retry;

use super::{Replay, forms};
use crate::harness::Pair;
use crate::random_work::{Dice, IN_ORDER, SHAPES, alike_schema, columns, schema, statement};

#[tokio::test(flavor = "multi_thread")]
async fn random_work_over_many_shapes_ends_alike_without_a_fallback() {
    let mut dice = Dice::new();
    for (major, is_binary) in forms() {
        let pair = Pair::start(major).await;
        let mut replay = if is_binary {
            Replay::unlike(pair, &schema(false), &alike_schema()).await.in_binary().await
        } else {
            Replay::unlike(pair, &schema(false), &schema(true)).await
        };
        let mut rows = 0;
        for round in 0..8 {
            for transaction in 0..30 {
                let count = 1 + dice.roll(6);
                let statements: Vec<String> =
                    (0..count).map(|at| statement(&mut dice, round * 1000 + transaction * 10 + at)).collect();
                replay.on_primary(&statements.join("; ")).await;
            }
            replay.relay().await.unwrap();
            for shape in SHAPES {
                rows += replay.equal(&format!("SELECT {} FROM {}", columns(shape), shape.0)).await;
            }
        }
        let what = format!("{major}, binary: {is_binary}");
        replay.all_went_as_sets(IN_ORDER, &what);
        assert_eq!(replay.fallbacks.rows_in_order().len(), IN_ORDER.len(), "{what}: rows in order are not counted");
        assert!(rows > 300, "the work left next to nothing: {rows} rows in all rounds");
        let extra = replay.found("SELECT DISTINCT extra FROM t_extra").await;
        assert!(extra.is_empty() || extra == ["(kept)"], "{extra:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_row_of_a_large_set_arrives() {
    let schema = "CREATE TABLE t (a bigint PRIMARY KEY, b text, c numeric); CREATE TABLE u (a int, b text)";
    for is_binary in [false, true] {
        let mut replay = Replay::new(18, schema).await.in_form(is_binary).await;
        every_row_arrives(&mut replay).await;
    }
}

async fn every_row_arrives(replay: &mut Replay) {
    replay.on_primary("INSERT INTO t SELECT i, 'row ' || i, i / 7.0 FROM generate_series(1, 60000) i").await;
    replay.on_primary("INSERT INTO u SELECT i, E'tab\\t nl\\n bs\\\\ ' || i FROM generate_series(1, 300) i").await;
    replay.relay().await.unwrap();
    replay.on_primary("UPDATE t SET b = b || '!' WHERE a % 3 = 0; DELETE FROM t WHERE a % 5 = 0").await;
    replay
        .on_primary("UPDATE t SET a = -a WHERE a % 7 = 0; INSERT INTO t SELECT a + 200000, b, c FROM t WHERE a % 2 = 0")
        .await;
    replay.relay().await.unwrap();
    replay.equal("SELECT * FROM t").await;
    assert_eq!(replay.equal("SELECT * FROM u").await, 300);
    replay.all_went_as_sets(&[], "large sets");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_differs_is_named_and_what_stands_before_it_is_applied() {
    let schema = "CREATE TABLE t (a int PRIMARY KEY, b text); CREATE TABLE u (a int PRIMARY KEY)";
    for is_binary in [false, true] {
        let mut replay = Replay::new(18, schema).await.in_form(is_binary).await;
        what_differs_is_named(&mut replay).await;
    }
}

async fn what_differs_is_named(replay: &mut Replay) {
    replay.on_primary("INSERT INTO t SELECT i, 'x' FROM generate_series(1, 100) i").await;
    replay.relay().await.unwrap();
    replay.on_standby("DELETE FROM t WHERE a = 57").await;
    replay.on_primary("INSERT INTO u VALUES (1)").await;
    replay.on_primary("UPDATE t SET b = 'y' WHERE a < 50").await;
    replay.on_primary("UPDATE t SET b = 'z' WHERE a > 50; INSERT INTO u VALUES (2)").await;
    replay.on_primary("INSERT INTO u VALUES (3)").await;
    let error = replay.fails(&["UPDATE on public.t (a=57)", "touched 0 rows", "transaction at 0/"]).await;
    assert_eq!(error.retry(), Retry::Never);
    assert_eq!(replay.fallbacks.counts(), [("public.t".to_owned(), "row_count", 1)]);
    assert_eq!(replay.found("SELECT * FROM u").await, ["(1)"]);
    assert_eq!(replay.found("SELECT b, count(*) FROM t GROUP BY b").await, ["(x,50)", "(y,49)"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_fell_back_goes_row_by_row_for_a_while() {
    // The standby's key tells fewer rows apart than the primary's: as a set the two are one, one after the other they fit.
    let primary = "CREATE TABLE t (a text PRIMARY KEY, b int)";
    let standby = "CREATE EXTENSION citext; CREATE TABLE t (a citext PRIMARY KEY, b int)";
    let mut replay = Replay::unlike(Pair::start(18).await, primary, standby).await;
    replay.on_primary("INSERT INTO t VALUES ('a', 1); DELETE FROM t; INSERT INTO t VALUES ('A', 2)").await;
    replay.relay().await.unwrap();
    assert_eq!(replay.equal("SELECT a::text, b FROM t").await, 1);
    assert_eq!(replay.fallbacks.counts(), []);
    // An index that the daemon does not know yet stands in the way of a set, not of its rows in turn.
    replay.on_primary("INSERT INTO t VALUES ('b', 7)").await;
    replay.relay().await.unwrap();
    replay.on_standby("CREATE UNIQUE INDEX ON t (b)").await;
    replay
        .on_primary("UPDATE t SET b = 3 WHERE a = 'A'; UPDATE t SET b = 2 WHERE a = 'b'; INSERT INTO t VALUES ('c', 7)")
        .await;
    replay.relay().await.unwrap();
    replay.on_primary("UPDATE t SET b = b + 10").await;
    replay.relay().await.unwrap();
    assert_eq!(replay.equal("SELECT a::text, b FROM t").await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn plans_made_on_empty_tables_stay_index_scans() {
    let mut replay = Replay::new(18, "CREATE TABLE t (a int, b char(6), c text, PRIMARY KEY (b, a))").await;
    replay.on_primary("INSERT INTO t VALUES (1, 'x', 'x'), (2, 'x', 'x')").await;
    replay.on_primary("UPDATE t SET c = 'y'").await;
    replay.relay().await.unwrap();
    replay.on_primary("UPDATE t SET c = 'z'; DELETE FROM t").await;
    replay.relay().await.unwrap();
    replay.on_primary("INSERT INTO t SELECT i, 'x', 'x' FROM generate_series(1, 200000) i").await;
    replay.relay().await.unwrap();
    replay.on_standby("SELECT pg_stat_reset()").await;
    replay.on_primary("UPDATE t SET c = 'y' WHERE a % 100 = 0; DELETE FROM t WHERE a % 100 = 1").await;
    replay.relay().await.unwrap();
    assert_eq!(replay.equal("SELECT a, c FROM t WHERE a < 1000").await, 989);
    replay.all_went_as_sets(&[], "index scans");
    // The session tells what it did once its statistics are due.
    let scans = "SELECT seq_scan, idx_scan > 0 FROM pg_stat_user_tables WHERE relname = 't'";
    replay.sink = None;
    crate::harness::eventually("the standby counts index scans", || async {
        (replay.found(scans).await.iter().any(|row| row.ends_with(",t)"))).then_some(())
    })
    .await;
    let reads =
        replay.found("SELECT seq_tup_read < 100 + 2 * 198000 FROM pg_stat_user_tables WHERE relname = 't'").await;
    assert_eq!(reads, ["(t)"], "{:?}", replay.found(scans).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_without_a_key_are_changed_many_at_once() {
    let columns = "a int, b text NOT NULL, j json, p point, c numeric(8, 2), d char(4), l text[]";
    let full = "ALTER TABLE bag REPLICA IDENTITY FULL; ALTER TABLE led REPLICA IDENTITY FULL; ALTER TABLE parts REPLICA IDENTITY FULL;";
    let parts = "PARTITION BY LIST (b)";
    let schema = |extra: &str| {
        format!(
            "CREATE TABLE bag ({columns}{extra}); CREATE TABLE led ({columns}); CREATE INDEX ON led (a);
             CREATE TABLE parts ({columns}) {parts}; CREATE TABLE parts_0 PARTITION OF parts FOR VALUES IN ('b0');
             CREATE TABLE parts_1 PARTITION OF parts DEFAULT;
             ALTER TABLE parts_0 REPLICA IDENTITY FULL; ALTER TABLE parts_1 REPLICA IDENTITY FULL; {full}"
        )
    };
    let mut dice = Dice::new();
    for (major, is_binary) in forms() {
        let pair = Pair::start(major).await;
        let mut replay = Replay::unlike(pair, &schema(""), &schema(", extra text DEFAULT 'kept'")).await;
        replay = replay.in_form(is_binary).await;
        replay.on_primary("ALTER PUBLICATION p SET (publish_via_partition_root)").await;
        for table in ["bag", "led", "parts"] {
            for round in 0..4 {
                let fill = format!(
                    "INSERT INTO {table} SELECT i % 40, 'b' || i % 3, CASE WHEN i % 4 > 0 THEN '{{\"x\": 1}}'::json END, \
                     CASE WHEN i % 2 > 0 THEN '(1,2)'::point END, i % 5 / 2.0, CASE WHEN i % 3 > 0 THEN 'd' END, ARRAY['\"', NULL] \
                     FROM generate_series(1, {}) i",
                    500 + dice.roll(3000)
                );
                replay.on_primary(&fill).await;
                for _ in 0..6 {
                    let (one, other) = (dice.roll(40), dice.roll(7));
                    let picked = format!(
                        "WHERE ctid IN (SELECT ctid FROM {table} WHERE a % 7 = {other} ORDER BY random() LIMIT {})",
                        1 + one * 20
                    );
                    replay
                        .on_primary(&match dice.roll(4) {
                            0 => format!("DELETE FROM {table} {picked}"),
                            1 => format!("UPDATE {table} SET a = {one}, j = NULL {picked}"),
                            2 => format!("UPDATE {table} SET b = 'b' || {other} % 3, c = c + 0.50, l = NULL {picked}"),
                            _ => format!("INSERT INTO {table} SELECT * FROM {table} {picked}"),
                        })
                        .await;
                    if dice.roll(3) == 0 {
                        replay.relay().await.unwrap();
                    }
                }
                replay.relay().await.unwrap();
                let rows = replay
                    .equal(&format!(
                        "SELECT q::text, count(*) FROM (SELECT a, b, j, p, c, d, l FROM {table}) q GROUP BY 1"
                    ))
                    .await;
                assert!(rows > 0, "round {round} of {table}");
            }
        }
        assert_eq!(replay.found("SELECT DISTINCT extra FROM bag").await, ["(kept)"]);
        replay.all_went_as_sets(&[], &format!("{major}, binary: {is_binary}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_deletes_without_a_key_cost_a_few_scans() {
    let schema = "CREATE TABLE t (a int, b text); ALTER TABLE t REPLICA IDENTITY FULL";
    let mut replay = Replay::new(18, schema).await;
    replay.on_primary("INSERT INTO t SELECT i / 2, 'x' FROM generate_series(1, 100000) i").await;
    replay.relay().await.unwrap();
    replay.on_primary("DELETE FROM t WHERE a % 10 = 3").await;
    let began = std::time::Instant::now();
    replay.relay().await.unwrap();
    let elapsed = began.elapsed();
    assert_eq!(replay.equal("SELECT * FROM t").await, 90_000);
    replay.all_went_as_sets(&[], "deletes without a key");
    // Ten thousand scans of such a table take minutes.
    assert!(elapsed < std::time::Duration::from_secs(10), "{elapsed:?}");
}
