//! Any bytes as pgoutput: in and out of a streamed block, with and without parallel. What is decoded is walked to its end.

#![no_main]

use libfuzzer_sys::fuzz_target;
use walrelay::decode::{Context, Message, OldTuple, Tuple, decode};

fuzz_target!(|bytes: &[u8]| {
    for (in_stream, parallel) in [(false, false), (true, false), (true, true)] {
        match decode(bytes, Context { in_stream, parallel }) {
            Ok(Message::Insert { new, .. }) => walk(&new),
            Ok(Message::Update { old, new, .. }) => {
                old.iter().for_each(walk_old);
                walk(&new);
            }
            Ok(Message::Delete { old, .. }) => walk_old(&old),
            Ok(Message::Relation(body)) => drop(body.to_relation()),
            Ok(_) => {}
            Err(error) => drop(error.to_string()),
        }
    }
});

fn walk(tuple: &Tuple<'_>) {
    assert_eq!(tuple.iter().count(), usize::from(tuple.len() as u16));
}

fn walk_old(old: &OldTuple<'_>) {
    let (OldTuple::Key(tuple) | OldTuple::Full(tuple)) = old;
    walk(tuple);
}
