//! `walrelay drop`: takes away what a pipeline made, slot first, so that the primary stops retaining WAL whatever happens
//! afterwards. Refuses while a daemon runs it; leaves what it may not drop, and says so.

use crate::config::{self, Config, PostgresSink};
use crate::model::PipelineName;
use crate::sink::postgres::{self, open_session};
use crate::source::{SourceError, drop_publication, drop_slot, lists_standby, slot_facts, synchronous_standby_names};
use crate::wire::Connection;
use crate::wire::sql::{self, SqlClient};

use super::PipelineError;
use super::monitor::primary_session;
use super::ownership;
use super::removed::Removed;

/// Removes slot, managed publication, guards, record, copy records and origin of a pipeline.
pub async fn remove(config: &Config, pipeline: &config::Pipeline) -> Result<Vec<Removed>, PipelineError> {
    let name = &pipeline.name;
    let connecting = SourceError::wire("connecting to the primary");
    let sql = sql::connect(&config.primary, &primary_session(name, "drop")).await.map_err(connecting)?;
    refuse_running(&sql, pipeline).await?;
    #[cfg(not(feature = "kafka"))]
    if matches!(pipeline.sink, config::Sink::Kafka(_)) {
        return Err(PipelineError::Refused(super::attempt::NO_KAFKA.to_owned()));
    }
    #[cfg(feature = "kafka")]
    let kafka = match &pipeline.sink {
        config::Sink::Kafka(sink) => Some((super::forget_kafka::own(config, name).await?, sink)),
        config::Sink::Postgres(_) | config::Sink::Stdout => None,
    };
    let standby = match &pipeline.sink {
        config::Sink::Postgres(sink) => Some(own_standby(sink, name).await),
        config::Sink::Kafka(_) | config::Sink::Stdout => None,
    };
    // A daemon that holds the lock stops us before anything is removed; a standby that is gone does not.
    if let Some(Err(error @ PipelineError::Refused(_))) = standby {
        return Err(error);
    }
    let mut report = Vec::new();
    report.extend(warn_if_listed(&sql, name).await?);
    let slot = pipeline.slot_name();
    let was_there = drop_slot(&sql, &slot).await?;
    report.push(done(was_there, &format!("the slot \"{slot}\"")));
    if pipeline.publication.is_none() {
        let publication = pipeline.publication_name();
        let dropped = drop_publication(&sql, &publication).await;
        report.push(match dropped {
            Ok(was_there) => done(was_there, &format!("the publication \"{publication}\"")),
            Err(error) => Removed::Left(error.to_string()),
        });
    }
    match standby {
        // The lock is held until everything is gone.
        Some(Ok((lock, sink))) => {
            match postgres::remove(&sink.url, name).await {
                Ok(said) => report.extend(said.into_iter().map(Removed::Done)),
                Err(error) => report.push(Removed::Left(format!("what is on the standby: {error}"))),
            };
            drop(lock);
        }
        Some(Err(error)) => {
            report.push(Removed::Left(format!("everything on the standby: {error}; run drop again once it answers")))
        }
        None => {}
    }
    #[cfg(feature = "kafka")]
    if let Some((lock, sink)) = kafka {
        report.extend(super::forget_kafka::forget(&sql, pipeline, sink).await?);
        drop(lock);
    }
    Ok(report)
}

fn done(was_there: bool, what: &str) -> Removed {
    Removed::Done(if was_there { format!("dropped {what}") } else { format!("{what} is not there") })
}

async fn refuse_running(sql: &SqlClient, pipeline: &config::Pipeline) -> Result<(), PipelineError> {
    let slot = pipeline.slot_name();
    let facts = slot_facts(sql, &slot).await?;
    let Some(process_id) = facts.filter(|facts| facts.active).map(|facts| facts.active_pid.unwrap_or(0)) else {
        return Ok(());
    };
    Err(PipelineError::Refused(format!(
        "the slot \"{slot}\" is in use (walsender process {process_id} on the primary): a daemon streams \"{}\". Stop it first, or take \
         the pipeline out of its configuration, send it SIGHUP, and drop with a file that still has it (--config)",
        pipeline.name
    )))
}

async fn warn_if_listed(sql: &SqlClient, name: &PipelineName) -> Result<Option<Removed>, PipelineError> {
    let names = synchronous_standby_names(sql).await?;
    Ok(lists_standby(&names, name.as_str()).then(|| {
        Removed::Left(format!(
            "synchronous_standby_names on the primary is '{names}' and lists \"{name}\": commits wait for it until you take it out \
             (ALTER SYSTEM SET synchronous_standby_names = …; SELECT pg_reload_conf())"
        ))
    }))
}

/// A session on the standby that owns the pipeline; refuses while a daemon does.
async fn own_standby<'a>(
    sink: &'a PostgresSink,
    name: &PipelineName,
) -> Result<(Connection, &'a PostgresSink), PipelineError> {
    let mut connection = open_session(&sink.url, name, "drop").await?;
    if ownership::try_lock(&mut connection, &ownership::standby_lock(name)).await? {
        return Ok((connection, sink));
    }
    Err(PipelineError::Refused(format!(
        "a daemon runs \"{name}\" (it holds the pipeline's lock on the standby): stop it first"
    )))
}
