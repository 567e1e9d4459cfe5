//! The keys of each table of the file, but those of a Kafka sink (`kafka_read`): what may stand there, and what a variable of the
//! environment may override. Reads nothing.

/// Of the file itself.
pub(super) const TOP: &[&str] = &["spool_dir", "shutdown_timeout", "log", "primary", "http", "pipeline"];
/// Of `[primary]`.
pub(super) const PRIMARY: &[&str] = &["url", "password_file"];
/// Of `[http]`.
pub(super) const HTTP: &[&str] = &["listen"];
/// Of `[log]`.
pub(super) const LOG: &[&str] = &["level", "format"];
/// Of a `[[pipeline]]`.
pub(super) const PIPELINE: &[&str] = &[
    "name",
    "tables",
    "exclude",
    "initial_copy",
    "copy_workers",
    "on_existing_rows",
    "memory_limit",
    "publication",
    "slot",
    "sink",
];
/// Of a sink of type postgres.
pub(super) const POSTGRES_SINK: &[&str] = &[
    "type",
    "url",
    "password_file",
    "read_only",
    "batch_delay",
    "apply_depth",
    "apply_connections",
    "prefetch_connections",
    "allow_fsync_off",
    "binary",
];
/// Of a sink of type stdout.
pub(super) const STDOUT_SINK: &[&str] = &["type"];
/// Of `[pipeline.sink.outbox]`.
pub(super) const OUTBOX: &[&str] = &["table", "route", "key", "payload", "headers"];
/// Of `[pipeline.sink.create_topics]`.
pub(super) const CREATE_TOPICS: &[&str] = &["partitions", "replication_factor", "config"];
