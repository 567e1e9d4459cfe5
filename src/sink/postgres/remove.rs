//! Removes what a pipeline owns on the standby: guards, progress row, record of the copy, replication origin. For
//! `walrelay drop`. The schema `walrelay` stays: other pipelines may live there.

use postgres_protocol::escape::escape_literal;

use crate::config::ServerUrl;
use crate::model::PipelineName;

use super::super::SinkError;
use super::open::open_session;
use super::readonly::remove_guards;
use super::store::query_row;

/// Removes everything and tells, in words, what was removed. What is not there is no fault. The position goes last, so that
/// an interrupted removal is repeated and not forgotten.
pub async fn remove(url: &ServerUrl, pipeline: &PipelineName) -> Result<Vec<String>, SinkError> {
    let mut connection = open_session(url, pipeline, "control").await?;
    let name = escape_literal(pipeline.as_str());
    let origin = escape_literal(&pipeline.owned_name());
    let mut removed = Vec::new();
    let guards = remove_guards(&mut connection, pipeline).await?;
    if guards > 0 {
        removed.push(format!("the read-only guards of {guards} tables on the standby"));
    }
    let drop_origin = format!(
        "SELECT pg_catalog.pg_replication_origin_drop({origin}) WHERE pg_catalog.pg_replication_origin_oid({origin}) IS NOT NULL"
    );
    let described = format!("the replication origin {} on the standby", pipeline.owned_name());
    if !query_row(&mut connection, &drop_origin, &format!("removing {described}")).await?.is_empty() {
        removed.push(described);
    }
    for table in ["walrelay.copy", "walrelay.progress"] {
        let exists = format!("SELECT 1 WHERE pg_catalog.to_regclass('{table}') IS NOT NULL");
        let sql = format!("DELETE FROM {table} WHERE pipeline = {name} RETURNING 1");
        let described = format!("the rows of {pipeline} in {table} on the standby");
        let context = format!("removing {described}");
        if !query_row(&mut connection, &exists, &context).await?.is_empty()
            && !query_row(&mut connection, &sql, &context).await?.is_empty()
        {
            removed.push(described);
        }
    }
    Ok(removed)
}
