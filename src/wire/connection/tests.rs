//! The connection against a scripted peer on a socket pair: torn reads, cancelled reads, full buffers, last words.

use std::time::Duration;

use futures_util::FutureExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::time::timeout;

use super::*;
use crate::wire::transport::Socket;

fn pair() -> (Connection, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut connection = Connection::new(Transport::Plain(Socket::Unix(ours)), "test".to_owned());
    connection.set_ready();
    (connection, theirs)
}

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![tag];
    bytes.extend((body.len() as u32 + 4).to_be_bytes());
    bytes.extend(body);
    bytes
}

#[test]
fn a_version_text_is_a_number() {
    for (text, number) in [
        ("18.4", 180_004),
        ("15.18 (Debian 15.18-0+deb12u1)", 150_018),
        ("14.23", 140_023),
        ("19devel", 190_000),
        ("19beta1", 190_000),
        ("", 0),
    ] {
        assert_eq!(version_number(text), number, "{text}");
    }
}

#[test]
fn a_data_row_is_read_or_refused() {
    let row = data_row(&Bytes::from_static(b"\0\x03\0\0\0\x02ab\xff\xff\xff\xff\0\0\0\0")).unwrap();
    assert_eq!(row, [Some(Bytes::from_static(b"ab")), None, Some(Bytes::new())]);
    for body in [&b""[..], b"\0", b"\0\x01", b"\0\x01\0\0\0\x05ab", b"\0\x01\x7f\xff\xff\xff", b"\xff\xff"] {
        assert!(data_row(&Bytes::copy_from_slice(body)).is_err());
    }
}

#[tokio::test]
async fn a_chunk_holds_whole_messages_however_they_arrive() {
    let (mut connection, mut peer) = pair();
    let bytes = [message(b'd', b"first"), message(b'd', b""), message(b'd', &[7; 300])].concat();
    for piece_bytes in [1, 3, 7, 100, bytes.len()] {
        let sent = bytes.clone();
        let writer = async {
            for piece in sent.chunks(piece_bytes) {
                peer.write_all(piece).await.unwrap();
                tokio::task::yield_now().await;
            }
        };
        let reader = async {
            let mut received = Vec::new();
            while received.len() < bytes.len() {
                let chunk = connection.read_chunk().await.unwrap();
                assert!(frame::frames(&chunk).all(|frame| frame.is_ok()));
                received.extend_from_slice(&chunk);
            }
            received
        };
        let ((), received) = tokio::join!(writer, reader);
        assert_eq!(received, bytes, "in pieces of {piece_bytes}");
    }
}

#[tokio::test]
async fn what_is_there_is_taken_without_waiting_and_a_torn_tail_stays() {
    let (mut connection, mut peer) = pair();
    let take = |connection: &mut Connection| connection.take_now().unwrap().map_or(0, |chunk| chunk.len());
    assert_eq!(take(&mut connection), 0);
    let (short, long) = (message(b'd', b"short"), message(b'd', &[7; 20_000]));
    peer.write_all(&[&short[..], &long[..5]].concat()).await.unwrap();
    assert_eq!(take(&mut connection), short.len());
    assert_eq!(take(&mut connection), 0);
    peer.write_all(&long[5..]).await.unwrap();
    assert_eq!(take(&mut connection), long.len());
    // More than one read may take: the rest comes later.
    peer.write_all(&long.repeat(8)).await.unwrap();
    let first = take(&mut connection);
    assert!((3 * long.len()..8 * long.len()).contains(&first), "{first}");
    assert_eq!(first + take(&mut connection) + take(&mut connection), 8 * long.len());
    drop(peer);
    assert_eq!(take(&mut connection), 0);
    assert!(matches!(connection.read_chunk().await, Err(WireError::Closed)));
}

#[tokio::test]
async fn what_a_mark_kept_back_is_read_at_once_when_the_mark_is_lowered() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let ours = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (mut peer, _) = listener.accept().await.unwrap();
    let mut connection = Connection::new(Transport::Plain(Socket::Tcp(ours)), "test".to_owned());
    let bytes = message(b'd', b"kept back");
    for _ in 0..3 {
        connection.set_receive_low_water(1_000);
        peer.write_all(&bytes).await.unwrap();
        assert!(timeout(Duration::from_millis(5), connection.read_chunk()).await.is_err());
        connection.set_receive_low_water(1);
        // Without a pass of the runtime.
        assert_eq!(connection.read_chunk().now_or_never().unwrap().unwrap(), bytes);
    }
}

#[tokio::test]
async fn a_read_that_is_given_up_loses_nothing() {
    let (mut connection, mut peer) = pair();
    let bytes = message(b'd', b"whole");
    for at in 1..bytes.len() {
        let (first, second) = bytes.split_at(at);
        peer.write_all(first).await.unwrap();
        assert!(timeout(Duration::from_millis(1), connection.read_chunk()).await.is_err());
        assert!(timeout(Duration::from_millis(1), connection.next_message()).await.is_err());
        peer.write_all(second).await.unwrap();
        assert_eq!(connection.read_chunk().await.unwrap(), bytes);
    }
}

#[tokio::test]
async fn small_chunks_share_a_buffer_and_large_ones_make_it_grow() {
    let (mut connection, mut peer) = pair();
    let mut kept = Vec::new();
    for _ in 0..200 {
        peer.write_all(&message(b'd', &[1; 95])).await.unwrap();
        kept.push(connection.read_chunk().await.unwrap());
    }
    let buffers: std::collections::HashSet<usize> = kept
        .windows(2)
        .filter(|two| two[0].as_ptr() as usize + 100 != two[1].as_ptr() as usize)
        .map(|two| two[0].as_ptr() as usize)
        .collect();
    assert!(buffers.is_empty(), "200 chunks of 100 bytes stand in {} buffers", buffers.len() + 1);

    let large = message(b'd', &vec![2; 20 << 20]);
    let sent = large.clone();
    let (result, chunk) = tokio::join!(peer.write_all(&sent), connection.read_chunk());
    result.unwrap();
    assert!(chunk.unwrap() == large);
}

#[tokio::test]
async fn a_length_that_lies_allocates_nothing() {
    let (mut connection, mut peer) = pair();
    peer.write_all(b"d\x3f\xff\xff\xffsome bytes").await.unwrap();
    assert!(timeout(Duration::from_millis(5), connection.read_chunk()).await.is_err());
    assert!(connection.incoming.capacity() <= 2 * READ_BYTES);
    peer.write_all(&[0; 100]).await.unwrap();
    drop(peer);
    assert!(matches!(connection.read_chunk().await, Err(WireError::Closed)));

    let (mut connection, mut peer) = pair();
    peer.write_all(b"d\0\0\0\x03").await.unwrap();
    assert!(matches!(connection.read_chunk().await, Err(WireError::Length { length: 3, .. })));
}

#[tokio::test]
async fn before_the_session_is_ready_messages_are_short() {
    let (mut connection, mut peer) = pair();
    connection.limit_bytes = START_LIMIT_BYTES;
    peer.write_all(b"R\x00\x10\x00\x00").await.unwrap();
    let error = connection.next_message().await.unwrap_err();
    assert!(error.to_string().contains("starting a session"), "{error}");
}

#[tokio::test]
async fn a_peer_that_answers_before_it_reads_on_never_blocks_us() {
    let (mut connection, mut peer) = pair();
    let question = message(b'd', &[1; 1000]);
    let count = 3000;
    // Reads one question, writes one answer of the same size, and waits until that is taken.
    let server = tokio::spawn(async move {
        let mut buffer = vec![0; 1005];
        for _ in 0..count {
            peer.read_exact(&mut buffer).await.unwrap();
            peer.write_all(&buffer).await.unwrap();
        }
        peer
    });
    for _ in 0..count {
        connection.outgoing().extend_from_slice(&question);
    }
    timeout(Duration::from_secs(20), connection.drain_outgoing(0)).await.unwrap().unwrap();
    let mut answers = 0;
    while answers < count {
        match connection.try_next_message().unwrap() {
            Some(message) => {
                assert_eq!((message.tag, message.body.len()), (b'd', 1000));
                answers += 1;
            }
            None => drop(timeout(Duration::from_secs(20), connection.pump()).await.unwrap().unwrap()),
        }
    }
    server.await.unwrap();
}

#[tokio::test]
async fn a_message_is_heard_while_the_peer_reads_nothing() {
    let (mut connection, mut peer) = pair();
    let bytes = vec![7; 8 << 20];
    connection.outgoing().extend_from_slice(&bytes);
    peer.write_all(&message(b'Z', b"I")).await.unwrap();
    let is_written = timeout(Duration::from_secs(20), connection.drain_or_hear(0)).await.unwrap().unwrap();
    assert!(!is_written);
    assert_eq!(connection.try_next_message().unwrap().unwrap().tag, b'Z');
    let mut received = vec![0; bytes.len()];
    let (is_written, read) = tokio::join!(connection.drain_or_hear(0), peer.read_exact(&mut received));
    assert!(is_written.unwrap());
    read.unwrap();
    assert!(received == bytes);
}

/// Linux takes a living peer whose window stays full for a dead one.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_session_that_pushes_rows_outlasts_a_server_that_reads_nothing() {
    use socket2::SockRef;

    fn limit(connection: &Connection) -> Option<Duration> {
        SockRef::from(connection.transport.tcp().unwrap()).tcp_user_timeout().unwrap()
    }

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = crate::wire::transport::Address::Tcp(listener.local_addr().unwrap());
    let (mut connections, mut peers) = (Vec::new(), Vec::new());
    for _ in 0..2 {
        let socket = Socket::connect(&address).await.unwrap();
        connections.push(Connection::new(Transport::Plain(socket), "test".to_owned()));
        peers.push(listener.accept().await.unwrap().0);
    }
    let [other, pushing] = &mut connections[..] else { panic!("two were opened") };
    assert_eq!(limit(other), Some(Duration::from_secs(60)));
    for connection in [&mut *other, &mut *pushing] {
        // The same in less time.
        let socket = SockRef::from(connection.transport.tcp().unwrap());
        socket.set_tcp_user_timeout(Some(Duration::from_millis(300))).unwrap();
        connection.outgoing().extend_from_slice(&vec![7; 16 << 20]);
    }
    pushing.lift_send_limit();
    assert_eq!(limit(pushing), None);
    tokio::select! {
        biased;
        lost = timeout(Duration::from_secs(20), other.flush()) => assert!(lost.unwrap().is_err()),
        _ = pushing.flush() => panic!("written, or lost, though nobody has read it"),
    }
    let mut received = vec![0; 16 << 20];
    let (sent, read) = tokio::join!(pushing.flush(), peers[1].read_exact(&mut received));
    sent.unwrap();
    read.unwrap();
}

#[tokio::test]
async fn the_servers_last_words_are_heard_when_a_write_fails() {
    let fatal = message(b'E', b"SFATAL\0VFATAL\0C57P01\0Mterminating connection\0\0");
    for large in [false, true] {
        let (mut connection, mut peer) = pair();
        peer.write_all(&message(b'd', b"before")).await.unwrap();
        peer.write_all(&fatal).await.unwrap();
        drop(peer);
        connection.outgoing().extend_from_slice(&vec![0; if large { 1 << 20 } else { 10 }]);
        let error = connection.flush().await.unwrap_err();
        assert_eq!(error.code(), Some("57P01"), "{error}");
    }
}

#[tokio::test]
async fn a_fatal_answer_to_a_query_is_the_error_and_the_parameters_are_noted() {
    let (mut connection, mut peer) = pair();
    peer.write_all(&message(b'S', b"in_hot_standby\0on\0")).await.unwrap();
    peer.write_all(&message(b'E', b"SFATAL\0VFATAL\0C57P01\0Mterminating connection\0\0")).await.unwrap();
    let reader = tokio::spawn(async move {
        let mut sent = [0; 14];
        peer.read_exact(&mut sent).await.unwrap();
        sent
    });
    let error = connection.simple_query("SELECT 1").await.unwrap_err();
    assert_eq!(error.code(), Some("57P01"), "{error}");
    assert_eq!(connection.parameter("in_hot_standby"), Some("on"));
    assert_eq!(&reader.await.unwrap(), b"Q\0\0\0\x0dSELECT 1\0");
}

#[tokio::test]
async fn debug_output_shows_no_bytes_of_messages() {
    let (mut connection, _peer) = pair();
    connection.outgoing().extend_from_slice(b"s3cret");
    let message = OwnedMessage { tag: b'D', body: Bytes::from_static(b"s3cret") };
    let text = format!("{connection:?} {message:?}");
    assert!(!text.contains("s3cret") && text.contains("test") && text.contains("6 bytes"), "{text}");
}

proptest::proptest! {
    #[test]
    fn any_data_row_is_read_or_refused_without_a_panic(body in proptest::collection::vec(proptest::num::u8::ANY, 0..60)) {
        if let Ok(row) = data_row(&Bytes::from(body.clone())) {
            assert_eq!(row.len(), usize::from(u16::from_be_bytes([body[0], body[1]])));
        }
    }
}
