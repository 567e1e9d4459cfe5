//! A librdkafka consumer (`read_committed`, its defaults otherwise) that notes when each id arrives. Knows nothing of who sent it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rdkafka::consumer::BaseConsumer;
use rdkafka::message::Message as _;

use super::topic::{from_beginning, id_of};
use crate::measure::percentile;

/// How long the last of them may take.
const ARRIVAL_LIMIT: Duration = Duration::from_secs(60);

/// See the module.
pub struct Receipts {
    arrived: Arc<Mutex<HashMap<u64, Instant>>>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Receipts {
    /// Begins to consume a topic that is there.
    pub fn start(address: &str, topic: &str) -> Self {
        let (arrived, is_over) = (Arc::new(Mutex::new(HashMap::new())), Arc::new(AtomicBool::new(false)));
        let consumer = from_beginning(address, topic);
        let (noted, told) = (Arc::clone(&arrived), Arc::clone(&is_over));
        let thread = std::thread::spawn(move || consume(&consumer, &noted, &told));
        Self { arrived, is_over, thread: Some(thread) }
    }

    fn when(&self, id: u64) -> Option<Instant> {
        self.arrived.lock().unwrap_or_else(PoisonError::into_inner).get(&id).copied()
    }

    /// Waits for one of them.
    pub async fn wait(&self, id: u64, limit: Duration) {
        let began = Instant::now();
        while self.when(id).is_none() {
            assert!(began.elapsed() < limit, "the event {id} has not arrived within {limit:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// The ages of events at their arrival, ms, once all are there: percentiles 50 and 99.
    pub async fn ages(&self, sent: &[(u64, Instant)]) -> (f64, f64) {
        let mut ages = Vec::with_capacity(sent.len());
        for (id, moment) in sent {
            self.wait(*id, ARRIVAL_LIMIT).await;
            let arrived = self.when(*id).unwrap_or(*moment);
            ages.push(arrived.saturating_duration_since(*moment).as_secs_f64() * 1000.0);
        }
        (percentile(ages.iter().copied(), 50), percentile(ages, 99))
    }
}

fn consume(consumer: &BaseConsumer, noted: &Mutex<HashMap<u64, Instant>>, told: &AtomicBool) {
    while !told.load(Ordering::Acquire) {
        // The crate's poll returns with the first message.
        let Some(message) = consumer.poll(Duration::from_millis(100)) else { continue };
        let (message, now) = (message.unwrap(), Instant::now());
        let id = id_of(message.key().unwrap_or_default());
        noted.lock().unwrap_or_else(PoisonError::into_inner).entry(id).or_insert(now);
    }
}

impl Drop for Receipts {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
