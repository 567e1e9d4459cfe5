//! The promise to the primary: a commit returns only after the standby has it. Named after the acceptance experiments of the
//! protocol notes: what must release a waiter, and what must not.

use std::time::{Duration, Instant};

use super::harness::{
    PATIENCE, Pair, Relay, client, eventually, major_versions, oldest_and_newest, server, try_run, value, values,
};

const TABLES: &str = "CREATE TABLE orders (id int PRIMARY KEY, item text); CREATE TABLE hidden (id int PRIMARY KEY)";

/// Two standbys in one daemon.
fn two_standbys(pair: &Pair, second: &walrelay::throwaway::Server) -> String {
    format!(
        "{}[[pipeline]]\nname = \"standby2\"\n[pipeline.sink]\ntype = \"postgres\"\nurl = \"{}\"\n",
        pair.config(""),
        second.url("shop")
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn every_form_of_synchronous_standby_names_waits_for_the_standbys_it_names() {
    let pair = Pair::start(18).await;
    let second = server(18).await;
    values(&second, "postgres", "CREATE DATABASE shop").await;
    pair.on_both(TABLES).await;
    values(&second, "shop", TABLES).await;
    let relay = Relay::start(&two_standbys(&pair, &second)).await;
    for name in ["standby1", "standby2"] {
        relay.wait(name, "streaming", |report| report["state"] == "streaming").await;
    }
    let mut id = 0;
    for (names, needs_both) in [
        ("FIRST 1 (standby1)", false),
        ("FIRST 2 (standby1, standby2)", true),
        ("ANY 1 (standby1, standby2)", false),
        ("ANY 2 (standby1, standby2)", true),
    ] {
        pair.wait_for_standbys(names).await;
        for level in ["on", "remote_apply"] {
            id += 1;
            pair.on_primary(&format!("SET synchronous_commit = {level}; INSERT INTO orders VALUES ({id}, 'x')")).await;
            let query = format!("SELECT count(*) FROM orders WHERE id = {id}");
            let there =
                [value(&pair.standby, "shop", &query).await == "1", value(&second, "shop", &query).await == "1"];
            let is_kept = if needs_both { there == [true, true] } else { there[0] || there[1] };
            assert!(is_kept, "{names}, {level}: returned with the row on {there:?}");
        }
    }
    let states = values(
        &pair.primary,
        "postgres",
        "SELECT DISTINCT sync_state FROM pg_stat_replication WHERE application_name LIKE 'standby_'",
    )
    .await;
    assert_eq!(states, [[Some("quorum".to_owned())]]);
    relay.wait("standby2", "quorum in /status", |report| report["sync_state"] == "quorum").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commits_that_bring_nothing_to_the_standby_do_not_hang() {
    for major in major_versions() {
        let pair = Pair::start(major).await;
        pair.on_both(TABLES).await;
        let _relay = pair.relay("tables = [\"public.orders\"]").await;
        values(&pair.primary, "postgres", "CREATE DATABASE other").await;
        pair.wait_for_standbys("FIRST 1 (standby1)").await;
        let began = Instant::now();
        // An unpublished table, another database, DDL, a prepared transaction's parts need no row on the standby.
        for (database, sql) in [
            ("shop", "INSERT INTO hidden VALUES (1)"),
            ("other", "CREATE TABLE t (a int)"),
            ("other", "INSERT INTO t VALUES (1)"),
            ("shop", "CREATE TABLE later (a int)"),
            ("shop", "SET synchronous_commit = remote_apply; INSERT INTO hidden VALUES (2)"),
        ] {
            let limit = Duration::from_secs(20);
            let ran = tokio::time::timeout(limit, values(&pair.primary, database, sql)).await;
            assert!(ran.is_ok(), "{major}: hangs: {sql}");
        }
        assert!(
            began.elapsed() < Duration::from_secs(15),
            "{major}: foreign commits wait too long: {:?}",
            began.elapsed()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receipt_does_not_wait_for_a_standby_that_is_at_work() {
    for major in major_versions() {
        let pair = Pair::start(major).await;
        pair.on_both(TABLES).await;
        let relay = pair.relay("").await;
        pair.wait_for_standbys("FIRST 1 (standby1)").await;
        let holder = client(&pair.standby, "shop").await;
        holder.batch_execute("BEGIN; LOCK TABLE orders IN ACCESS EXCLUSIVE MODE").await.unwrap();
        pair.on_primary("SET synchronous_commit = local; INSERT INTO orders VALUES (1, 'held')").await;
        for id in 2..5 {
            let commit = format!("SET synchronous_commit = remote_write; INSERT INTO orders VALUES ({id}, 'received')");
            let ran = tokio::time::timeout(Duration::from_secs(10), pair.on_primary(&commit)).await;
            assert!(ran.is_ok(), "{major}: remote_write waits for the standby's lock");
        }
        relay.wait("standby1", "the lock", |report| report["waiting_for"] == "a lock on the standby").await;
        holder.batch_execute("COMMIT").await.unwrap();
        pair.equal_after_catching_up(&["orders"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fast_shutdown_of_the_primary_completes_and_the_relay_comes_back_with_it() {
    for major in major_versions() {
        let mut pair = Pair::start(major).await;
        pair.on_both(TABLES).await;
        let relay = pair.relay("").await;
        pair.on_primary("INSERT INTO orders VALUES (1, 'before')").await;
        pair.caught_up("standby1").await;
        let began = Instant::now();
        pair.primary.stop_fast();
        assert!(began.elapsed() < Duration::from_secs(10), "{major}: the shutdown took {:?}", began.elapsed());
        relay.wait_state("waiting").await;
        pair.primary.start_again().await.unwrap();
        pair.on_primary("INSERT INTO orders VALUES (2, 'after')").await;
        relay.wait_state("streaming").await;
        pair.equal_after_catching_up(&["orders"]).await;
    }
}

/// A walsender ends once all that it sent is confirmed, and a lock may be held for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_fast_shutdown_of_the_primary_does_not_wait_for_a_lock_on_the_standby() {
    for major in oldest_and_newest() {
        let pair = Pair::start(major).await;
        pair.on_both(TABLES).await;
        let relay = pair.relay("").await;
        let holder = client(&pair.standby, "shop").await;
        holder.batch_execute("BEGIN; LOCK TABLE orders IN ACCESS EXCLUSIVE MODE").await.unwrap();
        pair.on_primary("INSERT INTO orders VALUES (1, 'held')").await;
        relay.wait("standby1", "the lock", |report| report["waiting_for"] == "a lock on the standby").await;
        let Pair { mut primary, standby } = pair;
        let stopping = tokio::task::spawn_blocking(move || {
            primary.stop_fast();
            primary
        });
        let stopped = tokio::time::timeout(PATIENCE, stopping).await;
        let mut primary = stopped.expect("the shutdown waits for the lock").unwrap();
        let log = relay.log();
        assert!(log.contains("it shuts down, and was kept from it because what it sent waits for a lock"), "{log}");
        primary.start_again().await.unwrap();
        holder.batch_execute("COMMIT").await.unwrap();
        let pair = Pair { primary, standby };
        relay.wait_state("streaming").await;
        pair.equal_after_catching_up(&["orders"]).await;
        assert_eq!(value(&pair.standby, "shop", "SELECT count(*) FROM orders").await, "1", "{major}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_position_is_recorded_before_it_is_confirmed_so_that_a_crash_restarts() {
    let pair = Pair::start(18).await;
    pair.on_both(TABLES).await;
    let mut relay = pair.relay("tables = [\"public.orders\"]").await;
    // Foreign WAL moves the idle position again and again; a crash may come at any moment of it.
    for round in 0..5 {
        let foreign = client(&pair.primary, "postgres").await;
        foreign
            .batch_execute(&format!("CREATE TABLE foreign_{round} AS SELECT generate_series(1, 20000) AS a"))
            .await
            .unwrap();
        if round % 2 == 0 {
            pair.caught_up("standby1").await;
        }
        relay.kill9();
        let confirmed = value(&pair.primary, "shop", "SELECT confirmed_flush_lsn FROM pg_replication_slots").await;
        let recorded = value(&pair.standby, "shop", "SELECT lsn FROM walrelay.progress").await;
        let order =
            value(&pair.standby, "shop", &format!("SELECT '{confirmed}'::pg_lsn <= '{recorded}'::pg_lsn")).await;
        assert_eq!(order, "t", "the slot is confirmed to {confirmed}, the record says {recorded}");
        relay.start_again().await;
        relay.wait_state("streaming").await;
    }
    pair.on_primary("INSERT INTO orders VALUES (1, 'x')").await;
    pair.equal_after_catching_up(&["orders"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_slot_is_never_created_while_its_name_is_waited_for() {
    let pair = Pair::start(18).await;
    pair.on_both(TABLES).await;
    values(&pair.primary, "postgres", "ALTER SYSTEM SET synchronous_standby_names = 'standby1'").await;
    values(&pair.primary, "postgres", "SELECT pg_reload_conf()").await;
    eventually("the setting is in force", || async {
        (value(&pair.primary, "postgres", "SHOW synchronous_standby_names").await == "standby1").then_some(())
    })
    .await;
    let waiting = client(&pair.primary, "shop").await;
    let waiting = tokio::spawn(async move { waiting.batch_execute("INSERT INTO orders VALUES (1, 'waits')").await });
    eventually("a commit waits", || async {
        (value(&pair.primary, "postgres", "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'").await
            == "1")
            .then_some(())
    })
    .await;
    let relay = Relay::start(&pair.config("")).await;
    relay.fails_with(&["standby1", "synchronous_standby_names", "ALTER SYSTEM SET", "for ever"]).await;
    assert_eq!(value(&pair.primary, "postgres", "SELECT count(*) FROM pg_replication_slots").await, "0");
    // The remedy it names.
    values(&pair.primary, "postgres", "ALTER SYSTEM SET synchronous_standby_names = ''").await;
    values(&pair.primary, "postgres", "SELECT pg_reload_conf()").await;
    waiting.await.unwrap().unwrap();
    relay.signal(libc::SIGHUP);
    relay.wait_state("streaming").await;
    pair.equal_after_catching_up(&["orders"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_is_away_holds_commits_and_its_return_releases_them() {
    let mut pair = Pair::start(18).await;
    pair.on_both(TABLES).await;
    let relay = pair.relay("").await;
    pair.wait_for_standbys("FIRST 1 (standby1)").await;
    pair.standby.kill9();
    let commit =
        try_run(&pair.primary, "shop", "SET synchronous_commit = remote_apply; INSERT INTO orders VALUES (1, 'x')");
    tokio::pin!(commit);
    let early = tokio::time::timeout(Duration::from_secs(1), &mut commit).await;
    assert!(early.is_err(), "a commit returned while the standby was down");
    let report = relay.wait_state("waiting").await;
    assert!(report["last_error"].as_str().is_some_and(|text| !text.is_empty()), "{report}");
    pair.standby.start_again().await.unwrap();
    commit.await.unwrap();
    assert_eq!(value(&pair.standby, "shop", "SELECT count(*) FROM orders").await, "1");
}
