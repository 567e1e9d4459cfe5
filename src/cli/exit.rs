//! The exit codes, documented in `--help` and the README; scripts and the systemd unit rely on them.

use std::process::ExitCode;

/// How a verb ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Done,
    /// A fault of walrelay or of the machine.
    Internal,
    /// The command line is wrong (clap's own code).
    Usage,
    /// The configuration is wrong; nothing was connected.
    Configuration,
    /// A server or the daemon cannot be reached.
    Unreachable,
    /// Refused for safety; the text says why and what to do. Also: `check` found an error.
    Refused,
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
