//! Whole batches written as sets: random work over tables of many shapes ends alike on both sides, without a single fallback;
//! what cannot be written as a set is written row by row and named.

use walrelay::model::Retry;

use super::Replay;
use crate::harness::{Pair, major_versions};

/// Small deterministic dice: a failing run is repeated with its seed (`WALRELAY_TEST_SEED`).
struct Dice(u64);

impl Dice {
    fn new() -> Self {
        let from_clock = || std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
        let seed = std::env::var("WALRELAY_TEST_SEED").map_or_else(|_| from_clock(), |text| text.parse().unwrap());
        eprintln!("WALRELAY_TEST_SEED={seed}");
        Self(seed)
    }

    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

/// A table's name, its key's columns with types, and the key of number `#` as SQL.
type Shape = (&'static str, &'static [(&'static str, &'static str)], &'static [&'static str]);

const SHAPES: &[Shape] = &[
    ("t_int", &[("k", "int")], &["#"]),
    ("t_pair", &[("k", "int"), ("l", "text")], &["# / 5", "'l ' || # % 5"]),
    ("t_text", &[("k", "text")], &["'t\"e,{x}\\' || #"]),
    ("t_uuid", &[("k", "uuid")], &["md5((#)::text)::uuid"]),
    ("t_num", &[("k", "numeric")], &["(#)::numeric / 8"]),
    ("t_ci", &[("k", "citext")], &["('Key' || #)::citext"]),
    ("t_char", &[("k", "char(8)")], &["('c' || #)::char(8)"]),
    ("t_enum", &[("k", "mood"), ("l", "int")], &["(ARRAY['sad', 'o k', 'happy'])[1 + # % 3]::mood", "# / 3"]),
    ("t_dom", &[("k", "posint")], &["1 + #"]),
    ("t_cid", &[("k", "ci")], &["('K' || #)::citext"]),
    ("t_ts", &[("k", "timestamptz")], &["'2020-01-01 00:00+00'::timestamptz + make_interval(secs => #)"]),
    ("t_arr", &[("k", "int[]")], &["ARRAY[#, 7]"]),
    ("t_row", &[("k", "pair")], &["ROW(#, 'x')::pair"]),
    ("t_part", &[("k", "int")], &["#"]),
    ("t_ident", &[("k", "int GENERATED ALWAYS AS IDENTITY")], &["#"]),
    ("t_extra", &[("k", "int")], &["#"]),
    ("t_uniq", &[("k", "int")], &["#"]),
];

const TYPES: &str =
    "CREATE EXTENSION citext; CREATE TYPE mood AS ENUM ('sad', 'o k', 'happy'); CREATE TYPE pair AS (x int, y text);
    CREATE DOMAIN posint AS int CHECK (VALUE > 0); CREATE DOMAIN ci AS citext;";

/// The same on both sides, but for what makes them interesting.
fn schema(is_standby: bool) -> String {
    let mut schema = TYPES.to_owned();
    for (name, key, _) in SHAPES {
        let columns: Vec<String> = key.iter().map(|(column, of_type)| format!("{column} {of_type}")).collect();
        let names: Vec<&str> = key.iter().map(|(column, _)| *column).collect();
        let rest = "i int, v varchar(40), a text[], j jsonb, p pair, big text";
        let rest = if is_standby {
            "big text, extra text DEFAULT 'kept', p pair, j jsonb, v varchar(40), a text[], i int"
        } else {
            rest
        };
        let rest = if *name == "t_extra" { rest.to_owned() } else { rest.replace(" extra text DEFAULT 'kept',", "") };
        let partition = if *name == "t_part" { " PARTITION BY RANGE (k)" } else { "" };
        let constraints = if *name == "t_uniq" { ", u int, r int4range, w int" } else { "" };
        schema += &format!(
            "CREATE TABLE {name} ({}, {rest}{constraints}, PRIMARY KEY ({})){partition};",
            columns.join(", "),
            names.join(", ")
        );
        if *name != "t_part" {
            schema += &format!("ALTER TABLE {name} ALTER big SET STORAGE EXTERNAL;");
        }
    }
    // The primary checks at the end of a transaction, the standby each row.
    let timing = if is_standby { "" } else { "DEFERRABLE INITIALLY DEFERRED" };
    schema += &format!(
        "CREATE TABLE t_part_1 PARTITION OF t_part FOR VALUES FROM (MINVALUE) TO (20); CREATE TABLE t_part_2 PARTITION OF t_part DEFAULT;
         ALTER TABLE t_part_1 ALTER big SET STORAGE EXTERNAL; ALTER TABLE t_part_2 ALTER big SET STORAGE EXTERNAL;
         ALTER TABLE t_uniq ADD UNIQUE (u) {timing}, ADD EXCLUDE USING gist (r WITH &&) {timing};"
    );
    if is_standby {
        schema += "CREATE UNIQUE INDEX ON t_uniq ((w % 1000)) WHERE w > 0;";
    }
    schema
}

/// One random statement.
fn statement(dice: &mut Dice, mark: u64) -> String {
    let (name, key, values) = SHAPES[dice.roll(SHAPES.len() as u64) as usize];
    let columns: Vec<&str> = key.iter().map(|(column, _)| *column).collect();
    let (columns, number) = (columns.join(", "), dice.roll(40));
    let key_of = |number: &str| values.iter().map(|value| value.replace('#', number)).collect::<Vec<_>>().join(", ");
    let big = format!("repeat('{mark} big', 800)");
    match dice.roll(10) {
        0..4 => {
            let always = if name == "t_ident" { "OVERRIDING SYSTEM VALUE" } else { "" };
            let (more, unique) = match name {
                "t_uniq" => {
                    (", u, r, w", format!(", 1000 + {number}, int4range({number} * 10, {number} * 10 + 10), {number}"))
                }
                _ => ("", String::new()),
            };
            // A deferrable constraint arbitrates nothing, and numbers of that table move.
            let free = if name == "t_uniq" {
                format!("u = 1000 + {number} OR r && int4range({number} * 10, {number} * 10 + 10) OR w = {number} OR ")
            } else {
                String::new()
            };
            format!(
                "INSERT INTO {name} ({columns}, i, v, a, j, p, big{more}) {always} SELECT {}, {number}, 'v\\\t{mark}', ARRAY['a \"{mark}', NULL], \
                 jsonb_build_object('m', {mark}), ROW({mark}, NULL)::pair, {big}{unique} \
                 WHERE NOT EXISTS (SELECT FROM {name} WHERE {free}i = {number} OR ({columns}) = ({}))",
                key_of(&number.to_string()),
                key_of(&number.to_string())
            )
        }
        4 => format!("UPDATE {name} SET v = 'w {mark}', a = '{{}}' WHERE i = {number}"),
        5 => format!("UPDATE {name} SET v = NULL, j = '{{\"{mark}\": null}}' WHERE i % 3 = {}", number % 3),
        6 => format!("UPDATE {name} SET big = {big} WHERE i % 4 = {}", number % 4),
        7 if name != "t_ident" => {
            let to = dice.roll(40);
            format!(
                "UPDATE {name} SET ({columns}) = ROW({}), i = {to} WHERE i = {number} AND NOT EXISTS (SELECT FROM {name} WHERE i = {to})",
                key_of(&to.to_string())
            )
        }
        8 => format!("DELETE FROM {name} WHERE i IN ({number}, {})", (number + 7) % 40),
        _ if name == "t_uniq" => match dice.roll(3) {
            0 => "UPDATE t_uniq SET u = u + 1".to_owned(),
            1 => "UPDATE t_uniq SET r = int4range(390 - lower(r), 400 - lower(r)), u = 3000 - u".to_owned(),
            _ => "UPDATE t_uniq SET w = 40 - w WHERE w > 0".to_owned(),
        },
        _ => format!("UPDATE {name} SET v = v || '+' WHERE length(v) < 30"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn random_work_over_many_shapes_ends_alike_without_a_fallback() {
    let mut dice = Dice::new();
    for major in major_versions() {
        let mut replay = Replay::unlike(Pair::start(major).await, &schema(false), &schema(true)).await;
        let mut rows = 0;
        for round in 0..8 {
            for transaction in 0..30 {
                let count = 1 + dice.roll(6);
                let statements: Vec<String> =
                    (0..count).map(|at| statement(&mut dice, round * 1000 + transaction * 10 + at)).collect();
                replay.on_primary(&statements.join("; ")).await;
            }
            replay.relay().await.unwrap();
            for (name, key, _) in SHAPES {
                let key: Vec<&str> = key.iter().map(|(column, _)| *column).collect();
                let more = if *name == "t_uniq" { ", u, r, w" } else { "" };
                rows += replay.equal(&format!("SELECT {}, i, v, a, j, p, big{more} FROM {name}", key.join(", "))).await;
            }
        }
        assert_eq!(replay.fallbacks.counts(), [], "{major}");
        assert!(rows > 300, "the work left next to nothing: {rows} rows in all rounds");
        let extra = replay.found("SELECT DISTINCT extra FROM t_extra").await;
        assert!(extra.is_empty() || extra == ["(kept)"], "{extra:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_row_of_a_large_set_arrives() {
    let schema = "CREATE TABLE t (a bigint PRIMARY KEY, b text, c numeric); CREATE TABLE u (a int, b text)";
    let mut replay = Replay::new(18, schema).await;
    replay.on_primary("INSERT INTO t SELECT i, 'row ' || i, i / 7.0 FROM generate_series(1, 60000) i").await;
    replay.on_primary("INSERT INTO u SELECT i, E'tab\\t nl\\n bs\\\\ ' || i FROM generate_series(1, 300) i").await;
    replay.relay().await.unwrap();
    replay.on_primary("UPDATE t SET b = b || '!' WHERE a % 3 = 0; DELETE FROM t WHERE a % 5 = 0").await;
    replay
        .on_primary("UPDATE t SET a = -a WHERE a % 7 = 0; INSERT INTO t SELECT a + 200000, b, c FROM t WHERE a % 2 = 0")
        .await;
    replay.relay().await.unwrap();
    replay.equal("SELECT * FROM t").await;
    assert_eq!(replay.equal("SELECT * FROM u").await, 300);
    assert_eq!(replay.fallbacks.counts(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_differs_is_named_and_what_stands_before_it_is_applied() {
    let schema = "CREATE TABLE t (a int PRIMARY KEY, b text); CREATE TABLE u (a int PRIMARY KEY)";
    let mut replay = Replay::new(18, schema).await;
    replay.on_primary("INSERT INTO t SELECT i, 'x' FROM generate_series(1, 100) i").await;
    replay.relay().await.unwrap();
    replay.on_standby("DELETE FROM t WHERE a = 57").await;
    replay.on_primary("INSERT INTO u VALUES (1)").await;
    replay.on_primary("UPDATE t SET b = 'y' WHERE a < 50").await;
    replay.on_primary("UPDATE t SET b = 'z' WHERE a > 50; INSERT INTO u VALUES (2)").await;
    replay.on_primary("INSERT INTO u VALUES (3)").await;
    let error = replay.fails(&["UPDATE on public.t (a=57)", "touched 0 rows", "transaction at 0/"]).await;
    assert_eq!(error.retry(), Retry::Never);
    assert_eq!(replay.fallbacks.counts(), [("public.t".to_owned(), "row_count", 1)]);
    assert_eq!(replay.found("SELECT * FROM u").await, ["(1)"]);
    assert_eq!(replay.found("SELECT b, count(*) FROM t GROUP BY b").await, ["(x,50)", "(y,49)"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_fell_back_goes_row_by_row_for_a_while() {
    // The standby's key tells fewer rows apart than the primary's: as a set the two are one, one after the other they fit.
    let primary = "CREATE TABLE t (a text PRIMARY KEY, b int)";
    let standby = "CREATE EXTENSION citext; CREATE TABLE t (a citext PRIMARY KEY, b int)";
    let mut replay = Replay::unlike(Pair::start(18).await, primary, standby).await;
    replay.on_primary("INSERT INTO t VALUES ('a', 1); DELETE FROM t; INSERT INTO t VALUES ('A', 2)").await;
    replay.relay().await.unwrap();
    assert_eq!(replay.equal("SELECT a::text, b FROM t").await, 1);
    assert_eq!(replay.fallbacks.counts(), []);
    // An index that the daemon does not know yet stands in the way of a set, not of its rows in turn.
    replay.on_primary("INSERT INTO t VALUES ('b', 7)").await;
    replay.relay().await.unwrap();
    replay.on_standby("CREATE UNIQUE INDEX ON t (b)").await;
    replay
        .on_primary("UPDATE t SET b = 3 WHERE a = 'A'; UPDATE t SET b = 2 WHERE a = 'b'; INSERT INTO t VALUES ('c', 7)")
        .await;
    replay.relay().await.unwrap();
    replay.on_primary("UPDATE t SET b = b + 10").await;
    replay.relay().await.unwrap();
    assert_eq!(replay.equal("SELECT a::text, b FROM t").await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn plans_made_on_empty_tables_stay_index_scans() {
    let mut replay = Replay::new(18, "CREATE TABLE t (a int, b char(6), c text, PRIMARY KEY (b, a))").await;
    replay.on_primary("INSERT INTO t VALUES (1, 'x', 'x'), (2, 'x', 'x')").await;
    replay.on_primary("UPDATE t SET c = 'y'").await;
    replay.relay().await.unwrap();
    replay.on_primary("UPDATE t SET c = 'z'; DELETE FROM t").await;
    replay.relay().await.unwrap();
    replay.on_primary("INSERT INTO t SELECT i, 'x', 'x' FROM generate_series(1, 200000) i").await;
    replay.relay().await.unwrap();
    replay.on_standby("SELECT pg_stat_reset()").await;
    replay.on_primary("UPDATE t SET c = 'y' WHERE a % 100 = 0; DELETE FROM t WHERE a % 100 = 1").await;
    replay.relay().await.unwrap();
    assert_eq!(replay.equal("SELECT a, c FROM t WHERE a < 1000").await, 989);
    assert_eq!(replay.fallbacks.counts(), []);
    // The session tells what it did once its statistics are due.
    let scans = "SELECT seq_scan, idx_scan > 0 FROM pg_stat_user_tables WHERE relname = 't'";
    replay.sink = None;
    crate::harness::eventually("the standby counts index scans", || async {
        (replay.found(scans).await.iter().any(|row| row.ends_with(",t)"))).then_some(())
    })
    .await;
    let reads =
        replay.found("SELECT seq_tup_read < 100 + 2 * 198000 FROM pg_stat_user_tables WHERE relname = 't'").await;
    assert_eq!(reads, ["(t)"], "{:?}", replay.found(scans).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_without_a_key_are_changed_many_at_once() {
    let columns = "a int, b text NOT NULL, j json, p point, c numeric(8, 2), d char(4), l text[]";
    let full = "ALTER TABLE bag REPLICA IDENTITY FULL; ALTER TABLE led REPLICA IDENTITY FULL; ALTER TABLE parts REPLICA IDENTITY FULL;";
    let parts = "PARTITION BY LIST (b)";
    let schema = |extra: &str| {
        format!(
            "CREATE TABLE bag ({columns}{extra}); CREATE TABLE led ({columns}); CREATE INDEX ON led (a);
             CREATE TABLE parts ({columns}) {parts}; CREATE TABLE parts_0 PARTITION OF parts FOR VALUES IN ('b0');
             CREATE TABLE parts_1 PARTITION OF parts DEFAULT;
             ALTER TABLE parts_0 REPLICA IDENTITY FULL; ALTER TABLE parts_1 REPLICA IDENTITY FULL; {full}"
        )
    };
    let mut dice = Dice::new();
    for major in major_versions() {
        let pair = Pair::start(major).await;
        let mut replay = Replay::unlike(pair, &schema(""), &schema(", extra text DEFAULT 'kept'")).await;
        replay.on_primary("ALTER PUBLICATION p SET (publish_via_partition_root)").await;
        for table in ["bag", "led", "parts"] {
            for round in 0..4 {
                let fill = format!(
                    "INSERT INTO {table} SELECT i % 40, 'b' || i % 3, CASE WHEN i % 4 > 0 THEN '{{\"x\": 1}}'::json END, \
                     CASE WHEN i % 2 > 0 THEN '(1,2)'::point END, i % 5 / 2.0, CASE WHEN i % 3 > 0 THEN 'd' END, ARRAY['\"', NULL] \
                     FROM generate_series(1, {}) i",
                    500 + dice.roll(3000)
                );
                replay.on_primary(&fill).await;
                for _ in 0..6 {
                    let (one, other) = (dice.roll(40), dice.roll(7));
                    let picked = format!(
                        "WHERE ctid IN (SELECT ctid FROM {table} WHERE a % 7 = {other} ORDER BY random() LIMIT {})",
                        1 + one * 20
                    );
                    replay
                        .on_primary(&match dice.roll(4) {
                            0 => format!("DELETE FROM {table} {picked}"),
                            1 => format!("UPDATE {table} SET a = {one}, j = NULL {picked}"),
                            2 => format!("UPDATE {table} SET b = 'b' || {other} % 3, c = c + 0.50, l = NULL {picked}"),
                            _ => format!("INSERT INTO {table} SELECT * FROM {table} {picked}"),
                        })
                        .await;
                    if dice.roll(3) == 0 {
                        replay.relay().await.unwrap();
                    }
                }
                replay.relay().await.unwrap();
                let rows = replay
                    .equal(&format!(
                        "SELECT q::text, count(*) FROM (SELECT a, b, j, p, c, d, l FROM {table}) q GROUP BY 1"
                    ))
                    .await;
                assert!(rows > 0, "round {round} of {table}");
            }
        }
        assert_eq!(replay.found("SELECT DISTINCT extra FROM bag").await, ["(kept)"]);
        assert_eq!(replay.fallbacks.counts(), [], "{major}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_deletes_without_a_key_cost_a_few_scans() {
    let schema = "CREATE TABLE t (a int, b text); ALTER TABLE t REPLICA IDENTITY FULL";
    let mut replay = Replay::new(18, schema).await;
    replay.on_primary("INSERT INTO t SELECT i / 2, 'x' FROM generate_series(1, 100000) i").await;
    replay.relay().await.unwrap();
    replay.on_primary("DELETE FROM t WHERE a % 10 = 3").await;
    let began = std::time::Instant::now();
    replay.relay().await.unwrap();
    let elapsed = began.elapsed();
    assert_eq!(replay.equal("SELECT * FROM t").await, 90_000);
    assert_eq!(replay.fallbacks.counts(), []);
    // Ten thousand scans of such a table take minutes.
    assert!(elapsed < std::time::Duration::from_secs(10), "{elapsed:?}");
}
