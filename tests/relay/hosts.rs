//! A url that leads to one server now and to another a moment later, as one with several hosts does: the stream begins only on the server over
//! which the rules of resume ran.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

use walrelay::throwaway::Server;

use super::harness::{Pair, Relay, server, values};
use super::rights::{drop_with, slots};

const TABLES: &str = "CREATE TABLE orders (id int PRIMARY KEY, item text)";

/// Listens for connections to `port` of this machine; the stream's own, which is known by its name, goes to the other port. Without TLS
/// only. Gives its own port.
async fn fork(port: u16, stream_port: Arc<AtomicU16>) -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let own = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let stream_port = Arc::clone(&stream_port);
            tokio::spawn(async move {
                // Either end may go away at any time.
                let _ = pass(near, port, &stream_port).await;
            });
        }
    });
    own
}

async fn pass(mut near: TcpStream, port: u16, stream_port: &AtomicU16) -> std::io::Result<()> {
    // The start-up message: its length, which counts itself, and what the session is to be.
    let length = near.read_u32().await?;
    let mut wishes = vec![0; length as usize - 4];
    near.read_exact(&mut wishes).await?;
    let name = b"application_name\0standby1\0";
    let is_stream = wishes.windows(name.len()).any(|part| part == name);
    let port = if is_stream { stream_port.load(Ordering::SeqCst) } else { port };
    let mut far = TcpStream::connect(("127.0.0.1", port)).await?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    far.write_u32(length).await?;
    far.write_all(&wishes).await?;
    copy_bidirectional(&mut near, &mut far).await.map(drop)
}

async fn waits_for(relay: &Relay, part: &str) {
    let is_met = |report: &serde_json::Value| {
        let waiting_for = report["waiting_for"].as_str().unwrap_or_default();
        report["state"] == "waiting" && waiting_for.contains("to lead to one server") && waiting_for.contains(part)
    };
    relay.wait("standby1", part, is_met).await;
}

/// Another server with a database `shop`, in recovery.
async fn physical_standby() -> Server {
    let mut other = server(18).await;
    values(&other, "postgres", "CREATE DATABASE shop").await;
    other.stop_fast();
    other.write("standby.signal", "").unwrap();
    other.start_again().await.unwrap();
    other
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_comes_to_another_server_than_the_rules_of_resume_waits_for_the_right_one() {
    let pair = Pair::start(18).await;
    pair.on_both(TABLES).await;
    pair.on_primary("INSERT INTO orders VALUES (1, 'x')").await;
    let other = physical_standby().await;
    let stream_port = Arc::new(AtomicU16::new(other.port()));
    let port = fork(pair.primary.port(), Arc::clone(&stream_port)).await;
    let direct = format!(":{}/shop", pair.primary.port());
    let relay = Relay::start(&pair.config("").replace(&direct, &format!(":{port}/shop?sslmode=disable"))).await;
    waits_for(&relay, "in recovery").await;
    values(&other, "postgres", "SELECT pg_promote()").await;
    waits_for(&relay, "its system identifier is").await;
    stream_port.store(pair.primary.port(), Ordering::SeqCst);
    relay.wait_state("streaming").await;
    pair.on_primary("INSERT INTO orders VALUES (2, 'after')").await;
    pair.equal_after_catching_up(&["orders"]).await;
}

/// The first of two hosts came back as a physical standby: it has no slot, and does not know who streams.
#[tokio::test(flavor = "multi_thread")]
async fn a_drop_that_comes_to_a_physical_standby_takes_nothing() {
    let pair = Pair::start(18).await;
    pair.on_both(TABLES).await;
    let relay = pair.relay("").await;
    let other = physical_standby().await;
    let direct = format!(":{}/shop", pair.primary.port());
    let drop_over = |query: &str| {
        let both = format!(":{},127.0.0.1{direct}{query}", other.port());
        drop_with(&pair.config("").replace(&direct, &both))
    };
    let (code, text) = drop_over("");
    assert!(code == Some(5) && text.contains("leads to is no primary: it is in recovery"), "{code:?}: {text}");
    // What it names as the remedy brings it to the primary, which knows.
    assert!(text.contains("target_session_attrs=read-write"), "{text}");
    let (code, text) = drop_over("?target_session_attrs=read-write");
    assert!(code == Some(5) && text.contains("a daemon streams \"standby1\""), "{code:?}: {text}");
    assert_eq!(slots(&pair).await, "walrelay_standby1");
    assert_eq!(relay.report("standby1").await.unwrap()["state"], "streaming");
}
