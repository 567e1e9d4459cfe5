//! The initial copy as a user sees it: what arrives, what is refused, and that the stream goes on exactly where it ended.
//! Mirrors what t/002_types, 004_sync, 008_diff_schema, 011_generated, 013_partition, 028_row_filter and 031_column_list of
//! Postgres' subscription tests say about initial data.

use std::time::Duration;

use rand::RngExt;

use super::harness::{Pair, Relay, eventually, major_versions, oldest_and_newest, try_run, value};

const TYPES: &str = include_str!("copy_types.sql");
const TYPES_ROWS: &str = include_str!("copy_types_rows.sql");

/// Both sides answer the query alike.
async fn assert_same(pair: &Pair, sql: &str) {
    let (primary, standby) = (pair.on_primary(sql).await, pair.on_standby(sql).await);
    let different: Vec<_> = primary.iter().zip(&standby).filter(|(ours, theirs)| ours != theirs).take(3).collect();
    assert!(primary == standby, "{sql}: {} and {} rows, {different:?}", primary.len(), standby.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_type_is_copied_whatever_the_settings_of_the_servers() {
    for major in major_versions() {
        let pair = Pair::start(major).await;
        pair.on_both(TYPES).await;
        pair.on_standby(
            "ALTER DATABASE shop SET datestyle = 'German'; ALTER DATABASE shop SET intervalstyle = 'sql_standard';
             ALTER DATABASE shop SET bytea_output = 'escape'; ALTER DATABASE shop SET timezone = 'Asia/Tokyo';
             ALTER DATABASE shop SET xmloption = 'document'; ALTER DATABASE shop SET search_path = 'nowhere';
             ALTER DATABASE shop SET default_transaction_read_only = on",
        )
        .await;
        pair.on_primary(TYPES_ROWS).await;
        pair.on_primary(
            "ALTER DATABASE shop SET datestyle = 'SQL, DMY'; ALTER DATABASE shop SET intervalstyle = 'iso_8601';
             ALTER DATABASE shop SET extra_float_digits = 0; ALTER DATABASE shop SET idle_in_transaction_session_timeout = '1ms';
             ALTER DATABASE shop SET statement_timeout = '1s'; ALTER DATABASE shop SET search_path = ''",
        )
        .await;
        let relay = pair.relay("").await;
        let settings =
            "SET search_path = public; SET datestyle = iso; SET timezone = 'UTC'; SET intervalstyle = postgres;
                        SET extra_float_digits = 3; SET bytea_output = hex;";
        for table in ["builtin", "named", "composed", "referring", "identity_columns", "empty", "\"Odd \"\"name\""] {
            assert_same(&pair, &format!("{settings} SELECT * FROM {table} ORDER BY 1")).await;
        }
        assert_same(&pair, "SELECT count(*) FROM public.no_columns").await;
        let report = relay.report("standby1").await.unwrap();
        assert_eq!((&report["copy"]["tables_total"], &report["copy"]["tables_done"]), (&8.into(), &8.into()));
        assert_eq!(report["copy"]["rows"], 5 + 3 + 2 + 2 + 10 + 7 + 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_of_another_shape_takes_what_it_has_columns_for() {
    let pair = Pair::start(18).await;
    pair.on_primary("CREATE TABLE t (id int PRIMARY KEY, a int, b varchar(10), c timestamp, d text)").await;
    pair.on_standby("CREATE TABLE t (x int DEFAULT 7, d text, c text, b text, a bigint, id int8 PRIMARY KEY)").await;
    pair.on_primary("INSERT INTO t SELECT i, i, i, '2020-01-01', repeat('é', i) FROM generate_series(1, 500) i").await;
    pair.on_primary("INSERT INTO t (id) VALUES (501)").await;
    let _relay = pair.relay("").await;
    assert_same(&pair, "SELECT id, a, b, c::text, d FROM t ORDER BY id").await;
    assert_eq!(value(&pair.standby, "shop", "SELECT count(*) FROM t WHERE x = 7").await, "501");
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_the_standby_lacks_is_named_before_anything_is_written() {
    let pair = Pair::start(18).await;
    pair.on_primary(
        "CREATE TABLE a (id int PRIMARY KEY, x text, y text); CREATE TABLE b (id int); CREATE TABLE c (id int); CREATE TABLE d (id int)",
    )
    .await;
    pair.on_standby(
        "CREATE TABLE a (id int PRIMARY KEY, y text GENERATED ALWAYS AS ('q') STORED); CREATE VIEW c AS SELECT 1 AS id",
    )
    .await;
    let relay = Relay::start(&pair.config("exclude = [\"public.d\"]")).await;
    let parts = [
        "column \"x\" of public.a is missing",
        "column \"y\" of public.a is generated",
        "table public.b is missing",
        "public.c",
    ];
    let error = relay.fails_with(&parts).await;
    assert!(!error.contains("public.d"), "{error}");
    assert_eq!(value(&pair.primary, "shop", "SELECT count(*) FROM pg_replication_slots").await, "0");
}

const OCCUPIED: &str = "CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY REFERENCES a); CREATE TABLE c (id int PRIMARY KEY);
    CREATE TABLE d (id int); CREATE TABLE outside (id int REFERENCES a)";

/// Rows on the standby: in `a`, which a table outside of the set refers to, in `b` and in `d`.
async fn occupied_pair() -> Pair {
    let pair = Pair::start(18).await;
    pair.on_both(OCCUPIED).await;
    pair.on_primary("INSERT INTO a SELECT generate_series(1, 100); INSERT INTO b SELECT generate_series(1, 50)").await;
    pair.on_primary("INSERT INTO c SELECT generate_series(1, 100); INSERT INTO d VALUES (1)").await;
    pair.on_standby("INSERT INTO a VALUES (1000); INSERT INTO b VALUES (1000); INSERT INTO d VALUES (7)").await;
    pair.on_standby("INSERT INTO outside VALUES (1000)").await;
    pair
}

#[tokio::test(flavor = "multi_thread")]
async fn existing_rows_are_refused_with_every_table_named_and_nothing_written() {
    let pair = occupied_pair().await;
    let relay = Relay::start(&pair.config("exclude = [\"public.outside\"]")).await;
    let error = relay.fails_with(&["public.a, public.b, public.d", "on_existing_rows"]).await;
    assert!(!error.contains("public.c"), "{error}");
    assert_eq!(value(&pair.standby, "shop", "SELECT string_agg(id::text, ' ') FROM a").await, "1000");
    assert_eq!(value(&pair.primary, "shop", "SELECT count(*) FROM pg_replication_slots").await, "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn existing_rows_are_removed_even_where_a_foreign_key_points_at_them() {
    let pair = occupied_pair().await;
    let _relay = pair.relay("exclude = [\"public.outside\"]\non_existing_rows = \"truncate\"").await;
    pair.assert_equal(&["a", "b", "c", "d"]).await;
    assert_eq!(value(&pair.standby, "shop", "SELECT id FROM outside").await, "1000");
}

#[tokio::test(flavor = "multi_thread")]
async fn existing_rows_are_kept_and_a_row_in_the_way_stops_the_copy() {
    let pair = occupied_pair().await;
    let lines = "exclude = [\"public.outside\"]\non_existing_rows = \"keep\"";
    let relay = pair.relay(lines).await;
    for (table, rows) in [("a", "101"), ("b", "51"), ("c", "100"), ("d", "2")] {
        assert_eq!(value(&pair.standby, "shop", &format!("SELECT count(*) FROM {table}")).await, rows, "{table}");
    }
    drop(relay);
    let pair = occupied_pair().await;
    pair.on_standby("INSERT INTO a VALUES (1)").await;
    let relay = Relay::start(&pair.config(lines)).await;
    relay.fails_with(&["public.a", "23505", "a_pkey"]).await;
    assert_eq!(value(&pair.standby, "shop", "SELECT count(*) FROM a").await, "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn row_filters_column_lists_and_generated_columns_of_the_publication_hold_for_the_copy() {
    for major in major_versions().into_iter().filter(|major| *major >= 15) {
        let pair = Pair::start(major).await;
        pair.on_both(
            "CREATE TABLE filtered (id int PRIMARY KEY, m text);
             CREATE TABLE listed (id int PRIMARY KEY, a text, b text); CREATE TABLE unpublished (id int)",
        )
        .await;
        pair.on_primary("CREATE TABLE generated (id int PRIMARY KEY, g int GENERATED ALWAYS AS (id * 2) STORED)").await;
        pair.on_standby("CREATE TABLE generated (id int PRIMARY KEY, g int)").await;
        pair.on_primary(
            "INSERT INTO filtered SELECT i, CASE WHEN i % 2 = 0 THEN 'sad' ELSE 'ok' END FROM generate_series(1, 100) i;
             INSERT INTO listed VALUES (1, 'a', 'b'); INSERT INTO generated VALUES (1), (2); INSERT INTO unpublished VALUES (1)",
        )
        .await;
        let options = if major >= 18 { "WITH (publish_generated_columns = stored)" } else { "" };
        pair.on_primary(&format!(
            "CREATE PUBLICATION mine FOR TABLE filtered WHERE (m = 'sad' OR id < 10), TABLE listed (id, b), TABLE generated {options}"
        ))
        .await;
        let _relay = pair.relay("publication = \"mine\"").await;
        assert_same(&pair, "SELECT * FROM filtered WHERE m = 'sad' OR id < 10 ORDER BY id").await;
        assert_eq!(value(&pair.standby, "shop", "SELECT count(*) FROM filtered").await, "55");
        assert_eq!(value(&pair.standby, "shop", "SELECT (id, a, b)::text FROM listed").await, "(1,,b)");
        let expected = if major >= 18 { "2 4" } else { "" };
        assert_eq!(
            value(&pair.standby, "shop", "SELECT string_agg(g::text, ' ' ORDER BY id) FROM generated").await,
            expected
        );
        assert_eq!(value(&pair.standby, "shop", "SELECT count(*) FROM unpublished").await, "0");
    }
}

const FAMILIES: &str = "CREATE TABLE root (id int PRIMARY KEY, t text) PARTITION BY RANGE (id);
    CREATE TABLE low PARTITION OF root FOR VALUES FROM (0) TO (100);
    CREATE TABLE high PARTITION OF root FOR VALUES FROM (100) TO (1000) PARTITION BY RANGE (id);
    CREATE TABLE deep PARTITION OF high FOR VALUES FROM (100) TO (1000);
    CREATE TABLE parent (id int); CREATE TABLE child (x int) INHERITS (parent)";

#[tokio::test(flavor = "multi_thread")]
async fn partitions_and_children_are_copied_once_each() {
    for major in major_versions() {
        for publication in
            ["", "CREATE PUBLICATION mine FOR TABLE root, parent WITH (publish_via_partition_root = true)"]
        {
            let pair = Pair::start(major).await;
            pair.on_both(FAMILIES).await;
            pair.on_primary("INSERT INTO root SELECT i, i FROM generate_series(0, 499) i").await;
            pair.on_primary("INSERT INTO parent VALUES (1); INSERT INTO child VALUES (2, 3)").await;
            pair.on_primary(publication).await;
            let _relay = pair.relay(if publication.is_empty() { "" } else { "publication = \"mine\"" }).await;
            for table in ["root", "parent", "child"] {
                assert_same(&pair, &format!("SELECT tableoid::regclass, * FROM {table} ORDER BY 2")).await;
            }
        }
    }
}

/// The standby's records of a table are about the table that had its name before.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_was_dropped_and_made_again_is_copied_again() {
    for major in oldest_and_newest() {
        let pair = Pair::start(major).await;
        pair.on_both("CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE other (id int PRIMARY KEY)").await;
        pair.on_primary("INSERT INTO t VALUES (1, 'old'); INSERT INTO other VALUES (1)").await;
        let mut relay = pair.relay("").await;
        pair.assert_equal(&["t", "other"]).await;
        assert!(relay.stop().await.success());
        let again = "DROP TABLE t; CREATE TABLE t (id int PRIMARY KEY, w int)";
        pair.on_both(again).await;
        pair.on_primary("INSERT INTO t SELECT i, i FROM generate_series(1, 1000) i; INSERT INTO other VALUES (2)")
            .await;
        relay.start_again().await;
        relay.wait_state("streaming").await;
        pair.on_primary("UPDATE t SET w = w + 1 WHERE id <= 10").await;
        pair.equal_after_catching_up(&["t", "other"]).await;
        let done = "SELECT count(*) FROM walrelay.copy WHERE table_name = 't' AND state = 'done' AND rows = 1000";
        assert_eq!(value(&pair.standby, "shop", done).await, "1", "{major}");
    }
}

/// Writers that never stop, a relay that is killed again and again while it copies: each table has the snapshot of another
/// moment, and still nothing is missing or applied twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_killed_at_random_moments_under_writers_ends_equal() {
    let pair = Pair::start(18).await;
    let tables: Vec<String> = (0..6).map(|number| format!("t{number}")).collect();
    for table in &tables {
        pair.on_both(&format!("CREATE TABLE {table} (id int PRIMARY KEY, n int, t text)")).await;
        let rows = "SELECT i, 0, repeat('x', 200) FROM generate_series(1, 20000) i";
        pair.on_primary(&format!("INSERT INTO {table} {rows}")).await;
    }
    let is_over = std::cell::Cell::new(false);
    let write = async {
        let mut round = 0;
        while !is_over.get() {
            round += 1;
            for table in &tables {
                let id = round * 7 % 20000 + 1;
                pair.on_primary(&format!(
                    "UPDATE {table} SET n = n + 1 WHERE id % 500 = {round} % 500; DELETE FROM {table} WHERE id = {id};
                     INSERT INTO {table} VALUES ({id}, {round}, 'new')"
                ))
                .await;
            }
        }
    };
    let kill = async {
        let mut relay = Relay::start(&pair.config("copy_workers = 2")).await;
        for _ in 0..8 {
            let wait = Duration::from_millis(rand::rng().random_range(20..900));
            tokio::time::sleep(wait).await;
            relay.kill9();
            relay.start_again().await;
        }
        relay.wait_state("streaming").await;
        is_over.set(true);
        relay
    };
    let ((), relay) = tokio::join!(write, kill);
    let tables: Vec<&str> = tables.iter().map(String::as_str).collect();
    pair.equal_after_catching_up(&tables).await;
    assert_eq!(relay.report("standby1").await.unwrap()["copy"]["tables_done"], 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncate_on_the_primary_waits_for_the_copy_and_follows_it() {
    let pair = Pair::start(18).await;
    pair.on_both("CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE u (id int PRIMARY KEY)").await;
    pair.on_primary("INSERT INTO t SELECT generate_series(1, 1000); INSERT INTO u SELECT generate_series(1, 1000)")
        .await;
    // A reader on the standby holds up the emptying of u, and with it the copy.
    pair.on_standby("INSERT INTO u VALUES (0)").await;
    let reader = super::harness::client(&pair.standby, "shop").await;
    reader.batch_execute("BEGIN; SELECT FROM u").await.unwrap();
    let relay = Relay::start(&pair.config("on_existing_rows = \"truncate\"")).await;
    relay
        .wait("standby1", "waiting for the reader", |report| {
            report["waiting_for"].as_str().is_some_and(|what| what.contains("tables on the standby"))
        })
        .await;
    let refused = try_run(&pair.primary, "shop", "SET lock_timeout = '100ms'; TRUNCATE t").await.unwrap_err();
    assert_eq!(refused.code().unwrap().code(), "55P03");
    let truncate = try_run(&pair.primary, "shop", "TRUNCATE t");
    let (truncated, ()) = tokio::join!(truncate, async { reader.batch_execute("COMMIT").await.unwrap() });
    truncated.unwrap();
    relay.wait_state("streaming").await;
    pair.equal_after_catching_up(&["t", "u"]).await;
    eventually("t is empty", || async {
        (value(&pair.standby, "shop", "SELECT count(*) FROM t").await == "0").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_streams_while_a_truncate_waits_for_it() {
    let pair = Pair::start(18).await;
    pair.on_both("CREATE TABLE t (id int PRIMARY KEY)").await;
    let mut relay = pair.relay("").await;
    pair.wait_for_standbys("FIRST 1 (standby1)").await;
    relay.kill9();
    // The commit waits for standby1 with its ACCESS EXCLUSIVE lock on t; a new table waits to be replicated.
    let waiting = try_run(&pair.primary, "shop", "TRUNCATE t");
    let making = try_run(&pair.primary, "shop", "SET synchronous_commit = local; CREATE TABLE later (id int)");
    let restart = async {
        making.await.unwrap();
        relay.start_again().await;
    };
    let (truncated, ()) = tokio::join!(waiting, restart);
    truncated.unwrap();
    relay.wait_state("streaming").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_with_grants_only_copies_and_a_missing_grant_is_named() {
    let pair = Pair::start(15).await;
    pair.on_both("CREATE TABLE t (id int PRIMARY KEY, n int); CREATE ROLE relay LOGIN REPLICATION").await;
    pair.on_primary("INSERT INTO t SELECT i, i FROM generate_series(1, 1000) i; CREATE PUBLICATION mine FOR TABLE t")
        .await;
    pair.on_standby(
        "GRANT SET ON PARAMETER session_replication_role TO relay; GRANT CREATE ON DATABASE shop TO relay;
         GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE, TRIGGER ON t TO relay;
         GRANT EXECUTE ON FUNCTION pg_replication_origin_oid(text), pg_replication_origin_create(text),
             pg_replication_origin_session_setup(text), pg_replication_origin_drop(text) TO relay",
    )
    .await;
    let config = format!(
        "[primary]\nurl = \"{}\"\n[[pipeline]]\nname = \"standby1\"\npublication = \"mine\"\n[pipeline.sink]\ntype = \"postgres\"\n\
         url = \"{}\"\n",
        pair.primary.url_for("relay", "shop"),
        pair.standby.url_for("relay", "shop")
    );
    let relay = Relay::start(&config).await;
    relay.fails_with(&["permission denied for table t", "42501", "SELECT on the published tables"]).await;
    pair.on_primary("GRANT SELECT ON t TO relay").await;
    relay.signal(libc::SIGHUP);
    relay.wait_state("streaming").await;
    pair.assert_equal(&["t"]).await;
}
