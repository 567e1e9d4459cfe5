//! Writes while it listens, so that neither side's full buffer stops the other. Knows no message's meaning.

use std::future::poll_fn;
use std::task::{Context, Poll, ready};

use super::super::WireError;
use super::{Connection, has_whole_message};

impl Connection {
    /// Writes until at most `limit_bytes` are outgoing, reading into the buffer whenever that makes no headway, so that a
    /// server that waits for us to read its answers goes on. Cancel safe.
    pub async fn drain_outgoing(&mut self, limit_bytes: usize) -> Result<(), WireError> {
        poll_fn(|context| self.poll_drain(context, limit_bytes, false)).await.map(drop)
    }

    /// The same, but it stops at a whole message that is there when nothing goes out: what that says must not wait until the
    /// server reads on. Returns whether so little is outgoing. Cancel safe.
    pub async fn drain_or_hear(&mut self, limit_bytes: usize) -> Result<bool, WireError> {
        poll_fn(|context| self.poll_drain(context, limit_bytes, true)).await
    }

    fn poll_drain(
        &mut self,
        context: &mut Context<'_>,
        limit_bytes: usize,
        stops_at_message: bool,
    ) -> Poll<Result<bool, WireError>> {
        loop {
            if self.poll_write_out(context)?.is_ready() || self.outgoing.len() <= limit_bytes {
                return Poll::Ready(Ok(true));
            }
            if stops_at_message && has_whole_message(&self.incoming)? {
                return Poll::Ready(Ok(false));
            }
            if let Err(error) = ready!(self.poll_fill(context)) {
                return Poll::Ready(Err(self.last_words(error)));
            }
        }
    }
}
