//! The walrelay binary: parses the command line and runs the verb. Everything else is in the library.

use std::process::ExitCode;

/// Of the Kafka client too, whose records are made on one thread and freed on another: the system's allocator took a third of a
/// feed's processor time for that.
#[cfg(feature = "kafka")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    walrelay::cli::main()
}
