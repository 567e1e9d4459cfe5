//! `walrelay demo`: the story on throw-away servers, of a standby or of a Kafka feed. Touches nothing that it did not start, and leaves nothing behind.

#[cfg(feature = "kafka")]
mod kafka;
mod screen;
mod stage;
mod story;
#[cfg(feature = "kafka")]
mod topics;

use std::path::PathBuf;

use clap::Args;

use crate::config::Environment;
use crate::shutdown::{Wish, Wishes};
use crate::throwaway::{BrokerPrograms, Programs, ThrowawayError, find_any, find_broker};

use super::{Exit, complain};

/// Tell the story on throw-away servers: copy, stream, synchronous commit, crash, nothing lost
#[derive(Debug, Args)]
pub(super) struct DemoArgs {
    /// Leave servers and relay up at the end, until Ctrl-C
    #[arg(long)]
    keep: bool,
    /// Tell the story of a Kafka feed instead, on a throw-away server and a throw-away broker (needs Java)
    #[cfg(feature = "kafka")]
    #[arg(long)]
    kafka: bool,
    /// Only say which programs would be used
    #[arg(long, hide = true)]
    probe: bool,
}

/// What the story is played with.
struct Stagehands {
    servers: Programs,
    /// For the story of a feed.
    broker: Option<BrokerPrograms>,
}

impl Stagehands {
    fn find(args: &DemoArgs) -> Result<Self, ThrowawayError> {
        let project = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("."));
        let environment = Environment::of_process();
        let servers = find_any(&environment, &project)?;
        let broker = args.wants_kafka().then(|| find_broker(&environment, &project)).transpose()?;
        Ok(Self { servers, broker })
    }

    async fn tell(&self, keep: bool) -> Result<(), DemoError> {
        match &self.broker {
            None => story::tell(&self.servers, keep).await,
            #[cfg(feature = "kafka")]
            Some(broker) => kafka::tell(&self.servers, broker, keep).await,
            #[cfg(not(feature = "kafka"))]
            Some(_) => Ok(()),
        }
    }
}

impl DemoArgs {
    fn wants_kafka(&self) -> bool {
        #[cfg(feature = "kafka")]
        return self.kafka;
        #[cfg(not(feature = "kafka"))]
        false
    }
}

pub(super) fn run(args: &DemoArgs) -> Exit {
    let stagehands = match Stagehands::find(args) {
        Ok(stagehands) => stagehands,
        Err(error) => {
            complain(&error);
            return Exit::Unreachable;
        }
    };
    if args.probe {
        complain(&stagehands.servers.path("postgres").display());
        if let Some(broker) = &stagehands.broker {
            complain(&broker.class_path().display());
        }
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
            told = stagehands.tell(args.keep) => told,
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
