//! Random work over tables of many shapes: schema for a primary, a stricter one for a standby, and statements that succeed or do nothing.
//! Runs nothing itself.

/// Small deterministic dice: a failing run is repeated with its seed (`WALRELAY_TEST_SEED`).
pub struct Dice(u64);

impl Dice {
    pub fn new() -> Self {
        let from_clock = || std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
        let seed = std::env::var("WALRELAY_TEST_SEED").map_or_else(|_| from_clock(), |text| text.parse().unwrap());
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
pub fn schema(is_standby: bool) -> String {
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
pub fn statement(dice: &mut Dice, mark: u64) -> String {
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

/// The columns that both sides have.
pub fn columns((name, key, _): &Shape) -> String {
    let key: Vec<&str> = key.iter().map(|(column, _)| *column).collect();
    let more = if *name == "t_uniq" { ", u, r, w" } else { "" };
    format!("{}, i, v, a, j, p, big{more}", key.join(", "))
}
