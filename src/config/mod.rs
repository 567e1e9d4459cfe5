//! Configuration: plain data, read once, validated before anything is connected. Reads the environment; connects nowhere.

mod environment;
mod error;
pub mod kafka;
mod kafka_parts;
mod kafka_patterns;
mod kafka_read;
mod kafka_refused;
#[cfg(test)]
mod kafka_tests;
mod keys;
mod libpq;
mod load;
mod origin;
mod overrides;
mod password;
mod pattern;
mod secret;
mod section;
#[cfg(test)]
mod tests;
mod text_file;
mod url;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

pub use environment::Environment;
pub use error::{ConfigError, KeyError};
pub use kafka::KafkaSink;
pub use load::{DEFAULT_PATHS, load, read};
pub use pattern::{PatternError, TablePattern, TableSet};
pub use secret::Secret;
pub use url::{ChannelBinding, Host, ServerUrl, SslMode, TargetSessionAttributes};

use crate::model::{PipelineName, SlotName};

/// A validated configuration: the file, overridden by the environment, passwords resolved.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Where open transactions beyond the memory limit are spooled; `None`: systemd's STATE_DIRECTORY, else a private temporary folder.
    pub spool_dir: Option<PathBuf>,
    /// How long a stop may drain.
    pub shutdown_timeout: Duration,
    /// Level and format of the log.
    pub log: Log,
    /// The primary.
    pub primary: ServerUrl,
    /// The HTTP listener, if one is wanted.
    pub http: Option<SocketAddr>,
    /// The pipelines, in file order, names unique.
    pub pipelines: Vec<Pipeline>,
}

/// `[log]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// A tracing filter: `info`, `debug`, `walrelay=trace,info` …
    pub level: String,
    /// Text for people or JSON for machines.
    pub format: LogFormat,
}

/// `log.format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One readable line an event.
    Text,
    /// One JSON object an event.
    Json,
}

/// One `[[pipeline]]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Pipeline {
    /// The `application_name` that the primary lists.
    pub name: PipelineName,
    /// Which tables.
    pub tables: TableSet,
    /// Whether the existing rows are copied first.
    pub initial_copy: bool,
    /// Tables or table ranges copied at once.
    pub copy_workers: usize,
    /// What to do with target tables that are not empty before the initial copy.
    pub on_existing_rows: OnExistingRows,
    /// Bytes of rows held in memory before open transactions are spooled.
    pub memory_limit_bytes: u64,
    /// An existing publication to use instead of a managed `walrelay_NAME`.
    pub publication: Option<String>,
    /// Another slot name instead of `walrelay_NAME`.
    pub slot: Option<SlotName>,
    /// Where the transactions go.
    pub sink: Sink,
}

/// `on_existing_rows`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnExistingRows {
    /// Stop before anything is written and name the tables.
    Refuse,
    /// Empty them first.
    Truncate,
    /// Copy into them as they are.
    Keep,
}

/// `[pipeline.sink]`.
#[derive(Clone, Debug, PartialEq)]
#[allow(clippy::large_enum_variant, reason = "one value a pipeline, read once")]
pub enum Sink {
    /// `type = "postgres"`.
    Postgres(PostgresSink),
    /// `type = "kafka"`.
    Kafka(Box<KafkaSink>),
    /// `type = "stdout"`: decoded changes as JSON lines.
    Stdout,
}

impl Sink {
    /// The word of the contract.
    pub fn kind(&self) -> &'static str {
        match self {
            Sink::Postgres(_) => "postgres",
            Sink::Kafka(_) => "kafka",
            Sink::Stdout => "stdout",
        }
    }
}

impl Sink {
    /// Whether pages may be read ahead of the batches.
    pub fn may_prefetch(&self) -> bool {
        matches!(self, Sink::Postgres(sink) if sink.prefetch_connections > 0)
    }

    /// How long changes may gather before they are written while nobody waits for them.
    pub fn batch_delay(&self) -> Duration {
        match self {
            Sink::Postgres(sink) => sink.batch_delay,
            _ => Duration::ZERO,
        }
    }
}

/// `batch_delay` of a Postgres sink where the file says nothing.
pub const BATCH_DELAY: Duration = Duration::from_millis(10);

/// `apply_depth` of a Postgres sink where the file says nothing, and the most it may be.
pub const APPLY_DEPTH: usize = 4;
/// See `APPLY_DEPTH`.
pub const APPLY_DEPTH_LIMIT: usize = 16;

/// Most connections that apply, of one pipeline.
pub const APPLY_CONNECTIONS_LIMIT: usize = 8;

/// Most sessions that read pages ahead, of one pipeline.
pub const PREFETCH_CONNECTIONS_LIMIT: usize = 8;

/// `prefetch_connections` of a Postgres sink where the file says nothing: none where they would take a processor from what applies.
pub fn default_prefetch_connections() -> usize {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    if processors <= 2 { 0 } else { 4 }
}

/// A Postgres standby.
#[derive(Clone, Debug, PartialEq)]
pub struct PostgresSink {
    /// The standby.
    pub url: ServerUrl,
    /// Whether the replicated tables refuse every other writer.
    pub read_only: bool,
    /// How long changes gather while the primary waits for nothing of this standby.
    pub batch_delay: Duration,
    /// Most batches that are under way at once.
    pub apply_depth: usize,
    /// Connections that apply batches beside each other.
    pub apply_connections: usize,
    /// Sessions that read pages ahead of the batches while the standby reads blocks for them.
    pub prefetch_connections: usize,
    /// Whether a standby with `fsync = off` will do.
    pub allow_fsync_off: bool,
    /// Whether values travel in binary form where both servers agree on all types.
    pub may_be_binary: bool,
}

/// Parses one libpq url outside a file (`walrelay tail --primary`); the password comes from the url, PGPASSWORD or the password
/// file. The error is the rule that it breaks.
pub fn parse_url(text: &str, environment: &Environment) -> Result<ServerUrl, String> {
    let mut url = libpq::parse(text, environment)?;
    password::resolve(&mut url, None, "primary.password", environment)?;
    Ok(url)
}

impl Pipeline {
    /// The slot this pipeline streams from.
    pub fn slot_name(&self) -> SlotName {
        match &self.slot {
            Some(slot) => slot.clone(),
            None => SlotName::owned_by(&self.name),
        }
    }

    /// The publication this pipeline reads.
    pub fn publication_name(&self) -> String {
        self.publication.clone().unwrap_or_else(|| self.name.owned_name())
    }
}

/// What a topic's name breaks, `None` if it is one.
fn topic_rule(name: &str) -> Option<&'static str> {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let is_name = !name.is_empty() && name.len() <= 249 && name != "." && name != ".." && name.bytes().all(is_allowed);
    (!is_name).then_some("must be 1 to 249 of the characters a-z, A-Z, 0-9, '.', '_' and '-', as Kafka names topics")
}
