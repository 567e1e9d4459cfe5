//! The example consumer of `examples/` against a real feed: copied rows, deletes, key changes, unchanged large values, truncates.

use serde_json::{Value, json};

use super::harness::{Feed, eventually};

#[allow(dead_code, reason = "its main is not ours")]
#[path = "../../examples/rebuild_table.rs"]
mod rebuild_table;

/// The rows that the example finds, in order of their ids; a fault of the example is its text.
async fn rebuilt(address: String) -> Result<Vec<Value>, String> {
    let read = move || {
        let table = rebuild_table::rebuild(&address, "shop.public.docs").map_err(|error| error.to_string())?;
        let mut rows: Vec<Value> = table.rows().map(|row| json!(row)).collect();
        rows.sort_by_key(|row| row["id"].as_i64());
        Ok(rows)
    };
    tokio::task::spawn_blocking(read).await.unwrap()
}

/// Waits until the example finds what the source holds: committed is not yet readable, the markers follow.
async fn equals_the_source(feed: &Feed, after: &str) {
    feed.caught_up().await;
    let source = feed.on_primary("SELECT row_to_json(t)::text FROM docs t ORDER BY id").await;
    let source: Vec<Value> =
        source.iter().map(|row| serde_json::from_str(row[0].as_deref().unwrap()).unwrap()).collect();
    eventually(&format!("the rebuilt table equals the source after: {after}"), || async {
        (rebuilt(feed.broker.address()).await.unwrap() == source).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_example_rebuilds_a_table_truncates_included() {
    let feed = Feed::start().await;
    feed.on_primary(
        "CREATE TABLE docs (id int PRIMARY KEY, n int, doc text); ALTER TABLE docs ALTER doc SET STORAGE EXTERNAL;
         INSERT INTO docs SELECT g, g, repeat(md5(g::text), 200) FROM generate_series(1, 20) g",
    )
    .await;
    let sink = "skipped_operations = []\ncreate_topics = { partitions = 3, replication_factor = 1 }";
    let _relay = feed.relay_with("initial_copy = true", sink).await;
    equals_the_source(&feed, "the copy").await;
    for sql in [
        "UPDATE docs SET n = -n WHERE id % 2 = 0",
        "UPDATE docs SET doc = 'short' WHERE id < 5; UPDATE docs SET id = id + 100 WHERE id < 5; DELETE FROM docs WHERE id = 7",
        "BEGIN; INSERT INTO docs VALUES (200, 1, 'gone'); TRUNCATE docs; INSERT INTO docs VALUES (201, 1, 'stays'); COMMIT",
        "INSERT INTO docs SELECT g, g, repeat(md5(g::text), 200) FROM generate_series(1, 5) g",
    ] {
        feed.on_primary(sql).await;
        equals_the_source(&feed, sql).await;
    }
    // A large value does not follow its row to another key: the example says so, and what helps.
    feed.on_primary("UPDATE docs SET id = id + 300 WHERE id = 1").await;
    feed.caught_up().await;
    let refused =
        eventually("the example refuses the incomplete row", || async { rebuilt(feed.broker.address()).await.err() });
    assert!(refused.await.contains("REPLICA IDENTITY FULL"));
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_full_identity_large_values_follow_their_row_to_another_key() {
    let feed = Feed::start().await;
    feed.on_primary(
        "CREATE TABLE docs (id int PRIMARY KEY, n int, doc text); ALTER TABLE docs ALTER doc SET STORAGE EXTERNAL;
         ALTER TABLE docs REPLICA IDENTITY FULL;
         INSERT INTO docs SELECT g, g, repeat(md5(g::text), 200) FROM generate_series(1, 5) g",
    )
    .await;
    let _relay = feed.relay_with("initial_copy = true", "").await;
    let sql = "UPDATE docs SET id = id + 100 WHERE id < 3; UPDATE docs SET n = 0";
    feed.on_primary(sql).await;
    equals_the_source(&feed, sql).await;
}
