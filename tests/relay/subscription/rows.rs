//! Rows, constraints, shapes: 001, 002 (also `types.rs`), 003, 005 (`types.rs`), 008 (`types.rs`), 010, 011, 012, 032, 034.

use super::super::harness::{Pair, Relay, value, values};

/// 001_rep_changes: identities of every kind, a table without columns, an included index, a restart of both sides.
#[tokio::test(flavor = "multi_thread")]
async fn changes_of_every_identity_arrive_over_restarts() {
    let mut pair = Pair::start(18).await;
    pair.on_both(
        "CREATE TABLE tab_ins (a int); CREATE TABLE tab_full (a int); CREATE TABLE tab_full2 (x text); CREATE TABLE tab_rep (a int PRIMARY KEY);
         CREATE TABLE tab_mixed (a int PRIMARY KEY, b text, c numeric); CREATE TABLE tab_include (a int, b text, CONSTRAINT covering PRIMARY KEY (a) INCLUDE (b));
         CREATE TABLE tab_nothing (a int); ALTER TABLE tab_nothing REPLICA IDENTITY NOTHING; CREATE TABLE tab_no_col ();
         ALTER TABLE tab_full REPLICA IDENTITY FULL; ALTER TABLE tab_full2 REPLICA IDENTITY FULL",
    )
    .await;
    pair.on_primary("INSERT INTO tab_full SELECT generate_series(1, 10); INSERT INTO tab_full2 VALUES ('a'), ('b'), ('b'); INSERT INTO tab_no_col DEFAULT VALUES").await;
    let mut relay = pair.relay("").await;
    pair.on_primary(
        "INSERT INTO tab_ins SELECT generate_series(1, 50); INSERT INTO tab_rep SELECT generate_series(1, 50); DELETE FROM tab_rep WHERE a > 20; UPDATE tab_rep SET a = -a;
         INSERT INTO tab_mixed VALUES (2, 'bar', 2.2); INSERT INTO tab_include SELECT i, 'x' FROM generate_series(1, 50) i; DELETE FROM tab_include WHERE a > 20;
         UPDATE tab_include SET a = -a; INSERT INTO tab_no_col DEFAULT VALUES; INSERT INTO tab_nothing VALUES (1);
         UPDATE tab_full SET a = a * a; UPDATE tab_full2 SET x = 'bb' WHERE x = 'b'; INSERT INTO tab_full SELECT generate_series(1, 10); UPDATE tab_full SET a = 1 WHERE a = 1",
    )
    .await;
    let tables = ["tab_ins", "tab_full", "tab_full2", "tab_rep", "tab_mixed", "tab_include", "tab_nothing"];
    pair.equal_after_catching_up(&tables).await;
    assert_eq!(value(&pair.standby, "shop", "SELECT count(*) FROM tab_no_col").await, "2");
    relay.kill9();
    pair.primary.stop_fast();
    pair.primary.start_again().await.unwrap();
    pair.standby.stop_fast();
    pair.standby.start_again().await.unwrap();
    relay.start_again().await;
    pair.on_primary("INSERT INTO tab_ins SELECT generate_series(51, 60); UPDATE tab_mixed SET b = 'baz'; DELETE FROM tab_full WHERE a = 4").await;
    relay.wait_state("streaming").await;
    pair.equal_after_catching_up(&tables).await;
}

/// 003_constraints: foreign keys and ordinary triggers are quiet, replica triggers fire.
#[tokio::test(flavor = "multi_thread")]
async fn foreign_keys_are_quiet_and_replica_triggers_fire() {
    let pair = Pair::start(18).await;
    pair.on_both("CREATE TABLE parent (id int PRIMARY KEY); CREATE TABLE child (id int PRIMARY KEY, parent int)").await;
    pair.on_standby(
        "ALTER TABLE child ADD FOREIGN KEY (parent) REFERENCES parent; CREATE TABLE seen (what text);
         CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN INSERT INTO public.seen VALUES (TG_NAME || ' ' || TG_OP); RETURN NEW; END$$;
         CREATE TRIGGER ordinary BEFORE INSERT ON child FOR EACH ROW EXECUTE FUNCTION note();
         CREATE TRIGGER replica BEFORE INSERT ON child FOR EACH ROW EXECUTE FUNCTION note(); ALTER TABLE child ENABLE REPLICA TRIGGER replica;
         CREATE TRIGGER of_column BEFORE UPDATE OF parent ON child FOR EACH ROW EXECUTE FUNCTION note(); ALTER TABLE child ENABLE ALWAYS TRIGGER of_column",
    )
    .await;
    let _relay = pair.relay("exclude = [\"public.seen\"]").await;
    pair.on_primary("INSERT INTO child VALUES (1, 7); UPDATE child SET parent = 8; INSERT INTO parent VALUES (8)")
        .await;
    pair.equal_after_catching_up(&["child", "parent"]).await;
    let seen = pair.on_standby("SELECT what FROM seen ORDER BY 1").await;
    assert_eq!(seen, [[Some("of_column UPDATE".to_owned())], [Some("replica INSERT".to_owned())]]);
}

/// 010_truncate: alone, with identities, several of one foreign key group, under a synchronous standby.
#[tokio::test(flavor = "multi_thread")]
async fn truncate_in_all_its_forms() {
    let pair = Pair::start(18).await;
    pair.on_both(
        "CREATE TABLE tab1 (a int); CREATE TABLE tab2 (a int); CREATE SEQUENCE seq1 OWNED BY tab1.a; ALTER TABLE tab1 ALTER a SET DEFAULT nextval('seq1');
         CREATE TABLE parent (a int PRIMARY KEY); CREATE TABLE child (a int REFERENCES parent); CREATE TABLE top (a int) PARTITION BY LIST (a);
         CREATE TABLE low PARTITION OF top FOR VALUES IN (1); CREATE TABLE high PARTITION OF top DEFAULT",
    )
    .await;
    let _relay = pair.relay("").await;
    let tables = ["tab1", "tab2", "parent", "child", "top"];
    let fill = "INSERT INTO tab1 VALUES (1), (2); INSERT INTO tab2 VALUES (1); INSERT INTO parent VALUES (1); INSERT INTO child VALUES (1); INSERT INTO top VALUES (1), (2)";
    for (sql, is_synchronous) in [
        ("TRUNCATE tab1", false),
        ("TRUNCATE tab1 RESTART IDENTITY", false),
        ("TRUNCATE tab1, tab2", false),
        ("TRUNCATE parent, child", false),
        ("TRUNCATE parent CASCADE", false),
        ("TRUNCATE top", false),
        ("TRUNCATE low", false),
        ("BEGIN; TRUNCATE tab1; INSERT INTO tab1 VALUES (5); TRUNCATE tab2; INSERT INTO tab2 VALUES (6); COMMIT", true),
    ] {
        pair.on_primary(fill).await;
        if is_synchronous {
            pair.wait_for_standbys("standby1").await;
        }
        pair.on_primary(sql).await;
        pair.equal_after_catching_up(&tables).await;
        pair.on_primary("TRUNCATE tab1, tab2, parent, child, top").await;
        pair.equal_after_catching_up(&tables).await;
    }
    assert_eq!(
        value(&pair.standby, "shop", "SELECT last_value FROM seq1").await,
        "1",
        "RESTART IDENTITY was not replayed"
    );
}

/// 011_generated: stored columns are computed on the standby, in the copy and in the stream.
#[tokio::test(flavor = "multi_thread")]
async fn generated_columns_are_computed_on_the_standby() {
    let pair = Pair::start(18).await;
    pair.on_primary("CREATE TABLE t (a int PRIMARY KEY, b int GENERATED ALWAYS AS (a * 2) STORED)").await;
    pair.on_standby("CREATE TABLE t (a int PRIMARY KEY, b int GENERATED ALWAYS AS (a * 22) STORED, c int)").await;
    pair.on_primary("INSERT INTO t VALUES (1), (2), (3)").await;
    let _relay = pair.relay("").await;
    pair.on_primary("INSERT INTO t VALUES (4); UPDATE t SET a = 6 WHERE a = 3").await;
    pair.caught_up("standby1").await;
    let rows = pair.on_standby("SELECT string_agg(a || ' ' || b, ', ' ORDER BY a) FROM t").await;
    assert_eq!(rows[0][0].as_deref(), Some("1 22, 2 44, 4 88, 6 132"));
}

/// 012_collation: a key of a nondeterministic collation is found by what the collation calls equal.
#[tokio::test(flavor = "multi_thread")]
async fn a_nondeterministic_collation_finds_its_key() {
    let pair = Pair::start(18).await;
    let collation = "CREATE COLLATION ignore_case (provider = icu, locale = 'und-u-ks-level2', deterministic = false)";
    pair.on_both(&format!("{collation}; CREATE TABLE k (a text COLLATE ignore_case PRIMARY KEY, b text); CREATE TABLE f (a text COLLATE ignore_case); ALTER TABLE f REPLICA IDENTITY FULL")).await;
    pair.on_primary("INSERT INTO k VALUES ('small', 'x'); INSERT INTO f VALUES ('Mixed')").await;
    let _relay = pair.relay("").await;
    pair.on_standby("SET session_replication_role = replica; UPDATE k SET a = 'SMALL'; UPDATE f SET a = 'MIXED'").await;
    pair.on_primary("UPDATE k SET b = 'y'; UPDATE f SET a = 'next'").await;
    pair.equal_after_catching_up(&["k", "f"]).await;
}

/// 032_subscribe_use_index: FULL identity with indexes that are not unique, expressions, partial ones, NULLs: the results.
#[tokio::test(flavor = "multi_thread")]
async fn whole_rows_are_found_whatever_indexes_there_are() {
    let pair = Pair::start(18).await;
    pair.on_both("CREATE TABLE t (x int, y text, z timestamptz); ALTER TABLE t REPLICA IDENTITY FULL; CREATE TABLE people (first text, last text); ALTER TABLE people REPLICA IDENTITY FULL").await;
    pair.on_standby("CREATE INDEX ON t (x); CREATE INDEX ON t (y, x); CREATE INDEX ON t (x) WHERE x = 1; CREATE INDEX ON people ((first || ' ' || last)); CREATE INDEX ON t USING hash (x)").await;
    pair.on_primary("INSERT INTO t SELECT i % 20, 'y' || i % 3, NULL FROM generate_series(1, 200) i; INSERT INTO people SELECT 'f' || i, 'l' || i FROM generate_series(1, 50) i; INSERT INTO t SELECT NULL, NULL, now()").await;
    let _relay = pair.relay("").await;
    pair.on_primary("UPDATE t SET x = x + 1 WHERE x = 15; UPDATE t SET y = 'z' WHERE x IS NULL; DELETE FROM t WHERE x IN (5, 6); UPDATE people SET first = 'no' WHERE last = 'l7'; DELETE FROM people WHERE first = 'f9'; UPDATE t SET x = 20000 WHERE x = 1").await;
    pair.equal_after_catching_up(&["t", "people"]).await;
}

/// 034_temporal: keys WITHOUT OVERLAPS (18).
#[tokio::test(flavor = "multi_thread")]
async fn a_key_without_overlaps_finds_its_rows() {
    let pair = Pair::start(18).await;
    pair.on_both("CREATE EXTENSION btree_gist; CREATE TABLE t (id int4range, valid daterange, a text, PRIMARY KEY (id, valid WITHOUT OVERLAPS))").await;
    pair.on_primary(
        "INSERT INTO t VALUES ('[1,2)', '[2000-01-01,2010-01-01)', 'a'), ('[2,3)', '[2000-01-01,2010-01-01)', 'a')",
    )
    .await;
    let _relay = pair.relay("").await;
    pair.on_primary("UPDATE t SET a = 'b' WHERE id = '[2,3)'; DELETE FROM t WHERE id = '[1,2)'; INSERT INTO t VALUES ('[2,3)', '[2010-01-01,2020-01-01)', 'c')").await;
    pair.equal_after_catching_up(&["t"]).await;
}

/// 020_messages: nobody's messages disturb the stream.
#[tokio::test(flavor = "multi_thread")]
async fn logical_messages_pass_by() {
    let pair = Pair::start(18).await;
    pair.on_both("CREATE TABLE t (a int PRIMARY KEY)").await;
    let relay = pair.relay("").await;
    pair.on_primary("SELECT pg_logical_emit_message(true, 'p', 'a'); SELECT pg_logical_emit_message(false, 'p', 'b'); BEGIN; INSERT INTO t VALUES (1); SELECT pg_logical_emit_message(true, 'p', 'c'); COMMIT; BEGIN; SELECT pg_logical_emit_message(true, 'p', 'd'); ROLLBACK").await;
    pair.equal_after_catching_up(&["t"]).await;
    assert_eq!(relay.report("standby1").await.unwrap()["state"], "streaming");
}

/// 009_matviews: a materialized view's refresh sends nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_materialized_view_is_left_alone() {
    let pair = Pair::start(18).await;
    pair.on_both("CREATE TABLE t (a int PRIMARY KEY)").await;
    pair.on_primary("CREATE MATERIALIZED VIEW m AS SELECT * FROM t").await;
    let relay: Relay = pair.relay("").await;
    pair.on_primary("INSERT INTO t VALUES (1); REFRESH MATERIALIZED VIEW m").await;
    pair.equal_after_catching_up(&["t"]).await;
    assert_eq!(relay.report("standby1").await.unwrap()["state"], "streaming");
    values(&pair.primary, "shop", "DROP MATERIALIZED VIEW m").await;
}
