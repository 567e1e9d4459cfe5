//! What a server and a broker have in common as processes of ours. Starts nothing.

use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command};

/// What a Java process of ours logs, and how: to its standard output.
pub(super) const LOG_CONFIGURATION: &str = r#"<Configuration>
  <Appenders><Console name="OUT"><PatternLayout pattern="%d %p %c{1} %m%n"/></Console></Appenders>
  <Loggers><Root level="INFO"><AppenderRef ref="OUT"/></Root></Loggers>
</Configuration>
"#;

/// The kernel ends the process with the thread that starts it.
pub(super) fn end_with_us(command: &mut Command) {
    // SAFETY: prctl is async-signal-safe and touches only the new process.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        });
    }
}

/// Sends a signal to a child that is not yet reaped.
pub(super) fn signal(child: Option<&Child>, signal: i32) {
    if let Some(child) = child {
        // SAFETY: kill has no preconditions; the process is our child and not yet reaped.
        unsafe { libc::kill(child.id() as i32, signal) };
    }
}

/// A crash; nothing is left of the child.
pub(super) fn kill9(child: &mut Option<Child>) {
    if let Some(mut child) = child.take() {
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// The last lines of a log.
pub(super) fn last_lines(log: &str, lines: usize) -> String {
    let all: Vec<&str> = log.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
