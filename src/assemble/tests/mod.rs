//! Scripted streams through one `check`: however they are cut into chunks, and whatever the memory limit, the arrivals are the same.

mod ahead;
mod limits;
mod messages;
mod reference;

use std::fs;
use std::sync::Arc;

use bytes::Bytes;

use crate::model::{MemoryBudget, PipelineName};

use super::{Arrival, AssembleError, Assembler, Spool};
use messages::*;

const NO_LIMIT: u64 = u64::MAX;

/// An assembler with a spool folder of its own.
struct Fixture {
    root: tempfile::TempDir,
    budget: Arc<MemoryBudget>,
    spool: Spool,
    assembler: Assembler,
}

impl Fixture {
    fn new(limit_bytes: u64) -> Self {
        let root = tempfile::tempdir().unwrap();
        let budget = MemoryBudget::new(limit_bytes);
        let spool = Spool::open(root.path(), &PipelineName::new("standby1").unwrap()).unwrap();
        let assembler = Assembler::new(Arc::clone(&budget), spool.clone());
        Self { root, budget, spool, assembler }
    }

    /// Nothing may be left of what was assembled once everything is dropped.
    fn check_clean(self) {
        let Self { root, budget, spool, assembler } = self;
        drop(assembler);
        assert_eq!((budget.used_bytes(), spool.used_bytes()), (0, 0));
        assert_eq!(fs::read_dir(root.path().join("standby1")).unwrap().count(), 0);
    }
}

/// Feeds the messages, cut into chunks before the given ones, and renders what arrives.
fn assemble(
    messages: &[Vec<u8>],
    limit_bytes: u64,
    is_cut_before: impl Fn(usize) -> bool,
) -> Result<Vec<String>, String> {
    let mut fixture = Fixture::new(limit_bytes);
    let mut out = Vec::new();
    let mut feed = |chunk: Vec<u8>| fixture.assembler.push(Bytes::from(chunk), &mut out);
    let mut push_all = || -> Result<(), AssembleError> {
        let mut chunk = Vec::new();
        for (index, message) in messages.iter().enumerate() {
            if is_cut_before(index) {
                feed(std::mem::take(&mut chunk))?;
            }
            chunk.extend_from_slice(message);
        }
        feed(chunk)
    };
    let result = push_all().map_err(|error| error.to_string());
    let rendered = out.into_iter().map(render).collect();
    fixture.check_clean();
    result.map(|()| rendered)
}

/// One script: in one chunk, in two at every place, in as many as messages; with all in memory and with all in files.
fn check(messages: &[Vec<u8>], expected: Result<&[&str], &str>) {
    for limit_bytes in [NO_LIMIT, 0] {
        let mut results = vec![assemble(messages, limit_bytes, |_| true)];
        results.extend((0..messages.len()).map(|cut| assemble(messages, limit_bytes, |index| index == cut)));
        for result in results {
            match (&result, expected) {
                (Ok(arrivals), Ok(expected)) => assert_eq!(arrivals, expected),
                (Err(error), Err(expected)) => assert!(error.contains(expected), "{error}"),
                _ => panic!("{result:?} instead of {expected:?}"),
            }
        }
    }
}

#[test]
fn ordinary_transactions_arrive_whole_and_without_begin_commit_and_origin() {
    check(&[], Ok(&[]));
    check(
        &[
            begin(7, 100),
            change(b'R', "t"),
            change(b'I', "a"),
            change(b'U', "b"),
            commit(100),
            begin(9, 200),
            origin("elsewhere"),
            change(b'Y', "y"),
            change(b'R', "t"),
            change(b'D', "c"),
            change(b'T', "t"),
            logical(true, "m"),
            commit(200),
        ],
        Ok(&["T7@108 [Rt Ia Ub]", "T9@208 from elsewhere [Yy Rt Dc Tt M\u{1}\0\0\0\0\0\0\0Mp\0\0\0\0\u{1}m]"]),
    );
}

#[test]
fn an_empty_transaction_arrives_too() {
    check(&[begin(7, 100), commit(100), begin(8, 300), commit(300)], Ok(&["T7@108 []", "T8@308 []"]));
}

#[test]
fn keepalives_and_messages_arrive_where_they_stood() {
    check(
        &[
            keepalive(50),
            begin(7, 100),
            change(b'I', "a"),
            keepalive(60),
            change(b'I', "b"),
            commit(100),
            logical(false, "now"),
            stream_start(9, true),
            streamed(b'I', 9, "c"),
            keepalive(120),
            streamed(b'I', 9, "d"),
            stream_stop(),
            logical(false, "then"),
            stream_commit(9, 200),
            keepalive(300),
        ],
        Ok(&["k50", "k60", "T7@108 [Ia Ib]", "M77 p now", "k120", "M77 p then", "T9@208 streamed [Ic Id]", "k300"]),
    );
}

#[test]
fn streamed_blocks_interleave_with_each_other_and_with_ordinary_transactions() {
    check(
        &[
            stream_start(9, true),
            origin("elsewhere"),
            streamed(b'R', 9, "t"),
            streamed(b'I', 9, "a"),
            stream_stop(),
            stream_start(20, true),
            streamed(b'R', 20, "t"),
            streamed(b'I', 21, "b"),
            stream_stop(),
            begin(30, 100),
            change(b'R', "t"),
            change(b'I', "c"),
            commit(100),
            stream_start(9, false),
            streamed(b'I', 9, "d"),
            streamed(b'R', 9, "altered"),
            streamed(b'T', 9, "t"),
            stream_stop(),
            stream_commit(20, 200),
            begin(31, 300),
            change(b'I', "e"),
            commit(300),
            stream_commit(9, 400),
        ],
        Ok(&[
            "T30@108 [Rt Ic]",
            "T20@208 streamed [Rt Ib/1]",
            "T31@308 [Ie]",
            "T9@408 from elsewhere streamed [Rt Ia Id Raltered Tt]",
        ]),
    );
}

#[test]
fn a_description_that_came_later_stands_behind_a_streamed_transaction_that_carries_an_older_one() {
    let told = |columns: [&str; 2]| {
        let mut messages =
            vec![stream_start(9, true), streamed(b'R', 9, columns[0]), streamed(b'I', 9, "a"), stream_stop()];
        messages.extend([
            begin(7, 100),
            change(b'R', columns[1]),
            change(b'I', "b"),
            commit(100),
            stream_commit(9, 200),
        ]);
        messages
    };
    let ordinary = ["T7@108 [Rtab1(a,c) Ib]", "T9@208 streamed [Rtab1(a,b) Ia Rtab1(a,c)]"];
    check(&told(["tab1(a,b)", "tab1(a,c)"]), Ok(&ordinary));
    // The same again, or of another table.
    check(&told(["tab1(a,b)", "tab1(a,b)"]), Ok(&["T7@108 [Rtab1(a,b) Ib]", "T9@208 streamed [Rtab1(a,b) Ia]"]));
    check(&told(["tab1(a,b)", "tab2(a,c)"]), Ok(&["T7@108 [Rtab2(a,c) Ib]", "T9@208 streamed [Rtab1(a,b) Ia]"]));
}

#[test]
fn empty_blocks_are_legal() {
    check(
        &[
            stream_start(9, true),
            stream_stop(),
            stream_start(9, false),
            stream_stop(),
            stream_start(20, true),
            stream_stop(),
            stream_abort(20, 20),
            stream_commit(9, 100),
        ],
        Ok(&["T9@108 streamed []"]),
    );
}

#[test]
fn a_rolled_back_subtransaction_takes_back_all_since_its_first_change_but_no_relation() {
    check(
        &[
            stream_start(9, true),
            streamed(b'R', 9, "t"),
            streamed(b'I', 9, "a"),
            streamed(b'Y', 10, "y"),
            streamed(b'R', 10, "u"),
            streamed(b'I', 10, "b"),
            // Nested: 11 and 12 inside 10.
            streamed(b'I', 11, "c"),
            streamed(b'R', 12, "v"),
            streamed(b'T', 12, "v"),
            streamed(b'I', 12, "d"),
            stream_stop(),
            stream_abort(9, 12),
            stream_abort(9, 12),
            stream_start(9, false),
            streamed(b'I', 10, "e"),
            streamed(b'R', 13, "w"),
            streamed(b'D', 13, "f"),
            stream_stop(),
            // A transaction id never seen, of this and of no transaction.
            stream_abort(9, 17),
            stream_abort(40, 41),
            stream_abort(40, 40),
            stream_abort(9, 10),
            stream_start(9, false),
            streamed(b'I', 9, "g"),
            streamed(b'I', 14, "h"),
            stream_stop(),
            stream_commit(9, 100),
        ],
        Ok(&["T9@108 streamed [Rt Ia Yy/1 Ru/1 Rv/3 Rw/4 Ig Ih/5]"]),
    );
}

#[test]
fn a_rolled_back_streamed_transaction_leaves_nothing() {
    check(
        &[
            stream_start(9, true),
            streamed(b'I', 9, "a"),
            stream_stop(),
            stream_start(20, true),
            streamed(b'I', 20, "b"),
            stream_stop(),
            stream_abort(9, 9),
            stream_commit(20, 100),
        ],
        Ok(&["T20@108 streamed [Ib]"]),
    );
}

#[test]
fn what_is_open_at_the_end_of_the_session_is_dropped() {
    check(&[begin(7, 100), change(b'I', "a")], Ok(&[]));
    check(&[stream_start(9, true), streamed(b'I', 9, "a")], Ok(&[]));
    check(&[stream_start(9, true), streamed(b'I', 9, "a"), stream_stop()], Ok(&[]));
}

#[test]
fn a_message_where_it_must_not_stand_is_an_error_with_its_place() {
    let block = stream_start(9, true);
    for (messages, expected) in [
        (vec![change(b'I', "\0\0\0\x01N\0\0")], "'I' outside any transaction"),
        (vec![logical(true, "m")], "'M' outside any transaction"),
        (vec![commit(100)], "'C' outside any transaction"),
        (vec![stream_stop()], "'E' outside any transaction"),
        (vec![origin("o")], "'O' outside any transaction"),
        (vec![begin(7, 100), begin(8, 200)], "'B' inside a transaction"),
        (vec![begin(7, 100), block.clone()], "'S' inside a transaction"),
        (vec![begin(7, 100), logical(false, "m")], "'M' inside a transaction"),
        (vec![begin(7, 100), stream_commit(9, 100)], "'c' inside a transaction"),
        (vec![block.clone(), begin(7, 100)], "'B' inside a streamed block"),
        (vec![block.clone(), stream_start(9, false)], "'S' inside a streamed block"),
        (vec![block.clone(), stream_abort(9, 9)], "'A' inside a streamed block"),
        (vec![block.clone(), stream_commit(9, 100)], "'c' inside a streamed block"),
        (vec![block.clone(), change(b'I', "abc")], "'I' without its transaction id"),
        (vec![begin(7, 100), commit(101)], "commit of transaction 7 stands at 0/65, but its begin announced 0/64"),
        (vec![stream_start(9, false)], "streamed transaction 9 (message 'S'), but its first block never came"),
        (vec![stream_commit(9, 100)], "streamed transaction 9 (message 'c'), but its first block never came"),
        (vec![block.clone(), stream_stop(), block.clone()], "begins the streamed transaction 9 a second time"),
        (vec![change(b'x', "")], "'x'"),
        (vec![b"d\0\0\0\x04".to_vec()], "replication message"),
        (vec![b"Z\0\0\0\x05I".to_vec()], "a message 'Z' stands among the CopyData messages"),
        (vec![b"d\0\0\0\x09ab".to_vec()], "torn"),
    ] {
        check(&messages, Err(expected));
    }
}

#[test]
fn a_two_phase_message_names_itself_and_the_remedy() {
    for tag in *b"bPKrp" {
        let expected = format!("two-phase messages ('{}')", char::from(tag));
        check(&[two_phase(tag)], Err(&expected));
        check(&[two_phase(tag)], Err("Let walrelay use another slot"));
    }
}
