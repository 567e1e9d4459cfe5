//! The HTTP listener. Answers from the board; changes nothing, and is not kept busy by whoever is silent, slow or stays.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State as Shared;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::serve::Listener;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::model::State;

use super::metrics::render;
use super::{Board, status_json};

/// How many may be connected at once; others wait.
const MOST_VISITORS: usize = 64;
/// How long a connection may take with all that it asks and hears.
const SILENCE_LIMIT: Duration = Duration::from_secs(60);

/// Serves until stopped; who is connected then is cut off.
pub async fn serve(listener: TcpListener, board: Arc<Board>, stop: CancellationToken) {
    serve_within(SILENCE_LIMIT, listener, board, stop).await;
}

async fn serve_within(silence: Duration, mut listener: TcpListener, board: Arc<Board>, stop: CancellationToken) {
    let router = Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/status", get(status))
        .route("/metrics", get(metrics))
        .with_state(board);
    let mut visitors = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            Some(_) = visitors.join_next() => {}
            (stream, _) = Listener::accept(&mut listener), if visitors.len() < MOST_VISITORS => {
                visitors.spawn(attend(stream, router.clone(), silence));
            }
        }
    }
}

/// One request and its answer: who stays afterwards would keep a place that `/readyz` may need. What goes wrong on it is the other
/// side's affair.
async fn attend(stream: TcpStream, router: Router, silence: Duration) {
    // Whoever does not read the answer is not waited for either.
    let _ = SockRef::from(&stream).set_tcp_user_timeout(Some(silence));
    let visit = http1::Builder::new()
        .keep_alive(false)
        .timer(TokioTimer::new())
        .header_read_timeout(silence)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    // One byte now and then would keep every other limit away.
    let _ = tokio::time::timeout(silence, visit).await;
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn who_has_an_answer_makes_room_for_the_next() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let server = tokio::spawn(serve(listener, Arc::default(), stop.clone()));
        let mut staying = Vec::new();
        for _ in 0..=MOST_VISITORS {
            let mut visitor = TcpStream::connect(address).await.unwrap();
            visitor.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: keep-alive\r\n\r\n").await.unwrap();
            let mut answer = [0; 15];
            let reading = visitor.read_exact(&mut answer);
            tokio::time::timeout(SILENCE_LIMIT / 2, reading).await.expect("it waits for the others to go").unwrap();
            assert_eq!(&answer, b"HTTP/1.1 200 OK");
            staying.push(visitor);
        }
        stop.cancel();
        server.await.unwrap();
    }

    #[tokio::test]
    async fn who_is_silent_makes_room_for_who_asks() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let server = tokio::spawn(serve_within(Duration::from_millis(50), listener, Arc::default(), stop.clone()));
        let mut silent = Vec::new();
        for _ in 0..MOST_VISITORS {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        let mut visitor = TcpStream::connect(address).await.unwrap();
        visitor.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut answer = [0; 15];
        visitor.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200 OK");
        // The last of them was let in once the others were sent away; all of them are in the end.
        for mut stream in silent {
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
            assert!(rest.is_empty() || rest.starts_with(b"HTTP/1.1 408"), "{rest:?}");
        }
        stop.cancel();
        server.await.unwrap();
    }
}
