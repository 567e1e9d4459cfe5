//! The log: tracing to standard error, as text for people or JSON for machines. Row values and secrets never come here; that is
//! the caller's duty, kept by types whose Debug shows none.

use std::io;

use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::fmt;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

use crate::config::{Log, LogFormat};

/// The log cannot be started or changed.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The level is no filter.
    #[error(
        "log.level = \"{level}\" is not a log filter: {reason}; use error, warn, info, debug or trace, or target=level pairs"
    )]
    Level {
        /// As given.
        level: String,
        /// The parser's words.
        reason: String,
    },
    /// Something else already logs in this process.
    #[error("the log cannot be started: {0}")]
    Started(#[from] TryInitError),
    /// The handle outlived the log.
    #[error("the log level cannot be changed: {0}")]
    Reload(#[from] reload::Error),
}

/// Changes the level of a running log.
#[derive(Clone, Debug)]
pub struct LogLevel {
    handle: reload::Handle<EnvFilter, tracing_subscriber::Registry>,
}

/// Starts the process's log.
pub fn start(log: &Log) -> Result<LogLevel, TelemetryError> {
    let (filter, handle) = reload::Layer::new(filter(&log.level)?);
    let registry = tracing_subscriber::registry().with(filter);
    match log.format {
        LogFormat::Text => {
            let is_terminal = io::IsTerminal::is_terminal(&io::stderr());
            registry.with(fmt::layer().with_writer(io::stderr).with_ansi(is_terminal).with_target(false)).try_init()?;
        }
        LogFormat::Json => {
            let layer = fmt::layer().json().flatten_event(true).with_current_span(true).with_span_list(false);
            registry.with(layer.with_writer(io::stderr)).try_init()?;
        }
    }
    std::panic::set_hook(Box::new(tell_panic));
    Ok(LogLevel { handle })
}

/// Where it was, and what the code says of itself; never a text that was put together, which may hold a row's value.
fn tell_panic(panic: &std::panic::PanicHookInfo<'_>) {
    let place = panic.location().map(ToString::to_string).unwrap_or_default();
    let what = panic.payload().downcast_ref::<&'static str>().copied().unwrap_or("(a text that is not shown)");
    tracing::error!(place, what, "a fault of walrelay itself: please report it");
}

fn filter(level: &str) -> Result<EnvFilter, TelemetryError> {
    EnvFilter::try_new(level)
        .map_err(|error| TelemetryError::Level { level: level.to_owned(), reason: error.to_string() })
}

impl LogLevel {
    /// Another level from now on.
    pub fn set(&self, level: &str) -> Result<(), TelemetryError> {
        Ok(self.handle.reload(filter(level)?)?)
    }
}
