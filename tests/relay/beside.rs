//! `apply_connections`: batches beside each other, and readers of the standby who never see one commit before another that came
//! before it, nor a part of one, whatever dies meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use walrelay::throwaway::{Options, Server};

use super::harness::{PATIENCE, Pair, Relay, client, eventually, from_environment, try_run, value};

/// Keys: batches of 5,000 transactions, each of one key, meet again only after four.
const KEYS: u64 = 20_000;
const CHECKS_A_CALL: u64 = 1_000;
/// Transactions between two looks whether the checks are over.
const STEP: u64 = 5_000;

const TABLES: &str = "CREATE TABLE a (id int PRIMARY KEY, v int NOT NULL); CREATE TABLE b (id int PRIMARY KEY, v int NOT NULL);
    INSERT INTO a SELECT i, 0 FROM generate_series(0, 19999) i; INSERT INTO b SELECT i, 0 FROM generate_series(0, 19999) i";
/// Transaction `i` moves one from `a` to `b`, at one key after another.
const WORK: &str = "CREATE PROCEDURE work(first int, last int) LANGUAGE plpgsql AS $$ BEGIN
    FOR i IN first..last LOOP
      UPDATE a SET v = v - 1 WHERE id = i % 20000; UPDATE b SET v = v + 1 WHERE id = i % 20000; COMMIT;
    END LOOP; END $$";
/// A key's sum is 0; a key has been at most once less, and never more often, than one before it. Each check has a snapshot of its own.
const CHECK: &str = "DO $$ DECLARE k int; n int; wrong text; BEGIN
    FOR i IN 1..1000 LOOP
      k := floor(random() * 20000); n := floor(random() * (k + 1));
      SELECT format('%s: %s, %s; %s: %s, %s', k, ka.v, kb.v, n, na.v, nb.v) INTO wrong FROM a ka, b kb, a na, b nb
        WHERE ka.id = k AND kb.id = k AND na.id = n AND nb.id = n
        AND NOT (ka.v + kb.v = 0 AND na.v + nb.v = 0 AND nb.v - kb.v IN (0, 1));
      IF wrong IS NOT NULL THEN RAISE EXCEPTION 'inconsistent: %', wrong; END IF;
    END LOOP; END $$";

/// Where the record stands, on a session that may be gone.
async fn record(server: &Server) -> Result<Option<String>, tokio_postgres::Error> {
    let rows = try_run(server, "shop", "SELECT lsn FROM walrelay.progress").await?;
    Ok(rows.into_iter().flatten().flatten().next())
}

/// One call of checks; whether the record moved meanwhile, so that they had something to see.
async fn call(server: &Server) -> Result<bool, tokio_postgres::Error> {
    let before = record(server).await?;
    try_run(server, "shop", CHECK).await?;
    Ok(record(server).await? != before)
}

/// Checks so often, and until the record moved in a call of these.
async fn read(server: &Server, checks: u64) {
    let (calls, began, mut done, mut has_moved) = ((checks / CHECKS_A_CALL).max(1), Instant::now(), 0, false);
    while done < calls || !has_moved {
        assert!(done < calls || began.elapsed() < PATIENCE, "the record did not move in {done} calls");
        has_moved |= call(server).await.unwrap();
        done += 1;
    }
}

/// Whether the relay is so near that what is added shows the readers something, and is not left for the end.
const IS_NEAR: &str = "SELECT coalesce(max(pg_wal_lsn_diff(pg_current_wal_insert_lsn(), replay_lsn)) < 8000000, false)::text \
     FROM pg_stat_replication WHERE application_name = 'standby1'";

#[tokio::test(flavor = "multi_thread")]
async fn readers_see_whole_transactions_in_order_whatever_dies() {
    let (backlog, checks) = (3 * KEYS, from_environment("WALRELAY_TEST_CHECKS", 100_000));
    let lazy = Options::default().with("wal_writer_delay", "10s").with("wal_writer_flush_after", "1GB");
    let mut pair = Pair::with(18, Options::default(), 18, lazy).await;
    pair.on_both(TABLES).await;
    pair.on_primary(WORK).await;
    let mut relay = pair.relay("initial_copy = false").await;
    relay.wait_state("streaming").await;
    relay.stop().await;
    let primary = client(&pair.primary, "shop").await;
    primary.batch_execute("SET synchronous_commit = off").await.unwrap();
    primary.batch_execute(&format!("CALL work(0, {})", backlog - 1)).await.unwrap();
    let relay = Relay::start(&format!("{}apply_connections = 4\n", pair.config("initial_copy = false"))).await;
    // As much again, and on behind the relay until the checks are over: what does not move shows them nothing.
    let are_over = Arc::new(AtomicBool::new(false));
    let stop = Arc::clone(&are_over);
    let more = tokio::spawn(async move {
        let mut next = backlog;
        while next < 2 * backlog || !stop.load(Ordering::Relaxed) {
            if next >= 2 * backlog {
                eventually("the relay is near, or nobody checks any more", || async {
                    let is_near = primary.query_one(IS_NEAR, &[]).await.unwrap().get::<_, &str>(0) == "true";
                    (is_near || stop.load(Ordering::Relaxed)).then_some(())
                })
                .await;
            }
            primary.batch_execute(&format!("CALL work({next}, {})", next + STEP - 1)).await.unwrap();
            next += STEP;
        }
        next
    });
    let used = "SELECT count(*) > 2 FROM pg_replication_origin_status WHERE local_lsn <> '0/0'";
    eventually("several connections are used", || async {
        (value(&pair.standby, "shop", used).await == "t").then_some(())
    })
    .await;
    read(&pair.standby, checks / 20).await;
    pair.standby.kill9();
    pair.standby.start_again().await.unwrap();
    let at_the_kill = record(&pair.standby).await.unwrap();
    eventually("rows come again", || async { (record(&pair.standby).await.unwrap() != at_the_kill).then_some(()) })
        .await;
    read(&pair.standby, checks - checks / 20).await;
    are_over.store(true, Ordering::Relaxed);
    let transactions = more.await.unwrap();
    relay.wait_state("streaming").await;
    pair.equal_after_catching_up(&["a", "b"]).await;
    assert_eq!(value(&pair.standby, "shop", "SELECT sum(v) FROM b").await, transactions.to_string());
}

/// Waits until somebody has written the row, and then for who did.
const MEET: &str = "DO $$ BEGIN
    WHILE (SELECT xmax::text = '0' FROM a WHERE id = 14000) LOOP PERFORM pg_sleep(0.001); END LOOP;
    UPDATE a SET v = 5 WHERE id = 14000; END $$";

/// A user of the standby holds a row that a batch needs, and waits for one that the batch held beside it has written: nobody but the
/// relay can see that this one waits for the first. It makes way, and soon.
#[tokio::test(flavor = "multi_thread")]
async fn a_user_and_a_held_batch_that_wait_for_each_other_come_free() {
    const BOUND: Duration = Duration::from_secs(15);
    let pair = Pair::start(18).await;
    pair.on_both(TABLES).await;
    pair.on_primary(WORK).await;
    let mut relay = pair.relay("initial_copy = false").await;
    relay.stop().await;
    let primary = client(&pair.primary, "shop").await;
    primary.batch_execute("SET synchronous_commit = off").await.unwrap();
    primary.batch_execute("CALL work(0, 19999)").await.unwrap();
    let user = client(&pair.standby, "shop").await;
    user.batch_execute("SET session_replication_role = replica").await.unwrap();
    // 5,000 transactions apart: of the batch before, wherever the first one ends.
    user.batch_execute("BEGIN; UPDATE a SET v = 5 WHERE id = 9000").await.unwrap();
    let relay = Relay::start(&format!("{}apply_connections = 4\n", pair.config("initial_copy = false"))).await;
    let began = Instant::now();
    tokio::time::timeout(BOUND, user.batch_execute(MEET)).await.expect("the held batch made no way").unwrap();
    user.batch_execute("COMMIT").await.unwrap();
    println!("came free after {:?}", began.elapsed());
    relay.wait_state("streaming").await;
    pair.equal_after_catching_up(&["a", "b"]).await;
    assert!(relay.log().contains("batches go one behind the other for a while"), "nothing was held: {}", relay.log());
}
