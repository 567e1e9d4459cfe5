//! Publications that somebody else made: 025_rep_changes_for_schema, 028_row_filter, 031_column_list.

use super::super::harness::{Pair, value};

/// 025_rep_changes_for_schema: tables of a schema, also those that come later (at the next start).
#[tokio::test(flavor = "multi_thread")]
async fn a_publication_of_a_schema() {
    let pair = Pair::start(18).await;
    pair.on_both("CREATE SCHEMA sch; CREATE TABLE sch.one (a int PRIMARY KEY); CREATE TABLE other (a int PRIMARY KEY)")
        .await;
    pair.on_primary(
        "INSERT INTO sch.one SELECT generate_series(1, 10); CREATE PUBLICATION mine FOR TABLES IN SCHEMA sch",
    )
    .await;
    let mut relay = pair.relay("publication = \"mine\"").await;
    pair.on_primary("INSERT INTO sch.one VALUES (11); DELETE FROM sch.one WHERE a = 3; INSERT INTO other VALUES (1)")
        .await;
    pair.equal_after_catching_up(&["sch.one"]).await;
    assert_eq!(value(&pair.standby, "shop", "SELECT count(*) FROM other").await, "0");
    pair.on_both("CREATE TABLE sch.two (a int PRIMARY KEY)").await;
    pair.on_primary("INSERT INTO sch.two VALUES (1)").await;
    assert!(relay.stop().await.success());
    relay.start_again().await;
    relay.wait_state("streaming").await;
    pair.on_primary("INSERT INTO sch.two VALUES (2)").await;
    pair.equal_after_catching_up(&["sch.one", "sch.two"]).await;
}

/// 028_row_filter: filters hold in copy and stream; an UPDATE across the filter becomes an INSERT or a DELETE.
#[tokio::test(flavor = "multi_thread")]
async fn row_filters_hold_in_copy_and_stream() {
    let pair = Pair::start(18).await;
    pair.on_both("CREATE TABLE t (a int PRIMARY KEY, b text, large text); ALTER TABLE t ALTER large SET STORAGE EXTERNAL; ALTER TABLE t REPLICA IDENTITY FULL").await;
    pair.on_primary("INSERT INTO t SELECT i, 'x' || i, repeat('large', 1000) FROM generate_series(1, 20) i; CREATE PUBLICATION mine FOR TABLE t WHERE (a > 10 AND b <> 'hidden')").await;
    let _relay = pair.relay("publication = \"mine\"").await;
    pair.on_primary("INSERT INTO t VALUES (5000, 'y', NULL), (-1, 'y', NULL); UPDATE t SET a = 100 WHERE a = 1; UPDATE t SET a = 2000 - a WHERE a = 12; UPDATE t SET a = -13 WHERE a = 13; UPDATE t SET b = 'hidden' WHERE a = 14; DELETE FROM t WHERE a = 15; UPDATE t SET b = 'seen' WHERE a = 16; DELETE FROM t WHERE a = 2").await;
    pair.caught_up("standby1").await;
    let filtered = pair.on_primary("SELECT t::text FROM t WHERE a > 10 AND b <> 'hidden' ORDER BY a").await;
    assert_eq!(filtered, pair.on_standby("SELECT t::text FROM t ORDER BY a").await);
}

/// 031_column_list: only the listed columns, in copy and stream; what is not listed keeps the standby's default.
#[tokio::test(flavor = "multi_thread")]
async fn column_lists_hold_in_copy_and_stream() {
    let pair = Pair::start(18).await;
    pair.on_primary("CREATE TABLE t (a int PRIMARY KEY, \"B\" int, c int); INSERT INTO t VALUES (1, 2, 3), (4, 5, 6)")
        .await;
    pair.on_standby("CREATE TABLE t (a int PRIMARY KEY, \"B\" int, c int DEFAULT -1)").await;
    pair.on_primary("CREATE PUBLICATION mine FOR TABLE t (a, \"B\")").await;
    let _relay = pair.relay("publication = \"mine\"").await;
    pair.on_primary("INSERT INTO t VALUES (7, 8, 9); UPDATE t SET \"B\" = 50, c = 60 WHERE a = 4; UPDATE t SET c = 0; UPDATE t SET a = 100 WHERE a = 1").await;
    pair.caught_up("standby1").await;
    let rows = pair.on_standby("SELECT string_agg(concat_ws(' ', a, \"B\", c), ', ' ORDER BY a) FROM t").await;
    assert_eq!(rows[0][0].as_deref(), Some("4 50 -1, 7 8 -1, 100 2 -1"));
}
