//! `prefetch_connections`: rows end as they do without, by whatever key they are found; the sessions read index and heap by the key; and
//! nothing that becomes of them, or of the tables under them, disturbs a batch.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio_postgres::error::SqlState;
use walrelay::throwaway::Options;
use walrelay::wire::sql::SqlClient;

use super::Replay;
use super::depth::{batch, send};
use crate::harness::{Pair, client, eventually, oldest_and_newest};

/// Rows of a table at first: thirty times what the standby keeps in memory.
const ROWS: u32 = 60_000;
/// Sessions that read ahead.
const CONNECTIONS: usize = 3;
/// Work that is repeated until rows were read ahead ends then, or fails.
const ROUNDS_LIMIT: u32 = 60;

const SESSIONS: &str = "SELECT pid FROM pg_stat_activity WHERE application_name LIKE '% prefetch%'";

/// Keys of one column and of several, of text that needs quoting, in parts, with another index that looks at what changes.
const TABLES: &[&str] = &["by_int", "by_text", "by_two", "in_parts", "constrained"];

fn schema() -> String {
    let rows = format!("generate_series(1, {ROWS}) i");
    format!(
        "CREATE TABLE by_int (k int PRIMARY KEY, v int, note text);
         INSERT INTO by_int SELECT i, 0, repeat('x', 100) FROM {rows};
         CREATE TABLE by_text (k text PRIMARY KEY, v int, note text);
         INSERT INTO by_text SELECT 'key \"' || i || '\", {{\\}}', 0, repeat('x', 100) FROM {rows};
         CREATE TABLE by_two (note text, k uuid, v int, part char(4), PRIMARY KEY (part, k));
         INSERT INTO by_two SELECT repeat('x', 100), md5(i::text)::uuid, 0, 'p' || i % 7 FROM {rows};
         CREATE TABLE in_parts (k int PRIMARY KEY, v int, note text) PARTITION BY HASH (k);
         CREATE TABLE in_parts_0 PARTITION OF in_parts FOR VALUES WITH (MODULUS 2, REMAINDER 0);
         CREATE TABLE in_parts_1 PARTITION OF in_parts FOR VALUES WITH (MODULUS 2, REMAINDER 1);
         INSERT INTO in_parts SELECT i, 0, repeat('x', 100) FROM {rows};
         CREATE TABLE constrained (k int PRIMARY KEY, v int, u int UNIQUE, note text);
         INSERT INTO constrained SELECT i, 0, i, repeat('x', 100) FROM {rows}"
    )
}

/// Transactions of a round: rows all over the tables are updated, moved, deleted and inserted.
fn work(round: u32) -> Vec<String> {
    let some = |table: &str, of: u32| format!("hashtext({table}::text) % {of} = {}", round as i32 % 5);
    let mut work: Vec<String> =
        TABLES.iter().map(|table| format!("UPDATE {table} SET v = v + 1 WHERE {}", some("k", 97))).collect();
    let first = ROWS + round * 10_000;
    work.push(format!("UPDATE by_int SET k = -k WHERE k > 0 AND {}", some("k", 301)));
    work.push(format!("UPDATE constrained SET u = u + 1000000, v = v + 1 WHERE {}", some("k", 211)));
    for table in ["by_int", "in_parts"] {
        work.push(format!("DELETE FROM {table} WHERE {}", some("k", 199)));
        work.push(format!("INSERT INTO {table} SELECT i, 0, 'new' FROM generate_series({first} + 1, {first} + 300) i"));
    }
    work.push(format!("DELETE FROM by_text WHERE {}", some("k", 199)));
    work
}

/// A standby with a tenth of the memory that a table needs.
async fn replay(major: u32, options: Options) -> Replay {
    let pair = Pair::with(major, Options::default(), major, options.with("shared_buffers", "1MB")).await;
    let mut replay = Replay::unlike(pair, &schema(), &schema()).await;
    replay.on_standby("VACUUM (ANALYZE)").await;
    replay.prefetch_connections = CONNECTIONS;
    replay
}

/// Writes a round and applies its transactions as batches of their own.
async fn round(replay: &Replay, worker: &mut walrelay::sink::worker::Worker, at: u32, depth: usize) {
    for statement in work(at) {
        replay.on_primary(&statement).await;
    }
    let batches = replay.capture().await.into_iter().map(|transaction| batch(vec![transaction])).collect();
    send(worker, batches, depth).await.1.unwrap();
}

async fn all_equal(replay: &Replay) {
    for table in TABLES {
        replay.equal(&format!("SELECT * FROM {table}")).await;
    }
    assert_eq!(replay.fallbacks.counts(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_end_as_they_do_without() {
    // Each takes long, and what is sent is the same to all.
    let ends = oldest_and_newest();
    let (oldest, newest) = (ends[0], ends[ends.len() - 1]);
    for (major, connections, is_binary) in [(oldest, 4, true), (newest, 1, true), (newest, 4, false)] {
        let mut replay = replay(major, Options::default()).await.in_form(is_binary).await;
        replay.apply_connections = connections;
        let mut worker = replay.worker().await;
        let mut at = 0;
        while at < 2 || replay.prefetching.report().rows < 1000 {
            assert!(at < ROUNDS_LIMIT, "{major}: nothing was read ahead: {:?}", replay.prefetching.report());
            round(&replay, &mut worker, at, 4).await;
            at += 1;
        }
        drop(worker);
        all_equal(&replay).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn they_read_index_and_heap_by_the_key() {
    let told = Options::default()
        .with("session_preload_libraries", "auto_explain")
        .with("auto_explain.log_min_duration", "0")
        .with("auto_explain.log_analyze", "on")
        .with("auto_explain.log_buffers", "on")
        .with("auto_explain.log_parameter_max_length", "0")
        .with("log_parameter_max_length", "0");
    let mut replay = replay(18, told).await;
    let mut worker = replay.worker().await;
    let is_told = |plans: &[String], index: &str| plans.iter().any(|plan| plan.contains(index));
    let indexes = [
        "by_int_pkey on by_int t",
        "by_text_pkey on by_text t",
        "by_two_pkey on by_two t",
        "in_parts_1_pkey on in_parts_1 t",
    ];
    let mut plans = Vec::new();
    for at in 0.. {
        assert!(at < ROUNDS_LIMIT, "not every table was read ahead: {plans:#?}");
        round(&replay, &mut worker, at, 4).await;
        let log = replay._pair.standby.log_tail(20_000);
        let told = log
            .split("LOG:  duration:")
            .filter(|plan| plan.contains("Query Text: SELECT pg_catalog.count(*) FROM unnest("));
        plans = told.map(str::to_owned).collect();
        if indexes.iter().all(|index| is_told(&plans, index)) {
            break;
        }
    }
    for plan in &plans {
        assert!(
            plan.contains("Index Scan using") && !plan.contains("Index Only") && !plan.contains("Seq Scan"),
            "{plan}"
        );
    }
    assert!(plans.iter().any(|plan| plan.contains(" read=")), "no block was read: {plans:#?}");
    drop(worker);
    all_equal(&replay).await;
}

/// Over and over: their sessions are ended, and the tables locked and changed, which must wait for none of them for long.
async fn disturb(user: SqlClient, is_done: Arc<AtomicBool>) -> u32 {
    let mut times = 0;
    user.batch_execute("SET lock_timeout = '10s'; SET search_path = public").await.unwrap();
    let is_over = || is_done.load(Ordering::Relaxed);
    while !is_over() {
        eventually("a session reads ahead", || async {
            let rows = user.query(SESSIONS, &[]).await.unwrap();
            (is_over() || !rows.is_empty()).then_some(())
        })
        .await;
        for sql in [
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE '% prefetch%'",
            "BEGIN; LOCK TABLE by_int, by_text; COMMIT",
            "ALTER TABLE by_two ADD COLUMN mine int",
            "REINDEX TABLE by_text",
            "ALTER TABLE by_two DROP COLUMN mine",
            "CREATE INDEX again ON in_parts (v); DROP INDEX again",
        ] {
            // Who locks one partition after the other may meet a batch that goes the other way: the server then ends one of the two.
            while let Err(error) = user.batch_execute(sql).await {
                assert_eq!(error.code(), Some(&SqlState::T_R_DEADLOCK_DETECTED), "{sql}: {error:?}");
            }
        }
        times += 1;
    }
    times
}

#[tokio::test(flavor = "multi_thread")]
async fn what_becomes_of_them_and_of_the_tables_disturbs_no_batch() {
    let mut replay = replay(18, Options::default()).await;
    let mut worker = replay.worker().await;
    let is_done = Arc::new(AtomicBool::new(false));
    let user = client(&replay._pair.standby, "shop").await;
    let user = tokio::spawn(disturb(user, Arc::clone(&is_done)));
    let mut at = 0;
    while at < 8 || replay.prefetching.report().rows == 0 {
        assert!(at < ROUNDS_LIMIT, "nothing was read ahead");
        round(&replay, &mut worker, at, 4).await;
        // Behind rows that are being looked for.
        replay.on_primary("UPDATE in_parts SET v = 7 WHERE k % 11 = 0; TRUNCATE in_parts, by_text").await;
        replay.on_primary("INSERT INTO by_text SELECT 'again ' || i, i, 'new' FROM generate_series(1, 5000) i").await;
        let batches = replay.capture().await.into_iter().map(|transaction| batch(vec![transaction])).collect();
        send(&mut worker, batches, 4).await.1.unwrap();
        at += 1;
    }
    is_done.store(true, Ordering::Relaxed);
    assert!(user.await.unwrap() > 0);
    drop(worker);
    all_equal(&replay).await;
    // They end with the sink.
    eventually("no session is left", || async { replay.found(SESSIONS).await.is_empty().then_some(()) }).await;
}
