//! The replication stream: chunks of whole messages come out, positions go in. A consumer without room stops the reading but never
//! the status messages. Interprets nothing but keepalives' wish for a reply, how long ago a transaction was committed, and the
//! server's own notices and errors.
//!
//! No task of its own: whoever asks for the next chunk drives it, so that between the primary's socket and the sink's, and back, nobody
//! has to be woken.
//!
//! ```text
//! START_REPLICATION ─▶ streaming ──finish──▶ last status, CopyDone ─▶ drained
//!                        │   ▲
//!                        ▼   │  the consumer has room
//!                      waiting (status messages still go out, nothing is read)
//! ```

use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes};
use postgres_protocol::escape::{escape_identifier, escape_literal};
use tokio::time::{Interval, timeout};

use crate::backoff::{every, moment};
use crate::model::{Lsn, Positions, SlotName, Timestamp};
use crate::wire::replication::{self, ReplicationMessage};
use crate::wire::{Connection, ServerError, WireError, frame};

use super::receive::RESTING_BUFFER_BYTES;
use super::{ReceivePolicy, SourceError};

/// A status message goes out at least this often: a primary that newly lists us releases its waiters only when one arrives.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);
/// A mere receipt waits for the promise that mostly follows it, and goes out with it: the message of its own would cost both ends
/// more than `remote_write` gains by it. (Postgres' own apply worker tells a receipt only after the commit.) One that has stood at
/// two looks goes out alone. Looks, because a timer for each would be set in the very moment in which the sink has its work; and few, for
/// each of them wakes this process twice.
const RECEIPT_LOOK: Duration = Duration::from_millis(10);
/// So many looks in vain, and there is none until more arrives.
const RECEIPT_LOOKS: u32 = 5;
/// A read of more is no trickle: resting after it would hold up a backlog.
const SHORT_READ_BYTES: usize = 64 * 1024;
/// Without any message for this long we ask for one.
const PING_AFTER: Duration = Duration::from_secs(30);
/// Without any message for this long the connection is taken as lost.
const SILENT_AFTER: Duration = Duration::from_secs(60);
/// How long a clean end may take to be answered.
const END_TIMEOUT: Duration = Duration::from_secs(2);

/// What to ask for in START_REPLICATION.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamOptions {
    /// The slot.
    pub slot: SlotName,
    /// The publications.
    pub publications: Vec<String>,
    /// The sink's own durable position.
    pub start: Lsn,
    /// Binary values where the type has a send function.
    pub binary: bool,
    /// Logical messages too.
    pub messages: bool,
    /// Whether `SO_RCVLOWAT` is used while much arrives.
    pub adaptive_receive: bool,
}

impl StreamOptions {
    /// The command for a server of this version: the newest protocol it offers, open transactions streamed.
    fn command(&self, version_number: u32) -> String {
        let protocol = match version_number {
            ..150_000 => 2,
            150_000..160_000 => 3,
            160_000.. => 4,
        };
        // The publications' names are identifiers inside a literal: quoted twice.
        let names: Vec<String> = self.publications.iter().map(|name| escape_identifier(name)).collect();
        let publications = escape_literal(&names.join(","));
        let mut options =
            format!("proto_version '{protocol}', publication_names {}, streaming 'on'", publications.trim_start());
        if self.binary {
            options.push_str(", binary 'true'");
        }
        if self.messages {
            options.push_str(", messages 'true'");
        }
        let slot = escape_identifier(self.slot.as_str());
        format!("START_REPLICATION SLOT {slot} LOGICAL {} ({options})", self.start)
    }
}

/// A look for receipts that stand untold.
#[derive(Debug)]
struct ReceiptLook {
    /// What had been received at the last one.
    received: Lsn,
    /// Looks at which nothing new had been received, in a row.
    in_vain: u32,
}

/// A started stream.
pub struct Stream {
    connection: Connection,
    policy: ReceivePolicy,
    last_message: Instant,
    is_ping_outstanding: bool,
    /// What may be told, and what was told last.
    positions: Positions,
    last_sent: Positions,
    status_timer: Interval,
    receipt_looks: Interval,
    /// While there may be a receipt to tell.
    receipt_look: Option<ReceiptLook>,
    /// How long the socket is left alone after a short read, so that the next one finds more.
    gather: Duration,
    rest_until: Option<Instant>,
    /// Whether the socket's buffer was made small.
    is_small: bool,
}

impl Stream {
    /// Sends START_REPLICATION and waits for the server to enter the copy-both mode.
    pub async fn start(mut connection: Connection, options: &StreamOptions) -> Result<Self, SourceError> {
        let command = options.command(connection.version_number());
        let context = || {
            SourceError::wire(format!("starting replication from the slot \"{}\" at {}", options.slot, options.start))
        };
        postgres_protocol::message::frontend::query(&command, connection.outgoing())
            .map_err(|error| context()(WireError::from(error)))?;
        connection.flush().await.map_err(context())?;
        loop {
            let message = connection.next_message().await.map_err(context())?;
            match message.tag {
                b'W' => break,
                b'E' => return Err(context()(WireError::Server(Box::new(ServerError::parse(&message.body))))),
                b'N' | b'S' => {}
                tag => {
                    return Err(SourceError::Protocol(format!("START_REPLICATION with a message '{}'", tag as char)));
                }
            }
        }
        let now = Instant::now();
        let positions = Positions { write: options.start, flush: options.start, apply: options.start };
        Ok(Self {
            policy: ReceivePolicy::new(options.adaptive_receive, connection.round_trip(), now),
            connection,
            last_message: now,
            is_ping_outstanding: false,
            positions,
            last_sent: positions,
            status_timer: every(STATUS_INTERVAL),
            receipt_looks: every(RECEIPT_LOOK),
            receipt_look: None,
            gather: Duration::ZERO,
            rest_until: None,
            is_small: false,
        })
    }

    /// Leaves the socket alone for so long after each short read: for a consumer in no hurry, one read then takes what many
    /// commits sent, and the walsender wakes nobody.
    pub fn gather_for(&mut self, gather: Duration) {
        self.gather = gather;
    }

    /// The walsender's process, as `pg_stat_replication` names it.
    pub fn process_id(&self) -> i32 {
        self.connection.process_id()
    }

    /// So much may be told from now on. A promise is told at once, as far as the socket takes it now; a mere receipt in its time.
    pub async fn confirm(&mut self, positions: Positions) -> Result<(), SourceError> {
        let before = std::mem::replace(&mut self.positions, positions);
        if (before.flush, before.apply) == (positions.flush, positions.apply) {
            return Ok(());
        }
        self.put_status(false);
        self.connection.write_now().await.map_err(SourceError::wire("sending a status message to the primary"))
    }

    /// The next whole messages, for a consumer that has room. Without room nothing is read, and it waits for ever. Either way the
    /// primary is told meanwhile how far we are. Cancel safe.
    pub async fn next(&mut self, has_room: bool) -> Result<Bytes, SourceError> {
        loop {
            let (look_at, rest_until) = (self.policy.look_at(), self.rest_until);
            let may_read = has_room && rest_until.is_none();
            tokio::select! {
                biased;
                _ = self.receipt_looks.tick(), if self.receipt_look.is_some() => self.look_for_receipt(),
                _ = self.status_timer.tick() => {
                    let ping = self.check_silence(!has_room)?;
                    self.put_status(ping);
                }
                () = moment(look_at), if has_room => {
                    self.policy.looked(Instant::now());
                    self.set_low_water(1);
                }
                () = moment(rest_until) => self.rest(None),
                chunk = self.connection.exchange(may_read, lacks_its_end) => {
                    let chunk = chunk.map_err(SourceError::wire("reading the replication stream"))?;
                    if let Some(copy_data) = self.received(chunk)? {
                        return Ok(copy_data);
                    }
                }
            }
        }
    }

    /// Takes one read: adjusts the policy, looks at each message's first byte, answers a keepalive that asks for it.
    fn received(&mut self, chunk: Bytes) -> Result<Option<Bytes>, SourceError> {
        let now = Instant::now();
        self.last_message = now;
        self.is_ping_outstanding = false;
        match &mut self.receipt_look {
            Some(look) => look.in_vain = 0,
            none => {
                *none = Some(ReceiptLook { received: self.last_sent.write, in_vain: 0 });
                self.receipt_looks.reset();
            }
        }
        let size_bytes = chunk.len();
        let read = copy_data_of(chunk)?;
        match read.sent {
            Some(Sent::AfterCommit(age)) => self.policy.sent_after_commit(age, now),
            Some(Sent::BeforeCommit) => self.policy.sent_before_commit(now),
            None => {}
        }
        if let Some(low_water_bytes) = self.policy.read(size_bytes, now) {
            self.set_low_water(low_water_bytes);
        }
        if let Some(rest) = self.policy.rest(size_bytes) {
            self.make_small();
            self.rest(Some(now + rest));
        } else if !self.gather.is_zero() && size_bytes < SHORT_READ_BYTES {
            self.rest(Some(now + self.gather));
        }
        if read.wants_reply {
            self.put_status(false);
        }
        Ok((!read.copy_data.is_empty()).then_some(read.copy_data))
    }

    /// Leaves the socket alone until then, or no longer. Each arrival would wake this process, at the walsender's cost too.
    fn rest(&mut self, until: Option<Instant>) {
        self.rest_until = until;
        if let Some(low_water_bytes) = self.policy.low_water(until.is_some()) {
            self.set_low_water(low_water_bytes);
        }
    }

    fn set_low_water(&mut self, bytes: u32) {
        if let Err(error) = self.connection.set_receive_low_water(bytes) {
            tracing::debug!(%error, "SO_RCVLOWAT could not be set; reading stays eager");
        }
    }

    fn make_small(&mut self) {
        if std::mem::replace(&mut self.is_small, true) {
            return;
        }
        if let Err(error) = self.connection.set_receive_buffer(RESTING_BUFFER_BYTES) {
            tracing::debug!(%error, "SO_RCVBUF could not be set; the primary spends more on sending");
        }
    }

    /// Tells the receipt of what had been received at the last look already.
    fn look_for_receipt(&mut self) {
        let Some(look) = &mut self.receipt_look else { return };
        let is_due = look.received > self.last_sent.write;
        let received = self.positions.write;
        look.in_vain = if is_due || received > look.received { 0 } else { look.in_vain + 1 };
        look.received = received;
        if look.in_vain >= RECEIPT_LOOKS {
            self.receipt_look = None;
        }
        if is_due {
            self.put_status(false);
        }
    }

    /// Puts a status message behind what goes out next.
    fn put_status(&mut self, ping: bool) {
        self.last_sent = self.positions;
        replication::status_update(&self.positions, Timestamp::now(), ping, self.connection.outgoing());
    }

    /// Whether to ask for a reply; an error when the last question stayed without one. A reader that waits for its consumer
    /// learns nothing from silence.
    fn check_silence(&mut self, is_holding: bool) -> Result<bool, SourceError> {
        if is_holding {
            self.last_message = Instant::now();
        }
        let silent = self.last_message.elapsed();
        if silent >= SILENT_AFTER {
            return Err(SourceError::Silent(silent.as_secs()));
        }
        let ping = silent >= PING_AFTER && !self.is_ping_outstanding;
        self.is_ping_outstanding |= ping;
        Ok(ping)
    }

    /// The last positions, CopyDone and Terminate; then what is still under way is read and thrown away, so that the socket's
    /// end does not overtake the status message. Of no use to a stream that is lost already; that is no fault.
    pub async fn finish(mut self) {
        self.set_low_water(1);
        self.put_status(false);
        self.connection.outgoing().put_slice(b"c\0\0\0\x04X\0\0\0\x04");
        let ended = timeout(END_TIMEOUT, async {
            self.connection.flush().await?;
            while self.connection.read_chunk().await.is_ok() {}
            Ok::<(), WireError>(())
        });
        match ended.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "the primary could not be told the last positions"),
            Err(_) => tracing::debug!("the primary did not end the stream in time; closing it"),
        }
    }
}

/// What one read brought.
#[derive(Debug)]
struct Read {
    copy_data: Bytes,
    /// Whether a keepalive in it asks for a reply.
    wants_reply: bool,
    /// Of the last transaction in it that tells.
    sent: Option<Sent>,
}

/// When, by the primary's clock, something of a transaction was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    /// So long after its commit.
    AfterCommit(Duration),
    /// It is still open.
    BeforeCommit,
}

/// Whether the end of a transaction is still to come that begins with the first message and goes on in the last: the walsender sends it
/// message by message, and each of them would wake us. Not asked in the middle of a large one, which comes at its own pace.
fn lacks_its_end(first: frame::Frame<'_>, last: frame::Frame<'_>) -> bool {
    let begins = kind(first.body) == Some(b'B');
    begins && matches!(kind(last.body), Some(b'B' | b'O' | b'R' | b'Y' | b'I' | b'U' | b'D' | b'T'))
}

/// The kind of pgoutput's message in a CopyData; `None` for a keepalive.
#[inline]
fn kind(body: &[u8]) -> Option<u8> {
    let is_xlog_data = body.first() == Some(&b'w');
    body.get(replication::XLOG_DATA_HEADER_BYTES).copied().filter(|_| is_xlog_data)
}

/// What a Begin message tells (int64 commit LSN, int64 commit time behind the tag), or a Stream Start; `None` for any other message.
#[inline]
fn sent(body: &[u8]) -> Option<Sent> {
    match kind(body)? {
        b'B' => {}
        b'S' => return Some(Sent::BeforeCommit),
        _ => return None,
    }
    let Ok(ReplicationMessage::XLogData { time, payload, .. }) = replication::parse(body) else { return None };
    let committed = payload.get(9..).and_then(<[u8]>::first_chunk::<8>).map(|bytes| i64::from_be_bytes(*bytes))?;
    Some(Sent::AfterCommit(Duration::from_micros(u64::try_from(time.0.saturating_sub(committed)).unwrap_or(0))))
}

/// The `CopyData` of a chunk. Any other message is a notice (logged, or an error if the server says that it skips changes), or
/// ends the stream.
fn copy_data_of(chunk: Bytes) -> Result<Read, SourceError> {
    let mut wants_reply = false;
    let mut last_sent = None;
    let mut other_messages_bytes = 0;
    for message in frame::frames(&chunk) {
        let message = message.map_err(SourceError::wire("reading the replication stream"))?;
        match (message.tag, message.body) {
            (b'd', [b'k', .., 1]) => wants_reply = true,
            (b'd', body) => last_sent = sent(body).or(last_sent),
            (b'S', _) => other_messages_bytes += message.body.len() + frame::HEADER_BYTES,
            (b'N', body) => {
                notice(&ServerError::parse(body))?;
                other_messages_bytes += body.len() + frame::HEADER_BYTES;
            }
            (b'E', body) => {
                let source = WireError::Server(Box::new(ServerError::parse(body)));
                return Err(SourceError::Wire { context: "streaming from the primary".to_owned(), source });
            }
            (b'c' | b'C' | b'Z', _) => return Err(SourceError::Ended),
            (tag, _) => return Err(SourceError::Protocol(format!("a message '{}' in the stream", tag as char))),
        }
    }
    if other_messages_bytes == 0 {
        return Ok(Read { copy_data: chunk, wants_reply, sent: last_sent });
    }
    // Rare: leave the other messages out.
    let mut copy_data = Vec::with_capacity(chunk.len() - other_messages_bytes);
    for message in frame::frames(&chunk).flatten().filter(|message| message.tag == b'd') {
        copy_data.put_u8(b'd');
        copy_data.put_u32(message.body.len() as u32 + 4);
        copy_data.put_slice(message.body);
    }
    Ok(Read { copy_data: copy_data.into(), wants_reply, sent: last_sent })
}

/// From 18 on a missing publication is only a warning inside the stream, and its changes are left out: fatal for a standby.
fn notice(notice: &ServerError) -> Result<(), SourceError> {
    if notice.message.contains("publication") && notice.severity == "WARNING" {
        return Err(SourceError::Skipping(notice.to_string()));
    }
    tracing::info!(notice = %notice, "the primary says");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_protocol_of_each_server_is_asked_for() {
        let options = StreamOptions {
            slot: SlotName::new("walrelay_a").unwrap(),
            publications: vec!["Odd's".to_owned()],
            start: Lsn(0x16_B374_D848),
            binary: false,
            messages: false,
            adaptive_receive: true,
        };
        for (version, protocol) in [(140_023, 2), (150_018, 3), (160_014, 4), (180_004, 4)] {
            assert_eq!(
                options.command(version),
                format!(
                    "START_REPLICATION SLOT \"walrelay_a\" LOGICAL 16/B374D848 (proto_version '{protocol}', \
                     publication_names '\"Odd''s\"', streaming 'on')"
                )
            );
        }
    }

    /// Builds a chunk of messages, keeps the CopyData of it, and compares.
    fn check(messages: &[(u8, &[u8])], expected: Result<(&[&[u8]], bool), &str>) {
        let chunk = |messages: &[(u8, &[u8])]| {
            let mut bytes = Vec::new();
            for (tag, body) in messages {
                bytes.put_u8(*tag);
                bytes.put_u32(body.len() as u32 + 4);
                bytes.put_slice(body);
            }
            Bytes::from(bytes)
        };
        let result = copy_data_of(chunk(messages));
        match (result, expected) {
            (Ok(Read { copy_data, wants_reply, .. }), Ok((bodies, expected_reply))) => {
                let expected: Vec<(u8, &[u8])> = bodies.iter().map(|body| (b'd', *body)).collect();
                assert_eq!(copy_data, chunk(&expected));
                assert_eq!(wants_reply, expected_reply);
            }
            (Err(error), Err(text)) => assert!(error.to_string().contains(text), "{error}"),
            (result, expected) => panic!("{result:?} instead of {expected:?}"),
        }
    }

    #[test]
    fn a_begin_tells_how_long_ago_it_was_committed_and_a_stream_that_it_is_open() {
        let message = |sent: i64, tag: u8, committed: i64| {
            let mut body = vec![b'w'];
            body.extend([0, 0, sent].into_iter().flat_map(i64::to_be_bytes));
            body.push(tag);
            body.extend([7, committed].into_iter().flat_map(i64::to_be_bytes));
            body.extend([0; 4]);
            body
        };
        assert_eq!(sent(&message(5_000, b'B', 2_000)), Some(Sent::AfterCommit(Duration::from_millis(3))));
        // A clock that was set back.
        assert_eq!(sent(&message(2_000, b'B', 5_000)), Some(Sent::AfterCommit(Duration::ZERO)));
        assert_eq!(sent(&message(5_000, b'S', 2_000)), Some(Sent::BeforeCommit));
        assert_eq!(sent(&message(5_000, b'C', 2_000)), None);
        assert_eq!(sent(&message(5_000, b'B', 2_000)[..30]), None);
    }

    #[test]
    fn only_copy_data_goes_on() {
        let asking = b"k\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\0\x01".as_slice();
        let quiet = b"k\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\0\0".as_slice();
        check(&[(b'd', b"w1"), (b'd', quiet)], Ok((&[b"w1", quiet], false)));
        check(&[(b'd', asking), (b'd', b"w1")], Ok((&[asking, b"w1"], true)));
        check(&[(b'd', b"w1"), (b'S', b"TimeZone\0UTC\0"), (b'd', b"w2")], Ok((&[b"w1", b"w2"], false)));
        check(&[(b'd', b"w1"), (b'N', b"SNOTICE\0Mhello\0\0"), (b'd', b"w2")], Ok((&[b"w1", b"w2"], false)));
        check(&[(b'C', b"COPY 0\0")], Err("ended the replication stream"));
        check(&[(b'N', b"SWARNING\0VWARNING\0C01000\0Mskipped loading publication \"p\"\0\0")], Err("skips changes"));
        check(&[(b'E', b"SFATAL\0VFATAL\0C57P01\0Mterminating connection\0\0")], Err("57P01"));
        check(&[(b'?', b"")], Err("message '?'"));
    }
}
