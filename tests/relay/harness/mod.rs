//! What tests with real servers share: pairs of servers, a relay process, SQL in one line, waiting for a condition.

pub mod certificates;
pub mod distance;
mod pair;
mod relay;
mod sql;

pub use pair::{Pair, major_versions, oldest_and_newest, server, start_server};
pub use relay::Relay;
pub use sql::{Rows, client, rows, try_run, value, values};

use std::future::Future;
use std::time::{Duration, Instant};

/// How long a condition may take; the machine may be slow.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A number that the environment may set.
pub fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Waits until `condition` gives a value, looking every 20 ms: the one place where tests sleep.
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut condition: impl FnMut() -> F) -> T {
    let began = Instant::now();
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(began.elapsed() < PATIENCE, "waited {PATIENCE:?} in vain: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
