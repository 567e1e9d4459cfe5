//! A broker that does not answer: the feed waits for it in bounded memory, the primary hears from the feed all the while, and once the
//! broker is awake everything arrives once. A primary whose rows come slowly: their copy ends all the same.

use std::time::Duration;

use walrelay::throwaway::{BrokerOptions, Options};

use super::harness::{Feed, Relay, eventually, streams, trickle, value, waits_with};
use super::life::peak_kib;

/// More than all queues together hold.
const ROWS: u64 = 200_000;

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_broker_holds_the_feed_up_but_not_its_status_messages() {
    let feed = Feed::with(Options::default().with("wal_sender_timeout", "2s"), BrokerOptions::default()).await;
    feed.on_primary("CREATE TABLE t (id bigint PRIMARY KEY, filler text)").await;
    let relay = feed.relay_with("initial_copy = false\nmemory_limit = \"16MB\"", "").await;
    feed.on_primary("INSERT INTO t VALUES (0, 'first')").await;
    feed.caught_up().await;
    let walsender = value(&feed.primary, "shop", "SELECT active_pid FROM pg_replication_slots").await;
    let confirmed = feed.confirmed().await;
    feed.broker.signal(libc::SIGSTOP);
    let frozen_at = value(&feed.primary, "shop", "SELECT clock_timestamp()").await;
    for batch in 0..ROWS / 1000 {
        let (from, to) = (batch * 1000 + 1, batch * 1000 + 1000);
        feed.on_primary(&format!("INSERT INTO t SELECT i, repeat('r', 300) FROM generate_series({from}, {to}) i"))
            .await;
    }
    // Several times as long as a walsender waits for a word.
    let heard = format!(
        "SELECT bool_and(pid = {walsender} AND reply_time > '{frozen_at}'::timestamptz + interval '8 s') FROM pg_stat_replication"
    );
    eventually("the primary hears from the feed", || async {
        (value(&feed.primary, "shop", &heard).await == "t").then_some(())
    })
    .await;
    assert_eq!(feed.confirmed().await, confirmed, "confirmed what no broker has");
    let report = relay.report("feed1").await.unwrap();
    assert!(report["last_error"].is_null(), "{report}");
    // What it waits for is said, so that nobody takes it for stuck.
    let waits = |report: &serde_json::Value| {
        report["waiting_for"].as_str().is_some_and(|text| text.contains("the Kafka brokers"))
    };
    relay.wait("feed1", "it waits for the brokers", waits).await;
    feed.broker.signal(libc::SIGCONT);
    feed.caught_up().await;
    let peak = peak_kib(relay.process_id());
    println!("{ROWS} rows behind a frozen broker, peak {peak} KiB");
    assert!(peak < 150 * 1024, "the relay grew to {peak} KiB");
    let records = feed.reader().read_one("shop.public.t").await;
    let ids: Vec<u64> = records.iter().map(|record| record.key_json()["id"].as_u64().unwrap()).collect();
    assert!(ids.iter().copied().eq(0..=ROWS), "{} events", ids.len());
}

/// They are away for longer than a Kafka transaction may take, while one waits that would be too large if it took so long by itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_transaction_waits_for_brokers_that_are_away() {
    let mut feed = Feed::start().await;
    feed.on_primary("CREATE TABLE t (id bigint PRIMARY KEY, filler text)").await;
    let relay = feed.relay_with("initial_copy = false\nmemory_limit = \"1MB\"", "transaction_timeout = \"10s\"").await;
    feed.on_primary("INSERT INTO t VALUES (0, 'first')").await;
    feed.caught_up().await;
    feed.broker.kill9();
    // More than the client's queue holds.
    feed.on_primary("INSERT INTO t SELECT i, repeat('r', 300) FROM generate_series(1, 20000) i").await;
    let said = waits_with(&relay, &[]).await;
    println!("without a broker: {said}");
    assert!(!relay.log().contains("too large"), "{}", relay.log());
    feed.broker.start_again().await.unwrap();
    streams(&relay).await;
    feed.caught_up().await;
    let records = feed.reader().read_one("shop.public.t").await;
    let ids: Vec<u64> = records.iter().map(|record| record.key_json()["id"].as_u64().unwrap()).collect();
    assert!(ids.iter().copied().eq(0..=20_000), "{} events", ids.len());
}

/// The rows stand still for longer than a Kafka transaction may take: the brokers would end it each time.
#[tokio::test(flavor = "multi_thread")]
async fn the_copy_of_a_slow_primary_ends_and_sends_each_row_once() {
    // A broker looks for what lasts too long every ten seconds otherwise.
    let strict = BrokerOptions::default().with("transaction.abort.timed.out.transaction.cleanup.interval.ms", "200");
    let feed = Feed::with(Options::default(), strict).await;
    feed.on_primary("CREATE TABLE t (id bigint PRIMARY KEY, filler text)").await;
    feed.on_primary("INSERT INTO t SELECT i, repeat('r', 400) FROM generate_series(1, 4000) i").await;
    let port = trickle(feed.primary.port(), 512 * 1024, Duration::from_secs(8));
    let config = feed.config("copy_workers = 1", "transaction_timeout = \"6s\"");
    let config = config.replace(&format!(":{}/", feed.primary.port()), &format!(":{port}/"));
    assert!(config.contains(&format!(":{port}/")), "{config}");
    let relay = Relay::start(&config).await;
    streams(&relay).await;
    feed.caught_up().await;
    let records = feed.reader().read_one("shop.public.t").await;
    let ids: Vec<u64> = records.iter().map(|record| record.key_json()["id"].as_u64().unwrap()).collect();
    assert!(ids.iter().copied().eq(1..=4000), "{} events, log:\n{}", ids.len(), relay.log());
}
