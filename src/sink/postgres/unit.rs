//! The sessions that belong to one apply session: they must stand on the same postmaster, which only it can prove. Opens nothing.

use postgres_protocol::escape::escape_literal;

use crate::wire::Connection;

use super::super::SinkError;
use super::store::query_row;

const CONTEXT: &str = "comparing the sessions on the standby";

/// The apply session, as the server names it.
#[derive(Clone, Debug)]
pub(super) struct Unit {
    process_id: String,
    start: String,
}

impl Unit {
    /// Asks the apply session who it is.
    pub(super) async fn of(apply: &mut Connection) -> Result<Self, SinkError> {
        let sql = "SELECT pid::text, backend_start::text FROM pg_catalog.pg_stat_activity WHERE pid = pg_catalog.pg_backend_pid()";
        match query_row(apply, sql, CONTEXT).await?.as_slice() {
            [Some(process_id), Some(start)] => Ok(Self { process_id: process_id.clone(), start: start.clone() }),
            _ => Err(SinkError::Refused("the apply session does not find itself in pg_stat_activity".to_owned())),
        }
    }

    /// A url of several hosts, or an address that leads to several servers, may bring a further session elsewhere. The apply
    /// session must be seen from it: same process, begun at the same microsecond.
    pub(super) async fn admit(&self, connection: &mut Connection) -> Result<(), SinkError> {
        let sql = format!(
            "SELECT 1 FROM pg_catalog.pg_stat_activity WHERE pid = {}::int4 AND backend_start = {}::timestamptz",
            escape_literal(&self.process_id),
            escape_literal(&self.start)
        );
        if query_row(connection, &sql, CONTEXT).await?.is_empty() {
            return Err(SinkError::TwoServers { host: connection.host().to_owned() });
        }
        Ok(())
    }
}
