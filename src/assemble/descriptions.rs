//! Relation messages in the order of their arrival. The primary takes a table for described once it has sent a description, whichever
//! transaction carried it; one that a streamed transaction carries is read when that commits. If another has come meanwhile (a column list
//! of the publication was changed), it is put behind the transaction once more: else the older one would stand for all that follows.
//! Interprets nothing of a description but whose it is.

use std::collections::HashMap;

use bytes::{BufMut, Bytes, BytesMut};

use crate::model::Lsn;
use crate::wire::frame;

use super::error::AssembleError;

/// A description, and which one it was.
#[derive(Clone, Debug)]
struct Told {
    number: u64,
    /// Behind the tag (and the transaction id, in a block): OID, names, columns.
    body: Bytes,
}

/// Those of some relations, the last of each, by OID.
#[derive(Clone, Debug, Default)]
pub(super) struct Descriptions {
    last: HashMap<u32, Told>,
    count: u64,
}

impl Descriptions {
    /// One has come; a streamed transaction keeps its own beside.
    pub(super) fn note(&mut self, body: &[u8], of_stream: Option<&mut Descriptions>) {
        let Some(oid) = body.first_chunk::<4>().map(|bytes| u32::from_be_bytes(*bytes)) else { return };
        self.count += 1;
        let told = Told { number: self.count, body: Bytes::copy_from_slice(body) };
        if let Some(own) = of_stream {
            own.last.insert(oid, told.clone());
        }
        self.last.insert(oid, told);
    }

    /// Those that came after a streamed transaction's own and say something else, as messages of that transaction.
    pub(super) fn since(&self, own: &Descriptions, xid: u32, commit_lsn: Lsn) -> Result<BytesMut, AssembleError> {
        let mut run = BytesMut::new();
        for (oid, told) in &own.last {
            let Some(last) = self.last.get(oid).filter(|last| last.number > told.number && last.body != told.body)
            else {
                continue;
            };
            let start = frame::begin(b'd', &mut run);
            run.put_u8(b'w');
            run.put_u64(commit_lsn.0);
            run.put_u64(commit_lsn.0);
            run.put_i64(0);
            run.put_u8(b'R');
            run.put_u32(xid);
            run.put_slice(&last.body);
            frame::end(start, &mut run)?;
        }
        Ok(run)
    }
}
