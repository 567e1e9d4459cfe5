//! The story itself, step by step. Each step shows what was done and proves what it claims; a claim that does not hold is an error.

use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tokio::time::{sleep, timeout};
use tokio_postgres::SimpleQueryMessage;

use crate::throwaway::{Options, Programs, Server};
use crate::wire::Session;
use crate::wire::sql::{SqlClient, connect};

use super::DemoError;
use super::screen::{proven, say, sql, step, table};
use crate::cli::status;

const ROWS: u32 = 200_000;
const TABLES: &str = "CREATE TABLE customers (id int PRIMARY KEY, name text NOT NULL);
    CREATE TABLE orders (id bigint PRIMARY KEY, customer int REFERENCES customers, amount numeric(10,2), placed timestamptz)";
/// A condition of the story is given up after this.
const PATIENCE: Duration = Duration::from_secs(60);

/// The stage: two servers, a relay, a session on each server.
struct Stage {
    primary: Server,
    standby: Server,
    on_primary: SqlClient,
    on_standby: SqlClient,
    relay: Option<Child>,
    folder: tempfile::TempDir,
    http: std::net::SocketAddr,
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.kill_relay();
    }
}

/// Tells it.
pub(super) async fn tell(programs: &Programs, keep: bool) -> Result<(), DemoError> {
    let began = Instant::now();
    let mut stage = open(programs).await?;
    copy(&mut stage).await?;
    stream(&stage).await?;
    become_synchronous(&stage).await?;
    crash(&mut stage).await?;
    refuse_writes(&stage).await?;
    compare(&stage).await?;
    say("");
    say(&format!(
        "The story took {:.0} s. Now your own servers: see \"Quick start\" in README.md.",
        began.elapsed().as_secs_f64()
    ));
    if keep {
        say(&format!("primary  {}", stage.primary.url("shop")));
        say(&format!("standby  {}", stage.standby.url("shop")));
        say(&format!("relay    http://{}/status, configuration {}", stage.http, stage.config_path().display()));
        say("Ctrl-C ends and removes everything.");
        std::future::pending::<()>().await;
    }
    Ok(())
}

async fn open(programs: &Programs) -> Result<Stage, DemoError> {
    step(1, "Two real PostgreSQL servers");
    say(&format!("programs: {}", programs.path("").display()));
    let primary = Server::start(programs, Options::default()).await?;
    let standby = Server::start(programs, Options::default()).await?;
    for server in [&primary, &standby] {
        session(server, "postgres").await?.batch_execute("CREATE DATABASE shop").await?;
    }
    let on_primary = session(&primary, "shop").await?;
    let on_standby = session(&standby, "shop").await?;
    let version = text(&on_primary, "SELECT version()").await?;
    proven(&format!("primary on port {}, standby on port {}", primary.port(), standby.port()));
    say(version.split(" on ").next().unwrap_or(""));
    on_primary.batch_execute(TABLES).await?;
    on_standby.batch_execute(TABLES).await?;
    let fill = format!(
        "INSERT INTO customers SELECT i, 'customer ' || i FROM generate_series(1, 1000) i;
         INSERT INTO orders SELECT i, i % 1000 + 1, i % 977 * 0.25, now() FROM generate_series(1, {ROWS}) i"
    );
    on_primary.batch_execute(&fill).await?;
    say(&format!("the primary has 1000 customers and {ROWS} orders; the standby has empty tables"));
    let http = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let folder = tempfile::Builder::new().prefix("walrelay-demo-").tempdir()?;
    Ok(Stage { primary, standby, on_primary, on_standby, relay: None, folder, http })
}

async fn copy(stage: &mut Stage) -> Result<(), DemoError> {
    step(2, "walrelay with a ten-line file: it copies the rows, then streams");
    let config = format!(
        "[primary]\nurl = \"{}\"\n\n[http]\nlisten = \"{}\"\n\n[[pipeline]]\nname = \"standby1\"\n\n[pipeline.sink]\ntype = \"postgres\"\nurl = \"{}\"\n",
        stage.primary.url("shop"),
        stage.http,
        stage.standby.url("shop")
    );
    for line in config.lines().filter(|line| !line.is_empty()) {
        say(&format!("  {line}"));
    }
    fs::write(stage.config_path(), config)?;
    let began = Instant::now();
    stage.start_relay()?;
    stage.until("the relay streams", async || Ok(stage.state().await == "streaming")).await?;
    let rows = text(&stage.on_standby, "SELECT count(*) FROM orders").await?;
    expect("the standby has every order", &rows, &ROWS.to_string())?;
    proven(&format!(
        "{rows} orders and 1000 customers are on the standby after {:.1} s",
        began.elapsed().as_secs_f64()
    ));
    Ok(())
}

async fn stream(stage: &Stage) -> Result<(), DemoError> {
    step(3, "Changes follow, transaction by transaction");
    let change = "BEGIN; UPDATE orders SET amount = 0 WHERE id <= 100; DELETE FROM orders WHERE id BETWEEN 101 AND 200; \
                  INSERT INTO customers VALUES (1001, 'Ada'); COMMIT";
    sql("primary", change);
    stage.on_primary.batch_execute(change).await?;
    let began = Instant::now();
    let count = async || Ok(text(&stage.on_standby, "SELECT count(*) FROM customers WHERE name = 'Ada'").await? == "1");
    stage.until("Ada is on the standby", count).await?;
    proven(&format!("on the standby {} ms later", began.elapsed().as_millis().max(1)));
    Ok(())
}

async fn become_synchronous(stage: &Stage) -> Result<(), DemoError> {
    step(4, "The primary waits for it by name");
    let set = "ALTER SYSTEM SET synchronous_standby_names = 'FIRST 1 (standby1)'";
    sql("primary", set);
    stage.on_primary.batch_execute(set).await?;
    sql("primary", "SELECT pg_reload_conf()");
    stage.on_primary.batch_execute("SELECT pg_reload_conf()").await?;
    let query = "SELECT application_name, state, sync_state, flush_lsn, replay_lsn FROM pg_stat_replication WHERE application_name = 'standby1'";
    let is_sync = async || Ok(rows(&stage.on_primary, query).await?.first().is_some_and(|row| row[2] == "sync"));
    stage.until("standby1 is synchronous", is_sync).await?;
    sql("primary", "SELECT … FROM pg_stat_replication");
    let mut shown =
        vec![["application_name", "state", "sync_state", "flush_lsn", "replay_lsn"].map(str::to_owned).to_vec()];
    shown.extend(rows(&stage.on_primary, query).await?);
    table(&shown);
    sql("primary", "SET synchronous_commit = remote_apply");
    stage.on_primary.batch_execute("SET synchronous_commit = remote_apply").await?;
    let mut times = Vec::new();
    for id in 0..50 {
        let began = Instant::now();
        stage.on_primary.batch_execute(&format!("INSERT INTO customers VALUES ({}, 'in time')", 2000 + id)).await?;
        times.push(began.elapsed());
        let found =
            text(&stage.on_standby, &format!("SELECT count(*) FROM customers WHERE id = {}", 2000 + id)).await?;
        expect("a returned commit is on the standby", &found, "1")?;
    }
    times.sort();
    let median_ms = times[times.len() / 2].as_secs_f64() * 1000.0;
    proven(&format!("50 commits, each on the standby's disk before it returned; median {median_ms:.1} ms"));
    Ok(())
}

async fn crash(stage: &mut Stage) -> Result<(), DemoError> {
    step(5, "kill -9 the relay: commits wait, and nothing is lost");
    stage.kill_relay();
    say("walrelay is dead");
    sql("primary", "INSERT INTO customers VALUES (3000, 'patient')");
    let writer = session(&stage.primary, "shop").await?;
    let began = Instant::now();
    let commit = tokio::spawn(async move {
        writer
            .batch_execute("SET synchronous_commit = remote_apply; INSERT INTO customers VALUES (3000, 'patient')")
            .await
    });
    tokio::pin!(commit);
    if timeout(Duration::from_secs(2), &mut commit).await.is_ok() {
        return Err(DemoError::Unexpected("the commit did not wait for the dead relay".to_owned()));
    }
    proven("after 2 s the commit still waits: the primary does not pretend");
    stage.start_relay()?;
    say("walrelay is started again");
    let ended = timeout(PATIENCE, &mut commit).await;
    ended
        .map_err(|_| DemoError::Unexpected("the commit did not return after the relay came back".to_owned()))?
        .map_err(|error| DemoError::Unexpected(error.to_string()))??;
    let found = text(&stage.on_standby, "SELECT count(*) FROM customers WHERE id = 3000").await?;
    expect("the commit that waited is on the standby", &found, "1")?;
    proven(&format!("the commit returned after {:.1} s, and its row is on the standby", began.elapsed().as_secs_f64()));
    Ok(())
}

async fn refuse_writes(stage: &Stage) -> Result<(), DemoError> {
    step(6, "The standby is read-only, for superusers too");
    sql("standby", "DELETE FROM orders");
    match stage.on_standby.batch_execute("DELETE FROM orders").await {
        Ok(()) => Err(DemoError::Unexpected("the standby took a write".to_owned())),
        Err(error) => {
            let error = error.as_db_error().ok_or_else(|| DemoError::Unexpected(error.to_string()))?;
            say(&format!("ERROR:  {}", error.message()));
            say(&format!("HINT:  {}", error.hint().unwrap_or("")));
            expect("the refusal is read_only_sql_transaction", error.code().code(), "25006")?;
            proven("refused");
            Ok(())
        }
    }
}

async fn compare(stage: &Stage) -> Result<(), DemoError> {
    step(7, "Both sides, row by row");
    let mut shown =
        vec![["table", "rows", "digest on the primary", "digest on the standby"].map(str::to_owned).to_vec()];
    for name in ["customers", "orders"] {
        let query = format!("SELECT count(*), md5(string_agg(t::text, ',' ORDER BY id)) FROM {name} t");
        let (one, other) = (rows(&stage.on_primary, &query).await?, rows(&stage.on_standby, &query).await?);
        expect("both sides are equal", &format!("{one:?}"), &format!("{other:?}"))?;
        shown.push(vec![name.to_owned(), one[0][0].clone(), one[0][1].clone(), other[0][1].clone()]);
    }
    table(&shown);
    proven("equal: nothing lost, nothing twice");
    Ok(())
}

impl Stage {
    fn config_path(&self) -> PathBuf {
        self.folder.path().join("walrelay.toml")
    }

    fn start_relay(&mut self) -> Result<(), DemoError> {
        let log = File::options().create(true).append(true).open(self.folder.path().join("walrelay.log"))?;
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(["run", "--config"])
            .arg(self.config_path())
            // Whoever tries the demo may have WALRELAY__… set for servers of their own.
            .env_clear()
            // What a kill -9 leaves of its temporary folder goes with the stage.
            .env("TMPDIR", self.folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        // SAFETY: prctl is async-signal-safe and touches only the new process: it ends with the demo, however that ends.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        self.relay = Some(command.spawn()?);
        Ok(())
    }

    fn kill_relay(&mut self) {
        if let Some(mut relay) = self.relay.take() {
            let _ = relay.kill();
            let _ = relay.wait();
        }
    }

    async fn state(&self) -> String {
        let answer = status::get(self.http, "/status").await.unwrap_or_default();
        let status: serde_json::Value = serde_json::from_str(&answer).unwrap_or_default();
        status["pipelines"][0]["state"].as_str().unwrap_or("").to_owned()
    }

    async fn until(&self, what: &str, is_met: impl AsyncFn() -> Result<bool, DemoError>) -> Result<(), DemoError> {
        let began = Instant::now();
        while !is_met().await? {
            if began.elapsed() > PATIENCE {
                let log = fs::read_to_string(self.folder.path().join("walrelay.log")).unwrap_or_default();
                let tail: Vec<&str> = log.lines().rev().take(10).collect();
                let tail: Vec<&str> = tail.into_iter().rev().collect();
                return Err(DemoError::Unexpected(format!(
                    "{what}: not within {PATIENCE:?}; the relay's log:\n{}",
                    tail.join("\n")
                )));
            }
            sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }
}

async fn session(server: &Server, database: &str) -> Result<SqlClient, DemoError> {
    Ok(connect(&server.server_url(database)?, &Session::new("walrelay demo").with("synchronous_commit", "local"))
        .await?)
}

async fn rows(client: &SqlClient, query: &str) -> Result<Vec<Vec<String>>, DemoError> {
    let messages = client.simple_query(query).await?;
    let rows = messages.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some((0..row.len()).map(|at| row.get(at).unwrap_or("").to_owned()).collect()),
        _ => None,
    });
    Ok(rows.collect())
}

async fn text(client: &SqlClient, query: &str) -> Result<String, DemoError> {
    Ok(rows(client, query).await?.into_iter().next().and_then(|row| row.into_iter().next()).unwrap_or_default())
}

fn expect(claim: &str, found: &str, expected: &str) -> Result<(), DemoError> {
    if found == expected {
        return Ok(());
    }
    Err(DemoError::Unexpected(format!("{claim}: found {found} instead of {expected}")))
}
