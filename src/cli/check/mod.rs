//! `walrelay check`: the doctor. Looks at both servers as `run` would and says, for each fault, what mends it. Changes nothing.
#![allow(clippy::print_stdout)]

mod beginning;
mod events;
mod finding;
#[cfg(feature = "kafka")]
mod kafka;
mod missing;
mod named;
#[cfg(feature = "kafka")]
mod offsets;
mod owners;
mod primary;
mod room;
mod row_security;
mod session;
mod standby;
mod statistics;
mod store;

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use crate::assemble::Spool;
use crate::config::{self, Config, Environment};
use crate::wire::Session;

use super::{Exit, complain, errand_runtime};

use beginning::Record;
use finding::{Finding, Findings};
use room::Room;

/// A table that somebody has locked must not hold up the doctor.
const LOCK_TIMEOUT: &str = "3s";
/// Nor a query that takes for ever.
const STATEMENT_TIMEOUT: &str = "60s";

/// Look at both servers and say what would keep walrelay from running, with the SQL that mends it
#[derive(Debug, Args)]
#[command(after_help = "Exit code 0 only if `walrelay run` would run. It changes nothing on either server.")]
pub(super) struct CheckArgs {
    /// Configuration file [default: ./walrelay.toml, else /etc/walrelay/walrelay.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// {"ok", "findings": [{"level", "place", "message", "remedy", "sql"}]}
    #[arg(long)]
    json: bool,
    /// Instead: read how far a Debezium connector came from this offsets topic of Kafka Connect, and print the start_lsn
    #[cfg(feature = "kafka")]
    #[arg(long, value_name = "TOPIC", requires = "connector", conflicts_with = "json")]
    debezium_offsets: Option<String>,
    /// The connector's name
    #[cfg(feature = "kafka")]
    #[arg(long, value_name = "NAME", requires = "debezium_offsets")]
    connector: Option<String>,
}

pub(super) fn run(args: &CheckArgs) -> Exit {
    let config = match config::load(args.config.as_deref(), &Environment::of_process()) {
        Ok(config) => config,
        Err(error) => {
            if args.json {
                let finding = json!({"level": "error", "place": "configuration", "message": error.to_string(), "remedy": "correct the file", "sql": []});
                println!("{}", json!({"ok": false, "findings": [finding]}));
            }
            complain(&error);
            return Exit::Configuration;
        }
    };
    let runtime = match errand_runtime() {
        Ok(runtime) => runtime,
        Err(exit) => return exit,
    };
    #[cfg(feature = "kafka")]
    if let (Some(topic), Some(connector)) = (&args.debezium_offsets, &args.connector) {
        return runtime.block_on(offsets::show(&config, topic, connector));
    }
    let findings = runtime.block_on(examine(&config));
    if args.json {
        println!("{}", findings.to_json());
    } else {
        print!("{}", findings.to_text());
    }
    findings.exit()
}

/// A session of the doctor, which writes nothing and waits for nobody.
fn session() -> Session {
    Session::new("walrelay check")
        .with("search_path", "")
        .with("default_transaction_read_only", "on")
        .with("lock_timeout", LOCK_TIMEOUT)
        .with("statement_timeout", STATEMENT_TIMEOUT)
}

async fn examine(config: &Config) -> Findings {
    let mut findings = Findings::default();
    spool(config, &mut findings);
    let primary = primary::examine_server(config, &mut findings).await;
    let primary = primary.as_ref();
    let mut room = Room::default();
    for pipeline in &config.pipelines {
        let tables = match primary {
            Some(primary) => primary::examine_pipeline(primary, config, pipeline, &mut findings).await,
            // The sink is looked at all the same: everything to mend in one answer.
            None => primary::Tables::default(),
        };
        if let (Some(primary), config::Sink::Kafka(sink)) = (primary, &pipeline.sink) {
            events::examine(primary, pipeline, sink, &tables.all, &mut findings).await;
        }
        let record = match &pipeline.sink {
            config::Sink::Postgres(sink) => {
                let subject = standby::Subject { config, pipeline, sink, tables: &tables };
                standby::examine(primary, subject, &mut room, &mut findings).await
            }
            #[cfg(feature = "kafka")]
            config::Sink::Kafka(sink) => kafka::examine(pipeline, sink, &tables.all, &mut findings).await,
            #[cfg(not(feature = "kafka"))]
            config::Sink::Kafka(_) => {
                let message = "this walrelay was built without its Kafka client";
                let remedy = "build it with the cargo feature \"kafka\" (on by default)";
                findings.push(Finding::error(pipeline.name.as_str(), message, remedy));
                Record::Unknown
            }
            config::Sink::Stdout => Record::Read(None),
        };
        if let Some(primary) = primary {
            beginning::examine(primary, config, pipeline, record, &mut findings).await;
        }
    }
    room.judge(&mut findings);
    findings
}

/// The spool folder is made, or refused, as at a start.
fn spool(config: &Config, findings: &mut Findings) {
    let Some(folder) = &config.spool_dir else { return };
    for pipeline in &config.pipelines {
        if let Err(error) = Spool::open(folder, &pipeline.name) {
            findings.push(Finding::error(
                pipeline.name.as_str(),
                error.to_string(),
                "make the folder writable for the account that runs walrelay, or set spool_dir",
            ));
        }
    }
}
