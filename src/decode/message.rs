//! The messages of pgoutput and their layouts.

use crate::model::{Column, Lsn, QualifiedName, Relation, ReplicaIdentity, Timestamp};

use super::reader::Reader;
use super::{DecodeError, Tuple};

/// What the surrounding stream says about a message's layout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Context {
    /// Between StreamStart and StreamStop: row messages carry an xid.
    pub in_stream: bool,
    /// The stream was started with `streaming 'parallel'`: StreamAbort carries position and time.
    pub parallel: bool,
}

/// A message's first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Tag {
    Begin,
    Commit,
    Origin,
    Relation,
    Type,
    Insert,
    Update,
    Delete,
    Truncate,
    Logical,
    StreamStart,
    StreamStop,
    StreamCommit,
    StreamAbort,
    BeginPrepare,
    Prepare,
    CommitPrepared,
    RollbackPrepared,
    StreamPrepare,
}

impl Tag {
    /// From a message's first byte.
    #[inline]
    pub fn of(payload: &[u8]) -> Result<Tag, DecodeError> {
        Ok(match *payload.first().ok_or(DecodeError::Empty)? {
            b'I' => Tag::Insert,
            b'U' => Tag::Update,
            b'D' => Tag::Delete,
            b'B' => Tag::Begin,
            b'C' => Tag::Commit,
            b'O' => Tag::Origin,
            b'R' => Tag::Relation,
            b'Y' => Tag::Type,
            b'T' => Tag::Truncate,
            b'M' => Tag::Logical,
            b'S' => Tag::StreamStart,
            b'E' => Tag::StreamStop,
            b'c' => Tag::StreamCommit,
            b'A' => Tag::StreamAbort,
            b'b' => Tag::BeginPrepare,
            b'P' => Tag::Prepare,
            b'K' => Tag::CommitPrepared,
            b'r' => Tag::RollbackPrepared,
            b'p' => Tag::StreamPrepare,
            byte => return Err(DecodeError::UnknownMessage(byte)),
        })
    }
}

/// The xid behind the tag of a message inside a stream block: the subtransaction of that change.
#[inline]
pub fn stream_xid(payload: &[u8]) -> Option<u32> {
    payload.get(1..).and_then(<[u8]>::first_chunk::<4>).map(|bytes| u32::from_be_bytes(*bytes))
}

/// The old row of an UPDATE or DELETE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OldTuple<'a> {
    /// The replica identity's columns; the others are Null.
    Key(Tuple<'a>),
    /// The whole row.
    Full(Tuple<'a>),
}

impl<'a> OldTuple<'a> {
    /// The values, whichever kind it is.
    pub fn tuple(&self) -> Tuple<'a> {
        match self {
            OldTuple::Key(tuple) | OldTuple::Full(tuple) => *tuple,
        }
    }
}

/// A Relation message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RelationBody<'a> {
    /// Inside a stream block.
    pub xid: Option<u32>,
    /// OID on the primary.
    pub oid: u32,
    /// Empty means `pg_catalog`.
    pub schema: &'a str,
    /// Its name.
    pub name: &'a str,
    /// Which old columns arrive.
    pub replica_identity: ReplicaIdentity,
    count: u16,
    columns: &'a [u8],
}

impl RelationBody<'_> {
    /// Owned.
    pub fn to_relation(&self) -> Relation {
        let schema = if self.schema.is_empty() { "pg_catalog" } else { self.schema };
        let mut reader = Reader::of_part(b'R', self.columns);
        let columns = (0..self.count).map_while(|_| {
            // Validated by `decode`.
            let (is_key, name, type_oid, type_modifier) = read_column(&mut reader).ok()?;
            Some(Column { name: name.to_owned(), type_oid, type_modifier, is_key })
        });
        Relation {
            oid: self.oid,
            name: QualifiedName::new(schema, self.name),
            replica_identity: self.replica_identity,
            columns: columns.collect(),
        }
    }
}

fn read_column<'a>(reader: &mut Reader<'a>) -> Result<(bool, &'a str, u32, i32), DecodeError> {
    let flags = reader.u8("a column's flags")?;
    let name = reader.name("a column's name is torn or not UTF-8")?;
    let type_oid = reader.u32("a column's type")?;
    let type_modifier = reader.u32("a column's type modifier")? as i32;
    Ok((flags & 1 != 0, name, type_oid, type_modifier))
}

/// The relations of a TRUNCATE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RelationOids<'a> {
    bytes: &'a [u8],
}

impl<'a> RelationOids<'a> {
    /// In the order of the message.
    pub fn iter(&self) -> impl Iterator<Item = u32> + 'a {
        self.bytes.chunks_exact(4).map(|oid| oid.first_chunk::<4>().map_or(0, |bytes| u32::from_be_bytes(*bytes)))
    }
}

/// A logical decoding message (`pg_logical_emit_message`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Logical<'a> {
    /// Inside a stream block.
    pub xid: Option<u32>,
    /// Whether it belongs to a transaction.
    pub is_transactional: bool,
    /// What `pg_logical_emit_message` returned.
    pub lsn: Lsn,
    /// Whose it is.
    pub prefix: &'a [u8],
    /// Raw bytes, in no encoding.
    pub content: &'a [u8],
}

/// The common part of the two-phase messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prepared<'a> {
    /// Start of the record; of a rollback: end of the PREPARE.
    pub lsn: Lsn,
    /// First byte after the record.
    pub end_lsn: Lsn,
    /// When it was prepared or committed.
    pub time: Timestamp,
    /// Top-level transaction.
    pub xid: u32,
    /// The name given in PREPARE TRANSACTION.
    pub gid: &'a [u8],
}

/// One message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Message<'a> {
    Begin { final_lsn: Lsn, commit_time: Timestamp, xid: u32 },
    Commit { commit_lsn: Lsn, end_lsn: Lsn, commit_time: Timestamp },
    Origin { lsn: Lsn, name: &'a [u8] },
    Relation(RelationBody<'a>),
    Type { xid: Option<u32>, oid: u32, schema: &'a [u8], name: &'a [u8] },
    Insert { xid: Option<u32>, relation_oid: u32, new: Tuple<'a> },
    Update { xid: Option<u32>, relation_oid: u32, old: Option<OldTuple<'a>>, new: Tuple<'a> },
    Delete { xid: Option<u32>, relation_oid: u32, old: OldTuple<'a> },
    Truncate { xid: Option<u32>, relation_oids: RelationOids<'a>, cascade: bool, restart_identity: bool },
    Logical(Logical<'a>),
    StreamStart { xid: u32, is_first: bool },
    StreamStop,
    StreamCommit { xid: u32, commit_lsn: Lsn, end_lsn: Lsn, commit_time: Timestamp },
    StreamAbort { xid: u32, subxid: u32, at: Option<(Lsn, Timestamp)> },
    BeginPrepare(Prepared<'a>),
    Prepare(Prepared<'a>),
    CommitPrepared(Prepared<'a>),
    RollbackPrepared { prepared: Prepared<'a>, rollback_time: Timestamp },
    StreamPrepare(Prepared<'a>),
}

/// Decodes one message. Total: any bytes give a message or an error, and nothing is allocated.
pub fn decode(payload: &[u8], context: Context) -> Result<Message<'_>, DecodeError> {
    let tag = Tag::of(payload)?;
    let mut reader = Reader::new(payload[0], payload);
    let message = read(tag, &mut reader, context)?;
    reader.end()?;
    Ok(message)
}

fn read<'a>(tag: Tag, reader: &mut Reader<'a>, context: Context) -> Result<Message<'a>, DecodeError> {
    let has_xid = context.in_stream
        && matches!(
            tag,
            Tag::Relation | Tag::Type | Tag::Insert | Tag::Update | Tag::Delete | Tag::Truncate | Tag::Logical
        );
    let xid = if has_xid { Some(reader.u32("xid")?) } else { None };
    Ok(match tag {
        Tag::Insert => {
            let relation_oid = reader.u32("relation")?;
            expect(reader, b'N', "the new row's mark is not N")?;
            Message::Insert { xid, relation_oid, new: Tuple::read(reader)? }
        }
        Tag::Update => update(reader, xid)?,
        Tag::Delete => {
            let relation_oid = reader.u32("relation")?;
            let mark = reader.u8("the old row's mark")?;
            Message::Delete { xid, relation_oid, old: old_tuple(reader, mark)? }
        }
        Tag::Begin => Message::Begin { final_lsn: lsn(reader)?, commit_time: time(reader)?, xid: reader.u32("xid")? },
        Tag::Commit => {
            reader.u8("flags")?;
            Message::Commit { commit_lsn: lsn(reader)?, end_lsn: lsn(reader)?, commit_time: time(reader)? }
        }
        Tag::Origin => Message::Origin { lsn: lsn(reader)?, name: reader.string("the origin's name")? },
        Tag::Relation => Message::Relation(relation(reader, xid)?),
        Tag::Type => Message::Type {
            xid,
            oid: reader.u32("type")?,
            schema: reader.string("the type's schema")?,
            name: reader.string("the type's name")?,
        },
        Tag::Truncate => truncate(reader, xid)?,
        Tag::Logical => Message::Logical(logical(reader, xid)?),
        Tag::StreamStart => {
            Message::StreamStart { xid: reader.u32("xid")?, is_first: reader.u8("the first-segment flag")? != 0 }
        }
        Tag::StreamStop => Message::StreamStop,
        Tag::StreamCommit => {
            let xid = reader.u32("xid")?;
            reader.u8("flags")?;
            Message::StreamCommit { xid, commit_lsn: lsn(reader)?, end_lsn: lsn(reader)?, commit_time: time(reader)? }
        }
        Tag::StreamAbort => {
            let (xid, subxid) = (reader.u32("xid")?, reader.u32("subxid")?);
            let at = if context.parallel { Some((lsn(reader)?, time(reader)?)) } else { None };
            Message::StreamAbort { xid, subxid, at }
        }
        Tag::BeginPrepare => Message::BeginPrepare(prepared(reader, false)?),
        Tag::Prepare => Message::Prepare(prepared(reader, true)?),
        Tag::CommitPrepared => Message::CommitPrepared(prepared(reader, true)?),
        Tag::StreamPrepare => Message::StreamPrepare(prepared(reader, true)?),
        Tag::RollbackPrepared => {
            reader.u8("flags")?;
            let (at, end_lsn, time_prepared) = (lsn(reader)?, lsn(reader)?, time(reader)?);
            let rollback_time = time(reader)?;
            let (xid, gid) = (reader.u32("xid")?, reader.string("gid")?);
            let prepared = Prepared { lsn: at, end_lsn, time: time_prepared, xid, gid };
            Message::RollbackPrepared { prepared, rollback_time }
        }
    })
}

fn lsn(reader: &mut Reader<'_>) -> Result<Lsn, DecodeError> {
    reader.u64("a position").map(Lsn)
}

fn time(reader: &mut Reader<'_>) -> Result<Timestamp, DecodeError> {
    reader.u64("a time").map(|micros| Timestamp(micros as i64))
}

fn expect(reader: &mut Reader<'_>, mark: u8, field: &'static str) -> Result<(), DecodeError> {
    if reader.u8(field)? == mark { Ok(()) } else { Err(reader.broken(field)) }
}

fn old_tuple<'a>(reader: &mut Reader<'a>, mark: u8) -> Result<OldTuple<'a>, DecodeError> {
    match mark {
        b'K' => Tuple::read(reader).map(OldTuple::Key),
        b'O' => Tuple::read(reader).map(OldTuple::Full),
        _ => Err(reader.broken("the old row's mark is neither K nor O")),
    }
}

fn update<'a>(reader: &mut Reader<'a>, xid: Option<u32>) -> Result<Message<'a>, DecodeError> {
    let relation_oid = reader.u32("relation")?;
    let old = match reader.u8("the row's mark")? {
        b'N' => None,
        mark => {
            let old = old_tuple(reader, mark)?;
            expect(reader, b'N', "the new row's mark is not N")?;
            Some(old)
        }
    };
    Ok(Message::Update { xid, relation_oid, old, new: Tuple::read(reader)? })
}

fn relation<'a>(reader: &mut Reader<'a>, xid: Option<u32>) -> Result<RelationBody<'a>, DecodeError> {
    let oid = reader.u32("relation")?;
    let schema = reader.name("the relation's schema is torn or not UTF-8")?;
    let name = reader.name("the relation's name is torn or not UTF-8")?;
    let replica_identity = match reader.u8("replica identity")? {
        b'd' => ReplicaIdentity::Default,
        b'n' => ReplicaIdentity::Nothing,
        b'f' => ReplicaIdentity::Full,
        b'i' => ReplicaIdentity::Index,
        _ => return Err(reader.broken("the replica identity is none of d, n, f, i")),
    };
    let count = reader.u16("the number of columns")?;
    let start = reader.at();
    for _ in 0..count {
        read_column(reader)?;
    }
    Ok(RelationBody { xid, oid, schema, name, replica_identity, count, columns: reader.slice_from(start) })
}

fn truncate<'a>(reader: &mut Reader<'a>, xid: Option<u32>) -> Result<Message<'a>, DecodeError> {
    let count = reader.u32("the number of relations")? as usize;
    let options = reader.u8("options")?;
    let size = count.checked_mul(4).ok_or_else(|| reader.broken("the number of relations"))?;
    let bytes = reader.bytes(size, "fewer relations than announced")?;
    Ok(Message::Truncate {
        xid,
        relation_oids: RelationOids { bytes },
        cascade: options & 1 != 0,
        restart_identity: options & 2 != 0,
    })
}

fn logical<'a>(reader: &mut Reader<'a>, xid: Option<u32>) -> Result<Logical<'a>, DecodeError> {
    let is_transactional = reader.u8("flags")? & 1 != 0;
    let lsn = lsn(reader)?;
    let prefix = reader.string("prefix")?;
    let length = reader.u32("the content's length")? as usize;
    Ok(Logical {
        xid,
        is_transactional,
        lsn,
        prefix,
        content: reader.bytes(length, "the content is shorter than its length")?,
    })
}

fn prepared<'a>(reader: &mut Reader<'a>, has_flags: bool) -> Result<Prepared<'a>, DecodeError> {
    if has_flags {
        reader.u8("flags")?;
    }
    Ok(Prepared {
        lsn: lsn(reader)?,
        end_lsn: lsn(reader)?,
        time: time(reader)?,
        xid: reader.u32("xid")?,
        gid: reader.string("gid")?,
    })
}
