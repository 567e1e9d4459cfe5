//! Random tables: a schema for a primary, one for a standby that need not be the same, and statements that succeed or do nothing. Every
//! row has a number `i`, and its key is what the key's types make of that number. Runs nothing itself.

use super::random_work::Dice;

/// Types of which each number has a value of its own: name, and the value of number `#` as SQL. `~` is 0 or 1 and spells the same
/// value in two ways, where there are two.
const KEYS: &[(&str, &str)] = &[
    ("smallint", "(#)::smallint"),
    ("int", "#"),
    ("bigint", "(#)::bigint * 10000000000"),
    ("text", "'t\"e,{x}\\' || (#)"),
    ("varchar(40)", "'v ' || (#)"),
    ("char(12)", "('c' || (#))::char(12)"),
    ("name", "('n' || (#))::name"),
    ("uuid", "md5((#)::text)::uuid"),
    ("numeric", "round((#)::numeric / 8, 4 + ~)"),
    ("float8", "CASE WHEN (#) = 0 AND ~ = 1 THEN '-0' ELSE (#)::float8 / 4 END::float8"),
    ("citext", "(CASE ~ WHEN 0 THEN 'key ' ELSE 'KEY ' END || (#))::citext"),
    ("ci", "(CASE ~ WHEN 0 THEN 'key ' ELSE 'KEY ' END || (#))::citext"),
    ("posint", "5000 + (#)"),
    ("date", "'2020-01-01'::date + (#)"),
    ("timestamptz", "'2020-01-01 00:00+00'::timestamptz + make_interval(secs => #)"),
    ("interval", "CASE ~ WHEN 0 THEN make_interval(months => #) ELSE make_interval(days => 30 * (#)) END"),
    ("inet", "'10.9.0.0'::inet + (#)"),
    ("bytea", "int4send(#)"),
    ("int[]", "ARRAY[#, 7]"),
    ("text[]", "ARRAY['\"', (#)::text, NULL]"),
    ("pair", "ROW(#, 'x')::pair"),
    ("jsonb", "to_jsonb(round((#)::numeric, ~))"),
    ("int4range", "int4range((#) * 10, (#) * 10 + 10)"),
];

/// Types that have too few values to be a key alone.
const FEW: &[(&str, &str)] = &[
    ("mood", "(ARRAY['sad', 'o k', 'happy'])[1 + abs(#) % 3]::mood"),
    ("bool", "(#) % 2 = 0"),
    ("\"char\"", "chr(97 + abs(#) % 5)::\"char\""),
];

/// Types of the other columns, NULL now and then; `!` is a mark that is never the same.
const VALUES: &[(&str, &str)] = &[
    ("int", "NULLIF(#, 3)"),
    ("smallint", "((!) % 30000)::smallint"),
    ("varchar(40)", "'v\\\t!'"),
    ("text", "NULLIF('w\n' || (#), 'w\n4')"),
    ("numeric(12, 3)", "CASE WHEN (#) % 7 = 0 THEN 'NaN' ELSE (!) / 8.0 END::numeric(12, 3)"),
    ("float8", "CASE (#) % 5 WHEN 0 THEN '-0' WHEN 1 THEN 'NaN' ELSE (!) / 3.0 END::float8"),
    ("text[]", "ARRAY['a \"!', NULL, '{}']"),
    ("int[]", "CASE WHEN (#) % 4 > 0 THEN ARRAY[[1, !], [#, NULL]] END"),
    ("jsonb", "jsonb_build_object('m', !)"),
    ("json", "'{\"a\": 1,  \"a\": !}'::json"),
    ("pair", "ROW(!, NULL)::pair"),
    ("pair[]", "ARRAY[ROW(!, ',\"')::pair, NULL]"),
    ("mood", "(ARRAY['sad', 'o k', 'happy'])[1 + abs(!) % 3]::mood"),
    ("citext", "('Ci !')::citext"),
    ("char(8)", "('!')::char(8)"),
    ("bytea", "'\\x00ff'::bytea || int4send(!)"),
    ("point", "point(#, !)"),
    (
        "timestamptz",
        "CASE WHEN (#) % 6 = 0 THEN 'infinity' ELSE '2021-01-01 00:00+00'::timestamptz + make_interval(secs => !) END",
    ),
    ("tsvector", "to_tsvector('simple', 'a ! b')"),
    ("bool", "(!) % 2 = 0"),
];

/// How the primary tells which row is meant.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Identity {
    PrimaryKey,
    /// The key is a number of the server's own.
    Always,
    /// A unique index that is no primary key.
    Index,
    /// All of the old row, though there is a key.
    Full,
    /// All of the old row; what is unique may be NULL.
    Nullable,
    /// All of the old row, and rows may be equal.
    Bag,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Partitions {
    None,
    Both,
    Standby,
}

/// A column: name, type, and its value as SQL.
type Column = (String, &'static str, &'static str);

/// A random table.
#[derive(Debug)]
pub struct Table {
    pub name: String,
    identity: Identity,
    key: Vec<Column>,
    rest: Vec<Column>,
    /// A unique, an excluded and a differently unique column: swapped as a whole.
    has_unique: bool,
    partitions: Partitions,
    /// The standby's own: columns in another order, of wider types, and more of them.
    is_shuffled: bool,
    is_wider: bool,
    extra: &'static str,
}

fn pick<T: Copy>(dice: &mut Dice, list: &[T]) -> T {
    list[dice.roll(list.len() as u64) as usize]
}

impl Table {
    /// `is_alike`: no type is wider on the standby.
    pub fn random(dice: &mut Dice, name: String, is_alike: bool) -> Self {
        use Identity::{Always, Bag, Full, Index, Nullable, PrimaryKey};
        let identity = pick(dice, &[PrimaryKey, PrimaryKey, PrimaryKey, Index, Full, Nullable, Bag, Always]);
        let mut types =
            vec![if identity == Always { ("int GENERATED ALWAYS AS IDENTITY", "#") } else { pick(dice, KEYS) }];
        if identity != Always && dice.roll(3) == 0 {
            types.insert(dice.roll(2) as usize, pick(dice, FEW));
        }
        let key =
            types.into_iter().enumerate().map(|(at, (of_type, value))| (format!("k{at}"), of_type, value)).collect();
        let count = 1 + dice.roll(6);
        let mut rest: Vec<Column> = (0..count)
            .map(|_| pick(dice, VALUES))
            .enumerate()
            .map(|(at, (of_type, value))| (format!("c{at}"), of_type, value))
            .collect();
        if identity != Bag {
            rest.push(("big".to_owned(), "text", "repeat('! big', 800)"));
        }
        let is_plain = identity == PrimaryKey;
        Self {
            name,
            identity,
            key,
            rest,
            partitions: if is_plain {
                pick(dice, &[Partitions::None, Partitions::Both, Partitions::Standby])
            } else {
                Partitions::None
            },
            has_unique: identity != Bag && dice.roll(3) == 0,
            is_shuffled: dice.roll(2) == 0,
            is_wider: !is_alike && dice.roll(2) == 0,
            extra: pick(
                dice,
                &[
                    "",
                    "",
                    "extra text DEFAULT 'kept'",
                    "extra int NOT NULL DEFAULT 7",
                    "extra int GENERATED ALWAYS AS (i * 2) STORED",
                ],
            ),
        }
        .fit()
    }

    /// Whether no set can be made of its updates and deletes: rows are found by all they hold, and an index may be in their way.
    pub fn goes_in_order(&self) -> bool {
        self.identity == Identity::Nullable
    }

    /// Without what servers do not make; and rows that are found by all they hold change in turn where something is unique, so that
    /// no standby that checks each row could swap them.
    fn fit(mut self) -> Self {
        self.has_unique &= self.partitions == Partitions::None && self.identity != Identity::Nullable;
        self
    }

    /// The statements that make it.
    pub fn schema(&self, is_standby: bool) -> String {
        let name = &self.name;
        let mut columns: Vec<String> = Vec::new();
        for (column, of_type, _) in self.key.iter().chain(&self.rest) {
            let wider = match *of_type {
                "int" => "bigint",
                "smallint" => "int",
                "varchar(40)" => "text",
                other => other,
            };
            columns.push(format!("{column} {}", if is_standby && self.is_wider { wider } else { of_type }));
        }
        columns.push("i int".to_owned());
        if self.has_unique {
            columns.extend(["u int", "r int4range", "w int"].map(str::to_owned));
        }
        if is_standby {
            if self.is_shuffled {
                columns.reverse();
            }
            columns.insert(columns.len() / 2, "gone int".to_owned());
            if !self.extra.is_empty() {
                columns.insert(0, self.extra.to_owned());
            }
        }
        let names: Vec<&str> = self.key.iter().map(|(column, ..)| column.as_str()).collect();
        let names = names.join(", ");
        let key = match self.identity {
            Identity::PrimaryKey | Identity::Always | Identity::Full => format!(", PRIMARY KEY ({names})"),
            Identity::Index if is_standby => format!(", PRIMARY KEY ({names})"),
            Identity::Index | Identity::Nullable | Identity::Bag => String::new(),
        };
        let is_partitioned =
            self.partitions == Partitions::Both || is_standby && self.partitions == Partitions::Standby;
        let by = if is_partitioned { format!(" PARTITION BY HASH ({names})") } else { String::new() };
        let mut sql = format!("CREATE TABLE {name} ({}{key}){by};", columns.join(", "));
        let mut tables = vec![name.clone()];
        if is_partitioned {
            tables = (0..3).map(|part| format!("{name}_{part}")).collect();
            for (part, table) in tables.iter().enumerate() {
                sql +=
                    &format!("CREATE TABLE {table} PARTITION OF {name} FOR VALUES WITH (MODULUS 3, REMAINDER {part});");
            }
        }
        for table in tables.iter().filter(|_| self.identity != Identity::Bag) {
            sql += &format!("ALTER TABLE {table} ALTER big SET STORAGE EXTERNAL;");
        }
        if is_standby {
            sql += &format!("ALTER TABLE {name} DROP gone;");
        }
        sql += &match self.identity {
            Identity::Full | Identity::Bag => format!("ALTER TABLE {name} REPLICA IDENTITY FULL;"),
            Identity::Nullable => {
                format!("ALTER TABLE {name} REPLICA IDENTITY FULL; CREATE UNIQUE INDEX {name}_k ON {name} ({names});")
            }
            Identity::Index if !is_standby => {
                let not_null =
                    names.split(", ").map(|column| format!("ALTER TABLE {name} ALTER {column} SET NOT NULL;"));
                format!(
                    "{} CREATE UNIQUE INDEX {name}_k ON {name} ({names}); ALTER TABLE {name} REPLICA IDENTITY USING INDEX {name}_k;",
                    not_null.collect::<String>()
                )
            }
            _ => String::new(),
        };
        if self.has_unique {
            // The primary checks at the end of a transaction, the standby each row.
            let timing = if is_standby { "" } else { "DEFERRABLE INITIALLY DEFERRED" };
            sql += &format!("ALTER TABLE {name} ADD UNIQUE (u) {timing}, ADD EXCLUDE USING gist (r WITH &&) {timing};");
            if is_standby {
                sql += &format!("CREATE UNIQUE INDEX ON {name} ((w % 1000)) WHERE w > 0;");
            }
        }
        sql
    }

    /// The columns that both sides have.
    pub fn columns(&self) -> String {
        let mut columns: Vec<&str> = self.key.iter().chain(&self.rest).map(|(column, ..)| column.as_str()).collect();
        columns.push("i");
        if self.has_unique {
            columns.extend(["u", "r", "w"]);
        }
        columns.join(", ")
    }

    /// The key of a number in one of its spellings.
    fn key_of(&self, number: &str, spelling: u64) -> String {
        let one = |(_, _, value): &Column| {
            let value = value.replace('#', number).replace('~', &spelling.to_string());
            match self.identity {
                Identity::Nullable => format!("CASE WHEN ({number}) % 4 > 0 THEN {value} END"),
                _ => value,
            }
        };
        self.key.iter().map(one).collect::<Vec<_>>().join(", ")
    }

    fn names(&self) -> String {
        self.key.iter().map(|(column, ..)| column.as_str()).collect::<Vec<_>>().join(", ")
    }

    /// Two ways to write a key are the same to a search by all that a row holds: there is one of them.
    fn spelling(&self, dice: &mut Dice) -> u64 {
        if matches!(self.identity, Identity::Bag | Identity::Nullable) { 0 } else { dice.roll(2) }
    }

    fn may_move(&self) -> bool {
        self.identity != Identity::Always
    }

    fn insert(&self, from: u64, to: u64, spelling: u64, mark: u64) -> String {
        let name = &self.name;
        let values: Vec<String> =
            self.rest.iter().map(|(_, _, value)| value.replace('#', "g").replace('!', &mark.to_string())).collect();
        let (unique, free) = match self.has_unique {
            true => (
                ", 1000 + g, int4range(g * 10, g * 10 + 10), g",
                "u = 1000 + g OR r && int4range(g * 10, g * 10 + 10) OR w % 1000 = g OR ",
            ),
            false => ("", ""),
        };
        let overriding = if self.identity == Identity::Always { "OVERRIDING SYSTEM VALUE " } else { "" };
        format!(
            "INSERT INTO {name} ({}) {overriding}SELECT {}, {}, g{unique} FROM generate_series({from}, {to}) g \
             WHERE NOT EXISTS (SELECT FROM {name} WHERE {free}i = g)",
            self.columns(),
            self.key_of("g", spelling),
            values.join(", ")
        )
    }

    /// One random statement, or a few that belong together.
    pub fn statement(&self, dice: &mut Dice, mark: u64) -> String {
        if self.identity == Identity::Bag {
            return self.bag_statement(dice, mark);
        }
        let (name, names) = (&self.name, self.names());
        let (number, other, spelling) = (dice.roll(40), dice.roll(40), self.spelling(dice));
        let (column, _, value) = &self.rest[dice.roll(self.rest.len() as u64) as usize];
        let value = value.replace('#', "i").replace('!', &mark.to_string());
        let go = |from: u64, to: u64| {
            format!(
                "UPDATE {name} SET ({names}) = ROW({}), i = {to} WHERE i = {from} AND NOT EXISTS (SELECT FROM {name} WHERE i = {to})",
                self.key_of(&to.to_string(), spelling)
            )
        };
        let shift = |by: &str| {
            format!("UPDATE {name} SET ({names}) = ROW({}), i = i {by}", self.key_of(&format!("(i {by})"), spelling))
        };
        match dice.roll(16) {
            0..4 => self.insert(number, number + dice.roll(4), spelling, mark),
            4 => format!("UPDATE {name} SET {column} = {value} WHERE i = {number}"),
            5 => format!("UPDATE {name} SET {column} = {value} WHERE i % 3 = {}", number % 3),
            6 => format!("UPDATE {name} SET {column} = NULL WHERE i % 5 = {}", number % 5),
            7 => format!("UPDATE {name} SET big = repeat('{mark} big', 800) WHERE i % 4 = {}", number % 4),
            8 => format!("DELETE FROM {name} WHERE i IN ({number}, {other})"),
            9 => format!("DELETE FROM {name} WHERE i = {number}; {}", self.insert(number, number, spelling, mark)),
            10 if self.may_move() => go(number, other),
            // Two rows change places.
            11 if self.may_move() => {
                format!("{}; {}; {}", go(number, 2000), go(other, number), go(2000, other))
            }
            // Each key takes its neighbour's place.
            12 if self.may_move() => format!("{}; {}", shift("+ 1000"), shift(pick(dice, &["- 999", "- 1001"]))),
            13 if self.may_move() => {
                format!(
                    "UPDATE {name} SET ({names}) = ROW({}) WHERE i % 3 = {}",
                    self.key_of("i", spelling),
                    number % 3
                )
            }
            // A table with deferred checks before it cannot be emptied.
            14 if dice.roll(8) == 0 => {
                format!("SET CONSTRAINTS ALL IMMEDIATE; TRUNCATE {name}; SET CONSTRAINTS ALL DEFERRED")
            }
            _ if self.has_unique => self.unique_statement(dice, number),
            _ => format!("UPDATE {name} SET {column} = {value}"),
        }
    }

    fn unique_statement(&self, dice: &mut Dice, number: u64) -> String {
        let name = &self.name;
        match dice.roll(4) {
            0 => format!("UPDATE {name} SET u = u + 1"),
            1 => format!(
                "UPDATE {name} SET r = int4range(390 - lower(r), 400 - lower(r)), u = 3000 - u WHERE r IS NOT NULL"
            ),
            2 => format!("UPDATE {name} SET u = NULL, r = NULL, w = NULL WHERE i % 5 = {}", number % 5),
            _ => {
                let pair = format!(
                    "SELECT min(i) AS one, max(i) AS other FROM (SELECT i FROM {name} WHERE u IS NOT NULL ORDER BY (i + {number}) % 40 LIMIT 2) x"
                );
                format!(
                    "UPDATE {name} t SET u = o.u, r = o.r, w = o.w FROM ({pair}) p JOIN {name} o ON o.i IN (p.one, p.other) \
                     WHERE t.i IN (p.one, p.other) AND o.i <> t.i"
                )
            }
        }
    }

    fn bag_statement(&self, dice: &mut Dice, mark: u64) -> String {
        let name = &self.name;
        let (one, other) = (dice.roll(20), dice.roll(5));
        let picked = format!(
            "WHERE ctid IN (SELECT ctid FROM {name} WHERE i % 5 = {other} ORDER BY random() LIMIT {})",
            1 + one
        );
        let (column, _, value) = &self.rest[dice.roll(self.rest.len() as u64) as usize];
        let value = value.replace('#', "i").replace('!', &(mark % 3).to_string());
        match dice.roll(7) {
            0..2 => self.insert(one, one + 10, 0, mark % 3),
            2 => format!("INSERT INTO {name} ({0}) SELECT {0} FROM {name} {picked}", self.columns()),
            3 => format!("DELETE FROM {name} {picked}"),
            4 => format!("UPDATE {name} SET i = i + 1 {picked}"),
            5 => format!("UPDATE {name} SET {column} = NULL {picked}"),
            _ => format!("UPDATE {name} SET {column} = {value} {picked}"),
        }
    }
}
