//! The JSON of `/status`, in the words of the contract and of `pg_stat_replication`.

use serde_json::{Value, json};

use crate::model::{FeedReport, Lsn, PipelineReport, PrefetchReport};

/// `{"version", "pipelines": […]}`.
pub fn status_json(reports: &[PipelineReport]) -> Value {
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "pipelines": reports.iter().map(pipeline).collect::<Vec<_>>(),
    })
}

fn pipeline(report: &PipelineReport) -> Value {
    let lsn = |lsn: Option<Lsn>| lsn.map(|lsn| lsn.to_string());
    let [write_lag, flush_lag, replay_lag] = report.server_lags_seconds;
    json!({
        "name": report.name.as_str(),
        "state": report.state.as_str(),
        "sink": report.sink,
        "slot": report.slot.as_str(),
        "sync_state": report.sync_state,
        "sent_lsn": lsn(report.sent_lsn),
        "write_lsn": lsn(report.write_lsn),
        "flush_lsn": lsn(report.flush_lsn),
        "replay_lsn": lsn(report.replay_lsn),
        "lag_bytes": report.lag_bytes,
        "lag_seconds": report.lag_seconds,
        "retained_wal_bytes": report.retained_wal_bytes,
        "transactions": report.transactions,
        "rows": report.rows,
        "copy": {
            "tables_total": report.copy.tables_total,
            "tables_done": report.copy.tables_done,
            "rows": report.copy.rows,
            "bytes": report.copy.bytes,
        },
        "last_error": report.last_error,
        "waiting_for": report.waiting_for,
        "write_lag_seconds": write_lag,
        "flush_lag_seconds": flush_lag,
        "replay_lag_seconds": replay_lag,
        "wal_status": report.wal_status,
        "safe_wal_size_bytes": report.safe_wal_size_bytes,
        "transactions_per_second": report.transactions_per_second,
        "rows_per_second": report.rows_per_second,
        "memory_bytes": report.memory_bytes,
        "spool_bytes": report.spool_bytes,
        "apply_fallbacks_total": report.apply_fallbacks.iter().map(|(.., count)| count).sum::<u64>(),
        "feed": report.feed.map(feed),
        "prefetch": report.prefetch.map(prefetch),
        "interruptions": report.interruptions,
    })
}

fn feed(feed: FeedReport) -> Value {
    json!({
        "records": feed.records,
        "bytes": feed.bytes,
        "lossy_values": feed.lossy_values,
        "dead_letters": feed.dead_letters,
        "skipped_truncates": feed.skipped_truncates,
    })
}

fn prefetch(prefetch: PrefetchReport) -> Value {
    json!({
        "is_on": prefetch.is_on,
        "rows": prefetch.rows,
        "block_reads_per_row": prefetch.block_reads_per_row,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{PipelineName, SlotName};

    #[test]
    fn the_keys_of_the_contract_come_first_and_in_order() {
        let name = PipelineName::new("standby1").unwrap();
        let report = PipelineReport {
            replay_lsn: Some(Lsn(0x16_B374_D848)),
            ..PipelineReport::new(name.clone(), "postgres", SlotName::owned_by(&name))
        };
        let json = status_json(&[report]);
        let keys: Vec<&String> = json["pipelines"][0].as_object().unwrap().keys().collect();
        assert_eq!(
            keys[..16],
            [
                "name",
                "state",
                "sink",
                "slot",
                "sync_state",
                "sent_lsn",
                "write_lsn",
                "flush_lsn",
                "replay_lsn",
                "lag_bytes",
                "lag_seconds",
                "retained_wal_bytes",
                "transactions",
                "rows",
                "copy",
                "last_error"
            ]
        );
        assert_eq!(json["pipelines"][0]["replay_lsn"], "16/B374D848");
        assert_eq!(json["pipelines"][0]["state"], "starting");
    }
}
