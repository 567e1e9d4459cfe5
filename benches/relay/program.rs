//! Client programs of PostgreSQL: found, and run to their end.

use std::path::{Path, PathBuf};
use std::process::Command;

use walrelay::config::Environment;
use walrelay::throwaway::{Server, find_tool};

/// A client program of `.servers/tools-18` or of the machine.
pub fn tool(name: &str) -> PathBuf {
    let found = find_tool(name, &Environment::of_process(), Path::new(env!("CARGO_MANIFEST_DIR")));
    found.unwrap_or_else(|| panic!("{name} is not there: scripts/fetch-servers tools"))
}

/// pgbench on a server's socket, ready for more arguments; the database comes last.
pub fn pgbench(server: &Server, database: &str, arguments: &[String]) -> Command {
    let mut command = Command::new(tool("pgbench"));
    let port = server.port().to_string();
    command.arg("-h").arg(server.folder()).args(["-p", &port, "-U", "postgres"]).args(arguments).arg(database);
    command
}

/// Runs a program to its end and gives what it printed.
pub fn output(command: &mut Command) -> String {
    let output =
        tokio::task::block_in_place(|| command.output()).unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The tables of pgbench in a database.
pub fn make_pgbench_tables(server: &Server, database: &str, scale: &str) {
    let arguments = ["-i", "-q", "-s", scale].map(str::to_owned);
    output(&mut pgbench(server, database, &arguments));
}
