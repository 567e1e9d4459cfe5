//! Random work over tables of many shapes: schema for a primary, a stricter one for a standby, and statements that succeed or do nothing.
//! Runs nothing itself.

/// Small deterministic dice: a failing run is repeated with its seed (`WALRELAY_TEST_SEED`).
pub struct Dice(u64);

impl Dice {
    pub fn new() -> Self {
        Self::of(Self::seed())
    }

    /// The environment's, or one that never was.
    pub fn seed() -> u64 {
        let from_clock = || std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
        std::env::var("WALRELAY_TEST_SEED").map_or_else(|_| from_clock(), |text| text.parse().unwrap())
    }

    pub fn of(seed: u64) -> Self {
        eprintln!("WALRELAY_TEST_SEED={seed}");
        Self(seed)
    }

    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

/// A table's name, its key's columns with types, and the key of number `#` as SQL.
pub type Shape = (&'static str, &'static [(&'static str, &'static str)], &'static [&'static str]);

pub const SHAPES: &[Shape] = &[
    ("t_int", &[("k", "int")], &["#"]),
    ("t_pair", &[("k", "int"), ("l", "text")], &["# / 5", "'l ' || # % 5"]),
    ("t_text", &[("k", "text")], &["'t\"e,{x}\\' || #"]),
    ("t_uuid", &[("k", "uuid")], &["md5((#)::text)::uuid"]),
    ("t_num", &[("k", "numeric")], &["(#)::numeric / 8"]),
    ("t_ci", &[("k", "citext")], &["('Key' || #)::citext"]),
    ("t_char", &[("k", "char(8)")], &["('c' || #)::char(8)"]),
    ("t_enum", &[("k", "mood"), ("l", "int")], &["(ARRAY['sad', 'o k', 'happy'])[1 + # % 3]::mood", "# / 3"]),
    // Keys of nothing but an enum: three rows at most, which take each other's places again and again.
    ("t_mood", &[("k", "mood")], &["(ARRAY['sad', 'o k', 'happy'])[1 + # % 3]::mood"]),
    ("t_dom", &[("k", "posint")], &["1 + #"]),
    ("t_cid", &[("k", "ci")], &["('K' || #)::citext"]),
    ("t_ts", &[("k", "timestamptz")], &["'2020-01-01 00:00+00'::timestamptz + make_interval(secs => #)"]),
    ("t_arr", &[("k", "int[]")], &["ARRAY[#, 7]"]),
    ("t_row", &[("k", "pair")], &["ROW(#, 'x')::pair"]),
    ("t_part", &[("k", "int")], &["#"]),
    ("t_ident", &[("k", "int GENERATED ALWAYS AS IDENTITY")], &["#"]),
    ("t_extra", &[("k", "int")], &["#"]),
    ("t_uniq", &[("k", "int")], &["#"]),
    // The whole old row is sent, and the standby's types are wider.
    ("t_full", &[("k", "int")], &["#"]),
    // The identity is an index, and no primary key.
    ("t_index", &[("k", "int")], &["#"]),
    // What is unique may be NULL, so that rows are found by all they hold.
    ("t_null", &[("k", "int")], &["CASE WHEN # % 4 > 0 THEN # END"]),
];

/// Of these tables no sets of updates and deletes can be made: their rows are found by all they hold, and a unique index may be in the way.
pub const IN_ORDER: &[&str] = &["public.t_null"];

/// Tables whose keys can be moved on, all at once.
const SHIFTED: &[&str] = &["t_int", "t_part", "t_extra", "t_uniq", "t_full", "t_index", "t_null"];

pub const TYPES: &str =
    "CREATE EXTENSION citext; CREATE TYPE mood AS ENUM ('sad', 'o k', 'happy'); CREATE TYPE pair AS (x int, y text);
    CREATE DOMAIN posint AS int CHECK (VALUE > 0); CREATE DOMAIN ci AS citext;";

/// The same on both sides, but for what makes them interesting.
pub fn schema(is_standby: bool) -> String {
    made(is_standby, false)
}

/// The standby's, of no other types than the primary's, so that values may travel in binary form.
pub fn alike_schema() -> String {
    made(true, true)
}

fn made(is_standby: bool, is_alike: bool) -> String {
    let mut schema = TYPES.to_owned();
    for (name, key, _) in SHAPES {
        let columns: Vec<String> = key.iter().map(|(column, of_type)| format!("{column} {of_type}")).collect();
        let names: Vec<&str> = key.iter().map(|(column, _)| *column).collect();
        let rest = "i int, v varchar(40), a text[], j jsonb, p pair, big text";
        let rest = if is_standby {
            "big text, extra text DEFAULT 'kept', gone int, p pair, j jsonb, v varchar(40), a text[], i int"
        } else {
            rest
        };
        let rest = match *name {
            "t_full" if is_standby && !is_alike => rest.replace("varchar(40)", "text").replace("i int", "i bigint"),
            _ => rest.to_owned(),
        };
        let rest = if *name == "t_extra" { rest } else { rest.replace(" extra text DEFAULT 'kept',", "") };
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
    schema += "ALTER TABLE t_full REPLICA IDENTITY FULL; ALTER TABLE t_null REPLICA IDENTITY FULL, DROP CONSTRAINT t_null_pkey, ALTER k DROP NOT NULL;
         CREATE UNIQUE INDEX t_null_k ON t_null (k);";
    if !is_standby {
        schema += "ALTER TABLE t_index DROP CONSTRAINT t_index_pkey, ALTER k SET NOT NULL; CREATE UNIQUE INDEX t_index_k ON t_index (k);
             ALTER TABLE t_index REPLICA IDENTITY USING INDEX t_index_k;";
    }
    if is_standby {
        schema += "CREATE UNIQUE INDEX ON t_uniq ((w % 1000)) WHERE w > 0;";
        schema.extend(SHAPES.iter().map(|(name, ..)| format!("ALTER TABLE {name} DROP gone;")));
    }
    schema
}

/// One random statement.
pub fn statement(dice: &mut Dice, mark: u64) -> String {
    let (name, key, values) = SHAPES[dice.roll(SHAPES.len() as u64) as usize];
    let columns: Vec<&str> = key.iter().map(|(column, _)| *column).collect();
    let (columns, number) = (columns.join(", "), dice.roll(40));
    let key_of = |number: &str| values.iter().map(|value| value.replace('#', number)).collect::<Vec<_>>().join(", ");
    let big = format!("repeat('{mark} big', 800)");
    match dice.roll(11) {
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
                "UPDATE {name} SET ({columns}) = ROW({key}), i = {to} WHERE i = {number} \
                 AND NOT EXISTS (SELECT FROM {name} WHERE i = {to} OR ({columns}) = ({key}))",
                key = key_of(&to.to_string())
            )
        }
        8 => format!("DELETE FROM {name} WHERE i IN ({number}, {})", (number + 7) % 40),
        9 if SHIFTED.contains(&name) => {
            // Not deferrable: two steps, whose net effect is that each key takes its neighbour's place.
            let back = [999, 1001][dice.roll(2) as usize];
            format!("UPDATE {name} SET k = k + 1000; UPDATE {name} SET k = k - {back}")
        }
        _ if name == "t_uniq" => match dice.roll(5) {
            0 => "UPDATE t_uniq SET u = u + 1".to_owned(),
            1 => "UPDATE t_uniq SET r = int4range(390 - lower(r), 400 - lower(r)), u = 3000 - u WHERE r IS NOT NULL"
                .to_owned(),
            // Only the standby has an index on it: nobody may put a row in its way meanwhile.
            2 => "LOCK TABLE t_uniq IN SHARE ROW EXCLUSIVE MODE; UPDATE t_uniq SET w = 40 - w WHERE w > 0".to_owned(),
            3 => format!("UPDATE t_uniq SET u = NULL, r = NULL, v = 'free' WHERE i % 5 = {}", number % 5),
            _ => {
                let pair = format!(
                    "SELECT min(i) AS one, max(i) AS other FROM (SELECT i FROM t_uniq WHERE u IS NOT NULL ORDER BY (i + {number}) % 40 LIMIT 2) x"
                );
                format!(
                    "UPDATE t_uniq t SET u = o.u, r = o.r FROM ({pair}) p JOIN t_uniq o ON o.i IN (p.one, p.other) \
                     WHERE t.i IN (p.one, p.other) AND o.i <> t.i"
                )
            }
        },
        _ => format!("UPDATE {name} SET v = v || '+' WHERE length(v) < 30"),
    }
}

/// The columns that both sides have.
pub fn columns((name, key, _): &Shape) -> String {
    let key: Vec<&str> = key.iter().map(|(column, _)| *column).collect();
    let more = if *name == "t_uniq" { ", u, r, w" } else { "" };
    format!("{}, i, v, a, j, p, big{more}", key.join(", "))
}
