//! Which tables of a publication are ours: partitions that come while rows stream, tables that are nobody's business, a set that was made
//! narrower.

use super::harness::{Pair, Relay, oldest_and_newest, value};

/// The set names a partitioned table alone; the publication is somebody's own, and publishes more.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_partition_of_a_wanted_table_is_applied_and_a_new_table_of_nobody_is_not() {
    for major in oldest_and_newest() {
        let pair = Pair::start(major).await;
        let partition = |from: u32| {
            format!("CREATE TABLE part_{from} PARTITION OF events FOR VALUES FROM ({from}) TO ({})", from + 100)
        };
        pair.on_both("CREATE TABLE events (id int PRIMARY KEY) PARTITION BY RANGE (id)").await;
        pair.on_both(&partition(0)).await;
        pair.on_primary("CREATE TABLE other (id int PRIMARY KEY); CREATE PUBLICATION mine FOR ALL TABLES").await;
        let mut relay = Relay::start(&pair.config("publication = \"mine\"\ntables = [\"public.events\"]")).await;
        relay.wait_state("streaming").await;
        pair.on_primary("INSERT INTO events VALUES (1); INSERT INTO other VALUES (1)").await;
        pair.on_both(&partition(100)).await;
        // Gone before anybody could list it.
        let passing = "CREATE TABLE later (id int PRIMARY KEY); INSERT INTO later VALUES (1); DROP TABLE later";
        pair.on_primary(&format!("INSERT INTO events VALUES (101); {passing}")).await;
        pair.on_primary("CREATE TABLE later_still (id int PRIMARY KEY); INSERT INTO later_still VALUES (1)").await;
        pair.on_primary("INSERT INTO events VALUES (2)").await;
        pair.equal_after_catching_up(&["events"]).await;
        relay.wait_state("streaming").await;
        let log = relay.log();
        let sought = |table: &str| log.matches(&format!("public.{table} came into the publication")).count();
        assert_eq!((sought("part_100"), sought("later")), (1, 1), "{major}: {log}");
        assert!(sought("later_still") <= 1, "{major}: {log}");
        relay.kill9();
        relay.start_again().await;
        pair.on_primary("INSERT INTO events VALUES (103)").await;
        pair.equal_after_catching_up(&["events"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_excluded_later_is_left_alone_though_it_stays_published() {
    let pair = Pair::start(18).await;
    pair.on_both("CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE x (id int PRIMARY KEY)").await;
    let relay = pair.relay("").await;
    pair.on_primary("INSERT INTO x VALUES (1)").await;
    pair.equal_after_catching_up(&["a", "x"]).await;
    relay.rewrite_config(&pair.config("exclude = [\"public.x\"]"));
    relay.signal(libc::SIGHUP);
    relay
        .wait("standby1", "it began anew", |report| report["transactions"] == 0 && report["state"] == "streaming")
        .await;
    pair.on_primary("INSERT INTO x VALUES (2); INSERT INTO a VALUES (1)").await;
    pair.equal_after_catching_up(&["a"]).await;
    assert_eq!(value(&pair.standby, "shop", "SELECT count(*) FROM x").await, "1");
    // Nor is it guarded any more, or needed.
    pair.on_standby("INSERT INTO x VALUES (7); DROP TABLE x").await;
    pair.on_primary("INSERT INTO x VALUES (3); INSERT INTO a VALUES (2)").await;
    pair.equal_after_catching_up(&["a"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_leaves_the_set_and_comes_back_is_copied_again_or_refused_never_half_there() {
    let pair = Pair::start(18).await;
    pair.on_both("CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE x (id int PRIMARY KEY)").await;
    pair.on_primary("INSERT INTO x VALUES (1)").await;
    let mut relay = pair.relay("").await;
    pair.equal_after_catching_up(&["a", "x"]).await;
    // A pattern that fits nothing is a mistake, and nothing is taken out for it.
    assert!(relay.stop().await.success());
    relay.rewrite_config(&pair.config("tables = [\"pubic.*\"]"));
    relay.start_again().await;
    relay.fails_with(&["no table of the primary is of the set", "public.a, public.x", "misspelt"]).await;
    relay.stop().await;
    relay.rewrite_config(&pair.config("exclude = [\"public.x\"]"));
    relay.start_again().await;
    relay.wait_state("streaming").await;
    pair.on_primary("INSERT INTO x VALUES (2); INSERT INTO a VALUES (1)").await;
    pair.equal_after_catching_up(&["a"]).await;
    // Back in the set, with rows of before on the standby: what came between is not to be missing.
    assert!(relay.stop().await.success());
    relay.rewrite_config(&pair.config(""));
    relay.start_again().await;
    relay.fails_with(&["public.x"]).await;
    relay.stop().await;
    relay.rewrite_config(&pair.config("on_existing_rows = \"truncate\""));
    relay.start_again().await;
    pair.on_primary("INSERT INTO x VALUES (3)").await;
    pair.equal_after_catching_up(&["a", "x"]).await;
    assert_eq!(value(&pair.standby, "shop", "SELECT count(*) FROM x").await, "3");
}

#[tokio::test(flavor = "multi_thread")]
async fn renamed_tables_are_those_that_they_were() {
    for major in oldest_and_newest() {
        let pair = Pair::start(major).await;
        let tables = "CREATE TABLE orders (id int PRIMARY KEY); CREATE TABLE orders_new (id int PRIMARY KEY, at int); \
             CREATE TABLE log (id int PRIMARY KEY)";
        pair.on_both(tables).await;
        pair.on_primary(
            "INSERT INTO orders VALUES (1); INSERT INTO orders_new VALUES (2, 2); INSERT INTO log VALUES (3)",
        )
        .await;
        let mut relay = pair.relay("").await;
        pair.equal_after_catching_up(&["orders", "orders_new", "log"]).await;
        relay.kill9();
        // Written before, and read behind what follows.
        pair.on_primary(
            "INSERT INTO orders VALUES (8); INSERT INTO orders_new VALUES (9, 9); INSERT INTO log VALUES (10)",
        )
        .await;
        // One changes places with another, one is rotated away and made again.
        let renaming = "BEGIN; ALTER TABLE orders RENAME TO orders_old; ALTER TABLE orders_new RENAME TO orders; \
             ALTER TABLE log RENAME TO log_1; CREATE TABLE log (id int PRIMARY KEY); COMMIT";
        pair.on_both(renaming).await;
        pair.on_primary(
            "INSERT INTO orders VALUES (4, 4); INSERT INTO orders_old VALUES (5); INSERT INTO log_1 VALUES (6)",
        )
        .await;
        pair.on_primary("INSERT INTO log VALUES (7)").await;
        for _ in 0..2 {
            relay.start_again().await;
            relay.wait_state("streaming").await;
            pair.on_primary("INSERT INTO orders SELECT max(id) + 1, 0 FROM orders").await;
            pair.equal_after_catching_up(&["orders", "orders_old", "log_1", "log"]).await;
            relay.kill9();
        }
        let done = "SELECT string_agg(table_name || ' ' || state, ', ' ORDER BY table_name) FROM walrelay.copy";
        let expected = "log done, log_1 done, orders done, orders_old done";
        assert_eq!(value(&pair.standby, "shop", done).await, expected, "{major}");
    }
}

/// The record follows the primary's names at once; what the standby's tables are called is another matter.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_written_before_two_tables_changed_their_names_goes_where_it_belongs_before_the_standby_follows() {
    let pair = Pair::start(18).await;
    pair.on_both("CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY)").await;
    pair.on_primary("INSERT INTO a VALUES (1); INSERT INTO b VALUES (2)").await;
    let mut relay = pair.relay("").await;
    pair.equal_after_catching_up(&["a", "b"]).await;
    relay.kill9();
    pair.on_primary("INSERT INTO a VALUES (3)").await;
    let swap = "BEGIN; ALTER TABLE a RENAME TO c; ALTER TABLE b RENAME TO a; ALTER TABLE c RENAME TO b; COMMIT";
    pair.on_primary(swap).await;
    relay.start_again().await;
    pair.caught_up("standby1").await;
    let rows = "SELECT string_agg(id::text, ' ' ORDER BY id) FROM a";
    assert_eq!(value(&pair.standby, "shop", rows).await, "1 3");
    pair.on_standby(swap).await;
    pair.on_primary("INSERT INTO a VALUES (4); INSERT INTO b VALUES (5)").await;
    pair.equal_after_catching_up(&["a", "b"]).await;
}
