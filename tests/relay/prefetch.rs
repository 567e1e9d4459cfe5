//! `prefetch_connections` in a running relay: pages are read ahead only while the standby reads blocks for the rows, and `/metrics` says so.

use walrelay::throwaway::Options;

use super::harness::{Pair, Relay, eventually, value};

const TABLES: &str =
    "CREATE TABLE hot (k int PRIMARY KEY, v int); INSERT INTO hot SELECT i, 0 FROM generate_series(1, 2000) i;
    CREATE TABLE cold (k int PRIMARY KEY, v int, note text);
    INSERT INTO cold SELECT i, 0, repeat('x', 150) FROM generate_series(1, 400000) i";
const SESSIONS: &str =
    "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'walrelay standby1 prefetch%'";

/// A number of `/metrics`.
async fn metric(relay: &Relay, name: &str) -> Option<f64> {
    let (_, page) = relay.get("/metrics").await;
    let start = format!("walrelay_{name}{{pipeline=\"standby1\"}} ");
    page.lines().find_map(|line| line.strip_prefix(&start)).map(|number| number.parse().unwrap())
}

/// Repeats the work until it is done, or not done any more.
async fn until(pair: &Pair, relay: &Relay, is_on: bool, work: &str) {
    let mut round = 0;
    while metric(relay, "prefetching").await != Some(f64::from(u8::from(is_on))) {
        assert!(round < 60, "still not {is_on}: {:?} block reads a row", metric(relay, "block_reads_per_row").await);
        round += 1;
        pair.on_primary(&work.replace("ROUND", &round.to_string())).await;
        pair.caught_up("standby1").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_are_read_ahead_while_blocks_are_read_for_the_rows() {
    let standby = Options::default().with("shared_buffers", "8MB");
    let pair = Pair::with(18, Options::default(), 18, standby).await;
    pair.on_both(TABLES).await;
    pair.on_standby("VACUUM ANALYZE").await;
    let relay = Relay::start(&format!("{}prefetch_connections = 4\n", pair.config("initial_copy = false"))).await;
    relay.wait_state("streaming").await;
    // Nothing is known at first.
    assert_eq!(metric(&relay, "prefetching").await, Some(1.0));
    let (hot, cold) = ("UPDATE hot SET v = v + 1", "UPDATE cold SET v = v + 1 WHERE k % 61 = ROUND");
    until(&pair, &relay, false, hot).await;
    let before = metric(&relay, "prefetched_rows_total").await;
    until(&pair, &relay, true, cold).await;
    assert!(metric(&relay, "block_reads_per_row").await.unwrap() > 0.1);
    let mut round = 0;
    while metric(&relay, "prefetched_rows_total").await == before {
        assert!(round < 60, "nothing was read ahead");
        round += 1;
        pair.on_primary(&cold.replace("ROUND", &round.to_string())).await;
        pair.caught_up("standby1").await;
    }
    assert_ne!(value(&pair.standby, "shop", SESSIONS).await, "0");
    until(&pair, &relay, false, hot).await;
    eventually("the sessions are closed", || async {
        (value(&pair.standby, "shop", SESSIONS).await == "0").then_some(())
    })
    .await;
    pair.equal_after_catching_up(&["hot", "cold"]).await;
    let log = relay.log();
    assert!(log.contains("begins to read pages ahead") && log.contains("no longer reads pages ahead"), "{log}");
}
