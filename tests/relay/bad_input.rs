//! What a person gets to read when something is wrong: each fault names the thing, the value and the remedy, and loses nothing.

use std::process::Command;

use walrelay::throwaway::Options;

use super::harness::{Pair, Relay, value, values};

const TABLES: &str = "CREATE TABLE orders (id int PRIMARY KEY, item text)";

/// Runs a verb with a configuration text; exit code and what it said.
fn run_with(config: &str, verb: &str) -> (i32, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("walrelay.toml");
    std::fs::write(&path, config).unwrap();
    let words = verb.split(' ');
    let output = Command::new(env!("CARGO_BIN_EXE_walrelay")).args(words).arg("--config").arg(&path).output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.code().unwrap(), text)
}

fn check(said: &(i32, String), code: i32, parts: &[&str]) {
    assert_eq!(said.0, code, "{}", said.1);
    for part in parts {
        assert!(said.1.contains(part), "\"{part}\" is not in: {}", said.1);
    }
}

#[test]
fn a_broken_configuration_ends_before_anything_is_connected() {
    check(&run_with("[primary", "run"), 3, &["walrelay.toml", "not valid TOML", "line 1"]);
    check(&run_with("[primary]\nulr = \"x\"\n", "run"), 3, &["primary.ulr", "did you mean \"url\"?"]);
    let url = "url = \"postgres://u:s3cret@127.0.0.1:1/d\"";
    let whole = format!(
        "[primary]\n{url}\n[[pipeline]]\nname = \"a\"\nmemory = \"1MB\"\n[pipeline.sink]\ntype = \"postgres\"\n{url}\n"
    );
    check(&run_with(&whole, "run"), 3, &["pipeline.a.memory", "did you mean \"memory_limit\"?"]);
    let output =
        Command::new(env!("CARGO_BIN_EXE_walrelay")).args(["run", "--config", "/nowhere.toml"]).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&output.stderr).contains("/nowhere.toml cannot be read"));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_in_is_told_why_and_no_password_is_shown() {
    let hba = "local all all trust\nhost all postgres all trust\nhost all all all scram-sha-256\n";
    let options = Options { hba: Some(hba.to_owned()), ..Options::default() };
    let pair = Pair::with(18, options, 18, Options::default()).await;
    pair.on_both(TABLES).await;
    values(&pair.primary, "shop", "CREATE ROLE relay LOGIN PASSWORD 'right'; CREATE ROLE idle LOGIN PASSWORD 'right'; ALTER ROLE relay REPLICATION").await;
    let with_primary = |url: &str| pair.config("").replace(&pair.primary.url("shop"), url);
    let port = pair.primary.port();
    // What the url says must be corrected, or a right is missing.
    for (url, is_of_url, parts) in [
        (
            format!("postgres://relay:s3cret@127.0.0.1:{port}/shop"),
            true,
            vec!["127.0.0.1", "password authentication failed for user \"relay\"", "28P01"],
        ),
        (format!("postgres://relay@127.0.0.1:{port}/shop"), true, vec!["asks for a password", "password_file"]),
        (format!("postgres://nobody:x@127.0.0.1:{port}/shop"), true, vec!["\"nobody\""]),
        (format!("postgres://relay:right@127.0.0.1:{port}/nowhere"), true, vec!["database \"nowhere\" does not exist"]),
        (format!("postgres://idle:right@127.0.0.1:{port}/shop"), false, vec!["REPLICATION", "42501"]),
    ] {
        for verb in ["check", "drop standby1 --yes"].into_iter().filter(|_| is_of_url) {
            let said = run_with(&with_primary(&url), verb);
            check(&said, 3, &parts);
            assert!(!said.1.contains("s3cret") && !said.1.contains(":right"), "a password is shown");
        }
        let relay = Relay::start(&with_primary(&url)).await;
        let report = relay.wait("standby1", "an error", |report| !report["last_error"].is_null()).await;
        let error = report["last_error"].as_str().unwrap().to_owned();
        for part in parts {
            assert!(error.contains(part), "\"{part}\" is not in: {error}");
        }
        let everything = format!("{error}{}", relay.log());
        assert!(!everything.contains("s3cret") && !everything.contains(":right"), "a password is shown");
    }
    let checked = run_with(&with_primary(&format!("postgres://idle:right@127.0.0.1:{port}/shop")), "check");
    check(&checked, 5, &["may not replicate", "ALTER ROLE \"idle\" REPLICATION"]);
}

#[test]
fn an_address_that_is_taken_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let url = "url = \"postgres://u@127.0.0.1:1/d\"";
    let config = format!(
        "[primary]\n{url}\n[http]\nlisten = \"{address}\"\n[[pipeline]]\nname = \"a\"\n[pipeline.sink]\ntype = \"postgres\"\n{url}\n"
    );
    check(&run_with(&config, "run"), 4, &[&address, "in use", "choose another address or port"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_not_set_up_is_told_how() {
    let pair = Pair::with(18, Options::default().with("wal_level", "replica"), 18, Options::default()).await;
    pair.on_both(TABLES).await;
    let relay = Relay::start(&pair.config("")).await;
    relay.fails_with(&["wal_level is replica", "ALTER SYSTEM SET wal_level = 'logical'"]).await;
    check(&run_with(&pair.config(""), "check"), 5, &["wal_level is replica", "ALTER SYSTEM SET wal_level = 'logical'"]);
    drop(relay);

    let pair = Pair::with(18, Options::default().with("max_replication_slots", "1"), 18, Options::default()).await;
    pair.on_primary("SELECT pg_create_logical_replication_slot('taken', 'pgoutput')").await;
    let relay = Relay::start(&pair.config("")).await;
    let report = relay.wait("standby1", "an error", |report| !report["last_error"].is_null()).await;
    let error = report["last_error"].as_str().unwrap();
    assert!(error.contains("slots are in use"), "{error}");
    check(&run_with(&pair.config(""), "check"), 5, &["no replication slot is free", "max_replication_slots"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_cannot_take_the_rows_is_told_what_is_missing() {
    let pair = Pair::start(18).await;
    pair.on_primary(TABLES).await;
    let relay = Relay::start(&pair.config("")).await;
    relay.fails_with(&["public.orders", "Create them there"]).await;
    assert_eq!(value(&pair.primary, "shop", "SELECT count(*) FROM pg_replication_slots").await, "0");
    assert_eq!(value(&pair.primary, "shop", "SELECT count(*) FROM pg_publication").await, "0");
    check(&run_with(&pair.config(""), "check"), 5, &["do not exist on the standby: public.orders"]);
    pair.on_standby("CREATE TABLE orders (id int PRIMARY KEY)").await;
    check(&run_with(&pair.config(""), "check"), 5, &["lacks the column item", "ADD COLUMN \"item\" text"]);
    pair.on_standby("ALTER TABLE orders ADD COLUMN item text; INSERT INTO orders VALUES (1, 'mine')").await;
    relay.signal(libc::SIGHUP);
    let is_refused = |report: &serde_json::Value| {
        let error = report["last_error"].as_str().unwrap_or("");
        ["public.orders", "not empty", "on_existing_rows"].iter().all(|part| error.contains(part))
    };
    relay.wait("standby1", "the rows in the way are named", is_refused).await;
    assert_eq!(value(&pair.standby, "shop", "SELECT item FROM orders").await, "mine");
}

/// A start that is refused has changed nothing, the publication neither.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_table_with_no_place_on_the_standby_is_not_published() {
    let pair = Pair::start(18).await;
    pair.on_both(TABLES).await;
    let mut relay = pair.relay("").await;
    assert!(relay.stop().await.success());
    let parts = "CREATE TABLE part (id int PRIMARY KEY) PARTITION BY RANGE (id); \
                 CREATE TABLE part_1 PARTITION OF part FOR VALUES FROM (0) TO (10)";
    pair.on_primary(&format!("CREATE TABLE later (id int PRIMARY KEY, item text); {parts}")).await;
    pair.on_primary("INSERT INTO later VALUES (1, 'x'); INSERT INTO part VALUES (2)").await;
    relay.start_again().await;
    relay.fails_with(&["table public.later is missing", "table public.part_1 is missing"]).await;
    let published = "SELECT string_agg(tablename, ' ' ORDER BY tablename) FROM pg_publication_tables";
    assert_eq!(value(&pair.primary, "shop", published).await, "orders");
    pair.on_standby(&format!("CREATE TABLE later (id int PRIMARY KEY); {parts}")).await;
    relay.signal(libc::SIGHUP);
    let is_about_column = |report: &serde_json::Value| {
        report["last_error"].as_str().is_some_and(|text| text.contains("column \"item\" of public.later is missing"))
    };
    relay.wait("standby1", "the column is named", is_about_column).await;
    assert_eq!(value(&pair.primary, "shop", published).await, "orders");
    pair.on_standby("ALTER TABLE later ADD COLUMN item text").await;
    relay.signal(libc::SIGHUP);
    relay.wait_state("streaming").await;
    assert_eq!(value(&pair.primary, "shop", published).await, "later orders part_1");
    pair.on_primary("INSERT INTO part VALUES (1)").await;
    pair.equal_after_catching_up(&["orders", "later", "part"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_physical_standby_is_no_sink() {
    let mut pair = Pair::start(18).await;
    pair.on_both(TABLES).await;
    pair.standby.stop_fast();
    pair.standby.write("standby.signal", "").unwrap();
    pair.standby.start_again().await.unwrap();
    let relay = Relay::start(&pair.config("")).await;
    relay.fails_with(&["in recovery", "physical standby"]).await;
    check(&run_with(&pair.config(""), "check"), 5, &["in recovery"]);
}

/// A folder too small for an open transaction: a tmpfs of 1 MiB, unmounted when dropped. Needs root.
struct SmallFolder(tempfile::TempDir);

impl SmallFolder {
    fn new() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(folder.path()).output().ok()?;
        mounted.status.success().then_some(Self(folder))
    }
}

impl Drop for SmallFolder {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).output();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_spool_folder_stops_the_pipeline_and_loses_nothing() {
    let pair =
        Pair::with(18, Options::default().with("logical_decoding_work_mem", "64kB"), 18, Options::default()).await;
    pair.on_both(TABLES).await;
    let Some(small) = SmallFolder::new() else {
        // Without the right to mount: a folder that cannot be used is refused at the start, before anything is made.
        let config = format!("spool_dir = \"/proc/walrelay\"\n{}", pair.config(""));
        let relay = Relay::start(&config).await;
        let report = relay.wait("standby1", "an error", |report| !report["last_error"].is_null()).await;
        assert!(report["last_error"].as_str().unwrap().contains("/proc/walrelay"), "{report}");
        return;
    };
    let folder = small.0.path().display().to_string();
    let mut relay =
        Relay::start(&format!("spool_dir = \"{folder}\"\n{}", pair.config("memory_limit = \"256kB\""))).await;
    relay.wait_state("streaming").await;
    pair.on_primary("INSERT INTO orders SELECT i, repeat('x', 500) FROM generate_series(1, 20000) i").await;
    let report = relay
        .wait("standby1", "the folder is named", |report| {
            report["last_error"].as_str().is_some_and(|text| text.contains(&folder))
        })
        .await;
    assert!(matches!(report["state"].as_str(), Some("waiting" | "failed" | "starting" | "catching_up")), "{report}");
    assert_eq!(value(&pair.standby, "shop", "SELECT count(*) FROM orders").await, "0");
    let confirmed = value(
        &pair.primary,
        "shop",
        "SELECT confirmed_flush_lsn <= restart_lsn OR active IS NOT NULL FROM pg_replication_slots",
    )
    .await;
    assert_eq!(confirmed, "t");
    relay.stop().await;
    // With room, it goes on.
    let room = tempfile::tempdir().unwrap();
    let relay = Relay::start(&format!(
        "spool_dir = \"{}\"\n{}",
        room.path().display(),
        pair.config("memory_limit = \"256kB\"")
    ))
    .await;
    relay.wait_state("streaming").await;
    pair.equal_after_catching_up(&["orders"]).await;
}
