//! kill -9 at random moments of relay, standby and primary under pgbench and clients that look: both sides equal at the end, and
//! every commit that returned to a looking client under `remote_apply` was on the standby at that moment. `WALRELAY_TEST_KILLS`
//! and `WALRELAY_TEST_SEED` set the run.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use walrelay::config::{Environment, ServerUrl};
use walrelay::throwaway::{Options, Server, find_tool};
use walrelay::wire::Session;
use walrelay::wire::sql::connect;

use super::harness::{Pair, eventually, from_environment, value, values};

/// Clients that look at the standby after each commit.
const CLIENTS: u64 = 2;
/// Commits that were looked for and found between two kills, at least.
const VERIFIED_BETWEEN: u64 = 10;
/// Clients of pgbench, which do not.
const PGBENCH_CLIENTS: &str = "4";
const PGBENCH_TABLES: [&str; 4] = ["pgbench_accounts", "pgbench_branches", "pgbench_tellers", "pgbench_history"];
const TABLES: &str = "CREATE TABLE accounts (id int PRIMARY KEY, balance bigint NOT NULL);
    CREATE TABLE history (id bigint PRIMARY KEY, client int NOT NULL, amount int NOT NULL, filler text)";

/// What the clients share.
struct Load {
    primary: ServerUrl,
    standby: ServerUrl,
    stop: AtomicBool,
    commits: AtomicU64,
    verified: AtomicU64,
    missing: AtomicU64,
}

impl Load {
    /// Until some commits more were looked for and found, however slow the machine is.
    async fn go_on(&self, when: &str) {
        let before = self.verified.load(Ordering::Relaxed);
        eventually(&format!("commits are found on the standby {when}"), || async {
            let missing = self.missing.load(Ordering::Relaxed);
            assert_eq!(missing, 0, "commits that returned were not on the standby");
            (self.verified.load(Ordering::Relaxed) > before + VERIFIED_BETWEEN).then_some(())
        })
        .await;
    }
}

/// pgbench with its own script, started again whenever a kill has ended its clients.
struct Pgbench {
    program: PathBuf,
    server: String,
}

impl Pgbench {
    fn new(server: &Server) -> Self {
        let project = Path::new(env!("CARGO_MANIFEST_DIR"));
        let program = find_tool("pgbench", &Environment::of_process(), project);
        Self { program: program.expect("scripts/fetch-servers tools brings pgbench"), server: server.url("shop") }
    }

    fn command(&self) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(&self.program);
        if let Some(folder) = self.program.parent().and_then(Path::parent) {
            command.env("LD_LIBRARY_PATH", folder.join("lib"));
        }
        command.env("PGOPTIONS", "-c synchronous_commit=remote_apply").stdin(Stdio::null()).kill_on_drop(true);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    /// `steps` as pgbench's own letters: d drop, t tables, g rows, p keys.
    async fn make_tables(&self, steps: &str) {
        let status = self.command().args(["-i", "-I", steps, "-s", "1", &self.server]).status().await.unwrap();
        assert!(status.success(), "pgbench -i -I {steps} ended with {status}");
    }

    async fn run(self, load: Arc<Load>) {
        while !load.stop.load(Ordering::Relaxed) {
            let arguments = ["-n", "-c", PGBENCH_CLIENTS, "-T", "3600", &self.server];
            let mut child = self.command().args(arguments).spawn().unwrap();
            while !load.stop.load(Ordering::Relaxed) && child.try_wait().unwrap().is_none() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            let _ = child.kill().await;
        }
    }
}

/// One client like pgbench's: a transaction of four changes, then a look at the standby whether a commit that returned is there.
/// A lost connection is opened again; a commit whose answer was lost is neither counted nor looked for.
async fn client(load: Arc<Load>, client: u64, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed ^ client);
    let mut next_id = client * 1_000_000_000;
    while !load.stop.load(Ordering::Relaxed) {
        let Ok(primary) =
            connect(&load.primary, &Session::new("load").with("synchronous_commit", "remote_apply")).await
        else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let mut standby = None;
        while !load.stop.load(Ordering::Relaxed) {
            next_id += 1;
            let (account, amount) = (random.random_range(1..=1000), random.random_range(-50..50));
            let sql = format!(
                "BEGIN; UPDATE accounts SET balance = balance + {amount} WHERE id = {account}; \
                 INSERT INTO history VALUES ({next_id}, {client}, {amount}, repeat('x', {})); \
                 DELETE FROM history WHERE client = {client} AND id = {}; \
                 UPDATE history SET amount = 0 WHERE client = {client} AND id = {}; COMMIT",
                random.random_range(0..200),
                next_id - 7,
                next_id - 3
            );
            if primary.batch_execute(&sql).await.is_err() {
                break;
            }
            load.commits.fetch_add(1, Ordering::Relaxed);
            if standby.is_none() {
                standby = connect(&load.standby, &Session::new("verify")).await.ok();
            }
            let Some(session) = &standby else { continue };
            match session.query_one("SELECT count(*) FROM history WHERE id = $1", &[&(next_id as i64)]).await {
                Ok(row) if row.get::<_, i64>(0) == 1 => drop(load.verified.fetch_add(1, Ordering::Relaxed)),
                Ok(_) => drop(load.missing.fetch_add(1, Ordering::Relaxed)),
                Err(_) => standby = None,
            }
        }
    }
}

/// What is killed.
#[derive(Clone, Copy, Debug)]
enum Victim {
    Relay,
    Standby,
    Primary,
}

#[tokio::test(flavor = "multi_thread")]
async fn thirty_kills_under_load_lose_nothing_and_repeat_nothing() {
    let kills = from_environment("WALRELAY_TEST_KILLS", 30);
    let seed = from_environment("WALRELAY_TEST_SEED", rand::random_range(0..1_000_000));
    println!("seed {seed} (WALRELAY_TEST_SEED), {kills} kills");
    let mut random = StdRng::seed_from_u64(seed);
    let quick = || Options::default().with("wal_sender_timeout", "5s");
    let mut pair = Pair::with(18, quick(), 18, quick()).await;
    pair.on_both(TABLES).await;
    pair.on_primary("INSERT INTO accounts SELECT i, 0 FROM generate_series(1, 1000) i").await;
    let pgbench = Pgbench::new(&pair.primary);
    pgbench.make_tables("dtgp").await;
    Pgbench::new(&pair.standby).make_tables("dtp").await;
    let mut relay = pair.relay("").await;
    pair.wait_for_standbys("FIRST 1 (standby1)").await;
    let load = Arc::new(Load {
        primary: pair.primary.server_url("shop").unwrap(),
        standby: pair.standby.server_url("shop").unwrap(),
        stop: AtomicBool::new(false),
        commits: AtomicU64::new(0),
        verified: AtomicU64::new(0),
        missing: AtomicU64::new(0),
    });
    let mut clients: Vec<_> = (1..=CLIENTS).map(|id| tokio::spawn(client(Arc::clone(&load), id, seed))).collect();
    clients.push(tokio::spawn(pgbench.run(Arc::clone(&load))));
    for round in 0..kills {
        // Some load passes between two kills; then any moment of it.
        load.go_on(&format!("before kill {round}")).await;
        tokio::time::sleep(Duration::from_millis(random.random_range(0..150))).await;
        let victim = [Victim::Relay, Victim::Standby, Victim::Primary][random.random_range(0..3)];
        match victim {
            Victim::Relay => {
                relay.kill9();
                relay.start_again().await;
            }
            Victim::Standby => {
                pair.standby.kill9();
                pair.standby.start_again().await.unwrap();
            }
            Victim::Primary => {
                pair.primary.kill9();
                pair.primary.start_again().await.unwrap();
            }
        }
        println!("round {round}: killed {victim:?} after {} commits", load.commits.load(Ordering::Relaxed));
    }
    load.go_on("after the last kill").await;
    load.stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    let (commits, verified, missing) = (
        load.commits.load(Ordering::Relaxed),
        load.verified.load(Ordering::Relaxed),
        load.missing.load(Ordering::Relaxed),
    );
    println!("{commits} commits returned, {verified} were looked for and found on the standby");
    assert_eq!(missing, 0, "commits that returned were not on the standby");
    assert!(verified > VERIFIED_BETWEEN * kills, "too few commits were looked for: {verified}");
    relay.wait_state("streaming").await;
    pair.equal_after_catching_up(&["accounts", "history"]).await;
    pair.equal_after_catching_up(&PGBENCH_TABLES).await;
    let by_pgbench: u64 = value(&pair.standby, "shop", "SELECT count(*) FROM pgbench_history").await.parse().unwrap();
    println!("{by_pgbench} transactions of pgbench are on both sides");
    assert!(by_pgbench > kills, "pgbench hardly ran: {by_pgbench}");
}

/// A transaction far larger than the memory limit, with subtransactions that roll back inside.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_transaction_passes_in_bounded_memory() {
    let rows = from_environment("WALRELAY_TEST_BIG_ROWS", 300_000);
    let pair = Pair::with(
        18,
        Options::default().with("logical_decoding_work_mem", "1MB"),
        18,
        Options::default().with("max_wal_size", "4GB"),
    )
    .await;
    pair.on_both("CREATE TABLE big (id bigint PRIMARY KEY, filler text)").await;
    let relay = pair.relay("memory_limit = \"4MB\"").await;
    let part = rows / 10;
    let mut sql = "BEGIN;".to_owned();
    for at in 0..10 {
        let insert = |from: u64| {
            format!("INSERT INTO big SELECT i, repeat('r', 60) FROM generate_series({}, {}) i;", from + 1, from + part)
        };
        sql.push_str(&insert(at * part));
        sql.push_str("SAVEPOINT s;");
        sql.push_str(&insert(1_000_000_000 + at * part));
        sql.push_str("ROLLBACK TO s;");
    }
    sql.push_str("COMMIT");
    pair.on_primary(&sql).await;
    // Millions of rows take longer than a test's patience: wait as long as it moves.
    let mut last = String::new();
    while value(&pair.standby, "shop", "SELECT count(*) FROM big").await != rows.to_string() {
        let report = relay.report("standby1").await.unwrap();
        assert_ne!(report["state"], "failed", "{report}");
        let now = format!(
            "{} {}",
            report["spool_bytes"],
            value(&pair.standby, "postgres", "SELECT pg_current_wal_insert_lsn()").await
        );
        if now == last {
            eventually("the standby has every row", || async {
                (value(&pair.standby, "shop", "SELECT count(*) FROM big").await == rows.to_string()).then_some(())
            })
            .await;
        }
        last = now;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let peak = std::fs::read_to_string(format!("/proc/{}/status", relay.process_id())).unwrap();
    let peak = peak.lines().find(|line| line.starts_with("VmHWM")).unwrap_or("").to_owned();
    let peak_kb: u64 = peak.split_whitespace().nth(1).unwrap().parse().unwrap();
    println!("{rows} rows in one transaction, peak resident set {peak_kb} kB");
    assert!(peak_kb < 150 * 1024, "the relay grew to {peak_kb} kB");
    let spool = values(&pair.standby, "shop", "SELECT count(*), sum(id) FROM big").await;
    assert_eq!(spool, pair.on_primary("SELECT count(*), sum(id) FROM big").await);
}
