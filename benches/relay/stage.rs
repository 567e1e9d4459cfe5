//! Where the live cases happen: two servers with the same pgbench tables, made anew for each turn, and pgbench on the primary.

use std::fs;
use std::path::Path;
use std::process::Command;

use walrelay::throwaway::Server;

use super::database::{RUN, copy_database, fingerprints, published};
use super::harness::{Pair, eventually, value, values};
use super::measure::percentile;
use super::plan::Plan;
use super::program::{make_pgbench_tables, pgbench};
use super::servers::{options, target_options};

/// A heartbeat a row, to see when it arrives.
const BEATS: &str = "CREATE TABLE bench_beats (id int PRIMARY KEY)";

/// The servers; `shop` is what each turn's database `run` is copied from.
pub struct Stage {
    /// Both.
    pub pair: Pair,
    tables: Vec<String>,
    major: u32,
}

/// What pgbench said.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Transactions a second, without the time to connect.
    pub tps: f64,
    /// Transactions.
    pub transactions: f64,
    /// Median latency, ms.
    pub p50_ms: f64,
    /// 99th percentile, ms.
    pub p99_ms: f64,
}

impl Stage {
    /// Starts the servers and makes the tables.
    pub async fn open(plan: &Plan) -> Self {
        let mut primary = options();
        // A physical standby's line is not covered by "all".
        primary.hba = Some("local all all trust\nhost all all all trust\nhost replication all all trust\n".to_owned());
        let pair = Pair::with(plan.major, primary, plan.major, target_options()).await;
        let scale = plan.scale.to_string();
        for server in [&pair.primary, &pair.standby] {
            make_pgbench_tables(server, "shop", &scale);
            values(server, "shop", BEATS).await;
            values(server, "shop", "VACUUM (FREEZE, ANALYZE)").await;
        }
        pair.on_primary("CREATE PUBLICATION bench FOR ALL TABLES").await;
        let tables = published(&pair.primary, "shop").await;
        Self { pair, tables, major: plan.major }
    }

    /// Both databases `run` as at the beginning, with a fresh slot of each name.
    pub async fn reset(&self, slots: &[(&str, &str)]) {
        copy_database(&self.pair.standby, "shop", RUN, self.major).await;
        copy_database(&self.pair.primary, "shop", RUN, self.major).await;
        for (name, _) in slots {
            let sql = format!("SELECT pg_create_logical_replication_slot('{name}', 'pgoutput')");
            values(&self.pair.primary, RUN, &sql).await;
        }
    }

    /// Until everything that is written by now is confirmed by the reader of that slot.
    pub async fn wait_applied(&self, name: &str) {
        let primary = &self.pair.primary;
        let end = value(primary, RUN, "SELECT pg_current_wal_lsn()").await;
        let sql = format!(
            "SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{name}' AND confirmed_flush_lsn >= '{end}'"
        );
        eventually(&format!("{name} has applied everything"), || async {
            (value(primary, "postgres", &sql).await == "1").then_some(())
        })
        .await;
    }

    /// Both databases must hold the same.
    pub async fn verify(&self, who: &str) {
        self.verify_on(&self.pair.standby, who).await;
    }

    /// The same for a standby of another kind.
    pub async fn verify_on(&self, standby: &Server, who: &str) {
        let expected = fingerprints(&self.pair.primary, RUN, &self.tables).await;
        let found = fingerprints(standby, RUN, &self.tables).await;
        assert_eq!(found, expected, "{who}: the target differs from the primary");
    }

    /// pgbench on the primary's `run`, over TCP, each transaction logged below `folder`.
    pub fn load(&self, script: &str, clients: usize, seconds: u64, folder: &Path, commit: &str) -> Command {
        let (clients, threads) = (clients.to_string(), clients.min(2).to_string());
        let prefix = folder.join("pgbench").display().to_string();
        let arguments = [
            "-h",
            "127.0.0.1",
            "-n",
            "-M",
            "prepared",
            "-b",
            script,
            "-c",
            &clients,
            "-j",
            &threads,
            "-T",
            &seconds.to_string(),
            "-l",
            "--log-prefix",
            &prefix,
        ];
        let mut command = pgbench(&self.pair.primary, RUN, &arguments.map(str::to_owned));
        command.env("PGOPTIONS", format!("-c synchronous_commit={commit}"));
        command
    }
}

/// Reads what a load printed and logged, and removes the logs.
pub fn read_load(printed: &str, folder: &Path) -> Load {
    let number = |before: &str| {
        let rest = printed.lines().find_map(|line| line.strip_prefix(before));
        let word = rest.and_then(|rest| rest.split_whitespace().next());
        word.and_then(|word| word.parse::<f64>().ok()).unwrap_or_else(|| panic!("no \"{before}\" in: {printed}"))
    };
    let mut latencies = Vec::new();
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let text = fs::read_to_string(entry.path()).unwrap();
        // client, number, latency in µs, …
        let of_line = |line: &str| line.split(' ').nth(2)?.parse::<f64>().ok();
        latencies.extend(text.lines().filter_map(of_line).map(|microseconds| microseconds / 1000.0));
        fs::remove_file(entry.path()).unwrap();
    }
    assert!(!latencies.is_empty(), "pgbench logged no transaction: {printed}");
    Load {
        tps: number("tps = "),
        transactions: number("number of transactions actually processed: "),
        p50_ms: percentile(latencies.iter().copied(), 50),
        p99_ms: percentile(latencies.iter().copied(), 99),
    }
}
