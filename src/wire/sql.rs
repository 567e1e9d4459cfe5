//! SQL sessions: tokio-postgres on top of our own transport, so that every URL means the same everywhere. Speaks no replication.

use crate::config::ServerUrl;

use super::{Session, WireError, connect};

pub use super::sql_client::SqlClient;

/// Opens a SQL session on the first usable host. Settings are the session's; `search_path` should be emptied by the caller's
/// settings where names are not written out.
pub async fn connect(url: &ServerUrl, session: &Session) -> Result<SqlClient, WireError> {
    connect::connect_sql(url, session).await
}
