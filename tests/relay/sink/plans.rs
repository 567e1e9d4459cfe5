//! The plans that the standby really goes by, as its own log tells them.

use walrelay::throwaway::Options;

use super::Replay;
use crate::harness::{Pair, from_environment};

const TABLE: &str = "CREATE TABLE t (a int, b char(6), c text, PRIMARY KEY (b, a))";
const MARK: &str = "SELECT 'from here on'";

/// A few rows of every five hundred.
fn work() -> Vec<String> {
    let some = |at: u32| format!("a BETWEEN 1 AND 5000 AND a % 500 = {at}");
    vec![
        format!("UPDATE t SET c = c || '!' WHERE {}", some(0)),
        format!("UPDATE t SET a = -a WHERE {}", some(1)),
        format!("DELETE FROM t WHERE {}", some(2)),
    ]
}

/// What the log says of the plans of statements on the table since the mark.
fn plans(replay: &Replay) -> Vec<String> {
    let log = replay._pair.standby.log_tail(2000);
    let since = log.rfind(MARK).map_or("", |at| &log[at..]);
    let plans = since
        .split("LOG:  duration:")
        .skip(1)
        .filter(|plan| plan.contains("unnest(") && plan.contains("\"public\".\"t\""));
    plans.map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn statements_prepared_on_an_empty_table_are_index_nested_loops_over_a_million_rows() {
    let rows = from_environment("WALRELAY_TEST_ROWS", 1_000_000);
    for is_binary in [false, true] {
        let told = Options::default()
            .with("session_preload_libraries", "auto_explain")
            .with("auto_explain.log_min_duration", "0")
            .with("auto_explain.log_parameter_max_length", "0")
            .with("log_parameter_max_length", "0");
        let pair = Pair::with(18, Options::default(), 18, told).await;
        let mut replay = Replay::unlike(pair, TABLE, TABLE).await.in_form(is_binary).await;
        // Every form is prepared while there is next to nothing.
        replay
            .on_primary(
                "INSERT INTO t SELECT i * 500 + j, 'x', 'x' FROM generate_series(0, 9) i, generate_series(0, 2) j",
            )
            .await;
        replay.relay().await.unwrap();
        for statement in work() {
            replay.on_primary(&statement).await;
        }
        replay.relay().await.unwrap();
        replay.on_primary("DELETE FROM t").await;
        replay.relay().await.unwrap();
        // What is large by now came past the session.
        replay.on_both(&format!("INSERT INTO t SELECT i, 'x', 'x' FROM generate_series(1, {rows}) i")).await;
        replay.on_primary("SELECT pg_replication_slot_advance('s', pg_current_wal_lsn())").await;
        replay.on_standby(MARK).await;
        for statement in work() {
            replay.on_primary(&statement).await;
        }
        replay.relay().await.unwrap();
        assert_eq!(replay.fallbacks.counts(), []);
        assert_eq!(replay.equal("SELECT * FROM t WHERE a < 6000").await, 5999 - 10);
        let plans = plans(&replay);
        for kind in ["UPDATE", "DELETE"] {
            assert!(plans.iter().any(|plan| plan.contains(kind)), "no plan of a {kind} was told: {plans:#?}");
        }
        for plan in plans {
            let is_loop = plan.contains("Nested Loop") && plan.contains("using t_pkey on t");
            // An INSERT of rows that moved reads nothing of the table.
            let reads = plan.contains("UPDATE") || plan.contains("DELETE");
            assert!(!reads || is_loop && !plan.contains("Seq Scan on t"), "{plan}");
        }
    }
}
