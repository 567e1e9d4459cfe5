//! The exit codes, documented in `--help` and the README; scripts and the systemd unit rely on them.

use std::error::Error;
use std::iter::successors;
use std::process::ExitCode;

use crate::model::Retry;
use crate::pipeline::PipelineError;
use crate::wire::WireError;

/// How a verb ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Done,
    /// A fault of walrelay or of the machine.
    Internal,
    /// The command line is wrong (clap's own code).
    Usage,
    /// The configuration is wrong: as a text, then nothing was connected; or a server does not take role, password or database, or
    /// the system does not let us listen on the address (a port that the account may not have).
    Configuration,
    /// A server or the daemon cannot be reached, or the address to listen on is taken, or is not this machine's (yet).
    Unreachable,
    /// Refused for safety; the text says why and what to do. Also: `check` found an error.
    Refused,
}

impl Exit {
    /// For what ended a verb.
    pub(super) fn of(error: &PipelineError) -> Self {
        let causes = successors(Some(error as &(dyn Error + 'static)), |error| (*error).source());
        let is_of_url = causes.filter_map(|cause| cause.downcast_ref::<WireError>()).any(WireError::is_of_url);
        match error.retry() {
            Retry::Later => Exit::Unreachable,
            Retry::Never if is_of_url => Exit::Configuration,
            Retry::Never => Exit::Refused,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(match exit {
            Exit::Done => 0,
            Exit::Internal => 1,
            Exit::Usage => 2,
            Exit::Configuration => 3,
            Exit::Unreachable => 4,
            Exit::Refused => 5,
        })
    }
}
