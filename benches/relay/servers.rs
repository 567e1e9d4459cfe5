//! How the servers of a benchmark are set up. Starts them, and knows nothing of what is measured on them.

use walrelay::throwaway::Options;

use super::harness::Pair;
use super::plan::setting;

/// Servers that are not in their own way: memory enough, no checkpoint in the middle.
pub fn options() -> Options {
    let memory: String = setting("SHARED_BUFFERS", "512MB".to_owned());
    Options::default()
        .with("shared_buffers", &memory)
        .with("max_wal_size", "64GB")
        .with("checkpoint_timeout", "1h")
        .with("autovacuum", "off")
        .with("max_sync_workers_per_subscription", "4")
        .with("max_logical_replication_workers", "12")
        .with("max_worker_processes", "20")
}

/// A target whose flushes take `WALRELAY_BENCH_FLUSH_MS` longer: every commit that flushes sleeps before it.
pub fn target_options() -> Options {
    let flush_ms: u64 = setting("FLUSH_MS", 0);
    if flush_ms == 0 {
        return options();
    }
    options().with("commit_delay", &(flush_ms * 1000).to_string()).with("commit_siblings", "0")
}

/// Two servers of a benchmark.
pub async fn pair(major: u32) -> Pair {
    Pair::with(major, options(), major, target_options()).await
}
