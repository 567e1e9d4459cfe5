//! Puts the read-only guard on the standby's replicated tables, mends it, removes it. The SQL is in `guard`.

use crate::config::ServerUrl;
use crate::model::{PipelineName, QualifiedName};
use crate::wire::{Connection, WireError};

use super::super::SinkError;
use super::guard::{
    create_function_sql, create_trigger_sql, drop_sql, function_query, guarded_query, superfluous_query,
    unguarded_query,
};

/// A trigger needs a lock that waits for every writer of its table; longer than this, and the wait is reported.
const LOCK_TIMEOUT: &str = "SET lock_timeout = '10s'";
const NO_LOCK_TIMEOUT: &str = "SET lock_timeout = 0";

/// Checks the guards of these tables and mends what is missing, disabled or different; a table that left the set loses its
/// guard. `primary` is named in the hint. Returns how many triggers were put up.
pub async fn ensure_guards(
    connection: &mut Connection,
    pipeline: &PipelineName,
    primary: &ServerUrl,
    tables: &[QualifiedName],
) -> Result<usize, SinkError> {
    run(connection, LOCK_TIMEOUT, None).await?;
    let put_up = ensure_within(connection, pipeline, primary, tables).await;
    if put_up.is_err() {
        // The session may be in a broken transaction, or gone: the first error is the one to tell.
        let _ = connection.simple_query("ROLLBACK").await;
    }
    let reset = run(connection, NO_LOCK_TIMEOUT, None).await;
    let put_up = put_up?;
    reset?;
    if put_up > 0 {
        tracing::info!(tables = put_up, "tables of the standby now refuse every writer but the relay");
    }
    Ok(put_up)
}

async fn ensure_within(
    connection: &mut Connection,
    pipeline: &PipelineName,
    primary: &ServerUrl,
    tables: &[QualifiedName],
) -> Result<usize, SinkError> {
    let is_superfluous = !query_texts(connection, &superfluous_query(pipeline, tables)).await?.is_empty();
    let has_function = !query_texts(connection, &function_query(pipeline, primary)).await?.is_empty();
    if is_superfluous {
        // Dropping a trigger takes the table's owner; dropping our own function takes all of its triggers. In one
        // transaction, so that no table that stays is open in between.
        run(connection, "BEGIN", None).await?;
        run(connection, &drop_sql(pipeline), None).await?;
    }
    if is_superfluous || !has_function {
        run(connection, &create_function_sql(pipeline, primary), None).await?;
    }
    let unguarded = query_texts(connection, &unguarded_query(pipeline, tables)).await?;
    for text in &unguarded {
        let table = read_name(text)?;
        run(connection, &create_trigger_sql(pipeline, &table), Some(&table)).await?;
    }
    if is_superfluous {
        run(connection, "COMMIT", None).await?;
    }
    Ok(unguarded.len())
}

/// Removes the pipeline's guards and their function, whoever owns the tables. Returns how many guards stood.
pub async fn remove_guards(connection: &mut Connection, pipeline: &PipelineName) -> Result<usize, SinkError> {
    let guarded = query_texts(connection, &guarded_query(pipeline)).await?.len();
    run(connection, LOCK_TIMEOUT, None).await?;
    let removed = run(connection, &drop_sql(pipeline), None).await;
    run(connection, NO_LOCK_TIMEOUT, None).await?;
    removed.map(|()| guarded)
}

/// Reads `[schema, name]`, as the queries return a table.
pub(super) fn read_name(text: &str) -> Result<QualifiedName, SinkError> {
    let (schema, name): (String, String) =
        serde_json::from_str(text).map_err(|error| SinkError::Catalog(error.into()))?;
    Ok(QualifiedName::new(schema, name))
}

/// What it means when a guard cannot be put on a table.
pub(super) fn explain(error: WireError, table: Option<&QualifiedName>) -> SinkError {
    let place = table.map_or_else(String::new, |table| format!(" of {table}"));
    match (error.code(), table) {
        (Some("42501"), Some(table)) => SinkError::Refused(format!(
            "the read-only guard{place} cannot be put on the standby: {error}; let the table's owner run there: GRANT TRIGGER ON \
             TABLE {} TO the relay's role, or set read_only = false for this sink",
            table.sql()
        )),
        (Some("42501"), None) => SinkError::Refused(format!(
            "the read-only guard cannot be made or removed on the standby: {error}; let the owner of the function \
             walrelay.guard_… run there: ALTER FUNCTION … OWNER TO the relay's role"
        )),
        _ => SinkError::wire(format!("putting the read-only guard{place} on the standby"))(error),
    }
}

async fn run(connection: &mut Connection, sql: &str, table: Option<&QualifiedName>) -> Result<(), SinkError> {
    connection.simple_query(sql).await.map(drop).map_err(|error| explain(error, table))
}

async fn query_texts(connection: &mut Connection, sql: &str) -> Result<Vec<String>, SinkError> {
    let results = connection
        .simple_query(sql)
        .await
        .map_err(SinkError::wire("looking for the read-only guards on the standby"))?;
    let rows = results.into_iter().flat_map(|result| result.rows);
    let first = rows.filter_map(|row| row.into_iter().next().flatten());
    Ok(first.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).collect())
}
