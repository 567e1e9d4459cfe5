//! `walrelay drop`: removes a pipeline's slot, publication and traces on the standby.
#![allow(clippy::print_stdout)]

use std::path::PathBuf;

use clap::Args;

use crate::config::Environment;
use crate::pipeline::{Removed, remove};

use super::{Exit, complain, configuration, errand_runtime};

/// Remove a pipeline's slot, managed publication, and its record and guards on the standby; the tables and their rows stay
#[derive(Debug, Args)]
pub(super) struct DropArgs {
    /// The pipeline's name, as in the configuration
    name: String,
    /// Configuration file [default: ./walrelay.toml, else /etc/walrelay/walrelay.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Really do it
    #[arg(long)]
    yes: bool,
}

pub(super) fn run(args: &DropArgs) -> Exit {
    let config = match configuration(args.config.as_deref(), &Environment::of_process()) {
        Ok(config) => config,
        Err(exit) => return exit,
    };
    let names: Vec<&str> = config.pipelines.iter().map(|pipeline| pipeline.name.as_str()).collect();
    let Some(pipeline) = config.pipelines.iter().find(|pipeline| pipeline.name.as_str() == args.name) else {
        complain(&format!(
            "the configuration has no pipeline \"{}\"; it has {}. A pipeline that was taken out of the file must stand in it, or in \
             another one given with --config, to be dropped: it says where the standby is",
            args.name,
            names.join(", ")
        ));
        return Exit::Usage;
    };
    if !args.yes {
        complain(&format!(
            "this drops the slot \"{}\"{} on {}, and the record (and another slot that it names), copy records, guards and origin of \"{}\" on its sink. The rows stay. \
             Nothing was done yet: run it again with --yes",
            pipeline.slot_name(),
            pipeline
                .publication
                .as_ref()
                .map_or_else(|| format!(" and the publication \"{}\"", pipeline.publication_name()), |_| String::new()),
            config.primary,
            pipeline.name
        ));
        return Exit::Usage;
    }
    let runtime = match errand_runtime() {
        Ok(runtime) => runtime,
        Err(exit) => return exit,
    };
    match runtime.block_on(remove(&config, pipeline)) {
        Ok(report) => {
            let mut is_whole = true;
            for line in report {
                match line {
                    Removed::Done(text) => println!("{text}"),
                    Removed::Left(text) => {
                        is_whole = false;
                        println!("left: {text}");
                    }
                }
            }
            if is_whole { Exit::Done } else { Exit::Refused }
        }
        Err(error) => {
            complain(&error);
            Exit::of(&error)
        }
    }
}
