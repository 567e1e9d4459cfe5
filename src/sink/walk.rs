//! Walks the messages of a transaction's chunks. Decodes; interprets nothing.

use crate::decode::{Context, Message, decode};
use crate::wire::frame::frames;
use crate::wire::replication::{ReplicationMessage, parse};

use super::SinkError;

/// The pgoutput messages of a chunk with their bytes.
pub(super) fn messages(
    chunk: &[u8],
    is_streamed: bool,
) -> impl Iterator<Item = Result<(&[u8], Message<'_>), SinkError>> {
    let context = Context { in_stream: is_streamed, parallel: false };
    let broken = || SinkError::wire("reading a transaction from the primary");
    frames(chunk).filter_map(move |frame| {
        let frame = match frame {
            Ok(frame) => frame,
            Err(error) => return Some(Err(broken()(error))),
        };
        match parse(frame.body) {
            Ok(ReplicationMessage::XLogData { payload, .. }) => {
                Some(decode(payload, context).map(|message| (payload, message)).map_err(SinkError::from))
            }
            Ok(ReplicationMessage::Keepalive { .. }) => None,
            Err(error) => Some(Err(broken()(error))),
        }
    })
}
