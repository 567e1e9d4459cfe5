//! One backlog for everybody: a primary with the WAL of a workload behind a slot that is never read, and a target that begins each
//! run as the same copy of the same tables. Every contestant reads its own copy of the slot.

use std::time::Duration;

use walrelay::throwaway::Server;

use super::database::{RUN, copy_database, drop_slot, fingerprints, published};
use super::harness::distance::proxy;
use super::harness::{Pair, client, value, values};
use super::plan::{Plan, setting};
use super::program::{make_pgbench_tables, output, pgbench};
use super::servers::{options, target_options};
use super::workload::{Fill, Workload};

/// The slot that stands at the beginning of the backlog.
pub const BASE: &str = "base";
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
