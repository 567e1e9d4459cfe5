//! `make bench`: speed and memory of the relay as ratios against its peers (`pg_recvlogical`, the native subscription,
//! `psql COPY | psql COPY`), measured in one run on throw-away servers. Judges nothing but what it prints.
//!
//! `WALRELAY_BENCH="drain commit idle large copy"` narrows the run; `WALRELAY_BENCH_ROUNDS`, `…_ROWS`, `…_COMMITS`, `…_IDLE_SECONDS`,
//! `…_BIG_ROWS` and `…_VERSION` set its size.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]
#![allow(unreachable_pub)]

// The same servers and the same relay process as in the tests; the benchmarks need only a part of it.
#[allow(dead_code, unused_imports)]
#[path = "../../tests/relay/harness/mod.rs"]
mod harness;

mod commit;
mod copy;
mod drain;
mod drain_client;
mod measure;
mod resident;

use walrelay::throwaway::Options;

use harness::{Pair, value};

/// The size of the run, from the environment.
pub struct Plan {
    /// The servers' major version.
    pub major: u32,
    /// How often each contestant has its turn.
    pub rounds: usize,
    /// Rows of a backlog, and of each table to copy.
    pub rows: u64,
    /// Commits of one turn.
    pub commits: usize,
    /// How long idleness is watched.
    pub idle_seconds: u64,
    /// Rows of the one large transaction.
    pub big_rows: u64,
}

fn setting<T: std::str::FromStr>(name: &str, default: T) -> T {
    std::env::var(format!("WALRELAY_BENCH_{name}")).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Servers that are not in their own way: memory enough, no checkpoint in the middle.
pub fn options() -> Options {
    Options::default()
        .with("shared_buffers", "512MB")
        .with("max_wal_size", "16GB")
        .with("checkpoint_timeout", "1h")
        .with("autovacuum", "off")
}

/// Two such servers.
pub async fn pair(major: u32) -> Pair {
    Pair::with(major, options(), major, options()).await
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if arguments.get(1).map(String::as_str) == Some(drain_client::VERB) {
        return drain_client::main(&arguments[2..]);
    }
    let plan = Plan {
        major: setting("VERSION", 18),
        rounds: setting("ROUNDS", 3),
        rows: setting("ROWS", 1_000_000),
        commits: setting("COMMITS", 400),
        idle_seconds: setting("IDLE_SECONDS", 30),
        big_rows: setting("BIG_ROWS", 3_000_000),
    };
    let wanted = std::env::var("WALRELAY_BENCH").unwrap_or_else(|_| "drain commit idle large copy".to_owned());
    let is_wanted = |name: &str| wanted.split_whitespace().any(|word| word == name);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    // Servers end with the thread that starts them: this one.
    runtime.block_on(async {
        println!("{}", measure::machine());
        let server = harness::start_server(plan.major, options()).await;
        println!("server: PostgreSQL {}", value(&server, "postgres", "SHOW server_version").await);
        drop(server);
        if is_wanted("drain") {
            drain::run_shapes(&plan).await;
        }
        if is_wanted("commit") {
            commit::run(&plan).await;
        }
        if is_wanted("idle") {
            resident::idle(&plan).await;
        }
        if is_wanted("copy") {
            copy::run(&plan).await;
        }
        if is_wanted("large") {
            resident::large(&plan).await;
        }
    });
}
