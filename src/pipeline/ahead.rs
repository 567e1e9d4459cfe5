//! Which streamed transaction is written ahead of its commit, and how far: the largest one that is open, one at a time, and of it
//! only what came before everything that has committed was applied. Reads from the assembler, which keeps all of it: to give up
//! loses nothing but work. Commits nothing.
//!
//! ```text
//! Off ──large enough──▶ Busy(opening) ──▶ Idle ⇄ Busy(writing)
//!  ▲                        │              │ └──── its commit's turn ──▶ handed to the sink, Off
//!  └── error, rolled back, taken back, a lock waits for it ─────┘
//! ```

use std::future::pending;
use std::pin::Pin;

use bytes::Bytes;
use tokio::task::block_in_place;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

use crate::ack::Ledger;
use crate::assemble::{AssembleError, Assembler};
use crate::model::{Lsn, Transaction};
use crate::sink::WrittenAhead;
use crate::sink::postgres::{Ahead, AheadOpener};

/// A smaller transaction is written soon enough once it is whole; …
const LEAST_BYTES: u64 = 8 * 1024 * 1024;
/// … with a small memory limit that is rather this part of the limit.
const LEAST_PART: u64 = 8;
/// Handed over at a time.
const PIECE_BYTES: usize = 2 * 1024 * 1024;
/// So often a transaction is begun anew.
const ATTEMPTS_LIMIT: u32 = 3;

type Work = Pin<Box<dyn Future<Output = Result<Box<Ahead>, String>> + Send>>;

enum State {
    Off,
    Idle(Box<Ahead>),
    Busy(Work),
}

/// See the file.
pub(super) struct Lead {
    /// `None` where the sink cannot do it.
    opener: Option<AheadOpener>,
    least_bytes: u64,
    state: State,
    /// The transaction, and the next ones when it has ended.
    xid: u32,
    attempts: u32,
    taken_back: u32,
    written_bytes: u64,
    /// Up to here everything that committed before is applied.
    allowed_bytes: u64,
    /// The same once the sink's record has come to the position.
    mark: Option<(u64, Lsn)>,
    /// Its commit has arrived and waits for its turn.
    is_committed: bool,
}

impl Lead {
    pub(super) fn new(opener: Option<AheadOpener>, memory_limit_bytes: u64) -> Self {
        Self {
            opener,
            least_bytes: LEAST_BYTES.min(memory_limit_bytes / LEAST_PART),
            state: State::Off,
            xid: 0,
            attempts: 0,
            taken_back: 0,
            written_bytes: 0,
            allowed_bytes: 0,
            mark: None,
            is_committed: false,
        }
    }

    /// Whether something of an open transaction may be on the standby.
    pub(super) fn is_under_way(&self) -> bool {
        !matches!(self.state, State::Off)
    }

    /// Begins what can be begun. May read from the spool folder.
    pub(super) fn advance(&mut self, assembler: &mut Assembler, ledger: &Ledger) -> Result<(), AssembleError> {
        let Some(opener) = &self.opener else { return Ok(()) };
        if self.is_committed {
            return Ok(());
        }
        if !self.is_under_way() {
            let Some((xid, stream)) = assembler.largest_stream() else { return Ok(()) };
            let attempts = if xid == self.xid { self.attempts } else { 0 };
            let is_worth_it = stream.size_bytes >= self.least_bytes && attempts < ATTEMPTS_LIMIT;
            if is_worth_it && opener.may_begin(ledger.last_arrived()) {
                (self.xid, self.attempts, self.taken_back) = (xid, attempts + 1, stream.taken_back);
                (self.written_bytes, self.allowed_bytes, self.mark) = (0, 0, None);
                let opening = opener.clone().open();
                self.state = State::Busy(beside(async move { opening.await.map_err(|error| error.to_string()) }));
            }
            return Ok(());
        }
        let Some((stream, cut_to_bytes)) = assembler.look_at_stream(self.xid) else {
            self.give_up("it was rolled back on the primary");
            return Ok(());
        };
        if stream.taken_back != self.taken_back {
            self.give_up("a part of it was rolled back on the primary");
            return Ok(());
        }
        self.forbid(cut_to_bytes);
        self.allow(stream.size_bytes, ledger);
        self.write(assembler)
    }

    /// What was rolled back is permitted no more: what has come in its place may stand behind commits that are not applied.
    fn forbid(&mut self, cut_to_bytes: u64) {
        self.allowed_bytes = self.allowed_bytes.min(cut_to_bytes);
        if let Some((size_bytes, _)) = &mut self.mark {
            *size_bytes = cut_to_bytes.min(*size_bytes);
        }
    }

    fn allow(&mut self, size_bytes: u64, ledger: &Ledger) {
        let (size_bytes, position) = *self.mark.get_or_insert((size_bytes, ledger.last_arrived()));
        if position <= ledger.recorded() {
            self.allowed_bytes = size_bytes;
            self.mark = None;
        }
    }

    fn write(&mut self, assembler: &mut Assembler) -> Result<(), AssembleError> {
        if self.written_bytes >= self.allowed_bytes || !matches!(self.state, State::Idle(_)) {
            return Ok(());
        }
        let pieces = block_in_place(|| self.pieces(assembler))?;
        if let State::Idle(ahead) = std::mem::replace(&mut self.state, State::Off) {
            self.state = State::Busy(beside(ahead.write(pieces)));
        }
        Ok(())
    }

    fn pieces(&mut self, assembler: &mut Assembler) -> Result<Vec<Bytes>, AssembleError> {
        let (mut pieces, mut gathered_bytes) = (Vec::new(), 0);
        while gathered_bytes < PIECE_BYTES && self.written_bytes < self.allowed_bytes {
            let Some(mut piece) = assembler.read_stream(self.xid, self.written_bytes)? else { break };
            let left_bytes = self.allowed_bytes - self.written_bytes;
            piece.truncate(usize::try_from(left_bytes).unwrap_or(usize::MAX));
            gathered_bytes += piece.len();
            self.written_bytes += piece.len() as u64;
            pieces.push(piece);
        }
        Ok(pieces)
    }

    /// Waits for the end of what is under way, or of the session between two pieces: its transaction stands open for long, and somebody
    /// may end it. For ever where there is none. Cancel safe.
    pub(super) async fn done(&mut self) {
        let reason = match &mut self.state {
            State::Off => return pending().await,
            State::Idle(ahead) => ahead.lost().await,
            State::Busy(work) => match work.as_mut().await {
                Ok(ahead) => {
                    self.state = State::Idle(ahead);
                    return;
                }
                Err(reason) => reason,
            },
        };
        self.attempts = ATTEMPTS_LIMIT;
        self.give_up(&reason);
    }

    /// A transaction has arrived whole.
    pub(super) fn arrived(&mut self, transaction: &Transaction) {
        if !self.is_under_way() || !transaction.streamed || transaction.xid != self.xid {
            return;
        }
        if self.written_bytes == 0 {
            // Its commit need not wait for a session to be opened.
            self.state = State::Off;
        } else if transaction.taken_back == self.taken_back {
            self.is_committed = true;
        } else {
            self.give_up("a part of it was rolled back on the primary");
        }
    }

    /// The place among those that wait of the transaction that is written ahead.
    pub(super) fn place_in<'a>(&self, mut waiting: impl Iterator<Item = &'a Transaction>) -> Option<usize> {
        if !self.is_committed {
            return None;
        }
        waiting.position(|transaction| transaction.streamed && transaction.xid == self.xid)
    }

    /// Whether something is under way that its commit must wait for.
    pub(super) fn is_busy(&self) -> bool {
        matches!(self.state, State::Busy(_))
    }

    /// What was written of the transaction whose turn has come.
    pub(super) fn take(&mut self) -> Option<WrittenAhead> {
        self.is_committed = false;
        match std::mem::replace(&mut self.state, State::Off) {
            State::Idle(ahead) => Some(WrittenAhead { ahead, bytes: self.written_bytes }),
            _ => None,
        }
    }

    /// Lets the standby roll back what was written.
    pub(super) fn give_up(&mut self, reason: &str) {
        if self.is_under_way() {
            tracing::info!(
                xid = self.xid,
                reason,
                written_bytes = self.written_bytes,
                "what was written of an open transaction is thrown away; it is written once it is whole"
            );
            self.state = State::Off;
            self.is_committed = false;
        }
    }

    /// Another session of ours waits for a lock, and nobody but the open transaction may hold it.
    pub(super) fn make_way(&mut self) {
        self.attempts = ATTEMPTS_LIMIT;
        self.give_up("the apply session waits for a lock");
    }
}

/// Runs the work in a task that ends with its future.
fn beside(work: impl Future<Output = Result<Box<Ahead>, String>> + Send + 'static) -> Work {
    let task = AbortOnDropHandle::new(tokio::spawn(work.in_current_span()));
    // The text of a panic may hold a row's value; the spool has all that was written.
    Box::pin(async move { task.await.unwrap_or_else(|_| Err("it broke down; the log tells where".to_owned())) })
}
