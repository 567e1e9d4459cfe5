//! A standby far away, by a proxy that delays: commits of several clients wait for it, so that batches follow each other unanswered.
//! Every depth ends alike, and what was under way when the standby dies is neither lost nor repeated. Prints how fast it went
//! (`WALRELAY_TEST_ROUND_TRIP_US`, `WALRELAY_TEST_CLIENTS`, `WALRELAY_TEST_COMMITS`); judges no time.

use std::time::{Duration, Instant};

use walrelay::config::ServerUrl;
use walrelay::throwaway::Options;
use walrelay::wire::Session;
use walrelay::wire::sql::connect;

use super::harness::{Pair, Relay, distance::proxy, eventually, from_environment, value};

const TABLES: &str = "CREATE TABLE log (client int, at int, PRIMARY KEY (client, at)); CREATE TABLE sums (client int PRIMARY KEY, n int);
    INSERT INTO sums SELECT i, 0 FROM generate_series(1, 64) i";

/// A pair whose standby the relay reaches from far.
struct Scene {
    pair: Pair,
    relay: Relay,
    clients: u64,
}

impl Scene {
    async fn begin(depth: usize) -> Self {
        let lazy = Options::default().with("wal_writer_delay", "10s").with("wal_writer_flush_after", "1GB");
        let pair = Pair::with(18, Options::default(), 18, lazy).await;
        pair.on_both(TABLES).await;
        let round_trip = Duration::from_micros(from_environment("WALRELAY_TEST_ROUND_TRIP_US", 5_000));
        let port = proxy(pair.standby.port(), round_trip);
        let lines = "initial_copy = false";
        let config = pair.config(lines).replace(&format!(":{}/", pair.standby.port()), &format!(":{port}/"));
        assert!(config.contains(&format!(":{port}/")), "{config}");
        let relay = Relay::start(&format!("{config}apply_depth = {depth}\n")).await;
        relay.wait_state("streaming").await;
        pair.wait_for_standbys("FIRST 1 (standby1)").await;
        Self { pair, relay, clients: from_environment("WALRELAY_TEST_CLIENTS", 8) }
    }

    /// Each client commits so often, `from` on, and waits for the standby each time.
    async fn work(&self, from: u64, commits: u64) -> Duration {
        let began = Instant::now();
        let url = self.pair.primary.server_url("shop").unwrap();
        let clients: Vec<_> =
            (1..=self.clients).map(|client| tokio::spawn(write(url.clone(), client, from, commits))).collect();
        for client in clients {
            client.await.unwrap();
        }
        began.elapsed()
    }

    async fn end(self) {
        self.relay.wait_state("streaming").await;
        self.pair.equal_after_catching_up(&["log", "sums"]).await;
        let (_, metrics) = self.relay.get("/metrics").await;
        let fell_back = metrics.lines().any(|line| line.starts_with("walrelay_apply_fallbacks_total{"));
        assert!(!fell_back, "{metrics}");
    }
}

async fn write(primary: ServerUrl, client: u64, from: u64, commits: u64) {
    let session = connect(&primary, &Session::new("load")).await.unwrap();
    for at in from..from + commits {
        let sql = format!(
            "BEGIN; INSERT INTO log VALUES ({client}, {at}); UPDATE sums SET n = n + 1 WHERE client = {client}; COMMIT"
        );
        session.batch_execute(&sql).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_far_standby_ends_alike_at_every_depth() {
    let commits = from_environment("WALRELAY_TEST_COMMITS", 60);
    for depth in [1, 4] {
        let scene = Scene::begin(depth).await;
        scene.work(0, 5).await;
        let took = scene.work(5, commits).await;
        let rate = (scene.clients * commits) as f64 / took.as_secs_f64();
        println!("depth {depth}: {} clients, {rate:.0} commits a second", scene.clients);
        scene.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_far_standby_that_dies_with_batches_under_way_loses_and_repeats_nothing() {
    let mut scene = Scene::begin(4).await;
    let url = scene.pair.primary.server_url("shop").unwrap();
    let clients: Vec<_> = (1..=scene.clients).map(|client| tokio::spawn(write(url.clone(), client, 0, 200))).collect();
    for round in 1..=5 {
        let sql = format!("SELECT count(*) >= {} FROM log", round * 100);
        eventually("commits arrive", || async {
            (value(&scene.pair.standby, "shop", &sql).await == "t").then_some(())
        })
        .await;
        scene.pair.standby.kill9();
        scene.pair.standby.start_again().await.unwrap();
    }
    for client in clients {
        client.await.unwrap();
    }
    scene.end().await;
}
