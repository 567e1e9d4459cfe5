//! A counter that moves whenever work is done, however small: the watchdog looks at it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Shared by all tasks of one pipeline.
#[derive(Clone, Debug, Default)]
pub struct Heartbeat(Arc<AtomicU64>);

impl Heartbeat {
    /// Something was done.
    pub fn beat(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// How often so far.
    pub fn beats(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
