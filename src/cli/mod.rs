//! The verbs of the command line. Each has a file of its own; nothing here knows how a pipeline works.

mod check;
mod demo;
mod drop;
mod exit;
mod resync;
mod run;
mod status;
mod tail;

use std::path::Path;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tokio::runtime::{Builder, Runtime};

use crate::config::{self, Config, Environment};

pub use exit::Exit;

const AFTER_HELP: &str = "\
Exit codes: 0 done, 1 internal error, 2 wrong usage, 3 configuration, 4 a server is unreachable, 5 refused for safety.

Begin with `walrelay demo`, then `walrelay check` on a file of ten lines:

  [primary]
  url = \"postgres://walrelay@db.eu.example/shop\"
  [[pipeline]]
  name = \"standby1\"
  [pipeline.sink]
  type = \"postgres\"
  url = \"postgres://walrelay@db.us.example/shop\"";

/// Relays a PostgreSQL primary's WAL to read-only standbys that the primary can wait for by name.
#[derive(Debug, Parser)]
#[command(name = "walrelay", version, after_help = AFTER_HELP, max_term_width = 120)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Run(run::RunArgs),
    Check(check::CheckArgs),
    Status(status::StatusArgs),
    Tail(tail::TailArgs),
    Resync(resync::ResyncArgs),
    Drop(drop::DropArgs),
    Demo(demo::DemoArgs),
}

/// Parses the command line and runs the verb. Usage errors end the process with code 2.
pub fn main() -> ExitCode {
    let exit = match Arguments::parse().verb {
        Verb::Run(args) => run::run(&args),
        Verb::Check(args) => check::run(&args),
        Verb::Status(args) => status::run(&args),
        Verb::Tail(args) => tail::run(&args),
        Verb::Resync(args) => resync::run(&args),
        Verb::Drop(args) => drop::run(&args),
        Verb::Demo(args) => demo::run(&args),
    };
    exit.into()
}

/// Says an error on standard error.
fn complain(error: &dyn std::fmt::Display) {
    eprintln!("walrelay: {error}");
}

/// Loads the configuration, or says what is wrong with it.
fn configuration(path: Option<&Path>, environment: &Environment) -> Result<Config, Exit> {
    config::load(path, environment).map_err(|error| {
        complain(&error);
        Exit::Configuration
    })
}

/// A runtime for one short errand.
fn errand_runtime() -> Result<Runtime, Exit> {
    Builder::new_current_thread().enable_all().build().map_err(|error| {
        complain(&error);
        Exit::Internal
    })
}
