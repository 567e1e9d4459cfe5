//! Captures real pgoutput bytes of servers 14 to 18 into `tests/data/pgoutput`, for `tests/pgoutput.rs`. Run it after
//! `scripts/fetch-servers all`: `cargo run --example capture_pgoutput`, then `INSTA_UPDATE=always cargo test --test pgoutput`,
//! and read what the recorded texts beside the bytes have become. Touches only servers that it starts itself.

use std::error::Error;
use std::fmt::Write as _;
use std::path::Path;

use postgres_protocol::message::frontend;
use walrelay::model::Lsn;
use walrelay::throwaway::{Options, Server, find_major};
use walrelay::wire::replication::{ReplicationMessage, parse};
use walrelay::wire::{Connection, Session};

/// Row messages kept of each streamed block: the rest repeats them.
const KEPT_ROWS: usize = 2;

const SCHEMA: &str = "CREATE TYPE mood AS ENUM ('sad', 'happy'); CREATE DOMAIN positive AS int CHECK (VALUE > 0);
    CREATE TABLE plain (id int PRIMARY KEY, name text, large text, feeling mood, many mood[], amount positive);
    ALTER TABLE plain ALTER COLUMN large SET STORAGE EXTERNAL;
    CREATE TABLE whole (a int, b text); ALTER TABLE whole REPLICA IDENTITY FULL;
    CREATE TABLE indexed (a int NOT NULL, b text); CREATE UNIQUE INDEX indexed_a ON indexed (a);
    ALTER TABLE indexed REPLICA IDENTITY USING INDEX indexed_a;
    CREATE TABLE keyless (a int, at timestamptz); CREATE TABLE child (id serial PRIMARY KEY, parent int REFERENCES plain ON DELETE CASCADE);
    CREATE TABLE bulk (id int, filler text); ALTER TABLE bulk REPLICA IDENTITY NOTHING;
    ALTER TABLE whole ALTER COLUMN b SET STORAGE EXTERNAL;
    CREATE TABLE generated (a int PRIMARY KEY, twice int GENERATED ALWAYS AS (a * 2) STORED)";

/// Statements of one session, each its own transaction unless written otherwise.
const WORK: &[&str] = &[
    "INSERT INTO plain VALUES (1, 'one', repeat('large ', 1000), 'sad', '{sad,happy}', 5), (2, NULL, '', 'happy', '{}', 7)",
    "UPDATE plain SET name = 'uno' WHERE id = 1",
    "UPDATE plain SET id = 3 WHERE id = 1",
    "DELETE FROM plain WHERE id = 2",
    "INSERT INTO whole VALUES (1, 'x'), (NULL, NULL)",
    "UPDATE whole SET b = 'y' WHERE a = 1",
    "DELETE FROM whole WHERE a IS NULL",
    "INSERT INTO whole VALUES (7, repeat('large ', 400))",
    "UPDATE whole SET a = 8 WHERE a = 7",
    "INSERT INTO generated VALUES (1)",
    "UPDATE generated SET a = 2",
    "DELETE FROM generated",
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

/// Left open while it is streamed.
const ROLLED_BACK: &str = "BEGIN; INSERT INTO bulk SELECT i, repeat('b', 1500) FROM generate_series(1, 100) i";

/// One file for each version.
struct Capture {
    /// Of the slot and the file.
    name: &'static str,
    oldest_major: u32,
    /// 0: the newest that the server speaks.
    protocol: u32,
    is_two_phase: bool,
    publication: &'static str,
    options: &'static str,
}

const CAPTURES: &[Capture] = &[
    Capture::of("plain", 14, "messages 'true'").protocol(1),
    Capture::of("streamed", 14, "streaming 'on', messages 'true'"),
    Capture::of("binary", 14, "streaming 'on', binary 'true', messages 'true'"),
    Capture::of("parallel", 16, "streaming 'parallel'"),
    Capture::of("two_phase", 15, "streaming 'on', two_phase 'on'").two_phase(),
    Capture::of("generated", 18, "binary 'false'").publication("capture_generated"),
];

impl Capture {
    const fn of(name: &'static str, oldest_major: u32, options: &'static str) -> Self {
        Self { name, oldest_major, protocol: 0, is_two_phase: false, publication: "capture", options }
    }

    const fn protocol(mut self, protocol: u32) -> Self {
        self.protocol = protocol;
        self
    }

    const fn two_phase(mut self) -> Self {
        self.is_two_phase = true;
        self
    }

    const fn publication(mut self, publication: &'static str) -> Self {
        self.publication = publication;
        self
    }
}

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
        if major >= 18 {
            let publication =
                "CREATE PUBLICATION capture_generated FOR TABLE generated WITH (publish_generated_columns = stored)";
            sql.simple_query(publication).await?;
        }
        let captures: Vec<_> = CAPTURES.iter().filter(|capture| major >= capture.oldest_major).collect();
        for Capture { name, is_two_phase, .. } in &captures {
            let two_phase = if major >= 15 { format!(", false, {is_two_phase}") } else { String::new() };
            sql.simple_query(&format!("SELECT pg_create_logical_replication_slot('{name}', 'pgoutput'{two_phase})"))
                .await?;
        }
        for statement in WORK.iter().chain(TWO_PHASE) {
            // A logical message outside a transaction reaches the disk with the next commit.
            sql.simple_query(statement).await?;
        }
        let newest = match major {
            14 => 2,
            15 => 3,
            _ => 4,
        };
        for wanted in captures {
            let protocol = if wanted.protocol == 0 { newest } else { wanted.protocol };
            let mut capturing = Capturing::start(&server, wanted, protocol).await?;
            if major >= 18 && wanted.options.contains("streaming") {
                // 18 asks the commit log before it streams a transaction: only one that is still open gets an abort.
                sql.simple_query(ROLLED_BACK).await?;
                capturing.read_to(commit_position(&server).await?).await?;
                sql.simple_query("ROLLBACK").await?;
            }
            capturing.read_to(commit_position(&server).await?).await?;
            let text = capturing.text;
            std::fs::write(project.join(format!("tests/data/pgoutput/{major}-{}.hex", wanted.name)), text)?;
        }
        eprintln!("captured {major}");
    }
    Ok(())
}

/// Commits a row, which flushes all WAL before it, and tells where the WAL ends then.
async fn commit_position(server: &Server) -> Result<Lsn, Box<dyn Error>> {
    let mut sql = Connection::connect(&server.server_url("postgres")?, &Session::new("capture")).await?;
    sql.simple_query("INSERT INTO whole VALUES (10, 'position')").await?;
    let end = sql.simple_query("SELECT pg_current_wal_lsn()").await?;
    Ok(String::from_utf8_lossy(end[0].rows[0][0].as_deref().unwrap_or_default()).parse()?)
}

/// A slot being streamed, and what it brought: one line of hex for each message.
struct Capturing {
    connection: Connection,
    text: String,
    rows_in_block: usize,
}

impl Capturing {
    async fn start(server: &Server, wanted: &Capture, protocol: u32) -> Result<Self, Box<dyn Error>> {
        let mut connection =
            Connection::connect(&server.server_url("postgres")?, &Session::replication("capture")).await?;
        let Capture { name: slot, publication, options, .. } = wanted;
        let command = format!(
            "START_REPLICATION SLOT \"{slot}\" LOGICAL 0/0 (proto_version '{protocol}', publication_names '{publication}', {options})"
        );
        frontend::query(&command, connection.outgoing())?;
        connection.flush().await?;
        let version = connection.parameter("server_version").unwrap_or("").to_owned();
        let text = format!("# PostgreSQL {version}; proto_version '{protocol}', {options}\n");
        Ok(Self { connection, text, rows_in_block: 0 })
    }

    /// Until the server says that it has sent everything before `end`.
    async fn read_to(&mut self, end: Lsn) -> Result<(), Box<dyn Error>> {
        loop {
            let message = self.connection.next_message().await?;
            if message.tag == b'E' {
                return Err(String::from_utf8_lossy(&message.body).into());
            }
            if message.tag != b'd' {
                continue;
            }
            match parse(&message.body)? {
                ReplicationMessage::Keepalive { wal_end, .. } if wal_end >= end => return Ok(()),
                ReplicationMessage::Keepalive { .. } => {}
                ReplicationMessage::XLogData { payload, .. } => {
                    self.rows_in_block = if payload[0] == b'I' { self.rows_in_block + 1 } else { 0 };
                    if self.rows_in_block <= KEPT_ROWS {
                        payload.iter().try_for_each(|byte| write!(self.text, "{byte:02x}"))?;
                        self.text.push('\n');
                    }
                }
            }
        }
    }
}
