//! What a server and a broker have in common as processes of ours. Starts nothing.

use std::process::Child;

/// Sends a signal to a child that is not yet reaped.
pub(super) fn signal(child: Option<&Child>, signal: i32) {
    if let Some(child) = child {
        // SAFETY: kill has no preconditions; the process is our child and not yet reaped.
        unsafe { libc::kill(child.id() as i32, signal) };
    }
}

/// The last lines of a log.
pub(super) fn last_lines(log: &str, lines: usize) -> String {
    let all: Vec<&str> = log.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
