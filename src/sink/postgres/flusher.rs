//! The flusher: a second session on the standby that makes durable what the apply session committed without waiting for the
//! disk, while that one goes on with the next batch. Compares no positions of the standby, and never opens itself anew.
//!
//! What it relies on (`src/backend/replication/logical/origin.c`, alike in 14–18): every commit of a session that holds an origin
//! moves the origin's `local_lsn` to the end of its commit record before it is answered, `xact_setup` or not, and
//! `pg_replication_origin_progress(name, true)` flushes the WAL up to `local_lsn`. So whatever was answered before the call was
//! sent is on disk when the call is answered. `local_lsn` stands in shared memory alone: a server that was started anew, after
//! a crash that lost such commits, knows none and flushes nothing, without an error. Hence the two sessions are one unit: both are
//! opened on one postmaster, the loss of either ends both, and the record is read anew, with a flush.

use postgres_protocol::IsNull;
use postgres_protocol::escape::{escape_identifier, escape_literal};
use postgres_protocol::message::frontend;

use crate::config::ServerUrl;
use crate::model::PipelineName;
use crate::wire::{Connection, OwnedMessage, ServerError, WireError};

use super::super::SinkError;
use super::open::open_session;
use super::roles::FLUSH_ROLE;
use super::store::query_row;
use super::unit::Unit;

/// The function, with the types of its arguments.
pub const FLUSH_FUNCTION: &str = "pg_catalog.pg_replication_origin_progress(text, boolean)";
/// Name of the prepared call.
const STATEMENT: &str = "flush";

/// A session that flushes.
#[derive(Debug)]
pub struct Flusher {
    connection: Connection,
}

impl Flusher {
    /// Opens it beside an apply session that holds the pipeline's origin. `None`, with a warning: the role may not call the
    /// function, or there is no room for one more session; then each commit waits for the disk.
    pub(super) async fn open(
        url: &ServerUrl,
        pipeline: &PipelineName,
        apply: &mut Connection,
        unit: &Unit,
        origins: &[String],
    ) -> Result<Option<Box<Self>>, SinkError> {
        let may_call = format!("SELECT pg_catalog.has_function_privilege('{FLUSH_FUNCTION}', 'EXECUTE')::text");
        let answer = query_row(apply, &may_call, "asking for rights on the standby").await?;
        if !matches!(answer.first(), Some(Some(text)) if text == "true") {
            warn_without(
                &format!("the role \"{}\" may not call {FLUSH_FUNCTION}", url.user),
                &flush_grant_sql(&url.user),
            );
            return Ok(None);
        }
        let mut connection = match open_session(url, pipeline, FLUSH_ROLE).await {
            Ok(connection) => connection,
            Err(SinkError::Wire { source, .. }) if source.code() == Some("53300") => {
                warn_without(&source.to_string(), "raise max_connections, or the role's CONNECTION LIMIT");
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        unit.admit(&mut connection).await?;
        // Each connection that applies has its own, and moves its own `local_lsn`.
        let call =
            |origin: &String| format!("pg_catalog.pg_replication_origin_progress({}, true)", escape_literal(origin));
        let sql = format!("SELECT {}", origins.iter().map(call).collect::<Vec<_>>().join(", "));
        frontend::parse(STATEMENT, &sql, [], connection.outgoing()).map_err(|error| failed(error.into()))?;
        Ok(Some(Box::new(Self { connection })))
    }

    /// On return everything is on disk whose commit was answered on the apply session before this was first polled. Gives itself
    /// back; after an error it is good for nothing.
    pub(in crate::sink) async fn flush(mut self: Box<Self>) -> (Box<Self>, Result<(), SinkError>) {
        let result = self.call().await.map_err(failed);
        (self, result)
    }

    /// Waits, between two flushes, for the loss of the session. Cancel safe.
    pub(in crate::sink) async fn lost(&mut self) -> SinkError {
        loop {
            match self.connection.next_message().await {
                Ok(message) if message.tag == b'E' => return failed(server_error(&message)),
                // Notices and changed settings.
                Ok(_) => {}
                Err(error) => return failed(error),
            }
        }
    }

    async fn call(&mut self) -> Result<(), WireError> {
        let outgoing = self.connection.outgoing();
        let bound = frontend::bind("", STATEMENT, [], [(); 0], |(), _| Ok(IsNull::Yes), [], outgoing);
        bound.map_err(|_| WireError::Unexpected { tag: b'B', during: "asking for a flush" })?;
        frontend::execute("", 0, outgoing)?;
        frontend::sync(outgoing);
        self.connection.flush().await?;
        loop {
            let message = self.connection.next_message().await?;
            match message.tag {
                b'Z' => return Ok(()),
                b'E' => return Err(server_error(&message)),
                _ => {}
            }
        }
    }
}

/// What a superuser runs so that `role` may call the function.
pub fn flush_grant_sql(role: &str) -> String {
    format!("GRANT EXECUTE ON FUNCTION {FLUSH_FUNCTION} TO {}", escape_identifier(role))
}

fn warn_without(reason: &str, remedy: &str) {
    tracing::warn!(
        reason,
        remedy,
        "no second session flushes the standby's WAL beside the work: each batch waits for the standby's disk"
    );
}

fn server_error(message: &OwnedMessage) -> WireError {
    WireError::Server(Box::new(ServerError::parse(&message.body)))
}

fn failed(source: WireError) -> SinkError {
    SinkError::wire("flushing the standby's WAL")(source)
}
