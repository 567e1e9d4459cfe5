//! Refusals: whatever may have lost something stops the pipeline with numbers and a remedy, and nothing is made anew silently.

use super::harness::{Pair, eventually, server, value, values};

const TABLES: &str = "CREATE TABLE orders (id int PRIMARY KEY, item text)";

/// A pair with a relay that has streamed a row and is stopped.
async fn stopped() -> (Pair, super::harness::Relay) {
    let pair = Pair::start(18).await;
    pair.on_both(TABLES).await;
    let mut relay = pair.relay("").await;
    pair.on_primary("INSERT INTO orders VALUES (1, 'x')").await;
    pair.caught_up("standby1").await;
    assert!(relay.stop().await.success());
    (pair, relay)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_vanished_moved_on_or_was_made_anew_is_refused() {
    let (pair, mut relay) = stopped().await;
    pair.on_primary("INSERT INTO orders VALUES (2, 'between')").await;
    // Somebody else reads from the slot.
    pair.on_primary("SELECT pg_replication_slot_advance('walrelay_standby1', pg_current_wal_lsn())").await;
    relay.start_again().await;
    relay
        .fails_with(&["is confirmed to", "but the standby only holds", "bytes of WAL", "walrelay drop standby1"])
        .await;
    relay.stop().await;
    values(&pair.primary, "shop", "SELECT pg_drop_replication_slot('walrelay_standby1')").await;
    relay.start_again().await;
    relay.fails_with(&["walrelay_standby1", "is gone from the primary", "never re-creates"]).await;
    assert_eq!(value(&pair.primary, "shop", "SELECT count(*) FROM pg_replication_slots").await, "0");
    relay.stop().await;
    // Made anew by hand, later than our position.
    pair.on_primary("SELECT pg_create_logical_replication_slot('walrelay_standby1', 'pgoutput')").await;
    relay.start_again().await;
    relay.fails_with(&["is confirmed to", "re-created"]).await;
    assert_eq!(value(&pair.standby, "shop", "SELECT count(*) FROM orders").await, "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_cluster_is_refused() {
    let (pair, mut relay) = stopped().await;
    let other = server(18).await;
    values(&other, "postgres", "CREATE DATABASE shop").await;
    values(&other, "shop", TABLES).await;
    let config = pair.config("").replace(&format!(":{}/", pair.primary.port()), &format!(":{}/", other.port()));
    relay.rewrite_config(&config);
    relay.start_again().await;
    relay.fails_with(&["another cluster", "system identifier"]).await;
    assert_eq!(value(&other, "shop", "SELECT count(*) FROM pg_replication_slots").await, "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_ahead_of_the_primary_is_refused() {
    let (pair, mut relay) = stopped().await;
    pair.on_standby("UPDATE walrelay.progress SET lsn = 'FF/0'").await;
    relay.start_again().await;
    relay.fails_with(&["ahead of the primary", "FF/0"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_without_a_record_is_not_taken_for_ours_unless_adopted() {
    let (pair, mut relay) = stopped().await;
    pair.on_standby("DELETE FROM walrelay.progress").await;
    relay.start_again().await;
    relay.fails_with(&["no progress record", "initial_copy = false"]).await;
    relay.stop().await;
    relay.rewrite_config(&pair.config("initial_copy = false"));
    pair.on_primary("INSERT INTO orders VALUES (3, 'adopted')").await;
    relay.start_again().await;
    relay.wait_state("streaming").await;
    pair.equal_after_catching_up(&["orders"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_in_recovery_is_waited_for_until_it_is_promoted() {
    let (mut pair, mut relay) = stopped().await;
    pair.primary.stop_fast();
    pair.primary.write("standby.signal", "").unwrap();
    pair.primary.start_again().await.unwrap();
    relay.start_again().await;
    let waits = |report: &serde_json::Value| {
        let waiting_for = report["waiting_for"].as_str().unwrap_or_default();
        report["state"] == "waiting" && waiting_for.contains("to be promoted: it is in recovery")
    };
    relay.wait("standby1", "it waits for the promotion", waits).await;
    values(&pair.primary, "postgres", "SELECT pg_promote()").await;
    relay.wait_state("streaming").await;
    pair.on_primary("INSERT INTO orders VALUES (2, 'after')").await;
    pair.equal_after_catching_up(&["orders"]).await;
}

/// A failover of the standby: for a while its address leads to a server in recovery.
#[tokio::test(flavor = "multi_thread")]
async fn a_standby_in_recovery_is_waited_for_by_a_pipeline_that_has_streamed() {
    let mut pair = Pair::start(18).await;
    pair.on_both(TABLES).await;
    let relay = pair.relay("").await;
    pair.on_primary("INSERT INTO orders VALUES (1, 'x')").await;
    pair.caught_up("standby1").await;
    pair.standby.stop_fast();
    pair.standby.write("standby.signal", "").unwrap();
    pair.standby.start_again().await.unwrap();
    let waits = |report: &serde_json::Value| {
        report["state"] == "waiting" && report["last_error"].as_str().is_some_and(|text| text.contains("in recovery"))
    };
    relay.wait("standby1", "it waits for the standby", waits).await;
    values(&pair.standby, "postgres", "SELECT pg_promote()").await;
    relay.wait_state("streaming").await;
    pair.on_primary("INSERT INTO orders VALUES (2, 'after')").await;
    pair.equal_after_catching_up(&["orders"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalidated_slot_stops_the_pipeline_for_good() {
    use walrelay::throwaway::Options;
    let options = Options::default()
        .with("max_slot_wal_keep_size", "1MB")
        .with("wal_keep_size", "0")
        .with("max_wal_size", "32MB")
        .with("min_wal_size", "32MB");
    let pair = Pair::with(18, options, 18, Options::default()).await;
    pair.on_both(TABLES).await;
    let mut relay = pair.relay("").await;
    relay.stop().await;
    eventually("the slot is lost", || async {
        values(&pair.primary, "postgres", "CREATE TABLE IF NOT EXISTS filler (a text); INSERT INTO filler SELECT repeat('x', 1000) FROM generate_series(1, 20000)").await;
        values(&pair.primary, "postgres", "SELECT pg_switch_wal()").await;
        values(&pair.primary, "postgres", "CHECKPOINT").await;
        (value(&pair.primary, "postgres", "SELECT wal_status FROM pg_replication_slots").await == "lost").then_some(())
    })
    .await;
    relay.start_again().await;
    relay.fails_with(&["is invalid on the primary", "wal_removed", "walrelay drop standby1"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_is_not_there_stops_that_pipeline_with_table_key_and_position() {
    let pair = Pair::start(18).await;
    pair.on_both(TABLES).await;
    let relay = pair.relay("").await;
    pair.on_primary("INSERT INTO orders VALUES (1, 'x'), (2, 'y')").await;
    pair.caught_up("standby1").await;
    pair.on_standby("SET session_replication_role = replica; DELETE FROM orders WHERE id = 2").await;
    let before = value(&pair.standby, "shop", "SELECT lsn FROM walrelay.progress").await;
    pair.on_primary("UPDATE orders SET item = 'z' WHERE id = 2").await;
    let error = relay.fails_with(&["UPDATE on public.orders", "id=2", "0 rows"]).await;
    assert!(error.contains('/'), "no position in: {error}");
    let after = value(&pair.standby, "shop", "SELECT lsn FROM walrelay.progress").await;
    assert_eq!(before, after, "something was acknowledged beyond the error");
    // Mended by hand, it goes on.
    pair.on_standby("SET session_replication_role = replica; INSERT INTO orders VALUES (2, 'y')").await;
    relay.signal(libc::SIGHUP);
    relay.wait_state("streaming").await;
    pair.equal_after_catching_up(&["orders"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pipelines_of_one_daemon_fail_apart_from_each_other() {
    let pair = Pair::start(18).await;
    let second = server(18).await;
    values(&second, "postgres", "CREATE DATABASE shop").await;
    pair.on_both(TABLES).await;
    values(&second, "shop", TABLES).await;
    let config = format!(
        "{}[[pipeline]]\nname = \"standby2\"\n[pipeline.sink]\ntype = \"postgres\"\nurl = \"{}\"\n",
        pair.config(""),
        second.url("shop")
    );
    let relay = super::harness::Relay::start(&config).await;
    for name in ["standby1", "standby2"] {
        relay.wait(name, "streaming", |report| report["state"] == "streaming").await;
    }
    assert_eq!(relay.get("/readyz").await.0, 200);
    values(&second, "shop", "SET session_replication_role = replica; INSERT INTO orders VALUES (1, 'in the way')")
        .await;
    pair.on_primary("INSERT INTO orders VALUES (1, 'x')").await;
    relay.wait("standby2", "failed", |report| report["state"] == "failed").await;
    pair.on_primary("INSERT INTO orders VALUES (2, 'y')").await;
    pair.equal_after_catching_up(&["orders"]).await;
    let (code, body) = relay.get("/readyz").await;
    assert!(code == 503 && body.contains("standby2") && !body.contains("standby1"), "{code} {body}");
}
