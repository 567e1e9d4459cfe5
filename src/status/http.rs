//! The HTTP listener. Answers from the board; changes nothing.

use std::sync::Arc;

use axum::Router;
use axum::extract::State as Shared;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::model::State;

use super::metrics::render;
use super::{Board, status_json};

/// Serves until stopped.
pub async fn serve(listener: TcpListener, board: Arc<Board>, stop: CancellationToken) {
    let router = Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/status", get(status))
        .route("/metrics", get(metrics))
        .with_state(board);
    if let Err(error) = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await {
        tracing::error!(%error, "the HTTP listener ended");
    }
}

/// 200 only when every pipeline streams; else who does not, and why.
async fn ready(Shared(board): Shared<Arc<Board>>) -> Response {
    let reports = board.reports();
    let others: Vec<String> = reports
        .iter()
        .filter(|report| report.state != State::Streaming)
        .map(|report| {
            let why = report.last_error.as_deref().or(report.waiting_for.as_deref());
            format!(
                "{}: {}{}\n",
                report.name,
                report.state.as_str(),
                why.map_or(String::new(), |why| format!(": {why}"))
            )
        })
        .collect();
    if others.is_empty() {
        "ready\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, others.concat()).into_response()
    }
}

async fn status(Shared(board): Shared<Arc<Board>>) -> Response {
    axum::Json(status_json(&board.reports())).into_response()
}

async fn metrics(Shared(board): Shared<Arc<Board>>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], render(&board.reports())).into_response()
}
