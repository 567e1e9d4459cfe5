//! The backlogs of the cases A and P as data: tables, what is written, what walrelay must reach. Runs nothing.

use super::peer::Peer;
use super::plan::Plan;

/// How a backlog is written.
pub enum Fill {
    /// So many transactions of pgbench's built-in TPC-B, by several clients at once.
    TpcB(u64),
    /// Statements, each alone in its message (a DO that commits cannot stand in a block).
    Statements(Vec<String>),
}

/// What walrelay must reach against the native subscription; `None` where the issue sets no bar.
#[derive(Clone, Copy, Default)]
pub struct Aims {
    /// Native's wall time over ours, at least.
    pub speed: Option<f64>,
    /// Our sum of CPU over native's, at most.
    pub cpu: Option<f64>,
    /// Our peak resident set, MB.
    pub memory_mb: Option<f64>,
    /// The durable native's wall time over ours, at least.
    pub durable_speed: Option<f64>,
}

/// One backlog.
pub struct Workload {
    /// `a1` …
    pub case: &'static str,
    /// In words, with its size.
    pub title: String,
    /// Tables and rows, the same on both sides before anything is streamed. Only constants: no `now()`, no `random()`.
    pub setup: Vec<String>,
    /// Whether pgbench makes its tables on both sides instead.
    pub is_pgbench: bool,
    /// What is written after the slot was made.
    pub fill: Fill,
    /// What a rate counts.
    pub unit: &'static str,
    /// How many of them.
    pub units: u64,
    /// Row changes in the stream.
    pub changes: u64,
    /// Rounds of the native subscription, where all of them would take hours.
    pub native_rounds: Option<usize>,
    /// walrelay as it is to be judged, …
    pub own: Peer,
    /// … and who else runs beside it and the native subscription.
    pub more_peers: &'static [Peer],
    /// Settings of the servers' own.
    pub settings: &'static [(&'static str, &'static str)],
    /// The bars.
    pub aims: Aims,
}

/// Columns of the table of most cases.
pub const WIDE: &str = "(id bigint PRIMARY KEY, a int, b bigint, at timestamptz, amount float8, filler text)";
/// One row of such a table, of `i`.
pub const WIDE_ROW: &str = "i, (i % 1000)::int, i * 7, timestamptz '2026-01-01 UTC' + i * interval '1 second', i / 8.0::float8, \
                        'filler of an ordinary size ' || i";
/// Rows of a bulk transaction.
const BULK: u64 = 100_000;

fn aims(speed: f64, cpu: f64) -> Aims {
    Aims { speed: Some(speed), cpu: Some(cpu), ..Aims::default() }
}

/// A loop of transactions on the server.
pub fn transactions(count: u64, body: &str) -> Fill {
    let last = count - 1;
    Fill::Statements(vec![format!("DO $$ BEGIN FOR k IN 0..{last} LOOP {body}; COMMIT; END LOOP; END $$")])
}

fn of_rows(case: &'static str, title: String, fill: Fill, rows: u64, aims: Aims) -> Workload {
    Workload {
        case,
        title,
        setup: vec![format!("CREATE TABLE wide {WIDE}")],
        is_pgbench: false,
        fill,
        unit: "rows",
        units: rows,
        changes: rows,
        native_rounds: None,
        own: Peer::Relay,
        more_peers: &[],
        settings: &[],
        aims,
    }
}

/// One statement that fills the table.
pub fn filled(rows: u64) -> String {
    format!("INSERT INTO wide SELECT {WIDE_ROW} FROM generate_series(1, {rows}::bigint) i")
}

fn tpc_b(plan: &Plan) -> Workload {
    let count = plan.size("TPCB", 250_000);
    let scale = plan.scale;
    Workload {
        setup: vec![scale.to_string()],
        is_pgbench: true,
        unit: "tx",
        units: count,
        changes: count * 4,
        more_peers: &[Peer::NativeDurable, Peer::NativeTwo],
        ..of_rows(
            "a1",
            format!("{count} TPC-B transactions, scale {scale}"),
            Fill::TpcB(count),
            count,
            Aims { durable_speed: Some(7.0), ..aims(1.3, 0.8) },
        )
    }
}

fn single_inserts(plan: &Plan) -> Workload {
    let rows = plan.size("SINGLE", 1_000_000);
    let body = "INSERT INTO wide SELECT".to_owned() + &format!(" {WIDE_ROW} FROM (SELECT k::bigint AS i) one");
    of_rows("a2", format!("{rows} single-row insert transactions"), transactions(rows, &body), rows, aims(1.2, 0.75))
}

fn bulk_inserts(plan: &Plan) -> Workload {
    let each = plan.size("BULK", BULK);
    let count = plan.size("BULK_TRANSACTIONS", 20).max(3);
    let body = format!(
        "INSERT INTO wide SELECT {WIDE_ROW} FROM generate_series(k * {each}::bigint + 1, (k + 1) * {each}::bigint) i"
    );
    let title = format!("{count} transactions of {each} inserts");
    of_rows("a3", title, transactions(count, &body), count * each, aims(1.5, 0.75))
}

fn bulk_updates(plan: &Plan) -> Workload {
    let (each, count) = (plan.size("BULK", BULK), 10);
    let body = format!(
        "UPDATE wide SET a = a + 1, amount = amount + 1 WHERE id > k * {each}::bigint AND id <= (k + 1) * {each}::bigint"
    );
    let title = format!("{count} transactions of {each} updates by key");
    let mut workload = of_rows("a4", title, transactions(count, &body), count * each, aims(1.4, 0.85));
    workload.setup.push(filled(count * each));
    workload
}

fn bulk_deletes(plan: &Plan) -> Workload {
    let (each, count) = (plan.size("BULK", BULK), 20);
    let body = format!("DELETE FROM wide WHERE id > k * {each}::bigint AND id <= (k + 1) * {each}::bigint");
    let title = format!("{count} transactions of {each} deletes by key");
    let mut workload = of_rows("a5", title, transactions(count, &body), count * each, aims(1.4, 0.85));
    workload.setup.push(filled(count * each));
    workload
}

fn hot_keys(plan: &Plan) -> Workload {
    let count = plan.size("HOT", 1_000_000);
    let body = "UPDATE wide SET a = a + 1 WHERE id = 1 + k % 100";
    let title = format!("{count} single-row updates of 100 hot keys");
    let mut workload = of_rows("a6", title, transactions(count, body), count, aims(1.6, 0.7));
    workload.setup.push(filled(100));
    workload
}

fn one_large(plan: &Plan) -> Workload {
    let rows = plan.big_rows;
    let fill = Fill::Statements(vec![filled(rows)]);
    let aims = Aims { speed: Some(1.25), memory_mb: Some(150.0), ..Aims::default() };
    of_rows("a7", format!("one transaction of {rows} rows"), fill, rows, aims)
}

fn keyless(plan: &Plan) -> Workload {
    let rows = plan.size("KEYLESS_ROWS", 1_000_000);
    let each = plan.size("KEYLESS_DELETES", 10_000).div_ceil(10);
    let setup = vec![
        "CREATE TABLE keyless (v bigint, note text)".to_owned(),
        "ALTER TABLE keyless REPLICA IDENTITY FULL".to_owned(),
        // Five of each.
        format!("INSERT INTO keyless SELECT i / 5, 'note ' || i / 5 FROM generate_series(0, {}) i", rows - 1),
    ];
    let body = format!(
        "DELETE FROM keyless WHERE ctid = ANY (ARRAY(SELECT ctid FROM keyless WHERE v % 10 = k ORDER BY hashint8(v) LIMIT {each}))"
    );
    let title = format!("{} deletes, keyless table of {rows} rows with duplicates", each * 10);
    let aims = Aims { speed: Some(50.0), ..Aims::default() };
    Workload { setup, native_rounds: Some(1), ..of_rows("a8", title, transactions(10, &body), each * 10, aims) }
}

/// A table of ten times the shared buffers, read past the operating system's cache.
fn beyond_memory(plan: &Plan) -> Workload {
    let (rows, count) = (plan.size("COLD_ROWS", 4_000_000), plan.size("COLD", 200_000));
    // A walk over all keys in no order: the factor is prime, and no key comes twice in a backlog shorter than the table.
    let body = format!("UPDATE wide SET a = a + 1 WHERE id = 1 + (k * 2654435761::bigint) % {rows}");
    let title = format!("{count} updates at random, table of {rows} rows, 40 MB of shared buffers, direct I/O");
    let aims = Aims { speed: Some(2.0), ..Aims::default() };
    let settings = if plan.major >= 16 {
        &[("shared_buffers", "40MB"), ("debug_io_direct", "data")][..]
    } else {
        &[("shared_buffers", "40MB")][..]
    };
    let mut workload = of_rows("p", title, transactions(count, &body), count, aims);
    workload.setup.push(filled(rows));
    workload.settings = settings;
    workload.own = Peer::RelayPrefetch;
    workload.more_peers = &[Peer::RelayNoPrefetch];
    workload
}

/// All of them in the order of the table.
pub fn all(plan: &Plan) -> Vec<Workload> {
    vec![
        tpc_b(plan),
        single_inserts(plan),
        bulk_inserts(plan),
        bulk_updates(plan),
        bulk_deletes(plan),
        hot_keys(plan),
        one_large(plan),
        keyless(plan),
        beyond_memory(plan),
    ]
}
