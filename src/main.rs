//! The walrelay binary: parses the command line and runs the verb. Everything else is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    walrelay::cli::main()
}
