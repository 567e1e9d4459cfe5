//! What is held where: the memory limit, the spool folder, and its failures.

use std::fs;

use bytes::Bytes;

use crate::model::{Body, Retry};

use super::messages::*;
use super::{Arrival, AssembleError, Fixture, NO_LIMIT};

const MIB: u64 = 1024 * 1024;

/// `count` messages of about 200 bytes, in chunks of 256 KiB.
fn chunks_of(count: u64, message: impl Fn(u64) -> Vec<u8>) -> Vec<Bytes> {
    let mut chunks = Vec::new();
    let mut chunk = Vec::new();
    for index in 0..count {
        chunk.extend(message(index));
        if chunk.len() >= 256 * 1024 || index == count - 1 {
            chunks.push(Bytes::from(std::mem::take(&mut chunk)));
        }
    }
    chunks
}

/// Pushes a transaction of 20 MB under a limit of 1 MiB, and compares the rows that come out with those that went in.
fn check_bounded(first: Vec<u8>, chunks: Vec<Bytes>, last: Vec<u8>) {
    let mut fixture = Fixture::new(MIB);
    let mut out = Vec::new();
    fixture.assembler.push(first.into(), &mut out).unwrap();
    let sent: Vec<u8> = chunks.concat();
    let mut most_bytes = 0;
    for chunk in chunks {
        fixture.assembler.push(chunk, &mut out).unwrap();
        most_bytes = most_bytes.max(fixture.budget.used_bytes());
        assert!(!fixture.assembler.must_wait());
        assert_eq!(fixture.assembler.open_bytes(), fixture.budget.used_bytes());
    }
    assert!(most_bytes <= MIB, "{most_bytes} bytes were held");
    assert!(fixture.spool.used_bytes() > sent.len() as u64 - MIB);
    fixture.assembler.push(last.into(), &mut out).unwrap();

    let Some(Arrival::Transaction(mut transaction)) = out.pop() else { panic!("no transaction") };
    assert!(matches!(transaction.body, Body::Spooled(_)));
    assert_eq!(transaction.rows, 100_000);
    assert!(fixture.budget.used_bytes() < 1024, "a spooled transaction holds no rows in memory");
    let mut received = Vec::new();
    while let Some(chunk) = transaction.next_chunk().unwrap() {
        assert!(chunk.len() as u64 <= MIB);
        received.extend_from_slice(&chunk);
    }
    assert!(received == sent, "{} bytes came out, {} went in", received.len(), sent.len());
    drop(transaction);
    fixture.check_clean();
}

#[test]
fn a_large_streamed_transaction_passes_in_bounded_memory() {
    let row = |index| streamed(b'I', 9, &format!("{index:0160}"));
    let mut last = stream_stop();
    last.extend(stream_commit(9, 100));
    check_bounded(stream_start(9, true), chunks_of(100_000, row), last);
}

#[test]
fn a_large_ordinary_transaction_passes_in_bounded_memory() {
    let row = |index| change(b'I', &format!("{index:0160}"));
    check_bounded(begin(9, 100), chunks_of(100_000, row), commit(100));
}

#[test]
fn a_rollback_in_a_spooled_transaction_shortens_its_file_and_keeps_relations() {
    let mut fixture = Fixture::new(MIB);
    let mut out = Vec::new();
    let mut push = |fixture: &mut Fixture, bytes: Vec<u8>| fixture.assembler.push(bytes.into(), &mut out).unwrap();
    push(&mut fixture, stream_start(9, true));
    push(&mut fixture, streamed(b'I', 9, "before"));
    for chunk in chunks_of(50_000, |index| streamed(b'I', 10, &format!("{index:0160}"))) {
        push(&mut fixture, chunk.to_vec());
    }
    push(&mut fixture, [streamed(b'R', 10, "t"), streamed(b'I', 10, "x"), stream_stop()].concat());
    assert!(fixture.spool.used_bytes() > 5 * MIB);
    push(&mut fixture, stream_abort(9, 10));
    assert!(fixture.spool.used_bytes() < 1000, "{} bytes are left in the file", fixture.spool.used_bytes());
    push(&mut fixture, stream_commit(9, 100));
    assert_eq!(out.drain(..).map(render).collect::<Vec<_>>(), ["T9@108 streamed [Ibefore Rt/1]"]);
    fixture.check_clean();
}

/// All but the descriptions is made unreadable in the file: who reads more of it meets an error.
#[test]
fn a_rollback_in_a_spooled_transaction_reads_nothing_but_descriptions() {
    let mut fixture = Fixture::new(MIB);
    let mut out = Vec::new();
    let mut push = |fixture: &mut Fixture, bytes: Vec<u8>| fixture.assembler.push(bytes.into(), &mut out).unwrap();
    let kept = streamed(b'I', 9, "before");
    push(&mut fixture, [stream_start(9, true), kept.clone(), streamed(b'U', 10, "first")].concat());
    for (part, tag) in [b'Y', b'R'].into_iter().enumerate() {
        push(&mut fixture, streamed(tag, 10, &format!("abcd{part}")));
        for chunk in chunks_of(20_000, |index| streamed(b'U', 10, &format!("{index:0160}"))) {
            push(&mut fixture, chunk.to_vec());
        }
    }
    // The last one is still in memory, with rows around it.
    let last = [streamed(b'R', 11, "abcd2"), streamed(b'I', 11, "x"), stream_stop()];
    push(&mut fixture, last.concat());

    let mut files: Vec<_> = fs::read_dir(fixture.spool.folder()).unwrap().map(|file| file.unwrap().path()).collect();
    let (path, none) = (files.pop().unwrap(), files.pop());
    assert_eq!(none, None);
    let mut bytes = fs::read(&path).unwrap();
    assert_eq!(bytes.len() as u64, fixture.spool.used_bytes());
    let (mut at, mut descriptions) = (kept.len(), 0);
    while at < bytes.len() {
        let end = at + 1 + u32::from_be_bytes(bytes[at + 1..at + 5].try_into().unwrap()) as usize;
        match bytes[at + 30] {
            b'R' | b'Y' => descriptions += 1,
            _ => bytes[at..end].fill(0),
        }
        at = end;
    }
    assert_eq!(descriptions, 2);
    fs::write(&path, bytes).unwrap();

    push(&mut fixture, [stream_abort(9, 10), stream_commit(9, 100)].concat());
    assert_eq!(out.drain(..).map(render).collect::<Vec<_>>(), ["T9@108 streamed [Ibefore Yabcd0/1 Rabcd1/1 Rabcd2/2]"]);
    fixture.check_clean();
}

#[test]
fn many_rollbacks_in_memory_hold_no_more_than_what_is_left() {
    let mut fixture = Fixture::new(NO_LIMIT);
    let mut out = Vec::new();
    for index in 0..2000 {
        let texts = [streamed(b'I', 9, "kept"), streamed(b'I', 10 + index, &".".repeat(3000)), stream_stop()];
        fixture.assembler.push([stream_start(9, index == 0), texts.concat()].concat().into(), &mut out).unwrap();
        fixture.assembler.push(stream_abort(9, 10 + index).into(), &mut out).unwrap();
    }
    // 2000 rows of 39 bytes.
    assert!(fixture.assembler.open_bytes() < 300_000, "{} bytes are held", fixture.assembler.open_bytes());
    fixture.check_clean();
}

#[test]
fn a_small_transaction_beside_streamed_blocks_pins_no_chunk() {
    let mut fixture = Fixture::new(NO_LIMIT);
    let mut out = Vec::new();
    let big = streamed(b'I', 9, &".".repeat(100_000));
    let small = [begin(7, 100), change(b'I', "a"), commit(100)].concat();
    let chunk = Bytes::from([stream_start(9, true), big, stream_stop(), small.clone()].concat());
    let addresses = chunk.as_ptr_range();
    fixture.assembler.push(chunk.clone(), &mut out).unwrap();
    let Some(Arrival::Transaction(mut transaction)) = out.pop() else { panic!("no transaction") };
    let rows = transaction.next_chunk().unwrap().unwrap();
    assert!(!addresses.contains(&rows.as_ptr()));
    // With no stream open it stays where it is.
    fixture.assembler.push(stream_abort(9, 9).into(), &mut out).unwrap();
    let chunk = Bytes::from(small);
    let addresses = chunk.as_ptr_range();
    fixture.assembler.push(chunk.clone(), &mut out).unwrap();
    let Some(Arrival::Transaction(mut transaction)) = out.pop() else { panic!("no transaction") };
    assert!(addresses.contains(&transaction.next_chunk().unwrap().unwrap().as_ptr()));
}

#[test]
fn what_only_the_sink_can_free_makes_the_reader_wait() {
    let mut fixture = Fixture::new(MIB);
    let mut out = Vec::new();
    for xid in 1..=11 {
        let row = change(b'I', &".".repeat(100_000));
        fixture.assembler.push([begin(xid, 100), row, commit(100)].concat().into(), &mut out).unwrap();
    }
    assert!(fixture.budget.is_over() && fixture.assembler.must_wait());
    assert_eq!(fixture.spool.used_bytes(), 0);
    // A transaction that is open meanwhile goes to the folder.
    let row = change(b'I', &".".repeat(100_000));
    fixture.assembler.push([begin(12, 100), row].concat().into(), &mut out).unwrap();
    assert!(fixture.spool.used_bytes() > 100_000);
    out.clear();
    assert!(!fixture.assembler.must_wait());
    fixture.check_clean();
}

#[test]
fn a_spool_folder_that_fails_is_an_error_with_folder_cause_and_remedy() {
    let mut fixture = Fixture::new(0);
    fs::remove_dir(fixture.spool.folder()).unwrap();
    let mut out = Vec::new();
    let messages = [begin(7, 100), change(b'I', "a")].concat();
    let error = fixture.assembler.push(messages.into(), &mut out).unwrap_err();
    assert!(matches!(error, AssembleError::Spool(_)));
    assert_eq!(error.retry(), Retry::Later);
    let text = error.to_string();
    assert!(text.contains("standby1\" cannot be used: creating a file: No such file"), "{text}");
    assert!(text.contains("point spool_dir to"), "{text}");
    assert!(out.is_empty());
}
