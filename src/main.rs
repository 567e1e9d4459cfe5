//! The walrelay binary: parses the command line and runs the verb. Everything else is in the library.

fn main() {}
