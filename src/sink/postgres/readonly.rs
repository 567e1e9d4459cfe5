//! Puts the read-only guard where it is missing, and takes it away. Runs on an apply or control session of the standby.

use crate::config::ServerUrl;
use crate::model::{PipelineName, QualifiedName};
use crate::schema::{TableShape, catalog_query, read_shapes};
use crate::wire::{Connection, WireError};

use super::super::SinkError;
use super::guard;
use super::session::Pipelined;

/// Checks and mends the guards of these tables and all their partitions. Returns how many triggers were put up.
pub async fn ensure_guards(
    connection: &mut Connection,
    pipeline: &PipelineName,
    primary: &ServerUrl,
    tables: &[QualifiedName],
) -> Result<usize, SinkError> {
    let with_partitions = expand(connection, tables).await?;
    ensure_guards_of(connection, pipeline, primary, &with_partitions).await
}

async fn ensure_guards_of(
    connection: &mut Connection,
    pipeline: &PipelineName,
    primary: &ServerUrl,
    tables: &[QualifiedName],
) -> Result<usize, SinkError> {
    let unguarded = names(connection, &guard::unguarded_query(pipeline, tables)).await?;
    if unguarded.is_empty() {
        return Ok(0);
    }
    run(connection, &guard::create_function_sql(pipeline, &primary.to_string()), pipeline).await?;
    for table in &unguarded {
        run(connection, &guard::create_trigger_sql(pipeline, table), pipeline).await?;
    }
    tracing::info!(tables = unguarded.len(), "tables of the standby now refuse every writer but the relay");
    Ok(unguarded.len())
}

/// Removes the pipeline's guards from every table, and its function.
pub async fn remove_guards(connection: &mut Connection, pipeline: &PipelineName) -> Result<usize, SinkError> {
    let guarded = names(connection, &guard::guarded_query(pipeline)).await?;
    if !guarded.is_empty() {
        run(connection, &guard::drop_sql(pipeline), pipeline).await?;
    }
    Ok(guarded.len())
}

/// The same for one table, between the statements of a batch: the trigger is part of the batch's transaction, so that it can
/// never wait for a lock that the batch itself holds.
pub(super) async fn ensure_guards_in<T>(
    pipelined: &mut Pipelined<T>,
    pipeline: &PipelineName,
    primary: &ServerUrl,
    shape: &TableShape,
) -> Result<(), SinkError> {
    ensure_guards_of(pipelined.idle_connection(), pipeline, primary, &shape.with_partitions()).await.map(drop)
}

async fn expand(connection: &mut Connection, tables: &[QualifiedName]) -> Result<Vec<QualifiedName>, SinkError> {
    let context = || SinkError::wire("reading the standby's catalog");
    let results = connection.simple_query(&catalog_query(tables)).await.map_err(context())?;
    let texts = texts_of(results);
    let shapes = read_shapes(texts.iter().map(String::as_str))?;
    Ok(shapes.iter().flat_map(TableShape::with_partitions).collect())
}

/// The first column of every row.
pub(super) fn texts_of(results: Vec<crate::wire::QueryResult>) -> Vec<String> {
    let rows = results.into_iter().flat_map(|result| result.rows);
    rows.filter_map(|row| row.into_iter().next().flatten())
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .collect()
}

async fn names(connection: &mut Connection, query: &str) -> Result<Vec<QualifiedName>, SinkError> {
    let results = connection.simple_query(query).await.map_err(SinkError::wire("looking for guards on the standby"))?;
    let text = |value: &Option<bytes::Bytes>| value.as_deref().map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    let rows = results.iter().flat_map(|result| &result.rows);
    Ok(rows.filter_map(|row| Some(QualifiedName::new(text(row.first()?)?, text(row.get(1)?)?))).collect())
}

async fn run(connection: &mut Connection, sql: &str, pipeline: &PipelineName) -> Result<(), SinkError> {
    match connection.simple_query(sql).await {
        Ok(_) => Ok(()),
        Err(error @ WireError::Server(_)) if error.code() == Some("42501") => Err(SinkError::Refused(format!(
            "the read-only guard of \"{pipeline}\" cannot be put up on the standby: {error}; grant the relay's role TRIGGER on the \
             replicated tables and CREATE on the schema walrelay (`walrelay check` prints the statements), or set read_only = false"
        ))),
        Err(error) => Err(SinkError::wire("putting up the read-only guard on the standby")(error)),
    }
}
