//! `walrelay tail`: decoded changes as JSON lines, from a temporary slot.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use clap::Args;
use tokio_util::sync::CancellationToken;

use crate::config::{Environment, Log, LogFormat, TablePattern, TableSet, parse_url};
use crate::pipeline::{PipelineError, tail};
use crate::shutdown::{Wish, Wishes};
use crate::sink::SinkError;
use crate::telemetry;

use super::{Exit, complain};

/// Print decoded changes as JSON lines, from a temporary slot; leaves nothing behind
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  walrelay tail --primary postgres://postgres@localhost/shop --tables 'public.*' --count 10 | jq .\n\n\
    The role needs REPLICATION, to own the tables, and CREATE on the database, for a publication that stands as long as the\n\
    command runs. After a kill -9 it is left (\"walrelay tail …\"; the slot goes with its session): the next tail drops it."
)]
pub(super) struct TailArgs {
    /// The primary, e.g. postgres://user@host:5432/database
    #[arg(long, value_name = "URL", env = "WALRELAY__PRIMARY__URL", hide_env_values = true)]
    primary: String,
    /// Patterns schema.table, where * stands for any characters; again for more [default: all tables]
    #[arg(long, value_name = "PATTERN")]
    tables: Vec<String>,
    /// End after this many changes
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
}

pub(super) fn run(args: &TailArgs) -> Exit {
    if let Err(error) = telemetry::start(&Log { level: "warn".to_owned(), format: LogFormat::Text }) {
        complain(&error);
        return Exit::Internal;
    }
    let environment = Environment::of_process();
    let primary = match parse_url(&args.primary, &environment) {
        Ok(primary) => primary,
        Err(rule) => {
            complain(&format!("--primary: the url {rule}"));
            return Exit::Usage;
        }
    };
    let patterns = if args.tables.is_empty() { vec!["*.*".to_owned()] } else { args.tables.clone() };
    let include: Result<Vec<_>, _> = patterns.iter().map(|text| TablePattern::new(text)).collect();
    let tables = match include {
        Ok(include) => TableSet { include, exclude: Vec::new() },
        Err(error) => {
            complain(&format!("--tables: {error}"));
            return Exit::Usage;
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&error);
            return Exit::Internal;
        }
    };
    let exit = runtime.block_on(async {
        let stop = CancellationToken::new();
        let Ok(mut wishes) = Wishes::listen() else { return Exit::Internal };
        let signals = stop.clone();
        tokio::spawn(async move {
            while wishes.next().await != Wish::Stop {}
            signals.cancel();
        });
        let output = Lines { left: args.count.map(|count| Arc::new(AtomicU64::new(count))) };
        match tail(&primary, &tables, Box::new(output), stop).await {
            Ok(()) => Exit::Done,
            // The reader has seen enough: `--count`, or `| head`.
            Err(PipelineError::Sink(SinkError::Output(error))) if error.kind() == io::ErrorKind::BrokenPipe => {
                Exit::Done
            }
            Err(error) => {
                complain(&error);
                Exit::of(&error)
            }
        }
    });
    // A reader that rests must not keep us.
    runtime.shutdown_background();
    exit
}

/// Standard output, up to a number of lines.
struct Lines {
    left: Option<Arc<AtomicU64>>,
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut stdout = io::stdout().lock();
        let Some(left) = &self.left else { return stdout.write(bytes) };
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            stdout.write_all(line)?;
            if left.fetch_sub(1, Ordering::Relaxed) == 1 {
                stdout.flush()?;
                return Err(io::ErrorKind::BrokenPipe.into());
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stdout().flush()
    }
}
