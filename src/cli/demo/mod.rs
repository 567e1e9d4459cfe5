//! `walrelay demo`: the story on two throw-away servers. Touches nothing that it did not start, and leaves nothing behind.

mod screen;
mod story;

use std::path::PathBuf;

use clap::Args;

use crate::config::Environment;
use crate::shutdown::{Wish, Wishes};
use crate::throwaway::{ThrowawayError, find_any};

use super::{Exit, complain};

/// Tell the story on two throw-away servers: copy, stream, synchronous commit, crash, nothing lost
#[derive(Debug, Args)]
pub(super) struct DemoArgs {
    /// Leave servers and relay up at the end, until Ctrl-C
    #[arg(long)]
    keep: bool,
    /// Only say which PostgreSQL would be used
    #[arg(long, hide = true)]
    probe: bool,
}

pub(super) fn run(args: &DemoArgs) -> Exit {
    let project = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("."));
    let programs = match find_any(&Environment::of_process(), &project) {
        Ok(programs) => programs,
        Err(error) => {
            complain(&error);
            return Exit::Unreachable;
        }
    };
    if args.probe {
        complain(&programs.path("postgres").display());
        return Exit::Done;
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&error);
            return Exit::Internal;
        }
    };
    let told = runtime.block_on(async {
        let mut wishes = Wishes::listen()?;
        tokio::select! {
            told = story::tell(&programs, args.keep) => told,
            // Dropping the story ends its servers and its relay.
            () = async { while wishes.next().await != Wish::Stop {} } => Ok(()),
        }
    });
    match told {
        Ok(()) => Exit::Done,
        Err(error) => {
            complain(&format!("the demo stopped: {error}"));
            Exit::Internal
        }
    }
}

/// Why the story stopped.
#[derive(Debug, thiserror::Error)]
enum DemoError {
    #[error(transparent)]
    Server(#[from] ThrowawayError),
    #[error("{0}")]
    Wire(#[from] crate::wire::WireError),
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("{0}")]
    Unexpected(String),
}

impl From<tokio_postgres::Error> for DemoError {
    fn from(error: tokio_postgres::Error) -> Self {
        DemoError::Wire(error.into())
    }
}
