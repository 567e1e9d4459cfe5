//! One backlog for everybody: a primary with the WAL of a workload behind a slot that is never read, and a target that begins each
//! run as the same copy of the same tables. Every contestant reads its own copy of the slot.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use walrelay::config::Environment;
use walrelay::throwaway::{Server, find_tool};

use super::harness::distance::proxy;
use super::harness::{Pair, client, eventually, value, values};
use super::plan::{Plan, options, setting, target_options};
use super::workload::{Fill, Workload};

/// The slot that stands at the beginning of the backlog.
pub const BASE: &str = "base";
/// The database of a run, on the target.
pub const RUN: &str = "run";
/// Clients of pgbench while a backlog is written.
const WRITERS: u64 = 8;

/// The marker: its one row is the last thing written.
const MARKER: &str = "CREATE TABLE bench_marker (id int PRIMARY KEY)";

/// A primary with a backlog, and its target.
pub struct Backlog {
    /// The servers; `shop` holds the tables as they were before the backlog, on the target.
    pub pair: Pair,
    /// The end of the backlog.
    pub target_lsn: String,
    /// Count and hash of every table of the primary.
    pub expected: Vec<String>,
    /// The published tables.
    pub tables: Vec<String>,
    /// Where contestants reach the primary: its own port, or that of a proxy that delays.
    pub port: u16,
}

/// A client program of `.servers/tools-18` or of the machine.
pub fn tool(name: &str) -> PathBuf {
    let found = find_tool(name, &Environment::of_process(), Path::new(env!("CARGO_MANIFEST_DIR")));
    found.unwrap_or_else(|| panic!("{name} is not there: scripts/fetch-servers tools"))
}

/// pgbench on a server's socket, ready for more arguments; the database comes last.
pub fn pgbench(server: &Server, database: &str, arguments: &[String]) -> Command {
    let mut command = Command::new(tool("pgbench"));
    let port = server.port().to_string();
    command.arg("-h").arg(server.folder()).args(["-p", &port, "-U", "postgres"]).args(arguments).arg(database);
    command
}

/// Runs a program to its end and gives what it printed.
pub fn output(command: &mut Command) -> String {
    let output =
        tokio::task::block_in_place(|| command.output()).unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The tables of pgbench in a database.
pub fn make_pgbench_tables(server: &Server, database: &str, scale: &str) {
    let arguments = ["-i", "-q", "-s", scale].map(str::to_owned);
    output(&mut pgbench(server, database, &arguments));
}

/// Makes `name` anew as a copy of `template`. Nobody may be connected to either.
pub async fn copy_database(server: &Server, template: &str, name: &str, major: u32) {
    values(server, "postgres", &format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)")).await;
    // By copying files: through the WAL it would be written twice.
    let strategy = if major >= 15 { " STRATEGY file_copy" } else { "" };
    values(server, "postgres", &format!("CREATE DATABASE {name} TEMPLATE {template}{strategy}")).await;
    values(server, "postgres", "CHECKPOINT").await;
}

/// Count and hash of each table, independent of the order of rows.
pub async fn fingerprints(server: &Server, database: &str, tables: &[String]) -> Vec<String> {
    let mut prints = Vec::new();
    for table in tables {
        let sql = format!(
            "SELECT count(*) || ' rows, ' || coalesce(sum(hashtextextended(t::text, 0)::numeric), 0) FROM {table} t"
        );
        prints.push(format!("{table}: {}", value(server, database, &sql).await));
    }
    prints
}

/// The published tables of a database, quoted.
pub async fn published(server: &Server, database: &str) -> Vec<String> {
    let sql =
        "SELECT format('%I.%I', schemaname, tablename) FROM pg_publication_tables WHERE pubname = 'bench' ORDER BY 1";
    values(server, database, sql).await.into_iter().flatten().flatten().collect()
}

impl Backlog {
    /// Starts the servers and writes the backlog.
    pub async fn write(plan: &Plan, workload: &Workload) -> Self {
        let (mut primary, mut target) = (options(), target_options());
        for (name, setting) in workload.settings {
            primary = primary.with(name, setting);
            target = target.with(name, setting);
        }
        let pair = Pair::with(plan.major, primary, plan.major, target).await;
        for server in [&pair.primary, &pair.standby] {
            if workload.is_pgbench {
                make_pgbench_tables(server, "shop", &workload.setup[0]);
            } else {
                for statement in &workload.setup {
                    values(server, "shop", statement).await;
                }
            }
            values(server, "shop", MARKER).await;
            values(server, "shop", "VACUUM (FREEZE, ANALYZE)").await;
        }
        publish(&pair, workload).await;
        values(&pair.primary, "shop", &format!("SELECT pg_create_logical_replication_slot('{BASE}', 'pgoutput')"))
            .await;
        fill(&pair.primary, &workload.fill).await;
        values(&pair.primary, "shop", "INSERT INTO bench_marker VALUES (1)").await;
        let target_lsn = value(&pair.primary, "shop", "SELECT pg_current_wal_lsn()").await;
        values(&pair.primary, "postgres", "CHECKPOINT").await;
        let tables = published(&pair.primary, "shop").await;
        let expected = fingerprints(&pair.primary, "shop", &tables).await;
        let round_trip = Duration::from_millis(setting("ROUND_TRIP_MS", 0));
        let own = pair.primary.port();
        let port = if round_trip.is_zero() { own } else { proxy(own, round_trip) };
        Self { pair, target_lsn, expected, tables, port }
    }

    /// The target as it was before the backlog.
    pub async fn reset_target(&self, plan: &Plan) {
        copy_database(&self.pair.standby, "shop", RUN, plan.major).await;
    }

    /// A slot of that name at the beginning of the backlog.
    pub async fn copy_slot(&self, name: &str) {
        self.drop_slot(name).await;
        values(&self.pair.primary, "shop", &format!("SELECT pg_copy_logical_replication_slot('{BASE}', '{name}')"))
            .await;
    }

    /// Waits for its walsender to end, then drops it.
    pub async fn drop_slot(&self, name: &str) {
        drop_slot(&self.pair.primary, name).await;
    }

    /// Every table of the run must hold what the primary's holds.
    pub async fn verify(&self, who: &str) {
        let found = fingerprints(&self.pair.standby, RUN, &self.tables).await;
        assert_eq!(found, self.expected, "{who}: the target differs from the primary");
    }
}

/// Drops a slot once nobody reads it any more.
pub async fn drop_slot(primary: &Server, name: &str) {
    eventually(&format!("the slot {name} is free"), || async {
        let sql = format!("SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{name}' AND active");
        (value(primary, "postgres", &sql).await == "0").then_some(())
    })
    .await;
    let sql =
        format!("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = '{name}'");
    values(primary, "postgres", &sql).await;
}

/// One publication for everybody, and for pgbench's tables two more that share it between them.
async fn publish(pair: &Pair, workload: &Workload) {
    pair.on_primary("CREATE PUBLICATION bench FOR ALL TABLES").await;
    if workload.is_pgbench {
        pair.on_primary("CREATE PUBLICATION bench_accounts FOR TABLE pgbench_accounts").await;
        let rest = "pgbench_branches, pgbench_tellers, pgbench_history, bench_marker";
        pair.on_primary(&format!("CREATE PUBLICATION bench_rest FOR TABLE {rest}")).await;
    }
}

/// Writes a backlog.
pub async fn fill(primary: &Server, fill: &Fill) {
    match fill {
        Fill::Statements(statements) => {
            let session = client(primary, "shop").await;
            session.batch_execute("SET synchronous_commit = off").await.unwrap();
            for statement in statements {
                session.batch_execute(statement).await.unwrap();
            }
        }
        Fill::TpcB(count) => {
            assert!(*count >= WRITERS && count % WRITERS == 0, "WALRELAY_BENCH_TPCB must be a multiple of {WRITERS}");
            let each = (count / WRITERS).to_string();
            let arguments =
                ["-n", "-M", "prepared", "-c", &WRITERS.to_string(), "-j", "2", "-t", &each].map(str::to_owned);
            let mut command = pgbench(primary, "shop", &arguments);
            output(command.env("PGOPTIONS", "-c synchronous_commit=off"));
        }
    }
}
