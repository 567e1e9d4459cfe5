//! Large transactions streamed while they are open: 015_stream, 016_stream_subxact, 017_stream_ddl, 018_stream_subxact_abort,
//! 019_stream_subxact_ddl_abort; with everything streamed at once (16 and later) and by size (14).

use walrelay::throwaway::Options;

use super::super::harness::{Pair, client};

async fn pair(major: u32) -> Pair {
    let options = match major {
        14 | 15 => Options::default().with("logical_decoding_work_mem", "64kB"),
        _ => Options::default().with("debug_logical_replication_streaming", "immediate"),
    };
    let pair = Pair::with(major, options, major, Options::default()).await;
    pair.on_both("CREATE TABLE t (a int PRIMARY KEY, b bytea, c timestamptz DEFAULT now())").await;
    pair
}

/// Rows of a kilobyte, so that 64 kB of work memory are soon used up.
fn insert(from: u32, to: u32) -> String {
    format!("INSERT INTO t SELECT i, decode(repeat(md5(i::text), 32), 'hex') FROM generate_series({from}, {to}) i;")
}

const VERSIONS: &[u32] = &[14, 18];

/// 015: a large transaction between small ones of another session, with a binary-unsafe small memory limit.
#[tokio::test(flavor = "multi_thread")]
async fn a_streamed_transaction_and_small_ones_between_its_blocks() {
    for major in VERSIONS {
        let pair = pair(*major).await;
        pair.on_primary(&insert(1, 2)).await;
        let _relay = pair.relay("memory_limit = \"100kB\"").await;
        let large = client(&pair.primary, "shop").await;
        large
            .batch_execute(&format!(
                "BEGIN; {} UPDATE t SET b = 'large' WHERE a % 3 = 0; DELETE FROM t WHERE a % 5 = 0",
                insert(3, 1000)
            ))
            .await
            .unwrap();
        pair.on_primary(&format!("{} DELETE FROM t WHERE a = 5001", insert(5000, 5100))).await;
        large.batch_execute(&format!("{} COMMIT", insert(1001, 1500))).await.unwrap();
        large.batch_execute(&format!("BEGIN; {} ROLLBACK", insert(9000, 9500))).await.unwrap();
        pair.on_primary("UPDATE t SET b = 'after' WHERE a < 20").await;
        pair.equal_after_catching_up(&["t"]).await;
    }
}

/// 016, 018: subtransactions that stay and that roll back, nested, at the end, the whole.
#[tokio::test(flavor = "multi_thread")]
async fn subtransactions_of_a_streamed_transaction() {
    for major in VERSIONS {
        let pair = pair(*major).await;
        let _relay = pair.relay("memory_limit = \"300kB\"").await;
        for sql in [
            format!(
                "BEGIN; {} SAVEPOINT s1; {} SAVEPOINT s2; {} COMMIT",
                insert(1, 300),
                insert(301, 600),
                insert(601, 900)
            ),
            format!(
                "BEGIN; {} SAVEPOINT s1; {} ROLLBACK TO s1; {} COMMIT",
                insert(1001, 1100),
                insert(1101, 1300),
                insert(1301, 1400)
            ),
            format!(
                "BEGIN; {} SAVEPOINT s1; {} SAVEPOINT s2; {} ROLLBACK TO s1; {} SAVEPOINT s3; {} RELEASE s3; COMMIT",
                insert(2001, 2100),
                insert(2101, 2200),
                insert(2201, 2300),
                insert(2301, 2400),
                insert(2401, 2500)
            ),
            format!(
                "BEGIN; SAVEPOINT s1; {} ROLLBACK TO s1; {} SAVEPOINT s2; {} ROLLBACK TO s2; COMMIT",
                insert(3001, 3200),
                insert(3201, 3300),
                insert(3301, 3400)
            ),
            format!("BEGIN; {} SAVEPOINT s1; {} ROLLBACK", insert(4001, 4200), insert(4201, 4300)),
            insert(5001, 5002),
        ] {
            pair.on_primary(&sql).await;
        }
        pair.equal_after_catching_up(&["t"]).await;
    }
}

/// 017, 019: DDL inside a streamed transaction, kept and rolled back.
#[tokio::test(flavor = "multi_thread")]
async fn ddl_inside_a_streamed_transaction() {
    for major in VERSIONS {
        let pair = pair(*major).await;
        pair.on_standby("ALTER TABLE t ADD d int, ADD e int").await;
        let _relay = pair.relay("").await;
        let with = |column: &str, from: u32, to: u32| {
            format!(
                "INSERT INTO t (a, b, {column}) SELECT i, decode(repeat(md5(i::text), 32), 'hex'), i FROM generate_series({from}, {to}) i;"
            )
        };
        pair.on_primary(&format!(
            "BEGIN; {} ALTER TABLE t ADD d int; {} SAVEPOINT s1; ALTER TABLE t ADD e int; {} COMMIT",
            insert(1, 200),
            with("d", 201, 400),
            with("e", 401, 600)
        ))
        .await;
        pair.on_primary(&format!(
            "BEGIN; {} SAVEPOINT s1; ALTER TABLE t ADD f int; {} ROLLBACK TO s1; {} COMMIT",
            with("d", 1001, 1200),
            with("f", 1201, 1400),
            with("e", 1401, 1600)
        ))
        .await;
        pair.caught_up("standby1").await;
        let rows = "SELECT a, b, d, e FROM t ORDER BY a";
        assert_eq!(pair.on_primary(rows).await, pair.on_standby(rows).await);
    }
}
