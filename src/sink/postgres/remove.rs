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
    remove_guards(&mut connection, pipeline).await?;
    removed.push(format!("the read-only guards of {pipeline} on the standby"));
    let tables = "SELECT pg_catalog.to_regclass('walrelay.copy') IS NOT NULL, \
                  pg_catalog.to_regclass('walrelay.progress') IS NOT NULL";
    let tables = query_row(&mut connection, tables, "looking for the relay's tables on the standby").await?;
    let is_there = |at: usize| tables.get(at).is_some_and(|value| value.as_deref() == Some("t"));
    let drop_origin = format!(
        "SELECT pg_catalog.pg_replication_origin_drop({origin}) WHERE pg_catalog.pg_replication_origin_oid({origin}) IS NOT NULL"
    );
    let context = format!("removing the replication origin {} on the standby", pipeline.owned_name());
    query_row(&mut connection, &drop_origin, &context).await?;
    removed.push(format!("the replication origin {} on the standby", pipeline.owned_name()));
    for (is_there, table) in [(is_there(0), "copy"), (is_there(1), "progress")] {
        if is_there {
            let sql = format!("DELETE FROM walrelay.{table} WHERE pipeline = {name}");
            query_row(&mut connection, &sql, &format!("removing the rows of {pipeline} in walrelay.{table}")).await?;
            removed.push(format!("the rows of {pipeline} in walrelay.{table} on the standby"));
        }
    }
    Ok(removed)
}
