//! The doctor on set-ups that are broken on purpose: it names each fault, and running every statement it prints, at its place
//! and as a superuser, makes it pass; then the relay runs, as a role without privileges.

use std::process::Command;

use serde_json::Value;
use walrelay::throwaway::Server;

use super::harness::{Pair, Relay, major_versions, oldest_and_newest, try_run, value, values};

const TABLES: &str = "CREATE TABLE orders (id int PRIMARY KEY, item text)";

/// What `walrelay check --json` says.
pub(super) struct Checked {
    code: i32,
    pub(super) answer: Value,
}

impl Checked {
    pub(super) fn of(config: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("walrelay.toml");
        std::fs::write(&path, config).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_walrelay"));
        let output = command.args(["check", "--json", "--config"]).arg(&path).output().unwrap();
        let answer = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
        Self { code: output.status.code().unwrap(), answer }
    }

    fn findings(&self) -> &[Value] {
        self.answer["findings"].as_array().unwrap()
    }

    fn statements(finding: &Value) -> impl Iterator<Item = &str> {
        finding["sql"].as_array().unwrap().iter().map(|sql| sql.as_str().unwrap())
    }

    /// A finding of this level at this place holds the text in its message, and the statement among its SQL.
    pub(super) fn names(&self, level: &str, place: &str, message: &str, sql: &str) {
        let fits = |finding: &&Value| {
            finding["level"] == level
                && finding["place"] == place
                && finding["message"].as_str().unwrap().contains(message)
                && (sql.is_empty() || Self::statements(finding).any(|statement| statement.contains(sql)))
        };
        assert!(
            self.findings().iter().any(|finding| fits(&finding)),
            "no {level} at {place} with \"{message}\" and \"{sql}\" in: {:#}",
            self.answer
        );
    }

    pub(super) fn refused(&self) {
        self.ends_with(5);
    }

    fn ends_with(&self, code: i32) {
        assert!(self.code == code && self.answer["ok"] == false, "{}: {:#}", self.code, self.answer);
    }

    pub(super) fn passes(&self) {
        assert!(self.code == 0 && self.answer["ok"] == true, "{}: {:#}", self.code, self.answer);
    }

    /// Does what it says: every statement, and a restart where one is asked for.
    pub(super) async fn mend(&self, pair: &mut Pair) {
        let (mut restart_primary, mut restart_standby) = (false, false);
        for finding in self.findings() {
            let is_primary = finding["place"] == "primary";
            let server = if is_primary { &pair.primary } else { &pair.standby };
            for sql in Self::statements(finding) {
                try_run(server, "shop", sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
            }
            let asks = finding["level"] == "error" && finding["remedy"].as_str().unwrap().contains("restart");
            restart_primary |= asks && is_primary;
            restart_standby |= asks && !is_primary;
        }
        for (server, is_asked) in [(&mut pair.primary, restart_primary), (&mut pair.standby, restart_standby)] {
            if is_asked {
                server.stop_fast();
                server.start_again().await.unwrap();
            }
        }
    }
}

/// The pair's configuration with the role `relay` on both sides, which has no privilege yet.
fn as_relay(pair: &Pair, lines: &str) -> String {
    let config = pair.config(lines);
    let config = config.replace(&pair.primary.url("shop"), &pair.primary.url_for("relay", "shop"));
    config.replace(&pair.standby.url("shop"), &pair.standby.url_for("relay", "shop"))
}

/// Settings as an administrator leaves them behind, and a restart.
pub(super) async fn set(server: &mut Server, settings: &[(&str, &str)]) {
    for (name, value) in settings {
        values(server, "postgres", &format!("ALTER SYSTEM SET {name} = '{value}'")).await;
    }
    server.stop_fast();
    server.start_again().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_without_privileges_is_told_every_grant_and_then_runs_the_relay() {
    for major in major_versions().into_iter().filter(|major| [14, 15, 18].contains(major)) {
        let mut pair = Pair::start(major).await;
        pair.on_both(
            "CREATE ROLE relay LOGIN; CREATE SCHEMA sales; REVOKE CREATE ON DATABASE shop FROM PUBLIC; \
             CREATE TABLE sales.\"Odd name\" (id int PRIMARY KEY, item text); \
             CREATE TABLE sales.event (id int PRIMARY KEY, item text) PARTITION BY RANGE (id); \
             CREATE TABLE sales.event_low PARTITION OF sales.event FOR VALUES FROM (0) TO (100); \
             CREATE TABLE sales.event_high PARTITION OF sales.event FOR VALUES FROM (100) TO (200)",
        )
        .await;
        pair.on_primary("INSERT INTO sales.event SELECT i, 'copied' FROM generate_series(0, 199) i; INSERT INTO sales.\"Odd name\" VALUES (1, 'x')").await;
        let config = as_relay(&pair, "tables = [\"sales.*\"]");
        let first = Checked::of(&config);
        first.refused();
        first.names("error", "primary", "may not replicate", "ALTER ROLE \"relay\" REPLICATION");
        first.names(
            "error",
            "primary",
            "may not create the publication",
            "CREATE PUBLICATION \"walrelay_standby1\" FOR TABLE",
        );
        first.names("error", "primary", "may not use the schema sales", "GRANT USAGE ON SCHEMA \"sales\"");
        first.names("error", "primary", "may not read sales.\"Odd name\"", "GRANT SELECT ON sales.\"Odd name\"");
        first.names(
            "error",
            "standby1",
            "schema walrelay",
            "CREATE SCHEMA IF NOT EXISTS walrelay AUTHORIZATION \"relay\"",
        );
        first.names(
            "error",
            "standby1",
            "lacks SELECT, INSERT, UPDATE, DELETE, TRUNCATE, TRIGGER on sales.event_low",
            "",
        );
        first.names("error", "standby1", "lacks TRIGGER on sales.event", "GRANT TRIGGER ON sales.event TO");
        let asks_for_superuser = first.answer.to_string().contains("SUPERUSER");
        assert_eq!(asks_for_superuser, major == 14, "{major}: {:#}", first.answer);
        first.mend(&mut pair).await;
        Checked::of(&config).passes();

        let relay = Relay::start(&config).await;
        relay.wait_state("streaming").await;
        pair.on_primary(
            "UPDATE sales.event SET item = 'changed' WHERE id % 3 = 0; DELETE FROM sales.event WHERE id = 5; \
             INSERT INTO sales.\"Odd name\" VALUES (2, 'y'); TRUNCATE sales.event_high",
        )
        .await;
        pair.equal_after_catching_up(&["sales.event", "sales.\"Odd name\""]).await;
        for statement in ["INSERT INTO sales.\"Odd name\" VALUES (3, 'z')", "DELETE FROM sales.event"] {
            let error = try_run(&pair.standby, "shop", statement).await.unwrap_err();
            assert_eq!(error.code().unwrap().code(), "25006", "{major}: {statement}");
        }
        let running = Checked::of(&config);
        running.passes();
        running.names("info", "primary", "is in use", "");
    }
}

/// The README's own statements, word for word, are enough.
#[tokio::test(flavor = "multi_thread")]
async fn the_roles_of_the_readme_run_the_relay() {
    let readme = include_str!("../../README.md");
    let blocks: Vec<&str> =
        readme.split("```sql\n").skip(1).filter_map(|block| block.split_once("```")).map(|(sql, _)| sql).collect();
    let find = |part: &str| *blocks.iter().find(|block| block.contains(part)).unwrap();
    let pair = Pair::start(18).await;
    pair.on_both("CREATE TABLE orders (id int PRIMARY KEY, item text); CREATE TABLE customers (id int PRIMARY KEY)")
        .await;
    pair.on_primary("INSERT INTO orders VALUES (1, 'x')").await;
    pair.on_primary(find("LOGIN REPLICATION")).await;
    pair.on_standby(find("session_replication_role")).await;
    let config = as_relay(&pair, "").replace("relay@", "walrelay@");
    Checked::of(&config).passes();
    let relay = Relay::start(&config).await;
    relay.wait_state("streaming").await;
    pair.on_primary("INSERT INTO orders VALUES (2, 'y')").await;
    pair.equal_after_catching_up(&["orders", "customers"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_with_wrong_settings_is_mended_by_what_check_prints() {
    for major in major_versions().into_iter().filter(|major| [15, 18].contains(major)) {
        let mut pair = Pair::start(major).await;
        set(&mut pair.primary, &[("wal_level", "replica"), ("max_replication_slots", "2")]).await;
        pair.on_both(TABLES).await;
        pair.on_primary("CREATE TABLE plain (a int); SELECT pg_create_physical_replication_slot('taken')").await;
        pair.on_standby("CREATE TABLE plain (a int)").await;
        let second = "[[pipeline]]\nname = \"feed\"\n[pipeline.sink]\ntype = \"stdout\"\n";
        let config = format!("{}{second}", pair.config(""));
        let first = Checked::of(&config);
        first.refused();
        first.names("error", "primary", "wal_level is replica", "ALTER SYSTEM SET wal_level = 'logical'");
        first.names(
            "error",
            "primary",
            "no replication slot is free for \"walrelay_feed\"",
            "max_replication_slots = 7",
        );
        assert!(!first.answer.to_string().contains("free for \\\"walrelay_standby1"), "{:#}", first.answer);
        first.names(
            "warning",
            "primary",
            "no replication slot is left beside \"walrelay_standby1\"",
            "max_replication_slots = 7",
        );
        first.names("warning", "primary", "public.plain has no replica identity", "REPLICA IDENTITY FULL");
        first.names("info", "primary", "max_slot_wal_keep_size is -1", "");
        first.mend(&mut pair).await;
        Checked::of(&config).passes();
        let _relay = pair.relay("").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_differs_is_mended_by_what_check_prints() {
    let mut pair = Pair::start(18).await;
    set(&mut pair.standby, &[("max_active_replication_origins", "0")]).await;
    pair.on_primary(
        "CREATE TABLE orders (id int PRIMARY KEY, item text, price numeric(10,2), total int); \
         CREATE SCHEMA sales; CREATE TABLE sales.missing (a int, b text, PRIMARY KEY (b, a)); \
         CREATE TABLE keyed (id int PRIMARY KEY); CREATE TABLE late (id int PRIMARY KEY); INSERT INTO orders VALUES (1, 'x', 1.5, 2); INSERT INTO sales.missing VALUES (1, 'x')",
    )
    .await;
    pair.on_standby(
        "CREATE TABLE orders (id int PRIMARY KEY, item varchar, total int GENERATED ALWAYS AS (id * 2) STORED, extra int NOT NULL); CREATE TABLE keyed (id int); CREATE TABLE late (id int PRIMARY KEY DEFERRABLE)",
    )
    .await;
    let first = Checked::of(&pair.config(""));
    first.refused();
    first.names(
        "error",
        "standby1",
        "do not exist on the standby: sales.missing",
        "CREATE TABLE \"sales\".\"missing\"",
    );
    first.names("error", "standby1", "lacks the column price", "ADD COLUMN \"price\" numeric(10,2)");
    first.names("error", "standby1", "public.orders.total", "DROP EXPRESSION");
    first.names("error", "standby1", "exists on the standby only", "DROP NOT NULL");
    first.names(
        "info",
        "standby1",
        "public.orders.item is text on the primary and character varying on the standby",
        "",
    );
    first.names("warning", "standby1", "public.keyed has no primary key on the standby", "ADD PRIMARY KEY (\"id\")");
    let late = "public.late has deferrable constraints on the standby (late_pkey)";
    first.names("warning", "standby1", late, "");
    first.names("error", "standby1", "max_active_replication_origins is 0", "ALTER SYSTEM SET");
    first.mend(&mut pair).await;
    Checked::of(&pair.config("")).passes();
    let _relay = pair.relay("").await;
    assert_eq!(value(&pair.standby, "shop", "SELECT price || b FROM orders, sales.missing").await, "1.50x");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_listed_too_early_is_taken_out_before_anything_waits_for_ever() {
    let mut pair = Pair::start(18).await;
    pair.on_both(TABLES).await;
    set(&mut pair.primary, &[("synchronous_standby_names", "FIRST 1 (\"standby1\")")]).await;
    let first = Checked::of(&pair.config(""));
    first.refused();
    first.names(
        "error",
        "primary",
        "already stands in synchronous_standby_names",
        "ALTER SYSTEM SET synchronous_standby_names = ''",
    );
    first.mend(&mut pair).await;
    Checked::of(&pair.config("")).passes();
    let _relay = pair.relay("").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_that_leaves_something_out_is_completed() {
    let mut pair = Pair::start(18).await;
    pair.on_both(TABLES).await;
    pair.on_both("CREATE TABLE later (id int PRIMARY KEY); CREATE ROLE relay LOGIN REPLICATION; GRANT ALL ON ALL TABLES IN SCHEMA public TO relay").await;
    pair.on_standby("ALTER ROLE relay SUPERUSER").await;
    pair.on_primary("CREATE PUBLICATION walrelay_standby1 FOR TABLE orders WITH (publish = 'insert, update')").await;
    let config = as_relay(&pair, "");
    let first = Checked::of(&config);
    first.refused();
    first.names(
        "error",
        "primary",
        "does not publish every operation",
        "SET (publish = 'insert, update, delete, truncate')",
    );
    first.names("error", "primary", "does not cover every table", "ADD TABLE ONLY \"public\".\"later\"");
    first.mend(&mut pair).await;
    Checked::of(&config).passes();
    let relay = Relay::start(&config).await;
    relay.wait_state("streaming").await;
    // Ours, but a table came that is not.
    pair.on_both("CREATE TABLE latest (id int PRIMARY KEY)").await;
    // What already streams goes on without it, so `run` would run.
    let later = Checked::of(&config);
    later.passes();
    later.names("warning", "primary", "may not add them", "ADD TABLE ONLY \"public\".\"latest\"");
    pair.on_primary("ALTER PUBLICATION walrelay_standby1 OWNER TO relay").await;
    Checked::of(&config).names("warning", "primary", "may not add them", "ADD TABLE ONLY \"public\".\"latest\"");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_of_somebody_else_is_asked_for_and_what_it_leaves_out_is_told() {
    let mut pair = Pair::start(18).await;
    pair.on_both(TABLES).await;
    let config = pair.config("publication = \"mine\"");
    let first = Checked::of(&config);
    first.refused();
    first.names("error", "primary", "\"mine\" does not exist", "CREATE PUBLICATION \"mine\" FOR TABLE");
    first.mend(&mut pair).await;
    Checked::of(&config).passes();
    pair.on_primary("ALTER PUBLICATION mine SET (publish = 'insert')").await;
    let partial = Checked::of(&config);
    partial.passes();
    partial.names("warning", "primary", "does not publish every operation", "SET (publish = 'insert, update, delete");
    let relay = Relay::start(&config).await;
    relay.wait_state("streaming").await;
    assert!(relay.log().contains("does not publish update, delete, truncate"), "{}", relay.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_start_would_refuse_check_refuses_in_the_same_words() {
    let pair = Pair::start(18).await;
    pair.on_both(TABLES).await;
    let mut relay = pair.relay("").await;
    pair.on_primary("INSERT INTO orders VALUES (1, 'x')").await;
    pair.caught_up("standby1").await;
    assert!(relay.stop().await.success());
    // Stopped, it would begin again where it stands.
    Checked::of(&pair.config("")).passes();
    pair.on_standby("UPDATE walrelay.progress SET lsn = 'FF/0'").await;
    let ahead = Checked::of(&pair.config(""));
    ahead.refused();
    ahead.names("error", "standby1", "ahead of the primary", "");
    pair.on_standby("DELETE FROM walrelay.progress").await;
    Checked::of(&pair.config("")).names("error", "standby1", "no progress record", "");
    Checked::of(&pair.config("initial_copy = false")).passes();
    values(&pair.primary, "shop", "SELECT pg_drop_replication_slot('walrelay_standby1')").await;
    values(&pair.standby, "shop", "DELETE FROM walrelay.copy").await;
    let rows = Checked::of(&pair.config(""));
    rows.refused();
    rows.names("error", "standby1", "not empty: public.orders", "");
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_and_locks_are_seen() {
    let mut pair = Pair::start(18).await;
    pair.on_both(TABLES).await;
    pair.on_both("CREATE ROLE relay LOGIN REPLICATION; ALTER TABLE orders ENABLE ROW LEVEL SECURITY; GRANT ALL ON orders TO relay").await;
    pair.on_primary("INSERT INTO orders VALUES (1, 'x')").await;
    let config = as_relay(&pair, "");
    let first = Checked::of(&config);
    for place in ["primary", "standby1"] {
        first.names(
            "error",
            place,
            "row-level security would apply to the role \"relay\" on public.orders",
            "BYPASSRLS",
        );
    }
    first.mend(&mut pair).await;
    Checked::of(&config).passes();
    // Nobody's lock makes it wait for ever.
    let client = super::harness::client(&pair.standby, "shop").await;
    client.batch_execute("BEGIN; LOCK TABLE orders IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let locked = Checked::of(&config);
    locked.passes();
    locked.names("warning", "standby1", "public.orders is locked", "");
    client.batch_execute("ROLLBACK").await.unwrap();
    let relay = Relay::start(&config).await;
    relay.wait_state("streaming").await;
    pair.equal_after_catching_up(&["orders"]).await;
    let folder = format!("spool_dir = \"/proc/walrelay\"\n{config}");
    Checked::of(&folder).names("error", "standby1", "/proc/walrelay", "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_away_is_another_exit_code() {
    let mut pair = Pair::start(18).await;
    pair.on_both(TABLES).await;
    pair.standby.stop_fast();
    let away = Checked::of(&pair.config(""));
    away.ends_with(4);
    away.names("error", "standby1", "no session on", "");
    pair.primary.stop_fast();
    let away = Checked::of(&pair.config(""));
    away.ends_with(4);
    away.names("error", "primary", "no session on", "");
    // One server that is away does not hide what is wrong with the other.
    away.names("error", "standby1", "no session on", "");
    pair.primary.start_again().await.unwrap();
    pair.standby.start_again().await.unwrap();
    let unknown = Checked::of(&as_relay(&pair, ""));
    unknown.ends_with(3);
    unknown.names("error", "primary", "role \"relay\" does not exist", "CREATE ROLE \"relay\" LOGIN REPLICATION");
    unknown.names("error", "standby1", "role \"relay\" does not exist", "CREATE ROLE \"relay\" LOGIN");
}

/// All pipelines into one server are counted together, whichever way they reach it, and beside what others hold there.
#[tokio::test(flavor = "multi_thread")]
async fn what_all_pipelines_need_of_a_standby_is_counted() {
    for major in oldest_and_newest() {
        let mut pair = Pair::start(major).await;
        let origins = if major < 18 { "max_replication_slots" } else { "max_active_replication_origins" };
        set(&mut pair.standby, &[("max_connections", "12"), (origins, "6")]).await;
        pair.on_both(TABLES).await;
        pair.on_both("CREATE ROLE relay SUPERUSER LOGIN").await;
        pair.on_standby("CREATE DATABASE second").await;
        values(&pair.standby, "second", TABLES).await;
        pair.on_standby("SELECT pg_replication_origin_create('of another')").await;
        let one = as_relay(&pair, "");
        Checked::of(&one).passes();
        assert_eq!(Checked::of(&one).answer["findings"].to_string().matches("others hold").count(), 0);
        // Two of them: by another name of the same address, into another database.
        let second = pair.standby.url_for("relay", "second").replace("127.0.0.1", "localhost");
        let two = format!(
            "{one}apply_connections = 3\n[[pipeline]]\nname = \"standby2\"\n[pipeline.sink]\ntype = \"postgres\"\nurl = \"{second}\"\napply_connections = 3\n"
        );
        let first = Checked::of(&two);
        first.refused();
        first.names("error", "standby1", &format!("{origins} is 6, and others hold 1: 5 replication origins are left; the pipelines standby1, standby2 need up to 8, and they begin with 6"), origins);
        first.names(
            "warning",
            "standby1",
            "sessions are left; the pipelines standby1, standby2 need up to 22, and they begin with 6",
            "SET max_connections",
        );
        first.mend(&mut pair).await;
        assert!(!Checked::of(&two).answer["findings"].to_string().contains(origins));
        // A running relay's own sessions are none of others'; a role without privileges meets limits of its own.
        let relay = Relay::start(&two).await;
        for name in ["standby1", "standby2"] {
            relay.wait(name, "it streams", |report| report["state"] == "streaming").await;
        }
        pair.on_standby("ALTER ROLE relay NOSUPERUSER CONNECTION LIMIT 20; ALTER DATABASE shop CONNECTION LIMIT 10")
            .await;
        let limited = Checked::of(&two);
        limited.names(
            "warning",
            "standby1",
            "the connection limit of the role \"relay\" is 20, and others hold 0",
            "ALTER ROLE \"relay\" CONNECTION LIMIT 22",
        );
        limited.names(
            "warning",
            "standby1",
            "the connection limit of the database \"shop\" is 10",
            "ALTER DATABASE \"shop\" CONNECTION LIMIT",
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_standby_calls_durable_is_looked_at() {
    let mut pair = Pair::start(18).await;
    pair.on_both(TABLES).await;
    set(&mut pair.standby, &[("fsync", "off"), ("synchronous_standby_names", "FIRST 1 (elsewhere)")]).await;
    set(&mut pair.standby, &[("wal_compression", "off"), ("max_wal_size", "1GB")]).await;
    let first = Checked::of(&pair.config(""));
    first.names("info", "standby1", "wal_compression is off", "ALTER SYSTEM SET wal_compression = ");
    first.names("info", "standby1", "max_wal_size is 1GB", "ALTER SYSTEM SET max_wal_size = '4GB'");
    first.refused();
    first.names("error", "standby1", "fsync is off", "ALTER SYSTEM SET fsync = on");
    first.names("info", "standby1", "synchronous standbys of its own (FIRST 1 (elsewhere))", "");
    let allowed = format!("{}allow_fsync_off = true\n", pair.config(""));
    let second = Checked::of(&allowed);
    second.passes();
    second.names("warning", "standby1", "fsync is off", "ALTER SYSTEM SET fsync = on");
    // A start says the same, before anything is made.
    let relay = Relay::start(&pair.config("")).await;
    relay.fails_with(&["fsync is off", "allow_fsync_off = true"]).await;
    assert_eq!(value(&pair.primary, "shop", "SELECT count(*) FROM pg_replication_slots").await, "0");
    relay.rewrite_config(&allowed);
    relay.signal(libc::SIGHUP);
    relay.wait_state("streaming").await;
    // Its own standby never comes; nothing waits for it.
    pair.on_primary("INSERT INTO orders VALUES (1, 'x')").await;
    pair.equal_after_catching_up(&["orders"]).await;
    // Nothing is to be copied any more.
    assert!(!Checked::of(&allowed).answer["findings"].to_string().contains("max_wal_size"));
}
