//! The example consumer of `examples/` against a real feed: rows, deletes, key changes, unchanged large values, truncates.

use serde_json::{Value, json};

use super::harness::Feed;

#[allow(dead_code, reason = "its main is not ours")]
#[path = "../../examples/rebuild_table.rs"]
mod rebuild_table;

/// The rows that the example prints, in order of their ids.
async fn rebuilt(address: String) -> Vec<Value> {
    let read = move || {
        let table = rebuild_table::rebuild(&address, "shop.public.docs").unwrap();
        let mut rows: Vec<Value> = table.rows().map(|row| json!(row)).collect();
        rows.sort_by_key(|row| row["id"].as_i64());
        rows
    };
    tokio::task::spawn_blocking(read).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_example_rebuilds_a_table_truncates_included() {
    let feed = Feed::start().await;
    feed.on_primary(
        "CREATE TABLE docs (id int PRIMARY KEY, n int, doc text); ALTER TABLE docs ALTER doc SET STORAGE EXTERNAL",
    )
    .await;
    let sink = "skipped_operations = []\ncreate_topics = { partitions = 3, replication_factor = 1 }";
    let _relay = feed.relay(sink).await;
    for sql in [
        "INSERT INTO docs SELECT g, g, repeat(md5(g::text), 200) FROM generate_series(1, 20) g",
        "UPDATE docs SET n = -n WHERE id % 2 = 0",
        "UPDATE docs SET id = id + 100 WHERE id < 5; DELETE FROM docs WHERE id = 7",
        "BEGIN; INSERT INTO docs VALUES (200, 1, 'gone'); TRUNCATE docs; INSERT INTO docs VALUES (201, 1, 'stays'); COMMIT",
        "INSERT INTO docs SELECT g, g, NULL FROM generate_series(1, 5) g",
    ] {
        feed.on_primary(sql).await;
        feed.caught_up().await;
        // Committed is not yet readable: the markers follow.
        let records = super::harness::eventually("the rebuilt table equals the source", || async {
            let source = feed.on_primary("SELECT row_to_json(t)::text FROM docs t ORDER BY id").await;
            let source: Vec<Value> =
                source.iter().map(|row| serde_json::from_str(row[0].as_deref().unwrap()).unwrap()).collect();
            let found = rebuilt(feed.broker.address()).await;
            (found == source).then_some(found)
        });
        assert!(!records.await.is_empty(), "{sql}");
    }
}
