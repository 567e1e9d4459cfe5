//! SQL in one line: statements, one value, all rows as text.

use tokio_postgres::SimpleQueryMessage;
use walrelay::throwaway::Server;
use walrelay::wire::Session;
use walrelay::wire::sql::{SqlClient, connect};

/// Rows of text values.
pub type Rows = Vec<Vec<Option<String>>>;

/// A session of the superuser.
pub async fn client(server: &Server, database: &str) -> SqlClient {
    let url = server.server_url(database).unwrap();
    connect(&url, &Session::new("walrelay test"))
        .await
        .unwrap_or_else(|error| panic!("{error}\n{}", server.log_tail(20)))
}

/// Runs statements in a session of their own and gives the rows of all of them, or the server's error.
pub async fn try_run(server: &Server, database: &str, sql: &str) -> Result<Rows, tokio_postgres::Error> {
    Ok(rows(&client(server, database).await.simple_query(sql).await?))
}

/// The rows among the answers.
pub fn rows(messages: &[SimpleQueryMessage]) -> Rows {
    messages
        .iter()
        .filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some((0..row.len()).map(|at| row.get(at).map(str::to_owned)).collect()),
            _ => None,
        })
        .collect()
}

/// The rows of statements that must succeed.
pub async fn values(server: &Server, database: &str, sql: &str) -> Rows {
    try_run(server, database, sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"))
}

/// The first value of the last row, empty for NULL or no row.
pub async fn value(server: &Server, database: &str, sql: &str) -> String {
    let rows = values(server, database, sql).await;
    rows.into_iter().next_back().and_then(|row| row.into_iter().next().flatten()).unwrap_or_default()
}
