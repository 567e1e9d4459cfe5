//! An open streamed transaction read while it comes: what was read is what the whole one begins with, or it was taken back.

use super::*;

/// Feeds each group as one chunk and reads what is new behind it. Gives what was read, how much was taken back, and the whole.
fn check(groups: &[&[Vec<u8>]], limit_bytes: u64, expected_taken_back: u32) {
    let mut fixture = Fixture::new(limit_bytes);
    let (mut out, mut read, mut taken_back) = (Vec::new(), Vec::new(), 0);
    for group in groups {
        fixture.assembler.push(Bytes::from(group.concat()), &mut out).unwrap();
        let Some((stream, _)) = fixture.assembler.look_at_stream(7) else { continue };
        if stream.taken_back != taken_back {
            taken_back = stream.taken_back;
            read.clear();
        }
        while let Some(run) = fixture.assembler.read_stream(7, read.len() as u64).unwrap() {
            read.extend_from_slice(&run);
        }
        assert_eq!(read.len() as u64, stream.size_bytes);
        assert_eq!(fixture.assembler.largest_stream(), Some((7, stream)));
    }
    assert_eq!((fixture.assembler.look_at_stream(7), fixture.assembler.largest_stream()), (None, None));
    let Some(Arrival::Transaction(mut transaction)) = out.pop() else { panic!("no transaction") };
    assert_eq!(transaction.taken_back, expected_taken_back);
    let mut whole = Vec::new();
    while let Some(chunk) = transaction.next_chunk().unwrap() {
        whole.extend_from_slice(&chunk);
    }
    if transaction.taken_back == taken_back {
        assert!(whole.starts_with(&read));
    }
    drop((transaction, out));
    fixture.check_clean();
}

#[test]
fn what_was_read_is_the_beginning_of_the_whole_or_was_taken_back() {
    let rows = |xid: u32, count: usize| -> Vec<Vec<u8>> {
        (0..count).map(|row| streamed(b'I', xid, &format!("{xid} {row} {}", "x".repeat(3000)))).collect()
    };
    let block = |is_first, body: Vec<Vec<u8>>| [vec![stream_start(7, is_first)], body, vec![stream_stop()]].concat();
    let (first, second) = (block(true, rows(7, 40)), block(false, rows(8, 40)));
    let half = &first[..20];
    for limit_bytes in [NO_LIMIT, 50_000, 1] {
        check(&[&first, &second, &[stream_commit(7, 100)]], limit_bytes, 0);
        // Inside a block, and what came with the commit.
        check(&[half, &first[20..], &[second.clone(), vec![stream_commit(7, 100)]].concat()], limit_bytes, 0);
        check(&[&first, &second, &[stream_abort(7, 8)], &[stream_commit(7, 100)]], limit_bytes, 1);
        // Together with the commit: only the transaction tells of it.
        check(&[&first, &second, &[stream_abort(7, 8), stream_commit(7, 100)]], limit_bytes, 1);
        // Taken back before anybody read it.
        let unread = [first.clone(), second.clone(), vec![stream_abort(7, 8)]].concat();
        check(&[&unread, &[stream_commit(7, 100)]], limit_bytes, 0);
    }
}

#[test]
fn what_was_cut_off_is_told_once_whether_it_was_read_or_not() {
    let mut fixture = Fixture::new(NO_LIMIT);
    let mut out = Vec::new();
    let mut push = |fixture: &mut Fixture, messages: &[Vec<u8>]| {
        fixture.assembler.push(Bytes::from(messages.concat()), &mut out).unwrap();
        fixture.assembler.look_at_stream(7).map(|(stream, cut_to_bytes)| (stream.size_bytes, cut_to_bytes))
    };
    let row = |xid: u32| streamed(b'I', xid, "a row");
    let begin = [stream_start(7, true), row(7), row(8), row(8), stream_stop()];
    let (whole, none_cut) = push(&mut fixture, &begin).unwrap();
    assert_eq!(none_cut, u64::MAX);
    // Cut, and grown beyond its old length before anybody looks.
    let again = [stream_abort(7, 8), stream_start(7, false), row(9), row(9), row(9), row(9), stream_stop()];
    let (grown, cut_to_bytes) = push(&mut fixture, &again).unwrap();
    assert!(cut_to_bytes < whole && whole < grown, "{cut_to_bytes} {whole} {grown}");
    assert_eq!(fixture.assembler.read_stream(7, 0).unwrap().map(|run| run.len() as u64), Some(grown));
    assert_eq!(push(&mut fixture, &[]), Some((grown, u64::MAX)));
    assert_eq!(push(&mut fixture, &[stream_abort(7, 7)]), None);
    fixture.check_clean();
}
