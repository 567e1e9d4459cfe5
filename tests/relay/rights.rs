//! Roles with few rights and servers with little room: what streams goes on, and what is missing is named before work begins.

use std::time::{Duration, Instant};

use walrelay::config::{Environment, parse_url};
use walrelay::throwaway::Options;
use walrelay::wire::Session;
use walrelay::wire::sql::connect;

use super::harness::{Pair, Relay, client, eventually, value, values};

const TABLES: &str = "CREATE TABLE orders (id int PRIMARY KEY, item text)";

/// `walrelay drop standby1 --yes` with this configuration: exit code, and what it says.
pub(super) fn drop_with(config: &str) -> (Option<i32>, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("walrelay.toml");
    std::fs::write(&path, config).unwrap();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_walrelay"));
    let output = command.args(["drop", "standby1", "--yes", "--config"]).arg(&path).output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.code(), text)
}

/// The names of the primary's slots.
pub(super) async fn slots(pair: &Pair) -> String {
    let sql = "SELECT string_agg(slot_name::text, ' ' ORDER BY slot_name) FROM pg_replication_slots";
    value(&pair.primary, "shop", sql).await
}

/// A relay that streamed from this slot and is stopped.
async fn streamed_from(pair: &Pair, slot: &str) {
    stop(pair, &mut pair.relay(&format!("slot = \"{slot}\"")).await).await;
}

/// Stops it, and waits until the primary has noticed.
async fn stop(pair: &Pair, relay: &mut Relay) {
    assert!(relay.stop().await.success());
    eventually("its walsender has ended", || async {
        let active = "SELECT count(*) FROM pg_replication_slots WHERE active";
        (value(&pair.primary, "shop", active).await == "0").then_some(())
    })
    .await;
}

/// The pair's configuration with the roles `relay`, which have what the README grants except `pg_read_all_stats`.
async fn with_few_rights(pair: &Pair) -> String {
    pair.on_both("CREATE ROLE relay LOGIN").await;
    pair.on_primary("ALTER ROLE relay REPLICATION; GRANT SELECT ON ALL TABLES IN SCHEMA public TO relay").await;
    pair.on_primary("CREATE PUBLICATION walrelay_standby1 FOR TABLE orders").await;
    pair.on_standby(
        "CREATE SCHEMA walrelay AUTHORIZATION relay; GRANT SET ON PARAMETER session_replication_role TO relay; \
         GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE, TRIGGER ON ALL TABLES IN SCHEMA public TO relay; \
         GRANT EXECUTE ON FUNCTION pg_replication_origin_oid(text), pg_replication_origin_create(text), \
         pg_replication_origin_drop(text), pg_replication_origin_session_setup(text), \
         pg_replication_origin_progress(text, boolean) TO relay",
    )
    .await;
    let config = pair.config("").replace(&pair.primary.url("shop"), &pair.primary.url_for("relay", "shop"));
    config.replace(&pair.standby.url("shop"), &pair.standby.url_for("relay", "shop"))
}

/// Without `pg_read_all_stats` the primary hides `sync_state` from the role; commits that bring nothing to the standby must
/// still return at once, not when the next second has passed.
#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_may_not_see_its_walsender_holds_no_commit_up() {
    let pair = Pair::start(18).await;
    pair.on_both(TABLES).await;
    let config = with_few_rights(&pair).await;
    let relay = Relay::start(&config).await;
    relay.wait_state("streaming").await;
    pair.wait_for_standbys("FIRST 1 (standby1)").await;
    assert!(relay.report("standby1").await.unwrap()["sync_state"].is_null());
    let session = client(&pair.primary, "shop").await;
    session.batch_execute("CREATE TABLE unpublished (a int)").await.unwrap();
    eventually("commits of an unpublished table return at once", || async {
        let began = Instant::now();
        for _ in 0..5 {
            session.batch_execute("INSERT INTO unpublished VALUES (1)").await.unwrap();
        }
        (began.elapsed() < Duration::from_secs(1)).then_some(())
    })
    .await;
    assert!(relay.log().contains("GRANT pg_read_all_stats TO"), "the remedy is not in the log");
    pair.on_primary("GRANT pg_read_all_stats TO relay").await;
    relay.wait("standby1", "it sees itself", |report| report["sync_state"] == "sync").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_the_role_may_not_publish_does_not_stop_what_streams() {
    let pair = Pair::start(18).await;
    pair.on_both(TABLES).await;
    let config = with_few_rights(&pair).await;
    let mut relay = Relay::start(&config).await;
    relay.wait_state("streaming").await;
    pair.on_both("CREATE TABLE later (id int PRIMARY KEY)").await;
    relay.kill9();
    relay.start_again().await;
    relay.wait_state("streaming").await;
    pair.on_primary("INSERT INTO orders VALUES (1, 'x')").await;
    pair.equal_after_catching_up(&["orders"]).await;
    let log = relay.log();
    assert!(log.contains("new tables are not replicated") && log.contains("ADD TABLE ONLY"), "{log}");
    // Its owner adds it under the stream, as he is told to: what was in it before is copied.
    pair.on_primary("GRANT SELECT ON later TO relay; INSERT INTO later VALUES (1)").await;
    pair.on_standby("GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE, TRIGGER ON later TO relay").await;
    pair.on_primary("ALTER PUBLICATION walrelay_standby1 ADD TABLE ONLY later").await;
    pair.on_primary("INSERT INTO later VALUES (2)").await;
    pair.equal_after_catching_up(&["orders", "later"]).await;
    assert!(relay.stop().await.success());
    relay.start_again().await;
    relay.wait_state("streaming").await;
    pair.on_primary("INSERT INTO later VALUES (3)").await;
    pair.equal_after_catching_up(&["orders", "later"]).await;
}

/// Who may not add to the publication does not know what comes up in it; but nothing beside the set ever was.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_written_to_a_partition_before_it_was_detached_arrives_under_few_rights_too() {
    let pair = Pair::start(18).await;
    pair.on_both(TABLES).await;
    pair.on_both(
        "CREATE TABLE events (id int PRIMARY KEY) PARTITION BY RANGE (id); \
         CREATE TABLE events_1 PARTITION OF events FOR VALUES FROM (0) TO (100); \
         CREATE TABLE events_2 PARTITION OF events FOR VALUES FROM (100) TO (200)",
    )
    .await;
    let config = with_few_rights(&pair).await;
    pair.on_primary("ALTER PUBLICATION walrelay_standby1 SET TABLE events").await;
    let config = config.replace("name = \"standby1\"", "name = \"standby1\"\ntables = [\"public.events\"]");
    let mut relay = Relay::start(&config).await;
    relay.wait_state("streaming").await;
    pair.on_primary("INSERT INTO events VALUES (1), (101)").await;
    pair.equal_after_catching_up(&["events"]).await;
    relay.kill9();
    pair.on_primary("INSERT INTO events VALUES (2), (102)").await;
    pair.on_primary("ALTER TABLE events DETACH PARTITION events_1").await;
    relay.start_again().await;
    pair.equal_after_catching_up(&["events_1", "events_2"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_free_walsender_is_enough() {
    let options = Options::default().with("max_wal_senders", "1");
    let pair = Pair::with(18, options, 18, Options::default()).await;
    pair.on_both(TABLES).await;
    pair.on_primary("INSERT INTO orders VALUES (1, 'copied')").await;
    let mut relay = pair.relay("").await;
    pair.on_primary("INSERT INTO orders VALUES (2, 'streamed')").await;
    pair.equal_after_catching_up(&["orders"]).await;
    assert!(relay.stop().await.success());
    relay.start_again().await;
    relay.wait_state("streaming").await;
    assert!(!relay.log().contains("max_wal_senders"), "{}", relay.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_cannot_be_used_is_refused_before_anything_is_copied() {
    let pair = Pair::start(18).await;
    pair.on_both(TABLES).await;
    pair.on_primary("INSERT INTO orders VALUES (1, 'x')").await;
    let config = with_few_rights(&pair).await;
    pair.on_standby("REVOKE EXECUTE ON FUNCTION pg_replication_origin_session_setup(text) FROM relay").await;
    let relay = Relay::start(&config).await;
    relay
        .fails_with(&[
            "replication origin walrelay_standby1",
            "may not call pg_catalog.pg_replication_origin_session_setup(text)",
            "GRANT EXECUTE ON FUNCTION pg_catalog.pg_replication_origin_session_setup(text) TO \"relay\"",
        ])
        .await;
    assert_eq!(value(&pair.standby, "shop", "SELECT count(*) FROM orders").await, "0");
    assert_eq!(value(&pair.primary, "shop", "SELECT count(*) FROM pg_replication_slots").await, "0");
    pair.on_standby("GRANT EXECUTE ON FUNCTION pg_replication_origin_session_setup(text) TO relay").await;
    relay.signal(libc::SIGHUP);
    relay.wait_state("streaming").await;
}

/// Replication origins belong to the whole cluster: two databases of it cannot both be fed by a pipeline of one name.
#[tokio::test(flavor = "multi_thread")]
async fn the_same_name_for_two_databases_of_one_standby_is_refused_in_clear_words() {
    let pair = Pair::start(18).await;
    let other = super::harness::server(18).await;
    values(&other, "postgres", "CREATE DATABASE shop").await;
    values(&other, "shop", TABLES).await;
    values(&pair.standby, "postgres", "CREATE DATABASE second").await;
    values(&pair.standby, "second", TABLES).await;
    pair.on_both(TABLES).await;
    let first = pair.relay("").await;
    let config = pair.config("").replace(&pair.primary.url("shop"), &other.url("shop"));
    let second = Relay::start(&config.replace(&pair.standby.url("shop"), &pair.standby.url("second"))).await;
    second.fails_with(&["the same name, \"standby1\"", "into the database \"shop\"", "another name"]).await;
    assert_eq!(value(&other, "shop", "SELECT count(*) FROM pg_replication_slots").await, "0");
    assert_eq!(first.report("standby1").await.unwrap()["state"], "streaming");
    // The remedy takes nothing from the other, and one that is stopped goes on without the origin that was taken away.
    let drop = |relay: &Relay| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_walrelay"));
        let output = command.args(["drop", "standby1", "--yes", "--config"]).arg(relay.config_path()).output().unwrap();
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{text}");
        text
    };
    let mut second = second;
    assert!(second.stop().await.success());
    let text = drop(&second);
    assert!(text.contains("kept the replication origin \"walrelay_standby1\"") && text.contains("\"shop\""), "{text}");
    pair.on_primary("INSERT INTO orders VALUES (1, 'x')").await;
    pair.equal_after_catching_up(&["orders"]).await;
    let mut first = first;
    assert!(first.stop().await.success());
    let text = drop(&second);
    assert!(text.contains("removed the replication origin"), "{text}");
    pair.on_primary("INSERT INTO orders VALUES (2, 'y')").await;
    first.start_again().await;
    first.wait_state("streaming").await;
    pair.equal_after_catching_up(&["orders"]).await;
}

/// Whoever may connect to any database of the standby's server can call his session what he likes.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_of_another_role_that_borrows_the_apply_sessions_name_stops_nothing() {
    let pair = Pair::start(18).await;
    pair.on_both(TABLES).await;
    values(&pair.standby, "postgres", "CREATE ROLE other LOGIN").await;
    let url = parse_url(&pair.standby.url_for("other", "postgres"), &Environment::default()).unwrap();
    let _borrower = connect(&url, &Session::new("walrelay standby1 apply")).await.unwrap();
    let mut relay = pair.relay("").await;
    pair.on_primary("INSERT INTO orders VALUES (1, 'x')").await;
    pair.equal_after_catching_up(&["orders"]).await;
    assert!(relay.stop().await.success());
    let (code, text) = drop_with(&pair.config(""));
    assert!(code == Some(0) && text.contains("removed the replication origin"), "{code:?}: {text}");
}

/// Anybody may take the lock that pipelines are owned by: then he is named, not taken for another walrelay.
#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_who_holds_the_pipelines_lock_is_named() {
    let pair = Pair::start(18).await;
    pair.on_both(TABLES).await;
    pair.on_standby("CREATE ROLE other LOGIN").await;
    let url = parse_url(&pair.standby.url_for("other", "shop"), &Environment::default()).unwrap();
    let stranger = connect(&url, &Session::new("anything")).await.unwrap();
    let lock = "SELECT pg_advisory_lock(hashtextextended('walrelay pipeline standby1', 0))";
    stranger.batch_execute(lock).await.unwrap();
    let relay = Relay::start(&pair.config("")).await;
    let is_named = |report: &serde_json::Value| {
        report["waiting_for"].as_str().is_some_and(|text| text.contains("of the role \"other\" holds"))
    };
    relay.wait("standby1", "the stranger is named", is_named).await;
    drop(stranger);
    relay.wait_state("streaming").await;
}

/// The record tells which slot is the pipeline's; the configuration may name anybody's.
#[tokio::test(flavor = "multi_thread")]
async fn a_drop_takes_the_slot_that_the_record_names() {
    let pair = Pair::start(18).await;
    pair.on_both(TABLES).await;
    streamed_from(&pair, "old").await;
    pair.on_primary("SELECT pg_create_logical_replication_slot('new', 'pgoutput')").await;
    let (code, text) = drop_with(&pair.config("slot = \"new\""));
    assert!(code == Some(5) && text.contains("dropped the slot \"old\""), "{code:?}: {text}");
    assert!(
        text.contains("left: the slot \"new\"") && text.contains("SELECT pg_drop_replication_slot('new')"),
        "{text}"
    );
    assert_eq!(slots(&pair).await, "new");
    assert_eq!(value(&pair.standby, "shop", "SELECT count(*) FROM walrelay.progress").await, "0");
    // A start that was cut off after it had made its slot: the record stands at 0/0, and names it.
    streamed_from(&pair, "mine").await;
    pair.on_standby("UPDATE walrelay.progress SET lsn = '0/0'").await;
    let (code, text) = drop_with(&pair.config("slot = \"mine\""));
    assert!(code == Some(0) && text.contains("dropped the slot \"mine\""), "{code:?}: {text}");
    assert_eq!(slots(&pair).await, "new");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drop_leaves_a_slot_of_another_kind_or_database() {
    let pair = Pair::start(18).await;
    pair.on_primary("SELECT pg_create_physical_replication_slot('physical')").await;
    let (code, text) = drop_with(&pair.config("slot = \"physical\""));
    assert!(code == Some(5) && text.contains("left: the slot \"physical\" is physical"), "{code:?}: {text}");
    let sql = "SELECT pg_create_logical_replication_slot('walrelay_standby1', 'pgoutput')";
    values(&pair.primary, "postgres", sql).await;
    let (code, text) = drop_with(&pair.config(""));
    assert!(code == Some(5) && text.contains("it belongs to the database \"postgres\""), "{code:?}: {text}");
    assert_eq!(slots(&pair).await, "physical walrelay_standby1");
}

/// A pipeline that was given another name goes on with the slot and the publication that the old name made.
#[tokio::test(flavor = "multi_thread")]
async fn a_drop_of_an_old_name_leaves_what_another_pipeline_took_over() {
    let pair = Pair::start(18).await;
    pair.on_both(TABLES).await;
    streamed_from(&pair, "walrelay_standby1").await;
    let lines = "slot = \"walrelay_standby1\"\npublication = \"walrelay_standby1\"\ninitial_copy = false";
    let mut relay = Relay::start(&pair.config(lines).replace("name = \"standby1\"", "name = \"eu1\"")).await;
    relay.wait("eu1", "it streams", |report| report["state"] == "streaming").await;
    let (code, text) = drop_with(&pair.config(""));
    assert!(code == Some(5) && text.contains("by \"eu1\" (its application_name)"), "{code:?}: {text}");
    stop(&pair, &mut relay).await;
    let (code, text) = drop_with(&pair.config(""));
    assert!(code == Some(5) && text.contains("the progress record of \"eu1\" names it"), "{code:?}: {text}");
    assert!(text.contains("left: the publication \"walrelay_standby1\""), "{text}");
    assert_eq!(slots(&pair).await, "walrelay_standby1");
    assert_eq!(value(&pair.primary, "shop", "SELECT count(*) FROM pg_publication").await, "1");
    relay.start_again().await;
    relay.wait("eu1", "it streams again", |report| report["state"] == "streaming").await;
    pair.on_primary("INSERT INTO orders VALUES (1, 'x')").await;
    pair.caught_up("eu1").await;
    pair.assert_equal(&["orders"]).await;
}
