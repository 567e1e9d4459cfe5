//! Builds the messages of a replication stream byte by byte, and renders arrivals as text. Row bodies are a text that tells
//! them apart, not tuples: the assembler never looks at them.

use crate::decode::stream_xid;
use crate::model::Transaction;
use crate::wire::frame::frames;

use super::super::Arrival;

fn copy_data(body: &[u8]) -> Vec<u8> {
    let length = (body.len() + 4) as u32;
    [&b"d"[..], &length.to_be_bytes(), body].concat()
}

fn xlog_data(tag: u8, fields: &[&[u8]]) -> Vec<u8> {
    copy_data(&[&[b'w'][..], &[0; 24], &[tag], &fields.concat()].concat())
}

pub(super) fn keepalive(wal_end: u64) -> Vec<u8> {
    copy_data(&[&b"k"[..], &wal_end.to_be_bytes(), &[0; 8], &[1]].concat())
}

pub(super) fn begin(xid: u32, final_lsn: u64) -> Vec<u8> {
    xlog_data(b'B', &[&final_lsn.to_be_bytes(), &[0; 8], &xid.to_be_bytes()])
}

/// A commit whose record is 8 bytes long.
pub(super) fn commit(commit_lsn: u64) -> Vec<u8> {
    xlog_data(b'C', &[&[0], &commit_lsn.to_be_bytes(), &(commit_lsn + 8).to_be_bytes(), &[0; 8]])
}

pub(super) fn origin(name: &str) -> Vec<u8> {
    xlog_data(b'O', &[&[0; 8], name.as_bytes(), &[0]])
}

/// A message of an ordinary body: tag and text.
pub(super) fn change(tag: u8, text: &str) -> Vec<u8> {
    xlog_data(tag, &[text.as_bytes()])
}

/// A message inside a streamed block.
pub(super) fn streamed(tag: u8, xid: u32, text: &str) -> Vec<u8> {
    xlog_data(tag, &[&xid.to_be_bytes(), text.as_bytes()])
}

pub(super) fn logical(is_transactional: bool, content: &str) -> Vec<u8> {
    let length = (content.len() as u32).to_be_bytes();
    xlog_data(b'M', &[&[u8::from(is_transactional)], &77u64.to_be_bytes(), b"p\0", &length, content.as_bytes()])
}

pub(super) fn stream_start(xid: u32, is_first: bool) -> Vec<u8> {
    xlog_data(b'S', &[&xid.to_be_bytes(), &[u8::from(is_first)]])
}

pub(super) fn stream_stop() -> Vec<u8> {
    xlog_data(b'E', &[])
}

pub(super) fn stream_commit(xid: u32, commit_lsn: u64) -> Vec<u8> {
    let end_lsn = commit_lsn + 8;
    xlog_data(b'c', &[&xid.to_be_bytes(), &[0], &commit_lsn.to_be_bytes(), &end_lsn.to_be_bytes(), &[0; 8]])
}

pub(super) fn stream_abort(xid: u32, subxid: u32) -> Vec<u8> {
    xlog_data(b'A', &[&xid.to_be_bytes(), &subxid.to_be_bytes()])
}

pub(super) fn two_phase(tag: u8) -> Vec<u8> {
    let flags: &[u8] = if tag == b'b' { &[] } else { &[0] };
    let times: usize = if tag == b'r' { 32 } else { 24 };
    xlog_data(tag, &[flags, &vec![0; times], &9u32.to_be_bytes(), b"gid\0"])
}

/// `T7@108 origin? streamed? rows 2 [Ia Ib]`; reads the body, wherever it is, and checks its sizes.
pub(super) fn render(arrival: Arrival) -> String {
    match arrival {
        Arrival::Keepalive { wal_end, reply_requested, .. } => {
            assert!(reply_requested);
            format!("k{}", wal_end.0)
        }
        Arrival::Message(message) => {
            format!("M{} {} {}", message.lsn.0, message.prefix, String::from_utf8_lossy(&message.content))
        }
        Arrival::Transaction(transaction) => render_transaction(transaction),
    }
}

fn render_transaction(mut transaction: Transaction) -> String {
    assert_eq!(transaction.commit_lsn.0 + 8, transaction.end_lsn.0);
    let mut texts = Vec::new();
    let mut size_bytes = 0;
    let mut rows = 0;
    while let Some(chunk) = transaction.next_chunk().unwrap() {
        size_bytes += chunk.len() as u64;
        for frame in frames(&chunk) {
            let payload = &frame.unwrap().body[25..];
            let skipped = if transaction.streamed { 5 } else { 1 };
            let text = String::from_utf8_lossy(&payload[skipped..]);
            let sub = if transaction.streamed { stream_xid(payload).unwrap() - transaction.xid } else { 0 };
            let sub = if sub == 0 { String::new() } else { format!("/{sub}") };
            texts.push(format!("{}{text}{sub}", char::from(payload[0])));
            rows += u64::from(b"IUD".contains(&payload[0]));
        }
    }
    assert_eq!((size_bytes, rows), (transaction.size_bytes, transaction.rows));
    let origin = transaction.origin.map(|name| format!(" from {name}")).unwrap_or_default();
    let streamed = if transaction.streamed { " streamed" } else { "" };
    format!("T{}@{}{origin}{streamed} [{}]", transaction.xid, transaction.end_lsn.0, texts.join(" "))
}
