//! One pipeline's memory budget: a counter with a limit. Reservations give back on drop; nothing here blocks or allocates rows.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

/// Bytes of rows that a pipeline holds in memory, against `memory_limit`.
///
/// It does not refuse: a transaction must go somewhere. Who holds open transactions spools them while `is_over`, and who
/// takes new bytes waits for `released` while transactions that only the sink can free are over the limit.
#[derive(Debug)]
pub struct MemoryBudget {
    limit_bytes: u64,
    used_bytes: AtomicU64,
    released: Notify,
}

impl MemoryBudget {
    /// A budget of `limit_bytes`.
    pub fn new(limit_bytes: u64) -> Arc<Self> {
        Arc::new(Self { limit_bytes, used_bytes: AtomicU64::new(0), released: Notify::new() })
    }

    /// The limit, bytes.
    pub fn limit_bytes(&self) -> u64 {
        self.limit_bytes
    }

    /// Held now, bytes.
    pub fn used_bytes(&self) -> u64 {
        self.used_bytes.load(Ordering::Acquire)
    }

    /// Whether more is held than the limit allows.
    pub fn is_over(&self) -> bool {
        self.used_bytes() > self.limit_bytes
    }

    /// Completes once a reservation was dropped after this call (or just before it, once).
    pub async fn released(&self) {
        self.released.notified().await;
    }

    /// An empty reservation to grow.
    pub fn reservation(self: &Arc<Self>) -> Reservation {
        Reservation { budget: Arc::clone(self), bytes: 0 }
    }
}

/// A part of a budget; given back when dropped.
#[derive(Debug)]
pub struct Reservation {
    budget: Arc<MemoryBudget>,
    bytes: u64,
}

impl Reservation {
    /// Takes `bytes` more.
    pub fn grow(&mut self, bytes: u64) {
        self.bytes += bytes;
        self.budget.used_bytes.fetch_add(bytes, Ordering::AcqRel);
    }

    /// Gives `bytes` back.
    pub fn shrink(&mut self, bytes: u64) {
        let given = bytes.min(self.bytes);
        self.bytes -= given;
        self.budget.used_bytes.fetch_sub(given, Ordering::AcqRel);
        self.budget.released.notify_one();
    }

    /// Holds exactly `bytes` from now on.
    pub fn resize(&mut self, bytes: u64) {
        if bytes > self.bytes {
            self.grow(bytes - self.bytes);
        } else if bytes < self.bytes {
            self.shrink(self.bytes - bytes);
        }
    }

    /// Held by this reservation, bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.shrink(self.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_reservation_gives_its_bytes_back() {
        let budget = MemoryBudget::new(10);
        let mut reservation = budget.reservation();
        reservation.grow(11);
        assert!(budget.is_over());
        reservation.shrink(1);
        assert!(!budget.is_over());
        reservation.resize(15);
        assert_eq!((budget.used_bytes(), reservation.bytes()), (15, 15));
        reservation.resize(3);
        assert_eq!((budget.used_bytes(), reservation.bytes()), (3, 3));
        drop(reservation);
        assert_eq!(budget.used_bytes(), 0);
    }
}
