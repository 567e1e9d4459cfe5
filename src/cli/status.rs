//! `walrelay status`: a table a person reads, from the daemon's `/status`.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::config::Environment;

use super::{Exit, complain, configuration, errand_runtime};

/// An answer that takes longer is none.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// Longest answer read.
const ANSWER_BYTES_LIMIT: u64 = 16 << 20;

/// Show what the running daemon does, from its /status
#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    /// Configuration file [default: ./walrelay.toml, else /etc/walrelay/walrelay.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The daemon's answer as it is
    #[arg(long)]
    json: bool,
    /// Again every second
    #[arg(long)]
    watch: bool,
}

pub(super) fn run(args: &StatusArgs) -> Exit {
    let config = match configuration(args.config.as_deref(), &Environment::of_process()) {
        Ok(config) => config,
        Err(exit) => return exit,
    };
    let Some(address) = config.http else {
        complain(
            &"the configuration has no [http] listen: without it the daemon shows no status; add e.g. listen = \"127.0.0.1:9187\"",
        );
        return Exit::Configuration;
    };
    let runtime = match errand_runtime() {
        Ok(runtime) => runtime,
        Err(exit) => return exit,
    };
    runtime.block_on(show(address, args))
}

async fn show(address: SocketAddr, args: &StatusArgs) -> Exit {
    loop {
        let answer = match tokio::time::timeout(ANSWER_LIMIT, get(address, "/status")).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(reason)) => return unreachable_daemon(address, &reason.to_string()),
            Err(_) => return unreachable_daemon(address, "no answer within 5 s"),
        };
        let text = if args.json { format!("{}\n", answer.trim_end()) } else { table_of(&answer) };
        let clear = if args.watch && !args.json { "\x1b[2J\x1b[H" } else { "" };
        if std::io::stdout().write_all(format!("{clear}{text}").as_bytes()).is_err() || !args.watch {
            return Exit::Done;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

fn unreachable_daemon(address: SocketAddr, reason: &str) -> Exit {
    complain(&format!("no walrelay answers at {address}: {reason}. Is `walrelay run` up with this configuration?"));
    Exit::Unreachable
}

/// One GET over HTTP/1.1; the body of a 200.
pub(super) async fn get(address: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_LIMIT).read_to_end(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let first = head.lines().next().unwrap_or("");
    if first.contains(" 200 ") {
        Ok(body.to_owned())
    } else {
        Err(std::io::Error::other(format!("it answered: {first}")))
    }
}

const COLUMNS: &[(&str, &str)] = &[
    ("name", "PIPELINE"),
    ("state", "STATE"),
    ("sync_state", "SYNC"),
    ("replay_lsn", "REPLAY"),
    ("lag_bytes", "LAG"),
    ("lag_seconds", "LAG S"),
    ("retained_wal_bytes", "RETAINED"),
    ("transactions_per_second", "TX/S"),
    ("rows_per_second", "ROWS/S"),
    ("rows", "ROWS"),
    ("copy", "COPY"),
];

fn table_of(answer: &str) -> String {
    let Ok(status) = serde_json::from_str::<Value>(answer) else { return format!("{answer}\n") };
    let pipelines = status["pipelines"].as_array().cloned().unwrap_or_default();
    let mut rows = vec![COLUMNS.iter().map(|(_, title)| (*title).to_owned()).collect::<Vec<_>>()];
    rows.extend(pipelines.iter().map(|pipeline| COLUMNS.iter().map(|(key, _)| cell(key, &pipeline[*key])).collect()));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..COLUMNS.len()).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    for pipeline in &pipelines {
        for (key, word) in [("waiting_for", "waits for"), ("last_error", "last error")] {
            if let Some(reason) = pipeline[key].as_str() {
                text.push_str(&format!("\n{} {word}: {reason}\n", pipeline["name"].as_str().unwrap_or("")));
            }
        }
    }
    text
}

fn cell(key: &str, value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Object(copy) => match (copy["tables_done"].as_u64(), copy["tables_total"].as_u64()) {
            (Some(done), Some(total)) if total > 0 => format!("{done}/{total} tables"),
            _ => "-".to_owned(),
        },
        value if key.ends_with("_bytes") => value.as_f64().map_or("-".to_owned(), bytes_text),
        value => value.as_f64().map_or_else(
            || value.to_string(),
            |number| {
                if number.fract() == 0.0 { format!("{number:.0}") } else { format!("{number:.1}") }
            },
        ),
    }
}

fn bytes_text(bytes: f64) -> String {
    let (mut value, mut unit) = (bytes, "B");
    for next in ["kB", "MB", "GB", "TB"] {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    if unit == "B" { format!("{value:.0} B") } else { format!("{value:.1} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_reads_one_line_a_pipeline() {
        let answer = serde_json::json!({"version": "0.1.0", "pipelines": [{"name": "standby1", "state": "streaming", "sync_state": "sync",
            "replay_lsn": "0/1", "lag_bytes": 2048, "lag_seconds": 0.0, "retained_wal_bytes": null, "transactions_per_second": 12.25,
            "rows_per_second": 0.0, "rows": 7, "copy": {"tables_total": 2, "tables_done": 1}, "last_error": "lost", "waiting_for": null}]});
        let table = table_of(&answer.to_string());
        assert!(table.contains("standby1  streaming  sync  0/1     2.0 kB  0"), "{table}");
        assert!(table.contains("1/2 tables") && table.contains("standby1 last error: lost"), "{table}");
    }
}
