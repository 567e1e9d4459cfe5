//! The least that a standby outside the servers does: one blocking thread that takes each commit of the stream, writes its row and moves
//! a record in the same transaction, waits for the disk, and confirms. It bounds the case `commit`, whatever a relay is made of.
//! Never meant to relay: it knows one table of text values, keeps nothing, and whatever surprises it ends it.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread::{self, JoinHandle};

use bytes::BytesMut;
use postgres_protocol::IsNull;
use postgres_protocol::message::frontend;
use walrelay::decode::{Context, Message, Value, decode};
use walrelay::model::{Lsn, Positions, Timestamp};
use walrelay::wire::frame;
use walrelay::wire::replication::{ReplicationMessage, parse, status_update};

/// Room for what one read brings.
const READ_BYTES: usize = 64 * 1024;
const SLOT: &str = "CREATE_REPLICATION_SLOT bare TEMPORARY LOGICAL pgoutput (SNAPSHOT 'nothing')";
const START: &str = "START_REPLICATION SLOT bare LOGICAL 0/0 (proto_version '1', publication_names 'native')";
/// The sessions are set as a relay's would be.
const SETTINGS: &str = "SET synchronous_commit = local; SET session_replication_role = replica; \
    SET plan_cache_mode = force_generic_plan; SET jit = off; SET search_path = ''";
const RECORD: &str = "CREATE TABLE IF NOT EXISTS public.record (name text, lsn pg_lsn) WITH (fillfactor = 10); \
    TRUNCATE public.record; INSERT INTO public.record VALUES ('bare', '0/0')";
const INSERT: &str = "INSERT INTO public.ticks (id, note) VALUES ($1, $2)";
/// Fails where the record is not where it was left.
const MOVE: &str = "WITH moved AS (UPDATE public.record SET lsn = $1 WHERE name = 'bare' AND lsn = $2 RETURNING 1) \
    SELECT 1 / pg_catalog.count(*) FROM moved";

/// A running one; it ends with its connections.
pub struct BareStandby {
    connections: [TcpStream; 2],
    thread: JoinHandle<()>,
}

impl BareStandby {
    /// Follows the publication `native` of the primary's database `shop` as `name`, into the database `name` of the standby.
    pub fn start(primary_port: u16, standby_port: u16, name: &str) -> Self {
        let mut target = Session::open(standby_port, &[("database", name)]);
        target.query(SETTINGS, b'Z');
        target.query(RECORD, b'Z');
        target.prepare();
        let mut source = Session::open(
            primary_port,
            &[("database", "shop"), ("replication", "database"), ("application_name", name)],
        );
        source.query(SLOT, b'Z');
        source.query(START, b'W');
        let connections = [&source, &target].map(|session| session.socket.try_clone().unwrap());
        Self { connections, thread: thread::spawn(move || follow(source, target)) }
    }

    /// Ends it.
    pub fn end(self) {
        self.connections.iter().for_each(|connection| connection.shutdown(Shutdown::Both).unwrap());
        self.thread.join().unwrap();
    }
}

/// Until a connection is shut down.
fn follow(mut source: Session, mut target: Session) {
    let mut row: Vec<Vec<u8>> = Vec::new();
    let mut record = Lsn(0);
    while let Some((_, body)) = source.message() {
        let confirmed = match parse(&body).unwrap() {
            ReplicationMessage::Keepalive { wal_end, .. } => wal_end,
            ReplicationMessage::XLogData { payload, .. } => match decode(payload, Context::default()).unwrap() {
                Message::Insert { new, .. } => {
                    row = new.iter().map(bytes_of).collect();
                    continue;
                }
                Message::Commit { end_lsn, .. } if !row.is_empty() => {
                    target.bind("insert", &row);
                    target.bind("move", &[end_lsn, record].map(|lsn| lsn.to_string().into_bytes()));
                    frontend::sync(&mut target.outgoing);
                    if !target.exchange(b'Z') {
                        return;
                    }
                    row.clear();
                    record = end_lsn;
                    end_lsn
                }
                Message::Commit { end_lsn, .. } => end_lsn,
                _ => continue,
            },
        };
        let positions = Positions { write: confirmed, flush: confirmed, apply: confirmed };
        status_update(&positions, Timestamp::now(), false, &mut source.outgoing);
        if !source.flush() {
            return;
        }
    }
}

fn bytes_of(value: Value<'_>) -> Vec<u8> {
    match value {
        Value::Text(bytes) => bytes.to_vec(),
        other => panic!("{other:?} in a table of text values"),
    }
}

/// A blocking connection.
struct Session {
    socket: TcpStream,
    outgoing: BytesMut,
    incoming: BytesMut,
    /// What one read brings.
    read: Vec<u8>,
}

impl Session {
    fn open(port: u16, parameters: &[(&str, &str)]) -> Self {
        let socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
        socket.set_nodelay(true).unwrap();
        let mut session =
            Self { socket, outgoing: BytesMut::new(), incoming: BytesMut::new(), read: vec![0; READ_BYTES] };
        let parameters = [("user", "postgres")].into_iter().chain(parameters.iter().copied());
        frontend::startup_message(parameters, &mut session.outgoing).unwrap();
        session.await_message(b'Z');
        session
    }

    /// Runs a simple query up to a message of this kind.
    fn query(&mut self, sql: &str, until: u8) {
        frontend::query(sql, &mut self.outgoing).unwrap();
        self.await_message(until);
    }

    fn prepare(&mut self) {
        for (name, sql) in [("insert", INSERT), ("move", MOVE)] {
            frontend::parse(name, sql, [], &mut self.outgoing).unwrap();
        }
        frontend::sync(&mut self.outgoing);
        self.await_message(b'Z');
    }

    /// Before anybody would end it.
    fn await_message(&mut self, tag: u8) {
        assert!(self.exchange(tag), "the server has closed the connection");
    }

    /// Runs a prepared statement with the next write.
    fn bind(&mut self, statement: &str, values: &[Vec<u8>]) {
        let write = |value: &Vec<u8>, out: &mut BytesMut| {
            out.extend_from_slice(value);
            Ok(IsNull::No)
        };
        let bound = frontend::bind("", statement, [], values, write, [], &mut self.outgoing);
        assert!(bound.is_ok(), "a value that does not fit");
        frontend::execute("", 0, &mut self.outgoing).unwrap();
    }

    /// Writes what is gathered; false: the connection was shut down.
    fn flush(&mut self) -> bool {
        let written = self.socket.write_all(&self.outgoing);
        self.outgoing.clear();
        match written {
            Ok(()) => true,
            Err(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => false,
            Err(error) => panic!("{error}"),
        }
    }

    /// Writes, and reads up to a message of this kind; false: the connection was shut down.
    fn exchange(&mut self, until: u8) -> bool {
        if !self.flush() {
            return false;
        }
        loop {
            match self.message() {
                Some((tag, _)) if tag == until => return true,
                Some((b'E', body)) => panic!("{}", String::from_utf8_lossy(&body)),
                Some(_) => {}
                None => return false,
            }
        }
    }

    /// The next message, its tag and its body; `None`: the connection was shut down.
    fn message(&mut self) -> Option<(u8, BytesMut)> {
        loop {
            if let Some(size) = frame::size_bytes(&self.incoming).unwrap().filter(|size| *size <= self.incoming.len()) {
                let mut message = self.incoming.split_to(size);
                return Some((message[0], message.split_off(frame::HEADER_BYTES)));
            }
            match self.socket.read(&mut self.read) {
                Ok(0) => return None,
                Ok(count) => self.incoming.extend_from_slice(&self.read[..count]),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("{error}"),
            }
        }
    }
}
