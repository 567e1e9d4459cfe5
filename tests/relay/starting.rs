//! Starts that meet somebody else's work: transactions that the slot waits for, migrations that want the copy's tables, tables that come,
//! go or change their names meanwhile. Each goes on by itself, or says what keeps it.

use super::harness::{Pair, Relay, client, eventually, oldest_and_newest, value, values};

const TABLES: &str = "CREATE TABLE orders (id int PRIMARY KEY, item text)";

/// A relay that makes its slot, which waits for a transaction of the session's that has written a row of `orders`.
async fn waiting_start(pair: &Pair, session: &tokio_postgres::Client) -> Relay {
    session.batch_execute("BEGIN; INSERT INTO orders VALUES (2, 'open')").await.unwrap();
    let relay = Relay::start(&pair.config("")).await;
    waits(&relay, "creating the replication slot waits").await;
    relay
}

async fn waits(relay: &Relay, text: &str) {
    let says = |report: &serde_json::Value| report["waiting_for"].as_str().is_some_and(|found| found.contains(text));
    relay.wait("standby1", text, says).await;
}

/// The walsender of a start that was killed goes on making the slot until the transactions end that it waits for.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_is_cut_off_while_its_slot_is_made_goes_on_by_itself() {
    for major in oldest_and_newest() {
        let pair = Pair::start(major).await;
        pair.on_both(TABLES).await;
        pair.on_primary("INSERT INTO orders VALUES (1, 'x')").await;
        let session = client(&pair.primary, "shop").await;
        let mut relay = waiting_start(&pair, &session).await;
        relay.kill9();
        let mut drop = std::process::Command::new(env!("CARGO_BIN_EXE_walrelay"));
        let output = drop.args(["drop", "standby1", "--yes", "--config"]).arg(relay.config_path()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains("is still being made (walsender process"), "{major}: {said}");
        relay.start_again().await;
        waits(&relay, "waits for the transactions that ran when").await;
        session.batch_execute("COMMIT").await.unwrap();
        relay.wait_state("streaming").await;
        pair.on_primary("INSERT INTO orders VALUES (3, 'after')").await;
        pair.equal_after_catching_up(&["orders"]).await;
    }
}

/// The commit waits for the standby, and the slot for the commit: said each time, until somebody takes the name out.
#[tokio::test(flavor = "multi_thread")]
async fn a_slot_in_the_making_that_a_waiting_commit_holds_up_is_refused_again_after_a_restart() {
    let pair = Pair::start(18).await;
    pair.on_both(TABLES).await;
    let session = client(&pair.primary, "shop").await;
    let set_names = |names: &'static str| {
        let sql = format!("ALTER SYSTEM SET synchronous_standby_names = '{names}'");
        let primary = &pair.primary;
        async move {
            values(primary, "postgres", &sql).await;
            values(primary, "postgres", "SELECT pg_reload_conf()").await;
        }
    };
    set_names("standby1").await;
    let mut relay = waiting_start(&pair, &session).await;
    let commit = tokio::spawn(async move { session.batch_execute("COMMIT").await.unwrap() });
    relay.fails_with(&["synchronous_standby_names", "for ever"]).await;
    relay.stop().await;
    relay.start_again().await;
    relay.fails_with(&["synchronous_standby_names", "for ever"]).await;
    set_names("").await;
    commit.await.unwrap();
    relay.signal(libc::SIGHUP);
    relay.wait_state("streaming").await;
    pair.equal_after_catching_up(&["orders"]).await;
}

/// The slot waits for the migration, and the migration for the copy's lock on the table: the copy makes way.
#[tokio::test(flavor = "multi_thread")]
async fn a_migration_that_the_slot_waits_for_gets_the_tables_that_are_to_be_copied() {
    for major in oldest_and_newest() {
        let pair = Pair::start(major).await;
        pair.on_both(TABLES).await;
        pair.on_standby("ALTER TABLE orders ADD COLUMN note text").await;
        let session = client(&pair.primary, "shop").await;
        let relay = waiting_start(&pair, &session).await;
        session
            .batch_execute("ALTER TABLE orders ADD COLUMN note text; UPDATE orders SET note = 'new'; COMMIT")
            .await
            .unwrap();
        relay.wait_state("streaming").await;
        pair.on_primary("INSERT INTO orders VALUES (3, 'after', 'too')").await;
        pair.equal_after_catching_up(&["orders"]).await;
    }
}

/// Listed before the slot, written to before it, and neither in a plan nor in the stream.
#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_comes_while_the_slot_is_made_is_copied_too() {
    let pair = Pair::start(18).await;
    let partition =
        |from: u32| format!("CREATE TABLE p{from} PARTITION OF p FOR VALUES FROM ({from}) TO ({})", from + 100);
    pair.on_both(TABLES).await;
    pair.on_both("CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id)").await;
    pair.on_both(&partition(0)).await;
    pair.on_standby(&partition(100)).await;
    pair.on_primary("INSERT INTO p VALUES (1)").await;
    let session = client(&pair.primary, "shop").await;
    let relay = waiting_start(&pair, &session).await;
    // Whatever lock on its parent the copy holds.
    pair.on_primary(
        "CREATE TABLE p100 (LIKE p INCLUDING ALL); ALTER TABLE p ATTACH PARTITION p100 FOR VALUES FROM (100) TO (200)",
    )
    .await;
    pair.on_primary("INSERT INTO p VALUES (101)").await;
    session.batch_execute("COMMIT").await.unwrap();
    relay.wait_state("streaming").await;
    pair.on_primary("INSERT INTO orders VALUES (3, 'after')").await;
    pair.equal_after_catching_up(&["orders", "p"]).await;
}

/// A table is listed, and has another name by the time it is to be published.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_renamed_under_the_publication_is_no_reason_to_stop() {
    let pair = Pair::start(18).await;
    pair.on_both(TABLES).await;
    pair.on_both("CREATE TABLE orders_new (id int PRIMARY KEY, item text)").await;
    pair.on_primary("INSERT INTO orders_new VALUES (1, 'x')").await;
    let session = client(&pair.primary, "shop").await;
    session.batch_execute("BEGIN; DROP TABLE orders; ALTER TABLE orders_new RENAME TO orders").await.unwrap();
    let relay = Relay::start(&pair.config("")).await;
    eventually("it waits for the lock", || async {
        let sql =
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'CREATE PUBLICATION%'";
        (value(&pair.primary, "shop", sql).await == "1").then_some(())
    })
    .await;
    session.batch_execute("COMMIT").await.unwrap();
    relay.wait_state("streaming").await;
    pair.equal_after_catching_up(&["orders"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_table_without_a_place_on_the_standby_is_no_reason_to_stop_after_a_fault() {
    let pair = Pair::start(18).await;
    pair.on_both(TABLES).await;
    let mut relay = pair.relay("").await;
    pair.on_primary("CREATE TABLE later (id int PRIMARY KEY); INSERT INTO later VALUES (1)").await;
    let walsender = "SELECT pg_terminate_backend(pid) FROM pg_stat_replication";
    values(&pair.primary, "shop", walsender).await;
    eventually("it is told", || async { relay.log().contains("new tables wait for the next start").then_some(()) })
        .await;
    relay.wait_state("streaming").await;
    pair.on_primary("INSERT INTO orders VALUES (1, 'goes on')").await;
    pair.equal_after_catching_up(&["orders"]).await;
    // A start that somebody asks for says what is missing, and takes the table once it is there.
    relay.stop().await;
    relay.start_again().await;
    relay.fails_with(&["later", "is missing"]).await;
    pair.on_standby("CREATE TABLE later (id int PRIMARY KEY)").await;
    relay.signal(libc::SIGHUP);
    relay.wait_state("streaming").await;
    pair.equal_after_catching_up(&["orders", "later"]).await;
}

/// What a copy holds is known without another, and one that is not whole is not taken for it.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_copy_a_plan_that_is_not_finished_is_refused() {
    let pair = Pair::start(18).await;
    pair.on_both(TABLES).await;
    let mut relay = pair.relay("").await;
    relay.stop().await;
    pair.on_standby("INSERT INTO walrelay.copy (pipeline, schema_name, table_name, state) VALUES ('standby1', 'public', 'x', 'pending')")
        .await;
    relay.rewrite_config(&pair.config("initial_copy = false"));
    relay.start_again().await;
    relay.fails_with(&["initial_copy = false", "is not finished"]).await;
    pair.on_standby("DELETE FROM walrelay.copy WHERE table_name = 'x'").await;
    relay.signal(libc::SIGHUP);
    relay.wait_state("streaming").await;
}
