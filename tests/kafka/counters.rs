//! What a feed counts: records, values that the events' form could not hold, dead letters, truncates without an event; in
//! `/status` and in `/metrics`, and only what was committed.

use serde_json::{Value, json};

use super::harness::{Feed, Relay, streams};

/// Waits until the numbers of the feed are these.
async fn counts(relay: &Relay, expected: Value) {
    let keys = ["records", "lossy_values", "dead_letters", "skipped_truncates"];
    let of = |report: &Value| keys.map(|key| report["feed"][key].clone());
    let wanted = keys.map(|key| expected[key].clone());
    relay.wait("feed1", &expected.to_string(), |report| of(report) == wanted).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_feed_counts_what_consumers_should_know_of() {
    let feed = Feed::start().await;
    feed.on_primary(
        "CREATE TABLE odd (id int PRIMARY KEY, n numeric, doc text); INSERT INTO odd VALUES (1, 'NaN', NULL)",
    )
    .await;
    feed.create_topic("shop.public.odd", 1, &[("max.message.bytes", "20000")]).await;
    let relay = feed.relay_with("initial_copy = true", "on_oversized = \"dead_letter\"").await;
    counts(&relay, json!({"records": 1, "lossy_values": 1, "dead_letters": 0, "skipped_truncates": 0})).await;
    feed.on_primary("INSERT INTO odd VALUES (2, 'Infinity', NULL), (3, 1.5, NULL)").await;
    counts(&relay, json!({"records": 3, "lossy_values": 2, "dead_letters": 0, "skipped_truncates": 0})).await;
    feed.on_primary("INSERT INTO odd VALUES (4, 0, repeat('x', 30000))").await;
    counts(&relay, json!({"records": 4, "lossy_values": 2, "dead_letters": 1, "skipped_truncates": 0})).await;
    feed.on_primary("TRUNCATE odd").await;
    counts(&relay, json!({"records": 4, "lossy_values": 2, "dead_letters": 1, "skipped_truncates": 1})).await;
    let log = relay.log();
    let said = log.lines().find(|line| line.contains("a TRUNCATE made no event")).unwrap_or_default();
    assert!(said.contains("public.odd") && said.contains("lsn"), "{said:?}");
    let (_, metrics) = relay.get("/metrics").await;
    for line in [
        "feed_records_total",
        "feed_bytes_total",
        "feed_lossy_values_total",
        "feed_dead_letters_total",
        "feed_skipped_truncates_total",
    ] {
        assert!(metrics.contains(&format!("\nwalrelay_{line}{{pipeline=\"feed1\"}} ")), "{line}: {metrics}");
    }
    assert!(metrics.contains("walrelay_feed_dead_letters_total{pipeline=\"feed1\"} 1\n"), "{metrics}");
    // A new session of the same daemon counts on.
    streams(&relay).await;
    feed.on_primary("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots").await;
    feed.on_primary("INSERT INTO odd VALUES (5, 'NaN', NULL)").await;
    counts(&relay, json!({"records": 5, "lossy_values": 3, "dead_letters": 1, "skipped_truncates": 1})).await;
}
