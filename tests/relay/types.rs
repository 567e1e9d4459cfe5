//! Every type through the stream: rows at the edges of every type and random ones, inserted, updated and deleted, found by key and
//! found by the whole row. The copy's own test of the same tables is in `copy.rs`.

use super::harness::{Pair, major_versions};

pub const TYPES: &str = include_str!("copy_types.sql");
pub const ROWS: &str = include_str!("copy_types_rows.sql");
const TABLES: &[&str] =
    &["builtin", "named", "composed", "referring", "identity_columns", "empty", "no_columns", "\"Odd \"\"name\""];

/// Random values of the types that have many; the seed makes them the same again.
pub const RANDOM: &str = "SELECT setseed(SEED);
    INSERT INTO builtin (id, b, e, f, g, h, i, j, m, n, o, q, r, s, v, x, ab, aq, au, av, t)
    SELECT 1000 + i, decode(md5(random()::text), 'hex'), (random() * 60000 - 30000)::int2, (random() * 1e18 - 5e17)::int8,
        (random() * 1e10)::float4, random() * 1e300, (random() * 1e15)::numeric / 7, (random() * 1000)::numeric(10, 3),
        translate(md5(random()::text), '0123', E'\\t\\n''é'), date '2000-01-01' + (random() * 100000 - 50000)::int,
        time '00:00' + random() * interval '86399 s', timestamp '2000-01-01' + random() * interval '500 years',
        timestamptz '1900-01-01' + random() * interval '200 years', random() * interval '1000 days',
        md5(random()::text)::uuid, jsonb_build_object('k', random()), ('10.' || (random() * 255)::int || '.0.0/16')::cidr,
        int4range((random() * 100)::int, 100 + (random() * 100)::int), ARRAY[(random() * 10)::int, NULL, i],
        ARRAY[ARRAY[md5(random()::text), 'x'], ARRAY['\"', NULL]], ((random() * 31)::int)::bit(5)
    FROM generate_series(1, 300) i";

#[tokio::test(flavor = "multi_thread")]
async fn every_type_streams_equal_found_by_key_and_by_the_whole_row() {
    let seed = f64::from(rand::random_range(-1000i32..1000)) / 1000.0;
    println!("setseed({seed})");
    for major in major_versions() {
        let pair = Pair::start(major).await;
        pair.on_both(TYPES).await;
        let _relay = pair.relay("").await;
        pair.on_primary(ROWS).await;
        pair.on_primary(&RANDOM.replace("SEED", &seed.to_string())).await;
        pair.equal_after_catching_up(TABLES).await;

        // By key: moved keys, values set and unset.
        pair.on_primary(
            "UPDATE builtin SET id = id + 100000 WHERE id <= 5; UPDATE builtin SET h = 'nan', i = NULL, m = 'changed', x = '[1]' WHERE id % 3 = 0;
             UPDATE named SET m = 'ok' WHERE id = 1; UPDATE composed SET h = 'c=>2', p = NULL WHERE id = 1; DELETE FROM builtin WHERE id % 5 = 1",
        )
        .await;
        pair.equal_after_catching_up(TABLES).await;

        // By the whole row, types without equality included.
        pair.on_both(
            "ALTER TABLE builtin DROP CONSTRAINT builtin_pkey, REPLICA IDENTITY FULL; ALTER TABLE composed DROP CONSTRAINT composed_pkey, REPLICA IDENTITY FULL;
             ALTER TABLE identity_columns ADD PRIMARY KEY (id)",
        )
        .await;
        pair.on_primary(
            "UPDATE builtin SET m = 'whole', w = '{\"new\": 1}' WHERE id > 100000; DELETE FROM builtin WHERE id % 7 = 2;
             UPDATE composed SET d = 'sad' WHERE id = 2; UPDATE identity_columns SET t = 'changed'; UPDATE identity_columns SET n = n + 1",
        )
        .await;
        pair.equal_after_catching_up(TABLES).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn large_values_that_an_update_leaves_alone_stay() {
    let pair = Pair::start(18).await;
    pair.on_both(
        "CREATE TABLE doc (id int PRIMARY KEY, body text, title text); ALTER TABLE doc ALTER body SET STORAGE EXTERNAL",
    )
    .await;
    let _relay = pair.relay("").await;
    pair.on_primary("INSERT INTO doc SELECT i, repeat('large ' || i, 3000), 'a' FROM generate_series(1, 5) i").await;
    pair.on_primary(
        "UPDATE doc SET title = 'b'; UPDATE doc SET id = id + 10 WHERE id = 2; UPDATE doc SET body = NULL WHERE id = 3",
    )
    .await;
    pair.equal_after_catching_up(&["doc"]).await;
    // With the whole old row, the value arrives there and not with the new one.
    pair.on_both("ALTER TABLE doc DROP CONSTRAINT doc_pkey, REPLICA IDENTITY FULL").await;
    pair.on_primary("UPDATE doc SET title = 'c' WHERE id > 3; DELETE FROM doc WHERE id = 1").await;
    pair.equal_after_catching_up(&["doc"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_of_another_shape_take_the_rows() {
    let pair = Pair::start(18).await;
    pair.on_primary("CREATE TABLE t (id int PRIMARY KEY, a text, n int, at timestamptz, always int GENERATED ALWAYS AS IDENTITY, sum int GENERATED ALWAYS AS (n * 2) STORED)").await;
    pair.on_standby(
        "CREATE TABLE t (extra text DEFAULT 'filled', at text, n bigint, a varchar(50), id bigint PRIMARY KEY, always int GENERATED ALWAYS AS IDENTITY,
         sum bigint GENERATED ALWAYS AS (n * 3) STORED, seen timestamptz DEFAULT now())",
    )
    .await;
    let _relay = pair.relay("").await;
    pair.on_primary(
        "INSERT INTO t (id, a, n, at) SELECT i, 'a' || i, i, '2026-11-23 12:00+00' FROM generate_series(1, 20) i",
    )
    .await;
    pair.on_primary("UPDATE t SET n = n + 1 WHERE id > 10; UPDATE t SET id = id + 100 WHERE id <= 5; UPDATE t SET always = DEFAULT WHERE id = 7; DELETE FROM t WHERE id = 8").await;
    pair.caught_up("standby1").await;
    let columns = "SELECT id::text, a::text, n::text, always::text FROM t ORDER BY id";
    assert_eq!(pair.on_primary(columns).await, pair.on_standby(columns).await);
    let rows =
        pair.on_standby("SELECT bool_and(extra = 'filled' AND sum = n * 3 AND seen IS NOT NULL)::text FROM t").await;
    assert_eq!(rows[0][0].as_deref(), Some("true"));
}

#[tokio::test(flavor = "multi_thread")]
async fn encodings_are_converted() {
    use walrelay::throwaway::Options;
    let latin1 =
        || Options { initdb: ["-E", "LATIN1", "--locale=C"].map(str::to_owned).to_vec(), ..Options::default() };
    for (primary, standby) in [(Options::default(), latin1()), (latin1(), Options::default())] {
        let pair = Pair::with(18, primary, 18, standby).await;
        pair.on_both("CREATE TABLE t (id int PRIMARY KEY, v text)").await;
        pair.on_primary("INSERT INTO t VALUES (1, 'é copied')").await;
        let _relay = pair.relay("").await;
        pair.on_primary("INSERT INTO t VALUES (2, 'Grüße'); UPDATE t SET v = 'ÿ' WHERE id = 1").await;
        pair.equal_after_catching_up(&["t"]).await;
    }
}
