//! Changes of tables while they are replicated: 006_rewrite, 007_ddl (renaming the publication is not ours), 013_partition.

use super::super::harness::Pair;

/// 006_rewrite: ALTER TABLE that rewrites the heap on both sides.
#[tokio::test(flavor = "multi_thread")]
async fn rows_go_on_after_a_table_was_rewritten() {
    let pair = Pair::start(18).await;
    pair.on_both("CREATE TABLE t (a int PRIMARY KEY, b text)").await;
    pair.on_primary("INSERT INTO t VALUES (1, 'one'), (2, 'two')").await;
    let _relay = pair.relay("").await;
    pair.on_standby("ALTER TABLE t ADD c int NOT NULL DEFAULT 0").await;
    pair.on_primary("ALTER TABLE t ADD c int NOT NULL DEFAULT 0; INSERT INTO t VALUES (3, 'three', 33); BEGIN; ALTER TABLE t ALTER b TYPE varchar(100); INSERT INTO t VALUES (4, 'four', 44); COMMIT; UPDATE t SET c = 5 WHERE a = 1").await;
    pair.equal_after_catching_up(&["t"]).await;
    // A column dropped on the primary: the standby keeps it with its default.
    pair.on_primary("ALTER TABLE t DROP COLUMN c; INSERT INTO t VALUES (5, 'five'); UPDATE t SET b = 'x' WHERE a = 3")
        .await;
    pair.caught_up("standby1").await;
    assert_eq!(
        pair.on_primary("SELECT a, b FROM t ORDER BY a").await,
        pair.on_standby("SELECT a, b FROM t ORDER BY a").await
    );
}

/// 013_partition: partitions by their own names, other partitioning on the standby through the root, rows that move.
#[tokio::test(flavor = "multi_thread")]
async fn partitioned_tables_follow_leaf_by_leaf_and_through_the_root() {
    let pair = Pair::start(18).await;
    let leaves = "CREATE TABLE top (a int PRIMARY KEY, b text) PARTITION BY LIST (a); CREATE TABLE p1 PARTITION OF top FOR VALUES IN (1, 2, 3);
        CREATE TABLE p2 PARTITION OF top FOR VALUES IN (4, 5, 6); CREATE TABLE p3 PARTITION OF top DEFAULT";
    pair.on_both(leaves).await;
    pair.on_primary("INSERT INTO top SELECT i, 'x' FROM generate_series(1, 8) i").await;
    let _relay = pair.relay("").await;
    pair.on_primary("INSERT INTO top VALUES (9, 'y'); UPDATE top SET a = 10 WHERE a = 1; UPDATE top SET b = 'z' WHERE a = 5; DELETE FROM top WHERE a = 2; TRUNCATE p3").await;
    pair.equal_after_catching_up(&["top", "p1", "p2", "p3"]).await;

    let pair = Pair::start(18).await;
    pair.on_primary(leaves).await;
    pair.on_standby("CREATE TABLE top (b text, a int PRIMARY KEY) PARTITION BY HASH (a); CREATE TABLE h0 PARTITION OF top FOR VALUES WITH (MODULUS 2, REMAINDER 0); CREATE TABLE h1 PARTITION OF top FOR VALUES WITH (MODULUS 2, REMAINDER 1)").await;
    pair.on_primary("INSERT INTO top SELECT i, 'x' FROM generate_series(1, 8) i; CREATE PUBLICATION mine FOR TABLE top WITH (publish_via_partition_root)").await;
    let _relay = pair.relay("publication = \"mine\"").await;
    pair.on_primary("INSERT INTO top VALUES (9, 'y'); UPDATE top SET a = 10 WHERE a = 1; UPDATE top SET b = 'z' WHERE a = 5; DELETE FROM top WHERE a = 2").await;
    pair.caught_up("standby1").await;
    let rows = "SELECT a, b FROM top ORDER BY a";
    assert_eq!(pair.on_primary(rows).await, pair.on_standby(rows).await);
    pair.on_primary("TRUNCATE top").await;
    pair.equal_after_catching_up(&["top"]).await;
}
