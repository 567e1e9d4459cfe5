//! Captures what a real server streams for the SQL in `tests/data/debezium`, and what its catalog says about the tables, for
//! `src/sink/kafka/encode/golden.rs`, which compares the events made of it with those of a real Debezium. Run it after
//! `scripts/fetch-servers 17`: `cargo run --example capture_debezium`. Touches only the server that it starts itself.

use std::error::Error;
use std::fmt::Write as _;
use std::path::Path;

use postgres_protocol::message::frontend;
use walrelay::model::{Lsn, QualifiedName};
use walrelay::sink::kafka::encode::catalog_query;
use walrelay::throwaway::{Options, Server, find_major};
use walrelay::wire::replication::{ReplicationMessage, parse};
use walrelay::wire::{Connection, Session};

/// The server whose events were captured.
const MAJOR: u32 = 17;
/// Under `tests/data/debezium`.
const FOLDERS: &[&str] = &[".", "captured"];
const TABLES: &str =
    "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') ORDER BY 1";

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    for folder in FOLDERS {
        capture(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/debezium").join(folder)).await?;
    }
    Ok(())
}

async fn capture(folder: &Path) -> Result<(), Box<dyn Error>> {
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    let server = Server::start(&find_major(MAJOR, project)?, Options::default()).await?;
    let url = server.server_url("postgres")?;
    let mut sql = Connection::connect(&url, &Session::new("capture")).await?;
    sql.simple_query(&std::fs::read_to_string(folder.join("setup.sql"))?).await?;
    sql.simple_query("SELECT pg_create_logical_replication_slot('capture', 'pgoutput')").await?;
    for statement in statements(&std::fs::read_to_string(folder.join("work.sql"))?) {
        sql.simple_query(&statement).await?;
    }
    let end = sql.simple_query("SELECT pg_current_wal_insert_lsn()").await?;
    let end: Lsn = String::from_utf8_lossy(end[0].rows[0][0].as_deref().unwrap_or_default()).parse()?;
    let text =
        |field: &Option<bytes::Bytes>| String::from_utf8_lossy(field.as_deref().unwrap_or_default()).into_owned();
    let names = sql.simple_query(TABLES).await?;
    let names: Vec<QualifiedName> =
        names[0].rows.iter().map(|row| QualifiedName::new("public", text(&row[0]))).collect();
    let mut facts = String::new();
    for row in &sql.simple_query(&catalog_query(&names)).await?[0].rows {
        // One line each: the server breaks lines between the objects of an array.
        writeln!(facts, "{}", text(&row[0]).replace('\n', ""))?;
    }
    std::fs::write(folder.join("facts.jsonl"), facts)?;
    std::fs::write(folder.join("stream.hex"), stream(&server, end).await?)?;
    Ok(())
}

/// One statement a line or more; a transaction stands on one line.
fn statements(text: &str) -> Vec<String> {
    let mut statements = Vec::new();
    let mut statement = String::new();
    for line in text.lines() {
        statement.push_str(line);
        statement.push('\n');
        if line.ends_with(';') {
            statements.push(std::mem::take(&mut statement));
        }
    }
    statements
}

/// One line of `position payload` for each message, up to `end`.
async fn stream(server: &Server, end: Lsn) -> Result<String, Box<dyn Error>> {
    let mut connection = Connection::connect(&server.server_url("postgres")?, &Session::replication("capture")).await?;
    let command =
        "START_REPLICATION SLOT \"capture\" LOGICAL 0/0 (proto_version '1', publication_names 'pd', messages 'true')";
    frontend::query(command, connection.outgoing())?;
    connection.flush().await?;
    let mut text = String::new();
    loop {
        let message = connection.next_message().await?;
        if message.tag == b'E' {
            return Err(String::from_utf8_lossy(&message.body).into());
        }
        if message.tag != b'd' {
            continue;
        }
        match parse(&message.body)? {
            ReplicationMessage::Keepalive { wal_end, .. } if wal_end >= end => return Ok(text),
            ReplicationMessage::Keepalive { .. } => {}
            ReplicationMessage::XLogData { start, payload, .. } => {
                write!(text, "{start} ")?;
                payload.iter().try_for_each(|byte| write!(text, "{byte:02x}"))?;
                text.push('\n');
            }
        }
    }
}
