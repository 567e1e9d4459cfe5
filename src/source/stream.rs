//! The replication stream: chunks of whole messages come out, positions go in. A consumer without room stops the reading but never
//! the status messages. Interprets nothing but what `read` tells of a chunk.
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
use postgres_protocol::escape::escape_identifier;
use tokio::time::{Interval, timeout};

use crate::backoff::{every, moment};
use crate::model::{Lsn, Positions, SlotName, Timestamp};
use crate::wire::replication;
use crate::wire::{Connection, ServerError, WireError};

use super::read::{READING, Sent, copy_data_of, lacks_its_end};
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
/// A consumer that is at work for longer than this is told of what comes: receipts are waited for.
const PAUSE_LIMIT: Duration = RECEIPT_LOOK;
/// A read of more is no trickle: resting after it would hold up a backlog. Less than one read takes at most.
const SHORT_READ_BYTES: usize = 48 * 1024;
/// Without any message for this long we ask for one.
const PING_AFTER: Duration = Duration::from_secs(30);
/// Without any message for this long the connection is taken as lost. TCP itself notices a dead peer within a minute; but a walsender that decodes
/// a large transaction of tables that are not published says nothing, and looks for our question only every half `wal_sender_timeout`
/// (`WalSndUpdateProgress` in `src/backend/replication/walsender.c`).
const SILENT_AFTER: Duration = Duration::from_secs(600);
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
    /// Whether `SO_RCVLOWAT` is used.
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
        // The publications' names are identifiers inside a literal: quoted twice. The grammar of this command knows no E'…'
        // (`repl_scanner.l`): a backslash in it is one.
        let names: Vec<String> = self.publications.iter().map(|name| escape_identifier(name)).collect();
        let publications = names.join(",").replace('\'', "''");
        let mut options = format!("proto_version '{protocol}', publication_names '{publications}', streaming 'on'");
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

/// The socket is left alone.
#[derive(Clone, Copy, Debug)]
struct Rest {
    until: Instant,
    /// Whether it ends when the consumer resumes.
    is_pause: bool,
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
    rest: Option<Rest>,
    /// Whether the last read was short.
    is_calm: bool,
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
            rest: None,
            is_calm: true,
        })
    }

    /// Leaves the socket alone for so long after each short read: for a consumer in no hurry, one read then takes what many
    /// commits sent, and the walsender wakes nobody.
    pub fn gather_for(&mut self, gather: Duration) {
        self.gather = gather;
    }

    /// The consumer is at work until it resumes: what comes meanwhile wakes nobody, unless that takes long. Not where much comes; nor
    /// under TLS, where nothing could be had in one breath afterwards.
    pub fn pause(&mut self) {
        if self.rest.is_none() && self.is_calm && !self.policy.is_hot() && self.connection.can_take_now() {
            self.rest = Some(Rest { until: Instant::now() + PAUSE_LIMIT, is_pause: true });
        }
    }

    /// Ends a pause, if there is one; for a consumer that `has_room`, with what came meanwhile.
    pub fn resume(&mut self, has_room: bool) -> Result<Option<Bytes>, SourceError> {
        let ended = self.rest.take_if(|rest| rest.is_pause);
        if ended.is_none() || !has_room {
            return Ok(None);
        }
        let chunk = self.connection.take_now().map_err(SourceError::wire(READING))?;
        chunk.map_or(Ok(None), |chunk| self.received(chunk))
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
            let (look_at, rest_until) = (self.policy.look_at(), self.rest.map(|rest| rest.until));
            let may_read = has_room && rest_until.is_none();
            // In this order: a mark enlarges a buffer that was never set.
            self.connection.set_receive_low_water(self.policy.low_water(!may_read));
            if let Some(buffer_bytes) = self.policy.buffer_bytes() {
                self.connection.set_receive_buffer(buffer_bytes);
            }
            tokio::select! {
                biased;
                _ = self.receipt_looks.tick(), if self.receipt_look.is_some() => self.look_for_receipt(),
                _ = self.status_timer.tick() => {
                    let ping = self.check_silence(!has_room)?;
                    self.put_status(ping);
                }
                () = moment(look_at), if has_room => self.policy.cool(Instant::now()),
                () = moment(rest_until) => self.rest = None,
                chunk = self.connection.exchange(may_read, lacks_its_end) => {
                    let chunk = chunk.map_err(SourceError::wire(READING))?;
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
        self.policy.read(size_bytes, now);
        self.is_calm = size_bytes < SHORT_READ_BYTES;
        let gather = (self.is_calm && !self.gather.is_zero()).then_some(self.gather);
        let rest = self.policy.rest(size_bytes).or(gather);
        self.rest = rest.map(|rest| Rest { until: now + rest, is_pause: false });
        if read.wants_reply {
            self.put_status(false);
        }
        Ok((!read.copy_data.is_empty()).then_some(read.copy_data))
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
        self.connection.set_receive_low_water(1);
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
}
