//! One connection that speaks the protocol itself: for replication, for COPY passed straight through, and for pipelined
//! statements. Decides nothing about what is said on it.

mod burst;
mod drain;

use std::collections::HashMap;
use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::AsyncWrite;

use crate::config::ServerUrl;

use super::frame::{self, HEADER_BYTES};
use super::transport::Transport;
use super::{ServerError, WireError, connect};

/// A server that has not closed within this was told all the same.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);
/// A read of this much is part of a flood: it goes on as long as the buffer has room.
const FLOOD_BYTES: usize = 64 * 1024;
/// The read buffer starts with this.
const READ_BYTES: usize = 64 * 1024;
/// A read buffer that is filled grows up to this, so that a flood is read in few calls.
const READ_LIMIT_BYTES: usize = 2 * 1024 * 1024;

/// Longest message before the session is ready: who answers is not authenticated yet.
const START_LIMIT_BYTES: usize = 1024 * 1024;

/// What kind of session to open.
#[derive(Clone, Debug, Default)]
pub struct Session {
    /// `application_name`.
    pub application_name: String,
    /// Whether it is a walsender session (`replication=database`).
    pub is_replication: bool,
    /// Settings for the session, as `SET name = value` would make them.
    pub settings: Vec<(String, String)>,
}

impl Session {
    /// An ordinary session.
    pub fn new(application_name: impl Into<String>) -> Self {
        Self { application_name: application_name.into(), is_replication: false, settings: Vec::new() }
    }

    /// A walsender session.
    pub fn replication(application_name: impl Into<String>) -> Self {
        Self { is_replication: true, ..Self::new(application_name) }
    }

    /// With one more setting.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// One whole message, owned (a slice of the read buffer).
#[derive(Clone)]
pub struct OwnedMessage {
    /// What it is.
    pub tag: u8,
    /// What follows the length.
    pub body: Bytes,
}

impl fmt::Debug for OwnedMessage {
    /// Without the body, which may hold row values.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:?} of {} bytes", self.tag as char, self.body.len())
    }
}

/// The answer to one statement of a simple query.
#[derive(Clone, Debug, Default)]
pub struct QueryResult {
    /// Rows of text values.
    pub rows: Vec<Vec<Option<Bytes>>>,
    /// The command tag, e.g. `SELECT 1`.
    pub tag: String,
}

/// A connection that is ready for queries.
pub struct Connection {
    transport: Transport,
    incoming: BytesMut,
    limit_bytes: usize,
    read_size_bytes: usize,
    /// Reads are at least this large: while the kernel gathers, one read takes what it gathered.
    read_floor_bytes: usize,
    low_water_bytes: u32,
    /// Until the next read: what is there was kept from the runtime by a mark that has been lowered since.
    is_mark_lowered: bool,
    /// The kernel's, where it was set.
    receive_buffer_bytes: Option<usize>,
    outgoing: BytesMut,
    /// Why the last write failed, while the server's last words are awaited.
    write_failure: Option<WireError>,
    parameters: HashMap<String, String>,
    process_id: i32,
    host: String,
}

impl fmt::Debug for Connection {
    /// Without the buffers: they may hold row values and passwords.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Connection")
            .field("host", &self.host)
            .field("process_id", &self.process_id)
            .finish_non_exhaustive()
    }
}

impl Connection {
    /// Connects to the first usable host of the URL. The error names every host tried.
    pub async fn connect(url: &ServerUrl, session: &Session) -> Result<Self, WireError> {
        connect::connect(url, session).await
    }

    pub(super) fn new(transport: Transport, host: String) -> Self {
        Self {
            transport,
            incoming: BytesMut::new(),
            limit_bytes: START_LIMIT_BYTES,
            read_size_bytes: READ_BYTES,
            read_floor_bytes: READ_BYTES,
            low_water_bytes: 1,
            is_mark_lowered: false,
            receive_buffer_bytes: None,
            outgoing: BytesMut::new(),
            write_failure: None,
            parameters: HashMap::new(),
            process_id: 0,
            host,
        }
    }

    pub(super) fn set_process_id(&mut self, process_id: i32) {
        self.process_id = process_id;
    }

    /// From now on messages may be as long as Postgres makes them.
    pub(super) fn set_ready(&mut self) {
        self.limit_bytes = frame::LIMIT_BYTES + 1;
    }

    /// The server's process behind this connection.
    pub fn process_id(&self) -> i32 {
        self.process_id
    }

    /// The host it is connected to, for messages.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// A parameter the server reported (`server_version`, `in_hot_standby`, …).
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.get(name).map(String::as_str)
    }

    /// `server_version_num`, from the version text: `15.18 (Debian …)` is 150018. Zero when it cannot be read.
    pub fn version_number(&self) -> u32 {
        version_number(self.parameter("server_version").unwrap_or(""))
    }

    /// Where frontend messages are put together; sent by `flush` or `pump`.
    pub fn outgoing(&mut self) -> &mut BytesMut {
        &mut self.outgoing
    }

    /// `SO_RCVLOWAT`, and reads that take as much; only the latter on a Unix socket, or where the kernel refuses it.
    pub fn set_receive_low_water(&mut self, bytes: u32) {
        let before = std::mem::replace(&mut self.low_water_bytes, bytes);
        if before == bytes {
            return;
        }
        self.is_mark_lowered = bytes < before;
        self.read_floor_bytes = if bytes as usize > READ_BYTES { READ_LIMIT_BYTES } else { READ_BYTES };
        if let Err(error) = self.transport.set_receive_low_water(bytes) {
            tracing::debug!(%error, "SO_RCVLOWAT could not be set; reading stays eager");
        }
    }

    /// The kernel's buffer for what the server has sent and nobody has read, bytes; of TCP only.
    pub fn set_receive_buffer(&mut self, bytes: usize) {
        if self.receive_buffer_bytes.replace(bytes) == Some(bytes) {
            return;
        }
        if let Err(error) = self.transport.set_receive_buffer(bytes) {
            tracing::debug!(%error, "SO_RCVBUF could not be set; the primary spends more on sending");
        }
    }

    /// From now on the server may read nothing for as long as it likes: its backend works at a statement, or waits for a lock, while more is
    /// pushed to it than the kernels hold. That it is gone with unread bytes on their way is noticed late: another session must tell.
    pub fn lift_send_limit(&self) {
        if let Err(error) = self.transport.lift_user_timeout() {
            tracing::debug!(%error, "TCP_USER_TIMEOUT could not be lifted; a statement of more than a minute may end the session");
        }
    }

    /// The round trip to the server, as the kernel measured it; `None` on a Unix socket.
    pub fn round_trip(&self) -> Option<Duration> {
        self.transport.round_trip()
    }

    /// Writes everything outgoing. Cancel safe: what was written is gone from `outgoing`, the rest is still there.
    pub async fn flush(&mut self) -> Result<(), WireError> {
        poll_fn(|context| self.poll_write_out(context)).await
    }

    /// Writes as much of what is outgoing as the socket takes at once.
    pub async fn write_now(&mut self) -> Result<(), WireError> {
        poll_fn(|context| match self.poll_write_out(context) {
            Poll::Pending => Poll::Ready(Ok(())),
            written => written,
        })
        .await
    }

    /// Reads the next whole message. Cancel safe. Server parameters are noted on the way and still returned.
    pub async fn next_message(&mut self) -> Result<OwnedMessage, WireError> {
        poll_fn(|context| self.poll_message(context)).await
    }

    /// Takes the next whole message that was already read, if there is one.
    pub fn try_next_message(&mut self) -> Result<Option<OwnedMessage>, WireError> {
        let Some(size) = frame::size_bytes(&self.incoming)? else { return Ok(None) };
        if size > self.limit_bytes {
            return Err(WireError::Unexpected {
                tag: self.incoming[0],
                during: "starting a session, of more than 1 MiB",
            });
        }
        if self.incoming.len() < size {
            return Ok(None);
        }
        let message = self.incoming.split_to(size).freeze();
        let message = OwnedMessage { tag: message[0], body: message.slice(HEADER_BYTES..) };
        if message.tag == b'S' {
            self.note_parameter(&message.body);
        }
        Ok(Some(message))
    }

    /// Reads a run of whole messages, at least one, as much as one or two reads bring; a torn tail stays for the next time.
    /// Cancel safe.
    pub async fn read_chunk(&mut self) -> Result<Bytes, WireError> {
        poll_fn(|context| self.poll_chunk(context)).await
    }

    /// Writes what is outgoing and reads what arrives until a whole message is there, so that neither side's full buffer
    /// stops the other. Returns whether everything was written. Cancel safe.
    pub async fn pump(&mut self) -> Result<bool, WireError> {
        poll_fn(|context| {
            let is_written = self.poll_write_out(context)?.is_ready();
            if has_whole_message(&self.incoming)? {
                return Poll::Ready(Ok(is_written));
            }
            loop {
                match self.poll_fill(context)? {
                    Poll::Ready(()) if has_whole_message(&self.incoming)? => return Poll::Ready(Ok(is_written)),
                    Poll::Ready(()) => {}
                    Poll::Pending => return Poll::Pending,
                }
            }
        })
        .await
    }

    /// Runs a simple query and gathers its results. An error of the server is returned after ReadyForQuery, so that the
    /// connection can go on. Not cancel safe: a connection whose query was given up is of no further use.
    pub async fn simple_query(&mut self, sql: &str) -> Result<Vec<QueryResult>, WireError> {
        postgres_protocol::message::frontend::query(sql, &mut self.outgoing)?;
        self.flush().await?;
        let mut results = Vec::new();
        let mut current = QueryResult::default();
        let mut failure = None;
        loop {
            let message = match self.next_message().await {
                Ok(message) => message,
                // A FATAL error comes without ReadyForQuery.
                Err(error) => return Err(failure.unwrap_or(error)),
            };
            match message.tag {
                b'D' => current.rows.push(data_row(&message.body)?),
                b'C' => {
                    current.tag = until_nul(&message.body);
                    results.push(std::mem::take(&mut current));
                }
                b'E' => failure = Some(WireError::Server(Box::new(ServerError::parse(&message.body)))),
                b'Z' => break,
                b'T' | b'I' | b'S' | b'N' | b'A' => {}
                tag => return Err(WireError::Unexpected { tag, during: "answering a query" }),
            }
        }
        failure.map_or(Ok(results), Err)
    }

    /// Says good-bye and waits, for a short while, until the server has closed: its process has left the server's lists then.
    pub async fn close(mut self) {
        let farewell = async {
            postgres_protocol::message::frontend::terminate(&mut self.outgoing);
            if self.flush().await.is_ok() {
                while self.next_message().await.is_ok() {}
            }
        };
        let _ = tokio::time::timeout(CLOSE_LIMIT, farewell).await;
    }

    fn note_parameter(&mut self, body: &[u8]) {
        let mut words = body.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned());
        if let (Some(name), Some(value)) = (words.next(), words.next()) {
            self.parameters.insert(name, value);
        }
    }

    fn poll_write_out(&mut self, context: &mut Context<'_>) -> Poll<Result<(), WireError>> {
        while !self.outgoing.is_empty() {
            if let Some(error) = self.write_failure.take() {
                return self.poll_last_words(context, error);
            }
            let written = match ready!(Pin::new(&mut self.transport).poll_write(context, &self.outgoing)) {
                Ok(0) => return self.poll_last_words(context, WireError::Closed),
                Ok(written) => written,
                Err(error) => return self.poll_last_words(context, error.into()),
            };
            self.outgoing.advance(written);
        }
        ready!(Pin::new(&mut self.transport).poll_flush(context))?;
        Poll::Ready(Ok(()))
    }

    fn poll_message(&mut self, context: &mut Context<'_>) -> Poll<Result<OwnedMessage, WireError>> {
        loop {
            if let Some(message) = self.try_next_message()? {
                return Poll::Ready(Ok(message));
            }
            ready!(self.poll_fill(context))?;
        }
    }

    fn poll_chunk(&mut self, context: &mut Context<'_>) -> Poll<Result<Bytes, WireError>> {
        let end = ready!(self.poll_whole(context))?;
        Poll::Ready(Ok(self.incoming.split_to(end).freeze()))
    }

    /// Reads until at least one whole message is there: where the last of them ends.
    fn poll_whole(&mut self, context: &mut Context<'_>) -> Poll<Result<usize, WireError>> {
        loop {
            match frame::whole_messages_bytes(&self.incoming)? {
                0 => ready!(self.poll_fill(context))?,
                end => return Poll::Ready(Ok(end)),
            }
        }
    }

    /// Reads into the buffer what is there, up to its size. The buffer grows with what really arrived, never with what a
    /// length claims, and shrinks back when reads are short. Short reads share one buffer: a consumer that keeps a few small
    /// chunks must not keep a large buffer for each.
    fn poll_fill(&mut self, context: &mut Context<'_>) -> Poll<Result<(), WireError>> {
        let size_bytes = self.read_size_bytes.max(self.read_floor_bytes);
        self.make_room(size_bytes);
        let room = self.incoming.spare_capacity_mut();
        let room_bytes = room.len().min(size_bytes);
        let room = &mut room[..room_bytes];
        // The runtime knows nothing yet of what a mark kept from it, and a kernel before 4.18 would not tell it.
        let is_mark_lowered = std::mem::take(&mut self.is_mark_lowered);
        let mut filled = is_mark_lowered.then(|| self.transport.receive_now(room)).flatten().unwrap_or(0);
        if filled == 0 {
            filled = ready!(self.transport.poll_receive(context, room))?;
        }
        if filled >= FLOOD_BYTES {
            // Reading opens the window, and what the sender had queued behind it comes at once.
            while let Some(count) = self.transport.receive_now(&mut room[filled..]) {
                filled += count;
            }
        }
        if filled == 0 {
            return Poll::Ready(Err(WireError::Closed));
        }
        // SAFETY: `filled` bytes of the spare capacity were just initialised by the read.
        unsafe { self.incoming.set_len(self.incoming.len() + filled) };
        if filled == room_bytes {
            self.read_size_bytes = (self.read_size_bytes * 2).min(READ_LIMIT_BYTES);
        } else if filled < self.read_size_bytes / 8 {
            self.read_size_bytes = (self.read_size_bytes / 2).max(READ_BYTES);
        }
        Poll::Ready(Ok(()))
    }

    /// Room for a read of `size_bytes`, or of half as much where that is left of the last buffer.
    fn make_room(&mut self, size_bytes: usize) {
        if self.incoming.capacity() - self.incoming.len() < size_bytes / 2 {
            self.incoming.reserve(size_bytes);
        }
    }

    /// A server that ends a session says why and closes; a write may notice the end before the words are read. Reads what is
    /// left, which the end of the connection bounds, and gives the FATAL error in it instead of `error`.
    fn poll_last_words(&mut self, context: &mut Context<'_>, error: WireError) -> Poll<Result<(), WireError>> {
        let limit_bytes = self.incoming.len() + READ_LIMIT_BYTES;
        while self.incoming.len() < limit_bytes {
            match self.poll_fill(context) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => break,
                Poll::Pending => {
                    self.write_failure = Some(error);
                    return Poll::Pending;
                }
            }
        }
        Poll::Ready(Err(self.last_words(error)))
    }

    /// The FATAL error among the messages that are read and not yet taken, else `error`.
    fn last_words(&self, error: WireError) -> WireError {
        let Ok(end) = frame::whole_messages_bytes(&self.incoming) else { return error };
        let words = frame::frames(&self.incoming[..end])
            .flatten()
            .filter(|message| message.tag == b'E')
            .map(|message| ServerError::parse(message.body))
            .find(|error| matches!(error.severity.as_str(), "FATAL" | "PANIC"));
        words.map_or(error, |words| WireError::Server(Box::new(words)))
    }
}

fn has_whole_message(bytes: &[u8]) -> Result<bool, WireError> {
    Ok(frame::size_bytes(bytes)?.is_some_and(|size| size <= bytes.len()))
}

fn version_number(text: &str) -> u32 {
    let number =
        |text: &str| text.chars().take_while(char::is_ascii_digit).collect::<String>().parse::<u32>().unwrap_or(0);
    let (major, minor) = text.split_once('.').unwrap_or((text, ""));
    number(major).saturating_mul(10_000).saturating_add(number(minor))
}

fn until_nul(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.split(|byte| *byte == 0).next().unwrap_or(&[])).into_owned()
}

/// The values of a DataRow: int16 count, then int32 length (-1 for NULL) and bytes.
fn data_row(body: &Bytes) -> Result<Vec<Option<Bytes>>, WireError> {
    let torn = || WireError::Torn { available: body.len() };
    let count = body.first_chunk::<2>().map(|bytes| u16::from_be_bytes(*bytes)).ok_or_else(torn)?;
    let mut values = Vec::new();
    let mut at = 2;
    for _ in 0..count {
        let length = body.get(at..).and_then(<[u8]>::first_chunk::<4>).map(|bytes| i32::from_be_bytes(*bytes));
        at += 4;
        match length.ok_or_else(torn)? {
            length if length < 0 => values.push(None),
            length => {
                let end = at.checked_add(length as usize).filter(|end| *end <= body.len()).ok_or_else(torn)?;
                values.push(Some(body.slice(at..end)));
                at = end;
            }
        }
    }
    Ok(values)
}

#[cfg(test)]
mod tests;
