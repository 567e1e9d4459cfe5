//! Random streams against a reference that keeps everything in plain lists of texts.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::messages::*;
use super::{NO_LIMIT, assemble};

/// One message of an open streamed transaction: the subtransaction (0 is the transaction itself), and its rendered text.
#[derive(Clone, Debug)]
struct Kept {
    sub: u32,
    is_description: bool,
    text: String,
}

/// Writes a legal stream and what must arrive.
#[derive(Default)]
struct Script {
    messages: Vec<Vec<u8>>,
    expected: Vec<String>,
    open: BTreeMap<u32, Vec<Kept>>,
    next: u32,
}

impl Script {
    /// A number never given before.
    fn next(&mut self) -> u32 {
        self.next += 1;
        self.next
    }

    fn text(&mut self, size: u8) -> String {
        // Most rows are short, some are longer than the smallest buffer.
        let padding = if size > 250 { 5000 } else { usize::from(size % 40) };
        format!("{}{}", self.next(), ".".repeat(padding))
    }

    fn keepalive(&mut self) {
        let wal_end = self.next();
        self.messages.push(keepalive(wal_end.into()));
        self.expected.push(format!("k{wal_end}"));
    }

    fn ordinary(&mut self, changes: &[u8]) {
        let xid = self.next() * 100;
        let lsn = self.next();
        self.messages.push(begin(xid, lsn.into()));
        let mut texts = Vec::new();
        for &byte in changes {
            if byte == 77 {
                self.keepalive();
            }
            let tag = b"IIUDRYT"[usize::from(byte % 7)];
            let text = self.text(byte);
            self.messages.push(change(tag, &text));
            texts.push(format!("{}{text}", char::from(tag)));
        }
        self.messages.push(commit(lsn.into()));
        self.expected.push(format!("T{xid}@{} [{}]", lsn + 8, texts.join(" ")));
    }

    fn block(&mut self, xid: u32, is_first: bool, changes: &[u8]) {
        self.messages.push(stream_start(xid, is_first));
        let mut kept = self.open.remove(&xid).unwrap_or_default();
        for &byte in changes {
            if byte == 77 {
                self.keepalive();
            }
            let tag = b"IIUDRYTIM"[usize::from(byte % 9)];
            let (sub, text) = (u32::from(byte / 9 % 6), self.text(byte));
            self.messages.push(streamed(tag, xid + sub, &text));
            let mark = if sub == 0 { String::new() } else { format!("/{sub}") };
            let text = format!("{}{text}{mark}", char::from(tag));
            kept.push(Kept { sub, is_description: b"RY".contains(&tag), text });
        }
        self.open.insert(xid, kept);
        self.messages.push(stream_stop());
    }

    fn abort_sub(&mut self, xid: u32, sub: u32) {
        self.messages.push(stream_abort(xid, xid + sub));
        let kept = self.open.entry(xid).or_default();
        if let Some(first) = kept.iter().position(|kept| kept.sub == sub && !kept.is_description) {
            let mut tail = kept.split_off(first);
            tail.retain(|kept| kept.is_description);
            kept.extend(tail);
        }
    }

    fn commit_stream(&mut self, xid: u32) {
        let lsn = self.next();
        self.messages.push(stream_commit(xid, lsn.into()));
        let texts: Vec<String> = self.open.remove(&xid).into_iter().flatten().map(|kept| kept.text).collect();
        self.expected.push(format!("T{xid}@{} streamed [{}]", lsn + 8, texts.join(" ")));
    }

    fn step(&mut self, kind: u8, choice: u8, changes: &[u8]) {
        let chosen = self.open.keys().nth(usize::from(choice) % self.open.len().max(1)).copied();
        match (kind, chosen) {
            (0, _) => self.ordinary(changes),
            (1, _) => self.keepalive(),
            (2, Some(xid)) => self.commit_stream(xid),
            (3, Some(xid)) if choice > 200 => {
                self.messages.push(stream_abort(xid, xid));
                self.open.remove(&xid);
            }
            (3 | 4, Some(xid)) => self.abort_sub(xid, 1 + u32::from(choice % 6)),
            (5.., Some(xid)) => self.block(xid, false, changes),
            (2.., _) => {
                let xid = self.next() * 100;
                self.block(xid, true, changes);
            }
        }
        if kind == 9 {
            let xid = self.next() * 100;
            self.block(xid, true, changes);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn any_stream_cut_anywhere_under_any_limit_gives_what_the_reference_gives(
        steps in prop::collection::vec((0u8..10, any::<u8>(), prop::collection::vec(any::<u8>(), 0..12)), 0..30),
        cuts in prop::collection::vec(any::<bool>(), 1..20),
        limit_bytes in prop::sample::select(vec![0, 1000, 10_000, 100_000, NO_LIMIT]),
    ) {
        let mut script = Script::default();
        for (kind, choice, changes) in &steps {
            script.step(*kind, *choice, changes);
        }
        let arrivals = assemble(&script.messages, limit_bytes, |index| cuts[index % cuts.len()]);
        prop_assert_eq!(arrivals, Ok(script.expected));
    }

    #[test]
    fn any_bytes_are_taken_without_a_panic(
        payloads in prop::collection::vec((prop::sample::select(b"BCSEcAIRMOx".to_vec()), prop::collection::vec(0u8..3, 0..40)), 0..12),
    ) {
        let messages: Vec<Vec<u8>> = payloads
            .iter()
            .map(|(tag, bytes)| change(*tag, &String::from_utf8_lossy(bytes)))
            .collect();
        // A body message of random bytes need not render; only the pushing is tried.
        let mut fixture = super::Fixture::new(100);
        let mut out = Vec::new();
        let _ = fixture.assembler.push(messages.concat().into(), &mut out);
        drop(out);
        fixture.check_clean();
    }
}
