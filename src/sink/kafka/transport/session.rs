//! What runs on the thread: a producer that has fenced off all others, and batches that become Kafka transactions with the
//! progress record in them. After any error it is good for nothing, and what it had sent is aborted.
//!
//! ```text
//! exactly_once    begin ─▶ records ─▶ progress record ─▶ commit (irrevocable) ─▶ receipt
//! at_least_once            records ─▶ flush (all acknowledged) ─▶ progress record ─▶ flush ─▶ receipt
//! ```

use std::collections::HashMap;
use std::time::{Duration, Instant};

use rdkafka::error::RDKafkaErrorCode as Code;

use crate::config::kafka::{ApplyMeans, Delivery};
use crate::model::{Applied, Durable, FeedReport, Lsn, Progress, QualifiedName};

use super::carrier::Carrier;
use super::catalog::Catalog;
use super::headway::Headway;
use super::open::Opened;
use super::opening::Opening;
use super::parts::Inside;
use super::producer::{Outgoing, STILL_LIMIT, TopicHandle};
use super::progress::{CopiedTable, copied_key, copied_value, write_progress};
use super::readable::Readability;
use super::skipping::Skipping;
use crate::sink::kafka::encode::{Encoder, Origin, may_route_to};
use crate::sink::{Batch, Receipt, SinkError};

/// The progress topic has this one partition.
const PROGRESS_PARTITION: i32 = 0;
/// What stays of the transaction's time for its commit.
const COMMIT_PART: u32 = 10;
/// An abort that takes longer is left to the next producer.
const ABORT_LIMIT: Duration = Duration::from_secs(5);

/// Where a session begins, told once the rules of resume have spoken.
#[derive(Clone, Debug)]
pub struct Start {
    /// The record as it stands.
    pub progress: Progress,
    /// Changes of a table in transactions whose commit record starts below this were sent as its copy.
    pub skip_until: HashMap<QualifiedName, Lsn>,
    /// Tables that will be sent as of this, and of which a part was sent before: only what takes rows away counts until then.
    pub begun: HashMap<QualifiedName, Lsn>,
    /// Tables to ask the catalog about beforehand.
    pub tables: Vec<QualifiedName>,
}

/// An open session.
pub(super) struct Session {
    pub(super) opening: Opening,
    pub(super) carrier: Carrier,
    pub(super) catalog: Catalog,
    progress_topic: TopicHandle,
    pub(super) timeout: Duration,
    /// When the open Kafka transaction began.
    pub(super) began: Instant,
    /// A source transaction that is sent in part; good until the record has passed it.
    pub(super) inside: Option<Inside>,
    /// One that turned out to be too large to be sent whole.
    pub(super) too_large: Option<Lsn>,
    /// Something of the batch under way is committed: the record has moved on from where the batch began.
    pub(super) has_committed: bool,
    buffer: Vec<u8>,
    streaming: Option<Streaming>,
    counted: FeedReport,
    /// `apply_means = "readable"`.
    readability: Option<Readability>,
}

/// What there is once events may be sent.
pub(super) struct Streaming {
    pub(super) encoder: Encoder,
    pub(super) progress: Progress,
    pub(super) skipping: Skipping,
}

impl Session {
    /// `inside`: of which transaction an earlier session has sent a part.
    pub(super) fn new(
        opening: Opening,
        opened: Opened,
        catalog: Catalog,
        inside: Option<Inside>,
    ) -> Result<Self, SinkError> {
        let Opened { producer, topics, timeout, .. } = opened;
        let mut carrier = Carrier::new(&opening, producer, topics);
        let progress_topic = carrier
            .producer
            .topic(&opening.sink.progress_topic)
            .map_err(|fault| fault.while_doing("opening the progress topic", None))?;
        let readability = match opening.sink.apply_means {
            ApplyMeans::Committed => None,
            ApplyMeans::Readable => Some(Readability::new(&opening.sink, carrier.producer.halt().clone())),
        };
        let readability =
            readability.transpose().map_err(|fault| fault.while_doing("setting up a Kafka reader", None))?;
        Ok(Self {
            opening,
            carrier,
            catalog,
            progress_topic,
            timeout,
            began: Instant::now(),
            inside,
            too_large: None,
            has_committed: false,
            buffer: Vec::new(),
            streaming: None,
            counted: FeedReport::default(),
            readability,
        })
    }

    /// Writes a record that no event belongs to, durably, together with the plan of a copy.
    pub(super) fn record(
        &mut self,
        progress: &Progress,
        planned: &[(QualifiedName, CopiedTable)],
    ) -> Result<(), SinkError> {
        self.in_transaction(|session| {
            for (table, copied) in planned {
                let key = copied_key(&session.opening.sink.transactional_id, table);
                session.produce_record(&key, &copied_value(table, *copied))?;
            }
            session.produce_progress(progress)
        })
    }

    /// Makes the encoder.
    pub(super) fn start(&mut self, start: Start) -> Result<(), SinkError> {
        let Start { progress, skip_until, begun, tables } = start;
        let origin = Origin {
            pipeline: self.opening.pipeline.clone(),
            database: progress.database.clone(),
            previous_end: progress.commit_time.map(|_| progress.lsn),
            tables: self.opening.filter.clone(),
        };
        let mut encoder = Encoder::new(self.opening.sink.clone(), origin);
        self.catalog.describe(&tables, &mut encoder)?;
        if self.readability.is_some() {
            let partitions = self.sent_before()?;
            if let Some(readability) = &mut self.readability {
                readability.committed(progress.lsn, partitions);
            }
        }
        self.streaming = Some(Streaming { encoder, progress, skipping: Skipping::new(&skip_until, &begun) });
        Ok(())
    }

    /// Where what stands before the record may have gone, and may be hidden from readers by somebody's open transaction: the topics that are
    /// known beforehand, and those that only rows and messages name.
    fn sent_before(&self) -> Result<Vec<(String, i32)>, SinkError> {
        let sink = &self.opening.sink;
        let messages = sink.message_topic_name();
        let named_by_rows = |topic: &str| sink.outbox.as_ref().is_some_and(|outbox| may_route_to(outbox, topic));
        let found = self.carrier.topics.fitting(|topic| topic == messages || named_by_rows(topic));
        let mut partitions = found.map_err(|fault| fault.while_doing("listing the topics", None))?;
        partitions.extend(self.carrier.topics.partitions());
        Ok(partitions)
    }

    /// Sends a batch whole; on return all of it and the record are in the brokers' logs. Where applied means readable, the receipt
    /// says how far that is; the same position without transactions then looks again.
    pub(super) fn apply(&mut self, batch: Batch) -> Result<Receipt, SinkError> {
        let mut streaming = self.streaming.take().ok_or_else(|| misused("it was not started"))?;
        if batch.position < streaming.progress.lsn {
            return Err(misused("the batch ends before what is recorded"));
        }
        let Batch { transactions, position, .. } = batch;
        let before = streaming.progress.lsn;
        if let Some(readability) = self.readability.as_mut().filter(|readability| readability.is_behind())
            && transactions.is_empty()
            && position == before
        {
            self.opening.heartbeat.beat();
            let looked = readability.look();
            looked.map_err(|fault| fault.while_doing("looking whether the events can be read", None))?;
            let (applied, durable) = (Applied(readability.readable()), Some(Durable(position)));
            self.streaming = Some(streaming);
            return Ok(Receipt { applied, durable, transactions: 0, rows: 0, commit_time: None });
        }
        let mut receipt = Receipt {
            applied: Applied(position),
            durable: Some(Durable(position)),
            transactions: transactions.iter().filter(|transaction| !transaction.is_outside_message()).count() as u64,
            rows: transactions.iter().map(|transaction| transaction.rows).sum(),
            commit_time: None,
        };
        let unsent = streaming.progress.clone();
        self.has_committed = false;
        let sent = self.in_transaction(|session| {
            let is_empty = transactions.is_empty();
            for transaction in transactions {
                receipt.commit_time = session.send(transaction, &mut streaming)?.or(receipt.commit_time);
            }
            if !is_empty {
                session.settle_deliveries()?;
            }
            streaming.progress.lsn = position;
            session.produce_progress(&streaming.progress)
        });
        if sent.is_err() {
            self.note_too_large(&unsent);
        }
        sent?;
        self.tally(streaming.encoder.counters());
        if let Some(readability) = &mut self.readability {
            readability.committed(position, self.carrier.take_touched());
            receipt.applied = Applied(readability.readable());
        }
        self.streaming = Some(streaming);
        Ok(receipt)
    }

    pub(super) fn is_exactly_once(&self) -> bool {
        self.opening.sink.delivery == Delivery::ExactlyOnce
    }

    /// Runs `work` inside a Kafka transaction, if there are any, and waits until its outcome cannot change any more.
    pub(super) fn in_transaction(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<(), SinkError>,
    ) -> Result<(), SinkError> {
        self.begin()?;
        let result = work(self).and_then(|()| self.commit());
        if result.is_err() {
            self.give_up(true);
        }
        result
    }

    /// Begins a Kafka transaction, if there are any.
    pub(super) fn begin(&mut self) -> Result<(), SinkError> {
        if !self.is_exactly_once() {
            return Ok(());
        }
        let begun = self.carrier.producer.begin();
        begun.map_err(|fault| self.carrier.failed(fault, "beginning a Kafka transaction"))?;
        self.restart_clock();
        Ok(())
    }

    /// The brokers count the time of a Kafka transaction from its first record on.
    pub(super) fn restart_clock(&mut self) {
        self.began = Instant::now();
        if self.is_exactly_once() {
            self.carrier.set_limit(Some(self.timeout - self.timeout / COMMIT_PART));
        }
    }

    /// Waits until the outcome of what was sent cannot change any more.
    pub(super) fn commit(&mut self) -> Result<(), SinkError> {
        if self.is_exactly_once() {
            let deadline = Instant::now() + self.timeout;
            let mut headway = Headway::default();
            loop {
                let left = deadline.saturating_duration_since(Instant::now());
                match self.carrier.producer.commit(left.min(STILL_LIMIT)) {
                    Ok(()) => break,
                    Err(fault) if fault.is_retriable() && left > STILL_LIMIT && !self.carrier.producer.is_halted() => {
                        self.carrier.look(&mut headway)?;
                    }
                    Err(fault) => return Err(self.carrier.failed(fault, "committing a Kafka transaction")),
                }
            }
            self.carrier.set_limit(None);
            Ok(())
        } else {
            self.flush()
        }
    }

    /// Aborts what was sent: it is replayed from the slot. If the abort does not succeed either, the next producer's beginning
    /// settles it.
    pub(super) fn give_up(&mut self, is_in_transaction: bool) {
        if is_in_transaction
            && self.is_exactly_once()
            && let Err(fault) = self.carrier.producer.abort(ABORT_LIMIT)
        {
            tracing::debug!(%fault, "the Kafka transaction could not be aborted");
        }
    }

    /// Without transactions, a record that tells of others may follow only what was delivered.
    pub(super) fn settle_deliveries(&mut self) -> Result<(), SinkError> {
        if self.is_exactly_once() { Ok(()) } else { self.flush() }
    }

    fn flush(&self) -> Result<(), SinkError> {
        let mut headway = Headway::default();
        loop {
            match self.carrier.producer.flush(STILL_LIMIT) {
                Ok(()) => return Ok(()),
                Err(fault) if fault.code == Some(Code::OperationTimedOut) && !self.carrier.producer.is_halted() => {
                    self.carrier.look(&mut headway)?;
                }
                Err(fault) => return Err(self.carrier.failed(fault, "waiting for the delivery of records")),
            }
        }
    }

    /// Adds what was committed to the pipeline's counters; `made`: what its one encoder has made so far.
    pub(super) fn tally(&mut self, made: FeedReport) {
        let now = FeedReport { dead_letters: self.carrier.dead_letters, ..made };
        self.opening.feed.add(now.since(self.counted));
        self.opening.feed.set_brokers_away(false);
        self.counted = now;
    }

    /// What the encoder has made until now was counted before.
    pub(super) fn count_from(&mut self, made: FeedReport) {
        self.counted = FeedReport { dead_letters: self.carrier.dead_letters, ..made };
    }

    /// The outlet of an encoder.
    pub(super) fn carrier(&mut self) -> &mut Carrier {
        &mut self.carrier
    }

    /// Work is done.
    pub(super) fn beat(&self) {
        self.opening.heartbeat.beat();
    }

    pub(super) fn produce_progress(&mut self, progress: &Progress) -> Result<(), SinkError> {
        self.inside = self.inside.filter(|inside| progress.lsn <= inside.lsn);
        self.buffer.clear();
        write_progress(progress, self.inside, &mut self.buffer)?;
        self.produce_record(self.opening.sink.transactional_id.as_bytes(), &self.buffer)
    }

    /// A record of the progress topic.
    pub(super) fn produce_record(&self, key: &[u8], value: &[u8]) -> Result<(), SinkError> {
        let record = Outgoing {
            partition: PROGRESS_PARTITION,
            key: Some(key),
            value: Some(value),
            headers: &[],
            timestamp_ms: 0,
        };
        self.carrier.produce(self.progress_topic, record)
    }
}

/// The sink was used out of order: our own mistake, said instead of panicking.
fn misused(reason: &str) -> SinkError {
    SinkError::Refused(format!(
        "the Kafka sink takes no batch: {reason}; this is a fault of walrelay, please report it"
    ))
}
