//! `walrelay resync`: has tables of a running feed sent again.
#![allow(clippy::print_stdout)]

use std::path::PathBuf;

use clap::Args;

use crate::config::{Environment, TablePattern};
use crate::pipeline::resync;

use super::{Exit, complain, configuration, errand_runtime};

/// Send tables of a feed to Kafka again, as r events, while it goes on; the daemon does it
#[derive(Debug, Args)]
pub(super) struct ResyncArgs {
    /// The pipeline's name, as in the configuration
    name: String,
    /// Which tables: schema.table, with * for any characters; may be given several times
    #[arg(long = "table", value_name = "PATTERN", required = true)]
    tables: Vec<String>,
    /// Configuration file [default: ./walrelay.toml, else /etc/walrelay/walrelay.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

pub(super) fn run(args: &ResyncArgs) -> Exit {
    let patterns: Result<Vec<TablePattern>, _> = args.tables.iter().map(|text| TablePattern::new(text)).collect();
    let patterns = match patterns {
        Ok(patterns) => patterns,
        Err(error) => {
            complain(&error);
            return Exit::Usage;
        }
    };
    let config = match configuration(args.config.as_deref(), &Environment::of_process()) {
        Ok(config) => config,
        Err(exit) => return exit,
    };
    let names: Vec<&str> = config.pipelines.iter().map(|pipeline| pipeline.name.as_str()).collect();
    let Some(pipeline) = config.pipelines.iter().find(|pipeline| pipeline.name.as_str() == args.name) else {
        complain(&format!("the configuration has no pipeline \"{}\"; it has {}", args.name, names.join(", ")));
        return Exit::Usage;
    };
    let runtime = match errand_runtime() {
        Ok(runtime) => runtime,
        Err(exit) => return exit,
    };
    match runtime.block_on(resync(&config, pipeline, &patterns)) {
        Ok(said) => {
            said.iter().for_each(|line| println!("{line}"));
            Exit::Done
        }
        Err(error) => {
            complain(&error);
            Exit::of(&error)
        }
    }
}
