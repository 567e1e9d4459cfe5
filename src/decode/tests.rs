//! Table tests of every layout by hand; real servers' bytes are replayed in `tests/pgoutput.rs`.

use proptest::prelude::*;

use super::*;
use crate::model::{Lsn, Timestamp};

/// Bytes of a message, field by field.
struct Bytes(Vec<u8>);

impl Bytes {
    fn new(tag: u8) -> Self {
        Self(vec![tag])
    }
    fn u8(mut self, value: u8) -> Self {
        self.0.push(value);
        self
    }
    fn u16(mut self, value: u16) -> Self {
        self.0.extend(value.to_be_bytes());
        self
    }
    fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_be_bytes());
        self
    }
    fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_be_bytes());
        self
    }
    fn string(mut self, value: &str) -> Self {
        self.0.extend(value.as_bytes());
        self.u8(0)
    }
    fn tuple(mut self, values: &[Value<'_>]) -> Self {
        self = self.u16(values.len() as u16);
        for value in values {
            self = match value {
                Value::Null => self.u8(b'n'),
                Value::Unchanged => self.u8(b'u'),
                Value::Text(bytes) => self.u8(b't').sized(bytes),
                Value::Binary(bytes) => self.u8(b'b').sized(bytes),
            };
        }
        self
    }
    fn sized(mut self, bytes: &[u8]) -> Self {
        self = self.u32(bytes.len() as u32);
        self.0.extend(bytes);
        self
    }
}

const STREAM: Context = Context { in_stream: true, parallel: false };
const PARALLEL: Context = Context { in_stream: false, parallel: true };
const PLAIN: Context = Context { in_stream: false, parallel: false };

/// One of every layout.
fn layouts() -> Vec<(&'static str, Context, Bytes)> {
    let row = [Value::Null, Value::Unchanged, Value::Text(b"abc"), Value::Binary(&[1, 2])];
    let key = [Value::Text(b"1"), Value::Null];
    let two_phase = |tag| Bytes::new(tag).u8(0).u64(1).u64(2).u64(3).u32(4).string("gid");
    vec![
        ("begin", PLAIN, Bytes::new(b'B').u64(1).u64(2).u32(3)),
        ("commit", PLAIN, Bytes::new(b'C').u8(0).u64(1).u64(2).u64(3)),
        ("origin", PLAIN, Bytes::new(b'O').u64(1).string("somewhere")),
        (
            "relation",
            PLAIN,
            Bytes::new(b'R')
                .u32(9)
                .string("")
                .string("t")
                .u8(b'd')
                .u16(2)
                .u8(1)
                .string("a")
                .u32(23)
                .u32(u32::MAX)
                .u8(0)
                .string("b")
                .u32(25)
                .u32(7),
        ),
        ("type", STREAM, Bytes::new(b'Y').u32(5).u32(9).string("s").string("mood")),
        ("insert", PLAIN, Bytes::new(b'I').u32(9).u8(b'N').tuple(&row)),
        ("insert in a stream", STREAM, Bytes::new(b'I').u32(5).u32(9).u8(b'N').tuple(&row)),
        ("update", PLAIN, Bytes::new(b'U').u32(9).u8(b'N').tuple(&row)),
        ("update with a key", PLAIN, Bytes::new(b'U').u32(9).u8(b'K').tuple(&key).u8(b'N').tuple(&row)),
        ("update with a row", PLAIN, Bytes::new(b'U').u32(9).u8(b'O').tuple(&row).u8(b'N').tuple(&row)),
        ("delete by key", PLAIN, Bytes::new(b'D').u32(9).u8(b'K').tuple(&key)),
        ("delete by row", PLAIN, Bytes::new(b'D').u32(9).u8(b'O').tuple(&row)),
        ("truncate", PLAIN, Bytes::new(b'T').u32(2).u8(3).u32(9).u32(10)),
        ("message", PLAIN, Bytes::new(b'M').u8(1).u64(1).string("p").sized(b"xyz")),
        ("stream start", PLAIN, Bytes::new(b'S').u32(5).u8(1)),
        ("stream stop", STREAM, Bytes::new(b'E')),
        ("stream commit", PLAIN, Bytes::new(b'c').u32(5).u8(0).u64(1).u64(2).u64(3)),
        ("stream abort", PLAIN, Bytes::new(b'A').u32(5).u32(6)),
        ("stream abort, parallel", PARALLEL, Bytes::new(b'A').u32(5).u32(6).u64(1).u64(2)),
        ("begin prepare", PLAIN, Bytes::new(b'b').u64(1).u64(2).u64(3).u32(4).string("gid")),
        ("prepare", PLAIN, two_phase(b'P')),
        ("commit prepared", PLAIN, two_phase(b'K')),
        ("rollback prepared", PLAIN, Bytes::new(b'r').u8(0).u64(1).u64(2).u64(3).u64(4).u32(5).string("gid")),
        ("stream prepare", PLAIN, two_phase(b'p')),
    ]
}

#[test]
fn every_layout_is_read_to_its_last_byte_and_no_further() {
    for (name, context, bytes) in layouts() {
        decode(&bytes.0, context).unwrap_or_else(|error| panic!("{name}: {error}"));
        for end in 0..bytes.0.len() {
            assert!(decode(&bytes.0[..end], context).is_err(), "{name} cut at {end}");
        }
        let longer = bytes.u8(0);
        assert!(decode(&longer.0, context).is_err(), "{name} with a byte behind it");
    }
}

#[test]
fn values_and_relations_come_out_as_they_went_in() {
    let row = [Value::Null, Value::Unchanged, Value::Text(b"abc"), Value::Binary(&[1, 2])];
    let bytes = Bytes::new(b'U').u32(5).u32(9).u8(b'O').tuple(&row).u8(b'N').tuple(&row[..1]);
    let Message::Update { xid: Some(5), relation_oid: 9, old: Some(OldTuple::Full(old)), new } =
        decode(&bytes.0, STREAM).unwrap()
    else {
        panic!("not an update with its old row");
    };
    assert_eq!(old.iter().collect::<Vec<_>>(), row);
    assert_eq!((old.len(), new.len()), (4, 1));
    assert_eq!(stream_xid(&bytes.0), Some(5));

    let (_, _, bytes) = layouts().into_iter().find(|(name, ..)| *name == "relation").unwrap();
    let Message::Relation(body) = decode(&bytes.0, PLAIN).unwrap() else { panic!("not a relation") };
    let mut relations = Relations::default();
    assert!(relations.get(9).is_err());
    assert!(relations.note(&body).is_some());
    assert!(relations.note(&body).is_none(), "a repetition is nothing new");
    let relation = relations.get(9).unwrap();
    assert_eq!(relation.name.to_string(), "pg_catalog.t");
    assert_eq!(
        relation.columns.iter().map(|c| (c.name.as_str(), c.type_oid, c.type_modifier, c.is_key)).collect::<Vec<_>>(),
        [("a", 23, -1, true), ("b", 25, 7, false)]
    );

    let bytes = Bytes::new(b'T').u32(2).u8(2).u32(9).u32(10);
    let Message::Truncate { relation_oids, cascade: false, restart_identity: true, .. } =
        decode(&bytes.0, PLAIN).unwrap()
    else {
        panic!("not a truncate");
    };
    assert_eq!(relation_oids.iter().collect::<Vec<_>>(), [9, 10]);

    let bytes = Bytes::new(b'C').u8(0).u64(1).u64(2).u64(3);
    let expected = Message::Commit { commit_lsn: Lsn(1), end_lsn: Lsn(2), commit_time: Timestamp(3) };
    assert_eq!(decode(&bytes.0, PLAIN), Ok(expected));
}

#[test]
fn a_name_in_another_encoding_is_refused_at_its_place_instead_of_becoming_another_name() {
    let relation = |schema: &[u8], name: &[u8], column: &[u8]| {
        let mut bytes = Bytes::new(b'R').u32(9);
        bytes.0.extend([schema, b"\0", name, b"\0d\0\x01\0", column, b"\0"].concat());
        bytes.u32(23).u32(0).0
    };
    assert!(decode(&relation("größe".as_bytes(), b"t", b"c"), PLAIN).is_ok());
    for (schema, name, column, field, offset) in [
        (&b"\xe9"[..], &b"t"[..], &b"c"[..], "the relation's schema is torn or not UTF-8", 5),
        (b"s", b"\xe9", b"c", "the relation's name is torn or not UTF-8", 7),
        (b"s", b"t", b"\xe9", "a column's name is torn or not UTF-8", 13),
    ] {
        let expected = DecodeError::Broken { tag: b'R', field, offset };
        assert_eq!(decode(&relation(schema, name, column), PLAIN), Err(expected));
    }
}

#[test]
fn a_value_is_never_printed() {
    assert_eq!(format!("{:?}", Value::Text(b"secret")), "Text(6 bytes)");
}

proptest! {
    #[test]
    fn any_bytes_decode_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..80), in_stream: bool, parallel: bool) {
        if let Ok(Message::Insert { new, .. }) = decode(&bytes, Context { in_stream, parallel }) {
            prop_assert_eq!(new.iter().count(), new.len());
        }
    }

    #[test]
    fn any_changed_byte_decodes_without_a_panic(index in 0usize..24, at in 0usize..60, byte: u8) {
        let (_, context, bytes) = layouts().swap_remove(index % layouts().len());
        let mut bytes = bytes.0;
        let at = at % bytes.len();
        bytes[at] = byte;
        if let Ok(Message::Relation(body)) = decode(&bytes, context) {
            body.to_relation();
        }
    }
}
