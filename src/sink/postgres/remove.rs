//! Removes what a pipeline owns on the standby: guards, progress row, record of the copy, replication origins. For
//! `walrelay drop`. The schema `walrelay` stays: other pipelines may live there.
//!
//! Origins belong to the whole cluster, all the rest to one database. Where a pipeline of the same name is at work in another database,
//! the origins are left to it; one that is stopped there makes them anew when it starts, since nothing but a tag hangs on them.

use postgres_protocol::escape::escape_literal;
use tokio::time::Instant;

use crate::config::ServerUrl;
use crate::model::PipelineName;
use crate::wire::Connection;

use super::super::SinkError;
use super::open::{TAKE_OVER_INTERVAL, TAKE_OVER_TIMEOUT, database_of_namesake, open_session};
use super::readonly::remove_guards;
use super::roles::{CONTROL_ROLE, origin_names};
use super::store::query_row;

/// Removes everything and tells, in words, what became of each thing. What is not there is no fault. The position goes last, so that
/// an interrupted removal is repeated and not forgotten.
pub async fn remove(url: &ServerUrl, pipeline: &PipelineName) -> Result<Vec<String>, SinkError> {
    let mut connection = open_session(url, pipeline, CONTROL_ROLE).await?;
    let name = escape_literal(pipeline.as_str());
    let mut said = Vec::new();
    let guards = remove_guards(&mut connection, pipeline).await?;
    if guards > 0 {
        said.push(format!("removed the read-only guards of {guards} tables on the standby"));
    }
    match database_of_namesake(&mut connection, pipeline).await? {
        Some(database) => said.push(format!(
            "kept the replication origin \"{}\" on the standby: a pipeline of the same name uses it, which writes into the database \"{database}\"",
            pipeline.owned_name()
        )),
        None => {
            for origin in origin_names(pipeline) {
                if drop_origin(&mut connection, &origin).await? {
                    said.push(format!("removed the replication origin \"{origin}\" on the standby"));
                }
            }
        }
    }
    for table in ["walrelay.copy", "walrelay.progress"] {
        let exists = format!("SELECT 1 WHERE pg_catalog.to_regclass('{table}') IS NOT NULL");
        let sql = format!("DELETE FROM {table} WHERE pipeline = {name} RETURNING 1");
        let described = format!("the rows of {pipeline} in {table} on the standby");
        let context = format!("removing {described}");
        if !query_row(&mut connection, &exists, &context).await?.is_empty()
            && !query_row(&mut connection, &sql, &context).await?.is_empty()
        {
            said.push(format!("removed {described}"));
        }
    }
    Ok(said)
}

/// Drops the origin; whether it was there. The session of a daemon that was stopped just now may still be ending.
async fn drop_origin(connection: &mut Connection, origin: &str) -> Result<bool, SinkError> {
    let name = escape_literal(origin);
    let sql = format!(
        "SELECT pg_catalog.pg_replication_origin_drop({name}) WHERE pg_catalog.pg_replication_origin_oid({name}) IS NOT NULL"
    );
    let context = format!("removing the replication origin \"{origin}\" on the standby");
    let deadline = Instant::now() + TAKE_OVER_TIMEOUT;
    loop {
        match query_row(connection, &sql, &context).await {
            Err(SinkError::Wire { source, .. }) if source.code() == Some("55006") && Instant::now() < deadline => {
                tokio::time::sleep(TAKE_OVER_INTERVAL).await;
            }
            result => return result.map(|row| !row.is_empty()),
        }
    }
}
