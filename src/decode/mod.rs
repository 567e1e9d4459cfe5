//! pgoutput, protocol 1 to 4: a pure, total function from bytes to borrowed messages. Does no I/O and never panics.
