//! How far the copy is, in atomics that status reads while it runs, and how that is shown: a bar on a terminal, lines in a
//! log otherwise. Decides nothing.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::model::{CopyReport, PipelineName};

/// Between two log lines.
const LOG_INTERVAL: Duration = Duration::from_secs(10);
/// Between two pictures of the bar.
const BAR_INTERVAL: Duration = Duration::from_millis(250);

/// The bars of all pipelines that copy at the same time share one terminal.
static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// One pipeline's initial copy in numbers, shared with whoever shows it.
#[derive(Debug, Default)]
pub struct CopyProgress {
    tables_total: AtomicU64,
    tables_done: AtomicU64,
    rows: AtomicU64,
    bytes: AtomicU64,
    rows_estimated: AtomicU64,
    waiting_for: Mutex<Option<String>>,
}

impl CopyProgress {
    /// The numbers of the contract. Rows and bytes count what was handed to the standby, whole tables or not.
    pub fn report(&self) -> CopyReport {
        CopyReport {
            tables_total: self.tables_total.load(Ordering::Relaxed),
            tables_done: self.tables_done.load(Ordering::Relaxed),
            rows: self.rows.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
        }
    }

    /// Rows of all tables by the planner's estimate; at least the rows copied already.
    pub fn rows_estimated(&self) -> u64 {
        self.rows_estimated.load(Ordering::Relaxed).max(self.rows.load(Ordering::Relaxed))
    }

    /// The lock or transaction the copy is waiting for, if it is.
    pub fn waiting_for(&self) -> Option<String> {
        self.waiting_for.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Begins anew with what earlier attempts finished.
    pub(super) fn begin(&self, tables_total: u64, finished: CopyReport, rows_estimated: u64) {
        self.tables_total.store(tables_total, Ordering::Relaxed);
        self.tables_done.store(finished.tables_done, Ordering::Relaxed);
        self.rows.store(finished.rows, Ordering::Relaxed);
        self.bytes.store(finished.bytes, Ordering::Relaxed);
        self.rows_estimated.store(rows_estimated.saturating_add(finished.rows), Ordering::Relaxed);
    }

    pub(super) fn add(&self, rows: u64, bytes: u64) {
        self.rows.fetch_add(rows, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Replaces the rows counted on the way by those the standby took.
    pub(super) fn settle_rows(&self, counted: u64, taken: u64) {
        self.rows.fetch_add(taken.wrapping_sub(counted), Ordering::Relaxed);
    }

    pub(super) fn table_done(&self) {
        self.tables_done.fetch_add(1, Ordering::Relaxed);
    }

    /// Says once in the log what is being waited for, and keeps it for status.
    pub(super) fn set_waiting(&self, what: Option<String>) {
        let mut waiting_for = self.waiting_for.lock().unwrap_or_else(PoisonError::into_inner);
        if *waiting_for != what {
            match &what {
                Some(what) => tracing::info!("the copy waits for {what}"),
                None => tracing::info!("the copy goes on"),
            }
            *waiting_for = what;
        }
    }

    /// The fraction of rows copied, 0 to 1.
    fn fraction(&self) -> f64 {
        let rows = self.rows.load(Ordering::Relaxed) as f64;
        if rows == 0.0 { 0.0 } else { rows / self.rows_estimated() as f64 }
    }
}

/// Shows the progress until it is dropped: the future never ends by itself.
pub(super) async fn show(progress: &CopyProgress, pipeline: &PipelineName) {
    if std::io::stderr().is_terminal() {
        show_bar(progress, pipeline).await;
    } else {
        log_lines(progress).await;
    }
}

/// Takes the bar off the terminal when the copy ends in whatever way.
struct Bar(ProgressBar);

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
        BARS.remove(&self.0);
    }
}

async fn show_bar(progress: &CopyProgress, pipeline: &PipelineName) {
    let bar = Bar(BARS.add(ProgressBar::new(progress.rows_estimated())));
    if let Ok(style) = ProgressStyle::with_template("{prefix} {wide_bar} {percent}% {msg}") {
        bar.0.set_style(style);
    }
    bar.0.set_prefix(format!("{pipeline}: copying"));
    let start = Start::now(progress);
    loop {
        let report = progress.report();
        bar.0.set_length(progress.rows_estimated());
        bar.0.set_position(report.rows);
        bar.0.set_message(progress.waiting_for().unwrap_or_else(|| start.line(progress)));
        tokio::time::sleep(BAR_INTERVAL).await;
    }
}

async fn log_lines(progress: &CopyProgress) {
    let start = Start::now(progress);
    loop {
        tokio::time::sleep(LOG_INTERVAL).await;
        match progress.waiting_for() {
            Some(what) => tracing::info!("copying: waits for {what}"),
            None => tracing::info!("copying: {}", start.line(progress)),
        }
    }
}

/// The moment the rate is counted from.
struct Start {
    at: Instant,
    rows: u64,
    fraction: f64,
}

impl Start {
    fn now(progress: &CopyProgress) -> Self {
        Self { at: Instant::now(), rows: progress.report().rows, fraction: progress.fraction() }
    }

    fn line(&self, progress: &CopyProgress) -> String {
        let seconds = self.at.elapsed().as_secs_f64().max(1e-3);
        let report = progress.report();
        let rate = report.rows.saturating_sub(self.rows) as f64 / seconds;
        let left = seconds_left(seconds, progress.fraction() - self.fraction, 1.0 - progress.fraction());
        line(&report, rate, left)
    }
}

/// At the pace of the last `seconds`, in which `done` of the whole was done, `remaining` takes this long.
fn seconds_left(seconds: f64, done: f64, remaining: f64) -> Option<f64> {
    (done > 0.0 && remaining > 0.0).then(|| seconds / done * remaining)
}

/// One line for people: tables, rows, bytes, rate, time left.
fn line(report: &CopyReport, rows_per_second: f64, seconds_left: Option<f64>) -> String {
    let CopyReport { tables_total, tables_done, rows, bytes } = report;
    let left = match seconds_left {
        Some(seconds) if seconds < 90.0 => format!(", about {seconds:.0} s left"),
        Some(seconds) if seconds < 5400.0 => format!(", about {:.0} min left", seconds / 60.0),
        Some(seconds) => format!(", about {:.1} h left", seconds / 3600.0),
        None => String::new(),
    };
    let mebibytes = *bytes as f64 / f64::from(1 << 20);
    format!(
        "{tables_done} of {tables_total} tables, {rows} rows, {mebibytes:.1} MiB, {rows_per_second:.0} rows/s{left}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_rows_bytes_rate_and_time_left() {
        let report = CopyReport { tables_total: 7, tables_done: 2, rows: 1500, bytes: 3 << 20 };
        for (seconds_left, end) in [
            (None, ""),
            (Some(12.4), ", about 12 s left"),
            (Some(600.0), ", about 10 min left"),
            (Some(9000.0), ", about 2.5 h left"),
        ] {
            let expected = format!("2 of 7 tables, 1500 rows, 3.0 MiB, 250 rows/s{end}");
            assert_eq!(line(&report, 250.0, seconds_left), expected);
        }
    }

    #[test]
    fn time_left_follows_the_pace_so_far() {
        assert_eq!(seconds_left(10.0, 0.25, 0.5), Some(20.0));
        assert_eq!(seconds_left(10.0, 0.0, 1.0), None);
        assert_eq!(seconds_left(10.0, 1.0, 0.0), None);
    }

    #[test]
    fn an_estimate_is_never_below_what_was_copied() {
        let progress = CopyProgress::default();
        progress.begin(2, CopyReport { tables_done: 1, rows: 100, ..CopyReport::default() }, 50);
        assert_eq!(progress.rows_estimated(), 150);
        progress.add(201, 1);
        progress.settle_rows(201, 200);
        assert_eq!(progress.rows_estimated(), 300);
        assert!((progress.fraction() - 1.0).abs() < f64::EPSILON);
    }
}
