//! What the primary was told to be durable is there after a crash of the standby, whose own WAL writer is kept from helping; and the
//! loss of our sessions alone loses and repeats nothing. `WALRELAY_TEST_KILLS` and `WALRELAY_TEST_SEED` set the run.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use walrelay::config::ServerUrl;
use walrelay::throwaway::Options;
use walrelay::wire::Session;
use walrelay::wire::sql::connect;

use super::harness::{Pair, Relay, eventually, from_environment, major_versions, value, values};

const TABLES: &str = "CREATE TABLE accounts (id int PRIMARY KEY, balance bigint NOT NULL);
    CREATE TABLE history (id bigint PRIMARY KEY, account int NOT NULL, filler text)";
const WRITERS: u64 = 3;
const RECORD: &str = "SELECT lsn FROM walrelay.progress";

/// Writers on the primary that never look at the standby.
struct Load {
    stop: AtomicBool,
    commits: AtomicU64,
}

impl Load {
    async fn go_on(&self) {
        let before = self.commits.load(Ordering::Relaxed);
        eventually("commits go on", || async { (self.commits.load(Ordering::Relaxed) > before + 20).then_some(()) })
            .await;
    }
}

async fn write(load: Arc<Load>, primary: ServerUrl, writer: u64, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed ^ writer);
    let session = connect(&primary, &Session::new("load")).await.unwrap();
    for at in 0.. {
        if load.stop.load(Ordering::Relaxed) {
            break;
        }
        let (id, account) = (writer * 1_000_000_000 + at, random.random_range(1..=100));
        let sql = format!(
            "BEGIN; UPDATE accounts SET balance = balance + 1 WHERE id = {account}; \
             INSERT INTO history SELECT {id}, {account}, repeat('x', {}); COMMIT",
            random.random_range(0..300)
        );
        session.batch_execute(&sql).await.unwrap();
        load.commits.fetch_add(1, Ordering::Relaxed);
    }
}

/// A pair under load with a relay between. The standby's WAL writer comes too late for any test.
struct Scene {
    pair: Pair,
    relay: Relay,
    load: Arc<Load>,
    writers: Vec<tokio::task::JoinHandle<()>>,
}

impl Scene {
    async fn begin(major: u32, seed: u64) -> Self {
        let lazy = Options::default().with("wal_writer_delay", "10s").with("wal_writer_flush_after", "1GB");
        let pair = Pair::with(major, Options::default(), major, lazy).await;
        pair.on_both(TABLES).await;
        pair.on_primary("INSERT INTO accounts SELECT i, 0 FROM generate_series(1, 100) i").await;
        let relay = pair.relay("").await;
        let load = Arc::new(Load { stop: AtomicBool::new(false), commits: AtomicU64::new(0) });
        let primary = pair.primary.server_url("shop").unwrap();
        let writers =
            (0..WRITERS).map(|writer| tokio::spawn(write(Arc::clone(&load), primary.clone(), writer, seed))).collect();
        Self { pair, relay, load, writers }
    }

    /// What the slot has been told, as a condition on the record: what is confirmed is there.
    async fn confirmed(&self) -> String {
        let sql = "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = 'walrelay_standby1'";
        value(&self.pair.primary, "postgres", sql).await
    }

    /// Both sessions are there that began behind this moment.
    async fn wait_new_sessions(&self, before: &str) {
        let sql = format!(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name ~ '^walrelay standby1 (apply|flush)$' \
             AND backend_start > '{before}'"
        );
        let standby = &self.pair.standby;
        eventually("both sessions are there again", || async {
            (value(standby, "postgres", &sql).await == "2").then_some(())
        })
        .await;
    }

    async fn assert_recorded(&self, confirmed: &str, when: &str) {
        let record = value(&self.pair.standby, "shop", RECORD).await;
        let sql = format!("SELECT '{record}'::pg_lsn >= '{confirmed}'::pg_lsn");
        let is_there = value(&self.pair.primary, "postgres", &sql).await == "t";
        assert!(is_there, "{when}: the primary was told {confirmed}, the standby's record says {record}");
    }

    /// The load stops, and both sides are equal.
    async fn end(mut self) {
        self.load.go_on().await;
        self.load.stop.store(true, Ordering::Relaxed);
        for writer in self.writers.drain(..) {
            writer.await.unwrap();
        }
        self.relay.wait_state("streaming").await;
        self.pair.equal_after_catching_up(&["accounts", "history"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_primary_was_told_survives_every_crash_of_the_standby() {
    let kills = from_environment("WALRELAY_TEST_KILLS", 30);
    let seed = from_environment("WALRELAY_TEST_SEED", rand::random_range(0..1_000_000));
    println!("seed {seed} (WALRELAY_TEST_SEED), {kills} kills");
    let mut random = StdRng::seed_from_u64(seed);
    let mut scene = Scene::begin(18, seed).await;
    let mut lost = 0;
    for round in 0..kills {
        // Both ways of waiting in turn.
        if round == kills / 2 {
            scene.pair.wait_for_standbys("FIRST 1 (standby1)").await;
        }
        scene.load.go_on().await;
        tokio::time::sleep(Duration::from_millis(random.random_range(0..200))).await;
        let seen = value(&scene.pair.standby, "shop", RECORD).await;
        scene.pair.standby.kill9();
        eventually("the relay has let the slot go", || async {
            let sql = "SELECT NOT active FROM pg_replication_slots WHERE slot_name = 'walrelay_standby1'";
            (value(&scene.pair.primary, "postgres", sql).await == "t").then_some(())
        })
        .await;
        let confirmed = scene.confirmed().await;
        // The record is looked at before the relay can move it on.
        scene.relay.signal(libc::SIGSTOP);
        scene.pair.standby.start_again().await.unwrap();
        scene.assert_recorded(&confirmed, &format!("crash {round}")).await;
        let sql = format!("SELECT lsn < '{seen}' FROM walrelay.progress");
        lost += u64::from(value(&scene.pair.standby, "shop", &sql).await == "t");
        scene.relay.signal(libc::SIGCONT);
        scene.relay.wait_state("streaming").await;
    }
    println!("{lost} of {kills} crashes lost commits that had been seen");
    assert!(kills < 10 || lost > 0, "no crash lost anything: the test shows nothing");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_loss_of_our_sessions_alone_loses_and_repeats_nothing() {
    let seed = from_environment("WALRELAY_TEST_SEED", rand::random_range(0..1_000_000));
    println!("seed {seed} (WALRELAY_TEST_SEED)");
    let mut scene = Scene::begin(18, seed).await;
    for round in 0..12 {
        if round == 6 {
            scene.pair.wait_for_standbys("FIRST 1 (standby1)").await;
        }
        scene.load.go_on().await;
        let roles = ["apply", "flush", "apply|flush"][round % 3];
        let sql = format!(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name ~ '^walrelay standby1 ({roles})$'"
        );
        let before = value(&scene.pair.standby, "postgres", "SELECT clock_timestamp()").await;
        let ended: usize = value(&scene.pair.standby, "postgres", &sql).await.parse().unwrap();
        assert_eq!(ended, roles.split('|').count(), "sessions of {roles}");
        scene.assert_recorded(&scene.confirmed().await, &format!("without {roles}")).await;
        // One that is left alone does not go on: both are opened anew.
        scene.wait_new_sessions(&before).await;
    }
    // A crash that follows at once: what the new session read was made durable.
    let before = value(&scene.pair.standby, "postgres", "SELECT clock_timestamp()").await;
    let ended =
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'walrelay standby1 apply'";
    values(&scene.pair.standby, "postgres", ended).await;
    scene.wait_new_sessions(&before).await;
    scene.relay.wait_state("streaming").await;
    let confirmed = scene.confirmed().await;
    scene.pair.standby.kill9();
    scene.pair.standby.start_again().await.unwrap();
    scene.assert_recorded(&confirmed, "after a crash that follows at once").await;
    scene.end().await;
}

/// Nobody waits, and the WAL writer sleeps: an orderly stop still leaves nothing unconfirmed.
#[tokio::test(flavor = "multi_thread")]
async fn an_orderly_stop_confirms_everything() {
    for major in major_versions() {
        let mut scene = Scene::begin(major, 1).await;
        scene.load.go_on().await;
        scene.load.stop.store(true, Ordering::Relaxed);
        for writer in scene.writers.drain(..) {
            writer.await.unwrap();
        }
        assert!(scene.relay.stop().await.success(), "{major}");
        let confirmed = scene.confirmed().await;
        let sql = format!("SELECT lsn = '{confirmed}' FROM walrelay.progress");
        assert_eq!(value(&scene.pair.standby, "shop", &sql).await, "t", "{major}");
        scene.pair.standby.kill9();
        scene.pair.standby.start_again().await.unwrap();
        assert_eq!(value(&scene.pair.standby, "shop", &sql).await, "t", "{major}: after a crash");
    }
}
