//! The transactions of a batch on their way into Kafka transactions: whole, several in one, or, where one is too large for that and
//! the configuration says so, in parts. Decodes each message once; begins and ends no batch.

use rdkafka::error::RDKafkaErrorCode as Code;

use crate::config::kafka::OnLargeTransaction;
use crate::decode::{Context, Message, decode};
use crate::model::{Lsn, Progress, Retry, Timestamp, Transaction};
use crate::sink::SinkError;
use crate::sink::kafka::encode::{Step, TransactionMark};
use crate::wire::frame::frames;
use crate::wire::replication::{ReplicationMessage, parse};

use super::fault::Fault;
use super::parts::{Inside, Parts, SentBefore, large_bytes, time_limit};
use super::session::{Session, Streaming};
use super::skipping::Skip;

/// A transaction below this does not count as too large, however long it took: the brokers were slow, or what stood before it.
const SMALL_BYTES: u64 = 1 << 20;

/// What the failed sending of a transaction says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// Nothing: the error stands.
    Stands,
    /// It is sent again, in parts.
    InParts,
    TooLarge,
}

/// The time that it took.
#[derive(Clone, Copy, Debug)]
struct Clock {
    may_split: bool,
    is_half_over: bool,
    is_late: bool,
}

impl Clock {
    /// `most_bytes`: what is below is not to blame for its time. `missed_brokers` is asked only where something hangs on it.
    fn verdict(self, bytes: u64, most_bytes: u64, missed_brokers: impl FnOnce() -> bool) -> Verdict {
        let verdict = if self.may_split && bytes > SMALL_BYTES && (self.is_half_over || self.is_late) {
            Verdict::InParts
        } else if self.is_late && bytes > most_bytes {
            Verdict::TooLarge
        } else {
            Verdict::Stands
        };
        if verdict != Verdict::Stands && missed_brokers() { Verdict::Stands } else { verdict }
    }
}

impl Session {
    /// Sends one transaction's records; gives its commit time, if it is no message of its own.
    pub(super) fn send(
        &mut self,
        mut transaction: Transaction,
        streaming: &mut Streaming,
    ) -> Result<Option<Timestamp>, SinkError> {
        let mut parts = self.parts_of(&transaction);
        if parts.is_some() {
            self.commit_what_stands_before(streaming)?;
        }
        let sent = self.send_body(&mut transaction, streaming, &mut parts);
        self.carrier.set_part(None);
        if let Err(error) = sent {
            return Err(if parts.is_none() { self.judge_late(error, &transaction) } else { error });
        }
        let commit_time = (!transaction.is_outside_message()).then_some(transaction.commit_time);
        streaming.progress.lsn = transaction.end_lsn;
        streaming.progress.commit_time = commit_time.or(streaming.progress.commit_time);
        if parts.is_some() {
            // What comes behind it in the batch may turn out to be too large itself, and is noted only where it begins.
            self.commit_what_stands_before(streaming)?;
        }
        Ok(commit_time)
    }

    /// Whether it goes out in parts: one that was begun so goes on so, whatever the configuration says by now.
    fn parts_of(&self, transaction: &Transaction) -> Option<Parts> {
        if let Some(inside) = self.inside.filter(|inside| inside.lsn == transaction.commit_lsn)
            && !transaction.is_outside_message()
        {
            return Some(Parts::after(inside));
        }
        let is_large = self.may_split() && transaction.size_bytes > large_bytes(self.timeout);
        is_large.then(|| Parts::of(transaction.commit_lsn))
    }

    fn may_split(&self) -> bool {
        self.is_exactly_once() && self.opening.sink.on_large_transaction == OnLargeTransaction::Split
    }

    /// The record of a part says "before this transaction": what stands before it is committed first.
    fn commit_what_stands_before(&mut self, streaming: &Streaming) -> Result<(), SinkError> {
        self.settle_deliveries()?;
        self.produce_progress(&streaming.progress)?;
        self.commit()?;
        self.has_committed = true;
        self.tally(streaming.encoder.counters());
        self.begin()
    }

    /// Commits the open part, and begins the next one.
    fn end_part(&mut self, parts: &mut Parts, streaming: &Streaming) -> Result<(), SinkError> {
        let inside = parts.end_part();
        self.inside = Some(inside);
        self.commit_what_stands_before(streaming)?;
        self.carrier.set_part(Some(parts.number()));
        tracing::info!(
            lsn = %inside.lsn,
            part = inside.parts,
            changes = inside.changes,
            "a part of a large transaction is in Kafka"
        );
        Ok(())
    }

    /// A transaction that ran out of time, told as what it is: too large, so that it stops the feed or goes out in parts next time. Where
    /// its time went by without brokers, nothing is known of its size: it is sent again as it is.
    fn judge_late(&mut self, error: SinkError, transaction: &Transaction) -> SinkError {
        let (xid, lsn, rows, bytes) =
            (transaction.xid, transaction.commit_lsn, transaction.rows, transaction.size_bytes);
        let seconds = self.timeout.as_secs();
        let clock =
            Clock { may_split: self.may_split(), is_half_over: self.is_half_over(), is_late: self.carrier.is_late() };
        let most_bytes = self.opening.memory_limit_bytes.min(large_bytes(self.timeout));
        match clock.verdict(bytes, most_bytes, || self.carrier.missed_brokers()) {
            Verdict::Stands => error,
            Verdict::InParts => {
                self.too_large = Some(lsn);
                SinkError::Kafka {
                    context: format!("the transaction {xid} at {lsn} ({rows} rows, {bytes} bytes)"),
                    source: format!(
                        "it was not sent within half of transaction_timeout ({seconds} s): it is sent again, in several Kafka transactions"
                    )
                    .into(),
                    retry: Retry::Later,
                }
            }
            Verdict::TooLarge => SinkError::Refused(format!(
                "the transaction {xid} at {lsn} ({rows} rows, {bytes} bytes) is too large for one Kafka transaction: it took longer than \
                 transaction_timeout ({seconds} s). Raise transaction_timeout, and the broker's transaction.max.timeout.ms if that is less; or \
                 set on_large_transaction = \"split\", and it goes out in several Kafka transactions; nothing of it was published"
            )),
        }
    }

    fn is_half_over(&self) -> bool {
        self.began.elapsed() >= time_limit(self.timeout)
    }

    /// After a batch that was given up because of a transaction too large for it: the record learns that it is to be sent in parts.
    /// If that fails too, or a part of the batch is committed, the next attempt finds it out again: the record never goes back.
    pub(super) fn note_too_large(&mut self, before: &Progress) {
        let Some(lsn) = self.too_large.take().filter(|_| !self.has_committed) else { return };
        self.inside = Some(Inside { lsn, changes: 0, at: Lsn::ZERO, parts: 0 });
        if let Err(error) = self.in_transaction(|session| session.produce_progress(before)) {
            tracing::debug!(%error, "the transaction was not recorded as one to be sent in parts");
        }
    }

    fn send_body(
        &mut self,
        transaction: &mut Transaction,
        streaming: &mut Streaming,
        parts: &mut Option<Parts>,
    ) -> Result<(), SinkError> {
        let is_inside = !transaction.is_outside_message();
        if is_inside {
            self.begin_transaction(transaction, streaming, parts.as_ref())?;
        }
        let context = Context { in_stream: transaction.streamed, parallel: false };
        let broken = || SinkError::wire("reading a received transaction");
        while let Some(chunk) = transaction.next_chunk().map_err(SinkError::Spool)? {
            self.opening.heartbeat.beat();
            self.look_at_the_clock(transaction, streaming, parts)?;
            for frame in frames(&chunk) {
                let frame = frame.map_err(broken())?;
                let ReplicationMessage::XLogData { start, payload, .. } = parse(frame.body).map_err(broken())? else {
                    continue;
                };
                let message = decode(payload, context)?;
                if let Message::Logical(logical) = &message
                    && !is_inside
                {
                    streaming.encoder.outside_message(logical, &mut self.carrier)?;
                    continue;
                }
                let was_sent = match parts {
                    Some(parts) => parts.was_sent(&message, start, frame.body.len())?,
                    None => false,
                };
                self.send_message(start, message, transaction.commit_lsn, streaming, was_sent)?;
                if was_sent && parts.as_ref().is_some_and(Parts::is_behind_sent) {
                    self.go_on_behind_sent(streaming);
                }
            }
        }
        if let Some(parts) = parts {
            parts.end()?;
        }
        if is_inside {
            streaming.encoder.end(&mut self.carrier)?;
        }
        Ok(())
    }

    fn begin_transaction(
        &mut self,
        transaction: &Transaction,
        streaming: &mut Streaming,
        parts: Option<&Parts>,
    ) -> Result<(), SinkError> {
        let mark = TransactionMark {
            xid: transaction.xid,
            commit_lsn: transaction.commit_lsn,
            end_lsn: transaction.end_lsn,
            commit_time: transaction.commit_time,
            origin: transaction.origin.as_deref(),
        };
        self.carrier.set_part(parts.map(Parts::number));
        if parts.is_some_and(Parts::is_begun) {
            return streaming.encoder.begin(mark, &mut SentBefore);
        }
        streaming.encoder.begin(mark, &mut self.carrier)
    }

    /// Before each chunk: ends a part that is full, and a transaction whose time is over.
    fn look_at_the_clock(
        &mut self,
        transaction: &Transaction,
        streaming: &Streaming,
        parts: &mut Option<Parts>,
    ) -> Result<(), SinkError> {
        // What was sent before takes no time of a Kafka transaction.
        if parts.as_ref().is_some_and(|parts| !parts.is_behind_sent()) {
            return Ok(());
        }
        let late = || Fault::from(Code::MessageTimedOut);
        let doing = "sending a transaction's records";
        if self.carrier.is_late() {
            return Err(self.carrier.failed(late(), doing));
        }
        if !self.is_exactly_once() {
            return Ok(());
        }
        match parts {
            Some(parts) => {
                let elapsed = self.began.elapsed();
                if parts.is_full(large_bytes(self.timeout), elapsed, time_limit(self.timeout)) {
                    self.end_part(parts, streaming)?;
                }
            }
            None if self.may_split() && transaction.size_bytes > SMALL_BYTES && self.is_half_over() => {
                return Err(self.carrier.failed(late(), doing));
            }
            None => {}
        }
        Ok(())
    }

    /// What was sent before took time to be read again, and none of its Kafka transaction; nor does it count as sent now.
    fn go_on_behind_sent(&mut self, streaming: &Streaming) {
        self.restart_clock();
        self.count_from(streaming.encoder.counters());
    }

    /// One message; `was_sent`: its records are not sent again, but the encoder counts them.
    fn send_message(
        &mut self,
        lsn: Lsn,
        message: Message<'_>,
        commit_lsn: Lsn,
        streaming: &mut Streaming,
        was_sent: bool,
    ) -> Result<(), SinkError> {
        let Streaming { encoder, skipping, .. } = streaming;
        let rest;
        let message = match skipping.skip(&message, commit_lsn) {
            Skip::Nothing => message,
            Skip::Whole => return Ok(()),
            Skip::Part(payload) => {
                rest = payload;
                decode(&rest, Context::default())?
            }
        };
        loop {
            let step = if was_sent {
                encoder.message(lsn, &message, &mut SentBefore)?
            } else {
                encoder.message(lsn, &message, &mut self.carrier)?
            };
            match step {
                Step::Done => return Ok(()),
                Step::NeedFacts(table) => match &message {
                    Message::Relation(body) => self.catalog.describe_relation(body.oid, table, encoder)?,
                    _ => self.catalog.describe(&[table], encoder)?,
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_is_too_large_only_where_the_brokers_were_there() {
        const LARGE: u64 = 8 << 20;
        // May split, is half over, is late; bytes; the verdict where the brokers were there.
        let cases = [
            ([false, true, false], LARGE + 1, Verdict::Stands),
            ([false, true, true], LARGE, Verdict::Stands),
            ([false, true, true], LARGE + 1, Verdict::TooLarge),
            ([true, false, false], LARGE + 1, Verdict::Stands),
            ([true, true, false], SMALL_BYTES, Verdict::Stands),
            ([true, true, false], SMALL_BYTES + 1, Verdict::InParts),
            ([true, true, true], LARGE + 1, Verdict::InParts),
        ];
        for (case @ [may_split, is_half_over, is_late], bytes, expected) in cases {
            let clock = Clock { may_split, is_half_over, is_late };
            assert_eq!(clock.verdict(bytes, LARGE, || false), expected, "{case:?} {bytes}");
            let is_asked = std::cell::Cell::new(false);
            let away = || !is_asked.replace(true);
            assert_eq!(clock.verdict(bytes, LARGE, away), Verdict::Stands, "{case:?} {bytes}");
            assert_eq!(is_asked.get(), expected != Verdict::Stands, "{case:?} {bytes}");
        }
    }
}
