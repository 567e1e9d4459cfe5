//! When the events of a topic appear: asks the broker for the ends of its one partition, which costs next to nothing, beside a run.
//! Reads no event.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};

use crate::measure::whole_cpu_s;

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// One answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// What was seen.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// The first event was in the log, committed or not, and what the watched process had used by then.
    pub first: Option<(Instant, f64)>,
    /// Each time the committed end moved: when, and where to.
    pub ends: Vec<(Instant, i64)>,
}

impl Seen {
    /// When the last event became visible to a `read_committed` consumer, and the offset behind it.
    pub fn last(&self) -> Option<(Instant, i64)> {
        self.ends.last().copied()
    }
}

/// A thread that looks.
pub struct Watch {
    thread: JoinHandle<Seen>,
    process_id: Arc<AtomicU32>,
    is_over: Arc<AtomicBool>,
}

/// The end of the partition for a reader of that isolation.
pub fn consumer(address: &str, isolation: &str) -> BaseConsumer {
    let mut settings = ClientConfig::new();
    settings.set("bootstrap.servers", address).set("group.id", "bench").set("enable.auto.commit", "false");
    settings.set("isolation.level", isolation).create().unwrap()
}

/// Where it is now; the topic is there.
pub fn end_of(consumer: &BaseConsumer, topic: &str) -> i64 {
    consumer.fetch_watermarks(topic, 0, ANSWER_LIMIT).unwrap().1
}

impl Watch {
    /// Begins to look at a topic that is there.
    pub fn start(address: &str, topic: &str) -> Self {
        let (process_id, is_over) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicBool::new(false)));
        let everything = consumer(address, "read_uncommitted");
        let committed = consumer(address, "read_committed");
        let (topic, watched, told) = (topic.to_owned(), Arc::clone(&process_id), Arc::clone(&is_over));
        // Both have met the broker before the clock runs.
        assert_eq!((end_of(&everything, &topic), end_of(&committed, &topic)), (0, 0), "{topic} is not empty");
        let thread = std::thread::spawn(move || {
            let mut seen = Seen::default();
            while !told.load(Ordering::Acquire) {
                if seen.first.is_none() && end_of(&everything, &topic) > 0 {
                    seen.first = Some((Instant::now(), whole_cpu_s(watched.load(Ordering::Acquire))));
                }
                let end = if seen.first.is_some() { end_of(&committed, &topic) } else { 0 };
                if end > seen.ends.last().map_or(0, |(_, end)| *end) {
                    seen.ends.push((Instant::now(), end));
                }
                std::thread::sleep(LOOK_EVERY);
            }
            seen
        });
        Self { thread, process_id, is_over }
    }

    /// Whose CPU is noted at the first event.
    pub fn of_process(&self, process_id: u32) {
        self.process_id.store(process_id, Ordering::Release);
    }

    /// Ends it.
    pub fn stop(self) -> Seen {
        // Once more past the end that whoever stops has seen.
        std::thread::sleep(2 * LOOK_EVERY);
        self.is_over.store(true, Ordering::Release);
        self.thread.join().unwrap()
    }
}
