//! A producer on the client's own interface: records go out without a copy of ours, and transactions without the waits of the
//! crate's wrappers, which look only every 100 ms. Every call that may block gives up when it is told to stop.

use std::collections::HashMap;
use std::ffi::CString;
use std::os::raw::c_void;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::bindings as native;
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::error::RDKafkaErrorCode as Code;
use rdkafka::producer::{Producer as _, ThreadedProducer};

use super::client::Events;
use super::fault::Fault;
use crate::sink::kafka::encode::Header;

/// A blocking call looks so often whether it is to stop.
const SLICE: Duration = Duration::from_millis(250);
/// Pause before a call is made again.
const RETRY_PAUSE: Duration = Duration::from_millis(5);
/// A call that makes no progress for so long is left, so that the caller can see why.
pub(super) const STILL_LIMIT: Duration = Duration::from_secs(5);
/// Pause while the client's queue is full: a broker takes some hundred records in it.
const QUEUE_PAUSE: Duration = Duration::from_millis(1);
/// While it stays full, so often what is no full batch goes out too: a little of each of many partitions.
const FULL_PAUSE: Duration = Duration::from_millis(10);
/// So few records are left to the flush itself: some two batches.
const FLUSHED_RECORDS: i32 = 3000;
/// Pause between two looks at how many there are.
const DRAIN_PAUSE: Duration = Duration::from_millis(4);
/// Where they do not become fewer for so long, something is wrong that the flush will tell.
const DRAIN_STILL_LIMIT: Duration = Duration::from_millis(100);

/// Told to stop by whoever owns the thread.
#[derive(Clone, Debug, Default)]
pub(super) struct Halt(Arc<AtomicBool>);

impl Halt {
    pub(super) fn halt(&self) {
        self.0.store(true, Ordering::Release);
    }

    pub(super) fn is_halted(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// One record, as bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outgoing<'a> {
    pub(super) partition: i32,
    pub(super) key: Option<&'a [u8]>,
    pub(super) value: Option<&'a [u8]>,
    pub(super) headers: &'a [Header<'a>],
    /// CreateTime, milliseconds since 1970; 0: now.
    pub(super) timestamp_ms: i64,
}

/// A handle of a topic, good as long as its producer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TopicHandle(usize);

/// The handles, destroyed before their client.
struct Topics {
    handles: Vec<NonNull<native::rd_kafka_topic_t>>,
    by_name: HashMap<String, TopicHandle>,
}

// SAFETY: librdkafka's handles may be used from any thread.
unsafe impl Send for Topics {}

impl Drop for Topics {
    fn drop(&mut self) {
        for handle in &self.handles {
            // SAFETY: made by rd_kafka_topic_new, destroyed once, before the client (the order of fields below).
            unsafe { native::rd_kafka_topic_destroy(handle.as_ptr()) };
        }
    }
}

/// A producer. A polling thread of the crate serves its events.
pub(super) struct Producer {
    topics: Topics,
    client: ThreadedProducer<Events>,
    events: Events,
    halt: Halt,
}

impl Producer {
    pub(super) fn new(settings: &ClientConfig, events: Events, halt: Halt) -> Result<Self, Fault> {
        let client = ThreadedProducer::from_config_and_context(settings, events.clone())?;
        Ok(Self { topics: Topics { handles: Vec::new(), by_name: HashMap::new() }, client, events, halt })
    }

    fn native(&self) -> *mut native::rd_kafka_t {
        self.client.client().native_ptr()
    }

    pub(super) fn is_halted(&self) -> bool {
        self.halt.is_halted()
    }

    /// Told to stop with its thread.
    pub(super) fn halt(&self) -> &Halt {
        &self.halt
    }

    pub(super) fn events(&self) -> &Events {
        &self.events
    }

    /// The topic's handle, made at first use.
    pub(super) fn topic(&mut self, name: &str) -> Result<TopicHandle, Fault> {
        if let Some(handle) = self.topics.by_name.get(name) {
            return Ok(*handle);
        }
        let text = CString::new(name).map_err(|_| Fault::from(Code::InvalidTopic))?;
        // SAFETY: the client is alive, the name is a C string, and no configuration means the client's own.
        let handle = unsafe { native::rd_kafka_topic_new(self.native(), text.as_ptr(), ptr::null_mut()) };
        let handle = NonNull::new(handle).ok_or_else(|| Fault::from(Code::InvalidTopic))?;
        self.topics.handles.push(handle);
        let handle = TopicHandle(self.topics.handles.len() - 1);
        self.topics.by_name.insert(name.to_owned(), handle);
        Ok(handle)
    }

    /// Hands a record over; waits while the queue is full, as long as the deadline allows. `QueueFull`: it stayed full.
    pub(super) fn produce(
        &self,
        topic: TopicHandle,
        record: Outgoing<'_>,
        deadline: Option<Instant>,
    ) -> Result<(), Fault> {
        let (mut full_since, mut pushed) = (None, None);
        loop {
            match self.produce_now(topic, record) {
                Code::NoError => return Ok(()),
                Code::QueueFull => {
                    if self.halt.is_halted() {
                        return Err(Fault::from(Code::PurgeQueue));
                    }
                    if let Some((_, fault)) = self.events.failed_delivery() {
                        return Err(fault);
                    }
                    if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                        return Err(Fault::from(Code::MessageTimedOut));
                    }
                    if full_since.get_or_insert_with(Instant::now).elapsed() > STILL_LIMIT {
                        return Err(Fault::from(Code::QueueFull));
                    }
                    std::thread::sleep(QUEUE_PAUSE);
                    if pushed.get_or_insert_with(Instant::now).elapsed() > FULL_PAUSE {
                        self.send_what_waits();
                        pushed = None;
                    }
                }
                code => return Err(Fault::from(code)),
            }
        }
    }

    /// Waits until little is left to send, before a flush. A client that flushes does nothing but ask the time while a batch of the
    /// partition is on its way; so it is told to for a moment now and then, and full batches go by themselves.
    fn drain(&self, deadline: Instant) {
        let (mut left, mut fell) = (self.waiting(), Instant::now());
        let may_wait = |fell: Instant| fell.elapsed() < DRAIN_STILL_LIMIT && Instant::now() < deadline;
        while left > FLUSHED_RECORDS && may_wait(fell) && !self.halt.is_halted() {
            self.send_what_waits();
            std::thread::sleep(DRAIN_PAUSE);
            let now = self.waiting();
            if now < left {
                fell = Instant::now();
            }
            left = now;
        }
    }

    /// Records that are not delivered yet, and events that nobody took.
    pub(super) fn waiting(&self) -> i32 {
        // SAFETY: the client is alive.
        unsafe { native::rd_kafka_outq_len(self.native()) }
    }

    /// Has the client send batches that are not full, and waits for a moment.
    fn send_what_waits(&self) {
        // SAFETY: the client is alive. That more is left after so short a time is expected.
        unsafe { native::rd_kafka_flush(self.native(), QUEUE_PAUSE.as_millis() as i32) };
    }

    fn produce_now(&self, topic: TopicHandle, record: Outgoing<'_>) -> Code {
        use native::rd_kafka_vtype_t as kind;
        let Some(handle) = self.topics.handles.get(topic.0) else { return Code::UnknownTopic };
        let bytes = |bytes: Option<&[u8]>| {
            bytes.map_or((ptr::null(), 0), |bytes| (bytes.as_ptr().cast::<c_void>(), bytes.len()))
        };
        let (key, key_length) = bytes(record.key);
        let (value, value_length) = bytes(record.value);
        let headers = headers_of(record.headers);
        // SAFETY: the arguments follow their tags as rd_kafka_producev wants them; the bytes are copied before it returns, and
        // the headers are its own once it succeeds.
        unsafe {
            let code = native::rd_kafka_producev(
                self.native(),
                kind::RD_KAFKA_VTYPE_RKT,
                handle.as_ptr(),
                kind::RD_KAFKA_VTYPE_PARTITION,
                record.partition,
                kind::RD_KAFKA_VTYPE_MSGFLAGS,
                native::RD_KAFKA_MSG_F_COPY,
                kind::RD_KAFKA_VTYPE_KEY,
                key,
                key_length,
                kind::RD_KAFKA_VTYPE_VALUE,
                value,
                value_length,
                kind::RD_KAFKA_VTYPE_TIMESTAMP,
                record.timestamp_ms,
                kind::RD_KAFKA_VTYPE_HEADERS,
                headers,
                kind::RD_KAFKA_VTYPE_END,
            );
            let code = Code::from(code);
            if code != Code::NoError && !headers.is_null() {
                native::rd_kafka_headers_destroy(headers);
            }
            code
        }
    }

    /// Settles what an earlier producer of the same transactional id left in doubt, and fences it off.
    pub(super) fn init_transactions(&self, limit: Duration) -> Result<(), Fault> {
        // SAFETY: the client is alive; the error is taken at once.
        self.in_slices(limit, |millis| unsafe {
            Fault::taken(native::rd_kafka_init_transactions(self.native(), millis))
        })
    }

    pub(super) fn begin(&self) -> Result<(), Fault> {
        // SAFETY: as above.
        unsafe { Fault::taken(native::rd_kafka_begin_transaction(self.native())) }
    }

    /// Commits; on return the outcome is irrevocable.
    pub(super) fn commit(&self, limit: Duration) -> Result<(), Fault> {
        let deadline = Instant::now() + limit;
        self.drain(deadline);
        // SAFETY: as above.
        self.in_slices(deadline.saturating_duration_since(Instant::now()), |millis| unsafe {
            Fault::taken(native::rd_kafka_commit_transaction(self.native(), millis))
        })
    }

    pub(super) fn abort(&self, limit: Duration) -> Result<(), Fault> {
        // SAFETY: as above.
        self.in_slices(limit, |millis| unsafe {
            Fault::taken(native::rd_kafka_abort_transaction(self.native(), millis))
        })
    }

    /// Waits until everything handed over was acknowledged; an error if anything was not. `OperationTimedOut`: not yet.
    pub(super) fn flush(&self, limit: Duration) -> Result<(), Fault> {
        let deadline = Instant::now() + limit;
        self.drain(deadline);
        loop {
            // SAFETY: the client is alive.
            let code = Code::from(unsafe { native::rd_kafka_flush(self.native(), SLICE.as_millis() as i32) });
            if let Some((_, fault)) = self.events.failed_delivery() {
                return Err(fault);
            }
            match code {
                Code::NoError => return Ok(()),
                Code::OperationTimedOut if !self.halt.is_halted() && Instant::now() < deadline => {}
                code => return Err(Fault::from(code)),
            }
        }
    }

    fn in_slices(&self, limit: Duration, call: impl Fn(i32) -> Result<(), Fault>) -> Result<(), Fault> {
        let deadline = Instant::now() + limit;
        loop {
            let result = call(SLICE.as_millis() as i32);
            match &result {
                Err(fault) if fault.is_retriable() && !self.halt.is_halted() && Instant::now() < deadline => {
                    std::thread::sleep(RETRY_PAUSE);
                }
                _ => return result,
            }
        }
    }
}

fn headers_of(headers: &[Header<'_>]) -> *mut native::rd_kafka_headers_t {
    if headers.is_empty() {
        return ptr::null_mut();
    }
    // SAFETY: names and values are copied, with their lengths given.
    unsafe {
        let list = native::rd_kafka_headers_new(headers.len());
        for Header { name, value } in headers {
            native::rd_kafka_header_add(
                list,
                name.as_ptr().cast(),
                name.len() as isize,
                value.as_ptr().cast(),
                value.len() as isize,
            );
        }
        list
    }
}
