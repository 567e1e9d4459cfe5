//! Tables that are about to come into a publication: whether the standby can take them is asked before anything is changed for them, and
//! then they stand in the plan. Copies nothing.

use crate::config::{OnExistingRows, Pipeline, ServerUrl};
use crate::model::{PipelineName, QualifiedName};
use crate::wire::sql::SqlClient;

use super::error::{Side, SnapshotError, server};
use super::{published, renamed, session, standby, store};

/// Refuses, with everything that is missing or in the way, what the copy would refuse. Where a copy was made before, the tables are
/// written into its plan: the publication alone does not tell a partition that came with a new table from one of an old table.
pub async fn plan_coming(
    primary: &SqlClient,
    url: &ServerUrl,
    pipeline: &Pipeline,
    tables: &[QualifiedName],
) -> Result<(), SnapshotError> {
    if tables.is_empty() {
        return Ok(());
    }
    let mut columns = published::column_types(primary, tables).await?;
    columns.iter_mut().for_each(|columns| columns.retain(|column| !column.is_generated));
    let (client, _) = by_the_names_of_now(primary, url, &pipeline.name).await?;
    let found = standby::fitting(&client, tables.iter().zip(columns.iter().map(Vec::as_slice))).await?;
    if pipeline.on_existing_rows == OnExistingRows::Refuse {
        let found: Vec<_> = tables.iter().zip(&found).collect();
        let full = standby::non_empty(&client, &found).await?;
        if !full.is_empty() {
            return Err(SnapshotError::NotEmpty(full));
        }
    }
    write_plan(&client, &pipeline.name, tables).await
}

/// The same for tables that are published already: what is in their way stops the copy, which knows of them then.
pub async fn plan_published(
    primary: &SqlClient,
    url: &ServerUrl,
    pipeline: &Pipeline,
    tables: &[QualifiedName],
) -> Result<(), SnapshotError> {
    if tables.is_empty() {
        return Ok(());
    }
    let (client, _) = by_the_names_of_now(primary, url, &pipeline.name).await?;
    write_plan(&client, &pipeline.name, tables).await
}

/// A session on the standby, whose record has followed renamed tables: a name that a copied table had may be another's now. And whether
/// there is such a record.
async fn by_the_names_of_now(
    primary: &SqlClient,
    url: &ServerUrl,
    pipeline: &PipelineName,
) -> Result<(SqlClient, bool), SnapshotError> {
    let mut client = session::standby_sql(url, pipeline).await?;
    let has_record = renamed::follow(primary, &mut client, pipeline).await?;
    Ok((client, has_record))
}

/// Durable when it returns: behind it the publication is changed on the other server, for good.
async fn write_plan(
    client: &SqlClient,
    pipeline: &PipelineName,
    tables: &[QualifiedName],
) -> Result<(), SnapshotError> {
    if store::load(client, pipeline).await?.tables.is_empty() {
        return Ok(());
    }
    make_durable(client).await?;
    let planned = store::plan_more(client, pipeline, tables).await;
    planned.map_err(|error| server(Side::Standby, "write the plan into walrelay.copy", error))
}

async fn make_durable(client: &SqlClient) -> Result<(), SnapshotError> {
    let durable = client.batch_execute("SET synchronous_commit = local").await;
    durable.map_err(|error| server(Side::Standby, "set synchronous_commit", error))
}

/// Notes which copied tables have left the set, before their changes are left out: one that comes back lacks them, and is to be copied anew.
pub async fn note_set(
    primary: &SqlClient,
    url: &ServerUrl,
    pipeline: &PipelineName,
    wanted: &[QualifiedName],
    others: &[QualifiedName],
) -> Result<(), SnapshotError> {
    let failed =
        |error: tokio_postgres::Error| server(Side::Standby, "note in walrelay.copy what is of the set", error);
    // A new name may be what takes a table out of the set.
    let (client, has_record) = by_the_names_of_now(primary, url, pipeline).await?;
    if !has_record {
        return Ok(());
    }
    make_durable(&client).await?;
    let names = |tables: &[QualifiedName]| -> (Vec<String>, Vec<String>) {
        tables.iter().map(|table| (table.schema.clone(), table.name.clone())).unzip()
    };
    let (schemas, tables) = names(wanted);
    let back = "UPDATE walrelay.copy SET state = 'pending', snapshot_lsn = NULL, rows = 0, bytes = 0, has_left = false, \
                updated_at = pg_catalog.now() WHERE pipeline = $1 AND has_left \
                AND (schema_name, table_name) IN (SELECT * FROM unnest($2::text[], $3::text[]))";
    let back = client.execute(back, &[&pipeline.as_str(), &schemas, &tables]).await.map_err(failed)?;
    let (schemas, tables) = names(others);
    let left = "UPDATE walrelay.copy SET has_left = true, updated_at = pg_catalog.now() \
                WHERE pipeline = $1 AND NOT has_left AND state = 'done' \
                AND (schema_name, table_name) IN (SELECT * FROM unnest($2::text[], $3::text[]))";
    let left = client.execute(left, &[&pipeline.as_str(), &schemas, &tables]).await.map_err(failed)?;
    if left + back > 0 {
        tracing::info!(left, back, "copied tables have left the set, or come back into it with a new copy");
    }
    Ok(())
}
