//! Streams of binary values: every type, between versions, and what happens where the types of both sides are not alike.

use walrelay::throwaway::Options;

use super::harness::{Pair, Relay, eventually, oldest_and_newest};
use super::types::{RANDOM, ROWS, TYPES};

/// All but `referring`, whose values are text.
const TABLES: &[&str] =
    &["builtin", "named", "composed", "identity_columns", "empty", "no_columns", "\"Odd \"\"name\""];

/// Forms of the streams so far, by the log.
fn forms(relay: &Relay) -> Vec<bool> {
    let log = relay.log();
    let lines = log.lines().filter(|line| line.contains("streaming from the primary"));
    lines.map(|line| line.contains("binary=true")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_type_streams_in_binary_form_between_versions() {
    for (primary, standby) in [(18, 18), (14, 14), (14, 18), (18, 14)] {
        let pair = Pair::with(primary, Options::default(), standby, Options::default()).await;
        let types = TYPES.replace("am tsquery", "am text");
        // An interval may be infinite for one of them only.
        let types = if primary == standby { types } else { types.replace("s interval", "s text") };
        pair.on_both(&types).await;
        let relay = pair.relay("exclude = [\"public.referring\"]").await;
        pair.on_primary(ROWS).await;
        pair.on_primary(&RANDOM.replace("SEED", "0.5")).await;
        pair.equal_after_catching_up(TABLES).await;
        pair.on_primary(
            "UPDATE builtin SET id = id + 100000 WHERE id <= 5; UPDATE builtin SET h = 'nan', i = NULL, m = 'changed', x = '[1]', av = NULL
               WHERE id % 3 = 0;
             UPDATE named SET m = 'ok' WHERE id = 1; UPDATE composed SET h = 'c=>2', p = NULL WHERE id = 1; DELETE FROM builtin WHERE id % 5 = 1;
             UPDATE composed SET m = '{ok}', z = '{c}', p = ROW (2, NULL)::pair",
        )
        .await;
        pair.equal_after_catching_up(TABLES).await;
        pair.on_both(
            "ALTER TABLE builtin DROP CONSTRAINT builtin_pkey, REPLICA IDENTITY FULL;
             ALTER TABLE composed DROP CONSTRAINT composed_pkey, REPLICA IDENTITY FULL",
        )
        .await;
        pair.on_primary(
            "UPDATE builtin SET m = 'whole', w = '{\"new\": 1}' WHERE id > 100000; DELETE FROM builtin WHERE id % 7 = 2;
             UPDATE composed SET d = 'sad', m = '{sad,sad}' WHERE id = 2",
        )
        .await;
        pair.equal_after_catching_up(TABLES).await;
        assert_eq!(forms(&relay), [true], "{primary} to {standby}");
        let (_, metrics) = relay.get("/metrics").await;
        assert!(!metrics.contains("apply_fallbacks_total{"), "{primary} to {standby}: {metrics}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn types_that_are_not_alike_make_a_stream_of_text() {
    for (what, column, primary, standby, lines, expected) in [
        ("a wider number", "b", "b int", "b bigint", "", false),
        ("a reference", "b", "b regclass", "b regclass", "", false),
        ("rights, and a list of them", "c", "b aclitem, c aclitem[]", "b aclitem, c aclitem[]", "", false),
        ("not wanted", "", "b int", "b int", "binary = false", false),
        ("all alike", "", "b int", "b int", "binary = \"auto\"", true),
    ] {
        let pair = Pair::start(18).await;
        pair.on_primary(&format!("CREATE TABLE t (id int PRIMARY KEY, {primary})")).await;
        pair.on_standby(&format!("CREATE TABLE t (id int PRIMARY KEY, {standby})")).await;
        let relay = Relay::start(&format!("{}{lines}\n", pair.config(""))).await;
        relay.wait_state("streaming").await;
        pair.on_primary("INSERT INTO t (id) SELECT generate_series(1, 100); UPDATE t SET id = -id WHERE id % 2 = 0")
            .await;
        pair.equal_after_catching_up(&["t"]).await;
        assert_eq!(forms(&relay), [expected], "{what}");
        let named = format!("public.t, column \"{column}\"");
        assert!(column.is_empty() || relay.log().contains(&named), "{what}: {named} is not in the log");
    }
}

/// Its binary form is that of a large number to a server that does not know it.
#[tokio::test(flavor = "multi_thread")]
async fn an_infinite_interval_never_becomes_a_number_on_an_older_server() {
    let pair = Pair::with(18, Options::default(), 14, Options::default()).await;
    pair.on_both("CREATE TABLE t (id int PRIMARY KEY, i interval)").await;
    pair.on_primary("INSERT INTO t VALUES (1, '1 mon')").await;
    let relay = pair.relay("").await;
    pair.on_primary("INSERT INTO t VALUES (2, '-1 day')").await;
    pair.equal_after_catching_up(&["t"]).await;
    assert_eq!(forms(&relay), [false]);
    pair.on_primary("INSERT INTO t VALUES (3, 'infinity')").await;
    relay.fails_with(&["public.t"]).await;
    assert_eq!(pair.on_standby("SELECT count(*) FROM t").await[0][0].as_deref(), Some("2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_type_that_comes_while_streaming_is_looked_at_or_read_as_text() {
    let pair = Pair::start(18).await;
    pair.on_both("CREATE TABLE t (id int PRIMARY KEY, b text)").await;
    let mut relay = pair.relay("").await;
    pair.on_primary("INSERT INTO t VALUES (1, 'x')").await;
    pair.equal_after_catching_up(&["t"]).await;
    // A user's type: the session ends, the next one knows it.
    pair.on_both("CREATE TYPE mood AS ENUM ('sad', 'ok'); ALTER TABLE t ADD m mood").await;
    pair.on_primary("INSERT INTO t VALUES (2, 'x', 'ok')").await;
    caught_up(&pair).await;
    pair.assert_equal(&["t"]).await;
    assert_eq!(forms(&relay), [true, true]);
    // A reference: text from here on.
    pair.on_both("ALTER TABLE t ADD r regclass").await;
    pair.on_primary("INSERT INTO t VALUES (3, 'x', 'ok', 't'); UPDATE t SET b = 'y'").await;
    caught_up(&pair).await;
    pair.assert_equal(&["t"]).await;
    assert_eq!(forms(&relay), [true, true, false]);
    // Both catalogs agree again, and the stream holds rows of before.
    pair.on_both("ALTER TABLE t DROP r").await;
    relay.stop().await;
    pair.on_primary(
        "INSERT INTO t SELECT i, 'x', 'sad' FROM generate_series(4, 200) i; ALTER TABLE t ALTER b TYPE varchar(9)",
    )
    .await;
    pair.on_standby("ALTER TABLE t ALTER b TYPE varchar(9)").await;
    pair.on_primary("UPDATE t SET b = 'z'").await;
    relay.start_again().await;
    caught_up(&pair).await;
    pair.assert_equal(&["t"]).await;
    assert_eq!(forms(&relay), [true, true, false, true, true, false]);
    // Past it, a stream is binary again.
    relay.kill9();
    relay.start_again().await;
    pair.on_primary("UPDATE t SET b = 'last'").await;
    caught_up(&pair).await;
    pair.assert_equal(&["t"]).await;
    assert_eq!(forms(&relay).last(), Some(&true));
}

/// The slot's position may stand still for a moment while one stream ends and the next begins.
async fn caught_up(pair: &Pair) {
    let target = pair.on_primary("SELECT pg_current_wal_insert_lsn()").await[0][0].clone().unwrap();
    let sql = format!("SELECT (confirmed_flush_lsn >= '{target}')::text FROM pg_replication_slots");
    eventually("the slot is confirmed", || async {
        (pair.on_primary(&sql).await[0][0].as_deref() == Some("true")).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_standby_makes_of_null_decides_neither_the_values_nor_the_way() {
    for binary in ["binary = \"auto\"", "binary = false"] {
        for major in oldest_and_newest() {
            let pair = Pair::start(major).await;
            // A row of the table's type cannot hold a NULL in `p`, and an array's bare NULL would be the text.
            pair.on_both(
                "CREATE DOMAIN given AS int NOT NULL; CREATE TABLE t (id int PRIMARY KEY, p given, a int[], v text)",
            )
            .await;
            pair.on_standby("ALTER DATABASE shop SET array_nulls = off").await;
            let relay = Relay::start(&format!("{}{binary}\n", pair.config(""))).await;
            relay.wait_state("streaming").await;
            pair.on_primary("INSERT INTO t SELECT i, i, ARRAY[i, NULL], CASE WHEN i % 2 = 0 THEN 'x' END FROM generate_series(1, 40) i")
                .await;
            pair.equal_after_catching_up(&["t"]).await;
            pair.on_primary("UPDATE t SET a = a || 7, v = CASE WHEN v IS NULL THEN 'NULL' END").await;
            pair.equal_after_catching_up(&["t"]).await;
            let (_, metrics) = relay.get("/metrics").await;
            assert!(!metrics.contains("apply_fallbacks_total{"), "{binary}, {major}: {metrics}");
        }
    }
}
