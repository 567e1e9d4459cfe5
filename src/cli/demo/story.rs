//! The story of two servers, step by step. Each step shows what was done and proves what it claims; a claim that does not hold is
//! an error.

use std::time::Instant;

use crate::throwaway::{Options, Programs, Server};
use crate::wire::sql::SqlClient;

use super::DemoError;
use super::screen::{proven, say, sql, step, table};
use super::stage::{Relay, WaitingCommit, expect, median, rows, session, text};

const ROWS: u32 = 200_000;
const TABLES: &str = "CREATE TABLE customers (id int PRIMARY KEY, name text NOT NULL);
    CREATE TABLE orders (id bigint PRIMARY KEY, customer int REFERENCES customers, amount numeric(10,2), placed timestamptz)";

/// The stage: a relay between two servers, a session on each.
struct Stage {
    relay: Relay,
    primary: Server,
    standby: Server,
    on_primary: SqlClient,
    on_standby: SqlClient,
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
        "The story took {:.0} s. Now your own servers: see \"Quick start\" in README.md. The same towards Kafka: make demo-kafka \
         (needs Java).",
        began.elapsed().as_secs_f64()
    ));
    if keep {
        say(&format!("primary  {}", stage.primary.url("shop")));
        say(&format!("standby  {}", stage.standby.url("shop")));
        say(&format!(
            "relay    http://{}/status, configuration {}",
            stage.relay.http(),
            stage.relay.config_path().display()
        ));
        say("Ctrl-C ends and removes everything.");
        std::future::pending::<()>().await;
    }
    Ok(())
}

async fn open(programs: &Programs) -> Result<Stage, DemoError> {
    step(1, "Two real PostgreSQL servers");
    say(&format!("programs: {}", programs.path("").display()));
    let primary = Server::start(programs, Options::private()).await?;
    let standby = Server::start(programs, Options::private()).await?;
    for server in [&primary, &standby] {
        session(server, "postgres").await?.batch_execute("CREATE DATABASE shop").await?;
    }
    let on_primary = session(&primary, "shop").await?;
    let on_standby = session(&standby, "shop").await?;
    let version = text(&on_primary, "SELECT version()").await?;
    proven(&format!("primary on port {}, standby on port {} (Unix sockets)", primary.port(), standby.port()));
    say(version.split(" on ").next().unwrap_or(""));
    on_primary.batch_execute(TABLES).await?;
    on_standby.batch_execute(TABLES).await?;
    let fill = format!(
        "INSERT INTO customers SELECT i, 'customer ' || i FROM generate_series(1, 1000) i;
         INSERT INTO orders SELECT i, i % 1000 + 1, i % 977 * 0.25, now() FROM generate_series(1, {ROWS}) i"
    );
    on_primary.batch_execute(&fill).await?;
    say(&format!("the primary has 1000 customers and {ROWS} orders; the standby has empty tables"));
    Ok(Stage { relay: Relay::new()?, primary, standby, on_primary, on_standby })
}

async fn copy(stage: &mut Stage) -> Result<(), DemoError> {
    step(2, "walrelay with a ten-line file: it copies the rows, then streams");
    let config = format!(
        "[primary]\nurl = \"{}\"\n\n[http]\nlisten = \"{}\"\n\n[[pipeline]]\nname = \"standby1\"\n\n[pipeline.sink]\ntype = \"postgres\"\nurl = \"{}\"\n",
        stage.primary.url("shop"),
        stage.relay.http(),
        stage.standby.url("shop")
    );
    stage.relay.configure(&config)?;
    let began = Instant::now();
    stage.relay.start()?;
    stage.relay.until_it_streams().await?;
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
    stage.relay.until("Ada is on the standby", count).await?;
    proven(&format!("on the standby {} ms later", began.elapsed().as_millis().max(1)));
    Ok(())
}

async fn become_synchronous(stage: &Stage) -> Result<(), DemoError> {
    step(4, "The primary waits for it by name");
    stage.relay.become_synchronous(&stage.on_primary, "standby1").await?;
    let mut times = Vec::new();
    for id in 0..50 {
        let began = Instant::now();
        stage.on_primary.batch_execute(&format!("INSERT INTO customers VALUES ({}, 'in time')", 2000 + id)).await?;
        times.push(began.elapsed());
        let found =
            text(&stage.on_standby, &format!("SELECT count(*) FROM customers WHERE id = {}", 2000 + id)).await?;
        expect("a returned commit is on the standby", &found, "1")?;
    }
    let median_ms = median(times).as_secs_f64() * 1000.0;
    proven(&format!("50 commits, each on the standby's disk before it returned; median {median_ms:.1} ms"));
    Ok(())
}

async fn crash(stage: &mut Stage) -> Result<(), DemoError> {
    step(5, "kill -9 the relay: commits wait, and nothing is lost");
    stage.relay.kill();
    say("walrelay is dead");
    let commit = WaitingCommit::begin(&stage.primary, "INSERT INTO customers VALUES (3000, 'patient')").await?;
    stage.relay.start()?;
    say("walrelay is started again");
    let waited = commit.returns().await?;
    let found = text(&stage.on_standby, "SELECT count(*) FROM customers WHERE id = 3000").await?;
    expect("the commit that waited is on the standby", &found, "1")?;
    proven(&format!("the commit returned after {:.1} s, and its row is on the standby", waited.as_secs_f64()));
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
