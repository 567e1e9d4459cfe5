//! What a pipeline tells about itself: plain data, published by the pipeline, read by status and metrics. No one acts on it.

use super::{FeedReport, Lsn, PipelineName, PrefetchReport, SlotName, State};

/// One pipeline as `/status` shows it. LSNs and `sync_state` are the primary's own words (`pg_stat_replication`) where it
/// lists us, else our own numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct PipelineReport {
    /// The pipeline.
    pub name: PipelineName,
    /// What it is doing.
    pub state: State,
    /// The sink's type: `postgres`, `stdout`.
    pub sink: &'static str,
    /// The slot it streams from.
    pub slot: SlotName,
    /// `async`, `potential`, `sync` or `quorum`; `None` while the primary does not list us.
    pub sync_state: Option<String>,
    /// End of the last WAL record the primary decoded for us.
    pub sent_lsn: Option<Lsn>,
    /// Received whole.
    pub write_lsn: Option<Lsn>,
    /// Durable in the sink.
    pub flush_lsn: Option<Lsn>,
    /// Durable and visible in the sink.
    pub replay_lsn: Option<Lsn>,
    /// Bytes of WAL between the primary's current position and `replay_lsn`.
    pub lag_bytes: Option<u64>,
    /// Age of the oldest transaction not yet applied, or of the primary's oldest position that has not come yet, seconds; 0 when there is none.
    pub lag_seconds: Option<f64>,
    /// The primary's `write_lag`, `flush_lag`, `replay_lag`, seconds.
    pub server_lags_seconds: [Option<f64>; 3],
    /// WAL the slot keeps the primary from removing.
    pub retained_wal_bytes: Option<u64>,
    /// What may still be written before the slot is in danger (`safe_wal_size`); `None` without `max_slot_wal_keep_size`.
    pub safe_wal_size_bytes: Option<i64>,
    /// `reserved`, `extended`, `unreserved`, `lost`.
    pub wal_status: Option<String>,
    /// Transactions applied since the pipeline started.
    pub transactions: u64,
    /// Row changes applied since the pipeline started.
    pub rows: u64,
    /// Table, reason and number of batches whose changes of the table had to be written row by row.
    pub apply_fallbacks: Vec<(String, &'static str, u64)>,
    /// Table and number of its rows that were written one by one in batches that were written as sets.
    pub apply_rows_in_order: Vec<(String, u64)>,
    /// What went to Kafka; `None` for a sink of another type.
    pub feed: Option<FeedReport>,
    /// What is read ahead on the standby; `None` where that is not configured.
    pub prefetch: Option<PrefetchReport>,
    /// Applied over the last seconds.
    pub transactions_per_second: f64,
    /// Applied over the last seconds.
    pub rows_per_second: f64,
    /// Bytes of rows held in memory.
    pub memory_bytes: u64,
    /// Bytes of open transactions in the spool folder.
    pub spool_bytes: u64,
    /// Faults since the pipeline started, each of which ended the stream or an attempt to begin it.
    pub interruptions: u64,
    /// The initial copy.
    pub copy: CopyReport,
    /// What is being waited for, in state `waiting` or `starting`.
    pub waiting_for: Option<String>,
    /// The last error, whole, until the pipeline streams again.
    pub last_error: Option<String>,
    /// Changes whenever a position, the copy or the state moved: the watchdog looks at it.
    pub heartbeat: u64,
    /// Whether work is there that nothing outside holds up: then `heartbeat` must move.
    pub is_busy: bool,
}

/// The initial copy in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CopyReport {
    /// Tables to copy.
    pub tables_total: u64,
    /// Tables copied whole.
    pub tables_done: u64,
    /// Rows copied.
    pub rows: u64,
    /// Bytes of COPY data written.
    pub bytes: u64,
}

impl PipelineReport {
    /// A pipeline that has not begun.
    pub fn new(name: PipelineName, sink: &'static str, slot: SlotName) -> Self {
        Self {
            name,
            state: State::Starting,
            sink,
            slot,
            sync_state: None,
            sent_lsn: None,
            write_lsn: None,
            flush_lsn: None,
            replay_lsn: None,
            lag_bytes: None,
            lag_seconds: None,
            server_lags_seconds: [None; 3],
            retained_wal_bytes: None,
            safe_wal_size_bytes: None,
            wal_status: None,
            transactions: 0,
            rows: 0,
            apply_fallbacks: Vec::new(),
            apply_rows_in_order: Vec::new(),
            feed: None,
            prefetch: None,
            transactions_per_second: 0.0,
            rows_per_second: 0.0,
            memory_bytes: 0,
            spool_bytes: 0,
            interruptions: 0,
            copy: CopyReport::default(),
            waiting_for: None,
            last_error: None,
            heartbeat: 0,
            is_busy: false,
        }
    }
}
