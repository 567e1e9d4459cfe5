//! Every type, as a value and as a key, on every version.

use super::{Replay, forms};

const TYPES: &str = "
CREATE EXTENSION hstore; CREATE EXTENSION citext; CREATE SCHEMA odd; CREATE EXTENSION ltree SCHEMA odd;
CREATE TYPE mood AS ENUM ('sad', 'o k', 'happy');
CREATE DOMAIN posint AS int CHECK (VALUE > 0);
CREATE DOMAIN ci AS citext;
CREATE TYPE pair AS (x int, y text);
CREATE TYPE nested AS (p pair, m mood[], j json);
CREATE TYPE moodrange AS RANGE (subtype = mood);
CREATE TABLE types (id int primary key,
  c_bool bool, c_i2 int2, c_i4 int4, c_i8 int8, c_num numeric, c_num2 numeric(12,3), c_f4 float4, c_f8 float8, c_money money,
  c_text text, c_vc varchar(20), c_ch char(8), c_name name, c_qchar \"char\", c_bytea bytea,
  c_date date, c_time time, c_timetz timetz, c_ts timestamp, c_tstz timestamptz, c_tstz0 timestamptz(0), c_int interval,
  c_uuid uuid, c_json json, c_jsonb jsonb, c_xml xml, c_bit bit(5), c_varbit varbit,
  c_inet inet, c_cidr cidr, c_mac macaddr, c_mac8 macaddr8,
  c_point point, c_line line, c_lseg lseg, c_box box, c_path path, c_poly polygon, c_circle circle,
  c_tsv tsvector, c_tsq tsquery, c_lsn pg_lsn, c_snap pg_snapshot, c_oid oid, c_xid8 xid8, c_tid tid, c_regclass regclass, c_regtype regtype,
  c_i4r int4range, c_numr numrange, c_tstzr tstzrange, c_dr daterange, c_i4mr int4multirange, c_moodr moodrange,
  c_mood mood, c_posint posint, c_ci citext, c_cid ci, c_pair pair, c_nested nested, c_hstore hstore, c_ltree odd.ltree,
  a_i4 int[], a_text text[], a_mood mood[], a_pair pair[], a_num numeric(8,2)[], a_ts timestamptz[], a_citext citext[], a_json jsonb[],
  c_jsonpath jsonpath);
";

/// Without the types whose binary form will not do: one such column, and all values are text.
fn types(is_binary: bool) -> String {
    if is_binary {
        TYPES
            .replace("c_regclass regclass, c_regtype regtype", "c_regclass text, c_regtype text")
            .replace("c_tsq tsquery", "c_tsq text")
    } else {
        TYPES.to_owned()
    }
}

const VALUES: &[&str] = &[
    "true, 1, -2, 9223372036854775807, 'NaN', 123456789.125, 'NaN', '-Infinity', 1234.56,
     E'tab\\tquote''\"\\\\ newline\\n ü€😀', 'varchar', 'ch', 'a name', 'c', '\\x00ff10',
     '0044-03-15 BC', '24:00', '12:34:56.789+05:30', '4713-01-01 00:00:00 BC', 'infinity', '2020-02-29 23:59:59.6+00', '-1 year 2 mons -3 days 04:05:06.789',
     'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '{\"b\": 1,  \"a\": [1, 2.50]}', '{\"b\": 1, \"a\": null}', '<a b=\"c\">x</a>', '10101', '1',
     '10.0.0.1/8', '10.0.0.0/8', '08:00:2b:01:02:03', '08:00:2b:01:02:03:04:05',
     '(1.5,-2)', '{1,2,3}', '[(0,0),(1,1)]', '(2,2),(0,0)', '[(0,0),(1,1),(2,0)]', '((0,0),(1,1),(2,0))', '<(1,2),3>',
     'a:1A fat:2', 'fat & rat', '16/B374D848', '10:20:10,14,15', 4000000000, '7', '(1,2)', 'pg_class', 'integer',
     '[1,5)', '(,3.14]', '[2020-01-01 00:00+00,)', 'empty', '{[1,3),[5,8)}', '[sad,happy]',
     'o k', 5, 'MixedCase', 'CI', '(1,\"a \"\"q\"\", b\")', ROW(ROW(1,NULL)::pair, '{sad,\"o k\"}', '{\"x\":1}')::nested, 'a=>1, \"b c\"=>NULL', 'Top.Science',
     '{{1,2},{3,NULL}}', '{\"a,b\",NULL,\"\",\"NULL\",\"\\\\\"}', '{sad,happy}', ARRAY[ROW(1,'x')::pair, NULL], '{1.10,2.25}', '{infinity,2000-01-01 00:00+00}', '{A,b}', ARRAY['{\"a\":1}'::jsonb],
     '$.a[*] ? (@ > 1)'",
    "false, -32768, 2147483647, -9223372036854775808, 'Infinity', -0.001, '-0', 'NaN', -0.01,
     '', '', '', '', '', '',
     'infinity', '00:00:00.000001', '00:00+15:59', '294276-12-31 23:59:59.999999', '0001-12-31 23:59:59.999999+00 BC', '-infinity', 'P1Y2M3DT4H5M6S',
     '00000000-0000-0000-0000-000000000000', 'null', '[]', '', '00000', '',
     '::1', '::/0', 'ff:ff:ff:ff:ff:ff', 'ff:ff:ff:ff:ff:ff:ff:ff',
     '(NaN,Infinity)', '{1,0,0}', '[(1,1),(0,0)]', '(1e10,1),(0,-1e-10)', '((0,0),(1,1))', '((0,0))', '<(0,0),0>',
     '', '', '0/0', '1:1:', 0, '0', '(0,1)', '-', '-',
     'empty', 'empty', '(-infinity,infinity)', '[2020-01-01,2020-12-31]', '{}', 'empty',
     'sad', 1, '', '', '(,)', NULL, '', '',
     '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '$'",
];

#[tokio::test(flavor = "multi_thread")]
async fn a_row_of_every_type_arrives_and_is_found_again_on_every_version() {
    for (major, is_binary) in forms() {
        let mut replay = Replay::new(major, &types(is_binary)).await.in_form(is_binary).await;
        for (at, values) in VALUES.iter().enumerate() {
            replay.on_primary(&format!("INSERT INTO types VALUES ({at}, {values})")).await;
        }
        replay.on_primary("INSERT INTO types (id) VALUES (99)").await;
        replay.relay().await.unwrap();
        assert_eq!(replay.equal("SELECT * FROM types").await, 3);
        replay.on_primary("UPDATE types SET id = id + 10; UPDATE types SET c_text = c_text || 'x'").await;
        replay.relay().await.unwrap();
        replay.equal("SELECT * FROM types").await;
        // From here on a row is found by all it holds.
        let keyless = "ALTER TABLE types DROP CONSTRAINT types_pkey; ALTER TABLE types REPLICA IDENTITY FULL";
        replay.on_primary(keyless).await;
        replay.on_standby(keyless).await;
        replay
            .on_primary(
                "INSERT INTO types SELECT * FROM types;
                 UPDATE types SET id = id + 1 WHERE ctid = (SELECT ctid FROM types LIMIT 1);
                 DELETE FROM types WHERE ctid IN (SELECT min(ctid) FROM types GROUP BY id)",
            )
            .await;
        replay.relay().await.unwrap();
        assert_eq!(replay.equal("SELECT * FROM types").await, 3);
        replay.on_primary("DELETE FROM types").await;
        replay.relay().await.unwrap();
        assert_eq!(replay.equal("SELECT * FROM types").await, 0);
    }
}

/// A type and two of its values.
const KEYS: &[(&str, [&str; 2])] = &[
    ("int2", ["1", "2"]),
    ("numeric", ["1.0", "'NaN'"]),
    ("float8", ["'-0'", "'NaN'"]),
    ("text", ["''", "'a b'"]),
    ("varchar(5)", ["'a'", "'b'"]),
    ("char(5)", ["'a'", "'b '"]),
    ("name", ["'a'", "'b'"]),
    ("\"char\"", ["'a'", "'b'"]),
    ("citext", ["'Ab'", "'c'"]),
    ("ci", ["'Ab'", "'c'"]),
    ("posint", ["1", "2"]),
    ("mood", ["'sad'", "'happy'"]),
    ("pair", ["'(1,a)'", "'(2,)'"]),
    ("int[]", ["'{}'", "'{1,2}'"]),
    ("citext[]", ["'{A}'", "'{b}'"]),
    ("mood[]", ["'{sad}'", "'{happy}'"]),
    ("int4range", ["'[1,3)'", "'empty'"]),
    ("moodrange", ["'[sad,happy]'", "'empty'"]),
    ("int4multirange", ["'{[1,3)}'", "'{}'"]),
    ("uuid", ["'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'", "'00000000-0000-0000-0000-000000000000'"]),
    ("timestamptz", ["'infinity'", "'4000-01-01 BC'"]),
    ("interval", ["'1 mon'", "'1 year'"]),
    ("bytea", ["'\\x00'", "'\\x'"]),
    ("inet", ["'10.0.0.1/8'", "'::1'"]),
    ("cidr", ["'10.0.0.0/8'", "'::/0'"]),
    ("jsonb", ["'{\"a\":1}'", "'null'"]),
    ("money", ["1.50", "-2"]),
    ("bit(3)", ["'101'", "'000'"]),
    ("varbit", ["'1'", "'0'"]),
    ("pg_lsn", ["'0/1'", "'1/0'"]),
    ("regclass", ["'pg_class'", "'pg_type'"]),
    ("oid", ["1", "4000000000"]),
    ("tsvector", ["'a:1'", "''"]),
    ("hstore", ["'a=>1'", "''"]),
    ("odd.ltree", ["'a.b'", "'c'"]),
    ("text COLLATE ndcoll", ["'Ab'", "'c'"]),
];

#[tokio::test(flavor = "multi_thread")]
async fn every_type_serves_as_a_key() {
    for is_binary in [false, true] {
        serve_as_keys(is_binary).await;
    }
}

async fn serve_as_keys(is_binary: bool) {
    let keys: Vec<_> = KEYS.iter().filter(|(key, _)| !is_binary || *key != "regclass").collect();
    let mut schema = format!(
        "{} CREATE COLLATION ndcoll (provider = icu, locale = 'und-u-ks-level2', deterministic = false);",
        types(is_binary)
    );
    for (at, (key, _)) in keys.iter().enumerate() {
        schema += &format!("CREATE TABLE k{at} (k {key} PRIMARY KEY, v text);");
    }
    let mut replay = Replay::new(18, &schema).await.in_form(is_binary).await;
    for (at, (key, values)) in keys.iter().enumerate() {
        let base = key.split(" COLLATE").next().unwrap();
        let values: Vec<String> = values.iter().map(|value| format!("CAST({value} AS {base})")).collect();
        for value in &values {
            replay.on_primary(&format!("INSERT INTO k{at} VALUES ({value}, 'new')")).await;
        }
        replay.on_primary(&format!("UPDATE k{at} SET v = 'updated' WHERE k = {}", values[0])).await;
        replay.on_primary(&format!("DELETE FROM k{at} WHERE k = {}", values[1])).await;
        replay.on_primary(&format!("UPDATE k{at} SET k = {}", values[1])).await;
    }
    replay.relay().await.unwrap();
    // Once more as sets: rows that change together.
    for (at, (_, values)) in keys.iter().enumerate() {
        let base = keys[at].0.split(" COLLATE").next().unwrap();
        replay.on_primary(&format!("INSERT INTO k{at} VALUES (CAST({} AS {base}), 'again')", values[0])).await;
    }
    replay.relay().await.unwrap();
    for at in 0..keys.len() {
        replay.on_primary(&format!("UPDATE k{at} SET v = v || '!'")).await;
    }
    replay.relay().await.unwrap();
    for (at, (key, _)) in keys.iter().enumerate() {
        assert_eq!(replay.equal(&format!("SELECT * FROM k{at}")).await, 2, "{key}");
        replay.on_primary(&format!("DELETE FROM k{at}")).await;
    }
    replay.relay().await.unwrap();
    for (at, (key, _)) in keys.iter().enumerate() {
        assert_eq!(replay.equal(&format!("SELECT * FROM k{at}")).await, 0, "{key}");
    }
    assert_eq!(replay.fallbacks.counts(), [], "binary: {is_binary}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_whose_type_was_not_looked_at_ends_a_binary_session() {
    let schema = "CREATE TABLE t (id int primary key, a text, b numeric, c timestamptz, d int[], e jsonb, f bytea)";
    let mut replay = Replay::new(18, schema).await.in_binary().await;
    let row = r#"i, 'x', i / 7.0, now(), ARRAY[i], '{"a":1}', '\x00'"#;
    replay.on_primary(&format!("INSERT INTO t SELECT {row} FROM generate_series(1, 100) i")).await;
    replay.on_primary("UPDATE t SET a = 'y', d = NULL; DELETE FROM t WHERE id = 3").await;
    replay.relay().await.unwrap();
    assert_eq!(replay.equal("SELECT * FROM t").await, 99);
    assert_eq!(replay.fallbacks.counts(), []);
    replay.on_both("CREATE TYPE mood AS ENUM ('a'); CREATE TABLE u (m mood)").await;
    replay.on_primary("INSERT INTO u VALUES ('a')").await;
    let error = replay.fails(&["public.u, column \"m\"", "binary form", "transaction at 0/"]).await;
    assert_eq!(error.retry(), walrelay::model::Retry::Later);
    // The next session has looked.
    replay.on_primary("INSERT INTO u VALUES ('a'), ('a'), (NULL)").await;
    replay.relay().await.unwrap();
    assert_eq!(replay.found("SELECT count(*) FROM u").await, ["(3)"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_changed_on_the_standby_alone_is_never_misread() {
    let mut replay = Replay::new(18, "CREATE TABLE t (a int PRIMARY KEY, b int)").await.in_binary().await;
    replay.on_primary("INSERT INTO t SELECT i, i FROM generate_series(1, 100) i").await;
    replay.relay().await.unwrap();
    // A column more is nobody's concern.
    replay.on_standby("ALTER TABLE t ADD extra text DEFAULT 'x'").await;
    replay.on_primary("INSERT INTO t SELECT -i, 0 FROM generate_series(1, 100) i").await;
    replay.relay().await.unwrap();
    assert_eq!(replay.fallbacks.counts(), []);
    // As wide as before.
    replay.on_standby("ALTER TABLE t ALTER b TYPE real").await;
    replay.on_primary("INSERT INTO t SELECT i, i FROM generate_series(101, 200) i").await;
    replay.fails(&["public.t, column \"b\"", "real on the standby", "binary form"]).await;
    assert_eq!(replay.found("SELECT count(*), sum(b) FROM t").await, ["(200,5050)"]);
}
