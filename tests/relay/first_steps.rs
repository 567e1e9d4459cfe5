//! The story of the demo on every version: copy, stream, synchronous commit, crash, read-only.

use super::harness::{Pair, major_versions, try_run};

const TABLES: &str = "CREATE TABLE orders (id int PRIMARY KEY, item text, price numeric);
    CREATE TABLE notes (author text, note text); ALTER TABLE notes REPLICA IDENTITY FULL;";

#[tokio::test(flavor = "multi_thread")]
async fn existing_rows_are_copied_and_changes_follow_on_every_version() {
    for major in major_versions() {
        let pair = Pair::start(major).await;
        pair.on_both(TABLES).await;
        pair.on_primary("INSERT INTO orders SELECT i, 'item ' || i, i * 1.25 FROM generate_series(1, 1000) i").await;
        pair.on_primary("INSERT INTO notes VALUES ('a', 'x'), ('a', 'x'), (NULL, NULL)").await;
        let relay = pair.relay("").await;
        pair.assert_equal(&["orders", "notes"]).await;
        pair.on_primary(
            "INSERT INTO orders VALUES (2000, 'new', 1); UPDATE orders SET item = 'changed' WHERE id <= 10;
             DELETE FROM orders WHERE id BETWEEN 11 AND 20; UPDATE orders SET id = 3000 WHERE id = 1;
             UPDATE notes SET note = 'y' WHERE author IS NULL; DELETE FROM notes WHERE ctid = (SELECT min(ctid) FROM notes)",
        )
        .await;
        pair.equal_after_catching_up(&["orders", "notes"]).await;
        pair.on_primary("TRUNCATE notes; INSERT INTO notes VALUES ('b', 'z')").await;
        pair.equal_after_catching_up(&["orders", "notes"]).await;
        let report = relay.report("standby1").await.unwrap();
        assert_eq!(report["copy"]["rows"], 1003);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_waits_for_the_relay_and_returns_when_it_is_back() {
    for major in major_versions() {
        let pair = Pair::start(major).await;
        pair.on_both(TABLES).await;
        let mut relay = pair.relay("").await;
        pair.wait_for_standbys("FIRST 1 (standby1)").await;
        for (id, level) in ["remote_write", "on", "remote_apply"].into_iter().enumerate() {
            let sql = format!("SET synchronous_commit = {level}; INSERT INTO orders VALUES ({id}, '{level}', 1)");
            pair.on_primary(&sql).await;
            let found = pair.on_standby(&format!("SELECT 1 FROM orders WHERE item = '{level}'")).await;
            // Only `on` and `remote_apply` promise that the standby has it.
            assert!(level == "remote_write" || found.len() == 1, "{major}: {level} returned before the standby had it");
        }
        relay.kill9();
        let waiting = try_run(&pair.primary, "shop", "INSERT INTO orders VALUES (100, 'waits', 1)");
        tokio::pin!(waiting);
        let early = tokio::time::timeout(std::time::Duration::from_millis(700), &mut waiting).await;
        assert!(early.is_err(), "{major}: a commit returned while the relay was dead");
        relay.start_again().await;
        waiting.await.unwrap();
        assert_eq!(pair.on_standby("SELECT item FROM orders WHERE id = 100").await.len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_standby_refuses_every_other_writer_until_it_takes_the_lost_primarys_place() {
    let mut pair = Pair::start(18).await;
    pair.on_both(TABLES).await;
    let mut relay = pair.relay("").await;
    let mut hint = String::new();
    for sql in ["INSERT INTO orders VALUES (1)", "UPDATE orders SET item = ''", "DELETE FROM orders", "TRUNCATE orders"]
    {
        let error = try_run(&pair.standby, "shop", sql).await.unwrap_err();
        let error = error.as_db_error().unwrap();
        assert_eq!(error.code().code(), "25006", "{sql}");
        hint = error.hint().unwrap().to_owned();
        assert!(hint.contains("write there"), "{error:?}");
    }
    // What it says that a failover does, works without the primary.
    pair.primary.kill9();
    relay.stop().await;
    let (_, sql) = hint.split_once("stop walrelay, then ").unwrap();
    pair.on_standby(sql).await;
    pair.on_standby("INSERT INTO orders VALUES (1, 'written here')").await;
}
