//! `walrelay run`: the daemon.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::config::Environment;
use crate::daemon::{self, DaemonError};
use crate::telemetry;

use super::{Exit, complain, configuration};

/// What still runs when every pipeline has ended is given so long.
const END_LIMIT: Duration = Duration::from_secs(1);

/// Run the daemon until SIGTERM or SIGINT; SIGHUP reads the configuration again
#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// Configuration file [default: ./walrelay.toml, else /etc/walrelay/walrelay.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

pub(super) fn run(args: &RunArgs) -> Exit {
    let environment = Environment::of_process();
    let config = match configuration(args.config.as_deref(), &environment) {
        Ok(config) => config,
        Err(exit) => return exit,
    };
    let log_level = match telemetry::start(&config.log) {
        Ok(log_level) => log_level,
        Err(error) => {
            complain(&error);
            return Exit::Configuration;
        }
    };
    let workers = worker_threads();
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&format!("the runtime cannot be started: {error}"));
            return Exit::Internal;
        }
    };
    let ended = runtime.block_on(daemon::run(config, args.config.as_deref(), environment, log_level));
    // What is still written to a pipe that nobody reads is not waited for.
    runtime.shutdown_timeout(END_LIMIT);
    match ended {
        Ok(()) => Exit::Done,
        Err(error) => {
            complain(&error);
            match error {
                // Whoever has the address may be about to go, and its interface to come up: the service is started again.
                DaemonError::Listen { source, .. }
                    if matches!(source.kind(), ErrorKind::AddrInUse | ErrorKind::AddrNotAvailable) =>
                {
                    Exit::Unreachable
                }
                DaemonError::Listen { .. } => Exit::Configuration,
                DaemonError::System(_) => Exit::Internal,
            }
        }
    }
}

/// Half of the processors: a worker that has something to do wakes another to look for more, and on a small machine that one takes
/// the processor from the server that has just been given its work. A synchronous commit on two processors loses by it.
fn worker_threads() -> usize {
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    processors.div_ceil(2)
}
