//! The service manager's side: READY, STATUS, RELOADING, STOPPING, and a watchdog that is tied to replication, not to being alive.
//! Says nothing where no service manager listens.

use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::model::{PipelineName, PipelineReport, State};

use super::Board;

/// What systemd put into the environment.
#[derive(Clone, Debug, Default)]
pub struct Systemd {
    /// `NOTIFY_SOCKET`; an abstract one begins with `@`.
    pub notify_socket: Option<PathBuf>,
    /// `WATCHDOG_USEC`.
    pub watchdog: Option<Duration>,
}

/// Speaks to the service manager.
#[derive(Debug)]
pub struct Notifier {
    socket: Option<Arc<Socket>>,
}

#[derive(Debug)]
struct Socket {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Socket {
    fn open(path: PathBuf) -> Option<Self> {
        Some(Self { socket: UnixDatagram::unbound().ok()?, path })
    }

    /// One datagram; a manager that is gone is no fault of ours.
    fn send(&self, text: &str) {
        use std::os::linux::net::SocketAddrExt;
        use std::os::unix::net::SocketAddr;
        let name = self.path.to_string_lossy();
        let address = match name.strip_prefix('@') {
            Some(name) => SocketAddr::from_abstract_name(name.as_bytes()),
            None => SocketAddr::from_pathname(&self.path),
        };
        let sent = address.and_then(|address| self.socket.send_to_addr(text.as_bytes(), &address));
        if let Err(error) = sent {
            tracing::debug!(%error, "the service manager does not listen");
        }
    }
}

impl Notifier {
    /// Begins to ping and to tell the status.
    pub fn start(systemd: &Systemd, board: Arc<Board>) -> Self {
        let socket = systemd.notify_socket.clone().and_then(Socket::open).map(Arc::new);
        if let Some(socket) = &socket {
            tokio::spawn(ping(Arc::clone(socket), board, systemd.watchdog));
        }
        Self { socket }
    }

    fn send(&self, text: &str) {
        if let Some(socket) = &self.socket {
            socket.send(text);
        }
    }

    /// The configuration holds and the pipelines are started.
    pub fn ready(&self) {
        self.send("READY=1");
    }

    /// SIGHUP.
    pub fn reloading(&self) {
        let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the pointer is to a timespec of our own.
        unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={}", now.tv_sec * 1_000_000 + now.tv_nsec / 1000));
    }

    /// SIGTERM.
    pub fn stopping(&self) {
        self.send("STOPPING=1");
    }
}

async fn ping(socket: Arc<Socket>, board: Arc<Board>, watchdog: Option<Duration>) {
    let limit = watchdog.unwrap_or(Duration::MAX);
    let every = watchdog.map_or(Duration::from_secs(5), |limit| (limit / 4).max(Duration::from_millis(50)));
    let mut watch = Watch::default();
    let mut ticks = tokio::time::interval(every);
    loop {
        ticks.tick().await;
        let reports = board.reports();
        socket.send(&format!("STATUS={}", status_text(&reports)));
        let stuck = watch.stuck(&reports, Instant::now(), limit);
        match stuck {
            None => socket.send("WATCHDOG=1"),
            Some(name) => {
                tracing::error!(pipeline = %name, "work is waiting and nothing moves; the watchdog is not fed any more")
            }
        }
    }
}

/// Since when each busy pipeline has stood still.
#[derive(Debug, Default)]
struct Watch {
    still: std::collections::BTreeMap<PipelineName, (u64, Instant)>,
}

impl Watch {
    /// A pipeline that has work, waits for nothing it can name, and has not moved for `limit`.
    fn stuck(&mut self, reports: &[PipelineReport], now: Instant, limit: Duration) -> Option<PipelineName> {
        self.still.retain(|name, _| reports.iter().any(|report| report.name == *name));
        let mut stuck = None;
        for report in reports {
            let may_stand = !report.is_busy
                || report.waiting_for.is_some()
                || matches!(report.state, State::Waiting | State::Failed);
            let entry = self.still.entry(report.name.clone()).or_insert((report.heartbeat, now));
            if may_stand || entry.0 != report.heartbeat {
                *entry = (report.heartbeat, now);
            } else if now.duration_since(entry.1) >= limit {
                stuck = Some(report.name.clone());
            }
        }
        stuck
    }
}

fn status_text(reports: &[PipelineReport]) -> String {
    let each: Vec<String> = reports
        .iter()
        .map(|report| {
            let lag = report.lag_bytes.map_or(String::new(), |bytes| format!(", {bytes} bytes behind"));
            let sync = report.sync_state.as_deref().map_or(String::new(), |state| format!(", {state}"));
            format!("{} {}{sync}{lag}", report.name, report.state.as_str())
        })
        .collect();
    each.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::SlotName;

    fn report(change: fn(&mut PipelineReport)) -> PipelineReport {
        let name = PipelineName::new("a").unwrap();
        let mut report = PipelineReport::new(name.clone(), "postgres", SlotName::owned_by(&name));
        report.state = State::Streaming;
        report.is_busy = true;
        change(&mut report);
        report
    }

    /// Shows the first report, then the second one after the given seconds; is it stuck with a limit of 10 s?
    fn check(first: PipelineReport, second: PipelineReport, seconds: u64, expected: bool) {
        let start = Instant::now();
        let mut watch = Watch::default();
        let limit = Duration::from_secs(10);
        assert_eq!(watch.stuck(&[first], start, limit), None);
        assert_eq!(watch.stuck(&[second], start + Duration::from_secs(seconds), limit).is_some(), expected);
    }

    #[test]
    fn only_a_busy_pipeline_that_waits_for_nothing_and_stands_still_is_stuck() {
        check(report(|_| {}), report(|_| {}), 11, true);
        check(report(|_| {}), report(|_| {}), 9, false);
        check(report(|_| {}), report(|report| report.heartbeat = 1), 11, false);
        check(report(|_| {}), report(|report| report.is_busy = false), 11, false);
        check(report(|_| {}), report(|report| report.waiting_for = Some("a lock".into())), 11, false);
        check(report(|_| {}), report(|report| report.state = State::Failed), 11, false);
    }

    #[test]
    fn the_manager_hears_over_a_real_socket() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let listener = UnixDatagram::bind(&path).unwrap();
        let notifier = Notifier { socket: Socket::open(path).map(Arc::new) };
        notifier.ready();
        notifier.reloading();
        notifier.stopping();
        let mut heard = Vec::new();
        for _ in 0..3 {
            let mut buffer = [0; 200];
            let length = listener.recv(&mut buffer).unwrap();
            heard.push(String::from_utf8_lossy(&buffer[..length]).into_owned());
        }
        assert_eq!(heard[0], "READY=1");
        assert!(heard[1].starts_with("RELOADING=1\nMONOTONIC_USEC="));
        assert_eq!(heard[2], "STOPPING=1");
    }
}
