//! Whether Debezium is there. Starts nothing.

use std::path::Path;

use walrelay::config::Environment;
use walrelay::throwaway::{ConnectPrograms, find_connect};

/// The peer, or why there is none.
pub struct Peer {
    programs: Result<ConnectPrograms, String>,
}

impl Peer {
    /// Looks for it.
    pub fn find() -> Self {
        if std::env::var_os("WALRELAY_NO_DEBEZIUM").is_some() {
            return Self { programs: Err("WALRELAY_NO_DEBEZIUM is set".to_owned()) };
        }
        let found = find_connect(&Environment::of_process(), Path::new(env!("CARGO_MANIFEST_DIR")));
        Self { programs: found.map_err(|error| error.to_string()) }
    }

    /// In the tables.
    pub fn name(&self, detail: &str) -> String {
        match &self.programs {
            Ok(_) => format!("Debezium 3.7{detail}"),
            Err(why) => format!("Debezium: absent ({why})"),
        }
    }

    /// To start it with.
    pub fn programs(&self) -> Option<&ConnectPrograms> {
        self.programs.as_ref().ok()
    }
}
