//! Keys of rows that statements under way will change, for sessions that look for these rows first, so that their pages are in the
//! standby's memory by then. Only a hint: what does not fit, comes too late or fails is left out, and nobody waits for it. Knows no
//! session and sends nothing.
//!
//! ```text
//! a statement's keys ─▶ waiting pieces ─▶ a session looks for the rows ─▶ read ahead ─▶ the statement is answered: room for others
//! ```

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

use crate::model::Prefetching;

use super::statements::Statement;

/// Bytes of keys that wait. What comes beyond is not prefetched.
const WAITING_BYTES_LIMIT: usize = 8 * 1024 * 1024;
/// Rows that were read ahead and are not changed yet: at about two pages a row, a quarter of the server's buffers, …
const PAGES_A_ROW_AHEAD: u64 = 8;
/// … within these bounds. Further ahead gains nothing.
const AHEAD_ROWS: std::ops::RangeInclusive<u64> = 64..=16_000;
/// Most rows of a statement whose rows are read ahead: only its answer tells that they are changed.
const STATEMENT_ROWS_LIMIT: usize = 2000;
/// Rows of a piece: few, so that sessions share a small statement; and not so many that their lock on the table stands for long.
const PIECE_ROWS: (usize, usize) = (8, 100);

/// What is to be read ahead, shared between who writes batches and the sessions that read.
#[derive(Clone, Debug)]
pub(super) struct Prefetch(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// How many share the work.
    sessions: usize,
    ahead_limit_rows: usize,
    prefetching: Prefetching,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// In the order in which their statements were sent.
    waiting: VecDeque<Piece>,
    waiting_bytes: usize,
    /// Rows of statements that are being read ahead, or were, and that are not answered.
    ahead_rows: usize,
}

/// Some rows of a statement.
#[derive(Debug)]
pub(super) struct Piece {
    /// What looks for them, …
    pub(super) statement: Arc<Statement>,
    /// … its Bind, with their keys.
    pub(super) bind: Bytes,
    pub(super) rows: usize,
    /// The statement that they belong to.
    change: Arc<Change>,
}

/// A statement that changes rows. Read and written under the state's lock.
#[derive(Debug)]
struct Change {
    rows: usize,
    is_begun: AtomicBool,
    is_over: AtomicBool,
}

/// Goes with a statement. Dropped when it is answered, or undone: nothing of it needs to be read ahead any more.
#[derive(Debug)]
pub(super) struct Ticket {
    prefetch: Prefetch,
    change: Arc<Change>,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.prefetch.over(&self.change);
    }
}

impl Prefetch {
    /// For so many sessions, on a server of so many buffers.
    pub(super) fn new(sessions: usize, buffers: u64, prefetching: Prefetching) -> Self {
        let ahead = (buffers / PAGES_A_ROW_AHEAD).clamp(*AHEAD_ROWS.start(), *AHEAD_ROWS.end());
        Self(Arc::new(Shared {
            sessions: sessions.max(1),
            ahead_limit_rows: ahead as usize,
            prefetching,
            state: Mutex::default(),
            changed: Notify::new(),
        }))
    }

    /// Whether it is wanted now.
    pub(super) fn is_on(&self) -> bool {
        self.0.prefetching.is_on()
    }

    /// Most rows of a statement: two of them may be read ahead at once.
    pub(super) fn statement_rows(&self) -> usize {
        (self.0.ahead_limit_rows / 2).min(STATEMENT_ROWS_LIMIT)
    }

    /// Rows of a piece of a statement of so many: each session has its part of it.
    pub(super) fn piece_rows(&self, rows: usize) -> usize {
        rows.div_ceil(self.0.sessions).clamp(PIECE_ROWS.0, PIECE_ROWS.1)
    }

    /// Takes the pieces of a statement that will be sent behind those before: Binds, and the rows of each. `None` where there is no room
    /// for them.
    pub(super) fn add(&self, statement: &Arc<Statement>, pieces: Vec<(Bytes, usize)>) -> Option<Ticket> {
        let (bytes, rows) = pieces.iter().fold((0, 0), |(bytes, sum), (bind, rows)| (bytes + bind.len(), sum + rows));
        let mut state = self.state();
        if state.waiting_bytes + bytes > WAITING_BYTES_LIMIT {
            return None;
        }
        state.waiting_bytes += bytes;
        let change = Arc::new(Change { rows, is_begun: AtomicBool::new(false), is_over: AtomicBool::new(false) });
        let piece = |(bind, rows)| Piece { statement: Arc::clone(statement), bind, rows, change: Arc::clone(&change) };
        state.waiting.extend(pieces.into_iter().map(piece));
        drop(state);
        self.0.changed.notify_waiters();
        Some(Ticket { prefetch: self.clone(), change })
    }

    /// Waits for the next piece that may be read now. Cancel safe.
    pub(super) async fn next(&self) -> Piece {
        loop {
            let changed = self.0.changed.notified();
            if let Some(piece) = self.take() {
                return piece;
            }
            changed.await;
        }
    }

    /// So many rows were looked for.
    pub(super) fn read(&self, rows: usize) {
        self.0.prefetching.add_rows(rows as u64);
    }

    fn take(&self) -> Option<Piece> {
        let mut state = self.state();
        let change = Arc::clone(&state.waiting.front()?.change);
        if !change.is_begun.load(Ordering::Relaxed) {
            // The first one always, however large.
            if state.ahead_rows > 0 && state.ahead_rows + change.rows > self.0.ahead_limit_rows {
                return None;
            }
            change.is_begun.store(true, Ordering::Relaxed);
            state.ahead_rows += change.rows;
        }
        state.pop()
    }

    fn over(&self, change: &Change) {
        let mut state = self.state();
        change.is_over.store(true, Ordering::Relaxed);
        if change.is_begun.load(Ordering::Relaxed) {
            state.ahead_rows -= change.rows;
        }
        while state.waiting.front().is_some_and(|piece| piece.change.is_over.load(Ordering::Relaxed)) {
            state.pop();
        }
        drop(state);
        self.0.changed.notify_waiters();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn pop(&mut self) -> Option<Piece> {
        let piece = self.waiting.pop_front()?;
        self.waiting_bytes -= piece.bind.len();
        Some(piece)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statement() -> Arc<Statement> {
        Arc::new(Statement { sql: String::new(), types: Vec::new() })
    }

    fn pieces(rows: &[usize]) -> Vec<(Bytes, usize)> {
        rows.iter().map(|rows| (Bytes::from(vec![0; 100]), *rows)).collect()
    }

    fn taken(prefetch: &Prefetch) -> Vec<usize> {
        std::iter::from_fn(|| prefetch.take()).map(|piece| piece.rows).collect()
    }

    #[test]
    fn statements_and_pieces_fit_the_servers_memory_and_the_sessions() {
        // Sessions, buffers, rows of a statement; then rows of a smaller one and of each piece of it.
        for (sessions, buffers, statement_rows, rows, piece_rows) in [
            (4, 16, 32, 32, 8),
            (4, 8192, 512, 512, 100),
            (4, 8192, 512, 120, 30),
            (8, 131_072, 2000, 20, 8),
            (1, u64::MAX, 2000, 50, 50),
        ] {
            let prefetch = Prefetch::new(sessions, buffers, Prefetching::default());
            assert_eq!((prefetch.statement_rows(), prefetch.piece_rows(rows)), (statement_rows, piece_rows));
        }
    }

    #[test]
    fn so_many_rows_are_read_ahead_of_what_is_answered() {
        // A hundred rows ahead.
        let prefetch = Prefetch::new(4, 800, Prefetching::default());
        let mut tickets: VecDeque<Ticket> =
            (0..4).filter_map(|_| prefetch.add(&statement(), pieces(&[30, 20]))).collect();
        assert_eq!(taken(&prefetch), [30, 20, 30, 20]);
        tickets.pop_front();
        assert_eq!(taken(&prefetch), [30, 20]);
        // What is answered before it was begun is left out, and frees nothing that it had not.
        tickets.pop_back();
        tickets.pop_front();
        assert_eq!(taken(&prefetch), [0; 0]);
        tickets.clear();
        let large = prefetch.add(&statement(), pieces(&[300, 300]));
        assert_eq!(taken(&prefetch), [300, 300]);
        drop(large);
        let state = prefetch.state();
        assert_eq!((state.ahead_rows, state.waiting_bytes, state.waiting.len()), (0, 0, 0));
    }

    #[test]
    fn what_does_not_fit_is_left_out() {
        let prefetch = Prefetch::new(4, 800, Prefetching::default());
        let half = || vec![(Bytes::from(vec![0; WAITING_BYTES_LIMIT / 2]), 1)];
        let tickets = [prefetch.add(&statement(), half()), prefetch.add(&statement(), half())];
        assert!(tickets.iter().all(Option::is_some));
        assert!(prefetch.add(&statement(), pieces(&[1])).is_none());
        drop(tickets);
        assert!(prefetch.add(&statement(), pieces(&[1])).is_some());
    }

    #[tokio::test]
    async fn a_session_waits_until_there_is_room() {
        let prefetch = Prefetch::new(4, 800, Prefetching::default());
        let first = prefetch.add(&statement(), pieces(&[100]));
        let _second = prefetch.add(&statement(), pieces(&[70]));
        assert_eq!(prefetch.next().await.rows, 100);
        let waiting = tokio::spawn({
            let prefetch = prefetch.clone();
            async move { prefetch.next().await.rows }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(first);
        assert_eq!(waiting.await.unwrap(), 70);
    }
}
