//! Tables that are about to come into a publication: whether the standby can take them is asked before anything is changed for them, and
//! then they stand in the plan. Copies nothing.

use crate::config::{OnExistingRows, Pipeline, ServerUrl};
use crate::model::QualifiedName;
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
    let mut client = session::standby_sql(url, &pipeline.name).await?;
    // A name that a copied table had may be another's now.
    renamed::follow(primary, &mut client, &pipeline.name).await?;
    let found = standby::fitting(&client, tables.iter().zip(columns.iter().map(Vec::as_slice))).await?;
    if pipeline.on_existing_rows == OnExistingRows::Refuse {
        let found: Vec<_> = tables.iter().zip(&found).collect();
        let full = standby::non_empty(&client, &found).await?;
        if !full.is_empty() {
            return Err(SnapshotError::NotEmpty(full));
        }
    }
    if store::load(&client, &pipeline.name).await?.tables.is_empty() {
        return Ok(());
    }
    // Behind it the publication is changed on the other server, for good.
    let durable = client.batch_execute("SET synchronous_commit = local").await;
    durable.map_err(|error| server(Side::Standby, "set synchronous_commit", error))?;
    let planned = store::plan_more(&client, &pipeline.name, tables).await;
    planned.map_err(|error| server(Side::Standby, "write the plan into walrelay.copy", error))
}
