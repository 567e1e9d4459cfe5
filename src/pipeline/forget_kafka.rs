//! The part of `walrelay drop` for a Kafka pipeline: its records in the progress topic get tombstones. Leaves topics with events
//! alone, and a record that is about another primary.

use crate::config::{self, KafkaSink};
use crate::model::{PipelineName, Progress};
use crate::sink::SinkError;
use crate::sink::kafka::transport;
use crate::source::SourceError;
use crate::wire::Connection;
use crate::wire::sql::SqlClient;

use super::PipelineError;
use super::monitor::primary_session;
use super::ownership;
use super::primary::refuse_another;
use super::removed::Removed;
use super::to_kafka::copy_producers;

/// A session on the primary, beside `sql`, that owns the pipeline; refuses while a daemon does.
pub(super) async fn own(
    config: &config::Config,
    sql: &SqlClient,
    name: &PipelineName,
) -> Result<Connection, PipelineError> {
    let session = primary_session(name, "drop");
    let connecting = SourceError::wire("connecting to the primary");
    let mut connection = Connection::connect(&config.primary, &session).await.map_err(connecting)?;
    // A lock on another server would keep nobody out.
    refuse_another(sql, &mut connection).await?;
    if ownership::try_lock(&mut connection, &ownership::primary_lock(name)).await? {
        return Ok(connection);
    }
    Err(PipelineError::Refused(format!(
        "a daemon runs \"{name}\" (it holds the pipeline's lock on the primary): stop it first"
    )))
}

/// The progress record, if there is one. Fences nobody.
pub(super) async fn read(sink: &KafkaSink, name: &PipelineName) -> Result<Option<Progress>, SinkError> {
    Ok(transport::read_records(sink, name).await?.progress)
}

/// Removes the records, and says what could not be removed. `read` is what was read before the slot was dropped.
pub(super) async fn forget(
    sql: &SqlClient,
    pipeline: &config::Pipeline,
    sink: &KafkaSink,
    read: Result<Option<Progress>, SinkError>,
) -> Result<Vec<Removed>, PipelineError> {
    let name = &pipeline.name;
    let left = |error: &dyn std::fmt::Display| {
        vec![Removed::Left(format!("the records in Kafka: {error}; run drop again once it answers"))]
    };
    let progress = match read {
        Ok(progress) => progress,
        Err(error) => return Ok(left(&error)),
    };
    if let Some(progress) = &progress
        && let Some(stranger) = stranger(sql, pipeline, progress).await?
    {
        return Ok(vec![Removed::Left(format!(
            "the progress record \"{}\" in the topic \"{}\": it is about {stranger}. If that is this pipeline's, correct `slot` and the \
             primary's url and run drop again; if it is another pipeline's, give one of both a transactional_id of its own",
            sink.transactional_id, sink.progress_topic
        ))]);
    }
    match transport::remove(sink, name, copy_producers(pipeline)).await {
        Ok(removed) if removed.is_empty() => Ok(vec![Removed::Done("there is no progress record in Kafka".to_owned())]),
        Ok(removed) => Ok(removed.into_iter().map(|what| Removed::Done(format!("removed {what}"))).collect()),
        Err(error) => Ok(left(&error)),
    }
}

/// Whom the record is about, if not this primary's slot.
pub(super) async fn stranger(
    sql: &SqlClient,
    pipeline: &config::Pipeline,
    progress: &Progress,
) -> Result<Option<String>, PipelineError> {
    let query =
        "SELECT system_identifier::text, pg_catalog.current_database()::text FROM pg_catalog.pg_control_system()";
    let row = sql.query_one(query, &[]).await.map_err(SourceError::sql("reading the primary's system identifier"))?;
    let (system_identifier, database): (String, String) = (row.get(0), row.get(1));
    let slot = pipeline.slot_name();
    let is_ours =
        progress.system_identifier == system_identifier && progress.database == database && progress.slot == slot;
    Ok((!is_ours).then(|| {
        format!(
            "the slot \"{}\" of the database \"{}\" of the cluster {}",
            progress.slot, progress.database, progress.system_identifier
        )
    }))
}
