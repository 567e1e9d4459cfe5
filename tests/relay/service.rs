//! The daemon as a service: the service manager's words, reload, drain, the hot spare, a daemon that was frozen.

use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use walrelay::throwaway::Options;

use super::harness::{Pair, Relay, eventually, value, values};

const TABLES: &str = "CREATE TABLE orders (id int PRIMARY KEY, item text)";

/// Reads datagrams until one holds `wanted`; gives all that came.
fn hear(socket: &UnixDatagram, wanted: &str) -> Vec<String> {
    let mut heard: Vec<String> = Vec::new();
    let mut buffer = [0; 4096];
    while !heard.iter().any(|text| text.contains(wanted)) {
        let length =
            socket.recv(&mut buffer).unwrap_or_else(|error| panic!("{wanted} was not heard ({error}): {heard:?}"));
        heard.push(String::from_utf8_lossy(&buffer[..length]).into_owned());
    }
    heard
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_manager_hears_ready_status_watchdog_reload_and_stop() {
    let pair = Pair::start(18).await;
    pair.on_both(TABLES).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let variables = [("NOTIFY_SOCKET", path.to_str().unwrap()), ("WATCHDOG_USEC", "2000000")];
    let mut relay = Relay::start_with(&pair.config(""), &variables).await;
    hear(&socket, "READY=1");
    hear(&socket, "STATUS=standby1 streaming");
    // Pings go on while idle.
    for _ in 0..5 {
        hear(&socket, "WATCHDOG=1");
    }
    relay.signal(libc::SIGHUP);
    hear(&socket, "RELOADING=1");
    hear(&socket, "READY=1");
    relay.signal(libc::SIGTERM);
    hear(&socket, "STOPPING=1");
    assert!(relay.stop().await.success());
}

/// Nothing is answered before such a statement ends; but the standby works.
#[tokio::test(flavor = "multi_thread")]
async fn a_statement_longer_than_the_watchdog_s_patience_does_not_starve_it() {
    let pair = Pair::start(18).await;
    pair.on_both(TABLES).await;
    pair.on_standby(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(10); RETURN NEW; END'; \
         CREATE TRIGGER slow BEFORE INSERT ON orders FOR EACH ROW EXECUTE FUNCTION slow(); \
         ALTER TABLE orders ENABLE ALWAYS TRIGGER slow",
    )
    .await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let variables = [("NOTIFY_SOCKET", path.to_str().unwrap()), ("WATCHDOG_USEC", "4000000")];
    let relay = Relay::start_with(&pair.config(""), &variables).await;
    hear(&socket, "STATUS=standby1 streaming");
    pair.on_primary("INSERT INTO orders VALUES (1, 'slow')").await;
    // One a second: two limits.
    for _ in 0..8 {
        hear(&socket, "WATCHDOG=1");
    }
    pair.equal_after_catching_up(&["orders"]).await;
    assert!(!relay.log().contains("the watchdog is not fed any more"), "{}", relay.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_adds_and_removes_pipelines_and_a_broken_file_changes_nothing() {
    let pair = Pair::start(18).await;
    pair.on_both(TABLES).await;
    values(&pair.standby, "postgres", "CREATE DATABASE other").await;
    values(&pair.standby, "other", TABLES).await;
    let relay = pair.relay("").await;
    pair.on_primary("INSERT INTO orders VALUES (1, 'x')").await;
    pair.caught_up("standby1").await;
    let added = format!(
        "{}[[pipeline]]\nname = \"second\"\n[pipeline.sink]\ntype = \"postgres\"\nurl = \"{}\"\n",
        pair.config(""),
        pair.standby.url("other")
    );
    relay.rewrite_config(&added);
    relay.signal(libc::SIGHUP);
    relay.wait("second", "streaming", |report| report["state"] == "streaming").await;
    // The first one was not interrupted: its counters go on.
    assert_eq!(relay.report("standby1").await.unwrap()["transactions"], 1);
    relay.rewrite_config("this is no configuration");
    relay.signal(libc::SIGHUP);
    eventually("the log complains", || async { relay.log().contains("the old one stays").then_some(()) }).await;
    assert_eq!(relay.report("second").await.unwrap()["state"], "streaming");
    relay.rewrite_config(&pair.config(""));
    relay.signal(libc::SIGHUP);
    eventually("the second pipeline is gone", || async { relay.report("second").await.is_none().then_some(()) }).await;
    assert_eq!(
        value(&pair.primary, "shop", "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'walrelay_second'")
            .await,
        "1"
    );
    pair.on_primary("INSERT INTO orders VALUES (2, 'y')").await;
    pair.equal_after_catching_up(&["orders"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_drains_confirms_and_ends_within_its_time() {
    let pair = Pair::start(18).await;
    pair.on_both(TABLES).await;
    let mut relay = pair.relay("").await;
    pair.on_primary("INSERT INTO orders SELECT i, 'x' FROM generate_series(1, 5000) i").await;
    pair.caught_up("standby1").await;
    assert!(relay.stop().await.success());
    let confirmed = value(&pair.primary, "shop", "SELECT confirmed_flush_lsn FROM pg_replication_slots").await;
    let recorded = value(&pair.standby, "shop", "SELECT lsn FROM walrelay.progress").await;
    assert_eq!(confirmed, recorded, "the last position was not confirmed");
    assert_eq!(value(&pair.standby, "shop", "SELECT count(*) FROM orders").await, "5000");
    // A stop that cannot drain, because a lock on the standby is in the way, ends all the same.
    relay.rewrite_config(&format!("shutdown_timeout = \"1s\"\n{}", pair.config("")));
    relay.start_again().await;
    relay.wait_state("streaming").await;
    let blocker = super::harness::client(&pair.standby, "shop").await;
    blocker.batch_execute("BEGIN; LOCK TABLE orders IN ACCESS EXCLUSIVE MODE").await.unwrap();
    pair.on_primary("INSERT INTO orders VALUES (10000, 'blocked')").await;
    relay.wait("standby1", "it waits for the lock", |report| report["waiting_for"] == "a lock on the standby").await;
    let began = Instant::now();
    assert!(relay.stop().await.success());
    assert!(began.elapsed() < Duration::from_secs(5), "the stop took {:?}", began.elapsed());
    assert!(relay.log().contains("not drained within shutdown_timeout"));
}

/// Pipelines that leave drain beside each other, and a SIGTERM meanwhile waits for no reload.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_does_not_wait_for_a_reload_that_drains() {
    let pair = Pair::start(18).await;
    pair.on_both(TABLES).await;
    let mut leaving = String::new();
    for name in ["second", "third"] {
        values(&pair.standby, "postgres", &format!("CREATE DATABASE {name}")).await;
        values(&pair.standby, name, TABLES).await;
        leaving.push_str(&format!(
            "[[pipeline]]\nname = \"{name}\"\n[pipeline.sink]\ntype = \"postgres\"\nurl = \"{}\"\n",
            pair.standby.url(name)
        ));
    }
    let head = "shutdown_timeout = \"4s\"\n";
    let mut relay = Relay::start(&format!("{head}{}{leaving}", pair.config(""))).await;
    let mut blockers = Vec::new();
    for name in ["second", "third"] {
        relay.wait(name, "streaming", |report| report["state"] == "streaming").await;
        let blocker = super::harness::client(&pair.standby, name).await;
        blocker.batch_execute("BEGIN; LOCK TABLE orders IN ACCESS EXCLUSIVE MODE").await.unwrap();
        blockers.push(blocker);
    }
    relay.wait_state("streaming").await;
    pair.on_primary("INSERT INTO orders VALUES (1, 'blocked')").await;
    for name in ["second", "third"] {
        relay.wait(name, "it waits for the lock", |report| report["waiting_for"] == "a lock on the standby").await;
    }
    relay.rewrite_config(&format!("{head}{}", pair.config("")));
    relay.signal(libc::SIGHUP);
    eventually("both are leaving", || async {
        (relay.log().matches("its slot and its guards stay").count() == 2).then_some(())
    })
    .await;
    let began = Instant::now();
    assert!(relay.stop().await.success());
    assert!(began.elapsed() < Duration::from_secs(6), "the stop took {:?}", began.elapsed());
    assert_eq!(relay.log().matches("not drained within shutdown_timeout").count(), 2);
}

/// Commits may wait for the one that has drained.
#[tokio::test(flavor = "multi_thread")]
async fn a_pipeline_that_changed_starts_again_though_another_still_drains() {
    let pair = Pair::start(18).await;
    pair.on_both(TABLES).await;
    values(&pair.standby, "postgres", "CREATE DATABASE second").await;
    values(&pair.standby, "second", TABLES).await;
    let config = |lines: &str| {
        format!(
            "shutdown_timeout = \"5m\"\n{}[[pipeline]]\nname = \"second\"\n{lines}\n[pipeline.sink]\ntype = \"postgres\"\nurl = \"{}\"\n",
            pair.config(lines),
            pair.standby.url("second")
        )
    };
    let relay = Relay::start(&config("")).await;
    relay.wait_state("streaming").await;
    relay.wait("second", "streaming", |report| report["state"] == "streaming").await;
    let blocker = super::harness::client(&pair.standby, "second").await;
    blocker.batch_execute("BEGIN; LOCK TABLE orders IN ACCESS EXCLUSIVE MODE").await.unwrap();
    pair.on_primary("INSERT INTO orders VALUES (1, 'blocked')").await;
    relay.wait("second", "it waits for the lock", |report| report["waiting_for"] == "a lock on the standby").await;
    pair.equal_after_catching_up(&["orders"]).await;
    relay.rewrite_config(&config("copy_workers = 3"));
    relay.signal(libc::SIGHUP);
    relay
        .wait("standby1", "it began anew", |report| report["transactions"] == 0 && report["state"] == "streaming")
        .await;
    pair.on_primary("INSERT INTO orders VALUES (2, 'goes on')").await;
    pair.equal_after_catching_up(&["orders"]).await;
    assert_eq!(relay.report("second").await.unwrap()["waiting_for"], "a lock on the standby");
    blocker.batch_execute("COMMIT").await.unwrap();
    pair.caught_up("second").await;
    let count = "SELECT count(*) FROM orders";
    eventually("the second has both", || async { (value(&pair.standby, "second", count).await == "2").then_some(()) })
        .await;
}

/// The file may have been written anew since a reload that still drains has read it.
#[tokio::test(flavor = "multi_thread")]
async fn a_reload_asked_for_while_another_drains_follows_it() {
    let pair = Pair::start(18).await;
    pair.on_both(TABLES).await;
    let mut pipelines = Vec::new();
    for name in ["second", "third"] {
        values(&pair.standby, "postgres", &format!("CREATE DATABASE {name}")).await;
        values(&pair.standby, name, TABLES).await;
        pipelines.push(format!(
            "[[pipeline]]\nname = \"{name}\"\n[pipeline.sink]\ntype = \"postgres\"\nurl = \"{}\"\n",
            pair.standby.url(name)
        ));
    }
    let config = |more: &str| format!("shutdown_timeout = \"4s\"\n{}{more}", pair.config(""));
    let relay = Relay::start(&config(&pipelines[0])).await;
    relay.wait_state("streaming").await;
    relay.wait("second", "streaming", |report| report["state"] == "streaming").await;
    let blocker = super::harness::client(&pair.standby, "second").await;
    blocker.batch_execute("BEGIN; LOCK TABLE orders IN ACCESS EXCLUSIVE MODE").await.unwrap();
    pair.on_primary("INSERT INTO orders VALUES (1, 'blocked')").await;
    relay.wait("second", "it waits for the lock", |report| report["waiting_for"] == "a lock on the standby").await;
    relay.rewrite_config(&config(""));
    relay.signal(libc::SIGHUP);
    eventually("the second is leaving", || async {
        relay.log().contains("its slot and its guards stay").then_some(())
    })
    .await;
    relay.rewrite_config(&config(&pipelines[1]));
    relay.signal(libc::SIGHUP);
    relay.wait("third", "streaming", |report| report["state"] == "streaming").await;
    assert!(relay.report("second").await.is_none());
    let log = relay.log();
    assert!(log.contains("not drained within shutdown_timeout"), "the first reload had nothing to wait for");
    assert_eq!(log.matches("the configuration was read again").count(), 2);
}

/// While the standby is away, what the slot retains grows: then it must be seen.
#[tokio::test(flavor = "multi_thread")]
async fn a_pipeline_that_waits_tells_what_grows_and_nothing_stale() {
    let mut pair = Pair::start(18).await;
    pair.on_both(TABLES).await;
    let relay = pair.relay("").await;
    pair.on_primary("INSERT INTO orders VALUES (1, 'x')").await;
    pair.caught_up("standby1").await;
    pair.standby.stop_fast();
    let waiting = relay.wait_state("waiting").await;
    assert!(waiting["lag_seconds"].is_null() && waiting["sync_state"].is_null(), "{waiting}");
    pair.on_primary("INSERT INTO orders SELECT i, repeat('x', 100) FROM generate_series(2, 20000) i").await;
    let waiting = relay
        .wait("standby1", "the numbers grow", |report| {
            report["lag_bytes"].as_u64() > Some(1_000_000) && report["retained_wal_bytes"].as_u64() > Some(1_000_000)
        })
        .await;
    assert!(waiting["state"] != "streaming" && waiting["last_error"].is_string(), "{waiting}");
    pair.standby.start_again().await.unwrap();
    relay.wait_state("streaming").await;
    pair.equal_after_catching_up(&["orders"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hot_spare_takes_over_when_the_first_daemon_dies() {
    let pair = Pair::start(18).await;
    pair.on_both(TABLES).await;
    let mut first = pair.relay("").await;
    let spare = Relay::start(&pair.config("")).await;
    let report = spare.wait_state("waiting").await;
    assert!(report["waiting_for"].as_str().unwrap().contains("hot spare"), "{report}");
    assert_eq!(spare.get("/readyz").await.0, 503);
    pair.on_primary("INSERT INTO orders VALUES (1, 'by the first')").await;
    pair.caught_up("standby1").await;
    let began = Instant::now();
    first.kill9();
    spare.wait_state("streaming").await;
    assert!(began.elapsed() < Duration::from_secs(15), "the spare took {:?}", began.elapsed());
    pair.on_primary("INSERT INTO orders VALUES (2, 'by the spare')").await;
    pair.equal_after_catching_up(&["orders"]).await;
}

/// Its slot stands idle like a frozen daemon's.
#[tokio::test(flavor = "multi_thread")]
async fn a_spare_does_not_end_a_start_that_takes_long() {
    let pair = Pair::start(18).await;
    pair.on_both(TABLES).await;
    let mut first = pair.relay("").await;
    assert!(first.stop().await.success());
    let holder = super::harness::client(&pair.standby, "shop").await;
    holder.batch_execute("BEGIN; SELECT FROM walrelay.progress FOR UPDATE").await.unwrap();
    first.start_again().await;
    let owner_waits = |seconds: u32| {
        let sql = format!(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'walrelay standby1 control' \
             AND wait_event_type = 'Lock' AND clock_timestamp() - state_change > interval '{seconds} seconds'"
        );
        let standby = &pair.standby;
        async move { (value(standby, "shop", &sql).await == "1").then_some(()) }
    };
    eventually("the owner waits for the record", || owner_waits(0)).await;
    let spare = Relay::start(&pair.config("")).await;
    spare.wait_state("waiting").await;
    eventually("it waits for longer than a slot may stand idle", || owner_waits(20)).await;
    holder.batch_execute("COMMIT").await.unwrap();
    first.wait_state("streaming").await;
    assert!(!spare.log().contains("its sessions are ended"), "{}", spare.log());
    pair.on_primary("INSERT INTO orders VALUES (1, 'by the first')").await;
    pair.equal_after_catching_up(&["orders"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_was_frozen_applies_nothing_when_it_wakes_up() {
    let options = Options::default().with("wal_sender_timeout", "2s");
    let pair = Pair::with(18, options, 18, Options::default()).await;
    pair.on_both(TABLES).await;
    let first = pair.relay("").await;
    let spare = Relay::start(&pair.config("")).await;
    spare.wait_state("waiting").await;
    first.signal(libc::SIGSTOP);
    pair.on_primary("INSERT INTO orders VALUES (1, 'while frozen')").await;
    spare.wait_state("streaming").await;
    pair.equal_after_catching_up(&["orders"]).await;
    first.signal(libc::SIGCONT);
    pair.on_primary("UPDATE orders SET item = 'once' WHERE id = 1; INSERT INTO orders VALUES (2, 'after')").await;
    first.wait_state("waiting").await;
    pair.equal_after_catching_up(&["orders"]).await;
    assert_eq!(spare.report("standby1").await.unwrap()["state"], "streaming");
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_and_status_agree_and_health_is_told() {
    let pair = Pair::start(18).await;
    pair.on_both(TABLES).await;
    let relay = pair.relay("").await;
    for id in 0..7 {
        pair.on_primary(&format!("INSERT INTO orders VALUES ({id}, 'x')")).await;
    }
    pair.caught_up("standby1").await;
    relay.wait("standby1", "seven transactions", |report| report["transactions"] == 7 && report["rows"] == 7).await;
    let (_, metrics) = relay.get("/metrics").await;
    assert!(metrics.contains("walrelay_transactions_total{pipeline=\"standby1\"} 7\n"), "{metrics}");
    assert_eq!(relay.get("/healthz").await.0, 200);
    assert_eq!(relay.get("/readyz").await.0, 200);
    relay.wait("standby1", "no lag", |report| report["lag_bytes"] == 0 && report["lag_seconds"] == 0.0).await;
    eventually("/status says what pg_stat_replication says", || async {
        let sql = "SELECT replay_lsn FROM pg_stat_replication WHERE application_name = 'standby1'";
        let replay = value(&pair.primary, "shop", sql).await;
        (relay.report("standby1").await?["replay_lsn"] == replay.as_str()).then_some(())
    })
    .await;
}
