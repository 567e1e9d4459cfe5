//! Sessions on the standby that look for rows before the batches under way change them, and so bring their pages into its memory. They
//! read and nothing else, one statement at a time, bounded in time and in waiting for locks; whatever goes wrong with one is its own affair.
//! Opened when there is something to read, closed after a while without.

use std::sync::Arc;
use std::time::Duration;

use postgres_protocol::message::frontend;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::Instrument;

use crate::backoff::Backoff;
use crate::config::{PREFETCH_CONNECTIONS_LIMIT, ServerUrl};
use crate::model::PipelineName;
use crate::wire::{Connection, ServerError, WireError};

use super::super::SinkError;
use super::open::open_session;
use super::opening::Opening;
use super::prefetch::{Piece, Prefetch};
use super::reads::Reads;
use super::roles::PREFETCH_ROLES;
use super::statements::Statement;
use super::store::query_row;
use super::unit::Unit;

/// Beside the settings of every session: an ACCESS SHARE lock of theirs stands no longer than the first, in whose way it may be, and is
/// waited for no longer than the second; and an index alone would not do, since the rows' own pages are what is changed.
const SETTINGS: &str = "SET default_transaction_read_only = on; SET statement_timeout = '1s'; SET lock_timeout = '100ms'; \
    SET enable_indexonlyscan = off; SET max_parallel_workers_per_gather = 0";
/// Pages of the server's shared buffers.
const BUFFERS: &str = "SELECT (pg_catalog.pg_size_bytes(pg_catalog.current_setting('shared_buffers')) \
    / pg_catalog.current_setting('block_size')::int8)::text";
/// Without anything to read for so long, a session is closed.
const IDLE: Duration = Duration::from_secs(10);

/// All of them. They end when this is dropped.
#[derive(Debug)]
pub(super) struct PrefetchSessions {
    prefetch: Prefetch,
    reads: Reads,
    _tasks: JoinSet<()>,
}

impl PrefetchSessions {
    /// As many as are wanted, for an apply session; `None` where none are.
    pub(super) async fn start(
        url: &ServerUrl,
        opening: &Opening,
        unit: &Unit,
        apply: &mut Connection,
    ) -> Result<Option<Self>, SinkError> {
        let count = opening.prefetch_connections.min(PREFETCH_CONNECTIONS_LIMIT);
        if count == 0 {
            return Ok(None);
        }
        let answer = query_row(apply, BUFFERS, "asking how large the standby's memory is").await?;
        let buffers = answer.into_iter().next().flatten().and_then(|text| text.parse().ok()).unwrap_or_default();
        let prefetch = Prefetch::new(count, buffers, opening.prefetching.clone());
        let mut tasks = JoinSet::new();
        for role in PREFETCH_ROLES.iter().copied().take(count) {
            let place = Place { url: url.clone(), pipeline: opening.pipeline.clone(), unit: unit.clone(), role };
            tasks.spawn(place.keep(prefetch.clone()).in_current_span());
        }
        Ok(Some(Self { prefetch, reads: Reads::new(opening.prefetching.clone()), _tasks: tasks }))
    }

    /// Where what is to be read is handed over.
    pub(super) fn prefetch(&self) -> Prefetch {
        self.prefetch.clone()
    }

    /// What tells whether it is worth while.
    pub(super) fn reads(&self) -> Reads {
        self.reads.clone()
    }
}

/// Where a session belongs.
struct Place {
    url: ServerUrl,
    pipeline: PipelineName,
    unit: Unit,
    role: &'static str,
}

impl Place {
    /// A session whenever there is work for one.
    async fn keep(self, prefetch: Prefetch) {
        let mut backoff = Backoff::default();
        loop {
            let piece = prefetch.next().await;
            let served = match self.open().await {
                Ok(mut session) => session.serve(&prefetch, piece, &mut backoff).await,
                Err(error) => Err(error),
            };
            if let Err(error) = served {
                tracing::warn!(role = self.role, %error, "a session that prefetches is gone, and opened anew later; nothing waits for it");
                sleep(backoff.next_delay()).await;
            }
        }
    }

    async fn open(&self) -> Result<Session, SinkError> {
        let mut connection = open_session(&self.url, &self.pipeline, self.role).await?;
        self.unit.admit(&mut connection).await?;
        query_row(&mut connection, SETTINGS, "setting up a session that prefetches on the standby").await?;
        Ok(Session { connection, prepared: None })
    }
}

#[derive(Debug)]
struct Session {
    connection: Connection,
    /// What the unnamed statement is.
    prepared: Option<Arc<Statement>>,
}

impl Session {
    /// Reads ahead until there is nothing to read for a while, or the session is lost.
    async fn serve(&mut self, prefetch: &Prefetch, first: Piece, backoff: &mut Backoff) -> Result<(), SinkError> {
        let mut piece = first;
        loop {
            match self.look_for(&piece).await.map_err(SinkError::wire("prefetching on the standby"))? {
                None => prefetch.read(piece.rows),
                // Too slow, a lock, a table that is another by now: the batch itself will say so if it matters.
                Some(code) => {
                    self.prepared = None;
                    tracing::debug!(code, "rows were not prefetched");
                }
            }
            backoff.reset();
            match timeout(IDLE, prefetch.next()).await {
                Ok(next) => piece = next,
                Err(_) => return Ok(()),
            }
        }
    }

    /// Looks for the rows; the SQLSTATE if the server refused that.
    async fn look_for(&mut self, piece: &Piece) -> Result<Option<String>, WireError> {
        let outgoing = self.connection.outgoing();
        if self.prepared.as_deref() != Some(&*piece.statement) {
            let Statement { sql, types } = &*piece.statement;
            frontend::parse("", sql, types.iter().copied(), outgoing)?;
            self.prepared = Some(Arc::clone(&piece.statement));
        }
        outgoing.extend_from_slice(&piece.bind);
        frontend::execute("", 0, outgoing)?;
        frontend::sync(outgoing);
        let mut refused = None;
        loop {
            match self.connection.try_next_message()? {
                Some(message) if message.tag == b'Z' => return Ok(refused),
                Some(message) if message.tag == b'E' => refused = Some(ServerError::parse(&message.body).code),
                Some(_) => {}
                None => {
                    self.connection.pump().await?;
                }
            }
        }
    }
}
