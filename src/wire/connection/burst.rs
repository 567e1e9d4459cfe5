//! Both ways at once, for a sender that writes one unit in several small messages. Knows no message's meaning.

use std::future::poll_fn;
use std::task::{Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::super::WireError;
use super::super::frame::{self, Frame};
use super::{Connection, FLOOD_BYTES, READ_BYTES};

/// A read shorter than this may be the beginning of a unit that is still being written.
const BURST_BYTES: usize = 16 * 1024;
/// How long the rest of such a unit is looked for without sleeping: a walsender needs less between two messages of a small one.
const BURST_LOOK: Duration = Duration::from_micros(50);

impl Connection {
    /// Writes what is outgoing and, where it `may_read`, reads a run of whole messages like `read_chunk`; where it may not, it waits
    /// for ever.
    ///
    /// For a sender that writes one unit in several small messages: where a short read `lacks` the end of what its first message begins
    /// and its last one goes on with, the rest is looked for for a moment, and joins the chunk. One waking instead of one a message. Not
    /// under TLS, whose records only the runtime's own read can take. Cancel safe.
    pub async fn exchange(
        &mut self,
        may_read: bool,
        lacks: impl Fn(Frame<'_>, Frame<'_>) -> bool,
    ) -> Result<Bytes, WireError> {
        poll_fn(|context| {
            let _ = self.poll_write_out(context)?;
            if !may_read {
                return Poll::Pending;
            }
            let mut end = ready!(self.poll_whole(context))?;
            let mut began = None;
            while end < BURST_BYTES && self.can_take_now() {
                let mut whole = frame::frames(&self.incoming[..end]).flatten();
                let first = whole.next();
                let is_whole = !first.is_some_and(|first| lacks(first, whole.last().unwrap_or(first)));
                if is_whole || began.get_or_insert_with(Instant::now).elapsed() > BURST_LOOK {
                    break;
                }
                // The writer may be waiting for this very processor.
                std::thread::yield_now();
                if self.fill_now() > 0 {
                    end = frame::whole_messages_bytes(&self.incoming)?;
                }
            }
            Poll::Ready(Ok(self.incoming.split_to(end).freeze()))
        })
        .await
    }

    /// A run of whole messages of what is there, of 64 KiB and a little more at most, without waiting; `None` where that makes none. Not
    /// under TLS (`can_take_now`).
    pub fn take_now(&mut self) -> Result<Option<Bytes>, WireError> {
        loop {
            self.make_room(READ_BYTES);
            let room_bytes = self.incoming.capacity() - self.incoming.len();
            // A read that leaves room has taken all that is there.
            if self.fill_now() < room_bytes || self.incoming.len() >= FLOOD_BYTES {
                break;
            }
        }
        let end = frame::whole_messages_bytes(&self.incoming)?;
        Ok((end > 0).then(|| self.incoming.split_to(end).freeze()))
    }

    /// Whether `take_now` reads.
    pub fn can_take_now(&self) -> bool {
        !self.transport.gives_records()
    }

    /// Reads what is there and has room, without waiting and without the runtime; how many bytes that is.
    fn fill_now(&mut self) -> usize {
        let room = self.incoming.spare_capacity_mut();
        let Some(count) = self.transport.receive_now(room) else { return 0 };
        // SAFETY: `count` bytes of the spare capacity were just initialised by the read.
        unsafe { self.incoming.set_len(self.incoming.len() + count) };
        count
    }
}
