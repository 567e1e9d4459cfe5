//! Whether the replication origin that tags the work on the standby can be used: asked before anything is copied, because it is
//! taken only when the copy is done. Origins belong to the whole cluster, pipelines' records to one database. Takes nothing.

use crate::config::PostgresSink;
use crate::model::PipelineName;
use crate::sink::postgres::{database_of_namesake, origin_grants_sql};
use crate::wire::Connection;

use super::PipelineError;
use super::ownership::first_value;

/// What an apply session calls (`src/backend/replication/logical/origin.c`).
const FUNCTIONS: &str = "'{pg_catalog.pg_replication_origin_oid(text), pg_catalog.pg_replication_origin_create(text), \
                         pg_catalog.pg_replication_origin_session_setup(text)}'::text[]";

/// Refuses what would be refused, or tried again for ever, at the end of the copy.
pub(super) async fn check_origin(
    connection: &mut Connection,
    sink: &PostgresSink,
    pipeline: &PipelineName,
) -> Result<(), PipelineError> {
    let origin = pipeline.owned_name();
    let lacking = format!(
        "SELECT pg_catalog.string_agg(f, ', ') FROM unnest({FUNCTIONS}) f WHERE NOT pg_catalog.has_function_privilege(f, 'EXECUTE')"
    );
    if let Some(functions) = first_value(connection, &lacking, "asking for rights on the standby").await? {
        return Err(PipelineError::Refused(format!(
            "the replication origin {origin} cannot be used on the standby: the role \"{}\" may not call {functions}; let a superuser \
             run there: {}",
            sink.url.user,
            origin_grants_sql(&sink.url.user).join("; ")
        )));
    }
    if let Some(database) = database_of_namesake(connection, pipeline).await? {
        return Err(PipelineError::Refused(format!(
            "a pipeline of the same name, \"{pipeline}\", already writes into the database \"{database}\" of this standby's server, and \
             both would use its replication origin {origin}, which only one session can hold: give one of the two another name \
             (`walrelay drop {pipeline} --yes` removes what was made under this one)"
        )));
    }
    Ok(())
}
