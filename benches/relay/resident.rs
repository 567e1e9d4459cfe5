//! What the daemon costs while it does nothing, and how large a transaction of millions of rows makes it.

use std::time::{Duration, Instant};

use super::comparison::Comparison;
use super::harness::{Pair, Relay, value, values};
use super::measure::{memory_mb, process_cpu};
use super::plan::Plan;
use super::report::Report;
use super::servers::pair;

/// The aims of issue A.
const IDLE_CPU_PERCENT: f64 = 0.1;
const IDLE_MB: f64 = 30.0;
const LOADED_MB: f64 = 150.0;
/// What happens after the start is not idleness.
const SETTLE: Duration = Duration::from_secs(3);

async fn streaming(pair: &Pair) -> Relay {
    let relay = Relay::start_with(&pair.config(""), &[("WALRELAY__LOG__LEVEL", "info")]).await;
    relay.wait_state("streaming").await;
    relay
}

/// CPU and resident set of an idle daemon, not waited for and waited for.
pub async fn idle(plan: &Plan, report: &mut Report) {
    let pair = pair(plan.major).await;
    pair.on_both("CREATE TABLE quiet (id bigint PRIMARY KEY)").await;
    let relay = streaming(&pair).await;
    for is_synchronous in [false, true] {
        if is_synchronous {
            pair.wait_for_standbys("FIRST 1 (standby1)").await;
        }
        tokio::time::sleep(SETTLE).await;
        let before = process_cpu(relay.process_id());
        let began = Instant::now();
        tokio::time::sleep(Duration::from_secs(plan.idle_seconds)).await;
        let used = process_cpu(relay.process_id()).saturating_sub(before);
        let percent = used.as_secs_f64() / began.elapsed().as_secs_f64() * 100.0;
        let resident = memory_mb(relay.process_id(), "VmRSS");
        let case = if is_synchronous { "idle, synchronous" } else { "idle" };
        report.case(case, &format!("nothing happens for {} s", plan.idle_seconds));
        report.compare(Comparison::absolute(case, "CPU", "% of a core", vec![percent], Some(IDLE_CPU_PERCENT)));
        report.compare(Comparison::absolute(case, "resident set", "MB", vec![resident], Some(IDLE_MB)));
    }
}

/// Peak resident set under one large transaction, with the default memory limit.
pub async fn large(plan: &Plan, report: &mut Report) {
    let pair = pair(plan.major).await;
    pair.on_both("CREATE TABLE large (id bigint PRIMARY KEY, a int, filler text)").await;
    let relay = streaming(&pair).await;
    let rows = plan.big_rows;
    let began = Instant::now();
    let insert = format!("INSERT INTO large SELECT i, i % 1000, repeat('x', 40) FROM generate_series(1, {rows}) i");
    values(&pair.primary, "shop", &insert).await;
    let committed = began.elapsed();
    let target = value(&pair.primary, "postgres", "SELECT pg_current_wal_lsn()").await;
    let sql = format!("SELECT replay_lsn >= '{target}' FROM pg_stat_replication WHERE application_name = 'standby1'");
    while value(&pair.primary, "postgres", &sql).await != "t" {
        let status = relay.report("standby1").await.unwrap();
        assert_ne!(status["state"], "failed", "{status}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let applied = began.elapsed();
    assert_eq!(value(&pair.standby, "shop", "SELECT count(*) FROM large").await, rows.to_string());
    let peak = memory_mb(relay.process_id(), "VmHWM");
    let title = format!(
        "one transaction of {rows} rows, live, default memory limit: committed after {:.1} s",
        committed.as_secs_f64()
    );
    report.case("large", &title);
    report.compare(Comparison::absolute("large", "peak resident set", "MB", vec![peak], Some(LOADED_MB)));
    report.compare(Comparison::absolute("large", "on the standby after", "s", vec![applied.as_secs_f64()], None));
}
