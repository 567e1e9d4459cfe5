//! Captures real pgoutput bytes of servers 14 to 18 into `tests/data/pgoutput`, for `tests/pgoutput.rs`. Run it after
//! `scripts/fetch-servers all`: `cargo run --example capture_pgoutput`. Touches only servers that it starts itself.

use std::error::Error;
use std::fmt::Write as _;
use std::path::Path;

use postgres_protocol::message::frontend;
use walrelay::model::Lsn;
use walrelay::throwaway::{Options, Server, find_major};
use walrelay::wire::replication::{ReplicationMessage, parse};
use walrelay::wire::{Connection, Session, frame};

/// Row messages kept of each streamed block: the rest repeats them.
const KEPT_ROWS: usize = 2;

const SCHEMA: &str = "CREATE TYPE mood AS ENUM ('sad', 'happy'); CREATE DOMAIN positive AS int CHECK (VALUE > 0);
    CREATE TABLE plain (id int PRIMARY KEY, name text, large text, feeling mood, many mood[], amount positive);
    ALTER TABLE plain ALTER COLUMN large SET STORAGE EXTERNAL;
    CREATE TABLE whole (a int, b text); ALTER TABLE whole REPLICA IDENTITY FULL;
    CREATE TABLE indexed (a int NOT NULL, b text); CREATE UNIQUE INDEX indexed_a ON indexed (a);
    ALTER TABLE indexed REPLICA IDENTITY USING INDEX indexed_a;
    CREATE TABLE keyless (a int, at timestamptz); CREATE TABLE child (id serial PRIMARY KEY, parent int REFERENCES plain ON DELETE CASCADE);
    CREATE TABLE bulk (id int, filler text); ALTER TABLE bulk REPLICA IDENTITY NOTHING";

/// Statements of one session, each its own transaction unless written otherwise.
const WORK: &[&str] = &[
    "INSERT INTO plain VALUES (1, 'one', repeat('large ', 1000), 'sad', '{sad,happy}', 5), (2, NULL, '', 'happy', '{}', 7)",
    "UPDATE plain SET name = 'uno' WHERE id = 1",
    "UPDATE plain SET id = 3 WHERE id = 1",
    "DELETE FROM plain WHERE id = 2",
    "INSERT INTO whole VALUES (1, 'x'), (NULL, NULL)",
    "UPDATE whole SET b = 'y' WHERE a = 1",
    "DELETE FROM whole WHERE a IS NULL",
    "INSERT INTO indexed VALUES (1, 'x')",
    "UPDATE indexed SET a = 2",
    "DELETE FROM indexed",
    "INSERT INTO keyless VALUES (1, '2026-11-23 12:00:00+00')",
    "TRUNCATE keyless",
    "TRUNCATE plain, whole RESTART IDENTITY CASCADE",
    "BEGIN; INSERT INTO whole VALUES (2, 'm'); SELECT pg_logical_emit_message(true, 'walrelay', 'inside'); COMMIT",
    "SELECT pg_logical_emit_message(false, 'walrelay', 'outside')",
    "SELECT pg_replication_origin_create('elsewhere')",
    "SELECT pg_replication_origin_session_setup('elsewhere')",
    "BEGIN; SELECT pg_replication_origin_xact_setup('0/AB', '2026-01-01 00:00:00+00'); INSERT INTO whole VALUES (3, 'o'); COMMIT",
    "SELECT pg_replication_origin_session_reset()",
    "BEGIN; INSERT INTO bulk SELECT i, repeat('s', 1500) FROM generate_series(1, 100) i; SAVEPOINT s;
     INSERT INTO bulk SELECT i, repeat('a', 1500) FROM generate_series(1, 100) i; ROLLBACK TO s;
     ALTER TABLE bulk ADD COLUMN added int; INSERT INTO bulk SELECT i, repeat('t', 1500), i FROM generate_series(1, 100) i; COMMIT",
    "BEGIN; INSERT INTO bulk SELECT i, repeat('b', 1500) FROM generate_series(1, 200) i; ROLLBACK",
    "INSERT INTO whole VALUES (9, 'end')",
];

const TWO_PHASE: &[&str] = &[
    "BEGIN; INSERT INTO whole VALUES (4, 'p'); PREPARE TRANSACTION 'small'",
    "COMMIT PREPARED 'small'",
    "BEGIN; INSERT INTO whole VALUES (5, 'q'); PREPARE TRANSACTION 'undone'",
    "ROLLBACK PREPARED 'undone'",
    "BEGIN; INSERT INTO bulk SELECT i, repeat('p', 1500) FROM generate_series(1, 100) i; PREPARE TRANSACTION 'large'",
    "COMMIT PREPARED 'large'",
];

/// Name, oldest version, protocol (0: the newest), slot's two_phase, options.
const CAPTURES: &[(&str, u32, u32, bool, &str)] = &[
    ("plain", 14, 1, false, "messages 'true'"),
    ("streamed", 14, 0, false, "streaming 'on', messages 'true'"),
    ("binary", 14, 0, false, "streaming 'on', binary 'true', messages 'true'"),
    ("parallel", 16, 4, false, "streaming 'parallel'"),
    ("two_phase", 15, 0, true, "streaming 'on', two_phase 'on'"),
];

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    for major in 14..=18 {
        let options =
            Options::default().with("logical_decoding_work_mem", "64kB").with("max_prepared_transactions", "10");
        let server = Server::start(&find_major(major, project)?, options).await?;
        let url = server.server_url("postgres")?;
        let mut sql = Connection::connect(&url, &Session::new("capture")).await?;
        sql.simple_query(SCHEMA).await?;
        sql.simple_query("CREATE PUBLICATION capture FOR ALL TABLES").await?;
        let captures: Vec<_> = CAPTURES.iter().filter(|(_, oldest, ..)| major >= *oldest).collect();
        for (name, _, _, is_two_phase, _) in &captures {
            let two_phase = if major >= 15 { format!(", false, {is_two_phase}") } else { String::new() };
            sql.simple_query(&format!("SELECT pg_create_logical_replication_slot('{name}', 'pgoutput'{two_phase})"))
                .await?;
        }
        for statement in WORK.iter().chain(TWO_PHASE) {
            // A logical message outside a transaction reaches the disk with the next commit.
            sql.simple_query(statement).await?;
        }
        let end = sql.simple_query("SELECT pg_current_wal_lsn()").await?;
        let end = String::from_utf8_lossy(end[0].rows[0][0].as_deref().unwrap_or_default()).parse::<Lsn>()?;
        for (name, _, protocol, _, options) in captures {
            let newest = match major {
                14 => 2,
                15 => 3,
                _ => 4,
            };
            let protocol = if *protocol == 0 { newest } else { *protocol };
            let text = capture(&server, name, protocol, options, end).await?;
            std::fs::write(project.join(format!("tests/data/pgoutput/{major}-{name}.hex")), text)?;
        }
        eprintln!("captured {major}");
    }
    Ok(())
}

/// Streams a slot to `end`; one line of hex for each message.
async fn capture(
    server: &Server,
    slot: &str,
    protocol: u32,
    options: &str,
    end: Lsn,
) -> Result<String, Box<dyn Error>> {
    let mut connection = Connection::connect(&server.server_url("postgres")?, &Session::replication("capture")).await?;
    let command = format!(
        "START_REPLICATION SLOT \"{slot}\" LOGICAL 0/0 (proto_version '{protocol}', publication_names 'capture', {options})"
    );
    frontend::query(&command, connection.outgoing())?;
    connection.flush().await?;
    let version = connection.parameter("server_version").unwrap_or("").to_owned();
    let mut text = format!("# PostgreSQL {version}; proto_version '{protocol}', {options}\n");
    let mut rows_in_block = 0;
    loop {
        let message = connection.next_message().await?;
        if message.tag == b'E' {
            return Err(String::from_utf8_lossy(&message.body).into());
        }
        if message.tag != b'd' {
            continue;
        }
        debug_assert!(message.body.len() < frame::LIMIT_BYTES);
        match parse(&message.body)? {
            ReplicationMessage::Keepalive { wal_end, .. } if wal_end >= end => return Ok(text),
            ReplicationMessage::Keepalive { .. } => {}
            ReplicationMessage::XLogData { payload, .. } => {
                rows_in_block = if payload[0] == b'I' { rows_in_block + 1 } else { 0 };
                if rows_in_block <= KEPT_ROWS {
                    payload.iter().try_for_each(|byte| write!(text, "{byte:02x}"))?;
                    text.push('\n');
                }
            }
        }
    }
}
