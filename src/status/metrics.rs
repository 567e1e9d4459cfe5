//! `/metrics` in Prometheus' text format, rendered from the same reports as `/status`, so that both always agree.

use std::fmt::Write as _;

use crate::model::{PipelineReport, State};

const STATES: [State; 6] =
    [State::Starting, State::Copying, State::CatchingUp, State::Streaming, State::Waiting, State::Failed];

type Read = fn(&PipelineReport) -> Option<f64>;

/// Name, type, help, value.
const METRICS: &[(&str, &str, &str, Read)] = &[
    ("lag_bytes", "gauge", "WAL between the primary's position and what is durable on the standby, bytes.", |r| {
        r.lag_bytes.map(|v| v as f64)
    }),
    (
        "lag_seconds",
        "gauge",
        "Age of the oldest transaction not yet applied, or of the primary's oldest position that has not come yet, seconds.",
        |r| r.lag_seconds,
    ),
    ("retained_wal_bytes", "gauge", "WAL the slot keeps the primary from removing, bytes.", |r| {
        r.retained_wal_bytes.map(|v| v as f64)
    }),
    ("safe_wal_size_bytes", "gauge", "WAL that may still be written before the slot is in danger, bytes.", |r| {
        r.safe_wal_size_bytes.map(|v| v as f64)
    }),
    ("transactions_total", "counter", "Transactions applied since the pipeline started.", |r| {
        Some(r.transactions as f64)
    }),
    ("rows_total", "counter", "Row changes applied since the pipeline started.", |r| Some(r.rows as f64)),
    ("write_lsn", "gauge", "Received position, as a number.", |r| r.write_lsn.map(|v| v.0 as f64)),
    ("flush_lsn", "gauge", "Durable position, as a number.", |r| r.flush_lsn.map(|v| v.0 as f64)),
    ("replay_lsn", "gauge", "Durable and visible position, as a number.", |r| r.replay_lsn.map(|v| v.0 as f64)),
    ("write_lag_seconds", "gauge", "The primary's write_lag.", |r| r.server_lags_seconds[0]),
    ("flush_lag_seconds", "gauge", "The primary's flush_lag.", |r| r.server_lags_seconds[1]),
    ("replay_lag_seconds", "gauge", "The primary's replay_lag.", |r| r.server_lags_seconds[2]),
    (
        "synchronous",
        "gauge",
        "1 while this standby is connected as sync or quorum; 0 also while it is away, when commits may hang.",
        |r| Some(f64::from(u8::from(matches!(r.sync_state.as_deref(), Some("sync" | "quorum"))))),
    ),
    ("copy_tables", "gauge", "Tables of the initial copy.", |r| Some(r.copy.tables_total as f64)),
    ("copy_tables_done", "gauge", "Tables copied whole.", |r| Some(r.copy.tables_done as f64)),
    ("copy_rows_total", "counter", "Rows of the initial copy.", |r| Some(r.copy.rows as f64)),
    ("copy_bytes_total", "counter", "Bytes of the initial copy.", |r| Some(r.copy.bytes as f64)),
    ("feed_records_total", "counter", "Records committed to Kafka since the pipeline started.", |r| {
        r.feed.map(|feed| feed.records as f64)
    }),
    ("feed_bytes_total", "counter", "Bytes of their keys and values.", |r| r.feed.map(|feed| feed.bytes as f64)),
    (
        "feed_lossy_values_total",
        "counter",
        "Values that the form of the events could not hold (header walrelay.lossy).",
        |r| r.feed.map(|feed| feed.lossy_values as f64),
    ),
    (
        "feed_dead_letters_total",
        "counter",
        "Records too large for their topic, told of in the dead-letter topic.",
        |r| r.feed.map(|feed| feed.dead_letters as f64),
    ),
    ("feed_skipped_truncates_total", "counter", "Truncated tables that made no event.", |r| {
        r.feed.map(|feed| feed.skipped_truncates as f64)
    }),
    ("prefetching", "gauge", "1 while pages of the standby are read ahead of the rows.", |r| {
        r.prefetch.map(|prefetch| f64::from(u8::from(prefetch.is_on)))
    }),
    ("prefetched_rows_total", "counter", "Rows looked for ahead of their change since the pipeline started.", |r| {
        r.prefetch.map(|prefetch| prefetch.rows as f64)
    }),
    ("block_reads_per_row", "gauge", "Blocks that the standby's database read of late for each row change.", |r| {
        r.prefetch.and_then(|prefetch| prefetch.block_reads_per_row)
    }),
    (
        "interruptions_total",
        "counter",
        "Faults since the pipeline started that ended the stream or a try to begin it.",
        |r| Some(r.interruptions as f64),
    ),
    ("memory_bytes", "gauge", "Rows held in memory, bytes.", |r| Some(r.memory_bytes as f64)),
    ("spool_bytes", "gauge", "Open transactions in the spool folder, bytes.", |r| Some(r.spool_bytes as f64)),
];

/// The whole page.
pub(super) fn render(reports: &[PipelineReport]) -> String {
    let mut page = String::new();
    let mut line = |text: std::fmt::Arguments<'_>| {
        let _ = writeln!(page, "{text}");
    };
    line(format_args!("# HELP walrelay_build_info The running version."));
    line(format_args!("# TYPE walrelay_build_info gauge"));
    line(format_args!("walrelay_build_info{{version=\"{}\"}} 1", env!("CARGO_PKG_VERSION")));
    for (name, kind, help, read) in METRICS {
        line(format_args!("# HELP walrelay_{name} {help}"));
        line(format_args!("# TYPE walrelay_{name} {kind}"));
        for report in reports {
            // A pipeline's name needs no escaping: [a-z0-9_].
            if let Some(value) = read(report) {
                line(format_args!("walrelay_{name}{{pipeline=\"{}\"}} {value}", report.name));
            }
        }
    }
    line(format_args!(
        "# HELP walrelay_apply_fallbacks_total Batches whose changes of a table had to be written row by row."
    ));
    line(format_args!("# TYPE walrelay_apply_fallbacks_total counter"));
    for report in reports {
        for (table, reason, count) in &report.apply_fallbacks {
            let (name, table) = (&report.name, escape_label(table));
            line(format_args!(
                "walrelay_apply_fallbacks_total{{pipeline=\"{name}\",table=\"{table}\",reason=\"{reason}\"}} {count}"
            ));
        }
    }
    line(format_args!(
        "# HELP walrelay_apply_rows_in_order_total Rows of a table written one by one in batches that were written as sets."
    ));
    line(format_args!("# TYPE walrelay_apply_rows_in_order_total counter"));
    for report in reports {
        for (table, rows) in &report.apply_rows_in_order {
            let (name, table) = (&report.name, escape_label(table));
            line(format_args!("walrelay_apply_rows_in_order_total{{pipeline=\"{name}\",table=\"{table}\"}} {rows}"));
        }
    }
    line(format_args!("# HELP walrelay_state 1 for the state the pipeline is in."));
    line(format_args!("# TYPE walrelay_state gauge"));
    for report in reports {
        for state in STATES {
            let value = u8::from(report.state == state);
            line(format_args!("walrelay_state{{pipeline=\"{}\",state=\"{}\"}} {value}", report.name, state.as_str()));
        }
    }
    page
}

/// A label's value as the text format wants it.
fn escape_label(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{FeedReport, PipelineName, SlotName};

    #[test]
    fn every_metric_has_help_and_type_and_a_pipeline() {
        let name = PipelineName::new("a").unwrap();
        let report = PipelineReport {
            transactions: 7,
            lag_bytes: Some(0),
            apply_fallbacks: vec![("public.odd \"t".to_owned(), "row_count", 3)],
            apply_rows_in_order: vec![("public.t".to_owned(), 5)],
            feed: Some(FeedReport { dead_letters: 2, ..FeedReport::default() }),
            ..PipelineReport::new(name.clone(), "postgres", SlotName::owned_by(&name))
        };
        let page = render(&[report]);
        for line in page.lines().filter(|line| !line.starts_with('#')) {
            let name = line.split(['{', ' ']).next().unwrap();
            assert!(page.contains(&format!("# HELP {name} ")) && page.contains(&format!("# TYPE {name} ")), "{line}");
        }
        assert!(page.contains("walrelay_transactions_total{pipeline=\"a\"} 7\n"), "{page}");
        let fallbacks = r#"walrelay_apply_fallbacks_total{pipeline="a",table="public.odd \"t",reason="row_count"} 3"#;
        assert!(page.contains(fallbacks), "{page}");
        let rows = "walrelay_apply_rows_in_order_total{pipeline=\"a\",table=\"public.t\"} 5\n";
        assert!(page.contains(rows), "{page}");
        assert!(page.contains("walrelay_feed_dead_letters_total{pipeline=\"a\"} 2\n"), "{page}");
        assert!(page.contains("walrelay_lag_bytes{pipeline=\"a\"} 0\n"), "{page}");
        assert!(page.contains("walrelay_state{pipeline=\"a\",state=\"starting\"} 1\n"), "{page}");
    }
}
