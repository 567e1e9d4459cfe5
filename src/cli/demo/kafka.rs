//! The story of a Kafka feed, step by step: events in topics, a primary that waits for the broker, crashes of both ends, the tables
//! rebuilt from the feed. A claim that does not hold is an error.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::sync::watch;
use tokio::time::sleep;

use crate::throwaway::{Broker, BrokerOptions, BrokerPrograms, Options, Programs, Server};
use crate::wire::sql::SqlClient;

use super::DemoError;
use super::screen::{proven, say, sql, step, table};
use super::stage::{Relay, WaitingCommit, expect, median, rows, session};
use super::topics::{self, Event};

const ROWS: usize = 20_000;
const CUSTOMERS: usize = 100;
const TABLES: &str = "CREATE TABLE customers (id int PRIMARY KEY, name text NOT NULL);
    CREATE TABLE orders (id bigint PRIMARY KEY, customer int REFERENCES customers, cents bigint, state text)";
const CUSTOMERS_TOPIC: &str = "shop.public.customers";
const ORDERS_TOPIC: &str = "shop.public.orders";
/// Crashes of the relay under load.
const CRASHES: usize = 3;
/// How long it works between two crashes.
const BETWEEN_CRASHES: Duration = Duration::from_millis(1500);

/// The stage: a relay between a server and a broker, a session on the server.
struct Stage {
    relay: Relay,
    primary: Server,
    broker: Broker,
    on_primary: SqlClient,
}

/// Tells it.
pub(super) async fn tell(programs: &Programs, broker: &BrokerPrograms, keep: bool) -> Result<(), DemoError> {
    let began = Instant::now();
    let mut stage = open(programs, broker).await?;
    copy(&mut stage).await?;
    stream(&stage).await?;
    become_synchronous(&stage).await?;
    broker_crash(&mut stage).await?;
    relay_crashes(&mut stage).await?;
    compare(&stage).await?;
    say("");
    say(&format!(
        "The story took {:.0} s. Now your own broker: see \"A Kafka feed\" in README.md; examples/rebuild_table.rs is a consumer.",
        began.elapsed().as_secs_f64()
    ));
    if keep {
        say(&format!("primary  {}", stage.primary.url("shop")));
        say(&format!(
            "broker   {}, topics {CUSTOMERS_TOPIC}, {ORDERS_TOPIC}, walrelay.progress",
            stage.broker.address()
        ));
        let (http, path) = (stage.relay.http(), stage.relay.config_path());
        say(&format!("relay    http://{http}/status, configuration {}", path.display()));
        say("Ctrl-C ends and removes everything.");
        std::future::pending::<()>().await;
    }
    Ok(())
}

async fn open(programs: &Programs, broker: &BrokerPrograms) -> Result<Stage, DemoError> {
    step(1, "A real PostgreSQL server and a real Kafka broker");
    say(&format!("programs: {}, {}", programs.path("").display(), broker.class_path().display()));
    let primary = Server::start(programs, Options::private()).await?;
    let options = BrokerOptions::default().with("num.partitions", "3");
    let broker = Broker::start(broker, options).await?;
    session(&primary, "postgres").await?.batch_execute("CREATE DATABASE shop").await?;
    let on_primary = session(&primary, "shop").await?;
    proven(&format!("primary on port {} (Unix socket), broker on {}", primary.port(), broker.address()));
    on_primary.batch_execute(TABLES).await?;
    let fill = format!(
        "INSERT INTO customers SELECT i, 'customer ' || i FROM generate_series(1, {CUSTOMERS}) i;
         INSERT INTO orders SELECT i, i % {CUSTOMERS} + 1, i % 977, 'new' FROM generate_series(1, {ROWS}) i"
    );
    on_primary.batch_execute(&fill).await?;
    say(&format!("the primary has {CUSTOMERS} customers and {ROWS} orders; the broker has no topic"));
    Ok(Stage { relay: Relay::new()?, primary, broker, on_primary })
}

async fn copy(stage: &mut Stage) -> Result<(), DemoError> {
    step(2, "walrelay with a ten-line file: the rows go out as r events, then it streams");
    let config = format!(
        "[primary]\nurl = \"{}\"\n\n[http]\nlisten = \"{}\"\n\n[[pipeline]]\nname = \"feed1\"\n\n\
         [pipeline.sink]\ntype = \"kafka\"\nbrokers = \"{}\"\ntopic_prefix = \"shop\"\n",
        stage.primary.url("shop"),
        stage.relay.http(),
        stage.broker.address()
    );
    stage.relay.configure(&config)?;
    let began = Instant::now();
    stage.relay.start()?;
    stage.relay.until_it_streams().await?;
    let took = began.elapsed();
    let (customers, orders) = (stage.read_customers(CUSTOMERS).await?, stage.read(ORDERS_TOPIC, ROWS).await?);
    let copied = |events: &[Event]| events.iter().filter(|event| event.operation() == "r").count().to_string();
    expect("every customer is an r event", &copied(&customers), &CUSTOMERS.to_string())?;
    expect("every order is an r event", &copied(&orders), &ROWS.to_string())?;
    proven(&format!("{ROWS} orders and {CUSTOMERS} customers are in Kafka after {:.1} s", took.as_secs_f64()));
    say(&format!("one of them, in {CUSTOMERS_TOPIC}, as Debezium writes it:"));
    if let Some(event) = customers.first() {
        say(&format!("  key   {}", event.key));
        say(&format!("  value {}", event.value.as_ref().map_or(String::new(), Value::to_string)));
    }
    Ok(())
}

async fn stream(stage: &Stage) -> Result<(), DemoError> {
    step(3, "Changes follow, each transaction whole");
    let change = "BEGIN; INSERT INTO customers VALUES (1001, 'Ada'); UPDATE customers SET name = 'Ada Lovelace' WHERE id = 1001; \
                  DELETE FROM customers WHERE id = 1001; COMMIT";
    sql("primary", change);
    stage.on_primary.batch_execute(change).await?;
    let events = stage.read_customers(CUSTOMERS + 4).await?;
    let news: Vec<&Event> = events.iter().filter(|event| event.key.contains("1001")).collect();
    let operations: Vec<&str> = news.iter().map(|event| event.operation()).collect();
    expect("insert, update, delete and a tombstone came", &operations.join(" "), "c u d ")?;
    let mut shown = vec![["op", "key", "row"].map(str::to_owned).to_vec()];
    shown.extend(news.iter().map(|event| event.line()));
    table(&shown);
    proven("in order, on one partition, seen by a read_committed consumer only as a whole");
    Ok(())
}

async fn become_synchronous(stage: &Stage) -> Result<(), DemoError> {
    step(4, "The primary waits for Kafka by name");
    stage.relay.become_synchronous(&stage.on_primary, "feed1").await?;
    let mut times = Vec::new();
    for id in 0..50 {
        let began = Instant::now();
        stage.on_primary.batch_execute(&format!("INSERT INTO customers VALUES ({}, 'in time')", 2000 + id)).await?;
        times.push(began.elapsed());
    }
    let median_ms = median(times).as_secs_f64() * 1000.0;
    stage.read_customers(CUSTOMERS + 4 + 50).await?;
    proven(&format!(
        "50 commits, each in the logs of all in-sync replicas before it returned; median {median_ms:.1} ms"
    ));
    Ok(())
}

async fn broker_crash(stage: &mut Stage) -> Result<(), DemoError> {
    step(5, "kill -9 the broker: commits wait, and nothing is lost");
    stage.broker.kill9();
    say("the broker is dead");
    let commit = WaitingCommit::begin(&stage.primary, "INSERT INTO customers VALUES (3000, 'patient')").await?;
    stage.broker.start_again().await?;
    say("the broker is started again");
    let waited = commit.returns().await?;
    let events = stage.read_customers(CUSTOMERS + 4 + 50 + 1).await?;
    let found = events.iter().filter(|event| event.key.contains("3000")).count();
    expect("the commit that waited is one event", &found.to_string(), "1")?;
    proven(&format!("the commit returned after {:.1} s, and its event is in Kafka, once", waited.as_secs_f64()));
    Ok(())
}

async fn relay_crashes(stage: &mut Stage) -> Result<(), DemoError> {
    step(6, "kill -9 the relay again and again while the primary writes");
    sql("primary", "BEGIN; INSERT INTO orders …; UPDATE orders …; DELETE FROM orders …; COMMIT   -- as fast as it can");
    let writer = session(&stage.primary, "shop").await?;
    let (stop, mut stopped) = watch::channel(false);
    let writing = tokio::spawn(async move {
        let mut written = 0_usize;
        while !*stopped.borrow_and_update() {
            written += 1;
            let id = ROWS + written;
            writer
                .batch_execute(&format!(
                    "BEGIN; INSERT INTO orders VALUES ({id}, {customer}, {id}, 'new'); \
                     UPDATE orders SET state = 'paid', cents = cents + 1 WHERE id = {written}; \
                     DELETE FROM orders WHERE id = {paid}; COMMIT",
                    customer = id % CUSTOMERS + 1,
                    paid = (written / 2).max(1)
                ))
                .await?;
        }
        Ok::<usize, tokio_postgres::Error>(written)
    });
    for _ in 0..CRASHES {
        sleep(BETWEEN_CRASHES).await;
        stage.relay.kill();
        stage.relay.start()?;
    }
    stage.relay.until_it_streams().await?;
    sleep(BETWEEN_CRASHES).await;
    let _ = stop.send(true);
    let written = writing.await.map_err(|error| DemoError::Unexpected(error.to_string()))??;
    say(&format!("{written} transactions were written, and the relay was killed {CRASHES} times"));
    // Its commit returns when everything before it is in Kafka.
    stage.on_primary.batch_execute("INSERT INTO customers VALUES (4000, 'the last')").await?;
    proven("a commit behind them has returned: all of them are in Kafka");
    Ok(())
}

async fn compare(stage: &Stage) -> Result<(), DemoError> {
    step(7, "Both tables rebuilt from their topics, row by row");
    let mut shown = vec![["table", "events", "rows on the primary", "rows rebuilt"].map(str::to_owned).to_vec()];
    for (name, topic) in [("customers", CUSTOMERS_TOPIC), ("orders", ORDERS_TOPIC)] {
        let query = format!("SELECT row_to_json(t)::text FROM {name} t");
        let source = by_id(rows(&stage.on_primary, &query).await?.iter().filter_map(|row| row.first()?.parse().ok()));
        let count = std::cell::Cell::new(0);
        // Committed is not yet readable: the marks of the transactions follow.
        let is_equal = async || {
            let events = topics::read(&stage.broker.address(), topic).await?;
            count.set(events.len());
            Ok(by_id(topics::rebuild(&events)?.into_values()) == source)
        };
        stage.relay.until(&format!("{name} rebuilt are {name} on the primary"), is_equal).await?;
        let equal = source.len().to_string();
        shown.push(vec![name.to_owned(), count.get().to_string(), equal.clone(), equal]);
    }
    table(&shown);
    proven("equal: nothing lost, nothing twice");
    Ok(())
}

fn by_id(rows: impl Iterator<Item = Value>) -> BTreeMap<i64, Value> {
    rows.filter_map(|row| Some((row["id"].as_i64()?, row))).collect()
}

impl Stage {
    /// Waits until a consumer can see so many events of the topic, and gives them.
    async fn read(&self, topic: &str, count: usize) -> Result<Vec<Event>, DemoError> {
        let events = std::cell::RefCell::new(Vec::new());
        let seen = async || {
            let found = topics::read(&self.broker.address(), topic).await?;
            let is_enough = found.len() >= count;
            *events.borrow_mut() = found;
            Ok(is_enough)
        };
        self.relay.until(&format!("{count} events in {topic}"), seen).await?;
        let events = events.into_inner();
        expect(&format!("the number of events in {topic}"), &events.len().to_string(), &count.to_string())?;
        Ok(events)
    }

    async fn read_customers(&self, count: usize) -> Result<Vec<Event>, DemoError> {
        self.read(CUSTOMERS_TOPIC, count).await
    }
}
