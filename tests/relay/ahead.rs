//! A large transaction is written while it is open on the primary, and commits in its turn: nothing of it is seen before, whatever
//! it does or suffers meanwhile.

use walrelay::throwaway::Options;
use walrelay::wire::sql::SqlClient;

use super::harness::{Pair, Relay, client, eventually, value};

/// Streamed from 64 kB on, and written ahead from a good hundred.
const MEMORY_LIMIT: &str = "memory_limit = \"1MB\"";

async fn pair(major: u32) -> Pair {
    let options = Options::default().with("logical_decoding_work_mem", "64kB");
    let pair = Pair::with(major, options, major, Options::default()).await;
    pair.on_both(
        "CREATE TABLE t (a int PRIMARY KEY, b text); CREATE TABLE small (id int PRIMARY KEY);
         CREATE TABLE keyless (a int, b text); ALTER TABLE keyless REPLICA IDENTITY FULL",
    )
    .await;
    pair
}

fn insert(from: u32, to: u32) -> String {
    format!("INSERT INTO t SELECT i, repeat(md5(i::text), 8) FROM generate_series({from}, {to}) i;")
}

/// A session of the primary inside a transaction that has run `sql`.
async fn open_transaction(pair: &Pair, sql: &str) -> SqlClient {
    let session = client(&pair.primary, "shop").await;
    session.batch_execute(&format!("BEGIN; {sql}")).await.unwrap();
    session
}

/// Waits until the standby holds at least this much of an open transaction's rows.
async fn wait_written(pair: &Pair, table: &str, bytes: u64) {
    let sql = format!(
        "SELECT pg_catalog.pg_relation_size('{table}') >= {bytes} AND EXISTS (SELECT FROM pg_stat_activity \
         WHERE application_name = 'walrelay standby1 ahead' AND backend_xid IS NOT NULL)"
    );
    eventually("rows of the open transaction on the standby", || async {
        (value(&pair.standby, "shop", &sql).await == "t").then_some(())
    })
    .await;
}

async fn count(pair: &Pair, table: &str) -> String {
    value(&pair.standby, "shop", &format!("SELECT count(*) FROM {table}")).await
}

fn thrown_away(relay: &Relay) -> usize {
    relay.log().matches("what was written of an open transaction is thrown away").count()
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_on_the_standby_before_the_commit_and_seen_only_behind_it() {
    for major in [14, 18] {
        let pair = pair(major).await;
        let relay = pair.relay(MEMORY_LIMIT).await;
        let large = open_transaction(&pair, &insert(1, 20_000)).await;
        wait_written(&pair, "t", 4_000_000).await;
        // Others commit in between, and are seen at once.
        pair.on_primary("INSERT INTO small VALUES (1)").await;
        pair.caught_up("standby1").await;
        assert_eq!((count(&pair, "small").await, count(&pair, "t").await), ("1".to_owned(), "0".to_owned()));
        large
            .batch_execute("UPDATE t SET b = 'x' WHERE a % 3 = 0; DELETE FROM t WHERE a % 5 = 0; COMMIT")
            .await
            .unwrap();
        pair.on_primary("INSERT INTO small VALUES (2); UPDATE t SET b = 'later' WHERE a = 1").await;
        pair.equal_after_catching_up(&["t", "small"]).await;
        assert_eq!(thrown_away(&relay), 0, "{}", relay.log());
        assert_eq!(value(&pair.standby, "shop", "SELECT count(*) FROM t").await, "16000");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_rolled_back_is_thrown_away() {
    let pair = pair(18).await;
    let relay = pair.relay(MEMORY_LIMIT).await;
    let large = open_transaction(&pair, &insert(1, 10_000)).await;
    wait_written(&pair, "t", 1_000_000).await;
    large.batch_execute("ROLLBACK").await.unwrap();
    pair.on_primary(&insert(5, 6)).await;
    pair.equal_after_catching_up(&["t"]).await;
    assert_eq!(thrown_away(&relay), 1, "{}", relay.log());

    // A part of it: the whole is begun anew.
    let sql = format!("{} SAVEPOINT s; {}", insert(20_001, 30_000), insert(30_001, 40_000));
    let large = open_transaction(&pair, &sql).await;
    wait_written(&pair, "t", 6_000_000).await;
    large.batch_execute(&format!("ROLLBACK TO s; {}", insert(50_001, 60_000))).await.unwrap();
    wait_written(&pair, "t", 1_000_000).await;
    large.batch_execute("COMMIT").await.unwrap();
    pair.equal_after_catching_up(&["t"]).await;
    assert_eq!(count(&pair, "t").await, "20002");
}

#[tokio::test(flavor = "multi_thread")]
async fn crashes_while_it_is_written_lose_and_repeat_nothing() {
    let pair = pair(18).await;
    let mut relay = pair.relay(MEMORY_LIMIT).await;
    let large = open_transaction(&pair, &insert(1, 10_000)).await;
    wait_written(&pair, "t", 1_000_000).await;
    relay.kill9();
    pair.on_primary("INSERT INTO small VALUES (1)").await;
    relay.start_again().await;
    pair.caught_up("standby1").await;
    large.batch_execute(&insert(10_001, 20_000)).await.unwrap();
    wait_written(&pair, "t", 1_000_000).await;
    pair.on_standby(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'walrelay standby1 ahead'",
    )
    .await;
    large.batch_execute("COMMIT").await.unwrap();
    pair.equal_after_catching_up(&["t", "small"]).await;
    assert_eq!(count(&pair, "t").await, "20000");
}

/// Two equal rows of a keyless table: which of them each transaction takes is the standby's choice, and may be the same one.
#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_waits_for_the_open_one_gets_through() {
    let pair = pair(18).await;
    pair.on_primary("INSERT INTO keyless VALUES (1, 'same'), (1, 'same')").await;
    let relay = pair.relay(MEMORY_LIMIT).await;
    let delete = "DELETE FROM keyless WHERE ctid = (SELECT ctid FROM keyless ORDER BY ctid LIMIT 1)";
    let large = open_transaction(&pair, &format!("{delete}; {}", insert(1, 10_000))).await;
    wait_written(&pair, "t", 1_000_000).await;
    pair.on_primary("DELETE FROM keyless WHERE ctid = (SELECT ctid FROM keyless ORDER BY ctid DESC LIMIT 1)").await;
    pair.caught_up("standby1").await;
    assert_eq!(thrown_away(&relay), 1, "{}", relay.log());
    large.batch_execute("COMMIT").await.unwrap();
    pair.equal_after_catching_up(&["t", "keyless"]).await;
    assert_eq!(count(&pair, "keyless").await, "0");
}

/// A row that the standby lacks is named by the usual way, and once mended it goes on.
#[tokio::test(flavor = "multi_thread")]
async fn what_fails_while_it_is_open_is_named_once_it_is_whole() {
    let pair = pair(18).await;
    pair.on_primary("INSERT INTO t VALUES (1, 'one')").await;
    let mut relay = pair.relay(MEMORY_LIMIT).await;
    pair.caught_up("standby1").await;
    pair.on_standby("SET session_replication_role = replica; DELETE FROM t WHERE a = 1").await;
    let large = open_transaction(&pair, &format!("DELETE FROM t WHERE a = 1; {}", insert(2, 10_000))).await;
    large.batch_execute("COMMIT").await.unwrap();
    let stopped = relay.wait("standby1", "an error that names the row", |report| {
        report["last_error"].as_str().is_some_and(|error| error.contains("public.t") && error.contains("(a=1)"))
    });
    stopped.await;
    pair.on_standby("SET session_replication_role = replica; INSERT INTO t VALUES (1, 'one')").await;
    relay.kill9();
    relay.start_again().await;
    pair.equal_after_catching_up(&["t"]).await;
    assert_eq!(count(&pair, "t").await, "9999");
}

/// The last thing that happens to its session before the commit is an error, of a kind that behind a commit would say nothing of it.
#[tokio::test(flavor = "multi_thread")]
async fn an_error_of_any_kind_before_its_commit_sends_it_the_usual_way_and_interrupts_nothing() {
    for code in ["XX000", "53400", "57014", "killed"] {
        let pair = pair(18).await;
        let fails = format!(
            "CREATE FUNCTION fails(a int) RETURNS bool LANGUAGE plpgsql AS $$ BEGIN \
             IF a = 20000 AND current_setting('application_name') LIKE '% ahead' THEN \
             RAISE EXCEPTION 'not here' USING ERRCODE = '{code}'; END IF; RETURN true; END $$; \
             ALTER TABLE t ADD CHECK (public.fails(a))"
        );
        if code != "killed" {
            pair.on_standby(&fails).await;
        }
        let relay = pair.relay(MEMORY_LIMIT).await;
        let large = open_transaction(&pair, &insert(1, 19_990)).await;
        wait_written(&pair, "t", 4_000_000).await;
        if code == "killed" {
            let kill =
                "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE application_name LIKE '% ahead'";
            assert_eq!(value(&pair.standby, "shop", kill).await, "t");
            eventually("it is noticed before the commit", || async { (thrown_away(&relay) == 1).then_some(()) }).await;
        }
        large.batch_execute(&format!("{}; COMMIT", insert(19_991, 20_000))).await.unwrap();
        pair.equal_after_catching_up(&["t"]).await;
        let report = relay.wait_state("streaming").await;
        assert_eq!(report["interruptions"], 0, "{code}: {}", relay.log());
    }
}
